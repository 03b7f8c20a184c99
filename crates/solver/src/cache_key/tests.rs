use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(text)
}

/// The ids that upstream's `rootKey` computes for `digest.FromString("foo")`.
#[test]
fn root_ids_are_buildkits() {
    let foo = digest("foo");
    let cases = [
        (KeyDigest::Stable(foo), 0, "sha256:9b33d7158456f4029a31acce539a475537fd97242e02e3f98add3d26322e2686"),
        (
            KeyDigest::Stable(foo),
            CONTENT_OUTPUT,
            "sha256:afd857754863d340ca78995ad7d030056d58a7f3ad99e778b906ac768d427a74",
        ),
        (KeyDigest::Random(foo), 0, "random:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"),
        (KeyDigest::Random(foo), 3, "random:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"),
    ];
    for (key, output, expected) in cases {
        assert_eq!(root_key(key, output).as_str(), expected, "{key}@{output}");
    }
    assert_eq!(CacheKey::content(foo).root_id(), root_key(foo.into(), -1));
}

#[test]
fn key_digests_round_trip_as_text() {
    for digest in [KeyDigest::Stable(digest("a")), KeyDigest::Random(digest("a"))] {
        assert_eq!(digest.to_string().parse::<KeyDigest>().expect("own text"), digest);
    }
    for bad in ["", "random:", "random:zz", "sha256:00"] {
        assert!(bad.parse::<KeyDigest>().is_err(), "{bad}");
    }
}

#[test]
fn random_ids_have_upstreams_form_and_differ() {
    let ids: HashSet<KeyId> = (0..1000).map(|_| random_id()).collect();
    assert_eq!(ids.len(), 1000);
    for id in ids {
        assert_eq!(id.as_str().len(), 25);
        assert!(id.as_str().bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()), "{id}");
    }
}

#[test]
fn the_first_id_of_a_store_stays() {
    let key = CacheKey::with_deps(digest("op").into(), 0, vec![vec![]]);
    assert_eq!(key.id_in(SourceId::LOCAL), None);
    assert_eq!(key.set_id(SourceId::LOCAL, "one".into()), "one".into());
    assert_eq!(key.set_id(SourceId::LOCAL, "two".into()), "one".into());
    assert_eq!(key.set_id(SourceId(1), "far".into()), "far".into());
    assert_eq!(key.id_in(SourceId::LOCAL), Some("one".into()));
}

fn chain(depth: usize) -> Arc<CacheKey> {
    let mut key = Arc::new(CacheKey::root(digest("base").into(), 0));
    for level in 0..depth {
        let dep = Dep { key: key.clone(), selector: None };
        let deps = vec![vec![dep.clone()], vec![dep]];
        key = Arc::new(CacheKey::with_deps(digest(&level.to_string()).into(), 0, deps));
    }
    key
}

#[test]
fn deep_and_wide_chains_are_walked_once_and_dropped_without_recursion() {
    let key = chain(100_000);
    let mut count = 0;
    let mut last = None;
    walk_inputs_first(&key, &mut |key| {
        assert!(count > 0 || key.is_root(), "inputs come first");
        count += 1;
        last = Some(Arc::as_ptr(key));
    });
    assert_eq!((count, last), (100_001, Some(Arc::as_ptr(&key))));
    drop(key);
}
