//! `WWW-Authenticate` (RFC 9110 §11.6.1), read leniently: registries send several challenges in one header or several
//! headers, forget quotes, and spell schemes in any case.

use http::{HeaderMap, header};

/// What a host demands, as far as we can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from a token server.
    Bearer {
        /// The token server's URL.
        realm: String,
        /// How the token server knows the registry.
        service: Option<String>,
        /// What the token must allow, by the registry's mind.
        scope: Option<String>,
    },
    /// User name and password.
    Basic,
}

impl Challenge {
    pub(crate) fn scope(&self) -> Option<&str> {
        match self {
            Challenge::Bearer { scope, .. } => scope.as_deref(),
            Challenge::Basic => None,
        }
    }

    pub(crate) fn without_scope(self) -> Challenge {
        match self {
            Challenge::Bearer { realm, service, .. } => Challenge::Bearer { realm, service, scope: None },
            Challenge::Basic => Challenge::Basic,
        }
    }
}

/// The challenges that we can answer, the best one first.
pub(crate) fn parse_challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        let text = String::from_utf8_lossy(value.as_bytes());
        for (scheme, params) in split(&text) {
            let param = |name: &str| params.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            match scheme.as_str() {
                "bearer" => found.extend(param("realm").map(|realm| Challenge::Bearer {
                    realm,
                    service: param("service"),
                    scope: param("scope").filter(|scope| !scope.is_empty()),
                })),
                "basic" => found.push(Challenge::Basic),
                _ => {}
            }
        }
    }
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found
}

type Params = Vec<(String, String)>;

/// Schemes and their parameters, names in lower case. A word that no `=` follows begins a new challenge.
fn split(text: &str) -> Vec<(String, Params)> {
    let mut challenges: Vec<(String, Params)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let spaced = after.trim_start_matches([' ', '\t']);
        match spaced.strip_prefix('=') {
            Some(value) if !word.is_empty() => {
                let (value, after) = read_value(value.trim_start_matches([' ', '\t']));
                if let Some((_, params)) = challenges.last_mut() {
                    params.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            // A stray `=`: skip it rather than stand still.
            Some(value) => rest = value,
            None if word.is_empty() => return challenges,
            None => {
                challenges.push((word.to_ascii_lowercase(), Params::new()));
                rest = after;
            }
        }
    }
}

/// A quoted string, or everything up to the next comma or blank (URLs come unquoted from some).
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    // The closing quote is missing: what there is must do.
    (value, "")
}
