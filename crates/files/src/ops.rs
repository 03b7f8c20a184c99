//! The small actions of a file op: mkdir, mkfile, symlink, rm.

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sys::path::{Links, lstat_at};

use crate::copy::{Source, resolve_wildcards};
use crate::error::Error;
use crate::lexical;
use crate::owner::Owner;
use crate::stat::Time;
use crate::target::{Target, Wanted, shown};

/// Makes a directory.
#[derive(Clone, Debug, Default)]
pub struct Mkdir {
    /// Where.
    pub path: PathBuf,
    /// Nine permission bits.
    pub mode: u32,
    /// Also make those above it; without this, an existing directory is left alone.
    pub make_parents: bool,
    /// Who owns what is made.
    pub owner: Option<Owner>,
    /// Its times.
    pub timestamp: Option<Time>,
}

/// Writes a file.
#[derive(Clone, Debug, Default)]
pub struct Mkfile {
    /// Where; links are followed.
    pub path: PathBuf,
    /// Nine permission bits, for a file that is not there yet.
    pub mode: u32,
    /// What it holds afterwards.
    pub data: Vec<u8>,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// Its times.
    pub timestamp: Option<Time>,
}

/// Makes a symbolic link.
#[derive(Clone, Debug, Default)]
pub struct Symlink {
    /// Where it points; any text.
    pub old_path: PathBuf,
    /// Where it lies.
    pub new_path: PathBuf,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// Its times.
    pub timestamp: Option<Time>,
}

/// Removes files and directories.
#[derive(Clone, Debug, Default)]
pub struct Rm {
    /// What; a link at the end is removed itself.
    pub path: PathBuf,
    /// The path may hold wildcards.
    pub allow_wildcard: bool,
    /// Nothing there is fine.
    pub allow_not_found: bool,
}

/// Carries out [`Mkdir`].
pub fn mkdir(target: &Target<'_>, action: &Mkdir) -> Result<(), Error> {
    let path = target.resolve(lexical::to_bytes(&action.path), Links::Follow)?;
    let times = action.timestamp.map(|time| (time, time));
    let wanted = Wanted { owner: action.owner, mode: Some(action.mode & 0o777), times };
    if action.make_parents {
        // What is made inside a directory changes its time, so the outer ones get theirs last.
        let made = target.make_dirs(&path, &wanted)?;
        return set_times_again(target, &made, action.timestamp);
    }
    if path.is_empty() {
        return Ok(());
    }
    let (parent, name) = lexical::split(&path);
    let parent = target.open_dir(parent)?;
    let name = std::ffi::OsStr::from_bytes(name);
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(action.mode & 0o777)) {
        Ok(()) => target.finish_new_dir(&parent, name, &path, &wanted),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::io("create directory", shown(&path), errno)),
    }
}

/// Carries out [`Mkfile`].
pub fn mkfile(target: &Target<'_>, action: &Mkfile) -> Result<(), Error> {
    let path = target.resolve(lexical::to_bytes(&action.path), Links::Follow)?;
    let failed = |call, error: std::io::Error| Error::io(call, shown(&path), error);
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |flags, mode| target.root.open_at(lexical::to_path(&path), flags, mode, Links::Refuse);
    let mode = action.mode & 0o777;
    let (mut file, new) = match open(flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(mode)) {
        Ok(fd) => (File::from(fd), true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            (File::from(open(flags, Mode::empty()).map_err(|error| failed("write", error))?), false)
        }
        Err(error) => return Err(failed("create", error)),
    };
    file.write_all(&action.data).map_err(|error| failed("write", error))?;
    let times = action.timestamp.map(|time| (time, time));
    let wanted = Wanted { owner: action.owner, mode: new.then_some(mode), times };
    target.set_on_path_fd(&file.into(), &path, &wanted)
}

/// Carries out [`Symlink`].
pub fn symlink(target: &Target<'_>, action: &Symlink) -> Result<(), Error> {
    let path = target.resolve(lexical::to_bytes(&action.new_path), Links::Follow)?;
    let failed = |errno: Errno| Error::io("create link", shown(&path), errno);
    if path.is_empty() {
        return Err(failed(Errno::EXIST));
    }
    let (parent, name) = lexical::split(&path);
    let parent = target.open_dir(parent)?;
    let name = std::ffi::OsStr::from_bytes(name);
    rustix::fs::symlinkat(&action.old_path, &parent, name).map_err(failed)?;
    let times = action.timestamp.map(|time| (time, time));
    target.finish_link(&parent, name, &path, &Wanted { owner: action.owner, mode: None, times })
}

/// Carries out [`Rm`].
pub fn rm(target: &Target<'_>, action: &Rm) -> Result<(), Error> {
    if !action.allow_wildcard {
        return remove(target, lexical::to_bytes(&action.path), action.allow_not_found);
    }
    let source = Source::snapshot(target.root);
    for path in resolve_wildcards(&source, lexical::to_bytes(&action.path), false)? {
        remove(target, &path, action.allow_not_found)?;
    }
    Ok(())
}

fn remove(target: &Target<'_>, path: &[u8], allow_not_found: bool) -> Result<(), Error> {
    let path = lexical::absolute(path);
    if path == b"/" {
        return Err(Error::EmptyPath);
    }
    let gone = |error: std::io::Error| -> Result<(), Error> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        match error.kind() {
            NotFound | NotADirectory if allow_not_found => Ok(()),
            _ => Err(Error::io("remove", lexical::to_path(&path), error)),
        }
    };
    let (dir, name) = match target.root.parent(Path::new(lexical::to_path(&path)), Links::Follow) {
        Ok(found) => found,
        Err(error) => return gone(error),
    };
    if let Err(error) = lstat_at(&dir, &name) {
        return gone(error);
    }
    target.remove_all(&dir, &name, &path)
}

/// Gives directories that were made on the way their time, innermost first.
pub(crate) fn set_times_again(target: &Target<'_>, made: &[Vec<u8>], timestamp: Option<Time>) -> Result<(), Error> {
    let Some(time) = timestamp else { return Ok(()) };
    for path in made.iter().rev() {
        let dir = target.open_dir(path)?;
        target.set_on_path_fd(&dir, path, &Wanted { times: Some((time, time)), ..Wanted::default() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
