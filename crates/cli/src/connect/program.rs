//! A program whose standard input and output are a connection, such as ssh. Where it does not come about, what the program
//! said is the cause.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is kept of its standard error.
const MOST: usize = 4096;
/// How long its end, and then its last words, are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program with its arguments.
pub(super) struct Program {
    pub(super) line: Vec<String>,
    /// How it ended, and what it said.
    ended: watch::Sender<Option<String>>,
    started: AtomicBool,
}

/// A program that runs. It is ended when this is dropped.
pub(super) struct Talk {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    _ends: DropGuard,
}

impl Program {
    pub(super) fn new(line: Vec<String>) -> Arc<Program> {
        Arc::new(Program { line, ended: watch::Sender::new(None), started: AtomicBool::new(false) })
    }

    pub(super) fn start(self: &Arc<Self>) -> io::Result<Talk> {
        let (name, args) = self.line.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let piped = Command::new(name)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child =
            piped.map_err(|error| io::Error::new(error.kind(), format!("cannot start `{name}`: {error}")))?;
        self.started.store(true, Ordering::Relaxed);
        let pipes = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
        let ((stdin, stdout), stderr) = pipes.ok_or_else(|| io::Error::other("its pipes are missing"))?;
        let unwanted = CancellationToken::new();
        let watched = self.clone();
        let is_unwanted = unwanted.clone();
        tokio::spawn(async move {
            let mut watching = std::pin::pin!(watch(&watched.line, child, stderr));
            let ended = tokio::select! {
                ended = &mut watching => Some(ended),
                // Nobody talks to it any more: it ends by itself, and says why it did, or goes with the child.
                () = is_unwanted.cancelled() => tokio::time::timeout(PATIENCE / 5, &mut watching).await.ok(),
            };
            if let Some(ended) = ended {
                tracing::debug!("{ended}");
                watched.ended.send_replace(Some(ended));
            }
        });
        Ok(Talk { stdin, stdout, _ends: unwanted.drop_guard() })
    }

    /// Whether there was such a program.
    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// How the program ended, if it did or is about to.
    pub(super) async fn last_words(&self) -> Option<String> {
        let mut ended = self.ended.subscribe();
        let ended = tokio::time::timeout(PATIENCE, ended.wait_for(Option::is_some)).await;
        ended.ok()?.ok()?.clone()
    }
}

async fn watch(line: &[String], mut child: Child, mut stderr: ChildStderr) -> String {
    let mut said = Vec::new();
    let listening = async {
        let mut piece = [0; 1024];
        while let Ok(length @ 1..) = stderr.read(&mut piece).await {
            said.extend_from_slice(&piece[..length]);
            said.drain(..said.len().saturating_sub(MOST));
        }
    };
    let ended = {
        let mut listening = std::pin::pin!(listening);
        // It has to be listened to, or it does not end.
        let waiting = child.wait();
        let mut waiting = std::pin::pin!(waiting);
        let mut is_silent = false;
        let ended = loop {
            tokio::select! {
                ended = &mut waiting => break ended,
                () = &mut listening, if !is_silent => is_silent = true,
            }
        };
        if !is_silent {
            // Somebody else may still have it open.
            let _ = tokio::time::timeout(PATIENCE / 20, listening).await;
        }
        ended
    };
    let ended = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = String::from_utf8_lossy(&said);
    match said.trim() {
        "" => format!("`{}` ended with {ended}", line.join(" ")),
        said => format!("`{}` ended with {ended}: {said}", line.join(" ")),
    }
}
