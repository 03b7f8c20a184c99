//! Device rules: a step may make any device node (layers hold them), but opens only the harmless ones.
//!
//! Without them a sandboxed root could make the node of the machine's disk and read it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::write;
use crate::Error;

/// Character devices: null, zero, full, random, urandom, tty, ptmx.
const HARMLESS: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
/// The major number of pseudo-terminals.
const PTS: u32 = 136;

/// A device that a step may open beside the harmless ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// A block device; else a character device.
    pub block: bool,
    /// Its numbers.
    pub number: (u32, u32),
    /// It may be read.
    pub read: bool,
    /// It may be written to.
    pub write: bool,
}

/// Version 1: lists of the `devices` controller.
pub(super) fn rule_version1(dir: &Path, also: &[DeviceRule]) -> Result<(), Error> {
    write(&dir.join("devices.deny"), "a")?;
    let allow = dir.join("devices.allow");
    for rule in ["c *:* m".to_owned(), "b *:* m".to_owned(), format!("c {PTS}:* rwm")] {
        write(&allow, rule)?;
    }
    for (major, minor) in HARMLESS {
        write(&allow, format!("c {major}:{minor} rwm"))?;
    }
    for rule in also {
        let kind = if rule.block { 'b' } else { 'c' };
        let access = [(rule.read, "r"), (rule.write, "w")].map(|(may, letter)| if may { letter } else { "" }).concat();
        write(&allow, format!("{kind} {}:{} {access}m", rule.number.0, rule.number.1))?;
    }
    Ok(())
}

/// Version 2: a program that is asked at every open.
pub(super) fn rule_version2(dir: &Path, also: &[DeviceRule]) -> Result<(), Error> {
    let group: OwnedFd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::path("open cgroup", dir, errno))?;
    crate::raw::attach_device_program(group.as_fd(), &program(also))
        .map_err(|errno| Error::path("attach the device rules to", dir, errno))
}

/// One eBPF instruction: code, registers, offset, immediate (`struct bpf_insn`).
pub(crate) type Insn = (u8, u8, i16, i32);

/// `struct bpf_cgroup_dev_ctx`: access << 16 | type, major, minor.
fn program(also: &[DeviceRule]) -> Vec<Insn> {
    const LOAD: u8 = 0x61; // dst = *(u32 *)(src + off)
    const COPY: u8 = 0xbf; // dst = src
    const AND: u8 = 0x57; // dst &= imm
    const SHIFT: u8 = 0x77; // dst >>= imm
    const SET: u8 = 0xb7; // dst = imm
    const JNE: u8 = 0x55; // if dst != imm skip off
    const JUMP: u8 = 0x05;
    const EXIT: u8 = 0x95;
    const BLOCK: i32 = 1;
    const CHARACTER: i32 = 2;
    const MAKE: i32 = 1;
    const READ: i32 = 2;
    const WRITE: i32 = 4;
    let reg = |dst: u8, src: u8| dst | src << 4;
    let mut code: Vec<Insn> = vec![
        (LOAD, reg(2, 1), 0, 0),
        (COPY, reg(3, 2), 0, 0),
        (SHIFT, 3, 0, 16),
        (AND, 2, 0, 0xffff),
        (LOAD, reg(4, 1), 4, 0),
        (LOAD, reg(5, 1), 8, 0),
        (SET, 0, 0, 1),
        (JNE, 3, 1, MAKE),
        (EXIT, 0, 0, 0),
    ];
    for rule in also {
        let access = MAKE | if rule.read { READ } else { 0 } | if rule.write { WRITE } else { 0 };
        code.extend([
            (JNE, 2, 6, if rule.block { BLOCK } else { CHARACTER }),
            (JNE, 4, 5, rule.number.0 as i32),
            (JNE, 5, 4, rule.number.1 as i32),
            (COPY, reg(6, 3), 0, 0),
            (AND, 6, 0, !access),
            (JNE, 6, 1, 0),
            (EXIT, 0, 0, 0),
        ]);
    }
    code.extend([
        (JNE, 2, 2, CHARACTER),
        (JNE, 4, 2, PTS as i32),
        (EXIT, 0, 0, 0),
        // Not a character device: refuse, by way of the last two instructions.
        (JUMP, 0, (HARMLESS.len() * 3) as i16, 0),
    ]);
    for (major, minor) in HARMLESS {
        code.extend([(JNE, 4, 2, major as i32), (JNE, 5, 1, minor as i32), (EXIT, 0, 0, 0)]);
    }
    code.extend([(SET, 0, 0, 0), (EXIT, 0, 0, 0)]);
    code
}
