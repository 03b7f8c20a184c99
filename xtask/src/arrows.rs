//! The dependencies between crates, compared with the table of levels in ARCHITECTURE.md.
//!
//! A crate may use those of lower levels. Inside a level only what is drawn there: `` `store` (→ `files`) ``. Models
//! (level 1) use nothing that reaches the world. Test helpers are for tests only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::process::output;

/// What models must not use: they have no I/O, no async, no clock.
const WORLD: [&str; 7] = ["tokio", "rustix", "libc", "reqwest", "rusqlite", "async-trait", "tempfile"];
/// The level of the models.
const MODELS: u32 = 1;
/// Crates that are never shipped; nothing but tests may use them.
const BESIDE: [&str; 2] = ["testkit", "xtask"];

/// What is drawn.
#[derive(Debug, Default, PartialEq, Eq)]
struct Drawn {
    level: BTreeMap<String, u32>,
    inside: BTreeSet<(String, String)>,
}

/// Crate -> what it uses in its shipped code.
type Used = BTreeMap<String, BTreeSet<String>>;

/// Compares, and prints every arrow that is not drawn with the chain that leads to it.
pub fn check() -> Result<()> {
    let page = std::fs::read_to_string("ARCHITECTURE.md").context("read ARCHITECTURE.md")?;
    let metadata = output("cargo", &["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .context("`cargo metadata` failed")?;
    let used = used(&serde_json::from_str(&metadata).context("read `cargo metadata`")?)?;
    let complaints = compare(&drawn(&page)?, &used);
    if !complaints.is_empty() {
        bail!("arrows between crates\n{complaints}");
    }
    println!("arrows between {} crates are as drawn", used.len());
    Ok(())
}

/// Reads the rows `| 2 machines | `store` (→ `files`), `registry` |`.
fn drawn(page: &str) -> Result<Drawn> {
    let mut drawn = Drawn::default();
    for line in page.lines() {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let (Some(head), Some(rooms)) = (cells.next(), cells.next()) else { continue };
        let Some(level) = head.split(' ').next().and_then(|word| word.parse().ok()) else { continue };
        // Names in parentheses after an arrow belong to the room in front of it.
        let mut room = None;
        let mut inside = false;
        for (index, part) in rooms.split('`').enumerate() {
            if index % 2 == 0 {
                inside = part.contains('→') || (inside && !part.contains(')'));
            } else if inside {
                let from = room.clone().context("an arrow without a room in front of it")?;
                drawn.inside.insert((from, part.to_owned()));
            } else {
                drawn.level.insert(part.to_owned(), level);
                room = Some(part.to_owned());
            }
        }
    }
    if drawn.level.is_empty() {
        bail!("ARCHITECTURE.md has no table of levels");
    }
    Ok(drawn)
}

fn used(metadata: &Value) -> Result<Used> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let shipped = |package: &Value| -> BTreeSet<String> {
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        normal.filter_map(|dependency| Some(dependency["name"].as_str()?.to_owned())).collect()
    };
    Ok(packages.iter().filter_map(|package| Some((package["name"].as_str()?.to_owned(), shipped(package)))).collect())
}

fn compare(drawn: &Drawn, used: &Used) -> String {
    let mut out = String::new();
    for (from, targets) in used {
        if BESIDE.contains(&from.as_str()) || from == "hullworks" {
            continue;
        }
        let Some(level) = drawn.level.get(from) else {
            let _ = writeln!(out, "  `{from}` has no place in the table of ARCHITECTURE.md");
            continue;
        };
        for target in targets {
            let why = match drawn.level.get(target) {
                None if BESIDE.contains(&target.as_str()) => "is for tests only",
                None if *level == MODELS && WORLD.contains(&target.as_str()) => "reaches the world, and models do not",
                None => continue,
                Some(below) if below < level => continue,
                Some(same) if same == level && drawn.inside.contains(&(from.clone(), target.clone())) => continue,
                Some(same) if same == level => "is of the same level, and no arrow is drawn",
                Some(_) => "is of a higher level",
            };
            let _ = writeln!(out, "  `{from}` -> `{target}`, which {why}: {} -> {target}", chain(used, from));
        }
    }
    for room in drawn.level.keys().filter(|room| !used.contains_key(*room)) {
        let _ = writeln!(out, "  `{room}` is in the table of ARCHITECTURE.md, and there is no such crate");
    }
    out
}

/// The shortest way from the binary to a crate.
fn chain(used: &Used, to: &str) -> String {
    let mut ways = VecDeque::from([vec!["hullworks"]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let here = way.last().copied().unwrap_or_default();
        if here == to {
            return way.join(" -> ");
        }
        for next in used.get(here).into_iter().flatten() {
            if used.contains_key(next) && seen.insert(next) {
                ways.push_back(way.iter().copied().chain([next.as_str()]).collect());
            }
        }
    }
    to.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# A page

| level | rooms |
|---|---|
| 2 machines | `store` (→ `files`, `solver`'s trait), `files` |
| 1 models | `solver`: values in and out |
| 0 ground | `base` |

| room | what |
|---|---|
| `base` | digests |
";

    fn used_by(arrows: &[(&str, &[&str])]) -> Used {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        arrows.iter().map(|(from, to)| ((*from).to_owned(), own(to))).collect()
    }

    #[test]
    fn the_table_is_read() {
        let drawn = drawn(PAGE).expect("a table");
        let levels: Vec<(&str, u32)> = drawn.level.iter().map(|(room, level)| (room.as_str(), *level)).collect();
        assert_eq!(levels, [("base", 0), ("files", 2), ("solver", 1), ("store", 2)]);
        assert_eq!(drawn.inside.len(), 2);
        assert!(super::drawn("nothing").is_err());
    }

    #[test]
    fn new_arrows_are_told_with_their_chain() {
        let drawn = drawn(PAGE).expect("a table");
        let good: &[(&str, &[&str])] = &[
            ("hullworks", &["store"]),
            ("store", &["files", "solver", "base", "tokio"]),
            ("files", &["base"]),
            ("solver", &["base"]),
            ("base", &["sha2"]),
        ];
        assert_eq!(compare(&drawn, &used_by(good)), "");
        let bad: &[(&str, &[&str])] = &[
            ("hullworks", &["store"]),
            ("store", &["files", "testkit"]),
            ("files", &["store", "new"]),
            ("solver", &["files", "tokio"]),
            ("new", &["base"]),
            ("base", &[]),
            ("testkit", &["base"]),
        ];
        assert_eq!(
            compare(&drawn, &used_by(bad)),
            "  `files` -> `store`, which is of the same level, and no arrow is drawn: hullworks -> store -> files -> store
  `new` has no place in the table of ARCHITECTURE.md
  `solver` -> `files`, which is of a higher level: solver -> files
  `solver` -> `tokio`, which reaches the world, and models do not: solver -> tokio
  `store` -> `testkit`, which is for tests only: hullworks -> store -> testkit
"
        );
    }
}
