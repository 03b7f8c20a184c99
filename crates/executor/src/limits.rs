//! Names of resource limits.

use rustix::process::Resource;

use crate::{Error, Ulimit};

/// A limit as setrlimit(2) takes it.
pub(crate) fn number(limit: &Ulimit) -> Result<(u32, u64, u64), Error> {
    let known = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];
    let Some((_, resource)) = known.iter().find(|(name, _)| limit.name.eq_ignore_ascii_case(name)) else {
        return Err(Error::Invalid(format!("unknown ulimit `{}`", limit.name)));
    };
    // -1 is all ones: no limit.
    Ok((*resource as u32, limit.soft as u64, limit.hard as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_have_numbers() {
        let limit = |name: &str| number(&Ulimit { name: name.to_owned(), soft: 5, hard: -1 });
        assert_eq!(limit("nofile").ok(), Some((Resource::Nofile as u32, 5, u64::MAX)));
        assert_eq!(limit("NOFILE").ok(), limit("nofile").ok());
        assert_eq!(limit("bogus").map_err(|error| error.to_string()), Err("unknown ulimit `bogus`".to_owned()));
    }
}
