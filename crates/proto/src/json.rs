//! Ops as JSON, as protobuf's canonical form has them: BuildKit's clients read failed ops so.
//!
//! A message is walked as it stands on the wire, along tables of the fields in `ops.proto`: names as they stand there, which
//! every reader of that form takes. What the tables do not have is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

/// The number of a field, its name, and what is in it.
type Field = (u32, &'static str, Kind);

#[derive(Clone, Copy)]
enum Kind {
    /// Any number or enum, negative ones included.
    Number,
    Flag,
    Text,
    Bytes,
    Message(&'static [Field]),
    Texts,
    Numbers,
    Messages(&'static [Field]),
    /// From text to text.
    Map,
}

use Kind::{Bytes, Flag, Map as Pairs, Message, Messages, Number, Numbers, Text, Texts};

/// `pb.Op`.
pub const OP: Schema = Schema(&[
    (1, "inputs", Messages(&[(1, "digest", Text), (2, "index", Number)])),
    (2, "exec", Message(EXEC)),
    (3, "source", Message(&[(1, "identifier", Text), (2, "attrs", Pairs)])),
    (4, "file", Message(&[(2, "actions", Messages(ACTION))])),
    (6, "merge", Message(&[(1, "inputs", Messages(INPUT))])),
    (7, "diff", Message(&[(1, "lower", Message(INPUT)), (2, "upper", Message(INPUT))])),
    (8, "passthrough", Message(&[(1, "id", Text), (2, "outputs", Numbers)])),
    (10, "platform", Message(PLATFORM)),
    (11, "constraints", Message(&[(1, "filter", Texts)])),
]);

const INPUT: &[Field] = &[(1, "input", Number)];
const PLATFORM: &[Field] = &[
    (1, "Architecture", Text),
    (2, "OS", Text),
    (3, "Variant", Text),
    (4, "OSVersion", Text),
    (5, "OSFeatures", Texts),
];
const EXEC: &[Field] = &[
    (1, "meta", Message(META)),
    (2, "mounts", Messages(MOUNT)),
    (3, "network", Number),
    (4, "security", Number),
    (5, "secretenv", Messages(&[(1, "ID", Text), (2, "name", Text), (3, "optional", Flag)])),
    (6, "cdiDevices", Messages(&[(1, "name", Text), (2, "optional", Flag)])),
];
const META: &[Field] = &[
    (1, "args", Texts),
    (2, "env", Texts),
    (3, "cwd", Text),
    (4, "user", Text),
    (5, "proxy_env", Message(PROXIES)),
    (6, "extraHosts", Messages(&[(1, "Host", Text), (2, "IP", Text)])),
    (7, "hostname", Text),
    (9, "ulimit", Messages(&[(1, "Name", Text), (2, "Soft", Number), (3, "Hard", Number)])),
    (10, "cgroupParent", Text),
    (11, "removeMountStubsRecursive", Flag),
    (12, "validExitCodes", Numbers),
];
const PROXIES: &[Field] = &[
    (1, "http_proxy", Text),
    (2, "https_proxy", Text),
    (3, "ftp_proxy", Text),
    (4, "no_proxy", Text),
    (5, "all_proxy", Text),
];
const MOUNT: &[Field] = &[
    (1, "input", Number),
    (2, "selector", Text),
    (3, "dest", Text),
    (4, "output", Number),
    (5, "readonly", Flag),
    (6, "mountType", Number),
    (19, "TmpfsOpt", Message(&[(1, "size", Number)])),
    (20, "cacheOpt", Message(&[(1, "ID", Text), (2, "sharing", Number)])),
    (21, "secretOpt", Message(LENT)),
    (22, "SSHOpt", Message(LENT)),
    (23, "resultID", Text),
    (24, "contentCache", Number),
];
const LENT: &[Field] =
    &[(1, "ID", Text), (2, "uid", Number), (3, "gid", Number), (4, "mode", Number), (5, "optional", Flag)];
const ACTION: &[Field] = &[
    (1, "input", Number),
    (2, "secondaryInput", Number),
    (3, "output", Number),
    (4, "copy", Message(COPY)),
    (5, "mkfile", Message(MKFILE)),
    (6, "mkdir", Message(MKDIR)),
    (7, "rm", Message(&[(1, "path", Text), (2, "allowNotFound", Flag), (3, "allowWildcard", Flag)])),
    (
        8,
        "symlink",
        Message(&[(1, "oldpath", Text), (2, "newpath", Text), (3, "owner", OWNER), (4, "timestamp", Number)]),
    ),
];
const COPY: &[Field] = &[
    (1, "src", Text),
    (2, "dest", Text),
    (3, "owner", OWNER),
    (4, "mode", Number),
    (5, "followSymlink", Flag),
    (6, "dirCopyContents", Flag),
    (7, "attemptUnpackDockerCompatibility", Flag),
    (8, "createDestPath", Flag),
    (9, "allowWildcard", Flag),
    (10, "allowEmptyWildcard", Flag),
    (11, "timestamp", Number),
    (12, "include_patterns", Texts),
    (13, "exclude_patterns", Texts),
    (14, "alwaysReplaceExistingDestPaths", Flag),
    (15, "modeStr", Text),
    (16, "required_paths", Texts),
];
const MKFILE: &[Field] =
    &[(1, "path", Text), (2, "mode", Number), (3, "data", Bytes), (4, "owner", OWNER), (5, "timestamp", Number)];
const MKDIR: &[Field] =
    &[(1, "path", Text), (2, "mode", Number), (3, "makeParents", Flag), (4, "owner", OWNER), (5, "timestamp", Number)];
const OWNER: Kind = Message(&[(1, "user", Message(USER)), (2, "group", Message(USER))]);
const USER: &[Field] = &[(1, "byName", Message(&[(1, "name", Text), (2, "input", Number)])), (2, "byID", Number)];

/// The fields of a message.
#[derive(Clone, Copy)]
pub struct Schema(&'static [Field]);

impl Schema {
    /// A message in its form on the wire as JSON; none where it is malformed.
    pub fn json(self, mut wire: &[u8]) -> Option<Value> {
        let mut object = Map::new();
        while wire.has_remaining() {
            let (tag, wire_type) = decode_key(&mut wire).ok()?;
            let Some((_, name, kind)) = self.0.iter().find(|(known, ..)| *known == tag) else {
                skip_field(wire_type, tag, &mut wire, DecodeContext::default()).ok()?;
                continue;
            };
            match (kind, wire_type) {
                (Number, WireType::Varint) => _ = object.insert((*name).to_owned(), number(&mut wire)?),
                (Flag, WireType::Varint) => {
                    let flag = decode_varint(&mut wire).ok()? != 0;
                    object.insert((*name).to_owned(), flag.into());
                }
                (Numbers, WireType::Varint) => {
                    let number = number(&mut wire)?;
                    push(&mut object, name, number);
                }
                (_, WireType::LengthDelimited) => {
                    let size = usize::try_from(decode_varint(&mut wire).ok()?).ok()?;
                    let (mut data, rest) = wire.split_at_checked(size)?;
                    wire = rest;
                    match kind {
                        Numbers => {
                            while data.has_remaining() {
                                push(&mut object, name, number(&mut data)?);
                            }
                        }
                        Texts => push(&mut object, name, text(data)?),
                        Messages(fields) => push(&mut object, name, Schema(fields).json(data)?),
                        Message(fields) => _ = object.insert((*name).to_owned(), Schema(fields).json(data)?),
                        Text => _ = object.insert((*name).to_owned(), text(data)?),
                        Bytes => _ = object.insert((*name).to_owned(), STANDARD.encode(data).into()),
                        Pairs => {
                            let pair = Schema(&[(1, "key", Text), (2, "value", Text)]).json(data)?;
                            let part = |name: &str| pair[name].as_str().unwrap_or_default().to_owned();
                            let map = object.entry(*name).or_insert_with(|| Value::Object(Map::new()));
                            map.as_object_mut()?.insert(part("key"), part("value").into());
                        }
                        Number | Flag => return None,
                    }
                }
                _ => return None,
            }
        }
        Some(Value::Object(object))
    }
}

/// Adds to a list.
fn push(object: &mut Map<String, Value>, name: &str, value: Value) {
    let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = list {
        list.push(value);
    }
}

fn number(wire: &mut &[u8]) -> Option<Value> {
    decode_varint(wire).ok().map(|number| (number as i64).into())
}

fn text(data: &[u8]) -> Option<Value> {
    std::str::from_utf8(data).ok().map(Value::from)
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::pb;
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn ops_are_written_as_protobuf_writes_json() {
        let mount = |input, dest: &str| pb::Mount { input, dest: dest.into(), output: -1, ..pb::Mount::default() };
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["sh".into(), "-c".into()],
                valid_exit_codes: vec![0, 300],
                ulimit: vec![pb::Ulimit { name: "core".into(), soft: -1, hard: 2 }],
                ..pb::Meta::default()
            }),
            mounts: vec![mount(0, "/"), pb::Mount { cache_opt: Some(pb::CacheOpt::default()), ..mount(-1, "/c") }],
            network: 1,
            ..pb::ExecOp::default()
        };
        let op = pb::Op {
            op: Some(pb::op::Op::Exec(exec)),
            platform: Some(pb::Platform { os: "linux".into(), ..pb::Platform::default() }),
            ..pb::Op::default()
        };
        let expected = json!({
            "exec": {
                "meta": {
                    "args": ["sh", "-c"],
                    "ulimit": [{ "Name": "core", "Soft": -1, "Hard": 2 }],
                    "validExitCodes": [0, 300],
                },
                "mounts": [{ "dest": "/", "output": -1 }, { "input": -1, "dest": "/c", "output": -1, "cacheOpt": {} }],
                "network": 1,
            },
            "platform": { "OS": "linux" },
        });
        assert_eq!(OP.json(&op.encode_to_vec()), Some(expected));

        let by_id = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        let mkfile = pb::FileActionMkFile {
            path: "/a".into(),
            data: b"x".to_vec(),
            owner: Some(pb::ChownOpt { user: Some(by_id), group: None }),
            ..pb::FileActionMkFile::default()
        };
        let action = pb::FileAction {
            input: -1,
            secondary_input: -1,
            action: Some(pb::file_action::Action::Mkfile(mkfile)),
            ..pb::FileAction::default()
        };
        let op = pb::Op { op: Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })), ..pb::Op::default() };
        let mkfile = json!({ "path": "/a", "data": "eA==", "owner": { "user": { "byID": 0 } } });
        let expected = json!({ "file": { "actions": [{ "input": -1, "secondaryInput": -1, "mkfile": mkfile }] } });
        assert_eq!(OP.json(&op.encode_to_vec()), Some(expected));

        let source = pb::SourceOp { identifier: "local://x".into(), attrs: [("k".to_owned(), "v".to_owned())].into() };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() };
        let expected = json!({ "source": { "identifier": "local://x", "attrs": { "k": "v" } } });
        assert_eq!(OP.json(&op.encode_to_vec()), Some(expected));
        assert_eq!(OP.json(&[0xff]), None);
    }
}
