//! `--ssh`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base::Fault;
use session::DEFAULT_AGENT;
use session::local::SshSource;

use super::invalid;
use crate::environment::Environment;

const FLAG: &str = "--ssh";

/// All `--ssh ID[=PATH[,PATH..][,raw=BOOL]]`, by id. A path is an agent's socket or a file with a private key; without one
/// the agent of the environment is meant.
pub fn agents(values: &[String], environment: &Environment) -> Result<BTreeMap<String, SshSource>, Fault> {
    let mut agents = BTreeMap::new();
    for value in values {
        let (id, source) = agent(value, environment)?;
        if agents.insert(id.clone(), source).is_some() {
            return Err(invalid(FLAG, value, format!("there is another one for `{id}`")));
        }
    }
    Ok(agents)
}

fn agent(value: &str, environment: &Environment) -> Result<(String, SshSource), Fault> {
    let (id, places) = value.split_once('=').unwrap_or((value, ""));
    let id = if id.is_empty() { DEFAULT_AGENT } else { id };
    let (mut paths, mut raw) = (Vec::new(), false);
    for place in places.split(',').filter(|place| !place.is_empty()) {
        match place.strip_prefix("raw=") {
            Some(text) => {
                let read = config::parse_bool(text);
                raw = read.ok_or_else(|| invalid(FLAG, value, format!("raw={text} is neither true nor false")))?;
            }
            None => paths.push(PathBuf::from(place)),
        }
    }
    if raw && paths.len() != 1 {
        return Err(invalid(FLAG, value, "raw=true takes exactly one socket"));
    }
    if paths.is_empty() {
        paths.extend(environment.path("SSH_AUTH_SOCK"));
    }
    if paths.is_empty() {
        return Err(invalid(FLAG, value, "there is no SSH agent: SSH_AUTH_SOCK is not set")
            .hint("start one (`eval $(ssh-agent)`, `ssh-add`), or name a key file: `--ssh default=<file>`"));
    }
    let source =
        SshSource::open(&paths, raw).map_err(|fault| fault.context(format!("invalid value `{value}` for {FLAG}")))?;
    Ok((id.to_owned(), source))
}
