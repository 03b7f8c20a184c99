//! What every step sees of the system: /proc, /sys, /dev, and what is hidden of it (OCI runtime-spec `config-linux.md`).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::pty::OpenptFlags;
use sys::mount::{Restrict, attach, fd_path};
use sys::path::Links;

use super::mounts::{Builder, setup};
use super::stubs::{Keep, Kind, mount_point};
use crate::message::{CgroupView, Failure, Sandbox};

/// Hidden from sandboxed steps.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Readable only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Name and number of the devices that every step has.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Those that an insecure step has beside them, as upstream gives it.
const INSECURE_DEVICES: [(&str, u32, u32); 6] = [
    ("kmsg", 1, 11),
    ("cuse", 10, 203),
    ("fuse", 10, 229),
    ("kvm", 10, 232),
    ("net/tun", 10, 200),
    ("loop-control", 10, 237),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

impl Builder<'_> {
    /// Mounts /proc, /dev, /sys.
    pub(super) fn mount_system(&mut self, sandbox: &Sandbox) -> Result<(), Failure> {
        self.mount_proc()?;
        self.mount_dev(sandbox)?;
        self.mount_sys(sandbox)
    }

    fn mount_proc(&mut self) -> Result<(), Failure> {
        let point = self.system_point("/proc")?;
        match rustix::mount::mount("proc", fd_path(point.as_fd()), "proc", SAFE, None) {
            Ok(()) => Ok(()),
            // The pod's /proc is partly hidden, and who sees less than all may not have a new one: then that one.
            Err(Errno::PERM) => attach(Path::new("/proc"), point.as_fd(), Restrict::empty(), &self.state.join("aside"))
                .map_err(|error| setup("cannot bind /proc", error)),
            Err(errno) => Err(setup("cannot mount proc at `/proc`", std::io::Error::from(errno))),
        }
    }

    fn mount_dev(&mut self, sandbox: &Sandbox) -> Result<(), Failure> {
        let point = self.system_point("/dev")?;
        let flags = MountFlags::NOSUID | MountFlags::STRICTATIME;
        self.mount_new("tmpfs", &point, "/dev", flags, "mode=755,size=65536k")?;
        let dev = self.root.open_dir("/dev", Links::Refuse).map_err(|error| setup("cannot open /dev", error))?;
        for dir in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, dir, Mode::from_raw_mode(0o755)).map_err(|errno| in_dev(dir, errno))?;
        }
        let open = |name: &str| rustix::fs::openat(&dev, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let pts = open("pts").map_err(|errno| in_dev("pts", errno))?;
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        // Group tty, where it exists.
        self.mount_new("devpts", &pts, "/dev/pts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5")
            .or_else(|_| self.mount_new("devpts", &pts, "/dev/pts", flags, "newinstance,ptmxmode=0666,mode=0620"))?;
        let shm = open("shm").map_err(|errno| in_dev("shm", errno))?;
        self.mount_new("tmpfs", &shm, "/dev/shm", SAFE, &format!("mode=1777,size={}", sandbox.shm_size))?;
        let mqueue = open("mqueue").map_err(|errno| in_dev("mqueue", errno))?;
        self.mount_new("mqueue", &mqueue, "/dev/mqueue", SAFE, "")?;
        for (name, major, minor) in DEVICES {
            self.make_device(&dev, name, (major, minor), sandbox.bind_devices).map_err(|errno| in_dev(name, errno))?;
        }
        if sandbox.insecure && !sandbox.bind_devices {
            rustix::fs::mkdirat(&dev, "net", Mode::from_raw_mode(0o755)).map_err(|errno| in_dev("net", errno))?;
            for (name, major, minor) in INSECURE_DEVICES {
                self.make_device(&dev, name, (major, minor), false).map_err(|errno| in_dev(name, errno))?;
            }
            self.make_loop_devices(&dev)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &dev, name).map_err(|errno| in_dev(name, errno))?;
        }
        if Path::new("/proc/kcore").exists() {
            rustix::fs::symlinkat("/proc/kcore", &dev, "core").map_err(|errno| in_dev("core", errno))?;
        }
        Ok(())
    }

    fn make_device(&self, dev: &OwnedFd, name: &str, number: (u32, u32), bind: bool) -> Result<(), Errno> {
        if !bind {
            let id = rustix::fs::makedev(number.0, number.1);
            let mode = Mode::from_raw_mode(0o666);
            match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, id) {
                Err(Errno::PERM) => {}
                result => return result,
            }
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let point = rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), fd_path(point.as_fd()))
    }

    /// As many as there are, and a few to come.
    fn make_loop_devices(&self, dev: &OwnedFd) -> Result<(), Failure> {
        let existing = (0..).take_while(|n| Path::new(&format!("/sys/block/loop{n}")).exists()).count() as u32;
        for number in 0..existing.max(1) + 7 {
            let name = format!("loop{number}");
            let id = rustix::fs::makedev(7, number);
            rustix::fs::mknodat(dev, &name, FileType::BlockDevice, Mode::from_raw_mode(0o660), id)
                .map_err(|errno| in_dev(&name, errno))?;
        }
        Ok(())
    }

    fn mount_sys(&mut self, sandbox: &Sandbox) -> Result<(), Failure> {
        let point = self.system_point("/sys")?;
        let flags = if sandbox.insecure { SAFE } else { SAFE | MountFlags::RDONLY };
        match rustix::mount::mount("sysfs", fd_path(point.as_fd()), "sysfs", flags, None) {
            Ok(()) => {}
            // It belongs to the owner of the network namespace; a step without it is what upstream gives, too.
            Err(Errno::PERM | Errno::ACCESS) => return Ok(()),
            Err(errno) => return Err(setup("cannot mount sysfs at `/sys`", std::io::Error::from(errno))),
        }
        let Ok(point) = self.root.open_at("/sys/fs/cgroup", OFlags::PATH, Mode::empty(), Links::Refuse) else {
            return Ok(());
        };
        match &sandbox.cgroup {
            CgroupView::None => {}
            // A view of its own group; where that is refused, none.
            CgroupView::Unified => {
                let _ = rustix::mount::mount("cgroup2", fd_path(point.as_fd()), "cgroup2", flags, None);
            }
            CgroupView::Version1(groups) => self.mount_version1(groups, &point, sandbox.insecure)?,
        }
        Ok(())
    }

    /// Binds the step's groups of version 1 where programs look for their limits. There is no namespace around them, as
    /// there is none upstream.
    fn mount_version1(&mut self, groups: &[(String, PathBuf)], point: &OwnedFd, insecure: bool) -> Result<(), Failure> {
        const PLACE: &str = "/sys/fs/cgroup";
        if groups.is_empty() {
            return Ok(());
        }
        self.mount_new("tmpfs", point, PLACE, SAFE, "mode=755")?;
        let failed = |errno: Errno| setup(format_args!("cannot fill `{PLACE}`"), std::io::Error::from(errno));
        let top = self.root.open_dir(PLACE, Links::Refuse);
        let top = top.map_err(|error| setup(format_args!("cannot open `{PLACE}`"), error))?;
        let mut restrict = Restrict::NO_SETUID | Restrict::NO_DEVICES | Restrict::NO_EXEC;
        restrict.set(Restrict::READ_ONLY, !insecure);
        for (name, group) in groups {
            rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755)).map_err(failed)?;
            let point =
                rustix::fs::openat(&top, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            // One that may not be bound is not seen; no reason not to run.
            if attach(group, point.as_fd(), restrict, &self.state.join("aside")).is_err() {
                rustix::fs::unlinkat(&top, name, AtFlags::REMOVEDIR).map_err(failed)?;
                continue;
            }
            // Two controllers of one hierarchy: each is found by its own name as well.
            for controller in name.split(',').filter(|controller| *controller != name) {
                rustix::fs::symlinkat(name, &top, controller).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Hides what a sandboxed step must not see or change.
    pub(super) fn mask(&mut self) -> Result<(), Failure> {
        let null = self.root.open_at("/dev/null", OFlags::PATH, Mode::empty(), Links::Refuse);
        let null = null.map_err(|error| setup("cannot open /dev/null", error))?;
        let mut empty: Option<OwnedFd> = None;
        for path in MASKED {
            let Some((point, kind)) = self.existing(path) else { continue };
            match (kind, &empty) {
                (FileType::Directory, None) => {
                    self.mount_new("tmpfs", &point, path, MountFlags::RDONLY, "")?;
                    empty = self.existing(path).map(|(fd, _)| fd);
                }
                // One empty file system serves all.
                (FileType::Directory, Some(empty)) => self.cover(empty, &point, path)?,
                _ => self.cover(&null, &point, path)?,
            }
        }
        for path in READ_ONLY {
            let Some((point, _)) = self.existing(path) else { continue };
            attach(&fd_path(point.as_fd()), point.as_fd(), Restrict::READ_ONLY, &self.state.join("aside"))
                .map_err(|error| setup(format_args!("cannot make `{path}` read-only"), error))?;
        }
        Ok(())
    }

    fn cover(&self, with: &OwnedFd, point: &OwnedFd, path: &str) -> Result<(), Failure> {
        rustix::mount::mount_bind(fd_path(with.as_fd()), fd_path(point.as_fd()))
            .map_err(|errno| setup(format_args!("cannot hide `{path}`"), std::io::Error::from(errno)))
    }

    /// A path of the mounted system, and what it is.
    fn existing(&self, path: &str) -> Option<(OwnedFd, FileType)> {
        let fd = self.root.open_at(path, OFlags::PATH, Mode::empty(), Links::Refuse).ok()?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode);
        Some((fd, kind))
    }

    /// A directory of the root that is no link: `/proc` elsewhere would leave the masks elsewhere (CVE-2019-19921).
    fn system_point(&mut self, path: &str) -> Result<OwnedFd, Failure> {
        let links = rustix::fs::statat(self.root.dir(), path.trim_start_matches('/'), AtFlags::SYMLINK_NOFOLLOW);
        match links.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Directory) | Err(Errno::NOENT) => {}
            Ok(_) => return Err(Failure::Invalid(format!("`{path}` of the image is not a directory"))),
            Err(errno) => return Err(setup(format_args!("cannot look at `{path}`"), std::io::Error::from(errno))),
        }
        mount_point(&self.root, path, Kind::Directory, Keep::All, &mut self.made)
            .map_err(|error| setup(format_args!("cannot make the mount point `{path}`"), error))
    }
}

fn in_dev(name: &str, errno: Errno) -> Failure {
    setup(format_args!("cannot make `/dev/{name}`"), std::io::Error::from(errno))
}

/// Makes `rootfs` in `state`, a mount point, the root of this process and takes everything else away.
pub(super) fn change_root(state: &Path) -> Result<(), Failure> {
    let failed = |errno: Errno| setup("cannot change the root", std::io::Error::from(errno));
    let new_root = state.join("rootfs");
    rustix::process::chdir(&new_root).map_err(failed)?;
    match rustix::process::pivot_root(".", ".") {
        // The old root now lies on top of the new one.
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed)?,
        // Default seccomp profiles of pods refuse pivot_root even to who may mount.
        Err(Errno::PERM | Errno::NOSYS) => {
            // What lies below the new root cannot be reached; what belongs to this step alone goes all the same.
            for dir in ["files", "scratch"] {
                while rustix::mount::unmount(state.join(dir), UnmountFlags::DETACH).is_ok() {}
            }
            rustix::mount::mount_move(&new_root, "/").map_err(failed)?;
            rustix::process::chroot(".").map_err(failed)?;
        }
        Err(errno) => return Err(failed(errno)),
    }
    rustix::process::chdir("/").map_err(failed)
}

/// A new terminal of the new root, which controls us from now on: the end that we do not keep, and ours.
pub(super) fn open_terminal() -> Result<(OwnedFd, OwnedFd), Failure> {
    let failed = |errno: Errno| setup("cannot open a terminal", std::io::Error::from(errno));
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(CWD, "/dev/pts/ptmx", flags, Mode::empty()).map_err(failed)?;
    rustix::pty::unlockpt(&master).map_err(failed)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed)?;
    Ok((master, slave))
}

/// Opens /dev/null of the new root as standard input.
pub(super) fn null_stdin() -> Result<(), Failure> {
    let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    null.and_then(rustix::stdio::dup2_stdin)
        .map_err(|errno| setup("cannot open /dev/null", std::io::Error::from(errno)))
}
