//! What a step gets with its devices.

use std::path::{Path, PathBuf};

use base::Fault;
use executor::{DeviceKind, DeviceNode, MountSource, StepMount};
use rustix::fs::FileType;
use sys::mount::Restrict;

use super::{Place, spec};

/// All that comes with devices.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    /// Variables; they count more than those of the step.
    pub(crate) env: Vec<String>,
    pub(crate) devices: Vec<DeviceNode>,
    /// Mounts that come before those of the step, in order.
    pub(crate) mounts: Vec<StepMount>,
    pub(crate) groups: Vec<u32>,
}

/// Why a step cannot have its devices.
pub(super) fn fault(why: String) -> Fault {
    Fault::user(format!("CDI device injection failed: {why}"))
}

impl Edits {
    /// Collects what comes with devices; what a specification has for all of its devices comes once.
    pub(super) fn of<'a>(devices: impl Iterator<Item = (&'a str, &'a Place)>) -> Result<Edits, String> {
        let mut edits = Edits::default();
        let mut seen: Vec<*const spec::Spec> = Vec::new();
        for (name, place) in devices {
            let of_spec = std::sync::Arc::as_ptr(&place.spec);
            if !seen.contains(&of_spec) {
                seen.push(of_spec);
                edits.add(name, &place.spec.edits)?;
            }
            edits.add(name, &place.spec.devices[place.index].edits)?;
        }
        // What lies in another mount comes after it.
        edits.mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
        Ok(edits)
    }

    fn add(&mut self, name: &str, more: &spec::Edits) -> Result<(), String> {
        if let Some(unsupported) = &more.unsupported {
            return Err(format!("device {name} asks for {unsupported}, which is not supported"));
        }
        self.env.extend(more.env.iter().cloned());
        for node in &more.nodes {
            let node = self::node(node)?;
            self.devices.retain(|other| other.path != node.path);
            self.devices.push(node);
        }
        for mount in &more.mounts {
            let mount = self::mount(name, mount)?;
            self.mounts.retain(|other| other.target != mount.target);
            self.mounts.push(mount);
        }
        self.groups.extend(&more.groups);
        Ok(())
    }
}

/// A device as it is described, and where that says too little, as the host has it.
fn node(described: &spec::DeviceNode) -> Result<DeviceNode, String> {
    let host_path = if described.host_path.is_empty() { &described.path } else { &described.host_path };
    let is_enough = !described.kind.is_empty() && (described.number.0 != 0 || described.kind == "p");
    let host = match on_host(host_path) {
        Ok(host) => Some(host),
        Err(_) if is_enough => None,
        Err(error) => return Err(format!("failed to stat CDI host device \"{host_path}\": {error}")),
    };
    let kind = match (described.kind.as_str(), &host) {
        ("b", _) => DeviceKind::Block,
        ("c" | "u", _) => DeviceKind::Character,
        ("p", _) => DeviceKind::Pipe,
        (_, Some(host)) => host.kind,
        (_, None) => return Err(format!("CDI device \"{}\" has no type", described.path)),
    };
    let number = match host.as_ref().filter(|_| !is_enough) {
        Some(host) if host.kind != kind => {
            return Err(format!("CDI device \"{}\" has another type than the host's \"{host_path}\"", described.path));
        }
        Some(host) if described.number.0 == 0 => host.number,
        _ => described.number,
    };
    let permissions = if described.permissions.is_empty() { "rwm" } else { &described.permissions };
    Ok(DeviceNode {
        path: described.path.clone(),
        host_path: host_path.into(),
        kind,
        number,
        mode: described.mode.or(host.map(|host| host.mode)).unwrap_or(0o666) & 0o7777,
        uid: described.uid,
        gid: described.gid,
        read: permissions.contains('r'),
        write: permissions.contains('w'),
    })
}

struct HostDevice {
    kind: DeviceKind,
    number: (u32, u32),
    mode: u32,
}

fn on_host(path: &str) -> std::io::Result<HostDevice> {
    let stat = rustix::fs::lstat(path)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => DeviceKind::Block,
        FileType::CharacterDevice => DeviceKind::Character,
        FileType::Fifo => DeviceKind::Pipe,
        _ => return Err(std::io::Error::other("not a device node")),
    };
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(HostDevice { kind, number, mode: stat.st_mode & 0o7777 })
}

fn mount(name: &str, described: &spec::Mount) -> Result<StepMount, String> {
    let (target, host) = (described.container_path.clone(), &described.host_path);
    let unsupported = |what: &str| format!("device {name} has a mount at \"{target}\" {what}, which is not supported");
    if !matches!(described.kind.as_str(), "" | "none" | "bind") {
        return Err(unsupported(&format!("of type \"{}\"", described.kind)));
    }
    if !host.starts_with('/') {
        return Err(format!("device {name} has a mount whose host path \"{host}\" is not absolute"));
    }
    let mut restrict = Restrict::empty();
    for option in &described.options {
        let (flag, on) = match option.as_str() {
            // What is mounted on either side is not seen on the other; below the host path it is taken along.
            "bind" | "rbind" | "private" | "rprivate" | "slave" | "rslave" => continue,
            "ro" => (Restrict::READ_ONLY, true),
            "rw" => (Restrict::READ_ONLY, false),
            "nosuid" => (Restrict::NO_SETUID, true),
            "suid" => (Restrict::NO_SETUID, false),
            "nodev" => (Restrict::NO_DEVICES, true),
            "dev" => (Restrict::NO_DEVICES, false),
            "noexec" => (Restrict::NO_EXEC, true),
            "exec" => (Restrict::NO_EXEC, false),
            other => return Err(unsupported(&format!("with the option \"{other}\""))),
        };
        restrict.set(flag, on);
    }
    Ok(StepMount { target, source: MountSource::Bind { path: PathBuf::from(host), restrict } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(text: &str) -> Result<Edits, String> {
        let text = format!("cdiVersion: 0.7.0\nkind: v.com/x\ndevices:\n- name: a\n  containerEdits: {text}\n");
        let spec = std::sync::Arc::new(spec::Spec::read(&text).expect("a good one"));
        let place = Place { spec, index: 0, directory: 0, conflicts: false };
        Edits::of([("v.com/x=a", &place)].into_iter())
    }

    #[test]
    fn devices_are_as_described_or_as_the_host_has_them() {
        let node = |text: &str| edits(&format!("{{deviceNodes: [{text}]}}")).map(|mut edits| edits.devices.remove(0));
        let null = node("{path: /dev/x, hostPath: /dev/null, permissions: r}").expect("there");
        assert_eq!((null.kind, null.number, null.mode), (DeviceKind::Character, (1, 3), 0o666));
        assert_eq!((null.read, null.write, null.host_path.to_str()), (true, false, Some("/dev/null")));
        let own = node("{path: /dev/none/x, type: b, major: 7, minor: 1, fileMode: 0640, uid: 3}").expect("described");
        assert_eq!((own.kind, own.number, own.mode, own.uid), (DeviceKind::Block, (7, 1), 0o640, Some(3)));
        for (text, said) in [
            ("{path: /dev/none}", "failed to stat CDI host device \"/dev/none\": No such file"),
            ("{path: /dev/pts}", "failed to stat CDI host device \"/dev/pts\": not a device node"),
            ("{path: /dev/null, type: b}", "CDI device \"/dev/null\" has another type"),
        ] {
            let error = node(text).expect_err(text);
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn mounts_are_in_order_and_restricted() {
        let two = "{mounts: [{hostPath: /a, containerPath: /b/c, options: [ro, nosuid, nodev, rbind, rprivate]}, \
                   {hostPath: /d, containerPath: /b, options: [ro, rw]}]}";
        let mounts = edits(two).expect("good ones").mounts;
        let restricted = |mount: &StepMount| match &mount.source {
            MountSource::Bind { restrict, .. } => *restrict,
            other => panic!("{other:?}"),
        };
        assert_eq!(mounts.iter().map(|mount| mount.target.as_str()).collect::<Vec<_>>(), ["/b", "/b/c"]);
        assert_eq!(restricted(&mounts[0]), Restrict::empty());
        assert_eq!(restricted(&mounts[1]), Restrict::READ_ONLY | Restrict::NO_SETUID | Restrict::NO_DEVICES);
        for (mount, said) in [
            ("{hostPath: /a, containerPath: /b, type: tmpfs}", "of type \"tmpfs\", which is not supported"),
            (
                "{hostPath: /a, containerPath: /b, options: [rshared]}",
                "with the option \"rshared\", which is not supported",
            ),
            ("{hostPath: a, containerPath: /b}", "whose host path \"a\" is not absolute"),
        ] {
            let error = edits(&format!("{{mounts: [{mount}]}}")).expect_err(mount);
            assert!(error.ends_with(said), "{error}");
        }
    }

    #[test]
    fn what_is_not_done_here_is_refused_by_name() {
        let error = edits("{hooks: [{hookName: createContainer, path: /bin/x}]}").expect_err("hooks");
        assert_eq!(error, "device v.com/x=a asks for `hooks` (createContainer /bin/x), which is not supported");
    }
}
