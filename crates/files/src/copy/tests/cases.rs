//! What upstream's code left behind (`cases.txt`).

use super::*;

/// `cases.txt`: a source (`src` lines), a target (`dst` lines), an action, and the target afterwards, or an error.
struct Case {
    src: Vec<String>,
    dst: Vec<String>,
    action: String,
    outcome: String,
}

fn cases() -> Vec<Case> {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("COPY_CASES") {
        Some(path) => fs::read_to_string(path).unwrap(),
        None => include_str!("../cases.txt").to_owned(),
    };
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap();
        if word == "case" {
            cases.push(Case { src: Vec::new(), dst: Vec::new(), action: String::new(), outcome: String::new() });
            continue;
        }
        let case = cases.last_mut().unwrap();
        match word {
            "src" => case.src.push(rest.to_owned()),
            "dst" => case.dst.push(rest.to_owned()),
            "tree" | "error" => case.outcome = line.to_owned(),
            _ => case.action = line.to_owned(),
        }
    }
    cases
}

fn path_of(word: &str) -> PathBuf {
    lexical::to_path(&decode(word)).to_owned()
}

fn owner(word: &str) -> Option<Owner> {
    let (uid, gid) = word.split_once(':')?;
    Some(Owner { uid: uid.parse().unwrap(), gid: gid.parse().unwrap() })
}

fn time(word: &str) -> Option<Time> {
    word.parse().ok().filter(|nanos| *nanos != -1).map(Time::from_nanos)
}

fn octal(word: &str) -> u32 {
    u32::from_str_radix(word, 8).unwrap()
}

fn act(source: &Source<'_>, target: &Target<'_>, action: &str) -> Result<(), Error> {
    let words: Vec<&str> = action.split(' ').collect();
    let flag = |word: usize, index: usize| words[word].as_bytes()[index] == b'1';
    match words[0] {
        "mkdir" => mkdir(
            target,
            &Mkdir {
                path: path_of(words[1]),
                mode: octal(words[2]),
                make_parents: flag(3, 0),
                owner: owner(words[4]),
                timestamp: time(words[5]),
            },
        ),
        "mkfile" => mkfile(
            target,
            &Mkfile {
                path: path_of(words[1]),
                mode: octal(words[2]),
                data: decode(words[3]),
                owner: owner(words[4]),
                timestamp: time(words[5]),
            },
        ),
        "symlink" => make_symlink(
            target,
            &Symlink {
                old_path: path_of(words[1]),
                new_path: path_of(words[2]),
                owner: owner(words[3]),
                timestamp: time(words[4]),
            },
        ),
        "rm" => rm(target, &Rm { path: path_of(words[1]), allow_wildcard: flag(2, 0), allow_not_found: flag(2, 1) }),
        "copy" => {
            let mode = match words[6] {
                "-" => ModeChange::Keep,
                number if number.starts_with(|first: char| ('1'..='7').contains(&first)) => {
                    ModeChange::Set(octal(number))
                }
                text => ModeChange::parse(text)?,
            };
            let action = Copy {
                src: path_of(words[1]),
                dest: path_of(words[2]),
                owner: owner(words[7]),
                mode,
                timestamp: time(words[8]),
                follow_symlink: flag(3, 0),
                dir_copy_contents: flag(3, 1),
                attempt_unpack: false,
                create_dest_path: flag(3, 2),
                allow_wildcard: flag(3, 3),
                allow_empty_wildcard: flag(3, 4),
                include: decode_list(words[4]),
                exclude: decode_list(words[5]),
                always_replace: flag(3, 5),
            };
            copy(source, target, &action, &CopyEnv::default()).map(drop)
        }
        other => panic!("unknown action {other}"),
    }
}

/// Whether a file is as upstream left it. Directories of upstream that have no time of their own may have one here.
fn is_same(expected: &str, actual: &str, real: bool) -> bool {
    let fields = |line: &str| line.splitn(6, ':').map(str::to_owned).collect::<Vec<_>>();
    let (expected, mut actual) = (fields(expected), fields(actual));
    if expected.len() != 6 || actual.len() != 6 {
        return false;
    }
    if expected[4] == "now" {
        actual[4] = "now".to_owned();
    }
    if !real {
        // Owners are only recorded, and set-group-id bits of foreign groups are not granted.
        actual[1..4].clone_from_slice(&expected[1..4]);
    }
    expected == actual
}

fn check_all(real: bool) {
    let mut wrong = Vec::new();
    let cases = cases();
    for case in &cases {
        let spec = |lines: &'_ [String]| lines.iter().map(|line| line.to_owned()).collect::<Vec<_>>();
        let (src_spec, dst_spec) = (spec(&case.src), spec(&case.dst));
        let src_spec: Vec<&str> = src_spec.iter().map(String::as_str).collect();
        let dst_spec: Vec<&str> = dst_spec.iter().map(String::as_str).collect();
        let has_special = |spec: &[&str]| spec.iter().any(|line| line.starts_with("char") || line.starts_with("xattr"));
        if !real && (has_special(&src_spec) || has_special(&dst_spec)) {
            continue;
        }
        let (src, dst) = (TestTree::build(&src_spec, real), TestTree::build(&dst_spec, real));
        src.set_times(&src_spec, 1000);
        dst.set_times(&dst_spec, 2000);
        let (from, to) = (src.root(), dst.root());
        let notes = Notes::default();
        let recorder = if real { None } else { Some(&notes as &dyn Recorder) };
        let done = act(&Source::snapshot(&from), &Target { root: &to, recorder }, &case.action);
        let right = match (&done, case.outcome.strip_prefix("tree ")) {
            (Err(_), None) => true,
            (Ok(()), Some(expected)) => {
                let actual = list_tree(&dst.path());
                let expected: Vec<&str> = expected.split(';').collect();
                expected.len() == actual.len()
                    && expected.iter().zip(&actual).all(|(expected, actual)| is_same(expected, actual, real))
            }
            _ => false,
        };
        if !right {
            let actual =
                done.map_or_else(|error| crate::chain(&error).to_string(), |()| list_tree(&dst.path()).join(";"));
            let (src, dst) = (case.src.join("\n  "), case.dst.join("\n  "));
            wrong.push(format!(
                "from\n  {src}\nto\n  {dst}\n{}\nexpected {}\nactual   {actual}",
                case.action, case.outcome
            ));
        }
    }
    let shown = wrong.iter().take(4).cloned().collect::<Vec<_>>().join("\n\n");
    assert!(wrong.is_empty(), "{} of {} differ:\n{shown}", wrong.len(), cases.len());
}

// Not among the cases, for here we differ on purpose: `rm` removes a link that leads nowhere, and without a complaint
// nothing below a file; a file never takes the place of the whole tree; a trailing `/.` behind a link that leads
// nowhere makes one directory, not two.

#[test]
fn upstream_leaves_the_same_names_and_contents() {
    check_all(false);
}

#[test]
fn privileged_upstream_leaves_the_same_trees() {
    if is_root() {
        check_all(true);
    }
}
