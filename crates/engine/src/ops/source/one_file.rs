//! One file as a tree of its own: what a download and a blob become.

use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, fchown};
use std::path::Path;

use base::report::Task;
use base::{Cancel, Digest, Fault, Kind};
use rustix::fs::{Mode, Timespec, Timestamps};
use store::Store;

use super::identifier::bad;
use crate::core::store_fault;

/// What the file is like.
#[derive(Clone, Debug, Default)]
pub(super) struct OneFile {
    /// A name, not a path.
    pub(super) name: String,
    /// Its permissions; 0 for the usual ones.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
}

/// Why it could not be written.
pub(super) enum Trouble {
    /// What it is made of cannot be read.
    Read(io::Error),
    Other(Fault),
}

impl OneFile {
    /// Writes it into a directory of the store: what it is made of comes only once, so it makes its own room. Answers what it
    /// digests to. Blocks; for a thread.
    pub(super) fn write(
        &self,
        store: &Store,
        dir: &Path,
        content: &mut dyn Read,
        task: &mut Task,
        cancel: &Cancel,
    ) -> Result<Digest, Trouble> {
        let failed = |e: io::Error| {
            let full = store::is_full(&e);
            let fault = Fault::because(Kind::Environment, "cannot keep a file", e);
            Trouble::Other(if full { fault.hint(base::hint::no_space()) } else { fault })
        };
        let path = dir.join(&self.name);
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let (mut hasher, mut written) = (Digest::hasher(), 0);
        let mut buffer = vec![0; 64 << 10];
        loop {
            cancel.check().map_err(|_| Trouble::Other(Fault::cancelled()))?;
            let count = content.read(&mut buffer).map_err(Trouble::Read)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            let kept = store.write_all_at((&file, &path), &buffer[..count], written, 0);
            kept.map_err(|e| Trouble::Other(store_fault("cannot keep a file", e)))?;
            written += count as u64;
            task.at(written);
        }
        if (self.uid, self.gid) != (0, 0) {
            fchown(&file, Some(self.uid), Some(self.gid)).map_err(failed)?;
        }
        let mode = Mode::from_raw_mode(if self.mode == 0 { 0o600 } else { self.mode });
        rustix::fs::fchmod(&file, mode).map_err(|errno| failed(errno.into()))?;
        let time = Timespec { tv_sec: self.modified, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&file, &times).map_err(|errno| failed(errno.into()))?;
        Ok(hasher.finish())
    }
}

/// The last part of a path, as something that can be the name of a file.
pub(super) fn safe_name(text: &str) -> String {
    const OTHERWISE: &str = "download";
    let name = text.trim().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match name {
        "" | "." | ".." => OTHERWISE.to_owned(),
        name if name.chars().any(char::is_control) || name.len() > 255 => OTHERWISE.to_owned(),
        name => name.to_owned(),
    }
}

/// A number as Go reads one: with a base in front, or decimal.
pub(super) fn number(key: &str, value: &str) -> Result<u32, Fault> {
    let parsed = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => match value.strip_prefix("0o").or_else(|| value.strip_prefix('0').filter(|rest| !rest.is_empty())) {
            Some(octal) => u32::from_str_radix(octal, 8),
            None => value.parse(),
        },
    };
    parsed.map_err(|_| bad(key, value, "not a number"))
}
