//! The program's memory allocator (mimalloc), where its ways are not ours.

use std::time::Duration;

/// From now on memory that is not in use goes back to the system after `delay` (whole milliseconds), not after a second.
///
/// The stages of a build need much memory one after the other, and each on threads of its own: what the first
/// one freed is seldom of a size that the next one asks for, so a second's delay adds them up.
/// Does nothing in a program with another allocator.
pub fn return_after(delay: Duration) {
    crate::raw::mimalloc::set(crate::raw::mimalloc::PURGE_DELAY, i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::mimalloc::{PURGE_DELAY, get};

    #[test]
    fn the_option_is_the_delay() {
        // The allocator numbers its options without names in its Rust binding: if its default is another, look them up again.
        assert_eq!(get(PURGE_DELAY), 1000);
        return_after(Duration::from_millis(10));
        assert_eq!(get(PURGE_DELAY), 10);
    }
}
