//! Options that limit what all processes of a step use together.

use llb::LinuxResources;

use crate::error::{Error, Result};

/// The largest processor or memory node that BuildKit takes.
const MOST: u32 = 8192;

/// What is not given is not limited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources(LinuxResources);

impl Resources {
    pub(crate) const NAMES: [&str; 7] =
        ["memory", "memswap", "cpushares", "cpuperiod", "cpuquota", "cpusetcpus", "cpusetmems"];

    /// Takes an option of that name. An empty value is as none.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        let wrong = |what: &str| Error::option(name, format!("`{value}` is not {what}"));
        let signed = |what| value.parse::<i64>().map_err(|_| wrong(what));
        let positive = |what| signed(what).and_then(|number| if number > 0 { Ok(number) } else { Err(wrong(what)) });
        let unsigned = |what| match value.parse::<u64>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(wrong(what)),
        };
        const BYTES: &str = "a number of bytes above 0";
        const BOTH: &str = "a number of bytes above 0, or -1 for no limit";
        const MICROSECONDS: &str = "a number of microseconds above 0";
        let limits = &mut self.0;
        match name {
            "memory" => limits.memory = positive(BYTES)?,
            "memswap" => match signed(BOTH)? {
                number @ (-1 | 1..) => limits.memory_swap = number,
                _ => return Err(wrong(BOTH)),
            },
            "cpushares" => limits.cpu_shares = unsigned("a number above 0")?,
            "cpuperiod" => limits.cpu_period = unsigned(MICROSECONDS)?,
            "cpuquota" => limits.cpu_quota = positive(MICROSECONDS)?,
            "cpusetcpus" if is_number_list(value) => value.clone_into(&mut limits.cpuset_cpus),
            "cpusetmems" if is_number_list(value) => value.clone_into(&mut limits.cpuset_mems),
            _ => return Err(wrong("a list of numbers and ranges such as `0-3,7`")),
        }
        Ok(())
    }

    /// Those that are given, if any is.
    pub(crate) fn given(&self) -> Option<LinuxResources> {
        (self.0 != LinuxResources::default()).then(|| self.0.clone())
    }
}

/// Whether it is a list of numbers and ranges such as `0-3,7`, as processors and memory nodes are chosen by.
pub fn is_number_list(value: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number <= MOST);
    value.split(',').map(str::trim).filter(|part| !part.is_empty()).all(|part| match part.split_once('-') {
        Some((low, high)) => matches!((number(low), number(high)), (Some(low), Some(high)) if low <= high),
        None => number(part).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(options: &[(&str, &str)]) -> Result<Option<LinuxResources>> {
        let mut resources = Resources::default();
        options.iter().try_for_each(|(name, value)| resources.set(name, value))?;
        Ok(resources.given())
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(given(&[("memory", "")]).expect("right"), None);
        let all = given(&[
            ("memory", "67108864"),
            ("memswap", "-1"),
            ("cpushares", "512"),
            ("cpuperiod", "100000"),
            ("cpuquota", "50000"),
            ("cpusetcpus", "0-1,3"),
            ("cpusetmems", "0"),
        ]);
        let expected = LinuxResources {
            memory: 67_108_864,
            memory_swap: -1,
            cpu_shares: 512,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpuset_cpus: "0-1,3".to_owned(),
            cpuset_mems: "0".to_owned(),
        };
        assert_eq!(all.expect("right"), Some(expected));
    }

    #[test]
    fn wrong_limits_are_errors_that_name_the_option() {
        for (name, value) in [
            ("memory", "64m"),
            ("memory", "0"),
            ("memory", "-1"),
            ("memswap", "-2"),
            ("memswap", "0"),
            ("cpushares", "-5"),
            ("cpuperiod", "0"),
            ("cpuquota", "-1"),
            ("cpusetcpus", "3-1"),
            ("cpusetcpus", "a"),
            ("cpusetmems", "9000"),
        ] {
            let error = given(&[(name, value)]).expect_err(value).to_string();
            assert!(error.contains(name) && error.contains(&format!("`{value}`")), "{error}");
        }
    }
}
