//! Filters of `du` and of `DiskUsage`: containerd's filter language over the fields of a record.
//!
//! Filters of several flags are alternatives; conditions with commas inside one flag must all hold.

use base::Fault;
use regex::Regex;

use crate::api::UsageRecord;

/// Records that any of the filters matches; all of them when there is none.
pub fn select(records: Vec<UsageRecord>, filters: &[String]) -> Result<Vec<UsageRecord>, Fault> {
    if filters.is_empty() {
        return Ok(records);
    }
    let parsed = filters.iter().map(|filter| parse(filter)).collect::<Result<Vec<_>, _>>()?;
    let matches = |record: &UsageRecord| parsed.iter().any(|filter| filter.iter().all(|c| c.holds(record)));
    Ok(records.into_iter().filter(matches).collect())
}

struct Condition {
    field: Field,
    test: Test,
}

#[derive(Clone, Copy)]
enum Field {
    Id,
    Type,
    Description,
    Mutable,
    Immutable,
    InUse,
    Shared,
    Private,
    Parents,
}

enum Test {
    Present,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

fn parse(filter: &str) -> Result<Vec<Condition>, Fault> {
    filter.split(',').filter(|part| !part.is_empty()).map(|part| condition(filter, part)).collect()
}

fn condition(filter: &str, part: &str) -> Result<Condition, Fault> {
    let signs = ["==", "!=", "~=", "="];
    let found = signs.iter().find_map(|sign| part.split_once(sign).map(|(name, value)| (name, *sign, value)));
    let (name, sign, value) = found.unwrap_or((part, "", ""));
    let field = match name {
        "id" => Field::Id,
        "type" => Field::Type,
        "description" => Field::Description,
        "mutable" => Field::Mutable,
        "immutable" => Field::Immutable,
        "inuse" => Field::InUse,
        "shared" => Field::Shared,
        "private" => Field::Private,
        "parent" | "parents" => Field::Parents,
        _ => {
            let known = "id, type, description, mutable, immutable, inuse, shared, private and parents";
            return Err(invalid(filter, &format!("unknown field `{name}`: known are {known}")));
        }
    };
    let plain = value.trim_matches('"').to_owned();
    let test = match sign {
        "" => Test::Present,
        "!=" => Test::Differs(plain),
        "~=" => {
            let pattern = Regex::new(value.trim_matches(['"', '/', '|']));
            let why = format!("`{value}` is no regular expression");
            Test::Matches(pattern.map_err(|_| invalid(filter, &why))?)
        }
        _ => Test::Equal(plain),
    };
    Ok(Condition { field, test })
}

fn invalid(filter: &str, why: &str) -> Fault {
    Fault::user(format!("filter `{filter}`: {why}"))
}

impl Condition {
    fn holds(&self, record: &UsageRecord) -> bool {
        let flag = |set: bool| if set { "true".to_owned() } else { String::new() };
        let content = match self.field {
            Field::Id => record.id.clone(),
            Field::Type => record.record_type.clone(),
            Field::Description => record.description.clone(),
            Field::Mutable => flag(record.mutable),
            Field::Immutable => flag(!record.mutable),
            Field::InUse => flag(record.in_use),
            Field::Shared => flag(record.shared),
            Field::Private => flag(!record.shared),
            Field::Parents => record.parents.join(";"),
        };
        match &self.test {
            Test::Present => !content.is_empty(),
            // A flag that is not set has no value; people still write `mutable==false`.
            Test::Equal(value) if value == "false" => content.is_empty() || content == "false",
            Test::Equal(value) => content == *value,
            Test::Differs(value) => content != *value,
            Test::Matches(pattern) => pattern.is_match(&content),
        }
    }
}
