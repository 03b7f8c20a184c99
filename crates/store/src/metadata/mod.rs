//! The database: one writer, readers that never wait for it, and what makes both survive.
//!
//! WAL with `synchronous=OFF`: a commit is a write to the page cache, which SIGKILL cannot take back. The
//! database file itself changes only in [`Db::checkpoint`], which syncs the log before and the file after, so
//! that even a machine crash leaves a consistent prefix of history. Automatic checkpoints are off for that reason.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::{Error, Result, locked};

mod schema;

pub(crate) use schema::VERSION;

/// An open database.
pub(crate) struct Db {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
}

/// Whether a database could be opened as it is.
pub(crate) enum Opened {
    /// It is as the last process left it.
    Kept(Db),
    /// It was missing or damaged; this one is empty.
    Fresh(Db),
}

impl Db {
    /// Opens `<dir>/metadata.db`. With `check` (after a machine crash) its pages are verified first. A damaged
    /// database is put aside and an empty one begun: everything is a miss, nothing an error.
    pub(crate) fn open(dir: &Path, check: bool) -> Result<Opened> {
        let path = dir.join("metadata.db");
        let existed = path.exists();
        match Db::open_file(&path, check) {
            Ok(db) if existed => Ok(Opened::Kept(db)),
            Ok(db) => Ok(Opened::Fresh(db)),
            Err(Error::Database { source, .. }) if existed && is_damage(&source) => {
                tracing::warn!(path = %path.display(), error = %source, "metadata database is damaged, starting with an empty one");
                for suffix in ["", "-wal", "-shm"] {
                    let from = dir.join(format!("metadata.db{suffix}"));
                    if suffix.is_empty() {
                        std::fs::rename(&from, dir.join("metadata.damaged"))
                            .map_err(|e| Error::io("put aside", &from, e))?;
                    } else {
                        let _ = std::fs::remove_file(&from);
                    }
                }
                Ok(Opened::Fresh(Db::open_file(&path, false)?))
            }
            Err(e) => Err(e),
        }
    }

    fn open_file(path: &Path, check: bool) -> Result<Db> {
        let open = |doing| move |e| Error::database(doing, e);
        let mut writer = connect(path).map_err(open("open"))?;
        if check {
            let verdict: String =
                writer.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(open("check"))?;
            if verdict != "ok" {
                let damage = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
                return Err(Error::database("check", rusqlite::Error::SqliteFailure(damage, Some(verdict))));
            }
        }
        schema::migrate(path, &mut writer)?;
        Ok(Db { path: path.to_owned(), writer: Mutex::new(writer), readers: Mutex::default() })
    }

    /// Runs `work` in one transaction; it is committed if `work` succeeds.
    pub(crate) fn write<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut writer = locked(&self.writer);
        let run = || {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|e| Error::database(doing, e))
    }

    /// Runs `work` on one consistent view of what is committed, beside any writer.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.try_read(work).map_err(|e| Error::database(doing, e))
    }

    fn try_read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = locked(&self.readers).pop();
        let mut reader = idle.map_or_else(|| connect(&self.path), Ok)?;
        let view = reader.transaction_with_behavior(TransactionBehavior::Deferred)?;
        let value = work(&view)?;
        drop(view);
        let mut idle = locked(&self.readers);
        if idle.len() < 4 {
            idle.push(reader);
        }
        Ok(value)
    }

    /// Brings the log into the database file, both synced. The log is empty then, but keeps its length.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        self.run_checkpoint("PRAGMA wal_checkpoint(PASSIVE)")
    }

    /// As [`Db::checkpoint`], and cuts the log to nothing: the next process reads the whole file when it opens it.
    /// Waits for readers and the writer.
    pub(crate) fn checkpoint_at_end(&self) -> Result<()> {
        self.run_checkpoint("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn run_checkpoint(&self, pragma: &str) -> Result<()> {
        let run = || {
            let connection = connect(&self.path)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.query_row(pragma, [], |_| Ok(()))
        };
        run().map_err(|e| Error::database("checkpoint", e))
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Closing must not write the database file unsynced, see above.
    connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Our own lock keeps other processes out; within the process only a checkpoint is ever in the way.
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    Ok(connection)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            rusqlite::ErrorCode::DatabaseCorrupt
                | rusqlite::ErrorCode::NotADatabase
                | rusqlite::ErrorCode::SchemaChanged
        )
    )
}
