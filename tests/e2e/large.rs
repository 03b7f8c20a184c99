//! Large layers in little memory. `cargo xtask long`: it wants minutes and some 15 GiB of disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::DockerRegistry;

use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

/// Runs the arguments in a cgroup of 256 MiB, page cache included; 125: there is no such cgroup. What is left of it goes.
const IN_CGROUP: &str = "
if [ -d /sys/fs/cgroup/memory ]; then group=/sys/fs/cgroup/memory/$0 limit=memory.limit_in_bytes
else group=/sys/fs/cgroup/$0 limit=memory.max; fi
mkdir $group || exit 125
trap 'find $group -depth -type d -exec rmdir {} +' EXIT
echo 268435456 > $group/$limit || exit 125
sh -c 'echo $$ > $0/cgroup.procs && exec \"$@\"' $group \"$@\"
";

#[test]
#[ignore = "takes minutes: `cargo xtask long`"]
fn privileged_long_four_gibibytes_go_through_256_mebibytes() {
    needs!(root);
    needs!(tool "docker-registry");
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let registry = DockerRegistry::start().unwrap();
    let image = format!("{}/large:1", registry.host());
    // Half of it compresses. The second file goes another way: it is copied.
    kitchen.dockerfile(
        "FROM busybox AS made\n\
         RUN for n in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom bs=1M count=256; dd if=/dev/zero bs=1M count=256; done 2>/dev/null > /large\n\
         RUN dd if=/dev/urandom bs=1M count=512 of=/copied 2>/dev/null\n\
         FROM made\nCOPY --from=made /copied /again\n"
            .replace("dd if", "busybox dd if")
            .as_str(),
    );
    let group = format!("hullworks-e2e-{}", std::process::id());
    let within = |args: &str| {
        let line = format!("build --progress=plain --config=buildkitd.toml --root state context {args}");
        let run = kitchen.world.run("sh").args(["-c", IN_CGROUP, &group]).arg(kitchen.world.path("hullworks"));
        run.args(line.split_whitespace()).ends()
    };
    let ended = within("--output type=oci,dest=large.tar");
    if ended.code == Some(125) {
        return testkit::need::report_skip(&format!("it wants cgroups that limit memory: {}", ended.stderr));
    }
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let size = fs::metadata(kitchen.world.path("large.tar")).unwrap().len();
    assert!(size > 2 << 30, "{size}");
    fs::remove_file(kitchen.world.path("large.tar")).unwrap();
    let ended = within(&format!("--push -t {image}"));
    assert_eq!(ended.code, Some(0), "{ended:?}");

    // And back: the layer is pulled and unpacked by a state that has nothing.
    fs::remove_dir_all(kitchen.world.path("state")).unwrap();
    kitchen.dockerfile(
        &format!("FROM {image}\nRUN stat -c %s /large /again > /sizes\nRUN cmp /copied /again\n")
            .replace("cmp", "busybox cmp"),
    );
    let ended = within("");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for cgroups in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        assert!(!Path::new(cgroups).join(&group).exists(), "the cgroup is left behind in {cgroups}");
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask long`"]
fn privileged_long_a_sparse_file_of_nine_gibibytes_needs_no_disk() {
    needs!(root);
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    kitchen.dockerfile("FROM busybox\nRUN busybox truncate -s 9G /sparse && echo end >> /sparse\nRUN echo > /other\n");
    let outputs =
        "--output type=local,dest=out --output type=oci,dest=image.tar --output type=oci,tar=false,dest=layout";
    kitchen.build(outputs).succeeds();
    let sparse = fs::metadata(kitchen.world.path("out/sparse")).unwrap();
    assert_eq!(sparse.len(), (9 << 30) + 4);
    assert!(std::os::unix::fs::MetadataExt::blocks(&sparse) < 1000, "it has holes no more");
    // A tar says all the zeros; they compress.
    let size = fs::metadata(kitchen.world.path("image.tar")).unwrap().len();
    assert!(size < 100 << 20, "{size}");

    // How other tools read its size, which a header of the old kind cannot say.
    let blob = |digest: &Value| kitchen.world.path("layout/blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let document = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let index = document(kitchen.world.path("layout/index.json"));
    let layer = blob(&document(blob(&index["manifests"][0]["digest"]))["layers"][1]["digest"]);
    let listing = kitchen.world.run("tar").args(["--list", "--verbose", "--gzip", "--file"]).arg(&layer).succeeds();
    let line = format!(" {} ", (9_u64 << 30) + 4);
    assert!(listing.text().contains(&line) && listing.text().trim_end().ends_with(" sparse"), "{listing:?}");
    // In large pieces: its own reader of compressed archives takes ten kilobytes at once, and minutes for all.
    const LIST: &str = "import gzip, sys, tarfile
archive = tarfile.open(fileobj=gzip.open(sys.argv[1]), mode='r|', bufsize=1 << 20)
print([(m.name, m.size) for m in archive])";
    let listing = kitchen.world.run("python3").args(["-c", LIST]).arg(&layer).succeeds();
    assert_eq!(listing.text().trim(), format!("[('sparse', {})]", (9_u64 << 30) + 4));
    // The tree as one archive, which is read as it comes: there is no disk for it.
    let tree = "exec \"$0\" build --config=buildkitd.toml --root state context --output type=tar,dest=- | tar --list --verbose";
    let listing = kitchen.world.run("sh").args(["-c", tree]).arg(kitchen.world.path("hullworks")).succeeds();
    let found = listing.text().lines().any(|shown| shown.contains(&line) && shown.ends_with("sparse"));
    assert!(found, "{listing:?}");
}
