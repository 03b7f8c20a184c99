//! Which requests go through which proxy, by the rules of Go's `httpproxy`, which BuildKit's users know.

use std::net::IpAddr;

use url::Url;

use crate::Error;

/// Proxies, as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` give them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Proxies {
    /// For `http` URLs.
    pub http: Option<String>,
    /// For `https` URLs.
    pub https: Option<String>,
    /// Hosts that are reached directly, comma separated.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// Reads the usual variables, upper case first, through `get`. Empty ones count as absent.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Proxies {
        let read = |upper: &str| {
            [upper.to_owned(), upper.to_ascii_lowercase()].iter().find_map(|name| get(name).filter(|v| !v.is_empty()))
        };
        Proxies { http: read("HTTP_PROXY"), https: read("HTTPS_PROXY"), no_proxy: read("NO_PROXY") }
    }

    pub(crate) fn compile(&self) -> Result<Rules, Error> {
        let parse = |setting: &Option<String>| setting.as_deref().map(parse_proxy).transpose();
        let exceptions = self.no_proxy.as_deref().unwrap_or_default();
        Ok(Rules {
            http: parse(&self.http)?,
            https: parse(&self.https)?,
            exceptions: exceptions.split(',').filter_map(parse_exception).collect(),
        })
    }
}

/// [`Proxies`] made ready for asking.
#[derive(Debug)]
pub(crate) struct Rules {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

#[derive(Debug)]
enum Exception {
    Everything,
    Ip(IpAddr, Option<u16>),
    Network(IpAddr, u8),
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl Rules {
    /// The proxy for `url`; none means a direct connection.
    pub(crate) fn for_url(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let host = host.to_ascii_lowercase();
        let ip = host.parse::<IpAddr>().ok();
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return None;
        }
        let port = url.port_or_known_default();
        let direct = self.exceptions.iter().any(|exception| exception.matches(&host, ip, port));
        (!direct).then_some(proxy)
    }
}

impl Exception {
    fn matches(&self, host: &str, ip: Option<IpAddr>, port: Option<u16>) -> bool {
        let port_fits = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Exception::Everything => true,
            Exception::Ip(except, at) => ip == Some(*except) && port_fits(at),
            Exception::Network(network, bits) => ip.is_some_and(|ip| in_network(ip, *network, *bits)),
            Exception::Domain { name, itself, port: at } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|head| head.ends_with('.'));
                (below || (*itself && host == name)) && port_fits(at)
            }
        }
    }
}

fn in_network(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let drop = width.saturating_sub(u32::from(bits));
        a.checked_shr(drop).unwrap_or(0) == b.checked_shr(drop).unwrap_or(0)
    };
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// `proxy:3128` means `http://proxy:3128`.
fn parse_proxy(setting: &str) -> Result<Url, Error> {
    let fail = |cause: String| Error::Proxy { proxy: base::redact_url(setting), cause };
    let with_scheme = if setting.contains("://") { setting.to_owned() } else { format!("http://{setting}") };
    let url = Url::parse(&with_scheme).map_err(|error| fail(error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        "http" | "https" => Err(fail("it names no host".to_owned())),
        other => Err(fail(format!("scheme `{other}` is not supported, only http and https are"))),
    }
}

/// One entry of `NO_PROXY`: `*`, an address, a network, `host`, `.host`, `*.host`, each but networks with an optional port.
fn parse_exception(entry: &str) -> Option<Exception> {
    let entry = entry.trim().to_ascii_lowercase();
    if entry.is_empty() {
        return None;
    }
    if entry == "*" {
        return Some(Exception::Everything);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        return Some(Exception::Network(address.parse().ok()?, bits.parse().ok()?));
    }
    if let Ok(ip) = entry.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Exception::Ip(ip, None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry.as_str(), None),
    };
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(Exception::Ip(ip, port));
    }
    let host = host.strip_prefix('*').unwrap_or(host);
    Some(match host.strip_prefix('.') {
        Some(name) => Exception::Domain { name: name.to_owned(), itself: false, port },
        None => Exception::Domain { name: host.to_owned(), itself: true, port },
    })
}
