//! Misbehaviour on request.

use std::time::Duration;

use hyper::Method;

/// When to misbehave, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    method: Option<Method>,
    path: String,
    skip: usize,
    times: usize,
    action: Action,
}

/// How to misbehave.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answers with this instead of the truth.
    Answer {
        /// The status.
        status: u16,
        /// Further headers.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: String,
    },
    /// Drops the connection after so many bytes of the body.
    Cut(u64),
    /// Drops the connection after reading so many bytes of the request's body.
    CutUpload(u64),
    /// Sends other bytes of the same length.
    WrongBytes,
    /// Announces and sends so many bytes more or fewer than there are.
    WrongLength(i64),
    /// Announces no length, and ends the body after so many bytes as if that were all.
    EndEarly(u64),
    /// Sends everything although a part was asked for.
    IgnoreRange,
    /// Redirects to the same path at another server, with a query that looks like a signature.
    Redirect(String),
    /// Sends so many bytes at a time, with pauses.
    Drip(usize, Duration),
    /// Never answers.
    Hang,
    /// Makes every token that was handed out worthless, then tells the truth.
    RevokeTokens,
    /// Closes the connection without an answer.
    Disconnect,
}

impl Fault {
    /// For requests with this method and this text in their path; always, unless [`times`](Fault::times) says less.
    pub fn on(method: Method, path: &str, action: Action) -> Fault {
        Fault { method: Some(method), path: path.to_owned(), skip: 0, times: usize::MAX, action }
    }

    /// For requests of any method.
    pub fn anywhere(path: &str, action: Action) -> Fault {
        Fault { method: None, path: path.to_owned(), skip: 0, times: usize::MAX, action }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: usize) -> Fault {
        self.times = times;
        self
    }

    /// Not the first so many requests.
    #[must_use]
    pub fn after(mut self, skip: usize) -> Fault {
        self.skip = skip;
        self
    }

    /// The same for another path.
    #[must_use]
    pub fn at(mut self, path: impl FnOnce(&str) -> String) -> Fault {
        self.path = path(&self.path);
        self
    }

    /// Counts a request; the action if it is its turn.
    pub(crate) fn strike(&mut self, method: &Method, path: &str) -> Option<Action> {
        let fits = self.method.as_ref().is_none_or(|wanted| wanted == method) && path.contains(&self.path);
        if !fits || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.action.clone())
    }
}

impl Action {
    /// A status with the error document of the distribution API.
    pub fn status(status: u16) -> Action {
        let (code, message) = match status {
            401 => ("UNAUTHORIZED", "authentication required"),
            403 => ("DENIED", "requested access to the resource is denied"),
            404 => ("MANIFEST_UNKNOWN", "manifest unknown"),
            429 => ("TOOMANYREQUESTS", "too many requests"),
            _ => ("UNKNOWN", "something went wrong"),
        };
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#);
        Action::Answer { status, headers: vec![("content-type", "application/json".to_owned())], body }
    }

    /// The same with `Retry-After`.
    pub fn status_retry_after(status: u16, seconds: u64) -> Action {
        match Action::status(status) {
            Action::Answer { status, mut headers, body } => {
                headers.push(("retry-after", seconds.to_string()));
                Action::Answer { status, headers, body }
            }
            other => other,
        }
    }
}
