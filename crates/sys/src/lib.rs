//! The kernel, met in one place: mounts, namespaces, id maps, cgroups, seccomp, xattrs, safe path walks.
//!
//! The only crate with `unsafe`. Everything above asks for what it means ("mount this view there",
//! "open this path inside that root") and gets errors that name the call and the path.

mod error;
mod raw;

pub mod caps;
pub mod cgroup;
pub mod copy;
pub mod machine;
pub mod memory;
pub mod mount;
pub mod ns;
pub mod path;
pub mod process;
pub mod seccomp;
pub mod shadow;
pub mod userns;
pub mod xattr;

pub use error::Error;
