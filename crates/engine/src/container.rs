//! Containers that a frontend drives: mounts like those of a step, and processes that come and go.
//!
//! The first process makes the container, and ends it with itself; others join it. Nothing that they write is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base::report::{Label, Relay, Tasks};
use base::{ByteSize, Digest, Fault, Kind};
use executor::{Attached, Exit, ExtraHost, Inside, MountSource, Network, Security, Step, StepMount};
use files::receive::Sent;
use llb::pb;
use rustix::process::Signal;
use sys::mount::{FsView, Overlay};
use sys::path::{Links, Root};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bridge::Bridge;
use crate::core::{Core, blocking};
use crate::driver::JobHandle;
use crate::look;
use crate::ops::exec::{self, Prepared};
use crate::ops::{Op, OpContext};
use crate::request::Entitlement;
use crate::result::Ref;
use crate::tree::Tree;

pub use executor::{Control, StepIo};

/// The search path of programs for Windows. They do not run here; what looks at it does.
const WINDOWS_PATH: &str = r"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0";

/// What a container is made of.
#[derive(Clone, Debug, Default)]
pub struct NewContainer {
    /// What its mounts are called in messages.
    pub id: String,
    /// Its mounts, and the trees that they begin with.
    pub mounts: Vec<(pb::Mount, Option<Ref>)>,
    /// Which network it sees.
    pub network: pb::NetMode,
    /// Its host name; the usual one where empty.
    pub hostname: String,
    /// More lines of `/etc/hosts`.
    pub extra_hosts: Vec<pb::HostIp>,
    /// The platform whose search path processes have that name none; ours where none.
    pub platform: Option<pb::Platform>,
}

/// A process of a container.
#[derive(Clone, Debug, Default)]
pub struct NewProcess {
    /// Program, environment, user and working directory.
    pub meta: pb::Meta,
    /// How far it is locked in.
    pub security: pb::SecurityMode,
    /// Variables whose values are secrets.
    pub secret_env: Vec<pb::SecretEnv>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What a process is connected with.
pub struct ProcessIo {
    /// Bytes for its standard input, until the sender is dropped. Without it there is nothing to read.
    pub stdin: Option<mpsc::Receiver<Vec<u8>>>,
    /// What happens to it from outside.
    pub control: mpsc::UnboundedReceiver<Control>,
    /// What it writes.
    pub output: StepIo,
    /// Ends it, and waits for its end.
    pub cancel: CancellationToken,
}

/// A container. It ends with its build, if it is not released before.
pub struct Container {
    core: Arc<Core>,
    job: Arc<JobHandle>,
    ctx: OpContext,
    template: Step,
    /// What can be read of each mount.
    views: Vec<Option<FsView>>,
    network: pb::NetMode,
    is_windows: bool,
    /// Until it is released.
    prepared: Mutex<Option<Prepared>>,
    /// The way in, once the first process runs; none any more when it has ended.
    first: Mutex<Option<watch::Receiver<Option<Inside>>>>,
    cancel: CancellationToken,
    processes: TaskTracker,
    /// A process was ended before its end.
    interrupted: Arc<AtomicBool>,
}

impl Bridge {
    /// Makes a container. Its trees are made now, its first process by [`Container::start`].
    pub async fn new_container(&self, new: NewContainer) -> Result<Container, Fault> {
        let cancel = self.job.job.cancel.child_token();
        let ctx = self.context(&new.id, cancel.clone());
        let prepared = async {
            let mut trees = Vec::with_capacity(new.mounts.len());
            for (_, reference) in &new.mounts {
                trees.push(match reference {
                    Some(reference) => reference.tree(&self.job).await?,
                    None => Tree::Empty,
                });
            }
            prepare(&ctx, &new, &trees).await
        };
        let (prepared, template, views) = self.job_until_cancelled(prepared).await?;
        Ok(Container {
            core: self.core.clone(),
            job: self.job.clone(),
            ctx,
            template,
            views,
            network: new.network,
            is_windows: new.platform.is_some_and(|platform| platform.os == "windows"),
            prepared: Mutex::new(Some(prepared)),
            first: Mutex::new(None),
            cancel,
            processes: TaskTracker::new(),
            interrupted: Arc::default(),
        })
    }

    /// What ops have at hand, for a container: it is no vertex, and nobody is told of its progress.
    fn context(&self, id: &str, cancel: CancellationToken) -> OpContext {
        let name = format!("container {id}");
        let digest = Digest::of(&name);
        let (op, inputs, metadata) = Default::default();
        let vertex = llb::Vertex { digest, op, passthrough: None, inputs, metadata };
        let label = Label { digest, name, inputs: Vec::new(), group: None };
        OpContext {
            core: self.core.clone(),
            jobs: vec![self.job.job.clone()],
            lenders: vec![self.job.job.clone()],
            op: Arc::new(Op::new(vertex, label, 0, &self.core.platforms[0])),
            tasks: Tasks::new(Arc::new(Relay::default()), digest),
            cancel,
            flag: base::Cancel::new(),
        }
    }
}

async fn prepare(
    ctx: &OpContext,
    new: &NewContainer,
    trees: &[Tree],
) -> Result<(Prepared, Step, Vec<Option<FsView>>), Fault> {
    let mut prepared = Prepared::default();
    let mut views = Vec::with_capacity(new.mounts.len());
    let user = format!("container {}", new.id);
    for (index, (mount, reference)) in new.mounts.iter().enumerate() {
        let is_root = mount.dest == "/";
        let mount = pb::Mount {
            input: if reference.is_some() { index as i64 } else { -1 },
            output: -1,
            // Mount points are made in the root, before nobody may write to it any more.
            readonly: mount.readonly && !is_root,
            ..mount.clone()
        };
        let before = prepared.mounts.len();
        prepared.add(ctx, (&user, "/"), &mount, trees).await?;
        views.push(match prepared.mounts.get(before).map(|mount| &mount.source) {
            Some(MountSource::View { view, .. }) => Some(readable(view)),
            Some(_) => None,
            None => prepared.root.as_ref().filter(|_| is_root).map(|(view, _)| readable(view)),
        });
    }
    let readonly = new.mounts.iter().any(|(mount, _)| mount.dest == "/" && mount.readonly);
    let (rootfs, _) = prepared.root.take().ok_or_else(|| Fault::user("a container needs a mount at `/`"))?;
    let mut step = Step::new(rootfs, Vec::<String>::new());
    step.readonly_rootfs = readonly;
    step.mounts = std::mem::take(&mut prepared.mounts);
    // What lies in another mount comes after it.
    step.mounts.sort_by(|one: &StepMount, other| one.target.cmp(&other.target));
    step.hostname = (!new.hostname.is_empty()).then(|| new.hostname.clone());
    step.network = match new.network {
        pb::NetMode::Unset | pb::NetMode::Host => Network::Host,
        pb::NetMode::None => Network::None,
    };
    step.extra_hosts = new.extra_hosts.iter().map(exec::extra_host).collect::<Result<Vec<ExtraHost>, Fault>>()?;
    step.shm_size = prepared.shm_size.filter(|size| *size > ByteSize(0));
    step.resolver = ctx.core.resolver.clone();
    step.cgroup_parent.clone_from(&ctx.core.cgroup_parent);
    Ok((prepared, step, views))
}

/// A view of what is there and of what is written to it, for who only reads.
fn readable(view: &FsView) -> FsView {
    match view {
        FsView::Dir { path, .. } => FsView::Dir { path: path.clone(), read_only: true },
        FsView::Overlay(overlay) => {
            let upper = overlay.upper.iter().map(|(upper, _)| upper.clone());
            let lower = upper.chain(overlay.lower.iter().cloned()).collect();
            FsView::Overlay(Overlay { lower, upper: None, ..overlay.clone() })
        }
    }
}

impl Container {
    /// Starts a process; its end is the answer's answer. The first one has started, or never will, when this returns.
    pub async fn start(
        &self,
        new: NewProcess,
        io: ProcessIo,
    ) -> Result<impl Future<Output = Result<Exit, Fault>> + Send + use<>, Fault> {
        self.check_rights(&new)?;
        let mut env = new.meta.env.clone();
        if new.terminal && !env.iter().any(|entry| entry.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        if self.is_windows && !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push(format!("PATH={WINDOWS_PATH}"));
        }
        env.extend(exec::secret_environment(&self.ctx, &new.secret_env).await?);
        let security = match new.security {
            pb::SecurityMode::Sandbox => Security::Sandbox,
            pb::SecurityMode::Insecure => Security::Insecure,
        };
        let (began, begun) = oneshot::channel();
        let attached =
            Attached { stdin: io.stdin, terminal: new.terminal, control: Some(io.control), started: Some(began) };
        let step_io = io.output;
        let (all, own) = (self.cancel.clone(), io.cancel);
        let cancel = all.child_token();
        let executor = self.core.executor.clone();
        let ulimits = new.meta.ulimit.iter().map(exec::ulimit).collect();
        let (first, known) = {
            let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
            match &*first {
                Some(known) => (None, known.clone()),
                None => {
                    let (sender, known) = watch::channel(None);
                    *first = Some(known.clone());
                    (Some(sender), known)
                }
            }
        };
        let token = cancel.clone();
        let interrupted = self.interrupted.clone();
        let failed = move |doing: &str, error| {
            interrupted.fetch_or(matches!(error, executor::Error::Cancelled), Ordering::AcqRel);
            fault(doing, error)
        };
        let run = match first {
            Some(way) => {
                let mut step = self.template.clone();
                (step.args, step.env, step.cwd, step.user) = (new.meta.args, env, new.meta.cwd, new.meta.user);
                (step.security, step.ulimits) = (security, ulimits);
                step.remove_mount_stubs_recursive = new.meta.remove_mount_stubs_recursive;
                let (ready, started) = oneshot::channel();
                let entering = self.processes.spawn(async move {
                    let begun = begun.await;
                    let _ = ready.send(());
                    if let Ok(begun) = begun {
                        way.send_replace(Some(begun));
                    }
                    way
                });
                let run = self.processes.spawn(async move {
                    let ended = executor.run_attached(step, step_io, attached, token).await;
                    // Nobody comes in any more.
                    if let Ok(way) = entering.await {
                        way.send_replace(None);
                    }
                    ended.map_err(|error| failed("the container did not start", error))
                });
                let _ = started.await;
                run
            }
            // It is not waited for: whoever pipes one process into another starts both before either has an end.
            None => {
                let (args, cwd, user) = (new.meta.args, new.meta.cwd, new.meta.user);
                let process = executor::Process { args, env, cwd, user, security, ulimits };
                self.processes.spawn(async move {
                    let inside = tokio::select! {
                        // What is gone since the container was released did not stop by itself.
                        biased;
                        () = token.cancelled() => return Err(Fault::cancelled()),
                        inside = entered(known) => inside?,
                    };
                    let ended = executor.join(&inside, process, step_io, attached, token.clone()).await;
                    // Where the first process is ended before this one is, the kernel ends it, too, or there is nothing to enter.
                    let went_too = |exit: &Exit| exit.signal == Some(Signal::KILL.as_raw());
                    let ended = match token.is_cancelled() && ended.as_ref().map_or(true, went_too) {
                        true => Err(executor::Error::Cancelled),
                        false => ended,
                    };
                    ended.map_err(|error| failed("the process did not start", error))
                })
            }
        };
        let watching = self.processes.spawn(async move {
            own.cancelled().await;
            cancel.cancel();
        });
        Ok(async move {
            let ended = run.await;
            watching.abort();
            ended.unwrap_or_else(|error| Err(Fault::because(Kind::Internal, "a process of a container", error)))
        })
    }

    fn check_rights(&self, new: &NewProcess) -> Result<(), Fault> {
        let needed = [
            (self.network == pb::NetMode::Host, Entitlement::NetworkHost),
            (new.security == pb::SecurityMode::Insecure, Entitlement::SecurityInsecure),
        ];
        match needed.into_iter().find(|(needs, right)| *needs && !self.job.job.allows(right)) {
            None => Ok(()),
            Some((_, right)) => Err(Fault::user(format!("{right} is not allowed"))
                .hint(format!("allow it with `--allow {right}`; the builder must allow it too"))),
        }
    }

    /// Reads a file of a mount, as a step's files are read.
    pub async fn read_file(&self, mount: usize, path: &str, range: Option<(u64, u64)>) -> Result<Vec<u8>, Fault> {
        let path = path.to_owned();
        self.in_mount(mount, move |root| look::read_file(root, &path, range)).await
    }

    /// What is in a directory of a mount.
    pub async fn read_dir(&self, mount: usize, path: &str, pattern: &str) -> Result<Vec<Sent>, Fault> {
        let (path, pattern, is_recorded) = (path.to_owned(), pattern.to_owned(), self.core.shadow);
        self.in_mount(mount, move |root| look::read_dir(root, &path, &pattern, is_recorded)).await
    }

    /// What a path of a mount is, links followed.
    pub async fn stat_file(&self, mount: usize, path: &str) -> Result<Sent, Fault> {
        let (path, is_recorded) = (path.to_owned(), self.core.shadow);
        self.in_mount(mount, move |root| look::stat(root, &path, Links::Follow, is_recorded)).await
    }

    async fn in_mount<T: Send + 'static>(
        &self,
        mount: usize,
        work: impl FnOnce(&Root) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let count = self.views.len();
        let view = self.views.get(mount);
        let view = view.ok_or_else(|| Fault::user(format!("there is no mount {mount}: the container has {count}")))?;
        let view = view.clone().ok_or_else(|| Fault::user(format!("mount {mount} has no files to look at")))?;
        if self.cancel.is_cancelled() {
            return Err(Fault::user("the container was released"));
        }
        let core = self.core.clone();
        // Not dropped half way: it ends with its mount.
        let looking = self.processes.spawn_blocking(move || {
            let mounted = core.mount(&view)?;
            let root = Root::open(mounted.path());
            let root = root.map_err(|e| Fault::because(Kind::Environment, "cannot open a mount", e))?;
            work(&root)
        });
        looking.await.unwrap_or_else(|error| Err(Fault::because(Kind::Internal, "cannot look into a mount", error)))
    }

    /// Ends all processes and gives the mounts back. Nothing is left when this returns. Whether something still ran.
    pub async fn release(&self) -> bool {
        self.cancel.cancel();
        self.processes.close();
        self.processes.wait().await;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        blocking(move || drop(prepared)).await;
        self.interrupted.load(Ordering::Acquire)
    }
}

fn fault(doing: &str, error: executor::Error) -> Fault {
    match error {
        executor::Error::Cancelled => Fault::cancelled(),
        executor::Error::Invalid(_) => Fault::because(Kind::User, doing, error),
        _ => Fault::because(Kind::Environment, doing, error),
    }
}

/// The way into a container, once its first process runs.
async fn entered(mut known: watch::Receiver<Option<Inside>>) -> Result<Inside, Fault> {
    let stopped = || Fault::user("the container has stopped: its first process has ended");
    // The sender lives as long as that process.
    let inside = known.wait_for(Option::is_some).await.map_err(|_| stopped())?;
    inside.clone().ok_or_else(stopped)
}
