//! What docker's clients build from: standard input, and contexts by name.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::GitServer;
use testkit::image::{File, TestImage, tar};

use crate::buildx::with_each_client;
use crate::harness::or_skip;
use crate::who::Who;

const OUT: &str = "-o type=local,dest=out";

#[test]
fn a_dockerfile_comes_on_standard_input() {
    with_each_client(|docker| {
        docker.build(&format!("{OUT} -")).stdin("FROM busybox\nRUN echo of-stdin > /f\n").succeeds();
        assert_eq!(docker.read("out/f"), "of-stdin\n");
        // There is no context then.
        docker.build("-").stdin("FROM scratch\nCOPY f /\n").fails().says("\"/f\": not found");
        docker.served.kitchen.file("a", "of the context");
        docker.build(&format!("{OUT} -f - context")).stdin("FROM scratch\nCOPY a /\n").succeeds();
        assert_eq!(docker.read("out/a"), "of the context");
        let failed = docker.build("-").stdin("FROM busybox\nRUN exit 9\n").fails();
        failed.says("   2 | >>> RUN exit 9").says("exit code: 9");
    });
}

#[test]
fn a_whole_context_comes_on_standard_input() {
    with_each_client(|docker| {
        let kitchen = &docker.served.kitchen;
        let files = [
            ("Dockerfile", "FROM busybox\nCOPY . /all/\nRUN ls /all > /ls\n"),
            ("other", "FROM scratch\nCOPY d/b /\n"),
            (".dockerignore", "c\n"),
            ("a", "one"),
            ("c", "this, too"),
            ("d/b", "two"),
        ];
        for (name, content) in files {
            kitchen.file(name, content);
        }
        for (flags, out) in [("-c", "plain"), ("-zc", "gzip"), ("-jc", "bzip2"), ("-Jc", "xz")] {
            let packed = packed(&docker.path("context"), flags);
            docker.build(&format!("-o type=local,dest={out} -")).stdin(packed.clone()).succeeds();
            assert_eq!(docker.read(&format!("{out}/all/d/b")), "two", "{out}");
            // Whoever packs an archive chooses what is in it: `.dockerignore` is for directories.
            assert_eq!(docker.read(&format!("{out}/ls")), "Dockerfile\na\nc\nd\nother\n", "{out}");
            docker.build(&format!("-o type=local,dest={out}-other -f other -")).stdin(packed).succeeds();
            assert_eq!(docker.read(&format!("{out}-other/b")), "two", "{out}");
        }
        // One that is the same is known.
        let archive = fs::read(kitchen.world.path("context/Dockerfile")).unwrap();
        let archive = tar(&[File { path: "Dockerfile", mode: 0o644, data: archive, link: None }]);
        docker.build("-").stdin(archive.to_vec()).succeeds();
        let again = docker.build("-").stdin(archive.to_vec()).succeeds();
        assert_eq!(crate::kitchen::ran(&again), [""; 0], "{again:?}");
    });
}

/// An archive of a directory.
fn packed(dir: &Path, flags: &str) -> Vec<u8> {
    let output = Command::new("tar").args([flags, "."]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn contexts_have_names() {
    with_each_client(|docker| {
        let Some(server) = or_skip(GitServer::start()) else { return };
        let kitchen = &docker.served.kitchen;
        let repository = server.repository("r");
        repository.commit(&[("f", "of git"), ("d/f", "below")]);
        let note = |text: &str| {
            let file = File { path: "f", mode: 0o644, data: text.as_bytes().to_vec(), link: None };
            TestImage::of_layers(vec![TestImage::busybox().unwrap().layers[0].clone(), tar(&[file])])
        };
        note("of an image").put(&kitchen.registry, "some/image", "v1");
        let layout = note("of a layout");
        layout.write_layout(&kitchen.world.path("layout"), "v1").unwrap();
        kitchen.world.write("dir/f", "of a directory");
        for name in ["layout", "dir"] {
            kitchen.who.own(&kitchen.world, name);
        }
        let host = kitchen.registry.host();
        // As a base, where it can be one, and as what is copied from.
        let of_git = [
            (format!("{}#main", repository.url), "of git", false),
            (format!("{}#main:d", repository.url), "below", false),
        ];
        let others = [
            ("dir".to_owned(), "of a directory", false),
            (format!("docker-image://{host}/some/image:v1"), "of an image", true),
            ("oci-layout://layout:v1".to_owned(), "of a layout", true),
            (format!("oci-layout://layout@{}", layout.digest()), "of a layout", true),
        ];
        // A daemon whose PATH leads nowhere has no git.
        let of_git = of_git.into_iter().filter(|_| kitchen.who != Who::Single);
        for (source, text, is_base) in others.into_iter().chain(of_git) {
            let dockerfile = match is_base {
                true => "FROM named\nRUN cp /f /ran\nCOPY --from=named f /copied\n",
                false => "FROM busybox\nRUN --mount=from=named,target=/m cp /m/f /ran\nCOPY --from=named f /copied\n",
            };
            kitchen.dockerfile(dockerfile);
            let _ = fs::remove_dir_all(docker.path("out"));
            docker.build(&format!("{OUT} --build-context named={source} context")).succeeds();
            assert_eq!([docker.read("out/ran"), docker.read("out/copied")], [text, text], "{source}");
        }
        // In the place of an image, without anybody asking for that.
        kitchen.dockerfile("FROM image.example/nowhere/base\nCOPY f /g\n");
        kitchen.file("f", "of the context");
        let named = format!("--build-context image.example/nowhere/base=docker-image://{host}/some/image:v1");
        docker.build(&format!("-o type=local,dest=replaced {named} context")).succeeds();
        assert_eq!([docker.read("replaced/f"), docker.read("replaced/g")], ["of an image", "of the context"]);
    });
}
