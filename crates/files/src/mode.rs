//! File modes as `--chmod` states them: numbers, or changes as chmod(1) knows them (`u=rwX,go=rX`).
//!
//! Read as BSD's `setmode(3)` reads them under a umask of zero, which is what BuildKit builds on. Known from there: `X`
//! looks at the mode before all changes, and `t` without a class drops the other permissions of its clause.

use crate::error::Error;
use crate::stat::Kind;

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;
const EXECUTE: u32 = 0o111;
const STANDARD: u32 = SET_UID | SET_GID | USER | GROUP | OTHER;

/// What becomes of the mode of files that are copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModeChange {
    /// Nothing.
    #[default]
    Keep,
    /// All get these twelve bits, directories too.
    Set(u32),
    /// Each gets its own mode, changed.
    Change(Symbolic),
}

/// A parsed symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbolic(Vec<Step>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Add(u32),
    Remove(u32),
    /// `X`: only for directories and what anybody could execute before.
    AddIfExecutable(u32),
    /// Copies the bits of one class (shifted to the lowest three) to others.
    Copy {
        from: u32,
        to: [bool; 3],
        clear: bool,
        set: bool,
    },
}

impl ModeChange {
    /// A mode as text: an octal number or a symbolic mode.
    pub fn parse(text: &str) -> Result<ModeChange, Error> {
        Ok(ModeChange::Change(Symbolic::parse(text)?))
    }

    /// The twelve bits for a file of this type that has these.
    pub fn apply(&self, kind: Kind, mode: u32) -> u32 {
        match self {
            ModeChange::Keep => mode,
            ModeChange::Set(bits) => bits & 0o7777,
            ModeChange::Change(change) => change.apply(kind, mode),
        }
    }

    /// The mode of directories that have to be made on the way to a destination.
    pub(crate) fn of_new_parents(&self) -> u32 {
        match self {
            ModeChange::Set(bits) => bits & 0o777,
            _ => 0o755,
        }
    }
}

impl Symbolic {
    /// Parses an octal number or a list of clauses.
    pub fn parse(text: &str) -> Result<Symbolic, Error> {
        parse(text).map(Symbolic).ok_or_else(|| Error::Mode(text.to_owned()))
    }

    fn apply(&self, kind: Kind, before: u32) -> u32 {
        let mut mode = before;
        for step in &self.0 {
            match *step {
                Step::Add(bits) => mode |= bits,
                Step::Remove(bits) => mode &= !bits,
                Step::AddIfExecutable(bits) => {
                    if kind == Kind::Dir || before & EXECUTE != 0 {
                        mode |= bits;
                    }
                }
                Step::Copy { from, to, clear, set } => {
                    let value = (mode >> from) & 0o7;
                    for (shift, _) in [6, 3, 0].into_iter().zip(to).filter(|(_, wanted)| *wanted) {
                        if clear {
                            mode &= !(if set { 0o7 << shift } else { value << shift });
                        }
                        if set {
                            mode |= value << shift;
                        }
                    }
                }
            }
        }
        mode & 0o7777
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777)?;
        return Some(vec![Step::Remove(0o7777), Step::Add(bits)]);
    }
    let mut steps = Vec::new();
    for clause in text.split(',') {
        parse_clause(clause, &mut steps)?;
    }
    Some(steps)
}

/// `[ugoa]*` and then one or more of `[+-=]` with permissions.
fn parse_clause(clause: &str, steps: &mut Vec<Step>) -> Option<()> {
    let end = clause.find(|rune| !"augo".contains(rune))?;
    let (classes, mut rest) = clause.split_at(end);
    let mut who = classes.chars().fold(0, |who, class| {
        who | match class {
            'a' => STANDARD,
            'u' => SET_UID | USER,
            'g' => SET_GID | GROUP,
            _ => OTHER,
        }
    });
    // `u=` clears once, however the permissions are cut up after it.
    let mut cleared = false;
    while let Some(operator) = rest.chars().next() {
        if !"+-=".contains(operator) {
            return None;
        }
        if operator == '=' {
            cleared = false;
        }
        rest = &rest[1..];
        who &= !STICKY;
        let end = rest.find(|rune| !"rstwXxugo".contains(rune)).unwrap_or(rest.len());
        let (letters, after) = rest.split_at(end);
        rest = after;
        permissions(operator, &mut who, &mut cleared, letters, steps);
    }
    Some(())
}

fn permissions(operator: char, who: &mut u32, cleared: &mut bool, letters: &str, steps: &mut Vec<Step>) {
    let (mut bits, mut conditional) = (0, 0);
    for letter in letters.chars() {
        let beyond_other = *who == 0 || *who & !OTHER != 0;
        match letter {
            'r' => bits |= READ,
            'w' => bits |= WRITE,
            'x' => bits |= EXECUTE,
            'X' if operator == '-' => bits |= EXECUTE,
            'X' => conditional = EXECUTE,
            's' if beyond_other => bits |= SET_UID | SET_GID,
            't' if beyond_other => {
                *who |= STICKY;
                bits |= STICKY;
            }
            's' | 't' => {}
            class => {
                if bits != 0 {
                    change(operator, *who, bits, steps);
                    bits = 0;
                }
                *cleared |= operator == '=';
                if conditional != 0 {
                    steps.push(Step::AddIfExecutable(limit(*who, conditional)));
                    conditional = 0;
                }
                steps.push(copy_step(class, *who, operator));
            }
        }
    }
    if bits != 0 || operator == '=' && !*cleared {
        *cleared |= operator == '=';
        change(operator, *who, bits, steps);
    }
    if conditional != 0 {
        steps.push(Step::AddIfExecutable(limit(*who, conditional)));
    }
}

fn change(operator: char, who: u32, bits: u32, steps: &mut Vec<Step>) {
    match operator {
        '-' => steps.push(Step::Remove(limit(who, bits))),
        '+' => steps.push(Step::Add(limit(who, bits))),
        _ => {
            steps.push(Step::Remove(if who == 0 { STANDARD } else { who }));
            steps.push(Step::Add(limit(who, bits)));
        }
    }
}

fn copy_step(class: char, who: u32, operator: char) -> Step {
    let from = match class {
        'u' => 6,
        'g' => 3,
        _ => 0,
    };
    let to = if who == 0 { [true; 3] } else { [who & 0o400 != 0, who & 0o040 != 0, who & 0o004 != 0] };
    Step::Copy { from, to, clear: operator != '+', set: operator != '-' }
}

/// The bits that the classes allow; no class is all of them.
fn limit(who: u32, bits: u32) -> u32 {
    if who == 0 { bits } else { who & bits }
}

#[cfg(test)]
mod tests;
