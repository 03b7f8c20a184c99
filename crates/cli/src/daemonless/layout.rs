//! `type=oci,tar=false` by a daemon: it sends blobs into our directory, and we note there what the image is called.
//!
//! Without a daemon the exporter writes the directory itself.

use std::sync::Arc;

use base::{Fault, Kind};
use base64::Engine as _;
use engine::SolveResponse;
use session::Output;
use session::local::{LocalCache, LocalSession};

use crate::spec::output::Export;

/// The directory that gets an image.
pub struct ImageLayout(Option<Arc<LocalCache>>);

/// Answered by exporters: the image's descriptor, in base64.
const DESCRIPTOR: &str = "containerimage.descriptor";
/// Its names.
const NAMES: &str = "image.name";

impl ImageLayout {
    /// The directory among the outputs.
    pub fn of(exports: &[Export]) -> ImageLayout {
        ImageLayout(dirs(exports).next().map(|dir| Arc::new(LocalCache::new(dir))))
    }

    /// Refuses what the protocol has no room for: a daemon cannot tell a second directory from the first.
    pub fn check(exports: &[Export]) -> Result<(), Fault> {
        match dirs(exports).count() {
            0 | 1 => Ok(()),
            _ => Err(Fault::user("a daemon writes one output with tar=false, not several")
                .hint("write the others as archives, without tar=false")),
        }
    }

    /// Lets the daemon have it.
    pub fn add_to(&self, session: LocalSession) -> LocalSession {
        match &self.0 {
            Some(layout) => session.with_export_store(layout.clone()),
            None => session,
        }
    }

    /// Names what a daemon wrote.
    pub fn name(&self, response: &SolveResponse) -> Result<(), Fault> {
        let answers = &response.exporter_response;
        let (Some(layout), Some(descriptor)) = (&self.0, answers.get(DESCRIPTOR)) else { return Ok(()) };
        let names = answers.get(NAMES).map(String::as_str).unwrap_or_default();
        let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        layout.name(read(descriptor)?, &names)
    }
}

fn dirs(exports: &[Export]) -> impl Iterator<Item = &std::path::PathBuf> {
    exports.iter().filter_map(|export| match (&*export.request.kind, &export.output) {
        ("oci" | "docker", Output::Directory(dir)) => Some(dir),
        _ => None,
    })
}

fn read(descriptor: &str) -> Result<serde_json::Value, Fault> {
    let json = base64::engine::general_purpose::STANDARD.decode(descriptor).unwrap_or_default();
    serde_json::from_slice(&json)
        .map_err(|e| Fault::because(Kind::Remote, "the daemon's description of the image is malformed", e))
}
