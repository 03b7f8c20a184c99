//! What the daemon would have been started with: configuration, state directory, snapshotter, log.

use std::path::PathBuf;
use std::time::Duration;

use base::{Fault, Kind};
use config::{Config, Lookup};
use engine::{EngineOptions, LogLimits, Reserve, SnapshotterChoice};

use crate::command::not_yet;
use crate::display::Mode;
use crate::environment::Environment;
use crate::spec::invalid;

/// The settings of an engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration, with flags applied.
    pub config: Config,
    /// The state directory.
    pub root: PathBuf,
    /// How snapshots are kept.
    pub snapshotter: SnapshotterChoice,
    /// How long another process may hold the state directory before we give up; none: as long as it takes.
    pub lock_wait: Option<Duration>,
    /// We are a daemon, and take the place of one that ends.
    pub is_daemon: bool,
    /// How much of a step's output is shown.
    pub step_log: LogLimits,
    /// What happens with the space that is kept back.
    pub reserve: Reserve,
    /// What is logged on standard error.
    pub log: Option<tracing::Level>,
    /// The log is JSON.
    pub log_json: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// How long those wait who only want to see or remove what is there.
const TIDY_WAIT: Duration = Duration::from_secs(2);

impl Settings {
    /// The same for who wants to see what is in the state directory.
    pub fn to_look(self) -> Settings {
        Settings { reserve: Reserve::Borrow, lock_wait: self.lock_wait.or(Some(TIDY_WAIT)), ..self }
    }

    /// The same for who wants to remove what is in the state directory.
    pub fn to_tidy_up(self) -> Settings {
        Settings { reserve: Reserve::Spend, ..self.to_look() }
    }

    /// Reads the configuration files. `explicit` is `--config`, `root` is `--root`; `flags` puts on top what else was
    /// typed. What is asked for and not there is refused, what means nothing here is named in a warning.
    pub fn load(
        explicit: Option<PathBuf>,
        root: Option<PathBuf>,
        environment: &Environment,
        flags: impl FnOnce(&mut Config) -> Result<(), Fault>,
    ) -> Result<Settings, Fault> {
        let lookup = Lookup {
            explicit,
            rootless: environment.rootless,
            xdg_config_home: environment.path("XDG_CONFIG_HOME"),
            home: environment.path("HOME"),
            system_dir: None,
        };
        let loaded =
            config::load(&lookup).map_err(|error| Fault::because(Kind::User, "cannot use the configuration", error))?;
        let mut config = loaded.config;
        let mut warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        // A file may be written for a newer version: like a key that is not known, that keeps nobody from starting.
        config.insecure_entitlements.retain(|name| match name.parse::<engine::Entitlement>() {
            // Without the one device that is meant, all would be allowed.
            _ if name.starts_with("device") => true,
            Ok(_) => true,
            Err(fault) => {
                warnings.push(format!("insecure-entitlements: {fault}"));
                false
            }
        });
        flags(&mut config)?;
        let root = root.or_else(|| config.root.clone()).unwrap_or_else(|| environment.default_root());
        let mut settings = Settings {
            config,
            root,
            snapshotter: SnapshotterChoice::Auto,
            lock_wait: None,
            is_daemon: false,
            reserve: Reserve::Keep,
            step_log: LogLimits::default(),
            log: None,
            log_json: false,
            warnings,
        };
        let snapshotter = settings.config.worker.oci.snapshotter.clone();
        settings.choose_snapshotter("worker.oci.snapshotter", &snapshotter)?;
        settings.limit_step_log(environment);
        settings.refuse_what_is_not_there()?;
        settings.warn_of_what_means_nothing();
        Ok(settings)
    }

    /// Hints name the command that makes room here: of another state directory than the usual one it has to be told.
    pub fn name_root(&self, fault: Fault, environment: &Environment) -> Fault {
        let here = format!("`hullworks prune --root {}`", self.root.display());
        match fault.get_hint().map(|hint| hint.replace(base::hint::PRUNE, &here)) {
            Some(hint) if self.root != environment.default_root() => fault.better_hint(hint),
            _ => fault,
        }
    }

    /// Whether anything was ever built here.
    pub fn has_state(&self) -> bool {
        self.root.join("hullworks").exists()
    }

    /// What would change what a build may do.
    fn refuse_what_is_not_there(&self) -> Result<(), Fault> {
        let oci = &self.config.worker.oci;
        if oci.enabled == Some(false) {
            return Err(Fault::user(
                "the oci worker is switched off, and there is no other: containerd is not offered",
            )
            .hint("remove --oci-worker=false, or `enabled = false` under [worker.oci]"));
        }
        if self.config.system.max_registry_concurrency == Some(0) {
            let why = "at least one connection is needed";
            return Err(invalid("system.maxRegistryConcurrency", "0", why));
        }
        for policy in &oci.gc.policies {
            engine::usage::select(Vec::new(), &policy.filters)
                .map_err(|error| error.context("worker.oci.gcpolicy: bad `filters`"))?;
        }
        for (registry, settings) in &self.config.registry {
            if let Some(mirror) = settings.mirrors.iter().find(|mirror| mirror.contains("://")) {
                let origin = format!("registry.\"{registry}\".mirrors");
                let host = mirror.split_once("://").map_or("", |(_, host)| host);
                let error = invalid(&origin, mirror, "a mirror has no scheme: write host, host:port or host/path");
                return Err(match mirror.starts_with("http://") {
                    true => error.hint(format!("write \"{host}\", and `http = true` under [registry.\"{host}\"]")),
                    false => error,
                });
            }
        }
        match oci.network.mode.as_str() {
            "" | "auto" | "host" => Ok(()),
            mode @ ("cni" | "bridge") => Err(not_yet(&format!("worker network `{mode}`"))),
            mode => Err(invalid("worker.oci.networkMode", mode, "known are auto, host, cni and bridge")
                .hint("a step without network: `RUN --network=none`, or `--opt force-network-mode=none` for all")),
        }
    }

    fn warn_of_what_means_nothing(&mut self) {
        let oci = &self.config.worker.oci;
        let mut warn = |is_set: bool, text: &str| {
            if is_set {
                self.warnings.push(text.to_owned());
            }
        };
        warn(
            !oci.apparmor_profile.is_empty(),
            "worker.oci.apparmor-profile is NOT HEEDED: steps run without an AppArmor profile of their own; capabilities and \
             the seccomp filter confine them all the same",
        );
        warn(
            self.config.proxy_network,
            "proxyNetwork is NOT HEEDED: no proxy is enforced, steps reach the network as they do without it",
        );
        warn(
            !oci.proxy_snapshotter_path.is_empty(),
            "worker.oci.proxySnapshotterPath is not used: snapshots are kept by the daemon itself",
        );
        warn(!oci.binary.is_empty(), "worker.oci.binary is not used: the runtime is built in");
        warn(oci.selinux, "worker.oci.selinux is not used: steps are not labelled");
        warn(oci.stargz_snapshotter.is_some(), "worker.oci.stargzSnapshotter is not used: it is not built in");
        warn(oci.no_process_sandbox, "worker.oci.noProcessSandbox is not used yet: steps see their own processes only");
        warn(
            !oci.user_remap_unsupported.is_empty(),
            "worker.oci.userRemapUnsupported is not used: ids are never remapped",
        );
        let network = &oci.network;
        for (is_set, key) in [
            (!network.cni_config_path.as_os_str().is_empty(), "cniConfigPath"),
            (!network.cni_binary_path.as_os_str().is_empty(), "cniBinaryPath"),
            (network.cni_pool_size != 0, "cniPoolSize"),
            (!network.bridge_name.is_empty(), "bridgeName"),
            (!network.bridge_subnet.is_empty(), "bridgeSubnet"),
        ] {
            warn(is_set, &format!("worker.oci.{key} is not used yet: steps have no network of their own"));
        }
        let containerd = self.config.worker.containerd.enabled == Some(true);
        warn(containerd, "worker.containerd is not used: containerd is not offered, the runtime is built in");
        let config = &self.config;
        warn(!config.grpc.security_descriptor.is_empty(), "grpc.securityDescriptor is not used: it is for Windows");
        let gateway = &config.frontend.gateway;
        let is_wanted = gateway.enabled == Some(true) || !gateway.allowed_repositories.is_empty();
        let text = "[frontend.\"gateway.v0\"] is not used yet: frontends are not taken from images";
        warn(is_wanted && gateway.enabled != Some(false), text);
        warn(config.provenance_env_dir.is_some(), "provenanceEnvDir is not used yet: no provenance is written");
        warn(config.otel != config::Otel::default(), "[otel] is not used yet: steps hand over no traces");
        warn(config.cache.gha.is_some(), "[cache.gha] is not used yet: there is no cache of type gha");
        let system = &config.system;
        warn(
            system.platforms_cache_max_age.is_some(),
            "system.platformsCacheMaxAge is not used: platforms are found once",
        );
        for server in config.dns.iter().flat_map(|dns| &dns.nameservers) {
            let text = format!("dns.nameservers: `{server}` is no IP address, so steps will not find it");
            warn(server.parse::<std::net::IpAddr>().is_err(), &text);
        }
    }

    /// Takes upstream's variables for how much of a step's output is shown; -1 is without end.
    fn limit_step_log(&mut self, environment: &Environment) {
        let limits = [
            ("BUILDKIT_STEP_LOG_MAX_SIZE", &mut self.step_log.size),
            ("BUILDKIT_STEP_LOG_MAX_SPEED", &mut self.step_log.speed),
        ];
        for (name, limit) in limits {
            let Some(text) = environment.get(name) else { continue };
            match (text, text.parse()) {
                ("-1", _) => *limit = None,
                (_, Ok(bytes)) => *limit = Some(bytes),
                // Upstream keeps its default as well, but says nothing.
                (_, Err(_)) => self.warnings.push(format!("{name}: `{text}` is no number of bytes, nor -1: not used")),
            }
        }
    }

    /// Takes a snapshotter by upstream's name.
    pub fn choose_snapshotter(&mut self, origin: &str, name: &str) -> Result<(), Fault> {
        self.snapshotter = match name {
            "" | "auto" => SnapshotterChoice::Auto,
            "overlay" | "overlayfs" => SnapshotterChoice::Overlay,
            "native" | "copy" => SnapshotterChoice::Copy,
            "fuse-overlayfs" | "stargz" => {
                self.warnings
                    .push(format!("{origin}: `{name}` is not built in, the best of overlayfs and native is used"));
                SnapshotterChoice::Auto
            }
            _ => return Err(invalid(origin, name, "known are auto, overlayfs and native")),
        };
        Ok(())
    }

    /// What the engine is opened with; it waits so long for another process.
    pub fn engine_options(&self, environment: &Environment, lock_wait: Duration) -> EngineOptions {
        EngineOptions {
            root: self.root.clone(),
            config: self.config.clone(),
            snapshotter: self.snapshotter,
            lock_wait,
            reserve: self.reserve,
            step_log: self.step_log,
            proxy: environment.proxies(),
            path: environment.path("PATH").map(Into::into),
            isolation: environment
                .isolation
                .clone()
                .expect("`crate::run` isolates the process before it runs engine work"),
        }
    }

    /// Starts the log, if there is to be one: as JSON where a display beside it is. At most once per process.
    pub fn start_log(&self, mode: Mode) {
        if let Some(level) = self.log {
            crate::log::start(level, self.log_json || mode == Mode::RawJson);
        }
    }
}

/// A log level by upstream's names. `panic` and `fatal` are errors here.
pub fn log_level(origin: &str, name: &str) -> Result<tracing::Level, Fault> {
    use tracing::Level;
    match name.to_ascii_lowercase().as_str() {
        "trace" => Ok(Level::TRACE),
        "debug" => Ok(Level::DEBUG),
        "info" => Ok(Level::INFO),
        "warn" | "warning" => Ok(Level::WARN),
        "error" | "fatal" | "panic" => Ok(Level::ERROR),
        _ => Err(crate::spec::invalid(origin, name, "known are error, warn, info, debug and trace")),
    }
}
