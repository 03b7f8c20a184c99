//! Tokens that clients fetch themselves, so that their passwords stay with them: BuildKit's token authority. The daemon's end;
//! [`serve_auth`](super::serve_auth) is the client's.
//!
//! What a client may have had tokens for is told by a key pair that it makes of a secret of its own and of our salt. Who signs
//! with the key gets what was fetched for it before.

use std::sync::OnceLock;
use std::time::Duration;

use base::{Digest, Fault, Secret};
use proto::moby::filesync::v1::auth_client::AuthClient;
use proto::moby::filesync::v1::{FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest};
use ring::signature::{ED25519, UnparsedPublicKey};
use tonic::{Code, Response, Status};

use super::{AUTH_TIMEOUT, RemoteSession};
use crate::{Token, TokenRequest};

pub(super) const FETCH: &str = "/moby.filesync.v1.Auth/FetchToken";
pub(super) const AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
pub(super) const VERIFY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";

/// Bytes of a signature, before what is signed.
pub(super) const SIGNATURE: usize = 64;
/// Bytes of a public key.
const KEY: usize = 32;

/// What makes keys differ from daemon to daemon, and from one run to the next.
fn salt() -> [u8; 32] {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    *SALT.get_or_init(random)
}

fn random() -> [u8; 32] {
    // Two names of 125 random bits each, and no seed that may be missing.
    *Digest::of(crate::random_id() + &crate::random_id()).as_bytes()
}

/// Whose tokens the client gets. None where it fetches none.
pub(super) async fn authority(session: &RemoteSession, host: &str) -> Result<Option<Digest>, Fault> {
    if ![FETCH, AUTHORITY].iter().all(|method| session.supports(method)) {
        return Ok(None);
    }
    let doing = format!("cannot learn who fetches tokens for `{host}`");
    let mut auth = AuthClient::new(session.channel());
    let request = GetTokenAuthorityRequest { host: host.to_owned(), salt: salt().to_vec() };
    let call = async {
        match in_time(auth.get_token_authority(request)).await {
            Ok(answer) => Ok(Some(answer.public_key)),
            // Clients that are told not to fetch tokens are unavailable.
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => Ok(None),
            Err(status) => Err(status),
        }
    };
    let Some(key) = session.ask(&doing, call).await? else { return Ok(None) };
    if key.len() != KEY {
        return Err(Fault::new(base::Kind::Remote, format!("{doing}: the client's key has {} bytes", key.len())));
    }
    let is_proven = match session.supports(VERIFY) {
        true => session.ask(&doing, is_proven(session, host, &key)).await?,
        false => false,
    };
    // A key that it only claims to have is worth nothing beyond its own session.
    let whose = if is_proven { "" } else { session.id.as_str() };
    Ok(Some(Digest::of([b"authority", whose.as_bytes(), key.as_slice()].join(&0))))
}

/// Whether the client has the private key.
async fn is_proven(session: &RemoteSession, host: &str, key: &[u8]) -> Result<bool, Status> {
    let payload = random();
    let request =
        VerifyTokenAuthorityRequest { host: host.to_owned(), payload: payload.to_vec(), salt: salt().to_vec() };
    match in_time(AuthClient::new(session.channel()).verify_token_authority(request)).await {
        Ok(answer) => Ok(is_signed(key, &payload, &answer.signed)),
        Err(status) if status.code() == Code::Unimplemented => Ok(false),
        Err(status) => Err(status),
    }
}

/// Whether these are the payload and a signature of it.
fn is_signed(key: &[u8], payload: &[u8], signed: &[u8]) -> bool {
    signed.split_at_checked(SIGNATURE).is_some_and(|(signature, message)| {
        message == payload && UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
    })
}

/// Has the client fetch a token.
pub(super) async fn fetch(session: &RemoteSession, request: TokenRequest) -> Result<Token, Fault> {
    let doing = format!("cannot get a token for `{}` by the client", request.host);
    let message = FetchTokenRequest {
        client_id: request.client_id,
        host: request.host,
        realm: request.realm,
        service: request.service,
        scopes: request.scopes,
    };
    let mut auth = AuthClient::new(session.channel());
    let answer = session.ask(&doing, in_time(auth.fetch_token(message))).await?;
    let lifetime = Duration::from_secs(u64::try_from(answer.expires_in).unwrap_or(0));
    Ok(Token { value: Secret::new(answer.token), lifetime })
}

/// An answer that does not take longer than helpers may take to find credentials.
pub(super) async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(AUTH_TIMEOUT, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the client did not answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::KeyPair as _;

    use super::super::serve_auth::{key_pair, sign};
    use super::*;

    #[test]
    fn who_has_the_key_is_believed_and_nobody_else() {
        let pair = key_pair(b"salt", b"seed").expect("a key");
        let other = key_pair(b"salt", b"another seed").expect("a key");
        let key = pair.public_key().as_ref();
        assert!(is_signed(key, b"payload", &sign(&pair, b"payload")));
        assert!(!is_signed(key, b"payload", &sign(&other, b"payload")), "another's signature");
        assert!(!is_signed(key, b"payload", &sign(&pair, b"earlier")), "what was signed before");
        assert!(!is_signed(key, b"payload", b"short"));
        let salted = key_pair(b"other salt", b"seed").expect("a key");
        assert_ne!(salted.public_key().as_ref(), key, "another daemon learns nothing");
    }
}
