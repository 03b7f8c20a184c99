//! Texts as Go's `fmt` and `encoding/json` write them: image configurations must come out as upstream's, byte for byte.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

/// JSON with `<`, `>`, `&` and the line separators escaped.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Escaping(CompactFormatter));
    value.serialize(&mut serializer).expect("texts, numbers and maps with text keys");
    out
}

struct Escaping(CompactFormatter);

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        let mut rest = fragment;
        while let Some(at) = rest.find(special) {
            let (before, after) = rest.split_at(at);
            let mut chars = after.chars();
            let c = chars.next().map_or(0, u32::from);
            write!(writer, "{before}\\u{c:04x}")?;
            rest = chars.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

/// `%q` of a list: `["a" "b"]`.
pub(crate) fn quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|text| quote(text)).collect();
    format!("[{}]", quoted.join(" "))
}

/// `%v` of a list: `[a b]`.
pub(crate) fn plain_list(list: &[String]) -> String {
    format!("[{}]", list.join(" "))
}

fn quote(text: &str) -> String {
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
            json(&"a<b>&\u{2028}\"\u{1}é"),
            br#""a\u003cb\u003e\u0026\u2028\"\u0001"#.iter().copied().chain("é\"".bytes()).collect::<Vec<_>>()
        );
        assert_eq!(
            quote("a'\"\\\n\x01\x7fé\u{301}\u{200b}\u{1f600}\u{e0001}"),
            "\"a'\\\"\\\\\\n\\x01\\x7fé\u{301}\\u200b\u{1f600}\\U000e0001\""
        );
        assert_eq!(quoted_list(&["/bin/sh".into(), "-c".into()]), r#"["/bin/sh" "-c"]"#);
        assert_eq!(plain_list(&["a".into(), "b".into()]), "[a b]");
    }
}
