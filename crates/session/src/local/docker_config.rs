//! Registry credentials from docker's `config.json`: its own entries and the credential helpers that it names.
//!
//! Nothing is cached: a build may outlast a login, so that every question reads the file and asks the helper anew. Errors
//! name files, hosts and helpers, never what they hold.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use base::{Fault, Kind, Secret};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::Credentials;
use crate::local::CredentialStore;

/// Docker Hub's entry is written under the address that it had in 2013.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What helpers say when they do not know a host (docker-credential-helpers' protocol).
const NOT_FOUND: &str = "credentials not found";
/// The user name that marks an identity token.
const TOKEN_USER: &str = "<token>";
/// Helpers that ask a cloud take seconds, ones that wait for a person would take for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// A helper's answer is a small document.
const HELPER_LIMIT: u64 = 1 << 20;

/// A docker configuration directory (`~/.docker`, `$DOCKER_CONFIG`).
#[derive(Clone, Debug)]
pub struct DockerConfig {
    dir: PathBuf,
    inline: Option<Secret>,
    search: Option<OsString>,
    patience: Duration,
}

/// Why credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not say what it should. The cause gives a place, not the text there.
    #[error("{origin}: {cause}")]
    Malformed {
        /// The file or variable.
        origin: String,
        /// What is wrong.
        cause: String,
    },
    /// A credential helper failed.
    #[error("credential helper `docker-credential-{helper}` for `{host}`: {cause}")]
    Helper {
        /// Its name in the configuration.
        helper: String,
        /// The host that it was asked for.
        host: String,
        /// How it failed.
        cause: String,
    },
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

/// Also accepts `null`, which some tools write for a host without an entry.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl DockerConfig {
    /// The directory that docker's client would use: `$DOCKER_CONFIG`, else `$HOME/.docker`. `get` reads a variable.
    pub fn default_dir(get: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        set("DOCKER_CONFIG").map(PathBuf::from).or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")))
    }

    /// A directory; it may be empty or missing.
    pub fn new(dir: impl Into<PathBuf>) -> DockerConfig {
        DockerConfig { dir: dir.into(), inline: None, search: None, patience: HELPER_TIMEOUT }
    }

    /// With the value of `$DOCKER_AUTH_CONFIG` (`{"auths": …}`), which goes before the file.
    #[must_use]
    pub fn with_inline(mut self, document: Option<Secret>) -> DockerConfig {
        self.inline = document.filter(|document| !document.expose().is_empty());
        self
    }

    /// With another `PATH` to look for helpers in.
    #[must_use]
    pub fn with_search_path(mut self, path: impl Into<OsString>) -> DockerConfig {
        self.search = Some(path.into());
        self
    }

    /// What logs in to a host such as `registry-1.docker.io` or `localhost:5000`. None is anonymous.
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, DockerConfigError> {
        let key = key_of(host);
        if let Some(inline) = &self.inline {
            let origin = "`DOCKER_AUTH_CONFIG`";
            let found = parse(inline.expose(), origin)?.entry(key, origin)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        let path = self.dir.join("config.json");
        let bytes = match tokio::fs::read(&path).await {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(DockerConfigError::Read { path, source }),
        };
        let origin = format!("`{}`", path.display());
        let document = parse(&bytes, &origin)?;
        if let Some(helper) = document.helper(key)
            && let Some(found) = self.ask_helper(helper, key).await?
        {
            return Ok(Some(found));
        }
        document.entry(key, &origin)
    }

    async fn ask_helper(&self, helper: &str, key: &str) -> Result<Option<Credentials>, DockerConfigError> {
        let fail = |cause: String| DockerConfigError::Helper { helper: helper.to_owned(), host: key.to_owned(), cause };
        if helper.contains('/') {
            return Err(fail("its name holds a slash".to_owned()));
        }
        let program = format!("docker-credential-{helper}");
        let mut command = Command::new(&program);
        if let Some(search) = &self.search {
            // `Command` searches the child's PATH.
            command.env("PATH", search);
        }
        let child = command
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => fail("no such program in `PATH`".to_owned()),
                _ => fail(format!("it does not start: {error}")),
            })?;
        let answer = match tokio::time::timeout(self.patience, talk(child, key)).await {
            Ok(answer) => answer.map_err(|error| fail(error.to_string()))?,
            Err(_) => return Err(fail(format!("no answer within {} s", self.patience.as_secs()))),
        };
        if !answer.success {
            let words = answer.words();
            return if words.contains(NOT_FOUND) { Ok(None) } else { Err(fail(words)) };
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Found {
            #[serde(default)]
            username: String,
            #[serde(default)]
            secret: String,
        }
        // Not quoted: it may hold the secret.
        let found: Found = serde_json::from_slice(&answer.stdout)
            .map_err(|_| fail("its answer is not the JSON it should be".to_owned()))?;
        Ok(login(found.username, found.secret))
    }
}

#[async_trait]
impl CredentialStore for DockerConfig {
    async fn get(&self, host: &str) -> Result<Option<Credentials>, Fault> {
        // Who asks says for which host.
        self.credentials(host).await.map_err(|error| Fault::because(Kind::User, "docker's configuration", error))
    }
}

impl Document {
    /// The helper in charge of a host. An empty name in `credHelpers` switches the general one off.
    fn helper(&self, key: &str) -> Option<&str> {
        let helper = self.cred_helpers.get(key).unwrap_or(&self.creds_store);
        (!helper.is_empty()).then_some(helper)
    }

    /// The host's entry: under its own name, else under any address of the same host.
    fn entry(&self, key: &str, origin: &str) -> Result<Option<Credentials>, DockerConfigError> {
        let exact = self.auths.get_key_value(key);
        let found = exact.or_else(|| self.auths.iter().find(|(address, _)| host_of(address) == host_of(key)));
        let Some((address, entry)) = found else { return Ok(None) };
        entry.credentials().map_err(|cause| DockerConfigError::Malformed {
            origin: origin.to_owned(),
            cause: format!("entry of `{address}`: {cause}"),
        })
    }
}

impl Entry {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::Bearer(Secret::new(self.registrytoken.as_str()))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::Refresh(Secret::new(self.identitytoken.as_str()))));
        }
        if self.auth.is_empty() {
            return Ok(login(self.username.clone(), self.password.clone()));
        }
        /// Hand-written secrets often lack the padding.
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let bytes = LENIENT.decode(self.auth.trim()).map_err(|_| "`auth` is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "`auth` is not text")?;
        let (user, password) = text.split_once(':').ok_or("`auth` is not `user:password` in base64")?;
        if user.is_empty() {
            return Err("`auth` names no user");
        }
        Ok(login(user.to_owned(), password.trim_matches('\0').to_owned()))
    }
}

fn login(username: String, secret: String) -> Option<Credentials> {
    match (username.as_str(), secret.is_empty()) {
        (_, true) => None,
        (TOKEN_USER | "", false) => Some(Credentials::Refresh(Secret::new(secret))),
        (_, false) => Some(Credentials::Basic { username, password: Secret::new(secret) }),
    }
}

fn parse(bytes: &[u8], origin: &str) -> Result<Document, DockerConfigError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Document::default());
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json quotes values of a wrong type: only the place is told.
        let cause = format!("malformed at line {} column {}", error.line(), error.column());
        DockerConfigError::Malformed { origin: origin.to_owned(), cause }
    })
}

/// How docker's client files a host.
fn key_of(host: &str) -> &str {
    match host {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB_KEY,
        other => other,
    }
}

/// `https://host:port/v1/` is `host:port`.
fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

struct HelperAnswer {
    success: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl HelperAnswer {
    /// What a failed helper says: on stdout by the protocol, on stderr by habit.
    fn words(&self) -> String {
        const LONGEST: usize = 200;
        let line = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.trim().lines().next().unwrap_or_default().chars().take(LONGEST).collect::<String>()
        };
        let text = [line(&self.stdout), line(&self.stderr)].into_iter().find(|text| !text.is_empty());
        match text {
            // A document may hold what must not be shown, whatever the exit code says.
            Some(text) if text.starts_with('{') => "it failed".to_owned(),
            Some(text) => text,
            None => "it failed without a word".to_owned(),
        }
    }
}

async fn talk(mut child: Child, key: &str) -> io::Result<HelperAnswer> {
    let pipe = || io::Error::other("its pipes are missing");
    let mut stdin = child.stdin.take().ok_or_else(pipe)?;
    let stdout = child.stdout.take().ok_or_else(pipe)?;
    let stderr = child.stderr.take().ok_or_else(pipe)?;
    let ask = async {
        // A helper that does not read its input may still answer or fail in its own words.
        let _ = stdin.write_all(key.as_bytes()).await;
        drop(stdin);
    };
    let read = |pipe: Box<dyn tokio::io::AsyncRead + Send + Unpin>| async {
        let mut bytes = Vec::new();
        pipe.take(HELPER_LIMIT).read_to_end(&mut bytes).await.map(|_| bytes)
    };
    let ((), stdout, stderr) = tokio::join!(ask, read(Box::new(stdout)), read(Box::new(stderr)));
    let status = child.wait().await?;
    Ok(HelperAnswer { success: status.success(), stdout: stdout?, stderr: stderr? })
}

#[cfg(test)]
mod tests;
