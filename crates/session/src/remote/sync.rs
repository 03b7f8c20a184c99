//! `FileSync.DiffCopy`: a client lists the files of a directory, and sends those that are asked for.
//!
//! Reading never waits for writing: the client may not listen to requests before we have taken what it sends. So what we
//! have to say waits in a queue without an end; it is sixteen bytes for each file of a list whose length is limited.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::{Cancel, Fault, Kind};
use files::receive::{Bytes, Receiver, Sent};
use files::walk::Filter;
use proto::fsutil::{Packet, PacketType, Stat, mode};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
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
/// What all such files of one directory may hold.
const MEMORY_LIMIT_ALL: usize = 32 << 20;
/// What a file takes up as long as a transfer lasts, beside its path, link and attributes.
const LISTED: usize = 200;
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
    outgoing: mpsc::UnboundedSender<Reply>,
    /// How many bytes came.
    total: u64,
    /// Its list has one.
    has_limit: bool,
}

/// What we have to say to a client that sends. Small: there may be as many as there are files.
#[derive(PartialEq, Debug)]
pub(super) enum Reply {
    /// The bytes of that file are wanted.
    Wanted(u32),
    /// All is here, or no more is wanted.
    Last(Box<Packet>),
}

impl From<Reply> for Packet {
    fn from(reply: Reply) -> Packet {
        match reply {
            Reply::Wanted(id) => Packet { r#type: PacketType::Req.into(), id, ..Packet::default() },
            Reply::Last(packet) => *packet,
        }
    }
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
        self.files.get(&self.find(path)?).map(Vec::as_slice)
    }

    /// Where links lead to from a path, if a file is there.
    fn find(&self, path: &str) -> Option<Vec<u8>> {
        let mut path = files::lexical::relative(path.as_bytes());
        for _ in 0..MAX_LINKS {
            if self.files.contains_key(&path) {
                return Some(path);
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
        let mut request = Request::new(UnboundedReceiverStream::new(requests).map(Packet::from));
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
    pub(super) fn new(name: String, incoming: batch::Receiver, outgoing: mpsc::UnboundedSender<Reply>) -> Transfer {
        Transfer { name, incoming, batch: Vec::new().into_iter(), outgoing, total: 0, has_limit: true }
    }

    /// The list may be as long as it is: for who takes what they asked a builder for.
    pub(super) fn without_limit(self) -> Transfer {
        Transfer { has_limit: false, ..self }
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

    /// Takes some regular files as they are; for the few small ones that a frontend reads. Whatever else the client lists is
    /// not asked for.
    pub fn into_memory(mut self, paths: &[String], cancel: &Cancel) -> Result<MemoryFiles, Fault> {
        let mut memory = Memory::default();
        let listed = self.receive(cancel, &mut |_| (), &mut memory);
        // Where links lead is known when all are.
        let received = listed.and_then(|()| {
            let wanted = memory.want(paths);
            self.receive_wanted(wanted, cancel, &mut |_| (), &mut memory)
        });
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
        wanted.iter().for_each(|id| self.say(Reply::Wanted(*id)));
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
        let (mut listed, mut list_bytes) = (0u32, 0);
        while !(all_listed && wanted.is_empty()) {
            let packet = self.next(cancel)?;
            self.total += prost_len(&packet);
            came(self.total);
            match (packet.r#type(), packet.stat) {
                (PacketType::Stat, None) => all_listed = true,
                (PacketType::Stat, Some(_)) if all_listed => return Err(self.confused("a file after the last one")),
                (PacketType::Stat, Some(stat)) => {
                    let file = sent(stat);
                    list_bytes += size(&file);
                    if self.has_limit && list_bytes > take.most_listed() {
                        return Err(self.lists_too_much(listed, take.most_listed()));
                    }
                    if take.list(file).map_err(|error| self.failed(error))? {
                        wanted.insert(listed);
                        self.say(Reply::Wanted(listed));
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
                self.say_last(PacketType::Fin, "");
                Ok(self.incoming)
            }
            Err(fault) => {
                self.say_last(PacketType::Err, &fault.to_string());
                Err(fault)
            }
        }
    }

    fn say_last(&self, what: PacketType, why: &str) {
        let data = why.to_owned().into();
        self.say(Reply::Last(Box::new(Packet { r#type: what.into(), data, ..Packet::default() })));
    }

    fn say(&self, reply: Reply) {
        // Fails when the connection is gone, which reading then says.
        let _ = self.outgoing.send(reply);
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

    fn lists_too_much(&self, listed: u32, limit: usize) -> Fault {
        let (name, limit) = (&self.name, base::ByteSize(limit as u64));
        Fault::user(format!("local `{name}` has too many files: the list of the first {listed} takes up {limit}"))
            .hint("leave files out with a `.dockerignore` file, or send a smaller directory")
    }

    pub(super) fn failed(&self, error: files::Error) -> Fault {
        let unsent = matches!(error, files::Error::Unsent(_));
        let fault = Fault::because(Kind::Environment, format!("cannot receive local `{}`", self.name), error);
        match unsent {
            // Of a path that is excluded, let in again and excluded once more, BuildKit's clients tell and send nothing.
            true => fault
                .hint("make it readable, or see whether a line of `.dockerignore` takes out what one above it let in"),
            false => fault,
        }
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
    /// What the list may take up: some million files.
    fn most_listed(&self) -> usize {
        512 << 20
    }

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

/// What a file takes up in a list.
fn size(file: &Sent) -> usize {
    let xattrs: usize = file.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    LISTED + file.path.len() + file.link.len() + xattrs
}

/// Files in memory.
#[derive(Default)]
struct Memory {
    listed: u32,
    files: MemoryFiles,
    /// The files that are listed, until it is known which are wanted.
    numbers: HashMap<Vec<u8>, u32>,
    /// Those that are.
    paths: HashMap<u32, Vec<u8>>,
    /// What they hold.
    bytes: usize,
}

impl Memory {
    /// The files that some paths lead to. The others are forgotten.
    fn want(&mut self, paths: &[String]) -> HashSet<u32> {
        let wanted: HashSet<Vec<u8>> = paths.iter().filter_map(|path| self.files.find(path)).collect();
        self.files.files.retain(|path, _| wanted.contains(path));
        let numbers = std::mem::take(&mut self.numbers).into_iter();
        self.paths = numbers.filter(|(path, _)| wanted.contains(path)).map(|(path, id)| (id, path)).collect();
        self.paths.keys().copied().collect()
    }
}

impl Take for Memory {
    /// There are the paths that are asked for, what their links lead to, and what is above them.
    fn most_listed(&self) -> usize {
        16 << 20
    }

    fn list(&mut self, file: Sent) -> Result<bool, files::Error> {
        file.check_lengths()?;
        let id = self.listed;
        self.listed += 1;
        let is_file = file.kind == files::Kind::File && file.link.is_empty();
        if is_file {
            self.numbers.insert(file.path.clone(), id);
            self.files.files.insert(file.path, Vec::new());
        } else if !file.link.is_empty() {
            // Another name of a file leads to it as well, from the top.
            let link = if file.kind == files::Kind::Symlink { file.link } else { [b"/", &file.link[..]].concat() };
            self.files.links.insert(file.path, link);
        }
        Ok(false)
    }

    fn data(&mut self, id: u32, bytes: &[u8]) -> Result<(), files::Error> {
        let Some(path) = self.paths.get(&id) else { return Ok(()) };
        let file = self.files.files.entry(path.clone()).or_default();
        self.bytes += bytes.len();
        if file.len() + bytes.len() > MEMORY_LIMIT || self.bytes > MEMORY_LIMIT_ALL {
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

    fn packet(kind: PacketType) -> Packet {
        Packet { r#type: kind.into(), ..Packet::default() }
    }

    fn listed(path: &[u8]) -> Packet {
        Packet { stat: Some(Stat { path: path.to_vec(), ..Stat::default() }), ..packet(PacketType::Stat) }
    }

    /// A client of which what it sends is given, and what is asked of it.
    fn client() -> (batch::Sender, mpsc::UnboundedReceiver<Reply>, Transfer) {
        let (batches, incoming) = batch::channel();
        let (outgoing, asked) = mpsc::unbounded_channel();
        (batches, asked, Transfer::new("context".to_owned(), incoming, outgoing))
    }

    /// What comes of it when a client sends packets and all of its files of some names are wanted.
    async fn taken(paths: &[&str], sent: impl IntoIterator<Item = Vec<Packet>>) -> Result<MemoryFiles, String> {
        let (batches, _asked, transfer) = client();
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let taking = tokio::task::spawn_blocking(move || transfer.into_memory(&paths, &Cancel::new()));
        for batch in sent {
            // It may have heard enough.
            if batches.send(Ok(batch)).await.is_err() {
                break;
            }
        }
        let taken = tokio::time::timeout(Duration::from_secs(60), taking).await.expect("nothing is waited for");
        taken.expect("it ends").map_err(|fault| fault.to_string())
    }

    /// On a long line every answer that is waited for takes long.
    #[tokio::test]
    async fn the_end_is_not_talked_about() {
        let (batches, mut asked, transfer) = client();
        let taking = tokio::task::spawn_blocking(|| transfer.into_memory(&["a".to_owned()], &Cancel::new()));
        batches.send(Ok(vec![listed(b"a"), packet(PacketType::Stat)])).await.expect("it listens");
        assert_eq!(asked.recv().await, Some(Reply::Wanted(0)));
        let data = Packet { data: "text".into(), ..packet(PacketType::Data) };
        batches.send(Ok(vec![data, packet(PacketType::Data)])).await.expect("it listens");
        let taken = tokio::time::timeout(Duration::from_secs(60), taking).await.expect("nothing is waited for");
        let files = taken.expect("it ends").expect("all came");
        assert_eq!(files.get("a"), Some(&b"text"[..]));
        assert_eq!(asked.recv().await.map(Packet::from).map(|packet| packet.r#type()), Some(PacketType::Fin));
        assert_eq!(asked.recv().await, None, "nothing is said after the good-bye");
        // What the client says to that is still taken.
        batches.send(Ok(vec![packet(PacketType::Fin)])).await.expect("it listens");
    }

    #[tokio::test]
    async fn into_memory_go_only_files_that_are_asked_for_and_not_too_much_of_them() {
        let list = |paths: &[&str]| {
            let files = paths.iter().map(|path| listed(path.as_bytes()));
            files.chain([packet(PacketType::Stat)]).collect::<Vec<_>>()
        };
        let data = |id, bytes: usize| Packet { id, data: vec![b'x'; bytes].into(), ..packet(PacketType::Data) };
        // A link that comes after what it leads to.
        let link = Stat { path: b"z".to_vec(), mode: mode::SYMLINK, linkname: b"b".to_vec(), ..Stat::default() };
        let link = Packet { stat: Some(link), ..packet(PacketType::Stat) };
        let sent = vec![listed(b"a"), listed(b"b"), link, packet(PacketType::Stat), data(1, 3), data(1, 0)];
        let files = taken(&["z", "none"], [sent]).await.expect("all came");
        assert_eq!((files.get("z"), files.get("a")), (Some(&b"xxx"[..]), None));

        let refused = taken(&["b"], [list(&["a", "b"]), vec![data(0, 1)]]).await.expect_err("not asked for");
        assert!(refused.contains("a file that nobody asked for"), "{refused}");
        let many = (0..3).map(|id| vec![data(id, 15 << 20)]);
        let refused = taken(&["a", "b", "c"], [list(&["a", "b", "c"])].into_iter().chain(many)).await;
        assert!(refused.expect_err("45 MiB").contains("cannot receive local `context`"));
        let endless = (0..).map(|at| (0..256).map(|n| listed(format!("{at:09}{n:03}").as_bytes())).collect());
        let refused = taken(&["a"], endless).await.expect_err("no end");
        assert!(refused.contains("local `context` has too many files"), "{refused}");
    }

    #[test]
    fn what_is_to_be_said_is_small() {
        assert_eq!(size_of::<Reply>(), 16);
    }

    /// A list that ends nowhere, of files that are all wanted; the client hears no request.
    struct Wants;

    impl Take for Wants {
        fn most_listed(&self) -> usize {
            4 << 20
        }

        fn list(&mut self, _: Sent) -> Result<bool, files::Error> {
            Ok(true)
        }

        fn data(&mut self, _: u32, _: &[u8]) -> Result<(), files::Error> {
            Ok(())
        }

        fn end(&mut self, _: u32) -> Result<(), files::Error> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_list_without_an_end_is_refused() {
        for len in [10, 100_000] {
            let (batches, asked, mut transfer) = client();
            let taking = tokio::task::spawn_blocking(move || transfer.receive(&Cancel::new(), &mut |_| (), &mut Wants));
            while batches.send(Ok(vec![listed(&vec![b'x'; len]); 64])).await.is_ok() {}
            let refused = taking.await.expect("it ends").expect_err("too much").to_string();
            assert!(refused.contains("takes up 4.19MB"), "{refused}");
            let most = (4 << 20) / (LISTED + len);
            assert_eq!(asked.len(), most);
        }
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
