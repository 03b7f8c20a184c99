//! What requests to build hold in memory, all together: clients send megabytes, and may send many at once.
//!
//! Who comes when there is too much is refused. To have it wait would be worse: builds wait for each other's results, and a
//! client would be kept from reading what others of its calls are told.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// A request that is no larger is never refused.
const SMALL: usize = 64 << 10;
/// What there may be when a larger one comes, with all of it.
const MOST: usize = 128 << 20;

/// The bytes of all requests under way.
#[derive(Clone, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// Those of one request, as long as it lasts.
pub(crate) struct Part {
    all: Load,
    bytes: AtomicUsize,
}

impl Load {
    /// Counts a request's bytes as they come, until its part is dropped.
    pub(crate) fn count(&self, request: http::Request<Body>) -> (http::Request<Body>, Arc<Part>) {
        let part = Arc::new(Part { all: self.clone(), bytes: AtomicUsize::new(0) });
        let counted = part.clone();
        (request.map(|body| Body::new(Counted { body, part: counted })), part)
    }
}

impl Part {
    fn add(&self, more: usize) -> Result<(), Status> {
        let bytes = self.bytes.fetch_add(more, Ordering::Relaxed) + more;
        let all = self.all.0.fetch_add(more, Ordering::Relaxed) + more;
        if bytes > SMALL && all > MOST {
            let most = MOST >> 20;
            return Err(Status::resource_exhausted(format!(
                "requests of the builds that run take up {most} MiB already: try again later"
            )));
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.0.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

struct Counted {
    body: Body,
    part: Arc<Part>,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.part.add(data.len())
        {
            return Poll::Ready(Some(Err(status)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_are_taken_as_long_as_there_is_room() {
        let load = Load::default();
        let part = || load.count(http::Request::new(Body::empty())).1;
        let (one, two, small) = (part(), part(), part());
        one.add(MOST - 10).expect("all of it");
        small.add(SMALL).expect("small ones always");
        let refused = two.add(SMALL + 1).expect_err("too much");
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(one);
        two.add(1).expect("there is room again");
        drop((two, small));
        assert_eq!(load.0.load(Ordering::Relaxed), 0);
    }
}
