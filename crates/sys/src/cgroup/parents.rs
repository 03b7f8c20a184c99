//! Which parents steps asked for, so that a successor knows where to look for leftovers.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

/// A list in a file, one a line. Without a file nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Parents {
    file: Option<PathBuf>,
    known: Mutex<BTreeSet<String>>,
}

impl Parents {
    /// An empty list in `file`, and what stood there.
    pub(super) fn read(file: PathBuf) -> (Parents, Vec<String>) {
        let used = fs::read_to_string(&file).unwrap_or_default();
        let used = used.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        // Where it cannot be written, leftovers of ours stay; no reason not to run steps.
        let _ = fs::write(&file, "");
        (Parents { file: Some(file), known: Mutex::default() }, used)
    }

    /// Writes one down, before there is a group in it.
    pub(super) fn add(&self, parent: &str) {
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A line break would make two of it.
        if parent.contains('\n') || !known.insert(parent.to_owned()) {
            return;
        }
        let Some(file) = &self.file else { return };
        let file = fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(format!("{parent}\n").as_bytes()));
    }
}
