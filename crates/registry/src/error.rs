//! What can go wrong with a registry, told apart as far as callers act on it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use base::Digest;
use bytes::Bytes;
use http::StatusCode;
use http_client::Response;
use serde::Deserialize;

use crate::auth::BoxError;

/// As much of an error document as is read.
const ERROR_LIMIT: usize = 16 << 10;

/// A pull, push or login failed. Texts hold no credentials.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry, or its token server, answered and said no.
    #[error("{0}")]
    Answer(Box<Answer>),
    /// No answer.
    #[error("{subject}")]
    Transport {
        /// What was wanted.
        subject: String,
        /// Why there was none.
        #[source]
        source: http_client::Error,
    },
    /// The bytes are not those of the digest.
    #[error("{subject}: `{host}` sent bytes of digest {found}")]
    BadDigest {
        /// What was wanted.
        subject: String,
        /// Who sent them.
        host: String,
        /// Their digest.
        found: Digest,
    },
    /// There are more or fewer bytes than the descriptor says.
    #[error("{subject}: `{host}` sent {found} bytes instead of {expected}")]
    BadSize {
        /// What was wanted.
        subject: String,
        /// Who sent them.
        host: String,
        /// By the descriptor.
        expected: u64,
        /// What came or was announced.
        found: u64,
    },
    /// The transfer broke off again and again.
    #[error("{subject}: `{host}` broke off after {received} of {expected} bytes: {cause}")]
    Truncated {
        /// What was wanted.
        subject: String,
        /// Who sent it.
        host: String,
        /// Bytes that came.
        received: u64,
        /// By the descriptor.
        expected: u64,
        /// The last failure.
        cause: String,
    },
    /// The answer makes no sense.
    #[error("{subject}: bad answer of `{host}`: {cause}")]
    Malformed {
        /// What was wanted.
        subject: String,
        /// Who answered.
        host: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Something that we do not do.
    #[error("{subject}: {what}")]
    Unsupported {
        /// What was wanted.
        subject: String,
        /// What is not supported, and what is.
        what: String,
    },
    /// The credentials for a host could not be had.
    #[error("cannot get credentials for `{host}`")]
    Credentials {
        /// The host that asked for them.
        host: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The blob to push could not be read.
    #[error("cannot read {subject}")]
    Source {
        /// What was to be pushed.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The registry failed, and before it its mirrors.
    #[error("{subject}: {}{mirrors}; {}", verdict(self.is_missing()), registry.summary_without(subject))]
    Everywhere {
        /// What was wanted.
        subject: String,
        /// What came of its mirrors, in their order.
        mirrors: String,
        /// Whether one of them answered that it has no such thing.
        missed: bool,
        /// The registry's own failure, which is the one that counts.
        registry: Box<Error>,
    },
    /// A directory of certificates could not be read.
    #[error("cannot read `{}`", path.display())]
    Config {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was wanted: `docker.io/library/x:latest`.
    pub subject: String,
    /// Who answered.
    pub host: String,
    /// Whether that is the registry itself.
    pub role: Role,
    /// The status.
    pub status: StatusCode,
    /// The registry's code, such as `MANIFEST_UNKNOWN`; empty if it gave none.
    pub code: String,
    /// The registry's message; empty if it gave none.
    pub message: String,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
    /// The host for which a login was looked for, and there is none.
    pub without_login: Option<String>,
}

/// What a host is to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The registry of the image's name.
    Registry,
    /// A mirror of it.
    Mirror,
    /// The server that issues its tokens.
    TokenServer,
    /// A URL that the manifest names for a layer.
    ForeignUrl,
    /// Where a redirect of the registry or mirror leads, or where it wants blobs uploaded. No login goes there.
    Elsewhere,
}

/// Whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// No or wrong credentials.
    Unauthorised,
    /// Good credentials without the right.
    Denied,
    /// No such repository, tag or blob.
    NotFound,
    /// Too many requests.
    RateLimited,
    /// No answer, or 5xx.
    Unavailable,
    /// Bytes do not match their digest or size.
    BadDigest,
    /// More than the registry takes, or than we take.
    TooLarge,
    /// The transfer broke off.
    Truncated,
    /// Something that we, or the registry, do not do.
    Unsupported,
    /// The request or the answer makes no sense.
    Invalid,
    /// This machine: files, certificates, credential helpers.
    Local,
}

impl Error {
    /// Whose move it is.
    pub fn class(&self) -> Class {
        match self {
            Error::Answer(answer) => answer.class(),
            Error::Everywhere { registry, .. } => registry.class(),
            Error::Transport { source, .. } => match source {
                http_client::Error::TooLarge { .. } => Class::TooLarge,
                http_client::Error::Redirect { .. } => Class::Invalid,
                http_client::Error::Connect { .. }
                | http_client::Error::Timeout { .. }
                | http_client::Error::Interrupted { .. } => Class::Unavailable,
                http_client::Error::Certificate { .. }
                | http_client::Error::Proxy { .. }
                | http_client::Error::Setup(_)
                | http_client::Error::Source(_) => Class::Local,
            },
            Error::BadDigest { .. } | Error::BadSize { .. } => Class::BadDigest,
            Error::Truncated { .. } => Class::Truncated,
            Error::Malformed { .. } => Class::Invalid,
            Error::Unsupported { .. } => Class::Unsupported,
            Error::Credentials { .. } | Error::Source { .. } | Error::Config { .. } => Class::Local,
        }
    }

    /// Whether the registry has no such thing.
    pub fn is_not_found(&self) -> bool {
        self.class() == Class::NotFound
    }

    /// Whether a mirror has no such thing, and the registry itself could not be asked.
    pub fn is_missed_by_mirrors(&self) -> bool {
        matches!(self, Error::Everywhere { missed: true, registry, .. } if registry.class() == Class::Unavailable)
    }

    /// Whether what was wanted is nowhere, as far as anybody answered.
    fn is_missing(&self) -> bool {
        match self {
            Error::Answer(answer) => answer.is_missing(),
            Error::Everywhere { registry, .. } => registry.is_missing() || self.is_missed_by_mirrors(),
            _ => false,
        }
    }

    /// Whether one side's certificate is not one that the other trusts.
    pub fn is_certificate(&self) -> bool {
        self.failed_to_connect(http_client::ConnectFailure::Certificate)
    }

    /// Whether HTTPS was spoken to a server that has no TLS.
    pub fn is_not_tls(&self) -> bool {
        self.failed_to_connect(http_client::ConnectFailure::NotTls)
    }

    /// Whether nobody answers to the name, or at the port.
    pub fn is_out_of_reach(&self) -> bool {
        self.failed_to_connect(http_client::ConnectFailure::UnknownHost)
            || self.failed_to_connect(http_client::ConnectFailure::Refused)
    }

    /// Whether a host said no to which a redirect leads, and whom no login is told.
    pub fn is_refused_elsewhere(&self) -> bool {
        match self {
            Error::Answer(answer) => {
                answer.role == Role::Elsewhere && matches!(answer.class(), Class::Unauthorised | Class::Denied)
            }
            Error::Everywhere { registry, .. } => registry.is_refused_elsewhere(),
            _ => false,
        }
    }

    /// What to try where a proxy is in the way.
    pub fn proxy_hint(&self) -> Option<&'static str> {
        match self {
            Error::Transport { source, .. } => source.proxy_hint(),
            Error::Everywhere { registry, .. } => registry.proxy_hint(),
            _ => None,
        }
    }

    fn failed_to_connect(&self, step: http_client::ConnectFailure) -> bool {
        match self {
            Error::Transport { source, .. } => source.connect_failure() == Some(step),
            Error::Everywhere { registry, .. } => registry.failed_to_connect(step),
            _ => false,
        }
    }

    /// The whole chain in one line.
    pub fn summary(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// The same without what was wanted, for who has said that already.
    pub(crate) fn summary_without(&self, subject: &str) -> String {
        let text = self.summary();
        let rest = text.strip_prefix(subject).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&text);
        rest.strip_prefix(NOT_FOUND).unwrap_or(rest).to_owned()
    }

    /// What makes no sense in an answer.
    pub(crate) fn malformed(&self) -> Option<&str> {
        match self {
            Error::Malformed { cause, .. } => Some(cause),
            _ => None,
        }
    }

    /// Whether the same transfer may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Error::Answer(answer) => matches!(answer.class(), Class::RateLimited | Class::Unavailable),
            Error::Transport { source, .. } => source.is_transient(),
            Error::Everywhere { registry, .. } => registry.is_transient(),
            _ => false,
        }
    }
}

impl Answer {
    /// Whose move it is: by the registry's code where it gives one, else by the status.
    pub fn class(&self) -> Class {
        match (self.code.as_str(), self.status.as_u16()) {
            ("TOOMANYREQUESTS", _) | (_, 429) => Class::RateLimited,
            ("DENIED", _) => Class::Denied,
            ("UNAUTHORIZED", _) | (_, 401) => Class::Unauthorised,
            ("DIGEST_INVALID" | "SIZE_INVALID", _) => Class::BadDigest,
            ("NAME_UNKNOWN" | "MANIFEST_UNKNOWN" | "BLOB_UNKNOWN" | "BLOB_UPLOAD_UNKNOWN", _) => Class::NotFound,
            ("UNSUPPORTED", _) => Class::Unsupported,
            (_, 403) => Class::Denied,
            (_, 404 | 410) => Class::NotFound,
            (_, 413) => Class::TooLarge,
            (_, 405 | 501) => Class::Unsupported,
            (_, 408 | 500..) => Class::Unavailable,
            _ => Class::Invalid,
        }
    }

    fn is_missing(&self) -> bool {
        self.class() == Class::NotFound && matches!(self.role, Role::Registry | Role::Mirror)
    }

    /// Reads what an answer says about itself.
    pub(crate) async fn read(subject: &str, host: &str, role: Role, response: Response) -> Box<Answer> {
        let status = response.status();
        let retry_after = response.retry_after();
        let (code, message) = parse_document(&response.bytes_lossy(ERROR_LIMIT).await);
        Box::new(Answer {
            subject: subject.to_owned(),
            host: host.to_owned(),
            role,
            status,
            code,
            message,
            retry_after,
            without_login: None,
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Answer { subject, host, status, .. } = self;
        write!(f, "{subject}: {}", verdict(self.is_missing()))?;
        match self.role {
            Role::Registry => write!(f, "registry answered {}", status.as_u16())?,
            Role::Mirror => write!(f, "mirror `{host}` answered {}", status.as_u16())?,
            Role::TokenServer => write!(f, "token server `{host}` answered {}", status.as_u16())?,
            Role::ForeignUrl => write!(f, "`{host}` answered {}", status.as_u16())?,
            Role::Elsewhere => write!(f, "`{host}`, where a redirect leads, answered {}", status.as_u16())?,
        }
        let code = self.code.to_ascii_lowercase().replace('_', " ");
        let message = self.message.trim();
        match (code.is_empty(), message.is_empty()) {
            (true, true) => {
                write!(f, " ({})", status.canonical_reason().unwrap_or("unknown status").to_ascii_lowercase())
            }
            (false, true) => write!(f, " ({code})"),
            (true, false) => write!(f, " ({message})"),
            (false, false) if message.to_ascii_lowercase().starts_with(&code) => write!(f, " ({message})"),
            (false, false) => write!(f, " ({code}: {message})"),
        }?;
        match &self.without_login {
            Some(host) if matches!(self.class(), Class::Unauthorised | Class::Denied) => {
                write!(f, "; no login for `{host}` was found")
            }
            _ => Ok(()),
        }
    }
}

/// What pipelines look for in the error of a missing image.
const NOT_FOUND: &str = "not found: ";

/// What the answers come to, before they are told.
fn verdict(is_missing: bool) -> &'static str {
    if is_missing { NOT_FOUND } else { "" }
}

/// Code and message of an error document: the distribution API's `errors`, the token servers' variants, or plain text.
fn parse_document(bytes: &Bytes) -> (String, String) {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Document {
        errors: Vec<Item>,
        // Token servers: Docker Hub says `details`, Quay and OAuth `error`, others `message`.
        details: String,
        message: String,
        error: serde_json::Value,
        error_description: String,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Item {
        code: String,
        message: String,
        detail: serde_json::Value,
    }
    let Ok(document) = serde_json::from_slice::<Document>(bytes) else {
        return (String::new(), first_line(bytes));
    };
    if let Some(item) = document.errors.into_iter().next() {
        let detail = item.detail.as_str().unwrap_or_default();
        let message = if item.message.is_empty() { detail.to_owned() } else { item.message };
        return (item.code, one_line(&message));
    }
    let error = document.error.as_str().unwrap_or_default().to_owned();
    let texts = [document.error_description, document.details, document.message, error];
    (String::new(), one_line(texts.iter().find(|text| !text.is_empty()).map_or("", String::as_str)))
}

/// Plain-text bodies help, HTML pages do not.
fn first_line(bytes: &Bytes) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.trim_start().starts_with('<') => one_line(text.trim().lines().next().unwrap_or_default()),
        _ => String::new(),
    }
}

fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect::<String>().trim().to_owned()
}
