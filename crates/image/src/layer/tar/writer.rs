//! The tar writer. Its bytes are those of Go's `archive/tar`; see `format` for the rules.

use std::io::{self, Read, Write};

use super::block::{self, Block, MAGIC_GNU, MAGIC_USTAR};
use super::format::{self, Plan};
use super::header::{Format, Header};
use super::pax::{self, Records};
use super::{BLOCK, TypeFlag};
use crate::Error;
use crate::layer::Entry;

const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// PAX headers and GNU long names beyond this are refused, by Go's reader and so by its writer.
const MAX_SPECIAL: usize = 1 << 20;
/// Content is copied through a buffer that stays in the processor's cache.
const COPY_BUFFER: usize = 64 << 10;

/// Writes a tar stream. [`finish`](Writer::finish) ends it; a writer that is dropped leaves the stream without its end.
pub struct Writer<W: Write> {
    inner: W,
    buffer: Vec<u8>,
    nanoseconds: bool,
}

impl<W: Write> Writer<W> {
    /// Starts a stream.
    pub fn new(inner: W) -> Writer<W> {
        Writer { inner, buffer: Vec::new(), nanoseconds: false }
    }

    /// Starts a stream whose entries keep the fractions of their times, which layers have not.
    pub fn with_nanoseconds(inner: W) -> Writer<W> {
        Writer { nanoseconds: true, ..Writer::new(inner) }
    }

    /// The header that [`append`](Writer::append) writes.
    pub fn header(&self, entry: &Entry) -> Header {
        let header = entry.to_header();
        if self.nanoseconds { Header { mtime: entry.mtime, ..header } } else { header }
    }

    /// Writes a file of a layer, as containerd's differ would. `content` is read for regular files only, and must yield
    /// exactly the stated number of bytes: a file that changes while it is read is an error.
    pub fn append(&mut self, entry: &Entry, content: impl Read) -> Result<(), Error> {
        self.append_header(&self.header(entry), content)
    }

    /// Writes a file with all that its header says, as Go's writer would.
    pub fn append_header(&mut self, header: &Header, content: impl Read) -> Result<(), Error> {
        self.write_header(header)?;
        match header.flag {
            TypeFlag::File => self.copy(header, content),
            _ => Ok(()),
        }
    }

    /// Writes PAX records that hold for all entries behind them.
    pub fn append_global(&mut self, name: &[u8], records: &Records) -> Result<(), Error> {
        let name = if name.is_empty() { b"GlobalHead.0.0" } else { name };
        self.write_records(name, b'g', records)
    }

    /// The sink, for whoever must look at it between entries.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Writes the end of the stream and hands the sink back.
    pub fn finish(mut self) -> Result<W, Error> {
        self.inner.write_all(&ZEROS)?;
        self.inner.write_all(&ZEROS)?;
        Ok(self.inner)
    }

    fn copy(&mut self, header: &Header, mut content: impl Read) -> Result<(), Error> {
        let changed = |got: u64, more: bool| Error::TarWrite {
            entry: String::from_utf8_lossy(&header.path).into_owned(),
            reason: match more {
                true => format!("content has more than its {} bytes", header.size),
                false => format!("content has {got} of {} bytes", header.size),
            },
        };
        self.buffer.resize(COPY_BUFFER, 0);
        let mut left = header.size;
        loop {
            // At the end one byte more is asked for, to see that the file did not grow.
            let want = usize::try_from(left).map_or(COPY_BUFFER, |left| left.clamp(1, COPY_BUFFER));
            let n = match content.read(&mut self.buffer[..want]) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            match (n, left) {
                (0, 0) => break,
                (0, _) => return Err(changed(header.size - left, false)),
                (_, 0) => return Err(changed(header.size, true)),
                _ => self.inner.write_all(&self.buffer[..n])?,
            }
            left -= n as u64;
        }
        self.inner.write_all(&ZEROS[..padding(header.size)])?;
        Ok(())
    }

    pub(super) fn write_header(&mut self, header: &Header) -> Result<(), Error> {
        let refuse = |reason| Error::TarWrite { entry: String::from_utf8_lossy(&header.path).into_owned(), reason };
        let is_link_or_directory = matches!(header.flag, TypeFlag::HardLink | TypeFlag::Symlink | TypeFlag::Directory);
        if header.path.ends_with(b"/") && !is_link_or_directory {
            return Err(refuse("only directories may end in `/`".to_owned()));
        }
        let plain;
        let header = match header.format {
            Format::UNKNOWN => {
                plain = Header { mtime: header.mtime.rounded(), atime: None, ctime: None, ..header.clone() };
                &plain
            }
            _ => header,
        };
        let Plan { format, records } = format::plan(header).map_err(refuse)?;
        match format {
            Format::USTAR => self.write_ustar(header),
            Format::PAX => self.write_pax(header, &records),
            _ => self.write_gnu(header),
        }
    }

    fn write_ustar(&mut self, header: &Header) -> Result<(), Error> {
        let (prefix, name) = format::split_ustar(&header.path).unwrap_or((b"", &header.path));
        let mut block = fields(header, name, &header.link, Block::set_octal);
        block.set_text(block::UNAME, &header.uname);
        block.set_text(block::GNAME, &header.gname);
        block.set_text(block::PREFIX, prefix);
        self.write_block(block, MAGIC_USTAR)
    }

    fn write_pax(&mut self, header: &Header, records: &Records) -> Result<(), Error> {
        if !records.is_empty() {
            self.write_records(&pax_header_name(&header.path), b'x', records)?;
        }
        // Fields that a record replaces are filled as well as ASCII can.
        let mut block = fields(header, &ascii(&header.path), &ascii(&header.link), Block::set_octal);
        block.set_text(block::UNAME, &ascii(&header.uname));
        block.set_text(block::GNAME, &ascii(&header.gname));
        self.write_block(block, MAGIC_USTAR)
    }

    fn write_gnu(&mut self, header: &Header) -> Result<(), Error> {
        for (flag, text) in [(b'L', &header.path), (b'K', &header.link)] {
            if text.len() > block::NAME.len() {
                self.write_special(b"././@LongLink", flag, &[text, &b"\0"[..]].concat(), MAGIC_GNU)?;
            }
        }
        let mut block = fields(header, &header.path, &header.link, Block::set_number);
        block.set_text(block::UNAME, &header.uname);
        block.set_text(block::GNAME, &header.gname);
        for (field, time) in [(block::GNU_ATIME, header.atime), (block::GNU_CTIME, header.ctime)] {
            if let Some(time) = time.filter(|time| !time.is_go_zero()) {
                block.set_number(field, time.secs);
            }
        }
        self.write_block(block, MAGIC_GNU)
    }

    fn write_records(&mut self, name: &[u8], flag: u8, records: &Records) -> Result<(), Error> {
        let mut data = Vec::new();
        for (key, value) in records {
            pax::push(&mut data, key, value);
        }
        self.write_special(name, flag, &data, MAGIC_USTAR)
    }

    /// A file that carries what the next header cannot.
    fn write_special(&mut self, name: &[u8], flag: u8, data: &[u8], magic: &[u8; 8]) -> Result<(), Error> {
        if data.len() > MAX_SPECIAL {
            let entry = String::from_utf8_lossy(name).into_owned();
            return Err(Error::TarWrite { entry, reason: format!("its header is longer than {MAX_SPECIAL} bytes") });
        }
        let name = ascii(name);
        let name = &name[..name.len().min(block::NAME.len())];
        let end = name.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        let mut block = Block::zero();
        block.0[block::TYPE] = flag;
        block.set_text(block::NAME, &name[..end]);
        for field in [block::MODE, block::UID, block::GID, block::MTIME] {
            block.set_octal(field, 0);
        }
        block.set_octal(block::SIZE, data.len() as i64);
        self.write_block(block, magic)?;
        self.inner.write_all(data)?;
        self.inner.write_all(&ZEROS[..padding(data.len() as u64)])?;
        Ok(())
    }

    fn write_block(&mut self, mut block: Block, magic: &[u8; 8]) -> Result<(), Error> {
        block.seal(magic);
        Ok(self.inner.write_all(&block.0)?)
    }
}

type SetNumber = fn(&mut Block, block::Field, i64);

/// The fields that all formats share, user names excepted.
fn fields(header: &Header, name: &[u8], link: &[u8], set_number: SetNumber) -> Block {
    let mut block = Block::zero();
    let mtime = if header.mtime.is_go_zero() { 0 } else { header.mtime.secs };
    block.0[block::TYPE] = header.flag.byte();
    block.set_text(block::NAME, name);
    block.set_text(block::LINK, link);
    set_number(&mut block, block::MODE, header.mode.into());
    set_number(&mut block, block::UID, header.uid.into());
    set_number(&mut block, block::GID, header.gid.into());
    set_number(&mut block, block::SIZE, i64::try_from(header.size).unwrap_or(0));
    set_number(&mut block, block::MTIME, mtime);
    set_number(&mut block, block::MAJOR, header.device.0.into());
    set_number(&mut block, block::MINOR, header.device.1.into());
    block
}

/// Zeros behind so many bytes of content.
pub(super) fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK as u64) as usize
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| (1..0x80).contains(b)).collect()
}

/// `dir/PaxHeaders.0/file`, cleaned as Go's `path.Join` cleans: no empty parts, `.` dropped, `..` applied.
fn pax_header_name(path: &[u8]) -> Vec<u8> {
    let slash = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (directory, file) = path.split_at(slash);
    let rooted = directory.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    let all = directory.split(|b| *b == b'/').chain([&b"PaxHeaders.0"[..]]).chain([file]);
    for part in all {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => _ = parts.pop(),
            b".." if rooted => {}
            part => parts.push(part),
        }
    }
    let mut out = if rooted { b"/".to_vec() } else { Vec::new() };
    out.extend_from_slice(&parts.join(&b'/'));
    if out.is_empty() {
        out.push(b'.');
    }
    out
}
