//! Opening an engine: the store, the executor, the registry client.

use std::sync::Arc;

use base::{Fault, Kind, Platform};
use export::Unfinished;
use http_client::{KeyPair, Pools, Proxies, Settings};
use registry::{Limits, Registries, RegistryConfig};
use store::{Driver as StoreDriver, OpenOptions, Store};

use crate::api::{Engine, EngineOptions, SnapshotterChoice};
use crate::cache_mount::CacheMounts;
use crate::content::ContentTrees;
use crate::core::{Core, blocking, store_fault};
use crate::devices::Devices;
use crate::driver::Driver;
use crate::fill::Fills;
use crate::images::Images;
use crate::ops::source::Surroundings;
use crate::request::Entitlement;

/// Our own folder in BuildKit's root directory: a BuildKit's state beside it is never touched.
const FOLDER: &str = "hullworks";

pub(crate) async fn open(options: EngineOptions) -> Result<Engine, Fault> {
    let entitlements = options.config.insecure_entitlements.iter().map(|name| name.parse());
    let mut entitlements = entitlements.collect::<Result<Vec<_>, Fault>>()?;
    let devices = Devices::new(&options.config.cdi);
    // Where there are devices, builds may ask for them, unless only some are named.
    if devices.are_on() && !entitlements.iter().any(|right| matches!(right, Entitlement::Device(_))) {
        entitlements.push(Entitlement::Device(None));
    }
    let platforms = platforms(&options)?;
    let dir = options.root.join(FOLDER);
    let open = OpenOptions {
        driver: match options.snapshotter {
            SnapshotterChoice::Auto => StoreDriver::Auto,
            SnapshotterChoice::Overlay => StoreDriver::Overlay,
            SnapshotterChoice::Copy => StoreDriver::Copy,
        },
        userxattr: options.isolation.nested,
        lock_wait: options.lock_wait,
        reserve: options.reserve,
        identity: id_map(),
        shadow: options.isolation.nested,
        // What a crash of the machine could lose is verified or dropped at the next start; builds do not wait for disks.
        sync_on_close: false,
    };
    let store = blocking(move || Store::open(&dir, open)).await;
    let store = store.map_err(|e| store_fault("cannot open the state directory", e))?;
    tracing::info!(snapshotter = store.driver().driver.as_str(), reason = %store.driver().reason, "state directory is open");

    let scratch = store.dir().join("mounts");
    let made = std::fs::create_dir_all(&scratch);
    made.map_err(|e| Fault::because(Kind::Environment, format!("cannot create `{}`", scratch.display()), e))?;
    sweep(&scratch);
    let executor = executor::open(store.dir().join("steps"), &options.isolation);
    let executor = executor.map_err(|e| Fault::because(Kind::Environment, "cannot run steps here", e))?;

    let settings =
        Settings { proxies: Proxies::from_vars(|name| options.proxy.get(name).cloned()), ..Settings::default() };
    let limits = options.config.system.max_registry_concurrency;
    let limits = limits.map_or_else(Limits::default, |count| Limits { transfers_per_host: count as usize });
    let http = Pools::new(settings);
    let client = registry::Client::new(http.clone(), registries(&options.config), limits);
    let parallelism = Some(options.config.worker.oci.max_parallelism as usize).filter(|count| *count > 0);
    let disk = config::DiskUse { total: disk_size(store.dir()) };
    let gc = options.config.worker.oci.gc.rules(disk);
    let core = Arc::new(Core {
        images: Images { client, store: store.clone() },
        http,
        store,
        executor,
        fills: Fills::default(),
        threads: Unfinished::default(),
        cache_mounts: CacheMounts::default(),
        content_trees: ContentTrees::default(),
        shadow: options.isolation.nested,
        resolver: resolver(options.config.dns.as_ref()),
        cgroup_parent: Some(options.config.worker.oci.default_cgroup_parent.clone()).filter(|name| !name.is_empty()),
        scratch,
        surroundings: Surroundings { path: options.path, proxies: options.proxy.into_iter().collect() },
        devices,
        step_log: options.step_log,
        platforms,
    });
    if core.devices.are_on() {
        let core = core.clone();
        let names: Vec<_> = blocking(move || core.devices.list()).await.into_iter().map(|device| device.name).collect();
        tracing::debug!("devices for steps: {}", names.join(", "));
    }
    let driver = Driver::start(core.clone(), parallelism);
    let has_dockerfile = options.config.frontend.dockerfile.enabled != Some(false);
    Ok(Engine::new(core, driver, entitlements, gc, has_dockerfile))
}

/// Why the engine could not be opened, if that is another process which has the state directory. A daemon keeps it, so
/// whoever waits for one should know.
pub fn in_use(fault: &Fault) -> Option<String> {
    let error = fault.find::<store::Error>().filter(|error| error.is_in_use())?;
    Some(match is_in_use_by_daemon(fault) {
        true => {
            format!("{error}, which keeps it until it ends: build with `buildctl build` or `docker buildx` instead")
        }
        false => error.to_string(),
    })
}

/// Whether a daemon has the state directory: only another one, which takes its place, has a reason to wait for its end.
pub fn is_in_use_by_daemon(fault: &Fault) -> bool {
    fault.find::<store::Error>().is_some_and(|error| error.is_in_use_by(crate::core::DAEMON))
}

/// Removes the places where a killed predecessor had views mounted; its mounts died with it.
fn sweep(scratch: &std::path::Path) {
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(crate::ssh::PREFIX.as_bytes()) {
            crate::ssh::remove(&entry.path());
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            // Hosts that a build knew.
            let _ = std::fs::remove_file(entry.path());
            continue;
        }
        // Only an empty one, which nobody has mounted anything on, can be removed so.
        if let Err(error) = std::fs::remove_dir(entry.path()) {
            tracing::debug!(%error, path = %entry.path().display(), "a place for mounts stays");
        }
    }
}

/// Which ids of the machine ours stand for: trees written under another map have other owners.
fn id_map() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let words = [read("/proc/self/uid_map"), read("/proc/self/gid_map")];
    words.map(|map| map.split_whitespace().collect::<Vec<_>>().join(" ")).join("; ")
}

fn resolver(dns: Option<&config::Dns>) -> executor::Resolver {
    let dns = dns.cloned().unwrap_or_default();
    executor::Resolver { servers: dns.nameservers, search: dns.search_domains, options: dns.options }
}

fn disk_size(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

fn platforms(options: &EngineOptions) -> Result<Vec<Platform>, Fault> {
    let configured = &options.config.worker.oci.platforms;
    if configured.is_empty() {
        return Ok(vec![Platform::host()]);
    }
    let parse = |text: &String| {
        text.parse::<Platform>().map_err(|e| Fault::because(Kind::User, "bad `worker.oci.platforms`", e))
    };
    configured.iter().map(parse).collect()
}

fn registries(config: &config::Config) -> Registries {
    let registry = |registry: &config::Registry| RegistryConfig {
        mirrors: registry.mirrors.clone(),
        http: registry.http,
        insecure: registry.insecure,
        ca: registry.ca.clone(),
        keypairs: registry
            .keypair
            .iter()
            .map(|pair| KeyPair { certificate: pair.cert.clone(), key: pair.key.clone() })
            .collect(),
        tls_config_dirs: registry.tls_config_dir.clone(),
    };
    Registries(config.registry.iter().map(|(host, settings)| (host.clone(), registry(settings))).collect())
}
