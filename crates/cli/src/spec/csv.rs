//! One record of comma separated values (RFC 4180), as `--output` and its kin are written.

use std::collections::BTreeMap;

use base::Fault;

use super::invalid;

/// Why a text is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// A quote inside a field that does not begin with one.
    #[error("a quote in the middle of a field: put quotes round the whole `key=value`")]
    BareQuote,
    /// A quote that is never closed, or is followed by more text.
    #[error("a quote is not closed")]
    Quote,
}

/// The fields of the record.
pub fn fields(line: &str) -> Result<Vec<String>, CsvError> {
    let mut rest = line.strip_suffix('\n').map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
    if rest.is_empty() {
        return Err(CsvError::Empty);
    }
    let mut out = Vec::new();
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            None => {
                let (field, after) = rest.split_once(',').map_or((rest, None), |(f, a)| (f, Some(a)));
                if field.contains('"') {
                    return Err(CsvError::BareQuote);
                }
                (field.to_owned(), after)
            }
            Some(quoted) => quoted_field(quoted)?,
        };
        out.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(out),
        }
    }
}

/// A field after its opening quote, and what follows the comma behind it.
fn quoted_field(mut rest: &str) -> Result<(String, Option<&str>), CsvError> {
    let mut field = String::new();
    loop {
        let (part, after) = rest.split_once('"').ok_or(CsvError::Quote)?;
        field.push_str(part);
        match after.chars().next() {
            None => return Ok((field, None)),
            Some(',') => return Ok((field, Some(&after[1..]))),
            Some('"') => {
                field.push('"');
                rest = &after[1..];
            }
            Some(_) => return Err(CsvError::Quote),
        }
    }
}

/// The fields as `key=value`, keys in lower case. A key that comes twice is refused: one of its values would be lost.
pub fn attributes(flag: &str, value: &str) -> Result<BTreeMap<String, String>, Fault> {
    let mut out = BTreeMap::new();
    for field in fields(value).map_err(|error| invalid(flag, value, error))? {
        let (key, content) =
            field.split_once('=').ok_or_else(|| invalid(flag, value, format!("`{field}` is no key=value pair")))?;
        if let Some(before) = out.insert(key.to_lowercase(), content.to_owned()) {
            let error = invalid(flag, value, format!("`{}` is given twice", key.to_lowercase()));
            return Err(match key.to_lowercase().as_str() {
                "name" => error.hint(format!("several names: \"name={before},{content}\", with the quotes")),
                _ => error,
            });
        }
    }
    Ok(out)
}
