//! Archives that are unpacked where they would be copied.

use super::*;

/// An archive here is a file that begins with `TAR`; unpacking it writes what follows into `unpacked`.
struct FakeTar;

impl Unpack for FakeTar {
    fn is_archive(&self, mut file: &File) -> io::Result<bool> {
        let mut magic = [0; 3];
        Ok(io::Read::read(&mut file, &mut magic)? == 3 && &magic == b"TAR")
    }

    fn unpack(
        &self,
        mut file: File,
        into: &Root,
        owner: Option<Owner>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text)?;
        if text.ends_with("BAD") {
            return Err("cut short".into());
        }
        mkfile(
            &Target::new(into),
            &Mkfile {
                path: "unpacked".into(),
                mode: 0o644,
                data: text.split_off(3).into_bytes(),
                owner,
                timestamp: None,
            },
        )?;
        Ok(())
    }
}

#[test]
fn archives_are_unpacked_where_asked_and_files_copied() {
    let (_dir, src, dst) = scratch();
    fs::write(src.join("1.tar"), "TARone").unwrap();
    fs::write(src.join("2.txt"), "two").unwrap();
    fs::write(src.join("3.tar"), "TARBAD").unwrap();
    let (from, to) = (Root::open(&src).unwrap(), Root::open(&dst).unwrap());
    let env = CopyEnv { unpack: Some(&FakeTar), ..CopyEnv::default() };
    let run = |src: &str, attempt_unpack| {
        let action = Copy { attempt_unpack, ..plain(src, "/into/") };
        copy(&Source::snapshot(&from), &Target::new(&to), &action, &env)
    };
    run("/[12].*", true).unwrap();
    assert_eq!(fs::read(dst.join("into/unpacked")).unwrap(), b"one");
    assert_eq!(fs::read(dst.join("into/2.txt")).unwrap(), b"two");
    assert!(!dst.join("into/1.tar").exists());
    run("/1.tar", false).unwrap();
    assert!(dst.join("into/1.tar").exists());
    let error = run("/3.tar", true).unwrap_err();
    assert_eq!(crate::chain(&error).to_string(), "cannot unpack `/3.tar`: cut short");
}

#[test]
fn nor_is_an_archive_unpacked_that_changed_so() {
    for (hashed, unpacked) in [("TARold", false), ("TARnew", true)] {
        let (_dir, src, dst) = scratch();
        fs::write(src.join("file"), "TARnew").unwrap();
        let from = std::sync::Arc::new(Root::open(&src).unwrap());
        let to = Root::open(&dst).unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("file"), hashed).unwrap();
        let entries = crate::walk::walk(&from, &Filter::default(), &mut crate::walk::reset_owner, &Cancel::new());
        let tree = Tree::of_entries(entries.unwrap());
        let elsewhere = Place::at(std::sync::Arc::new(Root::open(other.path()).unwrap()));
        tree.checksum(&elsewhere, "/", &Options::default(), &Env::default()).unwrap();
        tree.pretend_seen(&from);
        let env = CopyEnv { unpack: Some(&FakeTar), ..CopyEnv::default() };
        let add = Copy { attempt_unpack: true, ..plain("/file", "/into/") };
        let done = copy(&Source::context(&from, &tree), &Target::new(&to), &add, &env);
        assert_eq!(done.as_ref().is_err_and(Error::is_changed), !unpacked, "{done:?}");
    }
}
