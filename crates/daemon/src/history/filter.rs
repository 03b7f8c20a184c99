//! Which records a client wants: containerd's language over `ref`, `status` and `repository`, and comparisons of
//! `startedAt`, `completedAt` (an RFC 3339 time, or a duration: so long ago) and `duration`.

use std::time::Duration;

use jiff::Timestamp;
use proto::moby::buildkit::v1::BuildHistoryRecord;
use proto::protobuf;

use crate::filter::{self, split_unquoted};

/// Conditions that must all hold.
#[derive(Debug)]
pub(crate) struct Filter {
    times: Vec<Comparison>,
    fields: filter::Filter,
}

#[derive(Debug)]
struct Comparison {
    what: What,
    sign: &'static str,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Started,
    Completed,
    Duration,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    At(Timestamp),
    Span(Duration),
}

impl Filter {
    /// Reads one filter.
    pub(crate) fn parse(text: &str) -> Result<Filter, String> {
        let (mut times, mut fields) = (Vec::new(), Vec::new());
        for part in split_unquoted(text, ',') {
            match comparison(part.trim())? {
                Some(comparison) => times.push(comparison),
                None => fields.push(part),
            }
        }
        Ok(Filter { times, fields: filter::Filter::parse(&fields.join(","))? })
    }

    /// Whether it matches a record at a time.
    pub(crate) fn matches(&self, record: &BuildHistoryRecord, now: Timestamp) -> bool {
        self.times.iter().all(|comparison| comparison.holds(record, now))
            && self.fields.matches(|path| match path {
                [name] => field(record, name),
                _ => None,
            })
    }
}

fn comparison(text: &str) -> Result<Option<Comparison>, String> {
    let found = [">=", "<=", ">", "<"].into_iter().find_map(|sign| Some((text.split_once(sign)?, sign)));
    let Some(((name, value), sign)) = found else { return Ok(None) };
    let what = match name {
        "startedAt" => What::Started,
        "completedAt" => What::Completed,
        "duration" => What::Duration,
        _ => return Ok(None),
    };
    let span = config::parse_duration(value).map(Bound::Span);
    let bound = match (what, span) {
        (_, Ok(span)) => span,
        (What::Duration, Err(_)) => {
            return Err(format!("filter `{text}`: `{value}` is no duration such as 90s or 1h30m"));
        }
        (_, Err(_)) => {
            let at: Result<Timestamp, _> = value.parse();
            Bound::At(at.map_err(|_| format!("filter `{text}`: `{value}` is neither an RFC 3339 time nor a duration"))?)
        }
    };
    Ok(Some(Comparison { what, sign, bound }))
}

impl Comparison {
    fn holds(&self, record: &BuildHistoryRecord, now: Timestamp) -> bool {
        let nanos = |at: Option<protobuf::Timestamp>| {
            at.map(|at| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos))
        };
        let (started, completed) = (nanos(record.created_at).unwrap_or(0), nanos(record.completed_at));
        let (value, bound) = match (self.what, self.bound) {
            (What::Duration, Bound::Span(span)) => (
                completed.map_or(0, |completed| completed - started),
                i128::try_from(span.as_nanos()).unwrap_or(i128::MAX),
            ),
            (what, bound) => {
                let value = if matches!(what, What::Started) { started } else { completed.unwrap_or(0) };
                let bound = match bound {
                    Bound::At(at) => at.as_nanosecond(),
                    Bound::Span(ago) => now.as_nanosecond() - i128::try_from(ago.as_nanos()).unwrap_or(i128::MAX),
                };
                // Whole seconds, as people write them.
                (value.div_euclid(1_000_000_000), bound.div_euclid(1_000_000_000))
            }
        };
        match self.sign {
            ">=" => value >= bound,
            "<=" => value <= bound,
            ">" => value > bound,
            _ => value < bound,
        }
    }
}

fn field(record: &BuildHistoryRecord, name: &str) -> Option<String> {
    match name {
        "ref" => Some(record.r#ref.clone()).filter(|reference| !reference.is_empty()),
        "status" => {
            let status = match (&record.error, &record.completed_at) {
                (_, None) => "running",
                (Some(error), _) if error.code == tonic::Code::Cancelled as i32 => "canceled",
                (Some(_), _) => "error",
                (None, _) => "completed",
            };
            Some(status.to_owned())
        }
        "repository" => {
            let source = record.frontend_attrs.get("vcs:source").cloned();
            source.or_else(|| repository(record.frontend_attrs.get("context")?))
        }
        _ => None,
    }
}

/// The repository that a git context is from.
fn repository(context: &str) -> Option<String> {
    let is_remote = ["https://", "http://", "ssh://", "git://", "git@"].iter().any(|start| context.starts_with(start));
    let end = context.find(['#', '?']).unwrap_or(context.len());
    is_remote.then(|| context[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use proto::rpc::Status;

    use super::*;

    #[test]
    fn records() {
        let day = 24 * 3600;
        let now = Timestamp::from_second(100 * day).expect("a time");
        let at = |seconds| Some(protobuf::Timestamp { seconds, nanos: 5 });
        let record = |reference: &str, created, completed: Option<i64>, attr: (&str, &str)| BuildHistoryRecord {
            r#ref: reference.to_owned(),
            created_at: at(created),
            completed_at: completed.and_then(at),
            frontend_attrs: [(attr.0.to_owned(), attr.1.to_owned())].into(),
            ..BuildHistoryRecord::default()
        };
        let mut failed = record("c", 99 * day, Some(99 * day + 600), ("context", "."));
        failed.error = Some(Status { code: 2, ..Status::default() });
        let records = [
            record("a", 98 * day, Some(98 * day + 60), ("vcs:source", "testrepo")),
            record("b", 98 * day + 3600, None, ("context", "https://github.com/user/repo.git#abc")),
            failed,
        ];
        let matching = |filter: &str| {
            let filter = Filter::parse(filter)?;
            let matching = records.iter().filter(|record| filter.matches(record, now));
            Ok::<_, String>(matching.map(|record| record.r#ref.clone()).collect::<String>())
        };
        for (filter, expected) in [
            ("", "abc"),
            ("ref==a", "a"),
            ("repository!=testrepo", "bc"),
            ("repository==https://github.com/user/repo.git", "b"),
            ("status==running", "b"),
            ("status==error", "c"),
            ("status==completed", "a"),
            ("startedAt<=36h", "ab"),
            ("startedAt>36h", "c"),
            ("completedAt>1970-04-10T00:00:00Z,status==error", "c"),
            ("duration>5m", "c"),
            ("duration>=1m,ref~=^a", "a"),
        ] {
            assert_eq!(matching(filter).as_deref(), Ok(expected), "{filter}");
        }
        for bad in ["startedAt>yesterday", "duration<x", "ref~=("] {
            assert!(matching(bad).is_err(), "{bad}");
        }
    }
}
