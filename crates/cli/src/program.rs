//! Which program the binary is, by the name that it is called by or by its first word.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The programs in the one binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `hullworks`: for people.
    Hullworks,
    /// `buildctl-daemonless.sh`: buildctl and buildkitd in one process.
    BuildctlDaemonless,
    /// `buildkitd`: the daemon.
    Buildkitd,
    /// `buildctl`: the client of a daemon.
    Buildctl,
    /// `executor`: Kaniko's.
    Executor,
}

impl Program {
    fn named(name: &OsStr) -> Option<Program> {
        match name.to_str()? {
            "hullworks" => Some(Program::Hullworks),
            "buildctl-daemonless.sh" | "buildctl-daemonless" => Some(Program::BuildctlDaemonless),
            "buildkitd" => Some(Program::Buildkitd),
            "buildctl" => Some(Program::Buildctl),
            "executor" => Some(Program::Executor),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Program::Hullworks => "hullworks",
            Program::BuildctlDaemonless => "buildctl-daemonless.sh",
            Program::Buildkitd => "buildkitd",
            Program::Buildctl => "buildctl",
            Program::Executor => "executor",
        }
    }

    /// The program and its own arguments. An unknown name is `hullworks`, so that a renamed binary works.
    pub fn choose(args: Vec<OsString>) -> (Program, Vec<OsString>) {
        let mut args = args.into_iter();
        let called = args.next().unwrap_or_default();
        let by_name = Path::new(&called).file_name().and_then(Program::named).unwrap_or(Program::Hullworks);
        let mut rest: Vec<OsString> = args.collect();
        if by_name == Program::Hullworks
            && let Some(program) = rest.first().and_then(|word| Program::named(word))
        {
            rest.remove(0);
            return (program, rest);
        }
        (by_name, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_or_first_word_decides() {
        use Program::*;
        for (line, program, rest) in [
            ("hullworks build .", Hullworks, "build ."),
            ("/usr/bin/buildctl-daemonless.sh build", BuildctlDaemonless, "build"),
            ("hullworks buildctl-daemonless.sh build --progress=plain", BuildctlDaemonless, "build --progress=plain"),
            ("buildkitd --debug", Buildkitd, "--debug"),
            ("./hullworks buildctl du", Buildctl, "du"),
            ("buildctl buildkitd", Buildctl, "buildkitd"),
            ("/kaniko/executor --context .", Executor, "--context ."),
            ("hw-linux-amd64 build", Hullworks, "build"),
            ("hullworks", Hullworks, ""),
            ("", Hullworks, ""),
        ] {
            let words = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
            assert_eq!(Program::choose(words(line)), (program, words(rest)), "{line}");
        }
    }
}
