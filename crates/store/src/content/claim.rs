//! One download per digest: who brings a blob, and who waits for it.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use base::{Cancel, Digest};

use super::{BlobInfo, Content};
use crate::{Result, locked};

type Wake = Box<dyn FnOnce() + Send>;

/// The digests that somebody brings, each with those who wait for it.
#[derive(Default)]
pub(super) struct Claims {
    open: Mutex<HashMap<Digest, Vec<Wake>>>,
    changed: Condvar,
}

impl Claims {
    pub(super) fn is_claimed(&self, digest: &Digest) -> bool {
        locked(&self.open).contains_key(digest)
    }
}

/// Who brings a blob.
#[derive(Debug)]
pub enum Claim {
    /// It is there.
    Present(BlobInfo),
    /// The caller does, and the others wait until the guard is dropped.
    Mine(ClaimGuard),
    /// Somebody else does.
    Busy,
}

/// The right, and the duty, to bring one blob.
#[derive(Debug)]
pub struct ClaimGuard {
    content: Content,
    digest: Digest,
}

impl ClaimGuard {
    /// Which blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        let claims = &self.content.0.inner.content.claims;
        let waiting = locked(&claims.open).remove(&self.digest);
        claims.changed.notify_all();
        waiting.into_iter().flatten().for_each(|wake| wake());
    }
}

pub(super) fn claim(content: &Content, digest: &Digest, wake: Wake) -> Claim {
    let claims = &content.0.inner.content.claims;
    {
        let mut open = locked(&claims.open);
        if let Some(waiting) = open.get_mut(digest) {
            waiting.push(wake);
            return Claim::Busy;
        }
        open.insert(*digest, Vec::new());
    }
    // Looked at while we hold the claim, so nobody can finish in between.
    let guard = ClaimGuard { content: content.clone(), digest: *digest };
    match content.info(digest) {
        Ok(Some(info)) => Claim::Present(info),
        // An unreadable row is no reason not to bring the blob.
        Ok(None) | Err(_) => Claim::Mine(guard),
    }
}

pub(super) fn claim_wait(content: &Content, digest: &Digest, cancel: &Cancel) -> Result<Claim> {
    let claims = &content.0.inner.content.claims;
    loop {
        cancel.check()?;
        {
            let mut open = locked(&claims.open);
            if open.contains_key(digest) {
                // A cancel has no bell of its own, so it is looked at ten times a second.
                let waited = claims.changed.wait_timeout(open, Duration::from_millis(100));
                open = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(open, _)| open);
                drop(open);
                continue;
            }
        }
        match claim(content, digest, Box::new(|| ())) {
            Claim::Busy => {}
            answer => return Ok(answer),
        }
    }
}
