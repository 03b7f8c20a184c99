//! What is stored, as `du` and `DiskUsage` tell it, and which of it filters select, in containerd's language.
//!
//! Filters of several flags are alternatives; conditions with commas inside one flag must all hold.

use std::time::Duration;

use base::{ByteSize, Fault};
use store::{Subject, UsageFilter};

/// One line of `du`.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRecord {
    /// Its id.
    pub id: String,
    /// `regular`, `internal`, `frontend`, `source.local`, `source.git.checkout`, `exec.cachemount`.
    pub record_type: String,
    /// What made it.
    pub description: String,
    /// Disk space.
    pub size: ByteSize,
    /// It can still change (cache mounts).
    pub mutable: bool,
    /// A running build needs it.
    pub in_use: bool,
    /// An image or another record shares its layers.
    pub shared: bool,
    /// Ids of the records that it builds on.
    pub parents: Vec<String>,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// When a build last used it.
    pub last_used_at: Option<jiff::Timestamp>,
    /// How often builds used it.
    pub usage_count: u64,
}

/// What `prune` removes.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also internal and frontend records.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Keep this much in any case.
    pub reserved_space: Option<ByteSize>,
    /// Remove until at most so much is used.
    pub max_used_space: Option<ByteSize>,
    /// Remove until so much of the disk is free.
    pub min_free_space: Option<ByteSize>,
    /// `--filter key=value` (`type==regular`, `id=..`, `until=24h`, `unused-for=..`), all must match.
    pub filters: Vec<String>,
}

impl From<store::UsageRecord> for UsageRecord {
    fn from(record: store::UsageRecord) -> Self {
        let time = |time| jiff::Timestamp::try_from(time).unwrap_or_default();
        UsageRecord {
            id: record.id,
            record_type: record.record_type.as_str().to_owned(),
            description: record.description,
            size: ByteSize(record.size),
            mutable: record.mutable,
            in_use: record.in_use,
            shared: record.shared,
            parents: record.parents,
            created_at: time(record.created_at),
            last_used_at: record.last_used_at.map(time),
            usage_count: record.usage_count.into(),
        }
    }
}

/// Records that any of the filters matches; all of them when there is none.
pub fn select(records: Vec<UsageRecord>, filters: &[String]) -> Result<Vec<UsageRecord>, Fault> {
    let parsed = filters.iter().map(|filter| filter.parse::<UsageFilter>()).collect::<Result<Vec<_>, _>>();
    let parsed = parsed.map_err(|error| Fault::user(error.to_string()))?;
    let matches = |record: &UsageRecord| {
        let subject = Subject {
            id: &record.id,
            parents: &record.parents,
            description: &record.description,
            record_type: &record.record_type,
            in_use: record.in_use,
            mutable: record.mutable,
            shared: record.shared,
        };
        parsed.is_empty() || parsed.iter().any(|filter| filter.selects(&subject))
    };
    Ok(records.into_iter().filter(matches).collect())
}
