//! Frontend options, as `buildctl --opt` and buildx send them.
//!
//! An option that upstream knows and we do not is refused by name; so is one that nobody knows, with the nearest one
//! that somebody does. What belongs to others (attestations, cache imports, ..) is let through.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base::Platform;
use llb::build::ResolveMode;
use llb::pb;

use crate::error::{Error, Result, Unsupported};
use crate::instruction::{csv_fields, parse_bool};
use crate::lint::{SETTINGS_HINT, Settings};
use crate::resources::Resources;

/// Options, understood.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Names that mean nothing here; a client may be newer than we are.
    pub unknown: Vec<String>,
    /// `filename`.
    pub filename: String,
    /// `dockerfilekey`: where the Dockerfile is, even if the context is remote.
    pub dockerfile_name: Option<String>,
    /// The remote context, by the name that `contextkey` gives.
    pub remote_context: Option<String>,
    /// `contextsubdir`.
    pub context_subdir: Option<String>,
    /// `target`.
    pub target: Option<String>,
    /// `build-arg:`.
    pub build_args: BTreeMap<String, String>,
    /// `label:`.
    pub labels: BTreeMap<String, String>,
    /// `platform`, normalised.
    pub platforms: Vec<Platform>,
    /// `multi-platform`, or several platforms.
    pub multi_platform: bool,
    /// `no-cache`.
    pub no_cache: NoCache,
    /// `image-resolve-mode`.
    pub resolve_mode: ResolveMode,
    /// `add-hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// `hostname`.
    pub hostname: String,
    /// `force-network-mode`.
    pub network: Option<pb::NetMode>,
    /// `shm-size`, in bytes.
    pub shm_size: i64,
    /// `ulimit`.
    pub ulimits: Vec<pb::Ulimit>,
    /// `cgroup-parent`.
    pub cgroup_parent: String,
    /// `memory` and its kind.
    pub resources: Resources,
    /// `build-arg:BUILDKIT_CACHE_MOUNT_NS`.
    pub cache_namespace: String,
    /// `build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR`.
    pub keep_git_dir: bool,
    /// `build-arg:BUILDKIT_SYNTAX`, unless this is a gateway's call already.
    pub syntax: Option<String>,
    /// `requestid`: a question about the Dockerfile, which is not built.
    pub request: Option<String>,
    /// Called by a gateway: the file's own `# syntax` counts no more.
    pub from_gateway: bool,
    /// `build-arg:BUILDKIT_DOCKERFILE_CHECK`.
    pub(crate) check: Option<Settings>,
    /// `context:NAME`.
    pub contexts: BTreeMap<String, String>,
    /// `input-metadata:NAME`.
    pub input_metadata: BTreeMap<String, String>,
    /// `local-sessionid:NAME`.
    pub local_sessions: BTreeMap<String, String>,
    /// `sharedkey:localdir:NAME`.
    pub shared_keys: BTreeMap<String, String>,
}

/// Which stages run again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These, whatever the case of their names.
    Stages(Vec<String>),
}

impl NoCache {
    /// Whether a stage runs again.
    pub fn covers(&self, stage: Option<&str>) -> bool {
        match self {
            NoCache::None => false,
            NoCache::All => true,
            NoCache::Stages(names) => names.iter().any(|name| name.eq_ignore_ascii_case(stage.unwrap_or_default())),
        }
    }

    /// What is named as a stage and is none of these.
    pub fn unknown(&self, stages: &[Option<&str>]) -> Vec<&str> {
        let NoCache::Stages(names) = self else { return Vec::new() };
        let is_one = |name: &&String| stages.iter().flatten().any(|stage| name.eq_ignore_ascii_case(stage));
        names.iter().filter(|name| !is_one(name)).map(String::as_str).collect()
    }
}

const KNOWN: [&str; 25] = [
    "requestid",
    "filename",
    "dockerfilekey",
    "contextkey",
    "contextsubdir",
    "context",
    "target",
    "platform",
    "multi-platform",
    "no-cache",
    "image-resolve-mode",
    "add-hosts",
    "hostname",
    "force-network-mode",
    "shm-size",
    "ulimit",
    "cgroup-parent",
    "memory",
    "memswap",
    "cpushares",
    "cpuperiod",
    "cpuquota",
    "cpusetcpus",
    "cpusetmems",
    "frontend.caps",
];
/// Meant for others: the engine, a gateway, provenance.
const PASSED: [&str; 6] =
    ["cmdline", "source", "vcs:source", "vcs:revision", "vcs:localdir:context", "vcs:localdir:dockerfile"];
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

impl Options {
    /// Reads options.
    pub fn parse(given: &BTreeMap<String, String>) -> Result<Options> {
        let mut options = Options { filename: "Dockerfile".to_owned(), ..Options::default() };
        let mut multi = None;
        let remote = given.get("contextkey").map_or("context", String::as_str);
        for (name, value) in given.iter().filter(|(name, _)| *name != remote) {
            if let Some((map, key)) = options.prefixed(name) {
                map.insert(key.to_owned(), value.clone());
                continue;
            }
            options.set(name, value, &mut multi)?;
        }
        let arg = |name: &str| options.build_args.get(name).filter(|value| !value.is_empty());
        if let Some(value) = arg("BUILDKIT_MULTI_PLATFORM") {
            multi = Some(boolean("build-arg:BUILDKIT_MULTI_PLATFORM", value)?);
        }
        if let Some(value) = arg("BUILDKIT_SANDBOX_HOSTNAME") {
            options.hostname = value.clone();
        }
        if arg("BUILDKIT_DISABLE_FILEOP").is_some_and(|value| parse_bool(value) == Some(true)) {
            return Err(Error::option("build-arg:BUILDKIT_DISABLE_FILEOP", "is not supported any more"));
        }
        options.cache_namespace = arg("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default();
        options.keep_git_dir =
            arg("BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(|value| parse_bool(value)).unwrap_or(false);
        options.syntax = options.build_args.get("BUILDKIT_SYNTAX").cloned().filter(|_| !given.contains_key("cmdline"));
        options.from_gateway = given.contains_key("cmdline");
        options.check = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(|value| checks(value)).transpose()?;
        options.remote_context = given.get(remote).filter(|value| !value.is_empty()).cloned();
        options.multi_platform = match multi {
            Some(false) if options.platforms.len() > 1 => {
                return Err(Error::option("multi-platform", "is false, and several platforms are asked for"));
            }
            Some(multi) => multi,
            None => options.platforms.len() > 1,
        };
        Ok(options)
    }

    /// The map that an option belongs to, and its name there.
    fn prefixed<'a>(&mut self, name: &'a str) -> Option<(&mut BTreeMap<String, String>, &'a str)> {
        let maps: [(&str, &mut BTreeMap<String, String>); 6] = [
            ("build-arg:", &mut self.build_args),
            ("label:", &mut self.labels),
            ("context:", &mut self.contexts),
            ("input-metadata:", &mut self.input_metadata),
            ("local-sessionid:", &mut self.local_sessions),
            ("sharedkey:localdir:", &mut self.shared_keys),
        ];
        maps.into_iter().find_map(|(prefix, map)| Some((map, name.strip_prefix(prefix)?)))
    }

    fn set(&mut self, name: &str, value: &str, multi: &mut Option<bool>) -> Result<()> {
        match name {
            "filename" => value.clone_into(&mut self.filename),
            "dockerfilekey" => self.dockerfile_name = Some(value.to_owned()),
            "contextkey" | "context" => {}
            "contextsubdir" => self.context_subdir = Some(value.to_owned()),
            "target" => self.target = Some(value.to_owned()).filter(|target| !target.is_empty()),
            "platform" => self.platforms = platforms(value)?,
            "multi-platform" if value.is_empty() => {}
            "multi-platform" => *multi = Some(boolean(name, value)?),
            "no-cache" if value.is_empty() => self.no_cache = NoCache::All,
            "no-cache" => self.no_cache = NoCache::Stages(value.split(',').map(str::to_owned).collect()),
            "image-resolve-mode" => self.resolve_mode = resolve_mode(value)?,
            "add-hosts" => self.extra_hosts = extra_hosts(value)?,
            "hostname" => value.clone_into(&mut self.hostname),
            "force-network-mode" => self.network = network(value)?,
            "shm-size" if value.is_empty() => {}
            "shm-size" => {
                let wrong = |_| Error::option(name, format!("`{value}` is not a number of bytes"));
                self.shm_size = value.parse().map_err(wrong)?;
            }
            "ulimit" => self.ulimits = ulimits(value)?,
            "cgroup-parent" => value.clone_into(&mut self.cgroup_parent),
            name if Resources::NAMES.contains(&name) => self.resources.set(name, value)?,
            "frontend.caps" => caps(value)?,
            "requestid" => self.request = Some(value.to_owned()).filter(|request| !request.is_empty()),
            name if PASSED.contains(&name) || name.starts_with("vcs:") => {}
            // The engine reads and writes caches.
            "cache-from" | "cache-imports" => {}
            name if name.starts_with("attest:") => check_attestation(name, value)?,
            "devices" => {
                return Err(Error::option(name, "is not supported yet"));
            }
            name => {
                let error = Error::option(name, "is not an option of the Dockerfile frontend").suggest(name, KNOWN);
                if error.get_hint().is_some() {
                    return Err(error);
                }
                self.unknown.push(name.to_owned());
            }
        }
        Ok(())
    }
}

/// Refuses an option that asks for an attestation. Of provenance, what buildx asks for unless told otherwise adds nothing to
/// the image (`inline-only`); more is not there yet.
pub fn check_attestation(name: &str, value: &str) -> Result<()> {
    if name != "attest:provenance" {
        return Err(Error::option(name, "is not supported yet"));
    }
    let (mut is_off, mut is_inline) = (false, false);
    for field in csv_fields(value).unwrap_or_default() {
        match field.split_once('=') {
            Some(("disabled", value)) => is_off = parse_bool(value) == Some(true),
            Some(("inline-only", value)) => is_inline = parse_bool(value) == Some(true),
            _ => {}
        }
    }
    if is_off || is_inline || parse_bool(value) == Some(false) {
        return Ok(());
    }
    Err(Error::option(name, "is not supported yet").hint("`false` is accepted"))
}

fn checks(value: &str) -> Result<Settings> {
    let wrong = |what| Error::option("build-arg:BUILDKIT_DOCKERFILE_CHECK", what).hint(SETTINGS_HINT);
    Settings::parse(value).map_err(wrong)
}

fn boolean(name: &str, value: &str) -> Result<bool> {
    parse_bool(value).ok_or_else(|| Error::option(name, format!("`{value}` is not true or false")))
}

fn platforms(value: &str) -> Result<Vec<Platform>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let one = |text: &str| match text.parse::<Platform>() {
        Err(error) => Err(Error::option("platform", error.to_string())),
        Ok(platform) if platform.os == "windows" => {
            Err(Error::option("platform", format!("`{text}`: Windows images are not supported yet")))
        }
        Ok(platform) => Ok(platform.normalize()),
    };
    value.split(',').map(one).collect()
}

fn resolve_mode(value: &str) -> Result<ResolveMode> {
    match value {
        "" | "default" => Ok(ResolveMode::Default),
        "pull" => Ok(ResolveMode::ForcePull),
        "local" => Ok(ResolveMode::PreferLocal),
        other => {
            let error = Error::option("image-resolve-mode", format!("`{other}` is not default, pull or local"));
            Err(error.suggest(other, ["default", "pull", "local"]))
        }
    }
}

fn network(value: &str) -> Result<Option<pb::NetMode>> {
    match value {
        "" => Ok(None),
        "sandbox" => Ok(Some(pb::NetMode::Unset)),
        "host" => Ok(Some(pb::NetMode::Host)),
        "none" => Ok(Some(pb::NetMode::None)),
        other => {
            let error = Error::option("force-network-mode", format!("`{other}` is not sandbox, host or none"));
            Err(error.suggest(other, ["sandbox", "host", "none"]))
        }
    }
}

/// The fields of a value; none for an empty value.
fn list(name: &str, value: &str) -> Result<Vec<String>> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    csv_fields(value).map_err(|what| Error::option(name, what))
}

fn extra_hosts(value: &str) -> Result<Vec<(String, String)>> {
    let one = |field: String| {
        let field = field.to_lowercase();
        let (host, address) = field
            .split_once('=')
            .ok_or_else(|| Error::option("add-hosts", format!("`{field}` is not name=address")))?;
        let address: IpAddr =
            address.parse().map_err(|_| Error::option("add-hosts", format!("`{address}` is not an address")))?;
        Ok((host.to_owned(), address.to_canonical().to_string()))
    };
    list("add-hosts", value)?.into_iter().map(one).collect()
}

const LIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(value: &str) -> Result<Vec<pb::Ulimit>> {
    list("ulimit", value)?.iter().map(|field| ulimit(field)).collect()
}

fn ulimit(field: &str) -> Result<pb::Ulimit> {
    let wrong = |what: String| Error::option("ulimit", what);
    let (name, limits) =
        field.split_once('=').ok_or_else(|| wrong(format!("`{field}` is not name=soft or name=soft:hard")))?;
    if !LIMITS.contains(&name) {
        return Err(wrong(format!("`{name}` is not a limit")).suggest(name, LIMITS));
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| wrong(format!("`{text}` is not a number")));
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(wrong(format!("the soft limit of `{field}` is above its hard limit")));
    }
    Ok(pb::Ulimit { name: name.to_owned(), soft, hard })
}

/// What the client wants the frontend to know. `+forward` marks what a newer frontend may handle instead.
fn caps(value: &str) -> Result<()> {
    for cap in value.split(',').filter(|cap| !cap.is_empty()) {
        let name = cap.split('+').next().unwrap_or(cap);
        if !CAPS.contains(&name) {
            return Err(Unsupported::Cap(name.to_owned()).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        Options::parse(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn options_are_understood() {
        let o = parse(&[
            ("platform", "linux/x86_64,linux/arm64/v8"),
            ("no-cache", "a,B"),
            ("add-hosts", "Db=1.2.3.4,six=::ffff:10.0.0.1"),
            ("ulimit", "nofile=1:2,core=0"),
            ("build-arg:BUILDKIT_SANDBOX_HOSTNAME", "box"),
        ])
        .expect("valid");
        assert_eq!(o.platforms.iter().map(ToString::to_string).collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
        assert!(o.multi_platform && o.no_cache.covers(Some("b")) && !o.no_cache.covers(None));
        assert_eq!(o.no_cache.unknown(&[Some("a"), None]), ["B"]);
        assert_eq!(o.extra_hosts, [("db".into(), "1.2.3.4".into()), ("six".into(), "10.0.0.1".into())]);
        assert_eq!((o.ulimits[0].soft, o.ulimits[0].hard, o.ulimits[1].hard), (1, 2, 0));
        assert_eq!(o.hostname, "box");
        let o = parse(&[("contextkey", "ctx"), ("ctx", "https://example.com/a.git")]).expect("valid");
        assert_eq!(o.remote_context.as_deref(), Some("https://example.com/a.git"));
        assert!(parse(&[("no-cache", "")]).expect("valid").no_cache.covers(None));
        assert_eq!(NoCache::All.unknown(&[None]), [""; 0]);
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (name, value, part) in [
            ("platfrom", "x", "option `platfrom` is not an option"),
            ("platform", "x/y/z/w", "is not a platform"),
            ("platform", "windows/amd64", "not supported yet"),
            ("memory", "64m", "`memory`: `64m` is not a number of bytes above 0"),
            ("devices", "x", "`devices` is not supported yet"),
            ("attest:sbom", "", "`attest:sbom` is not supported yet"),
            ("attest:provenance", "mode=max", "`attest:provenance` is not supported yet"),
            ("add-hosts", "a", "not name=address"),
            ("add-hosts", "a=b", "not an address"),
            ("ulimit", "nofiles=1", "not a limit"),
            ("ulimit", "core=2:1", "above its hard limit"),
            ("shm-size", "64m", "not a number"),
            ("force-network-mode", "bridge", "not sandbox"),
            ("image-resolve-mode", "x", "not default"),
            ("multi-platform", "x", "not true or false"),
            (
                "frontend.caps",
                "moby.buildkit.frontend.other",
                "unsupported frontend capability moby.buildkit.frontend.other",
            ),
        ] {
            let error = parse(&[(name, value)]).expect_err(name);
            assert!(error.to_string().contains(part), "{error}");
        }
        for (name, value) in [
            ("attest:provenance", "mode=min,inline-only=true"),
            ("attest:provenance", "false"),
            ("attest:provenance", "disabled=true"),
            ("cache-imports", r#"[{"Type":"registry"}]"#),
            ("cache-from", "a"),
            ("build-arg:BUILDKIT_INLINE_CACHE", "1"),
        ] {
            assert!(parse(&[(name, value)]).is_ok(), "{name}={value}");
        }
        assert_eq!(parse(&[("platfrom", "")]).expect_err("unknown").get_hint(), Some("did you mean platform?"));
    }
}
