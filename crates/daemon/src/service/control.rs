//! `moby.buildkit.v1.Control`.

use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{ByteSize, Fault, Kind};
use engine::{
    Begin, CacheOptions, Entitlement, ExportRequest, Exports, Frontend, Hidden, Inputs, PruneOptions, SolveRequest,
    UsageRecord, check_attestations,
};
use futures_util::{Stream, StreamExt as _};
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::types;
use proto::solve::{SOLVE, Solve};
use proto::version::{INFO, Info, LIST_WORKERS, Version, Worker, Workers};
use session::SharedSession;
use session::local::LocalSession;
use session::remote::service::Calls;
use session::remote::{Client, MAX_MESSAGE};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::gateway::ClientBuild;
use super::status::{responses, time};
use crate::filter::Filter;
use crate::history::Recording;
use crate::{BUILDKIT_VERSION, DOCKERFILE_VERSION, Identity, Shared};

/// Outputs are as BuildKit's release 0.31 writes them, by its number for that.
const COMPATIBILITY_VERSION: i64 = 30;

/// How much earlier than other calls about a build its client hears that it is refused.
const AHEAD: Duration = Duration::from_millis(100);

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct Control(pub(crate) Arc<Shared>);

fn failed(fault: Fault) -> Status {
    super::error::status(&fault)
}

/// The service, but for what generated code cannot do: of what sessions carry nothing is copied, and the newest fields of a
/// request to solve are read.
#[derive(Clone)]
pub(crate) struct WithSessions {
    pub(crate) control: wire::control_server::ControlServer<Control>,
    pub(crate) shared: Arc<Shared>,
}

impl Calls for WithSessions {
    const NAME: &'static str = "moby.buildkit.v1.Control";

    async fn call(mut self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() == session::remote::serve::SESSION {
            return self.shared.sessions.serve(request).unwrap_or_else(|fault| failed(fault).into_http());
        }
        if request.uri().path() == SOLVE {
            let (request, _counted) = self.shared.load.count(request);
            let codec = ProstCodec::<wire::SolveResponse, Solve>::default();
            let control = Arc::new(Control(self.shared));
            let call = tower::service_fn(move |request| {
                let control = control.clone();
                async move { control.solve_all(request).await }
            });
            return Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).unary(call, request).await;
        }
        let identity = &self.shared.identity;
        if request.uri().path() == INFO {
            let info = Info { version: Some(version(identity)) };
            let call = tower::service_fn(|_: Request<wire::InfoRequest>| ready(Ok(Response::new(info.clone()))));
            return Grpc::new(ProstCodec::<Info, _>::default()).unary(call, request).await;
        }
        if request.uri().path() == LIST_WORKERS {
            let engine = &self.shared.engine;
            let call = tower::service_fn(async |request: Request<wire::ListWorkersRequest>| {
                let found = workers(identity, engine.devices().await, &request.into_inner().filter);
                let found = found.map(|workers| Response::new(Workers { workers }));
                found.map_err(|fault| Status::invalid_argument(fault.cause()))
            });
            return Grpc::new(ProstCodec::<Workers, _>::default()).unary(call, request).await;
        }
        let Ok(response) = tower::Service::call(&mut self.control, request).await;
        response
    }
}

impl Control {
    async fn solve_all(&self, request: Request<Solve>) -> Result<Response<wire::SolveResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let supported = expect_supported(&request);
        let request = request.request;
        super::check_name("reference of the build", &request.r#ref)?;
        super::check_name("id of the session", &request.session)?;
        super::check_name("name of the frontend", &request.frontend)?;
        if self.0.draining.is_cancelled() {
            // Clients end their session with the first refusal, whichever call has it; this one says best what failed.
            self.0.sessions.settle_new(&request.session).await;
            let builds = self.0.builds.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AHEAD).await;
                builds.refuse(&request.r#ref);
            });
            return Err(about_to_end());
        }
        let trace = self.0.traces.begin(&metadata);
        let running =
            self.0.builds.begin(&request.r#ref).ok_or_else(|| {
                Status::already_exists(format!("a build with reference {} runs already", request.r#ref))
            })?;
        let recording = (!request.internal).then(|| Recording::begin(&self.0.history, &self.0.debug.metrics, &request));
        let cancel = running.build.cancel.clone();
        // A client that hangs up does not want its build any more.
        let hung_up = cancel.clone().drop_guard();
        let shared = self.0.clone();
        // A task of its own: it winds up in good order, whatever becomes of the call.
        let solving = tokio::spawn(async move {
            let session = request.session.clone();
            let log = (!request.internal).then(|| BuildLog::begin(&request));
            let solved = match supported {
                Ok(()) => solve(&shared, request, &running.build).await,
                Err(fault) => Err(fault),
            };
            running.build.wind_up();
            // Of whoever listens still: a client that hung up hears nothing.
            let solved = solved.map_err(|fault| match fault.kind() == Kind::Cancelled && running.build.is_cut_off() {
                true => fault.context("the daemon was told to end"),
                false => fault,
            });
            if let Some(log) = log {
                log.end(&running.build, &solved);
            }
            if let Some(recording) = recording {
                recording.complete(running.build.clone(), trace, &solved).await;
            } else {
                // No record keeps it, and the collector has it all the same.
                let error = solved.as_ref().err().map(ToString::to_string);
                trace.end(&running.build, error.as_deref());
            }
            shared.sessions.settle(&session).await;
            solved
        });
        let solved = solving.await.map_err(|error| Status::internal(error.to_string()))?;
        hung_up.disarm();
        let exporter_response = solved.map_err(failed)?.exporter_response.into_iter().collect();
        Ok(Response::new(wire::SolveResponse { exporter_response }))
    }
}

/// What the daemon's log has of a build: its beginning, its end, and the first line of why it failed, as its client reads it.
/// The build's record has all of it.
struct BuildLog {
    reference: String,
    hidden: Hidden,
    began: Instant,
}

impl BuildLog {
    fn begin(request: &wire::SolveRequest) -> BuildLog {
        let reference = short(&request.r#ref);
        tracing::info!(reference, "a build began");
        tracing::debug!(reference, session = request.session, frontend = request.frontend, "a build's client");
        BuildLog { reference, hidden: Hidden::of(&request.frontend_attrs), began: Instant::now() }
    }

    fn end(self, build: &crate::builds::Build, solved: &Result<engine::SolveResponse, Fault>) {
        let BuildLog { reference, hidden, began } = self;
        let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        let counts = build.counts();
        let (steps, cached) = (counts.total(), counts.cached());
        let outcome = match solved {
            Ok(_) => "succeeded",
            Err(fault) if fault.kind() == Kind::Cancelled => "was cancelled",
            Err(_) => "failed",
        };
        let fault = solved.as_ref().err();
        let kind = fault.map(|fault| tracing::field::debug(fault.kind()));
        let step = fault.and_then(Fault::get_vertex).map(|(digest, _)| tracing::field::display(digest));
        match fault.filter(|fault| fault.kind() != Kind::Cancelled) {
            Some(fault) => {
                let error = hidden.why(fault);
                tracing::warn!(reference, seconds, steps, cached, kind, step, error, "a build {outcome}");
            }
            None => tracing::info!(reference, seconds, steps, cached, kind, step, "a build {outcome}"),
        }
    }
}

/// As much of a build's reference as the log has room for: clients choose it.
fn short(reference: &str) -> String {
    const MOST_CHARS: usize = 64;
    reference.chars().take(MOST_CHARS).collect()
}

#[tonic::async_trait]
impl wire::control_server::Control for Control {
    async fn solve(&self, request: Request<wire::SolveRequest>) -> Result<Response<wire::SolveResponse>, Status> {
        // `WithSessions` stands in front, and reads more.
        self.solve_all(request.map(|request| Solve { request, ..Solve::default() })).await
    }

    type StatusStream = Answers<wire::StatusResponse>;

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let reference = request.into_inner().r#ref;
        super::check_name("reference of the build", &reference)?;
        let build = match self.0.builds.get_running(&reference) {
            Some(build) => build,
            None => match super::history::status(&self.0.history, &reference).await? {
                Some(messages) => return Ok(with_clock(messages)),
                None => match self.0.builds.get(&reference).await {
                    Some(build) => build,
                    None if self.0.draining.is_cancelled() => return Err(about_to_end()),
                    None => return Err(Status::not_found(format!("no such job {reference}"))),
                },
            },
        };
        let messages = futures_util::stream::unfold(0, move |from| {
            let build = build.clone();
            async move {
                let told = build.told_since(from).await?;
                let messages = responses(&told).into_iter().map(Ok).collect::<Vec<_>>();
                Some((futures_util::stream::iter(messages), from + told.len()))
            }
        });
        Ok(with_clock(Box::pin(messages.flatten())))
    }

    type SessionStream = Answers<wire::BytesMessage>;

    async fn session(
        &self,
        _: Request<Streaming<wire::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        // `WithSessions` stands in front.
        Err(Status::internal("sessions are answered elsewhere"))
    }

    async fn disk_usage(
        &self,
        request: Request<wire::DiskUsageRequest>,
    ) -> Result<Response<wire::DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let records = self.0.engine.disk_usage_of(&filters(request.filter)).await.map_err(failed)?;
        Ok(Response::new(wire::DiskUsageResponse { record: records.into_iter().map(usage).collect() }))
    }

    type PruneStream = Answers<wire::UsageRecord>;

    async fn prune(&self, request: Request<wire::PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let size = |bytes: i64| (bytes > 0).then_some(ByteSize(bytes as u64));
        let options = PruneOptions {
            all: request.all,
            keep_duration: u64::try_from(request.keep_duration).ok().filter(|n| *n > 0).map(Duration::from_nanos),
            reserved_space: size(request.reserved_space),
            max_used_space: size(request.max_used_space),
            min_free_space: size(request.min_free_space),
            filters: filters(request.filter),
        };
        let (records, done) = self.0.engine.prune(options).await;
        let records = records.into_iter().map(|record| Ok(usage(record)));
        let records = records.chain(done.map_err(failed).err().map(Err)).collect::<Vec<_>>();
        Ok(Response::new(Box::pin(futures_util::stream::iter(records))))
    }

    async fn list_workers(
        &self,
        _: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        // `WithSessions` stands in front, and answers more.
        Err(Status::internal("workers are listed elsewhere"))
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        // As above.
        Err(Status::internal("the version is told elsewhere"))
    }

    type ListenBuildHistoryStream = Answers<wire::BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<wire::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        super::history::listen(&self.0.history, request.into_inner()).await.map(with_clock)
    }

    async fn update_build_history(
        &self,
        request: Request<wire::UpdateBuildHistoryRequest>,
    ) -> Result<Response<wire::UpdateBuildHistoryResponse>, Status> {
        super::history::update(&self.0.history, request.into_inner()).await?;
        Ok(Response::new(wire::UpdateBuildHistoryResponse {}))
    }
}

fn version(identity: &Identity) -> Version {
    Version {
        package: identity.package.clone(),
        version: BUILDKIT_VERSION.to_owned(),
        revision: identity.revision.clone(),
        dockerfile: DOCKERFILE_VERSION.to_owned(),
    }
}

/// The one worker, if one of the filters selects it.
pub fn workers(identity: &Identity, devices: Vec<engine::Device>, filters: &[String]) -> Result<Vec<Worker>, Fault> {
    let filters = filters.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>();
    let filters = filters.map_err(Fault::user)?;
    let worker = worker(identity, devices);
    let record = &worker.record;
    let field = |path: &[String]| match path {
        [id] if id == "id" => Some(record.id.clone()),
        [labels, key] if labels == "labels" => record.labels.get(key).cloned(),
        _ => None,
    };
    let is_wanted = filters.is_empty() || filters.iter().any(|filter| filter.matches(field));
    Ok(if is_wanted { vec![worker] } else { Vec::new() })
}

/// The one worker.
pub(super) fn worker(identity: &Identity, devices: Vec<engine::Device>) -> Worker {
    let record = types::WorkerRecord {
        id: identity.worker.clone(),
        labels: identity.labels.clone().into_iter().collect(),
        platforms: identity.platforms.iter().map(platform).collect(),
        gc_policy: identity.gc.iter().map(gc_policy).collect(),
        cdi_devices: devices.into_iter().map(device).collect(),
        ..types::WorkerRecord::default()
    };
    Worker { record, version: version(identity) }
}

fn device(device: engine::Device) -> types::CdiDevice {
    types::CdiDevice {
        name: device.name,
        auto_allow: device.auto_allow,
        annotations: device.annotations.into_iter().collect(),
        // Nothing is installed because somebody asks for it.
        on_demand: false,
    }
}

/// Why nothing begins any more.
pub(super) fn about_to_end() -> Status {
    Status::unavailable("the daemon is about to end: try again")
}

/// Whether the newest wishes of a request can be met here.
fn expect_supported(request: &Solve) -> Result<(), Fault> {
    match request.compatibility_version {
        0 | COMPATIBILITY_VERSION => {}
        version => {
            return Err(Fault::user(format!(
                "unsupported compatibility-version `{version}` (supported: {COMPATIBILITY_VERSION})"
            ))
            .hint("leave it out"));
        }
    }
    if request.proxy_network {
        return Err(Fault::user("a proxy for the network of steps (`--proxy-network`) is not supported yet"));
    }
    Ok(())
}

/// One build, whoever its frontend is.
async fn solve(
    shared: &Shared,
    request: wire::SolveRequest,
    build: &Arc<crate::builds::Build>,
) -> Result<engine::SolveResponse, Fault> {
    let (request, by_client) = solve_request(shared, request, build).await?;
    match by_client {
        None => shared.engine.solve(request).await,
        Some(options) => solve_by_client(shared, request, options, build).await,
    }
}

/// A build whose frontend is the client: it asks through the gateway until it returns its result.
async fn solve_by_client(
    shared: &Shared,
    request: SolveRequest,
    client: ByClient,
    build: &Arc<crate::builds::Build>,
) -> Result<engine::SolveResponse, Fault> {
    let cancel = request.cancel.clone();
    let begin = Begin {
        reference: request.reference,
        session: request.session,
        progress: request.progress,
        cancel: request.cancel,
        entitlements: request.entitlements,
        source_policies: request.source_policies,
    };
    if !request.exports.is_empty() || request.late_exports {
        check_attestations(&client.options)?;
    }
    let bridge = shared.engine.begin(begin).await?;
    bridge.import(&request.cache_imports);
    if !request.late_exports {
        shared.engine.send_early(&bridge, &request.exports, &request.cache_exports)?;
    }
    let (returning, returned) = ClientBuild::new(bridge.clone(), client.inputs);
    let returning = Arc::new(returning);
    build.attach(Some(returning.clone()));
    let result = tokio::select! {
        result = returned => result.unwrap_or_else(|_| Err(Fault::cancelled())),
        () = cancel.cancelled() => Err(Fault::cancelled()),
    };
    let response = match result {
        Ok(result) => {
            let names = || result.all().into_iter().map(|tree| returning.name(Some(tree.clone()))).collect();
            let exports = Exports { asked: request.exports, late: request.late_exports.then(names) };
            shared.engine.export(&bridge, &result, exports, &request.cache_exports, &client.options).await
        }
        Err(fault) => Err(fault),
    };
    build.attach(None);
    // When a build has ended nothing of its containers is left.
    returning.release_containers().await;
    response
}

/// What a build is given whose frontend is the client.
struct ByClient {
    options: BTreeMap<String, String>,
    inputs: HashMap<String, proto::pb::Definition>,
}

/// A client's request as the engine takes it. What older clients say in other fields is read too. With it comes what is for
/// a build whose frontend is the client.
async fn solve_request(
    shared: &Shared,
    request: wire::SolveRequest,
    build: &Arc<crate::builds::Build>,
) -> Result<(SolveRequest, Option<ByClient>), Fault> {
    let session: SharedSession = match request.session.as_str() {
        "" => Arc::new(LocalSession::new(request.r#ref.clone())),
        id => Arc::new(Client(shared.sessions.get(id).await?, shared.sessions.clone())),
    };
    let inputs: Inputs =
        request.frontend_inputs.iter().map(|(name, input)| (name.clone(), input.encode_to_vec())).collect();
    if !request.source_policy_session.is_empty() {
        return Err(Fault::user(
            "source policies that the client decides on itself (SourcePolicySession) are not supported yet",
        )
        .hint("give the rules as a source policy file"));
    }
    let mut exports: Vec<ExportRequest> = request
        .exporters
        .into_iter()
        .map(|exporter| ExportRequest { kind: exporter.r#type, attrs: sorted(exporter.attrs) })
        .collect();
    if exports.is_empty() && !request.exporter_deprecated.is_empty() {
        let attrs = sorted(request.exporter_attrs_deprecated);
        exports.push(ExportRequest { kind: request.exporter_deprecated, attrs });
    }
    let mut by_client = None;
    let inputs_of_client = request.frontend_inputs;
    let frontend = match (request.frontend.as_str(), request.definition) {
        ("", Some(definition)) => {
            Frontend::Llb { definition: definition.encode_to_vec(), options: sorted(request.frontend_attrs) }
        }
        ("", None) => {
            by_client = Some(ByClient { options: sorted(request.frontend_attrs), inputs: inputs_of_client });
            Frontend::default()
        }
        (name, _) => Frontend::Named { name: name.to_owned(), options: sorted(request.frontend_attrs), inputs },
    };
    let cache = request.cache.unwrap_or_default();
    let options = |entry: wire::CacheOptionsEntry| CacheOptions { kind: entry.r#type, attrs: sorted(entry.attrs) };
    let registry = |reference: String, attrs: BTreeMap<String, String>| CacheOptions {
        kind: "registry".to_owned(),
        attrs: attrs.into_iter().chain([("ref".to_owned(), reference)]).collect(),
    };
    let mut cache_exports: Vec<CacheOptions> = cache.exports.into_iter().map(options).collect();
    if !cache.export_ref_deprecated.is_empty() {
        cache_exports.push(registry(cache.export_ref_deprecated, sorted(cache.export_attrs_deprecated)));
    }
    let mut cache_imports: Vec<CacheOptions> = cache.imports.into_iter().map(options).collect();
    let older = cache.import_refs_deprecated.into_iter().map(|reference| registry(reference, BTreeMap::new()));
    cache_imports.extend(older);
    let entitlements = request.entitlements.iter().map(|name| name.parse()).collect::<Result<Vec<Entitlement>, _>>()?;
    let request = SolveRequest {
        reference: short(&request.r#ref),
        frontend,
        exports,
        late_exports: request.enable_session_exporter,
        cache_imports,
        cache_exports,
        entitlements,
        source_policies: request.source_policy.into_iter().collect(),
        session,
        progress: build.clone(),
        cancel: build.cancel.clone(),
    };
    Ok((request, by_client))
}

/// Clients send an empty filter where there is none. It selects everything, also beside others.
fn filters(filters: Vec<String>) -> Vec<String> {
    if filters.iter().any(String::is_empty) { Vec::new() } else { filters }
}

fn sorted(attrs: std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    attrs.into_iter().collect()
}

fn usage(record: UsageRecord) -> wire::UsageRecord {
    #[expect(deprecated, reason = "older clients read the single parent")]
    wire::UsageRecord {
        id: record.id,
        mutable: record.mutable,
        in_use: record.in_use,
        size: i64::try_from(record.size.0).unwrap_or(i64::MAX),
        parent: record.parents.first().cloned().unwrap_or_default(),
        created_at: Some(time(record.created_at)),
        last_used_at: record.last_used_at.map(time),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        description: record.description,
        record_type: record.record_type,
        shared: record.shared,
        parents: record.parents,
    }
}

fn platform(platform: &base::Platform) -> proto::pb::Platform {
    proto::pb::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn gc_policy(rule: &config::PrunePolicy) -> types::GcPolicy {
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    types::GcPolicy {
        all: rule.all,
        keep_duration: i64::try_from(rule.keep_duration.as_nanos()).unwrap_or(i64::MAX),
        filters: rule.filters.clone(),
        reserved_space: bytes(rule.reserved_space),
        max_used_space: bytes(rule.max_used_space),
        min_free_space: bytes(rule.min_free_space),
    }
}

/// With our time: clients compare it with their own clock, to show times that make sense there.
fn with_clock<T>(stream: T) -> Response<T> {
    let mut response = Response::new(stream);
    if let Ok(now) = jiff::Timestamp::now().to_string().parse() {
        response.metadata_mut().insert("buildkit-current-timestamp", now);
    }
    response
}
