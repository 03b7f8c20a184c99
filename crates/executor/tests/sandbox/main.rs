//! Real steps on a root made of busybox, as root and as an ordinary user.
//!
//! The program is its own harness: the executor starts it again as init, and user namespaces are entered before the
//! first thread. As root it also runs copies of itself: as user 1000 with and without a range of subordinate ids, and
//! behind filters that make an old kernel or a strict pod of this one. A skip prints its reason.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test harness")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

mod attached;
mod bed;
mod cases;
mod limits;
mod mounts;
mod roles;

use bed::Bed;

/// What a test says when it cannot run here.
pub struct Skip(pub String);

/// How a test ends that does not fail.
pub type Outcome = Result<(), Skip>;
type Test = fn(&Bed) -> Outcome;

/// Where a copy finds what it is to be.
pub const ROLE: &str = "HULLWORKS_TEST_ROLE";

fn main() -> ExitCode {
    if executor::init::is_requested() {
        executor::init::main();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&str> = args.iter().map(String::as_str).filter(|arg| !arg.starts_with('-')).collect();
    let tests: Vec<(&str, Test)> =
        cases::ALL.iter().chain(mounts::ALL).chain(limits::ALL).chain(attached::ALL).copied().collect();
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let role = std::env::var(ROLE).ok();
    let root = rustix::process::geteuid().is_root();
    let mut failed = 0;
    match role.as_deref() {
        Some(roles::VICTIM) => roles::victim(),
        Some(role) => roles::become_role(role),
        // Before our own namespaces, so that the copies start outside of them.
        None if root => failed += roles::run_copies(&filters),
        None => {}
    }
    let isolation = sys::userns::enter().unwrap();
    let label = role.unwrap_or_else(|| if root { "root".to_owned() } else { "user".to_owned() });
    println!("running as {label}: {:?}, {:?}: {}", isolation.level, isolation.ids, isolation.why);
    let level = match isolation.level {
        sys::userns::Level::Privileged => "privileged_",
        sys::userns::Level::Rootless => "rootless_",
        sys::userns::Level::Unprivileged => {
            println!("skipped: no isolation: {}", isolation.why);
            return ExitCode::from(u8::from(failed > 0));
        }
    };
    let bed = Bed::new(isolation);
    for (name, test) in tests {
        // A test without a level is for all of them.
        let fits = name.starts_with(level) || !["privileged_", "rootless_"].iter().any(|level| name.starts_with(level));
        if !fits || !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| {
            let outcome = test(&bed);
            bed.assert_nothing_left();
            outcome
        })) {
            Ok(Ok(())) => println!("test {label}::{name} ... ok"),
            Ok(Err(Skip(why))) => println!("test {label}::{name} ... skipped: {why}"),
            Err(_) => {
                println!("test {label}::{name} ... FAILED");
                failed += 1;
            }
        }
    }
    drop(bed);
    ExitCode::from(u8::from(failed > 0))
}
