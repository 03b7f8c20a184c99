//! The daemon: BuildKit's control socket in front of an engine.
//!
//! [`listen`] opens the sockets, [`service`] turns calls into questions to the engine and answers into messages, and nothing
//! else; [`builds`] keeps what is told of builds under way, [`history`] of those that have ended; [`debug`] is for probes. A newcomer reads `service/control.rs`, `Control::solve`.

mod builds;
mod calls;
mod debug;
mod filter;
mod history;
pub mod listen;
mod load;
mod metrics;
pub mod notify;
pub mod service;
pub mod tls;
mod trace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Fault, Kind, Platform};
use engine::Engine;
use session::remote::service::Service;
use session::remote::{CONNECTION_WINDOW, MAX_FRAME, MAX_MESSAGE, STREAM_WINDOW, Sessions};
use tokio_util::sync::CancellationToken;
use tower::layer::util::Stack;

use builds::Builds;
use calls::Counting;
pub use debug::Debug;
use history::History;
pub use history::Keep;
use listen::Listener;
use load::Load;
pub use service::control::workers;
pub use trace::TracedBuild;
use trace::Traces;
pub use trace::caller::Caller;
use trace::export::Collector;
use trace::given::Given;

/// The version of BuildKit whose behaviour this is: clients choose features by it.
pub const BUILDKIT_VERSION: &str = "v0.29.0";

/// The release of Dockerfile frontends that the built-in one is: the one that came with that version.
pub const DOCKERFILE_VERSION: &str = "1.23.0";

/// What the daemon says of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The worker's id, the same at every start on one state directory.
    pub worker: String,
    /// Labels of the worker.
    pub labels: BTreeMap<String, String>,
    /// What it runs, the preferred one first.
    pub platforms: Vec<Platform>,
    /// Rules of garbage collection.
    pub gc: Vec<config::PrunePolicy>,
    /// Where our source is.
    pub package: String,
    /// Our commit.
    pub revision: String,
}

/// What all calls share.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) load: Load,
    pub(crate) history: Arc<History>,
    pub(crate) debug: Arc<Debug>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) identity: Identity,
    /// No new builds: the daemon is about to end.
    pub(crate) draining: CancellationToken,
}

/// What a daemon is made of.
pub struct Daemon {
    /// What builds.
    pub engine: Engine,
    /// What it says of itself.
    pub identity: Identity,
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// How long records of builds are kept.
    pub history: Keep,
    /// What is told on the debug address.
    pub debug: Arc<Debug>,
    /// OpenTelemetry's variables, which may name a collector of traces.
    pub telemetry: BTreeMap<String, String>,
    /// Who started it.
    pub supervisor: notify::Supervisor,
    /// How long builds may go on when it is told to end.
    pub drain: Duration,
}

/// Serves until `stop` is cancelled: then new builds are refused, and those that run are waited for, until `kill` is
/// cancelled or they took too long, which ends them.
pub async fn serve(daemon: Daemon, stop: CancellationToken, kill: CancellationToken) -> Result<(), Fault> {
    let Daemon { engine, identity, listeners, history, debug, telemetry, supervisor, drain } = daemon;
    let variable = |name: &str| telemetry.get(name).filter(|value| !value.is_empty()).cloned();
    let traces = Traces::of(Collector::of(variable), Given::of(variable));
    let store = engine.store().clone();
    let history = tokio::task::spawn_blocking(move || History::open(&store, history)).await;
    let history = history.map_err(|error| Fault::because(Kind::Internal, "cannot read build records", error))?;
    let history = history.map_err(|error| Fault::because(Kind::Environment, "cannot read build records", error))?;
    let shared = Arc::new(Shared {
        engine: engine.clone(),
        sessions: Arc::new(Sessions::default()),
        builds: Arc::new(Builds::default()),
        load: Load::default(),
        history: Arc::new(history),
        debug,
        traces: Arc::new(traces),
        identity,
        draining: stop.clone(),
    });
    shared.debug.ready(&shared.builds, &shared.draining);
    let forgetting = tokio::spawn(shared.history.clone().collect());
    let collecting = tokio::spawn(collect_garbage(shared.clone()));
    let ended = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    sys::memory::forget_code();
    for listener in listeners {
        let router = router(&shared);
        let ended = ended.clone();
        tracing::info!(address = %listener.address(), "listening");
        serving.spawn(async move {
            let connections = listener.connections();
            router.serve_with_incoming_shutdown(connections, ended.cancelled_owned()).await
        });
    }
    supervisor.tell(notify::READY);
    let failed = |error: tonic::transport::Error| Fault::because(Kind::Environment, "cannot serve", error);
    tokio::select! {
        () = stop.cancelled() => {}
        Some(served) = serving.join_next() => {
            if let Ok(Err(error)) = served {
                return Err(failed(error));
            }
        }
    }
    supervisor.tell(notify::STOPPING);
    let running = shared.builds.running();
    if running > 0 {
        tracing::info!(builds = running, "no new builds; waiting for those that run");
    }
    tokio::select! {
        () = shared.builds.idle() => {}
        () = given_up(&kill, drain) => {
            shared.builds.cancel_all();
            shared.builds.idle().await;
        }
    }
    // Whoever listens to what happens has heard the last.
    shared.history.closed.cancel();
    // Answers are on their way: connections end when their calls have, for a moment at most.
    ended.cancel();
    let all = async { while serving.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(2), all).await.is_err() {
        tracing::warn!("some clients do not hang up, or wait for answers: their connections end");
    }
    serving.abort_all();
    // A round that runs is finished by `close`, which collects as well.
    collecting.abort();
    forgetting.abort();
    let pruning = engine.pruning();
    if pruning > 0 {
        tracing::info!(calls = pruning, "waiting for the end of pruning that was asked for");
    }
    for stuck in engine.close().await {
        tracing::warn!(stuck, "it did not end in time");
    }
    shared.traces.finish().await;
    tracing::info!("ended");
    Ok(())
}

/// Waits until builds are not waited for any longer.
async fn given_up(kill: &CancellationToken, drain: Duration) {
    tokio::select! {
        () = kill.cancelled() => tracing::warn!("told to end again: builds are cancelled"),
        () = tokio::time::sleep(drain) => {
            tracing::warn!(after = ?drain, "builds did not end in time: they are cancelled");
        }
    }
}

/// How long after a build, or the start, garbage is collected: a client may begin a build at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Collects garbage at the start, by rules that may be new, and when builds have ended, one round at a time; that of memory,
/// too.
async fn collect_garbage(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        shared.engine.collect_garbage().await;
        sys::memory::give_back();
        shared.builds.ended().await;
        // What the next build does needs other parts of the program.
        sys::memory::forget_code();
    }
}

/// Bytes of one request's headers, unpacked: clients name their session and its methods there. A connection that sends more, or
/// more than some 100 KB packed, ends.
const MAX_HEADERS: u32 = 256 << 10;
/// Calls under way on one connection, of which a build has three or four. Clients wait with more.
const MAX_STREAMS: u32 = 4096;

type Router = tonic::transport::server::Router<Stack<Counting, tower::layer::util::Identity>>;

fn router(shared: &Arc<Shared>) -> Router {
    use proto::health::health_server::HealthServer;
    use proto::moby::buildkit::v1::control_server::ControlServer;
    use proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
    let control = ControlServer::new(service::control::Control(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let gateway = LlbBridgeServer::new(service::gateway::Gateway(shared.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .layer(Counting(shared.debug.metrics.clone()))
        .add_service(Service(service::control::WithSessions { control, shared: shared.clone() }))
        .add_service(Service(service::gateway::WithResources { gateway, shared: shared.clone() }))
        .add_service(Service(service::content::ContentStore(shared.clone())))
        .add_service(Service(service::trace::TraceService(shared.clone())))
        .add_service(HealthServer::new(service::health::Health(shared.clone())))
        .add_service(Service(service::reflection::Reflection::<0>))
        .add_service(Service(service::reflection::Reflection::<1>))
}
