//! A cache or image in a directory of the user: an OCI layout, read and written in place.
//!
//! ```text
//! oci-layout
//! index.json             tags and names -> manifests
//! blobs/sha256/<hex>     each appears when it is whole
//! ```

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use base::{Digest, Fault, Kind};
use serde_json::{Map, Value, json};

use super::layout::Layout;
use crate::{Blob, Blobs, CacheDir};

const TAG: &str = "org.opencontainers.image.ref.name";

const NAME: &str = "io.containerd.image.name";

/// No manifest is larger.
const MAX_MANIFEST: u64 = 4 << 20;

/// A directory with caches or images.
#[derive(Debug)]
pub struct LocalCache {
    dir: PathBuf,
    layout: Layout,
    /// What was put last: of a cache, its manifest.
    last: Mutex<Option<Digest>>,
}

impl LocalCache {
    /// The one in `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> LocalCache {
        let dir = dir.into();
        LocalCache { layout: Layout::new(&dir), dir, last: Mutex::default() }
    }

    /// What a tag names here; none if there is no such tag, nor a cache.
    pub fn find(&self, tag: &str) -> Result<Option<Digest>, Fault> {
        let path = self.dir.join("index.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, error)),
        };
        let index: Value = serde_json::from_slice(&bytes).map_err(|error| failed("read", &path, error.into()))?;
        let manifests = index["manifests"].as_array().into_iter().flatten();
        let tagged = manifests.filter(|manifest| manifest["annotations"][TAG].as_str() == Some(tag));
        Ok(tagged.filter_map(|manifest| manifest["digest"].as_str()?.parse().ok()).next_back())
    }

    /// Names what was put last, as a build does that has written its cache. Other tags stay.
    pub fn tag(&self, tag: &str) -> Result<(), Fault> {
        let Some(digest) = *self.last.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        let blob = self.blob(&digest);
        let size = std::fs::metadata(&blob).map_err(|error| failed("read", &blob, error))?.len();
        let bytes = if size > MAX_MANIFEST { Vec::new() } else { std::fs::read(&blob).unwrap_or_default() };
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        // A layer, and no manifest after it: the cache was not written.
        if !manifest["mediaType"].is_string() {
            return Ok(());
        }
        let entry = json!({
            "mediaType": manifest["mediaType"],
            "digest": digest.to_string(),
            "size": bytes.len(),
        });
        self.insert(entry, &[(tag.to_owned(), None)])
    }

    /// Names an image whose blobs were put, as a build does that has written it. `names` are full references with a tag.
    /// What else is there under other names stays.
    pub fn name(&self, image: Value, names: &[String]) -> Result<(), Fault> {
        if self.last.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        let named = |name: &String| (reference_name(name).to_owned(), Some(name.clone()));
        let names: Vec<_> = match names {
            [] => vec![("latest".to_owned(), None)],
            names => names.iter().map(named).collect(),
        };
        self.insert(image, &names)
    }

    /// An entry for each tag and name, in the place of what these stood for.
    fn insert(&self, manifest: Value, names: &[(String, Option<String>)]) -> Result<(), Fault> {
        let Value::Object(manifest) = manifest else {
            return Err(Fault::new(Kind::Remote, "the daemon describes no manifest"));
        };
        let path = self.dir.join("index.json");
        let known =
            std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        let mut index = known.unwrap_or_default();
        index.entry("schemaVersion").or_insert(json!(2));
        index.entry("mediaType").or_insert(json!("application/vnd.oci.image.index.v1+json"));
        let manifests = index.entry("manifests").or_insert(json!([]));
        if let Some(manifests) = manifests.as_array_mut() {
            for (tag, name) in names {
                let same = |known: &Value, key: &str, value: Option<&str>| known["annotations"][key].as_str() == value;
                manifests.retain(|known| !(same(known, TAG, Some(tag)) && same(known, NAME, name.as_deref())));
                let mut entry = manifest.clone();
                let annotations = entry.entry("annotations").or_insert(json!({}));
                if !annotations.is_object() {
                    *annotations = json!({});
                }
                annotations[TAG] = json!(tag);
                if let Some(name) = name {
                    annotations[NAME] = json!(name);
                }
                manifests.push(entry.into());
            }
        }
        replace(&self.dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        replace(&path, &serde_json::to_vec(&index).unwrap_or_default())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
}

#[async_trait]
impl Blobs for LocalCache {
    fn place(&self) -> String {
        self.layout.place()
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Blob>, Fault> {
        self.layout.open(digest).await
    }
}

#[async_trait]
impl CacheDir for LocalCache {
    async fn put(&self, digest: &Digest, size: u64, mut from: Box<dyn Read + Send>) -> Result<(), Fault> {
        let (path, expected) = (self.blob(digest), *digest);
        let written = tokio::task::spawn_blocking(move || {
            let dir = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(dir).map_err(|error| failed("create directory", dir, error))?;
            // What has the right size stays: whoever reads it checks its digest.
            if std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == size) {
                return Ok(());
            }
            let part = dir.join(format!(".{}.{}", expected.hex(), crate::random_id()));
            let kept = keep(&part, &mut *from, &expected, size).and_then(|()| std::fs::rename(&part, &path));
            kept.map_err(|error| {
                // Whatever is left of it is in nobody's way.
                let _ = std::fs::remove_file(&part);
                failed("write", &path, error)
            })
        });
        written.await.unwrap_or_else(|error| Err(Fault::new(Kind::Internal, error.to_string())))?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(*digest);
        Ok(())
    }
}

/// What comes after the repository: a tag, a digest or both.
fn reference_name(name: &str) -> &str {
    let repository = name.rfind('/').map_or(0, |slash| slash + 1);
    let end = name[repository..].find([':', '@']).map_or(name.len(), |at| repository + at + 1);
    if end == name.len() { name } else { &name[end..] }
}

fn keep(part: &Path, from: &mut dyn Read, expected: &Digest, size: u64) -> io::Result<()> {
    let mut file = std::fs::File::create(part)?;
    let mut hasher = Digest::hasher();
    let mut buffer = vec![0; 256 << 10];
    let mut written = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                file.write_all(&buffer[..n])?;
                written += n as u64;
            }
        }
    }
    let found = hasher.finish();
    match (written, found) == (size, *expected) {
        true => Ok(()),
        false => {
            Err(io::Error::other(format!("{written} bytes came that are {found}, not {size} that are {expected}")))
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let part = path.with_extension(crate::random_id());
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part);
        failed("write", path, error)
    })
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Fault {
    Fault::because(Kind::User, format!("cannot {doing} `{}`", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn caches_are_kept_by_their_tags() {
        let scratch = tempfile::tempdir().expect("scratch");
        let dir = scratch.path().join("new/cache");
        let cache = LocalCache::new(&dir);
        assert_eq!(cache.find("latest").expect("nothing there"), None);
        let put = |bytes: &'static [u8]| {
            cache.put(Box::leak(Box::new(Digest::of(bytes))), bytes.len() as u64, Box::new(bytes))
        };
        let (one, two) = (br#"{"mediaType":"x/one"}"#, br#"{"mediaType":"x/two"}"#);
        put(b"a layer").await.expect("kept");
        cache.tag("latest").expect("nothing to tag");
        assert_eq!(cache.find("latest").expect("nothing there"), None, "a layer is no cache");
        put(one).await.expect("kept");
        cache.tag("latest").expect("tagged");
        put(two).await.expect("kept");
        cache.tag("other").expect("tagged");
        assert_eq!(cache.find("latest").expect("readable"), Some(Digest::of(one)));
        assert_eq!(cache.find("other").expect("readable"), Some(Digest::of(two)));
        put(one).await.expect("there already");
        cache.tag("other").expect("tagged");
        assert_eq!(cache.find("other").expect("readable"), Some(Digest::of(one)));
        assert_eq!(
            std::fs::read_to_string(dir.join("oci-layout")).expect("written"),
            r#"{"imageLayoutVersion":"1.0.0"}"#
        );
        let before = cache.find("latest").expect("readable");
        let image = json!({"digest": Digest::of(two).to_string(), "annotations": {"a": "b"}});
        let names = ["example.com:1/x/y:v1".to_owned(), "docker.io/library/z:v1".to_owned()];
        cache.name(image.clone(), &names).expect("named");
        cache.name(image, &names[..1]).expect("named again");
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.join("index.json")).expect("an index")).expect("JSON");
        let named: Vec<_> =
            index["manifests"].as_array().into_iter().flatten().map(|m| m["annotations"].clone()).collect();
        let entry = |name: &str| json!({"a": "b", TAG: "v1", NAME: name});
        assert_eq!(named[2..], [entry(&names[1]), entry(&names[0])], "{index}");
        assert_eq!(cache.find("latest").expect("readable"), before);
        // What is not what it should be leaves nothing.
        let wrong = cache.put(&Digest::of("x"), 1, Box::new(&b"y"[..])).await;
        assert!(wrong.expect_err("wrong bytes").to_string().contains("1 bytes came"));
        assert_eq!(std::fs::read_dir(dir.join("blobs/sha256")).expect("a directory").count(), 3);
    }
}
