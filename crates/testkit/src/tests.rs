use std::process::Command;

use hyper::Method;

use super::*;
use crate::image::{File, TestImage, noise, tar};
use crate::registry::Action;
use crate::tar::inflating;

#[test]
fn faults_strike_when_it_is_their_turn() {
    let mut fault = Fault::on(Method::GET, "/blobs/", Action::Hang).after(1).times(2);
    let mut strikes = |method: Method, path: &str| fault.strike(&method, path).is_some();
    assert!(!strikes(Method::PUT, "/v2/x/blobs/1"), "another method");
    assert!(!strikes(Method::GET, "/v2/x/manifests/1"), "another path");
    assert!(!strikes(Method::GET, "/v2/x/blobs/1"), "the first is skipped");
    assert!(strikes(Method::GET, "/v2/x/blobs/1"));
    assert!(strikes(Method::GET, "/v2/x/blobs/1"));
    assert!(!strikes(Method::GET, "/v2/x/blobs/1"), "used up");
}

#[test]
fn noise_is_the_same_for_a_seed_only() {
    assert_eq!(noise(1, 1001), noise(1, 1001));
    assert_ne!(noise(1, 1001), noise(2, 1001));
    assert_eq!(noise(1, 1001).len(), 1001);
}

#[test]
fn archives_are_read_by_tar() {
    needs!("tar");
    let dir = scratch("tar");
    let path = dir.path().join("x.tar");
    let files = [
        File { path: "d/", mode: 0o750, data: Vec::new(), link: None },
        File { path: "d/f", mode: 0o4755, data: b"hello".to_vec(), link: None },
        File { path: "d/l", mode: 0o777, data: Vec::new(), link: Some("f") },
    ];
    std::fs::write(&path, tar(&files)).expect("scratch is writable");
    let output = Command::new("tar").arg("-tvf").arg(&path).env("TZ", "UTC").output().expect("tar starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8_lossy(&output.stdout);
    let modes: Vec<&str> = listing.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(modes, ["drwxr-x---", "-rwsr-xr-x", "lrwxrwxrwx"]);
    assert!(listing.contains("d/l -> f"), "{listing}");
}

#[test]
fn few_bytes_inflate_to_many() {
    needs!("zstd");
    let dir = scratch("inflating");
    let path = dir.path().join("x.zst");
    let head = noise(1, 300_000);
    let stream = inflating(&head, (100 << 20) - 1);
    assert!(stream.len() < head.len() + 5000, "{}", stream.len());
    std::fs::write(&path, stream).expect("scratch is writable");
    let output = Command::new("zstd").args(["--decompress", "--stdout"]).arg(&path).output().expect("zstd starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.len(), head.len() + (100 << 20));
    let (same, zeros) = output.stdout.split_at(head.len());
    assert!(same == head && zeros.iter().all(|byte| *byte == 0));
}

#[test]
fn busybox_makes_an_image_that_skopeo_accepts() {
    needs!("busybox", "skopeo");
    let dir = scratch("busybox");
    let image = TestImage::busybox().expect("busybox is there");
    image.write_layout(dir.path(), "latest").expect("scratch is writable");
    let from = format!("oci:{}:latest", dir.path().display());
    let to = format!("dir:{}", dir.path().join("out").display());
    let output = Command::new("skopeo").args(["copy", &from, &to]).output().expect("skopeo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(need::program("no-such-program").expect_err("missing"), "needs the program `no-such-program`");
    assert_ne!(need::root().is_ok(), need::user().is_ok());
}
