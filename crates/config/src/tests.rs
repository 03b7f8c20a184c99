use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

const EVERYTHING: &str = r#"
root = "/state"
insecure-entitlements = ["network.host", "security.insecure", "device"]
proxyNetwork = true
provenanceEnvDir = "/p"

[log]
  format = "json"
  level = "debug"

[dns]
  nameservers = ["1.1.1.1", "8.8.8.8"]
  options = ["edns0"]
  searchDomains = ["example.com"]

[grpc]
  address = ["tcp://0.0.0.0:1234"]
  debugAddress = "0.0.0.0:6060"
  uid = 0
  gid = 7
  [grpc.tls]
    cert = "c"
    key = "k"
    ca = "a"

[otel]
  socketPath = "/s"

[cdi]
  disabled = true
  specDirs = ["/etc/cdi"]
  autoAllowed = ["vendor.com/device"]

[history]
  maxAge = 172800
  maxEntries = 50

[worker.oci]
  enabled = true
  platforms = ["linux/amd64", "linux/arm64"]
  snapshotter = "auto"
  rootless = false
  noProcessSandbox = true
  gc = true
  reservedSpace = "30%"
  maxUsedSpace = "60%"
  minFreeSpace = "20GB"
  binary = ""
  apparmor-profile = "p"
  max-parallelism = 4
  cniPoolSize = 16
  networkMode = "host"
  [worker.oci.labels]
    "foo" = "bar"
  [[worker.oci.gcpolicy]]
    reservedSpace = "512MB"
    maxUsedSpace = "1GB"
    minFreeSpace = "10GB"
    keepDuration = "48h"
    filters = ["type==source.local"]
  [[worker.oci.gcpolicy]]
    all = true
    keepBytes = 1024000000

[worker.containerd]
  address = "/run/containerd/containerd.sock"
  namespace = "buildkit"
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
    path = "/shim"
    options = { BinaryName = "runc" }

[registry."docker.io"]
  mirrors = ["mirror.local:5000", "core.harbor.domain/proxy.docker.io"]
  http = true
  insecure = true
  ca = ["/ca.pem"]
  tlsconfigdir = ["/certs.d"]
  [[registry."docker.io".keypair]]
    key = "/key.pem"
    cert = "/cert.pem"

[frontend."dockerfile.v0"]
  enabled = true
[frontend."gateway.v0"]
  enabled = false
  allowedRepositories = ["example.com/frontend"]

[system]
  platformsCacheMaxAge = "1h"
  maxRegistryConcurrency = 4

[cache.gha.sign]
  command = ["cosign"]
[cache.gha.verify]
  required = true
  [cache.gha.verify.policy]
    tlogThreshold = 1
    buildSignerURI = "https://example.com/*"
"#;

fn read(text: &str) -> Loaded {
    parse(Path::new("buildkitd.toml"), text).expect("a good file")
}

#[test]
fn every_key_of_upstream_is_read() {
    let loaded = read(EVERYTHING);
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(config.root, Some(PathBuf::from("/state")));
    assert_eq!(config.insecure_entitlements.len(), 3);
    assert!(config.proxy_network);
    assert_eq!((config.log.format.as_str(), config.log.level.as_str()), ("json", "debug"));
    assert_eq!(config.dns.expect("dns").search_domains, ["example.com"]);
    assert_eq!((config.grpc.uid, config.grpc.gid), (Some(0), Some(7)));
    assert_eq!(config.grpc.tls.ca, Some("a".into()));
    assert_eq!(config.cdi.auto_allowed, ["vendor.com/device"]);
    let history = config.history.expect("history");
    assert_eq!((history.max_age.0, history.max_entries), (Duration::from_secs(172_800), 50));
    let oci = config.worker.oci;
    assert_eq!((oci.enabled, oci.rootless, oci.no_process_sandbox), (Some(true), Some(false), true));
    assert_eq!((oci.max_parallelism, oci.network.cni_pool_size, oci.network.mode.as_str()), (4, 16, "host"));
    assert_eq!(oci.labels["foo"], "bar");
    assert_eq!(oci.gc.reserved_space, DiskSpace::Percent(30));
    assert_eq!(oci.gc.min_free_space, DiskSpace::Bytes(20 << 30));
    assert_eq!(oci.gc.policies[0].keep_duration.0, Duration::from_secs(48 * 3600));
    assert_eq!(oci.gc.policies[1].keep_bytes, DiskSpace::Bytes(1_024_000_000));
    let runtime = config.worker.containerd.runtime;
    assert_eq!(runtime.options.expect("options")["BinaryName"].as_str(), Some("runc"));
    let hub = &config.registry["docker.io"];
    assert_eq!((hub.http, hub.insecure, hub.mirrors.len()), (Some(true), Some(true), 2));
    assert_eq!(hub.keypair[0].cert, Path::new("/cert.pem"));
    assert_eq!(config.frontend.gateway.enabled, Some(false));
    assert_eq!(config.system.max_registry_concurrency, Some(4));
    let gha = config.cache.gha.expect("gha");
    assert_eq!(gha.verify.policy.build_signer_uri.as_deref(), Some("https://example.com/*"));
    assert_eq!(gha.sign.expect("sign").command, ["cosign"]);
}

#[test]
fn keys_match_in_any_case() {
    let config = read("[worker.OCI]\ngcKeepStorage = 9000\nMax-Parallelism = 2\n").config;
    assert_eq!(config.worker.oci.gc.keep_storage, DiskSpace::Bytes(9000));
    assert_eq!(config.worker.oci.max_parallelism, 2);
}

#[test]
fn unknown_keys_are_warned_about_with_their_line() {
    let loaded = read("[worker.oci]\nmaxParallelism = 4\n[registry.\"a.b\"]\nhtpp = true\n[frobnicate]\nx = 1\n");
    let said: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "`buildkitd.toml`, line 2: unknown key `worker.oci.maxParallelism` is ignored; \
             did you mean `worker.oci.max-parallelism`?",
            "`buildkitd.toml`, line 4: unknown key `registry.\"a.b\".htpp` is ignored; \
             did you mean `registry.\"a.b\".http`?",
            "`buildkitd.toml`, line 5: unknown key `frobnicate` is ignored",
        ]
    );
}

#[test]
fn old_names_are_warned_about_once() {
    let said: Vec<String> =
        read("debug = true\n[worker.oci]\ngckeepstorage = 1\n").warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "key `debug` is deprecated, write `log.level = \"debug\"`",
            "key `worker.oci.gckeepstorage` is deprecated, write `worker.oci.reservedSpace`"
        ]
    );
}

#[test]
fn bad_files_are_errors_with_their_line() {
    for (text, said) in [
        ("a = \n", "`f`, line 1, column 5: string values must be quoted, expected literal string"),
        ("\n[log\nx=1\n", "`f`, line 2, column 5: unclosed table, expected `]`"),
        ("root = 1\n", "`f`, line 1: `root`: expected a path, found an integer"),
        ("[log]\nlevel = true\n", "`f`, line 2: `log.level`: expected a string, found a boolean"),
        ("log = 3\n", "`f`, line 1: `log`: expected a table, found an integer"),
        ("[worker.oci]\ngc = \"yes\"\n", "`f`, line 2: `worker.oci.gc`: expected true or false, found a string"),
        (
            "[worker.oci]\nmax-parallelism = -1\n",
            "`f`, line 2: `worker.oci.max-parallelism`: expected a whole number from 0 up, found -1",
        ),
        (
            "[worker.oci]\nreservedSpace = \"110%\"\n",
            "`f`, line 2: `worker.oci.reservedSpace`: `110%` is not a percentage between 0% and 100%",
        ),
        (
            "[[worker.oci.gcpolicy]]\n[[worker.oci.gcpolicy]]\nkeepDuration = \"2 days\"\n",
            "`f`, line 3: `worker.oci.gcpolicy[1].keepDuration`: `2 days` is not a duration: expected a form such as \
             90s, 48h or 1h30m",
        ),
        (
            "[registry.\"a:1\"]\nmirrors = [\"x\", 3]\n",
            "`f`, line 2: `registry.\"a:1\".mirrors[1]`: expected a string, found an integer",
        ),
    ] {
        let error = parse(Path::new("f"), text).expect_err(text);
        assert_eq!(error.to_string(), said, "{text}");
    }
}

#[test]
fn sizes_and_durations_have_upstreams_forms() {
    for (text, bytes) in [
        ("0", 0),
        ("512", 512),
        ("512MB", 512 << 20),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("10 GiB", 10 << 30),
        ("1kb", 1024),
        ("7b", 7),
    ] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for bad in ["", "MB", "1x", "-1", "1.2.3", "1bb", "1ibb", "1i", "99999999999g"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
    assert_eq!("12%".parse(), Ok(DiskSpace::Percent(12)));
    for (text, millis) in [("0", 0), ("1.5s", 1500), ("48h", 172_800_000), ("1h30m", 5_400_000), ("300ms", 300)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for bad in ["", "1", "h", "1d", "1h-", "-1h"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    for (text, value) in [("true", Some(true)), ("F", Some(false)), ("yes", None), ("", None)] {
        assert_eq!(parse_bool(text), value);
    }
}

#[test]
fn cleaning_rules_are_upstreams() {
    let tb = DiskUse { total: 1_000_000_000_000 };
    let rules = |text: &str, disk| read(text).config.worker.oci.gc.rules(disk);
    let defaults = rules("", tb);
    assert_eq!(defaults.len(), 4);
    assert_eq!(defaults[0].max_used_space, 512_000_000);
    assert_eq!(defaults[0].filters.len(), 3);
    // 20 % of 1 TB is 186.26 GiB, rounded up to 187 GB.
    let limits = |p: &PrunePolicy| (p.all, p.reserved_space, p.max_used_space, p.min_free_space);
    assert_eq!(limits(&defaults[2]), (false, 10_000_000_000, 100_000_000_000, 187_000_000_000));
    assert_eq!(limits(&defaults[3]), (true, 10_000_000_000, 100_000_000_000, 187_000_000_000));
    // Small disks get shares; an unknown disk gets 2 GB each.
    let small = rules("", DiskUse { total: 20 << 30 });
    assert_eq!(limits(&small[2]), (false, 3_000_000_000, 17_000_000_000, 5_000_000_000));
    assert_eq!(limits(&rules("", DiskUse::default())[2]), (false, 2_000_000_000, 2_000_000_000, 2_000_000_000));

    assert_eq!(rules("[worker.oci]\ngc = false", tb), []);
    let kept = rules("[worker.oci]\ngckeepstorage = 5000", tb);
    assert_eq!(limits(&kept[2]), (false, 5000, 0, 0));
    let own = rules("[[worker.oci.gcpolicy]]\nkeepBytes = 7\nall = true\n", tb);
    assert_eq!(own.iter().map(limits).collect::<Vec<_>>(), [(true, 7, 0, 0)]);
}

#[test]
fn a_users_file_stands_on_top_of_the_systems() {
    let dir = tempfile::tempdir().expect("a directory");
    let system = dir.path().join("etc");
    let home = dir.path().join("home");
    std::fs::create_dir_all(&system).expect("mkdir");
    std::fs::create_dir_all(home.join(".config/buildkit")).expect("mkdir");
    let system_text =
        "root = \"/a\"\n[registry.\"x\"]\nhttp = true\nmirrors = [\"m\"]\n[registry.\"y\"]\nhttp = true\n";
    std::fs::write(system.join("buildkitd.toml"), system_text).expect("write");
    let user_text = "root = \"/b\"\n[registry.\"x\"]\nmirrors = [\"n\"]\n";
    std::fs::write(home.join(".config/buildkit/buildkitd.toml"), user_text).expect("write");

    let lookup = Lookup { rootless: true, home: Some(home), system_dir: Some(system), ..Lookup::default() };
    let loaded = load(&lookup).expect("both files");
    assert_eq!(loaded.files.len(), 2);
    assert_eq!(loaded.config.root, Some("/b".into()));
    assert_eq!(loaded.config.registry["x"].mirrors, ["n"]);
    assert_eq!(loaded.config.registry["x"].http, Some(true));
    assert_eq!(loaded.config.registry["y"].http, Some(true));

    let rootful = load(&Lookup { rootless: false, ..lookup.clone() }).expect("one file");
    assert_eq!(rootful.config.root, Some("/a".into()));
    let missing = load(&Lookup { explicit: Some(dir.path().join("no")), ..lookup }).expect("no file");
    assert_eq!(missing.config, Config::default());
    assert_eq!(missing.warnings.len(), 1);
}

#[test]
fn certificate_directories_are_expanded() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["b.crt", "a.cert", "a.key", "README"] {
        std::fs::write(dir.path().join(name), "").expect("write");
    }
    let registry = Registry {
        ca: vec!["/x.pem".into()],
        tls_config_dir: vec![dir.path().to_owned(), "/no/such/dir".into()],
        ..Registry::default()
    };
    let wanted = [
        Certificate::Authority("/x.pem".into()),
        Certificate::Client { cert: dir.path().join("a.cert"), key: dir.path().join("a.key") },
        Certificate::Authority(dir.path().join("b.crt")),
    ];
    assert_eq!(registry.certificates().expect("readable"), wanted);
}

/// The page in `docs/` is generated; `cargo xtask bless` renews it.
#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/buildkitd.toml.md");
    let page = reference();
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(&path, &page).expect("write");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == page, "docs/reference/buildkitd.toml.md is out of date: run `cargo xtask bless`");
}
