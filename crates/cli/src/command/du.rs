//! `du`: what the cache holds.

use base::{ByteSize, Fault};
use clap::Args;
use engine::UsageRecord;
use serde_json::{Value, json};

use super::Action;
use super::engine_args::EngineArgs;
use super::table::tabbed;
use crate::daemonless::{Settings, run};
use crate::environment::Environment;
use crate::spec::template::Template;

/// Show what the cache holds.
///
/// A star after the id marks records that can still change, one after the size those that other records share.
#[derive(Clone, Debug, Default, Args)]
pub struct Du {
    /// Only records that match: type==regular, id==.., inuse, shared, description~=..; commas mean and, a second flag
    /// means or
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    /// Everything known about each record
    #[arg(long, short, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    verbose: bool,
    /// json, or a template of Go such as {{range .}}{{.ID}}{{println}}{{end}}
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show what the cache holds.
///
/// A star after the id marks records that can still change, one after the size those that other records share.
#[derive(Clone, Debug, Args)]
#[command(name = "du")]
pub struct DuCommand {
    #[command(flatten)]
    du: Du,
    #[command(flatten)]
    engine: EngineArgs,
}

impl DuCommand {
    /// The work.
    pub fn action(self, environment: &Environment) -> Result<Action, Fault> {
        self.du.action_with(self.engine.settings(environment)?)
    }
}

impl Du {
    /// The work, with settings that are known.
    pub fn action_with(self, settings: Settings) -> Result<Action, Fault> {
        // Mistakes show before the engine is opened.
        let format = Format::parse(self.format.as_deref())?;
        engine::usage::select(Vec::new(), &self.filter)?;
        Ok(Action::engine(move |environment| self.run(format, settings, environment)))
    }

    async fn run(self, format: Format, settings: Settings, environment: Environment) -> Result<(), run::Failure> {
        let records =
            run::tidy(settings.to_look(), &environment, |engine| async move { engine.disk_usage().await }).await?;
        let records = engine::usage::select(records, &self.filter)?;
        Ok(crate::print(&self.text(&format, records, Some(jiff::Timestamp::now()))?)?)
    }

    /// What is asked for.
    pub(super) fn wanted(&self) -> Result<(Format, &[String]), Fault> {
        Ok((Format::parse(self.format.as_deref())?, &self.filter))
    }

    /// The records for people or programs; when they were used last as seen from `now`, where that is wanted.
    pub(super) fn text(
        &self,
        format: &Format,
        mut records: Vec<UsageRecord>,
        now: Option<jiff::Timestamp>,
    ) -> Result<String, Fault> {
        records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
        match format {
            Format::Filled(template) => {
                let filled = template.apply(&Value::Array(records.iter().map(record_json).collect()))?;
                Ok(format!("{filled}\n"))
            }
            Format::Table => {
                let list = if self.verbose { verbose_list(&records) } else { table(&records, now) };
                let summary = if self.filter.is_empty() { summary(&records) } else { String::new() };
                Ok(format!("{list}{summary}"))
            }
        }
    }
}

/// `--format`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Format {
    /// Columns.
    Table,
    /// JSON, or what a template makes of it.
    Filled(Template),
}

impl Format {
    pub fn parse(value: Option<&str>) -> Result<Format, Fault> {
        match value.map(str::trim) {
            None | Some("" | "table") => Ok(Format::Table),
            Some("json") => Template::parse("{{json .}}").map(Format::Filled),
            Some(template) => Template::parse(template).map(Format::Filled),
        }
    }
}

/// A record as upstream's clients print it.
pub(super) fn record_json(record: &UsageRecord) -> Value {
    json!({
        "id": record.id,
        "mutable": record.mutable,
        "inUse": record.in_use,
        "size": record.size.0,
        "createdAt": record.created_at.to_string(),
        "lastUsedAt": record.last_used_at.map(|at| at.to_string()),
        "usageCount": record.usage_count,
        "parents": if record.parents.is_empty() { Value::Null } else { json!(record.parents) },
        "description": record.description,
        "recordType": record.record_type,
        "shared": record.shared,
    })
}

/// What is above the columns of `buildctl du`.
pub(super) const HEAD: &str = "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED\n";

/// The columns of `buildctl du`. BuildKit's client leaves the last one empty.
fn table(records: &[UsageRecord], now: Option<jiff::Timestamp>) -> String {
    tabbed(&format!("{HEAD}{}", records.iter().map(|record| row(record, now)).collect::<String>()))
}

pub(super) fn row(record: &UsageRecord, now: Option<jiff::Timestamp>) -> String {
    let star = |set: bool| if set { "*" } else { "" };
    let id = format!("{}{}", record.id, star(record.mutable));
    let (reclaimable, size, shared) = (!record.in_use, record.size, star(record.shared));
    let used = record.last_used_at.zip(now).map(|(at, now)| ago(at, now)).unwrap_or_default();
    format!("{id:<71}\t{reclaimable:<11}\t{size}{shared}\t{used}\n")
}

/// `5 minutes ago`.
fn ago(at: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs().max(0);
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// One block per record.
pub(super) fn verbose_list(records: &[UsageRecord]) -> String {
    tabbed(&records.iter().map(|record| format!("{}\n", fields(record))).collect::<String>())
}

fn fields(record: &UsageRecord) -> String {
    let parents = Some(record.parents.join(";")).filter(|parents| !parents.is_empty());
    let description = Some(record.description.clone()).filter(|text| !text.is_empty());
    let record_type = Some(record.record_type.clone()).filter(|text| !text.is_empty());
    let all = [
        ("ID", Some(record.id.clone())),
        ("Parents", parents),
        ("Created at", Some(go_time(record.created_at))),
        ("Mutable", Some(record.mutable.to_string())),
        ("Reclaimable", Some((!record.in_use).to_string())),
        ("Shared", Some(record.shared.to_string())),
        ("Size", Some(record.size.to_string())),
        ("Description", description),
        ("Usage count", Some(record.usage_count.to_string())),
        ("Last used", record.last_used_at.map(go_time)),
        ("Type", record_type),
    ];
    all.into_iter().filter_map(|(key, value)| Some(format!("{key}:\t{}\n", value?))).collect()
}

/// `2026-11-30 03:35:33.4 +0000 UTC`, as Go prints times.
fn go_time(at: jiff::Timestamp) -> String {
    let text = at.to_string();
    format!("{} +0000 UTC", text.trim_end_matches('Z').replacen('T', " ", 1))
}

/// The sums below the list.
fn summary(records: &[UsageRecord]) -> String {
    let sum = |wanted: &dyn Fn(&&UsageRecord) -> bool| ByteSize(records.iter().filter(wanted).map(|r| r.size.0).sum());
    let (total, shared) = (sum(&|_| true), sum(&|record| record.shared));
    let mut rows = String::new();
    let mut add = |key: &str, size: ByteSize| rows.push_str(&format!("{key}\t{size}\n"));
    if shared.0 > 0 {
        add("Shared:", shared);
        add("Private:", ByteSize(total.0 - shared.0));
    }
    add("Reclaimable:", sum(&|record| !record.in_use));
    add("Total:", total);
    tabbed(&rows)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn records() -> Vec<UsageRecord> {
        let at = |seconds| jiff::Timestamp::from_second(seconds).expect("a time");
        let record = |id: &str, size, mutable, shared, in_use, used: Option<i64>| UsageRecord {
            id: id.to_owned(),
            record_type: if mutable { "exec.cachemount" } else { "regular" }.to_owned(),
            description: format!("made {id}"),
            size: ByteSize(size),
            mutable,
            in_use,
            shared,
            parents: if shared { vec!["p1".to_owned(), "p2".to_owned()] } else { Vec::new() },
            created_at: at(1_000_000),
            last_used_at: used.map(at),
            usage_count: 3,
        };
        vec![
            record("aaaaaaaaaaaaaaaaaaaaaaaaa", 8192, true, false, false, Some(1_003_000)),
            record("bbbbbbbbbbbbbbbbbbbbbbbbb", 1_500_000, false, true, true, None),
        ]
    }

    #[test]
    fn forms() {
        let now = jiff::Timestamp::from_second(1_003_060).expect("a time");
        assert!(table(&records(), None).contains("8.19kB\t\n"));
        assert_snapshot!(table(&records(), Some(now)).replace('\t', "→"));
        assert_snapshot!(verbose_list(&records()).replace('\t', "→"));
        assert_snapshot!(summary(&records()).replace('\t', "→"), @r"
        Shared:→→1.50MB
        Private:→8.19kB
        Reclaimable:→8.19kB
        Total:→→1.51MB
        ");
        assert_snapshot!(record_json(&records()[0]).to_string(), @r#"{"id":"aaaaaaaaaaaaaaaaaaaaaaaaa","mutable":true,"inUse":false,"size":8192,"createdAt":"1970-01-12T13:46:40Z","lastUsedAt":"1970-01-12T14:36:40Z","usageCount":3,"parents":null,"description":"made aaaaaaaaaaaaaaaaaaaaaaaaa","recordType":"exec.cachemount","shared":false}"#);
    }

    #[test]
    fn formats() {
        assert_eq!(Format::parse(None).ok(), Some(Format::Table));
        let text = |format: &str| {
            let format = Format::parse(Some(format)).map_err(|fault| fault.cause())?;
            Du::default().text(&format, records(), None).map_err(|fault| fault.cause())
        };
        assert_eq!(text("{{ json . }}"), text("json"));
        let ids = "{{range .}}{{if not .InUse}}{{.ID}}{{end}}{{end}}";
        assert_eq!(text(ids).as_deref(), Ok("aaaaaaaaaaaaaaaaaaaaaaaaa\n"));
        assert!(text("{{.ID}}").is_err() && text("{{range .}}").is_err());
    }

    #[test]
    fn filters() {
        let ids = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
            let selected = engine::usage::select(records(), &filters).map_err(|fault| fault.to_string())?;
            Ok::<_, String>(selected.iter().map(|record| record.id[..1].to_owned()).collect::<String>())
        };
        for (filters, selected) in [
            (&[][..], "ab"),
            (&["type==regular"], "b"),
            (&["type==regular,mutable"], ""),
            (&["type==regular", "mutable"], "ab"),
            (&["immutable"], "b"),
            // A flag has no value, as with BuildKit.
            (&["mutable==true"], ""),
            (&["mutable==false"], ""),
            (&["mutable!=true"], "ab"),
            (&["", "inuse"], "ab"),
            (&["inuse"], "b"),
            (&["private"], "a"),
            (&["description~=\"^made a{3}\""], "a"),
            (&["id!=aaaaaaaaaaaaaaaaaaaaaaaaa"], "b"),
            (&["parents~=p2"], "b"),
        ] {
            assert_eq!(ids(filters).as_deref(), Ok(selected), "{filters:?}");
        }
        assert!(ids(&["colour==red"]).is_err());
        assert!(ids(&["id~=("]).is_err() && ids(&["mutable=true"]).is_err());
    }
}
