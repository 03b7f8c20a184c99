//! Help texts and complaints as people see them, and what command lines mean.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Command;
use engine::Frontend;
use insta::assert_snapshot;

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn pipe() -> Environment {
    Environment::with(&[("HOME", "/no/such/home")])
}

fn help(mut command: Command, path: &[&str]) -> String {
    command.build();
    let mut current = &mut command;
    for name in path {
        current = current.find_subcommand_mut(name).expect("a subcommand");
    }
    current.render_long_help().to_string()
}

#[test]
fn help_texts() {
    for (name, command, path) in [
        ("hullworks", hullworks::declaration(), &[][..]),
        ("hullworks-build", hullworks::declaration(), &["build"]),
        ("hullworks-du", hullworks::declaration(), &["du"]),
        ("hullworks-prune", hullworks::declaration(), &["prune"]),
        ("hullworks-install", hullworks::declaration(), &["install"]),
        ("buildctl-daemonless", buildctl::declaration(), &[]),
        ("buildctl-daemonless-build", buildctl::declaration(), &["build"]),
        ("buildctl-daemonless-du", buildctl::declaration(), &["du"]),
        ("buildctl-daemonless-prune", buildctl::declaration(), &["prune"]),
    ] {
        // The package's version is not part of the text.
        insta::with_settings!({ snapshot_suffix => name, omit_expression => true }, {
            assert_snapshot!("help", help(command, path));
        });
    }
}

/// What `docs/reference/cli.md` says besides the help texts.
const PAGE: &str = "# Flags and environment

Generated from `crates/cli`; `cargo xtask bless` renews it. What outputs take: [outputs](outputs.md).

The binary decides by the name that it is called by: `hullworks`, `buildkitd`, `buildctl` or `buildctl-daemonless.sh` (which may also be the
first word: `hullworks buildctl-daemonless.sh build ..`; `hullworks install` makes the names). Exit codes: 0 on success, 1 on any failure.

Command lines of BuildKit's are read as Go's programs read them: `-progress plain` is `--progress=plain`, flags of `buildctl` may stand behind
its commands, and where a flag has one value, the last one counts. `--format` takes templates of Go, as far as they pick out fields: `range`,
`if`, `with`, and the functions `json`, `len`, `index`, `eq`, `ne`, `not`, `and`, `or`, `print` and `println`. Times and durations print as in JSON.

| variable | meaning |
| --- | --- |
| `BUILDKITD_FLAGS` | `buildctl-daemonless.sh`: flags of `buildkitd`; those that mean nothing without a daemon are warned about |
| `BUILDCTL`, `BUILDKITD` | `buildctl-daemonless.sh`: words after the first are flags; the programs are built in |
| `BUILDKIT_HOST` | `buildctl`: the daemon's address, where `--addr` is not given; `hullworks build` needs no daemon and says that it asks none |
| `BUILDCTL_CONNECT_RETRIES_MAX` | `buildctl-daemonless.sh`: how often to try where another process has the state directory; not set: as long as it takes |
| `BUILDKIT_PROGRESS` | what `--progress=auto` means |
| `NO_COLOR`, `BUILDKIT_COLORS`, `BUILDKIT_TTY_LOG_LINES`, `TTY_DISPLAY_RATE`, `PROGRESS_NO_TRUNC` | how progress looks, as with BuildKit |
| `BUILDKIT_STEP_LOG_MAX_SIZE`, `BUILDKIT_STEP_LOG_MAX_SPEED` | how much of a step's output is shown, in bytes and bytes per second; -1 is no limit |
| `BUILDKITD_LOG_LEVEL` | `buildctl-daemonless.sh`: what is logged on standard error |
| `BUILDKITD_DEBUGADDR` | `buildkitd`: where `/metrics`, `/healthz` and `/readyz` are, where `--debugaddr` is not given |
| `HULLWORKS_DRAIN_TIMEOUT` | `buildkitd`: how long builds may go on after SIGTERM, such as `90s`; not set: ten minutes. A second signal ends them at once |
| `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY` | `hullworks build`: a file with rules about sources, as `buildctl build --source-policy-file` takes it |
| `OTEL_TRACES_EXPORTER`, `OTEL_SDK_DISABLED` | `otlp` or `none`; `true`: whether builds, with a daemon and without, and `buildctl` hand over traces |
| `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which traces: `always_on`, `always_off`, `traceidratio` with its number, or, where a caller's decision comes first, the same with `parentbased_` before it; not set: `parentbased_always_on`. Records of builds have theirs in any case |
| `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` | what traces say of the program; not set: `service.name` is `buildkitd`, `buildctl` or `hullworks` |
| `OTEL_EXPORTER_OTLP_ENDPOINT`, `.._PROTOCOL`, `.._HEADERS`, `.._TIMEOUT`, `.._CERTIFICATE`, `.._CLIENT_CERTIFICATE`, `.._CLIENT_KEY` | the collector of traces: `grpc` (the default) or `http/protobuf`, with TLS for `https://`; those that begin with `OTEL_EXPORTER_OTLP_TRACES_` come first |
| `TRACEPARENT` | builds without a daemon: the span of whoever starts them |
| `SOURCE_DATE_EPOCH` | a build argument, where none is given |
| `DOCKER_DEFAULT_PLATFORM` | `hullworks build`: the platform, where none is given |
| `DOCKER_CONFIG`, `DOCKER_AUTH_CONFIG` | where registry credentials are, or what they are |
| `BUILDKIT_NO_CLIENT_TOKEN` | `buildctl`: the daemon fetches the tokens of registries, by the password |
| `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, `ALL_PROXY` | for registries, in upper or lower case; steps get proxies by `--build-arg` or docker's `config.json` |
| `XDG_CONFIG_HOME`, `XDG_DATA_HOME` | an ordinary user's `buildkitd.toml` and state directory |
| `XDG_RUNTIME_DIR` | where an ordinary user's `buildkitd` listens, and `buildctl` looks for it: `buildkit/buildkitd.sock` in it |
";

/// The page in `docs/` is generated; `cargo xtask bless` renews it.
#[test]
fn the_reference_page_is_up_to_date() {
    let mut page = PAGE.to_owned();
    for (name, command, path) in [
        ("hullworks build", hullworks::declaration(), &["build"][..]),
        ("hullworks du", hullworks::declaration(), &["du"]),
        ("hullworks prune", hullworks::declaration(), &["prune"]),
        ("buildkitd", buildkitd::declaration(), &[]),
        ("buildctl", buildctl_client::declaration(), &[]),
        ("buildctl build, buildctl-daemonless.sh build", buildctl::declaration(), &["build"]),
        ("buildctl du", buildctl_client::declaration(), &["du"]),
        ("buildctl prune", buildctl_client::declaration(), &["prune"]),
        ("buildctl prune-histories", buildctl_client::declaration(), &["prune-histories"]),
        ("buildctl debug", buildctl_client::declaration(), &["debug"]),
        ("buildctl debug workers", buildctl_client::declaration(), &["debug", "workers"]),
        ("buildctl debug histories", buildctl_client::declaration(), &["debug", "histories"]),
        ("buildctl debug logs", buildctl_client::declaration(), &["debug", "logs"]),
        ("buildctl debug monitor", buildctl_client::declaration(), &["debug", "monitor"]),
        ("buildctl debug ctl", buildctl_client::declaration(), &["debug", "ctl"]),
        ("buildctl debug dump-llb", buildctl_client::declaration(), &["debug", "dump-llb"]),
        ("buildctl debug dump-metadata", buildctl_client::declaration(), &["debug", "dump-metadata"]),
    ] {
        let text = help(command, path);
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        page.push_str(&format!("\n## {name}\n\n```text\n{}\n```\n", text.join("\n").trim_end()));
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).expect("write");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == page, "docs/reference/cli.md is out of date: run `cargo xtask bless`");
}

#[test]
fn declarations_hold() {
    hullworks::declaration().debug_assert();
    buildctl::declaration().debug_assert();
    buildctl_client::declaration().debug_assert();
    buildkitd::declaration().debug_assert();
}

fn outcome(result: Result<Action, Fault>) -> String {
    match result {
        Ok(Action::Print(_)) => "prints".to_owned(),
        Ok(Action::Simple(_)) => "works".to_owned(),
        Ok(Action::Client(_)) => "asks a daemon".to_owned(),
        Ok(Action::Engine(_)) => "builds".to_owned(),
        Ok(Action::Unknown(fault)) | Err(fault) => {
            let mut out = Vec::new();
            crate::fault::print(&mut out, &fault, &[]).expect("a vector takes everything");
            String::from_utf8(out).expect("text").trim_end().to_owned()
        }
    }
}

#[test]
fn complaints_of_hullworks() {
    let mut all = String::new();
    for line in [
        "build .",
        "build --bogus .",
        "build -t",
        "build a b",
        "frobnicate",
        "",
        "build /no/such/dir",
        "build /proc/version",
        "build -f /no/such/Dockerfile /proc",
        "build -f /proc /proc",
        "build -f - -",
        "build -f - https://example.com/repo.git",
        "build --load /proc",
        "build --ssh default /proc",
        "build --push /proc",
        "build --push -t Bad/Name /proc",
        "build -o - -o type=oci /proc",
        "build --provenance=mode=max /proc",
        "build --provenance=false --sbom=false /proc",
        "build --attest type=sbom /proc",
        "build --builder x /proc",
        "build --check /proc",
        "build --progress=fancy /proc",
        "build --memory lots /proc",
        "build --memory-swap -2 /proc",
        "build --cpu-shares half /proc",
        "build --no-cache --no-cache-filter a /proc",
        "build --network=bridge /proc",
        "build --progress plain --progress quiet /proc",
        "build --snapshotter zfs /proc",
        "build --config /proc/version /proc",
        "install",
        "prune --keep-duration 3d",
        "prune --keep-storage x",
        "prune -a",
        "prune -f",
        "du --format {{.ID}}",
        "du --filter colour==red",
        "build --progres plain /proc",
        "--help",
        "--version",
        "build --help",
    ] {
        all.push_str(&format!("$ hullworks {line}\n{}\n\n", outcome(hullworks::parse(words(line), &pipe()))));
    }
    assert_snapshot!(all);
}

#[test]
fn complaints_of_buildctl() {
    let mut all = String::new();
    for line in [
        "build --frontend dockerfile.v0 --local context=/proc --local dockerfile=/proc",
        "-debug build -frontend=dockerfile.v0 -local context=/proc -progress plain --no-cache=true",
        "b --frontend dockerfile.v0 --output type=oci --opt build-arg:X=1",
        "build --bogus",
        "build --frontend dockerfile.v0 --opt target",
        "build --frontend dockerfile.v0 --local context=/no/such",
        "build --frontend dockerfile.v0 --output out",
        "build --frontend dockerfile.v0 --ssh default",
        "build --frontend dockerfile.v0 --oci-layout a=b",
        "build --frontend dockerfile.v0 --source-policy-file p.json",
        "build --frontend dockerfile.v0 --registry-auth-tlscontext host=https://a,key=k",
        "build --frontend dockerfile.v0 --registry-auth-tlscontext host=https://a,insecure=true",
        "--addr tcp://x:1 build",
        "--tlsdir /certs build",
        "--log-format xml du",
        "--timeout 3 --wait du -v --filter type==regular",
        "prune --all --keep-storage 100 --keep-duration=1h -v",
        "prune-histories",
        "debug workers",
        "dial-stdio",
        "frobnicate",
        "",
    ] {
        all.push_str(&format!(
            "$ buildctl-daemonless.sh {line}\n{}\n\n",
            outcome(buildctl::parse(words(line), &pipe()))
        ));
    }
    assert_snapshot!(all);
}

#[test]
fn complaints_about_buildkitd_flags() {
    let mut all = String::new();
    for flags in [
        "--root=/x --config /no/such.toml --debug --oci-worker-snapshotter=native --oci-worker-no-process-sandbox",
        "--addr unix:///x --tlscert a --group 1 --cdi-disabled --otel-socket-path x --save-cache-debug --debugaddr x",
        "--containerd-worker=false --containerd-worker-addr x --containerd-worker-gc=false --containerd-max-parallelism 2",
        "--oci-worker=true --oci-worker-gc-keepstorage 1000,2000,3000 --oci-max-parallelism=4 --rootless",
        "-oci-worker-rootless=true -allow-insecure-entitlement network.host --log-level=error --log-format=json",
        "--bogus",
        "--oci-worker=false",
        "--oci-worker=maybe",
        "--oci-worker-net=cni",
        "--oci-worker-net=carrier-pigeon",
        "--oci-worker-snapshotter=zfs",
        "--oci-worker-snapshotter=fuse-overlayfs",
        "--oci-worker-proxy-snapshotter-path=/x",
        "--oci-worker-gc-keepstorage=1,2,3,4",
        "--oci-max-parallelism=-1",
        "--log-level=loud",
        "--proxy-network",
        "--help",
    ] {
        let environment = Environment::with(&[("BUILDKITD_FLAGS", flags), ("HOME", "/no/such/home")]);
        all.push_str(&format!("BUILDKITD_FLAGS={flags}\n{}\n\n", outcome(buildctl::parse(words("du"), &environment))));
    }
    assert_snapshot!(all);
}

#[test]
fn flags_of_a_daemon_that_mean_nothing_are_named() {
    let warnings = |flags: &str| {
        let flags = flags.split_whitespace().map(str::to_owned).collect();
        buildkitd_flags::BuildkitdFlags::parse_words(flags).expect("parses").settings(&pipe()).expect("good").warnings
    };
    assert_eq!(warnings("--root=/x --oci-worker=true --containerd-worker=false --debug"), [""; 0]);
    assert_eq!(
        warnings("--root=/x --containerd-worker-gc=false --tlscert=a --addr unix:///a --addr unix:///b"),
        [
            "flags of buildkitd that mean nothing without a daemon: --addr, --tlscert",
            "--containerd-worker-gc is not used: containerd is not offered, the runtime is built in",
        ]
    );
    assert_eq!(
        warnings(
            "--root=/x --containerd-worker=true --containerd-worker-addr=/x --cdi-spec-dir=a --otel-socket-path=b"
        ),
        [
            "--otel-socket-path is not used yet: steps hand over no traces",
            "--containerd-worker, --containerd-worker-addr are not used: containerd is not offered, the runtime is built in",
        ]
    );
    let networks = "--root=/x --oci-cni-pool-size=3 --oci-cni-config-path=/a --oci-cni-binary-dir=/b";
    let networks = warnings(networks);
    for (key, warning) in ["cniConfigPath", "cniBinaryPath", "cniPoolSize"].iter().zip(&networks) {
        assert_eq!(*warning, format!("worker.oci.{key} is not used yet: steps have no network of their own"));
    }
    assert_eq!(networks.len(), 3);
}

#[test]
fn keys_that_mean_nothing_are_named() {
    let warnings = |text: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.toml");
        std::fs::write(&path, text).expect("written");
        let environment = pipe();
        let settings =
            crate::daemonless::Settings::load(Some(path), Some("/x".into()), &environment, |_| Ok(())).expect("good");
        settings.warnings.join("\n")
    };
    for (text, key) in [
        ("[worker.oci]\nbridgeName = \"b\"", "worker.oci.bridgeName"),
        ("[worker.oci]\nbridgeSubnet = \"10.0.0.0/8\"", "worker.oci.bridgeSubnet"),
        ("[grpc]\nsecurityDescriptor = \"x\"", "grpc.securityDescriptor"),
        ("[frontend.\"gateway.v0\"]\nenabled = true", "[frontend.\"gateway.v0\"]"),
        ("[frontend.\"gateway.v0\"]\nallowedRepositories = [\"a\"]", "[frontend.\"gateway.v0\"]"),
        ("[otel]\nsocketPath = \"/x\"", "[otel]"),
        ("[worker.containerd]\nenabled = true", "worker.containerd"),
        ("[worker.oci]\nproxySnapshotterPath = \"/x\"", "worker.oci.proxySnapshotterPath"),
    ] {
        assert!(warnings(text).starts_with(&format!("{key} is not used")), "{text}: {}", warnings(text));
    }
    assert_eq!(warnings("[frontend.\"gateway.v0\"]\nenabled = false"), "");
    for (text, key) in [
        ("[worker.oci]\napparmor-profile = \"p\"", "worker.oci.apparmor-profile"),
        ("proxyNetwork = true", "proxyNetwork"),
    ] {
        assert!(warnings(text).starts_with(&format!("{key} is NOT HEEDED: ")), "{text}: {}", warnings(text));
    }
}

#[test]
fn help_and_versions_are_asked_for_as_upstreams_are() {
    let text = |result: Result<Action, Fault>| match result {
        Ok(Action::Print(text)) => text,
        other => outcome(other),
    };
    let ctl = |line: &str| text(buildctl_client::parse(words(line)));
    let shell = |line: &str| text(buildctl::parse(words(line), &pipe()));
    let daemon = |line: &str| text(buildkitd::parse(words(line), &pipe()));
    for (same, line) in
        [("--help", "help"), ("--help", "h"), ("build --help", "help build"), ("debug --help", "debug h")]
    {
        assert_eq!(ctl(same), ctl(line), "{line}");
        assert!(ctl(line).contains("Usage: buildctl"), "{line}");
        assert_eq!(shell(same), shell(line), "{line}");
    }
    assert_eq!(ctl("debug help workers"), ctl("debug workers --help"));
    assert!(ctl("help nothing").contains("unrecognized subcommand `nothing`"), "{}", ctl("help nothing"));
    assert!(daemon("help").contains("Usage: buildkitd") && daemon("h") == daemon("--help"));
    for version in ["-v", "-V", "--version"] {
        assert_eq!(ctl(version), format!("buildctl {}\n", crate::VERSION));
        assert_eq!(shell(version), format!("buildctl-daemonless.sh {}\n", crate::VERSION));
        assert_eq!(daemon(version), format!("buildkitd {}\n", crate::VERSION));
    }
}

#[test]
fn flags_may_stand_anywhere_and_the_last_one_counts() {
    let ctl = |line: &str| outcome(buildctl_client::parse(words(line)));
    for line in [
        "debug workers --addr unix:///x --wait --timeout 3",
        "du --wait -v",
        "build --tlsdir /x --log-format json --progress=plain --progress plain --frontend x --frontend x",
        "--addr a --addr b debug info --addr c",
        "debug info --format json --format {{.BuildkitVersion.Version}}",
    ] {
        assert_eq!(ctl(line), "asks a daemon", "{line}");
    }
    assert!(ctl("debug info --log-format xml").contains("known are text and json"));
    let flags = "--root=/a --root /b --debug --debug=false --oci-max-parallelism 1 --oci-max-parallelism=2";
    let flags = flags.split_whitespace().map(str::to_owned).collect();
    let settings =
        buildkitd_flags::BuildkitdFlags::parse_words(flags).expect("parses").settings(&pipe()).expect("good");
    assert_eq!((settings.root.to_str(), settings.log), (Some("/b"), None));
    assert_eq!(settings.config.worker.oci.max_parallelism, 2);
    assert!(outcome(buildctl::parse(words("du --addr unix:///x"), &pipe())).contains("--addr is about a daemon"));
}

#[test]
fn the_level_of_the_log_is_also_read_by_its_old_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.toml");
    let level = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let flags = vec!["--config".to_owned(), path.to_str().expect("UTF-8").to_owned()];
        buildkitd_flags::BuildkitdFlags::parse_words(flags).expect("parses").settings(&pipe()).expect("good").log
    };
    assert_eq!(level(""), None);
    assert_eq!(level("debug = true"), Some(tracing::Level::DEBUG));
    assert_eq!(level("debug = true\ntrace = true"), Some(tracing::Level::TRACE));
    assert_eq!(level("debug = true\n[log]\nlevel = \"warn\""), Some(tracing::Level::WARN));
}

#[test]
fn buildkitd_flags_change_the_configuration() {
    let flags = "--root=/x --oci-worker-snapshotter=native --oci-worker-no-process-sandbox --rootless \
                 --oci-worker-gc-keepstorage 1000,2000,3000 --oci-max-parallelism=4 --oci-worker-labels a=b \
                 --allow-insecure-entitlement network.host --allow-insecure-entitlement security.insecure \
                 --oci-worker-platform linux/arm64 --oci-worker-gc=false --trace";
    let flags = flags.split_whitespace().map(str::to_owned).collect();
    let settings =
        buildkitd_flags::BuildkitdFlags::parse_words(flags).expect("parses").settings(&pipe()).expect("good");
    assert_eq!(settings.root, std::path::Path::new("/x"));
    assert_eq!(settings.snapshotter, engine::SnapshotterChoice::Copy);
    assert_eq!(settings.log, Some(tracing::Level::TRACE));
    assert_eq!(settings.config.insecure_entitlements, ["network.host", "security.insecure"]);
    let oci = settings.config.worker.oci;
    assert_eq!((oci.rootless, oci.no_process_sandbox, oci.max_parallelism), (Some(true), true, 4));
    assert_eq!((oci.labels["a"].as_str(), oci.platforms.as_slice()), ("b", &["linux/arm64".to_owned()][..]));
    assert_eq!(oci.gc.enabled, Some(false));
    let megabytes = |n: u64| config::DiskSpace::Bytes(n * 1_000_000);
    assert_eq!(
        (oci.gc.reserved_space, oci.gc.min_free_space, oci.gc.max_used_space),
        (megabytes(1000), megabytes(2000), megabytes(3000))
    );
}

/// Parses `hullworks build` and answers the plan.
fn plan(line: &str, environment: &Environment) -> crate::daemonless::BuildPlan {
    let parsed = Command::new("build");
    let parsed =
        <build::Build as clap::Args>::augment_args(parsed).no_binary_name(true).try_get_matches_from(words(line));
    let build = <build::Build as clap::FromArgMatches>::from_arg_matches(&parsed.expect("parses")).expect("parses");
    build.plan(environment).expect("a plan")
}

fn options(plan: &crate::daemonless::BuildPlan) -> BTreeMap<String, String> {
    match &plan.frontend {
        Frontend::Named { name, options, .. } => {
            assert_eq!(name, "dockerfile.v0");
            options.clone()
        }
        Frontend::Llb { .. } => panic!("a frontend is named"),
    }
}

#[test]
fn what_hullworks_build_means() {
    let environment = Environment::with(&[("FROM_ENV", "e"), ("SOURCE_DATE_EPOCH", "0")]);
    let line = "-t a.example/x:1 -t b -f /proc/version --build-arg A=1 --build-arg FROM_ENV --build-arg UNSET --target t \
                --platform linux/amd64,linux/arm64 --label l=v --no-cache-filter s1,s2 --pull --add-host h:1.2.3.4 \
                --shm-size 64m --ulimit nofile=5 --network host --allow security.insecure --cgroup-parent cg \
                -m 64m --memory-swap -1 -c 512 --cpu-period 0 --cpu-quota 50000 --cpuset-cpus 0-1 --cpuset-mems 0 \
                --build-context src=/sys --build-context base=docker-image://alpine --secret id=FROM_ENV \
                -o type=oci,dest=/tmp/x.tar -o type=image --push --metadata-file m.json --iidfile i --progress rawjson \
                --annotation k=v --annotation index:i=w --cache-from c --cache-to type=inline /proc";
    let plan = plan(line, &environment);
    let shown: String = options(&plan).iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    assert_snapshot!(shown, @r"
    add-hosts=h=1.2.3.4
    build-arg:A=1
    build-arg:FROM_ENV=e
    build-arg:SOURCE_DATE_EPOCH=0
    cgroup-parent=cg
    context:base=docker-image://alpine
    context:src=local:src
    cpuquota=50000
    cpusetcpus=0-1
    cpusetmems=0
    cpushares=512
    filename=version
    force-network-mode=host
    image-resolve-mode=pull
    label:l=v
    memory=67108864
    memswap=-1
    no-cache=s1,s2
    platform=linux/amd64,linux/arm64
    shm-size=67108864
    target=t
    ulimit=nofile=5:5
    ");
    let dirs: Vec<String> = plan.dirs.iter().map(|(name, dir)| format!("{name}={}", dir.display())).collect();
    assert_eq!(dirs, ["context=/proc", "dockerfile=/proc", "src=/sys"]);
    let exports: Vec<String> =
        plan.exports.iter().map(|e| format!("{} {:?}", e.request.kind, e.request.attrs)).collect();
    assert_eq!(
        exports,
        [
            r#"oci {"annotation-index.i": "w", "annotation.k": "v", "name": "a.example/x:1,b"}"#,
            r#"image {"annotation-index.i": "w", "annotation.k": "v", "name": "a.example/x:1,b", "push": "true"}"#
        ]
    );
    assert_eq!(plan.entitlements.len(), 2);
    assert_eq!(plan.secrets.len(), 1);
    assert_eq!((plan.cache_imports.len(), plan.cache_exports.len()), (1, 1));
    assert_eq!(plan.mode, crate::display::Mode::RawJson);
    assert!(!plan.print_id);
}

#[test]
fn defaults_of_hullworks_build() {
    let environment =
        Environment::with(&[("DOCKER_DEFAULT_PLATFORM", "linux/arm64"), ("BUILDKIT_PROGRESS", "rawjson")]);
    let quiet = plan("-q --push -t a /proc", &environment);
    assert_eq!(options(&quiet), BTreeMap::from([("platform".to_owned(), "linux/arm64".to_owned())]));
    assert!(quiet.print_id && quiet.mode == crate::display::Mode::Quiet);
    assert_eq!(quiet.exports[0].request.kind, "image");
    let none = plan("/proc", &environment);
    assert!(none.exports.is_empty());
    assert_eq!(none.mode, crate::display::Mode::RawJson);
    // Who asks for an id gets an image.
    let kinds = |line| plan(line, &environment).exports.iter().map(|e| e.request.kind.clone()).collect::<Vec<_>>();
    assert_eq!((kinds("-q /proc"), kinds("--iidfile i /proc")), (vec!["image".to_owned()], vec!["image".to_owned()]));
    assert!(kinds("/proc").is_empty() && kinds("-q -o type=cacheonly /proc").is_empty());
    assert_eq!(kinds("--iidfile i -o /tmp /proc"), ["local", "image"]);
    assert_eq!(kinds("--iidfile i -o type=oci,dest=/tmp/x.tar /proc"), ["oci"]);
    // As with docker, the last of a flag wins.
    assert_eq!(options(&plan("--target a --target b /proc", &environment))["target"], "b");
}
