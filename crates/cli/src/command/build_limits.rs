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
    /// Processor time that a RUN step has in each period, in microseconds
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
            Ok(bytes) => Ok(bytes.to_string()),
            Err(error) => Err(invalid(flag, value, format!("not {}", error.expected()))),
        };
        let swap = |flag, value: &String| if value == "-1" { Ok(value.clone()) } else { size(flag, value) };
        let number = |flag, value: &String| match value.parse::<i64>() {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Err(invalid(flag, value, "not a number")),
        };
        let list = |_: &'static str, value: &String| Ok(value.clone());
        type Read<'a> = &'a dyn Fn(&'static str, &String) -> Result<String, Fault>;
        let flags: [(_, _, _, Read<'_>); 7] = [
            ("memory", "--memory", &self.memory, &size),
            ("memswap", "--memory-swap", &self.memory_swap, &swap),
            ("cpushares", "--cpu-shares", &self.cpu_shares, &number),
            ("cpuperiod", "--cpu-period", &self.cpu_period, &number),
            ("cpuquota", "--cpu-quota", &self.cpu_quota, &number),
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
