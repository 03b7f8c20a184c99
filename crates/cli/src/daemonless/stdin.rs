//! What `hullworks build -` reads: a tar, plain or compressed with gzip or zstd, is the context; anything else is a
//! Dockerfile that has none.

use std::io::{self, Cursor, Read};
use std::os::fd::OwnedFd;

use base::{Cancel, Fault, Kind};
use files::untar::{self, Devices, Times};
use image::Compression;
use image::layer::compression::Decompressor;
use image::layer::tar;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use store::TarSource;
use tokio_util::sync::CancellationToken;

use super::Scratch;
use super::signals::cut_short;

/// The largest Dockerfile that standard input may hold.
const MAX_DOCKERFILE: u64 = 16 << 20;
/// A tar header.
const HEADER: u64 = 512;

/// Standard input, until nobody waits for it any more.
pub struct Input {
    /// Its other end is closed then.
    given_up: OwnedFd,
    cancel: Cancel,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let stdin = rustix::stdio::stdin();
        let mut ends = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.given_up, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ends, None))?;
        if !ends[1].revents().is_empty() {
            self.cancel.cancel();
        }
        self.cancel.check()?;
        Ok(rustix::io::read(stdin, buffer)?)
    }
}

/// Has standard input read on a thread of its own. Once the build is cancelled, nothing is left of what was read.
pub async fn read<T: Send + 'static>(
    cancel: &CancellationToken,
    work: impl FnOnce(Input, Cancel) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let failed = |errno| Fault::because(Kind::Environment, "cannot read standard input", io::Error::from(errno));
    let (given_up, waiting) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let stop = Cancel::new();
    let input = Input { given_up, cancel: stop.clone() };
    let given = stop.clone();
    let mut thread = tokio::task::spawn_blocking(move || work(input, given));
    let done = tokio::select! {
        done = &mut thread => done,
        () = cancel.cancelled() => {
            stop.cancel();
            drop(waiting);
            drop(thread.await);
            return Err(cut_short("build cancelled").context("failed to solve"));
        }
    };
    done.unwrap_or_else(|error| Err(Fault::because(Kind::Internal, "cannot read standard input", error)))
}

/// What standard input holds.
pub enum Stdin {
    /// A directory with a file `Dockerfile`.
    Dockerfile(Scratch),
    /// A directory with the files of an archive.
    Context(Scratch),
}

impl Stdin {
    /// Reads and unpacks it.
    pub fn read(mut input: impl Read, cancel: Cancel) -> Result<Stdin, Fault> {
        let head = take(&mut input, HEADER)?;
        for (magic, name) in [(&b"BZh"[..], "bzip2"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz")] {
            if head.starts_with(magic) {
                return Err(Fault::user(format!(
                    "a context on standard input that is compressed with {name} is not supported yet"
                ))
                .hint("compress it with gzip or zstd"));
            }
        }
        if is_tar(&head) || Compression::detect(&head) != Compression::Uncompressed {
            return unpacked(Cursor::new(head).chain(input), cancel).map(Stdin::Context);
        }
        dockerfile(Cursor::new(head).chain(input)).map(Stdin::Dockerfile)
    }
}

/// Standard input as a file `Dockerfile` in a directory of its own.
pub fn dockerfile(mut input: impl Read) -> Result<Scratch, Fault> {
    let bytes = take(&mut input, MAX_DOCKERFILE + 1)?;
    if is_tar(&bytes) {
        return Err(Fault::user("standard input is an archive and no Dockerfile")
            .hint("`-` in the place of PATH takes an archive as the context"));
    }
    if bytes.len() as u64 > MAX_DOCKERFILE {
        let most = MAX_DOCKERFILE >> 20;
        return Err(Fault::user(format!("the Dockerfile on standard input is larger than {most} MiB")));
    }
    Scratch::new()?.with_file("Dockerfile", &bytes)
}

fn take(input: &mut impl Read, most: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let read = input.by_ref().take(most).read_to_end(&mut bytes);
    read.map_err(|error| Fault::because(Kind::User, "cannot read standard input", error))?;
    Ok(bytes)
}

fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

fn unpacked(input: impl Read, cancel: Cancel) -> Result<Scratch, Fault> {
    let failed = |error| Fault::because(Kind::User, "cannot unpack the context on standard input", error);
    // Files are whoever's that builds, as those of a directory are read; nobody builds from devices.
    let options = untar::Options {
        owner: Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
        devices: Devices::Skip,
        times: Times::Exact,
        cancel,
        ..untar::Options::archive()
    };
    let scratch = Scratch::new()?;
    let root = untar::open_root(scratch.path()).map_err(failed)?;
    let plain = Decompressor::new(input, options.limits.bytes).map_err(|error| failed(io::Error::other(error)))?;
    let mut source = TarSource(tar::Reader::new(plain));
    untar::unpack(&root, &mut source, &options).map_err(|error| failed(io::Error::other(error)))?;
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_a_dockerfile_or_refused_by_name() {
        let Ok(Stdin::Dockerfile(scratch)) = Stdin::read(&b"FROM scratch\n"[..], Cancel::new()) else {
            panic!("a Dockerfile")
        };
        assert_eq!(std::fs::read(scratch.path().join("Dockerfile")).expect("a file"), b"FROM scratch\n");
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
        for (bytes, said) in [
            (&b"BZh91AY"[..], "compressed with bzip2 is not supported yet"),
            (b"\xfd7zXZ\0\0", "compressed with xz is not supported yet"),
            (b"\x1f\x8b\x08nothing", "cannot unpack the context on standard input"),
        ] {
            let fault = Stdin::read(bytes, Cancel::new()).map(|_| ()).expect_err(said);
            assert!(fault.to_string().contains(said), "{fault}");
        }
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let fault = dockerfile(&tar[..]).map(|_| ()).expect_err("an archive");
        assert_eq!(fault.to_string(), "standard input is an archive and no Dockerfile");
        let fault = dockerfile(io::repeat(b'x')).map(|_| ()).expect_err("endless");
        assert_eq!(fault.to_string(), "the Dockerfile on standard input is larger than 16 MiB");
    }
}
