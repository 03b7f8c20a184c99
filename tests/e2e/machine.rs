//! The machine's own way to package registries: its mirrors, proxies, credentials and certificates, from configuration
//! files and the environment. Steps get them as secrets, so that no image and no cache has them.
//!
//! A Dockerfile says `RUN @machine apt-get update`; [`Machine::mounts`] puts mounts and settings there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::has_tool;
use crate::kitchen::Kitchen;
use crate::who::Who;

/// Where apt finds packages of the machine's own release.
pub struct Release {
    /// Its name, such as Debian's `bookworm`.
    pub codename: String,
    /// Lines for a `sources.list`.
    pub sources: String,
    /// How apt reaches them, for an `apt.conf`.
    pub settings: String,
}

/// What of apt's configuration says how to reach an archive.
const APT_SETTINGS: [&str; 6] = ["http::", "https::", "Check-", "Retries", "ForceIPv4", "ForceIPv6"];

impl Release {
    /// An error says why there is none.
    pub fn of_machine() -> Result<Release, String> {
        if !has_tool("apt-get") {
            return Err("it wants a machine with apt".to_owned());
        }
        let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.ok_or("this machine's release has no name")?.trim_matches('"').to_owned();
        let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Identifier: Packages"];
        let targets = says("apt-get", &format)?;
        let own = |release: &str| release == codename || release.starts_with(&format!("{codename}-"));
        let lines: BTreeSet<&str> = targets.lines().filter(|line| line.split(' ').nth(1).is_some_and(own)).collect();
        let archive = lines.iter().find_map(|line| line.split_once(&format!(" {codename} ")).map(|(uri, _)| uri));
        let archive = archive.ok_or_else(|| format!("this machine's apt has no source of `{codename}`"))?;
        let settings = says("apt-config", &["dump", "Acquire"])?;
        let reaching = |line: &&str| {
            line.strip_prefix("Acquire::").is_some_and(|key| APT_SETTINGS.iter().any(|start| key.starts_with(start)))
        };
        let settings = settings.lines().filter(reaching).fold(String::new(), |text, line| text + line + "\n");
        let answer = tempfile::tempdir().unwrap();
        let file = answer.path().join("InRelease");
        let uri = format!("{}/dists/{codename}/InRelease", archive.trim_end_matches('/'));
        says("/usr/lib/apt/apt-helper", &["download-file", &uri, file.to_str().unwrap()])
            .map_err(|why| format!("this machine's source of packages does not answer: {why}"))?;
        let sources = lines.iter().fold(String::new(), |text, line| text + "deb " + line + "\n");
        Ok(Release { codename, sources, settings })
    }
}

/// What a program prints, with the settings of whoever runs the tests; an error has its last words.
fn says(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).current_dir("/").output();
    let output = output.map_err(|error| format!("cannot run `{program}`: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("`{program} {}`: {}", args.join(" "), words.lines().last().unwrap_or_default()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the machine's Python packages can be had; `package` is one that the test wants.
pub fn python_packages(package: &str) -> Result<(), String> {
    let into = tempfile::tempdir().unwrap();
    let dir = into.path().to_str().unwrap();
    let download = ["download", "--quiet", "--no-deps", "--no-cache-dir", "--dest", dir, package];
    says("pip3", &download).map(drop).map_err(|why| format!("this machine's pip gets no packages: {why}"))
}

/// Whether the machine's registry of Node packages answers. A machine without npm has no settings that could be asked.
pub fn node_packages(package: &str) -> Result<(), String> {
    if !has_tool("npm") {
        return Ok(());
    }
    says("npm", &["view", package, "version"])
        .map(drop)
        .map_err(|why| format!("this machine's npm gets no packages: {why}"))
}

/// Whether the machine's registry of crates answers.
pub fn crates(name: &str) -> Result<(), String> {
    says("cargo", &["info", "--quiet", name])
        .map(drop)
        .map_err(|why| format!("this machine's cargo gets no crates: {why}"))
}

/// Settings as steps take them.
#[derive(Default)]
pub struct Machine {
    variables: BTreeMap<String, String>,
    /// By their ids; each lies in `/run/secrets` of a step, but cargo's, which has no variable for its place.
    secrets: BTreeMap<&'static str, Vec<u8>>,
}

/// Where a step has cargo's configuration.
const CARGO: &str = "/root/.cargo/config.toml";

impl Machine {
    /// All that is set here.
    pub fn new(release: &Release, who: Who) -> Machine {
        let mut machine = Machine::default();
        let mut settings = release.settings.clone();
        if who == Who::Single {
            // apt gives up root for its downloads, and here there is nobody else to become.
            settings += "APT::Sandbox::User \"root\";\n";
        }
        machine.secret("apt", &["APT_CONFIG"], settings.into());
        for (name, value) in std::env::vars() {
            let lower = name.to_lowercase();
            let proxy = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"].contains(&lower.as_str());
            let cargo = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];
            if proxy || cargo.iter().any(|start| name.starts_with(start)) {
                machine.variables.insert(name, value);
            }
        }
        for (key, value) in
            says("pip3", &["config", "list"]).iter().flat_map(|text| text.lines()).filter_map(pip_setting)
        {
            machine.variables.insert(format!("PIP_{key}"), value);
        }
        if let Ok(registry) = says("npm", &["config", "get", "registry"]) {
            machine.variables.insert("NPM_CONFIG_REGISTRY".into(), registry.trim().to_owned());
        }
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        if let Ok(npmrc) = fs::read(home.join(".npmrc")) {
            machine.secret("npm", &["NPM_CONFIG_USERCONFIG"], npmrc);
        }
        let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
        if let Ok(config) = fs::read(cargo.join("config.toml")).or_else(|_| fs::read(cargo.join("config"))) {
            machine.secret("cargo", &[], config);
        }
        let bundle = std::env::var_os("SSL_CERT_FILE").unwrap_or("/etc/ssl/certs/ca-certificates.crt".into());
        if let Ok(bundle) = fs::read(bundle) {
            let variables =
                ["PIP_CERT", "NPM_CONFIG_CAFILE", "NODE_EXTRA_CA_CERTS", "CARGO_HTTP_CAINFO", "SSL_CERT_FILE"];
            machine.secret("ca", &variables, bundle);
        }
        machine
    }

    fn secret(&mut self, id: &'static str, variables: &[&str], content: Vec<u8>) {
        self.variables.extend(variables.iter().map(|name| ((*name).to_owned(), format!("/run/secrets/{id}"))));
        self.secrets.insert(id, content);
    }

    /// A Dockerfile with every `@machine` replaced.
    pub fn mounts(&self, dockerfile: &str) -> String {
        let mut mounts = "--mount=type=secret,id=machine,required=true ".to_owned();
        for id in self.secrets.keys() {
            let target = if *id == "cargo" { format!(",target={CARGO}") } else { String::new() };
            write!(mounts, "--mount=type=secret,id={id},required=true{target} ").unwrap();
        }
        dockerfile.replace("@machine ", &format!("{mounts}. /run/secrets/machine && "))
    }

    /// Flags that give a build the secrets; the files lie in the world of the kitchen.
    pub fn flags(&self, kitchen: &Kitchen) -> String {
        let quoted = |value: &str| value.replace('\'', "'\\''");
        let variables = self.variables.iter().map(|(key, value)| format!("export {key}='{}'\n", quoted(value)));
        let variables = variables.collect::<String>().into_bytes();
        let mut flags = String::new();
        for (id, content) in self.secrets.iter().chain([(&"machine", &variables)]) {
            let path = format!("machine/{id}");
            kitchen.world.write(&path, content);
            write!(flags, " --secret id={id},src={path}").unwrap();
        }
        kitchen.who.own(&kitchen.world, "machine");
        flags
    }
}

/// A line of `pip config list`, such as `global.index-url='https://..'`, if it says how to reach an index.
fn pip_setting(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let (_, key) = key.rsplit_once('.')?;
    let wanted = ["index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"].contains(&key);
    let value = value.trim_matches(['\'', '"']).replace("\\n", " ");
    wanted.then(|| (key.to_uppercase().replace('-', "_"), value))
}

/// A file of the fixtures beside this file.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/apps").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
