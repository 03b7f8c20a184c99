//! What repositories of a process share: connections, logins, and what was learned about hosts.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::Digest;
use http_client::{ConnectFailure, Pools, Request, Retry, Verify};
use image::Reference;
use tokio::time::Instant;
use url::Url;

use crate::auth::{Authority, CredentialSource};
use crate::config::{Endpoint, Schemes, has_port};
use crate::gate::Gate;
use crate::repository::Repository;
use crate::{Error, Registries};

/// How long a mirror that could not be reached is asked last.
const REST: Duration = Duration::from_secs(60);

/// Bounds of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blobs that move at once per host, pulls and pushes counted apart. BuildKit's figure is the default.
    pub transfers_per_host: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { transfers_per_host: 4 }
    }
}

/// The registry client of a process. Clones share everything.
#[derive(Clone)]
pub struct Client {
    registries: Arc<Registries>,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub pools: Pools,
    pub authority: Authority,
    pub pulls: Gate,
    pub pushes: Gate,
    /// What hosts that may speak either were found to speak.
    schemes: tokio::sync::Mutex<HashMap<(String, Verify), &'static str>>,
    /// Hosts that could not be reached, and until when they come last.
    resting: Mutex<HashMap<String, Instant>>,
    /// Hosts that sent wrong bytes for a digest.
    spoiled: Mutex<HashSet<(String, Digest)>>,
}

impl Client {
    /// A client on these pools.
    pub fn new(pools: Pools, registries: Registries, limits: Limits) -> Client {
        let shared = Shared {
            pools,
            authority: Authority::default(),
            pulls: Gate::new(limits.transfers_per_host),
            pushes: Gate::new(limits.transfers_per_host),
            schemes: tokio::sync::Mutex::default(),
            resting: Mutex::default(),
            spoiled: Mutex::default(),
        };
        Client { registries: Arc::new(registries), shared: Arc::new(shared) }
    }

    /// The registries it knows of.
    pub fn registries(&self) -> &Registries {
        &self.registries
    }

    /// The same client with other settings for hosts, such as [`Registries::with_insecure`].
    #[must_use]
    pub fn with_registries(&self, registries: Registries) -> Client {
        Client { registries: Arc::new(registries), shared: self.shared.clone() }
    }

    /// The repository of an image name. Credentials are asked for when a host demands some, and kept only as long as the
    /// repository lives.
    pub fn repository(&self, name: &Reference, credentials: Arc<dyn CredentialSource>) -> Result<Repository, Error> {
        let endpoints = self.registries.endpoints(name.domain())?;
        Ok(Repository::new(self.shared.clone(), name.domain(), name.path(), endpoints, credentials))
    }
}

impl Shared {
    /// `https` or `http`. A host that may speak either is asked once; the answer is kept.
    pub(crate) async fn scheme(&self, endpoint: &Endpoint) -> Result<&'static str, http_client::Error> {
        match endpoint.schemes {
            Schemes::Https => return Ok("https"),
            Schemes::Http => return Ok("http"),
            Schemes::Either => {}
        }
        let key = (endpoint.host.clone(), endpoint.identity.verify);
        let mut schemes = self.schemes.lock().await;
        if let Some(scheme) = schemes.get(&key) {
            return Ok(scheme);
        }
        let Ok(url) = Url::parse(&format!("https://{}/v2/", endpoint.host)) else { return Ok("https") };
        let probe = Request::get(url).retry(Retry::NEVER);
        let failure = match self.pools.client(&endpoint.identity)?.send(&probe).await {
            Ok(_) => {
                schemes.insert(key, "https");
                return Ok("https");
            }
            Err(error) => error.connect_failure(),
        };
        match failure {
            // Something listens there and does not shake hands: that is how servers of plain HTTP look from here.
            Some(ConnectFailure::NotTls | ConnectFailure::Other) => {
                schemes.insert(key, "http");
                Ok("http")
            }
            // 443 and 80 are two different ports; a stated port is one.
            Some(ConnectFailure::Refused | ConnectFailure::Timeout) if !has_port(&endpoint.host) => Ok("http"),
            // A plain server may also wait for more of what it takes for a request.
            Some(ConnectFailure::Timeout) => Ok("http"),
            // The request itself will tell what is wrong.
            _ => Ok("https"),
        }
    }

    /// The endpoints to pull from, best first: mirrors in their order, the registry, mirrors that could not be reached.
    pub(crate) fn in_order<'a>(&self, endpoints: &'a [Endpoint]) -> Vec<&'a Endpoint> {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        resting.retain(|_, until| *until > now);
        let mut ordered: Vec<&Endpoint> = endpoints.iter().collect();
        ordered.sort_by_key(|endpoint| endpoint.namespace.is_some() && resting.contains_key(&endpoint.host));
        ordered
    }

    /// Takes note of a host that could not be reached.
    pub(crate) fn rest(&self, host: &str) {
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(host.to_owned(), Instant::now() + REST);
    }

    /// Takes note of a host that sent wrong bytes.
    pub(crate) fn spoil(&self, host: &str, digest: Digest) {
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).insert((host.to_owned(), digest));
    }

    /// Whether a host has sent wrong bytes for a digest before.
    pub(crate) fn is_spoiled(&self, host: &str, digest: Digest) -> bool {
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).contains(&(host.to_owned(), digest))
    }
}
