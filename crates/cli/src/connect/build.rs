//! One build by a daemon: it asks for our files, secrets and credentials, and tells how it goes.

use std::sync::Arc;

use base::progress::Sink;
use base::{Fault, Kind};
use daemon::service::error;
use daemon::service::status::events;
use engine::{Frontend, SolveRequest, SolveResponse};
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use session::remote::{Tokens, serve};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::address::{LARGEST, innermost};

/// How long the last words of a build are waited for, once its result is there.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(5);

/// Why there was no answer of a daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The connection ended.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The answer is one of a server of another kind.
    #[error("no buildkitd answers: {0}")]
    Foreign(String),
}

impl Broken {
    /// What a status that no daemon made stands for.
    pub(crate) fn of(status: &Status) -> Option<Broken> {
        let foreign = || status.message().strip_prefix("grpc-status header missing, mapped from ");
        match std::error::Error::source(status) {
            Some(source) => Some(Broken::Lost(innermost(source))),
            None => foreign().map(|what| Broken::Foreign(what.to_owned())),
        }
    }
}

/// What a daemon's refusal says.
pub(crate) fn fault(status: &Status) -> Fault {
    if let Some(broken) = Broken::of(status) {
        return Fault::because(Kind::Remote, "the daemon does not answer", broken);
    }
    match proto::rpc::Status::decode(status.details()) {
        Ok(details) if !status.details().is_empty() => {
            details.details.iter().filter_map(stack).for_each(|stack| tracing::debug!("{stack}"));
            error::fault(&details)
        }
        _ => {
            let (code, message) = (status.code() as i32, status.message().to_owned());
            error::fault(&proto::rpc::Status { code, message, details: Vec::new() })
        }
    }
}

/// Where in the daemon's sources an error was made, as upstream's client shows it with `--debug`.
fn stack(detail: &proto::protobuf::Any) -> Option<String> {
    let stack: serde_json::Value = match detail.type_url.contains("stack.Stack") {
        true => serde_json::from_slice(&detail.value).ok()?,
        false => return None,
    };
    let text = |of: &serde_json::Value| of.as_str().unwrap_or_default().to_owned();
    let cmdline: Vec<String> = stack["cmdline"].as_array()?.iter().map(text).collect();
    let mut shown = format!("{} {} {}", stack["pid"], text(&stack["version"]), cmdline.join(" "));
    for frame in stack["frames"].as_array()? {
        shown.push_str(&format!("\n{}\n\t{}:{}", text(&frame["Name"]), text(&frame["File"]), frame["Line"]));
    }
    Some(shown)
}

/// Solves a request by a daemon. The build belongs to the trace of this `traceparent`. Without `tokens` it is the daemon
/// that logs in to registries, by our credentials.
pub async fn solve(
    channel: Channel,
    request: SolveRequest,
    tokens: Option<Arc<dyn Tokens>>,
    trace: &str,
) -> Result<SolveResponse, Fault> {
    let control =
        ControlClient::new(channel.clone()).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
    // One name for both: `--ref-file` has it.
    let session = request.session.id().to_owned();
    let reference = session.clone();
    let (progress, shared, cancel) = (request.progress.clone(), request.session.clone(), request.cancel.clone());
    let message = wire_request(request, reference.clone(), session)?;
    // Refused while it is sent, it would look as if the connection had broken.
    let length = message.encoded_len();
    if length > LARGEST {
        let text = format!("ResourceExhausted: trying to send message larger than max ({length} vs. {LARGEST})");
        return Err(Fault::user(text)
            .context("failed to solve")
            .hint("the definition is in it, and with it the content of files that it makes: COPY large ones"));
    }
    let answering = tokio::spawn(answer(channel.clone(), shared, tokens));
    let showing = tokio::spawn(show(control.clone(), reference, progress));
    let mut answer = std::collections::BTreeMap::new();
    let mut message = Request::new(message);
    if let Ok(trace) = trace.parse() {
        message.metadata_mut().insert("traceparent", trace);
    }
    let solving = async {
        let asked = message.get_ref();
        let options = asked.frontend_attrs.clone().into_iter().collect();
        match !asked.frontend.is_empty() && engine::is_question(&options) {
            true => super::question::ask(control.clone(), channel, message, &mut answer).await,
            false => control.clone().solve(message).await,
        }
    };
    let solved = tokio::select! {
        solved = solving => solved.map_err(|status| fault(&status)),
        // The daemon sees that nobody waits any more.
        () = cancel.cancelled() => Err(Fault::cancelled()),
    };
    // What the daemon told last is on its way.
    let _ = tokio::time::timeout(LAST_WORDS, showing).await;
    answering.abort();
    let exporter_response = solved?.into_inner().exporter_response.into_iter().collect();
    Ok(SolveResponse { exporter_response, answer, ..SolveResponse::default() })
}

/// Answers what the daemon asks, as long as it wants.
async fn answer(channel: Channel, session: session::SharedSession, tokens: Option<Arc<dyn Tokens>>) {
    let mut metadata = MetadataMap::new();
    if let Ok(id) = session.id().parse() {
        metadata.insert("x-docker-expose-session-uuid", id);
    }
    if let Ok(key) = shared_key().parse() {
        metadata.insert("x-docker-expose-session-sharedkey", key);
    }
    for method in serve::methods(tokens.is_some()) {
        metadata.append("x-docker-expose-session-grpc-method", MetadataValue::from_static(method));
    }
    if let Err(status) = serve::serve(channel, metadata, session, tokens).await {
        tracing::warn!(%status, "the daemon does not take the session");
    }
}

/// The same for all builds of one directory on one machine, so that the daemon finds what it was sent before.
fn shared_key() -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let text = format!("{}:{}", machine.trim(), here.display());
    base::Digest::of(text).to_string()
}

/// Shows what the daemon tells.
async fn show(mut control: ControlClient<Channel>, reference: String, sink: Arc<dyn Sink>) {
    let told = control.status(wire::StatusRequest { r#ref: reference }).await;
    let mut told = match told {
        Ok(response) => response.into_inner(),
        Err(status) => return tracing::warn!(%status, "the daemon does not tell how the build goes"),
    };
    while let Ok(Some(response)) = told.message().await {
        events(response).into_iter().for_each(|event| sink.emit(event));
    }
}

fn wire_request(request: SolveRequest, reference: String, session: String) -> Result<wire::SolveRequest, Fault> {
    let cache = |options: engine::CacheOptions| wire::CacheOptionsEntry {
        r#type: options.kind,
        attrs: options.attrs.into_iter().collect(),
    };
    let (definition, frontend, frontend_attrs, inputs) = match request.frontend {
        Frontend::Named { name, mut options, inputs } => {
            // A frontend is told of them, too: it is who asks for what they have.
            if !request.cache_imports.is_empty() {
                let entry =
                    |cache: &engine::CacheOptions| serde_json::json!({"Type": cache.kind, "Attrs": cache.attrs});
                let imports: Vec<_> = request.cache_imports.iter().map(entry).collect();
                options.insert("cache-imports".to_owned(), serde_json::json!(imports).to_string());
            }
            (None, name, options, inputs)
        }
        Frontend::Llb { definition, options } => {
            let definition = proto::read_definition(&definition);
            let definition = definition.map_err(|e| Fault::because(Kind::User, "malformed definition", e))?;
            (Some(proto::without_empty_entries(definition)), String::new(), options, Default::default())
        }
    };
    let input = |(name, bytes): (String, Vec<u8>)| {
        let definition = proto::pb::Definition::decode(bytes.as_slice());
        definition
            .map(|definition| (name, proto::without_empty_entries(definition)))
            .map_err(|e| Fault::because(Kind::User, "malformed input", e))
    };
    Ok(wire::SolveRequest {
        frontend_inputs: inputs.into_iter().map(input).collect::<Result<_, _>>()?,
        r#ref: reference,
        definition,
        session,
        frontend,
        frontend_attrs: frontend_attrs.into_iter().collect(),
        cache: Some(wire::CacheOptions {
            exports: request.cache_exports.into_iter().map(cache).collect(),
            imports: request.cache_imports.into_iter().map(cache).collect(),
            ..wire::CacheOptions::default()
        }),
        source_policy: request.source_policies.into_iter().next(),
        entitlements: request.entitlements.iter().map(ToString::to_string).collect(),
        exporters: request
            .exports
            .into_iter()
            .map(|export| wire::Exporter { r#type: export.kind, attrs: export.attrs.into_iter().collect() })
            .collect(),
        ..wire::SolveRequest::default()
    })
}
