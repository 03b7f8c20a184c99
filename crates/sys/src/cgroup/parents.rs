//! Which parents steps asked for, so that a successor knows where to look for leftovers, and which of them we made.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::Error;

/// The longest name of a parent, and of one part of it.
const LONGEST: usize = 1024;
const LONGEST_PART: usize = 255;
/// How many are kept. In others leftovers stay.
const MOST: usize = 1000;

/// The name of a parent as a path below the top of a hierarchy, out of which it does not lead.
pub(super) fn normal(parent: &str) -> Result<String, Error> {
    let mut inside: Vec<&str> = Vec::new();
    for part in parent.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(inside.pop()),
            name => inside.push(name),
        }
    }
    let is_absurd =
        parent.len() > LONGEST || parent.contains(['\n', '\0']) || inside.iter().any(|part| part.len() > LONGEST_PART);
    match is_absurd {
        true => Err(Error::call("use the name of the cgroup parent", Errno::INVAL)),
        false => Ok(format!("/{}", inside.join("/"))),
    }
}

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
        let used = used.lines().filter(|line| !line.is_empty()).filter_map(|line| normal(line).ok()).collect();
        // Where it cannot be written, leftovers of ours stay; no reason not to run steps.
        let _ = fs::write(&file, "");
        (Parents { file: Some(file), known: Mutex::default() }, used)
    }

    /// Writes one down, which is [`normal`], when there is a group in it.
    pub(super) fn add(&self, parent: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST || !known.insert(parent.to_owned()) {
            return;
        }
        let Some(file) = &self.file else { return };
        let file = fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(format!("{parent}\n").as_bytes()));
    }
}

/// Parents that were not there before steps asked for them: they go with the last step below.
#[derive(Clone, Debug, Default)]
pub(super) struct Made(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Made {
    /// Nobody else makes or removes any while this is held.
    pub(super) fn hold(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what of `parents`, below the tops that come with them, is not there yet.
    pub(super) fn note(&self, held: &mut BTreeSet<PathBuf>, parents: Vec<(&Path, PathBuf)>) -> Above {
        for (top, parent) in &parents {
            let missing = parent.ancestors().take_while(|dir| dir != top && !dir.exists());
            held.extend(missing.map(Path::to_owned));
        }
        Above { made: self.clone(), parents: parents.into_iter().map(|(_, parent)| parent).collect() }
    }
}

/// The parents of one group. When dropped, those that we made and that are empty go.
#[derive(Debug)]
pub(super) struct Above {
    made: Made,
    parents: Vec<PathBuf>,
}

impl Drop for Above {
    fn drop(&mut self) {
        let mut made = self.made.hold();
        for dir in self.parents.iter().flat_map(|parent| parent.ancestors()) {
            if !made.contains(dir) {
                continue;
            }
            match fs::remove_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {}
                _ => drop(made.remove(dir)),
            }
        }
    }
}
