//! `.token_seed` beside docker's `config.json`: a secret for each registry, of which a client's keys for tokens are made.
//! BuildKit's clients keep theirs there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

const FILE: &str = ".token_seed";
const LOCK: &str = ".token_seed.lock";
const BYTES: usize = 16;
/// A few registries, a line each.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Default, Deserialize, Serialize)]
struct Seed {
    #[serde(rename = "Seed")]
    base64: String,
}

/// The seeds of a client.
pub struct TokenSeeds {
    dir: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Seed>>,
}

impl TokenSeeds {
    /// Those in docker's directory; without one they are for this process alone.
    pub fn new(dir: Option<PathBuf>) -> TokenSeeds {
        TokenSeeds { dir, known: Mutex::default() }
    }

    /// The seed for a host, which is kept where that is possible. Blocks.
    pub fn get(&self, host: &str) -> Vec<u8> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let decode = |seed: &Seed| STANDARD.decode(&seed.base64).ok().filter(|bytes| bytes.len() >= BYTES);
        if let Some(bytes) = known.get(host).and_then(decode) {
            return bytes;
        }
        // Others may make seeds at the same time.
        let _lock = self.lock();
        known.extend(self.read());
        if let Some(bytes) = known.get(host).and_then(decode) {
            return bytes;
        }
        let bytes = base::Digest::of(crate::random_id()).as_bytes()[..BYTES].to_vec();
        known.insert(host.to_owned(), Seed { base64: STANDARD.encode(&bytes) });
        if let Err(error) = self.write(&known) {
            tracing::debug!(%error, "the seed of tokens is not kept");
        }
        bytes
    }

    /// Held until it is dropped. A directory that cannot be written needs none.
    fn lock(&self) -> Option<fs::File> {
        let dir = self.dir.as_ref()?;
        fs::create_dir_all(dir).ok()?;
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOCK)).ok()?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).ok()?;
        Some(file)
    }

    fn read(&self) -> BTreeMap<String, Seed> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let file = self.dir.as_ref().and_then(|dir| fs::File::open(dir.join(FILE)).ok());
        let read = file.is_some_and(|file| file.take(MAX_FILE).read_to_end(&mut bytes).is_ok());
        // What is not whole is of a client that was killed.
        if read { serde_json::from_slice(&bytes).unwrap_or_default() } else { BTreeMap::new() }
    }

    fn write(&self, known: &BTreeMap<String, Seed>) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let mut file =
            fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(dir.join(FILE))?;
        file.write_all(&serde_json::to_vec_pretty(known)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_last_and_differ() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let open = || TokenSeeds::new(Some(dir.path().to_owned()));
        let seeds = open();
        let one = seeds.get("one");
        assert_eq!(one.len(), BYTES);
        assert_ne!(one, seeds.get("two"));
        assert_eq!(one, seeds.get("one"));
        assert_eq!(one, open().get("one"), "the next client has it, too");
        let theirs = r#"{"one": {"Seed": "AAECAwQFBgcICQoLDA0ODw=="}}"#;
        fs::write(dir.path().join(FILE), theirs).expect("scratch is writable");
        assert_eq!(open().get("one"), (0..16).collect::<Vec<u8>>(), "BuildKit's file");
        assert_eq!(seeds.get("two"), seeds.get("two"));
        let nowhere = TokenSeeds::new(Some(dir.path().join(FILE).join("below a file")));
        assert_eq!(nowhere.get("one"), nowhere.get("one"), "without a file they last as long as the process");
    }
}
