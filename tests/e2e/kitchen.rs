//! A world with a registry that has busybox as `docker.io/library/busybox`, and what a build says that it did.

use std::path::Path;

use testkit::Registry;
use testkit::image::TestImage;

use crate::harness::{Ended, Invocation, World, or_skip};
use crate::who::Who;

/// See above.
pub struct Kitchen {
    pub world: World,
    pub registry: Registry,
    pub who: Who,
}

impl Kitchen {
    /// None, with the reason told, where that cannot be.
    pub fn new(who: Who) -> Option<Kitchen> {
        Kitchen::with(who, Registry::start())
    }

    /// The same with another kind of registry.
    pub fn with(who: Who, registry: Registry) -> Option<Kitchen> {
        Kitchen::made(who, &std::env::temp_dir(), registry)
    }

    /// The same in a directory.
    pub fn below(who: Who, dir: &Path) -> Option<Kitchen> {
        Kitchen::made(who, dir, Registry::start())
    }

    fn made(who: Who, dir: &Path, registry: Registry) -> Option<Kitchen> {
        let busybox = or_skip(who.is_here().and_then(|()| TestImage::busybox()))?;
        let world = who.world_below(dir);
        busybox.put(&registry, "library/busybox", "latest");
        let host = registry.host();
        let config = format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n[registry.\"{host}\"]\nhttp = true\n");
        world.write("buildkitd.toml", config);
        Some(Kitchen { world, registry, who })
    }

    /// Writes a file of the context.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        self.world.write(&format!("context/{name}"), content);
        self.who.own(&self.world, "context");
    }

    /// Writes the Dockerfile.
    pub fn dockerfile(&self, text: &str) {
        self.file("Dockerfile", text);
    }

    /// `hullworks build` of the context.
    pub fn build(&self, args: &str) -> Invocation {
        self.build_on("state", args)
    }

    /// `hullworks build` of the context on another state.
    pub fn build_on(&self, state: &str, args: &str) -> Invocation {
        let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--root", state, "context"];
        self.who.hullworks(&self.world).args(line).args(args.split_whitespace())
    }

    /// Another command on the state.
    pub fn hullworks(&self, command: &str) -> Invocation {
        self.who.hullworks(&self.world).args(command.split_whitespace()).args(["--root", "state"])
    }
}

/// The steps of Dockerfiles that ran, and those that came from the cache: their instructions, sorted.
pub fn steps(ended: &Ended) -> (Vec<String>, Vec<String>) {
    let mut names: Vec<(String, String)> = Vec::new();
    let (mut ran, mut cached) = (Vec::new(), Vec::new());
    for line in ended.stderr.lines() {
        let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else { continue };
        if let Some((_, instruction)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            let known = names.iter().any(|(other, _)| other == number);
            if !known && !rest.starts_with("[internal]") && !instruction.starts_with("FROM ") {
                names.push((number.to_owned(), instruction.to_owned()));
            }
        }
        let list = match rest {
            "CACHED" => &mut cached,
            rest if rest.starts_with("DONE ") => &mut ran,
            _ => continue,
        };
        list.extend(names.iter().filter(|(other, _)| other == number).map(|(_, name)| name.clone()));
    }
    ran.sort();
    cached.sort();
    (ran, cached)
}

/// The steps that ran.
pub fn ran(ended: &Ended) -> Vec<String> {
    steps(ended).0
}
