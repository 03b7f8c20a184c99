//! `buildctl debug workers|info`: what a daemon is and has, or what would build without one.

use std::time::Duration;

use base::{ByteSize, Fault};
use clap::Args;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::control_client::ControlClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::Action;
use super::buildctl_history::Formatted;
use super::buildkitd::identity;
use super::du::Format;
use super::table::tabbed;
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
        let answer = ControlClient::new(channel).list_workers(request).await;
        let workers = answer.map_err(|status| crate::connect::fault(&status))?.into_inner().record;
        crate::print(&text(&workers, &self.form.parse()?, self.verbose)?)
    }

    /// The one that builds without a daemon.
    pub(super) fn action_with(self, settings: Settings) -> Result<Action, Fault> {
        let format = self.form.parse()?;
        let settings = settings.to_look();
        Ok(Action::engine(async move |environment| {
            let engine = run::open(&settings, &environment, Mode::Plain, &run::cancelled_by_signals()?).await?;
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
        let answer = ControlClient::new(channel).info(wire::InfoRequest {}).await;
        let info = answer.map_err(|status| crate::connect::fault(&status))?.into_inner();
        self.print(&info.buildkit_version.unwrap_or_default())
    }

    /// Ours.
    pub(super) fn action(self) -> Result<Action, Fault> {
        self.form.parse()?;
        Ok(Action::Simple(Box::new(move || {
            let mut words = crate::VERSION.split_whitespace();
            let package = words.next().unwrap_or_default().to_owned();
            let revision = words.nth(1).unwrap_or_default().to_owned();
            let version = daemon::BUILDKIT_VERSION.to_owned();
            self.print(&wire::types::BuildkitVersion { package, version, revision })
        })))
    }

    fn print(&self, version: &wire::types::BuildkitVersion) -> Result<(), Fault> {
        match self.form.parse()? {
            Format::Table => crate::print_line(&format!("BuildKit: {}", version_text(version))),
            Format::Filled(template) => {
                crate::print_line(&template.apply(&json!({ "buildkitVersion": version_json(version) }))?)
            }
        }
    }
}

/// Workers for people or programs.
fn text(workers: &[wire::types::WorkerRecord], format: &Format, verbose: bool) -> Result<String, Fault> {
    if let Format::Filled(template) = format {
        return Ok(format!("{}\n", template.apply(&workers.iter().map(worker_json).collect())?));
    }
    if verbose {
        return Ok(workers.iter().map(in_full).collect());
    }
    let mut rows = vec![vec!["ID".to_owned(), "PLATFORMS".to_owned()]];
    rows.extend(workers.iter().map(|worker| vec![worker.id.clone(), platforms(worker)]));
    Ok(tabbed(&rows))
}

fn platforms(worker: &wire::types::WorkerRecord) -> String {
    let platform = |platform: &proto::pb::Platform| {
        base::Platform::new(&platform.os, &platform.architecture, &platform.variant).to_string()
    };
    worker.platforms.iter().map(platform).collect::<Vec<_>>().join(",")
}

fn in_full(worker: &wire::types::WorkerRecord) -> String {
    let version = worker.buildkit_version.as_ref().map(version_text).unwrap_or_default();
    let mut rows = vec![
        vec!["ID:".to_owned(), worker.id.clone()],
        vec!["Platforms:".to_owned(), platforms(worker)],
        vec!["BuildKit:".to_owned(), version],
        vec!["Labels:".to_owned()],
    ];
    let mut labels: Vec<_> = worker.labels.iter().collect();
    labels.sort();
    rows.extend(labels.into_iter().map(|(key, value)| vec![format!("\t{key}:"), value.clone()]));
    if !worker.cdi_devices.is_empty() {
        rows.push(vec!["Devices:".to_owned()]);
    }
    for device in &worker.cdi_devices {
        rows.push(vec!["\tName:".to_owned(), device.name.clone()]);
        rows.push(match device.on_demand {
            true => vec!["\tOnDemand:".to_owned(), true.to_string()],
            false => vec!["\tAutoAllow:".to_owned(), device.auto_allow.to_string()],
        });
        let mut annotations: Vec<_> = device.annotations.iter().collect();
        annotations.sort();
        let annotation =
            |(key, value): (&String, &String)| vec!["\tAnnotations:".to_owned(), format!("{key}:\t{value}")];
        rows.extend(annotations.into_iter().map(annotation));
    }
    let mut text = tabbed(&rows);
    if !worker.cdi_devices.is_empty() {
        text.push('\n');
    }
    for (number, rule) in worker.gc_policy.iter().enumerate() {
        let mut rows = vec![vec![format!("GC Policy rule#{number}:")], vec!["\tAll:".to_owned(), rule.all.to_string()]];
        if !rule.filters.is_empty() {
            rows.push(vec!["\tFilters:".to_owned(), rule.filters.join(" ")]);
        }
        if let Some(keep) = u64::try_from(rule.keep_duration).ok().filter(|keep| *keep > 0) {
            rows.push(vec!["\tKeep duration:".to_owned(), go_duration(Duration::from_nanos(keep))]);
        }
        for (name, size) in [
            ("\tReserved space:", rule.reserved_space),
            ("\tMinimum free space:", rule.min_free_space),
            ("\tMaximum used space:", rule.max_used_space),
        ] {
            if size > 0 {
                rows.push(vec![name.to_owned(), shortest(ByteSize(size as u64))]);
            }
        }
        text.push_str(&tabbed(&rows));
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

fn version_text(version: &wire::types::BuildkitVersion) -> String {
    format!("{} {} {}", version.package, version.version, version.revision)
}

fn version_json(version: &wire::types::BuildkitVersion) -> Value {
    json!({ "package": version.package, "version": version.version, "revision": version.revision })
}

/// As Go's client prints a worker.
fn worker_json(worker: &wire::types::WorkerRecord) -> Value {
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
        "buildkitVersion": version_json(&worker.buildkit_version.clone().unwrap_or_default()),
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
    use super::*;

    fn worker() -> wire::types::WorkerRecord {
        let rule = wire::types::GcPolicy {
            all: true,
            keep_duration: 172_800_000_000_000,
            filters: vec!["type==source.local".to_owned(), "shared".to_owned()],
            reserved_space: 512_000_000,
            max_used_space: 1_500_000_000,
            min_free_space: 0,
        };
        wire::types::WorkerRecord {
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
        }
    }

    #[test]
    fn forms() {
        let shown = |format: Option<&str>, verbose| {
            let format = Format::parse(format).expect("a format");
            text(&[worker()], &format, verbose).expect("text")
        };
        assert_eq!(shown(None, false), "ID\tPLATFORMS\nw\tlinux/amd64\n");
        let full = shown(None, true).replace("\t\t", "\t");
        for line in ["Name:\tv.com/x=a\n", "AutoAllow:\ttrue\n", "Annotations:\td.e:\tf\n"] {
            assert!(full.contains(&format!("\t{line}")), "{full}");
        }
        for line in ["Keep duration:\t48h0m0s\n", "Reserved space:\t512MB\n", "Maximum used space:\t1.5GB\n"] {
            assert!(full.contains(&format!("\t{line}")), "{full}");
        }
        assert!(!full.contains("Minimum free space"), "{full}");
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
