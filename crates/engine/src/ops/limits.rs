//! Limits of a step, as they stand in LLB.

use base::Fault;
use llb::LinuxResources;
use sys::cgroup::Limits;

pub(super) fn resources(of: LinuxResources) -> Result<Limits, Fault> {
    let amount = |name: &str, value: i64| match u64::try_from(value) {
        Ok(value) => Ok((value > 0).then_some(value)),
        Err(_) => Err(Fault::user(format!("limit `{name}` of a step is below 0: {value}"))),
    };
    let text = |text: String| (!text.is_empty()).then_some(text);
    if of.memory_swap < -1 {
        return Err(Fault::user(format!("limit `memorySwap` of a step is below -1: {}", of.memory_swap)));
    }
    amount("cpuQuota", of.cpu_quota)?;
    Ok(Limits {
        memory: amount("memory", of.memory)?,
        memory_swap: (of.memory_swap != 0).then_some(of.memory_swap),
        cpu_shares: (of.cpu_shares > 0).then_some(of.cpu_shares),
        cpu_quota: (of.cpu_quota > 0).then_some(of.cpu_quota),
        cpu_period: (of.cpu_period > 0).then_some(of.cpu_period),
        cpuset_cpus: text(of.cpuset_cpus),
        cpuset_mems: text(of.cpuset_mems),
        pids: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_no_limit_and_less_is_an_error() {
        let none = resources(LinuxResources::default()).expect("right");
        assert!(none.is_unlimited());
        let some = LinuxResources { memory: 5, memory_swap: -1, cpuset_cpus: "0".to_owned(), ..Default::default() };
        let some = resources(some).expect("right");
        assert_eq!((some.memory, some.memory_swap, some.cpuset_cpus), (Some(5), Some(-1), Some("0".into())));
        for wrong in [
            LinuxResources { memory: -1, ..Default::default() },
            LinuxResources { cpu_quota: -1, ..Default::default() },
            LinuxResources { memory_swap: -2, ..Default::default() },
        ] {
            assert!(resources(wrong).is_err());
        }
    }
}
