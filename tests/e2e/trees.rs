//! A tree with everything that a file system can have, through our layers and other people's tools: what they unpack is
//! what `type=local` and `type=tar` write.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use testkit::image::TestImage;
use testkit::tar::{Archive, Entry};

use crate::daemon::Served;
use crate::harness::{World, has_tool, or_skip, tools};
use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

/// What a step makes; what it has no program for comes in an archive and with the context.
const DOCKERFILE: &str = r#"FROM busybox
RUN mkdir -p /t/gone/deep /t/emptied/a /t/file-to-dir.d /t/opaque && cd /t && touch gone/deep/f emptied/a/f removed opaque/old \
 && echo 1 > file-to-dir && echo 2 > file-to-dir.d/x && echo 3 > dir-to-link && echo kept > opaque/kept && echo 4 > rewritten
ADD nodes.tar /t/
COPY times /t/times/
COPY tools /
RUN cd /t && rm -r gone removed && rm -r emptied && mkdir emptied && touch emptied/new && rm file-to-dir && mkdir file-to-dir \
 && touch file-to-dir/in && rm -r file-to-dir.d && echo now > file-to-dir.d && rm dir-to-link && ln -s opaque dir-to-link \
 && rm -r opaque && mkdir opaque && echo again > opaque/kept && cat rewritten rewritten > r && busybox mv r rewritten
RUN mkdir /t/modes && cd /t/modes && for m in 000 644 4755 2755 1666 6711 7777; do touch f$m; chmod $m f$m; mkdir d$m; chmod $m d$m; done \
 && touch o && ln -s nowhere ol && chown 1234:5678 o && chown -h 65534:7 ol && mkdir od && chown 3:4 od && touch od/f && chown 5:6 od/f && chmod 4711 od/f
RUN mkdir /t/links && cd /t/links && echo one > a && ln a b && mkdir d && ln a d/c && ln -s a rel && ln -s /etc/passwd abs && ln -s /no/where dangling \
 && ln -s loop loop && busybox mkfifo pipe && ln pipe pipe2 && ln abs abs2
RUN mkdir /t/names && cd /t/names && touch "$(printf 'new\nline')" "$(printf 'tab\tand\\back')" "$(printf 'bad\377\376utf8')" ' space ' ./-dash '.hidden' '*' 'ü' \
 && n=$(printf '%0100d' 0) && touch x$n && m=$(printf '%0250d' 0) && touch $m && mkdir -p $n/$n/$n && touch $n/$n/$n/f && ln -s $m$m$m far && ln $n/$n/$n/f $n/hard
RUN cd /t && mkdir attr attr/d && echo x > attr/f && /tools/setfattr -n user.text -v hello attr/f && /tools/setfattr -n user.bytes -v 0x00ff0a attr/f \
 && /tools/setfattr -n user.dir -v d attr/d && /tools/setcap cap_net_raw+ep attr/f && cat /bin/busybox > attr/ping && /tools/setcap cap_net_bind_service=p attr/ping && chown 0:5 attr/d
RUN cd /t && mkdir sparse && busybox truncate -s 40000000 sparse/all && echo end | busybox dd of=sparse/end bs=1 seek=30000000 2>/dev/null && cat sparse/end sparse/end > sparse/twice
"#;

/// Programs for the steps with the libraries that they need, an archive with device nodes, files with odd times.
const SETUP: &str = "set -e
cd context
mkdir -p tools/tools times nodes/dev
for name in setcap setfattr; do
    program=$(PATH=$PATH:/sbin:/usr/sbin command -v $name)
    cp -L \"$program\" tools/tools/$name
    for library in $(ldd \"$program\" | grep -o '/[^ )]*'); do mkdir -p tools/\"$(dirname \"$library\")\"; cp -L \"$library\" tools/\"$library\"; done
done
for time in -1000000000.5 -1 0 1.999999999 1700000000.123456789 4294967295 8589934592.25 9000000000; do
    touch times/at$time
    touch -d @$time times/at$time
done
mkdir times/dir && touch times/dir/f && touch -d @-86400 times/dir
mknod nodes/dev/null c 1 3 && mknod nodes/dev/loop b 7 0 && mknod nodes/dev/large c 250 70000 && chmod 620 nodes/dev/loop
mkfifo nodes/pipe && touch -d @1234567890 nodes/dev/null
tar --numeric-owner --owner=0 --group=6 -C nodes -cf nodes.tar dev pipe
rm -r nodes
";

fn prepared(who: Who) -> Option<Kitchen> {
    or_skip(tools(&["skopeo", "umoci"]))?;
    let kitchen = Kitchen::new(who)?;
    prepare(&kitchen)?;
    Some(kitchen)
}

fn prepare(kitchen: &Kitchen) -> Option<()> {
    or_skip(tools(&["setcap", "setfattr", "getfattr"]))?;
    kitchen.dockerfile(DOCKERFILE);
    kitchen.world.run("sh").args(["-c", SETUP]).succeeds();
    kitchen.who.own(&kitchen.world, "context");
    Some(())
}

/// How exact the time of an entry is: layers have seconds, as upstream's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Seconds,
    Nanoseconds,
}

/// All that is to be known of a tree, a line for each path.
fn tree(world: &World, root: &Path, times: Times) -> BTreeMap<Vec<u8>, String> {
    let mut lines = BTreeMap::new();
    let mut firsts = HashMap::new();
    let mut names: Vec<OsString> = vec![OsString::new()];
    while let Some(name) = names.pop() {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() {
            names.extend(
                fs::read_dir(&path).unwrap().map(|entry| Path::new(&name).join(entry.unwrap().file_name()).into()),
            );
        }
        let mut line = format!("{:06o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
        if times == Times::Nanoseconds {
            write!(line, ".{:09}", meta.mtime_nsec()).unwrap();
        }
        if kind.is_file() {
            let mut hasher = DefaultHasher::new();
            fs::read(&path).unwrap().hash(&mut hasher);
            write!(line, " {} {:016x}", meta.len(), hasher.finish()).unwrap();
        } else if kind.is_symlink() {
            write!(line, " -> {:?}", fs::read_link(&path).unwrap()).unwrap();
        } else if kind.is_char_device() || kind.is_block_device() {
            write!(line, " device {:x}", meta.rdev()).unwrap();
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            firsts.entry((meta.dev(), meta.ino())).or_insert_with(Vec::new).push(name.as_bytes().to_vec());
        }
        // The root is no entry of an archive.
        if !name.is_empty() {
            lines.insert(name.as_bytes().to_vec(), line);
        }
    }
    for mut names in firsts.into_values() {
        names.sort();
        for name in &names {
            let first = String::from_utf8_lossy(&names[0]).into_owned();
            write!(lines.get_mut(name).unwrap(), " one of {} with {first:?}", names.len()).unwrap();
        }
    }
    for (name, attribute) in attributes(world, root) {
        write!(lines.get_mut(&name).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&name))), " {attribute}")
            .unwrap();
    }
    lines
}

/// Attributes that images carry, by path.
fn attributes(world: &World, root: &Path) -> Vec<(Vec<u8>, String)> {
    let line = ["-R", "-P", "-h", "-d", "-e", "hex", "-m", "^(user[.]|security[.]capability)", "."];
    let listed = world.run("sh").args(["-c", "cd \"$0\" && getfattr \"$@\""]).arg(root).args(line).succeeds().text();
    let (mut found, mut name) = (Vec::new(), Vec::new());
    for line in listed.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("# file: ") {
            Some(path) => name = path.as_bytes().to_vec(),
            None => found.push((name.clone(), line.to_owned())),
        }
    }
    found
}

/// Fails with the lines that only one side has.
#[track_caller]
fn assert_same(what: &str, expected: &BTreeMap<Vec<u8>, String>, is: &BTreeMap<Vec<u8>, String>) {
    let mut why = String::new();
    for (side, one, other) in [("-", expected, is), ("+", is, expected)] {
        for (name, line) in one.iter().filter(|(name, line)| other.get(*name) != Some(*line)) {
            writeln!(why, "{side} {:?} {line}", String::from_utf8_lossy(name)).unwrap();
        }
    }
    assert!(why.is_empty(), "{what}: -expected +is\n{why}");
}

#[test]
fn a_file_of_another_owner_keeps_its_capability_with_a_second_name() {
    // As GNU tar writes it: the second name says the owner again, and nothing of attributes.
    let archive = || {
        let capability = "\u{1}\0\0\u{2}\0\u{4}\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let owner = (100, 100);
        let second = Entry { flag: b'1', name: b"z/g", link: b"z/f", owner, ..Entry::default() };
        let all = Archive::new().dir("z").pax(&[("SCHILY.xattr.security.capability", capability)]);
        all.entry(Entry { name: b"z/f", owner, data: b"f", ..Entry::default() }).entry(second).end()
    };
    for who in [Who::Root, Who::Ranges, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let host = kitchen.registry.host();
        TestImage::of_layers(vec![archive()]).put(&kitchen.registry, "capable", "1");
        kitchen.file("z.tar", archive());
        for text in [format!("FROM {host}/capable:1\n"), "FROM scratch\nADD z.tar /\n".to_owned()] {
            kitchen.dockerfile(&text);
            kitchen.build("--output type=tar,dest=out.tar").succeeds();
            let tar = fs::read(kitchen.world.path("out.tar")).unwrap();
            let has = |words: &[u8]| tar.windows(words.len()).any(|window| window == words);
            assert!(has(b"z/g") && has(b"SCHILY.xattr.security.capability="), "{who:?}: {text}");
        }
    }
}

#[test]
fn an_archive_describes_the_directory_that_it_is_added_to_as_a_slash() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        for (name, path) in [("slash", "/"), ("dot", "./")] {
            let top = Entry { flag: b'5', name: path.as_bytes(), mode: 0o711, owner: (9, 0), ..Entry::default() };
            kitchen.file(&format!("{name}.tar"), Archive::new().entry(top).file("f", "").end());
        }
        kitchen
            .dockerfile("FROM scratch\nADD slash.tar /slash/\nADD dot.tar /dot/\nADD --chown=7:8 slash.tar /owned/\n");
        kitchen.build("--output type=tar,dest=out.tar").succeeds();
        let list = ["--list", "--verbose", "--numeric-owner", "--utc", "--file", "out.tar"];
        let list = kitchen.world.run("tar").args(list).env("LC_ALL", "C").succeeds().text();
        let line = |name: &str| list.lines().find(|line| line.ends_with(name)).unwrap_or_default().to_owned();
        assert!(line(" slash/").starts_with("drwx--x--x 9/0 ") && line(" slash/").contains(" 1970-01-01 "), "{list}");
        assert!(line(" dot/").starts_with("drwxr-xr-x 0/0 "), "{list}");
        assert!(line(" owned/").starts_with("drwx--x--x 7/8 "), "{list}");
    }
}

/// What podman's storage keeps: no times before 1970, no second names of links and pipes.
fn in_podman(tree: &BTreeMap<Vec<u8>, String>) -> BTreeMap<Vec<u8>, String> {
    let keep = |line: &String| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if fields[2].starts_with('-') {
            fields[2] = "0";
        }
        let line = fields.join(" ");
        match line.split_once(" one of ") {
            Some((own, _)) if line.starts_with("12") || line.starts_with("01") => own.to_owned(),
            _ => line,
        }
    };
    tree.iter().map(|(name, line)| (name.clone(), keep(line))).collect()
}

/// Fails unless the lines of these paths have these words.
#[track_caller]
fn check(tree: &BTreeMap<Vec<u8>, String>, wanted: &[(&str, &str)]) {
    for (name, words) in wanted {
        let line = tree.get(name.as_bytes()).unwrap_or_else(|| panic!("{name} is not there"));
        assert!(line.contains(words), "{name} has no `{words}`: {line}");
    }
}

/// Without owners, and with times in seconds.
fn without_owners(tree: &BTreeMap<Vec<u8>, String>) -> BTreeMap<Vec<u8>, String> {
    let cut = |line: &String| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        fields[1] = "";
        fields[2] = fields[2].split('.').next().unwrap();
        fields.join(" ")
    };
    tree.iter().map(|(name, line)| (name.clone(), cut(line))).collect()
}

/// What GNU tar makes of `tree.tar`.
fn unpacked(world: &World) -> BTreeMap<Vec<u8>, String> {
    fs::create_dir(world.path("tar")).unwrap();
    let extract =
        ["--extract", "--xattrs", "--xattrs-include=*", "--same-owner", "--numeric-owner", "--same-permissions"];
    world.run("tar").args(extract).args(["--file", "tree.tar", "--directory", "tar"]).succeeds();
    tree(world, &world.path("tar"), Times::Seconds)
}

/// What umoci makes of an image that skopeo reads.
fn umoci(world: &World, image: &str, name: &str) -> BTreeMap<Vec<u8>, String> {
    let (layout, bundle) = (format!("layout-{name}"), format!("bundle-{name}"));
    let to = format!("oci:{layout}:x");
    world.run("skopeo").args(["copy", "--quiet", "--dest-compress-format=gzip", image, &to]).succeeds();
    world.run("umoci").args(["unpack", "--image", &format!("{layout}:x"), &bundle]).succeeds();
    tree(world, &world.path(&bundle).join("rootfs"), Times::Seconds)
}

#[test]
fn privileged_all_kinds_of_files_come_out_the_same_everywhere() {
    needs!(root);
    let Some(kitchen) = prepared(Who::Root) else { return };
    let world = &kitchen.world;
    kitchen.build("--output local --output type=tar,dest=tree.tar --output type=oci,dest=oci.tar").succeeds();
    let expected = unpacked(world);
    check(
        &expected,
        &[
            ("t/modes/f6711", "106711 0:0 "),
            ("t/modes/d7777", "047777 0:0 "),
            ("t/modes/od/f", "104711 5:6 "),
            ("t/modes/ol", "120777 65534:7 "),
            ("t/times/at-1000000000.5", " -1000000001 "),
            ("t/times/at9000000000", " 9000000000 "),
            ("t/times/dir", " -86400"),
            ("t/dev/loop", "060620 0:6 "),
            ("t/dev/null", " 1234567890 device 103"),
            ("t/links/pipe2", " one of 2 with \"t/links/pipe\""),
            ("t/links/abs2", " -> \"/etc/passwd\" one of 2 with \"t/links/abs\""),
            ("t/names/new\nline", "100644 "),
            ("t/attr/f", " security.capability=0x"),
            ("t/attr/f", " user.bytes=0x00ff0a user.text=0x68656c6c6f"),
            ("t/sparse/all", " 40000000 "),
        ],
    );
    for gone in ["t/gone", "t/removed", "t/emptied/a", "t/opaque/old"] {
        assert!(!expected.contains_key(gone.as_bytes()), "{gone} is there");
    }

    // A directory has its user's files, as upstream, and times to the nanosecond.
    let local = tree(world, &world.path("local"), Times::Nanoseconds);
    check(
        &local,
        &[
            ("t/times/at-1000000000.5", " -1000000001.500000000 "),
            ("t/times/at1.999999999", " 1.999999999 "),
            ("t/times/at8589934592.25", " 8589934592.250000000 "),
            ("t/modes/od/f", "104711 0:0 "),
        ],
    );
    let blocks = fs::metadata(world.path("local/t/sparse/all")).unwrap().blocks();
    assert!(blocks < 1000, "holes do not stay holes: {blocks} blocks");
    assert_same("type=local", &without_owners(&expected), &without_owners(&local));

    assert_same("type=oci by umoci", &expected, &umoci(world, "oci-archive:oci.tar", "oci"));
    if has_tool("crane") {
        // It takes all layers for what the first one is, and knows no zstd in archives. The base's is not compressed.
        kitchen.build("--output type=docker,name=all:kinds,dest=docker.tar,force-compression=true").succeeds();
        world.run("crane").args(["validate", "--tarball", "docker.tar"]).succeeds();
    } else {
        testkit::need::report_skip("another tool's opinion: it wants `crane`");
    }
    let zstd = "type=docker,name=localhost/all:kinds,dest=zstd.tar,compression=zstd,force-compression=true";
    kitchen.build(&format!("--output {zstd}")).succeeds();
    assert_same("type=docker by umoci", &expected, &umoci(world, "docker-archive:zstd.tar", "docker"));
    if !has_tool("podman") {
        return testkit::need::report_skip("podman: it wants `podman`");
    }
    let podman = || world.run("podman").args(["--root", "podman", "--runroot", "podman-run", "--storage-driver=vfs"]);
    podman().args(["load", "--quiet", "--input", "zstd.tar"]).succeeds();
    let mounted = podman().args(["image", "mount", "localhost/all:kinds"]).succeeds().text();
    let is = tree(world, Path::new(mounted.trim()), Times::Seconds);
    podman().args(["image", "unmount", "localhost/all:kinds"]).succeeds();
    assert_same("type=docker by podman", &in_podman(&expected), &in_podman(&is));
}

#[test]
fn privileged_a_users_layers_unpack_to_what_roots_do() {
    needs!(root);
    let mut trees = Vec::new();
    for who in [Who::Root, Who::Ranges] {
        let Some(kitchen) = prepared(who) else { return };
        // Steps run at different times.
        kitchen
            .build("--output type=oci,dest=oci.tar,rewrite-timestamp=true")
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .succeeds();
        trees.push(umoci(&kitchen.world, "oci-archive:oci.tar", "oci"));
    }
    assert_same("a user's layers", &trees[0], &trees[1]);
}

/// A client's directory gets what an archive has, attributes among it.
#[test]
fn privileged_a_clients_directory_has_all_kinds_of_files() {
    let Some(served) = Served::new(Who::Root, "") else { return };
    let kitchen = &served.kitchen;
    let Some(()) = prepare(kitchen) else { return };
    served.build("--output type=tar,dest=tree.tar").succeeds();
    let expected = unpacked(&kitchen.world);
    check(&expected, &[("t/attr/f", " security.capability=0x"), ("t/attr/d", " user.dir=0x64")]);
    served.build("--output type=local,dest=sent").succeeds();
    let sent = tree(&kitchen.world, &kitchen.world.path("sent"), Times::Seconds);
    // As upstream sends them, only files have several names.
    let mut expected = without_owners(&expected);
    for line in expected.values_mut().filter(|line| !line.starts_with("100")) {
        line.truncate(line.find(" one of ").unwrap_or(line.len()));
    }
    assert_same("type=local of a daemon", &expected, &without_owners(&sent));
    served.ends();
}

/// One who may not set all attributes has the others.
#[test]
fn privileged_a_users_directory_has_the_attributes_that_the_user_may_set() {
    let Some(served) = Served::new(Who::Ranges, "") else { return };
    let kitchen = &served.kitchen;
    let Some(()) = prepare(kitchen) else { return };
    served.build("--output type=local,dest=sent").succeeds();
    let sent = tree(&kitchen.world, &kitchen.world.path("sent"), Times::Seconds);
    check(&sent, &[("t/attr/f", " user.bytes=0x00ff0a user.text=0x68656c6c6f"), ("t/attr/d", " user.dir=0x64")]);
    for line in sent.values() {
        assert!(
            !line.contains("security.") && !line.contains("user.overlay.") && !line.contains("user.hullworks."),
            "{line}"
        );
    }
    served.ends();
}
