//! `# check=skip=A,B;error=true;experimental=all`.

use std::collections::BTreeSet;

use super::Rule;
use crate::instruction::parse_bool;
use crate::parse::check_comment;

/// What settings look like.
pub(crate) const HINT: &str =
    "write skip=RULE,RULE or skip=all, error=true, experimental=RULE or experimental=all, joined by `;`";

/// Which rules count, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    skip: Names,
    experimental: Names,
    /// A warning fails the build.
    pub error: bool,
}

/// Some rules or all of them. A name that nobody knows may be that of a rule to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    some: BTreeSet<String>,
}

impl Settings {
    /// Reads settings; what is wrong with them otherwise.
    pub fn parse(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(settings);
        }
        for part in text.splitn(3, ';') {
            let wrong = || format!("`{part}` is not a setting of the checks");
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let value = value.trim();
            match key.trim() {
                "skip" => settings.skip.set(value),
                "experimental" => settings.experimental.set(value),
                "error" => {
                    settings.error =
                        parse_bool(value).ok_or_else(|| format!("`error={value}`: `{value}` is not true or false"))?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok(settings)
    }

    /// The settings in a comment above an instruction. A malformed one is a comment like others.
    pub fn of_comment(comment: &str) -> Option<Settings> {
        check_comment(comment).map(|value| Settings::parse(first_word(&value)).unwrap_or_default())
    }

    /// With the settings of one instruction. Whether warnings are errors is for the whole file.
    pub fn merged(&self, own: Settings) -> Settings {
        Settings {
            skip: self.skip.merged(own.skip),
            experimental: self.experimental.merged(own.experimental),
            error: self.error,
        }
    }

    pub fn allows(&self, rule: &Rule) -> bool {
        if rule.experimental { self.experimental.has(rule.name) } else { !self.skip.has(rule.name) }
    }
}

/// What stands behind the first space is a remark.
fn first_word(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
}

impl Names {
    fn set(&mut self, value: &str) {
        if value == "all" {
            self.all = true;
        } else {
            self.some = value.split(',').map(|name| name.trim().to_owned()).collect();
        }
    }

    fn has(&self, name: &str) -> bool {
        self.all || self.some.contains(name)
    }

    fn merged(&self, own: Names) -> Names {
        Names { all: self.all || own.all, some: self.some.union(&own.some).cloned().collect() }
    }
}
