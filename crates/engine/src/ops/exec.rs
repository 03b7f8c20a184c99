//! RUN: one process on a snapshot.

mod hint;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base::gotext::quote;
use base::progress::Stream;
use base::{ByteSize, Fault, Kind, Secret};
use executor::{Exit, ExtraHost, MountSource, Network, Security, Step, StepIo, StepMount, Ulimit};
use llb::pb;
use sys::mount::{FsView, Restrict};

use super::{OpContext, limits};
use crate::cache_mount::CacheDir;
use crate::core::{active_view, blocking};
use crate::room;
use crate::ssh::AgentSocket;
use crate::step_log::StepLog;
use crate::tree::Tree;
use crate::wreck::{Subject, Wreck};

/// How much of a failed step's output its error carries.
const LOG_TAIL_BYTES: usize = 16 << 10;

/// Runs the op on its inputs; one tree per output. A step that found the volume of the state directory full runs once more
/// where what no build uses can make room for it.
pub(super) async fn run(ctx: &OpContext, op: &pb::ExecOp, inputs: &[Tree]) -> Result<Vec<Tree>, Fault> {
    let meta = op.meta.as_ref().ok_or_else(|| Fault::user("exec op has no arguments"))?;
    if meta.args.is_empty() {
        return Err(Fault::user("exec op has no arguments"));
    }
    let mut failed = match attempt(ctx, op, meta, inputs).await? {
        Ended::Made(trees) => return Ok(trees),
        Ended::Failed(failed) => failed,
    };
    if let Some((space, had)) = failed.found_full.take()
        && room::make_again(space, had, &ctx.tasks).await
    {
        // What it wrote is room, too.
        drop(failed);
        failed = match attempt(ctx, op, meta, inputs).await? {
            Ended::Made(trees) => return Ok(trees),
            Ended::Failed(failed) => failed,
        };
    }
    Err(failed.prepared.leave(ctx, op, inputs, failed.fault).await)
}

/// How one run of a step ended.
enum Ended {
    Made(Vec<Tree>),
    Failed(Box<Failed>),
}

struct Failed {
    fault: Fault,
    /// The step found the volume of the state directory full, which had so many bytes free when it began.
    found_full: Option<(store::Room, u64)>,
    prepared: Prepared,
}

async fn attempt(ctx: &OpContext, op: &pb::ExecOp, meta: &pb::Meta, inputs: &[Tree]) -> Result<Ended, Fault> {
    // Until the step starts, only others are waited for: registries, secrets, cache mounts.
    let (step, prepared) = tokio::select! {
        prepared = prepare(ctx, op, meta, inputs) => prepared?,
        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
    };
    let output = Arc::new(Mutex::new((StepLog::new(ctx.core.step_log), Tail::default())));
    let io = {
        let (output, tasks, began) = (output.clone(), ctx.tasks.clone(), Instant::now());
        let (room, warned, jobs) = (ctx.tasks.clone(), ctx.tasks.clone(), ctx.jobs.clone());
        let io = StepIo::new(move |stream: Stream, bytes: &[u8]| {
            let (log, tail) = &mut *output.lock().unwrap_or_else(PoisonError::into_inner);
            tail.push(bytes);
            log.push(stream, bytes, began.elapsed(), &mut |shown| tasks.log(stream, shown));
        });
        // Each build hears of it once.
        let tell = move |why: &str| {
            if jobs.iter().filter(|job| job.note_unlimited()).count() > 0 {
                let text = format!("warning: steps run without the limits that they ask for: {why}\n");
                warned.log(Stream::Stderr, text.as_bytes());
            }
        };
        io.held_back_by(move || room.room()).when_unlimited(tell)
    };
    ctx.core.keep_room(&ctx.tasks).await;
    let (space, had) = (ctx.core.store.room(), ctx.core.store.free_space());
    let exit = match ctx.core.executor.run(step, io, ctx.cancel.clone()).await {
        Ok(exit) => exit,
        Err(error) => {
            let fault = run_fault(ctx, meta, error);
            return Ok(Ended::Failed(Box::new(Failed { fault, found_full: None, prepared })));
        }
    };
    let allowed = if meta.valid_exit_codes.is_empty() { &[0][..] } else { &meta.valid_exit_codes[..] };
    if allowed.contains(&exit.code) {
        return prepared.commit(ctx).await.map(Ended::Made);
    }
    let tail = {
        let (log, tail) = &mut *output.lock().unwrap_or_else(PoisonError::into_inner);
        log.held().for_each(|(stream, bytes)| ctx.tasks.log(stream, &bytes));
        tail.bytes()
    };
    let found_full = had.filter(|had| hint::found_full(&ctx.core.store, *had, &tail)).map(|had| (space, had));
    let fault = hint::of(ctx, &exit, &tail).into_iter().fold(exit_fault(meta, &exit), Fault::hint).log_tail(tail);
    Ok(Ended::Failed(Box::new(Failed { fault, found_full, prepared })))
}

/// The step, and what its mounts come from and go to.
async fn prepare(
    ctx: &OpContext,
    op: &pb::ExecOp,
    meta: &pb::Meta,
    inputs: &[Tree],
) -> Result<(Step, Prepared), Fault> {
    let mut prepared = Prepared::default();
    let user = format!("exec {}", meta.args.join(" "));
    for mount in &op.mounts {
        prepared.add(ctx, (&user, &meta.cwd), mount, inputs).await?;
    }
    let (rootfs, readonly_rootfs) = prepared.root.take().ok_or_else(|| Fault::user("exec op has no root mount"))?;
    let mut step = Step::new(rootfs, meta.args.iter().cloned());
    step.readonly_rootfs = readonly_rootfs;
    step.mounts = std::mem::take(&mut prepared.mounts);
    step.env = environment(ctx, op, meta).await?;
    step.cwd = meta.cwd.clone();
    step.user = meta.user.clone();
    step.hostname = (!meta.hostname.is_empty()).then(|| meta.hostname.clone());
    step.network = match op.network() {
        pb::NetMode::Unset | pb::NetMode::Host => Network::Host,
        pb::NetMode::None => Network::None,
    };
    step.security = match op.security() {
        pb::SecurityMode::Sandbox => Security::Sandbox,
        pb::SecurityMode::Insecure => Security::Insecure,
    };
    step.extra_hosts = meta.extra_hosts.iter().map(extra_host).collect::<Result<_, _>>()?;
    step.ulimits = meta.ulimit.iter().map(ulimit).collect();
    step.shm_size = prepared.shm_size;
    step.resolver = ctx.core.resolver.clone();
    let cgroup_parent = Some(&meta.cgroup_parent).filter(|parent| !parent.is_empty());
    step.cgroup_parent = cgroup_parent.or(ctx.core.cgroup_parent.as_ref()).cloned();
    step.resources = limits::resources(ctx.op.vertex.resources().unwrap_or_default())?;
    step.remove_mount_stubs_recursive = meta.remove_mount_stubs_recursive;
    if !op.cdi_devices.is_empty() {
        add_devices(ctx, op, &mut step).await?;
    }
    Ok((step, prepared))
}

/// Refuses a mount of a type that there is not, in BuildKit's words.
pub(super) fn check_mount(mount: &pb::Mount) -> Result<(), Fault> {
    let kind = match pb::MountType::try_from(mount.mount_type) {
        Ok(kind) => kind,
        Err(_) if mount.dest == "/" => {
            return Err(Fault::user(format!("invalid mount type {} for /", mount.mount_type)));
        }
        Err(_) => return Err(Fault::user(format!("mount type {} not implemented", mount.mount_type))),
    };
    match &mount.cache_opt {
        Some(opt) if kind == pb::MountType::Cache && pb::CacheSharingOpt::try_from(opt.sharing).is_err() => {
            Err(Fault::user(format!("invalid cache sharing option: {}", opt.sharing)))
        }
        _ => Ok(()),
    }
}

/// Adds what comes with the devices of the step, as they are described now.
async fn add_devices(ctx: &OpContext, op: &pb::ExecOp, step: &mut Step) -> Result<(), Fault> {
    let (core, wanted) = (ctx.core.clone(), op.cdi_devices.clone());
    let edits = blocking(move || core.devices.edits(&wanted)).await?;
    step.env.extend(edits.env);
    step.mounts.splice(..0, edits.mounts);
    (step.devices, step.groups) = (edits.devices, edits.groups);
    Ok(())
}

fn run_fault(ctx: &OpContext, meta: &pb::Meta, error: executor::Error) -> Fault {
    if ctx.cancel.is_cancelled() {
        return Fault::cancelled();
    }
    let doing = format!("process {} did not start", command(meta));
    Fault::because(executor_kind(&error), doing, error)
}

fn executor_kind(error: &executor::Error) -> Kind {
    match error {
        executor::Error::Invalid(_) => Kind::User,
        _ => Kind::Environment,
    }
}

fn exit_fault(meta: &pb::Meta, exit: &Exit) -> Fault {
    let text = format!("process {} did not complete successfully: {}", command(meta), exit.describe());
    let fault = Fault::user(text).exit_code(exit.code);
    if exit.out_of_memory.is_some() {
        fault.hint("give the step or the pod more memory")
    } else if meta.args.iter().any(|arg| arg.len() >= MOST_ARGUMENT_BYTES) {
        fault.hint("the kernel takes no argument of 128 KiB or more: COPY the script and run the file")
    } else {
        fault
    }
}

/// The kernel's `MAX_ARG_STRLEN`.
const MOST_ARGUMENT_BYTES: usize = 128 << 10;

/// The command as errors quote it, on one line: the Dockerfile has the rest of a long one.
fn command(meta: &pb::Meta) -> String {
    const MOST_CHARS: usize = 1000;
    let whole = meta.args.join(" ");
    match whole.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => quote(&format!("{}...", &whole[..end])),
        None => quote(&whole),
    }
}

/// The last bytes of a step's output.
#[derive(Default)]
struct Tail(VecDeque<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(LOG_TAIL_BYTES);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().copied().collect()
    }
}

/// Everything that a step needs mounted, and what becomes of it.
#[derive(Default)]
pub(crate) struct Prepared {
    pub(crate) root: Option<(FsView, bool)>,
    pub(crate) mounts: Vec<StepMount>,
    /// How many mounts were added.
    count: usize,
    outputs: Vec<(i64, Output)>,
    /// Writable mounts that nobody reads afterwards, and cache mounts: kept until the step has ended. Those that the step
    /// may write to say which mount they are.
    scratch: Vec<(store::Active, Option<usize>)>,
    caches: Vec<((pb::CacheOpt, i64), CacheDir)>,
    /// Kept until the step has ended.
    agents: Vec<AgentSocket>,
    pub(crate) shm_size: Option<ByteSize>,
}

enum Output {
    /// A writable mount: committed when the step succeeds. And which one it is.
    Written(store::Active, usize),
    /// A read-only mount is its own input.
    Same(Tree),
}

impl Prepared {
    /// Adds a mount for who `user` is, in the words of `du`, and where relative paths of its mounts begin.
    pub(crate) async fn add(
        &mut self,
        ctx: &OpContext,
        (user, cwd): (&str, &str),
        mount: &pb::Mount,
        inputs: &[Tree],
    ) -> Result<(), Fault> {
        self.count += 1;
        check_mount(mount)?;
        let input = match usize::try_from(mount.input) {
            Ok(index) => inputs.get(index).cloned().ok_or_else(|| no_input(mount))?,
            Err(_) if mount.input == -1 => Tree::Empty,
            Err(_) => return Err(no_input(mount)),
        };
        let source = match mount.mount_type() {
            pb::MountType::Bind => {
                let view = self.bind(ctx, user, mount, &input).await?;
                if mount.dest == "/" {
                    let read_only = mount.readonly;
                    self.root = Some((view, read_only));
                    return Ok(());
                }
                MountSource::View { view, subpath: mount.selector.clone(), read_only: mount.readonly }
            }
            pb::MountType::Cache => {
                // A step that names one cache twice gets one directory: locked, it would wait for itself.
                let key = (mount.cache_opt.clone().unwrap_or_default(), mount.input);
                let cache = match self.caches.iter().find(|(known, _)| *known == key) {
                    Some((_, cache)) => cache.clone(),
                    None => ctx.core.cache_mount(ctx, user, mount, &input).await?,
                };
                let view = cache.view();
                self.caches.push((key, cache));
                MountSource::View { view, subpath: mount.selector.clone(), read_only: mount.readonly }
            }
            pb::MountType::Tmpfs => {
                let size = mount.tmpfs_opt.as_ref().map_or(0, |t| t.size);
                let size = u64::try_from(size).ok().filter(|s| *s > 0).map(ByteSize);
                if mount.dest == "/dev/shm" {
                    self.shm_size = size;
                    return Ok(());
                }
                MountSource::Tmpfs { size }
            }
            pb::MountType::Secret => match secret(ctx, mount).await? {
                Some(source) => source,
                None => return Ok(()),
            },
            pb::MountType::Ssh => match agent(ctx, mount).await? {
                Some(socket) => {
                    let path = socket.path();
                    self.agents.push(socket);
                    let restrict = if mount.readonly { Restrict::READ_ONLY } else { Restrict::empty() };
                    MountSource::Bind { path, restrict }
                }
                None => return Ok(()),
            },
        };
        if mount.dest == "/" {
            return Err(Fault::user("only a bind mount can be the root of a step"));
        }
        self.mounts.push(StepMount { target: absolute(cwd, &mount.dest), source });
        Ok(())
    }

    async fn bind(&mut self, ctx: &OpContext, user: &str, mount: &pb::Mount, input: &Tree) -> Result<FsView, Fault> {
        let base = ctx.core.snapshot(ctx, input).await?;
        if mount.readonly {
            if mount.output != -1 {
                self.outputs.push((mount.output, Output::Same(input.clone())));
            }
            return match &base {
                // Its mount points are made before it is closed, above what the image has.
                Some(base) if mount.dest == "/" => {
                    let above = ctx.core.prepare(Some(base), "read-only root").await?;
                    let view = active_view(&above)?;
                    self.scratch.push((above, None));
                    Ok(view)
                }
                Some(base) => ctx.core.view(base),
                // Nothing to see, but a place to be.
                None => {
                    let empty = ctx.core.prepare(None, "empty mount").await?;
                    let view = active_view(&empty)?;
                    self.scratch.push((empty, None));
                    Ok(view)
                }
            };
        }
        let description = format!("mount {} from {user}", mount.dest);
        let active = ctx.core.prepare(base.as_ref(), &description).await?;
        let view = active_view(&active)?;
        if mount.output == -1 {
            self.scratch.push((active, Some(self.count - 1)));
        } else {
            self.outputs.push((mount.output, Output::Written(active, self.count - 1)));
        }
        Ok(view)
    }

    /// Has the fault of a step that failed carry what the step's mounts look like, if a client wants to see that.
    async fn leave(self, ctx: &OpContext, op: &pb::ExecOp, inputs: &[Tree], fault: Fault) -> Fault {
        if !ctx.wants_wrecks() || fault.kind() == Kind::Cancelled {
            return fault;
        }
        let input = |mount: &pb::Mount| usize::try_from(mount.input).ok().and_then(|index| inputs.get(index)).cloned();
        let read: Vec<Option<Tree>> = op.mounts.iter().map(input).collect();
        let mut wreck = Wreck::new(ctx, Subject::Op, read.clone());
        read.into_iter().enumerate().for_each(|(mount, tree)| wreck.set_mount(mount, tree));
        let outputs = self.outputs.into_iter().filter_map(|(_, output)| match output {
            Output::Written(active, mount) => Some((active, mount)),
            Output::Same(_) => None,
        });
        let scratch = self.scratch.into_iter().filter_map(|(active, mount)| Some((active, mount?)));
        for (active, mount) in outputs.chain(scratch) {
            match ctx.core.commit(active).await {
                Ok(tree) => wreck.set_own_mount(&ctx.core, mount, tree),
                // What failed first is what people want to know.
                Err(error) => tracing::warn!(%error, "what a failed step left is not kept"),
            }
        }
        fault.leaves(wreck)
    }

    async fn commit(mut self, ctx: &OpContext) -> Result<Vec<Tree>, Fault> {
        self.outputs.sort_by_key(|(index, _)| *index);
        let mut trees = Vec::with_capacity(self.outputs.len());
        for (expected, (index, output)) in self.outputs.into_iter().enumerate() {
            if index != expected as i64 {
                return Err(Fault::user(format!("exec op has no output {expected}")));
            }
            trees.push(match output {
                Output::Same(tree) => tree,
                Output::Written(active, _) => ctx.core.commit(active).await?,
            });
        }
        Ok(trees)
    }
}

fn no_input(mount: &pb::Mount) -> Fault {
    Fault::user(format!("mount `{}` reads input {}, which the op does not have", mount.dest, mount.input))
}

/// A relative target is meant from the working directory.
fn absolute(cwd: &str, target: &str) -> String {
    if target.starts_with('/') { target.to_owned() } else { format!("/{}/{target}", cwd.trim_matches('/')) }
}

async fn secret(ctx: &OpContext, mount: &pb::Mount) -> Result<Option<MountSource>, Fault> {
    let Some(opt) = &mount.secret_opt else {
        return Err(Fault::user(format!("secret mount `{}` names no secret", mount.dest)));
    };
    let found = find_secret(ctx, &opt.id, opt.optional).await?;
    Ok(found.map(|data| MountSource::Secret { data, uid: opt.uid, gid: opt.gid, mode: opt.mode & 0o777 }))
}

/// A socket of the agent that a mount names; none where it may be missing and is.
async fn agent(ctx: &OpContext, mount: &pb::Mount) -> Result<Option<AgentSocket>, Fault> {
    let Some(opt) = &mount.ssh_opt else {
        return Err(Fault::user(format!("ssh mount `{}` names no agent", mount.dest)));
    };
    let id = if opt.id.is_empty() { session::DEFAULT_AGENT } else { &opt.id };
    match ctx.agent(id).await? {
        Some(agent) => AgentSocket::open(&ctx.core.scratch, agent, opt).map(Some),
        None if opt.optional => Ok(None),
        None => Err(Fault::user(format!("no SSH key \"{id}\" forwarded from the client: unset ssh forward key {id}"))
            .hint(format!("lend an agent with `--ssh {id}`, or a key with `--ssh {id}=<file>`"))),
    }
}

/// Whether a step wants what only a client has.
pub(crate) fn asks_clients(op: &pb::Op) -> bool {
    let Some(pb::op::Op::Exec(exec)) = &op.op else { return false };
    let is_lent = |mount: &pb::Mount| matches!(mount.mount_type(), pb::MountType::Secret | pb::MountType::Ssh);
    !exec.secretenv.is_empty() || exec.mounts.iter().any(is_lent)
}

async fn find_secret(ctx: &OpContext, id: &str, optional: bool) -> Result<Option<Secret>, Fault> {
    let found = ctx.secret(id).await?;
    if found.is_none() && !optional {
        return Err(Fault::user(format!("secret {id}: not found"))
            .hint(format!("pass it with `--secret id={id},src=<file>` or `--secret id={id},env=<variable>`")));
    }
    Ok(found)
}

async fn environment(ctx: &OpContext, op: &pb::ExecOp, meta: &pb::Meta) -> Result<Vec<String>, Fault> {
    let mut env = meta.env.clone();
    if let Some(proxy) = &meta.proxy_env {
        for (name, value) in [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ] {
            if !value.is_empty() {
                env.push(format!("{name}={value}"));
                env.push(format!("{}={value}", name.to_ascii_lowercase()));
            }
        }
    }
    env.extend(secret_environment(ctx, &op.secretenv).await?);
    Ok(env)
}

/// Variables whose values are secrets.
pub(crate) async fn secret_environment(ctx: &OpContext, secrets: &[pb::SecretEnv]) -> Result<Vec<String>, Fault> {
    let mut env = Vec::new();
    for secret in secrets {
        let Some(value) = find_secret(ctx, &secret.id, secret.optional).await? else {
            // As in BuildKit: the variable is there and empty, whatever value the image has for it.
            env.push(format!("{}=", secret.name));
            continue;
        };
        let text = std::str::from_utf8(value.expose()).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or_else(|| Fault::user(format!("secret `{}` is no text for a variable", secret.id)))?;
        env.push(format!("{}={text}", secret.name));
    }
    Ok(env)
}

pub(crate) fn extra_host(host: &pb::HostIp) -> Result<ExtraHost, Fault> {
    let ip = host.ip.parse();
    let ip = ip.map_err(|e| Fault::because(Kind::User, format!("bad address `{}` of extra host", host.ip), e))?;
    Ok(ExtraHost { host: host.host.clone(), ip })
}

pub(crate) fn ulimit(limit: &pb::Ulimit) -> Ulimit {
    Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_bytes() {
        let mut tail = Tail::default();
        tail.push(&[1; 10]);
        tail.push(&vec![2; LOG_TAIL_BYTES - 5]);
        let bytes = tail.bytes();
        assert_eq!((bytes.len(), bytes[4], bytes[5]), (LOG_TAIL_BYTES, 1, 2));
        tail.push(&vec![3; LOG_TAIL_BYTES * 2]);
        assert_eq!(tail.bytes(), vec![3; LOG_TAIL_BYTES]);
    }

    #[test]
    fn relative_mounts_lie_in_the_working_directory() {
        for (cwd, target, wanted) in [("/w", "/a", "/a"), ("/w/", "a", "/w/a"), ("", "a", "//a")] {
            assert_eq!(absolute(cwd, target), wanted);
        }
    }
}
