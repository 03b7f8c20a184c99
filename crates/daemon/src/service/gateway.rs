//! `moby.buildkit.v1.frontend.LLBBridge`: builds whose frontend is a client. `docker buildx` and `buildctl` build so.
//!
//! `Control.Solve` without a frontend and without a definition waits for [`Return`](llb_bridge_server::LlbBridge::return);
//! until then the client asks here, and names its build in metadata.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use base::Fault;
use base::progress::Warning;
use engine::{Bridge, CacheOptions, Frontend, FrontendResult, Ref, Refs};
use files::receive::Sent;
use proto::Message as _;
use proto::moby::buildkit::v1::apicaps::ApiCap;
use proto::moby::buildkit::v1::frontend as wire;
use proto::moby::buildkit::v1::frontend::llb_bridge_server;
use proto::solve::{FRONTEND_SOLVE, FrontendSolve};
use session::remote::MAX_MESSAGE;
use session::remote::service::Calls;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::containers::{self, Containers, Messages};
use super::names::Names;
use super::{error, resolve};
use crate::Shared;

/// What frontends may ask: BuildKit's capability ids.
const CAPS: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "importcaches",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "proto.refarray",
    "reference.output",
    "gateway.solve.metadata",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.exec.filesystem",
    "frontend.inputs",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "source.metaresolver",
];

pub(crate) struct Gateway(pub(crate) Arc<Shared>);

/// A build whose frontend is a client.
pub(crate) struct ClientBuild {
    pub(super) bridge: Bridge,
    refs: Names<Ref>,
    inputs: HashMap<String, proto::pb::Definition>,
    containers: Arc<Containers>,
    returned: Mutex<Option<oneshot::Sender<Result<FrontendResult, Fault>>>>,
}

impl ClientBuild {
    /// A build, and where its result comes out.
    pub(crate) fn new(
        bridge: Bridge,
        inputs: HashMap<String, proto::pb::Definition>,
    ) -> (ClientBuild, oneshot::Receiver<Result<FrontendResult, Fault>>) {
        let (sender, returned) = oneshot::channel();
        bridge.keep_wrecks();
        (
            ClientBuild {
                bridge,
                refs: Names::default(),
                inputs,
                containers: Arc::default(),
                returned: Mutex::new(Some(sender)),
            },
            returned,
        )
    }

    /// Ends all containers. There are none any more.
    pub(crate) async fn release_containers(&self) {
        self.containers.close().await;
    }

    /// Gives a reference a name for the client; an empty tree has none.
    pub(super) fn name(&self, reference: Option<Ref>) -> String {
        reference.map_or_else(String::new, |reference| self.refs.add(reference))
    }

    /// How the client is told of a fault: with names for what was left, by which it may look into that.
    fn failed(&self, fault: &Fault) -> Status {
        let named: RefCell<Vec<String>> = RefCell::default();
        let status = super::solve_error::status(fault, |reference| {
            let id = self.name(reference);
            named.borrow_mut().push(id.clone());
            id
        });
        self.refs.came_with_failure(named.into_inner());
        status
    }

    fn find(&self, id: &str) -> Result<Option<Ref>, Fault> {
        if id.is_empty() {
            return Ok(None);
        }
        self.refs.find(id).map(Some).ok_or_else(|| Fault::user(format!("no such ref: {id}")))
    }

    fn made(&self, id: &str) -> Result<Ref, Fault> {
        self.find(id)?.ok_or_else(|| Fault::user(format!("empty ref: {id}")))
    }
}

fn failed(fault: Fault) -> Status {
    error::status(&fault)
}

impl Gateway {
    /// The build that a call is about.
    async fn build(&self, metadata: &MetadataMap) -> Result<Arc<ClientBuild>, Status> {
        let id = metadata.get("buildkit-controlapi-buildid").and_then(|id| id.to_str().ok());
        let id = id.ok_or_else(|| Status::invalid_argument("no buildid found in context"))?;
        let build = match self.0.builds.get(id).await {
            Some(build) => build.client().await,
            None if self.0.draining.is_cancelled() => return Err(super::control::about_to_end()),
            None => None,
        };
        build.ok_or_else(|| Status::not_found(format!("no such job {id}")))
    }
}

/// The service, but that definitions are read with what generated code does not know.
#[derive(Clone)]
pub(crate) struct WithResources {
    pub(crate) gateway: llb_bridge_server::LlbBridgeServer<Gateway>,
    pub(crate) shared: Arc<Shared>,
}

impl Calls for WithResources {
    const NAME: &'static str = "moby.buildkit.v1.frontend.LLBBridge";

    async fn call(mut self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() != FRONTEND_SOLVE {
            let Ok(response) = tower::Service::call(&mut self.gateway, request).await;
            return response;
        }
        let (request, _counted) = self.shared.load.count(request);
        let codec = ProstCodec::<wire::SolveResponse, FrontendSolve>::default();
        let gateway = Arc::new(Gateway(self.shared));
        let call = tower::service_fn(move |request: Request<FrontendSolve>| {
            let gateway = gateway.clone();
            async move { llb_bridge_server::LlbBridge::solve(&*gateway, request.map(|solve| solve.0)).await }
        });
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        grpc.unary(call, request).await
    }
}

#[tonic::async_trait]
impl llb_bridge_server::LlbBridge for Gateway {
    async fn ping(&self, request: Request<wire::PingRequest>) -> Result<Response<wire::PongResponse>, Status> {
        self.build(request.metadata()).await?;
        let cap = |id: &str| ApiCap { id: id.to_owned(), enabled: true, ..ApiCap::default() };
        let engine = &self.0.engine;
        Ok(Response::new(wire::PongResponse {
            frontend_api_caps: CAPS.iter().copied().map(cap).collect(),
            llb_caps: engine.llb_caps().map(cap).collect(),
            workers: vec![super::control::worker(&self.0.identity, engine.devices().await).into()],
        }))
    }

    async fn solve(&self, request: Request<wire::SolveRequest>) -> Result<Response<wire::SolveResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let (array, result_return) = (request.allow_result_array_ref, request.allow_result_return);
        let evaluate = request.evaluate;
        let result = solve(&build, request).await.map_err(|fault| build.failed(&fault))?;
        if evaluate {
            for reference in result.all() {
                build.bridge.evaluate(reference).await.map_err(|fault| build.failed(&fault))?;
            }
        }
        let mut only = String::new();
        let named = |reference: Option<Ref>| {
            // An empty one for an empty tree: a map entry without a value kills clients.
            let def = reference.as_ref().map(|reference| reference.definition().clone()).unwrap_or_default();
            let def = Some(proto::without_empty_entries(def));
            wire::Ref { id: build.name(reference), def }
        };
        let answer = match (result.refs, array) {
            (Refs::One(reference), _) => {
                let reference = named(reference);
                only.clone_from(&reference.id);
                if array {
                    wire::result::Result::Ref(reference)
                } else {
                    wire::result::Result::RefDeprecated(reference.id)
                }
            }
            (Refs::Many(_), _) if !result_return => {
                return Err(Status::unknown("solve did not return default result"));
            }
            (Refs::Many(many), true) => {
                let refs = many.into_iter().map(|(key, reference)| (key, named(reference))).collect();
                wire::result::Result::Refs(wire::RefMap { refs })
            }
            (Refs::Many(many), false) => {
                let refs = many.into_iter().map(|(key, reference)| (key, named(reference).id)).collect();
                wire::result::Result::RefsDeprecated(wire::RefMapDeprecated { refs })
            }
        };
        let metadata = result.metadata.into_iter().collect();
        let result = wire::Result { metadata, attestations: HashMap::new(), result: Some(answer) };
        let older = if result_return { String::new() } else { only };
        Ok(Response::new(wire::SolveResponse { r#ref: older, result: Some(result) }))
    }

    async fn r#return(&self, request: Request<wire::ReturnRequest>) -> Result<Response<wire::ReturnResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let result = match (request.error, request.result) {
            (Some(status), _) => Err(error::fault(&status)),
            (None, result) => returned(&build, result.unwrap_or_default()),
        };
        let waiting = build.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        match waiting {
            // The build may have been cancelled meanwhile.
            Some(waiting) => drop(waiting.send(result)),
            None => return Err(Status::already_exists("the build has returned already")),
        }
        Ok(Response::new(wire::ReturnResponse {}))
    }

    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        if let Some(reference) = build.find(&request.get_ref().r#ref).map_err(failed)? {
            build.bridge.evaluate(&reference).await.map_err(|fault| build.failed(&fault))?;
        }
        Ok(Response::new(wire::EvaluateResponse {}))
    }

    async fn read_file(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.made(&request.r#ref).map_err(failed)?;
        let range = request.range.map(|range| (range.offset.max(0) as u64, range.length.max(0) as u64));
        let data = build.bridge.read_file(&reference, &request.file_path, range).await;
        let data = data.map_err(|fault| build.failed(&fault))?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.made(&request.r#ref).map_err(failed)?;
        let entries = build.bridge.read_dir(&reference, &request.dir_path, &request.include_pattern).await;
        let entries = entries.map_err(|fault| build.failed(&fault))?.into_iter().map(stat).collect();
        Ok(Response::new(wire::ReadDirResponse { entries }))
    }

    async fn stat_file(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.made(&request.r#ref).map_err(failed)?;
        let entry = build.bridge.stat_file(&reference, &request.path).await.map_err(|fault| build.failed(&fault))?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(stat(entry)) }))
    }

    async fn resolve_image_config(
        &self,
        request: Request<wire::ResolveImageConfigRequest>,
    ) -> Result<Response<wire::ResolveImageConfigResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let found = resolve::image_config(&build, request.into_inner()).await;
        found.map(Response::new).map_err(failed)
    }

    async fn resolve_source_meta(
        &self,
        request: Request<wire::ResolveSourceMetaRequest>,
    ) -> Result<Response<wire::ResolveSourceMetaResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let found = resolve::source(&build, request.into_inner()).await;
        found.map(Response::new).map_err(failed)
    }

    async fn inputs(&self, request: Request<wire::InputsRequest>) -> Result<Response<wire::InputsResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let inputs = build.inputs.iter();
        let inputs = inputs.map(|(name, input)| (name.clone(), proto::without_empty_entries(input.clone())));
        Ok(Response::new(wire::InputsResponse { definitions: inputs.collect() }))
    }

    async fn warn(&self, request: Request<wire::WarnRequest>) -> Result<Response<wire::WarnResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let vertex = request.digest.parse().map_err(|_| Status::invalid_argument("bad digest of a vertex"))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        build.bridge.warn(Warning {
            vertex,
            level: request.level,
            short: text(request.short),
            detail: request.detail.into_iter().map(text).collect(),
            url: Some(request.url).filter(|url| !url.is_empty()),
            file: request.info.map(|info| Arc::new(error::source_file(info))),
            spans: request.ranges.iter().map(error::span).collect(),
        });
        Ok(Response::new(wire::WarnResponse {}))
    }

    async fn new_container(
        &self,
        request: Request<wire::NewContainerRequest>,
    ) -> Result<Response<wire::NewContainerResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        build.containers.create(&build.bridge, request.into_inner(), |id| build.find(id)).await?;
        Ok(Response::new(wire::NewContainerResponse {}))
    }

    async fn release_container(
        &self,
        request: Request<wire::ReleaseContainerRequest>,
    ) -> Result<Response<wire::ReleaseContainerResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        build.containers.release(&request.get_ref().container_id).await?;
        Ok(Response::new(wire::ReleaseContainerResponse {}))
    }

    type ExecProcessStream = Messages;

    async fn exec_process(
        &self,
        request: Request<Streaming<wire::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        let build = self.build(request.metadata()).await?;
        Ok(Response::new(containers::exec(build.containers.clone(), request.into_inner())))
    }

    async fn read_file_container(
        &self,
        request: Request<wire::ReadFileRequest>,
    ) -> Result<Response<wire::ReadFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let (container, path) = (build.containers.find(&request.r#ref)?, absolute(&request.file_path)?);
        let range = request.range.map(|range| (range.offset.max(0) as u64, range.length.max(0) as u64));
        let data = container.read_file(mount_index(request.mount_index), path, range).await.map_err(failed)?;
        Ok(Response::new(wire::ReadFileResponse { data }))
    }

    async fn read_dir_container(
        &self,
        request: Request<wire::ReadDirRequest>,
    ) -> Result<Response<wire::ReadDirResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let (container, path) = (build.containers.find(&request.r#ref)?, absolute(&request.dir_path)?);
        let entries = container.read_dir(mount_index(request.mount_index), path, &request.include_pattern).await;
        let entries = entries.map_err(failed)?.into_iter().map(stat).collect();
        Ok(Response::new(wire::ReadDirResponse { entries }))
    }

    async fn stat_file_container(
        &self,
        request: Request<wire::StatFileRequest>,
    ) -> Result<Response<wire::StatFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let (container, path) = (build.containers.find(&request.r#ref)?, absolute(&request.path)?);
        let entry = container.stat_file(mount_index(request.mount_index), path).await.map_err(failed)?;
        Ok(Response::new(wire::StatFileResponse { stat: Some(stat(entry)) }))
    }
}

/// What is no index is that of no mount.
fn mount_index(index: i32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn absolute(path: &str) -> Result<&str, Status> {
    match path.starts_with('/') {
        true => Ok(path),
        false => Err(Status::unknown(format!("can't make {path} relative to /"))),
    }
}

async fn solve(build: &ClientBuild, request: wire::SolveRequest) -> Result<FrontendResult, Fault> {
    let inputs = request.frontend_inputs.iter().map(|(name, input)| (name.clone(), input.encode_to_vec())).collect();
    let import =
        |entry: wire::CacheOptionsEntry| CacheOptions { kind: entry.r#type, attrs: entry.attrs.into_iter().collect() };
    build.bridge.import(&request.cache_imports.into_iter().map(import).collect::<Vec<_>>());
    if request.r#final {
        return Err(Fault::user("clients that do not return their result are too old"));
    }
    let frontend = match (request.frontend.as_str(), request.definition) {
        ("", definition) => Frontend::Llb {
            definition: definition.unwrap_or_default().encode_to_vec(),
            options: request.frontend_opt.into_iter().collect(),
        },
        (_, Some(definition)) if !definition.def.is_empty() => {
            return Err(Fault::user("cannot solve with both definition and frontend specified"));
        }
        (name, _) => {
            Frontend::Named { name: name.to_owned(), options: request.frontend_opt.into_iter().collect(), inputs }
        }
    };
    build.bridge.solve_by(frontend, &request.source_policies).await
}

/// A client's result, its references by their names.
fn returned(build: &ClientBuild, result: wire::Result) -> Result<FrontendResult, Fault> {
    if result.attestations.values().any(|list| !list.attestation.is_empty()) {
        return Err(Fault::user("attestations are not supported yet"));
    }
    let refs = match result.result {
        None => Refs::One(None),
        Some(wire::result::Result::RefDeprecated(id)) => Refs::One(build.find(&id)?),
        Some(wire::result::Result::Ref(reference)) => Refs::One(build.find(&reference.id)?),
        Some(wire::result::Result::RefsDeprecated(map)) => many(build, map.refs)?,
        Some(wire::result::Result::Refs(map)) => {
            many(build, map.refs.into_iter().map(|(key, reference)| (key, reference.id)).collect())?
        }
    };
    Ok(FrontendResult { refs, metadata: result.metadata.into_iter().collect() })
}

fn many(build: &ClientBuild, map: HashMap<String, String>) -> Result<Refs, Fault> {
    let found = map.into_iter().map(|(key, id)| Ok((key, build.find(&id)?)));
    Ok(Refs::Many(found.collect::<Result<BTreeMap<_, _>, Fault>>()?))
}

/// A file as clients know it; names that are no text are shown as far as they are.
fn stat(file: Sent) -> proto::generated_fsutil::types::Stat {
    let wire = session::remote::wire(file);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    proto::generated_fsutil::types::Stat {
        path: text(&wire.path),
        mode: wire.mode,
        uid: wire.uid,
        gid: wire.gid,
        size: wire.size,
        mod_time: wire.mod_time,
        linkname: text(&wire.linkname),
        devmajor: wire.devmajor,
        devminor: wire.devminor,
        xattrs: wire.xattrs.into_iter().collect(),
    }
}
