//! `--output`: what is made of the result and where it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base::Fault;
use engine::ExportRequest;
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use session::Output;

use super::pairs::errno_text;
use super::{csv, invalid};
use crate::environment::Environment;

const FLAG: &str = "--output";

/// One `--output`.
#[derive(Clone, Debug)]
pub struct Export {
    /// What the engine makes.
    pub request: ExportRequest,
    /// Where the session puts it.
    pub output: Output,
}

/// BuildKit's form: always `type=..`.
pub fn buildkit(value: &str, environment: &Environment) -> Result<Export, Fault> {
    let mut attrs = attributes(value)?;
    let kind =
        attrs.remove("type").filter(|kind| !kind.is_empty()).ok_or_else(|| invalid(FLAG, value, "type= is missing"))?;
    finish(value, kind, attrs, environment)
}

/// Refuses outputs that would write over each other.
pub fn expect_distinct(exports: &[Export]) -> Result<(), Fault> {
    if exports.iter().filter(|export| matches!(export.output, Output::Stdout)).count() > 1 {
        return Err(Fault::user("only one --output can go to standard output"));
    }
    let mut taken = BTreeSet::new();
    for export in exports {
        let (Output::File(path) | Output::Directory(path) | Output::Mirror(path)) = &export.output else { continue };
        // A device or a pipe takes what it gets.
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            continue;
        }
        if !taken.insert(place(path)) {
            return Err(Fault::user(format!("two outputs go to `{}`: each needs a dest= of its own", path.display())));
        }
    }
    for export in exports {
        let Output::Mirror(mirror) = &export.output else { continue };
        let mirrored = place(mirror);
        if let Some(lost) = taken.iter().find(|other| **other != mirrored && other.starts_with(&mirrored)) {
            return Err(Fault::user(format!(
                "mode=delete of `{}` would delete the output `{}`",
                mirror.display(),
                lost.display()
            )));
        }
    }
    Ok(())
}

/// Refuses outputs with `mode=delete` that would delete what the build reads or keeps in `places`.
pub fn expect_spared<'a>(
    exports: &[Export],
    places: impl IntoIterator<Item = &'a std::path::Path>,
) -> Result<(), Fault> {
    let mirror = |export: &Export| match &export.output {
        Output::Mirror(path) => Some(place(path)),
        _ => None,
    };
    let mirrors: Vec<_> = exports.iter().filter_map(mirror).collect();
    match places.into_iter().find(|kept| mirrors.iter().any(|mirror| place(kept).starts_with(mirror))) {
        Some(kept) => Err(Fault::user(format!("mode=delete would delete `{}`, which the build needs", kept.display()))),
        None => Ok(()),
    }
}

/// Where a path leads, there or not.
fn place(path: &std::path::Path) -> std::path::PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

fn attributes(value: &str) -> Result<BTreeMap<String, String>, Fault> {
    let attrs = csv::attributes(FLAG, value)?;
    for key in ["output", "dst", "destination"] {
        if let Some(dest) = attrs.get(key) {
            return Err(invalid(FLAG, value, format!("unknown key `{key}`, did you mean dest={dest}?")));
        }
    }
    Ok(attrs)
}

/// docker's form: also a directory, or `-` for a tar on standard output. None: the build is only run.
pub fn docker(value: &str, environment: &Environment) -> Result<Option<Export>, Fault> {
    let fields = csv::fields(value).map_err(|error| invalid(FLAG, value, error))?;
    if let [one] = fields.as_slice()
        && !one.contains('=')
    {
        let (kind, dest) = if one == "-" { ("tar", "-") } else { ("local", one.as_str()) };
        let attrs = BTreeMap::from([("dest".to_owned(), dest.to_owned())]);
        return finish(value, kind.to_owned(), attrs, environment).map(Some);
    }
    let mut attrs = attributes(value)?;
    let kind =
        attrs.remove("type").filter(|kind| !kind.is_empty()).ok_or_else(|| invalid(FLAG, value, "type= is missing"))?;
    if kind == "docker" && !attrs.contains_key("dest") && is_archive(&attrs) {
        return Err(invalid(FLAG, value, "there is no docker daemon to load into, dest= is missing")
            .hint("write the archive with dest=image.tar, then run `docker load -i image.tar` where docker is"));
    }
    if kind == "registry" {
        attrs.insert("push".to_owned(), "true".to_owned());
        return finish(value, "image".to_owned(), attrs, environment).map(Some);
    }
    if kind == "cacheonly" && attrs.is_empty() {
        return Ok(None);
    }
    finish(value, kind, attrs, environment).map(Some)
}

/// `tar=false` asks for a directory in place of an archive.
fn is_archive(attrs: &BTreeMap<String, String>) -> bool {
    attrs.get("tar").and_then(|text| config::parse_bool(text)).unwrap_or(true)
}

fn finish(
    value: &str,
    kind: String,
    mut attrs: BTreeMap<String, String>,
    environment: &Environment,
) -> Result<Export, Fault> {
    let dest = attrs.get("dest").cloned().unwrap_or_default();
    let output = match kind.as_str() {
        "local" if attrs.get("mode").is_some_and(|mode| mode.trim().eq_ignore_ascii_case("delete")) => {
            match directory(value, &kind, &dest)? {
                Output::Directory(dir) => Output::Mirror(dir),
                other => other,
            }
        }
        "local" => directory(value, &kind, &dest)?,
        "oci" | "docker" if !is_archive(&attrs) => directory(value, &kind, &dest)?,
        "tar" | "oci" | "docker" => archive(value, &kind, &dest, environment)?,
        "image" if dest.is_empty() => Output::None,
        "image" => return Err(invalid(FLAG, value, "type=image has no dest=, it stays in the store or is pushed")),
        other => {
            return Err(invalid(
                FLAG,
                value,
                format!("unknown type `{other}`: known are image, oci, docker, local and tar"),
            ));
        }
    };
    attrs.remove("dest");
    Ok(Export { request: ExportRequest { kind, attrs }, output })
}

fn directory(value: &str, kind: &str, dest: &str) -> Result<Output, Fault> {
    match dest {
        "" => Err(invalid(FLAG, value, format!("type={kind} wants a directory: dest= is missing"))),
        "-" => Err(invalid(FLAG, value, format!("type={kind} wants a directory, `-` is standard output"))
            .hint("write an archive by type=tar, or name a directory so by dest=./-")),
        dest => match std::fs::metadata(dest) {
            Ok(meta) if !meta.is_dir() => Err(invalid(FLAG, value, format!("`{dest}` is not a directory"))),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(invalid(FLAG, value, format!("`{dest}`: {}", errno_text(&error))))
            }
            _ => {
                // What is missing of it is made below the nearest directory that is there.
                let path = std::path::absolute(dest).unwrap_or_else(|_| PathBuf::from(dest));
                if let Some(there) = path.ancestors().find(|path| path.exists()) {
                    expect_writable(value, there)?;
                }
                Ok(Output::Directory(PathBuf::from(dest)))
            }
        },
    }
}

fn archive(value: &str, kind: &str, dest: &str, environment: &Environment) -> Result<Output, Fault> {
    if dest.is_empty() || dest == "-" {
        if environment.stdout_is_terminal {
            let why = format!("type={kind} would write an archive to the terminal: add dest=FILE or redirect");
            return Err(invalid(FLAG, value, why));
        }
        return Ok(Output::Stdout);
    }
    let path = Path::new(dest);
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(invalid(FLAG, value, format!("`{dest}` is a directory, a file is wanted"))),
        Ok(_) => expect_writable(value, path).map(|()| Output::File(path.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Found out now, not after a long build.
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match parent.is_dir() {
                true => expect_writable(value, parent).map(|()| Output::File(path.to_owned())),
                false => {
                    let why = format!("there is no directory `{}`", parent.display());
                    Err(invalid(FLAG, value, why).hint("make it first: only for type=local it is made"))
                }
            }
        }
        Err(error) => Err(invalid(FLAG, value, format!("`{dest}`: {}", errno_text(&error)))),
    }
}

/// Found out now, not after a long build. A directory that is no directory is found out, too.
fn expect_writable(value: &str, path: &Path) -> Result<(), Fault> {
    let wanted = match path.is_dir() {
        true => Access::WRITE_OK | Access::EXEC_OK,
        false => Access::WRITE_OK,
    };
    match rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS) {
        // The question itself may be refused, by filters that know only older calls: writing will tell.
        Ok(()) | Err(Errno::PERM | Errno::NOSYS) => Ok(()),
        Err(errno) => {
            Err(invalid(FLAG, value, format!("cannot write to `{}`: {}", path.display(), errno_text(&errno.into()))))
        }
    }
}
