//! What the metadata holds, as text for people. The store need not be opened for that, and nothing is changed.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use crate::{Error, Result, lock};

/// Gives each line of the metadata of the store in `dir` to `line`: the name of each table, and under it the rows. Another
/// process may not have the store open.
pub fn dump(dir: &Path, line: &mut dyn FnMut(&str) -> std::io::Result<()>) -> Result<()> {
    let path = dir.join("metadata.db");
    std::fs::metadata(&path).map_err(|error| Error::io("find", &path, error))?;
    let _lock = lock::take(dir, Duration::from_secs(2))?;
    let failed = |error| Error::database("read", error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags).map_err(failed)?;
    // The log stays as it is: whoever opens the store reads it.
    db.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let mut tables = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").map_err(failed)?;
    let tables =
        tables.query_map([], |row| row.get::<_, String>(0)).and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>);
    let mut write = |text: &str| line(text).map_err(|error| Error::io("print", &path, error));
    for table in tables.map_err(failed)? {
        write(&format!("bucket \"{table}\":"))?;
        // The name is one that the database gave, and holds no quotes.
        let mut rows = db.prepare(&format!("SELECT * FROM \"{table}\"")).map_err(failed)?;
        let names: Vec<String> = rows.column_names().into_iter().map(str::to_owned).collect();
        let mut rows = rows.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let mut text = String::from(" ");
            for (index, name) in names.iter().enumerate() {
                let value = row.get_ref(index).map_err(failed)?;
                if value != ValueRef::Null {
                    text.push_str(&format!(" {name}={}", shown(value)));
                }
            }
            write(&text)?;
        }
    }
    Ok(())
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => format!("{:?}", String::from_utf8_lossy(text)),
        ValueRef::Blob(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains(char::is_control) => format!("{text:?}"),
            _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        },
    }
}
