//! Filters of `du` and `prune` (containerd's filter language): `type==exec.cachemount,id~=^1`, `mutable`.
//!
//! Commas mean "and"; several filters mean "or". A field alone asks whether it is set. Values may be quoted, a regular
//! expression also with `/` or `|` around it.

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
    ("parents", Field::Parents),
    ("description", Field::Description),
    ("inuse", Field::InUse),
    ("mutable", Field::Mutable),
    ("immutable", Field::Immutable),
    ("type", Field::Type),
    ("shared", Field::Shared),
    ("private", Field::Private),
];

#[derive(Clone, Debug)]
enum Test {
    Set,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

impl UsageFilter {
    /// Whether the record fulfils all terms.
    pub fn matches(&self, record: &UsageRecord) -> bool {
        self.terms.iter().all(|term| term.matches(record))
    }
}

impl Term {
    fn matches(&self, record: &UsageRecord) -> bool {
        let (value, set) = value_of(self.field, record);
        match &self.test {
            Test::Set => set,
            Test::Equal(wanted) => set && value == *wanted,
            Test::Differs(other) => value != *other,
            Test::Matches(regex) => set && regex.is_match(&value),
        }
    }
}

fn value_of(field: Field, record: &UsageRecord) -> (String, bool) {
    let text = |text: String| {
        let set = !text.is_empty();
        (text, set)
    };
    let flag = |set| (String::new(), set);
    match field {
        Field::Id => text(record.id.clone()),
        Field::Parents => text(record.parents.join(";")),
        Field::Description => text(record.description.clone()),
        Field::InUse => flag(record.in_use),
        Field::Mutable => flag(record.mutable),
        Field::Immutable => flag(!record.mutable),
        Field::Type => text(record.record_type.as_str().to_owned()),
        Field::Shared => flag(record.shared),
        Field::Private => flag(!record.shared),
    }
}

impl FromStr for UsageFilter {
    type Err = Error;

    fn from_str(filter: &str) -> Result<Self, Self::Err> {
        let mut rest = filter;
        let mut terms = Vec::new();
        let error = |why: String| Error::Filter { filter: filter.to_owned(), why };
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
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let known = || FIELDS.map(|(name, _)| name).join(", ");
    if name.is_empty() {
        return Err(format!("expected a field (one of {}) at `{text}`", known()));
    }
    let field = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
    let field = field.ok_or_else(|| format!("there is no field `{name}`, but {}", known()))?;
    let (operator, rest) = match rest.get(..2) {
        Some(operator @ ("==" | "!=" | "~=")) => (operator, &rest[2..]),
        _ => return Ok((Term { field, test: Test::Set }, rest)),
    };
    let (value, rest) = parse_value(rest, operator == "~=")?;
    let test = match operator {
        "==" => Test::Equal(value),
        "!=" => Test::Differs(value),
        _ => Test::Matches(Regex::new(&value).map_err(|e| e.to_string())?),
    };
    Ok((Term { field, test }, rest))
}

fn parse_value(text: &str, regex: bool) -> Result<(String, &str), String> {
    let quote = text.chars().next().filter(|c| *c == '"' || regex && (*c == '/' || *c == '|'));
    let Some(quote) = quote else {
        let end = text.find(',').unwrap_or(text.len());
        return Ok((text[..end].to_owned(), &text[end..]));
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
