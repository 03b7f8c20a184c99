//! What Prometheus reads, in its text form. Builds are counted under BuildKit's names, the process under those that every
//! exporter uses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use proto::moby::buildkit::v1::BuildHistoryRecord;
use rustix::process::Resource;
use tonic::Code;

/// What the text form is called.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper ends of the buckets of durations of builds, in seconds.
const OF_BUILDS: &[f64] = &[0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];
/// Of calls.
const OF_CALLS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Methods that are told apart: names come from clients.
const MOST_METHODS: usize = 100;

/// Counts of builds and calls since the start.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By status, and the code of the error.
    builds: BTreeMap<(&'static str, Option<&'static str>), u64>,
    /// Completed, cached, in all, warnings.
    steps: [u64; 4],
    durations: BTreeMap<&'static str, Durations>,
    /// By method and code.
    calls: BTreeMap<(String, &'static str), Durations>,
}

struct Durations {
    ends: &'static [f64],
    buckets: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Durations {
    fn below(ends: &'static [f64]) -> Durations {
        Durations { ends, buckets: vec![0; ends.len()], sum: 0.0, count: 0 }
    }

    fn add(&mut self, seconds: f64) {
        self.sum += seconds;
        self.count += 1;
        for (bucket, end) in self.buckets.iter_mut().zip(self.ends) {
            *bucket += u64::from(seconds <= *end);
        }
    }

    /// The samples of a histogram.
    fn samples(&self, name: &str, labels: &str) -> Vec<(String, String)> {
        let ends = self.ends.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        let buckets = ends.zip(self.buckets.iter().chain([&self.count]));
        let bucket =
            |(end, count): (String, &u64)| (format!("{name}_bucket{{{labels},le=\"{end}\"}}"), count.to_string());
        let sums = [("sum", self.sum.to_string()), ("count", self.count.to_string())];
        let sums = sums.map(|(what, value)| (format!("{name}_{what}{{{labels}}}"), value));
        buckets.map(bucket).chain(sums).collect()
    }
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
        counts.durations.entry(status).or_insert_with(|| Durations::below(OF_BUILDS)).add(seconds);
    }

    /// Counts a call that has ended.
    pub(crate) fn called(&self, method: &str, code: Code, took: Duration) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method.to_owned(), wire_name(code));
        if counts.calls.len() < MOST_METHODS || counts.calls.contains_key(&key) {
            counts.calls.entry(key).or_insert_with(|| Durations::below(OF_CALLS)).add(took.as_secs_f64());
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
        let samples = counts.durations.iter();
        let samples = samples.flat_map(|(status, took)| took.samples(name, &format!("status=\"{status}\"")));
        family(name, "histogram", "Time from a build's request to its end.", samples.collect());
        let name = "rpc_server_call_duration_seconds";
        let samples = counts.calls.iter().flat_map(|((method, code), took)| {
            let labels = format!(
                "rpc_method=\"{}\",rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\"",
                method.escape_default()
            );
            took.samples(name, &labels)
        });
        family(name, "histogram", "Time from a call of the gRPC API to the end of its answer.", samples.collect());
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
        let bytes = |bytes: u64| bytes.to_string();
        let help = "Virtual memory size in bytes.";
        gauge("process_virtual_memory_bytes", "gauge", help, process.virtual_size.map(bytes));
        let help = "Maximum amount of virtual memory available in bytes.";
        let most = limit(Resource::As).unwrap_or(u64::MAX);
        gauge("process_virtual_memory_max_bytes", "gauge", help, Some(bytes(most)));
        let help = "Number of open file descriptors.";
        gauge("process_open_fds", "gauge", help, process.fds.map(|count| count.to_string()));
        let help = "Maximum number of open file descriptors.";
        gauge("process_max_fds", "gauge", help, limit(Resource::Nofile).map(bytes));
        let help = "Number of bytes received by the process over the network.";
        gauge("process_network_receive_bytes_total", "counter", help, process.received.map(bytes));
        let help = "Number of bytes sent by the process over the network.";
        gauge("process_network_transmit_bytes_total", "counter", help, process.sent.map(bytes));
        let help = "Start time of the process since unix epoch in seconds.";
        gauge("process_start_time_seconds", "gauge", help, process.started.map(seconds));
        text
    }
}

/// What the kernel says of this process, as far as it does.
struct Process {
    cpu: Option<f64>,
    resident: Option<u64>,
    virtual_size: Option<u64>,
    fds: Option<usize>,
    started: Option<f64>,
    /// Of all processes of its network namespace: the kernel counts no others.
    received: Option<u64>,
    sent: Option<u64>,
}

/// What the process may have of a resource; none where there is no limit.
fn limit(of: Resource) -> Option<u64> {
    rustix::process::getrlimit(of).current
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
        // A line of names, and below it a line of values.
        let counted = read("/proc/self/net/netstat");
        let mut counted = counted.lines().filter_map(|line| line.strip_prefix("IpExt:"));
        let counted = counted.next().zip(counted.next());
        let octets = |name: &str| {
            let (names, values) = counted?;
            let at = names.split_whitespace().position(|known| known == name)?;
            values.split_whitespace().nth(at)?.parse().ok()
        };
        let boot = read("/proc/stat");
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Process {
            cpu: field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / ticks),
            resident: field(24).map(|pages| pages * rustix::param::page_size() as u64),
            virtual_size: field(23),
            fds: std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            started: boot.zip(field(22)).map(|(boot, started)| boot + started as f64 / ticks),
            received: octets("InOctets"),
            sent: octets("OutOctets"),
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

/// A code's name in gRPC.
fn wire_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
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
        metrics.called("a.B/C", Code::NotFound, Duration::from_millis(30));
        (0..200).for_each(|n| metrics.called(&n.to_string(), Code::Ok, Duration::ZERO));
        let text = metrics.text(7);
        assert_eq!(text.matches("rpc_server_call_duration_seconds_count").count(), MOST_METHODS, "{text}");
        let call = "rpc_method=\"a.B/C\",rpc_response_status_code=\"NOT_FOUND\",rpc_system_name=\"grpc\"";
        for (end, count) in [("0.025", 0), ("0.05", 1)] {
            let line = format!("rpc_server_call_duration_seconds_bucket{{{call},le=\"{end}\"}} {count}");
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
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
