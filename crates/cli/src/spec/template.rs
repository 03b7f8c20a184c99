//! Go's templates, as `--format` takes them: as much of the language as picks fields out of what there is to print.
//!
//! Values are what JSON would have; a field is found by the name that it has in Go, such as `.BuildkitVersion.Version`.

use base::Fault;
use serde_json::Value;

use super::invalid;

const FLAG: &str = "--format";

/// A template, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Print(Expr),
    /// `if`, `with`, `range`: what is done where there is something, and where there is nothing.
    Block(Block, Expr, Vec<Node>, Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Block {
    If,
    With,
    Range,
}

#[derive(Clone, Debug, PartialEq)]
enum Expr {
    /// `.`, or `$`: the whole.
    Dot {
        of_all: bool,
    },
    /// A field of something.
    Field(Box<Expr>, String),
    Literal(Value),
    Call(Function, Vec<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Json,
    Len,
    Index,
    Eq,
    Ne,
    Not,
    And,
    Or,
    Print,
    Println,
}

const FUNCTIONS: [(&str, Function); 10] = [
    ("json", Function::Json),
    ("len", Function::Len),
    ("index", Function::Index),
    ("eq", Function::Eq),
    ("ne", Function::Ne),
    ("not", Function::Not),
    ("and", Function::And),
    ("or", Function::Or),
    ("print", Function::Print),
    ("println", Function::Println),
];

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Template, Fault> {
        let mut parser = Parser { rest: text, trims: false };
        let wrong = |why: String| {
            invalid(FLAG, text, why).hint(
                "a template has fields, range, if, with, and the functions json, len, index, eq, ne, not, and, or, print \
                 and println",
            )
        };
        match parser.nodes() {
            Ok((nodes, Stop::Text)) => Ok(Template { text: text.to_owned(), nodes }),
            Ok((_, Stop::Else | Stop::End)) => Err(wrong("`else` or `end` without a beginning".to_owned())),
            Err(why) => Err(wrong(why)),
        }
    }

    /// Whether it is `{{json .}}`.
    pub fn is_json(&self) -> bool {
        self.nodes == [Node::Print(Expr::Call(Function::Json, vec![Expr::Dot { of_all: false }]))]
    }

    /// Fills it in.
    pub fn apply(&self, value: &Value) -> Result<String, Fault> {
        let mut out = String::new();
        write(&self.nodes, value, value, &mut out).map_err(|why| invalid(FLAG, &self.text, why))?;
        Ok(out)
    }
}

/// Why a list of nodes ended.
enum Stop {
    Text,
    Else,
    End,
}

struct Parser<'a> {
    rest: &'a str,
    /// Space before the next text goes, as `-}}` says.
    trims: bool,
}

impl<'a> Parser<'a> {
    fn nodes(&mut self) -> Result<(Vec<Node>, Stop), String> {
        let mut nodes = Vec::new();
        loop {
            let (text, action) = match self.rest.split_once("{{") {
                None => (std::mem::take(&mut self.rest), None),
                Some((text, rest)) => (text, Some(rest)),
            };
            let mut text = if self.trims { text.trim_start() } else { text };
            let action = action.map(|rest| rest.strip_prefix("- ").map_or((rest, false), |rest| (rest, true)));
            if let Some((_, true)) = action {
                text = text.trim_end();
            }
            if !text.is_empty() {
                nodes.push(Node::Text(text.to_owned()));
            }
            let Some((rest, _)) = action else { return Ok((nodes, Stop::Text)) };
            let tokens = self.tokens(rest)?;
            let mut words = Words { tokens: tokens.into_iter().peekable() };
            let block = match words.tokens.peek() {
                None => continue,
                Some(Token::Word(word)) => match word.as_str() {
                    word @ ("end" | "else") => {
                        let stop = if word == "end" { Stop::End } else { Stop::Else };
                        words.tokens.next();
                        return match words.tokens.peek() {
                            None => Ok((nodes, stop)),
                            Some(_) => {
                                Err("nothing may stand behind `end` and `else`: put another `if` inside".to_owned())
                            }
                        };
                    }
                    "if" => Some(Block::If),
                    "with" => Some(Block::With),
                    "range" => Some(Block::Range),
                    _ => None,
                },
                _ => None,
            };
            match block {
                None => nodes.push(Node::Print(words.all()?)),
                Some(block) => {
                    words.tokens.next();
                    let over = words.all()?;
                    let (body, end) = self.nodes()?;
                    let (otherwise, end) = if let Stop::Else = end { self.nodes()? } else { (Vec::new(), end) };
                    let Stop::End = end else { return Err("an `end` is missing".to_owned()) };
                    nodes.push(Node::Block(block, over, body, otherwise));
                }
            }
        }
    }

    /// The words of an action, which `rest` begins with.
    fn tokens(&mut self, rest: &'a str) -> Result<Vec<Token>, String> {
        let mut tokens = Vec::new();
        let mut left = rest;
        loop {
            let trimmed = left.trim_start();
            for (close, trims) in [("}}", false), ("-}}", true)] {
                if let Some(after) = trimmed.strip_prefix(close) {
                    (self.rest, self.trims) = (after, trims);
                    return Ok(tokens);
                }
            }
            let Some(first) = trimmed.chars().next() else { return Err("a `}}` is missing".to_owned()) };
            // A field stands close to what it is a field of: `(index . 0).ID`.
            let is_close = trimmed.len() == left.len();
            let name = |text: &'a str| {
                let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
                text.split_at(end)
            };
            let is_field = is_close
                && first == '.'
                && matches!(tokens.last(), Some(Token::Field(_) | Token::Close | Token::Whole))
                && !name(&trimmed[1..]).0.is_empty();
            if is_close && !is_field && !tokens.last().is_none_or(|last| last.ends_before(first)) {
                return Err(format!("a space is missing before `{first}`"));
            }
            left = match first {
                '.' => {
                    let (field, after) = name(&trimmed[1..]);
                    if !is_field {
                        tokens.push(Token::Dot);
                    }
                    if !field.is_empty() {
                        tokens.push(Token::Field(field.to_owned()));
                    }
                    after
                }
                '$' | '(' | ')' | '|' => {
                    tokens.push(match first {
                        '$' => Token::Whole,
                        '(' => Token::Open,
                        ')' => Token::Close,
                        _ => Token::Pipe,
                    });
                    &trimmed[1..]
                }
                '"' | '`' => {
                    let mut values = serde_json::Deserializer::from_str(trimmed).into_iter::<Value>();
                    let (value, length) = match (first, values.next()) {
                        ('"', Some(Ok(value))) => (value, values.byte_offset()),
                        ('`', _) => match trimmed[1..].split_once('`') {
                            Some((text, _)) => (Value::String(text.to_owned()), text.len() + 2),
                            None => return Err("a quote does not end".to_owned()),
                        },
                        _ => return Err("a quote does not end, or has an escape that is not known".to_owned()),
                    };
                    tokens.push(Token::Literal(value));
                    &trimmed[length..]
                }
                '0'..='9' => {
                    let (number, after) = name(trimmed);
                    let number: u64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
                    tokens.push(Token::Literal(number.into()));
                    after
                }
                'a'..='z' | 'A'..='Z' | '_' => {
                    let (word, after) = name(trimmed);
                    tokens.push(match word {
                        "true" | "false" => Token::Literal((word == "true").into()),
                        "nil" => Token::Literal(Value::Null),
                        _ => Token::Word(word.to_owned()),
                    });
                    after
                }
                other => return Err(format!("`{other}` is not understood")),
            };
        }
    }
}

#[derive(Debug)]
enum Token {
    Dot,
    Whole,
    Field(String),
    Word(String),
    Literal(Value),
    Open,
    Close,
    Pipe,
}

impl Token {
    /// Whether what begins so may follow without a space.
    fn ends_before(&self, next: char) -> bool {
        match self {
            Token::Open | Token::Pipe => true,
            Token::Word(word) if matches!(word.as_str(), "if" | "with" | "range") => true,
            // A variable, which is not known here.
            Token::Whole if next.is_alphabetic() => true,
            _ => !(next.is_alphanumeric() || "._$(\"`".contains(next)),
        }
    }
}

struct Words {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Words {
    /// All that is left, as one value.
    fn all(&mut self) -> Result<Expr, String> {
        let expr = self.pipeline()?;
        match self.tokens.next() {
            None => Ok(expr),
            Some(_) => Err("a `)` has no beginning".to_owned()),
        }
    }

    fn pipeline(&mut self) -> Result<Expr, String> {
        let mut last = None;
        loop {
            let expr = match self.tokens.peek() {
                Some(Token::Word(_)) => self.call(last.take())?,
                _ if last.is_some() => return Err("what follows `|` is no function".to_owned()),
                _ => self.operand()?,
            };
            match self.tokens.peek() {
                Some(Token::Pipe) => {
                    self.tokens.next();
                    last = Some(expr);
                }
                None | Some(Token::Close) => return Ok(expr),
                Some(_) => return Err("a value takes no arguments".to_owned()),
            }
        }
    }

    fn call(&mut self, piped: Option<Expr>) -> Result<Expr, String> {
        let Some(Token::Word(name)) = self.tokens.next() else { return Err("a function is missing".to_owned()) };
        let known = FUNCTIONS.iter().find(|(known, _)| *known == name);
        let (_, function) = known.ok_or_else(|| format!("`{name}` is not known here"))?;
        let mut args = Vec::new();
        while !matches!(self.tokens.peek(), None | Some(Token::Pipe | Token::Close)) {
            args.push(self.operand()?);
        }
        args.extend(piped);
        let is_right = match function {
            Function::Json | Function::Len | Function::Not => args.len() == 1,
            Function::Index | Function::Eq | Function::And | Function::Or => !args.is_empty(),
            Function::Ne => args.len() == 2,
            Function::Print | Function::Println => true,
        };
        if is_right { Ok(Expr::Call(*function, args)) } else { Err(format!("`{name}` takes other arguments")) }
    }

    fn operand(&mut self) -> Result<Expr, String> {
        let mut expr = match self.tokens.next() {
            Some(Token::Dot) => Expr::Dot { of_all: false },
            Some(Token::Whole) => Expr::Dot { of_all: true },
            Some(Token::Literal(value)) => Expr::Literal(value),
            Some(Token::Word(word)) => return Err(format!("`{word}` has to be in parentheses")),
            Some(Token::Open) => {
                let inner = self.pipeline()?;
                let Some(Token::Close) = self.tokens.next() else { return Err("a `)` is missing".to_owned()) };
                inner
            }
            Some(Token::Field(_) | Token::Close | Token::Pipe) | None => return Err("a value is missing".to_owned()),
        };
        while let Some(Token::Field(name)) = self.tokens.next_if(|token| matches!(token, Token::Field(_))) {
            expr = Expr::Field(Box::new(expr), name);
        }
        Ok(expr)
    }
}

fn write(nodes: &[Node], all: &Value, dot: &Value, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(expr) => out.push_str(&shown(&expr.value(all, dot)?)?),
            Node::Block(block, expr, body, otherwise) => {
                let value = expr.value(all, dot)?;
                match block {
                    _ if !says(&value) => write(otherwise, all, dot, out)?,
                    Block::If => write(body, all, dot, out)?,
                    Block::With => write(body, all, &value, out)?,
                    Block::Range => {
                        let items: Vec<&Value> = match &value {
                            Value::Array(items) => items.iter().collect(),
                            Value::Object(fields) => {
                                let mut fields: Vec<_> = fields.iter().collect();
                                fields.sort_by_key(|(name, _)| *name);
                                fields.into_iter().map(|(_, value)| value).collect()
                            }
                            _ => return Err("range is over a list".to_owned()),
                        };
                        items.into_iter().try_for_each(|item| write(body, all, item, out))?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// What counts as true.
fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// As Go prints it.
fn shown(value: &Value) -> Result<String, String> {
    match value {
        Value::Null => Ok("<nil>".to_owned()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(items) => {
            let items = items.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
            Ok(format!("[{}]", items.join(" ")))
        }
        Value::Object(_) => Err("what has fields is printed by `json`, or field by field".to_owned()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
    }
}

impl Expr {
    fn value(&self, all: &Value, dot: &Value) -> Result<Value, String> {
        match self {
            Expr::Dot { of_all: true } => Ok(all.clone()),
            Expr::Dot { of_all: false } => Ok(dot.clone()),
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Field(of, name) => field(&of.value(all, dot)?, name),
            Expr::Call(function, args) => {
                let args = args.iter().map(|arg| arg.value(all, dot)).collect::<Result<Vec<_>, _>>()?;
                function.value(&args)
            }
        }
    }
}

/// A field by the name that it has in Go, which JSON spells in other cases.
fn field(value: &Value, name: &str) -> Result<Value, String> {
    let Value::Object(fields) = value else {
        return Err(format!("`.{name}` is asked of what has no fields: a list wants range or index"));
    };
    // Unexported fields are nobody's, and JSON has `media_type` and `os.version`.
    let is_exported = name.starts_with(|c: char| c.is_uppercase());
    let is_same = |known: &str| known.replace(['_', '.'], "").eq_ignore_ascii_case(name);
    let in_other_case = || fields.iter().find(|(known, _)| is_exported && is_same(known));
    let found = fields.get(name).or_else(|| in_other_case().map(|(_, value)| value));
    found.cloned().ok_or_else(|| {
        let known: Vec<_> = fields.keys().map(String::as_str).collect();
        format!("there is no field `{name}`, but {}", known.join(", "))
    })
}

impl Function {
    fn value(self, args: &[Value]) -> Result<Value, String> {
        let first = args.first().unwrap_or(&Value::Null);
        match self {
            Function::Json => Ok(first.to_string().into()),
            Function::Len => match first {
                Value::Array(items) => Ok(items.len().into()),
                Value::Object(fields) => Ok(fields.len().into()),
                Value::String(text) => Ok(text.len().into()),
                Value::Null => Ok(0.into()),
                _ => Err("`len` is of a list or a text".to_owned()),
            },
            Function::Index => args[1..].iter().try_fold(first.clone(), |of, at| match (&of, at) {
                (Value::Array(items), Value::Number(at)) => {
                    let item = at.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?));
                    item.cloned().ok_or_else(|| format!("there is no item {at}"))
                }
                // As with a map of texts.
                (Value::Object(fields), Value::String(key)) => {
                    Ok(fields.get(key).cloned().unwrap_or_else(|| String::new().into()))
                }
                _ => Err("`index` is of a list and a number, or of a map and a text".to_owned()),
            }),
            Function::Eq => Ok(args[1..].iter().any(|other| other == first).into()),
            Function::Ne => Ok((args[0] != args[1]).into()),
            Function::Not => Ok((!says(first)).into()),
            Function::And => Ok(args.iter().find(|arg| !says(arg)).or(args.last()).cloned().unwrap_or_default()),
            Function::Or => Ok(args.iter().find(|arg| says(arg)).or(args.last()).cloned().unwrap_or_default()),
            Function::Print | Function::Println => {
                let shown = args.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
                let line = if self == Function::Println { format!("{}\n", shown.join(" ")) } else { shown.concat() };
                Ok(line.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_picked() {
        let value = json!([
            { "id": "a", "size": 3, "inUse": true, "labels": { "x.y": "1", "b": "2" }, "parents": null,
              "buildkitVersion": { "version": "v1" }, "platforms": [{ "os": "linux" }, { "os": "plan9" }] },
            { "id": "b", "size": 0, "inUse": false, "labels": {}, "parents": ["p", "q"],
              "buildkitVersion": { "version": "v2" }, "platforms": [] },
        ]);
        let filled = |text: &str| match Template::parse(text).and_then(|template| template.apply(&value)) {
            Ok(text) => text,
            Err(fault) => fault.cause(),
        };
        for (template, expected) in [
            ("{{range .}}{{.ID}} {{.Size}}{{println}}{{end}}", "a 3\nb 0\n"),
            ("{{ range . -}}  {{ .BuildkitVersion.Version }} {{- end }}", "v1v2"),
            ("{{(index . 1).ID}}", "b"),
            ("{{with index . 0}}{{index .Labels \"x.y\"}}{{index .Labels `z`}}{{end}}", "1"),
            (
                "{{range .}}{{if .InUse}}{{json .Labels}}{{else}}{{.Parents}}{{end}}{{end}}",
                "{\"x.y\":\"1\",\"b\":\"2\"}[p q]",
            ),
            ("{{range .}}{{range .Platforms}}{{.OS}},{{else}}none{{end}}{{end}}", "linux,plan9,none"),
            ("{{range (index . 0).Labels}}{{.}};{{end}}", "2;1;"),
            ("{{len .}} {{. | len}} {{len $}}", "2 2 2"),
            (
                "{{range .}}{{if and (eq .ID \"a\" \"c\") (not .Parents)}}yes{{end}}{{.ID | json}}{{end}}",
                "yes\"a\"\"b\"",
            ),
            ("{{(index . 0).Parents}}", "<nil>"),
            ("{{range.}}{{if(.InUse)}}{{.ID|len}}{{end}}{{end}}", "1"),
            ("plain", "plain"),
        ] {
            assert_eq!(filled(template), expected, "{template}");
        }
        assert_eq!(filled("{{json .}}"), value.to_string());
        for (template, why) in [
            ("{{.ID}}", "a list wants range or index"),
            ("{{range .}}{{.Id2}}{{end}}", "there is no field `Id2`, but id, size"),
            ("{{range .}}", "an `end` is missing"),
            ("{{end}}", "without a beginning"),
            ("{{if .}}a{{else if .}}b{{end}}", "put another `if` inside"),
            ("{{if .}}a{{end b}}", "nothing may stand behind"),
            ("{{printf \"%s\" .}}", "`printf` is not known here"),
            ("{{json .", "a `}}` is missing"),
            ("{{$x := .}}", "`:` is not understood"),
            ("{{json . .}}", "takes other arguments"),
            ("{{index . 7}}", "no item 7"),
            ("{{(index . 0)}}", "printed by `json`"),
            ("{{\"a}}", "a quote does not end"),
            ("{{.A)}}", "`)` has no beginning"),
            ("{{json.}}", "a space is missing before `.`"),
            ("{{len(.)}}", "a space is missing before `(`"),
            ("{{json `a`\"b\"}}", "a space is missing before `\"`"),
            ("{{(index . 0).}}", "a space is missing before `.`"),
        ] {
            assert!(filled(template).contains(why), "{template}: {}", filled(template));
        }
    }
}
