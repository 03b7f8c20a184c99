//! Capability sets of the calling thread.

use rustix::io::Errno;
pub use rustix::thread::CapabilitySet as Caps;
use rustix::thread::{CapabilitySets, configure_capability_in_ambient_set};

use crate::Error;

/// What a sandboxed step may do: the set that Docker and containerd give to containers.
pub const SANDBOX: Caps = Caps::CHOWN
    .union(Caps::DAC_OVERRIDE)
    .union(Caps::FSETID)
    .union(Caps::FOWNER)
    .union(Caps::MKNOD)
    .union(Caps::NET_RAW)
    .union(Caps::SETGID)
    .union(Caps::SETUID)
    .union(Caps::SETFCAP)
    .union(Caps::SETPCAP)
    .union(Caps::NET_BIND_SERVICE)
    .union(Caps::SYS_CHROOT)
    .union(Caps::KILL)
    .union(Caps::AUDIT_WRITE);

/// What we may do now.
pub fn effective() -> Result<Caps, Error> {
    let sets = rustix::thread::capabilities(None).map_err(|errno| Error::call("read capabilities", errno))?;
    Ok(sets.effective)
}

/// Takes everything but `keep` from what any program started from here on can ever have.
pub fn limit_bounding_set(keep: Caps) -> Result<(), Error> {
    for number in 0..64 {
        let cap = Caps::from_bits_retain(1 << number);
        if keep.contains(cap) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(cap) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(Error::call("limit the bounding set", errno)),
        }
    }
    Ok(())
}

/// Makes `caps` what this thread has, as far as it has them; `inherit` keeps them for programs run as other users.
///
/// Call [`keep_across_setuid`] before the change of user, and this after it.
pub fn set(caps: Caps, inherit: bool) -> Result<(), Error> {
    let error = |errno| Error::call("set capabilities", errno);
    let now = rustix::thread::capabilities(None).map_err(error)?;
    let caps = caps & now.permitted;
    let inheritable = if inherit { caps } else { Caps::empty() };
    let sets = CapabilitySets { effective: caps, permitted: caps, inheritable };
    rustix::thread::set_capabilities(None, sets).map_err(error)?;
    // Ambient ones may have come from whoever started us; not every kernel has them.
    let _ = rustix::thread::clear_ambient_capability_set();
    if inherit {
        for cap in caps.iter() {
            configure_capability_in_ambient_set(cap, true).map_err(error)?;
        }
    }
    Ok(())
}

/// Whether a change to another user leaves the permitted capabilities alone.
pub fn keep_across_setuid(keep: bool) -> Result<(), Error> {
    rustix::thread::set_keep_capabilities(keep).map_err(|errno| Error::call("keep capabilities", errno))
}
