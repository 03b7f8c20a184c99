//! A directory of this machine, transferred as if it were elsewhere: for what cannot be read in place.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base::{Cancel, Fault, Kind};
use files::walk::Filter;
use proto::fsutil::Packet;
use sys::path::Root;
use tokio::sync::mpsc;

use super::serve::Directory;
use super::sync::Transfer;
use super::{Offer, QUEUE, batch};
use crate::RemoteDir;

/// A directory here.
#[derive(Debug)]
pub struct Nearby {
    name: String,
    root: Arc<Root>,
    key: String,
}

impl Nearby {
    /// `name` is what people know the directory by.
    pub fn new(name: &str, root: Arc<Root>) -> Nearby {
        let path: PathBuf = root.path().to_owned();
        Nearby { name: name.to_owned(), root, key: path.display().to_string() }
    }
}

#[async_trait]
impl RemoteDir for Nearby {
    fn shared_key(&self) -> &str {
        &self.key
    }

    async fn transfer(&self, filter: &Filter) -> Result<Transfer, Fault> {
        let (outgoing, mut asked) = mpsc::unbounded_channel();
        let (queue, requests) = mpsc::channel(QUEUE);
        let (packets, incoming) = batch::channel();
        let asking = tokio::spawn(async move {
            while let Some(reply) = asked.recv().await {
                if queue.send(Ok(Packet::from(reply))).await.is_err() {
                    return;
                }
            }
        });
        let offer = Offer { requests, packets, call: asking.abort_handle() };
        let root = Root::open(self.root.path());
        let root = root.map_err(|e| Fault::because(Kind::User, format!("cannot open `{}`", self.key), e))?;
        let directory = Directory { root, filter: filter.clone(), cancel: Cancel::new() };
        tokio::task::spawn_blocking(move || {
            let cancel = directory.cancel.clone();
            // The other end hears why not.
            let _ = offer.send(&directory, &cancel, &mut |_| ());
        });
        Ok(Transfer::new(self.name.clone(), incoming, outgoing))
    }
}
