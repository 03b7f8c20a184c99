//! Runs the steps of a build: one process each, in a sandbox of its own, with no runtime but ourselves.
//!
//! An [`Executor`] belongs to one isolation level. The process that sets sandboxes up is our own binary started
//! again: a program that links this crate must call [`init::main`] first of all in its `main` where
//! [`init::is_requested`] says so, and [`sys::userns::enter`] before its first thread where it is to run steps. This
//! crate knows no snapshot, op or session: it is handed views of file systems and bytes.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sys::userns::{Isolation, Level};
pub use tokio_util::sync::CancellationToken;

mod attached;
mod helper;
mod hosts;
pub mod init;
mod limits;
mod message;
mod privileged;
mod rootless;
mod run;
mod step;

pub use attached::{Attached, Control, Inside, Process};
pub use step::*;

/// Runs steps.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Runs one step to its end. When this returns, in success or not, no process, mount, cgroup or file of the
    /// step remains, except what it wrote to its root and mounts.
    ///
    /// A step that ran and failed is an [`Exit`]; an [`Error`] means that it never ran, or was cancelled.
    /// Cancelling kills its processes at once. So does dropping the future, whose clean-up then goes on in the
    /// background.
    async fn run(&self, step: Step, io: StepIo, cancel: CancellationToken) -> Result<Exit, Error> {
        self.run_attached(step, io, Attached::default(), cancel).await
    }

    /// The same for a process that is more than its output.
    async fn run_attached(
        &self,
        step: Step,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error>;

    /// Runs one more process where another one runs, under the same promises. It does not outlive that one.
    async fn join(
        &self,
        inside: &Inside,
        process: Process,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error>;

    /// Ends what is there for steps to come: the process that starts them, the groups that it is in. No step is run after
    /// this, and none runs.
    fn close(&self);

    /// What this level of isolation is called, for logs: `privileged`, `rootless`.
    fn name(&self) -> &'static str;
}

/// Why a step did not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The step is described wrongly: its user is not in its passwd file, a mount's source has no such path.
    #[error("{0}")]
    Invalid(String),
    /// The machine did not let us set the sandbox up.
    #[error("cannot set up the sandbox: {0}")]
    Setup(String),
    /// The step was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The helper process that starts steps is gone or cannot be started.
    #[error("cannot use the sandbox helper")]
    Helper(#[source] std::io::Error),
    /// The executor's own directory cannot be used.
    #[error("cannot use `{path}`")]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no way to run steps here.
    #[error("no way to isolate them: {why}")]
    Unprivileged {
        /// What was tried, and what would help.
        why: String,
    },
}

/// Opens the executor of the isolation that [`sys::userns::enter`] got.
///
/// `state` is a directory of its own, made where missing.
pub fn open(state: PathBuf, isolation: &Isolation) -> Result<Arc<dyn Executor>, Error> {
    for dir in ["rootfs", "scratch", "aside", "files"] {
        let path = state.join(dir);
        std::fs::create_dir_all(&path).map_err(|source| Error::State { path, source })?;
    }
    // Files need a file to be mounted on, for a moment, by older kernels.
    let path = state.join("aside.file");
    std::fs::File::create(&path).map_err(|source| Error::State { path, source })?;
    let state = std::path::absolute(&state).map_err(|source| Error::State { path: state, source })?;
    match isolation.level {
        Level::Privileged => Ok(Arc::new(privileged::Privileged::open(state, isolation)?)),
        Level::Rootless => Ok(Arc::new(rootless::Rootless::open(state, isolation)?)),
        Level::Unprivileged => Err(Error::Unprivileged { why: isolation.why.clone() }),
    }
}
