use super::*;
use crate::arena::Arena;

/// Upstream: TestIndexSimple, TestIndexMultiLevelSimple (what `index_test.go` checks of links).
#[test]
fn edges_are_equal_when_every_input_has_something_in_common() {
    let mut arena = Arena::new();
    let mut edge = || arena.insert(());
    let (a, b, c, base, other) = (edge(), edge(), edge(), edge(), edge());
    let atom = |input, by| Atom { digest: Digest::of("op").into(), output: 0, inputs: 2, input, by };
    let (content, selector) = (By::Content(Digest::of("c")), Some(Digest::of("s")));
    let atoms = |first: &[By], second: &[By]| -> Vec<Atom> {
        let first = first.iter().map(|by| atom(0, *by));
        first.chain(second.iter().map(|by| atom(1, *by))).collect()
    };
    let known = [
        (a, atoms(&[By::Edge(base, None)], &[By::Edge(other, None), content])),
        (b, atoms(&[By::Edge(base, None)], &[By::Edge(base, selector)])),
    ];
    let mut index = Index::default();
    for (edge, atoms) in &known {
        atoms.iter().for_each(|atom| index.insert(*atom, *edge));
    }
    let cases = [
        (atoms(&[By::Edge(base, None)], &[By::Edge(other, None)]), vec![a]),
        (atoms(&[By::Edge(base, None)], &[By::Edge(c, None), content]), vec![a]),
        (atoms(&[By::Edge(base, None)], &[By::Edge(base, selector)]), vec![b]),
        (atoms(&[By::Edge(base, None)], &[By::Edge(base, None)]), vec![]),
        (atoms(&[By::Edge(other, None)], &[content]), vec![]),
        (atoms(&[By::Edge(base, None)], &[content, By::Edge(base, selector)]), vec![a, b]),
        (vec![], vec![]),
    ];
    for (atoms, expected) in cases {
        assert_eq!(index.equal_to(c, &atoms), expected, "{atoms:?}");
    }
    assert!(index.equal_to(a, &known[0].1).is_empty(), "an edge is not equal to itself");
    let elsewhere: Vec<Atom> = known[0].1.iter().map(|atom| Atom { output: 1, ..*atom }).collect();
    assert!(index.equal_to(c, &elsewhere).is_empty());
    for (edge, atoms) in &known {
        atoms.iter().for_each(|atom| index.remove(atom, *edge));
    }
    assert!(index.is_empty());
}
