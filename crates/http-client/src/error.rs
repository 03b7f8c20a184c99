//! Why no response came, told apart as far as callers act on it.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

/// No usable response. URLs inside are redacted already.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection was made; nothing was sent.
    #[error("cannot connect to {}: {cause}", way.to(host))]
    Connect {
        /// Host and port.
        host: String,
        /// How it was tried.
        way: Way,
        /// At which step.
        failure: ConnectFailure,
        /// The innermost cause, in the words of the system that failed.
        cause: String,
    },
    /// The server stayed silent for longer than allowed.
    #[error("`{url}`: no {what} within {seconds} s")]
    Timeout {
        /// What was asked.
        url: String,
        /// What did not come: `answer`, `data`.
        what: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// The connection broke while the request or the response was under way.
    #[error("`{url}`: connection lost: {cause}")]
    Interrupted {
        /// What was asked.
        url: String,
        /// The innermost cause.
        cause: String,
    },
    /// A document is larger than its limit.
    #[error("`{url}`: answer is larger than {limit} bytes")]
    TooLarge {
        /// What was asked.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// A redirect that cannot be followed.
    #[error("`{url}`: {reason}")]
    Redirect {
        /// What was asked.
        url: String,
        /// What is wrong with the redirect.
        reason: String,
    },
    /// A certificate or key file is unusable.
    #[error("cannot use `{}`: {cause}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// A proxy setting is unusable.
    #[error("cannot use proxy `{proxy}`: {cause}")]
    Proxy {
        /// The setting, redacted.
        proxy: String,
        /// Why.
        cause: String,
    },
    /// The TLS library or the pool refused its settings.
    #[error("cannot set up https: {0}")]
    Setup(String),
    /// The bytes to send could not be read.
    #[error("cannot read the data to send")]
    Source(#[source] io::Error),
}

/// How a connection was tried. Proxies are named as people should read them: redacted, with their variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Without a proxy.
    Direct,
    /// Through this proxy, and it is not known on which side of it the connection failed.
    Through(String),
    /// Through this proxy, which could not be reached itself, or lets nobody through without a login.
    Proxy(String),
}

impl Way {
    /// What could not be connected to.
    fn to(&self, host: &str) -> String {
        match self {
            Way::Direct => format!("`{host}`"),
            Way::Through(proxy) => format!("`{host}` through the proxy {proxy}"),
            Way::Proxy(proxy) => format!("the proxy {proxy} for `{host}`"),
        }
    }
}

/// The step at which a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The name has no address.
    UnknownHost,
    /// Nobody listens.
    Refused,
    /// No answer to the connection attempt.
    Timeout,
    /// The server's certificate is not one we trust, or the server does not trust ours.
    Certificate,
    /// The server does not speak TLS.
    NotTls,
    /// The proxy wants a login, or another one.
    ProxyLogin,
    /// Something else: unreachable network, a reset, a proxy that refuses.
    Other,
}

impl From<tls::Error> for Error {
    fn from(tls::Error { path, cause }: tls::Error) -> Error {
        Error::Certificate { path, cause }
    }
}

impl Error {
    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Connect { failure, cause, .. } => match failure {
                ConnectFailure::Certificate | ConnectFailure::NotTls | ConnectFailure::ProxyLogin => false,
                ConnectFailure::UnknownHost => is_temporary_lookup_failure(cause),
                ConnectFailure::Refused | ConnectFailure::Timeout | ConnectFailure::Other => true,
            },
            Error::Timeout { .. } | Error::Interrupted { .. } => true,
            Error::TooLarge { .. }
            | Error::Redirect { .. }
            | Error::Certificate { .. }
            | Error::Proxy { .. }
            | Error::Setup(_)
            | Error::Source(_) => false,
        }
    }

    /// At which step the connection to the server failed, if it was that.
    pub fn connect_failure(&self) -> Option<ConnectFailure> {
        match self {
            Error::Connect { way: Way::Direct | Way::Through(_), failure, .. } => Some(*failure),
            _ => None,
        }
    }

    /// At which step the connection to a proxy failed, if it was that: nothing is known of the server then.
    pub fn proxy_failure(&self) -> Option<ConnectFailure> {
        match self {
            Error::Connect { way: Way::Proxy(_), failure, .. } => Some(*failure),
            _ => None,
        }
    }

    /// What to try where a proxy is in the way.
    pub fn proxy_hint(&self) -> Option<&'static str> {
        Some(match self.proxy_failure()? {
            ConnectFailure::ProxyLogin => "give its login in its address: `http://USER:PASSWORD@HOST:PORT`",
            _ => "check the proxy's address; hosts that are reached without it belong into NO_PROXY",
        })
    }

    /// `proxy` is what the request went through.
    pub(crate) fn from_reqwest(error: &reqwest::Error, url: &url::Url, proxy: Option<&url::Url>) -> Error {
        let shown = base::redact_url(url.as_str());
        let cause = root_cause(error);
        let failure = connect_failure(error, &cause);
        let way = match (proxy, failure) {
            (None, _) => Way::Direct,
            // Names are looked up and connections made for the proxy only: the rest it does for us.
            (Some(proxy), ConnectFailure::UnknownHost | ConnectFailure::Refused | ConnectFailure::ProxyLogin) => {
                Way::Proxy(proxy_words(proxy, url))
            }
            (Some(proxy), _) => Way::Through(proxy_words(proxy, url)),
        };
        let cause = match failure {
            // The words that people and scripts know from BuildKit.
            ConnectFailure::UnknownHost if !is_temporary_lookup_failure(&cause) => {
                let host = proxy.unwrap_or(url).host_str().unwrap_or_default();
                format!("dial tcp: lookup {host}: no such host")
            }
            _ => cause,
        };
        // With TLS 1.3 a server refuses our certificate when the handshake is over for us.
        if error.is_connect() || failure == ConnectFailure::Certificate {
            return Error::Connect { host: authority(url), way, failure, cause };
        }
        Error::Interrupted { url: shown, cause }
    }

    /// The proxy of a request without TLS answered 407 in the server's place.
    pub(crate) fn proxy_login(url: &url::Url, proxy: &url::Url) -> Error {
        Error::Connect {
            host: authority(url),
            way: Way::Proxy(proxy_words(proxy, url)),
            failure: ConnectFailure::ProxyLogin,
            cause: PROXY_LOGIN.to_owned(),
        }
    }
}

/// What a proxy wants that answers 407.
const PROXY_LOGIN: &str = "proxy authorization required";

/// A proxy and the variable that names it, as in [`Proxies::from_vars`](crate::Proxies::from_vars).
fn proxy_words(proxy: &url::Url, url: &url::Url) -> String {
    let variable = if url.scheme() == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let shown = base::redact_url(proxy.as_str());
    format!("`{}` ({variable})", shown.trim_end_matches('/'))
}

/// EAI_AGAIN in the words of glibc and musl.
fn is_temporary_lookup_failure(cause: &str) -> bool {
    cause.contains("Temporary failure") || cause.contains("Try again")
}

pub(crate) fn authority(url: &url::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The text of the innermost cause: the layers around it only say that a request failed.
fn root_cause(error: &(dyn StdError + 'static)) -> String {
    let mut last = error.to_string();
    walk(error, &mut |e| {
        last = match e.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(why)) => certificate_words(why),
            Some(rustls::Error::InvalidMessage(_)) => "it does not answer in TLS".to_owned(),
            _ => tunnel_words(&e.to_string()),
        };
        false
    });
    last
}

/// What came of asking a proxy to connect; the library has a type for it that it does not export.
fn tunnel_words(text: &str) -> String {
    match text.strip_prefix("tunnel error: ") {
        Some("unsuccessful") => "the proxy did not connect: it may not allow this host, or not reach it".to_owned(),
        Some("unexpected end of file") => "the proxy hung up".to_owned(),
        Some(other) => other.to_owned(),
        None => text.to_owned(),
    }
}

/// What is wrong with a server's certificate; rustls says it in the names of its types.
fn certificate_words(why: &rustls::CertificateError) -> String {
    use rustls::CertificateError as Why;
    match why {
        Why::UnknownIssuer => "its certificate is signed by no authority that is trusted here".to_owned(),
        Why::Expired | Why::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        Why::NotValidYet | Why::NotValidYetContext { .. } => {
            "its certificate is not valid yet: one of the two clocks may be wrong".to_owned()
        }
        Why::NotValidForName => "its certificate is for another name".to_owned(),
        Why::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate names no host (a common name alone does not count)".to_owned()
        }
        Why::NotValidForNameContext { presented, .. } => {
            format!("its certificate is for another name: {}", presented.join(", "))
        }
        other => format!("its certificate is not valid: {other}"),
    }
}

fn connect_failure(error: &(dyn StdError + 'static), cause: &str) -> ConnectFailure {
    let mut found = None;
    walk(error, &mut |e| {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            found = Some(tls_failure(tls));
        } else if let Some(io) = e.downcast_ref::<io::Error>() {
            found = match io.kind() {
                io::ErrorKind::ConnectionRefused => Some(ConnectFailure::Refused),
                io::ErrorKind::TimedOut => Some(ConnectFailure::Timeout),
                _ => found,
            };
        }
        false
    });
    if let Some(failure) = found {
        return failure;
    }
    if cause.contains(PROXY_LOGIN) {
        ConnectFailure::ProxyLogin
    } else if cause.contains("lookup address") {
        ConnectFailure::UnknownHost
    } else if cause.contains("timed out") || cause.contains("deadline has elapsed") {
        ConnectFailure::Timeout
    } else {
        ConnectFailure::Other
    }
}

fn tls_failure(error: &rustls::Error) -> ConnectFailure {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidMessage(_) | Tls::PeerIncompatible(_) => ConnectFailure::NotTls,
        Tls::InvalidCertificate(_)
        | Tls::NoCertificatesPresented
        | Tls::UnsupportedNameType
        | Tls::InvalidCertRevocationList(_)
        | Tls::AlertReceived(_) => ConnectFailure::Certificate,
        _ => ConnectFailure::Other,
    }
}

/// Visits an error and its causes until `visit` says stop. Unlike `source()`, steps into what an `io::Error` wraps.
fn walk(error: &(dyn StdError + 'static), visit: &mut dyn FnMut(&(dyn StdError + 'static)) -> bool) {
    let mut next = Some(error);
    while let Some(error) = next {
        if visit(error) {
            return;
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
}
