//! Finding the program and becoming it.

use std::ffi::CString;
use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

use crate::message::Failure;

/// Becomes the program; returns only where that failed.
pub(super) fn become_program(args: &[String], env: &[String]) -> Failure {
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let Some(name) = args.first() else { return Failure::Invalid("the step has no arguments".to_owned()) };
    let program = match find(name, path) {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let strings = |strings: &[String]| strings.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(c_args), Ok(c_env), Ok(c_program)) = (strings(args), strings(env), CString::new(program.as_bytes())) else {
        return Failure::Invalid("an argument or environment variable of the step holds a zero byte".to_owned());
    };
    let errno = sys::process::exec(&c_program, &c_args, &c_env);
    Failure::Program(format!("exec {program}: {}", words(errno)))
}

/// The path of a program: as it is where it has a slash, else the first match in `path`.
fn find(name: &str, path: &str) -> Result<String, Failure> {
    let failed = |why: String| Failure::Program(format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        return match runnable(Path::new(name)) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => Err(failed(format!("stat {name}: no such file or directory"))),
            Err(errno) => Err(failed(words(errno))),
        };
    }
    for dir in path.split(':') {
        // An empty entry is the working directory.
        let candidate = if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        if runnable(Path::new(&candidate)).is_ok() {
            return Ok(candidate);
        }
    }
    Err(failed("executable file not found in $PATH".to_owned()))
}

fn runnable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, rustix::fs::AtFlags::EACCESS)
}

/// The system's words for an error, in lower case.
fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

/// The environment as a program gets it: of one name the last, with what must be there.
pub(super) fn environment(env: Vec<String>, home: &str) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut result: Vec<String> = Vec::with_capacity(env.len() + 2);
    for entry in env {
        let this = name(&entry);
        result.retain(|known| name(known) != this);
        result.push(entry);
    }
    if !result.iter().any(|entry| entry.starts_with("PATH=")) {
        result.push(format!("PATH={}", crate::DEFAULT_PATH));
    }
    if !result.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5) {
        result.retain(|entry| !entry.starts_with("HOME="));
        result.push(format!("HOME={home}"));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(entries: &[&str]) -> Vec<String> {
        environment(entries.iter().map(|&entry| entry.to_owned()).collect(), "/home/ann")
    }

    #[test]
    fn environments_are_completed() {
        let path = format!("PATH={}", crate::DEFAULT_PATH);
        assert_eq!(env(&[]), [path.as_str(), "HOME=/home/ann"]);
        assert_eq!(env(&["A=1", "PATH=/x", "A=2", "HOME=/h"]), ["PATH=/x", "A=2", "HOME=/h"]);
        assert_eq!(env(&["HOME=", "PATH="]), ["PATH=", "HOME=/home/ann"]);
    }

    #[test]
    fn programs_are_found_or_named() {
        let text = |name: &str, path: &str| match find(name, path) {
            Ok(found) => found,
            Err(Failure::Program(text)) => text,
            Err(other) => format!("{other:?}"),
        };
        for (name, path, expected) in [
            ("sh", "/nowhere:/bin", "/bin/sh"),
            ("/bin/sh", "", "/bin/sh"),
            ("nope", "/bin:/usr/bin", "exec: \"nope\": executable file not found in $PATH"),
            ("/nope", "", "exec: \"/nope\": stat /nope: no such file or directory"),
            ("/etc", "", "exec: \"/etc\": is a directory"),
        ] {
            assert_eq!(text(name, path), expected);
        }
    }
}
