//! `buildctl`: the client of a daemon, BuildKit's or ours.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use base::{ByteSize, Fault};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use engine::UsageRecord;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use serde_json::json;
use tonic::transport::Channel;

use super::buildctl_dump::{DumpLlb, DumpMetadata};
use super::buildctl_history::{Ctl, Formatted, Get, Logs, Monitor};
use super::{Action, buildctl_build, du, explain, prune};
use crate::connect::{Remote, connect};
use crate::daemonless::run::Failure;
use crate::environment::Environment;
use crate::spec::{goflags, invalid};

/// The client of a buildkitd.
#[derive(Debug, Parser)]
#[command(
    name = "buildctl",
    version = crate::VERSION,
    max_term_width = 100,
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

Exit codes: 0 on success, 1 on any failure.";

/// Flags before the command.
#[derive(Clone, Debug, Default, Args)]
struct Globals {
    /// Log what goes over the connection on standard error
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
    /// List the workers
    Workers {
        /// Everything known about each
        #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
        verbose: bool,
        /// Only those that match, such as id==ID or labels."KEY"==VALUE
        #[arg(long, short, value_name = "FILTER")]
        filter: Vec<String>,
        #[command(flatten)]
        form: Formatted,
    },
    /// Show the daemon's version
    Info(Formatted),
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
    let parsed = Buildctl::try_parse_from(goflags::normalize(&Buildctl::command(), words));
    let Buildctl { globals, command } = match parsed {
        // As upstream's: who asks for nothing is told what there is.
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Ok(Action::Print(error.render().to_string()));
        }
        Err(error) => return explain(&error),
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
    | Command::Debug(Debug::Info(form) | Debug::Histories(form) | Debug::Workers { form, .. }) = &command
    {
        // Mistakes show before the daemon is asked.
        form.parse()?;
    }
    Ok(Action::client(|environment| run(globals, command, environment)))
}

async fn run(globals: Globals, command: Command, environment: Environment) -> Result<(), Failure> {
    if globals.debug {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr);
        // There is one log at most.
        let _ = match globals.log_format.as_str() {
            "json" => log.json().try_init(),
            _ => log.with_ansi(false).try_init(),
        };
    }
    let remote = globals.remote(&environment)?;
    let channel = globals.connect(&remote).await?;
    match command {
        Command::Build(build) => build.by_daemon(channel, environment).await,
        Command::Du(du) => Ok(disk_usage(channel, &du).await?),
        Command::Prune(prune) => Ok(clean(channel, &prune).await?),
        Command::Debug(Debug::Workers { verbose, filter, form }) => {
            Ok(workers(channel, verbose, filter, form.parse()?).await?)
        }
        Command::Debug(Debug::Info(form)) => Ok(info(channel, form.parse()?).await?),
        Command::Debug(Debug::Histories(form)) => Ok(form.list(channel).await?),
        Command::Debug(Debug::Logs(logs)) => Ok(logs.show(channel, &environment).await?),
        Command::Debug(Debug::Get(get)) => Ok(get.print(channel).await?),
        Command::Debug(Debug::Monitor(monitor)) => Ok(monitor.show(channel).await?),
        Command::Debug(Debug::Ctl(ctl)) => Ok(ctl.change(channel).await?),
        Command::Debug(Debug::DumpLlb(_) | Debug::DumpMetadata(_)) => {
            Err(Fault::new(base::Kind::Internal, "no daemon is asked for that").into())
        }
        Command::DialStdio => Ok(dial_stdio(&remote).await?),
        Command::PruneHistories(form) => Ok(form.prune(channel).await?),
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
            let names = [["ca.pem", "cert.pem", "key.pem"], ["ca.crt", "tls.crt", "tls.key"]];
            let found = names.iter().find(|names| dir.join(names[1]).exists() || dir.join(names[0]).exists());
            let [ca, cert, key] = found.unwrap_or(&names[0]);
            let existing = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
            (remote.ca, remote.cert, remote.key) = (existing(ca), existing(cert), existing(key));
        }
        Ok(remote)
    }

    async fn connect(&self, remote: &Remote) -> Result<Channel, Fault> {
        loop {
            match connect(remote).await {
                Err(fault) if self.wait => {
                    tracing::debug!(%fault, "trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                connected => return connected,
            }
        }
    }
}

fn failed(status: tonic::Status) -> Fault {
    crate::connect::fault(&status)
}

async fn disk_usage(channel: Channel, du: &du::Du) -> Result<(), Fault> {
    let (format, filter) = du.wanted()?;
    let request = wire::DiskUsageRequest { filter: filter.to_vec(), ..wire::DiskUsageRequest::default() };
    let answer = ControlClient::new(channel).disk_usage(request).await.map_err(failed)?.into_inner();
    crate::print(&du.text(format, answer.record.into_iter().map(record).collect()))
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
    while let Some(answer) = answers.message().await.map_err(failed)? {
        gone.push(record(answer));
    }
    crate::print(&prune.text(format, &gone))
}

async fn workers(channel: Channel, verbose: bool, filter: Vec<String>, format: du::Format) -> Result<(), Fault> {
    let request = wire::ListWorkersRequest { filter };
    let workers = ControlClient::new(channel).list_workers(request).await.map_err(failed)?.into_inner().record;
    let platform = |platform: &proto::pb::Platform| {
        base::Platform::new(&platform.os, &platform.architecture, &platform.variant).to_string()
    };
    let platforms =
        |worker: &wire::types::WorkerRecord| worker.platforms.iter().map(platform).collect::<Vec<_>>().join(",");
    let mut text = String::new();
    if format == du::Format::Json {
        workers.iter().for_each(|worker| text.push_str(&format!("{}\n", worker_json(worker))));
        return crate::print(&text);
    }
    if !verbose {
        let mut rows = vec![vec!["ID".to_owned(), "PLATFORMS".to_owned()]];
        rows.extend(workers.iter().map(|worker| vec![worker.id.clone(), platforms(worker)]));
        return crate::print(&super::table::tabbed(&rows));
    }
    for worker in &workers {
        let mut rows = vec![
            vec!["ID:".to_owned(), worker.id.clone()],
            vec!["Platforms:".to_owned(), platforms(worker)],
            vec!["BuildKit:".to_owned(), version(worker.buildkit_version.as_ref())],
            vec!["Labels:".to_owned()],
        ];
        let mut labels: Vec<_> = worker.labels.iter().collect();
        labels.sort();
        rows.extend(labels.into_iter().map(|(key, value)| vec![format!("\t{key}:"), value.clone()]));
        text.push_str(&super::table::tabbed(&rows));
        for (number, rule) in worker.gc_policy.iter().enumerate() {
            let mut rows =
                vec![vec![format!("GC Policy rule#{number}:")], vec!["\tAll:".to_owned(), rule.all.to_string()]];
            if !rule.filters.is_empty() {
                rows.push(vec!["\tFilters:".to_owned(), rule.filters.join(" ")]);
            }
            for (name, size) in [
                ("\tReserved space:", rule.reserved_space),
                ("\tMinimum free space:", rule.min_free_space),
                ("\tMaximum used space:", rule.max_used_space),
            ] {
                if size > 0 {
                    rows.push(vec![name.to_owned(), ByteSize(size as u64).to_string()]);
                }
            }
            text.push_str(&super::table::tabbed(&rows));
        }
        text.push('\n');
    }
    crate::print(&text)
}

/// As Go's client prints a worker.
fn worker_json(worker: &wire::types::WorkerRecord) -> serde_json::Value {
    let labels: std::collections::BTreeMap<_, _> = worker.labels.iter().collect();
    let platform = |platform: &proto::pb::Platform| {
        let mut shown = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            shown["variant"] = platform.variant.clone().into();
        }
        shown
    };
    let rule = |rule: &wire::types::GcPolicy| {
        json!({
            "all": rule.all, "keepDuration": rule.keep_duration, "filter": rule.filters,
            "reservedSpace": rule.reserved_space, "maxUsedSpace": rule.max_used_space,
            "minFreeSpace": rule.min_free_space,
        })
    };
    let version = worker.buildkit_version.clone().unwrap_or_default();
    json!({
        "id": worker.id, "labels": labels,
        "platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
        "gcPolicy": worker.gc_policy.iter().map(rule).collect::<Vec<_>>(),
        "buildkitVersion":
            { "package": version.package, "version": version.version, "revision": version.revision },
    })
}

async fn info(channel: Channel, format: du::Format) -> Result<(), Fault> {
    let info = ControlClient::new(channel).info(wire::InfoRequest {}).await.map_err(failed)?.into_inner();
    match format {
        du::Format::Table => crate::print_line(&format!("BuildKit: {}", version(info.buildkit_version.as_ref()))),
        du::Format::Json => {
            let version = info.buildkit_version.unwrap_or_default();
            let version =
                json!({ "package": version.package, "version": version.version, "revision": version.revision });
            crate::print_line(&json!({ "buildkitVersion": version }).to_string())
        }
    }
}

fn version(version: Option<&wire::types::BuildkitVersion>) -> String {
    version.map(|v| format!("{} {} {}", v.package, v.version, v.revision)).unwrap_or_default()
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
    Buildctl::command()
}
