//! The history of an image: one item per instruction, those without a layer marked.

use serde::{Deserialize, Serialize};

use super::{DateTime, json, null_default};
use crate::Error;

/// How one layer, or an instruction without one, came to be. Field order is that of Go's `ocispec.History`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<DateTime>,
    /// By which instruction.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A note; `buildkit.dockerfile.v0` for instructions of a Dockerfile.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// What the builder knows of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerMeta {
    /// What made it; the `created_by` of items that the config lacks.
    pub description: String,
    /// When it was made.
    pub created: Option<DateTime>,
}

/// The history in a config.
pub fn history_of(config: &[u8]) -> Result<Vec<History>, Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default, deserialize_with = "null_default")]
        history: Vec<History>,
    }
    json::parse::<Part>("image config", config).map(|part| part.history)
}

/// Makes the history agree with the layers, one `LayerMeta` each, base first.
///
/// Items beyond the layers become empty ones, missing items are added, and every item gets a time: its layer's, else
/// that of the first new layer (metadata instructions before it), else that of the item before.
pub fn normalize_history(mut history: Vec<History>, layers: &[LayerMeta]) -> Vec<History> {
    let mut with_layer = 0;
    for item in &mut history {
        item.empty_layer |= with_layer >= layers.len();
        with_layer += usize::from(!item.empty_layer);
    }
    history.extend(layers[with_layer..].iter().map(|layer| History {
        created: layer.created.clone(),
        created_by: layer.description.clone(),
        comment: "buildkit.exporter.image.v0".to_owned(),
        ..History::default()
    }));
    for (item, layer) in history.iter_mut().filter(|item| !item.empty_layer).zip(layers) {
        item.created = item.created.take().or_else(|| layer.created.clone());
    }
    fill_times(&mut history);
    history
}

fn fill_times(history: &mut [History]) {
    // The first time after the first gap is that of the first new layer; without one, the last time there is.
    let first_gap = history.iter().position(|item| item.created.is_none()).unwrap_or(history.len());
    let (before, after) = history.split_at(first_gap);
    let mut current = after
        .iter()
        .find_map(|item| item.created.clone())
        .or_else(|| before.last().and_then(|item| item.created.clone()));
    for item in &mut history[first_gap..] {
        match &item.created {
            Some(created) => current = Some(created.clone()),
            None => item.created = current.clone(),
        }
    }
}
