//! Definitions that no Dockerfile makes, as bytes: a client of its own would write them so.

use std::fs;

use crate::daemon::Served;
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

fn field(id: i64, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [varint(id << 3 | 2), varint(bytes.as_ref().len() as i64), bytes.as_ref().to_vec()].concat()
}

fn number(id: i64, value: i64) -> Vec<u8> {
    [varint(id << 3), varint(value)].concat()
}

/// `pb.Op`s, inputs first.
#[derive(Default)]
struct Definition(Vec<Vec<u8>>);

/// An output of one of them.
type Output = (usize, i64);

impl Definition {
    fn add(&mut self, inputs: &[Output], op: Vec<u8>) -> usize {
        let reads = |(of, index): &Output| {
            let digest = base::Digest::of(&self.0[*of]).to_string();
            field(1, [field(1, digest), number(2, *index)].concat())
        };
        let op = [inputs.iter().flat_map(reads).collect(), op].concat();
        self.0.push(op);
        self.0.len() - 1
    }

    fn busybox(&mut self) -> usize {
        let arch = std::env::consts::ARCH.replace("x86_64", "amd64");
        let platform = field(10, [field(1, arch), field(2, "linux")].concat());
        self.add(&[], [field(3, field(1, "docker-image://docker.io/library/busybox:latest")), platform].concat())
    }

    fn run(&mut self, on: usize, script: &str) -> usize {
        let args: Vec<u8> = ["/bin/sh", "-c", script].iter().flat_map(|arg| field(1, arg)).collect();
        let exec = [field(1, [args, field(3, "/")].concat()), field(2, field(3, "/"))].concat();
        self.add(&[(on, 0)], field(2, exec))
    }

    /// Writes a file, on another tree or on nothing.
    fn mkfile(&mut self, on: Option<usize>, path: &str, data: &str) -> usize {
        let file = field(5, [field(1, path), number(2, 0o644), field(3, data), number(5, -1)].concat());
        self.change(on, file)
    }

    fn change(&mut self, on: Option<usize>, action: Vec<u8>) -> usize {
        let target = number(1, if on.is_some() { 0 } else { -1 });
        let action = [target, number(2, -1), number(3, 0), action].concat();
        let inputs: Vec<Output> = on.iter().map(|on| (*on, 0)).collect();
        self.add(&inputs, field(4, field(2, action)))
    }

    /// `pb.Definition` whose result is this output.
    fn bytes(&self, output: Output) -> Vec<u8> {
        let mut whole = Definition(self.0.clone());
        whole.add(&[output], Vec::new());
        whole.0.iter().flat_map(|op| field(1, op)).collect()
    }
}

/// Builds an output into the directory `out`.
fn export(served: &Served, definition: &Definition, output: Output) -> Ended {
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
