//! Tokens of registries, fetched here for a daemon that has no business with our passwords.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Fault, Kind};
use http_client::{Pools, Proxies, Settings, TlsIdentity};
use registry::Credential;
use session::local::TokenSeeds;
use session::remote::Tokens;
use session::{Credentials, Token, TokenRequest};

use crate::environment::Environment;

/// What a client fetches tokens with.
struct Fetcher {
    pools: Pools,
    /// How to speak TLS, by registry.
    identities: BTreeMap<String, TlsIdentity>,
    seeds: Arc<TokenSeeds>,
}

/// None where the user wants the daemon to fetch tokens.
pub fn fetcher(environment: &Environment, identities: BTreeMap<String, TlsIdentity>) -> Option<Arc<dyn Tokens>> {
    if environment.get("BUILDKIT_NO_CLIENT_TOKEN").and_then(config::parse_bool) == Some(true) {
        return None;
    }
    let proxies = Proxies::from_vars(|name| environment.lookup(name).map(str::to_owned));
    let pools = Pools::new(Settings { proxies, ..Settings::default() });
    let seeds = Arc::new(TokenSeeds::new(environment.docker_config_dir()));
    Some(Arc::new(Fetcher { pools, identities, seeds }))
}

#[async_trait]
impl Tokens for Fetcher {
    async fn seed(&self, host: &str) -> Result<Vec<u8>, Fault> {
        let (seeds, host) = (self.seeds.clone(), host.to_owned());
        let got = tokio::task::spawn_blocking(move || seeds.get(&host)).await;
        got.map_err(|error| Fault::because(Kind::Internal, "cannot read the seeds of tokens", error))
    }

    async fn fetch(&self, request: &TokenRequest, credentials: Option<Credentials>) -> Result<Token, Fault> {
        let doing = format!("cannot get a token for `{}`", request.host);
        let identity = self.identities.get(&request.host).cloned().unwrap_or_default();
        let client = self.pools.client(&identity).map_err(|error| Fault::because(Kind::User, doing.as_str(), error))?;
        let credential = credentials.map(|credentials| match credentials {
            Credentials::Basic { username, password } => Credential::Basic { username, password },
            Credentials::Refresh(token) => Credential::Refresh(token),
            Credentials::Bearer(token) => Credential::Bearer(token),
        });
        let TokenRequest { client_id, host, realm, service, scopes } = request.clone();
        let request = registry::TokenRequest { client_id, host, realm, service, scopes };
        let fetched = registry::fetch_token(&client, &request, credential.as_ref()).await;
        let fetched = fetched.map_err(|error| Fault::because(Kind::Remote, doing, error))?;
        Ok(Token { value: fetched.value, lifetime: fetched.lifetime })
    }
}
