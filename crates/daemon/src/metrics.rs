//! What Prometheus reads, in its text form. Builds are counted under BuildKit's names, the process under those that every
//! exporter uses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use proto::moby::buildkit::v1::BuildHistoryRecord;
use tonic::Code;

/// What the text form is called.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper ends of the buckets of durations, in seconds.
const BUCKETS: [f64; 12] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

/// Counts of builds since the start.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By status, and the code of the error.
    builds: BTreeMap<(&'static str, Option<&'static str>), u64>,
    /// Completed, cached, in all, warnings.
    steps: [u64; 4],
    durations: BTreeMap<&'static str, Durations>,
}

#[derive(Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

impl Metrics {
    /// Counts a build that has ended.
    pub(crate) fn ended(&self, record: &BuildHistoryRecord) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, code) = match &record.error {
            None => ("success", None),
            Some(error) => ("failure", Some(code_name(Code::from_i32(error.code)))),
        };
        *counts.builds.entry((status, code)).or_default() += 1;
        let steps = [record.num_completed_steps, record.num_cached_steps, record.num_total_steps, record.num_warnings];
        for (sum, steps) in counts.steps.iter_mut().zip(steps) {
            *sum += u64::try_from(steps).unwrap_or(0);
        }
        let (Some(began), Some(ended)) = (&record.created_at, &record.completed_at) else { return };
        let seconds = (ended.seconds - began.seconds) as f64 + f64::from(ended.nanos - began.nanos) / 1e9;
        let durations = counts.durations.entry(status).or_default();
        durations.sum += seconds;
        durations.count += 1;
        for (bucket, end) in durations.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= end);
        }
    }

    /// Everything as text. `running` builds are under way.
    pub(crate) fn text(&self, running: usize) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, String)>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (sample, value) in samples {
                let _ = writeln!(text, "{sample} {value}");
            }
        };
        let builds = counts.builds.iter().map(|((status, code), count)| {
            let code = code.map(|code| format!(",error_code=\"{code}\"")).unwrap_or_default();
            (format!("buildkit_builds_total{{status=\"{status}\"{code}}}"), count.to_string())
        });
        let help = "Number of builds completed, by status and, on failure, gRPC error code.";
        family("buildkit_builds_total", "counter", help, builds.collect());
        let steps = ["completed", "cached", "total", "warnings"].into_iter().zip(counts.steps);
        let steps =
            steps.map(|(kind, count)| (format!("buildkit_builds_steps_total{{kind=\"{kind}\"}}"), count.to_string()));
        let help = "Number of build steps, by kind: completed, cached, total, warnings.";
        family("buildkit_builds_steps_total", "counter", help, steps.collect());
        let name = "buildkit_build_duration_seconds";
        let mut samples = Vec::new();
        for (status, durations) in &counts.durations {
            let ends = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (end, count) in ends.zip(durations.buckets.iter().chain([&durations.count])) {
                samples.push((format!("{name}_bucket{{status=\"{status}\",le=\"{end}\"}}"), count.to_string()));
            }
            samples.push((format!("{name}_sum{{status=\"{status}\"}}"), durations.sum.to_string()));
            samples.push((format!("{name}_count{{status=\"{status}\"}}"), durations.count.to_string()));
        }
        family(name, "histogram", "Time from a build's request to its end.", samples);
        let mut gauge = |name: &str, kind: &str, help: &str, value: Option<String>| {
            family(name, kind, help, value.into_iter().map(|value| (name.to_owned(), value)).collect());
        };
        gauge("hullworks_builds_running", "gauge", "Builds under way.", Some(running.to_string()));
        let process = Process::of_self();
        let seconds = |seconds: f64| seconds.to_string();
        let help = "Total user and system CPU time spent in seconds.";
        gauge("process_cpu_seconds_total", "counter", help, process.cpu.map(seconds));
        let help = "Resident memory size in bytes.";
        gauge("process_resident_memory_bytes", "gauge", help, process.resident.map(|bytes| bytes.to_string()));
        let help = "Number of open file descriptors.";
        gauge("process_open_fds", "gauge", help, process.fds.map(|count| count.to_string()));
        let help = "Start time of the process since unix epoch in seconds.";
        gauge("process_start_time_seconds", "gauge", help, process.started.map(seconds));
        text
    }
}

/// What the kernel says of this process, as far as it does.
struct Process {
    cpu: Option<f64>,
    resident: Option<u64>,
    fds: Option<usize>,
    started: Option<f64>,
}

impl Process {
    fn of_self() -> Process {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/self/stat");
        // The second field is a name in brackets, which may hold blanks.
        let fields: Vec<u64> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3).copied();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let boot = read("/proc/stat");
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Process {
            cpu: field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / ticks),
            resident: field(24).map(|pages| pages * rustix::param::page_size() as u64),
            fds: std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            started: boot.zip(field(22)).map(|(boot, started)| boot + started as f64 / ticks),
        }
    }
}

/// A code's name in Go.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use proto::{protobuf, rpc};

    use super::*;

    #[test]
    fn builds_are_counted() {
        let at = |seconds| Some(protobuf::Timestamp { seconds, nanos: 0 });
        let metrics = Metrics::default();
        let mut record = BuildHistoryRecord { created_at: at(10), completed_at: at(13), ..Default::default() };
        record.num_total_steps = 5;
        record.num_cached_steps = 2;
        metrics.ended(&record);
        record.error = Some(rpc::Status { code: 1, ..Default::default() });
        metrics.ended(&record);
        let text = metrics.text(7);
        for line in [
            "buildkit_builds_total{status=\"failure\",error_code=\"Canceled\"} 1",
            "buildkit_builds_total{status=\"success\"} 1",
            "buildkit_builds_steps_total{kind=\"cached\"} 4",
            "buildkit_builds_steps_total{kind=\"total\"} 10",
            "buildkit_build_duration_seconds_bucket{status=\"success\",le=\"2.5\"} 0",
            "buildkit_build_duration_seconds_bucket{status=\"success\",le=\"5\"} 1",
            "buildkit_build_duration_seconds_bucket{status=\"success\",le=\"+Inf\"} 1",
            "buildkit_build_duration_seconds_sum{status=\"success\"} 3",
            "# TYPE buildkit_build_duration_seconds histogram",
            "hullworks_builds_running 7",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        let resident = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        assert!(resident.and_then(|bytes| bytes.parse::<u64>().ok()).is_some_and(|bytes| bytes > 100_000), "{text}");
        // Every line is a comment or a sample with a number.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
            assert!(matches!(value, Some(Ok(_))), "{line}");
        }
    }
}
