//! The one owner of the solver: feeds it answers, carries out its actions, and tells people how it goes.
//!
//! One task has the solver; it never waits for a disk, a network or a step. Actions run as tasks of their own and
//! send their answers back. Dropping the last [`Driver`] ends the task.

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::{Digest, Fault, Kind};
use solver::{CacheKey, Event, Input, JobId, Vertex};
use tokio::sync::{mpsc, oneshot};

use crate::cache::import::ReadCache;
use crate::core::Core;
use crate::job::Job;
use crate::ops::Op;
use crate::tree::Tree;

mod handle;
mod owner;

pub(crate) use handle::JobHandle;
use owner::Owner;

type Reply = oneshot::Sender<Result<Made, Fault>>;
type Answered = Event<Tree, Fault>;

/// A result, and what it is remembered by.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) tree: Tree,
    pub(crate) keys: Vec<Arc<CacheKey>>,
}

enum Message {
    Begin {
        job: Arc<Job>,
        reply: oneshot::Sender<JobId>,
    },
    /// `caches` are those that the vertices name.
    Solve {
        job: JobId,
        ticket: u64,
        caches: Vec<Arc<ReadCache>>,
        vertices: Vec<Vertex<Arc<Op>>>,
        edge: Input,
        reply: Reply,
    },
    /// A build's client has what these vertices want of one.
    Lend {
        job: JobId,
        vertices: Vec<Digest>,
    },
    Withdraw {
        ticket: u64,
    },
    End {
        job: JobId,
    },
    Answer(Answered),
    /// Answered once all that is known now is remembered.
    Remembered {
        reply: oneshot::Sender<()>,
    },
    Idle {
        reply: oneshot::Sender<()>,
    },
    Running {
        reply: oneshot::Sender<Vec<String>>,
    },
}

/// The way to the solver. Clones share it.
#[derive(Clone)]
pub(crate) struct Driver {
    messages: mpsc::UnboundedSender<Message>,
    core: Arc<Core>,
}

impl Driver {
    pub(crate) fn start(core: Arc<Core>, max_parallelism: Option<usize>) -> Driver {
        let (messages, inbox) = mpsc::unbounded_channel();
        let owner = Owner::new(core.clone(), messages.downgrade(), max_parallelism);
        tokio::spawn(owner.run(inbox));
        Driver { messages, core }
    }

    pub(crate) async fn begin(&self, job: Arc<Job>) -> Result<JobHandle, Fault> {
        let (reply, begun) = oneshot::channel();
        self.send(Message::Begin { job: job.clone(), reply });
        let id = begun.await.map_err(|_| stopped())?;
        Ok(JobHandle { driver: self.clone(), id, job, early: Mutex::default() })
    }

    /// Waits until nothing is under way, saving to the cache included, but not longer than this. Answers what still is.
    pub(crate) async fn idle(&self, most: Duration) -> Vec<String> {
        let (reply, idle) = oneshot::channel();
        self.send(Message::Idle { reply });
        if tokio::time::timeout(most, idle).await.is_ok() {
            return Vec::new();
        }
        let (reply, running) = oneshot::channel();
        self.send(Message::Running { reply });
        running.await.unwrap_or_default()
    }

    /// Waits until all results that there are can be found in the cache.
    pub(crate) async fn remembered(&self) {
        let (reply, remembered) = oneshot::channel();
        self.send(Message::Remembered { reply });
        // Without an owner nothing is remembered any more.
        let _ = remembered.await;
    }

    fn send(&self, message: Message) {
        // Fails only when the owner is gone, which whoever waits for a reply then sees.
        let _ = self.messages.send(message);
    }
}

fn stopped() -> Fault {
    Fault::new(Kind::Internal, "the solver has stopped")
}

/// Whether a file of the client changed between its checksum and its copy.
pub(crate) fn is_stale(fault: &Fault) -> bool {
    fault.find::<files::Error>().is_some_and(files::Error::is_changed)
}

/// What a panic of an op tells people. It said where on standard error already.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Fault::new(Kind::Internal, format!("a bug in the builder: {}", said.unwrap_or("it panicked")))
        .hint("please report it, with what was printed above")
}
