//! What the log has at level debug of the steps of a build, and of caches that had nothing for them.
//!
//! A step is called by where it stands and its instruction: what follows may be a command line, and that may hold values of
//! build arguments. Where nobody reads these lines nothing is made for them.

use std::sync::Arc;

use base::Digest;
use jiff::Timestamp;
use llb::pb::op::Op as Kind;
use solver::{Answer, Lookup, Question, SourceId, Status};
use tracing::Level;

use crate::cache::import::ReadCache;
use crate::job::Job;
use crate::ops::{Op, OpContext};

/// As much of a name as the log has room for.
const MOST_CHARS: usize = 160;

/// Whether somebody reads it.
pub(crate) fn is_kept() -> bool {
    tracing::enabled!(Level::DEBUG)
}

/// Where the result of a step was found.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Here,
    /// In a cache beside the local one.
    In(String),
}

/// What became of a step.
pub(crate) struct Outcome<'a> {
    pub(crate) status: &'a Status<base::Fault>,
    pub(crate) found: Option<&'a Found>,
    /// Another build works or worked on it, too.
    pub(crate) shared: bool,
    pub(crate) started: Option<Timestamp>,
    pub(crate) completed: Timestamp,
}

/// A step begins to run.
pub(crate) fn began(ctx: &OpContext) {
    if !is_kept() {
        return;
    }
    for job in &ctx.jobs {
        let (reference, digest) = (&job.reference, job.name_of(ctx.op.label.digest).unwrap_or(ctx.op.label.digest));
        let (step, name, op) = (job.original(digest), name(job, digest), kind(&ctx.op));
        let builds = ctx.jobs.len();
        tracing::debug!(reference, %step, name, op, builds, "a step began");
    }
}

/// A step of a build came to an end, or need not begin.
pub(crate) fn ended(job: &Job, digest: Digest, op: Option<&Op>, outcome: &Outcome<'_>) {
    let word = match (outcome.status, outcome.found) {
        (Status::Resolved, _) => "resolved",
        (Status::Completed, _) => "made",
        (Status::Cached, Some(Found::Here)) => "cached locally",
        (Status::Cached, Some(Found::In(_))) => "cached remotely",
        (Status::Cached, None) => "not needed",
        (Status::Failed(fault), _) if fault.kind() == base::Kind::Cancelled => "cancelled",
        (Status::Failed(_), _) => "failed",
        (Status::Cancelled, _) => "cancelled",
        (Status::Started | Status::Loading, _) => return,
    };
    let error = match outcome.status {
        Status::Failed(fault) if fault.kind() != base::Kind::Cancelled => Some(job.hidden().why(fault)),
        _ => None,
    };
    let cache = match outcome.found {
        Some(Found::In(place)) if matches!(outcome.status, Status::Cached) => Some(place.as_str()),
        _ => None,
    };
    let took = outcome.completed.duration_since(outcome.started.unwrap_or(outcome.completed));
    let ms = took.unsigned_abs().as_millis() as u64;
    let (reference, shared, op) = (&job.reference, outcome.shared, op.map(kind));
    let (step, name) = (job.original(digest), name(job, digest));
    tracing::debug!(reference, %step, name, op, outcome = word, shared, ms, cache, error, "a step ended");
}

/// What caches beside the local one had nothing for, and why.
pub(crate) fn missed(caches: &[Arc<ReadCache>], steps: &[Option<Digest>], lookups: &[Lookup], answers: &[Answer]) {
    for ((step, lookup), answer) in steps.iter().zip(lookups).zip(answers) {
        let Some(step) = step else { continue };
        let asked = caches.iter().filter(|cache| lookup.sources.contains(&cache.keys.source()));
        for cache in asked {
            if let Some(why) = why_missed(cache.keys.source(), lookup, answer) {
                tracing::debug!(%step, cache = cache.place, why, "a cache has no result");
            }
        }
    }
}

/// A result that a cache has could not be had from it.
pub(crate) fn not_loaded(step: Digest, cache: &ReadCache, why: &str) {
    tracing::debug!(%step, cache = cache.place, why, "a cache has no result");
}

fn why_missed(source: SourceId, lookup: &Lookup, answer: &Answer) -> Option<&'static str> {
    let mut found = answer.found.iter().filter(|found| found.sources.contains(&source)).peekable();
    match &lookup.question {
        // Whether one input leads anywhere: the answer is for all caches together.
        Question::Input(_) if answer.matched.iter().any(|matched| *matched) => None,
        Question::Input(_) => Some("it has nothing that was made of such an input"),
        Question::Root if found.peek().is_none() => Some("it does not know the step"),
        Question::Inputs(_) if found.peek().is_none() => Some("it does not know the step with these inputs"),
        // What has no inputs need not have a result there: those above do.
        Question::Root => None,
        Question::Inputs(_) if found.any(|found| found.records.iter().any(|record| record.source == source)) => None,
        Question::Inputs(_) => Some("it knows the step and has no layers of it"),
    }
}

fn name(job: &Job, digest: Digest) -> String {
    let Some(label) = job.label(digest) else { return String::new() };
    let brief = brief(&label.name);
    job.hidden().in_text(&brief).into_owned()
}

/// What of a step's name is no command line.
fn brief(name: &str) -> String {
    let place = if name.starts_with('[') { name.find("] ").map_or(0, |at| at + "] ".len()) } else { 0 };
    let (place, rest) = name.split_at(place);
    let word = rest.split(' ').next().unwrap_or_default();
    // What reads contexts and finds images is called by what it reads and finds.
    let is_told = place == "[internal] " || word == "FROM";
    let is_instruction = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
    let text = match (is_told, is_instruction) {
        (true, _) => name.lines().next().unwrap_or_default(),
        (_, true) => &name[..place.len() + word.len()],
        _ => place.trim_end(),
    };
    text.chars().take(MOST_CHARS).collect()
}

fn kind(op: &Op) -> &'static str {
    match &op.vertex.op.op {
        Some(Kind::Source(_)) => "source",
        Some(Kind::Exec(_)) => "exec",
        Some(Kind::File(_)) => "file",
        Some(Kind::Build(_)) => "build",
        Some(Kind::Merge(_)) => "merge",
        Some(Kind::Diff(_)) => "diff",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_called_by_their_instruction_and_not_by_what_it_says() {
        for (name, wanted) in [
            ("[stage-1 2/3] RUN echo s3cret", "[stage-1 2/3] RUN"),
            ("[2/3] COPY --from=x s3cret /", "[2/3] COPY"),
            ("[1/3] FROM docker.io/library/busybox@sha256:1", "[1/3] FROM docker.io/library/busybox@sha256:1"),
            ("[internal] load build context", "[internal] load build context"),
            ("[internal] settings\ns3cret", "[internal] settings"),
            ("/bin/sh -c echo s3cret", ""),
            ("TOKEN=s3cret make", ""),
            ("[a] /bin/sh -c s3cret", "[a]"),
            ("RUN", "RUN"),
            ("[", ""),
            ("", ""),
        ] {
            assert_eq!(brief(name), wanted);
        }
        assert_eq!(brief(&format!("[internal] {}", "ä".repeat(1000))).chars().count(), MOST_CHARS);
    }
}
