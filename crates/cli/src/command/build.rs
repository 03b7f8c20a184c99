//! `hullworks build`: for people used to `docker build`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::{Fault, Kind};
use clap::Args;
use engine::{Entitlement, ExportRequest, Frontend};
use session::Output;
use tokio_util::sync::CancellationToken;

use super::build_limits::Limits;
use super::build_no_effect::{NoEffect, boolean};
use super::engine_args::EngineArgs;
use super::{Action, not_yet};
use crate::daemonless::signals::cancelled_by_signals;
use crate::daemonless::{BuildPlan, Call, Scratch, Stdin, dockerfile_on_stdin, read_stdin, run};
use crate::display::Mode;
use crate::environment::Environment;
use crate::metadata;
use crate::spec::cache::{Direction, caches};
use crate::spec::context::{NamedContext, build_context, is_remote};
use crate::spec::output::Export;
use crate::spec::pairs::{build_args, errno_text, labels, require_dir};
use crate::spec::{allow, call, docker, invalid, output, policy, proxies, secret, ssh};

/// Build an image from a Dockerfile.
///
/// Without --output or --push the result stays in the build cache.
#[derive(Clone, Debug, Default, Args)]
#[command(visible_alias = "b", args_override_self = true)]
pub struct Build {
    /// Directory that COPY and ADD read, or the address of a git repository (URL#REF:DIRECTORY) or archive; `-` reads
    /// standard input: a tar, which may be compressed, is the context, anything else a Dockerfile without context
    #[arg(value_name = "PATH", default_value = ".")]
    pub path: PathBuf,

    /// Name of the image, as host/name:tag; repeat it for several
    #[arg(long, short, value_name = "NAME")]
    pub tag: Vec<String>,
    /// Dockerfile, relative to the current directory; `-` reads standard input [default: PATH/Dockerfile]
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Stage to build [default: the last one]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Value for an ARG; NAME alone takes it from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Another directory, image or repository that FROM and --from can name: name=PATH, name=docker-image://REF,
    /// name=oci-layout://PATH[:TAG|@DIGEST], name=URL
    #[arg(long, value_name = "NAME=SOURCE")]
    pub build_context: Vec<String>,
    /// Platform to build for, such as linux/arm64; repeat it or use commas for several [default:
    /// $DOCKER_DEFAULT_PLATFORM, else this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Vec<String>,
    /// Label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Annotation of the image's manifest
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,

    /// Where the result goes: a directory, `-` (a tar on standard output), or
    /// type=image|oci|docker|tar|local,dest=PATH,..; repeat it for several
    #[arg(long, short, value_name = "OUTPUT", allow_hyphen_values = true, help_heading = "Output")]
    pub output: Vec<String>,
    /// Push to the registry that each --tag names
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Output")]
    pub push: bool,
    /// Not offered: there is no docker daemon to load into
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Output")]
    pub load: bool,
    /// Show nothing but the image's id
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Output")]
    pub quiet: bool,
    /// What is shown: auto, plain, tty, quiet or rawjson [default: auto]
    #[arg(long, value_name = "MODE", help_heading = "Output")]
    pub progress: Option<String>,
    /// Write digests and names of the result to this file as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub metadata_file: Option<PathBuf>,
    /// Write the image's id to this file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub iidfile: Option<PathBuf>,

    /// Secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SECRET", help_heading = "Steps")]
    pub secret: Vec<String>,
    /// SSH agent or keys for RUN --mount=type=ssh: default|ID[=SOCKET|=KEY,..][,raw=BOOL]
    #[arg(long, value_name = "SSH", help_heading = "Steps")]
    pub ssh: Vec<String>,
    /// Network of RUN steps: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default", help_heading = "Steps")]
    pub network: String,
    /// Right that the build asks for: network.host, security.insecure or device[=NAME]
    #[arg(long, value_name = "RIGHT", help_heading = "Steps")]
    pub allow: Vec<String>,
    /// Line for /etc/hosts of RUN steps: host:ip
    #[arg(long, value_name = "HOST:IP", help_heading = "Steps")]
    pub add_host: Vec<String>,
    /// Size of /dev/shm of RUN steps, such as 128m
    #[arg(long, value_name = "SIZE", help_heading = "Steps")]
    pub shm_size: Option<String>,
    /// Resource limit of RUN steps: name=soft[:hard]
    #[arg(long, value_name = "LIMIT", help_heading = "Steps")]
    pub ulimit: Vec<String>,
    /// Parent cgroup of RUN steps
    #[arg(long, value_name = "CGROUP", help_heading = "Steps")]
    pub cgroup_parent: Option<String>,

    /// Use nothing from the cache
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Cache")]
    pub no_cache: bool,
    /// Use nothing from the cache in these stages
    #[arg(long, value_name = "STAGE", help_heading = "Cache")]
    pub no_cache_filter: Vec<String>,
    /// Ask registries for newer versions of base images
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Cache")]
    pub pull: bool,
    /// Cache to read: an image reference or type=..
    #[arg(long, value_name = "CACHE", help_heading = "Cache")]
    pub cache_from: Vec<String>,
    /// Cache to write: an image reference or type=..
    #[arg(long, value_name = "CACHE", help_heading = "Cache")]
    pub cache_to: Vec<String>,

    /// Attestation about the result; only `false` is supported yet
    #[arg(long, value_name = "VALUE", help_heading = "Output")]
    pub provenance: Option<String>,
    /// Attestation about the result; only `false` is supported yet
    #[arg(long, value_name = "VALUE", help_heading = "Output")]
    pub sbom: Option<String>,
    #[arg(long, hide = true)]
    attest: Vec<String>,
    #[arg(long, hide = true)]
    builder: Option<String>,
    /// Ask something about the Dockerfile in the place of a build: check, outline or targets, with ,format=json as JSON
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    call: Option<String>,
    /// Only look for what may not be meant, as --call=check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_parser = boolean, hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = "Output")]
    check: bool,

    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    no_effect: NoEffect,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Who misses a file may have forgotten that there are none.
fn without_context(failure: run::Failure) -> run::Failure {
    let run::Failure { fault, steps } = failure;
    let is_missing = fault.kind() == Kind::User && fault.cause().ends_with("not found") && fault.get_hint().is_none();
    let fault = match is_missing {
        true => fault.hint("with `-` there is no context: COPY and ADD find only what other stages and images have"),
        false => fault,
    };
    run::Failure { fault, steps }
}

impl Build {
    /// Checks everything that can be checked without the engine.
    pub fn action(self, environment: &Environment) -> Result<Action, Fault> {
        metadata::prepare_all(self.metadata_file.iter().chain(&self.iidfile))?;
        self.refuse_what_is_not_there()?;
        let mut plan = self.plan(environment)?;
        let mut settings = self.engine.settings(environment)?;
        // Who may start the engine may also grant rights: there is nobody else to ask.
        settings.config.insecure_entitlements.extend(plan.entitlements.iter().map(entitlement_name));
        let is_question = self.check || self.call.is_some();
        if self.output.is_empty() && !self.push && !is_question && plan.mode != Mode::Quiet {
            settings.warnings.push(
                "no output is given: the result stays in the build cache; add --push, or --output type=oci,dest=image.tar"
                    .to_owned(),
            );
        }
        settings.warnings.extend(self.no_effect.warnings());
        self.expect_dockerfile()?;
        Ok(Action::engine(move |environment| async move {
            let cancel = cancelled_by_signals()?;
            self.add_stdin(&mut plan, &cancel).await?;
            // A Dockerfile on standard input is alone in a directory that is not the context's.
            let has_context = self.path != Path::new("-") || plan.dirs.get("context") == plan.dirs.get("dockerfile");
            run::build(plan, &settings, &environment, cancel).await.map_err(|failure| match has_context {
                true => failure,
                false => without_context(failure),
            })
        }))
    }

    /// The commonest mistake of all, told in the terms of this command.
    fn expect_dockerfile(&self) -> Result<(), Fault> {
        // The frontend tries both names. A link that leads nowhere is its business too.
        let is_there = |name: &str| self.path.join(name).symlink_metadata().is_ok();
        let is_elsewhere = self.path == Path::new("-") || is_remote(&self.path.to_string_lossy());
        if self.file.is_some() || is_elsewhere || is_there("Dockerfile") || is_there("dockerfile") {
            return Ok(());
        }
        let text = format!("failed to read dockerfile: there is no `Dockerfile` in `{}`", self.path.display());
        Err(Fault::user(text).hint("name it with --file; PATH is the directory that COPY reads"))
    }

    fn refuse_what_is_not_there(&self) -> Result<(), Fault> {
        if self.load {
            return Err(Fault::user("--load is not offered: there is no docker daemon to load into")
                .hint("write an archive with --output type=docker,dest=image.tar, then `docker load -i image.tar`"));
        }
        let is_off = |value: &String| value.split(',').any(|field| field == "disabled=true");
        if !self.attest.iter().all(is_off) {
            return Err(not_yet("--attest").hint("with disabled=true it is accepted"));
        }
        for (flag, value) in [("--provenance", &self.provenance), ("--sbom", &self.sbom)] {
            if value.as_deref().is_some_and(|value| config::parse_bool(value) != Some(false)) {
                return Err(not_yet(flag).hint(format!("{flag}=false is accepted")));
            }
        }
        if self.builder.is_some() {
            return Err(Fault::user("--builder is not offered: hullworks builds in this process"));
        }
        Ok(())
    }

    /// What is meant.
    pub fn plan(&self, environment: &Environment) -> Result<BuildPlan, Fault> {
        let progress = if self.quiet { "quiet" } else { self.progress.as_deref().unwrap_or("auto") };
        let mode = Mode::choose(progress, environment)?;
        let mut plan = BuildPlan::new(Frontend::default(), mode);
        let mut options = self.options(environment)?;
        self.add_context(&mut plan, &mut options)?;
        self.add_named_contexts(&mut plan, &mut options)?;
        match self.question()? {
            None => plan.exports = self.exports(environment, mode)?,
            Some((request, call)) => {
                options.insert("requestid".to_owned(), request.to_owned());
                plan.call = call;
            }
        }
        plan.cache_imports = caches("--cache-from", Direction::Import, &self.cache_from, environment)?;
        plan.cache_exports = caches("--cache-to", Direction::Export, &self.cache_to, environment)?;
        plan.entitlements = allow::entitlements(&self.allow)?;
        plan.source_policy = environment.path(policy::VARIABLE).as_deref().map(policy::read).transpose()?;
        for value in &self.secret {
            let (id, source) = secret::secret(value, environment)?;
            plan.secrets.insert(id, source);
        }
        plan.agents = ssh::agents(&self.ssh, environment)?;
        if options.get("force-network-mode").is_some_and(|mode| mode == "host")
            && !plan.entitlements.contains(&Entitlement::NetworkHost)
        {
            plan.entitlements.push(Entitlement::NetworkHost);
        }
        plan.metadata_file.clone_from(&self.metadata_file);
        plan.iid_file.clone_from(&self.iidfile);
        plan.print_id = mode == Mode::Quiet;
        plan.sum_up_warnings = true;
        plan.frontend = Frontend::Named { name: "dockerfile.v0".to_owned(), options, inputs: BTreeMap::new() };
        Ok(plan)
    }

    /// What the Dockerfile is asked in the place of a build.
    fn question(&self) -> Result<Option<(&'static str, Call)>, Fault> {
        match (self.check, self.call.as_deref()) {
            (true, None) => call::call("check"),
            (true, Some(_)) => Err(Fault::user("--check and --call exclude each other")),
            (false, Some(value)) => call::call(value),
            (false, None) => Ok(None),
        }
    }

    /// The frontend's options, but for those about contexts.
    fn options(&self, environment: &Environment) -> Result<BTreeMap<String, String>, Fault> {
        let mut options = build_args(&self.build_arg, environment)?;
        let proxies = environment.docker_config_dir().map(|dir| proxies::build_args(&dir)).unwrap_or_default();
        proxies::add(&mut options, proxies);
        options.extend(labels(&self.label)?);
        let mut set = |key: &str, value: String| {
            if !value.is_empty() {
                options.insert(key.to_owned(), value);
            }
        };
        set("target", self.target.clone().unwrap_or_default());
        let default_platform: Vec<String> =
            environment.get("DOCKER_DEFAULT_PLATFORM").map(str::to_owned).into_iter().collect();
        set("platform", docker::platforms(if self.platform.is_empty() { &default_platform } else { &self.platform })?);
        set("add-hosts", docker::add_hosts(&self.add_host)?);
        set("ulimit", docker::ulimits(&self.ulimit)?);
        set("shm-size", self.shm_size.as_deref().map(docker::shm_size).transpose()?.unwrap_or_default());
        for (key, value) in self.limits.options()? {
            set(key, value);
        }
        set("cgroup-parent", self.cgroup_parent.clone().unwrap_or_default());
        set("force-network-mode", docker::network(&self.network)?.unwrap_or_default().to_owned());
        set("image-resolve-mode", if self.pull { "pull".to_owned() } else { String::new() });
        match (self.no_cache, docker::stages(&self.no_cache_filter)?) {
            (true, stages) if !stages.is_empty() => {
                return Err(Fault::user("--no-cache and --no-cache-filter exclude each other"));
            }
            (true, _) => {
                options.insert("no-cache".to_owned(), String::new());
            }
            (false, stages) if !stages.is_empty() => {
                options.insert("no-cache".to_owned(), stages.join(","));
            }
            (false, _) => {}
        }
        Ok(options)
    }

    /// Shares the context and the Dockerfile's directory.
    fn add_context(&self, plan: &mut BuildPlan, options: &mut BTreeMap<String, String>) -> Result<(), Fault> {
        let stdin = Path::new("-");
        let path = self.path.to_string_lossy();
        if self.path == stdin {
            // `--file` is a path in an archive.
            match self.file.as_deref().map(Path::to_str) {
                Some(None) => return Err(Fault::user("the name of --file is not UTF-8")),
                Some(Some("-")) => {
                    return Err(Fault::user("standard input cannot be both the context and the Dockerfile"));
                }
                Some(Some(file)) => drop(options.insert("filename".to_owned(), file.to_owned())),
                None => {}
            }
            return Ok(());
        }
        if is_remote(&path) {
            if self.file.as_deref() == Some(stdin) {
                return Err(not_yet(&format!(
                    "a Dockerfile on standard input for a context from elsewhere (`{path}`)"
                )));
            }
            options.insert("context".to_owned(), path.into_owned());
            if let Some(file) = &self.file {
                let name = file.to_str().ok_or_else(|| Fault::user("the name of --file is not UTF-8"))?;
                options.insert("filename".to_owned(), name.to_owned());
            }
            return Ok(());
        }
        require_dir("PATH", &path, &self.path)?;
        plan.dirs.insert("context".to_owned(), self.path.clone());
        match &self.file {
            None => {
                plan.dirs.insert("dockerfile".to_owned(), self.path.clone());
            }
            Some(file) if file == stdin => {}
            Some(file) => {
                let shown = file.to_string_lossy();
                let meta = std::fs::metadata(file)
                    .map_err(|error| invalid("--file", &shown, format!("`{shown}`: {}", errno_text(&error))))?;
                let name = file.file_name().filter(|_| !meta.is_dir());
                let name = name.ok_or_else(|| invalid("--file", &shown, "it is a directory"))?;
                let name = name.to_str().ok_or_else(|| invalid("--file", &shown, "its name is not UTF-8"))?;
                options.insert("filename".to_owned(), name.to_owned());
                let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
                plan.dirs.insert("dockerfile".to_owned(), dir.to_owned());
            }
        }
        Ok(())
    }

    /// Shares what standard input holds, if it is asked for. Whoever sends it may take their time: a signal ends that, and
    /// so it is read when signals are listened to.
    async fn add_stdin(&self, plan: &mut BuildPlan, cancel: &CancellationToken) -> Result<(), Fault> {
        let stdin = Path::new("-");
        if self.path != stdin {
            if self.file.as_deref() == Some(stdin) {
                let dockerfile = read_stdin(cancel, |input, _| dockerfile_on_stdin(input)).await?;
                plan.dirs.insert("dockerfile".to_owned(), dockerfile.path().to_owned());
                plan.scratch.push(dockerfile);
            }
            return Ok(());
        }
        match read_stdin(cancel, Stdin::read).await? {
            Stdin::Context(context) => {
                for share in ["context", "dockerfile"] {
                    plan.dirs.insert(share.to_owned(), context.path().to_owned());
                }
                plan.scratch.push(context);
            }
            Stdin::Dockerfile(_) if self.file.is_some() => {
                return Err(Fault::user("two Dockerfiles: one on standard input, and that of --file")
                    .hint("leave out --file, or name a directory in the place of `-`"));
            }
            Stdin::Dockerfile(dockerfile) => {
                plan.dirs.insert("dockerfile".to_owned(), dockerfile.path().to_owned());
                let empty = Scratch::new()?;
                plan.dirs.insert("context".to_owned(), empty.path().to_owned());
                plan.scratch.extend([dockerfile, empty]);
            }
        }
        Ok(())
    }

    fn add_named_contexts(&self, plan: &mut BuildPlan, options: &mut BTreeMap<String, String>) -> Result<(), Fault> {
        for value in &self.build_context {
            let (name, context) = build_context(value)?;
            let target = match context {
                NamedContext::Reference(reference) => reference,
                NamedContext::Directory { share, path } => {
                    let target = format!("local:{share}");
                    plan.dirs.insert(share, path);
                    target
                }
                NamedContext::Layout { share, path, digest } => {
                    let target = format!("oci-layout://{share}@{digest}");
                    plan.layouts.insert(share, path);
                    target
                }
            };
            options.insert(format!("context:{name}"), target);
        }
        Ok(())
    }

    /// Outputs with the names of --tag, and --push.
    fn exports(&self, environment: &Environment, mode: Mode) -> Result<Vec<Export>, Fault> {
        let exports = self.output.iter().filter_map(|value| output::docker(value, environment).transpose());
        let mut exports = exports.collect::<Result<Vec<_>, _>>()?;
        output::expect_distinct(&exports)?;
        if self.push {
            let mut pushed = false;
            for export in exports.iter_mut().filter(|export| export.request.kind == "image") {
                export.request.attrs.insert("push".to_owned(), "true".to_owned());
                pushed = true;
            }
            if !pushed {
                let attrs = BTreeMap::from([("push".to_owned(), "true".to_owned())]);
                let request = ExportRequest { kind: "image".to_owned(), attrs };
                exports.push(Export { request, output: Output::None });
            }
        }
        let has_id = exports.iter().any(|export| matches!(export.request.kind.as_str(), "image" | "oci" | "docker"));
        if !has_id && (self.iidfile.is_some() || mode == Mode::Quiet && self.output.is_empty()) {
            // Who asks for the id asks for the image: it is made, and stays in the store.
            let request = ExportRequest { kind: "image".to_owned(), attrs: BTreeMap::new() };
            exports.push(Export { request, output: Output::None });
        }
        let tags = self.tag.iter().map(|tag| docker::tag(tag)).collect::<Result<Vec<_>, _>>()?;
        for Export { request, .. } in &mut exports {
            if !tags.is_empty() && matches!(request.kind.as_str(), "image" | "oci" | "docker") {
                request.attrs.insert("name".to_owned(), tags.join(","));
            }
            for annotation in self.annotation.iter().filter(|_| matches!(request.kind.as_str(), "image" | "oci")) {
                request.attrs.extend(docker::annotation(annotation)?);
            }
            let attrs = &request.attrs;
            let push = attrs.get("push").and_then(|text| config::parse_bool(text)) == Some(true);
            let is_named = |key: &str| attrs.get(key).is_some_and(|name| !name.is_empty());
            if push && !is_named("name") && !is_named("dangling-name-prefix") {
                return Err(Fault::user("a push needs a name").hint("add --tag host/name:tag"));
            }
        }
        Ok(exports)
    }
}

fn entitlement_name(entitlement: &Entitlement) -> String {
    match entitlement {
        Entitlement::NetworkHost => "network.host".to_owned(),
        Entitlement::SecurityInsecure => "security.insecure".to_owned(),
        Entitlement::Device(None) => "device".to_owned(),
        Entitlement::Device(Some(name)) => format!("device={name}"),
    }
}
