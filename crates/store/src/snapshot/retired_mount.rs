//! Cache mounts that nobody starts from any more: a step that must run anew begins with empty ones.
//!
//! An instance in use is left to its users: it loses its key, so that nobody finds it again, and goes with the last of
//! them. What is not in use goes at once.

use std::sync::Arc;

use super::{RecordKind, SnapshotId, Snapshots, cache_mount, remove_free};
use crate::{Inner, Result, locked};

impl Snapshots {
    /// Retires all instances of a cache mount: those on no snapshot, or (`on_snapshot`) those on any.
    pub fn retire_cache_mounts(&self, id: &str, on_snapshot: bool) -> Result<()> {
        let inner = &self.0.inner;
        let plain = cache_mount::key(id);
        let is_meant = |key: &str| match on_snapshot {
            false => key == plain,
            true => cache_mount::id_on_snapshot(key) == Some(id),
        };
        let (retired, woken) = {
            // Nobody takes one between the look and its end.
            let mut instances = locked(&inner.snapshots.instances);
            let retired = inner.snapshots.retire(is_meant);
            let keys: Vec<String> = instances.waiting.keys().filter(|key| is_meant(key)).cloned().collect();
            let woken: Vec<_> = keys.iter().filter_map(|key| instances.waiting.remove(key)).flatten().collect();
            (retired, woken)
        };
        woken.into_iter().for_each(|wake| wake());
        inner.db.write("write to", |db| {
            let mut statement = db.prepare_cached("UPDATE snapshot SET cache_key = ?2 WHERE id = ?1")?;
            retired.iter().try_for_each(|id| statement.execute((id.0, retired_key(*id))).map(drop))
        })?;
        remove_free(inner, &retired, &mut Vec::new())
    }
}

/// Removes a cache mount whose last user is gone, if it was retired meanwhile.
pub(super) fn remove_if_retired(inner: &Inner, id: SnapshotId) {
    let is_retired = |key: &Option<Arc<str>>| key.as_deref() == Some(&retired_key(id));
    if inner.snapshots.with(id, |record| is_retired(&record.cache_key)) != Some(true) {
        return;
    }
    if let Err(error) = remove_free(inner, &[id], &mut Vec::new()) {
        tracing::warn!(%error, snapshot = %id, "a retired cache mount was not removed");
    }
}

/// A key that no cache mount of a user has.
fn retired_key(id: SnapshotId) -> String {
    format!("\nretired {id}")
}

impl super::State {
    fn retire(&self, is_meant: impl Fn(&str) -> bool) -> Vec<SnapshotId> {
        let mut table = self.table();
        let meant = table.records.iter_mut().filter(|(_, record)| {
            record.kind == RecordKind::CacheMount && record.cache_key.as_deref().is_some_and(&is_meant)
        });
        meant
            .map(|(id, record)| {
                record.cache_key = Some(Arc::from(retired_key(*id)));
                *id
            })
            .collect()
    }
}
