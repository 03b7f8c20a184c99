//! Devices of the machine (Container Device Interface): which there are, who may have them, what a step gets with them.
//!
//! The files are read anew whenever somebody asks: there are few, and they change while we run.

mod edits;
mod grant;
mod node;
mod spec;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base::Fault;
use llb::pb;

pub(crate) use edits::Edits;
pub(crate) use grant::Rights;
use spec::Spec;

/// Where specifications are looked for, unless told otherwise; the last one counts most.
const DIRECTORIES: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];
/// More than this is no specification.
const MOST_BYTES: u64 = 4 << 20;
/// Devices of one class are asked for by it.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Whether builds need no right of theirs.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// A device that builds may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    /// Builds need no right to have it.
    pub auto_allow: bool,
    /// Its own annotations, and its specification's.
    pub annotations: BTreeMap<String, String>,
}

/// The devices of the machine.
pub(crate) struct Devices {
    /// None where they are turned off.
    directories: Option<Vec<PathBuf>>,
    auto_allowed: HashSet<String>,
    /// What was said about files that are wrong.
    said: Mutex<BTreeSet<String>>,
}

/// The specifications as they are now.
struct Found {
    devices: BTreeMap<String, Place>,
    auto_allowed: HashSet<String>,
    is_off: bool,
}

/// Where a device is described.
struct Place {
    spec: Arc<Spec>,
    index: usize,
    /// The place of the directory among others: a later one counts more.
    directory: usize,
    /// Others of that directory describe it, too: nobody is right.
    conflicts: bool,
}

impl Devices {
    pub(crate) fn new(config: &config::Cdi) -> Devices {
        let directories = match &config.spec_dirs[..] {
            [] => DIRECTORIES.map(PathBuf::from).into(),
            given => given.to_vec(),
        };
        Devices {
            directories: Some(directories).filter(|_| config.disabled != Some(true)),
            auto_allowed: config.auto_allowed.iter().cloned().collect(),
            said: Mutex::default(),
        }
    }

    /// Whether steps may have devices at all.
    pub(crate) fn are_on(&self) -> bool {
        self.directories.is_some()
    }

    /// All that there are.
    pub(crate) fn list(&self) -> Vec<Device> {
        let found = self.read();
        let device = |name: &String| {
            let (auto_allow, annotations) = (found.is_auto_allowed(name), found.annotations(name));
            Device { name: name.clone(), auto_allow, annotations }
        };
        found.devices.keys().map(device).collect()
    }

    /// What a step gets with these.
    pub(crate) fn edits(&self, wanted: &[pb::CdiDevice]) -> Result<Edits, Fault> {
        let found = self.read();
        let names = found.find(wanted)?;
        Edits::of(names.iter().map(|name| (name.as_str(), &found.devices[name]))).map_err(edits::fault)
    }

    /// Reads all files. What is wrong is said, once, and no reason not to go on.
    fn read(&self) -> Found {
        let mut wrong = BTreeSet::new();
        let mut devices: BTreeMap<String, Place> = BTreeMap::new();
        for (directory, path) in self.directories.iter().flatten().enumerate() {
            for path in files(path, &mut wrong) {
                let spec = match read_file(&path) {
                    Ok(spec) => Arc::new(spec),
                    Err(why) => {
                        wrong.insert(format!("failed to load CDI Spec `{}`: {why}", path.display()));
                        continue;
                    }
                };
                for (index, device) in spec.devices.iter().enumerate() {
                    let name = format!("{}={}", spec.kind, device.name);
                    let place = Place { spec: spec.clone(), index, directory, conflicts: false };
                    match devices.get_mut(&name) {
                        Some(other) if other.directory == directory => {
                            wrong.insert(format!(
                                "conflicting device `{name}`: `{}` is not the first to have it",
                                path.display()
                            ));
                            other.conflicts = true;
                        }
                        _ => drop(devices.insert(name, place)),
                    }
                }
            }
        }
        devices.retain(|_, place| !place.conflicts);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        for text in wrong.difference(&said) {
            tracing::warn!("{text}");
        }
        *said = wrong;
        Found { devices, auto_allowed: self.auto_allowed.clone(), is_off: !self.are_on() }
    }
}

/// The specifications of a directory by name. One that is not there has none.
fn files(directory: &Path, wrong: &mut BTreeSet<String>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            wrong.insert(format!("cannot look for CDI Specs in `{}`: {error}", directory.display()));
            return Vec::new();
        }
    };
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|name| name == "json" || name == "yaml");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_spec).collect();
    files.retain(|path| !path.is_dir());
    files.sort();
    files
}

fn read_file(path: &Path) -> Result<Spec, String> {
    let size = std::fs::metadata(path).and_then(|file| match file.is_file() {
        true => Ok(file.len()),
        false => Err(std::io::Error::other("no file")),
    });
    if size.map_err(|error| error.to_string())? > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Spec::read(&text)
}

impl Found {
    /// The names of the devices that are asked for: by name, any or all of a kind, all of a class.
    fn find(&self, wanted: &[pb::CdiDevice]) -> Result<Vec<String>, Fault> {
        let mut names: Vec<String> = Vec::new();
        for wanted in wanted {
            let found = self.resolve(&wanted.name);
            if found.is_empty() {
                if !wanted.optional {
                    return Err(self.is_missing(&wanted.name));
                }
                tracing::warn!("optional device `{}` is not registered", wanted.name);
            }
            for name in found {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
        }
        Ok(names)
    }

    fn resolve(&self, wanted: &str) -> Vec<&String> {
        let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
        let is_kind = kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty());
        let of_kind = || self.devices.keys().filter(|device| device.split_once('=').is_some_and(|(of, _)| of == kind));
        let found: Vec<&String> = match name {
            _ if !is_kind => Vec::new(),
            "" => of_kind().take(1).collect(),
            "*" => of_kind().collect(),
            _ => self.devices.keys().filter(|device| *device == wanted).collect(),
        };
        if !found.is_empty() {
            return found;
        }
        let is_of_class = |device: &&String| self.annotations(device).get(CLASS).is_some_and(|class| class == wanted);
        self.devices.keys().filter(is_of_class).collect()
    }

    fn is_missing(&self, name: &str) -> Fault {
        let fault = Fault::user(format!("required device \"{name}\" is not registered"));
        match self.is_off {
            true => fault.hint("devices are turned off here (`[cdi] disabled` in buildkitd.toml, `--cdi-disabled`)"),
            false => fault.hint("`buildctl debug workers -v` lists the devices that there are"),
        }
    }

    fn annotations(&self, device: &str) -> BTreeMap<String, String> {
        let Some(place) = self.devices.get(device) else { return BTreeMap::new() };
        let mut annotations = place.spec.annotations.clone();
        annotations.extend(place.spec.devices[place.index].annotations.clone());
        annotations
    }

    fn is_auto_allowed(&self, device: &str) -> bool {
        let kind = device.split_once('=').map_or(device, |(kind, _)| kind);
        let says =
            || self.annotations(device).get(AUTO_ALLOW).is_some_and(|text| config::parse_bool(text) == Some(true));
        self.auto_allowed.contains(device) || self.auto_allowed.contains(kind) || says()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, devices: &str) -> String {
        format!("cdiVersion: \"0.6.0\"\nkind: {kind}\ndevices:\n{devices}")
    }

    fn device(name: &str, class: &str) -> String {
        let class = if class.is_empty() { String::new() } else { format!("  annotations:\n    {CLASS}: {class}\n") };
        format!("- name: {name}\n{class}  containerEdits:\n    env: [\"{name}=1\"]\n")
    }

    /// Devices of these files.
    fn devices(files: &[(&str, String)]) -> (tempfile::TempDir, Devices) {
        let dir = tempfile::tempdir().expect("scratch");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("scratch");
            std::fs::write(path, text).expect("scratch");
        }
        let spec_dirs = ["a", "b", "none"].map(|name| dir.path().join(name)).into();
        let auto_allowed = vec!["v.com/auto".to_owned(), "v.com/many=bar".to_owned()];
        let devices = Devices::new(&config::Cdi { disabled: None, spec_dirs, auto_allowed });
        (dir, devices)
    }

    fn wanted(name: &str, optional: bool) -> Vec<pb::CdiDevice> {
        vec![pb::CdiDevice { name: name.to_owned(), optional }]
    }

    #[test]
    fn devices_are_found_by_name_kind_and_class() {
        let many = ["foo", "bar", "qux"].map(|name| device(name, "")).concat() + &device("baz", "class1");
        let (_dir, devices) = devices(&[
            ("a/one.yaml", spec("v.com/device", &device("foo", "class1"))),
            ("a/many.json", spec("v.com/many", &many)),
            ("a/other.yml", spec("v.com/other", &device("foo", ""))),
        ]);
        for (name, found) in [
            ("v.com/device=foo", vec!["v.com/device=foo"]),
            ("v.com/many", vec!["v.com/many=bar"]),
            ("v.com/many=", vec!["v.com/many=bar"]),
            ("v.com/many=*", vec!["v.com/many=bar", "v.com/many=baz", "v.com/many=foo", "v.com/many=qux"]),
            ("class1", vec!["v.com/device=foo", "v.com/many=baz"]),
        ] {
            assert_eq!(devices.read().find(&wanted(name, false)).expect(name), found, "{name}");
        }
        for name in ["v.com/device=bar", "v.com/dev=*", "v.com/other", "class2", "", "=", "/"] {
            let fault = devices.read().find(&wanted(name, false)).expect_err(name);
            assert_eq!(fault.cause(), format!("required device \"{name}\" is not registered"));
            assert_eq!(devices.read().find(&wanted(name, true)).expect(name), [""; 0]);
        }
        let env = |name| devices.edits(&wanted(name, false)).expect("edits").env;
        assert_eq!(env("class1"), ["foo=1", "baz=1"]);
        let auto: Vec<_> = devices.list().into_iter().filter(|device| device.auto_allow).collect();
        assert_eq!(auto.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), ["v.com/many=bar"]);
    }

    #[test]
    fn later_directories_count_more_and_files_are_read_anew() {
        let (dir, devices) = devices(&[
            ("a/1.yaml", spec("v.com/x", &device("foo", "first"))),
            ("b/1.yaml", spec("v.com/x", &device("foo", "second"))),
            ("a/2.yaml", spec("v.com/y", &device("foo", ""))),
            ("a/3.yaml", spec("v.com/y", &device("foo", ""))),
            ("a/4.json", "{".to_owned()),
        ]);
        let listed = || devices.list().into_iter().map(|device| (device.name, device.annotations)).collect::<Vec<_>>();
        // Two that say the same differently are both wrong; so is what cannot be read, which changes nothing for others.
        let second = |name: &str| vec![(name.to_owned(), BTreeMap::from([(CLASS.to_owned(), "second".to_owned())]))];
        assert_eq!(listed(), second("v.com/x=foo"));
        let said = devices.said.lock().expect("whole").clone();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().any(|text| text.contains("a/4.json")), "{said:?}");
        std::fs::remove_file(dir.path().join("a/3.yaml")).expect("a file");
        assert_eq!(listed().len(), 2);
    }

    #[test]
    fn turned_off_there_are_none() {
        let off = Devices::new(&config::Cdi { disabled: Some(true), ..config::Cdi::default() });
        assert!(off.list().is_empty() && !off.are_on());
        assert!(off.edits(&wanted("v.com/x=foo", true)).is_ok_and(|edits| edits.env.is_empty()));
        let fault = off.edits(&wanted("v.com/x=foo", false)).expect_err("none there");
        assert!(fault.get_hint().is_some_and(|hint| hint.contains("turned off")));
    }
}
