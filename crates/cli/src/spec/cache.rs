//! `--import-cache`, `--export-cache` and docker's `--cache-from`, `--cache-to`.

use std::collections::BTreeMap;

use base::Fault;
use engine::CacheOptions;

use super::{csv, invalid};
use crate::environment::Environment;

/// Which way a cache goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read.
    Import,
    /// Written.
    Export,
}

/// Parses every value of the flag. A value without `type=` is an image reference, as it always was.
pub fn caches(
    flag: &str,
    direction: Direction,
    values: &[String],
    environment: &Environment,
) -> Result<Vec<CacheOptions>, Fault> {
    values.iter().map(|value| cache(flag, direction, value, environment)).collect()
}

fn cache(flag: &str, direction: Direction, value: &str, environment: &Environment) -> Result<CacheOptions, Fault> {
    let mut attrs = match value.contains("type=") {
        true => csv::attributes(flag, value)?,
        false if value.is_empty() => return Err(invalid(flag, value, "it is empty")),
        false => BTreeMap::from([("type".to_owned(), "registry".to_owned()), ("ref".to_owned(), value.to_owned())]),
    };
    let kind =
        attrs.remove("type").filter(|kind| !kind.is_empty()).ok_or_else(|| invalid(flag, value, "type= is missing"))?;
    if direction == Direction::Export {
        attrs.entry("mode".to_owned()).or_insert_with(|| "min".to_owned());
    }
    if kind == "gha" {
        add_github(&mut attrs, environment);
    }
    Ok(CacheOptions { kind, attrs })
}

/// The address and token that GitHub's runner puts into the environment of actions. What is missing is said by who has such
/// caches: we have none, and no address would change that.
fn add_github(attrs: &mut BTreeMap<String, String>, environment: &Environment) {
    let v2 = match attrs.get("version") {
        Some(version) => version == "2",
        None => environment.lookup("ACTIONS_CACHE_SERVICE_V2").and_then(config::parse_bool) == Some(true),
    };
    let results = environment.lookup("ACTIONS_RESULTS_URL");
    let mut default = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            attrs.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    };
    default("url_v2", results.filter(|_| v2));
    default("url", environment.lookup("ACTIONS_CACHE_URL").or(results));
    default("token", environment.lookup("ACTIONS_RUNTIME_TOKEN"));
}
