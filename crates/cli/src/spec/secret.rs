//! `--secret`.

use std::path::PathBuf;

use base::{Fault, Secret};
use session::local::{MAX_SECRET_BYTES, SecretSource};

use super::pairs::errno_text;
use super::{csv, invalid};
use crate::environment::Environment;
use crate::fault::print_warning;

/// `--secret id=..[,src=..|,env=..][,type=file|env]`: its id and where its value comes from.
///
/// Without a source the variable of that name is taken, else the file of that name.
pub fn secret(value: &str, environment: &Environment) -> Result<(String, SecretSource), Fault> {
    const FLAG: &str = "--secret";
    let mut attrs = csv::attributes(FLAG, value)?;
    let kind = attrs.remove("type");
    let id = attrs.remove("id").filter(|id| !id.is_empty());
    let mut file = attrs.remove("src").or(attrs.remove("source")).filter(|path| !path.is_empty());
    let mut variable = attrs.remove("env").filter(|name| !name.is_empty());
    if let Some(key) = attrs.keys().next() {
        return Err(invalid(FLAG, value, format!("unknown key `{key}`: known are id, src, env and type")));
    }
    let id = id.ok_or_else(|| invalid(FLAG, value, "id= is missing"))?;
    match kind.as_deref() {
        None | Some("file") => {}
        Some("env") if variable.is_none() => variable = file.take(),
        Some("env") => {}
        Some(other) => return Err(invalid(FLAG, value, format!("unknown type `{other}`: known are file and env"))),
    }
    if file.is_none() && variable.is_none() {
        match environment.lookup(&id) {
            Some(_) if kind.as_deref() != Some("file") => variable = Some(id.clone()),
            _ => file = Some(id.clone()),
        }
    }
    if let Some(name) = variable {
        // An unset variable is an empty secret, as in BuildKit; saying so is the least we can do.
        let content = environment.lookup(&name).unwrap_or_else(|| {
            let text = format!("secret `{id}` is empty: the environment variable `{name}` is not set");
            print_warning(&mut std::io::stderr(), text);
            Default::default()
        });
        return Ok((id, SecretSource::Value(Secret::new(content))));
    }
    let path = PathBuf::from(file.unwrap_or_default());
    let meta = std::fs::metadata(&path)
        .map_err(|error| invalid(FLAG, value, format!("`{}`: {}", path.display(), errno_text(&error))))?;
    if meta.is_dir() {
        return Err(invalid(FLAG, value, format!("`{}` is a directory", path.display())));
    }
    if meta.len() > MAX_SECRET_BYTES {
        return Err(invalid(
            FLAG,
            value,
            format!("`{}` is larger than {} KiB", path.display(), MAX_SECRET_BYTES / 1024),
        ));
    }
    Ok((id, SecretSource::File(path)))
}
