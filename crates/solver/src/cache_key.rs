//! Cache keys: what an edge is remembered by, across builds.
//!
//! A key is a digest stated by an op (its cache map), the output it belongs to, and for every input
//! the keys that this input is known by. Ids are BuildKit's byte for byte, because remote caches
//! (`cacheconfig.v0`) carry them:
//!
//! * a **root** key (no inputs; a content digest too) has the id `sha256("<digest>@<output>")`, and
//!   `random:<hex>` when the op's digest is one that must never match again;
//! * a key **with inputs** has a random id per store; what identifies it is the set of [`Link`]s that
//!   lead to it from its inputs' keys.
//!
//! Keys are immutable but for one memo: which id each store gave them. Chains may be 100,000 keys
//! deep, therefore nothing here recurses, not even `Drop`.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use base::{Digest, DigestParseError};

use crate::cache_manager::Record;

/// The output index of a key made from an input's content instead of from an op.
pub const CONTENT_OUTPUT: i32 = -1;

/// The digest that an op states for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyDigest {
    /// A lasting one.
    Stable(Digest),
    /// One that names this moment only (a client's local directory): written `random:<hex>`.
    Random(Digest),
}

/// The name of a key within one store: `sha256:<hex>`, `random:<hex>` or 25 random base-36 digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

/// The name of a stored result, opaque here; the result store gives it its meaning.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultId(Arc<str>);

/// Which cache a key, record or reply belongs to. Small numbers given out by the engine, unique while
/// it runs; [`SourceId::LOCAL`] is the main one, the only one that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

impl SourceId {
    /// The local cache.
    pub const LOCAL: SourceId = SourceId(0);
}

/// The arrow from an input's key to the key of an op that reads this input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Which input of the op.
    pub input: u32,
    /// Which output of the op the target key is for.
    pub output: i32,
    /// The op's own digest.
    pub digest: KeyDigest,
    /// Which part of the input is read, for definition keys.
    pub selector: Option<Digest>,
}

impl Link {
    /// The op's digest and output in one, as remote caches carry them.
    pub fn record_id(&self) -> KeyId {
        root_key(self.digest, self.output)
    }
}

/// One way to know an input of a key.
#[derive(Clone, Debug)]
pub struct Dep {
    /// A key of the input.
    pub key: Arc<CacheKey>,
    /// Which part of the input is read; none for content keys.
    pub selector: Option<Digest>,
}

impl Dep {
    /// Whether both are the same key in memory, read in the same way.
    pub(crate) fn is_same(&self, other: &Dep) -> bool {
        Arc::ptr_eq(&self.key, &other.key) && self.selector == other.selector
    }
}

/// What an edge is remembered by.
pub struct CacheKey {
    digest: KeyDigest,
    output: i32,
    vertex: Option<Digest>,
    /// For each input all keys it is known by; empty for root keys.
    deps: Vec<Vec<Dep>>,
    /// What could be loaded when the key was found or made.
    records: Vec<Record>,
    exported: Option<bool>,
    root_id: OnceLock<KeyId>,
    /// The id in each store that knows or was asked about this key.
    ids: Mutex<Vec<(SourceId, KeyId)>>,
}

impl CacheKey {
    /// The key of an op without inputs.
    pub fn root(digest: KeyDigest, output: i32) -> CacheKey {
        CacheKey::with_deps(digest, output, Vec::new())
    }

    /// The key of an input's content.
    pub fn content(digest: Digest) -> CacheKey {
        CacheKey::root(KeyDigest::Stable(digest), CONTENT_OUTPUT)
    }

    /// The key of an op that reads inputs.
    pub fn with_deps(digest: KeyDigest, output: i32, deps: Vec<Vec<Dep>>) -> CacheKey {
        CacheKey {
            digest,
            output,
            vertex: None,
            deps,
            records: Vec::new(),
            exported: None,
            root_id: OnceLock::new(),
            ids: Mutex::default(),
        }
    }

    /// Notes the vertex that the key was made for; remote caches name it beside results.
    pub fn for_vertex(mut self, vertex: Digest) -> CacheKey {
        self.vertex = Some(vertex);
        self
    }

    /// Notes what can be loaded.
    pub fn with_records(mut self, records: Vec<Record>) -> CacheKey {
        self.records = records;
        self
    }

    /// Notes whether the client wants the result in exported caches.
    pub fn exported(mut self, exported: Option<bool>) -> CacheKey {
        self.exported = exported;
        self
    }

    /// Notes ids by which stores know this key already.
    pub fn known_as(self, ids: impl IntoIterator<Item = (SourceId, KeyId)>) -> CacheKey {
        self.ids().extend(ids);
        self
    }

    /// The op's own digest.
    pub fn digest(&self) -> KeyDigest {
        self.digest
    }

    /// The op's output, or [`CONTENT_OUTPUT`].
    pub fn output(&self) -> i32 {
        self.output
    }

    /// The vertex that the key was made for.
    pub fn vertex(&self) -> Option<Digest> {
        self.vertex
    }

    /// What could be loaded when the key was found or made, best first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Whether the client wants the result in exported caches, if it said so.
    pub fn is_exported(&self) -> Option<bool> {
        self.exported
    }

    /// For each input the keys it is known by.
    pub fn deps(&self) -> &[Vec<Dep>] {
        &self.deps
    }

    /// Whether this key has no inputs.
    pub fn is_root(&self) -> bool {
        self.deps.is_empty()
    }

    /// The id of this key without its inputs: the whole id for root keys, and what remote caches
    /// carry as the record's digest for all.
    pub fn root_id(&self) -> KeyId {
        self.root_id.get_or_init(|| root_key(self.digest, self.output)).clone()
    }

    /// The id in one store, if it was asked about this key before or needs no asking.
    pub fn id_in(&self, source: SourceId) -> Option<KeyId> {
        let known = self.ids().iter().find(|(s, _)| *s == source).map(|(_, id)| id.clone());
        known.or_else(|| self.is_root().then(|| self.root_id()))
    }

    /// The stores that gave this key an id.
    pub fn known_in(&self) -> Vec<(SourceId, KeyId)> {
        self.ids().clone()
    }

    /// Remembers the id in one store; the first answer stays.
    pub fn set_id(&self, source: SourceId, id: KeyId) -> KeyId {
        let mut ids = self.ids();
        if let Some((_, known)) = ids.iter().find(|(s, _)| *s == source) {
            return known.clone();
        }
        ids.push((source, id.clone()));
        id
    }

    /// The link that leads from a key of input `input` to this key.
    pub fn link(&self, input: usize, selector: Option<Digest>) -> Link {
        let input = u32::try_from(input).expect("an op has fewer than 2^32 inputs");
        Link { input, output: self.output, digest: self.digest, selector }
    }

    fn ids(&self) -> MutexGuard<'_, Vec<(SourceId, KeyId)>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CacheKey {
    /// Takes deep chains apart in a loop, where the derived drop would overflow the stack.
    fn drop(&mut self) {
        let mut rest: Vec<Dep> = self.deps.drain(..).flatten().collect();
        while let Some(dep) = rest.pop() {
            if let Some(mut key) = Arc::into_inner(dep.key) {
                rest.extend(key.deps.drain(..).flatten());
            }
        }
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deps: Vec<usize> = self.deps.iter().map(Vec::len).collect();
        write!(f, "CacheKey({}@{}, deps {deps:?}, ids {:?})", self.digest, self.output, self.ids())
    }
}

/// Visits a key and all keys below it, inputs first, each once.
pub fn walk_inputs_first(root: &Arc<CacheKey>, visit: &mut dyn FnMut(&Arc<CacheKey>)) {
    let mut seen = HashSet::from([Arc::as_ptr(root)]);
    let mut stack = vec![(root.clone(), 0, 0)];
    while let Some((key, input, nth)) = stack.pop() {
        let Some(deps) = key.deps.get(input) else {
            visit(&key);
            continue;
        };
        match deps.get(nth) {
            None => stack.push((key, input + 1, 0)),
            Some(dep) => {
                let next = dep.key.clone();
                stack.push((key, input, nth + 1));
                if seen.insert(Arc::as_ptr(&next)) {
                    stack.push((next, 0, 0));
                }
            }
        }
    }
}

/// The id of a root key: BuildKit's `sha256("<digest>@<output>")`, or `random:<hex>`.
pub fn root_key(digest: KeyDigest, output: i32) -> KeyId {
    match digest {
        KeyDigest::Stable(_) => Digest::of(format!("{digest}@{output}")).into(),
        KeyDigest::Random(_) => KeyId(digest.to_string().into()),
    }
}

/// A fresh id for a key with inputs: 25 base-36 digits, some 129 random bits, as BuildKit's ids are.
pub fn random_id() -> KeyId {
    static SEEDS: LazyLock<[RandomState; 3]> =
        LazyLock::new(|| [RandomState::new(), RandomState::new(), RandomState::new()]);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut text = String::with_capacity(39);
    for (place, seed) in SEEDS.iter().enumerate() {
        let mut hasher = seed.build_hasher();
        hasher.write_u64(count);
        hasher.write_usize(place);
        let mut bits = hasher.finish();
        for _ in 0..9 {
            text.push(char::from_digit((bits % 36) as u32, 36).expect("below 36"));
            bits /= 36;
        }
    }
    text.truncate(25);
    KeyId(text.into())
}

impl KeyDigest {
    /// The 32 bytes behind either kind.
    pub fn digest(&self) -> Digest {
        match self {
            KeyDigest::Stable(digest) | KeyDigest::Random(digest) => *digest,
        }
    }
}

impl From<Digest> for KeyDigest {
    fn from(digest: Digest) -> KeyDigest {
        KeyDigest::Stable(digest)
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyDigest::Stable(digest) => write!(f, "{digest}"),
            KeyDigest::Random(digest) => write!(f, "random:{}", digest.hex()),
        }
    }
}

impl FromStr for KeyDigest {
    type Err = DigestParseError;

    fn from_str(text: &str) -> Result<KeyDigest, DigestParseError> {
        match text.strip_prefix("random:") {
            Some(hex) => Digest::from_hex(hex).map(KeyDigest::Random),
            None => text.parse().map(KeyDigest::Stable),
        }
    }
}

impl KeyId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest, when this is the id of a root key that lasts.
    pub fn digest(&self) -> Option<Digest> {
        self.0.parse().ok()
    }
}

impl From<Digest> for KeyId {
    fn from(digest: Digest) -> KeyId {
        KeyId(digest.to_string().into())
    }
}

impl ResultId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_id {
    ($($id:ident),*) => {$(
        impl From<&str> for $id {
            fn from(text: &str) -> $id {
                $id(text.into())
            }
        }

        impl From<String> for $id {
            fn from(text: String) -> $id {
                $id(text.into())
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_id!(KeyId, ResultId);

#[cfg(test)]
mod tests;
