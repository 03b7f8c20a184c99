//! Which hosts serve an image name, and how to speak to each: `[registry."host"]` of `buildkitd.toml`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http_client::{KeyPair, TlsIdentity, Verify};

use crate::Error;

/// The API's path on every registry.
const API: &str = "/v2";

/// The `[registry]` tables of `buildkitd.toml`, by host as it stands in image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries(pub BTreeMap<String, RegistryConfig>);

/// One `[registry."host"]`. Unset values mean BuildKit's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Asked before the registry itself when pulling: `host`, `host/path` or a URL of them.
    pub mirrors: Vec<String>,
    /// Plain HTTP. Unset, hosts on the loopback interface may speak it.
    pub http: Option<bool>,
    /// Any certificate will do. Together with `http`: HTTPS where it is spoken, else HTTP.
    pub insecure: Option<bool>,
    /// PEM files of further CAs.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypairs: Vec<KeyPair>,
    /// Directories of `*.crt` (CAs) and `*.cert` with `*.key` (client certificates), as `/etc/docker/certs.d` has them.
    pub tls_config_dirs: Vec<PathBuf>,
}

/// How to reach a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schemes {
    Https,
    Http,
    /// HTTPS, and plain HTTP if that is what the host turns out to speak.
    Either,
}

/// One host that serves a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port.
    pub host: String,
    /// `/v2`, or `/v2/some/path` of a mirror that keeps its copies below a path.
    pub api: String,
    pub schemes: Schemes,
    pub identity: TlsIdentity,
    /// A mirror is told on whose behalf it is asked (`ns=`, containerd's convention).
    pub namespace: Option<String>,
}

impl Registries {
    /// The same, but pushes and pulls of `host` take any certificate and plain HTTP (`registry.insecure=true`).
    #[must_use]
    pub fn with_insecure(mut self, host: &str) -> Registries {
        let config = self.0.entry(host.to_owned()).or_default();
        (config.insecure, config.http) = (Some(true), Some(true));
        self
    }

    /// The hosts to pull `domain` from, in order: mirrors, then the registry itself, which is also where pushes go.
    pub(crate) fn endpoints(&self, domain: &str) -> Result<Vec<Endpoint>, Error> {
        let config = self.0.get(domain);
        let mut endpoints = Vec::new();
        for mirror in config.iter().flat_map(|config| &config.mirrors) {
            let (host, path) = split_mirror(mirror);
            let api = if path.is_empty() { API.to_owned() } else { format!("{API}/{path}") };
            let namespace = (host != registry_host(domain)).then(|| domain.to_owned());
            endpoints.push(self.endpoint(host, host, api, namespace)?);
        }
        endpoints.push(self.endpoint(domain, registry_host(domain), API.to_owned(), None)?);
        Ok(endpoints)
    }

    fn endpoint(&self, key: &str, host: &str, api: String, namespace: Option<String>) -> Result<Endpoint, Error> {
        let default = RegistryConfig::default();
        let config = self.0.get(key).unwrap_or(&default);
        let insecure = config.insecure == Some(true);
        let schemes = match config.http {
            Some(true) if insecure => Schemes::Either,
            Some(true) => Schemes::Http,
            None if is_loopback(host) => Schemes::Either,
            None | Some(false) => Schemes::Https,
        };
        let identity = config.identity(if insecure { Verify::Skip } else { Verify::Full })?;
        Ok(Endpoint { host: host.to_owned(), api, schemes, identity, namespace })
    }
}

impl RegistryConfig {
    fn identity(&self, verify: Verify) -> Result<TlsIdentity, Error> {
        let mut identity = TlsIdentity { extra_roots: self.ca.clone(), keypairs: self.keypairs.clone(), verify };
        for dir in &self.tls_config_dirs {
            read_certs_dir(dir, &mut identity).map_err(|source| Error::Config { path: dir.clone(), source })?;
        }
        Ok(identity)
    }
}

/// A directory that is missing or closed to us holds no certificates, as for BuildKit.
fn read_certs_dir(dir: &Path, identity: &mut TlsIdentity) -> std::io::Result<()> {
    use std::io::ErrorKind::{NotFound, PermissionDenied};
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => identity.extra_roots.push(path),
            Some("cert") => identity.keypairs.push(KeyPair { key: path.with_extension("key"), certificate: path }),
            _ => {}
        }
    }
    Ok(())
}

/// Docker Hub's name is not the name of its registry.
pub(crate) fn registry_host(domain: &str) -> &str {
    match domain {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// `https://host:port/some/path/` is host `host:port` and path `some/path`; the scheme says nothing (BuildKit's rule:
/// `http` is a setting of the mirror's own table).
fn split_mirror(mirror: &str) -> (&str, &str) {
    let rest = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    (host, path.trim_matches('/'))
}

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(ip, _)| ip),
        None if host.matches(':').count() > 1 => host,
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether an authority states its port.
pub(crate) fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}
