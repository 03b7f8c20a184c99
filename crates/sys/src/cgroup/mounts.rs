//! Which hierarchies are mounted where, and which group of each is ours (cgroups(7), proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

use super::Limits;
use crate::Error;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its mount point.
    pub(super) top: PathBuf,
    /// Our own group in it.
    pub(super) own: PathBuf,
}

/// All that concern us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    pub(super) unified: Option<Hierarchy>,
    pub(super) devices: Option<Hierarchy>,
    /// Version 1's other controllers by name.
    pub(super) controllers: Vec<(String, Hierarchy)>,
    /// Version 2's controllers that our group may hand down.
    pub(super) available: Vec<String>,
}

impl Hierarchies {
    pub(super) fn of_this_process() -> Result<Hierarchies, Error> {
        let read = |path| std::fs::read_to_string(path).map_err(|error| Error::path("read", path, error));
        let mut found = Hierarchies::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        if let Some(unified) = &found.unified {
            let controllers = std::fs::read_to_string(unified.own.join("cgroup.controllers")).unwrap_or_default();
            found.available = controllers.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// `cgroup` is /proc/PID/cgroup, `mountinfo` its neighbour.
    pub(super) fn parse(cgroup: &str, mountinfo: &str) -> Hierarchies {
        let mut found = Hierarchies::default();
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            if controllers.is_empty() {
                let mut mounts = mounts.iter().filter(|mount| mount.kind == "cgroup2");
                found.unified = mounts.find_map(|mount| mount.group(path));
                continue;
            }
            for controller in controllers.split(',') {
                let mut mounts = mounts
                    .iter()
                    .filter(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|o| o == controller));
                let Some(hierarchy) = mounts.find_map(|mount| mount.group(path)) else { continue };
                match controller {
                    "devices" => found.devices = Some(hierarchy),
                    _ => found.controllers.push((controller.to_owned(), hierarchy)),
                }
            }
        }
        found
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        let others = self.controllers.iter().map(|(_, hierarchy)| hierarchy);
        self.unified.iter().chain(&self.devices).chain(others)
    }

    /// The directory that counts our memory.
    pub(super) fn memory(&self) -> Option<&Path> {
        let version1 = self.controllers.iter().find(|(name, _)| name == "memory").map(|(_, hierarchy)| hierarchy);
        version1.or(self.unified.as_ref()).map(|hierarchy| hierarchy.own.as_path())
    }

    /// The controllers of version 2 that `limits` need.
    pub(super) fn unified_controllers(&self, limits: &Limits) -> Vec<&'static str> {
        needed(limits).into_iter().filter(|name| self.available.iter().any(|have| have == name)).collect()
    }

    /// Version 1's hierarchies by controller, that of device rules first.
    pub(super) fn version1(&self) -> impl Iterator<Item = (&str, &Hierarchy)> {
        let devices = self.devices.iter().map(|hierarchy| ("devices", hierarchy));
        devices.chain(self.controllers.iter().map(|(name, hierarchy)| (name.as_str(), hierarchy)))
    }

    /// Whether every limit has a controller.
    pub(super) fn can(&self, limits: &Limits) -> Result<(), &'static str> {
        let has = |name: &str| {
            self.available.iter().any(|have| have == name) || self.controllers.iter().any(|(have, _)| have == name)
        };
        needed(limits).into_iter().find(|name| !has(name)).map_or(Ok(()), Err)
    }
}

/// The controllers of `limits`.
pub(super) fn needed(limits: &Limits) -> Vec<&'static str> {
    let cpu = limits.cpu_shares.is_some() || limits.cpu_quota.is_some() || limits.cpu_period.is_some();
    [
        ("memory", limits.memory.is_some() || limits.memory_swap.is_some()),
        ("cpu", cpu),
        ("cpuset", limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some()),
        ("pids", limits.pids.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, needed)| needed.then_some(name))
    .collect()
}

/// A line of mountinfo.
struct Mount<'a> {
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        let mut tail = tail.split(' ');
        let kind = tail.next()?;
        let options = tail.nth(1).unwrap_or_default();
        // Blanks of the path are octal escapes.
        let point = point.replace("\\040", " ").into();
        Some(Mount { root, point, kind, options })
    }

    /// Our group `path` below this mount, which may show only a part of the hierarchy.
    fn group(&self, path: &str) -> Option<Hierarchy> {
        // Outside of the part that a cgroup namespace shows.
        if path.starts_with("/..") {
            return None;
        }
        let below = match self.root {
            "/" => path,
            root => match path.strip_prefix(root) {
                Some(below) if below.is_empty() || below.starts_with('/') => below,
                // A container's own group is mounted, and its name is that of the host: it is the mount's top.
                _ if path == "/" => "",
                _ => return None,
            },
        };
        let below = below.trim_start_matches('/');
        let own = if below.is_empty() { self.point.clone() } else { self.point.join(below) };
        Some(Hierarchy { top: self.point.clone(), own })
    }
}
