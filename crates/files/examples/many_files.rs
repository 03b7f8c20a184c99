//! Measures the walk, checksum and copy of a directory of many small files, read in place.
//!
//! `cargo run --release -p files --example many_files -- <source> <target>`: the target must not exist. Without a
//! source, 20,000 files of 118 MB are made first, like those of the budget table.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring tool for developers")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use base::Cancel;
use files::checksum::memo::{Memo, MemoKey, Remembered};
use files::checksum::{Env, Options, Place, Selector, Tree, content_key};
use files::copy::{Copy, CopyEnv, Source, copy};
use files::walk::Filter;
use files::{ModeChange, Target};
use sys::path::Root;

#[derive(Default)]
struct InMemory(Mutex<HashMap<MemoKey, Remembered>>);

impl Memo for InMemory {
    fn get(&self, key: &MemoKey) -> Option<Remembered> {
        self.0.lock().unwrap().get(key).copied()
    }

    fn put(&self, key: &MemoKey, file: Remembered) {
        self.0.lock().unwrap().insert(*key, file);
    }
}

fn make(dir: &Path) {
    let mut seed = 1_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for number in 0..20_000_u32 {
        let dir = dir.join(format!("dir{:03}/sub{}", number / 100, number / 50 % 2));
        fs::create_dir_all(&dir).unwrap();
        let size = 1_000 + (random() % 9_800) as usize;
        let bytes: Vec<u8> = std::iter::repeat_with(|| random().to_le_bytes()).flatten().take(size).collect();
        fs::write(dir.join(format!("file{number}.txt")), bytes).unwrap();
    }
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, cpu) = (Instant::now(), cpu_millis());
    let done = work();
    println!("{what:32} {:8.1} ms, cpu {:8.1} ms", start.elapsed().as_secs_f64() * 1e3, cpu_millis() - cpu);
    done
}

/// Of all threads: tells more than the clock on a machine that others use too.
fn cpu_millis() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn main() {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(source), Some(target)) = (args.next(), args.next()) else {
        println!("usage: many_files <source> <target>");
        return;
    };
    if !source.exists() {
        make(&source);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    fs::create_dir_all(&target).unwrap();
    let root = Arc::new(Root::open(&source).unwrap());
    let to = Root::open(&target).unwrap();
    let cancel = Cancel::new();
    let memo = InMemory::default();
    let env = Env { memo: Some(&memo), cancel: Some(&cancel), threads: None };
    let place = Place::at(root.clone());
    let selectors = [Selector::of_copy("/", true, true)];

    let tree = timed("walk", || Tree::of_context(&root, &Filter::default(), &cancel).unwrap());
    let key = timed("content key, nothing known", || content_key(&selectors, Some((&tree, &place)), &env).unwrap());
    let action = Copy {
        src: "/".into(),
        dest: "/app/".into(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        mode: ModeChange::Keep,
        ..Copy::default()
    };
    let copy_env = CopyEnv { cancel: Some(&cancel), ..CopyEnv::default() };
    let copied = timed("copy from the local source", || {
        copy(&Source::context(&root, &tree), &Target::new(&to), &action, &copy_env).unwrap()
    });
    let again = timed("walk again", || Tree::of_context(&root, &Filter::default(), &cancel).unwrap());
    let same = timed("content key, all in the memo", || content_key(&selectors, Some((&again, &place)), &env).unwrap());
    assert_eq!(key, same);
    let excludes: Vec<String> = (0..500).map(|number| format!("**/excluded{number}/*.o")).collect();
    let filter = Filter { exclude: excludes, ..Filter::default() };
    timed("walk with 500 patterns", || Tree::of_context(&root, &filter, &cancel).unwrap());
    let snapshot = Arc::new(Root::open(target.join("app")).unwrap());
    let place = Place::at(snapshot.clone());
    let tree = Tree::of_snapshot();
    let env = Env { cancel: Some(&cancel), ..Env::default() };
    timed("checksum of the copy", || tree.checksum(&place, "/", &Options::default(), &env).unwrap());
    timed("the same, remembered", || tree.checksum(&place, "/", &Options::default(), &env).unwrap());
    let bytes = timed("the tree as bytes", || tree.to_bytes());
    timed("the tree from bytes", || Tree::from_bytes(&bytes).unwrap());
    let action = Copy { dest: "/second/".into(), ..action };
    timed("copy from a snapshot", || {
        copy(&Source::snapshot(&snapshot), &Target::new(&to), &action, &copy_env).unwrap()
    });
    println!("{} files, {} bytes; {} bytes of tree", copied.files, copied.bytes, bytes.len());
}
