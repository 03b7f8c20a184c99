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
