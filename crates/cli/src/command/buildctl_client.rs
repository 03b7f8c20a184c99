//! `buildctl`: the client of a daemon, BuildKit's or ours.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use base::{ByteSize, Fault};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use daemon::Caller;
use engine::UsageRecord;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use tonic::transport::Channel;

use super::buildctl_dump::{DumpLlb, DumpMetadata};
use super::buildctl_history::{Ctl, Formatted, Get, Logs, Monitor};
use super::buildctl_workers::{Info, Workers};
use super::{Action, STRICT, buildctl_build, du, explain_buildctl, no_effect, prune, version_flag};
use crate::connect::{Remote, connect};
use crate::daemonless::run::Failure;
use crate::display::{self, Mode, Notice};
use crate::environment::Environment;
use crate::spec::{goflags, invalid};

/// The client of a buildkitd.
#[derive(Debug, Parser)]
#[command(
    name = "buildctl",
    version = crate::VERSION,
    max_term_width = 100,
    disable_help_subcommand = true,
    disable_version_flag = true,
    arg_required_else_help = true,
    after_help = ENVIRONMENT
)]
pub struct Buildctl {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const ENVIRONMENT: &str = "\
Environment:
  BUILDKIT_HOST      the daemon's address
  BUILDKIT_PROGRESS  what --progress=auto means
  DOCKER_CONFIG      directory of docker's config.json [default: ~/.docker]

Exit codes: 0 on success, 3 for a command that is not there, 1 on any other failure.";

/// Flags of every command; they may stand before it or behind it.
#[derive(Clone, Debug, Default, Args)]
struct Globals {
    /// Log what goes on, on standard error
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, global = true, value_name = "BOOL")]
    debug: bool,
    /// The daemon: unix://, tcp://, ssh://, docker-container://, podman-container://, nerdctl-container://, kube-pod://
    #[arg(long)]
    addr: Option<String>,
    /// The name in the daemon's certificate
    #[arg(long)]
    tlsservername: Option<String>,
    /// Certificate authority of the daemon
    #[arg(long)]
    tlscacert: Option<PathBuf>,
    /// Our certificate
    #[arg(long)]
    tlscert: Option<PathBuf>,
    /// Its key
    #[arg(long)]
    tlskey: Option<PathBuf>,
    /// Directory with ca.pem, cert.pem and key.pem, or with ca.crt, tls.crt and tls.key
    #[arg(long)]
    tlsdir: Option<PathBuf>,
    /// Seconds that connecting may take
    #[arg(long, default_value = "5", value_name = "SECONDS")]
    timeout: u64,
    /// Form of the log: text or json
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: String,
    /// Try for as long as the daemon is not there yet
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    wait: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<buildctl_build::BuildctlBuild>),
    Du(du::Du),
    Prune(prune::Prune),
    /// Remove the records of builds that have ended and are not pinned
    PruneHistories(Formatted),
    /// What the daemon is and has
    #[command(subcommand)]
    Debug(Debug),
    /// Pass standard input and output on to the daemon
    DialStdio,
}

#[derive(Debug, Subcommand)]
enum Debug {
    Workers(Workers),
    Info(Info),
    /// List the records of builds
    Histories(Formatted),
    Logs(Logs),
    Get(Get),
    Monitor(Monitor),
    Ctl(Ctl),
    DumpLlb(DumpLlb),
    DumpMetadata(DumpMetadata),
}

/// Parses the arguments after the program's name.
pub fn parse(args: Vec<OsString>) -> Result<Action, Fault> {
    let mut words = vec![OsString::from("buildctl")];
    words.extend(args);
    let mut words = goflags::normalize(&declaration(), words);
    let extra = goflags::take_extra(&declaration(), &STRICT, &mut words);
    let matches = declaration().try_get_matches_from(words);
    let parsed = matches.and_then(|matches| Buildctl::from_arg_matches(&matches));
    let Buildctl { globals, command } = match parsed {
        // As upstream's: who asks for nothing is told what there is.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Ok(Action::Print(error.render().to_string()));
        }
        Err(error) => return explain_buildctl(&error),
        Ok(line) => line,
    };
    let command = match command {
        // No daemon is asked for what lies in files.
        Command::Debug(Debug::DumpLlb(dump)) => return Ok(Action::Simple(Box::new(move || dump.print()))),
        Command::Debug(Debug::DumpMetadata(dump)) => {
            return Ok(Action::client(|environment| async move { Ok(dump.print(&environment)?) }));
        }
        other => other,
    };
    if !matches!(globals.log_format.as_str(), "" | "text" | "json") {
        return Err(invalid("--log-format", &globals.log_format, "known are text and json"));
    }
    if let Command::Debug(Debug::Ctl(ctl)) = &command {
        ctl.check()?;
    }
    if let Command::PruneHistories(form)
    | Command::Debug(Debug::Info(Info { form }) | Debug::Histories(form) | Debug::Workers(Workers { form, .. })) =
        &command
    {
        // Mistakes show before the daemon is asked.
        form.parse()?;
    }
    Ok(Action::client(move |environment| run(globals, command, extra, environment)))
}

async fn run(globals: Globals, command: Command, extra: Vec<String>, environment: Environment) -> Result<(), Failure> {
    if globals.debug {
        crate::log::start(tracing::Level::DEBUG, globals.log_format == "json");
    }
    let caller = Caller::begin(|name| environment.get(name).map(str::to_owned));
    let (name, mode, mut reached) = (command.name(), command.mode(&environment), None);
    let warn = |text| display::tell(mode, &mut std::io::stderr(), &Notice::Warning(text));
    no_effect(&extra).into_iter().for_each(warn);
    let done = reach(globals, command, &environment, &caller.header(), &mut reached).await;
    let error = done.as_ref().err().map(|failure| failure.fault.cause());
    if let Err(why) = caller.end(name, error, reached, |name| environment.get(name).map(str::to_owned)).await {
        warn(why);
    }
    done
}

/// Finds the daemon and asks it. The connection stays where it can hand over the span of the command.
async fn reach(
    globals: Globals,
    command: Command,
    environment: &Environment,
    trace: &str,
    reached: &mut Option<Channel>,
) -> Result<(), Failure> {
    let remote = globals.remote(environment)?;
    let channel = globals.connect(&remote).await?;
    *reached = Some(channel.clone());
    let done = ask(command, channel, &remote, environment, trace).await;
    done.map_err(|failure| Failure { fault: remote.name(failure.fault), ..failure })
}

async fn ask(
    command: Command,
    channel: Channel,
    remote: &Remote,
    environment: &Environment,
    trace: &str,
) -> Result<(), Failure> {
    match command {
        Command::Build(build) => build.by_daemon(channel, environment.clone(), trace).await,
        Command::Du(du) => Ok(disk_usage(channel, &du).await?),
        Command::Prune(prune) => Ok(clean(channel, &prune).await?),
        Command::Debug(Debug::Workers(workers)) => Ok(workers.ask(channel).await?),
        Command::Debug(Debug::Info(info)) => Ok(info.ask(channel).await?),
        Command::Debug(Debug::Histories(form)) => Ok(form.list(channel).await?),
        Command::Debug(Debug::Logs(logs)) => Ok(logs.show(channel, environment).await?),
        Command::Debug(Debug::Get(get)) => Ok(get.print(channel).await?),
        Command::Debug(Debug::Monitor(monitor)) => Ok(monitor.show(channel).await?),
        Command::Debug(Debug::Ctl(ctl)) => Ok(ctl.change(channel).await?),
        Command::Debug(Debug::DumpLlb(_) | Debug::DumpMetadata(_)) => {
            Err(Fault::new(base::Kind::Internal, "no daemon is asked for that").into())
        }
        Command::DialStdio => Ok(dial_stdio(remote).await?),
        Command::PruneHistories(form) => Ok(form.prune(channel).await?),
    }
}

impl Command {
    /// What its span is called.
    fn name(&self) -> &'static str {
        match self {
            Command::Build(_) => "build",
            Command::Du(_) => "du",
            Command::Prune(_) => "prune",
            Command::PruneHistories(_) => "prune-histories",
            Command::Debug(_) => "debug",
            Command::DialStdio => "dial-stdio",
        }
    }

    /// How people are told what they should know.
    fn mode(&self, environment: &Environment) -> Mode {
        match self {
            Command::Build(build) => build.mode(environment).unwrap_or(Mode::Plain),
            _ => Mode::Plain,
        }
    }
}

impl Globals {
    fn remote(&self, environment: &Environment) -> Result<Remote, Fault> {
        let address = self.addr.clone().filter(|address| !address.is_empty());
        let address = address.or_else(|| environment.get("BUILDKIT_HOST").map(str::to_owned));
        let set = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let mut remote = Remote {
            address: address.unwrap_or_else(|| environment.default_address()),
            server_name: self.tlsservername.clone().filter(|name| !name.is_empty()),
            ca: set(&self.tlscacert),
            cert: set(&self.tlscert),
            key: set(&self.tlskey),
            timeout: Duration::from_secs(self.timeout),
        };
        if let Some(dir) = set(&self.tlsdir) {
            if remote.ca.is_some() || remote.cert.is_some() || remote.key.is_some() {
                return Err(Fault::user("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time"));
            }
            let either = |names: [&str; 2]| {
                let found = names.iter().map(|name| dir.join(name)).find(|path| path.exists());
                found.map(Some).ok_or_else(|| {
                    let [one, other] = names;
                    Fault::user(format!("--tlsdir: `{}` has neither {one} nor {other}", dir.display()))
                })
            };
            remote.ca = either(["ca.pem", "ca.crt"])?;
            remote.cert = either(["cert.pem", "tls.crt"])?;
            remote.key = either(["key.pem", "tls.key"])?;
        }
        Ok(remote)
    }

    async fn connect(&self, remote: &Remote) -> Result<Channel, Fault> {
        let until = tokio::time::Instant::now() + remote.timeout;
        loop {
            match connect(remote).await {
                Err(fault) if self.wait && tokio::time::Instant::now() + PAUSE < until => {
                    tracing::debug!(%fault, "trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                connected => return connected,
            }
        }
    }
}

/// How long `--wait` does nothing between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

fn failed(status: tonic::Status) -> Fault {
    crate::connect::fault(&status)
}

async fn disk_usage(channel: Channel, du: &du::Du) -> Result<(), Fault> {
    let (format, filter) = du.wanted()?;
    let request = wire::DiskUsageRequest { filter: filter.to_vec(), ..wire::DiskUsageRequest::default() };
    let answer = ControlClient::new(channel).disk_usage(request).await.map_err(failed)?.into_inner();
    crate::print(&du.text(&format, answer.record.into_iter().map(record).collect(), None)?)
}

async fn clean(channel: Channel, prune: &prune::Prune) -> Result<(), Fault> {
    let (options, format) = prune.options()?;
    let size = |size: Option<ByteSize>| size.map_or(0, |size| i64::try_from(size.0).unwrap_or(i64::MAX));
    let request = wire::PruneRequest {
        filter: options.filters.clone(),
        all: options.all,
        keep_duration: options.keep_duration.map_or(0, |keep| i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX)),
        reserved_space: size(options.reserved_space),
        max_used_space: size(options.max_used_space),
        min_free_space: size(options.min_free_space),
    };
    let mut answers = ControlClient::new(channel).prune(request).await.map_err(failed)?.into_inner();
    let mut gone = Vec::new();
    let done = loop {
        match answers.message().await {
            Ok(Some(answer)) => gone.push(record(answer)),
            Ok(None) => break Ok(()),
            Err(status) => break Err(failed(status)),
        }
    };
    // What went is told also where not all could go.
    if done.is_ok() || !gone.is_empty() {
        crate::print(&prune.text(&format, &gone, None)?)?;
    }
    done
}

/// For clients that reach the daemon through another program, such as ssh.
async fn dial_stdio(remote: &Remote) -> Result<(), Fault> {
    let failed = |e| Fault::because(base::Kind::Remote, format!("cannot pass on to `{}`", remote.address), e);
    let stream = crate::connect::stream(remote).await?;
    let (mut from, mut to) = tokio::io::split(stream);
    let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
    let up = async {
        tokio::io::copy(&mut stdin, &mut to).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut to).await
    };
    let down = async {
        tokio::io::copy(&mut from, &mut stdout).await?;
        tokio::io::AsyncWriteExt::flush(&mut stdout).await
    };
    // The daemon hangs up last.
    tokio::select! {
        done = down => done.map_err(failed),
        done = async { up.await?; std::future::pending::<std::io::Result<()>>().await } => done.map_err(failed),
    }
}

fn record(record: wire::UsageRecord) -> UsageRecord {
    let time = |time: proto::protobuf::Timestamp| jiff::Timestamp::new(time.seconds, time.nanos).unwrap_or_default();
    UsageRecord {
        id: record.id,
        record_type: record.record_type,
        description: record.description,
        size: ByteSize(record.size.max(0) as u64),
        mutable: record.mutable,
        in_use: record.in_use,
        shared: record.shared,
        parents: record.parents,
        created_at: record.created_at.map(time).unwrap_or_default(),
        last_used_at: record.last_used_at.map(time),
        usage_count: record.usage_count.max(0) as u64,
    }
}

/// The declaration, for help texts and their tests.
pub fn declaration() -> clap::Command {
    Buildctl::command().arg(version_flag())
}
