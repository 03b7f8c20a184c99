use super::*;

/// All rules there are.
const RULES: [&Rule; 22] = [
    &casing::STAGE_NAME,
    &casing::FROM_AS,
    &continuation::EMPTY,
    &casing::INSTRUCTION,
    &stage_name::DUPLICATE,
    &stage_name::RESERVED,
    &command::JSON_ARGS,
    &deprecated::MAINTAINER,
    &variables::UNDEFINED_ARG_IN_FROM,
    &workdir::RELATIVE,
    &variables::UNDEFINED,
    &command::MULTIPLE,
    &deprecated::KEY_VALUE,
    &platform::BASE_IMAGE,
    &platform::REDUNDANT_TARGET,
    &secrets::IN_ARG_OR_ENV,
    &variables::INVALID_DEFAULT_ARG_IN_FROM,
    &platform::CONSTANT,
    &ignored::COPY,
    &description::DEFINITION,
    &expose::PROTOCOL_CASING,
    &expose::FORMAT,
];

#[test]
fn every_rule_fires_on_a_dockerfile_that_upstream_has_checked() {
    let table = include_str!("../../tests/checks.txt");
    for rule in RULES {
        let fires = table.lines().any(|line| {
            let mut words = line.splitn(3, ' ').skip(1);
            words.next() == Some(rule.url.unwrap_or("-"))
                && words.next().is_some_and(|text| text.starts_with(&format!("{}: ", rule.name)))
        });
        assert!(fires, "{}", rule.name);
        assert!(!rule.description.ends_with('.'), "{}", rule.description);
    }
}

fn settings(text: &str) -> Settings {
    Settings::parse(text).expect(text)
}

#[test]
fn settings_say_which_rules_count() {
    let (plain, experimental) = (&secrets::IN_ARG_OR_ENV, &description::DEFINITION);
    for (text, counts, experiments) in [
        ("", true, false),
        ("error=true", true, false),
        ("skip=SecretsUsedInArgOrEnv", false, false),
        (" skip = A , SecretsUsedInArgOrEnv ; error = 1 ", false, false),
        ("skip=all", false, false),
        ("skip=all;skip=A", false, false),
        ("skip=secretsusedinargorenv", true, false),
        ("experimental=all;skip=InvalidDefinitionDescription", true, true),
        ("experimental=InvalidDefinitionDescription;skip=all", false, true),
    ] {
        let settings = settings(text);
        assert_eq!((settings.allows(plain), settings.allows(experimental)), (counts, experiments), "{text}");
        assert_eq!(settings.error, text.contains("error"), "{text}");
    }
    for (text, error) in [
        ("x", "`x` is not a setting of the checks"),
        ("skip=a;", "`` is not a setting of the checks"),
        ("skips=a", "`skips=a` is not a setting of the checks"),
        ("error=", "`error=`: `` is not true or false"),
    ] {
        assert_eq!(Settings::parse(text), Err(error.to_owned()));
    }
}

#[test]
fn an_instruction_adds_to_the_settings_of_the_file() {
    let own = |comment| Settings::of_comment(comment);
    assert_eq!(own("checks=skip=A"), None);
    assert_eq!(own("what check=skip=A does"), None);
    assert_eq!(own("Check = skip=A because"), Some(settings("skip=A")));
    assert_eq!(own("check=nonsense"), Some(Settings::default()));
    let merged = settings("skip=A;error=true").merged(settings("skip=B;error=false;experimental=all"));
    assert_eq!(merged, settings("skip=A,B;error=true;experimental=all"));
}
