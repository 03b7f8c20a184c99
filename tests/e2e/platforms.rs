//! Results for several platforms: what they share, and what is said of each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::daemon::Served;
use crate::harness::is_root;
use crate::who::Who;

const BOTH: &str = "linux/amd64,linux/arm64";

/// A daemon, and a context with files of two platforms.
fn served(files: &[&str]) -> Option<Served> {
    let served = Served::new(if is_root() { Who::Root } else { Who::Single }, "")?;
    files.iter().for_each(|name| served.kitchen.file(name, name));
    served.kitchen.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n");
    Some(served)
}

/// The files of a directory, each with its content.
fn files(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, fs::read_to_string(&path).unwrap());
                }
            }
        }
    }
    found
}

#[test]
fn platforms_share_a_directory_where_one_asks_for_it() {
    // A walk sorts `d-x` behind what is in `d`, and clients want files in its order.
    let names = ["amd64/d/b", "arm64/d-x", "arm64/d/a", "amd64/e/f", "arm64/d/sub/c", "amd64/g", "arm64/h"];
    let Some(served) = served(&names) else { return };
    let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
    let expected: BTreeMap<String, String> =
        names.iter().map(|name| (name.split_once('/').unwrap().1.to_owned(), (*name).to_owned())).collect();
    let line = |kind: &str, dest: &str| format!("--output type={kind},platform-split=false,dest={dest}");
    let remote = format!("--opt platform={BOTH}");
    let check = |dir: &str| assert_eq!(files(&world.path(dir)), expected, "{dir}");
    served.build(&format!("{remote} {}", line("local", "sent"))).succeeds();
    check("sent");
    world.write("cleaned/other", "");
    served.build(&format!("{remote} {},mode=delete", line("local", "cleaned"))).succeeds();
    check("cleaned");
    kitchen.build(&format!("--platform {BOTH} {}", line("local", "here"))).succeeds();
    check("here");
    served.build(&format!("{remote} {}", line("tar", "sent.tar"))).succeeds();
    kitchen.build(&format!("--platform {BOTH} {}", line("tar", "here.tar"))).succeeds();
    for tar in ["sent.tar", "here.tar"] {
        let dir = format!("{tar}.d");
        fs::create_dir(world.path(&dir)).unwrap();
        world.run("tar").args(["xf", tar, "-C", &dir]).succeeds();
        check(&dir);
    }
    served.ends();
}

#[test]
fn a_file_of_one_platform_takes_the_place_of_no_other() {
    for (one, other, path) in
        [("amd64/d/f", "arm64/d/f", "d/f"), ("amd64/d/f", "arm64/d", "d"), ("amd64/d", "arm64/d/f", "d")]
    {
        let Some(served) = served(&[one, other, "amd64/more"]) else { return };
        let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
        let words = format!("cannot overwrite {path} from linux/amd64 with linux/arm64 when split option is disabled");
        for kind in ["local", "tar"] {
            let line = format!("--output type={kind},platform-split=false,dest={kind}");
            served.build(&format!("--opt platform={BOTH} {line}")).fails().says(&words);
            kitchen.build(&format!("--platform {BOTH} {line}")).fails().says(&words);
        }
        assert!(!world.path("tar").exists() || fs::read(world.path("tar")).unwrap().is_empty());
        assert!(!world.path("local").exists() || files(&world.path("local")).is_empty());
        served.ends();
    }
}
