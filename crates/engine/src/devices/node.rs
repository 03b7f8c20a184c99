//! YAML, and so JSON, as a tree of texts: what a text means, its reader knows.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Deeper than this nothing is nested that means something.
const MOST_DEEP: usize = 32;

/// A value. Nothing is what is written as `null`, or not at all.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

/// What is open while events come.
enum Open {
    List(Vec<Node>),
    /// And the key whose value comes next.
    Map(BTreeMap<String, Node>, Option<String>),
}

impl Node {
    /// Reads one document.
    pub(super) fn read(text: &str) -> Result<Node, String> {
        let mut open: Vec<Open> = Vec::new();
        let mut whole: Option<Node> = None;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| error.to_string())?;
            let at = |what: String| format!("line {}: {what}", span.start.line());
            let done = match event {
                Event::Scalar(text, style, 0, tag) => {
                    let is_null = matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                    match style == ScalarStyle::Plain && is_null && tag.is_none() {
                        true => Node::Nothing,
                        false => Node::Text(text.into_owned()),
                    }
                }
                Event::SequenceStart(0, _) | Event::MappingStart(0, _) if open.len() >= MOST_DEEP => {
                    return Err(at(format!("more than {MOST_DEEP} levels")));
                }
                Event::SequenceStart(0, _) => {
                    open.push(Open::List(Vec::new()));
                    continue;
                }
                Event::MappingStart(0, _) => {
                    open.push(Open::Map(BTreeMap::new(), None));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(Open::List(list)) => Node::List(list),
                    Some(Open::Map(map, _)) => Node::Map(map),
                    None => return Err(at("an end without a start".to_owned())),
                },
                Event::Alias(_) | Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => {
                    return Err(at("anchors and aliases are not read".to_owned()));
                }
                Event::DocumentStart(_) if whole.is_some() => return Err(at("a second document".to_owned())),
                _ => continue,
            };
            match open.last_mut() {
                None => whole = Some(done),
                Some(Open::List(list)) => list.push(done),
                Some(Open::Map(map, key)) => match (key.take(), done) {
                    (None, Node::Text(text)) => *key = Some(text),
                    (None, _) => return Err(at("a key that is no text".to_owned())),
                    (Some(name), _) if map.contains_key(&name) => return Err(at(format!("`{name}` is there twice"))),
                    (Some(name), value) => drop(map.insert(name, value)),
                },
            }
        }
        Ok(whole.unwrap_or(Node::Nothing))
    }

    pub(super) fn text(self, what: &str) -> Result<String, String> {
        match self {
            Node::Nothing => Ok(String::new()),
            Node::Text(text) => Ok(text),
            _ => Err(format!("`{what}` is no text")),
        }
    }

    /// Decimal, `0x1b4`, or octal as `0660` and `0o660`.
    pub(super) fn number(self, what: &str) -> Result<Option<u32>, String> {
        let text = self.text(what)?;
        let (digits, radix) = match text.strip_prefix("0o").or_else(|| text.strip_prefix('0')) {
            Some(hex) if hex.starts_with('x') => (&hex[1..], 16),
            Some(octal) if !octal.is_empty() => (octal, 8),
            _ => (text.as_str(), 10),
        };
        match u32::from_str_radix(digits, radix) {
            Ok(number) => Ok(Some(number)),
            Err(_) if text.is_empty() => Ok(None),
            Err(_) => Err(format!("`{what}`: `{text}` is no number")),
        }
    }

    pub(super) fn list(self, what: &str) -> Result<Vec<Node>, String> {
        match self {
            Node::Nothing => Ok(Vec::new()),
            Node::List(list) => Ok(list),
            _ => Err(format!("`{what}` is no list")),
        }
    }

    pub(super) fn texts(self, what: &str) -> Result<Vec<String>, String> {
        self.list(what)?.into_iter().map(|node| node.text(what)).collect()
    }

    pub(super) fn map(self, what: &str) -> Result<BTreeMap<String, Node>, String> {
        match self {
            Node::Nothing => Ok(BTreeMap::new()),
            Node::Map(map) => Ok(map),
            _ => Err(format!("`{what}` has no keys")),
        }
    }

    /// A table whose keys are known.
    pub(super) fn table(self, what: &'static str) -> Result<Table, String> {
        Ok(Table { what, fields: self.map(what)? })
    }
}

/// A table whose fields are taken one by one.
pub(super) struct Table {
    what: &'static str,
    fields: BTreeMap<String, Node>,
}

impl Table {
    pub(super) fn take(&mut self, name: &str) -> Node {
        self.fields.remove(name).unwrap_or(Node::Nothing)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String, String> {
        self.take(name).text(name)
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<u32>, String> {
        self.take(name).number(name)
    }

    /// Refuses what was not taken.
    pub(super) fn end(self) -> Result<(), String> {
        match self.fields.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(format!("`{name}` is no field of `{}`", self.what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_and_json_are_one() {
        let yaml = "---\n# a comment\na: [x, 'y: z']\nb:\n- c: 0660\n  d: ~\n- \"q\\n\"\ne: true\n";
        let json = r#"{"a": ["x", "y: z"], "b": [{"c": "0660", "d": null}, "q\n"], "e": true}"#;
        assert_eq!(Node::read(yaml), Node::read(json));
        let mut table = Node::read(yaml).and_then(|node| node.table("it")).expect("a table");
        assert_eq!(table.take("a").texts("a"), Ok(vec!["x".to_owned(), "y: z".to_owned()]));
        assert_eq!(table.text("e").as_deref(), Ok("true"));
        assert_eq!(table.end(), Err("`b` is no field of `it`".to_owned()));
    }

    #[test]
    fn numbers() {
        for (text, number) in [("0", 0), ("438", 438), ("0666", 0o666), ("0o666", 0o666), ("0x1b4", 436)] {
            assert_eq!(Node::Text(text.to_owned()).number("n"), Ok(Some(number)), "{text}");
        }
        assert_eq!(Node::Nothing.number("n"), Ok(None));
        assert!(Node::Text("9a".to_owned()).number("n").is_err());
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let deep = "[".repeat(100);
        for (text, part) in [
            ("a: [", ""),
            ("a: 1\na: 2\n", "`a` is there twice"),
            ("a: &x 1\nb: *x\n", "anchors"),
            ("a: 1\n---\na: 2\n", "second document"),
            ("? [a]\n: b\n", "a key"),
            (deep.as_str(), "levels"),
        ] {
            let error = Node::read(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(Node::read(""), Ok(Node::Nothing));
    }
}
