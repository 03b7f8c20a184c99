//! containerd's filter language: `field`, `field==value`, `field!=value`, `field~=pattern`, joined by commas; a field is
//! words between dots, a word or a value with odd characters stands in quotes.
//!
//! A field that something does not have differs from every value and matches only patterns of nothing.

use regex::Regex;

/// Conditions that must all hold.
#[derive(Debug)]
pub(crate) struct Filter(Vec<Condition>);

#[derive(Debug)]
struct Condition {
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

impl Filter {
    /// Reads one filter; an empty one matches everything.
    pub(crate) fn parse(text: &str) -> Result<Filter, String> {
        let failed = |why: &str| format!("filter `{text}`: {why}");
        let mut conditions = Vec::new();
        for part in split_unquoted(text, ',').into_iter().map(str::trim).filter(|part| !part.is_empty()) {
            conditions.push(condition(part).map_err(|why| failed(&why))?);
        }
        Ok(Filter(conditions))
    }

    /// Whether it matches, given what a field holds.
    pub(crate) fn matches(&self, field: impl Fn(&[String]) -> Option<String>) -> bool {
        self.0.iter().all(|condition| {
            let value = field(&condition.field);
            match &condition.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.as_ref() == Some(wanted),
                Test::Differs(other) => value.as_ref() != Some(other),
                Test::Matches(pattern) => pattern.is_match(value.as_deref().unwrap_or_default()),
            }
        })
    }
}

/// The parts between separators that are not in double quotes.
pub(crate) fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut from, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == separator && !quoted => {
                parts.push(&text[from..at]);
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn condition(text: &str) -> Result<Condition, String> {
    let outside = text.find('"').map_or(text, |quote| if text[..quote].contains('=') { &text[..quote] } else { text });
    let found = ["==", "!=", "~="].into_iter().filter_map(|sign| Some((outside.find(sign)?, sign))).min();
    let (name, test) = match found {
        None => (text, Test::Present),
        Some((at, sign)) => {
            let value = text[at + sign.len()..].trim();
            let test = match sign {
                "==" => Test::Equal(unquote(value)?),
                "!=" => Test::Differs(unquote(value)?),
                _ => {
                    let pattern = pattern(value)?;
                    Test::Matches(Regex::new(&pattern).map_err(|_| format!("`{pattern}` is no regular expression"))?)
                }
            };
            (text[..at].trim(), test)
        }
    };
    let field = split_unquoted(name, '.').into_iter().map(word).collect::<Result<Vec<_>, _>>()?;
    Ok(Condition { field, test })
}

fn word(text: &str) -> Result<String, String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/');
    match text {
        quoted if quoted.starts_with('"') => unquote(quoted),
        plain if !plain.is_empty() && plain.chars().all(is_word) => Ok(plain.to_owned()),
        other => Err(format!("`{other}` is no field: a condition is field==value, field!=value or field~=pattern")),
    }
}

fn unquote(text: &str) -> Result<String, String> {
    if !text.starts_with('"') {
        return Ok(text.to_owned());
    }
    // Go's quotes are JSON's, as far as anybody writes them here.
    serde_json::from_str(text).map_err(|_| format!("{text} has no end or odd escapes"))
}

/// Patterns also stand between slashes or bars.
fn pattern(text: &str) -> Result<String, String> {
    let between = |c: char| text.strip_prefix(c).and_then(|rest| rest.strip_suffix(c));
    between('/').or_else(|| between('|')).map_or_else(|| unquote(text), |pattern| Ok(pattern.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let matches = |filter: &str| {
            let field = |path: &[String]| match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["ref"] => Some("foo789".to_owned()),
                ["labels", "a.b"] => Some("c,d".to_owned()),
                ["odd"] => Some("x==y".to_owned()),
                _ => None,
            };
            Filter::parse(filter).map(|filter| filter.matches(field))
        };
        for (filter, expected) in [
            ("", true),
            ("ref", true),
            ("nothing", false),
            ("ref==foo789", true),
            ("ref==\"foo789\"", true),
            ("ref==foo", false),
            ("ref~=foo", true),
            ("ref~=/^oo/", false),
            ("ref!=foo", true),
            ("nothing!=x", true),
            ("nothing==x", false),
            ("ref~=foo,nothing", false),
            ("labels.\"a.b\"==\"c,d\",ref", true),
            ("odd==x==y", true),
        ] {
            assert_eq!(matches(filter), Ok(expected), "{filter}");
        }
        for bad in ["ref~=(", "==x", "a b==c", "ref==\"x", "ref=foo"] {
            assert!(matches(bad).is_err(), "{bad}");
        }
    }
}
