//! Control groups, version 1, 2 or both: where ours are, groups of our own below, limits, device rules, the end.
//!
//! ```text
//! <the group we were started in>
//!   hullworks-<pid>/          device rules; one more without them for insecure steps (`-1`, `-2`: opened again)
//!     shared/                 steps without limits of their own (and the process that starts them)
//!     <step>/                 a step with limits
//! ```
//!
//! In version 2 a group with processes gives no controllers to groups below it. So the first limit that is asked
//! for moves our own process down one level, into `hullworks-<pid>-main`; other processes are left alone, and where
//! there are some, limits are not to be had.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Error;

mod devices;
mod mounts;
#[cfg(test)]
mod tests;

use mounts::{Hierarchies, Hierarchy};

/// Limits of a group. What is none is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 is no limit.
    pub memory_swap: Option<i64>,
    /// Weight against others, 2 to 262144; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in a period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: Option<u64>,
    /// Processors: `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Whether the steps of a group get device rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Only the harmless ones can be opened; nodes of any can be made.
    Ruled,
    /// All that file permissions allow.
    All,
}

/// The groups of this process, and the right to make more.
#[derive(Debug)]
pub struct Groups {
    own: Hierarchies,
    name: String,
    ruled: bool,
    /// The locked directory of our groups. Others may be in another process namespace, where our id says nothing.
    mark: Option<fs::File>,
}

impl Groups {
    /// Finds where we are. Makes the group for sandboxed steps, with its device rules, where the machine lets us.
    pub fn open() -> Result<Groups, Error> {
        let own = Hierarchies::of_this_process()?;
        let mut groups = Groups { own, name: String::new(), ruled: false, mark: None };
        groups.take_name();
        groups.sweep();
        groups.ruled = groups.make_ruled().is_ok();
        if !groups.ruled {
            groups.remove_base(&groups.name);
        }
        Ok(groups)
    }

    /// Whether sandboxed steps are kept from the machine's devices by their group.
    pub fn rules_devices(&self) -> bool {
        self.ruled
    }

    /// The `cgroup.procs` files that a process joins to be under the device rules.
    pub fn shared(&self) -> Vec<PathBuf> {
        if !self.ruled {
            return Vec::new();
        }
        self.device_hierarchy().into_iter().map(|dir| dir.join(&self.name).join("shared/cgroup.procs")).collect()
    }

    /// The `cgroup.procs` files that a process joins to leave them.
    pub fn outside(&self) -> Vec<PathBuf> {
        if !self.ruled {
            return Vec::new();
        }
        self.device_hierarchy().into_iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Which controller is missing for `limits`, if one is.
    pub fn missing_for(&self, limits: &Limits) -> Option<&'static str> {
        self.own.can(limits).err()
    }

    /// A group with limits. `parent` is a path below the root of each hierarchy, instead of ours. Without device rules it has
    /// a directory in every hierarchy: who is in it can make groups of its own below, which go with it.
    pub fn create(&self, step: &str, parent: Option<&str>, devices: Devices, limits: &Limits) -> Result<Group, Error> {
        let base = match devices {
            Devices::Ruled => self.name.clone(),
            Devices::All => format!("{}-insecure", self.name),
        };
        let place = |hierarchy: &Hierarchy| match parent {
            Some(parent) => hierarchy.top.join(parent.trim_matches('/')).join(step),
            None => hierarchy.own.join(&base).join(step),
        };
        let mut group = Group { dirs: Vec::new(), unified: None, version1: Vec::new(), limit: limits.memory };
        if let Some(hierarchy) = &self.own.unified {
            let dir = place(hierarchy);
            // Beside version 1's controllers it has none, but it kills at once and costs nothing to be born in.
            self.make_unified(&dir, &self.own.unified_controllers(limits))?;
            group.unified = Some(dir.clone());
            group.dirs.push(dir);
        }
        let result = group.write_unified(limits).and_then(|()| {
            for (controller, hierarchy) in self.own.version1(limits, devices == Devices::Ruled && self.ruled) {
                let dir = place(hierarchy);
                make_dir(&dir)?;
                group.add_version1(controller, dir.clone());
                if controller == "devices" && parent.is_some() {
                    devices::rule_version1(&dir)?;
                }
                write_version1(controller, &dir, limits)?;
            }
            Ok(())
        });
        result?;
        if devices == Devices::All {
            for (controller, hierarchy) in self.own.version1_all() {
                let dir = place(hierarchy);
                if make_dir(&dir).is_ok() {
                    // It is removed with the others, also where nobody can join it.
                    group.add_version1(controller, dir.clone());
                    write_version1(controller, &dir, limits)?;
                }
            }
        }
        Ok(group)
    }

    fn device_hierarchy(&self) -> Option<&Path> {
        let unified = self.own.unified.as_ref();
        self.own.devices.as_ref().or(unified).map(|hierarchy| hierarchy.own.as_path())
    }

    fn make_ruled(&self) -> Result<(), Error> {
        if let Some(hierarchy) = &self.own.devices {
            let dir = hierarchy.own.join(&self.name);
            make_dir(&dir)?;
            devices::rule_version1(&dir)?;
            return make_dir(&dir.join("shared"));
        }
        let Some(hierarchy) = &self.own.unified else {
            return Err(Error::call("find a cgroup hierarchy", Errno::NOENT));
        };
        let dir = hierarchy.own.join(&self.name);
        make_dir(&dir)?;
        devices::rule_version2(&dir)?;
        make_dir(&dir.join("shared"))
    }

    /// Makes `dir` and gives it `wanted` controllers, which every group above it must hand down.
    fn make_unified(&self, dir: &Path, wanted: &[&str]) -> Result<(), Error> {
        make_dir(dir)?;
        let Some(hierarchy) = &self.own.unified else { return Ok(()) };
        let mut above: Vec<&Path> =
            dir.ancestors().skip(1).take_while(|above| above.starts_with(&hierarchy.top)).collect();
        above.reverse();
        for above in above {
            let enabled = fs::read_to_string(above.join("cgroup.subtree_control")).unwrap_or_default();
            for controller in wanted {
                if enabled.split_whitespace().any(|name| name == *controller) {
                    continue;
                }
                let control = above.join("cgroup.subtree_control");
                let enable = || fs::write(&control, format!("+{controller}"));
                let result = match enable() {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) && above == hierarchy.own => {
                        let down = hierarchy.own.join(format!("{}-main", self.name));
                        make_dir(&down)?;
                        write(&down.join("cgroup.procs"), std::process::id())?;
                        enable()
                    }
                    result => result,
                };
                result.map_err(|error| Error::path("enable a controller in", &control, error))?;
            }
        }
        Ok(())
    }

    /// Takes a name that nobody else has, and holds it.
    fn take_name(&mut self) {
        loop {
            self.name = new_name();
            let Some(hierarchy) = self.device_hierarchy() else { return };
            let dir = hierarchy.join(&self.name);
            if make_dir(&dir).is_err() {
                return;
            }
            // Somebody who sweeps may have been quicker, or another's first process has our id.
            let Ok(mark) = fs::File::open(&dir) else { continue };
            match flock(&mark, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {}
                Err(_) => return,
                Ok(()) if is_at(&mark, &dir) => {
                    self.mark = Some(mark);
                    return;
                }
                Ok(()) => {}
            }
        }
    }

    /// Whether somebody holds this name.
    fn is_held(&self, name: &str) -> bool {
        let dir = self.device_hierarchy().map(|hierarchy| hierarchy.join(name));
        let dir = dir.and_then(|dir| fs::File::open(dir).ok());
        dir.is_some_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK))
    }

    /// Removes what dead predecessors left. A group that still has processes stays.
    fn sweep(&self) {
        for hierarchy in self.own.all() {
            let Ok(entries) = fs::read_dir(&hierarchy.own) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("hullworks-")) else { continue };
                let pid = rest.split('-').next().unwrap_or(rest);
                let kinds = ["-insecure", "-main"];
                let held = kinds.iter().find_map(|kind| name.to_str()?.strip_suffix(kind)).or(name.to_str());
                if Path::new("/proc").join(pid).exists() || held.is_some_and(|name| self.is_held(name)) {
                    continue;
                }
                remove_tree(&entry.path());
            }
        }
    }

    /// Removes the groups, whose processes have ended.
    pub fn remove(&self) {
        self.remove_base(&self.name);
        self.remove_base(&format!("{}-insecure", self.name));
    }

    fn remove_base(&self, name: &str) {
        let patience = Instant::now() + Duration::from_secs(1);
        for hierarchy in self.own.all() {
            let dir = hierarchy.own.join(name);
            // A group counts as busy for a moment after its last process was waited for.
            while remove_tree(&dir) == Removed::Busy && Instant::now() < patience {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

/// A name that no other opening of this process has: whose groups are gone a moment later must not take those of the next.
fn new_name() -> String {
    static OPENED: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    match OPENED.fetch_add(1, Ordering::Relaxed) {
        0 => format!("hullworks-{pid}"),
        n => format!("hullworks-{pid}-{n}"),
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.remove();
    }
}

/// One group with limits; removed, with whatever still runs in it killed, when dropped.
#[derive(Debug)]
pub struct Group {
    dirs: Vec<PathBuf>,
    unified: Option<PathBuf>,
    /// Of version 1, the controllers of each directory.
    version1: Vec<(String, PathBuf)>,
    limit: Option<u64>,
}

impl Group {
    fn add_version1(&mut self, controller: &str, dir: PathBuf) {
        match self.version1.iter_mut().find(|(_, known)| *known == dir) {
            Some((controllers, _)) if controllers.split(',').any(|known| known == controller) => {}
            Some((controllers, _)) => *controllers = format!("{controllers},{controller}"),
            None => {
                self.dirs.push(dir.clone());
                self.version1.push((controller.to_owned(), dir));
            }
        }
    }

    /// The hierarchies of version 1 that it has a directory in, by their controllers: `cpu,cpuacct`, `name=systemd`.
    pub fn version1(&self) -> impl Iterator<Item = &str> {
        self.version1.iter().map(|(controllers, _)| controllers.as_str())
    }

    /// The directory of version 2, which a process can be born in.
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The `cgroup.procs` files that a process joins.
    pub fn procs(&self) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// The memory limit that it was made with.
    pub fn memory_limit(&self) -> Option<u64> {
        self.limit
    }

    /// How many of its processes were killed because memory ran out.
    pub fn oom_kills(&self) -> u64 {
        let files = self.dirs.iter().flat_map(|dir| [dir.join("memory.events"), dir.join("memory.oom_control")]);
        files.map(|file| oom_kills_in(&fs::read_to_string(file).unwrap_or_default())).sum()
    }

    /// Kills all processes of the group.
    pub fn kill(&self) {
        if let Some(unified) = &self.unified
            && fs::write(unified.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for dir in &self.dirs {
            for pid in processes(dir) {
                crate::raw::kill(pid, libc::SIGKILL);
            }
        }
    }

    fn write_unified(&self, limits: &Limits) -> Result<(), Error> {
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

/// Version 1's files of one controller.
fn write_version1(controller: &str, dir: &Path, limits: &Limits) -> Result<(), Error> {
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
fn weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        shares => 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142,
    }
}

/// `oom_kill <n>` of memory.events and memory.oom_control.
fn oom_kills_in(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// How many processes of our own group, and those below, were killed because memory ran out; none where unknown.
pub fn own_oom_kills() -> Option<u64> {
    let own = Hierarchies::of_this_process().ok()?;
    let memory = own.memory()?.to_owned();
    let read = |file: &str| fs::read_to_string(memory.join(file)).ok();
    read("memory.events").or_else(|| read("memory.oom_control")).map(|text| oom_kills_in(&text))
}

/// The memory limit of our own group, where there is one.
pub fn own_memory_limit() -> Option<u64> {
    let own = Hierarchies::of_this_process().ok()?;
    let memory = own.memory()?.to_owned();
    let read = |file: &str| fs::read_to_string(memory.join(file)).ok()?.trim().parse().ok();
    // Version 1 says "no limit" with a number of this size.
    read("memory.max").or_else(|| read("memory.limit_in_bytes")).filter(|limit| *limit < 1 << 60)
}

fn processes(dir: &Path) -> Vec<rustix::process::Pid> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)).collect()
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|error| Error::path("create cgroup", dir, error))
}

fn write(file: &Path, value: impl ToString) -> Result<(), Error> {
    fs::write(file, value.to_string()).map_err(|error: io::Error| Error::path("write", file, error))
}

/// Whether the open directory is still the one that stands there.
fn is_at(open: &fs::File, dir: &Path) -> bool {
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    open.metadata().and_then(|open| Ok(same(open, fs::metadata(dir)?))).unwrap_or(false)
}

/// What became of a group that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    /// It is gone, or cannot be removed.
    Settled,
    /// It has processes, or had them a moment ago.
    Busy,
}

/// Removes a group and those below it. One with processes stays.
fn remove_tree(dir: &Path) -> Removed {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Removed::Busy,
        _ => Removed::Settled,
    }
}
