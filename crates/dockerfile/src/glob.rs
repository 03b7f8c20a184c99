//! Wildcards as far as a mistake in them can be seen without files. Matching is left to those who read the files.

/// What is wrong with a glob, if Go's `path.Match` refuses it: a bracket or an escape does not end.
pub(crate) fn flaw(glob: &str) -> Option<&'static str> {
    check(glob).err()
}

type Checked<T> = Result<T, &'static str>;

const OPEN: &str = "`[` is never closed";

fn check(glob: &str) -> Checked<()> {
    let mut rest = glob;
    while let Some(char) = rest.chars().next() {
        rest = match char {
            '[' => class(&rest[1..])?,
            '\\' => escaped(&rest[1..]).ok_or("nothing follows the last `\\`")?,
            _ => &rest[char.len_utf8()..],
        };
    }
    Ok(())
}

/// Reads a class behind its `[`; answers what follows its `]`.
fn class(text: &str) -> Checked<&str> {
    let mut rest = text.strip_prefix('^').unwrap_or(text);
    let mut ranges = 0;
    loop {
        if let Some(after) = rest.strip_prefix(']').filter(|_| ranges > 0) {
            return Ok(after);
        }
        rest = bound(rest)?;
        if let Some(after) = rest.strip_prefix('-') {
            rest = bound(after)?;
        }
        ranges += 1;
    }
}

/// Reads one end of a range. Something must follow: at least the `]`.
fn bound(text: &str) -> Checked<&str> {
    let rest = match text.chars().next() {
        None => return Err(OPEN),
        Some(']' | '-') => return Err("a range in `[` and `]` lacks one of its ends"),
        Some('\\') => escaped(&text[1..]).ok_or(OPEN)?,
        Some(char) => &text[char.len_utf8()..],
    };
    if rest.is_empty() { Err(OPEN) } else { Ok(rest) }
}

fn escaped(text: &str) -> Option<&str> {
    text.chars().next().map(|char| &text[char.len_utf8()..])
}

#[cfg(test)]
mod tests {
    use super::flaw;

    #[test]
    fn globs_are_refused_as_by_go() {
        for fine in ["", "a*?", "[a]", "[^a-z]x", "[\\]]", "a]", "[[]", "é[é-ü]", "\\[", "[a][b]*", "[]a]"] {
            let wanted = (fine == "[]a]").then_some("a range in `[` and `]` lacks one of its ends");
            assert_eq!(flaw(fine), wanted, "{fine}");
        }
        for bad in ["[", "[a", "a*[", "[^", "[a-", "[a\\", "x\\", "[]", "[-a]", "[a-]"] {
            assert!(flaw(bad).is_some(), "{bad}");
        }
    }
}
