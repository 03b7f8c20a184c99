//! Work on a volume that is full: what no build uses goes, and the work is done again.
//!
//! For what writes to the state only. What is written elsewhere, an output of the client, may find another volume full, and
//! then nothing that is here helps.

use base::progress::Stream;
use base::report::Tasks;
use base::{ByteSize, Fault};
use store::{Made, Need, Room, Store};

use crate::core::{Core, blocking};

/// Whether a full disk or quota is the cause.
pub(crate) fn is_full(fault: &Fault) -> bool {
    fault.get_source().is_some_and(store::is_full)
}

/// Whether that is the cause and nobody has tried to make room: what writes blobs, records and the files of downloads does
/// so itself, and is not begun again for what it did not get.
pub(crate) fn wants_room(fault: &Fault) -> bool {
    fault.get_source().is_some_and(store::wants_room)
}

/// Does something that writes to the state, and does it again where the volume was full and room could be made. What is done
/// again begins anew: it leaves nothing behind that matters when it fails, and takes nothing that a client gives only once.
pub(crate) async fn with_room<T, F>(store: &Store, tasks: &Tasks, mut work: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut room = store.room();
    loop {
        match work().await {
            Err(fault) if wants_room(&fault) && make(&mut room, 0, tasks).await => {}
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
    /// Sees to it that a step finds some room when it begins. What it writes itself we do not see.
    pub(crate) async fn keep_room(&self, tasks: &Tasks) {
        // To ask costs next to nothing, and steps begin often.
        if store::has_little_room(self.store.dir()) {
            let store = self.store.clone();
            let made = blocking(move || store.keep_room()).await;
            made.inspect(|made| tell(tasks, "there is little room on the volume of the state directory", made));
        }
    }
}

/// Makes room for a step that had so many bytes, found the volume full, and is to run again. Whether it makes sense to.
pub(crate) async fn make_again(mut room: Room, had: u64, tasks: &Tasks) -> bool {
    let Some(made) = blocking(move || room.make_again(had)).await else { return false };
    let why = "the step found the volume of the state directory full";
    tell(tasks, why, &made);
    tasks.log(Stream::Stderr, format!("{why}: it runs once more\n").as_bytes());
    true
}
