//! The filter is run by a small interpreter, so that nothing is installed and every case can be asked.

use super::*;

/// What `filter` says about a call.
fn verdict(filter: &Filter, arch: u32, number: u32, first: u64) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCH => arch,
        FIRST_ARGUMENT => first as u32,
        _ => panic!("reads offset {offset}"),
    };
    let (mut at, mut loaded) = (0, 0);
    loop {
        let (op, yes, no, k) = filter.0[at];
        at += 1;
        let mut branch = |taken: bool| at += usize::from(if taken { yes } else { no });
        match u32::from(op) {
            0x20 => loaded = word(k),
            0x06 => return k,
            0x05 => at += k as usize,
            0x15 => branch(loaded == k),
            0x35 => branch(loaded >= k),
            0x45 => branch(loaded & k != 0),
            _ => panic!("unknown operation {op:#x}"),
        }
    }
}

#[test]
fn every_call_of_the_table_gets_its_rule() {
    for caps in [crate::caps::SANDBOX, Caps::all(), Caps::empty()] {
        let filter = Filter::default_profile(caps);
        assert!(filter.0.len() < 4096, "BPF_MAXINSNS");
        for &(arch, column) in ARCHES {
            for (name, numbers, rule) in table::CALLS {
                let Ok(number) = u32::try_from(numbers[column]) else { continue };
                let expected = match rule {
                    Rule::Always => ALLOW,
                    Rule::Caps(any) if any.intersects(caps) => ALLOW,
                    Rule::Caps(_) => errno(libc::EPERM),
                    Rule::Args if *name == "clone3" && !caps.contains(Caps::SYS_ADMIN) => errno(libc::ENOSYS),
                    Rule::Args => ALLOW,
                };
                assert_eq!(verdict(&filter, arch, number, 0), expected, "{name} on {arch:#x}");
            }
        }
    }
}

#[test]
fn arguments_decide() {
    let filter = Filter::default_profile(crate::caps::SANDBOX);
    let (arch, column) = ARCHES[0];
    let number = |name: &str| {
        let (_, numbers, _) = table::CALLS.iter().find(|(known, ..)| *known == name).expect("in the table");
        numbers[column] as u32
    };
    let refused = errno(libc::EPERM);
    for (name, first, expected) in [
        ("socket", libc::AF_UNIX as u64, ALLOW),
        ("socket", libc::AF_INET6 as u64, ALLOW),
        ("socket", libc::AF_ALG as u64, refused),
        ("socket", 39, ALLOW),
        ("socket", libc::AF_VSOCK as u64, refused),
        ("socket", 41, ALLOW),
        // The kernel looks at 32 bits, and so do we.
        ("socket", 1 << 32 | libc::AF_ALG as u64, refused),
        ("personality", 0x20008, ALLOW),
        ("personality", 0xffff_ffff, ALLOW),
        ("personality", 0x0040000, refused),
        ("clone", libc::SIGCHLD as u64, ALLOW),
        ("clone", libc::CLONE_NEWUSER as u64, refused),
        ("clone", (libc::CLONE_VM | libc::CLONE_NEWNS) as u64, refused),
        ("unshare", 0, refused),
        ("chroot", 0, ALLOW),
        ("bpf", 0, refused),
        ("keyctl", 0, refused),
    ] {
        let number = if name == "keyctl" { libc::SYS_keyctl as u32 } else { number(name) };
        assert_eq!(verdict(&filter, arch, number, first), expected, "{name}({first:#x})");
    }
}

#[test]
fn unknown_calls_do_not_exist_and_unknown_architectures_die() {
    let filter = Filter::default_profile(crate::caps::SANDBOX);
    let native = ARCHES[0].0;
    assert_eq!(verdict(&filter, native, 9999, 0), errno(libc::ENOSYS));
    assert_eq!(verdict(&filter, native, u32::MAX, 0), errno(libc::ENOSYS));
    assert_eq!(verdict(&filter, 0xdead, 0, 0), KILL);
    #[cfg(target_arch = "x86_64")]
    assert_eq!(verdict(&filter, native, X32_BIT, 0), errno(libc::ENOSYS));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_table_has_the_numbers_of_this_system() {
    for (name, expected) in [
        ("read", libc::SYS_read),
        ("openat2", libc::SYS_openat2),
        ("statx", libc::SYS_statx),
        ("clone3", libc::SYS_clone3),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
    ] {
        let (_, numbers, _) = table::CALLS.iter().find(|(known, ..)| *known == name).expect("in the table");
        assert_eq!(i64::from(numbers[0]), expected, "{name}");
    }
}
