//! Proxies: steps see them, and neither the image nor the cache remembers them.

use std::fs;

use crate::harness::is_root;
use crate::kitchen::{Kitchen, ran};
use crate::who::Who;

const NAMES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

const DOCKERFILE: &str = "FROM busybox\nRUN env | grep -i _proxy > /seen || echo none > /seen\n";

/// What the step saw, sorted, in words that begin with a name.
fn seen(kitchen: &Kitchen) -> Vec<String> {
    let text = fs::read_to_string(kitchen.world.path("out/seen")).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn both_spellings(value: impl Fn(&str) -> String) -> Vec<String> {
    let lines = |name: &str| [format!("{name}={}", value(name)), format!("{}={}", name.to_lowercase(), value(name))];
    let mut all: Vec<String> = NAMES.into_iter().flat_map(lines).collect();
    all.sort();
    all
}

#[test]
fn proxies_are_seen_by_steps_and_remembered_by_nobody() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile(DOCKERFILE);
    let value = |name: &str, n: usize| format!("http://user:hidden{n}@{}.example:{n}", name.to_lowercase());
    let args = |n: usize, name_of: fn(&str) -> String| -> String {
        NAMES.map(|name| format!("--build-arg {}={} ", name_of(name), value(name, n))).concat()
    };
    let upper = args(1, str::to_owned);
    let first = kitchen.build(&format!("{upper} --output out --output type=oci,tar=false,dest=image")).succeeds();
    assert_eq!(ran(&first).len(), 1, "{first:?}");
    assert_eq!(seen(&kitchen), both_spellings(|name| value(name, 1)));

    // Another proxy, the other spelling, or none: the same step.
    for other in [args(2, str::to_owned), args(3, str::to_lowercase), String::new()] {
        let again = kitchen.build(&other).succeeds();
        assert_eq!(ran(&again), [""; 0], "{other}: {again:?}");
    }
    // What the step itself wrote is its own affair; nothing else has them: no config, no key, no log.
    kitchen.dockerfile("FROM busybox\nRUN env | busybox grep -ci _proxy\n");
    let silent = "--output type=oci,tar=false,dest=silent --metadata-file meta.json --no-cache";
    let ended = kitchen.build_on("silent-state", &format!("{} {silent}", args(4, str::to_lowercase))).succeeds();
    ended.says(" 10\n");
    assert!(!ended.stderr.contains("hidden4"), "{ended:?}");
    let places = ["--recursive", "--text", "--files-with-matches", "hidden4", "silent", "silent-state", "meta.json"];
    let found = kitchen.world.run("grep").args(places).ends();
    assert!(found.code == Some(1), "the proxy lies in {found:?}");

    // Who declares it as an argument uses it as one: then it counts, as upstream.
    kitchen.dockerfile("FROM busybox\nARG HTTP_PROXY\nRUN echo \"<$HTTP_PROXY>\" > /seen\n");
    for n in [5, 6] {
        let ended = kitchen.build(&format!("--build-arg HTTP_PROXY=http://p:{n} --output out")).succeeds();
        assert_eq!(seen(&kitchen), [format!("<http://p:{n}>")], "{ended:?}");
    }
}

/// Docker's clients pass those of their configuration file, and no client passes those of its environment.
#[test]
fn proxies_come_from_docker_s_configuration_and_not_from_the_environment() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile(DOCKERFILE);
    let environment = |run: crate::harness::Invocation| {
        // The registry is reached around it.
        let run = run.env("HTTP_PROXY", "http://environment.example:1").env("no_proxy", "127.0.0.1");
        run.env("FTP_PROXY", "http://environment.example:2")
    };
    environment(kitchen.build("--output out")).succeeds();
    assert_eq!(seen(&kitchen), ["none"]);
    let config = r#"{"proxies":{"default":{"httpProxy":"http://file.example:1","noProxy":"a,b"}}}"#;
    kitchen.world.write(".docker/config.json", config);
    for spelling in ["no_proxy", "NO_PROXY"] {
        environment(kitchen.build(&format!("--output out --no-cache --build-arg {spelling}=flag"))).succeeds();
        let values = [("HTTP_PROXY", "http://file.example:1"), ("NO_PROXY", "flag")];
        let both =
            |(name, value): (&str, &str)| [format!("{name}={value}"), format!("{}={value}", name.to_lowercase())];
        let mut expected: Vec<String> = values.into_iter().flat_map(both).collect();
        expected.sort();
        assert_eq!(seen(&kitchen), expected, "{spelling}");
    }
}

#[test]
fn a_proxy_that_nobody_runs_is_what_errors_are_about() {
    let Some(kitchen) = Kitchen::new(if is_root() { Who::Root } else { Who::Single }) else { return };
    let proxy = format!("127.0.0.1:{}", testkit::free_port());
    kitchen.dockerfile("FROM images.invalid/team/app:1\n");
    let build = kitchen.build("").env("HTTPS_PROXY", format!("http://ann:hunter2@{proxy}"));
    let ended = build.fails();
    ended.says(&format!("cannot connect to the proxy `http://xxxxx@{proxy}` (HTTPS_PROXY) for `images.invalid`: "));
    ended.hints("check the proxy's address; hosts that are reached without it belong into NO_PROXY");
    assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
}
