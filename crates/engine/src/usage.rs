//! What is stored, as `du` and `DiskUsage` tell it, and which of it filters select: containerd's filter language over the
//! fields of a record.
//!
//! Filters of several flags are alternatives; conditions with commas inside one flag must all hold.

use std::time::Duration;

use base::{ByteSize, Fault};
use regex::Regex;

/// One line of `du`.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRecord {
    /// Its id.
    pub id: String,
    /// `regular`, `internal`, `frontend`, `source.local`, `source.git.checkout`, `exec.cachemount`.
    pub record_type: String,
    /// What made it.
    pub description: String,
    /// Disk space.
    pub size: ByteSize,
    /// It can still change (cache mounts).
    pub mutable: bool,
    /// A running build needs it.
    pub in_use: bool,
    /// An image or another record shares its layers.
    pub shared: bool,
    /// Ids of the records that it builds on.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// When a build last used it.
    pub last_used_at: Option<jiff::Timestamp>,
    /// How often builds used it.
    pub usage_count: u64,
}

/// What `prune` removes.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also internal and frontend records.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Keep this much in any case.
    pub reserved_space: Option<ByteSize>,
    /// Remove until at most so much is used.
    pub max_used_space: Option<ByteSize>,
    /// Remove until so much of the disk is free.
    pub min_free_space: Option<ByteSize>,
    /// `--filter key=value` (`type==regular`, `id=..`, `until=24h`, `unused-for=..`), all must match.
    pub filters: Vec<String>,
}

impl From<store::UsageRecord> for UsageRecord {
    fn from(record: store::UsageRecord) -> Self {
        let time = |time| jiff::Timestamp::try_from(time).unwrap_or_default();
        UsageRecord {
            id: record.id,
            record_type: record.record_type.as_str().to_owned(),
            description: record.description,
            size: ByteSize(record.size),
            mutable: record.mutable,
            in_use: record.in_use,
            shared: record.shared,
            parents: record.parents,
            created_at: time(record.created_at),
            last_used_at: record.last_used_at.map(time),
            usage_count: record.usage_count.into(),
        }
    }
}

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
