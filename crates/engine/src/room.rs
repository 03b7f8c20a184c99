//! Work on a volume that is full: what no build uses goes, and the work is done again.
//!
//! For what writes to the state only. What is written elsewhere, an output of the client, may find another volume full, and
//! then nothing that is here helps.

use std::time::Duration;

use base::progress::Stream;
use base::report::Tasks;
use base::{ByteSize, Fault};
use store::{Made, Need, Room, Store};

use crate::core::{Core, blocking};

/// How often we look whether a step that runs has room left.
const LOOK: Duration = Duration::from_millis(250);

/// Whether a full disk or quota is the cause.
pub(crate) fn is_full(fault: &Fault) -> bool {
    fault.get_source().is_some_and(store::is_full)
}

/// Does something that writes to the state, and does it again where the volume was full and room could be made. What is done
/// again begins anew: it leaves nothing behind that matters when it fails.
pub(crate) async fn with_room<T, F>(store: &Store, tasks: &Tasks, mut work: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut room = store.room();
    loop {
        match work().await {
            Err(fault) if is_full(&fault) && make(&mut room, 0, tasks).await => {}
            done => return done,
        }
    }
}

/// Makes room for an action that met a full volume and will write so many bytes at least, and says so. Whether it makes
/// sense to try again.
pub(crate) async fn make(room: &mut Room, least: u64, tasks: &Tasks) -> bool {
    let made = make_quietly(room, least).await;
    made.inspect(|made| tell(tasks, "the volume of the state directory is full", made)).is_some()
}

/// The same where nobody is there to be told.
pub(crate) async fn make_quietly(room: &mut Room, least: u64) -> Option<Made> {
    let mut own = room.clone();
    let work = move || {
        let made = own.make(Need::Anew(least));
        (own, made)
    };
    let (own, made) = blocking(work).await;
    *room = own;
    made
}

/// Tells who builds what went.
fn tell(tasks: &Tasks, why: &str, made: &Made) {
    if made.records > 0 {
        let (records, bytes) = (made.records, ByteSize(made.bytes));
        let text = format!("{why}: removed what no build uses (records: {records}, {bytes})\n");
        tasks.log(Stream::Stderr, text.as_bytes());
    }
}

impl Core {
    /// Sees to it that a step finds some room before it begins and as long as it runs. What it writes itself we do not see,
    /// and what found the disk full has failed: no step is run twice.
    pub(crate) async fn keep_room<T>(&self, tasks: &Tasks, step: impl Future<Output = T>) -> T {
        let look = || async {
            let store = self.store.clone();
            let made = blocking(move || store.keep_room()).await;
            made.inspect(|made| tell(tasks, "there is little room on the volume of the state directory", made));
        };
        look().await;
        let looking = async {
            loop {
                tokio::time::sleep(LOOK).await;
                look().await;
            }
        };
        tokio::select! {
            done = step => done,
            () = looking => unreachable!("it looks without end"),
        }
    }
}
