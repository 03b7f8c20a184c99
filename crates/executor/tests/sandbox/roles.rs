//! Copies of the test program in other circumstances.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use executor::{CancellationToken, StepIo};
use sys::seccomp::Filter;

use crate::ROLE;
use crate::bed::Bed;

/// The copy that is killed while a step runs.
pub const VICTIM: &str = "victim";
/// How long its step sleeps: how it is found among the processes.
pub const VICTIM_SLEEP: &str = "98765";

/// Calls that kernels of 2019 lack.
const NEW_CALLS: [libc::c_long; 9] = [
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_clone3,
    libc::SYS_openat2,
    libc::SYS_close_range,
];

/// A copy: its name, the lines of /etc/subuid, whether it is root, and what is done before in a mount namespace.
struct Role {
    name: &'static str,
    range: bool,
    root: bool,
    before: &'static str,
}

const ROLES: &[Role] = &[
    Role { name: "user with a range", range: true, root: false, before: "" },
    Role { name: "user with a single id", range: false, root: false, before: "" },
    // Who sees a /proc with something hidden may not mount a new one.
    Role { name: "user with a masked /proc", range: false, root: false, before: "mount -t tmpfs x /proc/irq &&" },
    Role { name: "user without unshare", range: false, root: false, before: "" },
    Role { name: "root of an old kernel", range: false, root: true, before: "" },
    Role { name: "user of an old kernel", range: false, root: false, before: "" },
];

/// Runs all copies; answers with the number that failed.
pub fn run_copies(filters: &[&str]) -> usize {
    // The copy must be able to read itself, wherever the target directory lies.
    let dir = std::env::temp_dir().join(format!("hw-exec-copy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let program = dir.join("sandbox");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [&dir, &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let failed = ROLES.iter().filter(|role| !run_copy(role, &dir, &program, filters)).count();
    let victim = victim_leaves_nothing(&program, filters);
    std::fs::remove_dir_all(&dir).unwrap();
    failed + usize::from(!victim)
}

fn run_copy(role: &Role, dir: &Path, program: &Path, filters: &[&str]) -> bool {
    let ids = dir.join("ids");
    std::fs::write(&ids, if role.range { "1000:100000:65536\n" } else { "" }).unwrap();
    std::fs::set_permissions(&ids, std::fs::Permissions::from_mode(0o644)).unwrap();
    let script = format!(
        "mount --make-rprivate / && {before} \
         for f in /etc/subuid /etc/subgid; do [ -e $f ] || touch $f; mount --bind {ids} $f; done && \
         exec {user} {program} \"$@\"",
        before = role.before,
        ids = ids.display(),
        user = if role.root { "" } else { "setpriv --reuid 1000 --regid 1000 --clear-groups" },
        program = program.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sandbox"]).args(filters);
    match command.env(ROLE, role.name).env("HOME", "/").current_dir("/").status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("skipped as {}: {error}", role.name);
            true
        }
    }
}

/// Takes away what the role must do without.
pub fn become_role(name: &str) {
    match name {
        "user without unshare" => refuse(&[(libc::SYS_unshare, libc::EPERM)]),
        "root of an old kernel" | "user of an old kernel" => {
            let mut calls: Vec<_> = NEW_CALLS.iter().map(|call| (*call, libc::ENOSYS)).collect();
            // And a pod's default profile.
            calls.push((libc::SYS_pivot_root, libc::EPERM));
            refuse(&calls);
        }
        _ => {}
    }
}

/// Puts a filter around this process and what it starts.
fn refuse(calls: &[(libc::c_long, i32)]) {
    let mut code = vec![((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0)];
    for (call, errno) in calls {
        code.push(((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, *call as u32));
        code.push(((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | *errno as u32));
    }
    code.push(((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW));
    if !rustix::process::geteuid().is_root() {
        rustix::thread::set_no_new_privs(true).unwrap();
    }
    Filter::from_instructions(code).install().unwrap();
}

/// Starts a step that hides, and waits to be killed.
pub fn victim() -> ! {
    let bed = Bed::new(sys::userns::enter().unwrap());
    let script =
        format!("(setsid sh -c 'setsid sleep {VICTIM_SLEEP} & sleep {VICTIM_SLEEP}' &) ; sleep {VICTIM_SLEEP}");
    let step = bed.script("a", &script);
    let _ = bed.runtime.block_on(bed.executor.run(step, StepIo::discard(), CancellationToken::new()));
    std::process::exit(1);
}

fn sleepers() -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line) == format!("sleep\0{VICTIM_SLEEP}\0")).count()
}

fn victim_leaves_nothing(program: &Path, filters: &[&str]) -> bool {
    const NAME: &str = "a_killed_executor_takes_its_steps_along";
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter)) {
        return true;
    }
    let mut victim = Command::new(program).env(ROLE, VICTIM).stdout(Stdio::null()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    let wait_for = |count: usize| {
        while sleepers() != count {
            if Instant::now() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    };
    let began = wait_for(3);
    victim.kill().unwrap();
    victim.wait().unwrap();
    let ended = wait_for(0);
    // Its groups are swept by whoever comes next, once the kernel has let go of its last process.
    let left = || {
        drop(sys::cgroup::Groups::open());
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        hierarchies.filter(|dir| dir.path().join(format!("hullworks-{}", victim.id())).exists()).count()
    };
    while left() > 0 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    let left = left();
    let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("hw-exec-{}", victim.id())));
    let right = began && ended && left == 0;
    println!("test root::{NAME} ... {}", if right { "ok" } else { "FAILED" });
    if !right {
        println!("  began {began}, ended {ended}, {left} control groups left");
    }
    right
}
