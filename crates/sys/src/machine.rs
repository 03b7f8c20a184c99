//! What this machine runs: its processor's own platform, what that has beyond the oldest of its kind, and the 32-bit one that
//! goes with it where the kernel has it.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

use base::Platform;
use rustix::fs::{MemfdFlags, memfd_create};

/// The platforms, the preferred one first, in BuildKit's order.
pub fn platforms() -> Vec<Platform> {
    let host = Platform::host();
    let like = |architecture: &str, variant: &str| Platform::new("linux", architecture, variant);
    let mut beside: Vec<Platform> = Vec::new();
    match host.architecture.as_str() {
        "amd64" => {
            beside.extend(levels().into_iter().map(|level| like("amd64", level)));
            if runs(&program(I386)) {
                beside.push(like("386", ""));
            }
        }
        "arm64" if runs(&program(ARM)) => beside.extend(["v7", "v6"].map(|variant| like("arm", variant))),
        _ => {}
    }
    [host].into_iter().chain(beside).collect()
}

/// Those that are named first, and what this machine runs beside: BuildKit lists what no named one covers.
pub fn platforms_beside(named: &[Platform]) -> Vec<Platform> {
    let is_covered = |own: &Platform| named.iter().any(|named| own.distance_from(named).is_some());
    let beside = platforms().into_iter().filter(|own| !is_covered(own));
    named.iter().cloned().chain(beside).collect()
}

/// The levels of the x86-64 psABI that the processor has, above the first.
#[cfg(target_arch = "x86_64")]
fn levels() -> Vec<&'static str> {
    use std::is_x86_feature_detected as has;
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    let levels = [("v2", v2), ("v3", v3), ("v4", v4)];
    levels.into_iter().take_while(|(_, has)| *has).map(|(level, _)| level).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn levels() -> Vec<&'static str> {
    Vec::new()
}

/// Processors as ELF numbers them.
const I386: u16 = 3;
const ARM: u16 = 40;

/// A program of 32 bits that ends in success.
fn program(machine: u16) -> Vec<u8> {
    const AT: u32 = 0x10_0000;
    const HEADERS: u32 = 52 + 32;
    const PAGE: u32 = 0x1_0000;
    let (flags, code): (u32, &[u8]) = match machine {
        // mov r0, 0; mov r7, 1; svc 0
        ARM => (0x0500_0000, &[0, 0, 0xa0, 0xe3, 1, 0x70, 0xa0, 0xe3, 0, 0, 0, 0xef]),
        // mov eax, 1; xor ebx, ebx; int 0x80
        _ => (0, &[0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80]),
    };
    let size = HEADERS + code.len() as u32;
    let mut bytes = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves =
        |bytes: &mut Vec<u8>, values: &[u16]| bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    let words = |bytes: &mut Vec<u8>, values: &[u32]| bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    // An executable; its version, entry, program headers, no sections.
    halves(&mut bytes, &[2, machine]);
    words(&mut bytes, &[1, AT + HEADERS, 52, 0, flags]);
    halves(&mut bytes, &[52, 32, 1, 0, 0, 0]);
    // All of it is loaded, to be read and run.
    words(&mut bytes, &[1, 0, AT, AT, size, size, 5, PAGE]);
    bytes.extend(code);
    bytes
}

/// Whether the kernel runs a program. Where that cannot be tried it is no.
fn runs(program: &[u8]) -> bool {
    let run = || {
        let mut file = File::from(memfd_create("runs", MemfdFlags::CLOEXEC)?);
        file.write_all(program)?;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        Command::new(path).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    run().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_platform_comes_first_and_others_where_they_run() {
        let all = platforms();
        assert_eq!(all[0], Platform::host());
        let names: Vec<String> = all.iter().map(ToString::to_string).collect();
        let known = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/386"];
        if names[0] == known[0] {
            let in_order = known.into_iter().filter(|name| names.iter().any(|have| have == name));
            assert_eq!(in_order.collect::<Vec<_>>(), names);
            let flags = std::fs::read_to_string("/proc/cpuinfo").expect("read");
            assert_eq!(names.iter().any(|name| name == known[2]), flags.contains(" avx2"), "{names:?}");
        }
    }

    #[test]
    fn what_named_platforms_do_not_cover_stands_behind_them() {
        let own: Vec<String> = platforms().iter().map(ToString::to_string).collect();
        if own[0] != "linux/amd64" {
            return;
        }
        // As BuildKit listed them on a machine with all levels.
        for (named, beside) in [
            (&["linux/amd64", "linux/arm64"][..], &["linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"][..]),
            (&["linux/arm64"], &["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4", "linux/386"]),
            (&["linux/amd64/v3"], &["linux/amd64/v4"]),
            (&["linux/amd64/v2", "linux/amd64"], &["linux/amd64/v3", "linux/amd64/v4"]),
        ] {
            let parsed: Vec<Platform> = named.iter().map(|name| name.parse().expect("a platform")).collect();
            let all: Vec<String> = platforms_beside(&parsed).iter().map(ToString::to_string).collect();
            let beside = beside.iter().filter(|name| own.iter().any(|own| own == *name));
            assert_eq!(all, named.iter().chain(beside).map(ToString::to_string).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_the_kernel_does_not_know_does_not_run() {
        assert!(!runs(b"nonsense"));
        // A program of a processor that nobody has, nor an emulator of it.
        assert!(!runs(&program(0xfffe)));
    }
}
