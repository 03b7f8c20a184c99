//! Images and archives that mean harm: what leads out of the tree leads back into it or is refused, what is without end
//! is refused with its limit, and nothing outside is touched.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use testkit::image::TestImage;
use testkit::tar::{Archive, Entry};

use crate::kitchen::Kitchen;
use crate::needs;
use crate::who::Who;

const EVERYBODY: [Who; 3] = [Who::Root, Who::Ranges, Who::Single];

/// How archives are named in what comes of them: `OUT` is a directory of the machine.
type Lines = &'static [&'static str];

/// An archive and the tree that it becomes: as a layer on [`base`], and added to `/in` of an empty tree. None: it is refused
/// there.
struct Tamed {
    archive: Archive,
    layer: Option<Lines>,
    added: Option<Lines>,
}

/// The layer below: `keep`, `dir/a` and `dir/b`.
fn base() -> Archive {
    Archive::new().file("keep", "").dir("dir").file("dir/a", "").file("dir/b", "")
}

const BASE: [&str; 4] = ["dir/", "dir/a", "dir/b", "keep"];

/// A directory outside of everything that is built, and what is in it.
struct Outside(PathBuf);

impl Outside {
    fn new(kitchen: &Kitchen) -> Outside {
        let dir = kitchen.world.path("outside");
        kitchen.world.write("outside/secret", "secret");
        kitchen.who.own(&kitchen.world, "outside");
        Outside(dir)
    }

    /// Its name without the leading slash.
    fn name(&self) -> &str {
        self.0.to_str().unwrap().trim_start_matches('/')
    }

    /// The same from deep below.
    fn name_from_below(&self) -> String {
        format!("{}{}", "../".repeat(16), self.name())
    }

    fn look(&self) -> (String, Vec<PathBuf>, [i64; 4]) {
        let secret = fs::metadata(self.0.join("secret")).unwrap();
        let dir = fs::metadata(&self.0).unwrap();
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        let text = fs::read_to_string(self.0.join("secret")).unwrap();
        (text, names, [secret.nlink() as i64, secret.ctime_nsec(), dir.ctime_nsec(), i64::from(secret.mode())])
    }
}

#[test]
fn what_leads_out_of_the_tree_stays_in_it() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let outside = Outside::new(&kitchen);
        let before = outside.look();
        let all = tamed(&outside);
        let (mut stages, mut copies) = (String::new(), String::from("FROM scratch\n"));
        let host = kitchen.registry.host();
        for (n, Tamed { archive, layer, added }) in all.iter().enumerate() {
            let bytes = archive.clone().end();
            if layer.is_some() {
                TestImage::of_layers(vec![base().end(), bytes.clone()]).put(&kitchen.registry, "evil", &n.to_string());
                stages += &format!("FROM {host}/evil:{n} AS layer{n}\n");
                copies += &format!("COPY --from=layer{n} / /layer{n}/\n");
            }
            if added.is_some() {
                kitchen.file(&format!("{n}.tar"), &bytes);
                stages += &format!("FROM scratch AS added{n}\nADD {n}.tar /in/\n");
                copies += &format!("COPY --from=added{n} /in/ /added{n}/\n");
            }
        }
        kitchen.dockerfile(&format!("{stages}{copies}"));
        kitchen.build("--output type=tar,dest=out.tar").succeeds();
        let list = kitchen.world.run("tar").args(["--list", "--file", "out.tar"]).env("LC_ALL", "C").succeeds().text();
        for (n, Tamed { layer, added, .. }) in all.iter().enumerate() {
            for (what, expected) in [("layer", layer), ("added", added)] {
                let Some(expected) = expected else { continue };
                let prefix = format!("{what}{n}/");
                let mut found: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
                found.retain(|line| !line.is_empty());
                found.sort_unstable();
                let mut expected: Vec<String> =
                    expected.iter().map(|line| line.replace("OUT", outside.name())).collect();
                expected.sort_unstable();
                // Directories above `OUT` are there as well.
                found.retain(|line| !(line.ends_with('/') && outside.name().starts_with(line.trim_end_matches('/'))));
                assert_eq!(found, expected, "{who:?}: {what} {n}");
            }
        }
        assert_eq!(outside.look(), before, "{who:?}");
    }
}

fn tamed(outside: &Outside) -> Vec<Tamed> {
    let new = Archive::new;
    let (up, absolute) = (outside.name_from_below(), format!("/{}", outside.name()));
    let both = |archive, layer, added| Tamed { archive, layer: Some(layer), added: Some(added) };
    let layer = |archive, layer| Tamed { archive, layer: Some(layer), added: None };
    vec![
        layer(new().file(format!("{up}/f"), "pwned"), &["OUT/f", "dir/", "dir/a", "dir/b", "keep"]),
        both(new().file(format!("{absolute}/f"), "pwned"), &["OUT/f", "dir/", "dir/a", "dir/b", "keep"], &["OUT/f"]),
        // The last component is not followed.
        both(
            new().symlink("l", format!("{absolute}/secret")).file("l", "pwned"),
            &["dir/", "dir/a", "dir/b", "keep", "l"],
            &["l"],
        ),
        // What is on the way is followed inside of the tree: here it is there.
        both(
            new().dir("d").symlink("l", "/d").file("l/f", "").symlink("up", "../../../d").file("up/g", ""),
            &["d/", "d/f", "d/g", "dir/", "dir/a", "dir/b", "keep", "l", "up"],
            &["d/", "d/f", "d/g", "l", "up"],
        ),
        // What a link leads to may be in the layer below, or nowhere.
        layer(new().symlink("s", "dir").file("s/z", ""), &["dir/", "dir/a", "dir/b", "dir/z", "keep", "s"]),
        layer(new().symlink("s", "/dir").file("s/.wh.a", ""), &["dir/", "dir/b", "keep", "s"]),
        layer(new().symlink("s", "dir").file("s/.wh..wh..opq", ""), &["dir/", "keep", "s"]),
        layer(new().symlink("dir", "new").file("dir/z", ""), &["dir", "keep", "new/", "new/z"]),
        layer(
            new().symlink("s", "../t").symlink("t", "x/../new/y").file("s/d/z", ""),
            &["dir/", "dir/a", "dir/b", "keep", "new/", "new/y/", "new/y/d/", "new/y/d/z", "s", "t"],
        ),
        layer(new().symlink("l", &absolute).file("l/f", "pwned"), &["OUT/f", "dir/", "dir/a", "dir/b", "keep", "l"]),
        layer(new().symlink("l", &up).file("l/f", "pwned"), &["OUT/f", "dir/", "dir/a", "dir/b", "keep", "l"]),
        layer(new().symlink("l", &absolute).file("l/.wh.secret", ""), &["dir/", "dir/a", "dir/b", "keep", "l"]),
        layer(new().symlink("l", &absolute).file("l/.wh..wh..opq", ""), &["dir/", "dir/a", "dir/b", "keep", "l"]),
        // Names of the tree itself are nothing.
        layer(new().file("", "x").file(".", "x").file("..", "x").file("/", "x").dir("/..").dir("./"), &BASE),
        // Whiteouts hide what lies below in the tree, whatever they claim.
        layer(new().file("../.wh.keep", ""), &["dir/", "dir/a", "dir/b"]),
        layer(new().file(format!("{up}/.wh.secret"), ""), &BASE),
        layer(new().file("/.wh..wh..opq", "").file("new", ""), &["new"]),
        layer(new().file("dir/.wh..wh..opq", ""), &["dir/", "keep"]),
        layer(new().file("../../dir/.wh.a", "").file("dir/.wh.none", ""), &["dir/", "dir/b", "keep"]),
        layer(new().file(".wh..wh.aufs", "").dir(".wh..wh.orph"), &BASE),
        // In an archive of the user's they are files.
        Tamed {
            archive: new().file(".wh.x", "").file("d/.wh..wh..opq", "").file(".wh...", ""),
            layer: None,
            added: Some(&[".wh...", ".wh.x", "d/", "d/.wh..wh..opq"]),
        },
        // Names of any bytes.
        both(
            new().file(b"n\xff\xfe\x01\n\t\\\"x", "data").file("-rf", "").file("a b", ""),
            &["-rf", "a b", "dir/", "dir/a", "dir/b", "keep", "n\\377\\376\\001\\n\\t\\\\\"x"],
            &["-rf", "a b", "n\\377\\376\\001\\n\\t\\\\\"x"],
        ),
    ]
}

#[test]
fn what_cannot_be_tamed_is_refused_by_name() {
    for who in EVERYBODY {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let outside = Outside::new(&kitchen);
        let before = outside.look();
        let host = kitchen.registry.host();
        for (n, (archive, in_layer, added)) in refused(&outside).into_iter().enumerate() {
            // The ways of ordinary users differ in owners and devices only.
            if who != Who::Root && n % 4 != 0 {
                continue;
            }
            if let Some(words) = in_layer {
                TestImage::of_layers(vec![base().end(), archive.clone()]).put(
                    &kitchen.registry,
                    "evil",
                    &n.to_string(),
                );
                kitchen.dockerfile(&format!("FROM {host}/evil:{n}\n"));
                let ended = kitchen.build("--output type=tar,dest=out.tar").fails();
                ended
                    .says(&format!("   1 | >>> FROM {host}/evil:{n}\n"))
                    .says("error: failed to solve: cannot unpack layer sha256:");
                ended.says(words);
            }
            if let Some(words) = added {
                kitchen.file("evil.tar", &archive);
                kitchen.dockerfile("FROM scratch\nADD evil.tar /in/\n");
                let ended = kitchen.build("--output type=tar,dest=out.tar").fails();
                ended.says("   2 | >>> ADD evil.tar /in/\n").says("cannot unpack `/evil.tar`: ").says(words);
            }
        }
        assert!(!kitchen.world.path("out.tar").exists());
        assert_eq!(outside.look(), before, "{who:?}");
        // The state is none the worse.
        kitchen.dockerfile("FROM busybox\nRUN true\n");
        kitchen.build("").succeeds();
    }
}

#[test]
#[ignore = "takes half a minute: `cargo xtask long`"]
fn long_half_a_megabyte_of_ten_million_entries_is_refused() {
    needs!(tool "zstd");
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    const AT_ONCE: usize = 100_000;
    let part = Archive::new().dir("./").cut().repeat(AT_ONCE);
    let part = kitchen.world.run("zstd").arg("--stdout").stdin(part).succeeds().stdout;
    // What is compressed in parts is unpacked as one.
    let bomb = part.repeat(10_000_000 / AT_ONCE + 1);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    kitchen.file("bomb.tar.zst", bomb);
    kitchen.dockerfile("FROM scratch\nADD bomb.tar.zst /in/\n");
    let ended = kitchen.build("--output type=tar,dest=out.tar").fails();
    ended.says("   2 | >>> ADD bomb.tar.zst /in/\n");
    ended.says("the archive unpacks to more than 10000000 entries: refused as a decompression bomb\n");
    assert!(!kitchen.world.path("out.tar").exists());
}

type Refused = (bytes::Bytes, Option<&'static str>, Option<&'static str>);

fn refused(outside: &Outside) -> Vec<Refused> {
    let new = Archive::new;
    let named = |name: &'static str| Entry { name: name.as_bytes(), ..Entry::default() };
    let sized = |size| new().entry(Entry { size: Some(size), data: b"x", ..named("x") }).cut();
    let device = |device| new().entry(Entry { flag: b'3', device, ..named("dev") }).end();
    let header = |flag, size| new().entry(Entry { flag, size: Some(size), ..named("h") }).file("x", "").end();
    let sparse_behind = |archive: Archive, size: u64| {
        let (size, zero) = (size.to_string(), "0".to_owned());
        let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s")];
        let map = format!("{zero}\n");
        let records: Vec<(&str, &str)> = records.into_iter().chain([("GNU.sparse.realsize", &*size)]).collect();
        let mut data = map.into_bytes();
        data.resize(512, 0);
        archive.pax(&records).file("s", data).end()
    };
    let sparse = |size| sparse_behind(new(), size);
    let (up, absolute) = (outside.name_from_below(), format!("/{}", outside.name()));
    let both = |archive, words| (archive, Some(words), Some(words));
    let layer = |archive, words| (archive, Some(words), None);
    let added = |archive, words| (archive, None, Some(words));
    let nowhere = "`l` is refused: an entry lies beneath a symlink that leads to no directory";
    let circle = "is refused: an entry lies beneath a symlink that leads in a circle or out of the root";
    let missing = "`h` is refused: it is a hard link to a file that the archive does not have";
    let whiteout = "is refused: a whiteout must name a file of its directory";
    let bomb = "the archive unpacks to more than 256 GiB: refused as a decompression bomb";
    vec![
        added(new().symlink("l", &absolute).file("l/f", "pwned").end(), nowhere),
        added(new().symlink("l", &up).file("l/f", "pwned").end(), nowhere),
        added(new().symlink("l", &absolute).file("l/.wh.secret", "").end(), nowhere),
        added(new().symlink("l", &absolute).file("l/.wh..wh..opq", "").end(), nowhere),
        added(new().symlink("s", "dir").file("s/z", "").end(), "`s` is refused: an entry lies beneath a symlink"),
        layer(
            new().symlink("s", "d/".repeat(300)).file("s/z", "").end(),
            "`s` is refused: its directories are nested too deeply",
        ),
        both(new().hardlink("h", format!("{absolute}/secret")).file("h", "pwned").end(), missing),
        both(new().symlink("l", &absolute).hardlink("h", "l/secret").file("h", "pwned").end(), missing),
        (new().hardlink("h", format!("{up}/secret")).end(), Some(missing), Some("outside of the target directory")),
        (
            new().file(format!("{up}/f"), "pwned").end(),
            None,
            Some("is refused: it points outside of the target directory"),
        ),
        both(new().symlink("a", "b").symlink("b", "a").file("a/f", "").end(), circle),
        both(new().symlink("a", "a").file("a/f", "").end(), circle),
        layer(new().file(".wh.", "").end(), whiteout),
        layer(new().file(".wh..", "").end(), whiteout),
        layer(new().file("dir/.wh...", "").end(), whiteout),
        both(new().file("f", "").file("f/x", "").end(), "an entry lies beneath it, yet it is no directory"),
        both(device((0, 0)), "`dev` is refused: a character device 0/0 would be taken for a whiteout"),
        both(
            new().pax(&[("uid", "4294967295")]).file("f", "").end(),
            "`f` is refused: its owner is the largest number, which is no id",
        ),
        // Larger than anybody needs. What is no archive by its head is a file to ADD.
        both(sized(300 << 30), bomb),
        both(sized(u64::MAX >> 1), bomb),
        both(sparse(300 << 30), bomb),
        both(sparse_behind(new().file("x", "1"), 256 << 30), bomb),
        both(sparse(2 << 40), "sparse file is larger than 1099511627776 bytes"),
        layer(header(b'x', 3 << 30), "extended header is larger than 1048576 bytes"),
        layer(header(b'L', 3 << 30), "extended header is larger than 1048576 bytes"),
        both(new().gnu_long(b'L', vec![b'n'; 20_000]).file("x", "").end(), "name is longer than 16384 bytes"),
        both(new().pax(&vec![("comment", "x"); 5000]).file("x", "").end(), "more than 4096 PAX records"),
        both(new().pax(&[("uid", "99999999999")]).file("x", "").end(), "id 99999999999 is out of range"),
        both(new().entry(Entry { flag: b'V', ..named("x") }).end(), "unsupported type `V`"),
        (new().dir("d").file("/", "x").end(), None, Some("`/` is refused: it would replace the target directory")),
        both(
            new().file("x", "").gnu_long(b'L', format!("{}f", "d/".repeat(400))).file("y", "").end(),
            "is refused: its directories are nested too deeply",
        ),
        // Cut short.
        both(sized(10 << 30), "the stream ends within the entry"),
        both(new().file("x", "1").raw(b"abc").cut(), "the stream ends within a header"),
    ]
}
