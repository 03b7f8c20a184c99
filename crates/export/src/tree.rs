//! `type=tar` and `type=local`: the files of a result, and where streams and directories go.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base::report::Task;
use base::{Fault, Kind};
use files::untar::{self, Times};
use image::layer::{Entry, EntryKind, tar};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use session::others::{make_output_dir, remove_others};
use session::{Output, RemoteStream};
use store::TarSource;

use crate::layer::EntryMap;
use crate::{BuildResult, Context, PlatformResult, joined, offer, output_fault, store_fault};

pub(crate) async fn write(
    context: &Context,
    result: &BuildResult,
    local: bool,
    epoch: Option<i64>,
    platform_split: Option<bool>,
    output: Output,
) -> Result<BTreeMap<String, String>, Fault> {
    let several = result.multi || result.platforms.len() > 1;
    // Of one platform a tar has none, as in BuildKit.
    let split = platform_split.unwrap_or(several) && (local || several);
    let result = &BuildResult { platforms: distinct(&result.platforms, split)?, multi: several };
    for tree in result.platforms.iter().filter_map(|p| p.tree.as_ref()) {
        context.lazy.fill(tree).await?;
    }
    if !split && result.platforms.len() > 1 {
        check_apart(context, &result.platforms).await?;
    }
    if let (true, Output::Remote(remote)) = (local, &output) {
        return offer::send(context, result, epoch, split, &**remote).await;
    }
    let platforms: Vec<(Vec<u8>, PlatformResult)> = result
        .platforms
        .iter()
        .map(|p| (if split { format!("{}/", folder(p)).into_bytes() } else { Vec::new() }, p.clone()))
        .collect();
    let (store, cancel) = (context.store.clone(), context.cancel.clone());
    // What a directory holds in the end, where it is to hold nothing else.
    let kept = matches!(output, Output::Mirror(_)).then(|| Arc::new(Mutex::new(HashSet::new())));
    let keep = {
        let kept = kept.clone();
        move |path: &[u8]| {
            if let Some(kept) = &kept {
                let path = PathBuf::from(OsStr::from_bytes(path));
                kept.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
            }
        }
    };
    let write_all = move |sink: &mut dyn Write| -> io::Result<()> {
        let mut tar = if local { tar::Writer::with_nanoseconds(sink) } else { tar::Writer::new(sink) };
        // What is laid over each other has each directory once.
        let is_laid = platforms.len() > 1 && platforms.iter().all(|(prefix, _)| prefix.is_empty());
        let dirs = RefCell::new(HashSet::new());
        let wanted = |change: &store::Change| {
            let kind = change.metadata.as_ref().map(|metadata| &metadata.kind);
            let is_dir = matches!(kind, Some(store::FileKind::Directory));
            !is_laid || !is_dir || dirs.borrow_mut().insert(change.path.clone())
        };
        for (prefix, platform) in &platforms {
            if !prefix.is_empty() {
                let path = prefix[..prefix.len() - 1].to_vec();
                let mut entry = Entry::new(path, EntryKind::Directory, 0o755);
                epoch.map_or(EntryMap::Keep, EntryMap::Set).apply(&mut entry);
                keep(&entry.path);
                tar.append(&entry, io::empty()).map_err(io::Error::other)?;
            }
            let id = platform.tree.as_ref().map(|tree| tree.id());
            // Unlike in layers, older times change too, as in BuildKit's `type=local` and `type=tar`.
            let times = epoch.map_or(EntryMap::Keep, EntryMap::Set);
            let map = |entry: &mut Entry| {
                times.apply(entry);
                entry.path.splice(0..0, prefix.iter().copied());
                keep(&entry.path);
                if let EntryKind::HardLink { target } = &mut entry.kind {
                    target.splice(0..0, prefix.iter().copied());
                }
            };
            let snapshots = store.snapshots();
            snapshots.append_tree(id.as_ref(), &mut tar, &cancel, wanted, map).map_err(io::Error::other)?;
        }
        tar.finish().map(drop).map_err(io::Error::other)
    };
    match (local, output) {
        (false, output) => {
            let task = context.tasks.start("sending tarball", 0);
            write_stream(context, Target::of(output, "one tar", &BTreeMap::new()).await?, task, write_all).await?;
        }
        (true, Output::Directory(dir) | Output::Mirror(dir)) => {
            let _task = context.tasks.start("copying files", 0);
            let what = format!("writing to `{}`", dir.display());
            let written = move || {
                copy_out(&dir, write_all)?;
                let Some(kept) = kept else { return Ok(()) };
                let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                remove_others(&dir, &kept).map_err(|error| output_fault(&dir, error))
            };
            context.blocking(what, written).await?;
        }
        (true, _) => return Err(no_directory("type=local")),
    }
    Ok(BTreeMap::new())
}

pub(crate) fn no_directory(what: &str) -> Fault {
    Fault::user(format!("output {what} needs a directory to write to")).hint("name it with `dest=<directory>`")
}

/// The tree is streamed as a tar from one thread and unpacked by another: one way of reading snapshots, and one of
/// writing files, for all drivers and isolation levels.
fn copy_out(dir: &Path, write_all: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send) -> Result<(), Fault> {
    let failed = |e: io::Error| output_fault(dir, e);
    let made = make_output_dir(dir).map_err(failed)?;
    let (reader, mut writer) = io::pipe().map_err(failed)?;
    let copied = std::thread::scope(|scope| {
        let write = move || write_all(&mut writer);
        let writing = std::thread::Builder::new().spawn_scoped(scope, write).map_err(failed)?;
        let unpacked = unpack_into(dir, reader);
        let written = writing.join().unwrap_or_else(|_| Err(io::Error::other("reading the result stopped")));
        unpacked.map_err(failed)?;
        written.map_err(|e| Fault::because(Kind::Environment, "cannot read the result", e))
    });
    if copied.is_err() {
        made.discard();
    }
    copied
}

/// Unpacks a tar that we wrote ourselves into a directory of the user.
pub(crate) fn unpack_into(dir: &Path, mut tar: impl Read) -> io::Result<()> {
    let root = untar::open_root(dir)?;
    let mut source = TarSource(tar::Reader::new(&mut tar));
    // Files belong to whoever runs the build, as BuildKit's clients write them: 0 is that user in every namespace.
    let options = untar::Options { owner: Some((0, 0)), times: Times::Exact, ..untar::Options::archive() };
    untar::unpack(&root, &mut source, &options).map_err(io::Error::other)?;
    io::copy(&mut tar, &mut io::sink()).map(drop)
}

/// What the directory of a platform is called. Where nobody said which it is, it is the machine's.
pub(crate) fn folder(platform: &PlatformResult) -> String {
    let id = match platform.id.as_str() {
        "" => platform.platform.clone().unwrap_or_else(base::Platform::host).to_string(),
        id => id.to_owned(),
    };
    id.replace('/', "_")
}

/// Each platform once, however often and by whatever names it was asked for.
fn distinct(platforms: &[PlatformResult], split: bool) -> Result<Vec<PlatformResult>, Fault> {
    let mut distinct: Vec<PlatformResult> = Vec::new();
    for platform in platforms {
        match distinct.iter().find(|known| folder(known) == folder(platform)) {
            Some(known) if known.id == platform.id => {}
            Some(known) if split => {
                let (one, other, dir) = (&known.id, &platform.id, folder(known));
                return Err(Fault::user(format!("platforms `{one}` and `{other}` have one directory: `{dir}`")));
            }
            _ => distinct.push(platform.clone()),
        }
    }
    Ok(distinct)
}

/// Trees that are laid over each other share directories and nothing else.
async fn check_apart(context: &Context, platforms: &[PlatformResult]) -> Result<(), Fault> {
    let (platforms, store, cancel) = (platforms.to_vec(), context.store.clone(), context.cancel.clone());
    let work = move || {
        let failed = |e| store_fault("cannot read the result", e);
        let mut places: HashMap<Vec<u8>, (usize, bool)> = HashMap::new();
        for (at, platform) in platforms.iter().enumerate() {
            let id = platform.tree.as_ref().map(|tree| tree.id());
            let mut clash = None;
            let visit = |change: &store::Change| -> Result<(), store::Error> {
                cancel.check()?;
                let kind = change.metadata.as_ref().map(|metadata| &metadata.kind);
                let is_dir = matches!(kind, Some(store::FileKind::Directory));
                match places.insert(change.path.clone(), (at, is_dir)) {
                    Some((other, was_dir)) if other != at && !(is_dir && was_dir) => {
                        clash.get_or_insert((other, change.path.clone()));
                    }
                    _ => {}
                }
                Ok(())
            };
            store.snapshots().changes_between(None, id.as_ref(), visit).map_err(failed)?;
            if let Some((other, path)) = clash {
                let (path, from, with) = (String::from_utf8_lossy(&path), &platforms[other].id, &platform.id);
                let text = format!("cannot overwrite {path} from {from} with {with} when split option is disabled");
                return Err(Fault::user(text).hint("leave out `platform-split=false`"));
            }
        }
        Ok(())
    };
    context.blocking("comparing the files of platforms".to_owned(), work).await
}

/// Where one stream goes.
pub(crate) enum Target {
    File(PathBuf),
    Stdout,
    Remote(Box<dyn RemoteStream>),
}

impl Target {
    /// `about` is what the client is told of it.
    pub(crate) async fn of(output: Output, what: &str, about: &BTreeMap<String, String>) -> Result<Target, Fault> {
        match output {
            Output::Remote(remote) => remote.stream(about).await.map(Target::Remote),
            Output::File(path) => Ok(Target::File(path)),
            Output::Stdout => Ok(Target::Stdout),
            Output::Directory(dir) | Output::Mirror(dir) => {
                Err(Fault::user(format!("`{}` is a directory, but {what} is written", dir.display())))
            }
            Output::Store(_) | Output::None => {
                Err(Fault::user(format!("nothing says where {what} goes"))
                    .hint("name a file with `dest=<file>`, or `-`"))
            }
        }
    }
}

/// Writes a stream; a file appears under its name when it is whole.
pub(crate) async fn write_stream(
    context: &Context,
    target: Target,
    task: Task,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> Result<(), Fault> {
    match target {
        Target::Remote(stream) => {
            let work = move || {
                let mut sink = Counting { inner: stream, task, written: 0 };
                match write(&mut sink) {
                    Err(_) if sink.inner.is_unwanted() => Ok(()),
                    written => written.and_then(|()| sink.inner.finish()),
                }
            };
            let written = context.blocking("sending an archive to the client".to_owned(), work).await;
            // What says itself what failed needs no more words.
            written.map_err(|error| match error.downcast::<Fault>() {
                Ok(fault) => fault,
                Err(error) => Fault::because(Kind::Environment, "cannot send the result to the client", error),
            })
        }
        // Nobody may be at the other end of a pipe: such a thread is not waited for when the export is cancelled.
        Target::Stdout => {
            let work = move || {
                let stdout = io::stdout().lock();
                let mut sink = Counting { inner: stdout, task, written: 0 };
                write(&mut sink).and_then(|()| sink.flush())
            };
            let written = joined(tokio::task::spawn_blocking(work)).await;
            written.map_err(|e| Fault::because(Kind::Environment, "cannot write to standard output", e))
        }
        Target::File(path) if path.is_symlink() || path.exists() && !path.is_file() => {
            let (device, failed) = (path.clone(), move |e| output_fault(&path, e));
            joined(tokio::task::spawn_blocking(move || write_device(&device, task, write))).await.map_err(failed)
        }
        Target::File(path) => {
            let what = format!("writing `{}`", path.display());
            context.blocking(what, move || write_file(&path, task, write).map_err(|e| output_fault(&path, e))).await
        }
    }
}

/// Devices, pipes and what links lead to (`/dev/stdout`) are written to as they are; a rename would replace them.
fn write_device(path: &Path, task: Task, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).open(path)?;
    write_to(&file, task, write)
}

fn write_file(path: &Path, task: Task, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it names no file"))?;
    let mut partial = name.to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(partial);
    let unnamed = unnamed_file(path);
    let named = unnamed.is_none();
    let file = match unnamed.map_or_else(|| new_file(&partial), Ok) {
        // The file may be ours where its directory is not.
        Err(error) if is_refusal(&error) => {
            let file = in_place(path).map_err(|_| error)?;
            file.set_len(0)?;
            return write_to(&file, task, write).map_err(|error| emptied(&file, error, "what was there is lost"));
        }
        file => file?,
    };
    let named = write_to(&file, task, write).and_then(|()| match named {
        true => Ok(Named::Partial),
        false => name_file(&file, path, &partial, link),
    });
    match &named {
        Ok(Named::Whole) => Ok(()),
        Ok(Named::Partial) => give_name(&file, &partial, path, |from, to| std::fs::rename(from, to)),
        Ok(Named::Twin(twin)) => give_name(twin, &partial, path, |from, to| std::fs::rename(from, to)),
        Err(_) => {
            // The first error is the one to tell.
            let _ = std::fs::remove_file(&partial);
            named.map(drop)
        }
    }
}

fn write_to(file: &File, task: Task, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut sink = Counting { inner: io::BufWriter::with_capacity(1 << 20, file), task, written: 0 };
    write(&mut sink).and_then(|()| sink.flush())
}

/// Replaces `path` by the file, which is `partial`; `rename` does it. `partial` is gone then, unless nothing else of the
/// file is left.
fn give_name(
    file: &File,
    partial: &Path,
    path: &Path,
    rename: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    if let Ok(old) = std::fs::symlink_metadata(path)
        && is_trusted(path, &old)
    {
        inherit(file, &old);
    }
    let Err(error) = rename(partial, path) else { return Ok(()) };
    // What is there cannot be replaced, but may take it: it is mounted into a container.
    let old = if is_refusal(&error) { in_place(path).ok() } else { None };
    let Some(old) = old else {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(partial);
        return Err(error);
    };
    let copied = old.set_len(0).and_then(|()| copy_whole(file, &old));
    copied.map_err(|error| emptied(&old, error, &format!("the result lies in `{}`", partial.display())))?;
    std::fs::remove_file(partial)
}

/// A half of a result must not be taken for the whole.
fn emptied(file: &File, error: io::Error, then: &str) -> io::Error {
    let state = if file.set_len(0).is_ok() { "it is empty now" } else { "it is not whole" };
    io::Error::new(error.kind(), format!("{error}; {state}, and {then}"))
}

/// Opens a file that exists. Nothing is made, so that the kernel lets us where a directory is not ours.
fn in_place(path: &Path) -> io::Result<File> {
    let file = File::from(rustix::fs::open(path, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    match is_trusted(path, &file.metadata()?) {
        true => Ok(file),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Whether what is there was put there by somebody who may say what becomes of `path`: in directories such as /tmp anybody
/// makes files, and waits for others to write into them (proc(5), `protected_regular`).
fn is_trusted(path: &Path, old: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    let Ok(dir) = std::fs::metadata(directory(path)) else { return false };
    let us = rustix::process::geteuid().as_raw();
    let known = known_id(old.uid());
    dir.mode() & STICKY == 0 || known.is_some_and(|owner| owner == us || owner == dir.uid())
}

/// The id, unless it stands for all that do not exist in this user namespace.
fn known_id(id: u32) -> Option<u32> {
    const NOBODY: u32 = 65534;
    (id != NOBODY || sys::userns::in_initial_namespace()).then_some(id)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A leftover of that name goes; what others put there is not written through.
fn new_file(path: &Path) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Whether nothing may be made or replaced there. A full disk is another thing: what is there is worth more than a half of
/// the new.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

fn copy_whole(mut from: &File, mut to: &File) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    io::copy(&mut from, &mut to).map(drop)
}

/// A file without a name, of which nothing is left should we be killed; not every file system has them.
fn unnamed_file(path: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory(path), flags, Mode::from_raw_mode(0o666)).ok().map(File::from)
}

/// How an unnamed file got a name.
#[derive(Debug)]
enum Named {
    /// Its own.
    Whole,
    /// A file of the name that it is to have exists: it is `partial`.
    Partial,
    /// It cannot be named here: a copy of it is `partial`.
    Twin(File),
}

/// Names the file: `path`, or, where that exists, `partial`. `link` does it.
fn name_file(
    file: &File,
    path: &Path,
    partial: &Path,
    link: impl Fn(&File, &Path) -> rustix::io::Result<()>,
) -> io::Result<Named> {
    match link(file, path) {
        Ok(()) => return Ok(Named::Whole),
        Err(Errno::EXIST) => {
            let _ = std::fs::remove_file(partial);
            if link(file, partial).is_ok() {
                return Ok(Named::Partial);
            }
        }
        // Without /proc, or where the file system has no links.
        Err(_) => {}
    }
    let twin = new_file(partial)?;
    copy_whole(file, &twin)?;
    Ok(Named::Twin(twin))
}

fn link(file: &File, path: &Path) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, sys::mount::fd_path(file.as_fd()), CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Gives the file the owner and mode of the one that it replaces, as far as we may: whoever writes into a file keeps them.
fn inherit(file: &File, old: &Metadata) {
    // An owner that is not ours to give may still have a group that is.
    let _ = fchown(file, known_id(old.uid()), known_id(old.gid())).or_else(|_| fchown(file, None, known_id(old.gid())));
    let _ = file.set_permissions(Permissions::from_mode(old.mode() & 0o777));
}

/// Shows how much was written.
struct Counting<W> {
    inner: W,
    task: Task,
    written: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.written += n as u64;
        self.task.at(self.written);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_file_gets_its_name_where_links_are_refused() {
        let dir = tempfile::tempdir().expect("scratch");
        let (path, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        let source = dir.path().join("source");
        std::fs::write(&source, "content").expect("written");
        let file = File::options().read(true).write(true).open(&source).expect("there");
        for errno in [Errno::OPNOTSUPP, Errno::PERM, Errno::NOENT, Errno::EXIST] {
            let named = name_file(&file, &path, &partial, |_, _| Err(errno)).expect("named");
            assert!(matches!(named, Named::Twin(_)), "{errno}: {named:?}");
            assert_eq!(std::fs::read(&partial).expect("there"), b"content", "{errno}");
        }
        let named = name_file(&file, &path, &partial, link).expect("named");
        assert!(matches!(named, Named::Whole), "{named:?}");
        let named = name_file(&file, &path, &partial, link).expect("named");
        assert!(matches!(named, Named::Partial), "{named:?}");
    }

    #[test]
    fn what_is_replaced_leaves_its_owner_and_mode() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("out");
        let owner = rustix::process::geteuid().is_root().then_some(12345);
        let shown = || {
            let meta = std::fs::metadata(&path).expect("there");
            (meta.mode() & 0o7777, meta.uid(), meta.gid(), std::fs::read(&path).expect("readable"))
        };
        std::fs::write(&path, "old").expect("written");
        std::os::unix::fs::chown(&path, owner, owner).expect("ours");
        // A set-user-id bit goes, as when anybody else writes.
        std::fs::set_permissions(&path, Permissions::from_mode(0o4640)).expect("ours");
        let (_, uid, gid, _) = shown();
        let task = base::report::Tasks::new(Arc::new(|_| {}), base::Digest::of("x")).start("x", 0);
        write_file(&path, task, |sink| sink.write_all(b"new")).expect("written");
        assert_eq!(shown(), (0o640, uid, gid, b"new".to_vec()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    fn written(path: &Path) -> io::Result<()> {
        let task = base::report::Tasks::new(Arc::new(|_| {}), base::Digest::of("x")).start("x", 0);
        write_file(path, task, |sink| sink.write_all(b"new"))
    }

    #[test]
    fn privileged_a_stranger_in_a_sticky_directory_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("scratch");
        std::os::unix::fs::chown(dir.path(), Some(2000), None).expect("ours");
        let path = dir.path().join("out");
        // Whose file, in what directory, whose then.
        for (owner, mode, then) in [(1000, 0o1777, 0), (0, 0o1777, 0), (2000, 0o1777, 2000), (1000, 0o777, 1000)] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).expect("ours");
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, "old").expect("written");
            std::os::unix::fs::chown(&path, Some(owner), None).expect("ours");
            let is_trusted = owner == then;
            assert_eq!(in_place(&path).is_ok(), is_trusted, "{owner} {mode:o}");
            written(&path).expect("written");
            assert_eq!(std::fs::metadata(&path).expect("there").uid(), then, "{owner} {mode:o}");
            assert_eq!(std::fs::read(&path).expect("there"), b"new", "{owner} {mode:o}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_written_to_only_where_replacing_is_refused() {
        let dir = tempfile::tempdir().expect("scratch");
        let (path, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
        let refused = [Errno::ACCESS, Errno::PERM, Errno::ROFS, Errno::BUSY];
        let broken = [Errno::NOSPC, Errno::DQUOT, Errno::IO];
        for errno in refused.into_iter().chain(broken) {
            std::fs::write(&path, "old").expect("written");
            std::fs::write(&partial, "new").expect("written");
            let file = File::open(&partial).expect("there");
            let given = give_name(&file, &partial, &path, |_, _| Err(errno.into()));
            let is_refused = refused.contains(&errno);
            assert_eq!(given.is_ok(), is_refused, "{errno}");
            let expected: &[u8] = if is_refused { b"new" } else { b"old" };
            assert_eq!(std::fs::read(&path).expect("there"), expected, "{errno}");
            assert!(!partial.exists(), "{errno}");
        }
        // The copy fails: this file cannot be read.
        std::fs::write(&partial, "new").expect("written");
        let file = File::options().write(true).open(&partial).expect("there");
        let error = give_name(&file, &partial, &path, |_, _| Err(Errno::BUSY.into())).expect_err("not copied");
        let said = format!("; it is empty now, and the result lies in `{}`", partial.display());
        assert!(error.to_string().ends_with(&said), "{error}");
        assert_eq!(std::fs::read(&path).expect("there"), b"");
        assert_eq!(std::fs::read(&partial).expect("there"), b"new");
    }
}
