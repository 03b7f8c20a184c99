//! Source policy files: JSON, with BuildKit's names for fields and values.

use std::collections::HashMap;
use std::path::Path;

use base::{Fault, Kind};
use proto::moby::buildkit::v1::sourcepolicy as wire;
use serde::Deserialize;

/// A policy with which buildx, too, can be told what sources builds may use.
pub const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// Reads a policy file.
pub fn read(path: &Path) -> Result<wire::Policy, Fault> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::because(Kind::User, format!("cannot read source policy `{shown}`"), error))?;
    parse(&text).map_err(|error| Fault::because(Kind::User, format!("malformed source policy `{shown}`"), error))
}

fn parse(text: &str) -> Result<wire::Policy, serde_json::Error> {
    let policy: Policy = serde_json::from_str(text)?;
    Ok(wire::Policy { version: policy.version, rules: policy.rules.into_iter().map(Rule::wire).collect() })
}

// A field that is not known is an error: a rule without it would allow other things than were meant.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    action: Value<0>,
    selector: Selector,
    #[serde(default)]
    updates: Option<Update>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Selector {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    match_type: Value<1>,
    #[serde(default)]
    constraints: Vec<Constraint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Constraint {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    condition: Value<2>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: HashMap<String, String>,
}

/// A value of an enum by its name or number: of actions, ways to match, conditions.
#[derive(Default)]
struct Value<const KIND: usize>(i32);

const NAMES: [[&str; 3]; 3] =
    [["ALLOW", "DENY", "CONVERT"], ["WILDCARD", "EXACT", "REGEX"], ["EQUAL", "NOTEQUAL", "MATCHES"]];

impl<'de, const KIND: usize> Deserialize<'de> for Value<KIND> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = NAMES[KIND];
        let given = serde_json::Value::deserialize(deserializer)?;
        let found = match &given {
            serde_json::Value::String(name) => names.iter().position(|known| known == name),
            serde_json::Value::Number(number) => {
                number.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 3)
            }
            _ => None,
        };
        let found = found.and_then(|found| i32::try_from(found).ok());
        let wrong = || serde::de::Error::custom(format!("`{given}` is none of {}", names.join(", ")));
        found.map(Value).ok_or_else(wrong)
    }
}

impl Rule {
    fn wire(self) -> wire::Rule {
        let constraint = |constraint: Constraint| wire::AttrConstraint {
            key: constraint.key,
            value: constraint.value,
            condition: constraint.condition.0,
        };
        wire::Rule {
            action: self.action.0,
            selector: Some(wire::Selector {
                identifier: self.selector.identifier,
                match_type: self.selector.match_type.0,
                constraints: self.selector.constraints.into_iter().map(constraint).collect(),
            }),
            updates: self.updates.map(|updates| wire::Update { identifier: updates.identifier, attrs: updates.attrs }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_and_nothing_is_ignored() {
        let policy = parse(
            r#"{"version": 1, "rules": [
                {"action": "DENY", "selector": {"identifier": "*"}},
                {"action": 2, "selector": {"identifier": "a", "match_type": "EXACT",
                    "constraints": [{"key": "k", "value": "v", "condition": "MATCHES"}]},
                 "updates": {"identifier": "b", "attrs": {"x": "y"}}}]}"#,
        );
        let policy = policy.expect("a policy");
        assert_eq!((policy.version, policy.rules.len()), (1, 2));
        assert_eq!(policy.rules[0].action(), wire::PolicyAction::Deny);
        let convert = &policy.rules[1];
        let selector = convert.selector.clone().expect("a selector");
        assert_eq!((convert.action(), selector.match_type()), (wire::PolicyAction::Convert, wire::MatchType::Exact));
        assert_eq!(selector.constraints[0].condition(), wire::AttrMatch::Matches);
        assert_eq!(convert.updates.as_ref().map(|updates| updates.attrs["x"].as_str()), Some("y"));
        for (text, wanted) in [
            (r#"{"rules": [{"action": "REFUSE", "selector": {}}]}"#, "none of ALLOW, DENY, CONVERT"),
            (r#"{"rules": [{"selector": {"matchType": "EXACT"}}]}"#, "unknown field `matchType`"),
            (r#"{"rules": [{}]}"#, "missing field `selector`"),
            (r#"{"rule": []}"#, "unknown field `rule`"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
