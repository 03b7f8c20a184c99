//! Control groups, version 1, 2 or both: where ours are, groups of our own below, limits, device rules, the end.
//!
//! ```text
//! <the group we were started in>
//!   hullworks-<pid>/          device rules (`-1`, `-2`: opened again)
//!     shared/                 steps without a group of their own (and the process that starts them)
//!     <step>/                 a sandboxed step with limits, in the hierarchies that they need
//!   hullworks-<pid>-insecure/
//!     <step>/                 an insecure step, in every hierarchy, without device rules
//!     <step>/                 a sandboxed step with devices of its own: other rules than those above, which can only be narrowed
//! <the parent that a step asks for>
//!   hullworks-<pid>-<n>/      that step, in every hierarchy, with device rules of its own if it is sandboxed
//! ```
//!
//! A directory that says whose it is stands in the hierarchy that rules devices, and is locked while in use: others may be
//! in another process namespace, where our id says nothing.
//!
//! In version 2 a group with processes gives no controllers to groups below it. So the first limit that is asked
//! for moves our own process down one level, into `hullworks-<pid>-main`; other processes are left alone, and where
//! there are some, limits are not to be had.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Error;

mod devices;
mod group;
mod mounts;
mod parents;
#[cfg(test)]
mod tests;

pub use devices::DeviceRule;
use group::write_version1;
pub use group::{Freezer, Group};
use mounts::{Hierarchies, Hierarchy, needed};
use parents::{Made, Parents};

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

impl Limits {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Limits::default()
    }
}

/// Whether the steps of a group get device rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices<'a> {
    /// Only the harmless ones can be opened; nodes of any can be made.
    Ruled,
    /// The harmless ones and these.
    Also(&'a [DeviceRule]),
    /// All that file permissions allow.
    All,
}

/// The groups of this process, and the right to make more.
#[derive(Debug)]
pub struct Groups {
    own: Hierarchies,
    name: String,
    ruled: bool,
    /// The locked directory of our groups.
    mark: Option<fs::File>,
    parents: Parents,
    made: Made,
    /// Held by each group of a step.
    alive: Arc<()>,
}

impl Groups {
    /// Finds where we are. Makes the group for sandboxed steps, with its device rules, where the machine lets us.
    pub fn open() -> Result<Groups, Error> {
        let own = Hierarchies::of_this_process()?;
        let (parents, made) = (Parents::default(), Made::default());
        let mut groups =
            Groups { own, name: String::new(), ruled: false, mark: None, parents, made, alive: Arc::default() };
        (groups.name, groups.mark) = groups.take_name(&|hierarchy| hierarchy.own.clone());
        groups.sweep(&|hierarchy| hierarchy.own.clone(), Alive::Process);
        groups.ruled = groups.make_ruled().is_ok();
        if !groups.ruled {
            groups.remove_base(&groups.name);
        }
        Ok(groups)
    }

    /// Keeps a list in `file` of the parents that steps ask for, and removes what dead predecessors left in those of theirs.
    pub fn remember_parents(&mut self, file: PathBuf) {
        let (parents, used) = Parents::read(file);
        self.parents = parents;
        for parent in used {
            // One where something is left is tried again the next time.
            if !self.sweep(&below(&parent), Alive::Held) {
                self.parents.add(&parent);
            }
        }
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

    /// Those of a group's `cgroup.procs` files that one can join without a change of device rules.
    pub fn without_device_rules(&self, procs: &[PathBuf]) -> Vec<PathBuf> {
        let rules = |file: &PathBuf| self.marking().is_some_and(|hierarchy| file.starts_with(&hierarchy.top));
        procs.iter().filter(|file| !rules(file)).cloned().collect()
    }

    /// Which controller is missing for `limits`, if one is.
    pub fn missing_for(&self, limits: &Limits) -> Option<&'static str> {
        self.own.can(limits).err()
    }

    /// A group with limits. `parent` is a path below the root of each hierarchy, instead of ours: all hierarchies have the
    /// group then, for the parent may have limits of its own. So they have without device rules: who is in it can make groups
    /// of its own below, which go with it.
    pub fn create(
        &self,
        step: &str,
        parent: Option<&str>,
        devices: Devices<'_>,
        limits: &Limits,
    ) -> Result<Group, Error> {
        let ruled = devices != Devices::All && self.ruled;
        let also = if let Devices::Also(also) = devices { also } else { &[] };
        let own_rules = ruled && (parent.is_some() || !also.is_empty());
        let parent = parent.map(parents::normal).transpose()?;
        let mut group = Group {
            dirs: Vec::new(),
            unified: None,
            limit: limits.memory,
            left_out: Vec::new(),
            _mark: None,
            _above: None,
            _alive: self.alive.clone(),
        };
        // Let go of before a group is dropped, which wants it.
        let mut made = parent.as_ref().map(|_| self.made.hold());
        let name = match (&parent, &mut made) {
            (Some(parent), Some(made)) => {
                let place = below(parent);
                let parents = self.own.all().map(|hierarchy| (hierarchy.top.as_path(), place(hierarchy))).collect();
                group._above = Some(self.made.note(made, parents));
                let (name, mark) = self.take_name(&place);
                if mark.is_some() {
                    self.parents.add(parent);
                }
                group._mark = mark;
                name
            }
            _ if devices == Devices::Ruled => format!("{}/{step}", self.name),
            // Out of the rules for all.
            _ => format!("{}-insecure/{step}", self.name),
        };
        let place = |hierarchy: &Hierarchy| match &parent {
            Some(parent) => below(parent)(hierarchy).join(&name),
            None => hierarchy.own.join(&name),
        };
        let needed = needed(limits);
        for (controller, hierarchy) in self.own.version1() {
            let must = needed.contains(&controller) || controller == "devices" && ruled;
            if !must && parent.is_none() && devices != Devices::All {
                continue;
            }
            let dir = place(hierarchy);
            // Several controllers may share a hierarchy.
            let is_shared = group.dirs.contains(&dir);
            let made = make_dir(&dir).and_then(|()| {
                if !is_shared {
                    group.dirs.push(dir.clone());
                }
                if controller == "devices" && own_rules {
                    devices::rule_version1(&dir, also)?;
                }
                write_version1(controller, &dir, limits)
            });
            match made {
                Err(error) if must => return Err(error),
                Err(_) => {
                    if !is_shared {
                        group.dirs.retain(|made| *made != dir);
                        remove_tree(&dir);
                    }
                    group.left_out.push(controller.to_owned());
                }
                Ok(()) => {}
            }
        }
        if let Some(hierarchy) = &self.own.unified {
            let dir = place(hierarchy);
            group.unified = Some(dir.clone());
            group.dirs.push(dir.clone());
            // Beside version 1's controllers it has none, but it kills at once and costs nothing to be born in.
            self.make_unified(&dir, &self.own.unified_controllers(limits))?;
            // Below our own name the rules are there already.
            if own_rules && self.own.devices.is_none() {
                devices::rule_version2(&dir, also)?;
            }
            group.write_unified(limits)?;
        }
        Ok(group)
    }

    /// What a step of version 1 sees at `/sys/fs/cgroup`: the names and directories of the groups that are its own. Ours are
    /// none of its business: all containers and other steps may be below them.
    pub fn view(&self, group: Option<&Group>) -> Vec<(String, PathBuf)> {
        let mut view: Vec<(String, PathBuf)> = Vec::new();
        for (_, hierarchy) in self.own.version1() {
            let Some(name) = hierarchy.top.file_name().and_then(|name| name.to_str()) else { continue };
            let Some(dir) = group.and_then(|group| group.dir_in(hierarchy)) else { continue };
            if view.iter().all(|(seen, _)| seen != name) {
                view.push((name.to_owned(), dir.to_owned()));
            }
        }
        view
    }

    /// The hierarchy that rules devices, where directories say whose they are.
    fn marking(&self) -> Option<&Hierarchy> {
        self.own.devices.as_ref().or(self.own.unified.as_ref())
    }

    fn device_hierarchy(&self) -> Option<&Path> {
        self.marking().map(|hierarchy| hierarchy.own.as_path())
    }

    fn make_ruled(&self) -> Result<(), Error> {
        if let Some(hierarchy) = &self.own.devices {
            let dir = hierarchy.own.join(&self.name);
            make_dir(&dir)?;
            devices::rule_version1(&dir, &[])?;
            return make_dir(&dir.join("shared"));
        }
        let Some(hierarchy) = &self.own.unified else {
            return Err(Error::call("find a cgroup hierarchy", Errno::NOENT));
        };
        let dir = hierarchy.own.join(&self.name);
        make_dir(&dir)?;
        devices::rule_version2(&dir, &[])?;
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

    /// Takes a name that nobody else has at a place of the hierarchies, and holds it.
    fn take_name(&self, place: Place<'_>) -> (String, Option<fs::File>) {
        loop {
            let name = new_name();
            let Some(hierarchy) = self.marking() else { return (name, None) };
            let dir = place(hierarchy).join(&name);
            if make_dir(&dir).is_err() {
                return (name, None);
            }
            // Somebody who sweeps may have been quicker, or another's first process has our id.
            let Ok(mark) = fs::File::open(&dir) else { continue };
            match flock(&mark, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {}
                Err(_) => return (name, None),
                Ok(()) if is_at(&mark, &dir) => return (name, Some(mark)),
                Ok(()) => {}
            }
        }
    }

    /// Whether somebody holds this name; none where there is nothing to hold.
    fn is_held(&self, place: Place<'_>, name: &str) -> Option<bool> {
        let dir = fs::File::open(place(self.marking()?).join(name)).ok()?;
        Some(flock(&dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK))
    }

    /// Whether the process `pid`, whose name at a place is `held`, may live.
    fn may_live(&self, place: Place<'_>, (pid, held): (&str, &str), sign: Alive) -> bool {
        let process = Path::new("/proc").join(pid).exists();
        match sign {
            Alive::Process => process || self.is_held(place, held) == Some(true),
            // What nobody holds of our own id is of a predecessor: a container's first process always has the same.
            Alive::Held => process && pid != std::process::id().to_string() || self.is_held(place, held) != Some(false),
        }
    }

    /// Removes what dead predecessors left at a place of the hierarchies; false where one could not be removed yet.
    fn sweep(&self, place: Place<'_>, sign: Alive) -> bool {
        let patience = Instant::now() + Duration::from_secs(1);
        let mut busy: BTreeSet<String> = BTreeSet::new();
        // What says whose the others are goes last.
        let marking = self.marking();
        let others = self.own.all().filter(|hierarchy| Some(*hierarchy) != marking);
        for hierarchy in others.chain(marking) {
            let Ok(entries) = fs::read_dir(place(hierarchy)) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let Some(name) = name.to_str().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())) else {
                    continue;
                };
                let Some((pid, held)) = owner(name) else { continue };
                if busy.contains(held) {
                    continue;
                }
                if self.may_live(place, (pid, held), sign) {
                    // Only another process has its id.
                    if self.is_held(place, held) == Some(false) {
                        busy.insert(held.to_owned());
                    }
                    continue;
                }
                if remove_patiently(&entry.path(), patience) == Removed::Busy {
                    busy.insert(held.to_owned());
                }
            }
        }
        busy.is_empty()
    }

    /// Waits until the groups of steps are removed, which happens when their processes have ended; not for long.
    pub fn wait_for_steps(&self) {
        let patience = Instant::now() + Duration::from_secs(1);
        while Arc::strong_count(&self.alive) > 1 && Instant::now() < patience {
            std::thread::sleep(Duration::from_micros(500));
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
            remove_patiently(&hierarchy.own.join(name), patience);
        }
    }
}

/// What tells, beside a name that is held, that an owner lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alive {
    /// A process has its id.
    Process,
    /// The same, and that there is nothing to hold: other people make groups there, too.
    Held,
}

/// A directory of each hierarchy.
type Place<'a> = &'a dyn Fn(&Hierarchy) -> PathBuf;

/// The place of a parent, which does not lead out of the hierarchies.
fn below(parent: &str) -> impl Fn(&Hierarchy) -> PathBuf {
    let mut inside = PathBuf::new();
    for part in Path::new(parent).components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir => drop(inside.pop()),
            _ => {}
        }
    }
    move |hierarchy| hierarchy.top.join(&inside)
}

/// Whose a directory is that we may have made: the process id, and the name that is held while it is in use.
fn owner(name: &str) -> Option<(&str, &str)> {
    let held = ["-insecure", "-main"].iter().find_map(|kind| name.strip_suffix(kind)).unwrap_or(name);
    let (pid, count) = held.strip_prefix("hullworks-")?.split_once('-').unwrap_or((&held["hullworks-".len()..], "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(pid) && is_number(count)).then_some((pid, held))
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
    memory_limit_of(&memory)
}

fn memory_limit_of(dir: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok();
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

/// The same; waits, for a group counts as busy for a moment after its last process was waited for.
fn remove_patiently(dir: &Path, patience: Instant) -> Removed {
    loop {
        let removed = remove_tree(dir);
        if removed == Removed::Settled || Instant::now() > patience {
            return removed;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
