//! Digests of the files in clients' directories, kept from build to build: an unchanged file is not read again.
//!
//! A directory's files are spread over some records by their inodes: all are read when the directory is opened, those
//! about which something new was learned are written. Which files count as unchanged is `files::checksum::memo`'s
//! business.
//!
//! A record is good until the machine starts anew: after a crash a file may have lost its last bytes and kept its times,
//! and devices may be numbered otherwise.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use base::Digest;
use files::Time;
use files::checksum::memo::{Memo, MemoKey, Remembered};
use store::Kv;

/// What a record begins with: the digest of the machine's start, cut short.
const START_BYTES: usize = 16;
const ENTRY_BYTES: usize = 8 * 3 + 12 * 2 + 32 + 1;
/// Records of a directory: one changed file among many writes a small part of what is known.
const RECORDS: u8 = 64;
/// 40 MB in all; directories with more files have some of them read again.
const MOST_ENTRIES: usize = 500_000 / RECORDS as usize;

/// What is known of the files of one directory.
#[derive(Debug)]
pub(crate) struct FileDigests {
    store: Kv,
    directory: String,
    start: [u8; START_BYTES],
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    files: HashMap<MemoKey, Entry>,
    /// The records that something was learned for.
    learned: HashSet<u8>,
}

#[derive(Debug)]
struct Entry {
    file: Remembered,
    /// Asked for or learned in this build; else it is from an earlier one, and may be of a file that is gone.
    used: bool,
}

impl FileDigests {
    /// What earlier builds learned about `directory` since the machine started, which `boot` names. A damaged record is
    /// as good as none.
    pub(crate) fn load(store: Kv, directory: String, boot: &str) -> FileDigests {
        let mut start = [0; START_BYTES];
        start.copy_from_slice(&Digest::of(boot).as_bytes()[..START_BYTES]);
        let records = store.scan(prefix(&directory)).unwrap_or_default();
        let entries =
            |(_, bytes): &(Vec<u8>, Vec<u8>)| bytes.strip_prefix(&start).unwrap_or_default().len() / ENTRY_BYTES;
        let mut files = HashMap::with_capacity(records.iter().map(entries).sum());
        for (_, bytes) in &records {
            let entries = bytes.strip_prefix(&start).unwrap_or_default().chunks_exact(ENTRY_BYTES);
            files.extend(entries.filter_map(decode).map(|(key, file)| (key, Entry { file, used: false })));
        }
        FileDigests { store, directory, start, known: Mutex::new(Known { files, ..Known::default() }) }
    }

    /// Keeps what this build learned, if it learned anything.
    pub(crate) fn save(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = std::mem::take(&mut known.learned);
        if learned.is_empty() {
            return;
        }
        let mut records: HashMap<u8, Vec<u8>> =
            learned.into_iter().map(|record| (record, self.start.to_vec())).collect();
        let kept: Vec<_> = known.files.iter().filter(|(key, _)| records.contains_key(&record_of(key))).collect();
        // A build may look at a part of the directory only: what it did not see is kept too, up to a bound.
        let seen: HashSet<(u64, u64)> =
            kept.iter().filter(|(_, entry)| entry.used).map(|(key, _)| (key.dev, key.ino)).collect();
        let used = kept.iter().filter(|(_, entry)| entry.used);
        let unseen = kept.iter().filter(|(key, entry)| !entry.used && !seen.contains(&(key.dev, key.ino)));
        for (key, entry) in used.chain(unseen) {
            if let Some(bytes) = records.get_mut(&record_of(key))
                && bytes.len() < MOST_ENTRIES * ENTRY_BYTES
            {
                bytes.extend_from_slice(&encode(key, &entry.file));
            }
        }
        drop(known);
        for (record, bytes) in records {
            let mut name = prefix(&self.directory);
            name.push(record);
            if let Err(error) = self.store.put(&name, bytes) {
                tracing::debug!(%error, directory = self.directory, "file digests were not kept");
            }
        }
    }
}

/// What the names of a directory's records begin with. No path has a NUL.
fn prefix(directory: &str) -> Vec<u8> {
    let mut name = directory.as_bytes().to_vec();
    name.push(0);
    name
}

/// The record of a file: neighbours, which often change together, share one.
fn record_of(key: &MemoKey) -> u8 {
    (key.ino / 256 % u64::from(RECORDS)) as u8
}

impl Memo for FileDigests {
    fn get(&self, key: &MemoKey) -> Option<Remembered> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.files.get_mut(key)?;
        entry.used = true;
        Some(entry.file)
    }

    fn put(&self, key: &MemoKey, file: Remembered) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.files.insert(*key, Entry { file, used: true });
        known.learned.insert(record_of(key));
    }
}

fn encode(key: &MemoKey, file: &Remembered) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    let mut rest = &mut bytes[..];
    let mut put = |part: &[u8]| {
        let (here, after) = std::mem::take(&mut rest).split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    };
    [key.dev, key.ino, key.size].iter().for_each(|number| put(&number.to_le_bytes()));
    for time in [key.mtime, key.ctime] {
        put(&time.secs.to_le_bytes());
        put(&time.nanos.to_le_bytes());
    }
    put(file.digest.as_bytes());
    put(&[u8::from(file.no_xattrs)]);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(MemoKey, Remembered)> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let time = |at: usize| {
        let secs = i64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?);
        let nanos = u32::from_le_bytes(bytes.get(at + 8..at + 12)?.try_into().ok()?);
        Some(Time { secs, nanos })
    };
    let key = MemoKey { dev: number(0)?, ino: number(8)?, size: number(16)?, mtime: time(24)?, ctime: time(36)? };
    let digest = Digest::from_bytes(bytes.get(48..80)?.try_into().ok()?);
    Some((key, Remembered { digest, no_xattrs: *bytes.get(80)? == 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Remembered {
        Remembered { digest: Digest::of("x"), no_xattrs: true }
    }

    #[test]
    fn entries_round_trip() {
        let time = |secs, nanos| Time { secs, nanos };
        let key = MemoKey { dev: 1, ino: u64::MAX, size: 3, mtime: time(-4, 5), ctime: time(6, 7) };
        assert_eq!(decode(&encode(&key, &file())), Some((key, file())));
        assert_eq!(decode(&[0; ENTRY_BYTES - 1]), None);
    }

    #[test]
    fn a_record_is_good_until_the_machine_starts_anew() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let options = store::OpenOptions { driver: store::Driver::Copy, ..store::OpenOptions::default() };
        let store = store::Store::open(dir.path(), options).expect("opens");
        let load = |boot| FileDigests::load(store.kv("digests"), "/d".to_owned(), boot);
        let time = Time { secs: 1, nanos: 2 };
        let key = MemoKey { dev: 1, ino: 2, size: 3, mtime: time, ctime: time };
        let digests = load("one");
        digests.put(&key, file());
        digests.save();
        assert_eq!(load("one").get(&key), Some(file()));
        assert_eq!(load("two").get(&key), None);
        let other = FileDigests::load(store.kv("digests"), "/d/e".to_owned(), "one");
        assert_eq!(other.get(&key), None, "it is another directory");
    }

    #[test]
    fn only_what_is_new_is_written() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let options = store::OpenOptions { driver: store::Driver::Copy, ..store::OpenOptions::default() };
        let store = store::Store::open(dir.path(), options).expect("opens");
        let load = || FileDigests::load(store.kv("digests"), "/d".to_owned(), "one");
        let key = |ino, secs| {
            let time = Time { secs, nanos: 0 };
            MemoKey { dev: 1, ino, size: 3, mtime: time, ctime: time }
        };
        let digests = load();
        (0..1000).for_each(|ino| digests.put(&key(ino, 1), file()));
        digests.save();
        let before = store.kv("digests").scan("").expect("read");
        let digests = load();
        assert_eq!(digests.get(&key(5, 1)), Some(file()));
        digests.put(&key(300, 2), file());
        digests.save();
        let after = store.kv("digests").scan("").expect("read");
        let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!((before.len(), after.len(), changed), (4, 4, 1));
        let digests = load();
        assert_eq!([1, 2].map(|secs| digests.get(&key(300, secs)).is_some()), [false, true]);
        assert!((0..1000).filter(|ino| *ino != 300).all(|ino| digests.get(&key(ino, 1)).is_some()));
    }
}
