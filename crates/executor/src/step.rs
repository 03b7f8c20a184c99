//! What a step is, and how it ended.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::progress::{Room, Stream};
use base::{ByteSize, Secret};
use serde::{Deserialize, Serialize};
use sys::cgroup::Limits;
use sys::mount::{FsView, Restrict};

/// The host name of a step that asks for none; upstream's, which builds may have grown to rely on.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";
/// The search path of a step whose environment names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One process to run on a root file system, and all that it may see.
#[derive(Clone, Debug)]
pub struct Step {
    /// The tree that becomes `/`.
    pub rootfs: FsView,
    /// Nobody may write to `/` itself; mounts decide for themselves.
    pub readonly_rootfs: bool,
    /// What is mounted into it, in this order.
    pub mounts: Vec<StepMount>,
    /// Devices that it has beside those that every step has.
    pub devices: Vec<DeviceNode>,
    /// Groups that its user is in beside those of the root's files.
    pub groups: Vec<u32>,
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// `NAME=value`; of one name the last counts. `PATH` and `HOME` are added where missing.
    pub env: Vec<String>,
    /// The working directory inside; made, owned by the user, where missing. Empty is `/`.
    pub cwd: String,
    /// As Dockerfile's `USER`: `name|uid[:group|gid]`; empty is root.
    pub user: String,
    /// [`DEFAULT_HOSTNAME`] where none.
    pub hostname: Option<String>,
    /// Which network it sees.
    pub network: Network,
    /// How far it is locked in.
    pub security: Security,
    /// More lines of `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// What `/etc/resolv.conf` says in place of the machine's.
    pub resolver: Resolver,
    /// Resource limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// The size of `/dev/shm`; 64 MiB where none.
    pub shm_size: Option<ByteSize>,
    /// A cgroup below which the step's own is made, instead of ours.
    pub cgroup_parent: Option<String>,
    /// Limits of all its processes together.
    pub resources: Limits,
    /// Mount points that had to be made, and their parents, are removed afterwards where empty, not only the
    /// mount points themselves.
    pub remove_mount_stubs_recursive: bool,
}

impl Step {
    /// A step with nothing special about it.
    pub fn new(rootfs: FsView, args: impl IntoIterator<Item = impl Into<String>>) -> Step {
        Step {
            rootfs,
            readonly_rootfs: false,
            mounts: Vec::new(),
            devices: Vec::new(),
            groups: Vec::new(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: None,
            network: Network::Host,
            security: Security::Sandbox,
            extra_hosts: Vec::new(),
            resolver: Resolver::default(),
            ulimits: Vec::new(),
            shm_size: None,
            cgroup_parent: None,
            resources: Limits::default(),
            remove_mount_stubs_recursive: false,
        }
    }
}

/// Settings of resolv.conf(5). What is empty is taken from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// Something mounted into a step.
#[derive(Clone, Debug)]
pub struct StepMount {
    /// An absolute path inside the step. Symlinks in it never lead out of the root.
    pub target: String,
    /// What is mounted.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum MountSource {
    /// A snapshot, or a part of it.
    View {
        /// The tree.
        view: FsView,
        /// The part of it; empty or `/` is all of it. Symlinks in it never lead out of the tree.
        subpath: String,
        /// Nobody may write through the mount.
        read_only: bool,
    },
    /// A file or directory of the host, such as an agent's socket.
    Bind {
        /// An absolute path.
        path: PathBuf,
        /// What nobody may do through the mount.
        restrict: Restrict,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// At most so many bytes; half of the memory where none.
        size: Option<ByteSize>,
    },
    /// A file that exists in memory only, and only for this step.
    Secret {
        /// Its bytes.
        data: Secret,
        /// Its owner inside.
        uid: u32,
        /// Its group inside.
        gid: u32,
        /// Its permissions.
        mode: u32,
    },
}

/// A device node that a step finds, and may open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// An absolute path inside the step.
    pub path: String,
    /// The same device on the host: who may not make nodes mounts this one.
    pub host_path: PathBuf,
    /// What it is.
    pub kind: DeviceKind,
    /// Major and minor number; of a pipe nothing.
    pub number: (u32, u32),
    /// Its permissions.
    pub mode: u32,
    /// Its owner; the step's user where none.
    pub uid: Option<u32>,
    /// Its group; that of the step's user where none.
    pub gid: Option<u32>,
    /// It may be read.
    pub read: bool,
    /// It may be written to.
    pub write: bool,
}

/// What a device node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Character,
    /// A named pipe.
    Pipe,
}

/// Which network a step sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Ours.
    #[default]
    Host,
    /// A loopback interface of its own.
    None,
}

/// How far a step is locked in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// Few capabilities, a seccomp filter, hidden kernel files.
    #[default]
    Sandbox,
    /// Whatever we may do ourselves (`RUN --security=insecure`).
    Insecure,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The name.
    pub host: String,
    /// Where it leads.
    pub ip: IpAddr,
}

/// One of `setrlimit(2)`'s limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// Its name in lower case without prefix: `nofile`.
    pub name: String,
    /// What applies; -1 is no limit.
    pub soft: i64,
    /// What the process may raise it to; -1 is no limit.
    pub hard: i64,
}

/// Where a step's output goes.
#[derive(Clone)]
pub struct StepIo {
    /// Called with each piece, in order within a stream, from one task; must not block for long.
    pub output: Output,
    /// Awaited before more output is read: until it is ready, a step that goes on writing waits as well.
    pub room: Arc<dyn Fn() -> Room + Send + Sync>,
    /// Told why a step runs without limits that it asks for.
    pub unlimited: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Takes a piece of output.
pub type Output = Arc<dyn Fn(Stream, &[u8]) + Send + Sync>;

impl StepIo {
    /// Hands each piece of output to `output`.
    pub fn new(output: impl Fn(Stream, &[u8]) + Send + Sync + 'static) -> StepIo {
        let room = || -> Room { Box::pin(std::future::ready(())) };
        StepIo { output: Arc::new(output), room: Arc::new(room), unlimited: Arc::new(|_| ()) }
    }

    /// Holds the step back until there is room. What it had written when it ended is handed on at once: that is no
    /// more than two pipes hold.
    pub fn held_back_by(self, room: impl Fn() -> Room + Send + Sync + 'static) -> StepIo {
        StepIo { room: Arc::new(room), ..self }
    }

    /// Tells why a step runs without limits that it asks for.
    pub fn when_unlimited(self, tell: impl Fn(&str) + Send + Sync + 'static) -> StepIo {
        StepIo { unlimited: Arc::new(tell), ..self }
    }

    /// Forgets all output.
    pub fn discard() -> StepIo {
        StepIo::new(|_, _| {})
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Its exit code, or 128 and the number of the signal that killed it, as shells and runtimes count.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Its program was started; else the last line of its output says why not.
    pub started: bool,
    /// A process of it was killed because memory ran out.
    pub out_of_memory: Option<OutOfMemory>,
    /// What it used.
    pub usage: Usage,
}

impl Exit {
    /// It exited with 0.
    pub fn is_success(&self) -> bool {
        self.code == 0
    }

    /// What went wrong in the words of a build log: `exit code: 137: out of memory, limit 512.00MB`.
    pub fn describe(&self) -> String {
        let mut text = format!("exit code: {}", self.code);
        match self.out_of_memory {
            Some(OutOfMemory { limit: Some(limit) }) => text.push_str(&format!(": out of memory, limit {limit}")),
            Some(OutOfMemory { limit: None }) => text.push_str(": out of memory"),
            None => {}
        }
        text
    }
}

/// Memory ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// The limit that was hit, where we know it.
    pub limit: Option<ByteSize>,
}

/// What a step used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The largest resident set of one of its processes.
    pub max_rss: ByteSize,
}
