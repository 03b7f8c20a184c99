//! From a vertex back to the lines of the Dockerfile that asked for it.

use std::collections::HashMap;
use std::sync::Arc;

use base::{Digest, Fault, SourceFile, SourceSpan};
use llb::pb;

/// The source maps of a build's definitions.
#[derive(Default)]
pub(crate) struct Places(HashMap<Digest, Vec<Place>>);

/// Lines of a file.
type Place = (Arc<SourceFile>, Vec<SourceSpan>);

impl Places {
    /// Adds the map of one definition. Places that point outside of it are dropped: a client made them.
    pub(crate) fn add(&mut self, source: &pb::Source) {
        let files: Vec<Arc<SourceFile>> = source
            .infos
            .iter()
            .map(|info| {
                Arc::new(SourceFile {
                    name: info.filename.clone(),
                    data: info.data.clone(),
                    language: info.language.clone(),
                    definition: info.definition.as_ref().map(llb::marshalled).unwrap_or_default(),
                })
            })
            .collect();
        for (digest, locations) in &source.locations {
            let Ok(digest) = digest.parse::<Digest>() else { continue };
            let places = locations.locations.iter().filter_map(|location| {
                let file = files.get(usize::try_from(location.source_index).ok()?)?;
                Some((file.clone(), location.ranges.iter().filter_map(span).collect()))
            });
            self.0.entry(digest).or_insert_with(|| places.collect());
        }
    }

    /// Adds the vertex's places to a fault that has none.
    pub(crate) fn locate(&self, fault: Fault, vertex: Digest) -> Fault {
        if !fault.places().is_empty() {
            return fault;
        }
        let places = self.0.get(&vertex).into_iter().flatten();
        places.fold(fault, |fault, (file, spans)| fault.at(file, spans))
    }
}

fn span(range: &pb::Range) -> Option<SourceSpan> {
    let position = |p: &pb::Position| Some((u32::try_from(p.line).ok()?, u32::try_from(p.character).ok()?));
    let start = range.start.as_ref()?;
    // Frontends that know lines only may say where it starts, and no more.
    Some(SourceSpan { start: position(start)?, end: position(range.end.as_ref().unwrap_or(start))? })
}
