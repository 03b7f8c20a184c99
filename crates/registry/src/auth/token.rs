//! Fetching a token: GET with basic authentication (distribution's `auth/token` page) or POST as OAuth2 (`auth/oauth`).
//!
//! Passwords try GET first, since Docker Hub long had nothing else; refresh tokens POST first, which is their own way.
//! Each falls back to the other where the server says that it does not do it.

use std::time::Duration;

use base::Secret;
use bytes::Bytes;
use http::{Method, header};
use http_client::{Body, Request, Response, Retry};
use serde::Deserialize;
use tokio::time::Instant;
use url::form_urlencoded::Serializer;
use url::{Position, Url};

use super::{Credential, Party, Scopes, basic};
use crate::Error;
use crate::error::{Answer, Role};

/// How token servers know us.
const CLIENT_ID: &str = "hullworks";
/// The lifetime of a token that states none (distribution's `auth/token`).
const DEFAULT_LIFETIME: u64 = 60;
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
    pub expires: Instant,
}

pub(super) async fn fetch(
    party: &Party<'_>,
    realm: &Realm,
    credential: Option<&Credential>,
    scopes: &Scopes,
) -> Result<Token, Error> {
    let url = realm.check(party, credential)?;
    let get = Get { party, realm, url: &url, scopes };
    let asked = Instant::now();
    let response = match credential {
        None | Some(Credential::Bearer(_)) => get.send(None).await?,
        Some(Credential::Basic { username, password }) => {
            let response = get.send(Some((username, password))).await?;
            match response.status().as_u16() {
                // Of 2017, GCR is known to answer 404; of 2018, Artifactory 401 (facts noted in containerd).
                401 | 404 | 405 => {
                    let fields = [
                        ("grant_type", "password".as_bytes()),
                        ("username", username.as_bytes()),
                        ("password", password.expose()),
                    ];
                    let second = get.post(&fields).await?;
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
    read(party, &url, response, asked).await
}

/// A login that failed both ways is told in the words of the one that the server does.
fn better_refusal(first: Response, second: Response) -> Response {
    if matches!(second.status().as_u16(), 404 | 405) { first } else { second }
}

impl Realm {
    /// The server's URL, if credentials may go there.
    fn check(&self, party: &Party<'_>, credential: Option<&Credential>) -> Result<Url, Error> {
        let malformed =
            |cause: String| Error::Malformed { subject: party.subject.to_owned(), host: party.host.to_owned(), cause };
        let shown = base::redact_url(&self.url);
        let url = Url::parse(&self.url).map_err(|error| malformed(format!("token server `{shown}`: {error}")))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if credential.is_none() || party.origin.starts_with("http:") => Ok(url),
            "http" => Err(malformed(format!("token server `{shown}` would get the credentials without encryption"))),
            scheme => Err(malformed(format!("token server `{shown}`: scheme `{scheme}` is not supported"))),
        }
    }
}

struct Get<'a> {
    party: &'a Party<'a>,
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
        // Asking twice for a token does no harm.
        request.retry = Some(self.retry());
        self.run(request).await
    }

    fn form(&self, fields: &[(&str, &[u8])]) -> String {
        let mut form = Serializer::new(String::new());
        form.append_pair("client_id", CLIENT_ID);
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
        self.party.client.retry_policy().clone()
    }

    async fn run(&self, request: Request) -> Result<Response, Error> {
        self.party
            .client
            .send(&request)
            .await
            .map_err(|source| Error::Transport { subject: self.party.subject.to_owned(), source })
    }
}

async fn read(party: &Party<'_>, url: &Url, response: Response, asked: Instant) -> Result<Token, Error> {
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
        return Err(Error::Answer(Answer::read(party.subject, &host, Role::TokenServer, response).await));
    }
    let malformed = |cause: &str| Error::Malformed {
        subject: party.subject.to_owned(),
        host: host.clone(),
        cause: cause.to_owned(),
    };
    let bytes = response
        .bytes(TOKEN_LIMIT)
        .await
        .map_err(|source| Error::Transport { subject: party.subject.to_owned(), source })?;
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
    let seconds = if seconds == 0 { DEFAULT_LIFETIME } else { seconds.min(24 * 3600) };
    // Counted from before the request on our own clock: theirs (`issued_at`) may differ.
    Ok(Token { value: Secret::new(value), expires: asked + Duration::from_secs(seconds).mul_f64(0.9) })
}
