//! The ground that tests stand on: a root, an executor, and a look around afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base::progress::Stream;
use executor::{CancellationToken, Error, Executor, Exit, Step, StepIo};
use sys::mount::{FsView, Overlay};
use sys::userns::{Ids, Isolation, Level};

pub struct Bed {
    pub isolation: Isolation,
    pub dir: PathBuf,
    pub runtime: tokio::runtime::Runtime,
    pub executor: Arc<dyn Executor>,
    mounts: String,
    cgroups: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// How a step ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

impl Bed {
    pub fn new(isolation: Isolation) -> Bed {
        let dir = std::env::temp_dir().join(format!("hw-exec-{}", std::process::id()));
        fs::create_dir_all(dir.join("base")).unwrap();
        make_root(&dir.join("base"));
        fs::create_dir_all(dir.join("empty")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let executor = {
            let _inside = runtime.enter();
            executor::open(dir.join("state"), &isolation).unwrap()
        };
        let mut bed =
            Bed { isolation, dir, runtime, executor, mounts: String::new(), cgroups: Vec::new(), files: Vec::new() };
        (bed.mounts, bed.cgroups, bed.files) = (mounts(), cgroups(), bed.state_files());
        bed
    }

    pub fn privileged(&self) -> bool {
        self.isolation.level == Level::Privileged
    }

    pub fn single_id(&self) -> bool {
        self.isolation.ids == Ids::Single
    }

    /// A writable overlay of its own on the common root.
    pub fn root(&self, name: &str) -> FsView {
        let dir = self.dir.join("roots").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("upper")).unwrap();
        fs::create_dir_all(dir.join("work")).unwrap();
        FsView::Overlay(Overlay {
            lower: vec![self.dir.join("base"), self.dir.join("empty")],
            upper: Some((dir.join("upper"), dir.join("work"))),
            userxattr: self.isolation.nested,
            volatile: true,
        })
    }

    /// Where a root of that name keeps what was written to it.
    pub fn upper(&self, name: &str) -> PathBuf {
        self.dir.join("roots").join(name).join("upper")
    }

    /// A fresh directory.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join("dirs").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A step that runs a shell script on a root of its own.
    pub fn script(&self, name: &str, script: &str) -> Step {
        Step::new(self.root(name), ["/bin/sh", "-c", script])
    }

    pub fn run(&self, step: Step) -> Result<Ran, Error> {
        self.run_with(step, CancellationToken::new())
    }

    pub fn run_with(&self, step: Step, cancel: CancellationToken) -> Result<Ran, Error> {
        let said: Arc<Mutex<(Vec<u8>, Vec<u8>)>> = Arc::default();
        let heard = said.clone();
        let io = StepIo::new(move |stream, bytes| {
            let mut heard = heard.lock().unwrap();
            match stream {
                Stream::Stdout => heard.0.extend_from_slice(bytes),
                Stream::Stderr => heard.1.extend_from_slice(bytes),
            }
        });
        let exit = self.runtime.block_on(self.executor.run(step, io, cancel))?;
        let said = said.lock().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran { exit, stdout: text(&said.0), stderr: text(&said.1) })
    }

    /// Runs a script that must succeed; answers with its output.
    #[track_caller]
    pub fn say(&self, step: Step) -> String {
        let ran = self.run(step).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        assert_eq!(ran.exit.code, 0, "{ran:?}");
        ran.stdout
    }

    /// No mount, process, control group or file is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(mounts(), self.mounts, "mounts are left");
        assert_eq!(cgroups(), self.cgroups, "control groups are left");
        assert_eq!(self.state_files(), self.files, "files are left");
        // Only init is our child, and it has none.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            let left = descendants();
            if left.len() == 1 {
                break;
            }
            assert!(std::time::Instant::now() < patience, "processes are left: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn state_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.dir.join("state")];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
                found.push(entry.path());
            }
        }
        found.sort();
        found
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn make_root(root: &Path) {
    for dir in ["bin", "etc", "root", "home/ann", "usr/sbin", "var"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::create_dir(root.join("tmp")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("the package busybox-static"), root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "echo", "ls", "id", "true", "false", "sleep", "grep", "mkdir", "touch", "stat", "mount", "umount",
        "hostname", "ip", "ln", "rm", "dd", "head", "env", "pwd", "kill", "ps", "chmod", "test", "wc", "mknod",
        "setsid", "seq", "readlink", "sed", "tr", "chroot", "chown", "ulimit", "tail", "tty",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\nwheel:x:10:ann\n").unwrap();
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    let ours = format!("hullworks-{}", std::process::id());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // The common parents of limited steps' groups stay as long as the executor.
                let name = entry.file_name().to_string_lossy().into_owned();
                let in_ours = dir.components().any(|part| part.as_os_str().to_string_lossy().starts_with(&ours));
                if in_ours && name != "shared" {
                    found.push(entry.path());
                }
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Our children and theirs.
pub fn descendants() -> Vec<(i32, String)> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let (head, tail) = stat.rsplit_once(')').unwrap();
        let parent: i32 = tail.split_whitespace().nth(1).unwrap().parse().unwrap();
        parents.push((pid, parent, head.to_owned()));
    }
    let mut known = vec![std::process::id() as i32];
    let mut found = Vec::new();
    while let Some(of) = known.pop() {
        for (pid, _, name) in parents.iter().filter(|(_, parent, _)| *parent == of) {
            known.push(*pid);
            found.push((*pid, name.clone()));
        }
    }
    found
}
