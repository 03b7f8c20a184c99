//! Limits of control groups, and memory running out.

use base::ByteSize;
use executor::OutOfMemory;
use sys::cgroup::Limits;

use crate::bed::Bed;
use crate::{Outcome, Skip, Test};

pub const ALL: &[(&str, Test)] = &[
    ("privileged_memory_limits_are_named", memory),
    ("privileged_process_limits_hold", pids),
    ("steps_die_before_the_executor", oom_score),
];

fn groups(limits: &sys::cgroup::Limits) -> Result<(), Skip> {
    let groups = sys::cgroup::Groups::open().map_err(|error| Skip(error.to_string()))?;
    match groups.missing_for(limits) {
        Some(controller) => Err(Skip(format!("no controller {controller}"))),
        None => Ok(()),
    }
}

fn memory(bed: &Bed) -> Outcome {
    groups(&Limits { memory: Some(1), ..Default::default() })?;
    let limit = ByteSize(32 << 20);
    let mut step = bed.script("a", "tail /dev/zero");
    step.resources = Limits { memory: Some(limit.0), memory_swap: Some(32 << 20), ..Limits::default() };
    let ran = bed.run(step).unwrap();
    assert_eq!((ran.exit.code, ran.exit.out_of_memory), (137, Some(OutOfMemory { limit: Some(limit) })), "{ran:?}");
    assert_eq!(ran.exit.describe(), "exit code: 137: out of memory, limit 33.55MB");
    // Within the limit all is well.
    let mut step = bed.script("a", "true");
    step.resources = Limits { memory: Some(limit.0), cpu_shares: Some(512), ..Limits::default() };
    let ran = bed.run(step).unwrap();
    assert_eq!((ran.exit.code, ran.exit.out_of_memory), (0, None), "{ran:?}");
    Ok(())
}

fn pids(bed: &Bed) -> Outcome {
    groups(&Limits { pids: Some(1), ..Default::default() })?;
    let mut step = bed.script("a", "for i in $(seq 30); do sleep 5 & done; true");
    step.resources = Limits { pids: Some(10), ..Limits::default() };
    let ran = bed.run(step).unwrap();
    assert!(ran.stderr.contains("fork"), "{ran:?}");
    Ok(())
}

fn oom_score(bed: &Bed) -> Outcome {
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let said = bed.say(bed.script("a", "cat /proc/self/oom_score_adj"));
    assert_eq!(said.trim(), (own + 250).min(1000).to_string());
    Ok(())
}
