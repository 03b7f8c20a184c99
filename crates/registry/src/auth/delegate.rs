//! Tokens that somebody else fetches: a client that keeps its passwords to itself. Both ends of it.

use std::time::Duration;

use base::Secret;
use http_client::Client;
use tokio::time::Instant;

use super::token::{First, Realm, Token};
use super::{Asker, Credential, Party, Scopes, token};
use crate::Error;

/// What is asked of who fetches tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// How token servers are to know who asks.
    pub client_id: String,
    /// The registry.
    pub host: String,
    /// The token server's URL.
    pub realm: String,
    /// How the token server knows the registry; may be empty.
    pub service: String,
    /// What the token must allow: `repository:library/alpine:pull`.
    pub scopes: Vec<String>,
}

/// A token.
#[derive(Debug)]
pub struct FetchedToken {
    /// What to send.
    pub value: Secret,
    /// How long it is good for.
    pub lifetime: Duration,
}

/// Has a token fetched.
pub(super) async fn fetch(party: &Party<'_>, realm: &Realm, scopes: &Scopes) -> Result<Token, Error> {
    let request = TokenRequest {
        client_id: super::CLIENT_ID.to_owned(),
        host: party.host.to_owned(),
        realm: realm.url.clone(),
        service: realm.service.clone().unwrap_or_default(),
        scopes: scopes.each().collect(),
    };
    let asked = Instant::now();
    let fetched = party.wallet.source.fetch_token(&request).await;
    let fetched = fetched.map_err(|source| Error::Credentials { host: party.host.to_owned(), source })?;
    Ok(Token::new(fetched.value, asked, fetched.lifetime))
}

/// Fetches a token for somebody else. Passwords are sent in the body first, as BuildKit's clients do.
pub async fn fetch_token(
    client: &Client,
    request: &TokenRequest,
    credential: Option<&Credential>,
) -> Result<FetchedToken, Error> {
    if let Some(Credential::Bearer(token)) = credential {
        return Ok(FetchedToken { value: token.clone(), lifetime: token::DEFAULT_LIFETIME });
    }
    let (host, client_id, subject) = (&request.host, &request.client_id, format!("a token for {}", request.host));
    let asker = Asker { host, client, client_id, subject: &subject };
    let service = Some(request.service.clone()).filter(|service| !service.is_empty());
    let realm = Realm { url: request.realm.clone(), service };
    let mut scopes = Scopes::default();
    for scope in &request.scopes {
        scopes.merge(scope);
    }
    let token = token::fetch(&asker, &realm, credential, &scopes, First::Post).await?;
    Ok(FetchedToken { value: token.value, lifetime: token.lifetime })
}
