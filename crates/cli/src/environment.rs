//! What the process was given: variables, terminals, identity. Read once, so that everything below is a
//! function of its arguments and tests can say what the environment is.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use sys::userns::{Ids, Isolation};

/// The environment of the program.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    /// Standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// The program was started by an ordinary user, or by root of a user namespace that acts for one.
    pub rootless: bool,
    /// How steps can be kept apart, once that is known.
    pub isolation: Option<Isolation>,
}

impl Environment {
    /// Reads the process. Variables that are not UTF-8 are left out: nothing that we look up is.
    pub fn of_process() -> Environment {
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let mut environment = Environment {
            variables,
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            rootless: false,
            isolation: None,
        };
        environment.rootless = !rustix::process::geteuid().is_root() || environment.acts_for_a_user();
        environment
    }

    /// An environment with these variables only.
    pub fn with(variables: &[(&str, &str)]) -> Environment {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Environment { variables: variables.iter().map(own).collect(), ..Environment::default() }
    }

    /// The value of a variable, which may be empty.
    pub fn lookup(&self, key: &str) -> Option<&str> {
        self.variables.get(key).map(String::as_str)
    }

    /// The value of a variable that is set to something.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lookup(key).filter(|value| !value.is_empty())
    }

    /// The value of a variable as a path.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.get(key).map(PathBuf::from)
    }

    /// Every variable.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Upstream's rule: root of a user namespace whose `USER` is somebody else acts for that user.
    fn acts_for_a_user(&self) -> bool {
        let in_user_namespace = std::fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]);
        in_user_namespace && self.get("USER").is_some_and(|user| user != "root")
    }

    /// Why steps have one id only, where it is so: what they may not do is no surprise then.
    pub fn tell_single_id(&self) -> Option<String> {
        let isolation = self.isolation.as_ref().filter(|isolation| isolation.ids == Ids::Single)?;
        let why = isolation.why.rsplit("single id (").next().unwrap_or_default().trim_end_matches(')');
        Some(format!("steps run with one user id, as root only: {why}"))
    }

    /// Where an ordinary user's docker configuration is.
    pub fn docker_config_dir(&self) -> Option<PathBuf> {
        self.path("DOCKER_CONFIG").or_else(|| self.path("HOME").map(|home| home.join(".docker")))
    }

    /// The state directory when nothing else is said: BuildKit's places, since people mount volumes there.
    pub fn default_root(&self) -> PathBuf {
        let system = PathBuf::from("/var/lib/buildkit");
        if !self.rootless {
            return system;
        }
        match (self.get("XDG_DATA_HOME"), self.path("HOME")) {
            (Some(dirs), _) => PathBuf::from(dirs.split(':').next().unwrap_or(dirs)).join("buildkit"),
            (None, Some(home)) => home.join(".local/share/buildkit"),
            (None, None) => system,
        }
    }

    /// Where the daemon listens, and clients look for it, when nothing else is said.
    pub fn default_address(&self) -> String {
        match self.get("XDG_RUNTIME_DIR").filter(|_| self.rootless) {
            Some(dirs) => format!("unix://{}/buildkit/buildkitd.sock", dirs.split(':').next().unwrap_or(dirs)),
            None => "unix:///run/buildkit/buildkitd.sock".to_owned(),
        }
    }

    /// The proxy variables, for outgoing connections.
    pub fn proxies(&self) -> BTreeMap<String, String> {
        const NAMES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
        self.variables()
            .filter(|(key, _)| NAMES.contains(&key.to_ascii_lowercase().as_str()))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}
