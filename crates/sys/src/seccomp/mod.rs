//! The system call filter of sandboxed steps: Docker's default profile, compiled to BPF by ourselves.
//!
//! What is not allowed fails with EPERM, as there; calls that are newer than the profile fail with ENOSYS, as
//! runc makes them, so that C libraries fall back to older ones. Two differences, both stricter: arguments
//! that the kernel reads as 32 bits are compared as such, and the x32 calls of x86_64 do not exist.
//!
//! A filter is compiled once and installed by any number of processes.

use rustix::io::Errno;

use crate::Error;
use crate::caps::Caps;

mod assemble;
mod table;
#[cfg(test)]
mod tests;

pub use assemble::Insn as Instruction;
use assemble::{Insn, ge, jump, load, ret, select};

/// When a call is let through.
#[derive(Clone, Copy, Debug)]
enum Rule {
    Always,
    /// Where the step may have one of these.
    Caps(Caps),
    /// By its arguments; see [`by_arguments`].
    Args,
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Insn>);

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the first argument; all architectures of the table are little-endian.
const FIRST_ARGUMENT: u32 = 16;

/// An `AUDIT_ARCH_*` and its column in the table, ours first.
#[cfg(target_arch = "x86_64")]
const ARCHES: &[(u32, usize)] = &[(0xc000_003e, 0), (0x4000_0003, 1)];
#[cfg(target_arch = "aarch64")]
const ARCHES: &[(u32, usize)] = &[(0xc000_00b7, 2), (0x4000_0028, 3)];
#[cfg(target_arch = "riscv64")]
const ARCHES: &[(u32, usize)] = &[(0xc000_00f3, 4)];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("the table of system calls has no column for this architecture");

const X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

impl Filter {
    /// The default profile for a step that can have `caps`.
    pub fn default_profile(caps: Caps) -> Filter {
        let mut code = vec![load(ARCH)];
        for &(arch, column) in ARCHES {
            let block = block(arch, column, caps);
            // Not this architecture: past the block, which may be longer than a conditional jump reaches.
            code.push(assemble::eq(arch, 1, 0));
            code.push(jump(block.len()));
            code.extend(block);
        }
        code.push(ret(KILL));
        Filter(code)
    }

    /// The program, to be handed to another process.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// A program that [`instructions`](Filter::instructions) gave.
    pub fn from_instructions(instructions: Vec<Instruction>) -> Filter {
        Filter(instructions)
    }

    /// Puts the calling thread, and what it starts, behind the filter.
    ///
    /// Needs `CAP_SYS_ADMIN`, because set-uid programs keep working behind it.
    pub fn install(&self) -> Result<(), Error> {
        let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
        match crate::raw::seccomp_set_filter(&self.0, flags) {
            // Before Linux 4.17 the flag is unknown.
            Err(Errno::INVAL) => crate::raw::seccomp_set_filter(&self.0, 0),
            result => result,
        }
        .map_err(|errno| Error::call("install the system call filter", errno))
    }
}

/// The part of the program for one architecture; every path through it returns.
fn block(arch: u32, column: usize, caps: Caps) -> Vec<Insn> {
    let mut code = vec![load(NUMBER)];
    if arch == X86_64 {
        code.extend([ge(X32_BIT, 0, 1), ret(errno(libc::ENOSYS))]);
    }
    let last = table::CALLS.iter().map(|(_, numbers, _)| numbers[column]).max().unwrap_or(0);
    // ARM's private calls lie far above all others.
    let last = if last >= 0xf0000 {
        table::CALLS.iter().map(|(_, numbers, _)| numbers[column]).filter(|&n| n < 0xf0000).max().unwrap_or(0)
    } else {
        last
    };
    let mut cases: Vec<(u32, Vec<Insn>)> = Vec::new();
    for (name, numbers, rule) in table::CALLS {
        let Ok(number) = u32::try_from(numbers[column]) else { continue };
        let action = match rule {
            Rule::Always => vec![ret(ALLOW)],
            Rule::Caps(any) if any.intersects(caps) => vec![ret(ALLOW)],
            Rule::Caps(_) => continue,
            Rule::Args => by_arguments(name, caps),
        };
        cases.push((number, action));
    }
    cases.sort_by_key(|(number, _)| *number);
    code.extend(select(&cases, ret(errno(libc::EPERM)), last as u32, ret(errno(libc::ENOSYS))));
    code
}

/// The calls whose first argument decides.
fn by_arguments(name: &str, caps: Caps) -> Vec<Insn> {
    let refuse = ret(errno(libc::EPERM));
    match name {
        _ if name.starts_with("clone") && caps.contains(Caps::SYS_ADMIN) => vec![ret(ALLOW)],
        // Its flags lie in memory, which a filter cannot read; callers fall back to clone.
        "clone3" => vec![ret(errno(libc::ENOSYS))],
        "clone" => {
            let namespaces = libc::CLONE_NEWNS
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUSER
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWCGROUP;
            vec![load(FIRST_ARGUMENT), assemble::any_bit(namespaces as u32, 1, 0), ret(ALLOW), refuse]
        }
        "socket" => {
            let (alg, vsock) = (libc::AF_ALG as u32, libc::AF_VSOCK as u32);
            let (first, second) = (assemble::eq(alg, 2, 0), assemble::eq(vsock, 1, 0));
            vec![load(FIRST_ARGUMENT), first, second, ret(ALLOW), refuse]
        }
        "personality" => {
            // Linux, Linux with 16-bit uname, and their UNAME26 twins; the last one only asks.
            let mut code = vec![load(FIRST_ARGUMENT)];
            for value in [0, 0x0008, 0x2_0000, 0x2_0008, u32::MAX] {
                code.extend([assemble::eq(value, 0, 1), ret(ALLOW)]);
            }
            code.push(refuse);
            code
        }
        _ => vec![refuse],
    }
}
