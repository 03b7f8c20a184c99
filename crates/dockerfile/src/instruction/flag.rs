//! `--name` and `--name=value` in front of an instruction's words.

use crate::error::{Error, Result};

/// The flags of one instruction. Each accessor declares a flag; [`finish`](Flags::finish) refuses the rest.
pub(super) struct Flags<'a> {
    instruction: &'a str,
    typed: Vec<(&'a str, Option<&'a str>)>,
    known: Vec<&'static str>,
}

impl<'a> Flags<'a> {
    pub fn new(instruction: &'a str, words: &'a [String]) -> Flags<'a> {
        let typed = words.iter().map(|word| {
            let word = word.strip_prefix("--").unwrap_or(word);
            match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            }
        });
        Flags { instruction, typed: typed.collect(), known: Vec::new() }
    }

    /// A flag that may be repeated.
    pub fn texts(&mut self, name: &'static str) -> Result<Vec<String>> {
        self.known.push(name);
        let mine = self.typed.iter().filter(|(typed, _)| *typed == name);
        mine.map(|(_, value)| match value {
            Some(value) => Ok((*value).to_owned()),
            None => Err(Error::new(format!("flag --{name} of {} needs a value", self.instruction))),
        })
        .collect()
    }

    /// A flag with a value.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>> {
        let mut texts = self.texts(name)?;
        if texts.len() > 1 {
            return Err(Error::new(format!("flag --{name} of {} is given twice", self.instruction)));
        }
        Ok(texts.pop())
    }

    /// A switch: `--name`, `--name=true` or `--name=false`.
    pub fn switch(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.known.push(name);
        let mut mine = self.typed.iter().filter(|(typed, _)| *typed == name);
        let Some((_, value)) = mine.next() else { return Ok(None) };
        if mine.next().is_some() {
            return Err(Error::new(format!("flag --{name} of {} is given twice", self.instruction)));
        }
        match value.map(str::to_ascii_lowercase).as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                Err(Error::new(format!("flag --{name} of {} is `{other}`, not true or false", self.instruction)))
            }
        }
    }

    /// Refuses flags that nobody asked for.
    pub fn finish(self) -> Result<()> {
        for (typed, _) in &self.typed {
            if !self.known.contains(typed) {
                let error = Error::new(format!("unknown flag: --{typed} of {}", self.instruction));
                return Err(match base::suggest::nearest(typed, self.known.iter().copied()) {
                    Some(name) => error.hint(format!("did you mean {name}?")),
                    None => error,
                });
            }
        }
        Ok(())
    }
}
