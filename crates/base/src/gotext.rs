//! Texts as Go's `fmt` writes them: histories, errors and graphs must come out as upstream's, byte for byte.

/// `%q` of a list: `["a" "b"]`.
pub fn quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list: `[a b]`.
pub fn plain_list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}

/// `%q`: `"a"`.
pub fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if is_printable(c) => out.push(c),
            c if c < ' ' || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space, as in Go.
fn is_printable(c: char) -> bool {
    // Rust escapes for debugging what is not printable, and marks only at the start of a text.
    c == '\'' || format!("a{c}").escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        assert_eq!(
            quote("a'\"\\\n\x01\x7fé\u{301}\u{200b}\u{1f600}\u{e0001}"),
            "\"a'\\\"\\\\\\n\\x01\\x7fé\u{301}\\u200b\u{1f600}\\U000e0001\""
        );
        assert_eq!(quoted_list(&["/bin/sh".into(), "-c".into()]), r#"["/bin/sh" "-c"]"#);
        assert_eq!(plain_list(&["a".into(), "b".into()]), "[a b]");
    }
}
