//! Keeping secrets out of errors, logs and progress.

use std::fmt;

/// Bytes that must never be shown: `Debug` prints a placeholder and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    /// The bytes, for the one place that hands them on.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// `url` without user, password and query values, which often carry tokens.
///
/// Text, not a parsed URL, so that malformed ones are redacted too.
pub fn redact_url(url: &str) -> String {
    let (head, query) = match url.split_once('?') {
        Some((head, query)) => (head, Some(query)),
        None => (url, None),
    };
    let mut out = match head.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let user = if host.len() == authority.len() { "" } else { "xxxxx@" };
            format!("{scheme}://{user}{host}{path}")
        }
        None => head.to_owned(),
    };
    if let Some(query) = query {
        out.push('?');
        let keys = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        out.push_str(&keys.map(|key| format!("{key}=xxxxx")).collect::<Vec<_>>().join("&"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_credentials_and_query_values() {
        for (url, shown) in [
            ("https://example.com/v2/", "https://example.com/v2/"),
            ("https://u:p@example.com/v2/?a=b&c", "https://xxxxx@example.com/v2/?a=xxxxx&c=xxxxx"),
            ("https://u:p@q@example.com", "https://xxxxx@example.com"),
            ("not a url", "not a url"),
        ] {
            assert_eq!(redact_url(url), shown);
        }
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(..)");
    }
}
