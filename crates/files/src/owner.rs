//! Who owns what a file op makes: ids, or names looked up in the `/etc/passwd` and `/etc/group` of a tree.
//!
//! As upstream, a name that is not found (or a file that is not there) is no error: it leaves the id 0. The caller is
//! told, so that it can warn.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::{Mode, OFlags};
use sys::path::{Links, Root};

use crate::error::Error;
use crate::stat::{Kind, Stat};

/// Upstream's limit for these files.
const MAX_FILE: u64 = 10 << 20;

/// To `chown(2)` this means "leave it as it is".
pub(crate) const NO_ID: u32 = u32::MAX;

/// A user and a group by their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// One half of an owner, as an op states it.
#[derive(Clone, Copy)]
pub enum OwnerRef<'a> {
    /// A number.
    Id(u32),
    /// A name, and the tree whose files know it; none if the input has no files at all.
    Name(&'a str, Option<&'a Root>),
}

/// The answer of [`resolve_owner`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedOwner {
    /// The numbers.
    pub owner: Owner,
    /// The user's name, if nobody knows it.
    pub unknown_user: Option<String>,
    /// The group's name, if nobody knows it.
    pub unknown_group: Option<String>,
}

/// Looks an owner up. A user brings a group: by number the same number, by name the group in `/etc/passwd`.
pub fn resolve_owner(user: Option<OwnerRef<'_>>, group: Option<OwnerRef<'_>>) -> Result<ResolvedOwner, Error> {
    let mut resolved = ResolvedOwner::default();
    match user {
        Some(OwnerRef::Id(id)) => resolved.owner = Owner { uid: id, gid: id },
        Some(OwnerRef::Name(name, root)) => match look_up("user", name, root, "/etc/passwd")? {
            Some(fields) => resolved.owner = Owner { uid: number(&fields, 2), gid: number(&fields, 3) },
            None => resolved.unknown_user = Some(name.to_owned()),
        },
        None => {}
    }
    match group {
        Some(OwnerRef::Id(id)) => resolved.owner.gid = id,
        Some(OwnerRef::Name(name, root)) => match look_up("group", name, root, "/etc/group")? {
            Some(fields) => resolved.owner.gid = number(&fields, 2),
            None => resolved.unknown_group = Some(name.to_owned()),
        },
        None => {}
    }
    for (what, id) in [("user", resolved.owner.uid), ("group", resolved.owner.gid)] {
        if id == NO_ID {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the largest number is no id");
            return Err(Error::Owner { what, name: id.to_string(), source });
        }
    }
    Ok(resolved)
}

/// The fields of the first line that begins with a name.
fn look_up(what: &'static str, name: &str, root: Option<&Root>, file: &str) -> Result<Option<Vec<String>>, Error> {
    let Some(root) = root else { return Ok(None) };
    let failed = |source| Error::Owner { what, name: name.to_owned(), source };
    let text = match read(root, file) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let lines = text.split(|byte| *byte == b'\n').map(|line| line.trim_ascii());
    // Only group files know comments, as upstream reads them.
    let is_comment = |line: &[u8]| what == "group" && line.starts_with(b"#");
    for line in lines.filter(|line| !line.is_empty() && !is_comment(line)) {
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next() == Some(name.as_bytes()) {
            let fields = line.split(|byte| *byte == b':').map(|field| String::from_utf8_lossy(field).into_owned());
            return Ok(Some(fields.collect()));
        }
    }
    Ok(None)
}

fn read(root: &Root, file: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(root.open_at(file, flags, Mode::empty(), Links::Follow)?);
    if Stat::from(rustix::fs::fstat(&file)?).kind != Kind::File {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// Numbers that are none count as 0, as everywhere where these files are read.
fn number(fields: &[String], index: usize) -> u32 {
    fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_and_numbers_are_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let name = |name| Some(OwnerRef::Name(name, Some(&root)));
        let owner = |user, group| resolve_owner(user, group).unwrap();
        assert_eq!(owner(name("app"), None).unknown_user.as_deref(), Some("app"));
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::create_dir(dir.path().join("usr")).unwrap();
        // Links stay inside the tree.
        symlink("/usr/passwd", dir.path().join("etc/passwd")).unwrap();
        fs::write(dir.path().join("usr/passwd"), "root:x:0:0\n\n app:x:10:20:App:/:/bin/sh \nodd:x:many\n").unwrap();
        fs::write(dir.path().join("etc/group"), "#app:x:1\napp:x:30:a,b\n").unwrap();
        let is = |uid, gid| ResolvedOwner { owner: Owner { uid, gid }, ..ResolvedOwner::default() };
        let cases = [
            (None, None, is(0, 0)),
            (Some(OwnerRef::Id(5)), None, is(5, 5)),
            (Some(OwnerRef::Id(5)), Some(OwnerRef::Id(6)), is(5, 6)),
            (name("app"), None, is(10, 20)),
            (name("app"), name("app"), is(10, 30)),
            (None, name("app"), is(0, 30)),
            (name("odd"), None, is(0, 0)),
            (name("who"), None, ResolvedOwner { unknown_user: Some("who".into()), ..is(0, 0) }),
            (name("app"), name("who"), ResolvedOwner { unknown_group: Some("who".into()), ..is(10, 20) }),
            (Some(OwnerRef::Name("x", None)), None, ResolvedOwner { unknown_user: Some("x".into()), ..is(0, 0) }),
        ];
        for (user, group, expected) in cases {
            assert_eq!(owner(user, group), expected);
        }
        fs::remove_file(dir.path().join("etc/group")).unwrap();
        fs::create_dir(dir.path().join("etc/group")).unwrap();
        for (user, group) in [(Some(OwnerRef::Id(NO_ID)), None), (None, Some(OwnerRef::Id(NO_ID)))] {
            let error = resolve_owner(user, group).unwrap_err();
            assert!(crate::chain(&error).to_string().ends_with("`4294967295`: the largest number is no id"));
        }
        let error = resolve_owner(None, name("app")).unwrap_err();
        assert_eq!(crate::chain(&error).to_string(), "cannot look up group `app`: not a regular file");
    }
}
