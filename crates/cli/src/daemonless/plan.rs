//! What a client asks of one build, whichever command line it was written in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Fault, Kind};
use engine::{CacheOptions, Entitlement, Frontend};
use proto::moby::buildkit::v1::sourcepolicy::Policy;
use session::local::{SecretSource, SshSource};

use super::answer::Call;
use crate::display::Mode;
use crate::spec::output::Export;

/// One build.
pub struct BuildPlan {
    /// What makes the LLB.
    pub frontend: Frontend,
    /// What happens with the result.
    pub exports: Vec<Export>,
    /// Caches to read.
    pub cache_imports: Vec<CacheOptions>,
    /// Caches to write.
    pub cache_exports: Vec<CacheOptions>,
    /// Rights that the build asks for.
    pub entitlements: Vec<Entitlement>,
    /// Which sources may be used, and which in the place of others.
    pub source_policy: Option<Policy>,
    /// Shared directories by name.
    pub dirs: BTreeMap<String, PathBuf>,
    /// OCI layouts by name.
    pub layouts: BTreeMap<String, PathBuf>,
    /// Secrets by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// SSH agents by id.
    pub agents: BTreeMap<String, SshSource>,
    /// What people see.
    pub mode: Mode,
    /// Whether warnings are shown once more at the end, with the lines that they are about.
    pub sum_up_warnings: bool,
    /// Where progress is written as JSON.
    pub trace: Option<PathBuf>,
    /// Where counts of what came from the cache are written.
    pub cache_metrics: Option<String>,
    /// Where the exporters' answers are written.
    pub metadata_file: Option<PathBuf>,
    /// Where the image's id is written.
    pub iid_file: Option<PathBuf>,
    /// Where the build's reference is written.
    pub ref_file: Option<PathBuf>,
    /// How the frontend's answer is shown, where it is asked something in the place of a build.
    pub call: Call,
    /// Print the image's id on standard output.
    pub print_id: bool,
    /// Directories that last as long as the build.
    pub scratch: Vec<Scratch>,
}

impl BuildPlan {
    /// A build that only runs.
    pub fn new(frontend: Frontend, mode: Mode) -> BuildPlan {
        BuildPlan {
            frontend,
            exports: Vec::new(),
            cache_imports: Vec::new(),
            cache_exports: Vec::new(),
            entitlements: Vec::new(),
            source_policy: None,
            dirs: BTreeMap::new(),
            layouts: BTreeMap::new(),
            secrets: BTreeMap::new(),
            agents: BTreeMap::new(),
            mode,
            sum_up_warnings: false,
            trace: None,
            cache_metrics: None,
            metadata_file: None,
            iid_file: None,
            ref_file: None,
            call: Call::default(),
            print_id: false,
            scratch: Vec::new(),
        }
    }
}

/// A directory that is removed with its last user, or where the process ends at once.
pub struct Scratch(PathBuf);

/// Those that there are.
static SCRATCHES: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl Scratch {
    /// An empty directory that only we can read.
    pub fn new() -> Result<Scratch, Fault> {
        let mut scratches = scratches();
        let made = tempfile::Builder::new().prefix("hullworks-").tempdir();
        let made = made.map_err(|e| Fault::because(Kind::Environment, "cannot make a temporary directory", e))?.keep();
        scratches.insert(made.clone());
        Ok(Scratch(made))
    }

    /// Puts a file into it.
    pub fn with_file(self, name: &str, content: &[u8]) -> Result<Scratch, Fault> {
        let path = self.0.join(name);
        std::fs::write(&path, content)
            .map_err(|error| Fault::because(Kind::Environment, format!("cannot write `{}`", path.display()), error))?;
        Ok(self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes all that there are, and has no more made: the process is about to end.
    pub fn remove_all() {
        /// Somebody may still write into one.
        const TRIES: usize = 1000;
        let scratches = scratches();
        for path in scratches.iter() {
            for _ in 0..TRIES {
                let _ = std::fs::remove_dir_all(path);
                if !path.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        std::mem::forget(scratches);
    }
}

fn scratches() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    SCRATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is no failure of the build.
        let _ = std::fs::remove_dir_all(&self.0);
        scratches().remove(&self.0);
    }
}
