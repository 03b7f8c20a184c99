//! `buildctl build`, verbatim as BuildKit's users write it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use base::{Fault, Kind};
use clap::Args;
use engine::Frontend;
use http_client::{KeyPair, TlsIdentity, Verify};
use proto::Message as _;

use super::{Action, not_yet};
use crate::connect;
use crate::daemonless::signals::cancelled_by_signals;
use crate::daemonless::{BuildPlan, ImageLayout, Settings, run};
use crate::display::Mode;
use crate::environment::Environment;
use crate::metadata;
use crate::spec::cache::{Direction, caches};
use crate::spec::context::layouts;
use crate::spec::pairs::{frontend_options, locals};
use crate::spec::{allow, csv, invalid, output, policy, secret, ssh};

/// Build with a frontend, or from LLB on standard input.
///
/// buildctl-daemonless.sh build --frontend dockerfile.v0 --local context=. --local dockerfile=. --output
/// type=image,name=docker.io/username/image,push=true
#[derive(Clone, Debug, Default, Args)]
#[command(visible_alias = "b")]
pub struct BuildctlBuild {
    /// Where the result goes: type=image|oci|docker|tar|local,..; repeat it for several
    #[arg(long, short, value_name = "OUTPUT")]
    output: Vec<String>,
    /// What is shown: auto, plain, tty, quiet or rawjson
    #[arg(long, default_value = "auto", value_name = "MODE")]
    progress: String,
    /// Append progress to this file as JSON
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Directory that the build may read: name=DIR
    #[arg(long, value_name = "NAME=DIR")]
    local: Vec<String>,
    /// OCI layout whose images the build may read: name=DIR, for --opt context:x=oci-layout://name@DIGEST
    #[arg(long, value_name = "NAME=DIR")]
    oci_layout: Vec<String>,
    /// What makes the build's steps: dockerfile.v0 or gateway.v0
    #[arg(long, value_name = "NAME")]
    frontend: Option<String>,
    /// Option of the frontend: target=foo, build-arg:foo=bar, ..
    #[arg(long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Use nothing from the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    no_cache: bool,
    /// Cache to write: type=registry,ref=.. or type=local,dest=..
    #[arg(long, value_name = "CACHE")]
    export_cache: Vec<String>,
    /// Cache to read: type=registry,ref=.. or type=local,src=..
    #[arg(long, value_name = "CACHE")]
    import_cache: Vec<String>,
    /// Secret for the build: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// Right that the build asks for: network.host, security.insecure or device[=NAME]
    #[arg(long, value_name = "RIGHT")]
    allow: Vec<String>,
    /// SSH agent or keys for the build: default|ID[=SOCKET|=KEY,..][,raw=BOOL]
    #[arg(long, value_name = "SSH")]
    ssh: Vec<String>,
    /// Write digests and names of the result to this file as JSON
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Rules about sources, as JSON: which may be used, and which in the place of others
    #[arg(long, value_name = "FILE")]
    source_policy_file: Option<PathBuf>,
    /// Not supported yet: force the network through a proxy
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    proxy_network: bool,
    /// Write the build's reference to this file
    #[arg(long, value_name = "FILE")]
    ref_file: Option<PathBuf>,
    /// Certificates for the token server of a registry: host=https://HOST,ca=FILE,cert=FILE,key=FILE,insecure=BOOL
    #[arg(long, value_name = "TLS")]
    registry_auth_tlscontext: Vec<String>,
    /// Write counts of what came from the cache to stdout, stderr or this file, as JSON
    #[arg(long, value_name = "FILE")]
    debug_json_cache_metrics: Option<String>,
}

impl BuildctlBuild {
    /// Checks everything that can be checked without the engine.
    pub fn action(
        mut self,
        settings: impl FnOnce() -> Result<Settings, Fault>,
        environment: &Environment,
    ) -> Result<Action, Fault> {
        self.prepare_answers()?;
        self.refuse_what_is_not_there()?;
        let mut settings = settings()?;
        self.add_tls_contexts(&mut settings)?;
        let plan = self.plan(environment)?;
        Ok(Action::engine(|environment| async move {
            run::build(plan, &settings, &environment, cancelled_by_signals()?).await
        }))
    }

    /// The build by a daemon, in the trace of that `traceparent`.
    pub async fn by_daemon(
        mut self,
        channel: tonic::transport::Channel,
        environment: Environment,
        trace: &str,
    ) -> Result<(), run::Failure> {
        self.prepare_answers()?;
        self.refuse_what_is_not_there()?;
        let tokens = connect::tokens::fetcher(&environment, self.tls_identities()?);
        let plan = self.plan(&environment)?;
        ImageLayout::check(&plan.exports)?;
        let cancel = cancelled_by_signals()?;
        let out = Box::new(std::io::stderr());
        let solve = |request| connect::solve(channel, request, tokens, trace);
        run::drive(plan, &environment, out, cancel, solve).await
    }

    /// What an earlier build wrote nobody must take for this one's.
    fn prepare_answers(&mut self) -> Result<(), Fault> {
        for file in [&mut self.trace, &mut self.metadata_file, &mut self.ref_file] {
            *file = file.take().filter(|path| !path.as_os_str().is_empty());
        }
        metadata::prepare_all(self.metadata_file.iter().chain(&self.ref_file))
    }

    fn refuse_what_is_not_there(&self) -> Result<(), Fault> {
        for (flag, used) in [("--proxy-network", self.proxy_network)] {
            if used {
                return Err(not_yet(flag));
            }
        }
        Ok(())
    }

    /// How it is shown.
    pub(super) fn mode(&self, environment: &Environment) -> Result<Mode, Fault> {
        Mode::choose(&self.progress, environment)
    }

    /// What is meant.
    pub fn plan(&self, environment: &Environment) -> Result<BuildPlan, Fault> {
        let mut plan = BuildPlan::new(Frontend::default(), self.mode(environment)?);
        let secrets = self.secret.iter().map(|value| secret::secret(value, environment));
        plan.secrets = secrets.collect::<Result<_, _>>()?;
        plan.agents = ssh::agents(&self.ssh, environment)?;
        plan.entitlements = allow::entitlements(&self.allow)?;
        plan.exports =
            self.output.iter().map(|value| output::buildkit(value, environment)).collect::<Result<Vec<_>, _>>()?;
        output::expect_distinct(&plan.exports)?;
        plan.cache_exports = caches("--export-cache", Direction::Export, &self.export_cache, environment)?;
        plan.cache_imports = caches("--import-cache", Direction::Import, &self.import_cache, environment)?;
        let policy = self.source_policy_file.as_deref().filter(|path| !path.as_os_str().is_empty());
        plan.source_policy = policy.map(policy::read).transpose()?;
        plan.dirs = locals(&self.local)?;
        plan.layouts = layouts(&self.oci_layout)?;
        plan.trace = self.trace.clone();
        plan.cache_metrics = self.debug_json_cache_metrics.clone().filter(|to| !to.is_empty());
        plan.metadata_file = self.metadata_file.clone();
        plan.ref_file = self.ref_file.clone();
        let mut options = frontend_options(&self.opt, environment)?;
        plan.frontend = match self.frontend.as_deref().unwrap_or_default() {
            "" => Frontend::Llb { definition: self.definition(environment)?, options },
            name => {
                if self.no_cache {
                    options.insert("no-cache".to_owned(), String::new());
                }
                Frontend::Named { name: name.to_owned(), options, inputs: Default::default() }
            }
        };
        Ok(plan)
    }

    fn definition(&self, environment: &Environment) -> Result<Vec<u8>, Fault> {
        if environment.stdin_is_terminal {
            return Err(Fault::user("no --frontend is given, and standard input is a terminal")
                .hint("add --frontend dockerfile.v0, or pipe an LLB definition in"));
        }
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|error| Fault::because(Kind::User, "cannot read LLB from standard input", error))?;
        definition(bytes, self.no_cache)
    }

    /// Client and daemon are one here, so these certificates are the registry client's.
    fn add_tls_contexts(&self, settings: &mut Settings) -> Result<(), Fault> {
        for (host, identity) in self.tls_identities()? {
            let registry = settings.config.registry.entry(host).or_default();
            if identity.verify == Verify::Skip {
                registry.insecure = Some(true);
            }
            registry.ca.extend(identity.extra_roots);
            let pairs = identity.keypairs.into_iter();
            registry.keypair.extend(pairs.map(|pair| config::KeyPair { cert: pair.certificate, key: pair.key }));
        }
        Ok(())
    }

    /// How to speak TLS with who gives tokens, by registry.
    fn tls_identities(&self) -> Result<BTreeMap<String, TlsIdentity>, Fault> {
        const FLAG: &str = "--registry-auth-tlscontext";
        let mut identities: BTreeMap<String, TlsIdentity> = BTreeMap::new();
        for value in &self.registry_auth_tlscontext {
            let mut attrs = csv::attributes(FLAG, value)?;
            let mut take = |key: &str| attrs.remove(key).filter(|v| !v.is_empty());
            let host = take("host").ok_or_else(|| invalid(FLAG, value, "host= is missing"))?;
            let (ca, cert, key) = (take("ca"), take("cert"), take("key"));
            let insecure = take("insecure").as_deref().and_then(config::parse_bool) == Some(true);
            if cert.is_some() != key.is_some() {
                return Err(invalid(FLAG, value, "cert= and key= come together"));
            }
            if ca.is_none() && cert.is_none() && !insecure {
                return Err(invalid(FLAG, value, "one of ca=, cert= with key=, insecure=true is needed"));
            }
            let host = host.split_once("://").map_or(host.as_str(), |(_, host)| host);
            let host = host.split('/').next().unwrap_or(host);
            let identity = identities.entry(host.to_owned()).or_default();
            if insecure {
                identity.verify = Verify::Skip;
            }
            identity.extra_roots.extend(ca.map(PathBuf::from));
            if let (Some(certificate), Some(key)) = (cert, key) {
                identity.keypairs.push(KeyPair { certificate: certificate.into(), key: key.into() });
            }
        }
        Ok(identities)
    }
}

/// Checks a definition; with `no_cache` every op is marked. Ops keep their bytes: their digests are their names.
fn definition(bytes: Vec<u8>, no_cache: bool) -> Result<Vec<u8>, Fault> {
    let mut definition = proto::read_definition(&bytes)
        .map_err(|error| Fault::because(Kind::User, "standard input is no LLB definition", error))?;
    if definition.def.is_empty() {
        return Err(
            Fault::user("the LLB definition on standard input is empty").hint("give --frontend to build a Dockerfile")
        );
    }
    if !no_cache {
        return Ok(bytes);
    }
    for op in &definition.def {
        let metadata = definition.metadata.entry(base::Digest::of(op).to_string()).or_default();
        metadata.ignore_cache = true;
    }
    Ok(definition.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cache_marks_every_op_and_changes_none() {
        let given = proto::pb::Definition { def: vec![b"one".to_vec(), b"two".to_vec()], ..Default::default() };
        let marked = definition(given.encode_to_vec(), true).expect("a definition");
        let marked = proto::pb::Definition::decode(marked.as_slice()).expect("decodes");
        assert_eq!(marked.def, given.def);
        assert_eq!(marked.metadata.len(), 2);
        assert!(marked.metadata.values().all(|metadata| metadata.ignore_cache));
        assert_eq!(definition(given.encode_to_vec(), false).expect("a definition"), given.encode_to_vec());
        assert!(definition(Vec::new(), false).is_err());
        assert!(definition(b"FROM scratch".to_vec(), false).is_err());
    }
}
