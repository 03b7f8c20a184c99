//! The daemon: BuildKit's control socket in front of an engine.
//!
//! [`listen`] opens the sockets, [`service`] turns calls into questions to the engine and answers into messages, and nothing
//! else; [`builds`] keeps what is told of builds under way. A newcomer reads `service/control.rs`, `Control::solve`.

mod builds;
pub mod listen;
pub mod service;
pub mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Fault, Kind, Platform};
use engine::Engine;
use session::remote::{MAX_MESSAGE, Sessions};
use tokio_util::sync::CancellationToken;

use builds::Builds;
use listen::Listener;

/// The version of BuildKit whose behaviour this is: clients choose features by it.
pub const BUILDKIT_VERSION: &str = "v0.29.0";

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
    pub(crate) identity: Identity,
    /// No new builds: the daemon is about to end.
    pub(crate) draining: CancellationToken,
}

/// Serves until `stop` is cancelled: then new builds are refused, and those that run are waited for, until `kill` is
/// cancelled, which ends them.
pub async fn serve(
    engine: Engine,
    identity: Identity,
    listeners: Vec<Listener>,
    stop: CancellationToken,
    kill: CancellationToken,
) -> Result<(), Fault> {
    let shared = Arc::new(Shared {
        engine: engine.clone(),
        sessions: Arc::new(Sessions::default()),
        builds: Arc::new(Builds::default()),
        identity,
        draining: stop.clone(),
    });
    let collecting = tokio::spawn(collect_garbage(shared.clone()));
    let ended = CancellationToken::new();
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        let router = router(&shared);
        let ended = ended.clone();
        tracing::info!(address = %listener.address(), "listening");
        serving.spawn(async move {
            let connections = listener.connections();
            router.serve_with_incoming_shutdown(connections, ended.cancelled_owned()).await
        });
    }
    let failed = |error: tonic::transport::Error| Fault::because(Kind::Environment, "cannot serve", error);
    tokio::select! {
        () = stop.cancelled() => {}
        Some(served) = serving.join_next() => {
            if let Ok(Err(error)) = served {
                return Err(failed(error));
            }
        }
    }
    tracing::info!(builds = shared.builds.running(), "no new builds; waiting for those that run");
    tokio::select! {
        () = shared.builds.idle() => {}
        () = kill.cancelled() => {
            shared.builds.cancel_all();
            shared.builds.idle().await;
        }
    }
    // Answers are on their way: connections end when their calls have, for a moment at most.
    ended.cancel();
    let all = async { while serving.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), all).await;
    serving.abort_all();
    // A round that runs is finished by `close`, which collects as well.
    collecting.abort();
    for stuck in engine.close().await {
        tracing::warn!(stuck, "it did not end in time");
    }
    Ok(())
}

/// How long after a build garbage is collected: its client may begin the next one at once.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Collects garbage when builds have ended, one round at a time.
async fn collect_garbage(shared: Arc<Shared>) {
    loop {
        shared.builds.ended().await;
        tokio::time::sleep(PAUSE).await;
        shared.engine.collect_garbage().await;
    }
}

fn router(shared: &Arc<Shared>) -> tonic::transport::server::Router {
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
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_max_header_list_size(16 << 20)
        .add_service(control)
        .add_service(gateway)
        .add_service(HealthServer::new(service::health::Health(shared.clone())))
}
