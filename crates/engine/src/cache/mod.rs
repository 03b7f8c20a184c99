//! Caches between machines: what a build reads beside the local cache, and what it leaves for others.
//!
//! `remotecache` knows the format. Here a cache is fetched ([`import`]), what it has becomes lazy snapshots ([`load`]), and
//! the results of a build become a cache ([`export`], [`inline`]), some of it while steps run ([`early`]). A cache never
//! fails a build that reads it: one that cannot be had is a miss, and so is a layer that turns out to be gone ([`lost`]).

pub(crate) mod early;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inline;
pub(crate) mod load;
pub(crate) mod lost;

use std::collections::BTreeMap;

use base::{Fault, Kind};
use serde::Deserialize;

use crate::request::CacheOptions;

/// Takes the caches to read out of a frontend's options: they are ours to read.
pub(crate) fn take_imports(options: &mut BTreeMap<String, String>) -> Result<Vec<CacheOptions>, Fault> {
    let mut imports = Vec::new();
    if let Some(text) = options.remove("cache-imports").filter(|text| !text.is_empty()) {
        let entries = serde_json::from_str::<Option<Vec<Entry>>>(&text);
        let entries =
            entries.map_err(|e| Fault::because(Kind::User, "malformed frontend option `cache-imports`", e))?;
        let options = |entry: Entry| CacheOptions { kind: entry.kind, attrs: entry.attrs.unwrap_or_default() };
        imports.extend(entries.unwrap_or_default().into_iter().map(options));
    }
    // The older way to say it, for registries only.
    if let Some(text) = options.remove("cache-from") {
        let references = text.split(',').filter(|reference| !reference.is_empty());
        imports.extend(references.map(|reference| CacheOptions {
            kind: "registry".to_owned(),
            attrs: BTreeMap::from([("ref".to_owned(), reference.to_owned())]),
        }));
    }
    Ok(imports)
}

/// `BUILDKIT_INLINE_CACHE=1`, as docker's clients have said it for long.
pub(crate) fn wants_inline(options: &BTreeMap<String, String>) -> bool {
    options.get("build-arg:BUILDKIT_INLINE_CACHE").and_then(|text| config::parse_bool(text)) == Some(true)
}

/// An element of `cache-imports`: Go reads field names in any case.
#[derive(Deserialize)]
struct Entry {
    #[serde(default, rename = "Type", alias = "type")]
    kind: String,
    #[serde(default, rename = "Attrs", alias = "attrs")]
    attrs: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_taken_out_of_a_frontends_options() {
        let text = r#"[{"Type":"registry","Attrs":{"ref":"a"}},{"type":"local"}]"#;
        let pairs = [("cache-imports", text), ("cache-from", "b,,c:1"), ("target", "x")];
        let mut options: BTreeMap<String, String> =
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let taken = take_imports(&mut options).expect("good");
        let said: Vec<_> = taken.iter().map(|i| (i.kind.as_str(), i.attrs.get("ref").map(String::as_str))).collect();
        assert_eq!(
            said,
            [("registry", Some("a")), ("local", None), ("registry", Some("b")), ("registry", Some("c:1"))]
        );
        assert_eq!(options.into_keys().collect::<Vec<_>>(), ["target"]);
        for empty in ["", "null", "[]"] {
            let mut options = BTreeMap::from([("cache-imports".to_owned(), empty.to_owned())]);
            assert_eq!(take_imports(&mut options).expect("nothing"), []);
        }
        let mut options = BTreeMap::from([("cache-imports".to_owned(), "{".to_owned())]);
        assert!(take_imports(&mut options).expect_err("no JSON").to_string().contains("`cache-imports`"));
    }

    #[test]
    fn an_inline_cache_is_wanted_by_a_true_value_only() {
        for (value, wanted) in [("1", true), ("true", true), ("0", false), ("", false), ("yes please", false)] {
            let options = BTreeMap::from([("build-arg:BUILDKIT_INLINE_CACHE".to_owned(), value.to_owned())]);
            assert_eq!(wants_inline(&options), wanted, "{value}");
        }
    }
}
