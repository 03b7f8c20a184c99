//! Which paths a list of patterns selects: `.dockerignore`, `COPY --exclude`, include and exclude lists of sources.
//!
//! The language is moby/patternmatcher's: `*` and `?` stop at slashes, `**` does not, `[a-z]` is a class, `\` escapes,
//! a leading `!` takes back what earlier patterns matched, and who matches a directory matches what is below it.
//! Its corners are kept too, because which files a pattern takes decides cache keys that are exchanged with BuildKit:
//! they are listed in [`compile`]. Sources: patternmatcher v0.6's documented behaviour, checked by `cases/*.txt`, whose
//! answers upstream's code gave.
//!
//! A tree is matched from the top: [`Matcher::matches_below`] takes what [`Matcher::matches_dir`] learned of the
//! parent. Paths are relative to the root of the tree, clean, with slashes; file names of any bytes.

mod compile;
mod glob;
mod ignorefile;

pub use glob::{BadGlob, glob_match, has_wildcards, split_wildcards};
pub use ignorefile::{IgnoreFileError, parse_ignore_file};

use compile::Pattern;

use crate::lexical;

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `!` and nothing behind it.
    #[error("illegal exclusion pattern: `!`")]
    LoneBang,
    /// Brackets or escapes that do not end, and ranges that run backwards.
    #[error("syntax error in pattern `{0}`")]
    Syntax(String),
}

/// A list of patterns, ready to match.
#[derive(Debug)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    exclusions: bool,
    /// For each byte that a path may end in, the patterns that can match it. Long lists are mostly names and
    /// extensions, so of hundreds of patterns a handful is left.
    by_last_byte: Vec<Vec<u32>>,
}

/// What is known of a directory, for matching what lies in it: one flag per pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchInfo {
    matched: Vec<bool>,
    any: bool,
}

/// Why a path matches or does not: see [`Matcher::explain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation<'a> {
    /// No pattern speaks of the path.
    Unmatched,
    /// The pattern at this place of the list (comments and blanks not counted) decided.
    Matched {
        /// Index into the list given to [`Matcher::new`], without its blank entries.
        index: usize,
        /// The pattern as written, cleaned.
        pattern: &'a str,
        /// It began with `!`, so it took the path back.
        taken_back: bool,
    },
}

impl Matcher {
    /// Reads patterns; blank ones are skipped. Fails on those that are certainly malformed.
    ///
    /// Some malformed patterns only show when the list gets as far as trying them, as upstream: then the match fails.
    pub fn new<S: AsRef<[u8]>>(patterns: impl IntoIterator<Item = S>) -> Result<Matcher, PatternError> {
        let mut list = Vec::new();
        for text in patterns {
            let text = text.as_ref();
            let text = std::str::from_utf8(text).map_or_else(|_| text.trim_ascii(), |text| text.trim().as_bytes());
            if !text.is_empty() {
                list.push(Pattern::new(text)?);
            }
        }
        let exclusions = list.iter().any(|pattern| pattern.exclusion);
        let mut by_last_byte = vec![Vec::new(); 256];
        for (index, pattern) in (0..).zip(&list) {
            match pattern.last_byte() {
                Some(last) => by_last_byte[usize::from(last)].push(index),
                None => by_last_byte.iter_mut().for_each(|patterns| patterns.push(index)),
            }
        }
        Ok(Matcher { patterns: list, exclusions, by_last_byte })
    }

    /// None if the list holds no pattern at all: an absent filter, which is not one that matches nothing.
    pub fn optional<S: AsRef<[u8]>>(patterns: &[S]) -> Result<Option<Matcher>, PatternError> {
        if patterns.is_empty() { Ok(None) } else { Matcher::new(patterns).map(Some) }
    }

    /// Whether any pattern begins with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.exclusions
    }

    /// Whether the path or a directory above it matches.
    pub fn matches(&self, path: impl AsRef<[u8]>) -> Result<bool, PatternError> {
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.exclusion == matched && pattern.matches_with_parents(path.as_ref())? {
                matched = !pattern.exclusion;
            }
        }
        Ok(matched)
    }

    /// Like [`matches`](Self::matches), for something directly in a directory that is known already.
    ///
    /// A default `parent` stands for "nothing known": the directories above are then matched too.
    pub fn matches_below(&self, path: impl AsRef<[u8]>, parent: &MatchInfo) -> Result<bool, PatternError> {
        let mut matched = false;
        self.each_below(path.as_ref(), parent, |_, _, now| matched = now)?;
        Ok(matched)
    }

    /// [`matches_below`](Self::matches_below) for a directory: also says what its entries inherit.
    pub fn matches_dir(&self, path: impl AsRef<[u8]>, parent: &MatchInfo) -> Result<(bool, MatchInfo), PatternError> {
        let mut info = vec![false; self.patterns.len()];
        let mut matched = false;
        self.each_below(path.as_ref(), parent, |index, hit, now| {
            info[index] = hit;
            matched = now;
        })?;
        let any = info.contains(&true);
        Ok((matched, MatchInfo { matched: info, any }))
    }

    /// Which pattern decides over a path.
    pub fn explain(&self, path: impl AsRef<[u8]>) -> Result<Explanation<'_>, PatternError> {
        let path = lexical::relative(path.as_ref());
        let mut matched = false;
        let mut decided = Explanation::Unmatched;
        for (index, pattern) in self.patterns.iter().enumerate() {
            if pattern.exclusion == matched && pattern.matches_with_parents(&path)? {
                matched = !pattern.exclusion;
                let (pattern, taken_back) = (pattern.text(), pattern.exclusion);
                decided = Explanation::Matched { index, pattern, taken_back };
            }
        }
        Ok(decided)
    }

    /// Whether something below a directory may match that does not match itself; `true` when in doubt.
    pub(crate) fn may_match_below(&self, dir: &[u8]) -> bool {
        let positive = || self.patterns.iter().filter(|pattern| !pattern.exclusion);
        !positive().all(Pattern::is_plain) || positive().any(|pattern| pattern.leads_through(dir))
    }

    /// Whether something below a matching directory may be taken back by a `!` pattern; `true` when in doubt.
    pub(crate) fn may_take_back_below(&self, dir: &[u8]) -> bool {
        let negative = || self.patterns.iter().filter(|pattern| pattern.exclusion);
        !negative().all(Pattern::is_plain) || negative().any(|pattern| pattern.leads_through(dir))
    }

    /// Goes through the patterns that count for `path`: index, whether it matches, and the verdict so far.
    fn each_below(
        &self,
        path: &[u8],
        parent: &MatchInfo,
        mut each: impl FnMut(usize, bool, bool),
    ) -> Result<(), PatternError> {
        let known = !parent.matched.is_empty();
        let mut matched = false;
        let mut try_one = |index: usize, pattern: &Pattern| {
            // What the directory matches, its entries match; else only patterns that would change the verdict count.
            let hit = if known && parent.matched[index] {
                true
            } else if pattern.exclusion != matched {
                return Ok(());
            } else if known {
                pattern.matches(path)?
            } else {
                pattern.matches_with_parents(path)?
            };
            if hit {
                matched = !pattern.exclusion;
            }
            each(index, hit, matched);
            Ok(())
        };
        match path.last() {
            Some(last) if known && !parent.any => {
                for index in &self.by_last_byte[usize::from(*last)] {
                    try_one(*index as usize, &self.patterns[*index as usize])?;
                }
            }
            _ => {
                for (index, pattern) in self.patterns.iter().enumerate() {
                    try_one(index, pattern)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
