//! Checksums and walks against answers that upstream's code gave (`cases.txt`), and what is ours alone.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::testtree::{TestTree, decode, decode_list, is_root};
use crate::walk::Verdict;

/// `cases.txt`: trees, each followed by `sum <snap | ctx:include:exclude> <path> <follow><wildcard> <include> <exclude>
/// <required> <digest | error>` and `walk <include> <exclude> <follow> <paths>`.
fn cases() -> Vec<(Vec<String>, Vec<String>)> {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("CHECKSUM_CASES") {
        Some(path) => fs::read_to_string(path).unwrap(),
        None => include_str!("cases.txt").to_owned(),
    };
    let mut trees: Vec<(Vec<String>, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let line = line.to_owned();
        match line.split(' ').next().unwrap() {
            "tree" => trees.push((Vec::new(), Vec::new())),
            "sum" | "walk" => trees.last_mut().unwrap().1.push(line),
            _ => trees.last_mut().unwrap().0.push(line),
        }
    }
    trees
}

fn answer(tree: &TestTree, line: &str, real: bool, kept: &Tree) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let cancel = Cancel::new();
    if words[0] == "walk" {
        let filter =
            Filter { include: decode_list(words[1]), exclude: decode_list(words[2]), follow: decode_list(words[3]) };
        let walked = crate::walk::walk(&tree.root(), &filter, &mut |_, _| Verdict::Keep, &cancel);
        let Ok(entries) = walked else { return "error".to_owned() };
        let paths: Vec<String> = entries.iter().map(|entry| encode(entry.path.as_os_str().as_bytes())).collect();
        return if paths.is_empty() { "-".to_owned() } else { paths.join(",") };
    }
    let options = Options {
        follow_links: words[3].starts_with('1'),
        wildcard: words[3].ends_with('1'),
        include: decode_list(words[4]),
        exclude: decode_list(words[5]),
        required: decode_list(words[6]),
    };
    let place = Place::at(tree.root()).with_recall((!real).then_some(&tree.records as &dyn Recall));
    let path = decode(words[2]);
    let path = lexical::to_path(&path);
    let sum = match words[1].split(':').collect::<Vec<_>>()[..] {
        ["ctx", include, exclude] => {
            let filter = Filter { include: decode_list(include), exclude: decode_list(exclude), follow: Vec::new() };
            let context = Tree::of_context(&tree.root(), &filter, &cancel).unwrap();
            context.checksum(&place, path, &options, &Env::default())
        }
        _ => {
            let fresh =
                Tree::of_snapshot().checksum(&place, path, &options, &Env { threads: Some(1), ..Env::default() });
            // The answer does not depend on what was asked before, nor on having been written down.
            let again = kept.checksum(&place, path, &options, &Env::default());
            assert_eq!(fresh.as_ref().ok(), again.as_ref().ok(), "{line}");
            let read = Tree::from_bytes(&kept.to_bytes()).unwrap();
            assert_eq!(read.checksum(&place, path, &options, &Env::default()).ok(), again.ok(), "{line}");
            fresh
        }
    };
    sum.map_or_else(|_| "error".to_owned(), |digest| digest.to_string())
}

fn encode(bytes: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'%' | b',');
    let text = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02x}") };
    bytes.iter().map(text).collect()
}

fn check_all(real: bool) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (spec, questions) in cases() {
        let spec: Vec<&str> = spec.iter().map(String::as_str).collect();
        let tree = TestTree::build(&spec, real);
        let kept = Tree::of_snapshot();
        for line in &questions {
            // A local source is read as it is, records or not.
            if !real && line.starts_with("sum ctx") {
                continue;
            }
            count += 1;
            let (_, expected) = line.rsplit_once(' ').unwrap();
            let actual = answer(&tree, line, real, &kept);
            if actual != expected {
                wrong.push(format!("{}\n{line}\n  actual {actual}", spec.join("\n")));
            }
        }
    }
    let shown = wrong.iter().take(3).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{shown}", wrong.len());
}

#[test]
fn upstream_answers_hold_with_recorded_owners() {
    check_all(false);
}

#[test]
fn privileged_upstream_answers_hold() {
    if is_root() {
        check_all(true);
    } else {
        eprintln!("skipped: owners and devices take root");
    }
}
