//! One build: its client, its progress, what it was allowed, where its vertices come from.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use base::progress::{Event, Sink, Warning};
use base::{Digest, Fault, Platform, Secret};
use registry::{Credential, CredentialSource, FetchedToken, TokenRequest};
use session::{Credentials, SharedSession};
use store::LazyLayer;
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use crate::cache::import::Import;
use crate::cache::lost::GivenUp;
use crate::devices::Rights;
use crate::hidden::Hidden;
use crate::images::ResolvedImage;
use crate::layout::StoreName;
use crate::ops::source::{Commit, Download, ResolveMode};
use crate::places::Places;
use crate::request::Entitlement;
use base::report::{Label, Running};

/// How often the client's directories are read in one build, where they change while they are.
const MOST_READINGS: u32 = 4;

/// One build. Lives until its result is exported.
pub(crate) struct Job {
    /// What its client calls it: for the log.
    pub(crate) reference: String,
    pub(crate) session: SharedSession,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) cancel: CancellationToken,
    entitlements: Vec<Entitlement>,
    /// Which devices its steps may have.
    pub(crate) devices: Rights,
    places: Mutex<Places>,
    labels: Mutex<HashMap<Digest, Arc<Label>>>,
    /// Vertices of other builds that are worked on for vertices of this one.
    followed: Mutex<HashMap<Digest, Digest>>,
    /// The vertices that layers came with: where people look for the progress of a download.
    pulls: Mutex<HashMap<store::SnapshotId, Digest>>,
    /// A name means one image for the whole build, however often it is asked for.
    images: Mutex<HashMap<ImageKey, ResolvedCell>>,
    /// Files of the web, by what is asked for.
    downloads: Mutex<HashMap<Digest, Arc<OnceCell<Arc<Download>>>>>,
    /// What references of git repositories stand for.
    commits: Mutex<HashMap<String, Arc<OnceCell<Arc<Commit>>>>>,
    /// Content stores of clients that the build names.
    stores: Mutex<Vec<StoreName>>,
    /// Caches that the build may read.
    imports: Mutex<Vec<Arc<Import>>>,
    given_up: Mutex<GivenUp>,
    /// What it was warned of.
    warned: Mutex<HashSet<String>>,
    /// Cache mounts that are retired for steps of this build, and whether they stand on something. Whoever comes second waits.
    retired_mounts: Mutex<HashMap<CacheMountName, Once>>,
    /// Who wants to know what steps made, as soon as they have.
    made: Mutex<Option<mpsc::UnboundedSender<Arc<store::Hold>>>>,
    /// Its client looks into what failed.
    wants_wrecks: AtomicBool,
    /// It was told that its steps run without limits.
    unlimited: AtomicBool,
    /// How often the client's directories were found to be others than those that were read first.
    reading: AtomicU32,
    /// What vertices of later readings are called in definitions.
    originals: Mutex<HashMap<Digest, Digest>>,
    /// What vertices are called in definitions whose sources policies changed.
    converted: Mutex<HashMap<Digest, Digest>>,
    hidden: Mutex<Hidden>,
    /// What the client says about sources.
    pub(crate) policies: llb::policy::Policies,
}

/// The id of a cache mount, and whether it stands on something.
pub(crate) type CacheMountName = (String, bool);
/// Something that is done once, and that all wait for.
type Once = Arc<OnceCell<()>>;
type ImageKey = (String, Platform, ResolveMode);
type ResolvedCell = Arc<OnceCell<Arc<ResolvedImage>>>;

impl Job {
    pub(crate) fn new(
        reference: String,
        session: SharedSession,
        sink: Arc<dyn Sink>,
        cancel: CancellationToken,
        entitlements: Vec<Entitlement>,
        policies: llb::policy::Policies,
    ) -> Job {
        Job {
            reference,
            session,
            sink,
            cancel,
            devices: Rights::of(&entitlements),
            entitlements,
            places: Mutex::default(),
            labels: Mutex::default(),
            followed: Mutex::default(),
            pulls: Mutex::default(),
            images: Mutex::default(),
            downloads: Mutex::default(),
            commits: Mutex::default(),
            stores: Mutex::default(),
            imports: Mutex::default(),
            given_up: Mutex::default(),
            warned: Mutex::default(),
            retired_mounts: Mutex::default(),
            made: Mutex::default(),
            wants_wrecks: AtomicBool::new(false),
            unlimited: AtomicBool::new(false),
            reading: AtomicU32::new(0),
            originals: Mutex::default(),
            converted: Mutex::default(),
            hidden: Mutex::default(),
            policies,
        }
    }

    /// What the log may not have of it.
    pub(crate) fn hidden(&self) -> MutexGuard<'_, Hidden> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that its steps run without limits that they ask for. Says whether that is new.
    pub(crate) fn note_unlimited(&self) -> bool {
        !self.unlimited.swap(true, Ordering::Relaxed)
    }

    /// Warns in a phase of its own, unless the build has been warned of the same.
    pub(crate) fn warn_once(&self, phase: &str, short: String) {
        if !self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(short.clone()) {
            return;
        }
        let label = Label::phase(phase);
        let running = Running::start(self.sink.clone(), &label);
        let (vertex, detail, spans) = (label.digest, Vec::new(), Vec::new());
        self.sink.emit(Event::Warning(Warning { vertex, level: 0, short, detail, url: None, file: None, spans }));
        let _ = running.end(Ok::<(), Fault>(()));
    }

    /// An answer of the client, for as long as the build is wanted.
    pub(crate) async fn unless_cancelled<T>(&self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::select! {
            answer = answer => answer,
            () = self.cancel.cancelled() => Err(Fault::cancelled()),
        }
    }

    /// What steps make from now on. One may listen.
    pub(crate) fn tell_made(&self) -> mpsc::UnboundedReceiver<Arc<store::Hold>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// A step made this.
    pub(crate) fn has_made(&self, hold: &Arc<store::Hold>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is held for who does not listen any more.
        if made.as_ref().is_some_and(|made| made.send(hold.clone()).is_err()) {
            *made = None;
        }
    }

    /// From now on ops leave behind what there is to see when they fail.
    pub(crate) fn want_wrecks(&self) {
        self.wants_wrecks.store(true, Ordering::Relaxed);
    }

    pub(crate) fn wants_wrecks(&self) -> bool {
        self.wants_wrecks.load(Ordering::Relaxed)
    }

    /// Which reading of the client's directories new work is based on.
    pub(crate) fn reading(&self) -> u32 {
        self.reading.load(Ordering::Acquire)
    }

    /// What was read is not what is there any more. Whether to read it anew: not without end.
    pub(crate) fn read_anew(&self, read: u32) -> bool {
        let next = |now| (now == read && now + 1 < MOST_READINGS).then_some(now + 1);
        let advanced = self.reading.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        advanced.is_ok() || self.reading() > read
    }

    /// Whether what reads a directory that changes is tried again.
    pub(crate) fn has_readings_left(&self) -> bool {
        self.reading() + 1 < MOST_READINGS
    }

    /// Caches that the build may read.
    pub(crate) fn imports(&self) -> MutexGuard<'_, Vec<Arc<Import>>> {
        self.imports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Caches that turned out to be of no use.
    pub(crate) fn given_up(&self) -> MutexGuard<'_, GivenUp> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache mounts of a step that must run anew: it begins with empty ones. Once in a build, so that its steps still
    /// share them.
    pub(crate) fn mounts_to_retire(&self, vertex: &llb::Vertex) -> Vec<(CacheMountName, Once)> {
        use llb::pb;
        let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { return Vec::new() };
        if !vertex.ignore_cache() {
            return Vec::new();
        }
        let caches = exec.mounts.iter().filter(|mount| mount.mount_type() == pb::MountType::Cache);
        let name = |mount: &pb::Mount| Some((mount.cache_opt.as_ref()?.id.clone(), mount.input != -1));
        let mut retired = self.retired_mounts.lock().unwrap_or_else(PoisonError::into_inner);
        caches.filter_map(name).map(|name| (name.clone(), retired.entry(name).or_default().clone())).collect()
    }

    /// The name of a vertex of `reading`, and of a generation; `original` is what the definition calls it.
    pub(crate) fn rename(&self, original: Digest, reading: u32, generation: u64) -> Digest {
        if reading == 0 && generation == 0 {
            return original;
        }
        let renamed = Digest::of(format!("reading {reading} generation {generation} {original}"));
        self.originals.lock().unwrap_or_else(PoisonError::into_inner).insert(renamed, original);
        renamed
    }

    /// Notes that another build's vertex is worked on for one of this build, which is the same work.
    pub(crate) fn follow(&self, theirs: Digest, ours: Digest) {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).insert(theirs, ours);
    }

    /// What this build calls a vertex that is worked on for it; none if it never heard of it.
    pub(crate) fn name_of(&self, vertex: Digest) -> Option<Digest> {
        if self.label(vertex).is_some() {
            return Some(vertex);
        }
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).get(&vertex).copied()
    }

    /// Whether another build's vertex was worked on for this one.
    pub(crate) fn follows_for(&self, vertex: Digest) -> bool {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).values().any(|ours| *ours == vertex)
    }

    /// What the definition calls a vertex.
    pub(crate) fn original(&self, vertex: Digest) -> Digest {
        self.originals.lock().unwrap_or_else(PoisonError::into_inner).get(&vertex).copied().unwrap_or(vertex)
    }

    /// Notes what policies made of vertices: their new names with the old ones.
    pub(crate) fn add_converted(&self, renamed: Vec<(Digest, Digest)>) {
        self.converted.lock().unwrap_or_else(PoisonError::into_inner).extend(renamed);
    }

    pub(crate) fn add_places(&self, source: &llb::pb::Source) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).add(source);
    }

    pub(crate) fn locate(&self, fault: Fault, vertex: Digest) -> Fault {
        let vertex = self.original(vertex);
        let converted = self.converted.lock().unwrap_or_else(PoisonError::into_inner).get(&vertex).copied();
        let vertex = converted.unwrap_or(vertex);
        self.places.lock().unwrap_or_else(PoisonError::into_inner).locate(fault, vertex)
    }

    /// Notes what a vertex is called; whether it was new.
    pub(crate) fn add_label(&self, label: Label) -> bool {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        labels.insert(label.digest, Arc::new(label)).is_none()
    }

    pub(crate) fn label(&self, vertex: Digest) -> Option<Arc<Label>> {
        self.labels.lock().unwrap_or_else(PoisonError::into_inner).get(&vertex).cloned()
    }

    /// Notes that a layer came with a vertex.
    pub(crate) fn add_pull(&self, layers: impl IntoIterator<Item = store::SnapshotId>, vertex: Digest) {
        let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.extend(layers.into_iter().map(|layer| (layer, vertex)));
    }

    /// The vertex that a layer came with, in this build.
    pub(crate) fn pull(&self, layer: store::SnapshotId) -> Option<Arc<Label>> {
        let vertex = self.pulls.lock().unwrap_or_else(PoisonError::into_inner).get(&layer).copied()?;
        self.label(vertex)
    }

    /// The slot of an image's resolution in this build.
    pub(crate) fn image(&self, reference: &str, platform: &Platform, mode: ResolveMode) -> ResolvedCell {
        let key = (reference.to_owned(), platform.clone(), mode);
        self.images.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    /// A layer of an image that the build has found, by its chain id.
    pub(crate) fn image_layer(&self, chain_id: &Digest) -> Option<LazyLayer> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = images.values().filter_map(|cell| cell.get());
        found.find_map(|image| image.layers().find(|layer| layer.chain_id == *chain_id))
    }

    /// The slot of a file of the web in this build.
    pub(crate) fn download(&self, id: Digest) -> Arc<OnceCell<Arc<Download>>> {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    /// The slot of what a reference stands for in this build.
    pub(crate) fn commit(&self, reference: &str) -> Arc<OnceCell<Arc<Commit>>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).entry(reference.to_owned()).or_default().clone()
    }

    /// Notes a content store that the build names.
    pub(crate) fn add_store(&self, name: StoreName) {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if !stores.contains(&name) {
            stores.push(name);
        }
    }

    /// The content stores that the build names.
    pub(crate) fn stores(&self) -> Vec<StoreName> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the build was given a right.
    pub(crate) fn allows(&self, right: &Entitlement) -> bool {
        self.entitlements.contains(right)
    }

    /// Refuses vertices that need a right which this build was not given.
    pub(crate) fn check_rights(&self, vertex: &llb::Vertex) -> Result<(), Fault> {
        use llb::pb;
        let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { return Ok(()) };
        // What a newer client may mean by it is nothing to guess at.
        for (what, value, is_known) in [
            ("security", exec.security, pb::SecurityMode::try_from(exec.security).is_ok()),
            ("network", exec.network, pb::NetMode::try_from(exec.network).is_ok()),
        ] {
            if !is_known {
                return Err(self.locate(Fault::user(format!("invalid {what} mode {value}")), vertex.digest));
            }
        }
        let needed = [
            (exec.network() == pb::NetMode::Host, Entitlement::NetworkHost, "network.host"),
            (exec.security() == pb::SecurityMode::Insecure, Entitlement::SecurityInsecure, "security.insecure"),
        ];
        for (needs, right, name) in needed {
            if needs && !self.allows(&right) {
                let fault = Fault::user(format!("entitlement {name} is not allowed")).hint(format!(
                    "allow it with `--allow {name}`; a daemon must allow it too, \
                         by `insecure-entitlements` or `--allow-insecure-entitlement {name}`"
                ));
                return Err(self.locate(fault, vertex.digest));
            }
        }
        Ok(())
    }

    /// The session's credentials, as the registry client asks for them.
    pub(crate) fn credentials(self: &Arc<Self>) -> Arc<dyn CredentialSource> {
        Arc::new(SessionCredentials(self.session.clone()))
    }

    pub(crate) async fn agent(&self, id: &str) -> Result<Option<Arc<dyn session::Agent>>, Fault> {
        self.session.agent(id).await
    }

    pub(crate) async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault> {
        self.session.secret(id).await
    }
}

/// The secret of the first client that has it.
pub(crate) async fn secret(jobs: &[Arc<Job>], id: &str) -> Result<Option<Secret>, Fault> {
    first(jobs, |job| job.secret(id)).await
}

/// The SSH agent of the first client that lends one.
pub(crate) async fn agent(jobs: &[Arc<Job>], id: &str) -> Result<Option<Arc<dyn session::Agent>>, Fault> {
    first(jobs, |job| job.agent(id)).await
}

/// What the first of the builds has. One that has ended meanwhile has nothing.
async fn first<'a, T, F>(jobs: &'a [Arc<Job>], find: impl Fn(&'a Job) -> F) -> Result<Option<T>, Fault>
where
    F: Future<Output = Result<Option<T>, Fault>>,
{
    let mut failed = None;
    for job in jobs {
        match find(job).await {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(_) if job.cancel.is_cancelled() => {}
            Err(fault) => failed = failed.or(Some(fault)),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// The sessions to ask for what `named` should have: that one, then those of the builds.
pub(crate) async fn sessions(jobs: &[Arc<Job>], named: Option<&str>) -> Vec<SharedSession> {
    let own = jobs.iter().map(|job| job.session.clone());
    let (mut first, rest): (Vec<_>, Vec<_>) = own.partition(|session| Some(session.id()) == named);
    if let (true, Some(named), Some(any)) = (first.is_empty(), named, rest.first()) {
        first.extend(any.other(named).await);
    }
    first.extend(rest);
    first
}

struct SessionCredentials(SharedSession);

#[async_trait]
impl CredentialSource for SessionCredentials {
    async fn get(&self, host: &str) -> Result<Option<Credential>, registry::BoxError> {
        let found = self.0.credentials(host).await?;
        Ok(found.map(|credentials| match credentials {
            Credentials::Basic { username, password } => Credential::Basic { username, password },
            Credentials::Refresh(token) => Credential::Refresh(token),
            Credentials::Bearer(token) => Credential::Bearer(token),
        }))
    }

    async fn token_authority(&self, host: &str) -> Result<Option<Digest>, registry::BoxError> {
        Ok(self.0.token_authority(host).await?)
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, registry::BoxError> {
        let TokenRequest { client_id, host, realm, service, scopes } = request.clone();
        let token = self.0.fetch_token(session::TokenRequest { client_id, host, realm, service, scopes }).await?;
        Ok(FetchedToken { value: token.value, lifetime: token.lifetime })
    }
}

/// Answers of a build, by platform: what a frontend makes of a request.
pub(crate) struct Built {
    /// In the order of the request.
    pub(crate) platforms: Vec<BuiltPlatform>,
    /// An index is wanted, even for one platform.
    pub(crate) multi: bool,
}

/// The result for one platform.
pub(crate) struct BuiltPlatform {
    /// The platform's key in exporter attributes: its text form.
    pub(crate) id: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) tree: crate::tree::Tree,
    /// What the result is remembered by.
    pub(crate) keys: Vec<Arc<solver::CacheKey>>,
    /// The image config, without its layers.
    pub(crate) config: Option<Vec<u8>>,
    /// The config of the image that the result stands on.
    pub(crate) base_config: Option<Vec<u8>>,
    /// `SOURCE_DATE_EPOCH` as the frontend knows it.
    pub(crate) epoch: Option<i64>,
}
