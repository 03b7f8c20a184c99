//! A transfer of which only some files come with their bytes; of all the others only what they are.
//!
//! What is made of it is a tree of the chosen files and the directories above them. Its file [`METADATA`] describes every file
//! of the client's directory, chosen or not, in walk order: for each four bytes of length, the lowest first, and the
//! protocol's message.

use std::collections::{HashMap, HashSet};

use base::{Cancel, Fault};
use files::pattern::Matcher;
use files::receive::{Bytes, Receiver, Sent, by_walk};
use proto::Message as _;

use super::send::wire;
use super::sync::{Take, Transfer};

/// What describes all files.
pub const METADATA: &[u8] = b".fsutil-metadata";
/// Its permissions.
const MODE: u32 = 0o644;

/// One file of the tree that is made.
struct Planned {
    sent: Sent,
    /// The client's number of the file whose bytes these are.
    id: Option<u32>,
}

/// The list of a client's files, which is all in memory.
#[derive(Default)]
struct Listed {
    files: Vec<Sent>,
}

impl Take for Listed {
    /// A million files with long paths; they are described, too.
    fn most_listed(&self) -> usize {
        256 << 20
    }

    fn list(&mut self, file: Sent) -> Result<bool, files::Error> {
        file.check_lengths()?;
        self.files.push(file);
        Ok(false)
    }

    fn data(&mut self, _: u32, _: &[u8]) -> Result<(), files::Error> {
        Ok(())
    }

    fn end(&mut self, _: u32) -> Result<(), files::Error> {
        Ok(())
    }
}

/// Files whose bytes come, by the client's numbers.
struct Numbered<'a, 'b> {
    receiver: &'a mut Receiver<'b>,
    indices: HashMap<u32, usize>,
}

impl Take for Numbered<'_, '_> {
    fn list(&mut self, _: Sent) -> Result<bool, files::Error> {
        Ok(false)
    }

    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), files::Error> {
        self.receiver.write(self.indices.get(&id).copied().unwrap_or(usize::MAX), bytes)
    }

    fn end(&mut self, id: u32) -> Result<(), files::Error> {
        self.receiver.close(self.indices.get(&id).copied().unwrap_or(usize::MAX))
    }
}

impl Transfer {
    /// Brings a directory up to date that has the files which a pattern chooses, and the description of all.
    pub fn into_dir_chosen(
        mut self,
        receiver: &mut Receiver<'_>,
        chosen: &Matcher,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        let received = self.receive_chosen(receiver, chosen, cancel, came);
        self.leave(received)
    }

    fn receive_chosen(
        &mut self,
        receiver: &mut Receiver<'_>,
        chosen: &Matcher,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        let mut listed = Listed::default();
        self.receive(cancel, came, &mut listed)?;
        let description = describe(&listed.files);
        let choose = |path: &[u8]| {
            chosen.matches(path).map_err(|e| Fault::because(base::Kind::User, "cannot choose files to transfer", e))
        };
        let mut indices = HashMap::new();
        for Planned { sent, id } in plan(listed.files, description.len() as u64, &choose)? {
            let index = receiver.count();
            if receiver.take(sent).map_err(|e| self.failed(e))? == Bytes::NotWanted {
                continue;
            }
            match id {
                Some(id) => _ = indices.insert(id, index),
                None => {
                    let kept = receiver.write(index, &description).and_then(|()| receiver.close(index));
                    kept.map_err(|e| self.failed(e))?;
                }
            }
        }
        let wanted: HashSet<u32> = indices.keys().copied().collect();
        self.receive_wanted(wanted, cancel, came, &mut Numbered { receiver, indices })
    }
}

/// All files, as [`METADATA`] has them.
fn describe(listed: &[Sent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for file in listed.iter().filter(|file| file.path != METADATA) {
        let message = wire(file.clone()).encode_to_vec();
        bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&message);
    }
    bytes
}

/// What is made: chosen files, what is above them, and the description.
fn plan(
    listed: Vec<Sent>,
    description: u64,
    choose: &dyn Fn(&[u8]) -> Result<bool, Fault>,
) -> Result<Vec<Planned>, Fault> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mtime = files::Time { secs: now.as_secs() as i64, nanos: now.subsec_nanos() };
    let about = Sent { kind: files::Kind::File, mode: MODE, size: description, ..Sent::dir(METADATA, mtime) };
    let mut planned = vec![Planned { sent: about, id: None }];
    let mut above: Vec<Sent> = Vec::new();
    // Of files: number, the name that brings the bytes, size.
    let mut first_names: HashMap<Vec<u8>, (u32, Vec<u8>, u64)> = HashMap::new();
    for (id, mut sent) in (0..).zip(listed) {
        let is_below = |dir: &Sent| sent.path.strip_prefix(&*dir.path).is_some_and(|rest| rest.starts_with(b"/"));
        above.retain(is_below);
        let is_file = sent.kind == files::Kind::File;
        if is_file && sent.link.is_empty() {
            first_names.insert(sent.path.clone(), (id, Vec::new(), sent.size));
        }
        if sent.path == METADATA || !choose(&sent.path)? {
            // It is made when something below it is chosen.
            if sent.kind == files::Kind::Dir {
                above.push(sent);
            }
            continue;
        }
        planned.extend(above.drain(..).map(|sent| Planned { sent, id: None }));
        let mut bytes_of = id;
        let first = if is_file && !sent.link.is_empty() { sent.link.clone() } else { sent.path.clone() };
        if is_file && let Some((first_id, name_here, size)) = first_names.get_mut(&first) {
            if name_here.is_empty() {
                // The first of its names that is chosen brings the bytes.
                (bytes_of, sent.link, sent.size) = (*first_id, Vec::new(), *size);
                name_here.clone_from(&sent.path);
            } else {
                sent.link.clone_from(name_here);
            }
        }
        planned.push(Planned { sent, id: Some(bytes_of) });
    }
    planned.sort_by(|one, two| by_walk(&one.sent.path, &two.sent.path));
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, link: &str) -> Sent {
        let (kind, link) = (files::Kind::File, link.as_bytes().to_vec());
        Sent { kind, link, size: 1, ..Sent::dir(path.as_bytes(), files::Time::default()) }
    }

    #[test]
    fn chosen_files_come_with_what_is_above_them_and_the_description() {
        let dir = |path: &str| Sent::dir(path.as_bytes(), files::Time::default());
        let listed = vec![
            file("!", ""),
            dir("a"),
            dir("a/b"),
            file("a/b/1", ""),
            file("a/b/2", "a/b/1"),
            file("a/b/3", "a/b/1"),
            dir("a/c"),
            file("a/c/2", "!"),
            dir("d"),
            file("e", ""),
        ];
        let matcher = Matcher::new(["a/**/2", "a/b/3", "!x"]).expect("patterns");
        let choose = |path: &[u8]| Ok(matcher.matches(path).expect("matches"));
        let described = describe(&listed);
        let planned = plan(listed, described.len() as u64, &choose).expect("a plan");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let shown: Vec<_> = planned.iter().map(|p| (text(&p.sent.path), text(&p.sent.link), p.id)).collect();
        let expected = [
            (".fsutil-metadata", "", None),
            ("a", "", None),
            ("a/b", "", None),
            ("a/b/2", "", Some(3)),
            ("a/b/3", "a/b/2", Some(5)),
            ("a/c", "", None),
            ("a/c/2", "", Some(0)),
        ];
        assert_eq!(shown, expected.map(|(path, link, id)| (path.to_owned(), link.to_owned(), id)));
        let length = u32::from_le_bytes([described[0], described[1], described[2], described[3]]) as usize;
        let first = proto::fsutil::Stat::decode(&described[4..4 + length]).expect("a message");
        assert_eq!(first.path, b"!");
    }
}
