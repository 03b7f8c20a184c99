//! `key=value` flags: `--opt`, `--local`, `--build-arg`, `--label`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base::Fault;

use super::invalid;
use crate::environment::Environment;

/// `key=value`; later ones win.
pub fn pairs(flag: &str, values: &[String]) -> Result<BTreeMap<String, String>, Fault> {
    values.iter().map(|value| pair(flag, value)).collect()
}

fn pair(flag: &str, value: &str) -> Result<(String, String), Fault> {
    let (key, content) = value.split_once('=').ok_or_else(|| invalid(flag, value, "expected key=value"))?;
    Ok((key.to_owned(), content.to_owned()))
}

/// `--local name=dir`: directories must be there.
pub fn locals(values: &[String]) -> Result<BTreeMap<String, PathBuf>, Fault> {
    let dirs = pairs("--local", values)?;
    for (name, dir) in &dirs {
        require_dir("--local", &format!("{name}={dir}"), dir.as_ref())?;
    }
    Ok(dirs.into_iter().map(|(name, dir)| (name, PathBuf::from(dir))).collect())
}

/// Fails unless `dir` is a directory.
pub fn require_dir(flag: &str, value: &str, dir: &std::path::Path) -> Result<(), Fault> {
    match std::fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(invalid(flag, value, format!("`{}` is not a directory", dir.display()))),
        Err(error) => Err(invalid(flag, value, format!("`{}`: {}", dir.display(), errno_text(&error)))),
    }
}

/// The text of an I/O error without Rust's `(os error 2)`, lower case.
pub fn errno_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// BuildKit's `--opt`: a build argument without a value takes it from the environment, and is left out when it
/// is not set there; `SOURCE_DATE_EPOCH` of the environment is a build argument that an explicit one replaces.
pub fn frontend_options(values: &[String], environment: &Environment) -> Result<BTreeMap<String, String>, Fault> {
    let mut out = BTreeMap::new();
    insert_source_date_epoch(&mut out, environment);
    for value in values {
        match value.strip_prefix("build-arg:") {
            Some(name) if !name.is_empty() && !name.contains('=') => {
                if let Some(content) = environment.lookup(name) {
                    out.insert(value.clone(), content.to_owned());
                }
            }
            _ => {
                let (key, content) = pair("--opt", value)?;
                out.insert(key, content);
            }
        }
    }
    Ok(out)
}

/// `--build-arg`: as docker, a name without a value takes it from the environment or is left out.
pub fn build_args(values: &[String], environment: &Environment) -> Result<BTreeMap<String, String>, Fault> {
    let mut out = BTreeMap::new();
    insert_source_date_epoch(&mut out, environment);
    for value in values {
        let (name, content) = match value.split_once('=') {
            Some((name, content)) => (name, Some(content)),
            None => (value.as_str(), environment.lookup(value)),
        };
        if name.is_empty() {
            return Err(invalid("--build-arg", value, "the name is missing"));
        }
        if let Some(content) = content {
            out.insert(format!("build-arg:{name}"), content.to_owned());
        }
    }
    Ok(out)
}

fn insert_source_date_epoch(out: &mut BTreeMap<String, String>, environment: &Environment) {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    if let Some(epoch) = environment.lookup(NAME) {
        out.insert(format!("build-arg:{NAME}"), epoch.to_owned());
    }
}

/// `--label`: a label without `=` has an empty value.
pub fn labels(values: &[String]) -> Result<BTreeMap<String, String>, Fault> {
    let label = |value: &String| {
        let (key, content) = value.split_once('=').unwrap_or((value, ""));
        if key.is_empty() {
            return Err(invalid("--label", value, "the name is missing"));
        }
        Ok((format!("label:{key}"), content.to_owned()))
    };
    values.iter().map(label).collect()
}
