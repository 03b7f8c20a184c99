//! A specification of the Container Device Interface: a file that says what a step gets with a device.

use std::collections::BTreeMap;

use super::node::Node;

/// The versions that there are; fields belong to the one that brought them.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// One file.
#[derive(Debug)]
pub(super) struct Spec {
    /// `vendor/class`.
    pub(super) kind: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// What comes with any of them.
    pub(super) edits: Edits,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) edits: Edits,
}

/// What is changed about a step.
#[derive(Debug, Default)]
pub(super) struct Edits {
    pub(super) env: Vec<String>,
    pub(super) nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) groups: Vec<u32>,
    /// What is asked for and not done here.
    pub(super) unsupported: Option<String>,
}

#[derive(Debug)]
pub(super) struct DeviceNode {
    pub(super) path: String,
    pub(super) host_path: String,
    pub(super) kind: String,
    pub(super) number: (u32, u32),
    pub(super) mode: Option<u32>,
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    pub(super) options: Vec<String>,
    pub(super) kind: String,
}

impl Spec {
    /// Reads a file, JSON or YAML.
    pub(super) fn read(text: &str) -> Result<Spec, String> {
        let mut table = Node::read(text)?.table("the specification")?;
        // The oldest version that has all that is used.
        let mut needed = 0;
        let version = table.text("cdiVersion")?;
        let kind = table.text("kind")?;
        let annotations = annotations(table.take("annotations"), &mut needed)?;
        let edits = Edits::read(table.take("containerEdits"), &mut needed)?;
        let devices = table.take("devices").list("devices")?.into_iter();
        let devices: Vec<_> = devices.map(|node| Device::read(node, &mut needed)).collect::<Result<_, _>>()?;
        table.end()?;

        let (vendor, class) = kind.split_once('/').unwrap_or(("", kind.as_str()));
        if class.contains('.') {
            needed = needed.max(5);
        }
        let known = VERSIONS.iter().position(|known| version.strip_prefix('v').unwrap_or(&version) == *known);
        match known {
            None => return Err(format!("invalid version \"{version}\"")),
            Some(index) if index < needed => {
                return Err(format!("the spec version must be at least v{}", VERSIONS[needed]));
            }
            Some(_) => {}
        }
        check_name("vendor", vendor, |first| first.is_ascii_alphabetic(), "_-.")?;
        check_name("class", class, |first| first.is_ascii_alphabetic(), "_-.")?;
        for (index, device) in devices.iter().enumerate() {
            if devices[..index].iter().any(|other| other.name == device.name) {
                return Err(format!("invalid spec, multiple device \"{}\"", device.name));
            }
        }
        if devices.is_empty() {
            return Err("invalid spec, no devices".to_owned());
        }
        Ok(Spec { kind, annotations, devices, edits })
    }
}

impl Device {
    fn read(node: Node, needed: &mut usize) -> Result<Device, String> {
        let mut table = node.table("devices")?;
        let name = table.text("name")?;
        check_name("device", &name, |first| first.is_ascii_alphanumeric(), "_-.:")?;
        if name.starts_with(|first: char| first.is_ascii_digit()) {
            *needed = (*needed).max(4);
        }
        let annotations = annotations(table.take("annotations"), needed)?;
        let edits =
            Edits::read(table.take("containerEdits"), needed).map_err(|why| format!("device \"{name}\": {why}"))?;
        table.end()?;
        if edits.are_none() {
            return Err(format!("device \"{name}\": empty device edits"));
        }
        Ok(Device { name, annotations, edits })
    }
}

impl Edits {
    fn read(node: Node, needed: &mut usize) -> Result<Edits, String> {
        let mut table = node.table("containerEdits")?;
        let mut edits = Edits { env: table.take("env").texts("env")?, ..Edits::default() };
        if let Some(wrong) = edits.env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
            return Err(format!("invalid environment variable \"{wrong}\""));
        }
        for node in table.take("deviceNodes").list("deviceNodes")? {
            edits.nodes.push(DeviceNode::read(node, needed)?);
        }
        for node in table.take("mounts").list("mounts")? {
            edits.mounts.push(Mount::read(node, needed)?);
        }
        for node in table.take("additionalGids").list("additionalGids")? {
            *needed = (*needed).max(6);
            // Everybody's group is no one more.
            edits.groups.extend(node.number("additionalGids")?.filter(|group| *group != 0));
        }
        for (name, since) in [("hooks", 0), ("intelRdt", 6), ("netDevices", 9)] {
            let used = match table.take(name) {
                Node::Nothing => continue,
                Node::List(list) if list.is_empty() => continue,
                used => used,
            };
            *needed = (*needed).max(since);
            edits.unsupported.get_or_insert(describe(name, used)?);
        }
        table.end()?;
        Ok(edits)
    }

    fn are_none(&self) -> bool {
        let Edits { env, nodes, mounts, groups, unsupported } = self;
        env.is_empty() && nodes.is_empty() && mounts.is_empty() && groups.is_empty() && unsupported.is_none()
    }
}

/// An edit that is not done here, in words.
fn describe(name: &str, used: Node) -> Result<String, String> {
    let Node::List(list) = used else { return Ok(format!("`{name}`")) };
    let (key, more) = if name == "hooks" { ("hookName", "path") } else { ("hostInterfaceName", "name") };
    let mut first = list.into_iter().next().unwrap_or(Node::Nothing).map(name)?;
    let mut field = |key: &str| first.remove(key).unwrap_or(Node::Nothing).text(key);
    Ok(format!("`{name}` ({} {})", field(key)?, field(more)?))
}

impl DeviceNode {
    fn read(node: Node, needed: &mut usize) -> Result<DeviceNode, String> {
        let mut table = node.table("deviceNodes")?;
        let node = DeviceNode {
            path: table.text("path")?,
            host_path: table.text("hostPath")?,
            kind: table.text("type")?,
            number: (table.number("major")?.unwrap_or(0), table.number("minor")?.unwrap_or(0)),
            mode: table.number("fileMode")?,
            permissions: table.text("permissions")?,
            uid: table.number("uid")?,
            gid: table.number("gid")?,
        };
        table.end()?;
        if !node.host_path.is_empty() {
            *needed = (*needed).max(4);
        }
        check_path("device", &node.path)?;
        let path = &node.path;
        if !matches!(node.kind.as_str(), "" | "b" | "c" | "u" | "p") {
            return Err(format!("device \"{path}\": invalid type \"{}\"", node.kind));
        }
        if !node.permissions.chars().all(|letter| "rwm".contains(letter)) {
            return Err(format!("device \"{path}\": invalid permissions \"{}\"", node.permissions));
        }
        Ok(node)
    }
}

impl Mount {
    fn read(node: Node, needed: &mut usize) -> Result<Mount, String> {
        let mut table = node.table("mounts")?;
        let mount = Mount {
            host_path: table.text("hostPath")?,
            container_path: table.text("containerPath")?,
            options: table.take("options").texts("options")?,
            kind: table.text("type")?,
        };
        table.end()?;
        if !mount.kind.is_empty() {
            *needed = (*needed).max(3);
        }
        if mount.host_path.is_empty() {
            return Err("invalid mount, empty host path".to_owned());
        }
        check_path("mount", &mount.container_path)?;
        Ok(mount)
    }
}

fn annotations(node: Node, needed: &mut usize) -> Result<BTreeMap<String, String>, String> {
    let map = node.map("annotations")?;
    if !map.is_empty() {
        *needed = (*needed).max(5);
    }
    map.into_iter().map(|(key, value)| Ok((key, value.text("annotations")?))).collect()
}

/// A path inside a step says where it leads.
fn check_path(what: &str, path: &str) -> Result<(), String> {
    match path.starts_with('/') && path.len() > 1 && path.split('/').all(|part| part != "..") {
        true => Ok(()),
        false => Err(format!("invalid {what}: \"{path}\" is no absolute path")),
    }
}

/// Letters, digits and some others between a first and a last one that are none of these.
fn check_name(what: &str, name: &str, may_begin: fn(char) -> bool, inside: &str) -> Result<(), String> {
    let ends = name.starts_with(may_begin) && name.ends_with(|last: char| last.is_ascii_alphanumeric());
    match ends && name.chars().all(|letter| letter.is_ascii_alphanumeric() || inside.contains(letter)) {
        true => Ok(()),
        false => Err(format!("invalid {what} name \"{name}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{
        "cdiVersion": "0.7.0", "kind": "vendor.com/class",
        "annotations": {"a": "b"},
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [{"name": "one", "annotations": {"c": true}, "containerEdits": {
            "env": ["ONE=1"],
            "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3,
                             "fileMode": 438, "permissions": "rw", "uid": 1, "gid": 2}],
            "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro", "bind"], "type": "bind"}],
            "additionalGids": [0, 44]
        }}]
    }"#;

    #[test]
    fn all_that_a_specification_may_say() {
        let spec = Spec::read(WHOLE).expect("a good one");
        assert_eq!((spec.kind.as_str(), spec.edits.env[0].as_str()), ("vendor.com/class", "ALL=1"));
        let device = &spec.devices[0];
        assert_eq!((device.name.as_str(), device.annotations["c"].as_str()), ("one", "true"));
        let node = &device.edits.nodes[0];
        assert_eq!((node.number, node.mode, node.uid, node.gid), ((1, 3), Some(0o666), Some(1), Some(2)));
        assert_eq!(device.edits.mounts[0].options, ["ro", "bind"]);
        assert_eq!(device.edits.groups, [44]);
        assert_eq!(device.edits.unsupported, None);
    }

    #[test]
    fn what_is_not_done_is_named() {
        for (edit, version, named) in [
            ("hooks: [{hookName: createContainer, path: /bin/x}]", "0.3.0", "`hooks` (createContainer /bin/x)"),
            ("intelRdt: {closID: a}", "0.7.0", "`intelRdt`"),
            ("netDevices: [{hostInterfaceName: e0, name: e1}]", "1.1.0", "`netDevices` (e0 e1)"),
        ] {
            let text =
                format!("{{cdiVersion: {version}, kind: a/b, devices: [{{name: c, containerEdits: {{{edit}}}}}]}}");
            let spec = Spec::read(&text).expect("a good one");
            assert_eq!(spec.devices[0].edits.unsupported.as_deref(), Some(named));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |from: &str, to: &str| Spec::read(&WHOLE.replace(from, to)).expect_err(to);
        for (from, to, said) in [
            ("0.7.0", "0.6.0", "the spec version must be at least v0.7.0"),
            ("0.7.0", "2.0.0", "invalid version \"2.0.0\""),
            ("vendor.com/class", "class", "invalid vendor name \"\""),
            ("vendor.com/class", "vendor.com/-", "invalid class name \"-\""),
            ("\"one\"", "\"*\"", "invalid device name \"*\""),
            ("\"/dev/x\"", "\"\"", "device \"one\": invalid device: \"\" is no absolute path"),
            ("\"/b\"", "\"/../b\"", "device \"one\": invalid mount: \"/../b\" is no absolute path"),
            ("\"c\", \"major\"", "\"d\", \"major\"", "device \"one\": device \"/dev/x\": invalid type \"d\""),
            ("\"rw\"", "\"rx\"", "device \"one\": device \"/dev/x\": invalid permissions \"rx\""),
            ("ONE=1", "=1", "device \"one\": invalid environment variable \"=1\""),
            ("\"kind\"", "\"knd\"", "`knd` is no field of `the specification`"),
        ] {
            assert_eq!(with(from, to), said);
        }
        assert!(Spec::read("").is_err() && Spec::read("[]").is_err() && Spec::read("a").is_err());
    }
}
