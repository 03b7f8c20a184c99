//! The one background thread: removes discarded trees, writes usage counts, brings data to the disk now and then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::content::{remove_file, remove_unwanted};
use crate::metadata::LOG_BYTES;
use crate::snapshot::tree;
use crate::{Error, Inner, Result, locked};

/// Data is synced when nothing changed for so long,
const IDLE: Duration = Duration::from_secs(5);
/// or at the latest after so long; and the log is brought into the database once it is larger than [`LOG_BYTES`].
const LATEST: Duration = Duration::from_secs(120);
/// What the log may have at the end of a process: the next one reads all of it when it opens the store.
const LOG_BYTES_AT_END: u64 = 2 << 20;

/// Work for the thread.
enum Job {
    Remove(PathBuf),
    Stop,
}

/// The way to the thread.
pub(crate) struct Queue {
    jobs: Sender<Job>,
    receiver: Mutex<Option<Receiver<Job>>>,
    next_trash: AtomicU64,
    /// Locked while the thread removes something: its name goes before its space does.
    pub(crate) removing: Mutex<()>,
    /// The place up to which data is known to be on the disk.
    synced: AtomicI64,
    /// When data last changed.
    changed: Mutex<Option<(Instant, Instant)>>,
}

impl Queue {
    pub(crate) fn new(synced: i64) -> Queue {
        let (jobs, receiver) = channel();
        Queue {
            jobs,
            receiver: Mutex::new(Some(receiver)),
            next_trash: AtomicU64::new(0),
            removing: Mutex::default(),
            synced: AtomicI64::new(synced),
            changed: Mutex::default(),
        }
    }
}

/// Stops the thread when the last handle of the store goes.
pub(crate) struct Guard {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.inner.work.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let closed = if self.inner.options.sync_on_close { sync(&self.inner) } else { write_usage(&self.inner) };
        let closed = closed.and_then(|()| match log_bytes(&self.inner) {
            ..=LOG_BYTES_AT_END => Ok(()),
            _ => self.inner.db.checkpoint_at_end(),
        });
        if let Err(error) = closed {
            tracing::warn!(error = &error as &dyn std::error::Error, "state could not be written at shutdown");
        }
    }
}

/// Starts the thread.
pub(crate) fn start(inner: Arc<Inner>) -> Result<Guard> {
    let receiver = locked(&inner.work.receiver).take();
    let Some(receiver) = receiver else { return Ok(Guard { inner, thread: None }) };
    let shared = Arc::clone(&inner);
    let thread = std::thread::Builder::new()
        .name("store".to_owned())
        .stack_size(256 << 10)
        .spawn(move || run(&shared, &receiver));
    let thread = thread.map_err(|e| Error::io("start a thread for", &inner.dir, e))?;
    Ok(Guard { inner, thread: Some(thread) })
}

fn run(inner: &Inner, jobs: &Receiver<Job>) {
    loop {
        let job = jobs.recv_timeout(IDLE);
        match job {
            Ok(Job::Remove(path)) => {
                let _turn = locked(&inner.work.removing);
                if let Err(error) = remove(&path) {
                    tracing::warn!(path = %path.display(), %error, "discarded data could not be removed");
                }
            }
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(error) = tick(inner) {
            tracing::warn!(error = &error as &dyn std::error::Error, "state could not be written, trying again later");
        }
    }
}

fn tick(inner: &Inner) -> Result<()> {
    let due =
        locked(&inner.work.changed).is_some_and(|(first, last)| last.elapsed() >= IDLE || first.elapsed() >= LATEST);
    if due {
        return sync(inner);
    }
    if log_bytes(inner) > LOG_BYTES {
        inner.db.checkpoint()?;
    }
    Ok(())
}

fn log_bytes(inner: &Inner) -> u64 {
    std::fs::metadata(inner.dir.join("metadata.db-wal")).map_or(0, |log| log.len())
}

/// Notes that there is data which may not be on the disk.
pub(crate) fn note_change(inner: &Inner) {
    let mut changed = locked(&inner.work.changed);
    let first = changed.map_or_else(Instant::now, |(first, _)| first);
    *changed = Some((first, Instant::now()));
}

/// Moves a path out of the way at once and removes it in the background.
pub(crate) fn discard(inner: &Inner, path: &Path) {
    // What cannot be moved has no record: the next open sweeps it.
    if let Err(error) = move_to_trash(inner, path) {
        tracing::warn!(path = %path.display(), %error, "data could not be discarded");
    }
}

/// Has a file gone from its place at once, and its space freed in the background: that takes long for a large one. Says
/// whether it was there.
pub(crate) fn discard_file(inner: &Inner, file: &Path) -> Result<bool> {
    match move_to_trash(inner, file) {
        Ok(true) => Ok(true),
        // It is not there, or a full disk has no room for one more name.
        Ok(false) | Err(_) => remove_file(file),
    }
}

fn move_to_trash(inner: &Inner, path: &Path) -> std::io::Result<bool> {
    let number = inner.work.next_trash.fetch_add(1, Ordering::Relaxed);
    let trash = tree::trash_dir(inner).join(number.to_string());
    match std::fs::rename(path, &trash) {
        Ok(()) => {
            let _ = inner.work.jobs.send(Job::Remove(trash));
            Ok(true)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until everything discarded so far is gone: after this, its space is free.
pub(crate) fn drain(inner: &Inner) {
    let trash = tree::trash_dir(inner);
    let Ok(entries) = std::fs::read_dir(&trash) else { return };
    for entry in entries.flatten() {
        // The thread tells of what stays.
        let _ = remove(&entry.path());
    }
    drop(locked(&inner.work.removing));
}

/// Removes what was discarded. Two may be at the same tree, of which each finds what the other left.
fn remove(path: &Path) -> io::Result<()> {
    let mut tries = 100;
    loop {
        match tree::remove_tree(path) {
            Err(e) if tries > 0 && matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            removed => return removed,
        }
    }
}

/// Writes what is kept in memory, brings all to the disk and notes up to where that is true.
pub(crate) fn sync(inner: &Inner) -> Result<()> {
    write_usage(inner)?;
    let seq = inner.snapshots.seq();
    let changed = locked(&inner.work.changed).take();
    if inner.work.synced.load(Ordering::Acquire) == seq && changed.is_none() {
        return Ok(());
    }
    let restore = |e| {
        locked(&inner.work.changed).get_or_insert_with(|| changed.unwrap_or_else(|| (Instant::now(), Instant::now())));
        e
    };
    let dir = std::fs::File::open(&inner.dir).map_err(|e| restore(Error::io("open", &inner.dir, e)))?;
    rustix::fs::syncfs(&dir).map_err(|e| restore(Error::io("sync", &inner.dir, e)))?;
    inner
        .db
        .write("write to", |db| {
            db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('synced', ?1)", [seq]).map(drop)
        })
        .and_then(|()| inner.db.checkpoint())
        .map_err(restore)?;
    inner.work.synced.store(seq, Ordering::Release);
    Ok(())
}

/// Writes the counts of use that were kept in memory.
pub(crate) fn write_usage(inner: &Inner) -> Result<()> {
    let used = inner.snapshots.take_used();
    let blobs = std::mem::take(&mut *locked(&inner.content.used));
    if used.is_empty() && blobs.is_empty() {
        return Ok(());
    }
    inner.db.write("write to", |db| {
        for (id, last_used, usage) in &used {
            let mut update = db.prepare_cached("UPDATE snapshot SET last_used = ?2, usage = ?3 WHERE id = ?1")?;
            update.execute((id.0, last_used, usage))?;
        }
        for (digest, at) in &blobs {
            let mut update = db.prepare_cached("UPDATE blob SET last_used = ?2 WHERE digest = ?1")?;
            update.execute((digest.as_bytes(), at))?;
        }
        Ok(())
    })
}

/// Removes what a predecessor left: trash, and what the sweep found to be nobody's.
pub(crate) fn sweep(inner: &Inner, waste: Vec<PathBuf>) {
    let trash = tree::trash_dir(inner);
    let mut highest = 0;
    for entry in std::fs::read_dir(&trash).into_iter().flatten().flatten() {
        highest = highest.max(entry.file_name().to_string_lossy().parse::<u64>().unwrap_or(0) + 1);
        let _ = inner.work.jobs.send(Job::Remove(entry.path()));
    }
    inner.work.next_trash.store(highest, Ordering::Relaxed);
    for path in waste {
        discard(inner, &path);
    }
}

/// Removes blobs that no snapshot refers to and nobody read for a day (manifests, configs).
pub(crate) fn remove_orphan_blobs(inner: &Inner, unused_since: i64) -> Result<u64> {
    let orphans = inner.db.read("read", |db| {
        let mut query = db.prepare(
            "SELECT digest, size FROM blob b WHERE last_used < ?1
               AND NOT EXISTS (SELECT 1 FROM layer WHERE digest = b.digest)
               AND NOT EXISTS (SELECT 1 FROM blob_ref WHERE digest = b.digest)
               AND NOT EXISTS (SELECT 1 FROM snapshot
                               WHERE instr(lazy, '{\"digest\":\"sha256:' || lower(hex(b.digest)) || '\"') = 1)",
        )?;
        let rows = query
            .query_map([unused_since], |row| Ok((base::Digest::from_bytes(row.get(0)?), row.get::<_, i64>(1)?)))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    })?;
    let mut freed = 0;
    for (digest, size) in orphans {
        let read_since = locked(&inner.content.used).get(&digest).is_some_and(|at| *at >= unused_since);
        if read_since {
            continue;
        }
        if remove_unwanted(inner, &digest)? {
            freed += size.unsigned_abs();
        }
    }
    Ok(freed)
}
