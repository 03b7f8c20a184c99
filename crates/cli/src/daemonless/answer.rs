//! What is printed where a frontend was asked something in the place of a build.

use std::collections::BTreeMap;

use base::{Fault, Kind};

/// How the answer is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The checks: their count is told, and findings are a failure.
    pub check: bool,
    /// As JSON.
    pub json: bool,
}

/// Prints an answer on standard output.
pub(super) fn print(call: Call, answer: &BTreeMap<String, Vec<u8>>) -> Result<(), Fault> {
    let text = |name: &str| answer.get(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let shown = match (call.json, text("result.txt"), text("result.json")) {
        (true, _, Some(json)) => format!("{json}\n"),
        (false, Some(text), _) => text,
        // Whatever a frontend of its own says.
        _ => answer
            .iter()
            .filter(|(name, _)| name.starts_with("result."))
            .map(|(name, bytes)| format!("{name}\n{}\n", String::from_utf8_lossy(bytes)))
            .collect(),
    };
    if !call.check {
        return crate::print(&shown);
    }
    let found = Findings::read(answer)?;
    if !call.json {
        crate::print_line(&format!("Check complete, {}", found.counted()))?;
    }
    crate::print(&shown)?;
    match found {
        Findings { error: Some(error), .. } => Err(Fault::user(error)),
        Findings { warnings: 0, .. } => Ok(()),
        found => Err(Fault::user(found.counted().trim_end_matches('!'))),
    }
}

/// What the checks found.
struct Findings {
    warnings: usize,
    error: Option<String>,
}

impl Findings {
    fn read(answer: &BTreeMap<String, Vec<u8>>) -> Result<Findings, Fault> {
        let json = answer.get("result.json").map(Vec::as_slice).unwrap_or(b"{}");
        let value = serde_json::from_slice::<serde_json::Value>(json);
        let value = value.map_err(|e| Fault::because(Kind::Remote, "the answer of the checks is malformed", e))?;
        Ok(Findings {
            warnings: value["warnings"].as_array().map_or(0, Vec::len),
            error: value["buildError"]["message"].as_str().map(str::to_owned),
        })
    }

    fn counted(&self) -> String {
        match self.warnings {
            0 => "no warnings found.".to_owned(),
            1 => "1 warning has been found!".to_owned(),
            count => format!("{count} warnings have been found!"),
        }
    }
}
