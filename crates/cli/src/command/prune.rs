//! `prune`: make the cache smaller.

use std::time::Duration;

use base::{ByteSize, Fault};
use clap::Args;
use engine::{PruneOptions, UsageRecord};

use super::Action;
use super::du::{Format, HEAD, record_json, row, verbose_list};
use super::engine_args::EngineArgs;
use super::table::tabbed;
use crate::daemonless::{Settings, run};
use crate::environment::Environment;
use crate::spec::invalid;

/// Remove what no build needs from the cache.
#[derive(Clone, Debug, Default, Args)]
pub struct Prune {
    /// Keep what was used within this time, such as 48h
    #[arg(long, value_name = "DURATION")]
    keep_duration: Option<String>,
    /// Keep up to this many MB
    #[arg(long, value_name = "MB")]
    keep_storage: Option<String>,
    /// Always keep this many MB
    #[arg(long, value_name = "MB")]
    keep_storage_min: Option<String>,
    /// Remove until this many MB of the disk are free
    #[arg(long, value_name = "MB")]
    free_storage: Option<String>,
    /// Only records that match: type==regular, id==.., inuse, shared, description~=..; commas mean and, a second flag
    /// means or; until=24h is the same as --keep-duration 24h
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    /// Also internal records and those of frontends
    #[arg(long, short_alias = 'a', num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    all: bool,
    /// Everything known about each record
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    verbose: bool,
    /// json, or a template of Go such as {{.ID}}: a line for each
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Remove what no build needs from the cache.
#[derive(Clone, Debug, Args)]
#[command(name = "prune")]
pub struct PruneCommand {
    #[command(flatten)]
    prune: Prune,
    #[command(flatten)]
    engine: EngineArgs,
}

impl PruneCommand {
    /// The work.
    pub fn action(self, environment: &Environment) -> Result<Action, Fault> {
        self.prune.action_with(self.engine.settings(environment)?)
    }
}

impl Prune {
    /// The work, with settings that are known.
    pub fn action_with(self, settings: Settings) -> Result<Action, Fault> {
        let (options, format) = self.options()?;
        Ok(Action::engine(move |environment| prune(options, format, self.verbose, settings, environment)))
    }

    /// What went, for people or programs.
    pub(super) fn text(
        &self,
        format: &Format,
        gone: &[UsageRecord],
        now: Option<jiff::Timestamp>,
    ) -> Result<String, Fault> {
        text(gone, format, self.verbose, now)
    }

    /// What is asked for.
    pub(super) fn options(&self) -> Result<(PruneOptions, Format), Fault> {
        let mut options = PruneOptions {
            all: self.all,
            keep_duration: self.keep_duration.as_deref().map(|text| duration("--keep-duration", text)).transpose()?,
            reserved_space: megabytes("--keep-storage-min", self.keep_storage_min.as_deref())?,
            max_used_space: megabytes("--keep-storage", self.keep_storage.as_deref())?,
            min_free_space: megabytes("--free-storage", self.free_storage.as_deref())?,
            ..PruneOptions::default()
        };
        for filter in &self.filter {
            match filter.split_once('=') {
                // docker's form.
                Some(("until" | "unused-for", text)) => options.keep_duration = Some(duration("--filter", text)?),
                _ => options.filters.push(with_double_equals(filter)),
            }
        }
        // Mistakes show before the engine is opened.
        engine::usage::select(Vec::new(), &options.filters)?;
        Ok((options, Format::parse(self.format.as_deref())?))
    }
}

fn duration(flag: &str, text: &str) -> Result<Duration, Fault> {
    config::parse_duration(text).map_err(|error| invalid(flag, text, format!("not {}", error.expected())))
}

fn megabytes(flag: &str, text: Option<&str>) -> Result<Option<ByteSize>, Fault> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(value) if (0.0..1e12).contains(&value) => Ok(Some(ByteSize((value * 1e6) as u64))),
        _ => Err(invalid(flag, text, "expected a number of MB from 0 up")),
    }
}

async fn prune(
    options: PruneOptions,
    format: Format,
    verbose: bool,
    settings: Settings,
    environment: Environment,
) -> Result<(), run::Failure> {
    let mut done = Ok(());
    let ended = &mut done;
    let prune = |engine: engine::Engine| async move {
        let (gone, done) = engine.prune(options).await;
        *ended = done;
        Ok(gone)
    };
    let gone = run::tidy(settings.to_tidy_up(), &environment, prune).await?;
    // What went is told also where not all could go.
    if done.is_ok() || !gone.is_empty() {
        crate::print(&text(&gone, &format, verbose, Some(jiff::Timestamp::now()))?)?;
    }
    Ok(done?)
}

/// What went, for people or programs.
fn text(gone: &[UsageRecord], format: &Format, verbose: bool, now: Option<jiff::Timestamp>) -> Result<String, Fault> {
    let total = ByteSize(gone.iter().map(|record| record.size.0).sum());
    let total = tabbed(&format!("Total:\t{total}\n"));
    Ok(match (format, verbose) {
        (Format::Filled(template), _) => {
            let filled = |record| Ok(format!("{}\n", template.apply(&record_json(record))?));
            gone.iter().map(filled).collect::<Result<String, Fault>>()?
        }
        (Format::Table, true) => format!("{}{total}", verbose_list(gone)),
        (Format::Table, false) if gone.is_empty() => total,
        (Format::Table, false) => {
            // Each is laid out as it goes, the first one below the head.
            let rows = gone.iter().map(|record| row(record, now));
            let heads = [HEAD].into_iter().chain(std::iter::repeat(""));
            let rows = heads.zip(rows).map(|(head, row)| tabbed(&format!("{head}{row}")));
            format!("{}{total}", rows.collect::<String>())
        }
    })
}

/// docker's `type=regular` as containerd's `type==regular`.
fn with_double_equals(filter: &str) -> String {
    let part = |part: &str| match part.split_once('=') {
        Some((name, value)) if !name.ends_with(['!', '~', '=']) && !value.starts_with('=') => {
            format!("{name}=={value}")
        }
        _ => part.to_owned(),
    };
    filter.split(',').map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_is_laid_out_as_it_goes() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let record = |id: &str, size| UsageRecord {
            id: id.to_owned(),
            record_type: "regular".to_owned(),
            description: String::new(),
            size: ByteSize(size),
            mutable: false,
            in_use: false,
            shared: false,
            parents: Vec::new(),
            created_at: at,
            last_used_at: Some(at),
            usage_count: 1,
        };
        let gone = [record("a", 1_500_000_000), record("b", 0)];
        let shown = text(&gone, &Format::Table, false, None).expect("text").replace(' ', "").replace('\t', "→");
        assert_eq!(shown, "ID→→→→→→→→→RECLAIMABLE→SIZE→LASTACCESSED\na→true→1.50GB→\nb→true→0B→\nTotal:→1.50GB\n");
        let shown = text(&[], &Format::Table, false, None).expect("text");
        assert_eq!(shown, "Total:\t0B\n");
    }

    #[test]
    fn limits_are_typed_in_megabytes_and_go_durations() {
        assert_eq!(megabytes("--x", Some("1.5")).ok(), Some(Some(ByteSize(1_500_000))));
        for wrong in ["-1", "NaN", "x", ""] {
            assert!(megabytes("--x", Some(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(duration("--x", "1h").ok(), Some(Duration::from_secs(3600)));
        assert!(duration("--x", "1 hour").is_err());
        let filters = ["until=1h", "type=regular,shared", "id~=^a"].map(str::to_owned).to_vec();
        let (options, _) = Prune { filter: filters, ..Prune::default() }.options().expect("good");
        assert_eq!(options.keep_duration, Some(Duration::from_secs(3600)));
        assert_eq!(options.filters, ["type==regular,shared", "id~=^a"]);
        assert!(Prune { filter: vec!["colour=red".to_owned()], ..Prune::default() }.options().is_err());
        let [min, max, free] = ["1", "2", "3"].map(|text| Some(text.to_owned()));
        let limits = Prune { keep_storage_min: min, keep_storage: max, free_storage: free, ..Prune::default() };
        let (options, _) = limits.options().expect("good");
        let megabytes = [options.reserved_space, options.max_used_space, options.min_free_space];
        assert_eq!(megabytes, [1, 2, 3].map(|size| Some(ByteSize(size * 1_000_000))));
    }
}
