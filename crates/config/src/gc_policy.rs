//! The rules of cleaning that a worker's keys amount to.

use std::time::Duration;

use crate::value::{DiskSpace, Seconds};
use crate::worker::{Gc, GcPolicy};

/// The disk that holds the root directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Its size in bytes; 0 when unknown.
    pub total: u64,
}

/// One rule of cleaning, in bytes; a zero limit is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrunePolicy {
    /// Also internal records and those of frontends.
    pub all: bool,
    /// Only records that match one of these; empty: all.
    pub filters: Vec<String>,
    /// Keep what was used within this time.
    pub keep_duration: Duration,
    /// This much is always kept.
    pub reserved_space: u64,
    /// More than this is cleaned away.
    pub max_used_space: u64,
    /// Clean until this much of the disk is free.
    pub min_free_space: u64,
}

impl Gc {
    /// The rules, in order. Without rules in the file they are upstream's: what is easily made again goes first,
    /// then what nobody used for 60 days, then anything above the limits, at last internal records.
    pub fn rules(&self, disk: DiskUse) -> Vec<PrunePolicy> {
        if self.enabled == Some(false) {
            return Vec::new();
        }
        let defaults;
        let rules = if self.policies.is_empty() {
            defaults = self.default_policies(disk);
            &defaults
        } else {
            &self.policies
        };
        rules.iter().map(|rule| rule.on(disk)).collect()
    }

    fn default_policies(&self, disk: DiskUse) -> Vec<GcPolicy> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let limits = self.limits(disk);
        let easily_made_again = GcPolicy {
            filters: ["source.local", "exec.cachemount", "source.git.checkout"].map(|t| format!("type=={t}")).to_vec(),
            keep_duration: Seconds(2 * DAY),
            max_used_space: DiskSpace::Bytes(512_000_000),
            ..GcPolicy::default()
        };
        let long_unused = GcPolicy { keep_duration: Seconds(60 * DAY), ..limits.clone() };
        let internal = GcPolicy { all: true, ..limits.clone() };
        vec![easily_made_again, long_unused, limits, internal]
    }

    /// The three limits that hold where no rule says otherwise.
    fn limits(&self, disk: DiskUse) -> GcPolicy {
        let unset = self.reserved_space.is_unset() && self.max_used_space.is_unset() && self.min_free_space.is_unset();
        let (reserved_space, max_used_space, min_free_space) = match unset {
            false => (self.reserved_space, self.max_used_space, self.min_free_space),
            true if !self.keep_storage.is_unset() => (self.keep_storage, DiskSpace::default(), DiskSpace::default()),
            true => (
                at_most(DiskSpace::Percent(10), 10_000_000_000, disk),
                at_most(DiskSpace::Percent(80), 100_000_000_000, disk),
                DiskSpace::Percent(20),
            ),
        };
        GcPolicy { reserved_space, max_used_space, min_free_space, ..GcPolicy::default() }
    }
}

fn at_most(share: DiskSpace, bytes: u64, disk: DiskUse) -> DiskSpace {
    if share.on(disk.total) > bytes { DiskSpace::Bytes(bytes) } else { share }
}

impl GcPolicy {
    fn on(&self, disk: DiskUse) -> PrunePolicy {
        let reserved = if self.reserved_space.is_unset() { self.keep_bytes } else { self.reserved_space };
        PrunePolicy {
            all: self.all,
            filters: self.filters.clone(),
            keep_duration: self.keep_duration.0,
            reserved_space: reserved.on(disk.total),
            max_used_space: self.max_used_space.on(disk.total),
            min_free_space: self.min_free_space.on(disk.total),
        }
    }
}
