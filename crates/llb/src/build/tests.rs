use super::*;
use crate::{Graph, Limits};

fn defaults() -> Defaults {
    Defaults { platform: Platform::new("linux", "amd64", ""), local_unique: "u".to_owned() }
}

fn run(builder: &mut Builder, state: &State, arg: &str) -> State {
    try_run(builder, state, arg).expect("small")
}

fn try_run(builder: &mut Builder, state: &State, arg: &str) -> Result<State, Error> {
    builder.run(state, Exec { args: vec![arg.to_owned()], ..Exec::default() }, Constraints::default())
}

#[test]
fn environments_are_bounded() {
    let mut b = Builder::new();
    let mut state = State::scratch();
    state.set_env("A", &"a".repeat(1 << 20));
    let steps = (0..1_000).map_while(|_| try_run(&mut b, &state, "true").ok()).count();
    assert_eq!(steps, 127);
    assert_eq!(try_run(&mut b, &state, "true").err(), Some(Error::TooLarge));
}

#[test]
fn equal_ops_are_sent_once_and_share_their_texts() {
    let mut b = Builder::new();
    let image = Image { reference: "docker.io/library/a:latest".to_owned(), resolve_mode: ResolveMode::Default };
    let first = b.image(&image, Constraints::named("one"));
    let second = b.image(&image, Constraints { ignore_cache: true, ..Constraints::named("two") });
    let merged = b.merge(&[first, second], Constraints::default());
    let def = b.marshal(&merged, &defaults()).expect("complete");
    assert_eq!(def.def.len(), 3);
    let graph = Graph::new(def, Limits::default()).expect("valid");
    assert_eq!(graph.vertices()[0].name(), "two");
    assert!(graph.vertices()[0].ignore_cache());
}

#[test]
fn scratch_has_no_definition_and_does_not_count_in_a_merge() {
    let mut b = Builder::new();
    assert!(b.marshal(&State::scratch(), &defaults()).expect("empty").def.is_empty());
    let local = b.local(&Local { name: "x".to_owned(), ..Local::default() }, Constraints::default());
    let merged = b.merge(&[State::scratch(), local.clone()], Constraints::default());
    assert_eq!(merged.output(), local.output());
}

#[test]
fn promises_must_be_kept() {
    let mut b = Builder::new();
    let slot = b.slot();
    let state = run(&mut b, &State::of(slot), "true");
    assert_eq!(b.marshal(&state, &defaults()), Err(Error::EmptySlot));
    b.fill(slot, state.output());
    assert_eq!(b.marshal(&state, &defaults()), Err(Error::Cycle));
    b.fill(slot, Some(slot));
    assert_eq!(b.marshal(&state, &defaults()), Err(Error::Cycle));
    b.fill(slot, None);
    assert_eq!(b.marshal(&state, &defaults()).expect("scratch").def.len(), 2);
}

#[test]
fn many_steps_need_no_stack() {
    let mut b = Builder::new();
    let mut state = State::scratch();
    for _ in 0..50_000 {
        state = run(&mut b, &state, "true");
    }
    assert_eq!(b.marshal(&state, &defaults()).expect("deep").def.len(), 50_001);
}

#[test]
fn a_variable_that_is_set_again_moves_to_the_end() {
    let mut env = Env::new();
    for (key, value) in [("A", "1"), ("B", "2"), ("A", "3"), ("A", "4")] {
        env.set(key, value);
    }
    assert_eq!(env.to_list(), ["B=2", "A=4"]);
    env.set_all([("C", "5"), ("B", "6"), ("D", "7"), ("C", "8")].into_iter());
    assert_eq!(env.to_list(), ["A=4", "B=6", "D=7", "C=8"]);
}

#[test]
fn a_definition_that_was_taken_in_keeps_its_digests() {
    let mut b = Builder::new();
    let local = b.local(&Local { name: "x".to_owned(), ..Local::default() }, Constraints::named("n"));
    let state = run(&mut b, &local, "true");
    let def = b.marshal(&state, &defaults()).expect("complete");
    let mut other = Builder::new();
    let taken = other.import(&def).expect("valid");
    let again = other.marshal(&taken, &defaults()).expect("complete");
    assert_eq!(def.def, again.def);
    assert_eq!(def.metadata, again.metadata);
    let broken = pb::Definition { def: def.def[1..].to_vec(), ..def };
    assert!(matches!(Builder::new().import(&broken), Err(Error::Import(_))));
}
