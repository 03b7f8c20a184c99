//! Source policies: rules that allow sources, deny them, or put others in their place.
//!
//! A rule's selector names sources by their identifier, and by what their attributes are. Within a policy the last rule
//! that allows or denies counts. Whatever a rule changed is looked at from the start again, by all policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::Reference;
use proto::moby::buildkit::v1::sourcepolicy as wire;
use regex::{Regex, RegexBuilder};

use crate::path;
use crate::pb;

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

/// The name that policies know a source by: a repository's is that of where it is fetched from.
fn name(source: &pb::SourceOp) -> String {
    let identifier = &source.identifier;
    let Some(url) = source.attrs.get(FULL_URL).filter(|_| identifier.starts_with("git://")) else {
        return canonical(identifier);
    };
    let url = url.split('#').next().unwrap_or_default();
    let fragment = identifier.find('#').map_or("", |at| &identifier[at..]);
    canonical(&format!("git://{url}{fragment}"))
}

/// One way to write an identifier: ways through the directories of a repository lead straight to their end, or a
/// rule could be walked around.
fn canonical(identifier: &str) -> String {
    let Some((scheme, rest)) = identifier.split_once("://") else { return identifier.to_owned() };
    match scheme {
        "git" => repository_name(identifier, rest),
        "docker-image" => match Reference::parse(rest) {
            Ok(image) => format!("{scheme}://{}", image.or_latest()),
            Err(_) => identifier.to_owned(),
        },
        "http" | "https" => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            // Who logs in does not say what is fetched.
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{}{path}", host.to_ascii_lowercase())
        }
        _ => identifier.to_owned(),
    }
}

fn repository_name(identifier: &str, rest: &str) -> String {
    let (remote, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    // It is not fetched with a query.
    let remote = remote.split_once('?').map_or(remote, |(remote, _)| remote);
    let (has_scheme, remote) = remote.split_once("://").map_or((false, remote), |(_, remote)| (true, remote));
    let (authority, repository) = remote.split_once('/').unwrap_or((remote, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // `git@host:repository`: what follows the host is no port.
    let scp = host.split_once(':').filter(|(_, rest)| !has_scheme && !rest.bytes().all(|b| b.is_ascii_digit()));
    let (host, repository) = match scp {
        Some((host, first)) => (host, format!("{first}/{repository}")),
        None => (host, repository.to_owned()),
    };
    if host.is_empty() || repository.is_empty() {
        return identifier.to_owned();
    }
    let (reference, dir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let dir = path::clean(&format!("/{dir}"));
    let dir = dir.trim_start_matches('/');
    let mut name = format!("git://{}{}", host.to_ascii_lowercase(), path::clean(&format!("/{repository}")));
    if !reference.is_empty() || !dir.is_empty() {
        name.push_str(&format!("#{reference}"));
    }
    if !dir.is_empty() {
        name.push_str(&format!(":{dir}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(action: PolicyAction, kind: MatchType, selector: &str, to: Option<&str>) -> wire::Rule {
        wire::Rule {
            action: action.into(),
            selector: Some(wire::Selector {
                identifier: selector.to_owned(),
                match_type: kind.into(),
                constraints: Vec::new(),
            }),
            updates: to.map(|to| wire::Update { identifier: to.to_owned(), ..wire::Update::default() }),
        }
    }

    fn ask(rules: Vec<wire::Rule>, identifier: &str) -> Result<String, String> {
        let policies = Policies::read(&[Policy { version: 1, rules }]).map_err(|error| error.to_string())?;
        let mut source = pb::SourceOp { identifier: identifier.to_owned(), ..pb::SourceOp::default() };
        let changed = policies.apply(&mut source).map_err(|error| error.to_string())?;
        assert_eq!(changed, source.identifier != identifier);
        Ok(source.identifier)
    }

    #[test]
    fn there_are_not_more_rules_than_anybody_writes() {
        let policy =
            |number| Policy { version: 1, rules: vec![rule(PolicyAction::Deny, MatchType::Exact, "x", None); number] };
        let policies = Policies::read(&[policy(600)]).expect("few");
        assert!(Arc::ptr_eq(&policies.0, &policies.and(&[]).expect("no more").0), "what is not added to is shared");
        assert!(policies.and(&[policy(400)]).is_ok());
        let many = policies.and(&[policy(200), policy(201)]).expect_err("too many").to_string();
        assert_eq!(many, "source policies have 1001 rules: at most 1000 are taken");
        let mut conditions = policy(1);
        let constraint = wire::AttrConstraint { key: "k".to_owned(), ..wire::AttrConstraint::default() };
        conditions.rules[0].selector.as_mut().expect("one").constraints = vec![constraint; 1001];
        let many = Policies::read(&[conditions]).expect_err("too many").to_string();
        assert_eq!(many, "source policies have 1001 conditions: at most 1000 are taken");
        let huge = rule(PolicyAction::Deny, MatchType::Regex, "\\w{1000}", None);
        let huge = Policies::read(&[Policy { version: 1, rules: vec![huge] }]).expect_err("too large").to_string();
        assert!(huge.starts_with("source policy: invalid pattern"), "{huge}");
    }

    #[test]
    fn selectors_are_shown_without_what_addresses_in_them_log_in_with() {
        for (selector, text) in [
            ("https://user:s3?cret@example.com/f*", "https://xxxxx@example.com/f*"),
            ("https://*@example.com/f?token=s3cret", "https://xxxxx@example.com/f?xxxxx"),
            ("docker-image://docker.io/library/busy?ox:1", "docker-image://docker.io/library/busy?ox:1"),
            ("*", "*"),
        ] {
            assert_eq!(shown(selector), text);
        }
        let address = "https://user:s3cret@example.com/f";
        let policy = Policy { version: 1, rules: vec![rule(PolicyAction::Deny, MatchType::Exact, address, None)] };
        let policies = Policies::read(&[policy]).expect("good");
        let mut source = pb::SourceOp { identifier: address.to_owned(), ..pb::SourceOp::default() };
        let denied = policies.apply(&mut source).expect_err("denied");
        assert!(!format!("{denied} {denied:?}").contains("s3cret"), "{denied:?}");
    }

    #[test]
    fn the_last_rule_that_allows_or_denies_counts() {
        use MatchType::{Exact, Regex, Wildcard};
        use PolicyAction::{Allow, Deny};
        let deny_all = || rule(Deny, Wildcard, "*", None);
        let image = "docker-image://docker.io/library/busybox:1";
        for (rules, passes) in [
            (vec![deny_all()], false),
            (vec![deny_all(), rule(Allow, Wildcard, "docker-image://docker.io/*", None)], true),
            (vec![rule(Allow, Wildcard, "docker-image://docker.io/*", None), deny_all()], false),
            (vec![rule(Deny, Exact, "docker-image://docker.io/*", None)], true),
            (vec![rule(Deny, Exact, image, None)], false),
            (vec![rule(Deny, Regex, "library/b.*:\\d", None)], false),
            (vec![rule(Deny, Wildcard, "docker-image://docker.io", None)], true),
        ] {
            let answer = ask(rules.clone(), image);
            assert_eq!(answer.is_ok(), passes, "{rules:?}: {answer:?}");
        }
    }

    #[test]
    fn sources_are_changed_by_what_their_names_hold() {
        use MatchType::{Exact, Regex, Wildcard};
        use PolicyAction::{Convert, Deny};
        let image = "docker-image://docker.io/library/golang:1.19";
        for (rules, wanted) in [
            (
                vec![rule(Convert, Wildcard, "docker-image://*golang:*", Some("docker-image://${1}x:${2}-alpine"))],
                Ok("docker-image://docker.io/library/x:1.19-alpine"),
            ),
            (vec![rule(Convert, Regex, "golang:(1)", Some("go:$1"))], Ok("docker-image://docker.io/library/go:1.19")),
            (vec![rule(Convert, Exact, image, Some("https://h/$1"))], Ok("https://h/$1")),
            // What came out is asked about again.
            (
                vec![rule(Convert, Exact, image, Some("https://h")), rule(Deny, Exact, "https://h", None)],
                Err("denied by policy"),
            ),
            (vec![rule(Convert, Wildcard, "docker-image://*", Some("docker-image://${1}x"))], Err("too many")),
            (vec![rule(Convert, Exact, image, None)], Err("missing destination")),
            (vec![rule(Convert, Regex, "(", Some("x"))], Err("invalid pattern `(`")),
            (vec![rule(Convert, Wildcard, "a**", Some("x"))], Err("invalid pattern `a**`")),
            (vec![wire::Rule::default()], Err("invalid nil selector")),
            (vec![wire::Rule { action: 9, ..rule(Deny, Exact, image, None) }], Err("unknown type")),
        ] {
            match (ask(rules, image), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{found}"),
                (found, wanted) => panic!("{found:?} and not {wanted:?}"),
            }
        }
    }

    #[test]
    fn repositories_are_known_by_where_they_are_fetched_from() {
        use MatchType::Wildcard;
        use PolicyAction::{Convert, Deny};
        let apply = |rule: wire::Rule, identifier: &str, url: &str| {
            let policies = Policies::read(&[Policy { version: 1, rules: vec![rule] }]).expect("a policy");
            let attrs = [(FULL_URL.to_owned(), url.to_owned())].into();
            let mut source = pb::SourceOp { identifier: identifier.to_owned(), attrs };
            let changed = policies.apply(&mut source).map_err(|error| error.to_string())?;
            Ok::<_, String>((changed, source.identifier, source.attrs.get(FULL_URL).cloned()))
        };
        let evil = rule(Deny, Wildcard, "git://evil/*", None);
        for url in ["https://evil/x.git", "ssh://u:p4ss@evil/x.git", "git@evil:x.git", "https://evil/x.git#y"] {
            let error = apply(evil.clone(), "git://good/x.git#main", url).expect_err(url);
            assert!(error.contains("denied") && !error.contains("p4ss"), "{error}");
        }
        let (changed, _, url) = apply(evil, "git://good/x#main", "https://good/x").expect("allowed");
        assert_eq!((changed, url.as_deref()), (false, Some("https://good/x")));

        let mut to = rule(Convert, Wildcard, "git://old/*", Some("git://new/${1}"));
        let found = apply(to.clone(), "git://old/x.git#main:d", "https://old/x.git");
        assert_eq!(found, Ok((true, "git://new/x.git#main:d".to_owned(), None)));
        // The identifier says already what the rule wants, and another repository would be fetched.
        let found = apply(to.clone(), "git://new/x.git", "https://old/x.git");
        assert_eq!(found, Ok((true, "git://new/x.git".to_owned(), None)));
        let url = "ssh://git@new/x.git";
        let updates = to.updates.as_mut().expect("updates");
        updates.attrs.insert(FULL_URL.to_owned(), url.to_owned());
        let found = apply(to, "git://old/x.git", "https://old/x.git");
        assert_eq!(found, Ok((true, "git://new/x.git".to_owned(), Some(url.to_owned()))));
    }

    #[test]
    fn downloads_are_denied_and_replaced() {
        use MatchType::Wildcard;
        use PolicyAction::{Convert, Deny};
        let to = || rule(Convert, Wildcard, "https://old/*", Some("https://new/${1}"));
        assert_eq!(ask(vec![to()], "https://old/a?b"), Ok("https://new/a?b".to_owned()));
        let denied = ask(vec![to(), rule(Deny, Wildcard, "https://*new/*", None)], "https://old/a");
        assert!(denied.is_err_and(|error| error.contains("denied")));
        let denied = ask(vec![rule(Deny, Wildcard, "https://*", None)], "https://u:p4ss@h/a").expect_err("denied");
        assert!(!denied.contains("p4ss"), "{denied}");
    }

    #[test]
    fn attributes_are_compared_and_set() {
        let mut rule = rule(PolicyAction::Convert, MatchType::Wildcard, "https://*", Some(""));
        rule.updates = Some(wire::Update {
            identifier: String::new(),
            attrs: [("http.checksum".to_owned(), "sha256:1".to_owned())].into(),
        });
        let selector = rule.selector.as_mut().expect("a selector");
        // Without an identifier the selector's is meant, so it has none here.
        selector.identifier = "https://a".to_owned();
        let constraint = |key: &str, value: &str, condition: AttrMatch| wire::AttrConstraint {
            key: key.to_owned(),
            value: value.to_owned(),
            condition: condition.into(),
        };
        selector.constraints = vec![
            constraint("a", "1", AttrMatch::Equal),
            constraint("b", "1", AttrMatch::Notequal),
            constraint("c", "^x+$", AttrMatch::Matches),
        ];
        let policies = Policies::read(&[Policy { version: 1, rules: vec![rule] }]).expect("a policy");
        let apply = |attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let mut source = pb::SourceOp { identifier: "https://a".to_owned(), attrs };
            policies.apply(&mut source).expect("allowed").then(|| source.attrs["http.checksum"].clone())
        };
        assert_eq!(apply(&[("a", "1"), ("c", "xx")]).as_deref(), Some("sha256:1"));
        for other in [&[("a", "2"), ("c", "x")][..], &[("a", "1"), ("b", "1"), ("c", "x")], &[("a", "1")]] {
            assert_eq!(apply(other), None, "{other:?}");
        }
    }

    #[test]
    fn rules_are_not_walked_around_by_other_ways_to_write_a_name() {
        use MatchType::{Exact, Regex, Wildcard};
        for (kind, selector, identifier) in [
            (Wildcard, "https://evil/*", "https://evil/a\nb"),
            (Wildcard, "https://evil/*", "https://EVIL/a"),
            (Regex, "^https://evil/.*$", "https://evil/a\nb"),
            (Exact, "git://evil/x.git", "git://evil/x.git?a=b"),
            (Exact, "git://evil/x.git", "git://https://Evil/x.git"),
            (Exact, "docker-image://docker.io/evil/x:latest", "docker-image://evil/x"),
            (Wildcard, "docker-image://docker.io/library/*", "docker-image://evil"),
            (Exact, "docker-image://evil", "docker-image://docker.io/library/evil:latest"),
        ] {
            let denied = ask(vec![rule(PolicyAction::Deny, kind, selector, None)], identifier);
            assert!(denied.is_err(), "{selector}: {identifier}");
        }
    }

    #[test]
    fn repositories_have_one_name() {
        for (given, wanted) in [
            (
                "git://github.com/user/repo.git#main:../absolute/path",
                "git://github.com/user/repo.git#main:absolute/path",
            ),
            ("git://https://u:p@h/a/../b.git", "git://h/b.git"),
            ("git://h/a#:", "git://h/a"),
            ("git://h/a#:./x/", "git://h/a#:x"),
            ("git://git@h:a/b", "git://h/a/b"),
            ("git://git@h:b.git#x", "git://h/b.git#x"),
            ("git://h:80/b", "git://h:80/b"),
            ("https://h/a/../b", "https://h/a/../b"),
        ] {
            assert_eq!(canonical(given), wanted);
        }
    }
}
