//! The program's memory allocator (mimalloc), where its ways are not ours.

use std::ops::Range;
use std::time::Duration;

use crate::raw::{self, mimalloc};

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

/// Gives back to the system what is free and nobody's, at once: the allocator looks at that only when there is something to do.
/// Does nothing in a program with another allocator.
pub fn give_back() {
    mimalloc::collect();
}

/// Lets go of the program's own code: what starting needed and nothing after it stays mapped otherwise, a third of what an idle
/// daemon takes up. What is needed again comes back from the page cache by itself.
pub fn forget_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for code in maps.lines().filter_map(|line| code_of(line, &program.to_string_lossy())) {
        // Where it stays it does no harm.
        _ = raw::unmap_code(code);
    }
}

/// The addresses in a line of `/proc/PID/maps`, if that is code of the program.
fn code_of(line: &str, program: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (from, to) = fields.next()?.split_once('-')?;
    let is_code = fields.next()? == "r-xp" && line.ends_with(program) && !program.is_empty();
    let address = |text: &str| usize::from_str_radix(text, 16).ok();
    is_code.then_some(address(from)?..address(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_on_without_its_code() {
        let line = "55d0c0010000-55d0c0f00000 r-xp 00010000 fe:00 123                        /usr/bin/hullworks";
        assert_eq!(code_of(line, "/usr/bin/hullworks"), Some(0x55d0_c001_0000..0x55d0_c0f0_0000));
        assert_eq!(code_of(line, "/usr/bin/other"), None);
        assert_eq!(code_of(&line.replace("r-xp", "r--p"), "/usr/bin/hullworks"), None);
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("read");
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let before = mapped();
        forget_code();
        assert!(mapped() < before, "{before} kB");
    }
    use crate::raw::mimalloc::{COLLECT_EVERY, PURGE_DELAY, RETAIN_PAGES, get};

    #[test]
    fn the_options_are_what_they_are_called() {
        // The allocator numbers its options without names in its Rust binding: if its default is another, look them up again.
        assert_eq!([PURGE_DELAY, COLLECT_EVERY, RETAIN_PAGES].map(get), [1000, 10_000, 2]);
        return_after(Duration::from_millis(10));
        assert_eq!([PURGE_DELAY, COLLECT_EVERY, RETAIN_PAGES].map(get), [10, 500, 0]);
    }
}
