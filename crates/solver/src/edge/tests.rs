use super::*;
use crate::arena::Arena;

fn dep(want: Level, by_content: bool, content: Content, matched: bool) -> Dep {
    let mut arena = Arena::new();
    Dep { want, by_content, content, matched, ..Dep::new(arena.insert(())) }
}

#[test]
fn the_search_in_an_input_follows_its_edge() {
    use Level::{Complete, Fast, Initial, Slow};
    let known = || Content::Known(None);
    let cases = [
        // child, by content, digest -> searched, ready
        (Initial, false, Content::Unknown, Initial, false),
        (Fast, false, Content::Unknown, Fast, false),
        (Slow, false, Content::Unknown, Slow, false),
        (Complete, false, Content::Unknown, Slow, true),
        (Fast, true, Content::Unknown, Fast, false),
        (Slow, true, Content::Unknown, Fast, false),
        (Complete, true, Content::Unknown, Fast, false),
        (Complete, true, known(), Slow, true),
    ];
    for (child, by_content, content, searched, ready) in cases {
        let mut dep = dep(Initial, by_content, content, true);
        let view = dep.look(child, false);
        assert_eq!((view.searched, view.ready, view.child), (searched, ready, child), "{child:?} {by_content}");
        assert!(!dep.look(child, true).ready, "a failed input is never ready");
        dep.pending = 1;
        assert_eq!(dep.look(child, false).searched, Initial, "an open question is an unfinished search");
        dep.pending = 0;
        dep.unasked = true;
        assert_eq!(dep.look(child, false).searched, Initial);
    }
}

#[test]
fn inputs_are_wanted_as_far_as_the_goal_needs() {
    use Level::{Complete, Fast, Initial, Slow};
    let goal = Goal { demand: Complete, has_map: true, ..Goal::default() };
    let view = |child, searched, matched| View { child, searched, matched, ..View::default() };
    let cases = [
        ("nobody wants the edge", Goal { demand: Initial, ..goal }, view(Slow, Slow, false), Complete, Initial),
        (
            "satisfied keeps cheap work",
            Goal { demand: Fast, satisfied: true, ..goal },
            view(Fast, Fast, true),
            Complete,
            Fast,
        ),
        (
            "satisfied starts nothing",
            Goal { demand: Fast, satisfied: true, ..goal },
            view(Fast, Fast, true),
            Initial,
            Initial,
        ),
        (
            "what has to run goes on while those above learn of it",
            Goal { demand: Slow, satisfied: true, no_match: true, ..goal },
            view(Slow, Fast, true),
            Complete,
            Complete,
        ),
        ("something to load", Goal { has_records: true, ..goal }, view(Slow, Slow, true), Slow, Initial),
        ("nothing can match", Goal { no_match: true, ..goal }, view(Initial, Initial, false), Initial, Complete),
        ("nothing is known yet", Goal { has_map: false, ..goal }, view(Slow, Slow, false), Initial, Fast),
        ("keys by definition are enough", Goal { demand: Fast, ..goal }, view(Fast, Fast, false), Fast, Fast),
        ("its search goes on", goal, view(Slow, Initial, false), Slow, Slow),
        ("all inputs are being asked about", Goal { meeting: true, ..goal }, view(Slow, Fast, true), Slow, Slow),
        ("unmatched goes ahead", Goal { open: true, ..goal }, view(Fast, Fast, false), Fast, Slow),
        ("unmatched is digested", Goal { open: true, ..goal }, view(Slow, Fast, false), Slow, Complete),
        ("matched waits for unmatched", Goal { open: true, ..goal }, view(Slow, Fast, true), Slow, Slow),
        ("matched follows", goal, view(Slow, Fast, true), Slow, Complete),
        ("searched to the end waits for others", goal, view(Slow, Slow, true), Slow, Slow),
        ("all searched to the end", Goal { all_slow: true, ..goal }, view(Slow, Slow, true), Slow, Complete),
        ("only keys are wanted", Goal { demand: Slow, all_slow: true, ..goal }, view(Slow, Slow, true), Slow, Slow),
    ];
    for (what, goal, view, old, new) in cases {
        let mut dep = dep(old, true, Content::Unknown, view.matched);
        dep.view = view;
        assert_eq!(dep.want(goal), new, "{what}");
    }
}

#[test]
fn one_input_that_leads_nowhere_ends_the_search() {
    use Level::{Fast, Initial, Slow};
    let view = |searched, matched| View { searched, matched, ..View::default() };
    let cases = [
        (vec![], Slow, false, false),
        (vec![view(Fast, true), view(Initial, false)], Initial, false, true),
        (vec![view(Fast, true), view(Fast, true)], Fast, false, false),
        (vec![view(Fast, false), view(Initial, false)], Fast, false, true),
        (vec![view(Slow, false), view(Initial, true)], Slow, true, false),
        (vec![view(Slow, true), view(Slow, true)], Slow, false, false),
    ];
    for (views, searched, no_match, open) in cases {
        let mut tally = Tally::default();
        views.iter().for_each(|view| tally.add(*view));
        let inputs = views.len();
        assert_eq!(
            (tally.searched(inputs), tally.no_match(), tally.open(inputs)),
            (searched, no_match, open),
            "{views:?}"
        );
        views.iter().for_each(|view| tally.remove(*view));
        assert_eq!(tally, Tally::default());
    }
}

#[test]
fn the_highest_want_counts() {
    let mut arena = Arena::new();
    let mut edge = Edge::<(), ()>::new(arena.insert(()), 0, false);
    assert!(edge.change_want(Level::Initial, Level::Fast));
    assert!(edge.change_want(Level::Initial, Level::Complete));
    assert!(!edge.change_want(Level::Fast, Level::Slow));
    assert!(edge.change_want(Level::Complete, Level::Initial));
    assert_eq!(edge.demand(), Level::Slow);
    assert!(edge.change_want(Level::Slow, Level::Initial));
    assert_eq!(edge.demand(), Level::Initial);
}
