//! From ops to bytes.
//!
//! Order, presence and defaults of fields are those of BuildKit's Go client. Ops are visited inputs first, without
//! recursion: a Dockerfile may have any number of steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use base::{Digest, Platform, SourceSpan};
use prost::Message as _;

use super::exec::{ExecNode, MountKind};
use super::file::{Chmod, FileAction, FileNode, Owner, User};
use super::{Builder, CacheSharing, Constraints, Error, Index, Node, Op, Output, Place, State, caps};
use crate::{path, pb};

/// What ops get that do not say it themselves.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// The platform.
    pub platform: Platform,
    /// Tells local sources without a session apart.
    pub local_unique: String,
}

type Marshalled = (Digest, Vec<u8>, pb::OpMetadata);

impl Builder {
    /// What `state` needs, as a definition. The empty file system is an empty definition.
    pub fn marshal(&self, state: &State, defaults: &Defaults) -> Result<pb::Definition, Error> {
        let mut out = Writer { builder: self, defaults, done: HashMap::new(), definition: pb::Definition::default() };
        let Some(output) = self.settle(state.output)? else { return Ok(out.definition) };
        let mut seen = HashSet::new();
        let mut locations: BTreeMap<String, pb::Locations> = BTreeMap::new();
        let mut infos = Infos { builder: self, of_map: HashMap::new(), infos: Vec::new() };
        for node in self.order(output.0)? {
            let (digest, bytes, metadata) = out.op(&self.nodes[node as usize])?;
            out.done.insert(node, digest);
            let key = digest.to_string();
            merge_metadata(out.definition.metadata.entry(key.clone()).or_default(), metadata);
            let places = locations.entry(key).or_default();
            for (map, spans) in &self.nodes[node as usize].constraints.locations {
                let source_index = infos.index(map.0);
                let ranges = spans.iter().map(range).collect();
                places.locations.push(pb::Location { source_index, ranges });
            }
            if seen.insert(digest) {
                out.definition.def.push(bytes);
            }
        }
        let input = out.input(output);
        out.finish(input);
        out.definition.source = Some(pb::Source { locations, infos: infos.infos });
        Ok(out.definition)
    }

    /// Follows slots to the op that they stand for.
    fn settle(&self, output: Option<Output>) -> Result<Option<(u32, Index)>, Error> {
        let mut output = output;
        for _ in 0..=self.slots.len() {
            match output {
                None => return Ok(None),
                Some(Output(Place::Op { node, index })) => return Ok(Some((node, index))),
                Some(Output(Place::Slot(slot))) => output = self.slots[slot as usize].ok_or(Error::EmptySlot)?,
            }
        }
        Err(Error::Cycle)
    }

    /// The ops that `root` needs, inputs first.
    fn order(&self, root: u32) -> Result<Vec<u32>, Error> {
        let mut order = Vec::new();
        let mut state: HashMap<u32, bool> = HashMap::new();
        let mut stack = vec![(root, self.inputs(root)?, 0)];
        state.insert(root, false);
        while let Some((node, inputs, next)) = stack.pop() {
            let Some(&input) = inputs.get(next) else {
                state.insert(node, true);
                order.push(node);
                continue;
            };
            stack.push((node, inputs, next + 1));
            match state.get(&input) {
                Some(true) => {}
                Some(false) => return Err(Error::Cycle),
                None => {
                    state.insert(input, false);
                    stack.push((input, self.inputs(input)?, 0));
                }
            }
        }
        Ok(order)
    }

    /// The ops that an op reads, in the order in which upstream visits them.
    fn inputs(&self, node: u32) -> Result<Vec<u32>, Error> {
        let outputs: Vec<Option<Output>> = match &self.nodes[node as usize].op {
            Op::Source { .. } => Vec::new(),
            Op::Exec(exec) => exec.mounts().iter().map(|mount| mount.source).collect(),
            Op::File(file) => {
                let copies = file.actions.iter().rev().filter_map(|action| match action {
                    FileAction::Copy(copy) => Some(copy.source.output),
                    _ => None,
                });
                std::iter::once(file.base).chain(copies).collect()
            }
            Op::Merge(inputs) => inputs.iter().copied().map(Some).collect(),
            Op::Raw(raw) => raw.inputs.iter().copied().map(Some).collect(),
        };
        let settled: Result<Vec<_>, Error> = outputs.into_iter().map(|output| self.settle(output)).collect();
        Ok(settled?.into_iter().flatten().map(|(node, _)| node).collect())
    }
}

struct Writer<'a> {
    builder: &'a Builder,
    defaults: &'a Defaults,
    done: HashMap<u32, Digest>,
    definition: pb::Definition,
}

impl Writer<'_> {
    fn op(&self, node: &Node) -> Result<Marshalled, Error> {
        let mut caps = node.constraints.caps.clone();
        let mut op = pb::Op { constraints: Some(pb::WorkerConstraints::default()), ..Default::default() };
        match &node.op {
            Op::Raw(raw) => return Ok((Digest::of(&raw.bytes), raw.bytes.clone(), raw.metadata.clone())),
            Op::Source { identifier, attrs } => {
                let mut attrs = attrs.clone();
                if identifier.starts_with("local://") && !attrs.contains_key("local.session") {
                    attrs.insert("local.unique".to_owned(), self.defaults.local_unique.clone());
                    caps.insert(caps::SOURCE_LOCAL_UNIQUE);
                }
                if identifier.starts_with("docker-image://") || identifier.starts_with("oci-layout://") {
                    op.platform = Some(platform(node.constraints.platform.as_ref().unwrap_or(&self.defaults.platform)));
                }
                op.op = Some(pb::op::Op::Source(pb::SourceOp { identifier: identifier.clone(), attrs }));
            }
            Op::Exec(exec) => {
                let own = node.constraints.platform.as_ref().or(exec.meta.platform.as_ref());
                op.platform = Some(platform(own.unwrap_or(&self.defaults.platform)));
                self.exec(exec, &mut op, &mut caps)?;
            }
            Op::File(file) => {
                caps.insert(caps::FILE);
                self.file(file, &mut op)?;
            }
            Op::Merge(inputs) => {
                let mut merge = pb::MergeOp::default();
                for input in inputs {
                    merge.inputs.push(pb::MergeInput { input: op.inputs.len() as i64 });
                    let settled = self.builder.settle(Some(*input))?.ok_or(Error::EmptySlot)?;
                    op.inputs.push(self.input(settled));
                }
                op.op = Some(pb::op::Op::Merge(merge));
            }
        }
        let bytes = encode(op);
        let mut metadata = metadata(&node.constraints, &caps);
        if let Op::Exec(exec) = &node.op
            && let Some(resources) = &exec.exec.resources
        {
            resources.set(&mut metadata);
        }
        Ok((Digest::of(&bytes), bytes, metadata))
    }

    fn input(&self, (node, index): (u32, Index)) -> pb::Input {
        let index = match (index, &self.builder.nodes[node as usize].op) {
            (Index::Fixed(index), _) => index,
            (Index::Root, Op::Exec(exec)) => exec.root_index(),
            (Index::Root, _) => 0,
        };
        pb::Input { digest: self.done[&node].to_string(), index }
    }

    /// Adds an input unless it is there already; its place, or -1 for the empty file system.
    fn add_input(&self, op: &mut pb::Op, output: Option<Output>) -> Result<i64, Error> {
        let Some(settled) = self.builder.settle(output)? else { return Ok(-1) };
        let input = self.input(settled);
        let place = op.inputs.iter().position(|have| *have == input).unwrap_or_else(|| {
            op.inputs.push(input);
            op.inputs.len() - 1
        });
        Ok(place as i64)
    }

    fn finish(&mut self, input: pb::Input) {
        let bytes = pb::Op { inputs: vec![input], ..Default::default() }.encode_to_vec();
        let mut last = pb::OpMetadata::default();
        last.caps.extend([(caps::CONSTRAINTS.to_owned(), true), (caps::PLATFORM.to_owned(), true)]);
        for metadata in self.definition.metadata.values() {
            if metadata.ignore_cache {
                last.caps.insert(caps::META_IGNORE_CACHE.to_owned(), true);
            }
            if !metadata.description.is_empty() {
                last.caps.insert(caps::META_DESCRIPTION.to_owned(), true);
            }
        }
        self.definition.metadata.insert(Digest::of(&bytes).to_string(), last);
        self.definition.def.push(bytes);
    }

    fn exec(&self, node: &ExecNode, op: &mut pb::Op, caps: &mut BTreeSet<&'static str>) -> Result<(), Error> {
        let exec = &node.exec;
        if exec.args.is_empty() {
            return Err(Error::NoArguments);
        }
        exec_caps(node, caps);
        let network = exec.network.unwrap_or(node.meta.network);
        if network != pb::NetMode::Unset {
            caps.insert(caps::EXEC_NETWORK);
        }
        let ssh_targets: Vec<String> = exec.ssh.iter().enumerate().map(|(i, ssh)| ssh_target(i, &ssh.target)).collect();
        let mut out = pb::ExecOp {
            meta: Some(meta(node, ssh_targets.first())),
            network: network as i32,
            cdi_devices: exec
                .devices
                .iter()
                .cloned()
                .map(|(name, optional)| pb::CdiDevice { name, optional })
                .collect(),
            security: if exec.insecure { pb::SecurityMode::Insecure } else { pb::SecurityMode::Sandbox } as i32,
            ..Default::default()
        };
        let mut outputs = 0;
        for mount in node.mounts() {
            let mut pm = pb::Mount {
                input: self.add_input(op, mount.source)?,
                dest: mount.target.to_owned(),
                output: -1,
                ..Default::default()
            };
            if mount.has_output() {
                pm.output = outputs;
                outputs += 1;
            }
            if let Some(own) = mount.mount {
                pm.readonly = own.readonly;
                pm.selector.clone_from(&own.selector);
                mount_kind(&own.kind, &mut pm);
            }
            out.mounts.push(pm);
        }
        for secret in &exec.secrets {
            if let Some(name) = &secret.env {
                let (id, name, optional) = (secret.id.clone(), name.clone(), secret.optional);
                out.secretenv.push(pb::SecretEnv { id, name, optional });
            }
            if let Some(target) = &secret.target {
                let mut pm = sessional(target, pb::MountType::Secret);
                pm.secret_opt = Some(pb::SecretOpt {
                    id: secret.id.clone(),
                    uid: secret.uid,
                    gid: secret.gid,
                    mode: secret.mode,
                    optional: secret.optional,
                });
                out.mounts.push(pm);
            }
        }
        for (ssh, target) in exec.ssh.iter().zip(&ssh_targets) {
            let mut pm = sessional(target, pb::MountType::Ssh);
            pm.ssh_opt = Some(pb::SshOpt {
                id: ssh.id.clone(),
                uid: ssh.uid,
                gid: ssh.gid,
                mode: ssh.mode,
                optional: ssh.optional,
            });
            out.mounts.push(pm);
        }
        op.op = Some(pb::op::Op::Exec(out));
        Ok(())
    }

    fn file(&self, node: &FileNode, op: &mut pb::Op) -> Result<(), Error> {
        // Places are given before any action is written: an action's number counts from behind the inputs.
        let mut places = Vec::with_capacity(node.actions.len());
        for action in &node.actions {
            let base = self.add_input(op, node.base)?;
            let second = match action {
                FileAction::Copy(copy) => self.add_input(op, copy.source.output)?,
                _ => -1,
            };
            places.push((base, second));
        }
        let inputs = op.inputs.len() as i64;
        let last = node.actions.len().saturating_sub(1);
        let mut out = pb::FileOp::default();
        for (i, (action, (base, second))) in node.actions.iter().zip(places).enumerate() {
            out.actions.push(pb::FileAction {
                input: if i == 0 { base } else { inputs + i as i64 - 1 },
                secondary_input: second,
                output: if i == last { 0 } else { -1 },
                action: Some(file_action(action, &node.dir, base)),
            });
        }
        op.op = Some(pb::op::Op::File(out));
        Ok(())
    }
}

struct Infos<'a> {
    builder: &'a Builder,
    of_map: HashMap<u32, i32>,
    infos: Vec<pb::SourceInfo>,
}

impl Infos<'_> {
    fn index(&mut self, map: u32) -> i32 {
        *self.of_map.entry(map).or_insert_with(|| {
            self.infos.push(self.builder.maps[map as usize].clone());
            self.infos.len() as i32 - 1
        })
    }
}

/// Go's protobuf writes the fields of a `oneof` behind all others, prost in the order of their numbers.
fn encode(mut op: pb::Op) -> Vec<u8> {
    let kind = op.op.take();
    let mut bytes = op.encode_to_vec();
    if let Some(kind) = kind {
        kind.encode(&mut bytes);
    }
    bytes
}

fn exec_caps(node: &ExecNode, caps: &mut BTreeSet<&'static str>) {
    let exec = &node.exec;
    caps.extend([caps::EXEC_BASE, caps::EXEC_DEFAULT_PATH]);
    let mut need = |when: bool, cap| {
        if when {
            caps.insert(cap);
        }
    };
    need(!exec.ulimits.is_empty(), caps::EXEC_ULIMIT);
    need(exec.resources.is_some(), caps::EXEC_RESOURCES);
    need(exec.insecure, caps::EXEC_SECURITY);
    need(!exec.devices.is_empty(), caps::EXEC_CDI);
    need(exec.proxy.is_some(), caps::EXEC_PROXY);
    need(!exec.secrets.is_empty(), caps::EXEC_SECRET);
    need(exec.secrets.iter().any(|secret| secret.env.is_some()), caps::EXEC_SECRET_ENV);
    need(!exec.ssh.is_empty(), caps::EXEC_SSH);
    need(node.root.is_some(), caps::EXEC_BIND);
    for mount in &exec.mounts {
        need(!mount.selector.is_empty(), caps::EXEC_SELECTOR);
        match mount.kind {
            MountKind::Cache { .. } => {
                need(true, caps::EXEC_CACHE);
                need(true, caps::EXEC_CACHE_SHARING);
            }
            MountKind::Tmpfs { size } => {
                need(true, caps::EXEC_TMPFS);
                need(size > 0, caps::EXEC_TMPFS_SIZE);
            }
            MountKind::Bind => need(mount.source.is_some(), caps::EXEC_BIND),
        }
    }
}

fn meta(node: &ExecNode, ssh_socket: Option<&String>) -> pb::Meta {
    let exec = &node.exec;
    let mut env = node.meta.env.to_list();
    if let Some(socket) = ssh_socket
        && node.meta.env.get("SSH_AUTH_SOCK").is_none()
    {
        env.push(format!("SSH_AUTH_SOCK={socket}"));
    }
    let host = |(host, ip): &(String, String)| pb::HostIp { host: host.clone(), ip: ip.clone() };
    pb::Meta {
        args: exec.args.clone(),
        env,
        cwd: node.meta.dir.clone(),
        user: node.meta.user.clone(),
        proxy_env: exec.proxy.clone(),
        extra_hosts: exec.extra_hosts.iter().map(host).collect(),
        hostname: node.meta.hostname.clone(),
        ulimit: exec.ulimits.clone(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: Vec::new(),
    }
}

fn ssh_target(index: usize, target: &str) -> String {
    if target.is_empty() { format!("/run/buildkit/ssh_agent.{index}") } else { target.to_owned() }
}

fn mount_kind(kind: &MountKind, pm: &mut pb::Mount) {
    match kind {
        MountKind::Bind => {}
        MountKind::Cache { id, sharing } => {
            pm.set_mount_type(pb::MountType::Cache);
            let sharing = match sharing {
                CacheSharing::Shared => pb::CacheSharingOpt::Shared,
                CacheSharing::Private => pb::CacheSharingOpt::Private,
                CacheSharing::Locked => pb::CacheSharingOpt::Locked,
            };
            pm.cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: sharing as i32 });
        }
        MountKind::Tmpfs { size } => {
            pm.set_mount_type(pb::MountType::Tmpfs);
            pm.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
        }
    }
}

/// A mount that the session feeds. Its output number is 0, since upstream leaves it unset.
fn sessional(target: &str, kind: pb::MountType) -> pb::Mount {
    pb::Mount { input: -1, dest: target.to_owned(), mount_type: kind as i32, ..Default::default() }
}

fn file_action(action: &FileAction, dir: &str, base: i64) -> pb::file_action::Action {
    use pb::file_action::Action;
    match action {
        FileAction::Mkdir { path, mode, parents, owner, created } => Action::Mkdir(pb::FileActionMkDir {
            path: path::under(dir, path, false),
            mode: (mode & 0o777).cast_signed(),
            make_parents: *parents,
            owner: owner.as_ref().map(|owner| chown(owner, base)),
            timestamp: created.unwrap_or(-1),
        }),
        FileAction::Mkfile { path, mode, data, owner, created } => Action::Mkfile(pb::FileActionMkFile {
            path: path::under(dir, path, false),
            mode: (mode & 0o777).cast_signed(),
            data: data.clone(),
            owner: owner.as_ref().map(|owner| chown(owner, base)),
            timestamp: created.unwrap_or(-1),
        }),
        FileAction::Copy(copy) => {
            let (mode, mode_str) = match &copy.chmod {
                None => (-1, String::new()),
                Some(Chmod::Bits(bits)) => (bits.cast_signed(), String::new()),
                Some(Chmod::Symbolic(text)) => (0, text.clone()),
            };
            Action::Copy(pb::FileActionCopy {
                src: copy.source_path(),
                dest: path::under(dir, &copy.dest, true),
                owner: copy.owner.as_ref().map(|owner| chown(owner, base)),
                mode,
                follow_symlink: copy.follow_symlinks,
                dir_copy_contents: copy.contents_only,
                attempt_unpack_docker_compatibility: copy.unpack,
                create_dest_path: copy.create_dest,
                allow_wildcard: copy.wildcard,
                allow_empty_wildcard: copy.empty_wildcard,
                timestamp: -1,
                include_patterns: copy.include.clone(),
                exclude_patterns: copy.exclude.clone(),
                always_replace_existing_dest_paths: false,
                mode_str,
                required_paths: copy.required.clone(),
            })
        }
    }
}

fn chown(owner: &Owner, base: i64) -> pb::ChownOpt {
    let user = |user: &User| pb::UserOpt {
        user: Some(match user {
            User::Id(id) => pb::user_opt::User::ById(*id),
            User::Name(name) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: base }),
        }),
    };
    pb::ChownOpt { user: owner.user.as_ref().map(user), group: owner.group.as_ref().map(user) }
}

fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn metadata(constraints: &Constraints, caps: &BTreeSet<&'static str>) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: constraints.ignore_cache,
        description: constraints.description.clone(),
        export_cache: None,
        caps: caps.iter().map(|cap| ((*cap).to_owned(), true)).collect(),
        progress_group: constraints.progress_group.clone(),
    }
}

/// Equal ops written twice share one entry: the later texts win, and each wish counts.
fn merge_metadata(into: &mut pb::OpMetadata, from: pb::OpMetadata) {
    into.ignore_cache |= from.ignore_cache;
    into.description.extend(from.description);
    into.caps.extend(from.caps);
    into.export_cache = from.export_cache.or(into.export_cache.take());
    into.progress_group = from.progress_group.or(into.progress_group.take());
}

fn range(span: &SourceSpan) -> pb::Range {
    let position = |(line, character): (u32, u32)| pb::Position {
        line: i32::try_from(line).unwrap_or(i32::MAX),
        character: i32::try_from(character).unwrap_or(i32::MAX),
    };
    pb::Range { start: Some(position(span.start)), end: Some(position(span.end)) }
}
