//! Fetching a token: GET with basic authentication (distribution's `auth/token` page) or POST as OAuth2 (`auth/oauth`).
//!
//! Passwords try GET first, since Docker Hub long had nothing else; refresh tokens POST first, which is their own way.
//! Each falls back to the other where the server says that it does not do it.

use std::time::Duration;

use base::Secret;
use bytes::Bytes;
use http::{Method, header};
use http_client::{Body, Redirects, Request, Response, Retry};
use serde::Deserialize;
use tokio::time::Instant;
use url::form_urlencoded::Serializer;
use url::{Position, Url};

use super::{Asker, Credential, Party, Scopes, basic};
use crate::Error;
use crate::error::{Answer, Role};

/// The lifetime of a token that states none (distribution's `auth/token`).
pub(super) const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// No token is used longer.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Tokens of a megabyte would be no tokens.
const TOKEN_LIMIT: u64 = 1 << 20;

/// A token server.
pub(super) struct Realm {
    pub url: String,
    pub service: Option<String>,
}

/// A token and the moment from which it is not used any more, somewhat before the server drops it.
pub(super) struct Token {
    pub value: Secret,
    pub lifetime: Duration,
    pub expires: Instant,
    /// Why it is nobody's, although there may be a login.
    pub unsent: Option<String>,
}

impl Token {
    /// Counted from before the request on our own clock: the server's (`issued_at`) may differ.
    pub(super) fn new(value: Secret, asked: Instant, lifetime: Duration) -> Token {
        let lifetime = if lifetime.is_zero() { DEFAULT_LIFETIME } else { lifetime.min(LONGEST_LIFETIME) };
        Token { value, lifetime, expires: asked + lifetime.mul_f64(0.9), unsent: None }
    }
}

/// Which way a password is tried first; the other one follows where the server says that it does not do it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    Get,
    Post,
}

pub(super) async fn fetch(
    asker: &Asker<'_>,
    realm: &Realm,
    credential: Option<&Credential>,
    scopes: &Scopes,
    first: First,
) -> Result<Token, Error> {
    let url = realm.url(asker)?;
    let get = Get { asker, realm, url: &url, scopes };
    let asked = Instant::now();
    let response = match credential {
        None | Some(Credential::Bearer(_)) => get.send(None).await?,
        Some(Credential::Basic { username, password }) => {
            let fields = [
                ("grant_type", "password".as_bytes()),
                ("username", username.as_bytes()),
                ("password", password.expose()),
            ];
            let login = Some((username.as_str(), password));
            let response = if first == First::Get { get.send(login).await? } else { get.post(&fields).await? };
            match response.status().as_u16() {
                // Of 2017, GCR is known to answer 404; of 2018, Artifactory 401 (facts noted in containerd).
                401 | 404 | 405 => {
                    let second = if first == First::Get { get.post(&fields).await? } else { get.send(login).await? };
                    if second.status().is_success() { second } else { better_refusal(response, second) }
                }
                _ => response,
            }
        }
        Some(Credential::Refresh(token)) => {
            let fields = [("grant_type", "refresh_token".as_bytes()), ("refresh_token", token.expose())];
            let response = get.post(&fields).await?;
            match response.status().as_u16() {
                404 | 405 => get.send(Some(("", token))).await?,
                _ => response,
            }
        }
    };
    read(asker, &url, response, asked).await
}

/// A login that failed both ways is told in the words of the one that the server does.
fn better_refusal(first: Response, second: Response) -> Response {
    if matches!(second.status().as_u16(), 404 | 405) { first } else { second }
}

impl Realm {
    fn url(&self, asker: &Asker<'_>) -> Result<Url, Error> {
        let shown = base::redact_url(&self.url);
        let url = Url::parse(&self.url).map_err(|error| asker.malformed(format!("token server `{shown}`: {error}")))?;
        match url.scheme() {
            "https" | "http" => Ok(url),
            scheme => Err(asker.malformed(format!("token server `{shown}`: scheme `{scheme}` is not supported"))),
        }
    }

    /// Whether credentials may go to the server.
    pub(super) fn check(&self, party: &Party<'_>) -> Result<(), Error> {
        let asker = party.asker();
        if self.url(&asker)?.scheme() == "https" || party.origin.starts_with("http:") {
            return Ok(());
        }
        let shown = base::redact_url(&self.url);
        Err(asker.malformed(format!("token server `{shown}` would get the credentials without encryption")))
    }
}

struct Get<'a> {
    asker: &'a Asker<'a>,
    realm: &'a Realm,
    url: &'a Url,
    scopes: &'a Scopes,
}

impl Get<'_> {
    async fn send(&self, login: Option<(&str, &Secret)>) -> Result<Response, Error> {
        let mut url = self.url.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.realm.service {
                query.append_pair("service", service);
            }
            for scope in self.scopes.each() {
                query.append_pair("scope", &scope);
            }
            if let Some((user, _)) = login.filter(|(user, _)| !user.is_empty()) {
                query.append_pair("account", user);
            }
        }
        let mut request = Request::get(url);
        if let Some(value) = login.and_then(|(user, password)| basic(user, password)) {
            request.headers.insert(header::AUTHORIZATION, value);
        }
        self.run(request).await
    }

    async fn post(&self, fields: &[(&str, &[u8])]) -> Result<Response, Error> {
        let mut request = Request::new(Method::POST, self.url.clone())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::Bytes(Bytes::from(self.form(fields))));
        request.redirects = Redirects::Home;
        // Asking twice for a token does no harm.
        request.retry = Some(self.retry());
        self.run(request).await
    }

    fn form(&self, fields: &[(&str, &[u8])]) -> String {
        let mut form = Serializer::new(String::new());
        form.append_pair("client_id", self.asker.client_id);
        form.append_pair("service", self.realm.service.as_deref().unwrap_or_default());
        let scope = self.scopes.to_string();
        if !scope.is_empty() {
            form.append_pair("scope", &scope);
        }
        for (name, value) in fields {
            // Secrets of config.json are text; what is not UTF-8 could not be sent as a form either.
            form.append_pair(name, &String::from_utf8_lossy(value));
        }
        form.finish()
    }

    fn retry(&self) -> Retry {
        self.asker.client.retry_policy().clone()
    }

    async fn run(&self, request: Request) -> Result<Response, Error> {
        self.asker
            .client
            .send(&request)
            .await
            .map_err(|source| Error::Transport { subject: self.asker.subject.to_owned(), source })
    }
}

async fn read(asker: &Asker<'_>, url: &Url, response: Response, asked: Instant) -> Result<Token, Error> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
        // Azure sends it as text.
        #[serde(default)]
        expires_in: serde_json::Value,
    }
    let host = url[Position::BeforeHost..Position::AfterPort].to_owned();
    if !response.status().is_success() {
        return Err(Error::Answer(Answer::read(asker.subject, &host, Role::TokenServer, response).await));
    }
    let malformed = |cause: &str| Error::Malformed {
        subject: asker.subject.to_owned(),
        host: host.clone(),
        cause: cause.to_owned(),
    };
    let bytes = response
        .bytes(TOKEN_LIMIT)
        .await
        .map_err(|source| Error::Transport { subject: asker.subject.to_owned(), source })?;
    // The document is not quoted: it may hold a token.
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|_| malformed("no JSON where a token should be"))?;
    let value = if document.access_token.is_empty() { document.token } else { document.access_token };
    if value.is_empty() {
        return Err(malformed("its answer holds no token"));
    }
    let seconds = match &document.expires_in {
        serde_json::Value::Number(number) => number.as_f64().map_or(0, |seconds| seconds as u64),
        serde_json::Value::String(text) => text.trim().parse().unwrap_or(0),
        _ => 0,
    };
    Ok(Token::new(Secret::new(value), asked, Duration::from_secs(seconds)))
}
