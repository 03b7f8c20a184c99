//! Who builds: root, an ordinary user with ranges of subordinate ids, an ordinary user who has one id only.
//!
//! When root runs the tests, the user and the ranges exist only in a mount namespace of the command, over `/etc`: the
//! machine's own accounts decide nothing and stay as they are.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::harness::{Invocation, USER, World, binary, can_unshare, find_tool, has_tool, is_root};

/// Whoever a test acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Root of the machine.
    Root,
    /// An ordinary user; `newuidmap` maps ranges.
    Ranges,
    /// An ordinary user without `newuidmap`.
    Single,
}

/// Makes the files that [`AS_USER`] lays over `/etc`, then starts the arguments as that user.
const AS_USER: &str = "set -e
mount --bind etc/passwd /etc/passwd
mount --bind etc/subuid /etc/subuid
mount --bind etc/subuid /etc/subgid
exec setpriv --reuid=1000 --regid=1000 --clear-groups -- \"$@\"";

impl Who {
    /// Fails, saying why, where nobody can act as them.
    pub fn is_here(self) -> Result<(), String> {
        let missing = match self {
            Who::Root => (!is_root()).then_some("it wants root"),
            _ if !can_unshare() => Some("it wants user namespaces"),
            Who::Ranges if !has_tool("newuidmap") => Some("it wants `newuidmap`"),
            Who::Ranges if is_root() && !can_mount() => Some("it wants bind mounts"),
            Who::Ranges if !is_root() && !has_ranges() => Some("it wants subordinate ids of this user"),
            _ => None,
        };
        missing.map_or(Ok(()), |why| Err(why.to_owned()))
    }

    /// A world whose files belong to them.
    pub fn world(self) -> World {
        self.world_below(&std::env::temp_dir())
    }

    /// The same in a directory.
    pub fn world_below(self, dir: &Path) -> World {
        let world = World::below(dir);
        symlink("hullworks", world.path("buildctl-daemonless.sh")).unwrap();
        if self == Who::Root || !is_root() {
            symlink(binary(), world.path("hullworks")).unwrap();
        } else {
            // Where the binary is built may be a place that only root can enter.
            fs::copy(binary(), world.path("hullworks")).unwrap();
            world.write("etc/passwd", format!("root:x:0:0:root:/root:/bin/sh\nbuilder:x:{USER}:{USER}::/:/bin/sh\n"));
            world.write("etc/subuid", "builder:100000:65536\n");
            chown(world.path("."), Some(USER), Some(USER)).unwrap();
        }
        world
    }

    /// Gives them what the test wrote into the world.
    pub fn own(self, world: &World, name: &str) {
        if self != Who::Root && is_root() {
            let owner = format!("{USER}:{USER}");
            world.run("chown").args(["--recursive", "--no-dereference", &owner, name]).succeeds();
        }
    }

    /// Starts a program in the world as them.
    pub fn run(self, world: &World, program: &str) -> Invocation {
        // It is found here: where they look there is nothing.
        let found = find_tool(program);
        let program = found.as_ref().and_then(|path| path.to_str()).unwrap_or(program);
        let user = world.run("setpriv").args(["--reuid=1000", "--regid=1000", "--clear-groups", "--"]);
        match self {
            Who::Root => world.run(program),
            Who::Ranges if is_root() => {
                let words = ["--mount", "--propagation", "private", "sh", "-c", AS_USER, "sh", program];
                world.run("unshare").args(words)
            }
            Who::Ranges => world.run(program),
            Who::Single if is_root() => user.args(["env", "PATH=/nowhere", program]),
            Who::Single => world.run("env").args(["PATH=/nowhere", program]),
        }
    }

    /// `hullworks` as them.
    pub fn hullworks(self, world: &World) -> Invocation {
        self.run(world, world.path("hullworks").to_str().unwrap())
    }

    /// `buildctl-daemonless.sh` as them.
    pub fn daemonless(self, world: &World) -> Invocation {
        self.run(world, world.path("buildctl-daemonless.sh").to_str().unwrap())
    }
}

fn can_mount() -> bool {
    let line = ["--mount", "--propagation", "private", "mount", "--bind", "/etc/hosts", "/etc/hosts"];
    Command::new("unshare").args(line).output().is_ok_and(|output| output.status.success())
}

/// Whether this user, who is not root, has a range.
fn has_ranges() -> bool {
    let name = Command::new("id").arg("-un").output().unwrap().stdout;
    let (name, ranges) = (String::from_utf8(name).unwrap(), fs::read_to_string("/etc/subuid").unwrap_or_default());
    ranges.lines().any(|line| line.split(':').next() == Some(name.trim()))
}
