//! A session in the same process: directories are read in place, secrets come from files and the
//! environment, credentials from docker's `config.json`.

mod cache;
pub mod docker_config;
mod layout;
pub mod ssh;
mod token_seed;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Fault, Kind, Secret};

pub use cache::LocalCache;
pub use layout::Layout;
pub use ssh::SshSource;
pub use token_seed::TokenSeeds;

use crate::{Agent, Blobs, CacheDir, Credentials, LocalDir, Output, Session};

/// The largest secret that is accepted, as in BuildKit.
pub const MAX_SECRET_BYTES: u64 = 500 * 1024;

/// Where the value of a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Read when a step asks for it, so that rotated files are seen.
    File(PathBuf),
    /// Given when the build started (a value of the environment).
    Value(Secret),
}

/// A client in the same process. Build it up, then share it as a [`Session`].
pub struct LocalSession {
    id: String,
    dirs: BTreeMap<String, PathBuf>,
    layouts: BTreeMap<String, Layout>,
    caches: BTreeMap<String, Arc<LocalCache>>,
    secrets: BTreeMap<String, SecretSource>,
    agents: BTreeMap<String, SshSource>,
    outputs: Vec<Output>,
    export_store: Option<Arc<LocalCache>>,
    credentials: Box<dyn CredentialStore>,
}

/// Looks up registry credentials; docker's `config.json` in real life.
#[async_trait]
pub trait CredentialStore: Send + Sync {
    /// What logs in to `host`. None is anonymous.
    async fn get(&self, host: &str) -> Result<Option<Credentials>, Fault>;
}

/// Knows no credentials.
#[derive(Debug, Default, Clone, Copy)]
pub struct Anonymous;

#[async_trait]
impl CredentialStore for Anonymous {
    async fn get(&self, _: &str) -> Result<Option<Credentials>, Fault> {
        Ok(None)
    }
}

impl LocalSession {
    /// A session that shares nothing yet. `id` must differ from that of every other session.
    pub fn new(id: impl Into<String>) -> LocalSession {
        LocalSession {
            id: id.into(),
            dirs: BTreeMap::new(),
            layouts: BTreeMap::new(),
            caches: BTreeMap::new(),
            secrets: BTreeMap::new(),
            agents: BTreeMap::new(),
            outputs: Vec::new(),
            export_store: None,
            credentials: Box::new(Anonymous),
        }
    }

    /// Shares a directory.
    #[must_use]
    pub fn with_dir(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.dirs.insert(name.into(), path.into());
        self
    }

    /// Offers an OCI layout.
    #[must_use]
    pub fn with_layout(mut self, name: impl Into<String>, layout: Layout) -> Self {
        self.layouts.insert(name.into(), layout);
        self
    }

    /// Offers a directory with caches.
    #[must_use]
    pub fn with_cache(mut self, dir: impl Into<String>, cache: Arc<LocalCache>) -> Self {
        self.caches.insert(dir.into(), cache);
        self
    }

    /// Offers a secret.
    #[must_use]
    pub fn with_secret(mut self, id: impl Into<String>, source: SecretSource) -> Self {
        self.secrets.insert(id.into(), source);
        self
    }

    /// Lends an SSH agent.
    #[must_use]
    pub fn with_agent(mut self, id: impl Into<String>, source: SshSource) -> Self {
        self.agents.insert(id.into(), source);
        self
    }

    /// Says where the next export of the request goes: one call per export, in order.
    #[must_use]
    pub fn with_output(mut self, output: Output) -> Self {
        self.outputs.push(output);
        self
    }

    /// Takes images blob by blob.
    #[must_use]
    pub fn with_export_store(mut self, store: Arc<LocalCache>) -> Self {
        self.export_store = Some(store);
        self
    }

    /// Where credentials come from.
    #[must_use]
    pub fn with_credentials(mut self, store: impl CredentialStore + 'static) -> Self {
        self.credentials = Box::new(store);
        self
    }
}

#[async_trait]
impl Session for LocalSession {
    fn id(&self) -> &str {
        &self.id
    }

    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault> {
        Ok(self.dirs.get(name).cloned().map(LocalDir::InPlace))
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault> {
        match self.secrets.get(id) {
            None => Ok(None),
            Some(SecretSource::Value(secret)) => Ok(Some(secret.clone())),
            Some(SecretSource::File(path)) => read_secret(id, path).await.map(Some),
        }
    }

    async fn agent(&self, id: &str) -> Result<Option<Arc<dyn Agent>>, Fault> {
        Ok(self.agents.get(id).map(|source| Arc::new(source.clone()) as Arc<dyn Agent>))
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Fault> {
        self.credentials.get(host).await
    }

    async fn content(&self, name: &str) -> Result<Option<Arc<dyn Blobs>>, Fault> {
        Ok(self.layouts.get(name).map(|layout| Arc::new(layout.clone()) as Arc<dyn Blobs>))
    }

    async fn cache(&self, dir: &str) -> Result<Option<Arc<dyn CacheDir>>, Fault> {
        Ok(self.caches.get(dir).map(|cache| cache.clone() as Arc<dyn CacheDir>))
    }

    async fn export_store(&self) -> Result<Option<Arc<dyn CacheDir>>, Fault> {
        Ok(self.export_store.clone().map(|store| store as Arc<dyn CacheDir>))
    }

    async fn output(&self, index: usize) -> Result<Output, Fault> {
        Ok(self.outputs.get(index).cloned().unwrap_or(Output::None))
    }
}

async fn read_secret(id: &str, path: &std::path::Path) -> Result<Secret, Fault> {
    use tokio::io::AsyncReadExt as _;
    let doing = || format!("cannot read secret `{id}` from `{}`", path.display());
    let failed = |e: std::io::Error| Fault::because(Kind::User, doing(), e);
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    // A limited read, not a look at the size: the path may be a pipe.
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(Fault::user(format!("{}: larger than {} KiB", doing(), MAX_SECRET_BYTES / 1024)));
    }
    Ok(Secret::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_read_late_and_bounded() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("s");
        let session = LocalSession::new("s1")
            .with_secret("file", SecretSource::File(path.clone()))
            .with_secret("env", SecretSource::Value(Secret::new("v")));
        assert!(session.secret("file").await.expect_err("missing").to_string().contains("`file`"));
        std::fs::write(&path, "one").expect("scratch is writable");
        assert_eq!(session.secret("file").await.expect("readable"), Some(Secret::new("one")));
        std::fs::write(&path, vec![0; MAX_SECRET_BYTES as usize + 1]).expect("scratch is writable");
        assert!(session.secret("file").await.expect_err("too large").to_string().contains("500 KiB"));
        assert_eq!(session.secret("env").await.expect("a value"), Some(Secret::new("v")));
        assert_eq!(session.secret("other").await.expect("none"), None);
    }
}
