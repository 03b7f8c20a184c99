//! A fault as a gRPC status with BuildKit's typed details, from which stock clients print the Dockerfile's lines.
//!
//! Details are `Any` messages whose value is JSON, named `github.com/moby/buildkit/errdefs.Source+json` and the like.

use std::sync::Arc;

use base::{Fault, Kind, SourceFile, SourceSpan};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::Message as _;
use proto::protobuf::Any;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Stands between a message and what to try: stock clients show both.
const HINT: &str = "\nhint: ";

/// The status that a client gets.
pub fn status(fault: &Fault) -> Status {
    status_with(fault, None)
}

/// The same with one more detail.
pub(super) fn status_with(fault: &Fault, more: Option<Any>) -> Status {
    let code = match fault.kind() {
        Kind::Cancelled => Code::Cancelled,
        _ if is_exhausted(fault) => Code::ResourceExhausted,
        Kind::Internal => Code::Internal,
        _ if matches!(fault.find(), Some(engine::Unsupported::Cap(_))) => Code::Unimplemented,
        // BuildKit's other errors have no code, and clients put any other in front of the message.
        Kind::User | Kind::Environment | Kind::Remote => Code::Unknown,
    };
    let message = match fault.get_hint() {
        Some(hint) => format!("{}{HINT}{}", fault.cause(), hint.replace(base::hint::PRUNE, "`buildctl prune`")),
        None => fault.cause(),
    };
    let mut details = details(fault);
    details.extend(more);
    let encoded = proto::rpc::Status { code: code as i32, message: message.clone(), details }.encode_to_vec();
    Status::with_details(code, message, encoded.into())
}

/// Whether there is no more room, here or at the client. Clients tell that from builds that are wrong: `docker buildx` ends with 102.
fn is_exhausted(fault: &Fault) -> bool {
    fault.get_source().is_some_and(store::is_full) || session::remote::is_exhausted(fault)
}

/// What a status of somebody else says, with its places.
pub fn fault(status: &proto::rpc::Status) -> Fault {
    let kind = match Code::from_i32(status.code) {
        Code::Cancelled => Kind::Cancelled,
        Code::Internal => Kind::Internal,
        Code::Unavailable => Kind::Remote,
        Code::ResourceExhausted => Kind::Environment,
        _ => Kind::User,
    };
    let (message, hint) = match status.message.rsplit_once(HINT) {
        Some((message, hint)) => (message, Some(hint)),
        None => (status.message.as_str(), None),
    };
    // A client that drives the build hands back what it was told, and what it means is not to be lost.
    let mut fault = match Code::from_i32(status.code) {
        code @ Code::ResourceExhausted => session::remote::told(kind, message, code),
        _ => Fault::new(kind, message),
    };
    let mut places = Vec::new();
    if let Some(hint) = hint {
        fault = fault.hint(hint);
    }
    for detail in &status.details {
        let name = detail.type_url.rsplit('/').next().unwrap_or_default();
        // Details of other versions are no reason to lose the message.
        let Ok(value) = serde_json::from_slice::<Value>(&detail.value) else { continue };
        match name {
            "errdefs.Source+json" => {
                let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or(0) as u32;
                let position = |value: &Value| (number(value, "line"), number(value, "character"));
                let info = &value["info"];
                let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
                let file = SourceFile {
                    name: text("filename"),
                    data: STANDARD.decode(text("data")).unwrap_or_default(),
                    language: text("language"),
                    definition: read_definition(&info["definition"]),
                };
                let ranges = value["ranges"].as_array().map(Vec::as_slice).unwrap_or_default().iter();
                let spans: Vec<SourceSpan> = ranges
                    .map(|range| SourceSpan { start: position(&range["start"]), end: position(&range["end"]) })
                    .collect();
                places.push((Arc::new(file), spans));
            }
            "errdefs.Vertex+json" => {
                if let Some(digest) = value["digest"].as_str().and_then(|digest| digest.parse().ok()) {
                    fault = fault.vertex(digest, "");
                }
            }
            "gatewayapi.ExitMessage+json" => {
                if let Some(code) = value["Code"].as_i64().and_then(|code| i32::try_from(code).ok()) {
                    fault = fault.exit_code(code);
                }
            }
            _ => {}
        }
    }
    places.iter().rev().fold(fault, |fault, (file, spans)| fault.at(file, spans))
}

/// A definition as [`definition`] writes it.
fn read_definition(value: &Value) -> Vec<u8> {
    let op = |op: &Value| STANDARD.decode(op.as_str().unwrap_or_default()).unwrap_or_default();
    let Some(def) = value["def"].as_array() else { return Vec::new() };
    let about = |(digest, about): (&String, &Value)| {
        let text = |map: &Value| -> std::collections::BTreeMap<String, String> {
            let pairs = map.as_object().into_iter().flatten();
            pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        let caps = about["caps"].as_object().into_iter().flatten();
        let known = proto::pb::OpMetadata {
            ignore_cache: about["ignore_cache"].as_bool().unwrap_or(false),
            description: text(&about["description"]),
            caps: caps.map(|(cap, needed)| (cap.clone(), needed.as_bool().unwrap_or(false))).collect(),
            ..proto::pb::OpMetadata::default()
        };
        (digest.clone(), known)
    };
    let metadata = value["metadata"].as_object().into_iter().flatten().map(about).collect();
    proto::pb::Definition { def: def.iter().map(op).collect(), metadata, source: None }.encode_to_vec()
}

/// A source file of a definition.
pub(crate) fn source_file(info: proto::pb::SourceInfo) -> SourceFile {
    SourceFile {
        name: info.filename,
        data: info.data,
        language: info.language,
        definition: info.definition.map(|definition| definition.encode_to_vec()).unwrap_or_default(),
    }
}

/// The same the other way round.
pub(crate) fn source_info(file: &SourceFile) -> proto::pb::SourceInfo {
    let definition = (!file.definition.is_empty()).then(|| proto::pb::Definition::decode(file.definition.as_slice()));
    proto::pb::SourceInfo {
        filename: file.name.clone(),
        data: file.data.clone(),
        language: file.language.clone(),
        definition: definition.and_then(Result::ok).map(proto::without_empty_entries),
    }
}

/// A range of a definition.
pub(crate) fn span(range: &proto::pb::Range) -> SourceSpan {
    let position = |position: &Option<proto::pb::Position>| {
        let position = position.unwrap_or_default();
        (position.line.max(0) as u32, position.character.max(0) as u32)
    };
    SourceSpan { start: position(&range.start), end: position(&range.end) }
}

/// What a file was read by, as Go's encoder writes it. Of the vertices' metadata, what says how they are solved.
fn definition(file: &SourceFile) -> Option<Value> {
    if file.definition.is_empty() {
        return None;
    }
    let definition = proto::pb::Definition::decode(file.definition.as_slice()).ok()?;
    let def: Vec<String> = definition.def.iter().map(|op| STANDARD.encode(op)).collect();
    let metadata: serde_json::Map<String, Value> = definition
        .metadata
        .iter()
        .map(|(digest, known)| {
            let mut about = json!({ "description": known.description, "caps": known.caps });
            if known.ignore_cache {
                about["ignore_cache"] = true.into();
            }
            (digest.clone(), about)
        })
        .collect();
    Some(json!({ "def": def, "metadata": metadata }))
}

/// A typed detail.
pub(super) fn detail(kind: &str, value: &Value) -> Any {
    let type_url = format!("github.com/moby/buildkit/{kind}+json");
    Any { type_url, value: value.to_string().into_bytes() }
}

/// Where in our sources the fault was made: clients show it with `--debug`.
fn stack(fault: &Fault) -> Value {
    let origin = fault.origin();
    let frame = json!({ "Name": "hullworks", "File": origin.file(), "Line": origin.line() });
    let version = env!("CARGO_PKG_VERSION");
    json!({ "frames": [frame], "cmdline": ["buildkitd"], "pid": std::process::id(), "version": version })
}

fn details(fault: &Fault) -> Vec<Any> {
    let mut details = Vec::new();
    let mut add = |kind: &str, value: Value| {
        details.push(detail(kind, &value));
    };
    // The first one is wrapped first: what clients show last is the most specific.
    for (file, spans) in fault.places().iter().rev() {
        let position = |(line, character): (u32, u32)| json!({ "line": line, "character": character });
        let ranges: Vec<Value> =
            spans.iter().map(|span| json!({ "start": position(span.start), "end": position(span.end) })).collect();
        let mut info = json!({
            "filename": file.name,
            "data": STANDARD.encode(&file.data),
            "language": file.language,
        });
        if let Some(definition) = definition(file) {
            info["definition"] = definition;
        }
        add("errdefs.Source", json!({ "info": info, "ranges": ranges }));
    }
    match fault.find::<engine::Unsupported>() {
        Some(engine::Unsupported::Request(name)) => add("errdefs.Subrequest", json!({ "name": name })),
        Some(engine::Unsupported::Cap(name)) => add("errdefs.FrontendCap", json!({ "name": name })),
        None => {}
    }
    if let Some((digest, _)) = fault.get_vertex() {
        add("errdefs.Vertex", json!({ "digest": digest }));
    }
    add("stack.Stack", stack(fault));
    if let Some(code) = fault.get_exit_code() {
        add("gatewayapi.ExitMessage", json!({ "Code": code }));
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_one_wherever_it_is_told_of() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let told = status(&Fault::because(Kind::Environment, "cannot write `/x`", full).hint("prune"));
        assert_eq!(told.code(), Code::ResourceExhausted);
        let message = told.message().to_owned();
        let returned = fault(&proto::rpc::Status { code: told.code() as i32, message, details: Vec::new() });
        assert_eq!(
            (returned.to_string(), returned.get_hint()),
            ("cannot write `/x`: no storage space".to_owned(), Some("prune"))
        );
        assert_eq!(status(&returned).code(), Code::ResourceExhausted);
        assert_eq!(status(&Fault::user("no stage")).code(), Code::Unknown);
    }

    #[test]
    fn a_fault_survives_the_wire() {
        let definition = proto::pb::Definition {
            def: vec![vec![1, 2], vec![3]],
            metadata: [(
                "sha256:x".to_owned(),
                proto::pb::OpMetadata {
                    ignore_cache: true,
                    description: [("k".to_owned(), "v".to_owned())].into(),
                    caps: [("c".to_owned(), true)].into(),
                    ..proto::pb::OpMetadata::default()
                },
            )]
            .into(),
            source: None,
        };
        let file = SourceFile {
            name: "Dockerfile".into(),
            data: b"FROM x\nRUN y\n".to_vec(),
            language: "Dockerfile".into(),
            definition: definition.encode_to_vec(),
        };
        let other = Arc::new(SourceFile { name: "other".into(), ..SourceFile::default() });
        let spans = [SourceSpan::lines(2, 2)];
        let fault = Fault::user("process failed").hint("try z").at(&Arc::new(file), &spans).exit_code(3);
        let fault = fault.at(&other, &[SourceSpan::lines(1, 1)]);
        let fault = fault.vertex(base::Digest::of("v"), "name");
        let status = super::status(&fault);
        assert_eq!((status.code(), status.message()), (Code::Unknown, "process failed\nhint: try z"));
        let status = proto::rpc::Status::decode(status.details()).expect("decodes");
        let back = super::fault(&status);
        assert_eq!(back.cause(), "process failed");
        assert_eq!((back.get_hint(), back.get_exit_code()), (Some("try z"), Some(3)));
        assert_eq!(back.places(), fault.places());
        assert_eq!(back.get_vertex().map(|(digest, _)| digest), Some(base::Digest::of("v")));
    }
}
