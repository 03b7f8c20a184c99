//! Names of resource limits, and what a step's limits are to its control group.

use sys::cgroup::Limits;

use crate::{Error, Resources, Ulimit};

/// A limit as setrlimit(2) takes it.
pub(crate) fn number(limit: &Ulimit) -> Result<(u32, u64, u64), Error> {
    let known = [
        ("as", libc::RLIMIT_AS),
        ("core", libc::RLIMIT_CORE),
        ("cpu", libc::RLIMIT_CPU),
        ("data", libc::RLIMIT_DATA),
        ("fsize", libc::RLIMIT_FSIZE),
        ("locks", libc::RLIMIT_LOCKS),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
        ("rss", libc::RLIMIT_RSS),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("rttime", libc::RLIMIT_RTTIME),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("stack", libc::RLIMIT_STACK),
    ];
    let Some((_, resource)) = known.iter().find(|(name, _)| limit.name.eq_ignore_ascii_case(name)) else {
        return Err(Error::Invalid(format!("unknown ulimit `{}`", limit.name)));
    };
    // -1 is all ones: no limit.
    Ok((*resource as u32, limit.soft as u64, limit.hard as u64))
}

pub(crate) fn of_group(resources: &Resources) -> Limits {
    Limits {
        memory: resources.memory.map(|size| size.0),
        memory_swap: resources.memory_swap,
        cpu_shares: resources.cpu_shares,
        cpu_quota: resources.cpu_quota,
        cpu_period: resources.cpu_period,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        pids: resources.pids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_have_numbers() {
        let limit = |name: &str| number(&Ulimit { name: name.to_owned(), soft: 5, hard: -1 });
        assert_eq!(limit("nofile").ok(), Some((libc::RLIMIT_NOFILE as u32, 5, libc::RLIM_INFINITY as u64)));
        assert_eq!(limit("NOFILE").ok(), limit("nofile").ok());
        assert_eq!(limit("bogus").map_err(|error| error.to_string()), Err("unknown ulimit `bogus`".to_owned()));
    }
}
