//! `--debug-json-cache-metrics`: how much of a build came from the cache, in BuildKit's form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base::progress::{Event, Room, Sink};
use base::{Digest, Fault, Kind};
use serde_json::json;

/// Counts what passes on its way to another sink.
pub(super) struct CacheMetrics {
    begun: Instant,
    to: String,
    file: Option<File>,
    seen: Arc<Mutex<BTreeMap<Digest, Seen>>>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    name: String,
    cached: bool,
    completed: bool,
}

impl CacheMetrics {
    /// `to` is `stdout`, `stderr` or a file.
    pub(super) fn new(to: &str) -> Result<CacheMetrics, Fault> {
        let open = || {
            let failed = |error| Fault::because(Kind::User, format!("cannot write cache metrics to `{to}`"), error);
            File::create(to).map_err(failed)
        };
        let file = match to {
            "stdout" | "stderr" => None,
            _ => Some(open()?),
        };
        Ok(CacheMetrics { begun: Instant::now(), to: to.to_owned(), file, seen: Arc::default() })
    }

    /// A sink that counts, and passes everything on.
    pub(super) fn counting(&self, sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
        Arc::new(Counting { seen: self.seen.clone(), sink })
    }

    /// Writes what was counted.
    pub(super) fn write(self) -> Result<(), Fault> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text(seen.values(), self.begun.elapsed().as_millis());
        let written = match (self.file, self.to.as_str()) {
            (Some(mut file), _) => file.write_all(text.as_bytes()),
            (None, "stdout") => return crate::print(&text),
            (None, _) => std::io::stderr().write_all(text.as_bytes()),
        };
        written
            .map_err(|error| Fault::because(Kind::User, format!("cannot write cache metrics to `{}`", self.to), error))
    }
}

struct Counting {
    seen: Arc<Mutex<BTreeMap<Digest, Seen>>>,
    sink: Arc<dyn Sink>,
}

impl Sink for Counting {
    fn emit(&self, event: Event) {
        if let Event::Vertex(vertex) = &event {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let seen =
                seen.entry(vertex.digest).or_insert_with(|| Seen { name: vertex.name.clone(), ..Seen::default() });
            seen.cached |= vertex.cached;
            seen.completed |= vertex.completed.is_some();
        }
        self.sink.emit(event);
    }

    fn room(&self) -> Room {
        self.sink.room()
    }
}

fn text<'a>(seen: impl Iterator<Item = &'a Seen>, millis: u128) -> String {
    let (mut total, mut completed) = (0, 0);
    let (mut user_total, mut user_cached, mut user_completed, mut from, mut miss) = (0, 0, 0, 0, 0);
    let mut text = String::new();
    for vertex in seen {
        total += 1;
        completed += i64::from(vertex.completed);
        let inner = ["[internal]", "[auth]", "importing cache", "exporting "];
        if inner.iter().any(|prefix| vertex.name.starts_with(prefix)) {
            continue;
        }
        // A base image is pulled or there; neither says anything about the cache.
        let is_from = vertex.name.starts_with('[') && vertex.name.contains("] FROM");
        user_total += 1;
        user_completed += i64::from(vertex.completed);
        from += i64::from(is_from);
        if vertex.cached {
            user_cached += 1;
        } else if !is_from {
            miss += 1;
            text.push_str(&format!("cache miss: {}\n", vertex.name));
        }
    }
    let counts = json!({
        "total": total, "completed": completed, "user_total": user_total, "user_cached": user_cached,
        "user_completed": user_completed, "user_cacheable": user_total - from, "from": from, "miss": miss,
        "client_duration_ms": u64::try_from(millis).unwrap_or(u64::MAX),
    });
    text + &format!("{counts}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_wrote_is_counted_apart() {
        let seen = |name: &str, cached| Seen { name: name.to_owned(), cached, completed: true };
        let seen = [
            seen("[internal] load metadata", false),
            seen("[base 1/3] FROM docker.io/x", false),
            seen("[base 2/3] RUN a", true),
            Seen { completed: false, ..seen("[base 3/3] RUN b", false) },
            seen("exporting to image", false),
        ];
        assert_eq!(
            text(seen.iter(), 7),
            "cache miss: [base 3/3] RUN b\n{\"total\":5,\"completed\":4,\"user_total\":3,\"user_cached\":1,\
             \"user_completed\":2,\"user_cacheable\":2,\"from\":1,\"miss\":1,\"client_duration_ms\":7}\n"
        );
    }
}
