//! `buildctl prune-histories`, `debug histories|logs|get|monitor`: what a daemon remembers of builds.

use std::io::Write as _;

use base::{Digest, Fault};
use clap::Args;
use daemon::service::status::events;
use proto::content::{READ, ReadContentRequest, ReadContentResponse};
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::BuildHistoryEventType as Happened;
use proto::moby::buildkit::v1::control_client::ControlClient;
use proto::protobuf::Timestamp;
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use super::du::Format;
use super::table::tabbed;
use crate::connect::{LARGEST, fault};
use crate::display::{Display, Mode};
use crate::environment::Environment;

/// How records are printed.
#[derive(Debug, Default, Args)]
pub(super) struct Formatted {
    /// json, or a template of Go such as {{json .}}
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show what a build printed.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The build's reference
    #[arg(value_name = "REF")]
    reference: String,
    /// auto, plain, tty, quiet, none or rawjson
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    progress: String,
    /// Show the trace in the place of what it printed: a JSON document for each span
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    trace: bool,
}

/// Print a blob of the daemon's content store.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Its digest
    digest: String,
}

/// Show builds as they begin and end.
#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// Begin with those that have ended
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    completed: bool,
    /// Only this build
    #[arg(long, value_name = "REF")]
    r#ref: Option<String>,
}

/// Keep the record of a build, give it free, or remove it.
#[derive(Debug, Args)]
pub(super) struct Ctl {
    /// The build's reference
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Keep it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pin: bool,
    /// Do not keep it any longer
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    unpin: bool,
    /// Remove it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    delete: bool,
}

impl Ctl {
    /// Mistakes show before the daemon is asked.
    pub(super) fn check(&self) -> Result<&str, Fault> {
        let reference = self.reference.as_deref().filter(|reference| !reference.is_empty());
        let reference = reference.ok_or_else(|| Fault::user("build ref must be specified"))?;
        match (self.pin, self.unpin, self.delete) {
            (false, false, false) => Err(Fault::user("must specify one of --pin, --unpin, --delete")),
            (true, true, _) => Err(Fault::user("cannot specify both --pin and --unpin")),
            (true, _, true) | (_, true, true) => Err(Fault::user("cannot specify --delete with --pin or --unpin")),
            _ => Ok(reference),
        }
    }

    pub(super) async fn change(&self, channel: Channel) -> Result<(), Fault> {
        let request = wire::UpdateBuildHistoryRequest {
            r#ref: self.check()?.to_owned(),
            pinned: self.pin,
            delete: self.delete,
            ..wire::UpdateBuildHistoryRequest::default()
        };
        control(channel).update_build_history(request).await.map(drop).map_err(failed)
    }
}

fn failed(status: tonic::Status) -> Fault {
    fault(&status)
}

fn control(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel).max_decoding_message_size(LARGEST)
}

impl Formatted {
    /// What is asked for.
    pub(super) fn parse(&self) -> Result<Format, Fault> {
        Format::parse(self.format.as_deref())
    }

    /// `debug histories`
    pub(super) async fn list(&self, channel: Channel) -> Result<(), Fault> {
        let format = self.parse()?;
        let request = wire::BuildHistoryRequest { early_exit: true, ..Default::default() };
        let mut answers = control(channel).listen_build_history(request).await.map_err(failed)?.into_inner();
        let mut events = Vec::new();
        while let Some(event) = answers.message().await.map_err(failed)? {
            events.push(event);
        }
        crate::print(&text(&format, &events, true)?)
    }

    /// `prune-histories`: deletes all that are not pinned, and prints what went.
    pub(super) async fn prune(&self, channel: Channel) -> Result<(), Fault> {
        let format = self.parse()?;
        let mut control = control(channel);
        let request = wire::BuildHistoryRequest { early_exit: true, ..Default::default() };
        let mut answers = control.listen_build_history(request).await.map_err(failed)?.into_inner();
        let (mut gone, mut failure) = (Vec::new(), None);
        while let Some(event) = answers.message().await.map_err(failed)? {
            let Some(record) = event.record.as_ref().filter(|record| !record.pinned) else { continue };
            let request = wire::UpdateBuildHistoryRequest {
                r#ref: record.r#ref.clone(),
                delete: true,
                ..wire::UpdateBuildHistoryRequest::default()
            };
            match control.update_build_history(request).await {
                Ok(_) => gone.push(event),
                // The others go all the same.
                Err(status) => failure = Some(failed(status)),
            }
        }
        crate::print(&text(&format, &gone, false)?)?;
        failure.map_or(Ok(()), Err)
    }
}

impl Logs {
    pub(super) async fn show(&self, channel: Channel, environment: &Environment) -> Result<(), Fault> {
        if self.trace {
            return self.show_trace(channel).await;
        }
        let mode = Mode::choose(&self.progress, environment)?;
        let request = wire::StatusRequest { r#ref: self.reference.clone() };
        let mut answers = control(channel).status(request).await.map_err(failed)?.into_inner();
        let display = Display::start(mode, Box::new(std::io::stdout()), None, false, environment)?;
        let sink = display.sink();
        let shown = loop {
            match answers.message().await {
                Ok(Some(response)) => events(response).into_iter().for_each(|event| sink.emit(event)),
                Ok(None) => break Ok(()),
                Err(status) => break Err(failed(status)),
            }
        };
        drop(sink);
        display.finish();
        shown
    }
}

impl Logs {
    async fn show_trace(&self, channel: Channel) -> Result<(), Fault> {
        let reference = &self.reference;
        let request = wire::BuildHistoryRequest { r#ref: reference.clone(), early_exit: true, ..Default::default() };
        let mut answers = control(channel.clone()).listen_build_history(request).await.map_err(failed)?.into_inner();
        let found = answers.message().await.map_err(failed)?.and_then(|event| event.record);
        let record = found.ok_or_else(|| Fault::user(format!("ref {reference} not found")))?;
        let trace = record.trace.ok_or_else(|| Fault::user(format!("ref {reference} does not have trace")))?;
        Get { digest: trace.digest }.print(channel).await
    }
}

impl Get {
    pub(super) async fn print(&self, channel: Channel) -> Result<(), Fault> {
        let digest: Digest = self
            .digest
            .parse()
            .map_err(|error| Fault::because(base::Kind::User, format!("bad digest `{}`", self.digest), error))?;
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(LARGEST);
        let unreachable =
            |error: tonic::transport::Error| Fault::because(base::Kind::Remote, "cannot reach the daemon", error);
        client.ready().await.map_err(unreachable)?;
        let codec = tonic_prost::ProstCodec::<ReadContentRequest, ReadContentResponse>::default();
        let request = ReadContentRequest { digest: digest.to_string(), ..ReadContentRequest::default() };
        let path = http::uri::PathAndQuery::from_static(READ);
        let answers = client.server_streaming(tonic::Request::new(request), path, codec).await;
        let mut answers = answers.map_err(failed)?.into_inner();
        let mut stdout = std::io::stdout().lock();
        while let Some(piece) = answers.message().await.map_err(failed)? {
            match stdout.write_all(&piece.data) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(super::stdout_failed)?,
            }
        }
        stdout.flush().map_err(super::stdout_failed)
    }
}

impl Monitor {
    pub(super) async fn show(&self, channel: Channel) -> Result<(), Fault> {
        let request = wire::BuildHistoryRequest {
            active_only: !self.completed,
            r#ref: self.r#ref.clone().unwrap_or_default(),
            ..wire::BuildHistoryRequest::default()
        };
        let mut answers = control(channel).listen_build_history(request).await.map_err(failed)?.into_inner();
        while let Some(event) = answers.message().await.map_err(failed)? {
            crate::print(&happened(&event))?;
        }
        Ok(())
    }
}

/// Records for people or programs.
fn text(format: &Format, events: &[wire::BuildHistoryEvent], pins: bool) -> Result<String, Fault> {
    if let Format::Filled(template) = format {
        let fields = if template.is_json() { Fields::Telling } else { Fields::All };
        let filled = |event| Ok(format!("{}\n", template.apply(&event_json(event, fields))?));
        return events.iter().map(filled).collect();
    }
    let pinned = |text: &'static str| if pins { text } else { "" };
    let head = format!("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION{}\n", pinned("\tPINNED"));
    if events.is_empty() {
        return Ok(tabbed(&head));
    }
    // Each is laid out as it comes, the first one below the head.
    let heads = [&head[..]].into_iter().chain(std::iter::repeat(""));
    let rows = heads.zip(events).map(|(head, event)| {
        let record = event.record.clone().unwrap_or_default();
        let [created, completed] =
            [record.created_at, record.completed_at].map(|at| at.map(rfc3339).unwrap_or_default());
        let (name, reference, generation) = (type_name(event), record.r#ref, record.generation);
        let star = pinned(if record.pinned { "\t*" } else { "\t" });
        tabbed(&format!("{head}{name}\t{reference}\t{created}\t{completed}\t{generation}{star}\n"))
    });
    Ok(rows.collect())
}

fn type_name(event: &wire::BuildHistoryEvent) -> &'static str {
    Happened::try_from(event.r#type).map_or("UNKNOWN", |happened| happened.as_str_name())
}

fn rfc3339(at: Timestamp) -> String {
    let at = jiff::Timestamp::new(at.seconds, 0).unwrap_or_default();
    at.to_string()
}

/// What `monitor` prints of an event.
fn happened(event: &wire::BuildHistoryEvent) -> String {
    let record = event.record.clone().unwrap_or_default();
    let mut lines = vec![format!("event: {} ref:{}", type_name(event), record.r#ref)];
    if record.num_total_steps != 0 {
        lines.push(format!("  cache: {}/{}", record.num_cached_steps, record.num_total_steps));
    }
    if record.num_warnings != 0 {
        lines.push(format!("  warnings: {}", record.num_warnings));
    }
    lines.extend(record.logs.iter().map(|logs| format!("  logs: {}", blob(logs))));
    lines.extend(record.trace.iter().map(|trace| format!("  trace: {}", blob(trace))));
    let mut add = |result: &wire::BuildResultInfo, of: &str| {
        let mut results: Vec<_> = result.results.iter().collect();
        results.sort_by_key(|(index, _)| **index);
        let results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
        let older = result.result_deprecated.iter().filter(|_| results.is_empty());
        lines.extend(results.iter().copied().chain(older).map(|made| format!("  {of}descriptor: {}", blob(made))));
        lines.extend(result.attestations.iter().map(|made| format!("  {of}attestation: {}", blob(made))));
    };
    if let Some(result) = &record.result {
        add(result, "");
    }
    for (platform, result) in &record.results {
        add(result, &format!("[{platform}] "));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn blob(blob: &wire::Descriptor) -> String {
    format!("media_type:{:?} digest:{:?} size:{}", blob.media_type, blob.digest, blob.size)
}

/// Which fields an event is given with.
#[derive(Clone, Copy, PartialEq)]
enum Fields {
    /// Those that say something, as upstream's clients print events.
    Telling,
    /// All, for templates that ask for them.
    All,
}

fn event_json(event: &wire::BuildHistoryEvent, fields: Fields) -> Value {
    let happened = if fields == Fields::All { json!(type_name(event)) } else { json!(event.r#type) };
    let record = event.record.as_ref().map_or(Value::Null, |record| record_json(record, fields));
    fields.object([("type", happened), ("record", record)])
}

fn record_json(record: &wire::BuildHistoryRecord, fields: Fields) -> Value {
    let time = |at: &Option<Timestamp>| {
        let at = at.as_ref();
        at.map_or(Value::Null, |at| fields.object([("seconds", json!(at.seconds)), ("nanos", json!(at.nanos))]))
    };
    let one = |blob: &Option<wire::Descriptor>| blob.as_ref().map_or(Value::Null, |blob| blob_json(blob, fields));
    let exporters = record
        .exporters
        .iter()
        .map(|exporter| fields.object([("Type", json!(exporter.r#type)), ("Attrs", sorted(&exporter.attrs))]));
    let error = record
        .error
        .as_ref()
        .map_or(Value::Null, |error| fields.object([("code", json!(error.code)), ("message", json!(error.message))]));
    let results: Map<String, Value> =
        record.results.iter().map(|(platform, result)| (platform.clone(), result_json(result, fields))).collect();
    fields.object([
        ("Ref", json!(record.r#ref)),
        ("Frontend", json!(record.frontend)),
        ("FrontendAttrs", sorted(&record.frontend_attrs)),
        ("Exporters", exporters.collect()),
        ("error", error),
        ("CreatedAt", time(&record.created_at)),
        ("CompletedAt", time(&record.completed_at)),
        ("logs", one(&record.logs)),
        ("ExporterResponse", sorted(&record.exporter_response)),
        ("Result", record.result.as_ref().map_or(Value::Null, |result| result_json(result, fields))),
        ("Results", Value::Object(results)),
        ("Generation", json!(record.generation)),
        ("trace", one(&record.trace)),
        ("pinned", json!(record.pinned)),
        ("numCachedSteps", json!(record.num_cached_steps)),
        ("numTotalSteps", json!(record.num_total_steps)),
        ("numCompletedSteps", json!(record.num_completed_steps)),
        ("externalError", one(&record.external_error)),
        ("numWarnings", json!(record.num_warnings)),
    ])
}

fn result_json(result: &wire::BuildResultInfo, fields: Fields) -> Value {
    let mut results: Vec<_> = result.results.iter().collect();
    results.sort_by_key(|(index, _)| **index);
    let results: Map<String, Value> =
        results.into_iter().map(|(i, blob)| (i.to_string(), blob_json(blob, fields))).collect();
    fields.object([
        ("ResultDeprecated", result.result_deprecated.as_ref().map_or(Value::Null, |blob| blob_json(blob, fields))),
        ("Attestations", result.attestations.iter().map(|blob| blob_json(blob, fields)).collect()),
        ("Results", Value::Object(results)),
    ])
}

fn blob_json(blob: &wire::Descriptor, fields: Fields) -> Value {
    fields.object([
        ("media_type", json!(blob.media_type)),
        ("digest", json!(blob.digest)),
        ("size", json!(blob.size)),
        ("annotations", sorted(&blob.annotations)),
    ])
}

fn sorted(map: &std::collections::HashMap<String, String>) -> Value {
    let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
    json!(sorted)
}

impl Fields {
    fn object<const N: usize>(self, fields: [(&str, Value); N]) -> Value {
        let says = |value: &Value| match value {
            _ if self == Fields::All => true,
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::Bool(true) => true,
        };
        let fields = fields.into_iter().filter(|(_, value)| says(value));
        Value::Object(fields.map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn events() -> Vec<wire::BuildHistoryEvent> {
        let blob =
            |size| wire::Descriptor { media_type: "m".into(), digest: "sha256:1".into(), size, ..Default::default() };
        let at = |seconds| Some(Timestamp { seconds, nanos: 5 });
        let started = wire::BuildHistoryRecord { r#ref: "abc".into(), created_at: at(1_000_000), ..Default::default() };
        let complete = wire::BuildHistoryRecord {
            completed_at: at(1_000_060),
            frontend_attrs: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            exporters: vec![wire::Exporter { r#type: "image".into(), ..Default::default() }],
            error: Some(proto::rpc::Status { code: 2, message: "no".into(), ..Default::default() }),
            logs: Some(blob(3)),
            result: Some(wire::BuildResultInfo {
                result_deprecated: Some(blob(4)),
                results: [(0, blob(4))].into(),
                ..Default::default()
            }),
            pinned: true,
            generation: 1,
            num_total_steps: 5,
            num_cached_steps: 2,
            num_warnings: 1,
            ..started.clone()
        };
        let event =
            |happened: Happened, record| wire::BuildHistoryEvent { r#type: happened.into(), record: Some(record) };
        vec![event(Happened::Started, started), event(Happened::Complete, complete)]
    }

    #[test]
    fn forms() {
        let shown = |format| text(&Format::parse(format).expect("a format"), &events(), true).expect("text");
        assert_snapshot!(shown(None).replace('\t', "→"), @r"
        TYPE→REF→CREATED→→→COMPLETED→GENERATION→PINNED
        STARTED→abc→1970-01-12T13:46:40Z→→→0→→
        COMPLETE→abc→1970-01-12T13:46:40Z→1970-01-12T13:47:40Z→1→*
        ");
        assert_snapshot!(shown(Some("json")), @r#"
        {"record":{"Ref":"abc","CreatedAt":{"seconds":1000000,"nanos":5}}}
        {"type":1,"record":{"Ref":"abc","FrontendAttrs":{"a":"1","b":"2"},"Exporters":[{"Type":"image"}],"error":{"code":2,"message":"no"},"CreatedAt":{"seconds":1000000,"nanos":5},"CompletedAt":{"seconds":1000060,"nanos":5},"logs":{"media_type":"m","digest":"sha256:1","size":3},"Result":{"ResultDeprecated":{"media_type":"m","digest":"sha256:1","size":4},"Results":{"0":{"media_type":"m","digest":"sha256:1","size":4}}},"Generation":1,"pinned":true,"numCachedSteps":2,"numTotalSteps":5,"numWarnings":1}}
        "#);
        let picked = "{{.Type}} {{.Record.Ref}} {{.Record.Pinned}}{{with .Record.Logs}} {{.MediaType}}{{end}}";
        assert_eq!(shown(Some(picked)), "STARTED abc false\nCOMPLETE abc true m\n");
        assert_snapshot!(happened(&events()[1]), @r#"
        event: COMPLETE ref:abc
          cache: 2/5
          warnings: 1
          logs: media_type:"m" digest:"sha256:1" size:3
          descriptor: media_type:"m" digest:"sha256:1" size:4
        "#);
    }
}
