//! What every end-to-end test stands on.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::io::{Read, Write as _};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The binary under test.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("HULLWORKS_BIN").map(PathBuf::from);
    path.expect("HULLWORKS_BIN is not set: run these tests by `cargo xtask e2e`")
}

/// Skips the test, saying why, unless the machine has what it needs: `needs!(root)`, `needs!(tool "skopeo")`.
#[macro_export]
macro_rules! needs {
    (root) => {
        $crate::needs!(@ $crate::harness::is_root(), "it wants root")
    };
    (userns) => {
        $crate::needs!(@ $crate::harness::can_unshare(), "it wants user namespaces")
    };
    (static binary) => {
        $crate::needs!(@ $crate::harness::is_static(), "it wants the static binary")
    };
    (tool $name:literal) => {
        $crate::needs!(@ $crate::harness::has_tool($name), concat!("it wants `", $name, "`"))
    };
    (@ $has:expr, $why:expr) => {
        if $crate::harness::or_skip(if $has { Ok(()) } else { Err($why) }).is_none() {
            return;
        }
    };
}

/// What a test acts with, unless this machine lacks something for it: then says why the test is skipped.
pub fn or_skip<T, E: Display>(wanted: Result<T, E>) -> Option<T> {
    wanted.inspect_err(|reason| testkit::need::report_skip(&reason.to_string())).ok()
}

/// Fails for the first of these programs that is not in PATH.
pub fn tools(names: &[&str]) -> Result<(), String> {
    names.iter().find(|name| !has_tool(name)).map_or(Ok(()), |name| Err(format!("it wants `{name}`")))
}

/// Whether we are root.
pub fn is_root() -> bool {
    succeeds(Command::new("sh").args(["-c", "test \"$(id -u)\" = 0"]))
}

/// Whether an ordinary user may make a user namespace here.
pub fn can_unshare() -> bool {
    succeeds(as_user(Command::new("unshare").args(["--user", "--map-root-user", "true"])).current_dir("/"))
}

/// Whether the binary under test runs without the libraries of this machine.
pub fn is_static() -> bool {
    let interpreter = b"/ld-linux-";
    !fs::read(binary()).unwrap().windows(interpreter.len()).any(|window| window == interpreter)
}

/// Whether a program is in PATH.
pub fn has_tool(name: &str) -> bool {
    find_tool(name).is_some()
}

/// Where a program is, if PATH has it.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let dirs: Vec<PathBuf> = std::env::split_paths(&path()).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    dirs.into_iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Where programs are: on this machine, then among those that were only fetched for the tests. They join here and not
/// for all of cargo, which would build what depends on PATH again.
pub fn path() -> OsString {
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    dirs.extend(std::env::var_os("HULLWORKS_TOOLS").map(PathBuf::from));
    std::env::join_paths(dirs).unwrap()
}

/// Where files are in memory, if programs can be started from there: tests that build hundreds of times need not wait
/// for a disk at the end of each.
pub fn memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    let probe = || {
        let dir = tempfile::tempdir_in(&shared).ok()?;
        let program = dir.path().join("true");
        fs::copy("/bin/true", &program).ok()?;
        let free = Command::new("df").args(["--output=avail", "--block-size=1M"]).arg(&shared).output().ok()?;
        let free: u64 = String::from_utf8(free.stdout).ok()?.lines().nth(1)?.trim().parse().ok()?;
        (succeeds(&mut Command::new(program)) && free > 1024).then_some(())
    };
    if probe().is_some() { shared } else { std::env::temp_dir() }
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The id of the ordinary user that tests act as when they are started by root.
pub const USER: u32 = 1000;

/// The command as an ordinary user: as it is unless we are root.
fn as_user(command: &Command) -> Command {
    if !is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    }
    let mut wrapped = Command::new("setpriv");
    let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    wrapped.args([&uid, &gid, "--clear-groups", "--"]).arg(command.get_program()).args(command.get_args());
    wrapped
}

/// A directory and a state of one test. Both are gone with it.
pub struct World {
    dir: TempDir,
    program: PathBuf,
    user: bool,
}

impl World {
    /// Commands run as whoever runs the tests.
    pub fn new() -> World {
        World::below(&std::env::temp_dir())
    }

    /// The same in a directory.
    pub fn below(dir: &Path) -> World {
        let dir = tempfile::Builder::new().prefix("hullworks-e2e-").tempdir_in(dir).unwrap();
        World { dir, program: binary(), user: false }
    }

    /// Commands run as an ordinary user, who owns everything here.
    pub fn of_user() -> World {
        let mut world = World { user: true, ..World::new() };
        if is_root() {
            std::os::unix::fs::chown(world.dir.path(), Some(USER), Some(USER)).unwrap();
            // Where the binary is built may be a place that only root can enter.
            world.program = world.path("hullworks");
            fs::copy(binary(), &world.program).unwrap();
        }
        world
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// `hullworks build` on the state of this world.
    pub fn build(&self) -> Invocation {
        self.hullworks(["build", "--progress=plain", "--root"]).arg(self.path("state"))
    }

    /// `buildctl-daemonless.sh` on the state of this world.
    pub fn daemonless<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation {
        let flags = format!("--root={}", self.path("state").display());
        self.hullworks(["buildctl-daemonless.sh"]).args(args).env("BUILDKITD_FLAGS", flags)
    }

    /// `hullworks` with these arguments.
    pub fn hullworks<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation {
        self.run(&self.program).args(args)
    }

    /// Where our program is, for scripts that start it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Another program, such as a tool that judges what we wrote.
    pub fn run(&self, program: impl AsRef<OsStr>) -> Invocation {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env("PATH", path());
        // The caller's own settings must not decide a test.
        for variable in ["BUILDKIT_PROGRESS", "BUILDKITD_FLAGS", "DOCKER_CONFIG", "SOURCE_DATE_EPOCH", "XDG_DATA_HOME"]
        {
            command.env_remove(variable);
        }
        command.env("HOME", self.dir.path());
        Invocation { command, stdin: Vec::new(), user: self.user, reads_stdout: true }
    }
}

/// A program about to be started.
pub struct Invocation {
    command: Command,
    stdin: Vec<u8>,
    user: bool,
    reads_stdout: bool,
}

impl Invocation {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// What standard input holds.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Leads a process group of its own, as a shell's job does.
    pub fn leads_a_job(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Nobody reads what it writes to standard output: it waits once the pipe is full.
    pub fn unread(mut self) -> Self {
        self.reads_stdout = false;
        self
    }

    /// Runs it and expects success.
    pub fn succeeds(self) -> Ended {
        let ended = self.ends();
        assert!(ended.code == Some(0), "{ended:?}");
        ended
    }

    /// Runs it and expects failure, with exit code 1 as upstream.
    pub fn fails(self) -> Ended {
        let ended = self.ends();
        assert!(ended.code == Some(1), "{ended:?}");
        ended
    }

    /// Runs it.
    pub fn ends(self) -> Ended {
        self.starts().ends()
    }

    /// Starts it and goes on.
    pub fn starts(self) -> Running {
        let line = format!("{:?}", self.command);
        let mut command = self.command;
        if self.user {
            let mut wrapped = as_user(&command);
            wrapped.current_dir(command.get_current_dir().unwrap());
            for (key, value) in command.get_envs() {
                match value {
                    Some(value) => wrapped.env(key, value),
                    None => wrapped.env_remove(key),
                };
            }
            command = wrapped;
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let bytes = self.stdin;
        // It may end without reading.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let stdout = child.stdout.take().unwrap();
        let (stdout, unread) =
            if self.reads_stdout { (collect(stdout), None) } else { (collect(&[][..]), Some(stdout)) };
        let stderr = collect(child.stderr.take().unwrap());
        Running { line, child: Owned(child), writer, stdout, stderr, unread }
    }
}

/// Waits for what nobody announces. It must come.
#[track_caller]
pub fn eventually(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(120), "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Does the same with each of these, several at a time: for work that mostly waits.
pub fn each<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    const AT_ONCE: usize = 6;
    let items = Mutex::new(items);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = { items.lock().unwrap().pop() } {
                    work(item);
                }
            });
        }
    });
}

/// What a pipe held so far, read by a thread until its end.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let shared = bytes.clone();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            shared.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    });
    Collected { bytes, thread }
}

impl Collected {
    fn end(self) -> Vec<u8> {
        self.thread.join().unwrap();
        std::mem::take(&mut *self.bytes.lock().unwrap())
    }
}

/// A child that does not outlive who started it: a test that fails leaves no daemon behind.
struct Owned(Child);

impl Deref for Owned {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Most have ended, and were waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs.
pub struct Running {
    line: String,
    child: Owned,
    writer: JoinHandle<()>,
    stdout: Collected,
    stderr: Collected,
    unread: Option<ChildStdout>,
}

impl Running {
    /// Waits until a line of standard error ends in this text.
    #[track_caller]
    pub fn waits_for(&self, end: &str) {
        self.waits_until(end, |said| said.lines().any(|line| line.ends_with(&format!(" {end}"))));
    }

    /// Waits until standard error says so.
    #[track_caller]
    pub fn waits_until(&self, what: &str, is_said: impl FnMut(&str) -> bool) {
        assert!(self.says_or_ends(is_said), "`{what}` was never said: {}", self.said());
    }

    /// Waits until standard error says so; false: it has none any more, and did not.
    #[track_caller]
    pub fn says_or_ends(&self, mut is_said: impl FnMut(&str) -> bool) -> bool {
        let mut found = false;
        eventually(|| {
            let over = self.stderr.thread.is_finished();
            found = is_said(&self.said());
            found || over
        });
        found
    }

    /// What it wrote to standard error so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes.lock().unwrap()).into_owned()
    }

    /// Waits until standard output has this text.
    #[track_caller]
    pub fn prints(&self, text: &str) {
        let printed = || String::from_utf8_lossy(&self.stdout.bytes.lock().unwrap()).into_owned();
        eventually(|| {
            let over = self.stdout.thread.is_finished();
            let is_printed = printed().contains(text);
            assert!(is_printed || !over, "`{text}` was never printed: {}", printed());
            is_printed
        });
    }

    /// Whether it waits for who does not read its standard output: the pipe is full.
    pub fn is_stuck(&self) -> bool {
        let unread = self.unread.as_ref().expect("somebody reads it");
        rustix::io::ioctl_fionread(unread).unwrap() > 60_000
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        self.kill(name, &self.child.id().to_string());
    }

    /// Sends a signal to all of the [job](Invocation::leads_a_job), as a terminal does.
    pub fn signal_job(&self, name: &str) {
        self.kill(name, &format!("-{}", self.child.id()));
    }

    fn kill(&self, name: &str, whom: &str) {
        assert!(Command::new("kill").args(["-s", name, "--", whom]).status().unwrap().success());
    }

    /// Waits for its end, and says how much memory it had at most, in bytes: itself, not its steps.
    pub fn ends_with_peak(mut self) -> (Ended, u64) {
        let status = format!("/proc/{}/status", self.child.id());
        let mut peak = 0;
        // The kernel keeps the maximum, so that only what comes after the last look is missed.
        while self.child.try_wait().unwrap().is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            peak = peak.max(kib.unwrap_or(0) << 10);
            std::thread::sleep(Duration::from_millis(10));
        }
        (self.ends(), peak)
    }

    /// Kills it, as the end of a pod does, so long after it was started; none if it was quicker and succeeded. Waits until
    /// nobody has its standard error: the process that starts its steps does as long as it lives.
    #[track_caller]
    pub fn kill_after(mut self, after: Duration) -> Option<u32> {
        std::thread::sleep(after);
        if let Some(status) = self.child.try_wait().unwrap() {
            assert!(status.success(), "{:?}", self.ends());
            return None;
        }
        self.child.kill().unwrap();
        let (id, status) = (self.child.id(), self.child.wait().unwrap());
        let began = Instant::now();
        while !self.stderr.thread.is_finished() {
            assert!(began.elapsed() < Duration::from_secs(60), "killed, but something of it lives: {}", self.line);
            std::thread::sleep(Duration::from_millis(1));
        }
        // It may have ended between the look and the kill.
        (!status.success()).then_some(id)
    }

    /// Waits for its end, which must come: one that hangs fails the test.
    #[track_caller]
    pub fn ends_soon(mut self) -> Ended {
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(120) {
                self.child.kill().unwrap();
                panic!("it hangs: {:?}", self.ends());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ends()
    }

    /// Waits for its end.
    pub fn ends(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        self.writer.join().unwrap();
        let stderr = String::from_utf8_lossy(&self.stderr.end()).into_owned();
        Ended { line: self.line, code: status.code(), stdout: self.stdout.end(), stderr }
    }
}

/// A program that has ended.
pub struct Ended {
    line: String,
    /// None: a signal.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless standard error has this text.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Ended {
        assert!(self.stderr.contains(text), "`{text}` is not said: {self:?}");
        self
    }

    /// Fails unless this is the hint, or none is given.
    #[track_caller]
    pub fn hints(&self, hint: &str) -> &Ended {
        let given = self.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).unwrap_or_default();
        assert!(given == hint, "the hint is `{given}`, not `{hint}`: {self:?}");
        self
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4096)]);
        write!(f, "{}\nexit code {:?}\n--- stdout\n{stdout}\n--- stderr\n{}", self.line, self.code, self.stderr)
    }
}
