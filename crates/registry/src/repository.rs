//! One repository as one build sees it: its hosts, its credentials, and a request with its login.

use std::fmt;
use std::sync::Arc;

use base::Digest;
use http::header;
use http_client::{Notify, Request, Response, Retry};
use image::Reference;
use url::{Position, Url};

use crate::auth::{Age, CredentialSource, Party, Scopes, Wallet, parse_challenges};
use crate::client::Shared;
use crate::config::Endpoint;
use crate::error::{Answer, Error, Role};
use crate::progress::{Progress, Silent};
use crate::push::Target;

/// Requests per call: without a login, with one, and with a renewed or wider one.
const ROUNDS: usize = 3;

/// An image name, ready for pulls and pushes. Clones share credentials.
#[derive(Clone)]
pub struct Repository {
    pub(crate) shared: Arc<Shared>,
    domain: String,
    path: String,
    endpoints: Arc<Vec<Endpoint>>,
    wallet: Arc<Wallet>,
    pub(crate) progress: Arc<dyn Progress>,
    /// What passing troubles are answered with, unless there is another host to ask.
    pub(crate) retry: Retry,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({})", self.name())
    }
}

impl Repository {
    pub(crate) fn new(
        shared: Arc<Shared>,
        domain: &str,
        path: &str,
        endpoints: Vec<Endpoint>,
        credentials: Arc<dyn CredentialSource>,
    ) -> Repository {
        let retry = shared.pools.settings().retry.clone();
        Repository {
            shared,
            domain: domain.to_owned(),
            path: path.to_owned(),
            endpoints: Arc::new(endpoints),
            wallet: Arc::new(Wallet::new(credentials)),
            progress: Arc::new(Silent),
            retry,
        }
    }

    /// The same repository, telling its progress.
    #[must_use]
    pub fn with_progress(&self, progress: Arc<dyn Progress>) -> Repository {
        Repository { progress, ..self.clone() }
    }

    /// The same repository, as patient as that.
    #[must_use]
    pub fn with_retry(&self, retry: Retry) -> Repository {
        Repository { retry, ..self.clone() }
    }

    /// The registry in image names: `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path within the registry: `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Whether `other` lies in the same registry, so that its blobs can be mounted here.
    pub fn is_neighbour_of(&self, other: &Reference) -> bool {
        self.domain == other.domain()
    }

    /// Where pushes go.
    pub(crate) fn registry(&self) -> &Endpoint {
        self.endpoints.last().expect("`Registries::endpoints` ends with the registry itself")
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(crate) fn subject(&self, target: &Target) -> String {
        match target {
            Target::Tag(tag) => format!("{}:{tag}", self.name()),
            Target::Digest(digest) => self.subject_of(digest),
        }
    }

    pub(crate) fn subject_of(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// A path below the repository on one of its hosts.
    pub(crate) async fn url(&self, endpoint: &Endpoint, below: &str, subject: &str) -> Result<Url, Error> {
        let transport = |source| Error::Transport { subject: subject.to_owned(), source };
        let scheme = self.shared.scheme(endpoint).await.map_err(transport)?;
        let text = format!("{scheme}://{}{}/{}/{below}", endpoint.host, endpoint.api, self.path);
        let mut url = Url::parse(&text).map_err(|error| Error::Malformed {
            subject: subject.to_owned(),
            host: endpoint.host.clone(),
            cause: format!("no URL can be made of this name: {error}"),
        })?;
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// What a pull needs on this host. A mirror below a path has its own name for the repository.
    pub(crate) fn pull_scopes(&self, endpoint: &Endpoint) -> Scopes {
        let prefix = endpoint.api.trim_start_matches("/v2").trim_matches('/');
        match prefix {
            "" => Scopes::pull(&self.path),
            prefix => Scopes::pull(&format!("{prefix}/{}", self.path)),
        }
    }

    /// Sends a request with a login if the host wants one, renewing a login that stopped working.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        request: Request,
        mut scopes: Scopes,
        subject: &str,
    ) -> Result<Response, Error> {
        let transport = |source| Error::Transport { subject: subject.to_owned(), source };
        let client = self.shared.pools.client(&endpoint.identity).map_err(transport)?;
        let origin = request.url.origin().ascii_serialization();
        let party = Party {
            origin: &origin,
            verify: endpoint.identity.verify,
            host: &endpoint.host,
            client: &client,
            wallet: &self.wallet,
            subject,
        };
        let mut request = request.notify(Some(self.notify(subject)));
        let mut round = 1;
        loop {
            let grant = match self.shared.authority.grant(&party, &scopes).await {
                Err(Error::Answer(mut answer)) => {
                    answer.without_login = self.wallet.lacks(&endpoint.host).then(|| endpoint.host.clone());
                    return Err(Error::Answer(answer));
                }
                grant => grant?,
            };
            match &grant {
                Some(grant) => request.headers.insert(header::AUTHORIZATION, grant.header.clone()),
                None => request.headers.remove(header::AUTHORIZATION),
            };
            let response = client.send(&request).await.map_err(transport)?;
            let status = response.status().as_u16();
            let again = match status {
                // Where a redirect led is not for the registry to speak: no login of it goes there, and what is demanded there
                // is not what it demands.
                401 | 403 if !http_client::is_same_server(&request.url, response.url()) => return Ok(response),
                401 => match parse_challenges(response.headers()).into_iter().next() {
                    None => false,
                    Some(challenge) => {
                        let wider = challenge.scope().is_some_and(|scope| scopes.merge(scope));
                        let news = self.shared.authority.learn(&party, challenge);
                        wider || news || grant.as_ref().is_some_and(|grant| grant.age == Age::Kept)
                    }
                },
                // Some registries say so of a token that has run out.
                403 => grant.as_ref().is_some_and(|grant| grant.age == Age::Kept),
                _ => return Ok(response),
            };
            if !again || round == ROUNDS {
                // A login would have been wanted: to log in once more is no help.
                return match grant.and_then(|grant| grant.unsent) {
                    None => Ok(response),
                    Some(unsent) => Err(Error::Malformed {
                        subject: subject.to_owned(),
                        host: endpoint.host.clone(),
                        cause: format!("{unsent}, and {status} is what it answers without them"),
                    }),
                };
            }
            if let Some(grant) = &grant {
                self.shared.authority.forget(&party, grant).await;
            }
            round += 1;
        }
    }

    fn notify(&self, subject: &str) -> Notify {
        let progress = self.progress.clone();
        let subject = subject.to_owned();
        Arc::new(move |retrying| progress.retrying(&subject, retrying))
    }

    /// Takes note of a host that failed, for the order of later pulls.
    pub(crate) fn note_failure(&self, endpoint: &Endpoint, error: &Error) {
        // Without the name: it may be what a build was told by an argument, and the log has no values of those.
        let why = error.class();
        tracing::debug!(host = endpoint.host, ?why, "pull failed");
        if let Error::Transport { source, .. } = error
            && matches!(source, http_client::Error::Connect { .. } | http_client::Error::Timeout { .. })
        {
            self.shared.rest(&endpoint.host);
        }
    }

    /// An answer as an error.
    pub(crate) async fn refusal(&self, endpoint: &Endpoint, subject: &str, response: Response) -> Error {
        let (host, role) = match elsewhere(endpoint, response.url()) {
            Some(host) => (host, Role::Elsewhere),
            None if endpoint == self.registry() => (endpoint.host.clone(), Role::Registry),
            None => (endpoint.host.clone(), Role::Mirror),
        };
        let mut answer = Answer::read(subject, &host, role, response).await;
        let lacks = role != Role::Elsewhere && self.wallet.lacks(&host);
        answer.without_login = lacks.then_some(host);
        Error::Answer(answer)
    }
}

/// The host that answered, if it is not the one that was asked.
fn elsewhere(endpoint: &Endpoint, answered: &Url) -> Option<String> {
    let asked = Url::parse(&format!("{}://{}", answered.scheme(), endpoint.host)).ok()?;
    let host = &answered[Position::BeforeHost..Position::AfterPort];
    (&asked[Position::BeforeHost..Position::AfterPort] != host).then(|| host.to_owned())
}
