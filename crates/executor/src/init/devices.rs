//! Device nodes that a step has beside those that every step has.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use sys::mount::fd_path;
use sys::path::Links;

use super::mounts::{Builder, setup};
use super::stubs::{Keep, Kind, mount_point};
use super::user::User;
use crate::message::Failure;
use crate::{DeviceKind, DeviceNode};

/// What a node is called until it is where it belongs.
const MADE: &str = ".device";

impl Builder<'_> {
    /// Makes a device, or mounts the host's where we may not make any (`bind`). It takes the place of what is there.
    pub(super) fn add_device(&mut self, device: &DeviceNode, user: &User, bind: bool) -> Result<(), Failure> {
        let failed = |error: std::io::Error| setup(format_args!("cannot make the device `{}`", device.path), error);
        let dev = self.root.open_dir("/dev", Links::Refuse).map_err(failed)?;
        if bind || !make(&dev, device, user).map_err(|errno| failed(errno.into()))? {
            return self.bind_device(device);
        }
        let path = Path::new(&device.path);
        if let (true, Some(parent), Some(name)) = (path.starts_with("/dev"), path.parent(), path.file_name()) {
            // Nothing of this file system is ever part of a layer.
            let parent = mount_point(&self.root, &parent.to_string_lossy(), Kind::Directory, Keep::All, &mut self.made);
            let parent = parent.map_err(failed)?;
            match rustix::fs::renameat(&dev, MADE, &parent, name) {
                // Something is mounted there, or it is another file system.
                Err(Errno::BUSY | Errno::XDEV) => {}
                result => return result.map_err(|errno| failed(errno.into())),
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(&dev, MADE, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let point = self.open_target(&device.path, Kind::File)?;
        rustix::mount::mount_bind(fd_path(node.as_fd()), fd_path(point.as_fd()))
            .and_then(|()| rustix::fs::unlinkat(&dev, MADE, AtFlags::empty()))
            .map_err(|errno| failed(errno.into()))
    }

    fn bind_device(&mut self, device: &DeviceNode) -> Result<(), Failure> {
        let (path, host) = (&device.path, device.host_path.display());
        let kind = std::fs::metadata(&device.host_path).map(|host| host.file_type());
        if !kind.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device() || kind.is_fifo()) {
            return Err(Failure::Invalid(format!(
                "cannot make the device `{path}`: only root can, and the host has no `{host}` to be mounted in its place"
            )));
        }
        let point = self.open_target(path, Kind::File)?;
        rustix::mount::mount_bind(&device.host_path, fd_path(point.as_fd())).map_err(|errno| {
            setup(format_args!("cannot mount the device `{host}` at `{path}`"), std::io::Error::from(errno))
        })
    }
}

/// Makes the node; false where we may not.
fn make(dev: &OwnedFd, device: &DeviceNode, user: &User) -> Result<bool, Errno> {
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Pipe => FileType::Fifo,
    };
    let id = rustix::fs::makedev(device.number.0, device.number.1);
    match rustix::fs::mknodat(dev, MADE, kind, Mode::from_raw_mode(device.mode), id) {
        Err(Errno::PERM) => return Ok(false),
        result => result?,
    }
    let uid = Uid::from_raw(device.uid.unwrap_or(user.uid));
    let gid = Gid::from_raw(device.gid.unwrap_or(user.gid));
    rustix::fs::chownat(dev, MADE, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(true)
}
