//! One group: its limits, its processes, its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mounts::Hierarchy;
use super::parents::Above;
use super::{Limits, Removed, memory_limit_of, oom_kills_in, processes, remove_tree, write};
use crate::Error;

/// The group of one step: with limits, below a parent, or for an insecure step to make more in. When dropped it is removed,
/// and whatever still runs in it or below is killed; the kernel has two seconds for that, else it stays for a successor.
#[derive(Debug)]
pub struct Group {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) unified: Option<PathBuf>,
    pub(super) limit: Option<u64>,
    pub(super) left_out: Vec<String>,
    /// Says to others that it is in use, where its name has to.
    pub(super) _mark: Option<fs::File>,
    /// Takes parents away that were made for it.
    pub(super) _above: Option<Above>,
    /// Last, since it says that the others are gone.
    pub(super) _alive: Arc<()>,
}

impl Group {
    /// The directory of version 2, which a process can be born in.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The `cgroup.procs` files that a process joins.
    pub fn procs(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The memory limit that it was made with, or else the smallest one of the groups above.
    pub fn memory_limit(&self) -> Option<u64> {
        let above = || self.dirs.iter().flat_map(|dir| dir.ancestors()).filter_map(memory_limit_of).min();
        self.limit.or_else(above)
    }

    /// Controllers that it was to have, beside those that limits need, and the machine refused.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Its directory in a hierarchy.
    pub(super) fn dir_in(&self, hierarchy: &Hierarchy) -> Option<&Path> {
        self.dirs.iter().find(|dir| dir.starts_with(&hierarchy.top)).map(PathBuf::as_path)
    }

    /// How many of its processes were killed because memory ran out.
    pub fn oom_kills(&self) -> u64 {
        let files = self.dirs.iter().flat_map(|dir| [dir.join("memory.events"), dir.join("memory.oom_control")]);
        files.map(|file| oom_kills_in(&fs::read_to_string(file).unwrap_or_default())).sum()
    }

    /// Kills all processes of the group and of those below.
    pub fn kill(&self) {
        if let Some(unified) = &self.unified {
            // At once, where the kernel can; a process may be frozen by another hierarchy, or be in a part of them only.
            let _ = fs::write(unified.join("cgroup.kill"), "1");
        }
        self.dirs.iter().for_each(|dir| kill_tree(dir));
    }

    /// Its group in the hierarchy that freezes processes, version 1's. What is frozen there does not even die.
    pub fn freezer(&self) -> Option<Freezer> {
        self.dirs.iter().find(|dir| dir.join(FREEZER).exists()).map(|dir| Freezer(dir.clone()))
    }

    pub(super) fn write_unified(&self, limits: &Limits) -> Result<(), Error> {
        let Some(dir) = &self.unified else { return Ok(()) };
        let has = |name: &str| dir.join(name).exists();
        if let Some(memory) = limits.memory
            && has("memory.max")
        {
            write(&dir.join("memory.max"), memory)?;
            // The whole step goes, not one process of it whose loss nobody notices.
            let _ = fs::write(dir.join("memory.oom.group"), "1");
        }
        if let Some(both) = limits.memory_swap
            && has("memory.swap.max")
        {
            match u64::try_from(both) {
                Ok(both) => write(&dir.join("memory.swap.max"), both.saturating_sub(limits.memory.unwrap_or(0)))?,
                Err(_) => write(&dir.join("memory.swap.max"), "max")?,
            }
        }
        if let Some(shares) = limits.cpu_shares
            && has("cpu.weight")
        {
            write(&dir.join("cpu.weight"), weight(shares))?;
        }
        if (limits.cpu_quota.is_some() || limits.cpu_period.is_some()) && has("cpu.max") {
            let quota = limits.cpu_quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            write(&dir.join("cpu.max"), format!("{quota} {}", limits.cpu_period.unwrap_or(100_000)))?;
        }
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value
                && has(file)
            {
                write(&dir.join(file), value)?;
            }
        }
        if let Some(pids) = limits.pids
            && has("pids.max")
        {
            write(&dir.join("pids.max"), pids)?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let patience = Instant::now() + Duration::from_secs(2);
        for dir in &self.dirs {
            // A group counts as busy for a moment after its last process was waited for. An insecure step may have made more
            // groups below.
            while remove_tree(dir) == Removed::Busy && Instant::now() < patience {
                self.kill();
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

/// The file of a state.
const FREEZER: &str = "freezer.state";

/// The group of a step that may freeze its own processes.
#[derive(Clone, Debug)]
pub struct Freezer(PathBuf);

impl Freezer {
    /// Thaws groups with processes that were killed. Others may be frozen on purpose, as a paused container is.
    pub fn free_the_killed(&self) {
        free_the_killed(&self.0);
    }
}

/// Whether a frozen process of this group or one below was killed.
fn free_the_killed(dir: &Path) -> bool {
    // All of them, not only up to the first.
    let below = below(dir).iter().filter(|dir| free_the_killed(dir)).count() > 0;
    let state = fs::read_to_string(dir.join(FREEZER)).unwrap_or_default();
    if matches!(state.trim(), "" | "THAWED") {
        return below;
    }
    let killed = below || processes(dir).into_iter().any(is_killed);
    if killed {
        let _ = fs::write(dir.join(FREEZER), "THAWED");
    }
    killed
}

/// Whether the signal is there that a frozen process does not take.
fn is_killed(pid: rustix::process::Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let mut pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    pending.any(|set| u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> (libc::SIGKILL - 1) & 1 == 1))
}

fn kill_tree(dir: &Path) {
    for pid in processes(dir) {
        crate::raw::kill(pid, libc::SIGKILL);
    }
    let frozen = dir.join(FREEZER);
    if frozen.exists() {
        let _ = fs::write(frozen, "THAWED");
    }
    below(dir).iter().for_each(|dir| kill_tree(dir));
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Version 1's files of one controller.
pub(super) fn write_version1(controller: &str, dir: &Path, limits: &Limits) -> Result<(), Error> {
    match controller {
        "memory" => {
            if let Some(memory) = limits.memory {
                write(&dir.join("memory.limit_in_bytes"), memory)?;
            }
            if let Some(both) = limits.memory_swap
                && dir.join("memory.memsw.limit_in_bytes").exists()
            {
                write(&dir.join("memory.memsw.limit_in_bytes"), both)?;
            }
        }
        "cpu" => {
            if let Some(shares) = limits.cpu_shares {
                write(&dir.join("cpu.shares"), shares)?;
            }
            if let Some(period) = limits.cpu_period {
                write(&dir.join("cpu.cfs_period_us"), period)?;
            }
            if let Some(quota) = limits.cpu_quota {
                write(&dir.join("cpu.cfs_quota_us"), quota)?;
            }
        }
        "cpuset" => {
            // A new cpuset is empty, and nobody can join an empty one.
            for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
                inherit_cpuset(dir, file)?;
                if let Some(value) = value {
                    write(&dir.join(file), value)?;
                }
            }
        }
        "pids" => {
            if let Some(pids) = limits.pids {
                write(&dir.join("pids.max"), pids)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Copies a value down from the nearest group above that has one.
fn inherit_cpuset(dir: &Path, file: &str) -> Result<(), Error> {
    let read = |dir: &Path| fs::read_to_string(dir.join(file)).ok().filter(|value| !value.trim().is_empty());
    let mut empty: Vec<&Path> = Vec::new();
    for above in dir.ancestors() {
        match read(above) {
            Some(value) => {
                for dir in empty.iter().rev() {
                    write(&dir.join(file), value.trim())?;
                }
                break;
            }
            None if above.join(file).exists() => empty.push(above),
            None => break,
        }
    }
    Ok(())
}

/// Version 2's weight for version 1's shares, as runtimes convert: 1024 shares are the usual weight.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        shares => 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142,
    }
}
