//! Base images of the machine's own Debian release in a registry, Debian's `docker-registry`.
//!
//! mmdebstrap makes the tree once; it is kept in cargo's target directory. The registry is there while any test holds it.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use testkit::DockerRegistry;

use crate::harness::{World, or_skip, tools};
use crate::kitchen::Kitchen;
use crate::machine::{Machine, Release};
use crate::who::Who;

/// See above.
pub struct Larder {
    registry: DockerRegistry,
    pub release: Release,
    /// Who makes images for everybody.
    cook: Who,
    /// Names of images that are there.
    made: Mutex<Vec<String>>,
}

/// What mmdebstrap is told, and what is left out as in Debian's own small images.
const RECIPE: &[&str] = &[
    "--variant=apt",
    "--include=ca-certificates,passwd",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    // How this machine reaches its mirrors is no business of the image.
    "--customize-hook=rm \"$1/etc/apt/apt.conf.d/99mmdebstrap\"",
];

impl Larder {
    /// The one that is open, else a new one; none, with the reason told, where there can be none.
    pub fn open() -> Option<Arc<Larder>> {
        static OPEN: Mutex<Weak<Larder>> = Mutex::new(Weak::new());
        // A test that failed while it held the lock has left nothing half done.
        let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(larder) = open.upgrade() {
            return Some(larder);
        }
        let larder = Arc::new(or_skip(Larder::new())?);
        *open = Arc::downgrade(&larder);
        Some(larder)
    }

    fn new() -> Result<Larder, String> {
        tools(&["docker-registry", "mmdebstrap"])?;
        // mmdebstrap, too, wants one of these.
        let cook = [Who::Root, Who::Ranges].into_iter().find(|who| who.is_here().is_ok());
        let cook = cook.ok_or("it wants root, or subordinate ids of this user")?;
        let release = Release::of_machine()?;
        let tree = tree(&release);
        let larder = Larder { registry: DockerRegistry::start().unwrap(), release, cook, made: Mutex::default() };
        let kitchen = Kitchen::new(cook).ok_or("see above")?;
        fs::create_dir_all(kitchen.world.path("context")).unwrap();
        fs::copy(tree, kitchen.world.path("context/tree.tar")).unwrap();
        kitchen.dockerfile("FROM scratch\nADD tree.tar /\nCMD [\"bash\"]\n");
        kitchen.build(&format!("--push -t {}", larder.name("debian"))).succeeds();
        Ok(larder)
    }

    /// The name of an image here.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.registry.host())
    }

    /// The release with packages as an image of this name; made when it is first asked for.
    pub fn with_packages(&self, image: &str, packages: &str) -> String {
        let mut made = self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !made.iter().any(|name| name == image) {
            let kitchen = Kitchen::new(self.cook).expect("it worked for the base image");
            let machine = Machine::new(&self.release, self.cook);
            let (from, to) = (self.name("debian"), self.name(image));
            let install = "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends";
            let clean = "rm -r /var/lib/apt/lists/* /var/cache/apt/*";
            kitchen
                .dockerfile(&machine.mounts(&format!("FROM {from}\nRUN @machine {install} {packages} && {clean}\n")));
            kitchen.build(&format!("--push -t {to}{}", machine.flags(&kitchen))).succeeds();
            made.push(image.to_owned());
        }
        self.name(image)
    }
}

/// The tar of a small tree of the release; another recipe or mirror makes another.
fn tree(release: &Release) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (RECIPE, &release.sources).hash(&mut hasher);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = kept.join(format!("{}-{:016x}.tar", release.codename, hasher.finish()));
    if !path.exists() {
        let world = World::new();
        world.write("sources.list", &release.sources);
        world.write("apt.conf", &release.settings);
        let made = kept.join(format!("{}.{}.tar", release.codename, std::process::id()));
        fs::create_dir_all(kept).unwrap();
        let run = world.run("mmdebstrap").args(RECIPE).args(["--aptopt=apt.conf", &release.codename]);
        run.arg(&made).arg("sources.list").succeeds();
        fs::rename(made, &path).unwrap();
    }
    path
}
