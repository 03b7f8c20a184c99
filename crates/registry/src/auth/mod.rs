//! Logging in: what hosts challenge us with, and the tokens that answer.
//!
//! [`Authority`] is shared by a process: it remembers each host's challenge, so that later requests carry their token
//! at once, and keeps tokens by (host, credential, scopes) until they expire. Credentials themselves are kept only by
//! the [`Wallet`] of one [`Repository`](crate::Repository), so that every build and every push asks for them anew.

mod challenge;
mod delegate;
mod scope;
#[cfg(test)]
mod tests;
mod token;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use base::{Digest, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http_client::{Client, Verify};
use tokio::time::Instant;

pub(crate) use challenge::{Challenge, parse_challenges};
pub use delegate::{FetchedToken, TokenRequest, fetch_token};
pub(crate) use scope::Scopes;

use crate::Error;

/// An error of somebody else's making.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What logs in to a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credential {
    /// User name and password.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of `config.json`).
    Refresh(Secret),
    /// A bearer token to send as it is (`registrytoken`).
    Bearer(Secret),
}

/// Who knows the credentials. Asked when a host demands some, not before.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// The credential for a host such as `registry-1.docker.io` or `localhost:5000`. None is anonymous.
    async fn get(&self, host: &str) -> Result<Option<Credential>, BoxError>;

    /// Whose tokens a host gets, where the source fetches them itself and shows no credential: a name that nobody else can
    /// take. None where it does not.
    async fn token_authority(&self, host: &str) -> Result<Option<Digest>, BoxError> {
        let _ = host;
        Ok(None)
    }

    /// A token, of a source that has an authority for the host.
    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, BoxError> {
        Err(format!("no tokens are fetched for `{}`", request.host).into())
    }
}

/// Has no credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl CredentialSource for Anonymous {
    async fn get(&self, _: &str) -> Result<Option<Credential>, BoxError> {
        Ok(None)
    }
}

impl Credential {
    /// Tells credentials apart without keeping them.
    fn fingerprint(credential: Option<&Credential>) -> Digest {
        let (kind, user, secret): (&[u8], &[u8], &[u8]) = match credential {
            None => (b"anonymous", b"", b""),
            Some(Credential::Basic { username, password }) => (b"basic", username.as_bytes(), password.expose()),
            Some(Credential::Refresh(secret)) => (b"refresh", b"", secret.expose()),
            Some(Credential::Bearer(secret)) => (b"bearer", b"", secret.expose()),
        };
        Digest::of([kind, user, secret].join(&0))
    }
}

/// The credentials of one repository handle, each asked for once until it fails.
pub(crate) struct Wallet {
    source: Arc<dyn CredentialSource>,
    known: tokio::sync::Mutex<HashMap<String, Option<Credential>>>,
    /// Hosts for which there was none when the source was asked last.
    lacking: Mutex<HashSet<String>>,
    authorities: tokio::sync::Mutex<HashMap<String, Option<Digest>>>,
}

impl Wallet {
    pub(crate) fn new(source: Arc<dyn CredentialSource>) -> Wallet {
        Wallet {
            source,
            known: tokio::sync::Mutex::default(),
            lacking: Mutex::default(),
            authorities: tokio::sync::Mutex::default(),
        }
    }

    /// Whose tokens the host gets, where the source fetches them.
    async fn token_authority(&self, host: &str) -> Result<Option<Digest>, Error> {
        let mut known = self.authorities.lock().await;
        if let Some(authority) = known.get(host) {
            return Ok(*authority);
        }
        let authority = self
            .source
            .token_authority(host)
            .await
            .map_err(|source| Error::Credentials { host: host.to_owned(), source })?;
        known.insert(host.to_owned(), authority);
        Ok(authority)
    }

    /// The credential, and whether it was asked for just now. Concurrent askers wait for one answer.
    async fn get(&self, host: &str) -> Result<(Option<Credential>, Age), Error> {
        let mut known = self.known.lock().await;
        if let Some(credential) = known.get(host) {
            return Ok((credential.clone(), Age::Kept));
        }
        let credential =
            self.source.get(host).await.map_err(|source| Error::Credentials { host: host.to_owned(), source })?;
        known.insert(host.to_owned(), credential.clone());
        let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        match &credential {
            Some(_) => lacking.remove(host),
            None => lacking.insert(host.to_owned()),
        };
        Ok((credential, Age::Fresh))
    }

    /// Whether the source was asked, and has none. Requests that fail beside this one make it forgotten, not unsaid.
    pub(crate) fn lacks(&self, host: &str) -> bool {
        self.lacking.lock().unwrap_or_else(PoisonError::into_inner).contains(host)
    }

    async fn forget(&self, host: &str) {
        self.known.lock().await.remove(host);
        self.authorities.lock().await.remove(host);
    }
}

/// Whether something was made for this request or kept from earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Fresh,
    Kept,
}

/// An `Authorization` header and where it comes from.
#[derive(Debug)]
pub(crate) struct Grant {
    pub header: HeaderValue,
    pub age: Age,
    /// Why no login stands behind it, where one may have been held back.
    pub unsent: Option<String>,
    key: Option<TokenKey>,
}

/// Whom a login concerns.
pub(crate) struct Party<'a> {
    /// `https://host:port`.
    pub origin: &'a str,
    /// Whether it has shown that it is that host.
    pub verify: Verify,
    /// Host and port, as credentials know it.
    pub host: &'a str,
    pub client: &'a Client,
    pub wallet: &'a Wallet,
    /// What the login is for, in error texts.
    pub subject: &'a str,
}

/// How token servers know us.
const CLIENT_ID: &str = "hullworks";

impl Party<'_> {
    fn key(&self) -> (String, Verify) {
        (self.origin.to_owned(), self.verify)
    }

    fn asker(&self) -> Asker<'_> {
        Asker { host: self.host, client: self.client, client_id: CLIENT_ID, subject: self.subject }
    }
}

/// Who asks a token server.
struct Asker<'a> {
    host: &'a str,
    client: &'a Client,
    client_id: &'a str,
    subject: &'a str,
}

impl Asker<'_> {
    fn malformed(&self, cause: String) -> Error {
        Error::Malformed { subject: self.subject.to_owned(), host: self.host.to_owned(), cause }
    }
}

/// Who logs in to a token server.
enum Login {
    Ours(Option<Credential>),
    Theirs(Digest),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    origin: String,
    verify: Verify,
    credential: Digest,
    scopes: String,
}

/// A token slot. Its lock makes concurrent requests share one trip to the token server.
type Slot = Arc<tokio::sync::Mutex<Option<token::Token>>>;

/// Challenges and tokens of a process.
#[derive(Default)]
pub(crate) struct Authority {
    /// What anybody may have said in the place of a host that shows no certificate is kept apart from what the host says.
    challenges: Mutex<HashMap<(String, Verify), Challenge>>,
    tokens: Mutex<HashMap<TokenKey, Slot>>,
}

/// Slots are swept when there are more than this.
const MANY_TOKENS: usize = 1024;

impl Authority {
    /// Remembers what a host demands. Says whether that was new.
    pub(crate) fn learn(&self, party: &Party<'_>, challenge: Challenge) -> bool {
        // The scope is one request's matter, not the host's.
        let challenge = challenge.without_scope();
        let mut challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        challenges.insert(party.key(), challenge.clone()).as_ref() != Some(&challenge)
    }

    /// The header for a request, as far as the host's demands are known. None: ask without.
    pub(crate) async fn grant(&self, party: &Party<'_>, scopes: &Scopes) -> Result<Option<Grant>, Error> {
        let challenge = self.challenges.lock().unwrap_or_else(PoisonError::into_inner).get(&party.key()).cloned();
        let Some(challenge) = challenge else { return Ok(None) };
        if let Challenge::Bearer { realm, service, scope: _ } = &challenge
            && let Some(authority) = party.wallet.token_authority(party.host).await?
        {
            let realm = token::Realm { url: realm.clone(), service: service.clone() };
            return self.token(party, &realm, Login::Theirs(authority), scopes).await.map(Some);
        }
        let (credential, age) = party.wallet.get(party.host).await?;
        match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => Ok(bearer(token.expose()).map(|h| Grant::plain(h, age))),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                Ok(basic(&username, &password).map(|h| Grant::plain(h, age)))
            }
            // No credential that fits: the request itself shows what the host says to that.
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service, scope: _ }, credential) => {
                let realm = token::Realm { url: realm, service };
                self.token(party, &realm, Login::Ours(credential), scopes).await.map(Some)
            }
        }
    }

    async fn token(
        &self,
        party: &Party<'_>,
        realm: &token::Realm,
        login: Login,
        scopes: &Scopes,
    ) -> Result<Grant, Error> {
        let key = TokenKey {
            origin: party.origin.to_owned(),
            verify: party.verify,
            credential: match &login {
                Login::Ours(credential) => Credential::fingerprint(credential.as_ref()),
                Login::Theirs(authority) => *authority,
            },
            scopes: scopes.to_string(),
        };
        let slot = self.slot(&key);
        let mut slot = slot.lock().await;
        let (token, age) = match slot.as_ref().filter(|token| token.expires > Instant::now()) {
            Some(token) => (token, Age::Kept),
            None => {
                let ours = async |credential: Option<&Credential>| {
                    token::fetch(&party.asker(), realm, credential, scopes, token::First::Get).await
                };
                let token = match (&login, realm.check(party)) {
                    (Login::Ours(Some(_)), Err(open)) => return Err(open),
                    (Login::Ours(credential), _) => ours(credential.as_ref()).await?,
                    (Login::Theirs(_), Ok(())) => delegate::fetch(party, realm, scopes).await?,
                    // Credentials that we do not see would go there, and whether there are any we are not told. What is
                    // public wants none.
                    (Login::Theirs(_), Err(open)) => match ours(None).await {
                        Ok(token) => token::Token { unsent: open.malformed().map(str::to_owned), ..token },
                        Err(Error::Answer(no)) if matches!(no.status.as_u16(), 401 | 403) => return Err(open),
                        Err(error) => return Err(error),
                    },
                };
                (&*slot.insert(token), Age::Fresh)
            }
        };
        let header = bearer(token.value.expose()).ok_or_else(|| Error::Malformed {
            subject: party.subject.to_owned(),
            host: party.host.to_owned(),
            cause: "its token cannot be sent in a header".to_owned(),
        })?;
        Ok(Grant { header, age, unsent: token.unsent.clone(), key: Some(key) })
    }

    fn slot(&self, key: &TokenKey) -> Slot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() > MANY_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, slot| match slot.try_lock() {
                Ok(token) => token.as_ref().is_some_and(|token| token.expires > now),
                Err(_) => true,
            });
        }
        tokens.entry(key.clone()).or_default().clone()
    }

    /// Drops what did not open the door, so that the next [`grant`](Authority::grant) asks for new keys.
    pub(crate) async fn forget(&self, party: &Party<'_>, grant: &Grant) {
        if let Some(key) = &grant.key {
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        }
        party.wallet.forget(party.host).await;
    }
}

impl Grant {
    fn plain(header: HeaderValue, age: Age) -> Grant {
        Grant { header, age, unsent: None, key: None }
    }
}

fn bearer(token: &[u8]) -> Option<HeaderValue> {
    sensitive([b"Bearer ", token].concat())
}

fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = [username.as_bytes(), b":", password.expose()].concat();
    sensitive(format!("Basic {}", STANDARD.encode(pair)).into_bytes())
}

fn sensitive(bytes: Vec<u8>) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(&bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}
