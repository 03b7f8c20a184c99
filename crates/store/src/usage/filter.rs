//! Filters of `du` and `prune` (containerd's filter language): `type==exec.cachemount,id~=^1`, `mutable`.
//!
//! Commas mean "and"; several filters mean "or". A field alone asks whether it is set. Values may be quoted, a regular
//! expression also with `/` or `|` around it. `mutable` and its like are set or not, and have no value: `mutable==true` is
//! never so, as in BuildKit.

use std::str::FromStr;

use regex::Regex;

use super::UsageRecord;
use crate::Error;

/// One filter.
#[derive(Clone, Debug)]
pub struct UsageFilter {
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
struct Term {
    field: Field,
    test: Test,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Parents,
    Description,
    InUse,
    Mutable,
    Immutable,
    Type,
    Shared,
    Private,
}

const FIELDS: [(&str, Field); 9] = [
    ("id", Field::Id),
    ("type", Field::Type),
    ("description", Field::Description),
    ("mutable", Field::Mutable),
    ("immutable", Field::Immutable),
    ("inuse", Field::InUse),
    ("shared", Field::Shared),
    ("private", Field::Private),
    ("parents", Field::Parents),
];

/// For people.
const KNOWN: &str = "known are id, type, description, mutable, immutable, inuse, shared, private and parents";

#[derive(Clone, Debug)]
enum Test {
    Set,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

/// What filters look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'r> {
    /// [`UsageRecord::id`].
    pub id: &'r str,
    /// [`UsageRecord::parents`].
    pub parents: &'r [String],
    /// [`UsageRecord::description`].
    pub description: &'r str,
    /// [`UsageRecord::record_type`].
    pub record_type: &'r str,
    /// [`UsageRecord::in_use`].
    pub in_use: bool,
    /// [`UsageRecord::mutable`].
    pub mutable: bool,
    /// [`UsageRecord::shared`].
    pub shared: bool,
}

impl UsageFilter {
    /// Whether the record fulfils all terms.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        self.selects(&Subject {
            id: &record.id,
            parents: &record.parents,
            description: &record.description,
            record_type: record.record_type.as_str(),
            in_use: record.in_use,
            mutable: record.mutable,
            shared: record.shared,
        })
    }

    /// Whether that fulfils all terms.
    pub fn selects(&self, subject: &Subject<'_>) -> bool {
        self.terms.iter().all(|term| term.matches(subject))
    }
}

impl Term {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let (value, set) = value_of(self.field, subject);
        match &self.test {
            Test::Set => set,
            Test::Equal(wanted) => set && value == *wanted,
            Test::Differs(other) => value != *other,
            Test::Matches(regex) => regex.is_match(&value),
        }
    }
}

fn value_of(field: Field, subject: &Subject<'_>) -> (String, bool) {
    let text = |text: String| {
        let set = !text.is_empty();
        (text, set)
    };
    let flag = |set| (String::new(), set);
    match field {
        Field::Id => text(subject.id.to_owned()),
        Field::Parents => text(subject.parents.join(";")),
        Field::Description => text(subject.description.to_owned()),
        Field::InUse => flag(subject.in_use),
        Field::Mutable => flag(subject.mutable),
        Field::Immutable => flag(!subject.mutable),
        Field::Type => text(subject.record_type.to_owned()),
        Field::Shared => flag(subject.shared),
        Field::Private => flag(!subject.shared),
    }
}

impl FromStr for UsageFilter {
    type Err = Error;

    fn from_str(filter: &str) -> Result<Self, Self::Err> {
        let mut rest = filter;
        let mut terms = Vec::new();
        let error = |why: String| Error::Filter { filter: filter.to_owned(), why };
        if filter.is_empty() {
            return Ok(UsageFilter { terms });
        }
        loop {
            let (term, after) = parse_term(rest).map_err(error)?;
            terms.push(term);
            if after.is_empty() {
                return Ok(UsageFilter { terms });
            }
            rest = after.strip_prefix(',').ok_or_else(|| error(format!("expected `,` before `{after}`")))?;
        }
    }
}

fn parse_term(text: &str) -> Result<(Term, &str), String> {
    let (name, mut rest) = parse_word(text)?;
    // What stands behind a dot does not count.
    while let Some(more) = rest.strip_prefix('.') {
        rest = parse_word(more)?.1;
    }
    let field = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
    let field = field.ok_or_else(|| format!("unknown field `{name}`: {KNOWN}"))?;
    if rest.is_empty() || rest.starts_with(',') {
        return Ok((Term { field, test: Test::Set }, rest));
    }
    let (operator, rest) = match rest.trim_start() {
        rest if ["==", "!=", "~="].iter().any(|operator| rest.starts_with(operator)) => rest.split_at(2),
        rest => return Err(format!("expected ==, != or ~= at `{rest}`")),
    };
    let (value, rest) = parse_value(rest.trim_start(), operator == "~=")?;
    let test = match operator {
        "==" => Test::Equal(value),
        "!=" => Test::Differs(value),
        _ => {
            let regex = Regex::new(&value).map_err(|_| format!("`{value}` is no regular expression"))?;
            Test::Matches(regex)
        }
    };
    Ok((Term { field, test }, rest))
}

/// The name of a field, maybe in quotes.
fn parse_word(text: &str) -> Result<(String, &str), String> {
    let text = text.trim_start();
    if text.starts_with('"') {
        return parse_value(text, false);
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    match text.split_at(end) {
        ("", _) => Err(format!("expected a field at `{text}`: {KNOWN}")),
        (name, rest) => Ok((name.to_owned(), rest)),
    }
}

fn parse_value(text: &str, regex: bool) -> Result<(String, &str), String> {
    let quote = text.chars().next().filter(|c| *c == '"' || regex && (*c == '/' || *c == '|'));
    let Some(quote) = quote else {
        let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
        return match text.split_at(end) {
            ("", _) => Err("expected a value at its end, or before a comma".to_owned()),
            // So it is with containerd; quotes help.
            (value, _) if value.starts_with(['.', '=', '!', '~', '/', '|']) => {
                Err(format!("expected a value or one in quotes at `{value}`"))
            }
            (value, rest) => Ok((value.to_owned(), rest)),
        };
    };
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, next)) if next == quote => value.push(quote),
                Some((_, next)) => value.extend(['\\', next].iter().skip(usize::from(quote == '"' && next == '\\'))),
                None => break,
            },
            c if c == quote => return Ok((value, &text[at + c.len_utf8()..])),
            c => value.push(c),
        }
    }
    Err(format!("the closing `{quote}` is missing"))
}
