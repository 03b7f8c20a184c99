//! `buildkitd`: the daemon, with the flags, environment and configuration of BuildKit's.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::{Fault, Kind};
use clap::{CommandFactory as _, FromArgMatches as _};
use daemon::listen::{Listener, Owner};
use daemon::notify::Supervisor;
use daemon::tls::{Files, Tls};
use daemon::{Daemon, Debug, Identity, Keep};

use super::buildkitd_flags::{BuildkitdFlags, NoEffect, in_vain};
use super::{Action, explain, version_flag};
use crate::daemonless::Settings;
use crate::daemonless::run::open;
use crate::daemonless::signals::cancelled_one_by_one;
use crate::display::Mode;
use crate::environment::Environment;
use crate::spec::{goflags, invalid};

/// How long builds may go on when the daemon is told to end.
const DRAIN: Duration = Duration::from_secs(600);

const ENVIRONMENT: &str = "\
Environment:
  BUILDKITD_DEBUGADDR      what --debugaddr is if it is not given
  BUILDKITD_LOG_LEVEL      what --log-level is if it is not given
  NOTIFY_SOCKET            where systemd (Type=notify) is told when builds are
                           taken, and when the daemon is about to end
  HULLWORKS_DRAIN_TIMEOUT  how long builds may go on after SIGTERM, such as 90s
                           [default: 10m]; a second signal ends them at once";

/// Parses the command line of `buildkitd`.
pub fn parse(args: Vec<OsString>, _: &Environment) -> Result<Action, Fault> {
    let words =
        std::iter::once(OsString::from("buildkitd")).chain(args.into_iter().enumerate().map(|(place, word)| {
            // It has no commands; `help` is what it has in their place.
            if place == 0 && (word == "help" || word == "h") { "--help".into() } else { word }
        }));
    let words = words.collect();
    let matches = declaration().try_get_matches_from(goflags::normalize(&BuildkitdFlags::command(), words));
    let parsed =
        matches.and_then(|matches| Ok((BuildkitdFlags::from_arg_matches(&matches)?, NoEffect::given(&matches))));
    match parsed {
        Ok((flags, given)) => Ok(Action::engine(async move |environment| Ok(serve(flags, given, environment).await?))),
        Err(error) => explain(&error),
    }
}

/// The declaration, for help texts and their tests.
pub fn declaration() -> clap::Command {
    BuildkitdFlags::command().version(crate::VERSION).after_help(ENVIRONMENT).arg(version_flag())
}

async fn serve(flags: BuildkitdFlags, given: Vec<String>, environment: Environment) -> Result<(), Fault> {
    let mut settings = flags.settings(&environment)?;
    let drain = match environment.get("HULLWORKS_DRAIN_TIMEOUT") {
        None => DRAIN,
        Some(text) => config::parse_duration(text)
            .map_err(|_| invalid("HULLWORKS_DRAIN_TIMEOUT", text, "expected a duration such as 90s or 10m"))?,
    };
    settings.is_daemon = true;
    settings.warnings.extend(in_vain(&given));
    settings.log = settings.log.or(Some(tracing::Level::INFO));
    let grpc = &settings.config.grpc;
    let files = |flag: &Option<String>, configured: &Option<PathBuf>| {
        flag.as_ref().filter(|path| !path.is_empty()).map(PathBuf::from).or_else(|| configured.clone())
    };
    let sockets = &flags.no_effect;
    let cert = files(&sockets.tlscert, &grpc.tls.cert);
    let key = files(&sockets.tlskey, &grpc.tls.key);
    let ca = files(&sockets.tlscacert, &grpc.tls.ca);
    let asks_for_certificates = ca.is_some();
    let tls = match (cert, key) {
        (Some(cert), Some(key)) => Some(Arc::new(Tls::load(Files { cert, key, ca })?)),
        (None, None) if ca.is_none() => None,
        _ => {
            return Err(Fault::user("a certificate and its key are needed together")
                .hint("give --tlscert and --tlskey; --tlscacert beside them for clients with certificates only"));
        }
    };
    let owner = Owner { uid: grpc.uid, gid: group(sockets.group.as_deref())?.or(grpc.gid) };
    let mut addresses = if sockets.addr.is_empty() { grpc.address.clone() } else { sockets.addr.clone() };
    let lacks_place = addresses.is_empty() && environment.rootless && environment.get("XDG_RUNTIME_DIR").is_none();
    if addresses.is_empty() {
        addresses.push(environment.default_address());
    }
    let mut listeners = Vec::new();
    let mut open_to_all = Vec::new();
    for address in &addresses {
        if address.starts_with("tcp://") && !asks_for_certificates {
            open_to_all.push(format!(
                "anybody who reaches {address} can build: --tlscert, --tlskey and --tlscacert ask for client certificates"
            ));
        }
        let opened = Listener::open(address, owner, tls.as_ref()).await;
        listeners.extend(opened.map_err(|fault| match lacks_place && fault.find().is_some_and(is_of_the_place) {
            true => fault.hint("XDG_RUNTIME_DIR is not set: set it, or say where by `--addr unix:///path`"),
            false => fault,
        })?);
    }
    settings.warnings.extend(open_to_all);
    settings.warnings.extend(environment.tell_single_id());
    let debug = debug(&flags, &settings, &environment).await?;
    let [stop, kill] = cancelled_one_by_one()?;
    let engine = open(&settings, &environment, Mode::Plain, &stop).await?;
    let identity = identity(&settings, &engine)?;
    let history = settings.config.history.as_ref();
    let history = history.map_or_else(Keep::default, |history| Keep {
        age: history.max_age.0,
        entries: usize::try_from(history.max_entries).unwrap_or(usize::MAX),
        ..Keep::default()
    });
    let telemetry = environment.variables().filter(|(name, _)| name.starts_with("OTEL_"));
    let telemetry = telemetry.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let supervisor = Supervisor(environment.path("NOTIFY_SOCKET").map(Into::into));
    daemon::serve(Daemon { engine, identity, listeners, history, debug, telemetry, supervisor, drain }, stop, kill)
        .await
}

/// Whether a socket could not be made because of the directory that it is to be in.
fn is_of_the_place(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem)
}

/// Answers on the debug address, if there is one, from now on.
async fn debug(flags: &BuildkitdFlags, settings: &Settings, environment: &Environment) -> Result<Arc<Debug>, Fault> {
    let debug = Arc::new(Debug::default());
    let configured = &settings.config.grpc.debug_address;
    let address = flags.no_effect.debugaddr.as_deref().or_else(|| environment.get("BUILDKITD_DEBUGADDR"));
    let address = address.unwrap_or(configured);
    if !address.is_empty() {
        let address = if address.contains("://") { address.to_owned() } else { format!("tcp://{address}") };
        let opened = Listener::open(&address, Owner::default(), None).await;
        for listener in opened.map_err(|fault| fault.context("the debug address (`--debugaddr`)"))? {
            tokio::spawn(debug.clone().serve(listener));
        }
    }
    Ok(debug)
}

/// The group that may use the socket, by name or number.
fn group(name: Option<&str>) -> Result<Option<u32>, Fault> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let entry = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|entry| entry[0] == name);
    match entry.and_then(|entry| entry.get(2)?.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(Fault::user(format!("--group: there is no group `{name}`"))),
    }
}

/// What the daemon says of itself.
pub(super) fn identity(settings: &Settings, engine: &engine::Engine) -> Result<Identity, Fault> {
    let oci = &settings.config.worker.oci;
    let path = settings.root.join("hullworks/worker-id");
    let failed = |error| Fault::because(Kind::Environment, format!("cannot use `{}`", path.display()), error);
    let worker = match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => id.trim().to_owned(),
        _ => {
            let id = session::random_id();
            std::fs::write(&path, &id).map_err(failed)?;
            id
        }
    };
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let prefix = "org.mobyproject.buildkit.worker";
    let labels = [
        ("executor", "oci".to_owned()),
        ("hostname", hostname),
        ("network", "host".to_owned()),
        ("oci.process-mode", "sandbox".to_owned()),
        ("selinux.enabled", "false".to_owned()),
        ("snapshotter", engine.snapshotter_name().to_owned()),
    ];
    let labels = labels.into_iter().map(|(name, value)| (format!("{prefix}.{name}"), value));
    let mut version = crate::VERSION.split_whitespace();
    let (package, ours, revision) =
        (version.next().unwrap_or_default(), version.next().unwrap_or_default(), version.next().unwrap_or_default());
    let ours = [("org.hullworks.version".to_owned(), ours.to_owned())];
    Ok(Identity {
        worker,
        labels: labels.chain(ours).chain(oci.labels.clone()).collect(),
        // Builds prefer the first one in any case.
        platforms: match oci.platforms.is_empty() {
            true => sys::machine::platforms(),
            false => sys::machine::platforms_beside(engine.platforms()),
        },
        gc: engine.gc_rules(),
        package: package.to_owned(),
        revision: revision.to_owned(),
    })
}
