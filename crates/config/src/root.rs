//! The top of the file and its smaller tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::section::{Bad, Declared, Key, Place, Unknown, section};
use crate::value::{Seconds, optional};
use crate::worker::Workers;

section! {
    /// A whole `buildkitd.toml`.
    pub struct Config {
        /// Log at level debug. Old: write `log.level`.
        debug: bool = "debug",
        /// Log at level trace. Old: write `log.level`.
        trace: bool = "trace",
        /// Where all state is kept. Default: `/var/lib/buildkit`, for an ordinary user `~/.local/share/buildkit`.
        root: Option<PathBuf> = "root",
        /// Rights that builds may ask for: `network.host`, `security.insecure`, `device`. All devices unless some are named (`device=NAME`), or `cdi.disabled`. A name that is not known is warned of and counts for nothing; one that begins with `device` and cannot be read is an error.
        insecure_entitlements: Vec<String> = "insecure-entitlements",
        /// Route the network of all builds through the enforcing proxy. Without effect yet, and warned of: steps reach the
        /// network as they do without it.
        proxy_network: bool = "proxyNetwork",
        /// Directory of JSON files that are added to provenance. Default: `/etc/buildkit/provenance.d`. Without
        /// effect: no provenance is written yet.
        provenance_env_dir: Option<PathBuf> = "provenanceEnvDir",
        /// The log of the daemon.
        log: Log = "log",
        /// Resolver settings of steps, in place of the host's.
        dns: Option<Dns> = "dns",
        /// Where the daemon listens.
        grpc: Grpc = "grpc",
        /// Traces. Without effect yet.
        otel: Otel = "otel",
        /// The Container Device Interface: devices for steps (`RUN --device`).
        cdi: Cdi = "cdi",
        /// Records of finished builds.
        history: Option<History> = "history",
        /// What runs the steps.
        worker: Workers = "worker",
        /// How registries are reached, by host.
        registry: BTreeMap<String, Registry> = "registry",
        /// Which frontends may be used.
        frontend: Frontends = "frontend",
        /// Limits of the whole daemon.
        system: System = "system",
        /// Remote caches.
        cache: Cache = "cache",
    }
}

section! {
    /// `[log]`.
    pub struct Log {
        /// `text` or `json`.
        format: String = "format",
        /// `error`, `warn`, `info`, `debug` or `trace`.
        level: String = "level",
    }
}

section! {
    /// `[dns]`.
    pub struct Dns {
        /// Addresses of name servers.
        nameservers: Vec<String> = "nameservers",
        /// Options of resolv.conf.
        options: Vec<String> = "options",
        /// Search domains of resolv.conf.
        search_domains: Vec<String> = "searchDomains",
    }
}

section! {
    /// `[grpc]`.
    pub struct Grpc {
        /// Addresses to listen on: `unix:///run/buildkit/buildkitd.sock`, `tcp://0.0.0.0:1234`.
        address: Vec<String> = "address",
        /// Where `/metrics`, `/healthz` and `/readyz` are.
        debug_address: String = "debugAddress",
        /// Owner of the socket.
        uid: Option<u32> = "uid",
        /// Group of the socket.
        gid: Option<u32> = "gid",
        /// Windows only.
        security_descriptor: String = "securityDescriptor",
        /// Certificates.
        tls: TlsFiles = "tls",
    }
}

section! {
    /// `[grpc.tls]`.
    pub struct TlsFiles {
        /// Certificate of the daemon.
        cert: Option<PathBuf> = "cert",
        /// Its key.
        key: Option<PathBuf> = "key",
        /// Certificate authority that clients must be signed by.
        ca: Option<PathBuf> = "ca",
    }
}

section! {
    /// `[otel]`.
    pub struct Otel {
        /// Socket that steps send traces to.
        socket_path: Option<PathBuf> = "socketPath",
    }
}

section! {
    /// `[cdi]`.
    pub struct Cdi {
        /// No devices for steps.
        disabled: Option<bool> = "disabled",
        /// Directories of device specifications (`*.json`, `*.yaml`), the last one counts most. Default: `/etc/cdi`, `/var/run/cdi`, `/etc/buildkit/cdi`.
        spec_dirs: Vec<PathBuf> = "specDirs",
        /// Devices (`vendor/class=name`), or kinds (`vendor/class`), that builds may use without `--allow`.
        auto_allowed: Vec<String> = "autoAllowed",
    }
}

section! {
    /// `[history]`.
    pub struct History {
        /// A record that is older goes, if there are also too many. Default: 48h.
        max_age: Seconds = "maxAge",
        /// So many records stay, however old. Default: 50.
        max_entries: u32 = "maxEntries",
    }
}

section! {
    /// `[registry."host"]`.
    pub struct Registry {
        /// Hosts, with an optional path, that are asked first.
        mirrors: Vec<String> = "mirrors",
        /// Speak plain HTTP.
        http: Option<bool> = "http",
        /// Do not verify certificates; with `http`, fall back to plain HTTP.
        insecure: Option<bool> = "insecure",
        /// Files of certificate authorities, beside those of the system.
        ca: Vec<PathBuf> = "ca",
        /// Client certificates.
        keypair: Vec<KeyPair> = "keypair",
        /// Directories of `*.crt` (authorities) and `*.cert` with `*.key` (client certificates), as docker's `certs.d`.
        tls_config_dir: Vec<PathBuf> = "tlsconfigdir",
    }
}

section! {
    /// `[[registry."host".keypair]]`.
    pub struct KeyPair {
        /// The key.
        key: PathBuf = "key",
        /// The certificate.
        cert: PathBuf = "cert",
    }
}

/// A certificate file that a registry needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// A certificate authority.
    Authority(PathBuf),
    /// A client certificate and its key.
    Client {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

impl Registry {
    /// Every certificate file of this registry, those of `tlsconfigdir` included, in a stable order. A
    /// directory that is not there, or that we may not read, has none.
    pub fn certificates(&self) -> std::io::Result<Vec<Certificate>> {
        let mut out: Vec<Certificate> = self.ca.iter().cloned().map(Certificate::Authority).collect();
        out.extend(
            self.keypair.iter().map(|pair| Certificate::Client { cert: pair.cert.clone(), key: pair.key.clone() }),
        );
        for dir in &self.tls_config_dir {
            out.extend(certificates_in(dir)?);
        }
        Ok(out)
    }
}

fn certificates_in(dir: &Path) -> std::io::Result<Vec<Certificate>> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    Ok(files
        .into_iter()
        .filter_map(|path| match path.extension()?.to_str()? {
            "crt" => Some(Certificate::Authority(path)),
            "cert" => Some(Certificate::Client { key: path.with_extension("key"), cert: path }),
            _ => None,
        })
        .collect())
}

section! {
    /// `[frontend]`.
    pub struct Frontends {
        /// The built-in Dockerfile frontend.
        dockerfile: DockerfileFrontend = "dockerfile.v0",
        /// Frontends that are images. Without effect so far.
        gateway: GatewayFrontend = "gateway.v0",
    }
}

section! {
    /// `[frontend."dockerfile.v0"]`.
    pub struct DockerfileFrontend {
        /// Whether it may be used. Default: yes.
        enabled: Option<bool> = "enabled",
    }
}

section! {
    /// `[frontend."gateway.v0"]`.
    pub struct GatewayFrontend {
        /// Whether it may be used. Default: yes.
        enabled: Option<bool> = "enabled",
        /// The only repositories, without tag, that frontends may come from. Empty: any.
        allowed_repositories: Vec<String> = "allowedRepositories",
    }
}

section! {
    /// `[system]`.
    pub struct System {
        /// How often binfmt_misc is looked at again. Without effect.
        platforms_cache_max_age: Option<Seconds> = "platformsCacheMaxAge",
        /// Blobs that are pulled from one registry at once, or pushed to it. Default: 4.
        max_registry_concurrency: Option<u32> = "maxRegistryConcurrency",
    }
}

section! {
    /// `[cache]`.
    pub struct Cache {
        /// The cache of GitHub Actions. Without effect: it is not offered yet.
        gha: Option<GhaCache> = "gha",
    }
}

section! {
    /// `[cache.gha]`.
    pub struct GhaCache {
        /// How entries are signed.
        sign: Option<GhaSign> = "sign",
        /// Which signatures are wanted.
        verify: GhaVerify = "verify",
    }
}

section! {
    /// `[cache.gha.sign]`.
    pub struct GhaSign {
        /// A command that reads the payload and writes the signature.
        command: Vec<String> = "command",
    }
}

section! {
    /// `[cache.gha.verify]`.
    pub struct GhaVerify {
        /// Entries without a good signature are not used.
        required: bool = "required",
        /// What a good signature is.
        policy: GhaPolicy = "policy",
    }
}

section! {
    /// `[cache.gha.verify.policy]`.
    pub struct GhaPolicy {
        /// How many timestamps a signature needs.
        timestamp_threshold: u32 = "timestampThreshold",
        /// How many transparency log entries a signature needs.
        tlog_threshold: u32 = "tlogThreshold",
        /// Certificate property; `*` matches anything.
        certificate_issuer: Option<String> = "certificateIssuer",
        /// Certificate property.
        subject_alternative_name: Option<String> = "subjectAlternativeName",
        /// Certificate property.
        issuer: Option<String> = "issuer",
        /// Certificate property.
        github_workflow_trigger: Option<String> = "githubWorkflowTrigger",
        /// Certificate property.
        github_workflow_sha: Option<String> = "githubWorkflowSHA",
        /// Certificate property.
        github_workflow_name: Option<String> = "githubWorkflowName",
        /// Certificate property.
        github_workflow_repository: Option<String> = "githubWorkflowRepository",
        /// Certificate property.
        github_workflow_ref: Option<String> = "githubWorkflowRef",
        /// Certificate property.
        build_signer_uri: Option<String> = "buildSignerURI",
        /// Certificate property.
        build_signer_digest: Option<String> = "buildSignerDigest",
        /// Certificate property.
        runner_environment: Option<String> = "runnerEnvironment",
        /// Certificate property.
        source_repository_uri: Option<String> = "sourceRepositoryURI",
        /// Certificate property.
        source_repository_digest: Option<String> = "sourceRepositoryDigest",
        /// Certificate property.
        source_repository_ref: Option<String> = "sourceRepositoryRef",
        /// Certificate property.
        source_repository_identifier: Option<String> = "sourceRepositoryIdentifier",
        /// Certificate property.
        source_repository_owner_uri: Option<String> = "sourceRepositoryOwnerURI",
        /// Certificate property.
        source_repository_owner_identifier: Option<String> = "sourceRepositoryOwnerIdentifier",
        /// Certificate property.
        build_config_uri: Option<String> = "buildConfigURI",
        /// Certificate property.
        build_config_digest: Option<String> = "buildConfigDigest",
        /// Certificate property.
        build_trigger: Option<String> = "buildTrigger",
        /// Certificate property.
        run_invocation_uri: Option<String> = "runInvocationURI",
        /// Certificate property.
        source_repository_visibility_at_signing: Option<String> = "sourceRepositoryVisibilityAtSigning",
    }
}

optional!(Dns, History, GhaCache, GhaSign);
