//! Reading id maps and subordinate ranges.

use std::path::Path;

use crate::Error;

/// A range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdRange {
    pub(super) start: u32,
    pub(super) count: u32,
}

/// Whether this is the machine's first user namespace, where ids are not mapped at all.
pub fn in_initial_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map");
    map.is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// The ids that exist here (`uid_map`, user_namespaces(7)).
pub(super) fn identity_map(path: &Path) -> Result<Vec<IdRange>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::path("read", path, error))?;
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let (start, _, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(IdRange { start, count })
    };
    Ok(text.lines().filter_map(range).collect())
}

/// The ranges that subuid(5) or subgid(5) gives to a user, by name or by number.
pub(super) fn subordinate(text: &str, uid: u32, name: Option<&str>) -> Vec<IdRange> {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        if Some(owner) != name && owner.parse() != Ok(uid) {
            return None;
        }
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (count > 0).then_some(IdRange { start, count })
    });
    ranges.collect()
}
