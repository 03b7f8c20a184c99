//! The program's memory allocator (mimalloc), where its ways are not ours.

use std::time::Duration;

use crate::raw::mimalloc;

/// From now on memory that is not in use goes back to the system after `delay` (whole milliseconds), not after a second,
/// and threads keep little of it for themselves.
///
/// The stages of a build need much memory one after the other, and each on threads of its own: what the first
/// one freed is seldom of a size that the next one asks for, so a second's delay adds them up; and so do empty pages
/// that each of many threads keeps.
/// Does nothing in a program with another allocator.
pub fn return_after(delay: Duration) {
    mimalloc::set(mimalloc::PURGE_DELAY, i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    mimalloc::set(mimalloc::COLLECT_EVERY, 500);
    mimalloc::set(mimalloc::RETAIN_PAGES, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::mimalloc::{COLLECT_EVERY, PURGE_DELAY, RETAIN_PAGES, get};

    #[test]
    fn the_options_are_what_they_are_called() {
        // The allocator numbers its options without names in its Rust binding: if its default is another, look them up again.
        assert_eq!([PURGE_DELAY, COLLECT_EVERY, RETAIN_PAGES].map(get), [1000, 10_000, 2]);
        return_after(Duration::from_millis(10));
        assert_eq!([PURGE_DELAY, COLLECT_EVERY, RETAIN_PAGES].map(get), [10, 500, 0]);
    }
}
