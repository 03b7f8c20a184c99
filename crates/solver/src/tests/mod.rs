//! The scenarios of upstream's `solver/scheduler_test.go`, `cache_test.go`, `cachemiss_stale_dep_test.go`
//! and `index_test.go`, and more of our own, as lists of events on a [`world::World`].

#![expect(clippy::unwrap_used, reason = "a test may panic")]

pub(crate) mod world;

mod caching;
mod merging;
mod random;
mod scale;
mod sharing;
mod told;
