//! Definitions as JSON and as pictures, for people: what `buildctl debug dump-llb` prints, with the names of BuildKit.

use std::collections::BTreeMap;

use base::Digest;
use base::gotext::quote;

use crate::go_json::{Object, string};
use crate::key::{copy_json, mount_json, owner_json};
use crate::pb;

/// One line for each op: the op, its digest, what is known about it.
pub fn lines(definition: &pb::Definition) -> Result<String, prost::DecodeError> {
    let mut text = String::new();
    for (digest, op) in ops(definition)? {
        let none = pb::OpMetadata::default();
        let metadata = definition.metadata.get(&digest.to_string()).unwrap_or(&none);
        let line = Object::new()
            .raw("Op", &op_json(&op))
            .required("Digest", &digest.to_string())
            .raw("OpMetadata", &metadata_json(metadata));
        text.push_str(&line.end());
        text.push('\n');
    }
    Ok(text)
}

/// The graph in the language of Graphviz.
pub fn dot(definition: &pb::Definition) -> Result<String, prost::DecodeError> {
    let ops = ops(definition)?;
    let mut text = "digraph {\n".to_owned();
    for (digest, op) in &ops {
        let (name, shape) = shown(*digest, op);
        text.push_str(&format!("  \"{digest}\" [label={} shape=\"{shape}\"];\n", quote(&name)));
    }
    for (digest, op) in &ops {
        for (index, input) in op.inputs.iter().enumerate() {
            let mounts = match &op.op {
                Some(pb::op::Op::Exec(exec)) => &exec.mounts[..],
                _ => &[],
            };
            let is_it = |mount: &&pb::Mount| usize::try_from(mount.input) == Ok(index) && mount.dest != "/";
            let label = mounts.iter().rfind(is_it).map_or("", |mount| &mount.dest);
            text.push_str(&format!("  {} -> \"{digest}\" [label={}];\n", quote(&input.digest), quote(label)));
        }
    }
    text.push_str("}\n");
    Ok(text)
}

fn ops(definition: &pb::Definition) -> Result<Vec<(Digest, pb::Op)>, prost::DecodeError> {
    use proto::Message as _;
    definition.def.iter().map(|bytes| Ok((Digest::of(bytes), pb::Op::decode(bytes.as_slice())?))).collect()
}

fn shown(digest: Digest, op: &pb::Op) -> (String, &'static str) {
    use pb::file_action::Action;
    let action = |action: &pb::FileAction| match &action.action {
        Some(Action::Copy(copy)) => format!("copy{{src={}, dest={}}}", copy.src, copy.dest),
        Some(Action::Mkfile(file)) => format!("mkfile{{path={}}}", file.path),
        Some(Action::Mkdir(dir)) => format!("mkdir{{path={}}}", dir.path),
        Some(Action::Rm(rm)) => format!("rm{{path={}}}", rm.path),
        Some(Action::Symlink(link)) => format!("symlink{{oldpath={}, newpath={}}}", link.oldpath, link.newpath),
        None => String::new(),
    };
    match &op.op {
        Some(pb::op::Op::Source(source)) => (source.identifier.clone(), "ellipse"),
        Some(pb::op::Op::Exec(exec)) => (exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(), "box"),
        Some(pb::op::Op::Build(_)) => ("build".to_owned(), "box3d"),
        Some(pb::op::Op::Merge(_)) => ("merge".to_owned(), "invtriangle"),
        Some(pb::op::Op::Diff(_)) => ("diff".to_owned(), "doublecircle"),
        Some(pb::op::Op::File(file)) => (file.actions.iter().map(action).collect::<Vec<_>>().join(","), "note"),
        None => (digest.to_string(), "plaintext"),
    }
}

fn op_json(op: &pb::Op) -> String {
    let input = |input: &pb::Input| Object::new().str("digest", &input.digest).int("index", input.index).end();
    let kind = match &op.op {
        Some(pb::op::Op::Exec(exec)) => Object::new().raw("exec", &exec_json(exec)),
        Some(pb::op::Op::Source(source)) => {
            let source = Object::new().str("identifier", &source.identifier);
            Object::new().raw("source", &map(source, "attrs", &source_attrs(op)).end())
        }
        Some(pb::op::Op::File(file)) => {
            Object::new().raw("file", &Object::new().array("actions", &file.actions, action_json).end())
        }
        Some(pb::op::Op::Build(build)) => {
            let inputs: BTreeMap<_, _> = build.inputs.iter().map(|(name, input)| (name, input.input)).collect();
            let inputs = inputs.into_iter().fold(Object::new(), |object, (name, input)| {
                object.raw(name, &Object::new().int("input", input).end())
            });
            let built = Object::new().int("builder", build.builder);
            let built = if build.inputs.is_empty() { built } else { built.raw("inputs", &inputs.end()) };
            Object::new().raw("build", &map(built, "attrs", &build.attrs).end())
        }
        Some(pb::op::Op::Merge(merge)) => {
            let inputs = |input: &pb::MergeInput| Object::new().int("input", input.input).end();
            Object::new().raw("merge", &Object::new().array("inputs", &merge.inputs, inputs).end())
        }
        Some(pb::op::Op::Diff(diff)) => {
            let side = |input: i64| Object::new().int("input", input).end();
            let sides = Object::new().optional("lower", diff.lower.as_ref(), |lower| side(lower.input)).optional(
                "upper",
                diff.upper.as_ref(),
                |upper| side(upper.input),
            );
            Object::new().raw("diff", &sides.end())
        }
        None => Object::new(),
    };
    Object::new()
        .array("inputs", &op.inputs, input)
        .raw("Op", &kind.end())
        .optional("platform", op.platform.as_ref(), |platform| {
            Object::new()
                .str("Architecture", &platform.architecture)
                .str("OS", &platform.os)
                .str("Variant", &platform.variant)
                .str("OSVersion", &platform.os_version)
                .strs("OSFeatures", &platform.os_features)
                .end()
        })
        .optional("constraints", op.constraints.as_ref(), |constraints| {
            Object::new().strs("filter", &constraints.filter).end()
        })
        .end()
}

fn source_attrs(op: &pb::Op) -> BTreeMap<String, String> {
    match &op.op {
        Some(pb::op::Op::Source(source)) => source.attrs.clone(),
        _ => BTreeMap::new(),
    }
}

fn map(object: Object, key: &str, values: &BTreeMap<String, String>) -> Object {
    if values.is_empty() {
        return object;
    }
    let inner = values.iter().fold(Object::new(), |object, (key, value)| object.raw(key, &string(value)));
    object.raw(key, &inner.end())
}

fn exec_json(op: &pb::ExecOp) -> String {
    Object::new()
        .optional("meta", op.meta.as_ref(), meta_json)
        .array("mounts", &op.mounts, mount_json)
        .int("network", op.network.into())
        .int("security", op.security.into())
        .array("secretenv", &op.secretenv, |secret| {
            Object::new().str("ID", &secret.id).str("name", &secret.name).bool("optional", secret.optional).end()
        })
        .array("cdiDevices", &op.cdi_devices, |device| {
            Object::new().str("name", &device.name).bool("optional", device.optional).end()
        })
        .end()
}

fn meta_json(meta: &pb::Meta) -> String {
    Object::new()
        .strs("args", &meta.args)
        .strs("env", &meta.env)
        .str("cwd", &meta.cwd)
        .str("user", &meta.user)
        .optional("proxy_env", meta.proxy_env.as_ref(), |proxy| {
            Object::new()
                .str("http_proxy", &proxy.http_proxy)
                .str("https_proxy", &proxy.https_proxy)
                .str("ftp_proxy", &proxy.ftp_proxy)
                .str("no_proxy", &proxy.no_proxy)
                .str("all_proxy", &proxy.all_proxy)
                .end()
        })
        .array("extraHosts", &meta.extra_hosts, |host| Object::new().str("Host", &host.host).str("IP", &host.ip).end())
        .str("hostname", &meta.hostname)
        .array("ulimit", &meta.ulimit, |limit| {
            Object::new().str("Name", &limit.name).int("Soft", limit.soft).int("Hard", limit.hard).end()
        })
        .str("cgroupParent", &meta.cgroup_parent)
        .bool("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .array("validExitCodes", &meta.valid_exit_codes, ToString::to_string)
        .end()
}

fn action_json(action: &pb::FileAction) -> String {
    use pb::file_action::Action;
    let kind = match &action.action {
        Some(Action::Copy(copy)) => Object::new().raw("copy", &copy_json(copy)),
        Some(Action::Mkfile(file)) => {
            let file = Object::new()
                .str("path", &file.path)
                .int("mode", file.mode.into())
                .bytes("data", &file.data)
                .optional("owner", file.owner.as_ref(), owner_json)
                .int("timestamp", file.timestamp);
            Object::new().raw("mkfile", &file.end())
        }
        Some(Action::Mkdir(dir)) => {
            let dir = Object::new()
                .str("path", &dir.path)
                .int("mode", dir.mode.into())
                .bool("makeParents", dir.make_parents)
                .optional("owner", dir.owner.as_ref(), owner_json)
                .int("timestamp", dir.timestamp);
            Object::new().raw("mkdir", &dir.end())
        }
        Some(Action::Rm(rm)) => {
            let rm = Object::new()
                .str("path", &rm.path)
                .bool("allowNotFound", rm.allow_not_found)
                .bool("allowWildcard", rm.allow_wildcard);
            Object::new().raw("rm", &rm.end())
        }
        Some(Action::Symlink(link)) => {
            let link = Object::new()
                .str("oldpath", &link.oldpath)
                .str("newpath", &link.newpath)
                .optional("owner", link.owner.as_ref(), owner_json)
                .int("timestamp", link.timestamp);
            Object::new().raw("symlink", &link.end())
        }
        None => Object::new(),
    };
    Object::new()
        .raw("input", &action.input.to_string())
        .raw("secondaryInput", &action.secondary_input.to_string())
        .raw("output", &action.output.to_string())
        .raw("Action", &kind.end())
        .end()
}

fn metadata_json(metadata: &pb::OpMetadata) -> String {
    let caps = metadata.caps.iter().fold(Object::new(), |object, (cap, needed)| object.raw(cap, &needed.to_string()));
    let mut description = metadata.description.clone();
    description.retain(|key, _| !proto::LinuxResources::is_entry(key));
    let known = map(Object::new().bool("ignore_cache", metadata.ignore_cache), "description", &description).optional(
        "export_cache",
        metadata.export_cache.as_ref(),
        |export| Object::new().bool("Value", export.value).end(),
    );
    let known = if metadata.caps.is_empty() { known } else { known.raw("caps", &caps.end()) };
    known
        .optional("progress_group", metadata.progress_group.as_ref(), |group| {
            Object::new().str("id", &group.id).str("name", &group.name).bool("weak", group.weak).end()
        })
        .optional("linux_resources", proto::LinuxResources::of(metadata).as_ref(), resources_json)
        .end()
}

fn resources_json(resources: &proto::LinuxResources) -> String {
    let number = |object: Object, name, value: i128| match value {
        0 => object,
        value => object.raw(name, &value.to_string()),
    };
    let known = number(Object::new(), "memory", resources.memory.into());
    let known = number(known, "memorySwap", resources.memory_swap.into());
    let known = number(known, "cpuShares", resources.cpu_shares.into());
    let known = number(known, "cpuPeriod", resources.cpu_period.into());
    number(known, "cpuQuota", resources.cpu_quota.into())
        .str("cpusetCpus", &resources.cpuset_cpus)
        .str("cpusetMems", &resources.cpuset_mems)
        .end()
}

#[cfg(test)]
mod tests {
    use proto::Message as _;

    use super::*;

    #[test]
    fn ops_are_shown_as_buildkit_shows_them() {
        let attrs = [("image.resolvemode".to_owned(), "<pull>".to_owned())].into();
        let source = pb::SourceOp { identifier: "docker-image://x".to_owned(), attrs };
        let source = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }.encode_to_vec();
        let digest = Digest::of(&source);
        let input = pb::Input { digest: digest.to_string(), index: 0 };
        let mount = |dest: &str| pb::Mount { dest: dest.to_owned(), ..pb::Mount::default() };
        let meta = pb::Meta { args: vec!["echo".to_owned(), "\"a\"".to_owned()], ..pb::Meta::default() };
        let exec = pb::ExecOp { meta: Some(meta), mounts: vec![mount("/"), mount("/in")], ..pb::ExecOp::default() };
        let exec = pb::Op { inputs: vec![input.clone()], op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() };
        let exec = exec.encode_to_vec();
        let metadata = pb::OpMetadata { caps: [("source.image".to_owned(), true)].into(), ..Default::default() };
        let definition = pb::Definition {
            def: vec![source, exec.clone()],
            metadata: [(digest.to_string(), metadata)].into(),
            source: None,
        };
        assert_eq!(
            lines(&definition).expect("ops"),
            format!(
                "{{\"Op\":{{\"Op\":{{\"source\":{{\"identifier\":\"docker-image://x\",\"attrs\":{{\"image.resolvemode\":\
                 \"\\u003cpull\\u003e\"}}}}}}}},\"Digest\":\"{digest}\",\"OpMetadata\":{{\"caps\":{{\"source.image\":true}}}}}}\n\
                 {{\"Op\":{{\"inputs\":[{{\"digest\":\"{digest}\"}}],\"Op\":{{\"exec\":{{\"meta\":{{\"args\":[\"echo\",\"\\\"a\\\"\"]}},\
                 \"mounts\":[{{\"dest\":\"/\"}},{{\"dest\":\"/in\"}}]}}}}}},\"Digest\":\"{of_exec}\",\"OpMetadata\":{{}}}}\n",
                of_exec = Digest::of(&exec)
            )
        );
        assert_eq!(
            dot(&definition).expect("ops"),
            format!(
                "digraph {{\n  \"{digest}\" [label=\"docker-image://x\" shape=\"ellipse\"];\n  \"{of_exec}\" \
                 [label=\"echo \\\"a\\\"\" shape=\"box\"];\n  \"{digest}\" -> \"{of_exec}\" [label=\"/in\"];\n}}\n",
                of_exec = Digest::of(&exec)
            )
        );
        assert!(lines(&pb::Definition { def: vec![vec![0xff]], ..Default::default() }).is_err());
    }
}
