//! JSON exactly as Go's `encoding/json` writes structs with `omitempty` tags.
//!
//! BuildKit's cache keys are digests over such text, so every byte counts: field order is the caller's,
//! empty values are left out, and `<`, `>`, `&`, U+2028 and U+2029 are escaped.

/// An object under construction.
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Object {
        Object("{".to_owned())
    }

    fn key(&mut self, key: &str) -> &mut String {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        string_into(&mut self.0, key);
        self.0.push(':');
        &mut self.0
    }

    /// Always written.
    pub(crate) fn raw(mut self, key: &str, json: &str) -> Object {
        self.key(key).push_str(json);
        self
    }

    /// Always written.
    pub(crate) fn required(mut self, key: &str, value: &str) -> Object {
        string_into(self.key(key), value);
        self
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Object {
        if value.is_empty() { self } else { self.required(key, value) }
    }

    pub(crate) fn int(self, key: &str, value: i64) -> Object {
        if value == 0 { self } else { self.raw(key, &value.to_string()) }
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Object {
        if value { self.raw(key, "true") } else { self }
    }

    pub(crate) fn strs(self, key: &str, values: &[String]) -> Object {
        self.array(key, values, |v| string(v))
    }

    pub(crate) fn bytes(self, key: &str, value: &[u8]) -> Object {
        if value.is_empty() { self } else { self.raw(key, &format!("\"{}\"", base64(value))) }
    }

    pub(crate) fn array<T>(self, key: &str, values: &[T], to_json: impl Fn(&T) -> String) -> Object {
        if values.is_empty() { self } else { self.raw(key, &array(values, to_json)) }
    }

    pub(crate) fn optional<T>(self, key: &str, value: Option<&T>, to_json: impl Fn(&T) -> String) -> Object {
        match value {
            Some(value) => self.raw(key, &to_json(value)),
            None => self,
        }
    }

    pub(crate) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

pub(crate) fn array<T>(values: &[T], to_json: impl Fn(&T) -> String) -> String {
    format!("[{}]", values.iter().map(to_json).collect::<Vec<_>>().join(","))
}

pub(crate) fn string(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    string_into(&mut out, value);
    out
}

fn string_into(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Standard base64 with padding, as Go writes `[]byte`.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let shown = i <= chunk.len();
            out.push(if shown { char::from(TABLE[(word >> (18 - 6 * i)) as usize & 63]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_go_writes() {
        let got = Object::new().str("a", "<&>\u{1}\n\"").str("empty", "").int("n", -1).bool("f", false).end();
        assert_eq!(got, r#"{"a":"\u003c\u0026\u003e\u0001\n\"","n":-1}"#);
        for (bytes, text) in [(&b"a"[..], "YQ=="), (b"ab", "YWI="), (b"abc", "YWJj"), (b"", "")] {
            assert_eq!(base64(bytes), text);
        }
    }
}
