//! Here-documents: `<<NAME`, `<<-NAME`, `<<"NAME"`, `3<<NAME`.

use crate::error::Result;
use crate::expand::Lexer;

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// Variables in it are expanded: the name is not quoted.
    pub expand: bool,
    /// Leading tabs are dropped: `<<-`.
    pub chomp: bool,
    /// Its lines as they are.
    pub content: String,
}

impl Heredoc {
    /// Reads a word such as `<<-EOF`. None if it is another word.
    pub fn parse(word: &str) -> Result<Option<Heredoc>> {
        let Some(rest) = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else {
            return Ok(None);
        };
        let (chomp, rest) = match rest.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let rest = rest.trim_start();
        if rest.is_empty() || rest.contains('<') {
            return Ok(None);
        }
        // Where resolving quotes removes some, the name was quoted.
        let mut lexer = Lexer::new('\\').keep_unset();
        let [name] = &lexer.words(rest)?[..] else { return Ok(None) };
        lexer = lexer.raw_quotes();
        let [raw] = &lexer.words(rest)?[..] else { return Ok(None) };
        let quotes = |text: &str| text.matches(['\'', '"']).count();
        let expand = quotes(name) == quotes(raw);
        Ok(Some(Heredoc { name: name.clone(), expand, chomp, content: String::new() }))
    }
}

/// The here-documents that a line asks for. A line whose quotes do not match has none: the shell will see it.
pub(super) fn in_line(line: &str) -> Result<Vec<Heredoc>> {
    let lexer = Lexer::new('\\').raw_quotes().raw_escapes().keep_unset();
    let Ok(words) = lexer.words(line) else { return Ok(Vec::new()) };
    let found: Result<Vec<_>> = words.iter().map(|word| Heredoc::parse(word)).collect();
    Ok(found?.into_iter().flatten().collect())
}

/// Drops the tabs in front of each line.
pub(crate) fn chomp(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}
