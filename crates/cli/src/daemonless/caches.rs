//! `type=local` caches: directories of ours, whichever engine reads and writes them.
//!
//! What a tag stands for, the client knows: it looks before the build, and names what was written after it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base::{Digest, Fault};
use engine::CacheOptions;
use session::local::{LocalCache, LocalSession};

/// The directories with caches that a build is given.
#[derive(Default)]
pub struct LocalCaches {
    dirs: BTreeMap<String, Arc<LocalCache>>,
    /// Directories that are written to, and the tag that each gets.
    written: Vec<(Arc<LocalCache>, String)>,
}

const LATEST: &str = "latest";

impl LocalCaches {
    /// Takes the directories out of what was asked for. A cache that is not there is left out, with a word.
    pub fn of(imports: &mut Vec<CacheOptions>, exports: &[CacheOptions]) -> Result<(LocalCaches, Vec<String>), Fault> {
        let mut caches = LocalCaches::default();
        for export in exports.iter().filter(|export| export.kind == "local") {
            if export.attrs.get("reset").and_then(|text| config::parse_bool(text)) == Some(true) {
                return Err(Fault::user("cache export type=local: attribute `reset` is not supported yet"));
            }
            let tag = export.attrs.get("tag").filter(|tag| !tag.is_empty()).map_or(LATEST, String::as_str);
            let cache = caches.dir("export", "dest", export)?;
            caches.written.push((cache, tag.to_owned()));
        }
        let mut warnings = Vec::new();
        let mut kept = Vec::with_capacity(imports.len());
        for mut import in std::mem::take(imports) {
            if import.kind != "local" {
                kept.push(import);
                continue;
            }
            let cache = caches.dir("import", "src", &import)?;
            let missing = match import.attrs.get("digest").filter(|digest| !digest.is_empty()) {
                Some(_) => None,
                None => match find(&cache, &import) {
                    Ok(Some(digest)) => {
                        import.attrs.insert("digest".to_owned(), digest.to_string());
                        None
                    }
                    Ok(None) if import.attrs.get("src").is_some_and(|src| !Path::new(src).is_dir()) => {
                        Some("there is no such directory".to_owned())
                    }
                    Ok(None) => Some("it has no cache of that tag".to_owned()),
                    Err(fault) => Some(fault.to_string()),
                },
            };
            match missing {
                None => kept.push(import),
                Some(why) => {
                    let src = import.attrs.get("src").map(String::as_str).unwrap_or_default();
                    warnings.push(format!("local cache `{src}` is not used: {why}"));
                }
            }
        }
        *imports = kept;
        Ok((caches, warnings))
    }

    fn dir(&mut self, way: &str, key: &str, options: &CacheOptions) -> Result<Arc<LocalCache>, Fault> {
        let dir = options.attrs.get(key).filter(|dir| !dir.is_empty());
        let dir = dir.ok_or_else(|| Fault::user(format!("cache {way} type=local needs `{key}=`")))?;
        Ok(self.dirs.entry(dir.clone()).or_insert_with(|| Arc::new(LocalCache::new(dir))).clone())
    }

    /// Lets the engine have them.
    pub fn add_to(&self, session: LocalSession) -> LocalSession {
        self.dirs.iter().fold(session, |session, (dir, cache)| session.with_cache(dir, cache.clone()))
    }

    /// Names what was written.
    pub fn tag(&self) -> Result<(), Fault> {
        self.written.iter().try_for_each(|(cache, tag)| cache.tag(tag))
    }
}

fn find(cache: &LocalCache, import: &CacheOptions) -> Result<Option<Digest>, Fault> {
    let tag = import.attrs.get("tag").filter(|tag| !tag.is_empty()).map_or(LATEST, String::as_str);
    cache.find(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: &str, attrs: &[(&str, &str)]) -> CacheOptions {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        CacheOptions { kind: kind.to_owned(), attrs }
    }

    #[test]
    fn tags_become_digests_and_what_is_missing_is_said() {
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = scratch.path().to_str().expect("text").to_owned();
        let digest = format!("sha256:{}", "a".repeat(64));
        let index = format!(
            r#"{{"manifests":[{{"digest":"{digest}","annotations":{{"org.opencontainers.image.ref.name":"t"}}}}]}}"#
        );
        std::fs::write(scratch.path().join("index.json"), index).expect("written");
        let mut imports = vec![
            options("registry", &[("ref", "r")]),
            options("local", &[("src", &dir), ("tag", "t")]),
            options("local", &[("src", &dir)]),
            options("local", &[("src", "/nowhere"), ("digest", "sha256:x")]),
        ];
        let (_, warnings) = LocalCaches::of(&mut imports, &[]).expect("good");
        let digests: Vec<_> = imports.iter().map(|import| import.attrs.get("digest").map(String::as_str)).collect();
        assert_eq!(digests, [None, Some(digest.as_str()), Some("sha256:x")]);
        assert_eq!(warnings, [format!("local cache `{dir}` is not used: it has no cache of that tag")]);
        let mut imports = vec![options("local", &[("src", "/nowhere")])];
        let (_, warnings) = LocalCaches::of(&mut imports, &[]).expect("good");
        assert_eq!(warnings, ["local cache `/nowhere` is not used: there is no such directory"]);
        std::fs::write(scratch.path().join("index.json"), "{").expect("written");
        let mut imports = vec![options("local", &[("src", &dir)])];
        let (_, warnings) = LocalCaches::of(&mut imports, &[]).expect("a broken cache is a miss");
        assert!(imports.is_empty() && warnings[0].contains("index.json"), "{warnings:?}");
        for (exports, said) in [
            (options("local", &[]), "cache export type=local needs `dest=`"),
            (options("local", &[("dest", "d"), ("reset", "1")]), "attribute `reset` is not supported yet"),
        ] {
            let fault = LocalCaches::of(&mut Vec::new(), &[exports]).err().expect(said);
            assert!(fault.to_string().contains(said), "{fault}");
        }
    }
}
