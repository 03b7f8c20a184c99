//! Who a step runs as: Dockerfile's `USER` looked up in the passwd and group files of its root.
//!
//! The rules are those of github.com/moby/sys/user, which decides it upstream: numbers are never names, a pair of
//! numbers needs no file, a group that is named replaces the supplementary ones.

use std::io::Read;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use sys::path::{Links, Root};

/// More than this is no passwd file.
const MAX_FILE: u64 = 10 << 20;

/// To `setresuid(2)` this means "leave it as it is": as root.
const NO_ID: u32 = u32::MAX;

/// A user and their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, the first of them `gid`.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Looks `spec` (`name|uid[:group|gid]`, or nothing for root) up.
pub(super) fn look_up(root: &Root, spec: &str) -> Result<User, String> {
    let passwd = read(root, "/etc/passwd")?;
    let group = || read(root, "/etc/group");
    let user = resolve(spec, &passwd, group)?;
    match user.uid == NO_ID || user.gid == NO_ID || user.groups.contains(&NO_ID) {
        true => Err(format!("unable to become user {spec}: {NO_ID} is no id")),
        false => Ok(user),
    }
}

fn resolve(spec: &str, passwd: &str, group: impl FnOnce() -> Result<String, String>) -> Result<User, String> {
    let spec = if spec.is_empty() { "0" } else { spec };
    if let Some((uid, gid)) = spec.split_once(':').and_then(|(uid, gid)| Some((id(uid)?, id(gid)?))) {
        return Ok(User { uid, gid, groups: vec![gid], home: home_of(passwd, uid) });
    }
    let (name, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    let number =
        parse_number(name).map_err(|()| format!("unable to find user {name}: uids must be at most {}", i32::MAX))?;
    let group_number = parse_number(group_name)
        .map_err(|()| format!("unable to find group {group_name}: gids must be at most {}", i32::MAX))?;
    let entry = passwd.lines().filter_map(Entry::parse).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        // `:group` alone is the default user, root.
        None if name.is_empty() => entry.uid == 0,
        None => entry.name == name,
    });
    let (uid, mut gid, matched) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name)),
        (None, Some(uid)) => (uid, 0, None),
        (None, None) if name.is_empty() => (0, 0, None),
        (None, None) => return Err(format!("unable to find user {name}: no matching entries in passwd file")),
    };
    let mut groups = Vec::new();
    if !group_name.is_empty() {
        let group = group()?;
        let mut known = group.lines().filter_map(group_entry);
        gid = match (known.find(|(known, id, _)| group_number.map_or(*known == group_name, |n| *id == n)), group_number)
        {
            (Some((_, id, _)), _) | (None, Some(id)) => id,
            (None, None) => {
                return Err(format!("unable to find group {group_name}: no matching entries in group file"));
            }
        };
    } else if let Some(matched) = matched {
        let group = group()?;
        let member = |members: &str| members.split(',').any(|member| member == matched);
        groups = group
            .lines()
            .filter_map(group_entry)
            .filter(|(.., members)| member(members))
            .map(|(_, id, _)| id)
            .collect();
    }
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(User { uid, gid, groups, home: home_of(passwd, uid) })
}

/// Whether a group exists in our user namespace.
pub(super) fn is_group_mapped(gid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().unwrap_or(0));
        let (Some(first), Some(count)) = (numbers.next(), numbers.nth(1)) else { return false };
        (first..first + count).contains(&gid.into())
    })
}

/// `root` counts as a number where both halves are numbers.
fn id(text: &str) -> Option<u32> {
    if text == "root" { Some(0) } else { text.parse().ok() }
}

/// A number, or not one; an error where it is one out of range.
fn parse_number(text: &str) -> Result<Option<u32>, ()> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<i32>() {
        Ok(number) if number >= 0 => Ok(Some(number as u32)),
        _ => Err(()),
    }
}

fn home_of(passwd: &str, uid: u32) -> String {
    let entry = passwd.lines().filter_map(Entry::parse).find(|entry| entry.uid == uid);
    entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
}

/// A line of passwd(5).
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Entry<'a>> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let mut fields = fields.skip(1);
        let uid = fields.next()?.parse().ok()?;
        // Broken lines count as far as they go.
        let gid = fields.next().and_then(|gid| gid.parse().ok()).unwrap_or(0);
        let home = fields.nth(1).unwrap_or("");
        Some(Entry { name, uid, gid, home })
    }
}

/// Name, number and members of a line of group(5).
fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

/// A file of the root as text; nothing where there is none.
fn read(root: &Root, path: &str) -> Result<String, String> {
    // Not a fifo that never answers.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(fd) = root.open_at(Path::new(path), flags, Mode::empty(), Links::Follow) else { return Ok(String::new()) };
    let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if kind != Ok(FileType::RegularFile) {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{path} exceeds {MAX_FILE} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n\
                          bob:x:1001:50\n# comment\n7:x:70:70::/seven:\nlast:x:65534:1:::\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\ndocker:x:999:ann,bob\n8:x:80:\nbroken\n";

    fn check(spec: &str, passwd: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let user = resolve(spec, passwd, || Ok(GROUP.to_owned()))?;
        Ok((user.uid, user.gid, user.groups, user.home))
    }

    #[test]
    fn the_largest_number_is_nobody() {
        let dir = tempfile::tempdir().expect("scratch");
        let root = Root::open(dir.path()).expect("a directory");
        std::fs::create_dir(dir.path().join("etc")).expect("scratch");
        std::fs::write(dir.path().join("etc/passwd"), "eve:x:4294967295:0::/:\nmat:x:7:4294967295::/:\n")
            .expect("scratch");
        for spec in ["4294967295:4294967295", "0:4294967295", "4294967295:0", "eve", "mat"] {
            let expected = format!("unable to become user {spec}: 4294967295 is no id");
            assert_eq!(look_up(&root, spec), Err(expected));
        }
        assert_eq!(look_up(&root, "eve:0").map(|user| user.uid).ok(), None);
    }

    #[test]
    fn users_are_found_as_upstream_finds_them() {
        for (spec, uid, gid, groups, home) in [
            ("", 0, 0, vec![0, 10], "/root"),
            ("root", 0, 0, vec![0, 10], "/root"),
            ("ann", 1000, 1000, vec![1000, 10, 999], "/home/ann"),
            ("1000", 1000, 1000, vec![1000, 10, 999], "/home/ann"),
            ("1000:1000", 1000, 1000, vec![1000], "/home/ann"),
            ("root:root", 0, 0, vec![0], "/root"),
            ("ann:wheel", 1000, 10, vec![10], "/home/ann"),
            ("ann:77", 1000, 77, vec![77], "/home/ann"),
            ("bob", 1001, 50, vec![50, 999], "/"),
            ("4242", 4242, 0, vec![0], "/"),
            ("4242:wheel", 4242, 10, vec![10], "/"),
            (":wheel", 0, 10, vec![10], "/root"),
            // A number is never a name.
            ("7", 7, 0, vec![0], "/"),
            ("ann:8", 1000, 8, vec![8], "/home/ann"),
        ] {
            assert_eq!(check(spec, PASSWD), Ok((uid, gid, groups, home.to_owned())), "{spec}");
        }
        for (spec, uid, gid) in [("", 0, 0), ("12", 12, 0), ("12:13", 12, 13)] {
            assert_eq!(check(spec, "").map(|(uid, gid, ..)| (uid, gid)), Ok((uid, gid)), "{spec} without a file");
        }
    }

    #[test]
    fn who_is_missing_is_named() {
        for (spec, expected) in [
            ("eve", "unable to find user eve: no matching entries in passwd file"),
            ("eve:ann", "unable to find user eve: no matching entries in passwd file"),
            ("ann:eve", "unable to find group eve: no matching entries in group file"),
            ("-1", "unable to find user -1: uids must be at most 2147483647"),
            ("99999999999", "unable to find user 99999999999: uids must be at most 2147483647"),
        ] {
            assert_eq!(check(spec, PASSWD), Err(expected.to_owned()), "{spec}");
        }
    }
}
