//! What docker's clients see of the cache and of builds that were, and what they remove of it.

use std::fs;

use serde_json::Value;

use crate::buildx::{Docker, NEWEST, with_each_client};

/// A cache mount, a directory of the client's, steps.
fn fills(docker: &Docker) {
    let kitchen = &docker.served.kitchen;
    kitchen.file("a", "one");
    kitchen.dockerfile(
        "FROM busybox\nCOPY a /\nRUN --mount=type=cache,target=/c,id=kept echo noted > /c/f\n\
         RUN --mount=type=cache,target=/c,id=kept cat /c/f > /seen\n",
    );
    docker.build("-o type=local,dest=out context").succeeds();
}

/// Each record of `du --verbose`: a block of lines `Name: value`.
fn verbose(docker: &Docker, args: &str) -> Vec<String> {
    let text = docker.run(&format!("du --builder b --verbose {args}")).succeeds().text();
    let blocks = text.split("\n\n").filter(|block| block.contains("Description:"));
    blocks.map(str::to_owned).collect()
}

#[test]
fn records_are_listed_and_removed_by_their_kind() {
    with_each_client(|docker| {
        fills(docker);
        let all = verbose(docker, "");
        for kind in ["regular", "exec.cachemount", "source.local"] {
            assert!(all.iter().any(|block| block.contains(kind)), "{kind}: {all:?}");
        }
        assert!(all.iter().any(|block| block.contains("exec /bin/sh -c cat /c/f")), "{all:?}");
        let mounts = verbose(docker, "--filter type=exec.cachemount");
        assert!(mounts.len() == 1 && mounts[0].contains("exec.cachemount"), "{mounts:?}");
        let id = mounts[0].lines().find_map(|line| line.strip_prefix("ID:")).unwrap().trim();
        assert_eq!(verbose(docker, &format!("--filter id={id}")).len(), 1);
        assert_eq!(verbose(docker, "--filter type=frontend"), [""; 0]);

        let prune = |args: &str| docker.run(&format!("prune --builder b --force {args}")).succeeds().text();
        // Nothing of the cache was left alone for so long.
        assert!(prune("--all --filter until=24h").contains("Total:\t0B"), "something was removed");
        assert_eq!(verbose(docker, "").len(), all.len());
        let removed = prune("--filter type=exec.cachemount");
        assert!(removed.contains(id) && !removed.contains("Total:\t0B"), "{removed}");
        assert_eq!(verbose(docker, "--filter type=exec.cachemount"), [""; 0]);
        assert_eq!(verbose(docker, "").len(), all.len() - 1);
        // A step that is not asked for again had its mount; others are cached.
        docker
            .served
            .kitchen
            .dockerfile("FROM busybox\nCOPY a /\nRUN --mount=type=cache,target=/c,id=kept ls /c > /ls\n");
        docker.build("-o type=local,dest=again context").succeeds().says("CACHED");
        assert_eq!(docker.read("again/ls"), "", "the mount was emptied");
        prune("--all");
        assert_eq!(verbose(docker, ""), [""; 0]);
    });
}

#[test]
fn limits_of_pruning_are_kept() {
    with_each_client(|docker| {
        fills(docker);
        let before = verbose(docker, "").len();
        let (roomy, tight) = match docker.is_newest() {
            true => (["--max-used-space 100gb", "--reserved-space 100gb"], "--max-used-space 1kb"),
            false => (["--keep-storage 100gb", "--keep-storage 100gb"], "--keep-storage 1kb"),
        };
        for limit in roomy {
            docker.run(&format!("prune --builder b --force --all {limit}")).succeeds();
            assert_eq!(verbose(docker, "").len(), before, "{limit}");
        }
        docker.run(&format!("prune --builder b --force --all {tight}")).succeeds();
        assert!(verbose(docker, "").len() < before);
    });
}

#[test]
fn programs_read_what_a_builder_keeps() {
    let Some(docker) = Docker::new(NEWEST, "") else { return };
    fills(&docker);
    let lines = docker.run("du --builder b --format json").succeeds().text();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mount = records.iter().find(|record| record["Type"] == "exec.cachemount").unwrap();
    assert_eq!(mount["Mutable"], true, "{mount}");
    let names = docker.run("du --builder b --format {{.ID}}").succeeds().text();
    assert_eq!(names.lines().count(), records.len());
    docker.served.ends();
}

#[test]
fn builds_that_were_are_found_and_shown() {
    let Some(docker) = Docker::new(NEWEST, "") else { return };
    fills(&docker);
    docker.served.kitchen.dockerfile("FROM busybox AS last\nARG WORD\nRUN exit 6\n");
    docker.build("--build-arg WORD=x --target last --metadata-file meta.json context").fails();
    let history = |args: &str| docker.run(&format!("--builder b history {args}")).succeeds();
    let rows = |args: &str| -> Vec<Value> {
        let lines = history(&format!("ls --format json {args}")).text();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(rows("").len(), 2);
    let failed = rows("--filter status=error");
    let good = rows("--filter status=completed");
    assert_eq!((failed.len(), good.len()), (1, 1), "{failed:?}, {good:?}");
    let reference = |row: &Value| row["ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let (failed, good) = (reference(&failed[0]), reference(&good[0]));

    let shown: Value = serde_json::from_str(&history(&format!("inspect --format json {failed}")).text()).unwrap();
    assert_eq!((&shown["Status"], &shown["Target"]), (&"failed".into(), &"last".into()), "{shown}");
    assert_eq!(shown["BuildArgs"][0], serde_json::json!({"Name": "WORD", "Value": "x"}), "{shown}");
    assert!(shown["Error"]["Message"].as_str().unwrap().contains("exit code: 6"), "{shown}");
    let shown: Value = serde_json::from_str(&history(&format!("inspect --format json {good}")).text()).unwrap();
    let steps = ["NumCompletedSteps", "NumTotalSteps", "NumCachedSteps"].map(|key| shown[key].as_i64().unwrap_or(0));
    assert!(steps[0] >= 4 && steps[0] == steps[1] && steps[2] == 0, "{shown}");

    // The last, and the one before it.
    assert!(history("logs --progress=plain").stderr.contains("exit code: 6"));
    assert!(history("inspect ^1").text().contains(&good));
    // What is exported has the record, and what belongs to it.
    history(&format!("export -o one.dockerbuild {good}"));
    history("export --all -o all.dockerbuild");
    let listed = |name: &str| docker.served.kitchen.world.run("tar").args(["tzf", name]).succeeds().text();
    for name in ["one", "all"] {
        let listed = listed(&format!("{name}.dockerbuild"));
        assert!(listed.contains("index.json") && listed.contains("blobs/sha256/"), "{name}: {listed}");
    }
    assert!(fs::metadata(docker.path("all.dockerbuild")).unwrap().len() > 500);
    history(&format!("rm {failed}"));
    assert_eq!(rows("").iter().map(reference).collect::<Vec<_>>(), [good]);
    history("rm --all");
    assert_eq!(rows("").len(), 0);
    docker.served.ends();
}
