//! Tar archives with any header, however wrong.

use bytes::Bytes;

const BLOCK: usize = 512;

/// An archive under way. Every entry belongs to root and is of time zero unless it says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Archive(Vec<u8>);

/// One entry: a header and what follows it.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The type flag: `b'0'` a file, `b'1'` a hard link, `b'2'` a symbolic one, `b'5'` a directory, ..
    pub flag: u8,
    /// The name, at most 100 bytes; longer ones stand in a GNU or PAX header before.
    pub name: &'a [u8],
    /// The link's target, at most 100 bytes.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Major and minor number.
    pub device: (u32, u32),
    /// What the header says of the size; none is the truth.
    pub size: Option<u64>,
    /// What follows.
    pub data: &'a [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry { flag: b'0', name: b"", link: b"", mode: 0o644, owner: (0, 0), device: (0, 0), size: None, data: b"" }
    }
}

impl Archive {
    /// An empty one.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// Adds an entry.
    #[must_use]
    pub fn entry(mut self, entry: Entry<'_>) -> Archive {
        self.0.extend_from_slice(&header(&entry));
        self.0.extend_from_slice(entry.data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Archive {
        self.entry(Entry { name: name.as_ref(), data: data.as_ref(), ..Entry::default() })
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, name: impl AsRef<[u8]>) -> Archive {
        self.entry(Entry { flag: b'5', name: name.as_ref(), mode: 0o755, ..Entry::default() })
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Archive {
        self.link(b'2', name.as_ref(), target.as_ref())
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Archive {
        self.link(b'1', name.as_ref(), target.as_ref())
    }

    /// Adds PAX records (flag `x`) for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &str)]) -> Archive {
        let data: String = records.iter().map(|(key, value)| record(key, value)).collect();
        self.entry(Entry { flag: b'x', name: b"pax", data: data.as_bytes(), ..Entry::default() })
    }

    /// Adds a GNU long name (flag `L`) or long link (`K`) for the next entry.
    #[must_use]
    pub fn gnu_long(self, flag: u8, text: impl AsRef<[u8]>) -> Archive {
        self.entry(Entry { flag, name: b"././@LongLink", data: text.as_ref(), ..Entry::default() })
    }

    /// Adds bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Archive {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The archive with its end mark.
    pub fn end(self) -> Bytes {
        self.raw(&[0; 2 * BLOCK]).cut()
    }

    /// The archive as far as it came.
    pub fn cut(self) -> Bytes {
        self.0.into()
    }

    fn link(self, flag: u8, name: &[u8], link: &[u8]) -> Archive {
        // Longer ones come by the headers that GNU has for them.
        let named = if name.len() > 100 { self.gnu_long(b'L', name) } else { self };
        let linked = if link.len() > 100 { named.gnu_long(b'K', link) } else { named };
        let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
        linked.entry(Entry { flag, name, link, mode: 0o777, ..Entry::default() })
    }
}

/// A zstd stream of these bytes with so many zeros behind them, up to the next 128 KiB: four bytes say as much.
pub fn inflating(head: &[u8], zeros: u64) -> Bytes {
    const MOST: usize = 128 << 10;
    // RFC 8878: the magic number, no content size, a window of one block.
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
    let block = |kind: u32, size: usize| ((size as u32) << 3 | kind << 1).to_le_bytes();
    for raw in head.chunks(MOST) {
        stream.extend_from_slice(&block(0, raw.len())[..3]);
        stream.extend_from_slice(raw);
    }
    let [a, b, c, _] = block(1, MOST);
    stream.extend([a, b, c, 0].repeat(zeros.div_ceil(MOST as u64) as usize));
    // The last block is empty.
    stream.extend_from_slice(&[1, 0, 0]);
    stream.into()
}

/// `length key=value\n`, where the length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let digits = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap_or(1);
    format!("{} {key}={value}\n", rest + digits)
}

fn header(entry: &Entry<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    assert!(entry.name.len() <= 100 && entry.link.len() <= 100, "longer names need a header of their own");
    put(0, entry.name);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, format!("{:07o}", entry.owner.0).as_bytes());
    put(116, format!("{:07o}", entry.owner.1).as_bytes());
    let size = entry.size.unwrap_or(entry.data.len() as u64);
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        // Base 256, as GNU writes large ones.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[entry.flag]);
    put(157, entry.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", entry.device.0).as_bytes());
    put(337, format!("{:07o}", entry.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
