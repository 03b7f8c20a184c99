//! What is said between us and the process that starts steps.
//!
//! ```text
//!  us ──control socket──▶ init: one `Start` per process, with descriptors: message, stdout, stderr, step socket,
//!                          [stdin], and then [cgroup] or the namespaces of a container
//!  us ◀──step socket──── init and the step's own process: `Report`s
//!  us ──step socket─────▶ init: a `Wish`; our end of the talk means "kill it"
//! ```
//!
//! Both ends are the same binary, so nothing here is a format that outlives the process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sys::mount::FsView;

use crate::DeviceNode;

/// The bytes of a control message: what is to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) place: Place,
    /// Standard input comes along.
    pub(crate) stdin: bool,
}

/// Where a process is born.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In new namespaces: `CLONE_NEW*`. The message is a [`Sandbox`].
    New(i32),
    /// In a container that runs. The message is an [`Entry`].
    Container,
}

impl Start {
    pub(crate) fn encode(self) -> [u8; 6] {
        let (kind, namespaces) = match self.place {
            Place::New(namespaces) => (0, namespaces),
            Place::Container => (1, 0),
        };
        let [a, b, c, d] = namespaces.to_ne_bytes();
        [kind, self.stdin.into(), a, b, c, d]
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Start> {
        let [kind, stdin, namespaces @ ..] = bytes else { return None };
        let place = match kind {
            0 => Place::New(i32::from_ne_bytes(namespaces.try_into().ok()?)),
            _ => Place::Container,
        };
        Some(Start { place, stdin: *stdin != 0 })
    }
}

/// What we want of a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Its end, and of all that it started.
    Kill,
    /// That it gets a signal.
    Signal(u8),
}

impl Wish {
    pub(crate) fn encode(self) -> [u8; 2] {
        match self {
            Wish::Kill => [0, 0],
            Wish::Signal(number) => [1, number],
        }
    }

    /// What cannot be understood is the end, as nothing is.
    pub(crate) fn decode(bytes: &[u8]) -> Wish {
        match bytes {
            [1, number] => Wish::Signal(*number),
            _ => Wish::Kill,
        }
    }
}

/// What one more process of a container needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) insecure: bool,
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    /// `cgroup.procs` files to join before anything else.
    pub(crate) join: Vec<PathBuf>,
    pub(crate) terminal: bool,
    pub(crate) single_id: bool,
}

/// Everything the step's process needs to know to set itself up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// Our directory, with the mount points `rootfs`, `scratch`, `aside` and `files`.
    pub(crate) state: PathBuf,
    pub(crate) rootfs: View,
    pub(crate) readonly_rootfs: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) groups: Vec<u32>,
    pub(crate) hostname: String,
    pub(crate) own_network: bool,
    pub(crate) insecure: bool,
    /// Number, soft and hard value.
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    pub(crate) shm_size: u64,
    /// `cgroup.procs` files to join before anything else.
    pub(crate) join: Vec<PathBuf>,
    /// The one of them that cloning into a cgroup makes needless.
    pub(crate) join_unified: Option<PathBuf>,
    pub(crate) cgroup: CgroupView,
    /// Device nodes in the root and mounts cannot be opened; for want of device rules.
    pub(crate) no_devices: bool,
    /// Device nodes are bound from the host, for we may not make any.
    pub(crate) bind_devices: bool,
    /// Only id 0 exists.
    pub(crate) single_id: bool,
    pub(crate) remove_stubs_recursive: bool,
    /// It has a terminal.
    pub(crate) terminal: bool,
    /// Others may join it: the namespaces are handed out.
    pub(crate) lasting: bool,
    /// The length of each file's bytes, which follow the encoded message in order.
    pub(crate) file_sizes: Vec<usize>,
}

/// What a step sees at /sys/fs/cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CgroupView {
    /// Nothing.
    None,
    /// Its groups of version 1 by the names of their hierarchies' mount points.
    Version1(Vec<(String, PathBuf)>),
    /// Its own group of version 2 as the top.
    Unified,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) target: String,
    pub(crate) source: Source,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    View {
        view: View,
        subpath: String,
        read_only: bool,
    },
    Bind {
        path: PathBuf,
        /// The bits of a `Restrict`.
        restrict: u64,
    },
    Tmpfs {
        size: Option<u64>,
    },
    /// The n-th file of the message.
    File {
        index: usize,
        uid: u32,
        gid: u32,
        mode: u32,
    },
}

/// [`FsView`] on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum View {
    Dir { path: PathBuf, read_only: bool },
    Overlay { lower: Vec<PathBuf>, upper: Option<(PathBuf, PathBuf)>, userxattr: bool, volatile: bool },
}

impl From<FsView> for View {
    fn from(view: FsView) -> View {
        match view {
            FsView::Dir { path, read_only } => View::Dir { path, read_only },
            FsView::Overlay(sys::mount::Overlay { lower, upper, userxattr, volatile }) => {
                View::Overlay { lower, upper, userxattr, volatile }
            }
        }
    }
}

impl From<View> for FsView {
    fn from(view: View) -> FsView {
        match view {
            View::Dir { path, read_only } => FsView::Dir { path, read_only },
            View::Overlay { lower, upper, userxattr, volatile } => {
                FsView::Overlay(sys::mount::Overlay { lower, upper, userxattr, volatile })
            }
        }
    }
}

impl Sandbox {
    /// The message and its files as bytes.
    pub(crate) fn encode(&self, files: &[Vec<u8>]) -> Result<Vec<u8>, serde_json::Error> {
        let json = serde_json::to_vec(self)?;
        let mut bytes = Vec::with_capacity(8 + json.len() + files.iter().map(Vec::len).sum::<usize>());
        bytes.extend_from_slice(&(json.len() as u64).to_ne_bytes());
        bytes.extend_from_slice(&json);
        files.iter().for_each(|file| bytes.extend_from_slice(file));
        Ok(bytes)
    }

    /// The message and its files.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Sandbox, Vec<&[u8]>), String> {
        let short = || "the message is cut short".to_owned();
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let (json, mut rest) = rest.split_at_checked(u64::from_ne_bytes(*length) as usize).ok_or_else(short)?;
        let sandbox: Sandbox = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut files = Vec::new();
        for size in &sandbox.file_sizes {
            let (file, after) = rest.split_at_checked(*size).ok_or_else(short)?;
            files.push(file);
            rest = after;
        }
        Ok((sandbox, files))
    }
}

/// What comes back over a step's socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The step's process could not set itself up, and ends.
    Failed(Failure),
    /// These mount points were made; the root they are in comes along as a descriptor.
    Stubs(Vec<Stub>),
    /// The end of the terminal that the process does not have comes along.
    Terminal,
    /// All is set up, and the program is about to run. The namespaces come along, where others may join it.
    Started,
    /// The step's process, and with it its process namespace, is gone. The last report.
    Ended { code: Option<i32>, signal: Option<i32>, user_micros: u64, system_micros: u64, max_rss: u64 },
    /// No process could be made. The last report.
    NotStarted(String),
}

/// Why there is no step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// The step asks for what is not there.
    Invalid(String),
    /// The machine refused.
    Setup(String),
    /// The program cannot be run: a line for the step's log.
    Program(String),
}

/// A mount point that we made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// Below the root, without links.
    pub(crate) path: PathBuf,
}
