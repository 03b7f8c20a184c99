//! Comma-separated fields of one line, quoted as RFC 4180 has it.

/// The fields. An empty text is an error, as is a quote in the wrong place.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, &'static str> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("nothing is given");
    }
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return Err("a quote stands inside a field that is not quoted");
            }
            out.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(out),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (part, after) = quoted.split_once('"').ok_or("a quoted field has no end")?;
            field.push_str(part);
            quoted = after;
            match quoted.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    quoted = after;
                }
                None => break,
            }
        }
        out.push(field);
        match quoted.strip_prefix(',') {
            Some(after) => rest = after,
            None if quoted.is_empty() => return Ok(out),
            None => return Err("a quoted field goes on behind its end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn fields_and_quotes() {
        for (line, out) in [
            ("a", vec!["a"]),
            ("a,b,", vec!["a", "b", ""]),
            (r#""a,b",c"#, vec!["a,b", "c"]),
            (r#""a""b""#, vec![r#"a"b"#]),
            ("a\r\n", vec!["a"]),
        ] {
            assert_eq!(fields(line).expect(line), out, "{line}");
        }
        for bad in ["", r#"a"b"#, r#""a"#, r#""a"b"#] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
