//! `buildctl debug dump-llb|dump-metadata`: what lies in files, without asking a daemon.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use base::{Fault, Kind};
use clap::Args;

use crate::environment::Environment;

/// Print an LLB definition, an op a line. Asks no daemon.
#[derive(Debug, Args)]
pub(super) struct DumpLlb {
    /// A file with the definition [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A graph in the language of Graphviz
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    dot: bool,
}

/// Print the metadata of a state directory that no daemon has open.
#[derive(Debug, Args)]
pub(super) struct DumpMetadata {
    /// The state directory [default: the one that buildkitd would use]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

impl DumpLlb {
    pub(super) fn print(&self) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        let (read, name) = match self.file.as_deref().filter(|file| !matches!(file.to_str(), Some("" | "-"))) {
            Some(file) => (std::fs::read(file).map(|content| bytes = content), format!("`{}`", file.display())),
            None => (std::io::stdin().read_to_end(&mut bytes).map(drop), "standard input".to_owned()),
        };
        read.map_err(|error| Fault::because(Kind::User, format!("cannot read {name}"), error))?;
        let malformed = |error| Fault::because(Kind::User, format!("{name} is no LLB definition"), error);
        let definition = proto::read_definition(&bytes).map_err(malformed)?;
        let text = if self.dot { llb::json::dot(&definition) } else { llb::json::lines(&definition) };
        crate::print(&text.map_err(malformed)?)
    }
}

impl DumpMetadata {
    pub(super) fn print(&self, environment: &Environment) -> Result<(), Fault> {
        let root = self.root.clone().filter(|root| !root.as_os_str().is_empty());
        let dir = root.unwrap_or_else(|| environment.default_root()).join("hullworks");
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut line = |text: &str| writeln!(out, "{text}");
        let dumped = line(&format!("===== {} =====", dir.join("metadata.db").display()))
            .map_err(super::stdout_failed)
            .and_then(|()| {
                let dumped = store::dump(&dir, &mut line);
                dumped.map_err(|error| {
                    Fault::because(Kind::Environment, format!("cannot read the metadata in `{}`", dir.display()), error)
                })
            });
        dumped.and_then(|()| out.flush().map_err(super::stdout_failed))
    }
}
