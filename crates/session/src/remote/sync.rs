//! `FileSync.DiffCopy`: a client lists the files of a directory, and sends those that are asked for.
//!
//! Reading never waits for writing: the client may not listen to requests before we have taken what it sends.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Cancel, Fault, Kind};
use files::receive::{Bytes, Receiver, Sent};
use files::walk::Filter;
use proto::fsutil::{Packet, PacketType, Stat, mode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use super::{MAX_MESSAGE, RemoteSession, batch, client_fault, encode};
use crate::RemoteDir;

pub(super) const METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";
/// How many links are followed.
const MAX_LINKS: usize = 40;
/// What a file that is kept in memory may hold.
const MEMORY_LIMIT: usize = 16 << 20;
/// How long a client may take to end a transfer that is done.
const FAREWELL: Duration = Duration::from_secs(10);

/// A directory that a client shares.
pub(super) struct Dir {
    pub(super) session: Arc<RemoteSession>,
    pub(super) name: String,
}

impl std::fmt::Debug for Dir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of session {}", self.name, self.session.id)
    }
}

/// A directory on its way to us. Its methods block: they are for threads.
pub struct Transfer {
    name: String,
    incoming: batch::Receiver,
    /// Of the last batch, what was not looked at yet.
    batch: std::vec::IntoIter<Packet>,
    outgoing: mpsc::UnboundedSender<Packet>,
    /// How many bytes came.
    total: u64,
}

/// A few small files that were taken as they are.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    files: HashMap<Vec<u8>, Vec<u8>>,
    links: HashMap<Vec<u8>, Vec<u8>>,
}

impl MemoryFiles {
    /// The content of a file, relative to the directory; links are followed inside of it.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        let mut path = files::lexical::relative(path.as_bytes());
        for _ in 0..MAX_LINKS {
            if let Some(bytes) = self.files.get(&path) {
                return Some(bytes);
            }
            // The link may be a directory on the way.
            let ends = (0..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]);
            let (target, end) = ends.map(|end| (self.links.get(&path[..end]), end)).find(|(link, _)| link.is_some())?;
            let dir = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash);
            path = match target? {
                target if target.starts_with(b"/") => files::lexical::relative(&[target, &path[end..]].concat()),
                target => files::lexical::relative(&[&path[..dir], b"/", target, &path[end..]].concat()),
            };
        }
        None
    }
}

#[async_trait]
impl RemoteDir for Dir {
    fn shared_key(&self) -> &str {
        &self.session.shared_key
    }

    async fn transfer(&self, filter: &Filter) -> Result<Transfer, Fault> {
        let (outgoing, requests) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(requests));
        let metadata = request.metadata_mut();
        encode(metadata, "include-patterns", &filter.include);
        encode(metadata, "exclude-patterns", &filter.exclude);
        encode(metadata, "followpaths", &filter.follow);
        encode(metadata, "dir-name", std::slice::from_ref(&self.name));
        let mut grpc = tonic::client::Grpc::new(self.session.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let doing = format!("cannot read local `{}`", self.name);
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            grpc.streaming(request, PathAndQuery::from_static(METHOD), codec).await
        };
        let answers = self.session.ask(&doing, call).await.map_err(|fault| hinted(&self.name, fault))?.into_inner();
        let (batches, incoming) = batch::channel();
        let closed = self.session.closed.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = batch::receive(answers, batches.clone()) => {}
                () = closed.cancelled() => {
                    let _ = batches.send(Err(Status::cancelled("the client is gone"))).await;
                }
            }
        });
        Ok(Transfer::new(self.name.clone(), incoming, outgoing))
    }
}

impl Transfer {
    /// A transfer over whatever carries its packets. `name` is what people know the directory by.
    pub(super) fn new(name: String, incoming: batch::Receiver, outgoing: mpsc::UnboundedSender<Packet>) -> Transfer {
        Transfer { name, incoming, batch: Vec::new().into_iter(), outgoing, total: 0 }
    }

    /// Brings a directory up to date; tells after each packet how many bytes came.
    pub fn into_dir(
        mut self,
        receiver: &mut Receiver<'_>,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
    ) -> Result<(), Fault> {
        let received = self.receive(cancel, came, receiver);
        self.leave(received)
    }

    /// Takes the regular files as they are; for the few small ones that a frontend reads.
    pub fn into_memory(mut self, cancel: &Cancel, came: &mut dyn FnMut(u64)) -> Result<MemoryFiles, Fault> {
        let mut memory = Memory::default();
        let received = self.receive(cancel, came, &mut memory);
        self.leave(received)?;
        Ok(memory.files)
    }

    pub(super) fn receive(
        &mut self,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
        take: &mut dyn Take,
    ) -> Result<(), Fault> {
        self.receive_more(HashSet::new(), false, cancel, came, take)
    }

    /// Asks for files of which the list is known, and takes them.
    pub(super) fn receive_wanted(
        &mut self,
        wanted: HashSet<u32>,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
        take: &mut dyn Take,
    ) -> Result<(), Fault> {
        wanted.iter().for_each(|id| self.ask(PacketType::Req, *id));
        self.receive_more(wanted, true, cancel, came, take)
    }

    fn receive_more(
        &mut self,
        mut wanted: HashSet<u32>,
        mut all_listed: bool,
        cancel: &Cancel,
        came: &mut dyn FnMut(u64),
        take: &mut dyn Take,
    ) -> Result<(), Fault> {
        let mut listed = 0u32;
        while !(all_listed && wanted.is_empty()) {
            let packet = self.next(cancel)?;
            self.total += prost_len(&packet);
            came(self.total);
            match (packet.r#type(), packet.stat) {
                (PacketType::Stat, None) => all_listed = true,
                (PacketType::Stat, Some(_)) if all_listed => return Err(self.confused("a file after the last one")),
                (PacketType::Stat, Some(stat)) => {
                    if take.list(sent(stat)).map_err(|error| self.failed(error))? {
                        wanted.insert(listed);
                        self.ask(PacketType::Req, listed);
                    }
                    listed += 1;
                }
                (PacketType::Data, _) if !wanted.contains(&packet.id) => {
                    return Err(self.confused("a file that nobody asked for"));
                }
                (PacketType::Data, _) if packet.data.is_empty() => {
                    take.end(packet.id).map_err(|error| self.failed(error))?;
                    wanted.remove(&packet.id);
                }
                (PacketType::Data, _) => take.data(packet.id, &packet.data).map_err(|error| self.failed(error))?,
                (PacketType::Err, _) => {
                    let text = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Fault::user(format!("cannot read local `{}`: {text}", self.name)));
                }
                (PacketType::Req | PacketType::Fin, _) => return Err(self.confused("an answer out of place")),
            }
        }
        Ok(())
    }

    /// Says good-bye, or why not. Nobody waits until the other side has said so, too, which tells nothing new and takes as
    /// long as the line is. Who does not say so has the call ended.
    pub(super) fn leave(self, received: Result<(), Fault>) -> Result<(), Fault> {
        let mut incoming = self.part(received)?;
        let rest = async move { while let Some(Ok(_)) = incoming.recv().await {} };
        tokio::runtime::Handle::current().spawn(tokio::time::timeout(FAREWELL, rest));
        Ok(())
    }

    /// Says good-bye, or why not, and waits until the other side has said so, too, or is silent.
    pub(super) fn end(self, received: Result<(), Fault>) -> Result<(), Fault> {
        let mut incoming = self.part(received)?;
        while let Some(Ok(_)) = incoming.blocking_recv() {}
        Ok(())
    }

    /// Nothing more is asked for; what still comes is the answer to that.
    fn part(self, received: Result<(), Fault>) -> Result<batch::Receiver, Fault> {
        match received {
            Ok(()) => {
                self.ask(PacketType::Fin, 0);
                Ok(self.incoming)
            }
            Err(fault) => {
                let data = fault.to_string().into();
                // It may be gone, which is why.
                let _ = self.outgoing.send(Packet { r#type: PacketType::Err.into(), data, ..Packet::default() });
                Err(fault)
            }
        }
    }

    fn ask(&self, what: PacketType, id: u32) {
        // Fails when the connection is gone, which reading then says.
        let _ = self.outgoing.send(Packet { r#type: what.into(), id, ..Packet::default() });
    }

    fn next(&mut self, cancel: &Cancel) -> Result<Packet, Fault> {
        cancel.check().map_err(|_| Fault::cancelled())?;
        loop {
            if let Some(packet) = self.batch.next() {
                return Ok(packet);
            }
            match self.incoming.blocking_recv() {
                Some(Ok(batch)) => self.batch = batch.into_iter(),
                Some(Err(status)) => {
                    let fault = client_fault(&format!("cannot read local `{}`", self.name), &status);
                    return Err(hinted(&self.name, fault));
                }
                None => return Err(self.confused("an end before the last file")),
            }
        }
    }

    fn confused(&self, what: &str) -> Fault {
        Fault::new(Kind::Remote, format!("cannot read local `{}`: the client sent {what}", self.name))
    }

    pub(super) fn failed(&self, error: files::Error) -> Fault {
        Fault::because(Kind::Environment, format!("cannot receive local `{}`", self.name), error)
    }
}

/// A client knows what it was given, and refuses the rest in BuildKit's words.
fn hinted(name: &str, fault: Fault) -> Fault {
    match fault.cause().contains("no access allowed to dir") {
        true => fault.hint(format!("share it with `--local {name}=<directory>`")),
        false => fault,
    }
}

/// What files become.
pub(super) trait Take {
    /// The next file of the list; whether its bytes are wanted.
    fn list(&mut self, file: Sent) -> Result<bool, files::Error>;
    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), files::Error>;
    fn end(&mut self, id: u32) -> Result<(), files::Error>;
}

impl Take for Receiver<'_> {
    fn list(&mut self, file: Sent) -> Result<bool, files::Error> {
        Ok(self.take(file)? == Bytes::Wanted)
    }

    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), files::Error> {
        self.write(id as usize, bytes)
    }

    fn end(&mut self, id: u32) -> Result<(), files::Error> {
        self.close(id as usize)
    }
}

/// Files in memory, by number where their bytes are still to come.
#[derive(Default)]
struct Memory {
    listed: u32,
    files: MemoryFiles,
    paths: HashMap<u32, Vec<u8>>,
}

impl Take for Memory {
    fn list(&mut self, file: Sent) -> Result<bool, files::Error> {
        let id = self.listed;
        self.listed += 1;
        let is_file = file.kind == files::Kind::File && file.link.is_empty();
        if is_file {
            self.paths.insert(id, file.path.clone());
            self.files.files.insert(file.path, Vec::new());
        } else if !file.link.is_empty() {
            // Another name of a file leads to it as well, from the top.
            let link = if file.kind == files::Kind::Symlink { file.link } else { [b"/", &file.link[..]].concat() };
            self.files.links.insert(file.path, link);
        }
        Ok(is_file)
    }

    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), files::Error> {
        let Some(path) = self.paths.get(&id) else { return Ok(()) };
        let file = self.files.files.entry(path.clone()).or_default();
        if file.len() + bytes.len() > MEMORY_LIMIT {
            return Err(files::Error::too_large(path));
        }
        file.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self, _: u32) -> Result<(), files::Error> {
        Ok(())
    }
}

fn prost_len(packet: &Packet) -> u64 {
    proto::Message::encoded_len(packet) as u64
}

/// A file as our own rooms know it.
pub fn sent(stat: Stat) -> Sent {
    let bits = stat.mode;
    let kind = match bits & mode::TYPE {
        kind if kind & mode::DIR != 0 => files::Kind::Dir,
        kind if kind & mode::SYMLINK != 0 => files::Kind::Symlink,
        kind if kind & mode::CHAR != 0 => files::Kind::Char,
        kind if kind & mode::DEVICE != 0 => files::Kind::Block,
        kind if kind & mode::PIPE != 0 => files::Kind::Fifo,
        kind if kind & mode::SOCKET != 0 => files::Kind::Socket,
        _ => files::Kind::File,
    };
    let bit = |go, unix| if bits & go != 0 { unix } else { 0 };
    let special = bit(mode::SETUID, 0o4000) | bit(mode::SETGID, 0o2000) | bit(mode::STICKY, 0o1000);
    Sent {
        path: stat.path,
        kind,
        mode: bits & 0o777 | special,
        uid: stat.uid,
        gid: stat.gid,
        size: if kind == files::Kind::File { stat.size.max(0) as u64 } else { 0 },
        mtime: files::Time::from_nanos(stat.mod_time),
        link: stat.linkname,
        rdev: rustix::fs::makedev(stat.devmajor as u32, stat.devminor as u32),
        xattrs: stat.xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a long line every answer that is waited for takes long.
    #[tokio::test]
    async fn the_end_is_not_talked_about() {
        let (batches, incoming) = batch::channel();
        let (outgoing, mut asked) = mpsc::unbounded_channel();
        let transfer = Transfer::new("context".to_owned(), incoming, outgoing);
        let taking = tokio::task::spawn_blocking(|| transfer.into_memory(&Cancel::new(), &mut |_| ()));
        let packet = |kind: PacketType| Packet { r#type: kind.into(), ..Packet::default() };
        let file = Packet { stat: Some(Stat { path: b"a".to_vec(), ..Stat::default() }), ..packet(PacketType::Stat) };
        batches.send(Ok(vec![file, packet(PacketType::Stat)])).await.expect("it listens");
        assert_eq!(asked.recv().await.map(|packet| packet.r#type()), Some(PacketType::Req));
        let data = Packet { data: "text".into(), ..packet(PacketType::Data) };
        batches.send(Ok(vec![data, packet(PacketType::Data)])).await.expect("it listens");
        let taken = tokio::time::timeout(Duration::from_secs(60), taking).await.expect("nothing is waited for");
        let files = taken.expect("it ends").expect("all came");
        assert_eq!(files.get("a"), Some(&b"text"[..]));
        assert_eq!(asked.recv().await.map(|packet| packet.r#type()), Some(PacketType::Fin));
        assert_eq!(asked.recv().await, None, "nothing is said after the good-bye");
        // What the client says to that is still taken.
        batches.send(Ok(vec![packet(PacketType::Fin)])).await.expect("it listens");
    }

    #[test]
    fn links_are_followed_inside() {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
        };
        let files = MemoryFiles {
            files: map(&[("a", "A"), ("d/e/f", "F")]),
            links: map(&[("l", "a"), ("d/up", "../../../a"), ("k", "/d/e"), ("loop", "loop"), ("d/here", "e")]),
        };
        for (path, text) in [
            ("a", Some("A")),
            ("/l", Some("A")),
            ("d/up", Some("A")),
            ("k/f", Some("F")),
            ("d/here/f", Some("F")),
            ("loop", None),
            ("none", None),
            ("a/b", None),
        ] {
            assert_eq!(files.get(path), text.map(str::as_bytes), "{path}");
        }
    }
}
