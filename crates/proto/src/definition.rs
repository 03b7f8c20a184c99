//! Definitions on their way to Go programs.

use crate::pb::{Definition, Locations, OpMetadata};

/// The definition without entries of maps that are empty: they are left out on the wire, and the reader of BuildKit's
/// clients and daemon then finds a null pointer, on which it dies.
pub fn without_empty_entries(mut definition: Definition) -> Definition {
    definition.metadata.retain(|_, metadata| *metadata != OpMetadata::default());
    if let Some(source) = &mut definition.source {
        source.locations.retain(|_, locations| *locations != Locations::default());
        for info in &mut source.infos {
            info.definition = info.definition.take().map(without_empty_entries);
        }
    }
    definition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{Location, Source, SourceInfo};

    #[test]
    fn only_entries_that_say_something_are_kept_at_any_depth() {
        let full = Locations { locations: vec![Location::default()] };
        let locations = [("empty".to_owned(), Locations::default()), ("full".to_owned(), full)];
        let source = Source { locations: locations.into_iter().collect(), infos: Vec::new() };
        let said = OpMetadata { ignore_cache: true, ..OpMetadata::default() };
        let metadata = [("empty".to_owned(), OpMetadata::default()), ("full".to_owned(), said)];
        let inner = Definition { def: vec![vec![1]], metadata: metadata.into_iter().collect(), source: Some(source) };
        let info = SourceInfo { definition: Some(inner.clone()), ..SourceInfo::default() };
        let outer = Definition {
            source: Some(Source { infos: vec![info], ..inner.source.clone().expect("a source") }),
            ..inner
        };
        let sent = without_empty_entries(outer);
        let check = |definition: &Definition| {
            assert_eq!(definition.def, [[1]]);
            assert_eq!(definition.metadata.keys().collect::<Vec<_>>(), ["full"]);
            let source = definition.source.as_ref().expect("a source");
            assert_eq!(source.locations.keys().collect::<Vec<_>>(), ["full"]);
            source.infos.first().and_then(|info| info.definition.clone())
        };
        let inner = check(&sent).expect("the inner one");
        assert!(check(&inner).is_none());
    }
}
