//! One more process of a container that runs: it enters the namespaces of the first one.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::thread::move_into_link_name_space;
use sys::path::Root;
use sys::seccomp::Filter;

use super::mounts::setup;
use super::sandbox::{Inherited, Limits, become_user, die_with, enter, inner_end, set_limits, take_streams};
use super::user::look_up;
use super::{exec, sandbox};
use crate::message::{Entry, Failure};

/// Enters, and says what to become there. `namespaces` are those beside the process namespace, in which it was born.
pub(super) fn prepare(
    inherited: &Inherited,
    namespaces: &[OwnedFd],
    filter: &Filter,
) -> Result<(Vec<String>, Vec<String>), Failure> {
    die_with(inherited.parent.as_ref())?;
    sys::process::unblock_signals().map_err(|error| setup("cannot begin", error))?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::empty());
    sandbox::rather_us_than_the_executor();
    let mut bytes = Vec::new();
    let unread = |error: std::io::Error| setup("cannot read the message", error);
    let message = inherited.message.try_clone().map_err(unread)?;
    std::fs::File::from(message).read_to_end(&mut bytes).map_err(unread)?;
    let mut entry: Entry = serde_json::from_slice(&bytes).map_err(|error| setup("cannot read the message", error))?;
    for file in &entry.join {
        std::fs::write(file, "0")
            .map_err(|error| setup(format_args!("cannot join the control group of `{}`", file.display()), error))?;
    }
    for namespace in namespaces {
        move_into_link_name_space(namespace.as_fd(), None)
            .map_err(|errno| setup("cannot enter the container", std::io::Error::from(errno)))?;
    }
    sys::process::own_keyring();
    let root = Root::open(Path::new("/")).map_err(|error| setup("cannot open the root", error))?;
    let user = look_up(&root, &entry.user).map_err(Failure::Invalid)?;
    sandbox::check_user(&user, entry.single_id)?;
    drop(root);
    take_streams(inherited, entry.terminal, user.uid)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    set_limits(&entry.rlimits)?;
    sys::process::close_on_exec_from(3).map_err(|error| setup("cannot close descriptors", error))?;
    if !entry.insecure {
        filter.install().map_err(|error| setup("cannot lock the step in", error))?;
    }
    let cwd = if entry.cwd.is_empty() { "/" } else { &entry.cwd };
    let entered = enter(cwd);
    become_user(&Limits { insecure: entry.insecure, single_id: entry.single_id }, &user)?;
    inner_end(cwd, entered)?;
    die_with(inherited.parent.as_ref())?;
    Ok((std::mem::take(&mut entry.args), exec::environment(std::mem::take(&mut entry.env), &user.home)))
}
