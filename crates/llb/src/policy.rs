//! Source policies: rules that allow sources, deny them, or put others in their place.
//!
//! A rule's selector names sources by their identifier, and by what their attributes are. Within a policy the last rule
//! that allows or denies counts. Whatever a rule changed is looked at from the start again, by all policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::moby::buildkit::v1::sourcepolicy as wire;
use regex::{Regex, RegexBuilder};

use crate::pb;

mod name;

use name::{canonical, name};

pub use wire::Policy;
use wire::{AttrMatch, MatchType, PolicyAction};

/// A source is changed at most so often: rules that undo each other would never end.
const MOST_CHANGES: usize = 20;
/// So many rules, and so many conditions on attributes, are there at most for one question: each may be a pattern to try.
const MOST_RULES: usize = 1000;
/// What a pattern is compiled to has at most so many bytes.
const LARGEST_PATTERN: usize = 1 << 20;
/// Where a repository is fetched from, whatever the identifier says.
const FULL_URL: &str = "git.fullurl";

/// Why a policy does not hold, or a source does not pass it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A rule that selects nothing.
    #[error("invalid nil selector in policy")]
    NoSelector,
    /// More rules than anybody writes.
    #[error("source policies have {number} {what}: at most {MOST_RULES} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        number: usize,
    },
    /// A pattern that cannot be read.
    #[error("source policy: invalid pattern `{pattern}`: {why}")]
    BadPattern {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A number that is no way to compare.
    #[error("source policy: rule for `{selector}`: unknown {what}: {number}")]
    Unknown {
        /// What the rule is for.
        selector: String,
        /// What is not known.
        what: &'static str,
        /// Its number.
        number: i32,
    },
    /// A rule for this source has an action that is not known.
    #[error("source policy: rule {action} {selector}: unknown type {source_name:?}")]
    UnknownAction {
        /// Its number.
        action: i32,
        /// What the rule is for.
        selector: String,
        /// The source.
        source_name: String,
    },
    /// A rule that changes a source into nothing.
    #[error("error mutating source policy: missing destination for convert rule")]
    NoDestination,
    /// The source is not allowed.
    #[error("source {source_name:?} denied by policy: source denied by policy")]
    Denied {
        /// The source.
        source_name: String,
        /// What the rule is for that says so.
        selector: String,
    },
    /// Rules that undo each other.
    #[error("too many mutations on a single source: too many operations")]
    TooManyChanges,
}

/// Policies, ready to be asked. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<[Arc<[Rule]>]>);

#[derive(Debug)]
struct Rule {
    action: i32,
    selector: String,
    pattern: Pattern,
    constraints: Vec<Constraint>,
    updates: Option<(String, BTreeMap<String, String>)>,
}

#[derive(Debug)]
enum Pattern {
    Exact,
    Wildcard(Regex),
    Regex(Regex),
}

#[derive(Debug)]
struct Constraint {
    key: String,
    condition: Condition,
}

#[derive(Debug)]
enum Condition {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

impl Policies {
    /// Reads policies, and checks them.
    pub fn read(policies: &[Policy]) -> Result<Policies, Error> {
        Policies::default().and(policies)
    }

    /// These, and others after them.
    pub fn and(&self, others: &[Policy]) -> Result<Policies, Error> {
        if others.is_empty() {
            return Ok(self.clone());
        }
        let rules = || others.iter().flat_map(|policy| &policy.rules);
        let number = self.rules().count() + rules().count();
        if number > MOST_RULES {
            return Err(Error::TooMany { what: "rules", number });
        }
        let of_selector = |rule: &wire::Rule| rule.selector.as_ref().map_or(0, |selector| selector.constraints.len());
        let number =
            self.rules().map(|rule| rule.constraints.len()).sum::<usize>() + rules().map(of_selector).sum::<usize>();
        if number > MOST_RULES {
            return Err(Error::TooMany { what: "conditions", number });
        }
        let each = others.iter().map(|policy| policy.rules.iter().map(Rule::read).collect());
        self.0.iter().cloned().map(Ok).chain(each).collect::<Result<_, _>>().map(Policies)
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.rules().next().is_none()
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().flat_map(|policy| policy.iter())
    }

    /// Asks whether a source may be used, and what in its place. Whether it was changed.
    pub fn apply(&self, source: &mut pb::SourceOp) -> Result<bool, Error> {
        if self.is_empty() {
            return Ok(false);
        }
        let mut asked = source.clone();
        let mut changes = 0;
        while self.change(&mut asked)? {
            changes += 1;
            if changes > MOST_CHANGES {
                return Err(Error::TooManyChanges);
            }
        }
        if changes > 0 {
            *source = asked;
        }
        Ok(changes > 0)
    }

    /// The first change that a rule makes.
    fn change(&self, source: &mut pb::SourceOp) -> Result<bool, Error> {
        // A source is known by one name, however it is written; only what a rule says changes it.
        let name = name(source);
        for policy in self.0.iter() {
            let mut denied = None;
            for rule in policy.iter().filter(|rule| rule.selects(source, &name)).collect::<Vec<_>>() {
                match PolicyAction::try_from(rule.action) {
                    Ok(PolicyAction::Allow) => denied = None,
                    Ok(PolicyAction::Deny) => denied = Some(&rule.selector),
                    Ok(PolicyAction::Convert) => {
                        if rule.convert(source, &name)? {
                            return Ok(true);
                        }
                    }
                    Err(_) => {
                        return Err(Error::UnknownAction {
                            action: rule.action,
                            selector: shown(&rule.selector),
                            source_name: base::redact_url(&name),
                        });
                    }
                }
            }
            if let Some(selector) = denied {
                return Err(Error::Denied { source_name: base::redact_url(&name), selector: shown(selector) });
            }
        }
        Ok(false)
    }
}

/// A selector without what an address in it logs in with. `?` is any character there, and ends nothing.
fn shown(selector: &str) -> String {
    let Some((scheme, rest)) = selector.split_once("://") else { return selector.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let user = if host.len() == authority.len() { "" } else { "xxxxx@" };
    let path = match path.split_once('?') {
        // What follows may be a token; of images and files it is a name.
        Some((path, _)) if scheme.starts_with("http") => format!("{path}?xxxxx"),
        _ => path.to_owned(),
    };
    format!("{scheme}://{user}{host}{path}")
}

impl Rule {
    fn read(rule: &wire::Rule) -> Result<Rule, Error> {
        let selector = rule.selector.as_ref().ok_or(Error::NoSelector)?;
        let name = &selector.identifier;
        let unknown = |what, number| Error::Unknown { selector: shown(name), what, number };
        let pattern = match MatchType::try_from(selector.match_type) {
            Ok(MatchType::Exact) => Pattern::Exact,
            Ok(MatchType::Regex) => Pattern::Regex(regex(name, name)?),
            Ok(MatchType::Wildcard) if name.contains("**") => {
                return Err(Error::BadPattern { pattern: name.clone(), why: "`**` is no wildcard".to_owned() });
            }
            Ok(MatchType::Wildcard) => {
                let parts: Vec<String> = name.split('*').map(regex::escape).collect();
                Pattern::Wildcard(regex(name, &format!("^{}$", parts.join("(.*)")))?)
            }
            Err(_) => return Err(unknown("match type", selector.match_type)),
        };
        let constraint = |constraint: &wire::AttrConstraint| {
            let value = constraint.value.clone();
            let condition = match AttrMatch::try_from(constraint.condition) {
                Ok(AttrMatch::Equal) => Condition::Is(value),
                Ok(AttrMatch::Notequal) => Condition::IsNot(value),
                Ok(AttrMatch::Matches) => Condition::Matches(regex(&value, &value)?),
                Err(_) => return Err(unknown("attr condition", constraint.condition)),
            };
            Ok(Constraint { key: constraint.key.clone(), condition })
        };
        Ok(Rule {
            action: rule.action,
            selector: name.clone(),
            pattern,
            constraints: selector.constraints.iter().map(constraint).collect::<Result<_, _>>()?,
            updates: rule.updates.as_ref().map(|updates| {
                (updates.identifier.clone(), updates.attrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            }),
        })
    }

    fn selects(&self, source: &pb::SourceOp, name: &str) -> bool {
        let holds = |constraint: &Constraint| {
            let value = source.attrs.get(&constraint.key).map_or("", String::as_str);
            match &constraint.condition {
                Condition::Is(wanted) => value == wanted,
                Condition::IsNot(unwanted) => value != unwanted,
                Condition::Matches(regex) => regex.is_match(value),
            }
        };
        self.constraints.iter().all(holds)
            && (name == self.selector
                || match &self.pattern {
                    Pattern::Exact => name == canonical(&self.selector),
                    Pattern::Wildcard(regex) => regex.is_match(name) || name == canonical(&self.selector),
                    Pattern::Regex(regex) => regex.is_match(name),
                })
    }

    /// Whether that changed anything.
    fn convert(&self, source: &mut pb::SourceOp, name: &str) -> Result<bool, Error> {
        let (identifier, attrs) = self.updates.as_ref().ok_or(Error::NoDestination)?;
        let template = if identifier.is_empty() { &self.selector } else { identifier };
        // `$1` and `${1}` stand for what wildcards and groups of the selector found.
        let destination = match &self.pattern {
            Pattern::Exact => template.clone(),
            Pattern::Regex(regex) => regex.replace_all(name, template).into_owned(),
            Pattern::Wildcard(regex) => match regex.captures(name) {
                Some(found) => {
                    let mut expanded = String::new();
                    found.expand(template, &mut expanded);
                    expanded
                }
                None => template.clone(),
            },
        };
        let mut changed = false;
        if !destination.is_empty() && destination != name {
            changed = destination != source.identifier;
            source.identifier = destination;
            // It is where the repository that is replaced would be fetched from.
            changed |= !attrs.contains_key(FULL_URL) && source.attrs.remove(FULL_URL).is_some();
        }
        for (key, value) in attrs {
            if source.attrs.get(key).map_or("", String::as_str) != value {
                source.attrs.insert(key.clone(), value.clone());
                changed = true;
            }
        }
        Ok(changed)
    }
}

fn regex(shown: &str, pattern: &str) -> Result<Regex, Error> {
    // A line break in a name is no way past a rule.
    let built = RegexBuilder::new(pattern).dot_matches_new_line(true).size_limit(LARGEST_PATTERN).build();
    built.map_err(|error| Error::BadPattern { pattern: shown.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
