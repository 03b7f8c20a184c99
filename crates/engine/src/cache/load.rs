//! A result of a cache becomes a snapshot: lazy layers, fetched when somebody reads them.

use std::sync::Arc;

use base::{Digest, Fault, Kind};
use image::{Descriptor, annotation};
use solver::{CacheKey, CacheResult, Record, ResultId, Save, SourceId, walk_inputs_first};
use store::{Hold, LazyLayer, PrepareOptions};

use crate::cache::import::ReadCache;
use crate::core::Core;
use crate::images::chain_id;
use crate::job::Job;

/// A result of a cache.
pub(crate) struct Loaded {
    pub(crate) hold: Hold,
    pub(crate) created_at: i64,
}

/// Registers the layers of a record, and remembers with it what the cache has for the keys below: a later build that
/// changes only the last step finds them, also without the cache. Blocks.
pub(crate) fn load(
    core: &Core,
    jobs: &[Arc<Job>],
    cache: &ReadCache,
    record: &Record,
    key: &Arc<CacheKey>,
) -> Result<Option<Loaded>, Fault> {
    let Some(layers) = cache.keys.layers(&record.result.id) else { return Ok(None) };
    let mut holds = register(core, jobs, cache, &layers)?;
    let mut saves = Vec::new();
    walk_inputs_first(key, &mut |below| {
        let id = below.id_in(record.source).filter(|_| !Arc::ptr_eq(below, key) && !below.is_root());
        let Some((result, count)) = id.and_then(|id| cache.keys.result_below(&id, &layers)) else { return };
        let id = ResultId::from(holds[count - 1].id().to_string());
        let result = Some(CacheResult { id, created_at: result.created_at });
        saves.push(Save { key: below.clone(), result, also: Vec::new() });
    });
    if !saves.is_empty()
        && let Err(error) = solver::cache_manager::save(&core.store.cache_keys(), &saves)
    {
        tracing::warn!(%error, "results of a cache were not remembered");
    }
    Ok(holds.pop().map(|hold| Loaded { hold, created_at: record.result.created_at }))
}

/// The snapshots of layers, base first. Those that are known already are the same ones. Blocks.
fn register(core: &Core, jobs: &[Arc<Job>], cache: &ReadCache, layers: &[Descriptor]) -> Result<Vec<Hold>, Fault> {
    let snapshots = core.store.snapshots();
    let mut holds: Vec<Hold> = Vec::with_capacity(layers.len());
    let mut chain: Option<Digest> = None;
    for layer in layers {
        let diff_id = layer.diff_id();
        let diff_id = diff_id.ok_or_else(|| Fault::new(Kind::Internal, "a layer of a cache has no diff id"))?;
        let this = chain_id(chain, diff_id);
        chain = Some(this);
        let about = |key: &str| layer.annotations.get(key).cloned();
        let options = PrepareOptions {
            description: about(annotation::DESCRIPTION).unwrap_or_else(|| format!("imported {}", layer.digest)),
            created_at: about(annotation::CREATED_AT)
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map(std::time::SystemTime::from),
            ..PrepareOptions::default()
        };
        let mut annotations = layer.annotations.clone();
        annotations.retain(|key, _| !annotation::is_internal(key));
        let lazy = LazyLayer {
            digest: layer.digest,
            size: layer.size,
            media_type: layer.media_type.clone(),
            diff_id,
            chain_id: this,
            sources: vec![cache.place.clone()],
            urls: Vec::new(),
            annotations,
            from_cache: true,
        };
        // What an image of the build has can also be had there, and the image knows it better.
        let of_image = jobs.iter().find_map(|job| job.image_layer(&this)).filter(|known| known.digest == lazy.digest);
        let lazy = match of_image {
            Some(known) => LazyLayer { sources: [known.sources.clone(), lazy.sources].concat(), ..known },
            None => lazy,
        };
        let hold = snapshots.register_lazy(holds.last().map(Hold::id).as_ref(), lazy, options);
        holds.push(hold.map_err(|e| crate::core::store_fault("cannot register a layer", e))?);
    }
    Ok(holds)
}

/// The snapshot of a result, wherever it is kept; none if it is gone. Blocks.
pub(crate) fn find(core: &Core, job: &Arc<Job>, record: &Record) -> Result<Option<Hold>, Fault> {
    if record.source == SourceId::LOCAL {
        let id = record.result.id.as_str().parse().ok();
        let hold = id.and_then(|id| core.store.snapshots().hold_quietly(&id));
        return Ok(hold.filter(|hold| !core.is_lost(job, hold)));
    }
    let Some(cache) = job.read_cache(record.source) else { return Ok(None) };
    if job.has_given_up(std::slice::from_ref(&cache.place)) {
        return Ok(None);
    }
    match cache.keys.layers(&record.result.id) {
        Some(layers) => Ok(register(core, std::slice::from_ref(job), &cache, &layers)?.pop()),
        None => Ok(None),
    }
}
