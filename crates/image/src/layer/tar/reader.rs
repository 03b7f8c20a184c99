//! The tar reader: ustar, PAX, GNU and old tars, from sources that may be hostile.
//!
//! Invariants: memory stays within [`Limits`] plus one buffer; nothing panics on any input; an error names the entry
//! and the offset of its first header. What Go's reader refuses is refused too, or a layer would mean one thing here
//! and another in the cluster.

use std::io::{self, Read, Seek, SeekFrom};

use super::block::{self, Block, MAGIC_GNU, MAGIC_USTAR, until_nul};
use super::header::{Format, Header, Time, TypeFlag};
use super::pax::{self, Records};
use super::sparse::{self, Announced, LineMap};
use super::writer::padding;
use super::{BLOCK, Writer};
use crate::Error;
use crate::layer::Entry;

/// What one entry may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a PAX header, a GNU long name or a sparse map. Go takes 1 MiB.
    pub special: usize,
    /// PAX records of one entry.
    pub records: usize,
    /// Bytes of a path or link target.
    pub name: usize,
    /// Bytes of a sparse file, whose holes cost nothing to send.
    pub sparse: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { special: 1 << 20, records: 4096, name: 16 << 10, sparse: 1 << 40 }
    }
}

/// Reads a tar stream entry by entry. As [`Read`] it yields the content of the entry that [`next`](Reader::next) gave
/// last, holes as zeros.
pub struct Reader<R> {
    inner: R,
    limits: Limits,
    /// Bytes taken from `inner`.
    offset: u64,
    /// Bytes of content that `inner` still holds, and zeros behind them.
    stored: u64,
    padding: usize,
    /// Content as the reader of the entry sees it.
    content: Content,
    /// Where the headers of the current entry begin, and its name.
    place: (u64, Vec<u8>),
    ended: bool,
}

enum Content {
    Plain,
    Sparse { map: std::vec::IntoIter<(u64, u64)>, segment: Option<(u64, u64)>, position: u64, size: u64 },
}

/// Whether a stream begins as an archive, as Go's reader sees it: whether it can be read here or not, and whether it holds
/// anything or only says what all entries have in common.
pub fn is_archive(stream: impl Read) -> bool {
    match Reader::new(stream).next_item() {
        Ok(item) => item.is_some(),
        Err(error) => matches!(error, Error::Tar { is_sound: true, .. }),
    }
}

/// What stands in the stream: an entry, or records for all entries behind.
pub(super) enum Item {
    Entry(Header),
    Global { name: Vec<u8>, records: Records },
}

/// What headers before the entry's own say of it.
#[derive(Default)]
struct Pending {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads `inner` with the default limits.
    pub fn new(inner: R) -> Reader<R> {
        Reader::with_limits(inner, Limits::default())
    }

    /// Reads `inner` with other limits.
    pub fn with_limits(inner: R, limits: Limits) -> Reader<R> {
        Reader {
            inner,
            limits,
            offset: 0,
            stored: 0,
            padding: 0,
            content: Content::Plain,
            place: (0, Vec::new()),
            ended: false,
        }
    }

    /// The next file, or none at the end. Skips what was not read of the last one. PAX records for all entries are
    /// skipped, as containerd does.
    #[expect(clippy::should_implement_trait, reason = "an entry's content is read through the reader in between")]
    pub fn next(&mut self) -> Result<Option<Header>, Error> {
        loop {
            match self.next_item()? {
                Some(Item::Entry(header)) => return Ok(Some(header)),
                Some(Item::Global { .. }) => {}
                None => return Ok(None),
            }
        }
    }

    /// As [`next`](Self::next), in the terms of a layer.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        Ok(self.next()?.map(Entry::from_header))
    }

    /// How many bytes of the stream were read. Right behind [`next`](Self::next): where the content begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on to the end of the stream behind the end of the archive, so that digests cover all of it.
    pub fn drain(mut self) -> Result<R, Error> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(self.inner)
    }

    pub(super) fn next_item(&mut self) -> Result<Option<Item>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip_content()?;
        self.place = (self.offset, Vec::new());
        let mut pending = Pending::default();
        let mut format = Format::ALL;
        loop {
            let Some(block) = self.read_header_block()? else {
                self.ended = true;
                return Ok(None);
            };
            self.content = Content::Plain;
            (self.stored, self.padding) = (0, 0);
            let flag = block.0[block::TYPE];
            let (mut header, own_format) = self.parse_block(&block)?;
            format = format.only(own_format);
            match flag {
                b'x' | b'g' => {
                    format = format.only(Format::PAX);
                    let data = self.read_special(header.size)?;
                    let records = self.parse_records(&data)?;
                    if flag == b'g' {
                        return Ok(Some(Item::Global { name: header.path, records }));
                    }
                    pending.records = Some(records);
                }
                b'L' | b'K' => {
                    format = format.only(Format::GNU);
                    let data = self.read_special(header.size)?;
                    let text = until_nul(&data).to_vec();
                    if text.len() > self.limits.name {
                        return Err(self.beyond(format!("name is longer than {} bytes", self.limits.name)));
                    }
                    let slot = if flag == b'L' { &mut pending.name } else { &mut pending.link };
                    *slot = Some(text).filter(|text| !text.is_empty());
                }
                _ => {
                    self.apply(&mut header, pending)?;
                    self.place.1.clone_from(&header.path);
                    self.set_flag(&mut header, flag)?;
                    self.start_content(&mut header, &block, flag, &mut format)?;
                    if format.has(Format::USTAR) && format.has(Format::PAX) {
                        format = format.only(Format::USTAR);
                    }
                    header.format = format;
                    return Ok(Some(Item::Entry(header)));
                }
            }
        }
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        self.error(reason.into(), false)
    }

    /// What is refused here and well-formed to Go's reader.
    fn beyond(&self, reason: impl Into<String>) -> Error {
        self.error(reason.into(), true)
    }

    fn error(&self, reason: String, is_sound: bool) -> Error {
        let (offset, name) = &self.place;
        Error::Tar { offset: *offset, entry: String::from_utf8_lossy(name).into_owned(), reason, is_sound }
    }

    /// Fills the buffer, or less at the end of the stream.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }

    /// A block of the stream; its end is an error here.
    fn read_block(&mut self) -> Result<Block, Error> {
        let mut block = Block::zero();
        match self.fill(&mut block.0)? {
            BLOCK => Ok(block),
            _ => Err(self.bad("the stream ends within the entry")),
        }
    }

    /// A header, or none at the end: two blocks of zeros, or one, or the stream just stops between entries.
    fn read_header_block(&mut self) -> Result<Option<Block>, Error> {
        let mut block = Block::zero();
        for zero_before in [false, true] {
            match self.fill(&mut block.0)? {
                0 => return Ok(None),
                BLOCK if !block.is_zero() && zero_before => return Err(self.bad("a block of zeros between entries")),
                BLOCK if block.is_zero() => {}
                BLOCK => {
                    self.place.1 = block.text(block::NAME).to_vec();
                    return match block.checksum_holds() {
                        true => Ok(Some(block)),
                        false => Err(self.bad("header checksum does not match")),
                    };
                }
                _ => return Err(self.bad("the stream ends within a header")),
            }
        }
        Ok(None)
    }

    fn skip_content(&mut self) -> Result<(), Error> {
        let mut left = self.stored + self.padding as u64;
        let mut scratch = [0; 32 << 10];
        while left > 0 {
            let want = left.min(scratch.len() as u64) as usize;
            let got = self.fill(&mut scratch[..want])?;
            left -= got as u64;
            if got < want {
                // Padding behind the last content may be missing: Go does not miss it either.
                if left > self.padding as u64 {
                    return Err(self.bad("the stream ends within the entry"));
                }
                break;
            }
        }
        (self.stored, self.padding) = (0, 0);
        Ok(())
    }

    /// The content of a header that describes the next one.
    fn read_special(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > self.limits.special as u64 {
            return Err(self.bad(format!("extended header is larger than {} bytes", self.limits.special)));
        }
        let mut data = vec![0; size as usize + padding(size)];
        if self.fill(&mut data)? < size as usize {
            return Err(self.bad("the stream ends within an extended header"));
        }
        data.truncate(size as usize);
        Ok(data)
    }

    fn parse_records(&self, mut data: &[u8]) -> Result<Records, Error> {
        let mut records = Records::new();
        let mut map_0_0: Vec<&[u8]> = Vec::new();
        let mut count = 0;
        while !data.is_empty() {
            let (key, value, rest) = pax::take(data).ok_or_else(|| self.bad("malformed PAX record"))?;
            data = rest;
            count += 1;
            // Version 0.0 of the sparse format repeats its keys, two records a segment; they count as map, not as records.
            let turn = match key {
                b"GNU.sparse.offset" => Some(0),
                b"GNU.sparse.numbytes" => Some(1),
                _ => None,
            };
            match turn {
                Some(turn) if map_0_0.len() % 2 != turn || value.contains(&b',') => {
                    return Err(self.bad("malformed sparse map"));
                }
                Some(_) => {
                    map_0_0.push(value);
                    count -= 1;
                }
                None => _ = records.insert(key.to_vec(), value.to_vec()),
            }
            if count > self.limits.records {
                return Err(self.beyond(format!("more than {} PAX records", self.limits.records)));
            }
        }
        if !map_0_0.is_empty() {
            records.insert(b"GNU.sparse.map".to_vec(), map_0_0.join(&b','));
        }
        Ok(records)
    }

    /// The fields of a block, and the formats that it may be in.
    fn parse_block(&self, block: &Block) -> Result<(Header, Format), Error> {
        let number = |field: block::Field, what: &str| {
            block.number(field).ok_or_else(|| self.bad(format!("malformed {what} in header")))
        };
        let size = number(block::SIZE, "size")?;
        let mut header = Header {
            path: block.text(block::NAME).to_vec(),
            link: block.text(block::LINK).to_vec(),
            mode: (number(block::MODE, "mode")? & 0o7777) as u32,
            uid: self.id(number(block::UID, "uid")?)?,
            gid: self.id(number(block::GID, "gid")?)?,
            size: u64::try_from(size).map_err(|_| self.bad("negative size"))?,
            mtime: Time::from_secs(number(block::MTIME, "time")?),
            ..Header::default()
        };
        let magic = block.bytes(block::MAGIC);
        let is_posix = magic[..6] == MAGIC_USTAR[..6];
        if !is_posix && magic != MAGIC_GNU {
            return Ok((header, Format::UNKNOWN));
        }
        header.uname = block.text(block::UNAME).to_vec();
        header.gname = block.text(block::GNAME).to_vec();
        let device = |field| number(field, "device").map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        header.device = (device(block::MAJOR)?, device(block::MINOR)?);
        let (prefix, format) = match is_posix {
            true if block.bytes(block::STAR_TRAILER) == b"tar\0" => {
                header.atime = Some(Time::from_secs(number(block::STAR_ATIME, "time")?));
                header.ctime = Some(Time::from_secs(number(block::STAR_CTIME, "time")?));
                (block.text(block::STAR_PREFIX), Format::UNKNOWN)
            }
            true => (block.text(block::PREFIX), posix_format(block)),
            false => gnu_times(block, &mut header),
        };
        if !prefix.is_empty() {
            header.path = [prefix, &header.path].join(&b'/');
        }
        Ok((header, format))
    }

    /// User and group ids are 32 bits; some writers store those above 31 bits as negative numbers.
    fn id(&self, id: i64) -> Result<u32, Error> {
        match id {
            0.. => u32::try_from(id).map_err(|_| self.beyond(format!("id {id} is out of range"))),
            _ => i32::try_from(id).map(|id| id as u32).map_err(|_| self.beyond(format!("id {id} is out of range"))),
        }
    }

    /// Puts what earlier headers said into the entry's own.
    fn apply(&self, header: &mut Header, pending: Pending) -> Result<(), Error> {
        let malformed = |key: &[u8]| self.bad(format!("malformed PAX record `{}`", String::from_utf8_lossy(key)));
        for (key, value) in pending.records.unwrap_or_default() {
            let number = || pax::parse_decimal(&value).ok_or_else(|| malformed(&key));
            let time = || pax::parse_time(&value).ok_or_else(|| malformed(&key));
            if let Some(name) = key.strip_prefix(pax::XATTR) {
                header.xattrs.insert(name.to_vec(), value);
                continue;
            }
            match key.as_slice() {
                // An empty value leaves the header's own.
                _ if value.is_empty() => {}
                pax::PATH => header.path.clone_from(&value),
                pax::LINKPATH => header.link.clone_from(&value),
                pax::UNAME => header.uname.clone_from(&value),
                pax::GNAME => header.gname.clone_from(&value),
                pax::UID => header.uid = self.id(number()?)?,
                pax::GID => header.gid = self.id(number()?)?,
                pax::MTIME => header.mtime = time()?,
                pax::ATIME => header.atime = Some(time()?),
                pax::CTIME => header.ctime = Some(time()?),
                pax::SIZE => header.size = u64::try_from(number()?).map_err(|_| malformed(&key))?,
                _ => {}
            }
            header.records.insert(key, value);
        }
        if let Some(name) = pending.name {
            header.path = name;
        }
        if let Some(link) = pending.link {
            header.link = link;
        }
        if header.path.len().max(header.link.len()) > self.limits.name {
            return Err(self.beyond(format!("name is longer than {} bytes", self.limits.name)));
        }
        Ok(())
    }

    fn set_flag(&self, header: &mut Header, flag: u8) -> Result<(), Error> {
        header.flag = match flag {
            b'0' | b'7' | b'S' => TypeFlag::File,
            // Before POSIX a directory was a file whose name ends in a slash.
            0 if header.path.ends_with(b"/") => TypeFlag::Directory,
            0 => TypeFlag::File,
            b'1' => TypeFlag::HardLink,
            b'2' => TypeFlag::Symlink,
            b'3' => TypeFlag::CharDevice,
            b'4' => TypeFlag::BlockDevice,
            b'5' => TypeFlag::Directory,
            b'6' => TypeFlag::Fifo,
            other => return Err(self.beyond(format!("unsupported type `{}`", other.escape_ascii()))),
        };
        Ok(())
    }

    /// Sets the content up; a sparse file's map is read here.
    fn start_content(
        &mut self,
        header: &mut Header,
        block: &Block,
        flag: u8,
        format: &mut Format,
    ) -> Result<(), Error> {
        let announced = sparse::announced(&header.records).map_err(|reason| self.bad(reason))?;
        let is_sparse = flag == b'S' || !matches!(announced, Announced::No);
        if header.flag != TypeFlag::File {
            return if is_sparse { Err(self.bad("only regular files can be sparse")) } else { Ok(()) };
        }
        if i64::try_from(header.size).is_err() {
            return Err(self.bad(format!("size {} is out of range", header.size)));
        }
        (self.stored, self.padding) = (header.size, padding(header.size));
        if !is_sparse {
            return Ok(());
        }
        let mut map = if flag == b'S' {
            *format = format.only(Format::GNU);
            self.read_old_gnu_map(header, block)?
        } else {
            *format = format.only(Format::PAX);
            let (name, size) = sparse::real_name_and_size(&header.records).map_err(|reason| self.bad(reason))?;
            if let Some(name) = name {
                header.path = name.to_vec();
                self.place.1 = name.to_vec();
            }
            header.size = size.unwrap_or(header.size);
            match announced {
                Announced::Records(map) => map,
                _ => self.read_line_map()?,
            }
        };
        if header.size > self.limits.sparse {
            return Err(self.beyond(format!("sparse file is larger than {} bytes", self.limits.sparse)));
        }
        sparse::check(&mut map, header.size, self.stored).map_err(|reason| self.bad(reason))?;
        let mut map = map.into_iter();
        self.content = Content::Sparse { segment: map.next(), map, position: 0, size: header.size };
        // Written again it is a plain file; its map would describe it no more.
        header.records.retain(|key, _| !key.starts_with(pax::SPARSE));
        Ok(())
    }

    fn read_old_gnu_map(&mut self, header: &mut Header, block: &Block) -> Result<sparse::Map, Error> {
        if block.bytes(block::MAGIC) != MAGIC_GNU {
            return Err(self.bad("sparse file in a tar that is not GNU's"));
        }
        let size = block.number(block::GNU_REAL_SIZE).and_then(|size| u64::try_from(size).ok());
        header.size = size.ok_or_else(|| self.bad("malformed sparse size"))?;
        let mut map = sparse::Map::new();
        let mut more = sparse::old_gnu(block, false, &mut map).map_err(|reason| self.bad(reason))?;
        let mut total = BLOCK;
        while more {
            total += BLOCK;
            if total > self.limits.special {
                return Err(self.bad("sparse map is too long"));
            }
            let extension = self.read_block()?;
            more = sparse::old_gnu(&extension, true, &mut map).map_err(|reason| self.bad(reason))?;
        }
        Ok(map)
    }

    fn read_line_map(&mut self) -> Result<sparse::Map, Error> {
        let mut lines = LineMap::default();
        let mut total = 0;
        loop {
            total += BLOCK;
            if total > self.limits.special || self.stored < BLOCK as u64 {
                return Err(self.bad("sparse map is too long"));
            }
            let block = self.read_block()?;
            self.stored -= BLOCK as u64;
            if let Some(map) = lines.feed(&block).map_err(|reason| self.bad(reason))? {
                return Ok(map);
            }
        }
    }

    fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.stored.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        match self.inner.read(&mut buffer[..want])? {
            0 => Err(self.bad("the stream ends within the entry").into()),
            n => {
                self.stored -= n as u64;
                self.offset += n as u64;
                Ok(n)
            }
        }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// As [`next`](Reader::next), but passes over the content that was not read without reading it. An entry that the
    /// stream's end cuts short is not noticed.
    pub fn next_by_seek(&mut self) -> Result<Option<Header>, Error> {
        let left = self.stored + self.padding as u64;
        self.inner.seek(SeekFrom::Current(i64::try_from(left).map_err(|_| self.bad("size is out of range"))?))?;
        self.offset += left;
        (self.stored, self.padding) = (0, 0);
        self.next()
    }
}

/// Content of the current entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Content::Sparse { map, segment, position, size } = &mut self.content else {
            return self.read_stored(buffer);
        };
        if let Some((offset, length)) = segment
            && *position >= *offset + *length
        {
            *segment = map.next();
        }
        let (until, is_data) = match *segment {
            Some((offset, _)) if *position < offset => (offset, false),
            Some((offset, length)) => (offset + length, true),
            None => (*size, false),
        };
        let want = (until - *position).min(buffer.len() as u64) as usize;
        let n = match is_data {
            true => self.read_stored(&mut buffer[..want])?,
            false => {
                buffer[..want].fill(0);
                want
            }
        };
        if let Content::Sparse { position, .. } = &mut self.content {
            *position += n as u64;
        }
        Ok(n)
    }
}

/// ustar and PAX blocks look alike; one with bytes beyond ASCII or numbers without their NUL is neither to Go.
fn posix_format(block: &Block) -> Format {
    let numbers = [block::SIZE, block::MODE, block::UID, block::GID, block::MTIME, block::MAJOR, block::MINOR];
    let is_strict = block.0.is_ascii() && numbers.into_iter().all(|field| block.bytes(field).last() == Some(&0));
    if is_strict { Format::USTAR_OR_PAX } else { Format::UNKNOWN }
}

/// Times of a GNU block; or a prefix, in tars of an old bug of Go's (golang.org/issue/12594).
fn gnu_times<'a>(block: &'a Block, header: &mut Header) -> (&'a [u8], Format) {
    let time = |field: block::Field| match block.bytes(field.clone()) {
        [0, ..] => Some(None),
        _ => block.number(field).map(|secs| Some(Time::from_secs(secs))),
    };
    match (time(block::GNU_ATIME), time(block::GNU_CTIME)) {
        (Some(atime), Some(ctime)) => {
            (header.atime, header.ctime) = (atime, ctime);
            (b"", Format::GNU)
        }
        _ => {
            let prefix = block.text(block::PREFIX);
            (if prefix.is_ascii() { prefix } else { b"" }, Format::UNKNOWN)
        }
    }
}

/// Copies the entry that [`Reader::next_item`] gave into a writer.
pub(super) fn copy_item<R: Read, W: io::Write>(
    reader: &mut Reader<R>,
    item: &Item,
    writer: &mut Writer<W>,
) -> Result<(), Error> {
    match item {
        Item::Entry(header) => writer.append_header(header, reader),
        Item::Global { name, records } => writer.append_global(name, records),
    }
}
