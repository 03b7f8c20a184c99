//! The trace of a build without a daemon: the same spans, by the same variables.

use std::sync::{Arc, Mutex, PoisonError};

use base::progress::{Event, Room, Sink};

use super::export::Collector;
use super::given::Given;
use super::spans::{Spans, Whole};
use super::{PATIENCE, random, traceparent};

/// A build whose spans go to a collector.
pub struct TracedBuild {
    collector: Collector,
    given: Given,
    parent: Option<[u8; 8]>,
    began: jiff::Timestamp,
    spans: Arc<Mutex<Spans>>,
}

impl TracedBuild {
    /// Begins a trace, or goes on with that of `TRACEPARENT`, where the variables name a collector. Why there is none,
    /// where they name one that cannot be had.
    pub fn begin(variable: impl Fn(&str) -> Option<String>) -> Result<Option<TracedBuild>, String> {
        let Some(collector) = Collector::named(&variable)? else { return Ok(None) };
        let caller = variable("TRACEPARENT").and_then(|text| traceparent(&text));
        let trace = caller.as_ref().map_or_else(random, |caller| caller.trace);
        let given = Given::of(&variable);
        if !given.samples(&trace, caller.as_ref().map(|caller| caller.sampled)) {
            return Ok(None);
        }
        let parent = caller.map(|caller| caller.span);
        let spans = Arc::new(Mutex::new(Spans::new(trace, random())));
        Ok(Some(TracedBuild { collector, given, parent, began: jiff::Timestamp::now(), spans }))
    }

    /// A sink that listens, and passes everything on.
    pub fn listening(&self, sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
        Arc::new(Listening { spans: self.spans.clone(), sink })
    }

    /// Hands over the spans; why they did not arrive, where they did not. That takes a moment at most.
    pub async fn end(self, error: Option<&str>) -> Result<(), String> {
        let nothing = Spans::new([0; 16], [0; 8]);
        let spans = std::mem::replace(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner), nothing);
        self.collector.send(vec![spans.end(Whole {
            resource: self.given.resource("hullworks"),
            name: "build",
            kind: 1,
            parent: self.parent,
            began: self.began,
            attributes: Vec::new(),
            error,
        })]);
        self.collector.finish(PATIENCE).await
    }
}

struct Listening {
    spans: Arc<Mutex<Spans>>,
    sink: Arc<dyn Sink>,
}

impl Sink for Listening {
    fn emit(&self, event: Event) {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).take(&event);
        self.sink.emit(event);
    }

    fn room(&self) -> Room {
        self.sink.room()
    }
}
