//! The op that runs a command.

use base::Platform;

use super::{Builder, Constraints, Error, MAX_ENVIRONMENTS, Op, Output, State, state::Meta};
use crate::pb;
use std::sync::Arc;

/// A command to run on a state.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// What is mounted besides the root.
    pub mounts: Vec<Mount>,
    /// Secrets, as files or environment.
    pub secrets: Vec<Secret>,
    /// Agents of the session.
    pub ssh: Vec<Ssh>,
    /// Proxies, which are no part of the cache key.
    pub proxy: Option<pb::ProxyEnv>,
    /// Lines for `/etc/hosts`: name, address.
    pub extra_hosts: Vec<(String, String)>,
    /// Resource limits.
    pub ulimits: Vec<pb::Ulimit>,
    /// Parent of the step's control group.
    pub cgroup_parent: String,
    /// Limits of all its processes together, which are no part of the cache key.
    pub resources: Option<proto::LinuxResources>,
    /// Another network than the state's.
    pub network: Option<pb::NetMode>,
    /// With all privileges.
    pub insecure: bool,
    /// Devices that it has, and whether it can do without.
    pub devices: Vec<(String, bool)>,
}

/// Something mounted into a step.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// From what; none for an empty file system.
    pub source: Option<Output>,
    /// Only this path of the source.
    pub selector: String,
    /// Not writable.
    pub readonly: bool,
    /// Writable, but what is written goes nowhere.
    pub no_output: bool,
    /// Of which kind.
    pub kind: MountKind,
}

/// Kinds of mounts that have an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of another state.
    Bind,
    /// A directory that survives between builds.
    Cache {
        /// Its name.
        id: String,
        /// Who may use it at the same time.
        sharing: CacheSharing,
    },
    /// Memory, with a limit of so many bytes if not 0.
    Tmpfs {
        /// The limit.
        size: i64,
    },
}

/// Who may use a cache directory at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// Anybody.
    #[default]
    Shared,
    /// One; another gets a new one.
    Private,
    /// One; another waits.
    Locked,
}

/// A secret of the session.
#[derive(Clone, Debug)]
pub struct Secret {
    /// Its name in the session.
    pub id: String,
    /// The file that it becomes.
    pub target: Option<String>,
    /// The environment variable that it becomes.
    pub env: Option<String>,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Mode of the file.
    pub mode: u32,
    /// No error if the session lacks it.
    pub optional: bool,
}

/// A forwarded ssh agent.
#[derive(Clone, Debug)]
pub struct Ssh {
    /// Its name in the session; empty for the default one.
    pub id: String,
    /// The socket; chosen if empty.
    pub target: String,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Mode of the socket.
    pub mode: u32,
    /// No error if the session lacks it.
    pub optional: bool,
}

#[derive(Debug)]
pub(super) struct ExecNode {
    pub exec: Exec,
    pub root: Option<Output>,
    pub meta: Arc<Meta>,
}

impl Builder {
    /// Runs a command on a state; the result is the state's root afterwards.
    pub fn run(&mut self, state: &State, exec: Exec, constraints: Constraints) -> Result<State, Error> {
        // What one variable costs besides its text.
        const OVERHEAD: usize = 64;
        let env = state.meta.env.iter().map(|(key, value)| key.len() + value.len() + OVERHEAD);
        self.environments += env.chain(exec.args.iter().map(String::len)).sum::<usize>();
        if self.environments > MAX_ENVIRONMENTS {
            return Err(Error::TooLarge);
        }
        let platform: Option<Platform> = constraints.platform.clone();
        let node = ExecNode { exec, root: state.output, meta: state.meta.clone() };
        let output = self.push(Op::Exec(Box::new(node)), constraints);
        let mut out = state.with_output(Some(output));
        if let Some(platform) = platform {
            out.set_platform(&platform);
        }
        Ok(out)
    }
}

impl ExecNode {
    /// Root and mounts, sorted by target as they are marshalled. The root comes first among equals.
    pub fn mounts(&self) -> Vec<MountRef<'_>> {
        let root = MountRef { target: "/", source: self.root, mount: None };
        let others = self.exec.mounts.iter().map(|mount| MountRef {
            target: &mount.target,
            source: mount.source,
            mount: Some(mount),
        });
        let mut all: Vec<MountRef<'_>> = std::iter::once(root).chain(others).collect();
        all.sort_by(|a, b| a.target.cmp(b.target));
        all
    }

    /// Output number of the root.
    pub fn root_index(&self) -> i64 {
        let mounts = self.mounts();
        let before = mounts.iter().take_while(|mount| mount.mount.is_some());
        before.filter(|mount| mount.has_output()).count() as i64
    }
}

#[derive(Clone, Copy)]
pub(super) struct MountRef<'a> {
    pub target: &'a str,
    pub source: Option<Output>,
    /// None for the root.
    pub mount: Option<&'a Mount>,
}

impl MountRef<'_> {
    pub fn has_output(&self) -> bool {
        self.mount.is_none_or(|mount| !mount.readonly && !mount.no_output && mount.kind == MountKind::Bind)
    }
}
