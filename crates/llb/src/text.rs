//! A text form of a graph, for people and golden files.
//!
//! One paragraph for each vertex, inputs first: its number, digest and kind, then what differs from the default, one
//! line each. Inputs are numbers of vertices, `#2.1` is the second output of the third vertex's successor by number.
//! The form is no format: nothing reads it back, and it may change.

use std::fmt::Write as _;

use crate::{Graph, Vertex, pb};

/// An op in a few words, for vertices without a name of their own.
pub fn op_name(op: &pb::Op) -> String {
    match &op.op {
        None => "output".to_owned(),
        Some(pb::op::Op::Source(source)) => source.identifier.clone(),
        Some(pb::op::Op::Exec(exec)) => exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(),
        Some(pb::op::Op::File(file)) => file.actions.iter().map(action_name).collect::<Vec<_>>().join(", "),
        Some(pb::op::Op::Build(_)) => "build".to_owned(),
        Some(pb::op::Op::Merge(_)) => "merge".to_owned(),
        Some(pb::op::Op::Diff(_)) => "diff".to_owned(),
    }
}

fn action_name(action: &pb::FileAction) -> String {
    use pb::file_action::Action;
    match &action.action {
        Some(Action::Copy(copy)) => format!("copy {} {}", copy.src, copy.dest),
        Some(Action::Mkfile(file)) => format!("mkfile {}", file.path),
        Some(Action::Mkdir(dir)) => format!("mkdir {}", dir.path),
        Some(Action::Rm(rm)) => format!("rm {}", rm.path),
        Some(Action::Symlink(link)) => format!("symlink {} {}", link.oldpath, link.newpath),
        None => "nothing".to_owned(),
    }
}

/// The whole graph.
pub fn describe(graph: &Graph) -> String {
    let mut out = Lines(String::new());
    for (number, vertex) in graph.vertices().iter().enumerate() {
        let kind = match &vertex.op.op {
            None if vertex.passthrough.is_some() => "passthrough",
            None => "output",
            Some(pb::op::Op::Source(_)) => "source",
            Some(pb::op::Op::Exec(_)) => "exec",
            Some(pb::op::Op::File(_)) => "file",
            Some(pb::op::Op::Build(_)) => "build",
            Some(pb::op::Op::Merge(_)) => "merge",
            Some(pb::op::Op::Diff(_)) => "diff",
        };
        out.put(0, format_args!("#{number} {kind} {}", vertex.digest));
        out.vertex(vertex, graph);
        out.0.push('\n');
    }
    match graph.output() {
        Some(output) => out.put(0, format_args!("output #{}.{}", output.vertex.0, output.index)),
        None => out.put(0, format_args!("output scratch")),
    }
    out.0
}

struct Lines(String);

impl Lines {
    fn put(&mut self, depth: usize, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{:width$}{line}", "", width = depth * 2).expect("memory does not fail");
    }

    /// A line if there is something to say.
    fn some(&mut self, depth: usize, name: &str, value: &str) {
        if !value.is_empty() {
            self.put(depth, format_args!("{name}: {}", quoted(value)));
        }
    }

    fn list(&mut self, depth: usize, name: &str, values: &[String]) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
            self.put(depth, format_args!("{name}: {}", values.join(" ")));
        }
    }

    fn vertex(&mut self, vertex: &Vertex, graph: &Graph) {
        for (key, value) in &vertex.metadata.description {
            self.some(1, key, value);
        }
        if vertex.ignore_cache() {
            self.put(1, format_args!("ignore-cache"));
        }
        if let Some(group) = &vertex.metadata.progress_group {
            let weak = if group.weak { " (weak)" } else { "" };
            self.put(1, format_args!("progress-group: {}{weak}", quoted(&group.name)));
        }
        let locations = graph.source().and_then(|source| source.locations.get(&vertex.digest.to_string()));
        for location in locations.iter().flat_map(|locations| &locations.locations) {
            let line = |position: &Option<pb::Position>| position.as_ref().map_or(0, |position| position.line);
            let first = location.ranges.iter().map(|range| line(&range.start)).min().unwrap_or(0);
            let last = location.ranges.iter().map(|range| line(&range.end)).max().unwrap_or(0);
            self.put(1, format_args!("lines: {first}-{last}"));
        }
        if let Some(platform) = &vertex.op.platform {
            let variant = if platform.variant.is_empty() { String::new() } else { format!("/{}", platform.variant) };
            self.put(1, format_args!("platform: {}/{}{variant}", platform.os, platform.architecture));
        }
        let inputs: Vec<String> = vertex.inputs.iter().map(|i| format!("#{}.{}", i.vertex.0, i.index)).collect();
        self.list(1, "inputs", &inputs);
        match &vertex.op.op {
            Some(pb::op::Op::Source(source)) => self.source(source),
            Some(pb::op::Op::Exec(exec)) => self.exec(exec),
            Some(pb::op::Op::File(file)) => file.actions.iter().for_each(|action| self.action(action)),
            _ => {}
        }
    }

    fn source(&mut self, source: &pb::SourceOp) {
        self.some(1, "identifier", &source.identifier);
        for (key, value) in &source.attrs {
            self.some(2, key, value);
        }
    }

    fn exec(&mut self, exec: &pb::ExecOp) {
        if let Some(meta) = &exec.meta {
            self.list(1, "args", &meta.args);
            self.list(1, "env", &meta.env);
            self.some(1, "cwd", &meta.cwd);
            self.some(1, "user", &meta.user);
            self.some(1, "hostname", &meta.hostname);
            self.some(1, "cgroup-parent", &meta.cgroup_parent);
            for host in &meta.extra_hosts {
                self.put(1, format_args!("host: {} {}", host.host, host.ip));
            }
            for limit in &meta.ulimit {
                self.put(1, format_args!("ulimit: {}={}:{}", limit.name, limit.soft, limit.hard));
            }
            if let Some(proxy) = &meta.proxy_env {
                let pairs = [
                    ("http", &proxy.http_proxy),
                    ("https", &proxy.https_proxy),
                    ("ftp", &proxy.ftp_proxy),
                    ("no", &proxy.no_proxy),
                    ("all", &proxy.all_proxy),
                ];
                pairs.into_iter().for_each(|(name, value)| self.some(1, &format!("proxy {name}"), value));
            }
        }
        if exec.network() != pb::NetMode::Unset {
            self.put(1, format_args!("network: {}", exec.network().as_str_name().to_lowercase()));
        }
        if exec.security() != pb::SecurityMode::Sandbox {
            self.put(1, format_args!("security: {}", exec.security().as_str_name().to_lowercase()));
        }
        for device in &exec.cdi_devices {
            let optional = if device.optional { " optional" } else { "" };
            self.put(1, format_args!("device: {}{optional}", quoted(&device.name)));
        }
        exec.mounts.iter().for_each(|mount| self.mount(mount));
        for secret in &exec.secretenv {
            let optional = if secret.optional { " optional" } else { "" };
            self.put(1, format_args!("secret-env: {} from {}{optional}", quoted(&secret.name), quoted(&secret.id)));
        }
    }

    fn mount(&mut self, mount: &pb::Mount) {
        let mut line = format!("mount {} {}", mount.mount_type().as_str_name().to_lowercase(), quoted(&mount.dest));
        let mut add = |text: String| line.push_str(&format!(" {text}"));
        if mount.input >= 0 {
            add(format!("input={}", mount.input));
        }
        if !mount.selector.is_empty() {
            add(format!("selector={}", quoted(&mount.selector)));
        }
        if mount.readonly {
            add("readonly".to_owned());
        }
        if mount.output >= 0 && mount.mount_type() == pb::MountType::Bind {
            add(format!("output={}", mount.output));
        }
        if let Some(cache) = &mount.cache_opt {
            add(format!("id={} sharing={}", quoted(&cache.id), cache.sharing().as_str_name().to_lowercase()));
        }
        if let Some(tmpfs) = mount.tmpfs_opt.filter(|tmpfs| tmpfs.size > 0) {
            add(format!("size={}", tmpfs.size));
        }
        let owned = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
            let optional = if optional { " optional" } else { "" };
            format!("id={} owner={uid}:{gid} mode={mode:04o}{optional}", quoted(id))
        };
        if let Some(secret) = &mount.secret_opt {
            add(owned(&secret.id, secret.uid, secret.gid, secret.mode, secret.optional));
        }
        if let Some(ssh) = &mount.ssh_opt {
            add(owned(&ssh.id, ssh.uid, ssh.gid, ssh.mode, ssh.optional));
        }
        self.put(1, format_args!("{line}"));
    }

    fn action(&mut self, action: &pb::FileAction) {
        use pb::file_action::Action;
        let place = match (action.input, action.secondary_input) {
            (-1, -1) => String::new(),
            (input, -1) => format!(" (on {input})"),
            (input, from) => format!(" (on {input}, from {from})"),
        };
        self.put(1, format_args!("{}{place}", action_name(action)));
        let (owner, mode, timestamp) = match &action.action {
            Some(Action::Copy(copy)) => (&copy.owner, copy.mode, copy.timestamp),
            Some(Action::Mkfile(file)) => (&file.owner, file.mode, file.timestamp),
            Some(Action::Mkdir(dir)) => (&dir.owner, dir.mode, dir.timestamp),
            Some(Action::Symlink(link)) => (&link.owner, -1, link.timestamp),
            Some(Action::Rm(_)) | None => (&None, -1, -1),
        };
        if mode >= 0 {
            self.put(2, format_args!("mode: {mode:04o}"));
        }
        if let Some(owner) = owner {
            let user = |user: &Option<pb::UserOpt>| match user.as_ref().and_then(|user| user.user.as_ref()) {
                Some(pb::user_opt::User::ByName(named)) => named.name.clone(),
                Some(pb::user_opt::User::ById(id)) => id.to_string(),
                None => "-".to_owned(),
            };
            self.put(2, format_args!("owner: {}:{}", user(&owner.user), user(&owner.group)));
        }
        if timestamp >= 0 {
            self.put(2, format_args!("timestamp: {timestamp}"));
        }
        match &action.action {
            Some(Action::Copy(copy)) => self.copy(copy),
            Some(Action::Mkfile(file)) => self.some(2, "data", &String::from_utf8_lossy(&file.data)),
            _ => {}
        }
    }

    fn copy(&mut self, copy: &pb::FileActionCopy) {
        self.some(2, "mode-text", &copy.mode_str);
        self.list(2, "include", &copy.include_patterns);
        self.list(2, "exclude", &copy.exclude_patterns);
        self.list(2, "required", &copy.required_paths);
        let switches = [
            ("follow-symlink", copy.follow_symlink),
            ("contents", copy.dir_copy_contents),
            ("unpack", copy.attempt_unpack_docker_compatibility),
            ("create-dest", copy.create_dest_path),
            ("wildcard", copy.allow_wildcard),
            ("empty-wildcard", copy.allow_empty_wildcard),
            ("replace", copy.always_replace_existing_dest_paths),
        ];
        let on: Vec<&str> = switches.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        self.put(2, format_args!("switches: {}", on.join(" ")));
    }
}

/// The text, quoted where spaces or control characters would confuse.
fn quoted(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && c != '"') {
        return text.to_owned();
    }
    serde_json::to_string(text).unwrap_or_default()
}
