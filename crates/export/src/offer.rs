//! `type=local` where the directory is a client's: the files are offered, and those that it lacks are sent.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;

use base::{Fault, Kind};
use files::receive::{Attributes, Sent};
use files::walk::{Filter, Verdict, walk};
use rustix::fs::{Mode, OFlags};
use session::RemoteOutput;
use session::remote::Files;
use sys::mount::{FsView, Mounted};
use sys::path::{Links, Root};

use crate::tree::folder;
use crate::{BuildResult, Context, store_fault};

/// Offers the files to the client, who takes those that it does not have.
pub(crate) async fn send(
    context: &Context,
    result: &BuildResult,
    epoch: Option<i64>,
    split: bool,
    remote: &dyn RemoteOutput,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut trees = Vec::new();
    for platform in &result.platforms {
        let view = platform.tree.as_ref().map(|tree| context.store.snapshots().view(&tree.id()));
        let view = view.transpose().map_err(|e| store_fault("cannot read the result", e))?;
        trees.push((if split { folder(platform) } else { String::new() }, view));
    }
    let mut task = context.tasks.start("copying files", 0);
    let offer = remote.tree().await?;
    let (scratch, cancel) = (context.store.dir().join("mounts"), context.cancel.clone());
    let is_recorded = context.store.has_records();
    context
        .blocking("sending a tree to the client".to_owned(), move || {
            let mount = |(prefix, view): (String, Option<FsView>)| {
                let mounted = view.map(|view| Mounted::new(&view, &scratch)).transpose();
                let mounted = mounted.map_err(|e| Fault::because(Kind::Environment, "cannot mount the result", e))?;
                let root = mounted.as_ref().map(|mounted| Root::open(mounted.path())).transpose();
                let root = root.map_err(|e| Fault::because(Kind::Environment, "cannot open the result", e))?;
                Ok(Offered { prefix, root, _mounted: mounted })
            };
            let trees = trees.into_iter().map(mount).collect::<Result<Vec<_>, Fault>>()?;
            let trees = Trees { trees, epoch, is_recorded, cancel: cancel.clone() };
            offer.send(&trees, &cancel, &mut |sent| task.at(sent))
        })
        .await?;
    Ok(BTreeMap::new())
}

/// The files of a result, below a directory per platform where there are several.
struct Trees {
    trees: Vec<Offered>,
    epoch: Option<i64>,
    /// What the kernel refused is among the attributes.
    is_recorded: bool,
    cancel: base::Cancel,
}

struct Offered {
    prefix: String,
    root: Option<Root>,
    _mounted: Option<Mounted>,
}

impl Files for Trees {
    fn list(&self, visit: &mut dyn FnMut(Sent) -> Result<(), Fault>) -> Result<(), Fault> {
        if self.trees.len() > 1 && self.trees.iter().all(|tree| tree.prefix.is_empty()) {
            return self.list_merged(visit);
        }
        let mut names: Vec<&Offered> = self.trees.iter().collect();
        names.sort_by(|one, two| one.prefix.cmp(&two.prefix));
        for tree in names {
            if !tree.prefix.is_empty() {
                let now = files::Time::now();
                let mtime = self.epoch.map_or(now, |secs| files::Time { secs, nanos: 0 });
                visit(Sent::dir(tree.prefix.as_bytes(), mtime))?;
            }
            self.list_one(tree, visit)?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> io::Result<File> {
        for tree in &self.trees {
            let inside = match tree.prefix.as_str() {
                "" => Some(path),
                prefix => path.strip_prefix(prefix.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")),
            };
            if let (Some(inside), Some(root)) = (inside, &tree.root) {
                let path = OsStr::from_bytes(inside);
                match root.open_at(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), Links::Refuse) {
                    // Another one of those that are laid over each other has it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    opened => return opened.map(File::from),
                }
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Trees {
    fn list_one(&self, tree: &Offered, visit: &mut dyn FnMut(Sent) -> Result<(), Fault>) -> Result<(), Fault> {
        let failed = |e| Fault::because(Kind::Environment, "cannot read the result", e);
        let below = |path: &[u8]| match tree.prefix.as_str() {
            "" => path.to_vec(),
            prefix => [prefix.as_bytes(), b"/", path].concat(),
        };
        let Some(root) = &tree.root else { return Ok(()) };
        let entries = walk(root, &Filter::default(), &mut |_, _| Verdict::Keep, &self.cancel).map_err(failed)?;
        // The first name of a file stands for all of them.
        let mut inodes: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut attributes = Attributes::new(root);
        for entry in entries {
            let path = below(entry.path.as_os_str().as_bytes());
            let has_names = entry.stat.nlink > 1 && entry.stat.kind == files::Kind::File;
            let first = inodes.get(&entry.stat.ino).filter(|_| has_names);
            let mut file = Sent::of(&entry, first.map(Vec::as_slice));
            if has_names && first.is_none() {
                inodes.insert(entry.stat.ino, path.clone());
            }
            file.path = path;
            file.xattrs = attributes.of_built(&entry.path, self.is_recorded).map_err(failed)?;
            if let Some(secs) = self.epoch {
                file.mtime = files::Time { secs, nanos: 0 };
            }
            visit(file)?;
        }
        Ok(())
    }

    /// All trees as one. Clients want the order of a walk, and each path once: of directories that several have, they get
    /// the first.
    fn list_merged(&self, visit: &mut dyn FnMut(Sent) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut all: BTreeMap<Vec<Vec<u8>>, Sent> = BTreeMap::new();
        for tree in &self.trees {
            self.list_one(tree, &mut |file| {
                let names = file.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
                all.entry(names).or_insert(file);
                Ok(())
            })?;
        }
        all.into_values().try_for_each(visit)
    }
}
