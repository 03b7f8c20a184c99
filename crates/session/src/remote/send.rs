//! The other half of [`sync`](super::sync): a tree is listed, and what is asked for is sent.

use std::fs::File;
use std::io::Seek as _;
use std::sync::{Mutex, PoisonError};

use base::{Cancel, Fault, Kind};
use bytes::Bytes;
use files::receive::Sent;
use proto::fsutil::{Packet, PacketType, Stat, mode};

use super::{Offer, batch};

/// What is read at once.
const CHUNK: usize = 128 << 10;
/// The least that is.
const SMALL: u64 = 4 << 10;

/// Files that can be offered.
pub trait Files: Sync {
    /// Tells of all files in walk order, a directory before what it holds.
    fn list(&self, visit: &mut dyn FnMut(Sent) -> Result<(), Fault>) -> Result<(), Fault>;

    /// Opens a regular file that was listed, by its path there.
    fn open(&self, path: &[u8]) -> std::io::Result<File>;
}

impl Offer {
    /// Lists the files and sends what is asked for, until the client says that it has all. Blocks: it is for threads.
    pub fn send(mut self, files: &dyn Files, cancel: &Cancel, sent: &mut (dyn FnMut(u64) + Send)) -> Result<(), Fault> {
        // Paths by number; only regular files have one to ask for.
        let listed: Mutex<Vec<Option<Vec<u8>>>> = Mutex::default();
        let packets = self.packets.clone();
        std::thread::scope(|scope| {
            let list = || {
                let mut outbox = batch::Outbox::new(packets.clone());
                let told = files.list(&mut |file| {
                    cancel.check().map_err(|_| Fault::cancelled())?;
                    let stat = wire(file);
                    let is_file = stat.mode & mode::TYPE == 0;
                    let mut listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
                    listed.push(is_file.then(|| stat.path.clone()));
                    drop(listed);
                    let packet = Packet { r#type: PacketType::Stat.into(), stat: Some(stat), ..Packet::default() };
                    outbox.push(packet).map_err(|_| gone())
                });
                let last = Packet { r#type: PacketType::Stat.into(), ..Packet::default() };
                let ended = told.and_then(|()| outbox.push(last).map_err(|_| gone()));
                ended.and_then(|()| outbox.flush().map_err(|_| gone())).inspect_err(|fault| {
                    give_up(&packets, fault);
                })
            };
            let listing = std::thread::Builder::new().spawn_scoped(scope, list).map_err(|error| {
                let fault = Fault::because(Kind::Environment, "cannot start a thread to list files", error);
                give_up(&packets, &fault);
                fault
            })?;
            let answered = self.answer(files, cancel, &listed, sent);
            if answered.is_err() {
                // The list ends when nobody takes it any more.
                self.call.abort();
            }
            let told = listing.join().unwrap_or_else(|_| Err(Fault::new(Kind::Internal, "listing files stopped")));
            // Why the list ended early is why the client gave up.
            match (told, answered) {
                (Err(fault), _) if !is_gone(&fault) => Err(fault),
                (_, Err(fault)) => Err(fault),
                (told, Ok(())) => told,
            }
        })
    }

    fn answer(
        &mut self,
        files: &dyn Files,
        cancel: &Cancel,
        listed: &Mutex<Vec<Option<Vec<u8>>>>,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), Fault> {
        let mut total = 0;
        loop {
            cancel.check().map_err(|_| Fault::cancelled())?;
            let packet = self.requests.blocking_recv().ok_or_else(gone)??;
            match packet.r#type() {
                PacketType::Req => {
                    let path = listed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_mut(packet.id as usize)
                        .and_then(Option::take);
                    let path = path.ok_or_else(|| {
                        Fault::new(
                            Kind::Remote,
                            format!("the client asks for file {}, which was not offered", packet.id),
                        )
                    })?;
                    total = self.send_file(files, &path, packet.id, cancel, total, sent)?;
                }
                PacketType::Fin => {
                    let fin = Packet { r#type: PacketType::Fin.into(), ..Packet::default() };
                    return batch::send(&self.packets, fin).map_err(|_| gone());
                }
                PacketType::Err => {
                    let text = String::from_utf8_lossy(&packet.data).into_owned();
                    return Err(Fault::user(format!("the client cannot take the files: {text}")));
                }
                PacketType::Stat | PacketType::Data => {
                    return Err(Fault::new(Kind::Remote, "the client sends files where it should ask for them"));
                }
            }
        }
    }

    fn send_file(
        &self,
        files: &dyn Files,
        path: &[u8],
        id: u32,
        cancel: &Cancel,
        mut total: u64,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<u64, Fault> {
        let data = |data| Packet { r#type: PacketType::Data.into(), id, data, ..Packet::default() };
        let mut file = match files.open(path) {
            Ok(file) => Some(file),
            // What is gone by now is empty, as BuildKit's clients send it: the daemon sees it change.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.unreadable(path, error)),
        };
        loop {
            cancel.check().map_err(|_| Fault::cancelled())?;
            let piece = match &mut file {
                Some(file) => read(file).map_err(|error| self.unreadable(path, error))?,
                None => Piece { bytes: Vec::new(), is_last: true },
            };
            total += piece.bytes.len() as u64;
            let mut packets = Vec::with_capacity(2);
            if !piece.bytes.is_empty() {
                packets.push(data(Bytes::from(piece.bytes)));
            }
            if piece.is_last {
                packets.push(data(Bytes::new()));
            }
            batch::send_all(&self.packets, packets).map_err(|_| gone())?;
            sent(total);
            if piece.is_last {
                return Ok(total);
            }
        }
    }

    /// Tells the other side, too.
    fn unreadable(&self, path: &[u8], error: std::io::Error) -> Fault {
        let path = String::from_utf8_lossy(path);
        let fault = Fault::because(Kind::Environment, format!("cannot read `{path}`"), error);
        give_up(&self.packets, &fault);
        fault
    }
}

/// Bytes of a file.
struct Piece {
    bytes: Vec<u8>,
    /// Nothing comes behind them.
    is_last: bool,
}

/// Reads on in a file; of a small one all at once, into no more room than it takes.
fn read(file: &mut File) -> std::io::Result<Piece> {
    let size = file.metadata()?.len();
    // Some file systems say 0 of files that they make up as they are read.
    let room = size.saturating_sub(file.stream_position()?).saturating_add(1).clamp(SMALL, CHUNK as u64);
    let mut bytes = Vec::with_capacity(room as usize);
    while bytes.len() < bytes.capacity() {
        match rustix::io::read(&*file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(Piece { bytes, is_last: true }),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Piece { bytes, is_last: false })
}

const GONE: &str = "the client is gone";

fn gone() -> Fault {
    Fault::new(Kind::Cancelled, GONE)
}

fn is_gone(fault: &Fault) -> bool {
    fault.to_string() == GONE
}

/// Tells the other side why nothing more comes.
fn give_up(packets: &batch::Sender, why: &Fault) {
    let (kind, data) = (PacketType::Err.into(), why.to_string().into());
    let _ = batch::send(packets, Packet { r#type: kind, data, ..Packet::default() });
}

/// A file as it goes over the wire.
pub fn wire(file: Sent) -> Stat {
    let kind = match file.kind {
        files::Kind::File => 0,
        files::Kind::Dir => mode::DIR,
        files::Kind::Symlink => mode::SYMLINK,
        files::Kind::Char => mode::DEVICE | mode::CHAR,
        files::Kind::Block => mode::DEVICE,
        files::Kind::Fifo => mode::PIPE,
        // Clients leave the bit out: archives know no sockets.
        files::Kind::Socket => 0,
    };
    let bit = |unix, go| if file.mode & unix != 0 { go } else { 0 };
    let special = bit(0o4000, mode::SETUID) | bit(0o2000, mode::SETGID) | bit(0o1000, mode::STICKY);
    let is_device = matches!(file.kind, files::Kind::Char | files::Kind::Block);
    let text = |name: Vec<u8>| String::from_utf8(name).ok();
    Stat {
        path: file.path,
        mode: kind | special | file.mode & 0o777,
        uid: file.uid,
        gid: file.gid,
        size: file.size as i64,
        mod_time: file.mtime.secs.saturating_mul(1_000_000_000).saturating_add(file.mtime.nanos.into()),
        linkname: file.link,
        devmajor: if is_device { rustix::fs::major(file.rdev).into() } else { 0 },
        devminor: if is_device { rustix::fs::minor(file.rdev).into() } else { 0 },
        // The protocol knows names that are text.
        xattrs: file.xattrs.into_iter().filter_map(|(name, value)| Some((text(name)?, value))).collect(),
    }
}
