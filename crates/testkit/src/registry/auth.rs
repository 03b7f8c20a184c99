//! Who may do what: open, basic authentication, or a token server at `/token`.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::{HeaderMap, Method, StatusCode, header};

use super::{Shared, lock};

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody, everything.
    #[default]
    Open,
    /// Only this user.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Those with a token of our token server.
    Token(TokenAuth),
}

/// A token server's mind.
#[derive(Clone, Debug)]
pub struct TokenAuth {
    /// The one user.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The user's refresh token (identity token).
    pub refresh_token: String,
    /// Whether tokens without a login allow pulls.
    pub anonymous_pull: bool,
    /// Whether GET is answered; else 404.
    pub get: bool,
    /// Whether POST (OAuth2) is answered; else 404.
    pub post: bool,
    /// `expires_in` of tokens.
    pub lifetime: u64,
    /// Repositories that even the user may not touch, by prefix.
    pub forbidden: Vec<String>,
}

impl Auth {
    /// Basic authentication of `hull` by `works`.
    pub fn basic() -> Auth {
        Auth::Basic { user: "hull".to_owned(), password: "works".to_owned() }
    }

    /// Tokens for `hull` by `works` or the refresh token `refresh-me`; pulls for everybody.
    pub fn token() -> Auth {
        Auth::Token(TokenAuth::default())
    }
}

impl Default for TokenAuth {
    fn default() -> Self {
        TokenAuth {
            user: "hull".to_owned(),
            password: "works".to_owned(),
            refresh_token: "refresh-me".to_owned(),
            anonymous_pull: true,
            get: true,
            post: true,
            lifetime: 300,
            forbidden: Vec::new(),
        }
    }
}

/// Tokens handed out, with what they allow.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    made: u64,
    valid: HashMap<String, Vec<String>>,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.valid.clear();
    }

    fn issue(&mut self, scopes: Vec<String>) -> String {
        self.made += 1;
        let token = format!("token-{}", self.made);
        self.valid.insert(token.clone(), scopes);
        token
    }
}

/// `/token`: status and body.
pub(super) fn token_server(
    shared: &Shared,
    auth: &TokenAuth,
    method: &Method,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> (StatusCode, String) {
    let refuse = |status, text: &str| (status, format!(r#"{{"details":"{text}"}}"#));
    let offered = match *method {
        Method::GET => auth.get,
        Method::POST => auth.post,
        _ => false,
    };
    if !offered {
        return refuse(StatusCode::NOT_FOUND, "no such page");
    }
    let body = String::from_utf8_lossy(body);
    let fields = decode(if *method == Method::POST { &body } else { query });
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
    if field("service") != "hullworks-test" {
        return refuse(StatusCode::BAD_REQUEST, "wrong service");
    }
    let login = match *method {
        Method::POST if field("grant_type") == "password" => {
            Some(field("username") == auth.user && field("password") == auth.password)
        }
        Method::POST => Some(field("refresh_token") == auth.refresh_token),
        _ => basic_login(headers).map(|(user, password)| {
            let by_password = user == auth.user && password == auth.password;
            by_password || (user.is_empty() && password == auth.refresh_token)
        }),
    };
    let logged_in = match login {
        Some(false) => return refuse(StatusCode::UNAUTHORIZED, "incorrect username or password"),
        Some(true) => true,
        None => false,
    };
    let asked = fields.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
    let granted = asked.filter_map(|scope| grant(auth, logged_in, scope)).collect();
    let token = lock(&shared.tokens).issue(granted);
    let name = if *method == Method::POST { "access_token" } else { "token" };
    (StatusCode::OK, format!(r#"{{"{name}":"{token}","expires_in":{}}}"#, auth.lifetime))
}

/// As much of a scope as may be had.
fn grant(auth: &TokenAuth, logged_in: bool, scope: &str) -> Option<String> {
    let (resource, actions) = scope.rsplit_once(':')?;
    let name = resource.strip_prefix("repository:")?;
    if auth.forbidden.iter().any(|prefix| name.starts_with(prefix.as_str())) {
        return None;
    }
    let may = |action: &str| logged_in || (auth.anonymous_pull && action == "pull");
    let actions: Vec<&str> = actions.split(',').filter(|action| may(action)).collect();
    (!actions.is_empty()).then(|| format!("{resource}:{}", actions.join(",")))
}

/// Whether a request may do what it wants; if not, the challenge.
pub(super) fn check(shared: &Shared, headers: &HeaderMap, needs: &[(String, &str)]) -> Result<(), String> {
    match &shared.options.auth {
        Auth::Open => Ok(()),
        Auth::Basic { user, password } => match basic_login(headers) {
            Some(login) if login == (user.clone(), password.clone()) => Ok(()),
            _ => Err(r#"Basic realm="hullworks test""#.to_owned()),
        },
        Auth::Token(_) => {
            let scope = needs.iter().map(|(name, actions)| format!("repository:{name}:{actions}"));
            let challenge = format!(
                r#"Bearer realm="{}/token",service="hullworks-test",scope="{}""#,
                shared.base,
                scope.collect::<Vec<_>>().join(" ")
            );
            let token = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()?.strip_prefix("Bearer "));
            let Some(token) = token else { return Err(challenge) };
            let tokens = lock(&shared.tokens);
            let Some(granted) = tokens.valid.get(token) else {
                return Err(format!(r#"{challenge},error="invalid_token""#));
            };
            let covered = |(name, actions): &(String, &str)| {
                actions.split(',').all(|action| {
                    granted.iter().any(|scope| {
                        scope.rsplit_once(':').is_some_and(|(resource, allowed)| {
                            resource == format!("repository:{name}") && allowed.split(',').any(|a| a == action)
                        })
                    })
                })
            };
            if needs.iter().all(covered) { Ok(()) } else { Err(format!(r#"{challenge},error="insufficient_scope""#)) }
        }
    }
}

fn basic_login(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    pair.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Pairs of a query or form.
pub(super) fn decode(text: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}
