//! Runs the steps of a build: one process each, in a sandbox of its own, with no runtime but ourselves.
//!
//! An [`Executor`] belongs to one isolation level. The process that sets a sandbox up is our own binary
//! started again. This crate knows no snapshot, op or session: it is handed views of file
//! systems and bytes.

use async_trait::async_trait;
pub use tokio_util::sync::CancellationToken;

mod step;

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
    async fn run(&self, step: Step, io: StepIo, cancel: CancellationToken) -> Result<Exit, Error>;

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
    #[error("cannot start the sandbox helper")]
    Helper(#[source] std::io::Error),
    /// The executor's own directory cannot be used.
    #[error("cannot use `{path}`")]
    State {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
