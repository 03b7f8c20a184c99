//! In which order records are removed when not all are: BuildKit's mix of least recently and least often used.

use super::UsageRecord;

/// Sorts so that the first is the first to go.
///
/// Each record gets a rank by its last use and a rank by its number of uses, each as a share of the highest rank;
/// the lowest sum goes first.
pub(super) fn sort(records: &mut [&UsageRecord]) {
    records.sort_by_key(|record| record.last_used_at);
    let by_time = ranks(records, |record| record.last_used_at);
    let mut scored: Vec<(f64, &UsageRecord)> = by_time.into_iter().zip(records.iter().copied()).collect();
    scored.sort_by_key(|(_, record)| record.usage_count);
    let counted: Vec<&UsageRecord> = scored.iter().map(|(_, record)| *record).collect();
    for ((score, _), rank) in
        scored.iter_mut().zip(ranks(&counted, |record| Some(record.usage_count).filter(|n| *n > 0)))
    {
        *score += rank;
    }
    scored.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    for (to, (_, record)) in records.iter_mut().zip(scored) {
        *to = record;
    }
}

/// The rank of each record (sorted by `key`, equal keys share one) as a share of the highest.
fn ranks<K: PartialEq>(records: &[&UsageRecord], key: impl Fn(&UsageRecord) -> Option<K>) -> Vec<f64> {
    let (mut rank, mut last) = (1.0, None);
    let mut ranks = Vec::with_capacity(records.len());
    for record in records {
        let now = key(record);
        if now.is_some() && now != last {
            rank += 1.0;
            last = now;
        }
        ranks.push(rank);
    }
    ranks.iter().map(|own| own / rank).collect()
}
