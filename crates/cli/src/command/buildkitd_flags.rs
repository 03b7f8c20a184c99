//! buildkitd's flags, as `BUILDKITD_FLAGS` holds them: all that upstream has. What is about sockets, containerd or
//! another runtime has no effect without a daemon, which a warning says: a script may pass it on, but whoever wrote it
//! expects something. What would change a build and cannot be done is refused.

use std::ffi::OsString;
use std::path::PathBuf;

use base::Fault;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, CommandFactory as _, FromArgMatches as _, Parser};
use config::{Config, DiskSpace};

use super::explain;
use crate::daemonless::Settings;
use crate::daemonless::settings::log_level;
use crate::environment::Environment;
use crate::spec::{goflags, invalid, pairs};

/// The daemon of BuildKit's clients. Flags about containerd are known, too, and warned about.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "buildkitd", disable_version_flag = true, max_term_width = 100)]
pub struct BuildkitdFlags {
    /// Defaults that suit an ordinary user
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rootless: Option<bool>,
    /// Configuration file
    #[arg(long)]
    config: Option<PathBuf>,
    /// Log at level debug
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    debug: Option<bool>,
    /// Log at level trace
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    trace: Option<bool>,
    /// State directory
    #[arg(long)]
    root: Option<PathBuf>,
    /// text or json
    #[arg(long)]
    log_format: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long)]
    log_level: Option<String>,
    /// Rights that builds may ask for
    #[arg(long)]
    allow_insecure_entitlement: Vec<String>,
    /// No devices for steps (Container Device Interface)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cdi_disabled: Option<bool>,
    /// Directories of specifications of devices
    #[arg(long)]
    cdi_spec_dir: Vec<PathBuf>,
    /// No effect yet: no proxy is enforced
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    proxy_network: Option<bool>,
    /// true, false or auto
    #[arg(long)]
    oci_worker: Option<String>,
    /// Labels of the worker
    #[arg(long)]
    oci_worker_labels: Vec<String>,
    /// auto, overlayfs or native
    #[arg(long)]
    oci_worker_snapshotter: Option<String>,
    /// No effect: snapshots are kept here
    #[arg(long)]
    oci_worker_proxy_snapshotter_path: Option<String>,
    /// Platforms of the worker
    #[arg(long)]
    oci_worker_platform: Vec<String>,
    /// auto or host; cni and bridge are not offered yet
    #[arg(long)]
    oci_worker_net: Option<String>,
    /// No effect yet: steps have no network of their own
    #[arg(long)]
    oci_cni_config_path: Option<PathBuf>,
    /// No effect yet: steps have no network of their own
    #[arg(long)]
    oci_cni_binary_dir: Option<PathBuf>,
    /// No effect yet: steps have no network of their own
    #[arg(long)]
    oci_cni_pool_size: Option<u32>,
    /// No effect: the runtime is built in
    #[arg(long)]
    oci_worker_binary: Option<String>,
    /// No effect yet: steps have no profile
    #[arg(long)]
    oci_worker_apparmor_profile: Option<String>,
    /// No effect: steps are not labelled
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_selinux: Option<bool>,
    /// Steps that run at once
    #[arg(long)]
    oci_max_parallelism: Option<u32>,
    /// Defaults that suit an ordinary user
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_rootless: Option<bool>,
    /// No effect yet: steps see their own processes only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_no_process_sandbox: Option<bool>,
    /// Clean the cache automatically
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    oci_worker_gc: Option<bool>,
    /// reserved[,free[,maximum]] in MB
    #[arg(long)]
    oci_worker_gc_keepstorage: Option<String>,
    #[command(flatten)]
    pub(super) no_effect: NoEffect,
    /// Which of the latter were given.
    #[arg(skip)]
    given_in_vain: Vec<String>,
}

/// Flags that are about a daemon's sockets, about containerd, or about traces that a daemonless build does not
/// have.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct NoEffect {
    /// Where it listens: unix:///path, tcp://host:port or fd://; repeat it for several
    #[arg(long)]
    pub(super) addr: Vec<String>,
    /// The group that may use the unix socket
    #[arg(long)]
    pub(super) group: Option<String>,
    /// Where /metrics, /healthz and /readyz are
    #[arg(long)]
    pub(super) debugaddr: Option<String>,
    /// Certificate of tcp:// addresses
    #[arg(long)]
    pub(super) tlscert: Option<String>,
    /// Its key
    #[arg(long)]
    pub(super) tlskey: Option<String>,
    /// Who signs the certificates that clients must have
    #[arg(long)]
    pub(super) tlscacert: Option<String>,
    #[arg(long, hide = true)]
    otel_socket_path: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    save_cache_debug: Option<bool>,
    /// true, false or auto
    #[arg(long, hide = true)]
    containerd_worker: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_addr: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_labels: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_platform: Vec<String>,
    #[arg(long, hide = true)]
    containerd_worker_namespace: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_runtime: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_net: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_config_path: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_binary_dir: Option<String>,
    #[arg(long, hide = true)]
    containerd_cni_pool_size: Option<u32>,
    #[arg(long, hide = true)]
    containerd_worker_snapshotter: Option<String>,
    #[arg(long, hide = true)]
    containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_selinux: Option<bool>,
    #[arg(long, hide = true)]
    containerd_max_parallelism: Option<u32>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_rootless: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    containerd_worker_gc: Option<bool>,
    #[arg(long, hide = true)]
    containerd_worker_gc_keepstorage: Option<String>,
}

/// Flags that mean nothing without a daemon, and something to one.
const SOCKETS: [&str; 6] = ["--addr", "--group", "--debugaddr", "--tlscert", "--tlskey", "--tlscacert"];

impl NoEffect {
    /// Those of them that were typed, and ask for something.
    pub(super) fn given(matches: &ArgMatches) -> Vec<String> {
        let declared = NoEffect::augment_args(clap::Command::new("buildkitd"));
        let typed = |arg: &&clap::Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        // No containerd is what there is.
        let is_off = |arg: &&clap::Arg| {
            let id = arg.get_id().as_str();
            id == "containerd_worker"
                && matches.get_one::<String>(id).is_some_and(|value| config::parse_bool(value) != Some(true))
        };
        let given = declared.get_arguments().filter(typed).filter(|arg| !is_off(arg));
        given.filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
    }
}

/// What is said of flags that nothing comes of, with a daemon or without.
pub(super) fn in_vain(flags: &[String]) -> Vec<String> {
    let (mut containerd, mut warnings) = (Vec::new(), Vec::new());
    for flag in flags.iter().map(String::as_str).filter(|flag| !SOCKETS.contains(flag)) {
        match flag {
            "--otel-socket-path" => warnings.push(format!("{flag} is not used yet: steps hand over no traces")),
            "--save-cache-debug" => warnings.push(format!("{flag} is not used: cache keys are not kept for debugging")),
            _ => containerd.push(flag),
        }
    }
    if !containerd.is_empty() {
        let (verb, flags) = (if containerd.len() == 1 { "is" } else { "are" }, containerd.join(", "));
        warnings.push(format!("{flags} {verb} not used: containerd is not offered, the runtime is built in"));
    }
    warnings
}

impl BuildkitdFlags {
    /// Parses words that were split at spaces.
    pub fn parse_words(words: Vec<String>) -> Result<BuildkitdFlags, Fault> {
        let words = std::iter::once(OsString::from("buildkitd")).chain(words.into_iter().map(OsString::from));
        let words = goflags::normalize(&BuildkitdFlags::command(), words.collect());
        let parsed = BuildkitdFlags::command().try_get_matches_from(words).and_then(|matches| {
            let flags = BuildkitdFlags::from_arg_matches(&matches)?;
            Ok(BuildkitdFlags { given_in_vain: NoEffect::given(&matches), ..flags })
        });
        parsed.map_err(|error| match explain(&error) {
            Ok(_) => Fault::user("BUILDKITD_FLAGS asks for help instead of a daemon"),
            Err(fault) => Fault::user(fault.cause()).context("BUILDKITD_FLAGS").hint("it takes the flags of buildkitd"),
        })
    }

    /// The settings that these flags and the configuration amount to.
    pub fn settings(&self, environment: &Environment) -> Result<Settings, Fault> {
        let mut settings =
            Settings::load(self.config.clone(), self.root.clone(), environment, |config| self.apply(config))?;
        if let Some(name) = &self.oci_worker_snapshotter {
            settings.choose_snapshotter("--oci-worker-snapshotter", name)?;
        }
        self.choose_log(&mut settings, environment)?;
        let given = self.given_in_vain.iter().map(String::as_str);
        let sockets: Vec<_> = given.filter(|flag| SOCKETS.contains(flag)).collect();
        if !sockets.is_empty() {
            let flags = sockets.join(", ");
            settings.warnings.push(format!("flags of buildkitd that mean nothing without a daemon: {flags}"));
        }
        settings.warnings.extend(in_vain(&self.given_in_vain));
        Ok(settings)
    }

    fn apply(&self, config: &mut Config) -> Result<(), Fault> {
        fn set<T: Clone>(slot: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                slot.clone_from(value);
            }
        }
        if !self.allow_insecure_entitlement.is_empty() {
            config.insecure_entitlements.clone_from(&self.allow_insecure_entitlement);
        }
        config.cdi.disabled = self.cdi_disabled.or(config.cdi.disabled);
        if !self.cdi_spec_dir.is_empty() {
            config.cdi.spec_dirs.clone_from(&self.cdi_spec_dir);
        }
        set(&mut config.proxy_network, self.proxy_network.as_ref());
        let oci = &mut config.worker.oci;
        if let Some(text) =
            self.oci_worker.as_deref().filter(|text| !text.is_empty() && !text.eq_ignore_ascii_case("auto"))
        {
            let known = config::parse_bool(text);
            oci.enabled = Some(known.ok_or_else(|| invalid("--oci-worker", text, "known are true, false and auto"))?);
        }
        oci.labels.extend(pairs::pairs("--oci-worker-labels", &self.oci_worker_labels)?);
        if !self.oci_worker_platform.is_empty() {
            oci.platforms.clone_from(&self.oci_worker_platform);
        }
        oci.rootless = self.oci_worker_rootless.or(self.rootless).or(oci.rootless);
        set(&mut oci.no_process_sandbox, self.oci_worker_no_process_sandbox.as_ref());
        set(&mut oci.proxy_snapshotter_path, self.oci_worker_proxy_snapshotter_path.as_ref());
        set(&mut oci.binary, self.oci_worker_binary.as_ref());
        set(&mut oci.apparmor_profile, self.oci_worker_apparmor_profile.as_ref());
        set(&mut oci.selinux, self.oci_worker_selinux.as_ref());
        set(&mut oci.max_parallelism, self.oci_max_parallelism.as_ref());
        set(&mut oci.network.mode, self.oci_worker_net.as_ref());
        set(&mut oci.network.cni_config_path, self.oci_cni_config_path.as_ref());
        set(&mut oci.network.cni_binary_path, self.oci_cni_binary_dir.as_ref());
        set(&mut oci.network.cni_pool_size, self.oci_cni_pool_size.as_ref());
        oci.gc.enabled = self.oci_worker_gc.or(oci.gc.enabled);
        if self.no_effect.containerd_worker.is_some() {
            // What was typed counts, and something is said of it elsewhere.
            config.worker.containerd.enabled = None;
        }
        if let Some(text) = self.oci_worker_gc_keepstorage.as_deref().filter(|text| !text.is_empty()) {
            let [reserved, free, maximum] = keep_storage(text)?;
            (oci.gc.reserved_space, oci.gc.min_free_space, oci.gc.max_used_space) = (reserved, free, maximum);
        }
        Ok(())
    }

    /// buildkitd's log goes to a file that the script shows only when the daemon does not start; here it is shown
    /// when somebody asked for a level.
    fn choose_log(&self, settings: &mut Settings, environment: &Environment) -> Result<(), Fault> {
        let format = self.log_format.as_deref().unwrap_or(&settings.config.log.format);
        settings.log_json = match format {
            "" | "text" => false,
            "json" => true,
            other => return Err(invalid("--log-format", other, "known are text and json")),
        };
        // The old keys count where the new one is not there.
        let old = match (settings.config.trace, settings.config.debug) {
            (true, _) => Some("trace"),
            (_, true) => Some("debug"),
            _ => None,
        };
        let configured = Some(settings.config.log.level.as_str()).filter(|level| !level.is_empty()).or(old);
        let level = self.log_level.as_deref().or(environment.get("BUILDKITD_LOG_LEVEL")).or(configured);
        let level = level.map(|level| log_level("--log-level", level)).transpose()?;
        settings.log = match (self.trace == Some(true), self.debug == Some(true)) {
            (true, _) => Some(tracing::Level::TRACE),
            (_, true) => level.max(Some(tracing::Level::DEBUG)),
            _ => level,
        };
        Ok(())
    }
}

/// `reserved[,free[,maximum]]`, in megabytes.
fn keep_storage(text: &str) -> Result<[DiskSpace; 3], Fault> {
    let bad = || invalid("--oci-worker-gc-keepstorage", text, "expected reserved[,free[,maximum]] in MB");
    let mut out = [DiskSpace::default(); 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > out.len() {
        return Err(bad());
    }
    for (slot, part) in out.iter_mut().zip(parts) {
        let megabytes: u64 = part.parse().map_err(|_| bad())?;
        *slot = DiskSpace::Bytes(megabytes.checked_mul(1_000_000).ok_or_else(bad)?);
    }
    Ok(out)
}
