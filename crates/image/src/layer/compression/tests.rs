use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use base::Digest;
use proptest::prelude::*;

use super::*;
use crate::Descriptor;

const MIB: usize = 1 << 20;

/// Bytes that look random, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    out.truncate(len);
    out
}

/// Text, zeros, noise and copies of what came before, in pieces of odd sizes.
fn mixed(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let dice = noise(seed, 16 * (len / 1000 + 1));
    for (i, roll) in dice.chunks_exact(2).cycle().enumerate() {
        if out.len() >= len {
            break;
        }
        let n = usize::from(roll[1]) * 400 + 17;
        match roll[0] % 4 {
            0 => out.extend(noise(seed + i as u64, n)),
            1 => out.resize(out.len() + n, 0),
            2 => out.extend((0..n).map(|j| b"the quick brown fox; "[(j * (i % 7 + 1) / 3) % 21])),
            _ => {
                let from = out.len().saturating_sub(n * 2);
                out.extend_from_within(from..(from + n).min(out.len()));
            }
        }
    }
    out.truncate(len);
    out
}

fn compress(content: &[u8], options: CompressionOptions, cut: usize) -> (Compressed, Vec<u8>) {
    let mut compressor = Compressor::new(Vec::new(), &options).expect("valid options");
    content.chunks(cut).for_each(|piece| compressor.write_all(piece).expect("a vector takes all"));
    compressor.finish().expect("a vector takes all")
}

fn decompress(blob: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    Decompressor::new(blob, 1 << 30)?.read_to_end(&mut out)?;
    Ok(out)
}

const KINDS: [Compression; 3] = [Compression::Uncompressed, Compression::Gzip, Compression::Zstd];

#[test]
fn of_a_tar_that_is_known_comes_the_same_blob() {
    let content = mixed(3, 3 * MIB + 17);
    for kind in KINDS {
        let options = CompressionOptions::new(kind, 2);
        let (plain, blob) = compress(&content, options, MIB);
        let again = |tar: Tar| {
            let mut compressor = Compressor::of(Some(tar), Vec::new(), &options).expect("valid options");
            compressor.write_all(&content).expect("a vector takes all");
            compressor.finish()
        };
        assert_eq!(again(plain.tar()).expect("a vector takes all"), (plain, blob), "{kind}");
        // What is said of it is believed, except where nothing else has a digest.
        let told = Tar { diff_id: Digest::of("told"), ..plain.tar() };
        let (believed, other) = (again(told).expect("of that size").0.diff_id, again(Tar { size: 1, ..told }));
        match kind {
            Compression::Uncompressed => {
                assert_eq!((believed, other.expect("digested").0), (plain.diff_id, plain));
            }
            _ => {
                assert_eq!(believed, told.diff_id, "{kind}");
                assert!(matches!(other, Err(Error::OtherTar { expected: 1, .. })), "{kind}");
            }
        }
    }
}

/// A sink that tells when it is gone.
struct Told(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // The threads of a compressor that does not wait would be slower than its owner.
        std::thread::sleep(std::time::Duration::from_millis(20));
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn nobody_has_the_sink_of_a_dropped_compressor() {
    for kind in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
        let gone = std::sync::Arc::default();
        let mut compressor = Compressor::new(Told(std::sync::Arc::clone(&gone)), &CompressionOptions::new(kind, 2))
            .expect("valid options");
        compressor.write_all(&noise(1, 8 << 20)).expect("a sink that takes all");
        drop(compressor);
        assert!(gone.load(std::sync::atomic::Ordering::SeqCst), "{kind:?}");
    }
}

#[test]
fn bytes_do_not_depend_on_threads_or_cuts() {
    let contents = [vec![], b"a".to_vec(), mixed(1, gzip::BLOCK), mixed(2, gzip::BLOCK + 1), mixed(3, 5 * MIB + 12345)];
    for kind in KINDS {
        for content in &contents {
            let (expected, blob) = compress(content, CompressionOptions::new(kind, 1), usize::MAX);
            assert_eq!(expected.diff_id, Digest::of(content), "{kind}");
            assert_eq!(expected.digest, Digest::of(&blob), "{kind}");
            assert_eq!(
                (expected.uncompressed_size, expected.size),
                (content.len() as u64, blob.len() as u64),
                "{kind}"
            );
            assert!(decompress(&blob).expect("our own blob") == *content, "{kind}");
            for (threads, cut) in [(1, 1000), (2, usize::MAX), (3, 77_777), (8, 4096), (2, 512), (3, MIB)] {
                let (got, again) = compress(content, CompressionOptions::new(kind, threads), cut);
                assert_eq!(got, expected, "{kind}, {threads} threads");
                assert!(again == blob, "{kind}, {threads} threads");
            }
        }
    }
}

/// Machine code: what shows an encoder that finds other matches in other states, as some do after a reset.
#[test]
fn machine_code_gives_the_same_bytes_too() {
    let program = std::fs::read(std::env::current_exe().expect("a path")).expect("this program");
    let content = &program[..program.len().min(8 * MIB)];
    for kind in [Compression::Gzip, Compression::Zstd] {
        let (expected, _) = compress(content, CompressionOptions::new(kind, 1), usize::MAX);
        for threads in [2, 3, 8] {
            assert_eq!(compress(content, CompressionOptions::new(kind, threads), MIB).0, expected, "{kind}, {threads}");
        }
    }
}

#[test]
fn gzip_is_one_member_that_any_reader_takes() {
    let content = mixed(4, 3 * MIB);
    let (_, blob) = compress(&content, CompressionOptions::new(Compression::Gzip, 2), usize::MAX);
    assert_eq!(blob[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    // `GzDecoder` stops behind the first member.
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(blob.as_slice()).read_to_end(&mut out).expect("one member");
    assert!(out == content);
}

#[test]
fn levels_are_kept_and_checked() {
    // Machine code: every level finds more than the one before.
    let program = std::fs::read(std::env::current_exe().expect("a path")).expect("this program");
    let content = &program[..program.len().min(MIB)];
    let size = |kind, level| {
        let options = CompressionOptions { level: Some(level), ..CompressionOptions::new(kind, 2) };
        let (_, blob) = compress(content, options, usize::MAX);
        assert!(decompress(&blob).expect("our own blob") == content, "{kind} {level}");
        blob.len()
    };
    assert!(size(Compression::Gzip, 0) > content.len());
    assert!(size(Compression::Gzip, 9) < size(Compression::Gzip, 1));
    assert_eq!(
        size(Compression::Gzip, -1),
        compress(content, CompressionOptions::new(Compression::Gzip, 1), 9).1.len()
    );
    assert!(size(Compression::Zstd, 19) < size(Compression::Zstd, 1));
    assert!(size(Compression::Uncompressed, 77) == content.len());
    for (kind, level, cause) in [
        (Compression::Gzip, 10, "compression level 10 is out of range for gzip: expected -1 to 9"),
        (Compression::Zstd, 23, "compression level 23 is out of range for zstd: expected -7 to 22"),
    ] {
        let options = CompressionOptions { level: Some(level), ..CompressionOptions::new(kind, 1) };
        assert_eq!(options.validate().expect_err(cause).to_string(), cause);
    }
    let refused = "estargz".parse::<Compression>().expect_err("not made").to_string();
    assert_eq!(refused, "unsupported compression `estargz`: expected uncompressed, gzip or zstd");
}

#[test]
fn noise_is_stored_and_repeated_noise_is_not() {
    let random = noise(6, 2 * MIB);
    let (out, _) = compress(&random, CompressionOptions::new(Compression::Gzip, 1), usize::MAX);
    assert!(out.size > random.len() as u64 && out.size < random.len() as u64 + 1024, "{}", out.size);
    let repeated = noise(7, 20_000).repeat(60);
    let (out, _) = compress(&repeated, CompressionOptions::new(Compression::Gzip, 1), usize::MAX);
    assert!(out.size < repeated.len() as u64 / 4, "{}", out.size);
}

/// A writer that is full after so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_sink_stops_the_writer_with_its_own_error() {
    for kind in KINDS {
        let mut compressor = Compressor::new(Full(3 * MIB), &CompressionOptions::new(kind, 2)).expect("valid options");
        let piece = noise(8, MIB);
        let result = (0..100).try_for_each(|_| compressor.write_all(&piece));
        let error = result.expect_err("the sink is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{kind}: {error}");
        assert!(compressor.finish().is_err());
        // Small blobs fail at the end.
        let mut compressor = Compressor::new(Full(100), &CompressionOptions::new(kind, 2)).expect("valid options");
        compressor.write_all(&piece[..1000]).expect("not yet passed on");
        assert!(matches!(compressor.finish(), Err(Error::Io(error)) if error.kind() == io::ErrorKind::StorageFull));
    }
}

#[test]
fn a_dropped_compressor_lets_its_sink_go() {
    let sink = Arc::new(Mutex::new(0usize));
    struct Count(Arc<Mutex<usize>>);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            *self.0.lock().expect("not poisoned") += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut compressor =
        Compressor::new(Count(sink.clone()), &CompressionOptions::new(Compression::Gzip, 2)).expect("valid options");
    compressor.write_all(&mixed(9, 4 * MIB)).expect("taken");
    drop(compressor);
    while Arc::strong_count(&sink) > 1 {
        std::thread::yield_now();
    }
}

fn zstd_bytes(content: &[u8]) -> Vec<u8> {
    compress(content, CompressionOptions::new(Compression::Zstd, 1), usize::MAX).1
}

fn gzip_bytes(content: &[u8]) -> Vec<u8> {
    compress(content, CompressionOptions::new(Compression::Gzip, 1), usize::MAX).1
}

#[test]
fn streams_of_several_parts_are_read_and_garbage_is_not() {
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
    let content = mixed(10, 300_000);
    let twice = content.repeat(2);
    let (gz, zs) = (gzip_bytes(&content), zstd_bytes(&content));
    for (blob, expected) in [
        (gz.repeat(2), Ok(&twice)),
        (zs.repeat(2), Ok(&twice)),
        ([&skippable[..], &zs, &skippable, &zs, &skippable].concat(), Ok(&twice)),
        (content.clone(), Ok(&content)),
        ([&gz[..], b"garbage"].concat(), Err("invalid gzip stream: garbage behind its end")),
        ([&gz[..], &[0; 16]].concat(), Err("invalid gzip stream: garbage behind its end")),
        ([&gz[..], &[0x1f, 0x8b]].concat(), Err("invalid gzip stream: it ends early")),
        ([&zs[..], b"garbage"].concat(), Err("invalid zstd stream: ")),
        ([&zs[..], b"g"].concat(), Err("invalid zstd stream: ")),
        (gz[..gz.len() / 2].to_vec(), Err("invalid gzip stream: it ends early")),
        (gz[..gz.len() - 1].to_vec(), Err("invalid gzip stream: it ends early")),
        (gz[..gz.len() - 8].to_vec(), Err("invalid gzip stream: it ends early")),
        (gz[..5].to_vec(), Err("invalid gzip stream: it ends early")),
        (zs[..zs.len() / 2].to_vec(), Err("invalid zstd stream: it ends early")),
        (zs[..zs.len() - 1].to_vec(), Err("invalid zstd stream: it ends early")),
        (zs[..4].to_vec(), Err("invalid zstd stream: it ends early")),
        ([&gz[..gz.len() - 8], &[0; 8]].concat(), Err("invalid gzip stream: ")),
    ] {
        match (decompress(&blob), expected) {
            (Ok(got), Ok(expected)) => assert!(got == *expected),
            (Err(got), Err(expected)) => assert!(got.to_string().starts_with(expected), "{got}, expected {expected}"),
            (got, expected) => panic!("{:?}, expected {:?}", got.map(|g| g.len()), expected.map(Vec::len)),
        }
    }
}

#[test]
fn bombs_stop_at_the_limit() {
    let zeros = vec![0; 50 * MIB];
    for blob in [gzip_bytes(&zeros), zstd_bytes(&zeros)] {
        let mut out = Vec::new();
        let mut reader = Decompressor::new(blob.as_slice(), 10 * MIB as u64).expect("a blob");
        let error: Error = reader.read_to_end(&mut out).expect_err("a bomb").into();
        assert_eq!(error.to_string(), "decompressed layer is larger than the limit of 10485760 bytes");
        assert_eq!(out.len(), 10 * MIB);
    }
    assert_eq!(decompress(&gzip_bytes(&zeros[..1000])).expect("exactly the limit").len(), 1000);
    let mut exact = Decompressor::new(zeros[..MIB].as_ref(), MIB as u64).expect("plain");
    assert_eq!(io::copy(&mut exact, &mut io::sink()).expect("exactly the limit"), MIB as u64);
}

/// Gives single bytes, and an error at the end.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        self.0.read(&mut buffer[..1])
    }
}

#[test]
fn errors_of_the_source_pass_through() {
    let content = mixed(11, 10_000);
    for blob in [gzip_bytes(&content), zstd_bytes(&content)] {
        let mut out = Vec::new();
        let mut reader = Decompressor::new(Trickle(&blob[..blob.len() / 2]), 1 << 30).expect("a beginning");
        assert_ne!(reader.kind(), Compression::Uncompressed);
        assert_eq!(reader.read_to_end(&mut out).expect_err("cut").kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn unpacking_verifies_the_blob_and_knows_the_diff_id() {
    let content = mixed(12, 3 * MIB);
    for kind in KINDS {
        let (out, blob) = compress(&content, CompressionOptions::new(kind, 2), usize::MAX);
        let descriptor = Descriptor::new("", out.digest, out.size);
        let unpack = |blob: Vec<u8>, descriptor: &Descriptor, limit| {
            let mut unpacker = Unpacker::start(io::Cursor::new(blob), descriptor, limit).expect("threads");
            let mut head = [0; 100];
            unpacker
                .read_exact(&mut head)
                .and_then(|()| Ok(unpacker.finish()?))
                .map_err(|error| Error::from(error).to_string())
        };
        let unpacked = unpack(blob.clone(), &descriptor, u64::MAX).expect("our own blob");
        assert_eq!(unpacked, Unpacked { diff_id: out.diff_id, size: content.len() as u64 });

        let wrong = Descriptor::new("", Digest::of(b"other"), out.size);
        let error = unpack(blob.clone(), &wrong, u64::MAX).expect_err("another digest");
        assert_eq!(error, format!("content of {} has digest {}", wrong.digest, out.digest));

        let longer = [&blob[..], b"x"].concat();
        let error = unpack(longer, &descriptor, u64::MAX).expect_err("too long");
        assert_eq!(error, format!("content of {} has more than {} bytes, expected {}", out.digest, out.size, out.size));

        let cut = blob[..blob.len() - 5].to_vec();
        let error = unpack(cut, &descriptor, u64::MAX).expect_err("too short");
        assert_eq!(error, format!("content of {} has {} bytes, expected {}", out.digest, out.size - 5, out.size));

        let error = unpack(blob, &descriptor, MIB as u64).expect_err("a bomb");
        assert_eq!(error, "decompressed layer is larger than the limit of 1048576 bytes");
    }
}

#[test]
fn a_tar_that_others_digest_is_verified_at_its_end() {
    let content = mixed(13, 3 * MIB);
    for kind in KINDS {
        let (out, blob) = compress(&content, CompressionOptions::new(kind, 2), usize::MAX);
        let read = |blob: &[u8], descriptor: &Descriptor| {
            let blob = io::Cursor::new(blob.to_vec());
            let mut tar = BlobTar::start(blob, descriptor, u64::MAX).expect("threads");
            let mut read = Vec::new();
            tar.read_to_end(&mut read).map(|_| read).map_err(|error| Error::from(error).to_string())
        };
        let descriptor = Descriptor::new("", out.digest, out.size);
        assert!(read(&blob, &descriptor).expect("our own blob") == content);
        let wrong = Descriptor::new("", Digest::of(b"other"), out.size);
        let error = read(&blob, &wrong).expect_err("another digest");
        assert_eq!(error, format!("content of {} has digest {}", wrong.digest, out.digest));
        let error = read(&blob[..blob.len() - 5], &descriptor).expect_err("too short");
        assert_eq!(error, format!("content of {} has {} bytes, expected {}", out.digest, out.size - 5, out.size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_content_round_trips(seed in any::<u64>(), len in 0..2 * MIB, level in -1..=9, threads in 1..4usize) {
        let content = mixed(seed >> 8, len);
        let gzip = CompressionOptions { level: Some(level), ..CompressionOptions::new(Compression::Gzip, threads) };
        let zstd = CompressionOptions { level: Some(level), ..CompressionOptions::new(Compression::Zstd, threads) };
        for options in [gzip, zstd] {
            let (_, blob) = compress(&content, options, 100_000);
            prop_assert!(decompress(&blob).expect("our own blob") == content);
        }
    }

    #[test]
    fn damaged_blobs_never_panic(seed in any::<u64>(), at in any::<prop::sample::Index>(), byte in any::<u8>(), gzip in any::<bool>()) {
        let content = mixed(seed >> 8, 100_000);
        let mut blob = if gzip { gzip_bytes(&content) } else { zstd_bytes(&content) };
        let at = at.index(blob.len());
        blob[at] = byte;
        _ = decompress(&blob);
    }

    #[test]
    fn noise_is_no_blob(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), magic in 0..3usize) {
        let head: &[u8] = [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]][magic];
        bytes.splice(0..0, head.iter().copied());
        _ = decompress(&bytes);
    }
}
