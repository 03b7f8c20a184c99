//! Flags of `docker build` that limit what all processes of a RUN step use together.

use base::Fault;
use clap::Args;

use crate::spec::invalid;

/// What is not given is not limited.
#[derive(Clone, Debug, Default, Args)]
pub struct Limits {
    /// Memory of a RUN step, such as 512m
    #[arg(long, short, value_name = "SIZE", help_heading = "Steps")]
    memory: Option<String>,
    /// Memory and swap of a RUN step together; -1 is no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = "Steps")]
    memory_swap: Option<String>,
    /// Weight of a RUN step where processors are short
    #[arg(long, short, value_name = "NUMBER", help_heading = "Steps")]
    cpu_shares: Option<String>,
    /// Period of --cpu-quota, in microseconds
    #[arg(long, value_name = "MICROSECONDS", help_heading = "Steps")]
    cpu_period: Option<String>,
    /// Processor time that a RUN step has in each period, in microseconds; -1 is no limit
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true, help_heading = "Steps")]
    cpu_quota: Option<String>,
    /// Processors of a RUN step, such as 0-3,7
    #[arg(long, value_name = "LIST", help_heading = "Steps")]
    cpuset_cpus: Option<String>,
    /// Memory nodes of a RUN step, such as 0-3,7
    #[arg(long, value_name = "LIST", help_heading = "Steps")]
    cpuset_mems: Option<String>,
}

impl Limits {
    /// The frontend's options. As with docker, a number that is 0 is no limit.
    pub fn options(&self) -> Result<Vec<(&'static str, String)>, Fault> {
        let size = |flag, value: &String| match config::parse_bytes(value) {
            Ok(bytes) if i64::try_from(bytes).is_err() => Err(invalid(flag, value, "it is too much")),
            Ok(bytes) => Ok(bytes.to_string()),
            Err(error) => Err(invalid(flag, value, format!("not {}", error.expected()))),
        };
        let swap = |flag, value: &String| if value == "-1" { Ok(value.clone()) } else { size(flag, value) };
        let number = |flag, value: &String| match value.parse::<i64>() {
            Ok(number @ 0..) => Ok(number.to_string()),
            Ok(_) => Err(invalid(flag, value, "it is below 0")),
            Err(_) => Err(invalid(flag, value, "not a number")),
        };
        let quota = |flag, value: &String| if value == "-1" { Ok("0".to_owned()) } else { number(flag, value) };
        let list = |flag, value: &String| match engine::is_number_list(value) {
            true => Ok(value.clone()),
            false => Err(invalid(flag, value, "not a list of numbers and ranges such as `0-3,7`")),
        };
        type Read<'a> = &'a dyn Fn(&'static str, &String) -> Result<String, Fault>;
        let flags: [(_, _, _, Read<'_>); 7] = [
            ("memory", "--memory", &self.memory, &size),
            ("memswap", "--memory-swap", &self.memory_swap, &swap),
            ("cpushares", "--cpu-shares", &self.cpu_shares, &number),
            ("cpuperiod", "--cpu-period", &self.cpu_period, &number),
            ("cpuquota", "--cpu-quota", &self.cpu_quota, &quota),
            ("cpusetcpus", "--cpuset-cpus", &self.cpuset_cpus, &list),
            ("cpusetmems", "--cpuset-mems", &self.cpuset_mems, &list),
        ];
        let mut options = Vec::new();
        for (name, flag, value, read) in flags {
            let Some(value) = value.as_ref().filter(|value| !value.is_empty()) else { continue };
            match read(flag, value)? {
                zero if zero == "0" && !name.starts_with("cpuset") => {}
                value => options.push((name, value)),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: Limits,
    }

    fn options(line: &str) -> Result<Vec<(&'static str, String)>, Fault> {
        Line::try_parse_from(["build"].into_iter().chain(line.split(' '))).expect("flags").limits.options()
    }

    #[test]
    fn no_limit_is_none() {
        for none in ["--cpu-quota -1", "--cpu-quota 0", "--memory 0", "--cpu-shares 0", "--cpuset-cpus="] {
            assert_eq!(options(none).expect(none), [], "{none}");
        }
        assert_eq!(options("--memory-swap -1").expect("right"), [("memswap", "-1".to_owned())]);
    }

    #[test]
    fn errors_name_the_flag_that_was_typed() {
        for wrong in [
            "--memory 9000p",
            "--memory-swap -2",
            "--cpu-shares=-5",
            "--cpu-period=-1",
            "--cpu-quota -2",
            "--cpuset-cpus 3-1",
            "--cpuset-mems 9000",
        ] {
            let (flag, value) = wrong.split_once([' ', '=']).expect("a value");
            let fault = options(wrong).expect_err(wrong).to_string();
            assert!(fault.starts_with(&format!("invalid value `{value}` for {flag}: ")), "{fault}");
        }
    }
}
