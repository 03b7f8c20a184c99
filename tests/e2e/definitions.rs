//! Definitions that no Dockerfile makes, as bytes: a client of its own would write them so.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use session::Output;
use session::local::LocalSession;
use testkit::image::{File, TestImage, tar};

use crate::daemon::Served;
use crate::guest::{Guest, Most};
use crate::harness::{Ended, is_root};
use crate::who::Who;

fn anyone() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

fn varint(value: i64) -> Vec<u8> {
    let mut value = value as u64;
    let mut bytes = Vec::new();
    while value > 127 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field of a message that has a length.
pub fn field(id: i64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [varint(id << 3 | 2), varint(bytes.as_ref().len() as i64), bytes.as_ref().to_vec()].concat()
}

fn number(id: i64, value: i64) -> Vec<u8> {
    [varint(id << 3), varint(value)].concat()
}

/// `pb.Op`s, inputs first.
#[derive(Default)]
struct Definition(Vec<Vec<u8>>);

/// An output of one of them.
type Edge = (usize, i64);

impl Definition {
    fn add(&mut self, inputs: &[Edge], op: Vec<u8>) -> usize {
        let reads = |(of, index): &Edge| {
            let digest = base::Digest::of(&self.0[*of]).to_string();
            field(1, [field(1, digest), number(2, *index)].concat())
        };
        let op = [inputs.iter().flat_map(reads).collect(), op].concat();
        self.0.push(op);
        self.0.len() - 1
    }

    fn busybox(&mut self) -> usize {
        self.image("docker.io/library/busybox:latest", &[])
    }

    fn image(&mut self, name: &str, attributes: &[(&str, &str)]) -> usize {
        let arch = std::env::consts::ARCH.replace("x86_64", "amd64");
        let platform = field(10, [field(1, arch), field(2, "linux")].concat());
        let pairs = attributes.iter().flat_map(|(key, value)| field(2, [field(1, key), field(2, value)].concat()));
        let source = [field(1, format!("docker-image://{name}")), pairs.collect()].concat();
        self.add(&[], [field(3, source), platform].concat())
    }

    fn run(&mut self, on: usize, script: &str) -> usize {
        self.run_with(on, script, Vec::new())
    }

    /// A step with more fields of its op.
    fn run_with(&mut self, on: usize, script: &str, more: Vec<u8>) -> usize {
        let args: Vec<u8> = ["/bin/sh", "-c", script].iter().flat_map(|arg| field(1, arg)).collect();
        let exec = [field(1, [args, field(3, "/")].concat()), field(2, field(3, "/")), more].concat();
        self.add(&[(on, 0)], field(2, exec))
    }

    /// Writes a file, on another tree or on nothing.
    fn mkfile(&mut self, on: Option<usize>, path: &str, data: &str) -> usize {
        let file = field(5, [field(1, path), number(2, 0o644), field(3, data), number(5, -1)].concat());
        self.change(on, file)
    }

    fn rm(&mut self, on: usize, path: &str) -> usize {
        self.change(Some(on), field(7, field(1, path)))
    }

    fn change(&mut self, on: Option<usize>, action: Vec<u8>) -> usize {
        let target = number(1, if on.is_some() { 0 } else { -1 });
        let action = [target, number(2, -1), number(3, 0), action].concat();
        let inputs: Vec<Edge> = on.iter().map(|on| (*on, 0)).collect();
        self.add(&inputs, field(4, field(2, action)))
    }

    fn merge(&mut self, trees: &[usize]) -> usize {
        let inputs: Vec<Edge> = trees.iter().map(|tree| (*tree, 0)).collect();
        let merged: Vec<u8> = (0..trees.len() as i64).flat_map(|tree| field(1, number(1, tree))).collect();
        self.add(&inputs, field(6, merged))
    }

    /// What leads from one tree to another; none is an empty one.
    fn diff(&mut self, lower: Option<usize>, upper: Option<usize>) -> usize {
        let inputs: Vec<Edge> = lower.iter().chain(&upper).map(|tree| (*tree, 0)).collect();
        let lower_input = if lower.is_some() { 0 } else { -1 };
        let upper_input = if upper.is_some() { inputs.len() as i64 - 1 } else { -1 };
        self.add(&inputs, field(7, [field(1, number(1, lower_input)), field(2, number(1, upper_input))].concat()))
    }

    /// `pb.Definition` whose result is this output.
    fn bytes(&self, output: Edge) -> Vec<u8> {
        let mut whole = Definition(self.0.clone());
        whole.add(&[output], Vec::new());
        whole.0.iter().flat_map(|op| field(1, op)).collect()
    }
}

/// Builds an output into the directory `out`.
fn export(served: &Served, definition: &Definition, output: Edge) -> Ended {
    let _ = fs::remove_dir_all(served.kitchen.world.path("out"));
    let line = "build --progress=plain --output type=local,dest=out";
    served.buildctl(line).stdin(definition.bytes(output)).ends()
}

/// What is in the directory `out`, by name.
fn exported(served: &Served) -> Vec<String> {
    let dir = served.kitchen.world.path("out");
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_step_of_a_definition_has_devices() {
    let Some(served) = crate::devices::served(anyone(), "") else { return };
    for (name, optional, allow, said) in [
        ("vendor.example/device=free", false, "", Ok("is .injected")),
        ("vendor.example/device=two", false, "--allow device", Ok("is injected.")),
        (
            "vendor.example/device=two",
            true,
            "",
            Err("device vendor.example/device=two is requested by the build but not allowed"),
        ),
        ("vendor.example/none", true, "", Ok("is .")),
        ("vendor.example/none", true, "--allow device", Ok("is .")),
        ("vendor.example/none", false, "", Err("required device \"vendor.example/none\" is not registered")),
        (
            "vendor.example/none",
            false,
            "--allow device",
            Err("required device \"vendor.example/none\" is not registered"),
        ),
    ] {
        let mut llb = Definition::default();
        let image = llb.busybox();
        let device = [field(1, name), number(2, optional.into())].concat();
        let run = llb.run_with(image, "echo \"is $TWO.$FREE\"", field(6, device));
        let line = format!("build --progress=plain --no-cache {allow}");
        let build = served.buildctl(&line).stdin(llb.bytes((run, 0)));
        match said {
            Ok(said) => drop(build.succeeds().says(said)),
            Err(said) => drop(build.fails().says(said)),
        }
    }
    served.ends();
}

#[test]
fn what_is_passed_on_needs_all_that_it_reads() {
    let Some(served) = Served::new(anyone(), "") else { return };
    for (script, code) in [("echo needed-$((40 + 2))", 0), ("exit 42", 1)] {
        let mut llb = Definition::default();
        let (a, c, image) = (llb.mkfile(None, "/a", "a"), llb.mkfile(None, "/c", "c"), llb.busybox());
        let run = llb.run(image, script);
        let passed = field(8, [field(1, "test"), field(2, [0, 2])].concat());
        let pass = llb.add(&[(a, 0), (run, 0), (c, 0)], passed);
        let ended = export(&served, &llb, (pass, 1));
        assert_eq!(ended.code, Some(code), "{ended:?}");
        if code == 0 {
            ended.says("needed-42");
            assert_eq!(exported(&served), ["c"]);
        } else {
            ended.says("exit code: 42");
        }
    }
    served.ends();
}

#[test]
fn a_difference_is_made_of_two_trees_and_laid_over_a_third() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let mut llb = Definition::default();
    let base = {
        let first = llb.mkfile(None, "/both", "1");
        llb.mkfile(Some(first), "/gone", "2")
    };
    let changed = {
        let added = llb.mkfile(Some(base), "/new", "3");
        llb.rm(added, "/gone")
    };
    // By its layers, and by comparison with a tree that shares none.
    let apart = {
        let first = llb.mkfile(None, "/both", "1");
        llb.mkfile(Some(first), "/new", "3")
    };
    let other = {
        let first = llb.mkfile(None, "/gone", "4");
        llb.mkfile(Some(first), "/other", "5")
    };
    for upper in [changed, apart] {
        let diff = llb.diff(Some(base), Some(upper));
        assert_eq!(export(&served, &llb, (diff, 0)).code, Some(0));
        assert_eq!(exported(&served), ["new"]);
        let merge = llb.merge(&[other, diff]);
        let ended = export(&served, &llb, (merge, 0));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(exported(&served), ["new", "other"]);
        // Its layers say the same where somebody else puts them together.
        let line = "build --progress=plain --output type=oci,dest=x.tar";
        served.buildctl(line).stdin(llb.bytes((merge, 0))).succeeds();
        let unpack =
            "rm -rf x l; mkdir x; tar xf x.tar -C x; cd x/blobs/sha256; for b in *; do tar tzf $b 2>/dev/null; done";
        let layers = served.kitchen.world.run("sh").args(["-c", unpack]).ends().text();
        let mut paths: Vec<&str> = layers.lines().filter(|path| *path != "./").collect();
        paths.sort();
        assert_eq!(paths, [".wh.gone", "gone", "new", "other"], "{layers}");
    }
    let nothing = llb.diff(Some(base), Some(base));
    assert_eq!(export(&served, &llb, (nothing, 0)).code, Some(0));
    assert!(exported(&served).is_empty());
    let all = llb.diff(Some(other), None);
    let emptied = llb.merge(&[other, all]);
    assert_eq!(export(&served, &llb, (emptied, 0)).code, Some(0));
    assert!(exported(&served).is_empty());
    served.ends();
}

/// A newer client may mean anything by it.
#[test]
fn what_nobody_knows_the_meaning_of_is_refused() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let refused = |llb: &Definition, output: usize, says: &str| {
        let ended = export(&served, llb, (output, 0));
        assert_eq!(ended.code, Some(1), "{says}: {ended:?}");
        ended.says(&format!("error: failed to solve: {says}\n"));
    };
    let scratch = |dest: &str, more: Vec<u8>| field(2, [number(1, -1), field(3, dest), number(4, -1), more].concat());
    let sharing =
        |sharing: i64| number(6, 3).into_iter().chain(field(20, [field(1, "c"), number(2, sharing)].concat()));
    for (mount, says) in [
        (scratch("/m", number(6, 77)), "mount type 77 not implemented"),
        (scratch("/", number(6, 77)), "invalid mount type 77 for /"),
        (scratch("/m", sharing(9).collect()), "invalid cache sharing option: 9"),
    ] {
        let mut llb = Definition::default();
        let image = llb.busybox();
        let run = llb.run_with(image, "echo ran", mount);
        refused(&llb, run, says);
    }
    let mut llb = Definition::default();
    let merge = llb.merge(&[]);
    refused(&llb, merge, "invalid merge op with no inputs");
    let image = llb.busybox();
    for sides in [field(7, ""), field(7, field(2, number(1, 0))), field(7, field(1, number(1, 0)))] {
        let diff = llb.add(&[(image, 0)], sides);
        refused(&llb, diff, "invalid diff op with nil lower or upper input");
    }
    // What is known is not refused.
    let run =
        llb.run_with(image, "ls -d /m /c", [scratch("/m", number(6, 4)), scratch("/c", sharing(2).collect())].concat());
    assert_eq!(export(&served, &llb, (run, 0)).code, Some(0));
    served.ends();
}

/// The connection is left in peace, so nobody looks for what is wrong with it.
#[test]
fn a_definition_that_no_message_holds_is_not_sent() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let built = |length: usize| {
        let mut llb = Definition::default();
        let file = llb.mkfile(None, "/large", &"x".repeat(length));
        export(&served, &llb, (file, 0))
    };
    let refused = built(17 << 20);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    refused.says("error: failed to solve: ResourceExhausted: trying to send message larger than max (178");
    refused.says(" vs. 16777216)\n");
    refused.hints("the definition is in it, and with it the content of files that it makes: COPY large ones");
    assert_eq!(built(15 << 20).code, Some(0));
    let large = fs::metadata(served.kitchen.world.path("out/large")).unwrap();
    assert_eq!(large.len(), 15 << 20);
    served.ends();
}

#[test]
fn limits_of_a_step_come_with_its_metadata() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let Some(_limited) = crate::groups::Parent::new("definition") else { return };
    let mut llb = Definition::default();
    let image = llb.busybox();
    let run = llb.run(image, "tail /dev/zero");
    let limited = |memory: i64| {
        let caps = field(5, [field(1, "exec.meta.linux.resources"), number(2, 1)].concat());
        let metadata = [caps, field(7, number(1, memory))].concat();
        let entry = [field(1, base::Digest::of(&llb.0[run]).to_string()), field(2, metadata)].concat();
        let bytes = [llb.bytes((run, 0)), field(2, entry)].concat();
        served.buildctl("build --progress=plain").stdin(bytes).fails()
    };
    limited(33_554_432).says("exit code: 137: out of memory, limit 33.55MB");
    limited(-1).says("limit `memory` of a step is below 0: -1");
}

#[test]
fn of_an_image_only_the_layers_that_are_asked_for_are_taken() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let file = |path| tar(&[File { path, mode: 0o644, data: path.into(), link: None }]);
    TestImage::of_layers(["one", "two", "three"].map(file).into()).put(&served.kitchen.registry, "three", "1");
    let name = format!("{}/three:1", served.kitchen.registry.host());
    for (limit, expected) in
        [("1", Ok(&["one"][..])), ("2", Ok(&["one", "two"])), ("0", Err("invalid layer limit `0`"))]
    {
        let mut llb = Definition::default();
        let image = llb.image(&name, &[("image.layerlimit", limit)]);
        let ended = export(&served, &llb, (image, 0));
        match expected {
            Ok(names) => {
                assert_eq!(ended.code, Some(0), "{ended:?}");
                assert_eq!(exported(&served), names, "{limit}");
            }
            Err(words) => {
                assert_ne!(ended.code, Some(0), "{ended:?}");
                ended.says(words);
            }
        }
    }
    served.ends();
}

/// A result that names no platform is the machine's.
#[test]
fn annotations_of_other_platforms_than_the_machines_are_left_out() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let mut llb = Definition::default();
    let file = llb.mkfile(None, "/f", "x");
    let definition = llb.bytes((file, 0));
    let host = base::Platform::host();
    let builds = |platform: &str| {
        let line = format!("build --output type=oci,dest=o.tar,annotation[{platform}].said=here");
        served.buildctl(&line).stdin(definition.clone())
    };
    let is_said = || {
        let tar = served.kitchen.world.run("tar").args(["xOf", "o.tar", "--wildcards", "blobs/sha256/*"]);
        String::from_utf8_lossy(&tar.succeeds().stdout).contains(r#""said": "here""#)
    };
    let other = builds("linux/s390x").succeeds();
    other.says("annotation `said` is for `linux/s390x`, which is not built: left out");
    assert!(!is_said());
    builds(&host.to_string()).succeeds();
    assert!(is_said());
    // Of several platforms one is missed that is not there.
    served.kitchen.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    let several =
        "--opt platform=linux/amd64,linux/arm64 --output type=oci,dest=o.tar,annotation[linux/s390x].said=here";
    served.build(several).fails().says("annotation `said` is for `linux/s390x`, which is not built");
    served.build("--opt multi-platform=true --output type=oci,dest=o.tar,annotation[linux/s390x].said=here").succeeds();
    assert!(!is_said());
    served.ends();
}

/// The time that a build argument sets holds for outputs, whatever makes the result.
#[test]
fn outputs_of_definitions_take_the_time_of_the_build_argument() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let mut llb = Definition::default();
    let file = llb.mkfile(None, "/f", "x");
    let definition = llb.bytes((file, 0));
    let time = |dir: &str| fs::metadata(served.kitchen.world.path(dir).join("f")).unwrap().mtime();
    const EPOCH: i64 = 1_445_412_480;
    for (n, (more, is_set)) in [("", true), (",source-date-epoch=", false)].into_iter().enumerate() {
        let line =
            |dir: &str| format!("build --opt build-arg:SOURCE_DATE_EPOCH={EPOCH} --output type=local,dest={dir}{more}");
        let [sent, here] = ["sent", "here"].map(|dir| format!("{dir}{n}"));
        served.buildctl(&line(&sent)).stdin(definition.clone()).succeeds();
        served.kitchen.world.daemonless(line(&here).split_whitespace()).stdin(definition.clone()).succeeds();
        assert_eq!([time(&sent) == EPOCH, time(&here) == EPOCH], [is_set; 2], "{more}");
    }
    // Clients of BuildKit's leave it to the daemon.
    let guest = Guest::new(&served.kitchen.world.path("b.sock"));
    let builds = |name: &str, exporter: wire::Exporter, output: Output| {
        let joined = guest.joins(LocalSession::new(name).with_output(output), Most::ALL);
        let options = [("build-arg:SOURCE_DATE_EPOCH".to_owned(), EPOCH.to_string())];
        let request = wire::SolveRequest {
            r#ref: name.to_owned(),
            session: joined.id.clone(),
            definition: Some(proto::pb::Definition::decode(&definition[..]).unwrap()),
            frontend_attrs: options.into(),
            exporters: vec![exporter],
            ..wire::SolveRequest::default()
        };
        guest.solves(request).unwrap();
    };
    let dir = served.kitchen.world.path("guest");
    builds("one", wire::Exporter { r#type: "local".to_owned(), ..Default::default() }, Output::Directory(dir));
    assert_eq!(time("guest"), EPOCH);
    // They also say what the config of an image without a frontend is.
    let config = serde_json::json!({"architecture": "arm64", "os": "linux", "config": {"Env": ["A=b"]}}).to_string();
    let attrs = [("containerimage.config".to_owned(), config)].into();
    let archive = served.kitchen.world.path("guest.tar");
    builds("two", wire::Exporter { r#type: "docker".to_owned(), attrs }, Output::File(archive));
    let script = "tar xOf guest.tar $(tar xOf guest.tar manifest.json | sed 's/.*\"Config\":\"\\([^\"]*\\)\".*/\\1/')";
    let config = served.kitchen.world.run("sh").args(["-c", script]).succeeds().text();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["architecture"], &config["config"]["Env"][0]), (&"arm64".into(), &"A=b".into()), "{config:#}");
    assert_eq!(config["created"], "2015-10-21T07:28:00Z");
    drop(guest);
    served.ends();
}
