//! The database: one writer, readers that never wait for it, and what makes both survive.
//!
//! WAL with `synchronous=OFF`: a commit is a write to the page cache, which SIGKILL cannot take back. The
//! database file itself changes only in [`Db::checkpoint`], which syncs the log before and the file after, so
//! that even a machine crash leaves a consistent prefix of history. Automatic checkpoints are off for that reason.
//!
//! A damaged database is put aside and an empty one begun, whenever that shows: what was in it are misses then. Whoever
//! asked is answered from the new one.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::{Error, Result, locked};

mod schema;

pub(crate) use schema::VERSION;

/// What the log keeps of its length when all of it was brought into the database file.
pub(crate) const LOG_BYTES: u64 = 16 << 20;

/// An open database.
pub(crate) struct Db {
    path: PathBuf,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Reader>>,
    /// How many databases were put aside while the store was open. Locked while one is.
    age: RwLock<usize>,
    /// What an empty database must know of the one whose place it takes.
    heirloom: Mutex<Heirloom>,
    /// Why it began as an empty one, where another was put aside when it was opened.
    damage: Option<String>,
}

struct Reader {
    connection: Connection,
    /// Which of the databases it reads.
    age: usize,
}

/// What may not be forgotten while the store is open: the numbers that trees on the disk are called by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heirloom {
    /// Number and name of the identity.
    pub(crate) identity: Option<(i64, String)>,
    /// No smaller id is to be given out.
    pub(crate) next_id: i64,
}

impl Db {
    /// Opens `<dir>/metadata.db`. With `check` (after a machine crash) its pages are verified first.
    pub(crate) fn open(dir: &Path, check: bool) -> Result<Db> {
        let path = dir.join("metadata.db");
        let (connection, damage) = match open_file(&path, check) {
            Err(Error::Database { source, .. }) if is_damage(&source) => {
                (begin_anew(&path, &source)?, Some(source.to_string()))
            }
            other => (other?, None),
        };
        let (readers, heirloom) = (Mutex::default(), Mutex::default());
        Ok(Db { path, writer: Mutex::new(connection), readers, age: RwLock::new(0), heirloom, damage })
    }

    /// What was wrong with the database that was there, where this is an empty one in its place. Damage that shows later is
    /// only logged.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Says what an empty database is to begin with, should this one turn out to be damaged.
    pub(crate) fn keep(&self, change: impl FnOnce(&mut Heirloom)) {
        change(&mut locked(&self.heirloom));
    }

    /// Runs `work` in one transaction; it is committed if `work` succeeds. It may run twice.
    pub(crate) fn write<T>(
        &self,
        doing: &'static str,
        work: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.write_then(doing, work, |value| value)
    }

    /// The same, and `then` follows before anybody else writes: what `work` has found is still so.
    pub(crate) fn write_then<T, U>(
        &self,
        doing: &'static str,
        mut work: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
        then: impl FnOnce(T) -> U,
    ) -> Result<U> {
        let mut writer = locked(&self.writer);
        let result = match transact(&mut writer, &mut work) {
            Err(damage) if is_damage(&damage) => {
                self.replace(&mut writer, &damage)?;
                transact(&mut writer, &mut work)
            }
            result => result,
        };
        result.map(then).map_err(|e| Error::database(doing, e))
    }

    /// Runs `work` on one consistent view of what is committed, beside any writer. It may run twice.
    pub(crate) fn read<T>(
        &self,
        doing: &'static str,
        mut work: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let (result, age) = self.try_read(&mut work);
        let result = match result {
            Err(damage) if is_damage(&damage) => {
                let mut writer = locked(&self.writer);
                // Somebody else may have met the damage first.
                if age.is_none_or(|age| age == self.age()) {
                    self.replace(&mut writer, &damage)?;
                }
                drop(writer);
                self.try_read(&mut work).0
            }
            result => result,
        };
        result.map_err(|e| Error::database(doing, e))
    }

    /// The answer, and the age of the database that it is from.
    fn try_read<T>(
        &self,
        work: &mut impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> (rusqlite::Result<T>, Option<usize>) {
        let idle = locked(&self.readers).pop();
        let mut reader = match idle.map_or_else(|| self.reader(), Ok) {
            Ok(reader) => reader,
            Err(error) => return (Err(error), None),
        };
        let age = Some(reader.age);
        let read = || {
            let view = reader.connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            work(&view)
        };
        let result = { read }();
        let mut idle = locked(&self.readers);
        if result.is_ok() && idle.len() < 4 && age == Some(self.age()) {
            idle.push(reader);
        }
        (result, age)
    }

    fn reader(&self) -> rusqlite::Result<Reader> {
        let age = self.age.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Reader { connection: connect(&self.path)?, age: *age })
    }

    fn age(&self) -> usize {
        *self.age.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the damaged database aside and begins an empty one.
    fn replace(&self, writer: &mut Connection, damage: &rusqlite::Error) -> Result<()> {
        let mut age = self.age.write().unwrap_or_else(PoisonError::into_inner);
        let heirloom = locked(&self.heirloom).clone();
        let mut connection = begin_anew(&self.path, damage)?;
        let mut settle = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if let Some((id, name)) = &heirloom.identity {
                transaction.execute("INSERT OR REPLACE INTO identity (id, name) VALUES (?1, ?2)", (id, name))?;
            }
            let next = [heirloom.next_id];
            transaction.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('next_id', ?1)", next)?;
            transaction.commit()
        };
        settle().map_err(|e| Error::database("prepare", e))?;
        *writer = connection;
        *age += 1;
        drop(age);
        locked(&self.readers).clear();
        Ok(())
    }

    /// Brings the log into the database file, both synced. The log is empty then, but keeps its length until something is
    /// written, and up to [`LOG_BYTES`] of it then.
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

fn transact<T>(
    connection: &mut Connection,
    work: &mut impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn open_file(path: &Path, check: bool) -> Result<Connection> {
    let open = |doing| move |e| Error::database(doing, e);
    let mut connection = connect(path).map_err(open("open"))?;
    if check {
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(open("check"))?;
        if verdict != "ok" {
            let damage = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(Error::database("check", rusqlite::Error::SqliteFailure(damage, Some(verdict))));
        }
    }
    schema::migrate(path, &mut connection)?;
    Ok(connection)
}

/// Puts a damaged database aside. What was put aside earlier goes.
fn begin_anew(path: &Path, damage: &rusqlite::Error) -> Result<Connection> {
    tracing::warn!(path = %path.display(), error = %damage, "metadata database is damaged, starting with an empty one");
    let aside = path.with_extension("damaged");
    std::fs::rename(path, &aside).map_err(|e| Error::io("put aside", path, e))?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
    open_file(path, false)
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
    // What is written first into a log that is in the database file cuts it: no page beyond that is needed then.
    connection.query_row(&format!("PRAGMA journal_size_limit={LOG_BYTES}"), [], |_| Ok(()))?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Our own lock keeps other processes out; within the process only a checkpoint is ever in the way.
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    Ok(connection)
}

/// Pages that make no sense, tables that are not there, values that we never wrote.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error as E, ErrorCode as C};
    // Their code says nothing.
    let lacks_tables = |said: &str| said.starts_with("no such ") || said.ends_with(" already exists");
    match error {
        E::SqliteFailure(failure, said) => match failure.code {
            C::DatabaseCorrupt | C::NotADatabase | C::SchemaChanged => true,
            C::Unknown => said.as_deref().is_some_and(lacks_tables),
            _ => false,
        },
        E::SqlInputError { msg, .. } => lacks_tables(msg),
        E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::Utf8Error(..)
        | E::InvalidColumnType(..) => true,
        _ => false,
    }
}
