//! `[worker.oci]` and `[worker.containerd]`: what runs the steps and when its cache is cleaned.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::section::section;
use crate::value::{DiskSpace, Seconds};

section! {
    /// `[worker]`.
    pub struct Workers {
        /// The built-in worker.
        oci: Oci = "oci",
        /// Steps run by containerd: not offered by Hullworks, whose runtime is built in.
        containerd: Containerd = "containerd",
    }
}

section! {
    /// `[worker.oci]`.
    pub struct Oci {
        /// Whether this worker is used. Default: yes.
        enabled: Option<bool> = "enabled",
        /// Labels that clients see.
        labels: BTreeMap<String, String> = "labels",
        /// Platforms that this worker builds for. Default: this machine's; name others that binfmt_misc can run here.
        platforms: Vec<String> = "platforms",
        /// `auto`, `overlayfs` or `native`.
        snapshotter: String = "snapshotter",
        /// Defaults that suit an ordinary user.
        rootless: Option<bool> = "rootless",
        /// Steps share the process namespace of the daemon, for pods where /proc cannot be mounted. Without effect yet.
        no_process_sandbox: bool = "noProcessSandbox",
        /// Upstream's test switch for user namespace remapping. Without effect.
        user_remap_unsupported: String = "userRemapUnsupported",
        /// Another OCI runtime. Without effect: the runtime is built in.
        binary: String = "binary",
        /// Socket of a snapshotter in another process. Without effect: snapshots are kept by the daemon itself.
        proxy_snapshotter_path: String = "proxySnapshotterPath",
        /// The cgroup below which steps get theirs.
        default_cgroup_parent: String = "defaultCgroupParent",
        /// Settings of the stargz snapshotter. Without effect: it is not built in.
        stargz_snapshotter: Option<toml::Value> = "stargzSnapshotter",
        /// A loaded AppArmor profile that steps run under. Without effect yet, and warned of: steps have none.
        apparmor_profile: String = "apparmor-profile",
        /// Label steps for SELinux. Without effect.
        selinux: bool = "selinux",
        /// How many steps run at once. 0: as many as are ready.
        max_parallelism: u32 = "max-parallelism",
    } with {
        /// When the cache is cleaned.
        gc: Gc,
        /// How steps reach the network.
        network: Network,
    }
}

section! {
    /// `[worker.containerd]`.
    pub struct Containerd {
        /// containerd's socket.
        address: String = "address",
        /// Whether this worker is used.
        enabled: Option<bool> = "enabled",
        /// Labels that clients see.
        labels: BTreeMap<String, String> = "labels",
        /// Platforms that this worker builds for.
        platforms: Vec<String> = "platforms",
        /// containerd's namespace.
        namespace: String = "namespace",
        /// containerd's runtime.
        runtime: ContainerdRuntime = "runtime",
        /// containerd's snapshotter.
        snapshotter: String = "snapshotter",
        /// A loaded AppArmor profile that steps run under.
        apparmor_profile: String = "apparmor-profile",
        /// Label steps for SELinux.
        selinux: bool = "selinux",
        /// How many steps run at once. 0: as many as are ready.
        max_parallelism: u32 = "max-parallelism",
        /// The cgroup below which steps get theirs.
        default_cgroup_parent: String = "defaultCgroupParent",
        /// Defaults that suit an ordinary user.
        rootless: Option<bool> = "rootless",
    } with {
        /// When the cache is cleaned.
        gc: Gc,
        /// How steps reach the network.
        network: Network,
    }
}

section! {
    /// `[worker.containerd.runtime]`.
    pub struct ContainerdRuntime {
        /// Its name.
        name: String = "name",
        /// Its shim.
        path: String = "path",
        /// Its options.
        options: Option<toml::Value> = "options",
    }
}

section! {
    /// When the cache of a worker is cleaned. These keys stand in the table of the worker.
    pub struct Gc {
        /// Clean automatically. Default: yes.
        enabled: Option<bool> = "gc",
        /// The old name of `reservedSpace`.
        keep_storage: DiskSpace = "gckeepstorage",
        /// This much is always kept.
        reserved_space: DiskSpace = "reservedSpace",
        /// More than this is cleaned away.
        max_used_space: DiskSpace = "maxUsedSpace",
        /// Clean until this much of the disk is free, but never below `reservedSpace`.
        min_free_space: DiskSpace = "minFreeSpace",
        /// Rules of your own, in order; they replace the defaults.
        policies: Vec<GcPolicy> = "gcpolicy",
    }
}

section! {
    /// `[[worker.oci.gcpolicy]]`: one rule of cleaning.
    pub struct GcPolicy {
        /// Also internal records and those of frontends.
        all: bool = "all",
        /// Only records that match one of these: `type==source.local`, ..
        filters: Vec<String> = "filters",
        /// Keep what was used within this time.
        keep_duration: Seconds = "keepDuration",
        /// The old name of `reservedSpace`.
        keep_bytes: DiskSpace = "keepBytes",
        /// This much is always kept.
        reserved_space: DiskSpace = "reservedSpace",
        /// More than this is cleaned away.
        max_used_space: DiskSpace = "maxUsedSpace",
        /// Clean until this much of the disk is free, but never below `reservedSpace`.
        min_free_space: DiskSpace = "minFreeSpace",
    }
}

section! {
    /// How steps reach the network. These keys stand in the table of the worker.
    pub struct Network {
        /// `auto` or `host`; `cni` and `bridge` are not offered yet.
        mode: String = "networkMode",
        /// CNI configuration file. Without effect so far.
        cni_config_path: PathBuf = "cniConfigPath",
        /// Directory of CNI plugins. Without effect so far.
        cni_binary_path: PathBuf = "cniBinaryPath",
        /// How many network namespaces are kept ready. Without effect so far.
        cni_pool_size: u32 = "cniPoolSize",
        /// Name of the bridge in mode `bridge`. Without effect so far.
        bridge_name: String = "bridgeName",
        /// Subnet of the bridge in mode `bridge`. Without effect so far.
        bridge_subnet: String = "bridgeSubnet",
    }
}
