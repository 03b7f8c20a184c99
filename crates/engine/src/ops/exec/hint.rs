//! What to try where a step failed, by what it said and what is known about the machine.

use base::hint::PRUNE;
use base::{ByteSize, Platform};
use executor::Exit;
use store::Store;

use crate::ops::OpContext;

/// Less free space than this is none: programs write more at a time.
const NOTHING_FREE: u64 = 1 << 20;
/// With less than this when it began, a step that says that a file system is full means the volume of the state directory.
const LITTLE_FREE: u64 = 128 << 20;

/// What to try, by the last bytes of its output.
pub(super) fn of(ctx: &OpContext, exit: &Exit, tail: &[u8]) -> Option<String> {
    let hint = space(&ctx.core.store, tail).or_else(|| platform(ctx, exit, tail));
    hint.or_else(|| ids(tail).filter(|_| ctx.core.shadow).map(str::to_owned))
}

/// Whether a step that failed found the volume of the state directory full, which had so much room when it began. Asked
/// before what it wrote is removed. Many programs remove what they could not write to its end; and it may be another file
/// system that was full, `/dev/shm` for one.
pub(super) fn found_full(store: &Store, had: u64, tail: &[u8]) -> bool {
    let Some(free) = store.free_space() else { return false };
    free < NOTHING_FREE || says_full(tail) && (had < LITTLE_FREE || free < had / 2)
}

fn says_full(tail: &[u8]) -> bool {
    let says = |words: &[u8]| tail.windows(words.len()).any(|window| window == words);
    says(b"No space left on device") || says(b"Disk quota exceeded")
}

/// What to try where a step that failed seems to have found a disk full.
fn space(store: &Store, tail: &[u8]) -> Option<String> {
    let free = store.free_space();
    if free.is_some_and(|free| free < NOTHING_FREE) {
        return Some(format!("the volume of the state directory is full: free space there, or run {PRUNE}"));
    }
    let free = free.filter(|_| says_full(tail))?;
    Some(format!(
        "the step found a file system full: the volume of the state directory ({} are free now: try {PRUNE}), \
         or a tmpfs mount of its own (`size=`)",
        ByteSize(free)
    ))
}

/// What to try where the kernel cannot run a step's program.
fn platform(ctx: &OpContext, exit: &Exit, tail: &[u8]) -> Option<String> {
    let said = String::from_utf8_lossy(tail).to_lowercase();
    // Of a shell that could not start another program it is 126.
    if exit.started && exit.code != 126 || !said.trim_end().ends_with("exec format error") {
        return None;
    }
    let here = Platform::host();
    let wanted = ctx.op.vertex.op.platform.as_ref();
    let wanted = wanted.map(|wanted| Platform::new(&wanted.os, &wanted.architecture, &wanted.variant));
    Some(match wanted.filter(|wanted| wanted.architecture != here.architecture) {
        Some(wanted) => format!(
            "the step is for {wanted} and this machine is {here}: register an emulator in binfmt_misc (the packages \
             qemu-user-static and binfmt-support do), or build on a machine of that platform"
        ),
        None => format!(
            "the program is for another platform than {here}, or a script without a `#!` line: see what the image's \
             base is (`FROM --platform`)"
        ),
    })
}

/// What to try where a step wanted ids of users that are not mapped.
fn ids(tail: &[u8]) -> Option<&'static str> {
    let said = String::from_utf8_lossy(tail).to_lowercase();
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    let wants_ids = |line: &str| {
        has(line, &["chown", "chgrp", "ownership"]) && line.contains("invalid argument")
            || has(line, &["setgroups", "set groups"]) && line.contains("operation not permitted")
    };
    said.lines().any(wants_ids).then_some(
        "steps have one id here: a range of the user in /etc/subuid and /etc/subgid, and `newuidmap`, give more; files get \
         other owners by `COPY --chown`, too",
    )
}
