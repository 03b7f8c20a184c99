//! `RUN`.

use llb::build::{CacheSharing, Constraints, Env, Exec, FileAction, Mount as ExecMount, MountKind as ExecMountKind};
use llb::build::{Owner, Secret, Ssh, State};
use llb::{path, pb};

use super::stage::Step;
use super::{Lowering, base_image, display, uppercase_first};
use crate::error::{Error, Result};
use crate::expand::Variables;
use crate::instruction::{Mount, MountKind, Network, Run, Sharing};
use crate::parse::{Heredoc, chomp};

impl Lowering<'_> {
    pub(super) fn run(&mut self, index: usize, step: &Step, run: &Run) -> Result<()> {
        let options = self.input.options;
        // A command may read any file.
        self.need_stage_path(index, "/");
        let mounts = self.mounts(index, run)?;
        let state = self.stages[index].state.clone();
        let mut exec = Exec {
            proxy: self.proxy.clone(),
            extra_hosts: options.extra_hosts.clone(),
            ulimits: options.ulimits.clone(),
            cgroup_parent: options.cgroup_parent.clone(),
            resources: options.resources.given(),
            insecure: run.insecure,
            devices: run.devices.iter().map(|device| (device.name.clone(), !device.required)).collect(),
            network: match run.network {
                Network::Default => None,
                Network::None => Some(pb::NetMode::None),
                Network::Host => Some(pb::NetMode::Host),
            },
            ..Exec::default()
        };
        let mut shown = step.instruction.code.trim().to_owned();
        exec.args = self.command(index, run, &mut exec, &mut shown);
        for (mount, source) in mounts.iter().zip(&step.sources) {
            self.mount(index, mount, *source, &mut exec)?;
        }
        if options.shm_size > 0 {
            let kind = ExecMountKind::Tmpfs { size: options.shm_size };
            exec.mounts.push(plain_mount("/dev/shm", None, kind));
        }
        let masked = Masked::new(state.env(), &mounts);
        let lexer = self.lexer.raw_quotes().keep_unset();
        let shown = uppercase_first(&display(lexer, &shown, &masked));
        let name = self.step_name(index, step.trigger, &shown);
        let mut constraints = self.step_constraints(index, &name, step.instruction.span);
        constraints.description.insert(base_image::COMMAND.to_owned(), step.instruction.code.trim().to_owned());
        let history = format!("RUN {} # buildkit", with_arguments(&exec.args, &self.stages[index].args, state.env()));
        let after = self.builder.run(&state, exec, constraints).map_err(|error| match error {
            llb::build::Error::TooLarge => Error::new(error.to_string()),
            other => Error::Build(other),
        })?;
        let epoch = self.history_time();
        let stage = &mut self.stages[index];
        stage.state = after;
        stage.record(epoch, history, true)
    }

    /// The mounts with their variables expanded.
    fn mounts(&self, index: usize, run: &Run) -> Result<Vec<Mount>> {
        let expand = |value: &str| self.expand(index, value);
        run.mounts.iter().map(|text| Mount::parse(text, expand)).collect()
    }

    /// The arguments of the command. A here-document with `#!` becomes a file that is mounted and run.
    fn command(&mut self, index: usize, run: &Run, exec: &mut Exec, shown: &mut String) -> Vec<String> {
        let command = &run.command;
        if !command.shell {
            return command.args.clone();
        }
        let text = command.args.join(" ");
        let Some(first) = command.heredocs.first() else { return self.with_shell(index, &text) };
        if Heredoc::parse(&text).ok().flatten().is_none() {
            // The shell reads the documents itself.
            let mut all = text;
            for doc in &command.heredocs {
                all.push('\n');
                all.push_str(&doc.content);
                all.push_str(&doc.name);
            }
            return self.with_shell(index, &all);
        }
        shown.push_str(&format!(" ({})", summary(&first.content)));
        let content = if first.chomp { chomp(&first.content) } else { first.content.clone() };
        if !content.starts_with("#!") {
            return self.with_shell(index, &content);
        }
        const PIPES: &str = "/dev/pipes/";
        let file = FileAction::Mkfile {
            path: first.name.clone(),
            mode: 0o755,
            data: content.into_bytes(),
            owner: None,
            created: None,
        };
        let state = self.inline_file(index, file);
        let mut mount = plain_mount(PIPES, state.output(), ExecMountKind::Bind);
        "/".clone_into(&mut mount.selector);
        mount.readonly = true;
        exec.mounts.push(mount);
        self.with_shell(index, &path::join(&[PIPES, &first.name]))
    }

    /// The command line of a shell form.
    pub(super) fn with_shell(&self, index: usize, command: &str) -> Vec<String> {
        let shell = &self.stages[index].image.config.shell;
        let mut args = if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell.clone() };
        args.push(command.to_owned());
        args
    }

    fn mount(&mut self, index: usize, mount: &Mount, source: usize, exec: &mut Exec) -> Result<()> {
        let from_stage = mount.from.is_some() || mount.kind == MountKind::Cache;
        if from_stage && !self.stages[source].dispatched {
            return Err(self.too_late(source, "mount"));
        }
        match mount.kind {
            MountKind::Secret => {
                let secret = secret(mount);
                let noted = (mount.required, self.present.1);
                self.stages[index].capture.secrets.entry(secret.id.clone()).or_insert(noted);
                exec.secrets.push(secret);
                return Ok(());
            }
            MountKind::Ssh => {
                let id = if mount.id.is_empty() { "default" } else { &mount.id };
                let noted = (mount.required, self.present.1);
                self.stages[index].capture.agents.entry(id.to_owned()).or_insert(noted);
                exec.ssh.push(ssh(mount));
                return Ok(());
            }
            _ => {}
        }
        let target = self.mount_target(index, &mount.target)?;
        let mut state = match mount.kind {
            MountKind::Tmpfs => State::scratch(),
            _ if from_stage => self.stages[source].state.clone(),
            _ => self.use_context(),
        };
        let selector = path::join(&["/", &mount.source]);
        let selector = if selector != "/" {
            selector
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            state = self.owned_directory(mount, &state);
            "/cache".to_owned()
        } else {
            String::new()
        };
        let kind = match mount.kind {
            MountKind::Tmpfs => ExecMountKind::Tmpfs { size: mount.size },
            MountKind::Cache => self.cache(mount),
            _ => ExecMountKind::Bind,
        };
        let mut out = plain_mount(&target, state.output(), kind);
        out.selector = selector;
        out.readonly = mount.readonly;
        out.no_output = !mount.readonly && mount.kind == MountKind::Bind;
        exec.mounts.push(out);
        match mount.kind {
            // Memory reads nothing: asking for the whole context, as upstream does, would only cost.
            MountKind::Tmpfs => {}
            _ if from_stage => self.need_stage_path(source, &mount.source),
            _ => self.need_context_path(&mount.source),
        }
        Ok(())
    }

    fn mount_target(&self, index: usize, target: &str) -> Result<String> {
        let out = if path::is_abs(target) {
            target.to_owned()
        } else {
            path::join(&["/", self.stages[index].state.dir(), target])
        };
        if out == "/" {
            return Err(Error::new("a mount cannot cover `/`").hint("give it a `target`"));
        }
        Ok(out)
    }

    fn cache(&self, mount: &Mount) -> ExecMountKind {
        let id = if mount.id.is_empty() { path::clean(&mount.target) } else { mount.id.clone() };
        let sharing = match mount.sharing {
            None | Some(Sharing::Shared) => CacheSharing::Shared,
            Some(Sharing::Private) => CacheSharing::Private,
            Some(Sharing::Locked) => CacheSharing::Locked,
        };
        ExecMountKind::Cache { id: format!("{}/{id}", self.input.options.cache_namespace), sharing }
    }

    /// What a new cache begins as: a directory of this owner and mode.
    fn owned_directory(&mut self, mount: &Mount, base: &State) -> State {
        let owner = Owner::ids(mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let mkdir = FileAction::Mkdir {
            path: "/cache".to_owned(),
            mode: mount.mode.unwrap_or(0o755),
            parents: false,
            owner: Some(owner),
            created: None,
        };
        let constraints = Constraints::named("[internal] setting cache mount permissions");
        self.builder.file(base, vec![mkdir], constraints)
    }
}

fn plain_mount(target: &str, source: Option<llb::build::Output>, kind: ExecMountKind) -> ExecMount {
    let target = target.to_owned();
    ExecMount { target, source, selector: String::new(), readonly: false, no_output: false, kind }
}

fn secret(mount: &Mount) -> Secret {
    let named = [&mount.source, &mount.id].into_iter().find(|name| !name.is_empty());
    let id = named.map_or_else(|| path::base(&mount.target).to_owned(), Clone::clone);
    let target = match (mount.target.as_str(), &mount.env) {
        ("", Some(_)) => None,
        ("", None) => Some(format!("/run/secrets/{}", path::base(&id))),
        (target, _) => Some(target.to_owned()),
    };
    Secret {
        target,
        env: mount.env.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o400),
        optional: !mount.required,
        id,
    }
}

fn ssh(mount: &Mount) -> Ssh {
    Ssh {
        id: mount.id.clone(),
        target: mount.target.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o600),
        optional: !mount.required,
    }
}

/// The environment as displays see it: what comes from a secret is starred out.
struct Masked<'a> {
    env: &'a Env,
    secret: Vec<&'a str>,
}

impl<'a> Masked<'a> {
    fn new(env: &'a Env, mounts: &'a [Mount]) -> Masked<'a> {
        let secrets = mounts.iter().filter(|mount| mount.kind == MountKind::Secret);
        Masked { env, secret: secrets.filter_map(|mount| mount.env.as_deref()).collect() }
    }
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secret.contains(&name) { Some("****") } else { self.env.get(name) }
    }
}

/// The first line of a text.
fn summary(text: &str) -> String {
    let text = text.trim();
    match text.split_once('\n') {
        Some((first, _)) => format!("{}...", first.strip_suffix('\r').unwrap_or(first)),
        None => text.to_owned(),
    }
}

/// The command as histories have it: in front of it the number of build arguments, and what they are.
fn with_arguments(args: &[String], declared: &[crate::instruction::Arg], env: &Env) -> String {
    let mut seen: indexmap::IndexMap<&str, String> = indexmap::IndexMap::new();
    for arg in declared {
        let value = env.get(&arg.key).or(arg.value.as_deref()).unwrap_or_default();
        seen.insert(&arg.key, format!("{}={value}", arg.key));
    }
    let mut parts = Vec::new();
    if !seen.is_empty() {
        parts.push(format!("|{}", seen.len()));
        parts.extend(seen.into_values());
    }
    parts.extend(args.iter().cloned());
    parts.join(" ")
}
