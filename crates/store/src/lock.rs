//! One process at a time: `flock(2)` on `<dir>/lock`, which dies with its holder, however that dies.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Holder;
use crate::{Error, Result};

/// The lock, held as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Takes the lock of `dir`, waiting for at most `wait`.
pub(crate) fn take(dir: &Path, wait: Duration) -> Result<Lock> {
    let path = dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::io("open", &path, e))?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < wait => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(Error::InUse { dir: dir.to_owned(), holder: holder(&mut file) });
            }
            Err(e) => return Err(Error::io("lock", &path, e)),
        }
    }
    // Only for people (and for the message above): failing to write it harms nobody.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(Lock { _file: file })
}

/// Who wrote the lock file. In another pid namespace its number says little, so the name is given only if it runs here.
fn holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let pid = text.trim().parse::<u32>().ok();
    let name = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok());
    Holder { pid, program: name.map(|name| name.trim().to_owned()) }
}
