//! What a daemon's log has of builds at level debug, and what it has of them at no level.

use std::fs;

use crate::daemon::Served;
use crate::harness::is_root;
use crate::kitchen::Kitchen;
use crate::who::Who;

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

/// Lines of a log that have all of these.
fn lines<'a>(log: &'a str, parts: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
}

/// A build, and the line of its step of that kind.
fn step_of(served: &Served, line: &str, op: &str) -> String {
    served.build(&format!("--ref-file ref {line}")).ends();
    let reference = fs::read_to_string(served.kitchen.world.path("ref")).unwrap();
    let (reference, op) = (format!("reference=\"{reference}\""), format!("op=\"{op}\""));
    let parts = [" DEBUG ", "a step ended", &reference, &op];
    served.daemon.waits_until("the end of a step", |said| !lines(said, &parts).is_empty());
    let said = served.daemon.said();
    let found = lines(&said, &parts);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].to_owned()
}

const ARGUMENT: &str = "--opt build-arg:TOKEN=s3cr3t";

fn kitchen(who: Who) -> Option<Kitchen> {
    let kitchen = Kitchen::new(who)?;
    for name in ["buildkitd", "buildctl"] {
        std::os::unix::fs::symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    kitchen.file("a", "one");
    kitchen.dockerfile(
        "FROM busybox\nARG TOKEN\nCOPY a /in-$TOKEN\nRUN test $TOKEN != s3cr3t-no && cat /in-$TOKEN > /t\n",
    );
    Some(kitchen)
}

#[test]
fn at_level_debug_the_log_says_what_builds_do() {
    let Some(kitchen) = kitchen(anybody()) else { return };
    let host = kitchen.registry.host();
    let served = Served::again(kitchen, "--debug");
    let has = |parts: &[&str]| {
        served.daemon.waits_until(&parts.join(", "), |said| !lines(said, parts).is_empty());
    };
    let image = format!("--output type=image,name={host}/logs/image:1,push=true");
    let cache = format!("--export-cache type=registry,ref={host}/logs/cache,mode=max");
    let made = step_of(&served, &format!("{ARGUMENT} {image} {cache}"), "exec");
    for part in ["step=sha256:", "[3/3] RUN\"", "outcome=\"made\"", "shared=false", "ms="] {
        assert!(made.contains(part), "`{part}`: {made}");
    }
    has(&["a step began", "op=\"exec\"", "[3/3] RUN\""]);
    has(&["a session opened", "session=", "methods="]);
    has(&["a session closed", "session="]);
    has(&["a build's client", "reference=", "session=", "frontend=\"dockerfile.v0\""]);
    has(&[
        "an image was resolved",
        "image=\"docker.io/library/busybox:latest\"",
        "digest=sha256:",
        "from=\"the registry\"",
    ]);
    has(&["a blob was pulled", &format!("host=\"{host}\""), "bytes="]);
    has(&["a blob was pushed", &format!("host=\"{host}\""), "bytes=", "outcome=\"uploaded\""]);
    has(&["a manifest was pushed", "target=1"]);

    assert!(step_of(&served, ARGUMENT, "exec").contains("outcome=\"cached locally\""));
    let failed = step_of(&served, "--opt build-arg:TOKEN=s3cr3t-no", "exec");
    assert!(failed.contains("outcome=\"failed\"") && failed.contains("error=\"exit code: "), "{failed}");

    // What another machine made; of another argument it made nothing.
    served.buildctl("prune --all").succeeds();
    has(&["a record was removed", "record=", "kind=\"regular\"", "why=\"all that nothing uses goes\""]);
    let import = format!("--import-cache type=registry,ref={host}/logs/cache");
    let found = step_of(&served, &format!("{ARGUMENT} {import}"), "exec");
    assert!(found.contains("outcome=\"cached remotely\"") && found.contains("/logs/cache\""), "{found}");
    assert!(step_of(&served, &format!("--opt build-arg:TOKEN=s3cr3t2 {import}"), "exec").contains("outcome=\"made\""));
    has(&["a cache has no result", "step=sha256:", "/logs/cache\"", "why=\"it "]);

    served.daemon.signal("TERM");
    let ended = served.daemon.ends_soon();
    assert!(!ended.stderr.contains("s3cr3t"), "{:?}", lines(&ended.stderr, &["s3cr3t"]));
}

#[test]
fn at_level_info_the_log_has_the_builds_and_not_their_steps() {
    let Some(kitchen) = kitchen(anybody()) else { return };
    let served = Served::again(kitchen, "");
    served.build(ARGUMENT).succeeds();
    served.build(ARGUMENT).succeeds();
    served.buildctl("prune --all").succeeds();
    served.daemon.signal("TERM");
    let ended = served.daemon.ends_soon();
    ended.says("a build succeeded");
    for text in ["DEBUG", "a step", "a session", "a blob", "a record was removed", "was resolved", "s3cr3t"] {
        assert!(!ended.stderr.contains(text), "`{text}`: {:?}", lines(&ended.stderr, &[text]));
    }
}
