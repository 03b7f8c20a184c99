use super::*;

#[test]
fn subordinate_ranges_are_found_by_name_and_number() {
    let text = "root:1:2\nann:100000:65536\n1000:200000:10\nbroken\nann:x:1\nann:300000:0\nbob:5:5\n";
    let found = |uid, name| subordinate(text, uid, name).iter().map(|r| (r.start, r.count)).collect::<Vec<_>>();
    assert_eq!(found(1000, Some("ann")), [(100_000, 65_536), (200_000, 10)]);
    assert_eq!(found(7, Some("bob")), [(5, 5)]);
    assert_eq!(found(7, None), []);
}

#[test]
fn our_own_map_is_read() {
    let map = identity_map(Path::new("/proc/self/uid_map")).expect("procfs");
    assert!(map.iter().all(|range| range.count > 0) && !map.is_empty());
}
