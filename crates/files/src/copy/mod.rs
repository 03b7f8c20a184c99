//! Copying into a tree: what `COPY` and `ADD` of local files come down to.
//!
//! The rules of where things land are fsutil's `copy` (as BuildKit's file op calls it):
//!
//! | source | destination | lands at |
//! |---|---|---|
//! | file | missing, or a file | the destination itself |
//! | file | directory | in it, under its own name |
//! | directory, contents only | anything | its entries go into the destination |
//! | directory itself | directory | in it, under its own name |
//! | directory itself | missing | the destination itself |
//!
//! Links in the source are copied as links, but the source path may be followed through its last one. Links in the
//! destination path are followed inside the target; a link in the way of a file is replaced, one in the way of a
//! directory is an error, unless existing paths are always replaced. Directories merge; one that was there keeps its
//! owner and mode only at the top. Hard links between copied files stay hard links.
//!
//! A [`Source`] is a snapshot, read as it is, or the user's directory seen through the [`Tree`] of a local source: then
//! only what the tree holds exists, owners are root, and each file must still be what the tree saw. If it is not,
//! the copy fails with [`Error::Changed`], and the caller looks at the directory anew.
//!
//! Two differences from upstream, both for layers that come out the same each time: directories that include patterns
//! bring in late get their source's time like all others, and the text after a link's `..` is looked up as the kernel
//! would.

mod content;
mod file;
mod plan;
mod queue;
mod source;

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use base::Cancel;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sys::path::{Links, Root};

use crate::checksum::{FileHeader, Flavor};
use crate::error::Error;
use crate::lexical;
use crate::mode::ModeChange;
use crate::ops::set_times_again;
use crate::owner::Owner;
use crate::pattern::Matcher;
use crate::stat::{Kind, Stat, Time, allocated};
use crate::target::{Target, Wanted, shown};

pub use source::{Source, resolve_wildcards};

/// A copy, as an op states it.
#[derive(Clone, Debug, Default)]
pub struct Copy {
    /// What; may end in `/` or `/.`.
    pub src: PathBuf,
    /// Where to; a trailing slash makes it a directory.
    pub dest: PathBuf,
    /// Who owns the copies; none keeps the owners of the source.
    pub owner: Option<Owner>,
    /// What becomes of modes.
    pub mode: ModeChange,
    /// The time of all that is copied or made; none keeps the times of the source.
    pub timestamp: Option<Time>,
    /// Follow the link that the source is.
    pub follow_symlink: bool,
    /// Of a directory, copy what is in it.
    pub dir_copy_contents: bool,
    /// Unpack a source that is an archive ([`CopyEnv::unpack`]).
    pub attempt_unpack: bool,
    /// Make directories that the destination lacks; else they must be there.
    pub create_dest_path: bool,
    /// The source may hold wildcards.
    pub allow_wildcard: bool,
    /// A wildcard that matches nothing is fine.
    pub allow_empty_wildcard: bool,
    /// Only what matches, relative to the source.
    pub include: Vec<String>,
    /// Nothing that matches.
    pub exclude: Vec<String>,
    /// Replace what is in the way, whatever it is; directories still merge.
    pub always_replace: bool,
}

/// Unpacks archives that `ADD` copies.
pub trait Unpack: Sync {
    /// Whether a regular file is an archive. The position in the file may be left anywhere.
    fn is_archive(&self, file: &File) -> std::io::Result<bool>;

    /// Unpacks the archive, read from its start, into a directory. Nothing may land outside of it.
    fn unpack(
        &self,
        file: File,
        into: &Root,
        owner: Option<Owner>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// What copies need from around them.
#[derive(Clone, Copy, Default)]
pub struct CopyEnv<'a> {
    /// Looked at between files, and within large ones.
    pub cancel: Option<&'a Cancel>,
    /// How many threads copy; as many as there are cores if none.
    pub threads: Option<usize>,
    /// For [`Copy::attempt_unpack`].
    pub unpack: Option<&'a dyn Unpack>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, links and the like; not directories.
    pub files: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Bytes that the file system allocated for all that was made; none if an archive was unpacked.
    pub allocated: Option<u64>,
}

impl Copied {
    fn and(self, other: Copied) -> Copied {
        let allocated = self.allocated.zip(other.allocated).map(|(a, b)| a + b);
        Copied { files: self.files + other.files, bytes: self.bytes + other.bytes, allocated }
    }
}

/// Carries out a copy.
pub fn copy(source: &Source<'_>, target: &Target<'_>, action: &Copy, env: &CopyEnv<'_>) -> Result<Copied, Error> {
    let src = clean_path(lexical::to_bytes(&action.src));
    let dest = clean_path(lexical::to_bytes(&action.dest));
    if !action.create_dest_path {
        expect_parent(target, &dest)?;
    }
    let sources = if action.allow_wildcard {
        let found = resolve_wildcards(source, &src, action.follow_symlink)?;
        if found.is_empty() && !action.allow_empty_wildcard {
            return Err(Error::NoMatch(lexical::to_path(&src).to_owned()));
        }
        found
    } else {
        vec![src]
    };
    let include = Matcher::optional(&action.include).map_err(|source| Error::Pattern { list: "include", source })?;
    let exclude = Matcher::optional(&action.exclude).map_err(|source| Error::Pattern { list: "exclude", source })?;
    let job = CopyJob { source, target, action, env, include: include.as_ref(), exclude: exclude.as_ref() };
    let mut total = Copied { allocated: Some(0), ..Copied::default() };
    for src in &sources {
        total = total.and(match job.unpack(src, &dest)? {
            true => Copied { files: 1, bytes: 0, allocated: None },
            false => job.copy_one(src, &dest)?,
        });
    }
    Ok(total)
}

/// A copy with what belongs to it.
struct CopyJob<'a> {
    source: &'a Source<'a>,
    target: &'a Target<'a>,
    action: &'a Copy,
    env: &'a CopyEnv<'a>,
    include: Option<&'a Matcher>,
    exclude: Option<&'a Matcher>,
}

impl CopyJob<'_> {
    /// Copies one source path.
    fn copy_one(&self, src: &[u8], dest: &[u8]) -> Result<Copied, Error> {
        let new_dir = self.new_dir();
        // A trailing slash or dot names a directory, else only what is above the last name must be one.
        let (dir, last) = lexical::split(dest);
        let dir = if matches!(last, b"" | b".") { dest } else { dir };
        let mut made = self.target.make_dirs(&self.target.resolve(dir, Links::Follow)?, &new_dir)?;
        let mut landing = self.target.resolve(&lexical::clean(dest), Links::Follow)?;

        let links = if self.action.follow_symlink { Links::Follow } else { Links::FollowParents };
        let from = self.source.resolve(src, links)?;
        let stat = self.source.stat(&from)?;
        let stat = stat.ok_or_else(|| Error::Missing(lexical::to_path(&lexical::absolute(src)).to_owned()))?;
        let there = self.target.stat(&landing)?;

        let is_dir = stat.kind == Kind::Dir;
        let contents = self.action.dir_copy_contents && is_dir;
        let into = if is_dir { !contents && there.is_some() } else { there.is_some_and(|stat| stat.kind == Kind::Dir) };
        if into {
            landing = lexical::relative(&lexical::join(&landing, lexical::base(src)));
        }
        let above =
            if contents && there.is_none() { landing.clone() } else { lexical::relative(&lexical::dir(&landing)) };
        made.extend(self.target.make_dirs(&above, &new_dir)?);
        let copied = plan::run(self, &from, &stat, &landing)?;
        set_times_again(self.target, &made, self.action.timestamp)?;
        let mut above = 0;
        for dir in &made {
            let stat = rustix::fs::fstat(self.target.open_dir(dir)?);
            above += allocated(&stat.map_err(|errno| Error::io("stat", shown(dir), errno))?);
        }
        Ok(copied.and(Copied { allocated: Some(above), ..Copied::default() }))
    }

    /// Unpacks the source if that is asked for and it is an archive.
    fn unpack(&self, src: &[u8], dest: &[u8]) -> Result<bool, Error> {
        let Some(unpack) = self.env.unpack.filter(|_| self.action.attempt_unpack) else { return Ok(false) };
        let from = self.source.resolve(src, Links::Follow)?;
        let Some(known) = self.source.stat(&from)?.filter(|stat| stat.kind == Kind::File) else { return Ok(false) };
        let failed = |call, error: std::io::Error| Error::io(call, shown(&from), error);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = || self.source.root.open_at(lexical::to_path(&from), flags, Mode::empty(), Links::Refuse);
        let file = File::from(open().map_err(|error| failed("open", error))?);
        let stat = |file: &File| -> Result<Stat, Error> {
            Ok(rustix::fs::fstat(file).map_err(|errno| failed("stat", errno.into()))?.into())
        };
        let before = stat(&file)?;
        let watched = self.source.is_view();
        if watched && !before.is_same_content(&known) {
            return Err(Error::Changed(shown(&from)));
        }
        if !unpack.is_archive(&file).map_err(|error| failed("read", error))? {
            return Ok(false);
        }
        let landing = self.target.resolve(dest, Links::Follow)?;
        let made = self.target.make_dirs(&landing, &Wanted { mode: Some(0o755), ..self.new_dir() })?;
        let dir = self.target.root.open_dir(lexical::to_path(&landing), Links::Refuse);
        let dir: OwnedFd = dir.map_err(|source| Error::io("open", shown(&landing), source))?;
        let into = Root::from_fd(dir, self.target.root.path().join(lexical::to_path(&landing)));
        let again = file.try_clone().map_err(|error| failed("open", error))?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(|errno| failed("read", errno.into()))?;
        let unpacked = unpack.unpack(file, &into, self.action.owner);
        unpacked.map_err(|source| Error::Unpack { path: shown(&from), source })?;
        if watched && !(stat(&again)?.is_same_content(&before) && self.is_as_hashed(&from, &again, &before)?) {
            return Err(Error::Changed(shown(&from)));
        }
        set_times_again(self.target, &made, self.action.timestamp)?;
        Ok(true)
    }

    /// Checks a digest that may have been taken just before an unseen change against the bytes themselves.
    fn is_as_hashed(&self, path: &[u8], mut file: &File, stat: &Stat) -> Result<bool, Error> {
        let known = self.source.known(path).filter(|known| !known.settled);
        let Some((known, digest)) = known.and_then(|known| Some((known, known.digest?))) else { return Ok(true) };
        let failed = |error| Error::io("read", shown(path), error);
        let mut xattrs = crate::xattr::of_fd(file).map_err(failed)?;
        xattrs.retain(|name, _| !name.starts_with(b"com.apple."));
        let stat = Stat { uid: known.stat.uid, gid: known.stat.gid, ..*stat };
        let mut hasher = FileHeader { stat: &stat, link: &[], xattrs: &xattrs }.hasher(Flavor::Context);
        file.rewind().map_err(failed)?;
        let mut buffer = vec![0; content::BUFFER];
        loop {
            if let Some(cancel) = self.env.cancel {
                cancel.check()?;
            }
            match file.read(&mut buffer).map_err(failed)? {
                0 => return Ok(hasher.finish() == digest),
                count => hasher.update(&buffer[..count]),
            }
        }
    }

    /// What directories get that must be made on the way.
    fn new_dir(&self) -> Wanted {
        let times = self.action.timestamp.map(|time| (time, time));
        Wanted { owner: self.action.owner, mode: Some(self.action.mode.of_new_parents()), times }
    }
}

/// Absolute and clean, but keeps a trailing slash or dot, which say something.
fn clean_path(path: &[u8]) -> Vec<u8> {
    let mut cleaned = lexical::absolute(path);
    let is_root = cleaned == b"/";
    if path.ends_with(b"/.") {
        cleaned.extend_from_slice(if is_root { b"." } else { b"/." });
    } else if path.ends_with(b"/") && !is_root {
        cleaned.push(b'/');
    }
    cleaned
}

/// Fails unless the directory that the destination lies in is there.
fn expect_parent(target: &Target<'_>, dest: &[u8]) -> Result<(), Error> {
    let resolved = target.resolve(&lexical::absolute(dest), Links::Follow)?;
    let parent = lexical::relative(&lexical::dir(&resolved));
    match target.stat(&parent)? {
        Some(_) => Ok(()),
        None => Err(Error::io("stat", lexical::to_path(dest), Errno::NOENT)),
    }
}

#[cfg(test)]
mod tests;
