//! The project's own image: what `cargo xtask image` builds.

use std::fs;
use std::path::Path;

use crate::harness::{World, binary};
use crate::needs;

#[test]
fn the_project_builds_its_own_image() {
    needs!(static binary);
    needs!(tool "skopeo");
    needs!(tool "umoci");
    let world = World::new();
    fs::create_dir(world.path("context")).unwrap();
    fs::copy(binary(), world.path("context/hullworks")).unwrap();
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile");
    let build = world.build().arg("--file").arg(dockerfile).args(["--tag", "hullworks:latest"]);
    build.args(["--output", "type=oci,dest=image.tar"]).arg(world.path("context")).succeeds().says("RUN [");

    let inspect = ["inspect", "--config", "--raw", "oci-archive:image.tar"];
    let config = world.run("skopeo").args(inspect).succeeds().text();
    assert!(config.contains(r#""Entrypoint":["/usr/bin/hullworks"]"#), "{config}");
    world.run("skopeo").args(["copy", "oci-archive:image.tar", "oci:layout:latest"]).succeeds();
    let unpack = ["unpack", "--rootless", "--image", "layout:latest", "bundle"];
    world.run("umoci").args(unpack).succeeds();
    let rootfs = world.path("bundle/rootfs");
    assert_eq!(fs::read(rootfs.join("usr/bin/hullworks")).unwrap(), fs::read(binary()).unwrap());
    assert_eq!(fs::read_link(rootfs.join("bin/buildctl-daemonless.sh")).unwrap(), Path::new("hullworks"));
    let version = world.run(rootfs.join("usr/bin/hullworks")).arg("--version").succeeds().text();
    assert!(version.starts_with("hullworks "), "{version}");
}
