//! Dockerfiles and what they make: `cases/*.txt`, each one Dockerfile with its context, and the tree, the config and
//! the diff ids that **upstream** made of it. Root, a user with ranges and a user with one id must all get the same.
//!
//! A case is a text of sections. The head has `args:` lines (for `buildctl-daemonless.sh build`), `flags:` (for
//! `BUILDKITD_FLAGS`), `needs:` (`root`, `ids`, `nodes`, programs), `differs:` (a golden section that we mean to differ from) and
//! remarks. `-- Dockerfile --` and `-- context/.. --` are files, `-- setup --` is run by a shell in the context for what
//! text cannot say. `-- tree --` (what GNU tar lists of `type=tar`), `-- config --` and `-- layers --` (of `type=oci`)
//! are golden; `-- error --` has the lines that must be said instead.
//!
//! With `E2E_UPSTREAM=DIR`, a directory with upstream's `buildkitd`, `buildctl` and `buildctl-daemonless.sh`, the golden
//! sections are written again from what that says; read the diff. `E2E_CASE=name` runs one case.

use std::fmt::Write as _;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;
use testkit::Registry;
use testkit::image::TestImage;

use crate::harness::{Ended, World, has_tool, is_root, or_skip};
use crate::who::Who;

#[test]
fn privileged_root_builds_what_upstream_builds() {
    check(Who::Root);
}

#[test]
fn a_user_with_ranges_builds_the_same() {
    check(Who::Ranges);
}

#[test]
fn a_user_with_one_id_builds_the_same() {
    check(Who::Single);
}

fn check(who: Who) {
    let Some(busybox) = or_skip(who.is_here().and_then(|()| TestImage::busybox())) else { return };
    let registry = Registry::start();
    busybox.put(&registry, "library/busybox", "latest");
    let base = Base { host: registry.host(), layer: testkit_digest(&busybox) };
    let upstream = std::env::var_os("E2E_UPSTREAM").map(PathBuf::from);
    if upstream.is_some() && who != Who::Root {
        return testkit::need::report_skip("upstream is asked as root only");
    }
    let cases = Mutex::new(cases());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..if upstream.is_some() { 1 } else { 2 } {
            scope.spawn(|| {
                while let Some(case) = { cases.lock().unwrap().pop() } {
                    if let Some(need) = case.head("needs").find(|need| !is_here(need, who)) {
                        testkit::need::report_skip(&format!("{} as {who:?}: it wants {need}", case.name));
                        continue;
                    }
                    let run = || match &upstream {
                        Some(dir) => case.renew(dir, &base),
                        None => case.check(who, &base),
                    };
                    let result = catch_unwind(AssertUnwindSafe(run));
                    if let Err(why) = result.unwrap_or_else(|_| Err("it panicked, see above".to_owned())) {
                        failures.lock().unwrap().push(format!("== {} as {who:?}\n{why}", case.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cases differ\n{}", failures.len(), failures.join("\n"));
}

/// Whether a case has what its head asks for: `root`, `ids` (steps that run as several users), `nodes` (its setup makes
/// devices), or programs.
fn is_here(need: &str, who: Who) -> bool {
    match need {
        "root" => who == Who::Root,
        "nodes" => is_root(),
        "ids" => who != Who::Single,
        tool => has_tool(tool),
    }
}

/// The digest of the one layer of the base image.
fn testkit_digest(image: &TestImage) -> String {
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    config["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned()
}

/// Where `FROM busybox` comes from.
struct Base {
    host: String,
    layer: String,
}

/// One file of `cases`.
struct Case {
    name: String,
    path: PathBuf,
    sections: Vec<(String, String)>,
}

fn cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/cases");
    let wanted = std::env::var("E2E_CASE").unwrap_or_default();
    let mut cases: Vec<Case> = fs::read_dir(dir).unwrap().map(|entry| Case::read(entry.unwrap().path())).collect();
    cases.retain(|case| case.name.contains(&wanted));
    cases.sort_by(|a, b| b.name.cmp(&a.name));
    assert!(!cases.is_empty(), "no case is named like `{wanted}`");
    cases
}

/// What a build made, as golden sections say it.
struct Made {
    tree: String,
    config: String,
    layers: String,
}

impl Case {
    fn read(path: PathBuf) -> Case {
        let text = fs::read_to_string(&path).unwrap();
        let mut sections = vec![(String::new(), String::new())];
        for line in text.split_inclusive('\n') {
            match line.trim_end().strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
                Some(name) => sections.push((name.to_owned(), String::new())),
                None => sections.last_mut().unwrap().1.push_str(line),
            }
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        Case { name, path, sections }
    }

    fn section(&self, name: &str) -> Option<&str> {
        self.sections.iter().find(|(other, _)| other == name).map(|(_, text)| text.as_str())
    }

    fn head<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.sections[0].1.lines();
        lines.filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": ")).flat_map(str::split_whitespace)
    }

    /// Builds it; the result lies beside the context.
    fn build(&self, who: Who, world: &World, base: &Base, upstream: Option<&Path>) -> Ended {
        let config =
            format!("[registry.\"docker.io\"]\nmirrors = [\"{0}\"]\n[registry.\"{0}\"]\nhttp = true\n", base.host);
        world.write("buildkitd.toml", config);
        fs::create_dir(world.path("context")).unwrap();
        for (name, text) in &self.sections[1..] {
            match name.as_str() {
                "Dockerfile" => drop(world.write("context/Dockerfile", text)),
                name if name.starts_with("context/") || name.starts_with("other/") => drop(world.write(name, text)),
                _ => {}
            }
        }
        if let Some(setup) = self.section("setup") {
            world.run("sh").args(["-ec", &format!("umask 022\ncd context\n{setup}")]).succeeds();
        }
        // The user's own mask must not decide a mode.
        world.run("chmod").args(["-R", "u=rwX,go=rX"]).args(["buildkitd.toml"]).succeeds();
        who.own(world, "context");
        let mut flags = "--root=state --config=buildkitd.toml".to_owned();
        flags.extend(self.head("flags").map(|flag| format!(" {flag}")));
        let build = match upstream {
            None => who.daemonless(world),
            Some(dir) => {
                flags += " --containerd-worker=false";
                let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
                world.run(dir.join("buildctl-daemonless.sh")).env("PATH", path)
            }
        };
        let line = "build --frontend dockerfile.v0 --local context=context --local dockerfile=context --progress=plain \
                    --output type=tar,dest=tree.tar --output type=oci,dest=image.tar,rewrite-timestamp=true";
        let build = build.args(line.split_whitespace()).args(self.head("args"));
        let stdin = self.section("stdin").unwrap_or_default().to_owned();
        build.env("BUILDKITD_FLAGS", flags).env("SOURCE_DATE_EPOCH", "1700000000").stdin(stdin).ends()
    }

    fn check(&self, who: Who, base: &Base) -> Result<(), String> {
        let world = who.world();
        let ended = self.build(who, &world, base, None);
        if let Some(error) = self.section("error") {
            let missing: Vec<&str> = error.lines().filter(|line| !ended.stderr.contains(line)).collect();
            return match ended.code == Some(1) && missing.is_empty() {
                true => Ok(()),
                false => Err(format!("it does not say: {missing:#?}\n{ended:?}")),
            };
        }
        if ended.code != Some(0) {
            return Err(format!("{ended:?}"));
        }
        let made = Made::read(&world, base);
        let mut why = String::new();
        for (name, is) in [("tree", &made.tree), ("config", &made.config), ("layers", &made.layers)] {
            let golden = self.section(name).unwrap_or_default();
            if golden != is && !self.head("differs").any(|other| other == name) {
                writeln!(why, "-- {name}: -upstream's +ours\n{}", difference(golden, is)).unwrap();
            }
        }
        if why.is_empty() { Ok(()) } else { Err(why) }
    }

    /// Writes the golden sections again.
    fn renew(&self, upstream: &Path, base: &Base) -> Result<(), String> {
        let world = Who::Root.world();
        let ended = self.build(Who::Root, &world, base, Some(upstream));
        if self.section("error").is_some() {
            return if ended.code == Some(1) { Ok(()) } else { Err(format!("no error\n{ended:?}")) };
        }
        if ended.code != Some(0) {
            return Err(format!("{ended:?}"));
        }
        let made = Made::read(&world, base);
        let mut text = self.sections[0].1.clone();
        for (name, section) in &self.sections[1..] {
            if !["tree", "config", "layers"].contains(&name.as_str()) {
                write!(text, "-- {name} --\n{section}").unwrap();
            }
        }
        for (name, section) in [("tree", made.tree), ("config", made.config), ("layers", made.layers)] {
            write!(text, "-- {name} --\n{section}").unwrap();
        }
        fs::write(&self.path, text).map_err(|error| error.to_string())
    }
}

impl Made {
    fn read(world: &World, base: &Base) -> Made {
        let list = ["--list", "--verbose", "--verbose", "--numeric-owner", "--full-time", "--utc", "--xattrs"];
        let list = world.run("tar").args(list).args(["--xattrs-include=*", "--file", "tree.tar"]).env("LC_ALL", "C");
        let mut lines: Vec<String> = Vec::new();
        for line in list.succeeds().text().lines() {
            match line.starts_with("  ") {
                true => *lines.last_mut().unwrap() += line,
                false => lines.push(line.split_whitespace().collect::<Vec<_>>().join(" ")),
            }
        }
        // busybox has another size on every machine.
        lines.retain(|line| !line.contains(" bin/"));
        lines.sort_by(|a, b| a.split(' ').nth(5).cmp(&b.split(' ').nth(5)));
        let tree = lines.iter().fold(String::new(), |text, line| text + line + "\n");

        fs::create_dir(world.path("image")).unwrap();
        world.run("tar").args(["-xf", "image.tar", "-C", "image"]).succeeds();
        let blob = |digest: &Value| -> Value {
            let name = digest["digest"].as_str().unwrap().replace(':', "/");
            serde_json::from_slice(&fs::read(world.path("image/blobs").join(name)).unwrap()).unwrap()
        };
        let index: Value = serde_json::from_slice(&fs::read(world.path("image/index.json")).unwrap()).unwrap();
        let mut manifest = blob(&index["manifests"][0]);
        if manifest["manifests"].is_array() {
            manifest = blob(&manifest["manifests"][0]);
        }
        let mut config = blob(&manifest["config"]);
        let object = config.as_object_mut().unwrap();
        let rootfs = object.remove("rootfs").unwrap();
        object.sort_keys();
        let host = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        if object["architecture"] == host {
            object["architecture"] = "the machine's".into();
        }
        let ids = rootfs["diff_ids"].as_array().into_iter().flatten().map(|id| id.as_str().unwrap());
        let layers = ids.filter(|id| *id != base.layer).fold(String::new(), |text, id| text + id + "\n");
        Made { tree, config: format!("{config:#}\n"), layers }
    }
}

/// The lines that only one side has, in the order of each.
fn difference(golden: &str, is: &str) -> String {
    let (golden, is): (Vec<&str>, Vec<&str>) = (golden.lines().collect(), is.lines().collect());
    let gone = golden.iter().filter(|line| !is.contains(line)).map(|line| format!("- {line}\n"));
    let new = is.iter().filter(|line| !golden.contains(line)).map(|line| format!("+ {line}\n"));
    let lines: String = gone.chain(new).collect();
    if lines.is_empty() { "the same lines in another order\n".to_owned() } else { lines }
}
