//! The client's end of [`tokens`](super::tokens), and credentials for daemons that want them.

use std::sync::Arc;

use async_trait::async_trait;
use base::{Fault, Kind};
use proto::moby::filesync::v1 as filesync;
use proto::moby::filesync::v1::auth_server::Auth;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use tonic::{Request, Response, Status};

use super::serve::refused;
use super::tokens::SIGNATURE;
use crate::{Credentials, SharedSession, Token, TokenRequest};

/// Fetches tokens for a client.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// What nobody else knows about a host, and always the same for it. Its key is made of it.
    async fn seed(&self, host: &str) -> Result<Vec<u8>, Fault>;

    /// A token by these credentials, from the server that the registry names.
    async fn fetch(&self, request: &TokenRequest, credentials: Option<Credentials>) -> Result<Token, Fault>;
}

/// `moby.filesync.v1.Auth`.
pub(super) struct Logins {
    pub(super) session: SharedSession,
    pub(super) tokens: Option<Arc<dyn Tokens>>,
}

impl Logins {
    fn tokens(&self) -> Result<&Arc<dyn Tokens>, Status> {
        // Upstream's word for a client that is told to fetch none.
        self.tokens.as_ref().ok_or_else(|| Status::unavailable("client side tokens disabled"))
    }

    async fn key(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        let tokens = self.tokens()?;
        // Who has no credentials shares tokens with all who have none.
        let seed = match self.session.credentials(host).await.map_err(refused)? {
            Some(_) => tokens.seed(host).await.map_err(refused)?,
            None => Vec::new(),
        };
        key_pair(salt, &seed).map_err(refused)
    }
}

/// A client's key, of a daemon's salt and of its own secret.
pub(super) fn key_pair(salt: &[u8], seed: &[u8]) -> Result<Ed25519KeyPair, Fault> {
    let sum = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), seed);
    Ed25519KeyPair::from_seed_unchecked(sum.as_ref())
        .map_err(|error| Fault::new(Kind::Internal, format!("no key can be made: {error}")))
}

/// A signature, then what is signed.
pub(super) fn sign(key: &Ed25519KeyPair, payload: &[u8]) -> Vec<u8> {
    let mut signed = Vec::with_capacity(SIGNATURE + payload.len());
    signed.extend_from_slice(key.sign(payload).as_ref());
    signed.extend_from_slice(payload);
    signed
}

#[tonic::async_trait]
impl Auth for Logins {
    async fn credentials(
        &self,
        request: Request<filesync::CredentialsRequest>,
    ) -> Result<Response<filesync::CredentialsResponse>, Status> {
        let found = self.session.credentials(&request.get_ref().host).await.map_err(refused)?;
        Ok(Response::new(match found {
            None | Some(Credentials::Bearer(_)) => filesync::CredentialsResponse::default(),
            Some(Credentials::Basic { username, password }) => {
                filesync::CredentialsResponse { username, secret: text(&password) }
            }
            // Without a user it is an identity token.
            Some(Credentials::Refresh(token)) => {
                filesync::CredentialsResponse { username: String::new(), secret: text(&token) }
            }
        }))
    }

    async fn fetch_token(
        &self,
        request: Request<filesync::FetchTokenRequest>,
    ) -> Result<Response<filesync::FetchTokenResponse>, Status> {
        let tokens = self.tokens()?;
        let request = request.into_inner();
        let credentials = self.session.credentials(&request.host).await.map_err(refused)?;
        let request = TokenRequest {
            client_id: request.client_id,
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let token = tokens.fetch(&request, credentials).await.map_err(refused)?;
        let expires_in = i64::try_from(token.lifetime.as_secs()).unwrap_or(0);
        let answer = filesync::FetchTokenResponse { token: text(&token.value), expires_in, ..Default::default() };
        Ok(Response::new(answer))
    }

    async fn get_token_authority(
        &self,
        request: Request<filesync::GetTokenAuthorityRequest>,
    ) -> Result<Response<filesync::GetTokenAuthorityResponse>, Status> {
        let request = request.get_ref();
        let key = self.key(&request.host, &request.salt).await?;
        Ok(Response::new(filesync::GetTokenAuthorityResponse { public_key: key.public_key().as_ref().to_vec() }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<filesync::VerifyTokenAuthorityRequest>,
    ) -> Result<Response<filesync::VerifyTokenAuthorityResponse>, Status> {
        let request = request.get_ref();
        let key = self.key(&request.host, &request.salt).await?;
        Ok(Response::new(filesync::VerifyTokenAuthorityResponse { signed: sign(&key, &request.payload) }))
    }
}

fn text(secret: &base::Secret) -> String {
    String::from_utf8_lossy(secret.expose()).into_owned()
}
