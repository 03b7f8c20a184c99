//! How many transfers a host sees at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bounds blobs per host; documents get one place more, so that a manifest never waits behind large layers.
#[derive(Debug)]
pub(crate) struct Gate {
    blobs: usize,
    hosts: Mutex<HashMap<String, Places>>,
}

#[derive(Debug, Clone)]
struct Places {
    blobs: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Permit {
    _blob: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(blobs: usize) -> Gate {
        Gate { blobs: blobs.max(1), hosts: Mutex::default() }
    }

    pub(crate) async fn blob(&self, host: &str) -> Permit {
        let places = self.places(host);
        let blob = acquire(places.blobs).await;
        Permit { _blob: Some(blob), _all: acquire(places.all).await }
    }

    pub(crate) async fn document(&self, host: &str) -> Permit {
        Permit { _blob: None, _all: acquire(self.places(host).all).await }
    }

    fn places(&self, host: &str) -> Places {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let new =
            || Places { blobs: Arc::new(Semaphore::new(self.blobs)), all: Arc::new(Semaphore::new(self.blobs + 1)) };
        hosts.entry(host.to_owned()).or_insert_with(new).clone()
    }
}

async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    semaphore.acquire_owned().await.expect("these semaphores are never closed")
}
