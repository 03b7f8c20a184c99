//! One record: begun with the request, completed with what became of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base::{Digest, Fault, redact_url};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::SolveResponse;
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::BuildHistoryEventType as Happened;
use serde_json::Value;
use store::Content;

use super::{History, bounds, lease, log};
use crate::builds::Build;
use crate::metrics::Metrics;
use crate::service::{error, status};
use crate::trace::{self, Trace};

/// What the blob of an error is; misspelt as BuildKit has it.
const ERROR_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// A build under way whose record is to be kept.
pub(crate) struct Recording {
    history: Arc<History>,
    metrics: Arc<Metrics>,
    record: wire::BuildHistoryRecord,
    done: bool,
}

impl Recording {
    /// Begins the record of a request.
    pub(crate) fn begin(history: &Arc<History>, metrics: &Arc<Metrics>, request: &wire::SolveRequest) -> Recording {
        let mut exporters = request.exporters.clone();
        if exporters.is_empty() && !request.exporter_deprecated.is_empty() {
            let (r#type, attrs) = (request.exporter_deprecated.clone(), request.exporter_attrs_deprecated.clone());
            exporters.push(wire::Exporter { r#type, attrs });
        }
        let mut record = wire::BuildHistoryRecord {
            r#ref: request.r#ref.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: without_credentials(&request.frontend_attrs),
            exporters,
            created_at: Some(status::time(jiff::Timestamp::now())),
            ..wire::BuildHistoryRecord::default()
        };
        bounds::fit(&mut record);
        history.state().active.insert(record.r#ref.clone(), record.clone());
        history.tell(Happened::Started, record.clone());
        Recording { history: history.clone(), metrics: metrics.clone(), record, done: false }
    }

    /// Keeps the record of a build that has ended. A build is not worse for a record that cannot be kept.
    pub(crate) async fn complete(mut self, build: Arc<Build>, trace: Trace, solved: &Result<SolveResponse, Fault>) {
        self.record.completed_at = Some(status::time(jiff::Timestamp::now()));
        let mut made = Vec::new();
        match solved {
            Ok(response) => {
                let said = response.metadata.iter();
                let said = said.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()));
                self.record.exporter_response = said.chain(response.exporter_response.clone()).collect();
                made = response.descriptors.iter().map(|made| made.as_deref().and_then(read_descriptor)).collect();
            }
            Err(fault) => self.record.error = Some(full_error(fault)),
        }
        let kept = tokio::task::spawn_blocking(move || self.keep(&build, trace, made)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "the record of a build was not kept");
        }
    }

    fn keep(&mut self, build: &Build, trace: Trace, made: Vec<Option<wire::Descriptor>>) -> Result<(), super::Error> {
        let (history, content) = (self.history.clone(), &self.history.content);
        let record = &mut self.record;
        // Held until they are leased: whoever makes room meanwhile leaves them.
        let mut holds = Vec::new();
        let mut put = |bytes: &[u8]| {
            holds.push(content.hold(&Digest::of(bytes)));
            content.put(bytes)
        };
        let (descriptor, log, counts) = log::write(content, build)?;
        let mut blobs = vec![*log.digest()];
        record.logs = Some(descriptor);
        let spans = trace.end(build, record.error.as_ref().map(|error| error.message.as_str()));
        let digest = put(&spans)?;
        record.trace = Some(self::descriptor(trace::MEDIA_TYPE, digest, spans.len() as u64));
        // BuildKit adds the trace later, which makes another record of it.
        record.generation = 1;
        blobs.push(digest);
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        record.num_total_steps = number(counts.total());
        record.num_cached_steps = number(counts.cached());
        record.num_completed_steps = number(counts.completed());
        record.num_warnings = number(counts.warnings);
        if let Some(error) = &mut record.error {
            let bytes = error.encode_to_vec();
            let digest = put(&bytes)?;
            record.external_error = Some(self::descriptor(ERROR_TYPE, digest, bytes.len() as u64));
            error.details.clear();
            blobs.push(digest);
        }
        let results: HashMap<i64, wire::Descriptor> =
            (0..).zip(made).filter_map(|(index, made)| Some((index, made?))).collect();
        if let Some(first) = results.iter().min_by_key(|(index, _)| **index).map(|(_, made)| made.clone()) {
            for made in results.values() {
                collect_image(content, &made.digest, &mut blobs)?;
            }
            let result = wire::BuildResultInfo { result_deprecated: Some(first), results, ..Default::default() };
            record.result = Some(result);
        }
        self.metrics.ended(record);
        bounds::fit(record);
        let writing = history.writing();
        let reference = &record.r#ref;
        // Of an earlier build of that reference.
        let replaced = history.get(reference)?;
        let before = replaced.as_ref().map(super::own_blobs).unwrap_or_default();
        content.lease(&lease(reference), &blobs)?;
        drop((log, holds));
        let bytes = record.encode_to_vec();
        history.store.with_room(0, || history.records.put(reference, &bytes))?;
        history.count(replaced.as_ref(), Some(record));
        for digest in before.iter().filter(|digest| !blobs.contains(digest)) {
            content.delete(digest)?;
        }
        let is_doomed = {
            let mut state = history.state();
            state.active.remove(reference);
            state.doomed.contains(reference)
        };
        self.done = true;
        // Also of one that is to be deleted: who follows the builds would take it for running.
        history.tell(Happened::Complete, record.clone());
        drop(writing);
        if is_doomed {
            return history.delete(reference);
        }
        if let Err(error) = history.make_room() {
            tracing::warn!(%error, "old build records were not deleted");
        }
        Ok(())
    }
}

impl Drop for Recording {
    /// Whoever was told that it began is told that there is no record.
    fn drop(&mut self) {
        if !self.done {
            let reference = std::mem::take(&mut self.record.r#ref);
            {
                let mut state = self.history.state();
                state.active.remove(&reference);
                state.doomed.remove(&reference);
            }
            self.history.tell(Happened::Deleted, wire::BuildHistoryRecord { r#ref: reference, ..Default::default() });
        }
    }
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> wire::Descriptor {
    wire::Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}

/// What an export said that it made.
fn read_descriptor(encoded: &str) -> Option<wire::Descriptor> {
    let json: Value = serde_json::from_slice(&STANDARD.decode(encoded).ok()?).ok()?;
    let annotations = json["annotations"].as_object().into_iter().flatten();
    Some(wire::Descriptor {
        media_type: json["mediaType"].as_str()?.to_owned(),
        digest: json["digest"].as_str()?.to_owned(),
        size: json["size"].as_i64()?,
        annotations: annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
    })
}

/// An image's documents: index, manifests, configs. Not its layers, which are many bytes and elsewhere.
fn collect_image(content: &Content, root: &str, blobs: &mut Vec<Digest>) -> store::Result<()> {
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut next: Vec<Digest> = root.parse().into_iter().collect();
    while let Some(digest) = next.pop() {
        if !seen.insert(digest) {
            continue;
        }
        let Some(bytes) = content.read(&digest)? else { continue };
        blobs.push(digest);
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let children = document["manifests"].as_array().into_iter().flatten();
        let children =
            children.map(|child| &child["digest"]).filter_map(|digest| digest.as_str()?.parse::<Digest>().ok());
        next.extend(children);
        let config = document["config"]["digest"].as_str().and_then(|digest| digest.parse().ok());
        if let Some(config) = config
            && content.has(&config)
            && seen.insert(config)
        {
            blobs.push(config);
        }
    }
    Ok(())
}

fn full_error(fault: &Fault) -> proto::rpc::Status {
    let status = error::status(fault);
    proto::rpc::Status::decode(status.details()).unwrap_or_else(|_| proto::rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// A record outlives its build, and more people see it: addresses lose their passwords.
fn without_credentials(attrs: &HashMap<String, String>) -> HashMap<String, String> {
    let clean = |value: &String| {
        let Some((scheme, rest)) = value.split_once("://") else { return value.clone() };
        let authority = rest.split('/').next().unwrap_or_default();
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        // The user of ssh is no secret; that of HTTP may be a token.
        let is_secret = user.contains(':') || !user.is_empty() && scheme.starts_with("http");
        if is_secret { redact_url(value) } else { value.clone() }
    };
    attrs.iter().map(|(key, value)| (key.clone(), clean(value))).collect()
}
