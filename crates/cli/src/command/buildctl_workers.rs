//! `buildctl debug workers|info`: what a daemon is and has, or what would build without one.

use std::time::Duration;

use base::{ByteSize, Fault};
use clap::Args;
use proto::moby::buildkit::v1 as wire;
use proto::version::{self, Version, Worker, Workers as Answer};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::Action;
use super::buildctl_history::Formatted;
use super::buildkitd::identity;
use super::du::Format;
use super::table::{spaced, tabbed};
use crate::daemonless::signals::cancelled_by_signals;
use crate::daemonless::{Settings, run};
use crate::display::Mode;

/// List the workers
#[derive(Debug, Args)]
pub(super) struct Workers {
    /// Everything known about each
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    verbose: bool,
    /// Only those that match, such as id==ID or labels."KEY"==VALUE
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    pub(super) form: Formatted,
}

/// Show the version
#[derive(Debug, Args)]
pub(super) struct Info {
    #[command(flatten)]
    pub(super) form: Formatted,
}

impl Workers {
    /// Those of a daemon.
    pub(super) async fn ask(self, channel: Channel) -> Result<(), Fault> {
        let request = wire::ListWorkersRequest { filter: self.filter.clone() };
        let Answer { workers } = ask(channel, version::LIST_WORKERS, request).await?;
        crate::print(&text(&workers, &self.form.parse()?, self.verbose)?)
    }

    /// The one that builds without a daemon.
    pub(super) fn action_with(self, settings: Settings) -> Result<Action, Fault> {
        let format = self.form.parse()?;
        let settings = settings.to_look();
        Ok(Action::engine(async move |environment| {
            let engine = run::open(&settings, &environment, Mode::Plain, &cancelled_by_signals()?).await?;
            let devices = engine.devices().await;
            let found = identity(&settings, &engine);
            let found = found.and_then(|identity| daemon::workers(&identity, devices, &self.filter));
            engine.close().await;
            Ok(crate::print(&text(&found?, &format, self.verbose)?)?)
        }))
    }
}

impl Info {
    /// The daemon's.
    pub(super) async fn ask(self, channel: Channel) -> Result<(), Fault> {
        let info: version::Info = ask(channel, version::INFO, wire::InfoRequest {}).await?;
        self.print(&info.version.unwrap_or_default())
    }

    /// Ours.
    pub(super) fn action(self) -> Result<Action, Fault> {
        self.form.parse()?;
        Ok(Action::Simple(Box::new(move || {
            let mut words = crate::VERSION.split_whitespace();
            let package = words.next().unwrap_or_default().to_owned();
            let revision = words.nth(1).unwrap_or_default().to_owned();
            let (version, dockerfile) = (daemon::BUILDKIT_VERSION.to_owned(), daemon::DOCKERFILE_VERSION.to_owned());
            self.print(&Version { package, version, revision, dockerfile })
        })))
    }

    fn print(&self, version: &Version) -> Result<(), Fault> {
        match self.form.parse()? {
            Format::Table => crate::print(&spaced(&version_lines(version))),
            Format::Filled(template) => {
                crate::print_line(&template.apply(&json!({ "buildkitVersion": version_json(version) }))?)
            }
        }
    }
}

/// Asks what generated code does not know all fields of.
async fn ask<Q, A>(channel: Channel, method: &'static str, question: Q) -> Result<A, Fault>
where
    Q: proto::Message + 'static,
    A: proto::Message + Default + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    let unreachable =
        |error: tonic::transport::Error| Fault::because(base::Kind::Remote, "cannot reach the daemon", error);
    client.ready().await.map_err(unreachable)?;
    let path = http::uri::PathAndQuery::from_static(method);
    let answer = client.unary(tonic::Request::new(question), path, ProstCodec::<Q, A>::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| crate::connect::fault(&status))
}

/// Workers for people or programs.
fn text(workers: &[Worker], format: &Format, verbose: bool) -> Result<String, Fault> {
    if let Format::Filled(template) = format {
        return Ok(format!("{}\n", template.apply(&workers.iter().map(worker_json).collect())?));
    }
    if verbose {
        return Ok(tabbed(&workers.iter().map(in_full).collect::<String>()));
    }
    let rows = workers.iter().map(|Worker { record, .. }| format!("{}\t{}\n", record.id, platforms(record)));
    Ok(tabbed(&format!("ID\tPLATFORMS\n{}", rows.collect::<String>())))
}

fn platforms(worker: &wire::types::WorkerRecord) -> String {
    let platform = |platform: &proto::pb::Platform| {
        base::Platform::new(&platform.os, &platform.architecture, &platform.variant).to_string()
    };
    worker.platforms.iter().map(platform).collect::<Vec<_>>().join(",")
}

fn in_full(Worker { record: worker, version }: &Worker) -> String {
    let mut text = format!("ID:\t{}\nPlatforms:\t{}\n", worker.id, platforms(worker));
    text.push_str(&version_lines(version));
    text.push_str("Labels:\n");
    let mut labels: Vec<_> = worker.labels.iter().collect();
    labels.sort();
    text.extend(labels.into_iter().map(|(key, value)| format!("\t{key}:\t{value}\n")));
    if !worker.cdi_devices.is_empty() {
        text.push_str("Devices:\n");
    }
    for device in &worker.cdi_devices {
        text.push_str(&format!("\tName:\t{}\n", device.name));
        match device.on_demand {
            true => text.push_str("\tOnDemand:\ttrue\n"),
            false => text.push_str(&format!("\tAutoAllow:\t{}\n", device.auto_allow)),
        }
        let mut annotations: Vec<_> = device.annotations.iter().collect();
        annotations.sort();
        text.extend(annotations.into_iter().map(|(key, value)| format!("\tAnnotations:\t{key}:\t{value}\n")));
    }
    if !worker.cdi_devices.is_empty() {
        text.push('\n');
    }
    for (number, rule) in worker.gc_policy.iter().enumerate() {
        text.push_str(&format!("GC Policy rule#{number}:\n\tAll:\t{}\n", rule.all));
        if !rule.filters.is_empty() {
            text.push_str(&format!("\tFilters:\t{}\n", rule.filters.join(" ")));
        }
        if let Some(keep) = u64::try_from(rule.keep_duration).ok().filter(|keep| *keep > 0) {
            text.push_str(&format!("\tKeep duration:\t{}\n", go_duration(Duration::from_nanos(keep))));
        }
        for (name, size) in [
            ("Reserved space", rule.reserved_space),
            ("Minimum free space", rule.min_free_space),
            ("Maximum used space", rule.max_used_space),
        ] {
            if size > 0 {
                text.push_str(&format!("\t{name}:\t{}\n", shortest(ByteSize(size as u64))));
            }
        }
    }
    text.push('\n');
    text
}

/// `48h0m0s`, as Go has it.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let fraction = match duration.subsec_nanos() {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, _) => format!("{minutes}m{rest}{fraction}s"),
        _ => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

/// `512MB` and `1.5GB`: as many digits as it takes, as upstream shows sizes of rules.
fn shortest(size: ByteSize) -> String {
    const UNITS: [(u64, &str); 4] = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match UNITS.iter().find(|(unit, _)| size.0 >= *unit) {
        Some((unit, name)) => format!("{}{name}", size.0 as f64 / *unit as f64),
        None => format!("{}B", size.0),
    }
}

fn version_lines(version: &Version) -> String {
    let Version { package, version, revision, dockerfile } = version;
    let dockerfile = if dockerfile.is_empty() { String::new() } else { format!("Dockerfile:\t{dockerfile}\n") };
    format!("BuildKit:\t{package} {version} {revision}\n{dockerfile}")
}

fn version_json(version: &Version) -> Value {
    let mut shown = json!({ "package": version.package, "version": version.version, "revision": version.revision });
    if !version.dockerfile.is_empty() {
        shown["dockerfileVersion"] = version.dockerfile.clone().into();
    }
    shown
}

/// As Go's client prints a worker.
fn worker_json(Worker { record: worker, version }: &Worker) -> Value {
    let labels: std::collections::BTreeMap<_, _> = worker.labels.iter().collect();
    let platform = |platform: &proto::pb::Platform| {
        let mut shown = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            shown["variant"] = platform.variant.clone().into();
        }
        shown
    };
    // A list without anything is none to Go.
    let some = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
    let rule = |rule: &wire::types::GcPolicy| {
        json!({
            "all": rule.all, "filter": some(&rule.filters), "keepDuration": rule.keep_duration,
            "reservedSpace": rule.reserved_space, "maxUsedSpace": rule.max_used_space,
            "minFreeSpace": rule.min_free_space,
        })
    };
    json!({
        "id": worker.id, "labels": labels,
        "platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
        "gcPolicy": worker.gc_policy.iter().map(rule).collect::<Vec<_>>(),
        "buildkitVersion": version_json(version),
        "cdiDevices": match &worker.cdi_devices[..] {
            [] => Value::Null,
            devices => devices.iter().map(device_json).collect(),
        },
    })
}

/// As Go's client prints a device.
fn device_json(device: &wire::types::CdiDevice) -> Value {
    let annotations: std::collections::BTreeMap<_, _> = device.annotations.iter().collect();
    json!({
        "name": device.name, "autoAllow": device.auto_allow,
        "annotations": if annotations.is_empty() { Value::Null } else { json!(annotations) },
        "onDemand": device.on_demand,
    })
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn worker() -> Worker {
        let rule = wire::types::GcPolicy {
            all: true,
            keep_duration: 172_800_000_000_000,
            filters: vec!["type==source.local".to_owned(), "shared".to_owned()],
            reserved_space: 512_000_000,
            max_used_space: 1_500_000_000,
            min_free_space: 0,
        };
        let version =
            Version { package: "p".into(), version: "v1".into(), revision: "r".into(), dockerfile: "1.2".into() };
        let record = wire::types::WorkerRecord {
            id: "w".to_owned(),
            labels: [("a.b".to_owned(), "c".to_owned())].into(),
            platforms: vec![proto::pb::Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
                ..Default::default()
            }],
            gc_policy: vec![rule],
            cdi_devices: vec![wire::types::CdiDevice {
                name: "v.com/x=a".to_owned(),
                auto_allow: true,
                annotations: [("d.e".to_owned(), "f".to_owned())].into(),
                on_demand: false,
            }],
            ..Default::default()
        };
        Worker { record, version }
    }

    #[test]
    fn forms() {
        let shown = |format: Option<&str>, verbose| {
            let format = Format::parse(format).expect("a format");
            text(&[worker()], &format, verbose).expect("text")
        };
        assert_eq!(shown(None, false), "ID\tPLATFORMS\nw\tlinux/amd64\n");
        assert_snapshot!(shown(None, true).replace('\t', "→"), @r"
        ID:→→w
        Platforms:→linux/amd64
        BuildKit:→p v1 r
        Dockerfile:→1.2
        Labels:
        →a.b:→c
        Devices:
        →Name:→→v.com/x=a
        →AutoAllow:→true
        →Annotations:→d.e:→f

        GC Policy rule#0:
        →All:→→→true
        →Filters:→→type==source.local shared
        →Keep duration:→→48h0m0s
        →Reserved space:→→512MB
        →Maximum used space:→1.5GB
        ");
        assert!(shown(Some("json"), false).starts_with("[{\"id\":\"w\""));
        let picked =
            "{{range .}}{{.ID}} {{index .Labels \"a.b\"}} {{range .GCPolicy}}{{.All}}{{.Filter}}{{end}}{{end}}";
        assert_eq!(shown(Some(picked), true), "w c true[type==source.local shared]\n");
        let devices = "{{range .}}{{range .CDIDevices}}{{.Name}} {{.AutoAllow}} {{.OnDemand}} {{index .Annotations \"d.e\"}}{{end}}{{end}}";
        assert_eq!(shown(Some(devices), true), "v.com/x=a true false f\n");
    }

    #[test]
    fn durations_are_gos() {
        let shown = [0, 1, 59_500, 60_000, 3_600_000, 90_061_001].map(|ms| go_duration(Duration::from_millis(ms)));
        assert_eq!(shown, ["0s", "0.001s", "59.5s", "1m0s", "1h0m0s", "25h1m1.001s"]);
        assert_eq!([999, 1000, 1_234_000].map(|size| shortest(ByteSize(size))), ["999B", "1kB", "1.234MB"]);
    }
}
