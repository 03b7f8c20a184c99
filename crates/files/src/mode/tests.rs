//! Symbolic modes against answers that upstream's parser gave (`cases.txt`).

use super::*;

/// Lines: a mode text and, for a file and a directory each, what these modes become, or `error`.
const BEFORE: [u32; 7] = [0, 0o644, 0o755, 0o7777, 0o1750, 0o2641, 0o4123];

#[test]
fn upstream_answers_hold() {
    // A longer list of the same format can be tried from outside.
    let text = match std::env::var_os("MODE_CASES") {
        Some(path) => std::fs::read_to_string(path).expect("a list of cases"),
        None => include_str!("cases.txt").to_owned(),
    };
    for line in text.lines() {
        let (mode, expected) = line.split_once(' ').expect("a mode and answers");
        let parsed = ModeChange::parse(mode);
        let answer = |kind, before| match &parsed {
            Ok(change) => format!("{:o}", change.apply(kind, before)),
            Err(error) => {
                assert_eq!(error.to_string(), format!("invalid mode `{mode}`"));
                "error".to_owned()
            }
        };
        let answers = BEFORE.iter().flat_map(|before| [answer(Kind::File, *before), answer(Kind::Dir, *before)]);
        assert_eq!(answers.collect::<Vec<_>>().join(" "), expected, "{mode}");
    }
}

#[test]
fn numbers_go_for_all_files_and_for_the_nine_bits_of_new_parents() {
    let set = ModeChange::Set(0o4711);
    assert_eq!(set.apply(Kind::File, 0o644), 0o4711);
    assert_eq!(set.apply(Kind::Dir, 0o755), 0o4711);
    assert_eq!(set.of_new_parents(), 0o711);
    assert_eq!(ModeChange::parse("0600").map(|change| change.of_new_parents()).ok(), Some(0o755));
    assert_eq!(ModeChange::Keep.apply(Kind::File, 0o2640), 0o2640);
}
