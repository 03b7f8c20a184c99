//! What can be wrong, and where.

use std::sync::Arc;

use base::{Fault, Kind, SourceFile, SourceSpan};

/// Why a Dockerfile does not become LLB.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Dockerfile is wrong, or says something that is not there yet.
    #[error("{}", .0.message)]
    Dockerfile(Box<Mistake>),
    /// A frontend option is wrong, or not there yet.
    #[error("option `{name}`{}{reason}", colon(reason))]
    Option {
        /// The option.
        name: String,
        /// What is wrong with it.
        reason: String,
        /// What to try.
        hint: Option<String>,
    },
    /// Somebody who was asked (a registry, the session) could not answer.
    #[error("{doing}")]
    Ask {
        /// What the answer was needed for.
        doing: String,
        /// The instruction that needs it.
        spans: Vec<SourceSpan>,
        /// What to try.
        hint: Option<String>,
        /// The answer.
        #[source]
        fault: Box<Fault>,
    },
    /// Nobody here knows what is asked for.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The builder was used wrongly: a mistake of ours.
    #[error("cannot make LLB")]
    Build(#[from] llb::build::Error),
}

/// What this frontend does not know; clients find out so what it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// `requestid`.
    #[error("unsupported request {0}")]
    Request(String),
    /// One of `frontend.caps`.
    #[error("unsupported frontend capability {0}")]
    Cap(String),
}

/// A mistake in a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// The lines to mark, the most telling ones first.
    pub spans: Vec<SourceSpan>,
    /// What to try.
    pub hint: Option<String>,
}

/// What stands between an option and what is wrong: nothing but a space where that is said of the option itself.
fn colon(reason: &str) -> &'static str {
    if reason.starts_with("is not ") { " " } else { ": " }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A mistake whose lines are added by [`at`](Error::at), where they are known.
    pub fn new(message: impl Into<String>) -> Error {
        Error::Dockerfile(Box::new(Mistake { message: message.into(), spans: Vec::new(), hint: None }))
    }

    /// A wrong option.
    pub fn option(name: &str, reason: impl Into<String>) -> Error {
        Error::Option { name: name.to_owned(), reason: reason.into(), hint: None }
    }

    /// Says where, unless it is known already.
    #[must_use]
    pub fn at(mut self, span: SourceSpan) -> Error {
        match &mut self {
            Error::Dockerfile(mistake) if mistake.spans.is_empty() => mistake.spans.push(span),
            Error::Ask { spans, .. } if spans.is_empty() => spans.push(span),
            _ => {}
        }
        self
    }

    /// Forgets where: the text was not written in this file.
    #[must_use]
    pub fn elsewhere(mut self) -> Error {
        match &mut self {
            Error::Dockerfile(mistake) => mistake.spans.clear(),
            Error::Ask { spans, .. } => spans.clear(),
            _ => {}
        }
        self
    }

    /// Adds a hint; the first one stays.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Error {
        match &mut self {
            Error::Dockerfile(mistake) => _ = mistake.hint.get_or_insert_with(|| text.into()),
            Error::Option { hint, .. } | Error::Ask { hint, .. } => _ = hint.get_or_insert_with(|| text.into()),
            Error::Unsupported(_) | Error::Build(_) => {}
        }
        self
    }

    /// Adds a hint that asks for the nearest of some names.
    #[must_use]
    pub fn suggest<'a>(self, typed: &str, names: impl IntoIterator<Item = &'a str>) -> Error {
        match base::suggest::likely(typed, names) {
            Some(name) => self.hint(format!("did you mean {name}?")),
            None => self,
        }
    }

    /// The lines to mark.
    pub fn spans(&self) -> &[SourceSpan] {
        match self {
            Error::Dockerfile(mistake) => &mistake.spans,
            Error::Ask { spans, .. } => spans,
            _ => &[],
        }
    }

    /// What to try.
    pub fn get_hint(&self) -> Option<&str> {
        match self {
            Error::Dockerfile(mistake) => mistake.hint.as_deref(),
            Error::Option { hint, .. } | Error::Ask { hint, .. } => hint.as_deref(),
            Error::Unsupported(_) | Error::Build(_) => None,
        }
    }

    /// The error as a user sees it, with the place in `file`.
    pub fn into_fault(self, file: Option<&Arc<SourceFile>>) -> Fault {
        let spans = self.spans().to_vec();
        let hint = self.get_hint().map(str::to_owned);
        let mut fault = match self {
            Error::Ask { doing, fault, .. } => fault.context(doing),
            Error::Unsupported(what @ Unsupported::Request(_)) => {
                Fault::because(Kind::User, "option `requestid`", what)
            }
            Error::Unsupported(what) => Fault::because(Kind::User, "option `frontend.caps`", what),
            Error::Build(error) => Fault::because(Kind::Internal, "cannot make LLB", error),
            other => Fault::user(other.to_string()),
        };
        if let Some(hint) = hint {
            // A name that was mistyped is no matter of credentials, which is what a registry's answer hints at.
            fault = fault.better_hint(hint);
        }
        match file {
            Some(file) if !spans.is_empty() => fault.at(file, &spans),
            _ => fault,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::Ask {
            doing: "cannot read the build's input".to_owned(),
            spans: Vec::new(),
            hint: None,
            fault: Box::new(fault),
        }
    }
}
