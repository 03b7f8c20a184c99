//! Opening: the lock, the database, what a crash left, the driver.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::OptionalExtension;
use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use sys::mount::{FsView, Mounted, Overlay};

use crate::metadata::{Db, VERSION};
use crate::reserve::{Loan, Reserve};
use crate::snapshot::tree;
use crate::{Error, Inner, Result, Store, content, lock, maintenance, reserve, snapshot};

/// How snapshots are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// Overlay if it works, else copy.
    #[default]
    Auto,
    /// A directory per layer, stacked by overlayfs.
    Overlay,
    /// A whole tree per snapshot; blocks are shared where the file system can.
    Copy,
}

impl Driver {
    /// Its name in messages and paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Driver::Auto => "auto",
            Driver::Overlay => "overlay",
            Driver::Copy => "copy",
        }
    }
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// How snapshots are kept.
    pub driver: Driver,
    /// We are in a user namespace: overlayfs keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
    /// How long to wait for another process to close the store.
    pub lock_wait: Duration,
    /// What else decides whether trees written by another process can be read: the id map.
    pub identity: String,
    /// Record owners, devices and capabilities that the kernel refuses (`sys::shadow`): we are in a user namespace.
    pub shadow: bool,
    /// What is kept back of the disk, so that a full one can be tidied up.
    pub reserve: Reserve,
    /// Bring everything to the disk when the store is closed. Without it, what was made in the last moments is
    /// dropped if the *machine* then crashes, or if the directory is next opened on another machine.
    pub sync_on_close: bool,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            driver: Driver::Auto,
            userxattr: false,
            lock_wait: Duration::from_secs(10),
            identity: String::new(),
            shadow: false,
            reserve: Reserve::Keep,
            sync_on_close: true,
        }
    }
}

/// The driver in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverChoice {
    /// Never [`Driver::Auto`].
    pub driver: Driver,
    /// Why this one, for the log.
    pub reason: String,
    /// Overlay keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
    /// Overlay can do without syncs.
    pub volatile: bool,
    pub(crate) identity: i64,
    pub(crate) snapshots: PathBuf,
}

impl Store {
    /// Opens the store in `dir`, making it if there is none.
    ///
    /// Only one process can have it open: others wait for [`OpenOptions::lock_wait`] and then get [`Error::InUse`].
    pub fn open(dir: impl AsRef<Path>, options: OpenOptions) -> Result<Store> {
        let dir = dir.as_ref();
        own_dir(dir)?;
        let dir = &std::path::absolute(dir).map_err(|e| Error::io("find", dir, e))?;
        let lock = lock::take(dir, options.lock_wait)?;
        match options.reserve {
            Reserve::Keep => reserve::keep(dir),
            Reserve::Spend => reserve::spend_if_full(dir),
            Reserve::Borrow => {}
        }
        let lock = Arc::new(lock);
        let reserve = options.reserve;
        match Store::open_locked(dir, options.clone(), lock.clone(), None) {
            Err(error) if reserve != Reserve::Spend && error.is_no_space() => match reserve::borrow(dir) {
                Some(loan) => Store::open_locked(dir, options, lock, Some(loan)),
                None => Err(error),
            },
            opened => opened,
        }
    }

    fn open_locked(dir: &Path, options: OpenOptions, lock: Arc<lock::Lock>, loan: Option<Loan>) -> Result<Store> {
        for part in [content::blob_dir(dir), content::ingest_dir(dir), dir.join("snapshots")] {
            std::fs::create_dir_all(&part).map_err(|e| Error::io("create directory", &part, e))?;
        }
        let (db, synced) = open_database(dir)?;
        content::sweep(dir, &db, synced)?;
        let content = content::State::open(&db)?;
        let driver = choose(dir, &db, &options)?;
        let (snapshots, waste) = snapshot::load(&db, driver.identity, &driver.snapshots, synced)?;
        // From here on the data is what the database says, on this boot.
        let settled = note_open(dir, &db, synced.map(|_| snapshots.seq()))?;
        let inner = Inner {
            dir: dir.to_owned(),
            options,
            driver,
            db,
            content,
            snapshots,
            work: maintenance::Queue::new(settled),
            room: Default::default(),
            loan: Mutex::new(loan),
            _lock: lock,
        };
        let inner = Arc::new(inner);
        maintenance::sweep(&inner, waste);
        snapshot::settle_all(&inner)?;
        let guard = maintenance::start(Arc::clone(&inner))?;
        Ok(Store { inner, _maintenance: Arc::new(guard) })
    }
}

/// Makes a directory that nobody else can enter, an existing one included: what lies in it are programs with set-uid bits,
/// nodes of devices and caches of builds, each readable by whoever its mode says.
fn own_dir(dir: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(dir);
    made.map_err(|e| Error::io("create directory", dir, e))?;
    let mode = std::fs::metadata(dir).map_err(|e| Error::io("stat", dir, e))?.mode();
    if mode & 0o777 == PRIVATE {
        return Ok(());
    }
    match rustix::fs::chmod(dir, Mode::from_raw_mode(PRIVATE)) {
        Ok(()) => Ok(()),
        // Somebody else's, who lets us write to it: a volume of a pod that belongs to a group. Or a file system without modes.
        Err(Errno::PERM | Errno::NOTSUP | Errno::NOSYS) => {
            tracing::warn!("the state directory cannot be closed to others, who may be able to read what builds make");
            Ok(())
        }
        Err(e) => Err(Error::io("set the mode of", dir, e)),
    }
}

/// The mode of the state directory.
const PRIVATE: u32 = 0o700;

/// Opens the database. The second answer is set after a machine crash (or on another machine): the place in the order of
/// changes up to which data is on the disk.
fn open_database(dir: &Path) -> Result<(Db, Option<i64>)> {
    let marker = dir.join("boot");
    let crashed = match std::fs::read_to_string(&marker) {
        Ok(boot) => boot.trim() != boot_id(),
        Err(_) => dir.join("metadata.db").exists(),
    };
    let db = Db::open(dir, crashed)?;
    if !crashed {
        return Ok((db, None));
    }
    let synced = read_synced(&db)?;
    Ok((db, Some(synced)))
}

fn read_synced(db: &Db) -> Result<i64> {
    db.read("read", |db| {
        let row = db.query_row("SELECT value FROM state WHERE name = 'synced'", [], |row| row.get(0));
        Ok(row.optional()?.unwrap_or(0))
    })
}

/// After a crash all that is left was verified, so it counts as synced; only then is this boot noted, so that a kill
/// in between means verifying again. Answers up to where data is synced.
fn note_open(dir: &Path, db: &Db, verified: Option<i64>) -> Result<i64> {
    if let Some(seq) = verified {
        db.write("write to", |db| {
            db.execute("INSERT OR REPLACE INTO state (name, value) VALUES ('synced', ?1)", [seq]).map(drop)
        })?;
    }
    let marker = dir.join("boot");
    let boot = boot_id();
    if std::fs::read_to_string(&marker).unwrap_or_default() != boot {
        std::fs::write(&marker, boot).map_err(|e| Error::io("write", &marker, e))?;
    }
    read_synced(db)
}

/// Changes whenever the machine starts.
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Picks the driver, and the folder that belongs to it and to the id map.
fn choose(dir: &Path, db: &Db, options: &OpenOptions) -> Result<DriverChoice> {
    let (driver, reason, volatile) = match options.driver {
        Driver::Copy => (Driver::Copy, "it was asked for".to_owned(), false),
        wanted => match probe(dir, options.userxattr) {
            Ok(volatile) => {
                let without = if volatile { "" } else { " (but not without syncs)" };
                (Driver::Overlay, format!("an overlay can be mounted and written{without}"), volatile)
            }
            // It says nothing about overlays, and with another driver nothing that is here would be found.
            Err(Refusal { why, no_space: true }) => {
                let full = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
                return Err(Error::io("try an overlay", dir, full));
            }
            Err(Refusal { why, .. }) if wanted == Driver::Overlay => {
                return Err(Error::Driver { driver: "overlay", dir: dir.to_owned(), reason: why });
            }
            Err(Refusal { why, .. }) => (Driver::Copy, format!("overlay does not work: {why}"), false),
        },
    };
    let userxattr = options.userxattr && driver == Driver::Overlay;
    let marks = if userxattr { "+userxattr" } else { "" };
    let shadow = if options.shadow { "+shadow" } else { "" };
    let name = format!("v{VERSION} {}{marks}{shadow} {}", driver.as_str(), options.identity);
    let identity: i64 = db.write("write to", |db| {
        db.execute("INSERT OR IGNORE INTO identity (name) VALUES (?1)", [&name])?;
        db.query_row("SELECT id FROM identity WHERE name = ?1", [&name], |row| row.get(0))
    })?;
    db.keep(|heirloom| heirloom.identity = Some((identity, name.clone())));
    let snapshots = dir.join("snapshots").join(identity.to_string());
    let trash = snapshots.join("trash");
    std::fs::create_dir_all(&trash).map_err(|e| Error::io("create directory", &trash, e))?;
    let label = snapshots.join("identity");
    let known = std::fs::read_to_string(&label).unwrap_or_default();
    if known.trim_end_matches('\n') != name {
        // The numbers of another database (a damaged one that was put aside): its trees have no records any more.
        if !known.is_empty() {
            let old = dir.join("snapshots").join(format!("old-{}", std::process::id()));
            std::fs::rename(&snapshots, &old).map_err(|e| Error::io("put aside", &snapshots, e))?;
            std::fs::create_dir_all(&trash).map_err(|e| Error::io("create directory", &trash, e))?;
            let to = trash.join("0");
            std::fs::rename(&old, &to).map_err(|e| Error::io("discard", &old, e))?;
        }
        std::fs::write(&label, format!("{name}\n")).map_err(|e| Error::io("write", &label, e))?;
    }
    Ok(DriverChoice { driver, reason, userxattr, volatile, identity, snapshots })
}

/// Why an overlay does not work.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    why: String,
    /// The disk is full.
    no_space: bool,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), no_space: false }
    }

    /// What could not be done, and the kernel's answer.
    fn at(doing: &'static str) -> impl Fn(std::io::Error) -> Refusal {
        move |e| {
            let no_space = matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
            Refusal { why: format!("cannot {doing}: {e}"), no_space }
        }
    }
}

/// Tries an overlay as steps use it. Answers whether it works `volatile`, or what does not work.
fn probe(dir: &Path, userxattr: bool) -> std::result::Result<bool, Refusal> {
    let scratch = dir.join("probe");
    let _ = tree::remove_tree(&scratch);
    let tried = try_overlay(&scratch, userxattr, true).map(|()| true).or_else(|first| {
        let _ = tree::remove_tree(&scratch);
        try_overlay(&scratch, userxattr, false).map(|()| false).map_err(|second| match first == second {
            true => first,
            false => Refusal { why: format!("{} (volatile: {})", second.why, first.why), ..second },
        })
    });
    let _ = tree::remove_tree(&scratch);
    tried
}

fn try_overlay(scratch: &Path, userxattr: bool, volatile: bool) -> std::result::Result<(), Refusal> {
    let text = Refusal::at;
    let part = |name: &str| scratch.join(name);
    for name in ["lower/gone", "bottom/dir", "upper", "work"] {
        std::fs::create_dir_all(part(name)).map_err(text("create directories"))?;
    }
    std::fs::write(part("bottom/file"), "x").map_err(text("write a file"))?;
    let lower = vec![part("lower"), part("bottom")];
    let view = FsView::Overlay(Overlay { lower, upper: Some((part("upper"), part("work"))), userxattr, volatile });
    let mounted = Mounted::new(&view, scratch).map_err(|e| {
        let cause = std::error::Error::source(&e).map(|cause| format!(": {cause}")).unwrap_or_default();
        let no_space = e
            .raw_os_error()
            .is_some_and(|code| [Errno::NOSPC.raw_os_error(), Errno::DQUOT.raw_os_error()].contains(&code));
        Refusal { why: format!("{e}{cause}"), no_space }
    })?;
    let wrote = std::fs::remove_file(mounted.path().join("file"))
        .and_then(|()| std::fs::remove_dir(mounted.path().join("dir")))
        .and_then(|()| std::fs::create_dir(mounted.path().join("dir")));
    mounted.unmount().map_err(|e| Refusal::new(e.to_string()))?;
    wrote.map_err(text("write to an overlay"))?;
    let stat = rustix::fs::statat(CWD, part("upper/file"), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| text("find a whiteout")(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != 0 {
        return Err(Refusal::new("a removed file is not kept as a whiteout"));
    }
    let key = if userxattr { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
    match sys::xattr::get(&part("upper/dir"), key) {
        Ok(Some(value)) if value == b"y" => Ok(()),
        Ok(_) => Err(Refusal::new("a replaced directory is not marked opaque")),
        Err(e) => Err(text("read overlay's attributes")(e)),
    }
}
