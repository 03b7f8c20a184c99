//! Build checks: warnings reach people in every display, and fail a build that says so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::daemon::Served;
use crate::harness::{World, is_root};
use crate::who::Who;

const NAME: &str = "StageNameCasing: Stage name 'Foo' should be lowercase (line 1)";
const IGNORED: &str = r#"CopyIgnoredFile: Attempting to Copy file "a.log" that is excluded by .dockerignore (line 2)"#;
const URL: &str = "https://docs.docker.com/go/dockerfile/rule/stage-name-casing/";

/// A Dockerfile that two rules complain about, the second one about a file that is not there.
fn world(directive: &str) -> World {
    let world = World::new();
    world.write("context/Dockerfile", format!("{directive}FROM scratch AS Foo\nCOPY a.log* b /\n"));
    world.write("context/.dockerignore", "*.log\n");
    world.write("context/a.log", "a");
    world.write("context/b", "b");
    world
}

#[test]
fn warnings_are_lines_of_the_step_that_loads_the_dockerfile() {
    let world = World::new();
    world.write("context/Dockerfile", "FROM scratch AS Foo\nCOPY a.log /\n");
    world.write("context/.dockerignore", "*.log\n");
    world.write("context/a.log", "a");
    // The copy fails, and the warning says why.
    let ended = world.build().arg("context").fails();
    ended.says("#1 [internal] load build definition from Dockerfile\n");
    ended.says(&format!("#1 WARN: {NAME}\n")).says(&format!("WARN: {IGNORED}\n")).says(r#""/a.log": not found"#);
    ended.hints("`/a.log` is there, but `.dockerignore` excludes it");
    let summary = format!(
        "\n 2 warnings found:\n - {NAME}\nMore info: {URL}\nDockerfile:1\n--------------------\n   1 | >>> FROM scratch AS Foo\n"
    );
    ended.says(&summary);
    // Buildctl prints the lines, and no summary.
    let build = ["build", "--frontend", "dockerfile.v0", "--local", "context=context", "--local", "dockerfile=context"];
    let ended = world.daemonless(build).arg("--progress=plain").fails();
    ended.says(&format!("#1 WARN: {NAME}\n"));
    assert!(!ended.stderr.contains("warnings found"), "{ended:?}");
}

#[test]
fn without_a_context_a_missing_file_is_explained() {
    let world = World::new();
    let ended = world.build().arg("-").stdin("FROM scratch\nCOPY a /\n").fails();
    ended
        .says(r#""/a": not found"#)
        .hints("with `-` there is no context: COPY and ADD find only what other stages and images have");
}

#[test]
fn a_cached_build_warns_again() {
    let world = world("");
    for _ in 0..2 {
        let ended = world.build().arg("context").succeeds();
        assert_eq!(ended.stderr.matches("WARN: ").count(), 1, "{ended:?}");
        ended.says(&format!("#1 WARN: {NAME}\n")).says("\n 1 warning found:\n");
    }
    let quiet = world.hullworks(["build", "--quiet", "--root"]).arg(world.path("state")).arg("context").succeeds();
    assert!(!quiet.stderr.contains("Casing"), "{quiet:?}");
}

#[test]
fn clients_of_a_daemon_are_told_what_is_excluded() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let kitchen = &served.kitchen;
    kitchen.file(".dockerignore", "*.log\n");
    kitchen.file("a.log", "a");
    kitchen.dockerfile("FROM scratch\nCOPY a.log /\n");
    served.build("").fails().says("\"/a.log\": not found").hints("`.dockerignore` excludes `/a.log`");
    kitchen.dockerfile("FROM scratch\nCOPY b.txt /\n");
    let ended = served.build("").fails();
    assert!(!ended.stderr.contains("excludes"), "{ended:?}");
    served.ends();
}

#[test]
fn programs_get_warnings_as_upstream_writes_them() {
    let world = world("");
    let build = ["build", "--frontend", "dockerfile.v0", "--local", "context=context", "--local", "dockerfile=context"];
    // The log is on the same stream.
    let hullworks =
        world.hullworks(["build", "-D", "--progress=rawjson", "--root"]).arg(world.path("state")).arg("context");
    for (count, ended) in [(0, world.daemonless(build).arg("--progress=rawjson").succeeds()), (1, hullworks.succeeds())]
    {
        let events: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events.iter().any(|event| event["level"] == "INFO"), count == 1, "{ended:?}");
        let all = |key: &str| events.iter().filter_map(|event| event[key].as_array()).flatten().collect::<Vec<_>>();
        let text = |value: &Value| String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap();
        // What is told before the build is no line between the others.
        let warnings = all("warnings");
        let (before, [warning]) = warnings.split_at_checked(count).unwrap() else { panic!("{ended:?}") };
        assert!(before.iter().all(|warning| text(&warning["short"]).starts_with("no output is given")), "{ended:?}");
        assert_eq!(text(&warning["short"]), NAME);
        assert_eq!((&warning["url"], &warning["level"]), (&Value::from(URL), &Value::from(1)));
        assert_eq!(warning["range"], serde_json::json!([{ "start": { "line": 1 }, "end": { "line": 1 } }]));
        assert_eq!(warning["sourceInfo"]["filename"], "Dockerfile");
        assert!(text(&warning["sourceInfo"]["data"]).starts_with("FROM scratch AS Foo\n"));
        assert!(warning["sourceInfo"]["definition"]["def"][0].is_string(), "{warning}");
        let vertex = all("vertexes").into_iter().find(|vertex| vertex["digest"] == warning["vertex"]);
        assert_eq!(vertex.unwrap()["name"], "[internal] load build definition from Dockerfile");
    }
}

#[test]
fn a_file_can_ask_for_errors_and_pass_over_rules() {
    let failing = world("# check=error=true\n");
    let ended = failing.build().arg("context").fails();
    ended.says("WARN: StageNameCasing: Stage name 'Foo' should be lowercase (line 2)\n");
    ended.says("error: failed to solve: lint violation found for rules: StageNameCasing\n");
    ended.says("   2 | >>> FROM scratch AS Foo\n");
    // The build argument comes before what the file says.
    let skip = "--build-arg=BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCasing;error=true";
    let ended = failing.build().args([skip, "context"]).succeeds();
    assert!(!ended.stderr.contains("StageNameCasing"), "{ended:?}");
    let skipping = world("# check=skip=StageNameCasing;error=true\n");
    let ended = skipping.build().arg("context").succeeds();
    assert!(!ended.stderr.contains("StageNameCasing"), "{ended:?}");
    let malformed = world("# check=errors=true\n");
    let ended = malformed.build().arg("context").fails();
    ended.says("   1 | >>> # check=errors=true\n");
    ended.says(
        "error: failed to solve: directive `check`: `errors=true` is not a setting of the checks\nhint: write skip=",
    );
}
