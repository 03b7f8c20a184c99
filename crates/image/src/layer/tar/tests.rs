//! Golden headers were made with Go 1.26's `archive/tar`; see `golden/headers.txt` in the order of [`parse_case`].

use std::io::{self, Read};

use base::Digest;
use proptest::prelude::*;

use super::*;
use crate::layer::compression::Decompressor;
use crate::layer::{Entry, EntryKind};

/// format type path link mode uid gid uname gname size mtime atime ctime major,minor records expected; texts in hex
fn parse_case(line: &str) -> (Header, &str) {
    let fields: Vec<&str> = line.split(' ').collect();
    let text = |field: &str| hex(field.trim_matches('-'));
    let time = |field: &str| {
        let (secs, nanos) = field.split_once('.')?;
        Some(Time { secs: secs.parse().expect("seconds"), nanos: nanos.parse().expect("nanoseconds") })
    };
    let (major, minor) = fields[13].split_once(',').expect("a device");
    let mut header = Header {
        format: match fields[0] {
            "auto" => Format::UNKNOWN,
            "pax" => Format::PAX,
            "gnu" => Format::GNU,
            _ => Format::USTAR,
        },
        flag: match fields[1] {
            "0" => TypeFlag::File,
            "1" => TypeFlag::HardLink,
            "2" => TypeFlag::Symlink,
            "3" => TypeFlag::CharDevice,
            "4" => TypeFlag::BlockDevice,
            "5" => TypeFlag::Directory,
            _ => TypeFlag::Fifo,
        },
        path: text(fields[2]),
        link: text(fields[3]),
        mode: u32::from_str_radix(fields[4], 8).expect("a mode"),
        uid: fields[5].parse().expect("a uid"),
        gid: fields[6].parse().expect("a gid"),
        uname: text(fields[7]),
        gname: text(fields[8]),
        size: fields[9].parse().expect("a size"),
        // Go's zero time is the year 1.
        mtime: time(fields[10]).unwrap_or(Time::from_secs(-62_135_596_800)),
        atime: time(fields[11]),
        ctime: time(fields[12]),
        device: (major.parse().expect("major"), minor.parse().expect("minor")),
        ..Header::default()
    };
    for record in fields[14].split(',').filter(|record| *record != "-") {
        let (key, value) = record.split_once('=').expect("a record");
        let (key, value) = (text(key), text(value));
        match key.strip_prefix(b"SCHILY.xattr.") {
            Some(name) => header.xattrs.insert(name.to_vec(), value),
            None => header.records.insert(key, value),
        };
    }
    (header, fields[15])
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).expect("hex") as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn headers_have_the_bytes_of_go() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("golden/headers.txt").lines() {
        count += 1;
        let (header, expected) = parse_case(line);
        let mut writer = Writer::new(Vec::new());
        let got = match writer.write_header(&header) {
            Ok(()) => {
                let bytes = writer.get_mut();
                format!("{}:{}", bytes.len(), &Digest::of(&bytes).hex()[..32])
            }
            Err(_) => "refused".to_owned(),
        };
        if got != expected {
            wrong.push(format!("{header:?}\n  expected {expected}, got {got}"));
        }
    }
    assert!(count > 400);
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, content.as_slice()).expect("an entry that fits");
    }
    writer.finish().expect("a vector takes all")
}

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, crate::Error> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let byte = prop_oneof![8 => 1u8..=255, 1 => Just(b'/'), 2 => Just(b'x')];
    let path = prop::collection::vec(byte.clone(), 1..300).prop_map(|mut path| {
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        if path == b"/" { b"x".to_vec() } else { path }
    });
    let target = prop::collection::vec(1u8..=255, 1..200);
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    let kind = (0..7u8, target, any::<u16>(), any::<u16>());
    let owner = (any::<u32>(), any::<u32>(), 0..0o10000u32, any::<i32>());
    let xattr_name = prop::collection::vec(prop_oneof![1u8..b'=', b'>'..=255], 1..20);
    let xattrs = prop::collection::btree_map(xattr_name, prop::collection::vec(any::<u8>(), 0..50), 0..3);
    (path, kind, owner, xattrs, content).prop_map(
        |(path, (kind, target, major, minor), (uid, gid, mode, secs), xattrs, content)| {
            let (major, minor) = (major.into(), minor.into());
            let kind = match kind {
                0 => EntryKind::File { size: content.len() as u64 },
                1 => EntryKind::Directory,
                2 => EntryKind::Symlink { target },
                3 => EntryKind::HardLink { target },
                4 => EntryKind::CharDevice { major, minor },
                5 => EntryKind::BlockDevice { major, minor },
                _ => EntryKind::Fifo,
            };
            let content = if matches!(kind, EntryKind::File { .. }) { content } else { Vec::new() };
            let mtime = Time::from_secs(i64::from(secs) * 7);
            (Entry { path, kind, mode, uid, gid, mtime, xattrs }, content)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(any_entry(), 0..6)) {
        let bytes = archive(&entries);
        prop_assert_eq!(bytes.len() % BLOCK, 0);
        prop_assert_eq!(read_all(&bytes).expect("our own archive"), entries);
    }

    #[test]
    fn what_is_read_is_written_again_with_the_same_bytes(entries in prop::collection::vec(any_entry(), 0..6)) {
        let bytes = archive(&entries);
        let again = clamp_times(bytes.as_slice(), Vec::new(), i64::MAX).expect("our own archive");
        prop_assert!(again == bytes);
    }

    #[test]
    fn damaged_archives_never_panic(
        entries in prop::collection::vec(any_entry(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        fix_checksums in any::<bool>(),
    ) {
        let mut bytes = archive(&entries);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if fix_checksums {
            for chunk in bytes.as_chunks_mut::<BLOCK>().0 {
                if chunk[257..262] == *b"ustar" {
                    let mut block = super::block::Block(*chunk);
                    block.seal(&chunk[257..265].try_into().expect("8 bytes"));
                    *chunk = block.0;
                }
            }
        }
        _ = read_all(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        _ = read_all(&bytes);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        _ = read_all(&bytes);
    }
}

#[test]
fn content_that_changes_while_it_is_read_is_an_error() {
    let entry = Entry::new("dir/file", EntryKind::File { size: 4 }, 0o644);
    for (content, cause) in [
        (&b"abc"[..], "cannot write `dir/file` as tar: content has 3 of 4 bytes"),
        (b"abcde", "cannot write `dir/file` as tar: content has more than its 4 bytes"),
    ] {
        let error = Writer::new(Vec::new()).append(&entry, content).expect_err(cause);
        assert_eq!(error.to_string(), cause);
    }
}

#[test]
fn what_tar_cannot_hold_is_refused_by_name() {
    let long = Entry::new(vec![b'x'; 2 << 20], EntryKind::Directory, 0);
    let mut nul = Entry::new("a\0b", EntryKind::Directory, 0);
    let refuse = |entry: &Entry| Writer::new(Vec::new()).append(entry, io::empty()).expect_err("refused").to_string();
    assert!(refuse(&long).ends_with("its header is longer than 1048576 bytes"));
    assert_eq!(refuse(&nul), "cannot write `a\0b/` as tar: path holds a NUL byte or its key holds `=`");
    nul.path = b"a/".to_vec();
    nul.kind = EntryKind::Fifo;
    assert_eq!(refuse(&nul), "cannot write `a/` as tar: only directories may end in `/`");
}

/// An archive by hand: `header` blocks sealed, data padded.
struct Raw(Vec<u8>);

impl Raw {
    fn new() -> Raw {
        Raw(Vec::new())
    }

    fn add(mut self, flag: u8, name: &str, size: &str, data: &[u8], magic: &[u8; 8]) -> Raw {
        let mut block = super::block::Block::zero();
        block.0[super::block::TYPE] = flag;
        block.set_text(super::block::NAME, name.as_bytes());
        block.set_text(super::block::SIZE, size.as_bytes());
        block.seal(magic);
        self.0.extend_from_slice(&block.0);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn posix(self, flag: u8, name: &str, data: &[u8]) -> Raw {
        let size = format!("{:o}", data.len());
        self.add(flag, name, &size, data, super::block::MAGIC_USTAR)
    }

    fn gnu(self, flag: u8, name: &str, data: &[u8]) -> Raw {
        let size = format!("{:o}", data.len());
        self.add(flag, name, &size, data, super::block::MAGIC_GNU)
    }
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    super::pax::push(&mut out, key.as_bytes(), value.as_bytes());
    out
}

#[test]
fn hostile_archives_are_refused_with_place_and_cause() {
    let many: Vec<u8> = (0..5000).flat_map(|i| record(&format!("k{i}"), "v")).collect();
    let pax = |data: &[u8]| Raw::new().posix(b'x', "h", data).posix(b'0', "f", b"").0;
    let sparse = |map: &str, count: &str, size: &str| {
        let data = [
            record("GNU.sparse.major", "0"),
            record("GNU.sparse.minor", "1"),
            record("GNU.sparse.numblocks", count),
            record("GNU.sparse.map", map),
            record("GNU.sparse.size", size),
        ];
        Raw::new().posix(b'x', "h", &data.concat()).posix(b'0', "f", b"1234").0
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![1; 512], "invalid tar at offset 0, entry `\u{1}"),
        (
            Raw::new().posix(b'0', "f", b"abc").0[..514].to_vec(),
            "invalid tar at offset 0, entry `f`: the stream ends within the entry",
        ),
        (
            Raw::new().posix(b'0', "f", b"abc").0[..400].to_vec(),
            "invalid tar at offset 0: the stream ends within a header",
        ),
        (
            Raw::new().add(b'0', "f", "-1", b"", b"ustar\x0000").0,
            "invalid tar at offset 0, entry `f`: malformed size in header",
        ),
        (
            Raw::new().add(b'0', "f", "\u{7f}", b"", b"ustar\x0000").0,
            "invalid tar at offset 0, entry `f`: malformed size in header",
        ),
        (
            Raw::new().add(b'x', "h", "77777777777", b"", b"ustar\x0000").0,
            "invalid tar at offset 0, entry `h`: extended header is larger than 1048576 bytes",
        ),
        (
            Raw::new().add(b'L', "h", "77777777777", b"", b"ustar  \0").0,
            "invalid tar at offset 0, entry `h`: extended header is larger than 1048576 bytes",
        ),
        (
            Raw::new().gnu(b'L', "h", &[b'n'; 20000]).gnu(b'0', "f", b"").0,
            "invalid tar at offset 0, entry `h`: name is longer than 16384 bytes",
        ),
        (
            pax(&record("path", &"n".repeat(20000))),
            "invalid tar at offset 0, entry `f`: name is longer than 16384 bytes",
        ),
        (pax(b"garbage"), "invalid tar at offset 0, entry `h`: malformed PAX record"),
        (pax(b"99 a=b\n"), "invalid tar at offset 0, entry `h`: malformed PAX record"),
        (pax(b"0 a=b\n"), "invalid tar at offset 0, entry `h`: malformed PAX record"),
        (pax(b"18446744073709551615 a=b\n"), "invalid tar at offset 0, entry `h`: malformed PAX record"),
        (pax(&record("path", "a\0b")), "invalid tar at offset 0, entry `h`: malformed PAX record"),
        (pax(&record("size", "-5")), "invalid tar at offset 0, entry `f`: malformed PAX record `size`"),
        (pax(&record("mtime", "1.x")), "invalid tar at offset 0, entry `f`: malformed PAX record `mtime`"),
        (pax(&record("uid", "99999999999")), "invalid tar at offset 0, entry `f`: id 99999999999 is out of range"),
        (pax(&many), "invalid tar at offset 0, entry `h`: more than 4096 PAX records"),
        (Raw::new().posix(b'V', "volume", b"").0, "invalid tar at offset 0, entry `volume`: unsupported type `V`"),
        (
            Raw::new()
                .posix(b'0', "a", b"")
                .0
                .into_iter()
                .chain([0; 512])
                .chain(Raw::new().posix(b'0', "b", b"").0)
                .collect(),
            "invalid tar at offset 512: a block of zeros between entries",
        ),
        (
            sparse("0,4", "2", "9"),
            "invalid tar at offset 0, entry `f`: sparse map does not have as many blocks as it says",
        ),
        (sparse("0,4", "1", "3"), "invalid tar at offset 0, entry `f`: sparse map reaches beyond the end of the file"),
        (sparse("4,2,0,2", "2", "9"), "invalid tar at offset 0, entry `f`: sparse map is out of order"),
        (sparse("0,5", "1", "9"), "invalid tar at offset 0, entry `f`: sparse map does not agree with the stored size"),
        (sparse("0,x", "1", "9"), "invalid tar at offset 0, entry `f`: malformed sparse map"),
        (
            sparse("0,4", "1", "9223372036854775807"),
            "invalid tar at offset 0, entry `f`: sparse file is larger than 1099511627776 bytes",
        ),
        (
            sparse("9223372036854775807,9223372036854775807,1,4", "2", "9"),
            "invalid tar at offset 0, entry `f`: sparse map is out of order",
        ),
        (Raw::new().gnu(b'S', "s", b"").0[..512].to_vec(), ""),
    ];
    for (bytes, cause) in cases {
        match read_all(&bytes) {
            Err(error) => {
                assert!(error.to_string().starts_with(cause) && !cause.is_empty(), "{error}, expected {cause}")
            }
            Ok(entries) => assert!(cause.is_empty(), "{entries:?}, expected {cause}"),
        }
    }
}

#[test]
fn an_archive_is_what_go_reads_the_first_header_of() {
    let pax = |data: &[u8]| Raw::new().posix(b'x', "h", data).posix(b'0', "f", b"").0;
    let many: Vec<u8> = (0..5000).flat_map(|i| record(&format!("k{i}"), "v")).collect();
    for (bytes, expected) in [
        (Raw::new().posix(b'0', "f", b"").0, true),
        (Raw::new().posix(b'g', "all", &record("comment", "x")).0, true),
        // What is read here is less.
        (pax(&record("uid", "4294967301")), true),
        (pax(&record("path", &"n".repeat(20_000))), true),
        (pax(&many), true),
        (Raw::new().posix(b'V', "volume", b"").0, true),
        (pax(&record("uid", "x")), false),
        (pax(b"99 a=b\n"), false),
        (Raw::new().posix(b'0', "f", b"").0[..400].to_vec(), false),
        (vec![b'x'; 2048], false),
        (vec![0; 1024], false),
        (Vec::new(), false),
    ] {
        assert_eq!(is_archive(&bytes[..]), expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)]));
    }
}

#[test]
fn old_and_foreign_archives_are_read() {
    // V7: no magic, NUL as type, directories by their slash.
    let v7 = Raw::new().add(0, "dir/", "0", b"", &[0; 8]).add(0, "dir/f", " 3 \0", b"abc", &[0; 8]).0;
    let entries = read_all(&v7).expect("a V7 archive");
    assert_eq!(entries[0].0.kind, EntryKind::Directory);
    assert_eq!(entries[0].0.path, b"dir");
    assert_eq!((entries[1].0.kind.clone(), entries[1].1.as_slice()), (EntryKind::File { size: 3 }, &b"abc"[..]));
    // GNU long names, a PAX header whose values win, an empty value that does not, a global header that is skipped.
    let long = "n/".repeat(80) + "f";
    let archive = Raw::new()
        .posix(b'g', "pax_global_header", &record("comment", "0123"))
        .gnu(b'L', "././@LongLink", format!("{long}\0").as_bytes())
        .gnu(b'K', "././@LongLink", b"target\0")
        .gnu(b'2', "short", b"")
        .posix(
            b'x',
            "h",
            &[record("path", "named"), record("uid", "1000"), record("mtime", "-1.25"), record("gname", "")].concat(),
        )
        .posix(b'0', "f", b"x")
        .0;
    let entries = read_all(&archive).expect("a mixed archive");
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!(entries[0].0.kind, EntryKind::Symlink { target: b"target".to_vec() });
    assert_eq!((entries[1].0.path.as_slice(), entries[1].0.uid), (&b"named"[..], 1000));
    assert_eq!(entries[1].0.mtime, Time { secs: -2, nanos: 750_000_000 });
    // Numbers in GNU's binary form.
    for (field, value) in
        [("8:80000000deadbeef", 0xdead_beef_i64), ("8:ffffffffffffffff", -1), ("12:800000000000000200000000", 1 << 33)]
    {
        let bytes = hex(field.split_once(':').expect("a length").1);
        assert_eq!(super::block::parse_number(&bytes), Some(value), "{field}");
    }
    assert_eq!(super::block::parse_number(&[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
}

#[test]
fn sparse_files_of_all_forms_are_read_with_their_holes() {
    let mut expected = vec![0; 20];
    expected[2..5].copy_from_slice(b"abc");
    expected[10..12].copy_from_slice(b"de");
    let common = [record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"), record("GNU.sparse.name", "real")];
    let v1 = [common.concat(), record("GNU.sparse.realsize", "20")].concat();
    let mut content = b"2\n2\n3\n10\n2\n".to_vec();
    content.resize(BLOCK, 0);
    content.extend_from_slice(b"abcde");
    let pairs = [("2", "3"), ("10", "2")];
    let v00 = pairs.map(|(o, n)| [record("GNU.sparse.offset", o), record("GNU.sparse.numbytes", n)].concat()).concat();
    let v00 = [record("GNU.sparse.size", "20"), record("GNU.sparse.numblocks", "2"), v00].concat();
    let v01 =
        [record("GNU.sparse.size", "20"), record("GNU.sparse.numblocks", "2"), record("GNU.sparse.map", "2,3,10,2")];
    let mut old = super::block::Block::zero();
    old.0[super::block::TYPE] = b'S';
    old.set_text(super::block::NAME, b"real");
    old.set_octal(super::block::SIZE, 5);
    for (i, n) in [2, 3, 10, 2].into_iter().enumerate() {
        old.set_octal(386 + i * 12..398 + i * 12, n);
    }
    old.set_octal(super::block::GNU_REAL_SIZE, 20);
    old.seal(super::block::MAGIC_GNU);
    let mut old = old.0.to_vec();
    old.extend_from_slice(b"abcde");
    old.resize(2 * BLOCK, 0);
    for archive in [
        Raw::new().posix(b'x', "h", &v1).posix(b'0', "GNUSparseFile.0/real", &content).0,
        Raw::new().posix(b'x', "h", &v00).posix(b'0', "real", b"abcde").0,
        Raw::new().posix(b'x', "h", &v01.concat()).posix(b'0', "real", b"abcde").0,
        old,
    ] {
        let archive = [archive, Raw::new().posix(b'0', "next", b"ok").0].concat();
        let entries = read_all(&archive).expect("a sparse file");
        assert_eq!((entries[0].0.path.as_slice(), entries[0].1.as_slice()), (&b"real"[..], expected.as_slice()));
        assert_eq!(entries[1].1, b"ok");
        // Written again it is plain.
        let plain = clamp_times(archive.as_slice(), Vec::new(), 0).expect("a sparse file");
        assert_eq!(read_all(&plain).expect("our own archive")[0].1, expected);
    }
}

#[test]
fn times_are_clamped() {
    let mut late = Entry::new("late", EntryKind::File { size: 1 }, 0o644);
    late.mtime = Time::from_secs(1_700_000_000);
    let early = Entry { path: b"early".to_vec(), mtime: Time::from_secs(5), ..late.clone() };
    let bytes = archive(&[(late.clone(), vec![1]), (early.clone(), vec![2])]);
    let clamped = clamp_times(bytes.as_slice(), Vec::new(), 1_000_000).expect("our own archive");
    late.mtime = Time::from_secs(1_000_000);
    assert_eq!(clamped, archive(&[(late, vec![1]), (early, vec![2])]));
}

/// The archives were made by GNU tar and Python's tarfile, the digests by BuildKit's tarconverter.
#[test]
fn clamped_archives_have_the_bytes_of_buildkit() {
    for (name, gzipped, size, digest) in [
        (
            "gnu",
            &include_bytes!("golden/gnu.tar.gz")[..],
            12288,
            "c34651ca12816954b2b8765dbc6295faaf8ba75e6ab425ba6e63d0768d4402fa",
        ),
        (
            "pax",
            &include_bytes!("golden/pax.tar.gz")[..],
            20480,
            "ca08e3133866e8a8e771a8202cf448583d695fd08ddc3d2d1d97658a5d546183",
        ),
        (
            "paxglobal",
            &include_bytes!("golden/paxglobal.tar.gz")[..],
            21504,
            "057c8479dc2cde3fa9dbfd2d209a022a60ac5434cfde98a8cdd8da274b22fb0d",
        ),
        (
            "pypax",
            &include_bytes!("golden/pypax.tar.gz")[..],
            6144,
            "24aafca2084fa0aa5aedd2ce4d8a64c3b959241d2899b18beda7a98711fd3224",
        ),
        (
            "ustar",
            &include_bytes!("golden/ustar.tar.gz")[..],
            9728,
            "53ccb61d7894d573875a5354ee2fb000d3747196f29336dbce138258b6777aa9",
        ),
        (
            "v7",
            &include_bytes!("golden/v7.tar.gz")[..],
            8704,
            "3c6bfe87f78c77c874ce16e89f089a477c78876a293d26c154e51dc0deed2681",
        ),
    ] {
        let source = Decompressor::new(gzipped, 1 << 20).expect("an archive");
        let clamped = clamp_times(source, Vec::new(), 1_700_000_000).expect("an archive");
        assert_eq!((clamped.len(), Digest::of(&clamped).hex().as_str()), (size, digest), "{name}");
    }
}
