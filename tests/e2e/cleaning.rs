//! Cleaning beside builds: rules and `prune` take what no build uses, and no build notices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::image::noise;

use crate::daemon::Served;
use crate::harness::{eventually, is_root};
use crate::kitchen::Kitchen;
use crate::who::Who;

/// What the cache may take up, in bytes.
const BOUND: u64 = 20_000_000;
const CLIENTS: u64 = 8;
const ROUNDS: u64 = 3;
/// Of what each build copies: together it is much more than the bound.
const SIZE: usize = 2 << 20;

#[test]
fn builds_succeed_while_their_daemon_cleans_all_the_time() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(kitchen) = Kitchen::new(who) else { return };
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let config = fs::read_to_string(kitchen.world.path("buildkitd.toml")).unwrap();
    let rules = format!("[[worker.oci.gcpolicy]]\nall = true\nmaxUsedSpace = \"{BOUND}\"\n");
    kitchen.world.write("buildkitd.toml", config + &rules);
    let served = Served::again(kitchen, "");
    let kitchen = &served.kitchen;
    let left = AtomicUsize::new(CLIENTS as usize);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (served, left) = (&served, &left);
            scope.spawn(move || {
                // Counted in any case: the one who prunes waits for it.
                let _counted = Counted(left);
                (0..ROUNDS).for_each(|round| builds(served, client, round));
            });
        }
        scope.spawn(|| {
            while left.load(Ordering::Acquire) > 0 {
                served.buildctl("prune --all").succeeds();
                served.buildctl("prune --keep-storage 1").succeeds();
            }
        });
    });
    // Images that went out while all that was removed are whole.
    for client in (1..CLIENTS).step_by(2) {
        let image = image(kitchen, client);
        kitchen.dockerfile(&format!("FROM {image}\n"));
        served.build("--output type=local,dest=pulled").succeeds();
        let pulled = fs::read(kitchen.world.path("pulled/again")).unwrap();
        assert!(pulled == noise(client * ROUNDS + ROUNDS - 1, SIZE), "{image}");
    }
    // The last round of cleaning comes after the last build.
    eventually(|| used(&served) <= BOUND);
    served.ends();
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

fn image(kitchen: &Kitchen, client: u64) -> String {
    format!("{}/built-{client}:1", kitchen.registry.host())
}

/// One build with files of its own, whose result must be right: a directory of the client, or an image of the registry.
fn builds(served: &Served, client: u64, round: u64) {
    let kitchen = &served.kitchen;
    let (seed, context) = (client * ROUNDS + round, format!("context-{client}"));
    kitchen.world.write(&format!("{context}/noise"), noise(seed, SIZE));
    let dockerfile = format!(
        "FROM busybox AS made\nCOPY noise /\nRUN echo {seed} > /seed\nRUN cp /noise /copied\n\
         FROM busybox\nRUN echo shared > /shared\nRUN --mount=type=cache,target=/cache echo {seed} >> /cache/seeds\n\
         COPY --from=made /copied /seed /\nRUN mv /copied /again\n"
    );
    kitchen.world.write(&format!("{context}/Dockerfile"), dockerfile);
    kitchen.who.own(&kitchen.world, &context);
    let out = format!("out-{client}");
    let output = match client % 2 {
        0 => format!("type=local,dest={out}"),
        _ => format!("type=image,name={},push=true", image(kitchen, client)),
    };
    let line = format!(
        "build --progress=plain --frontend=dockerfile.v0 --local=context={context} --local=dockerfile={context}"
    );
    served.buildctl(&format!("{line} --output {output}")).succeeds();
    if client.is_multiple_of(2) {
        assert!(fs::read(kitchen.world.path(format!("{out}/again"))).unwrap() == noise(seed, SIZE), "{seed}");
        assert_eq!(fs::read_to_string(kitchen.world.path(format!("{out}/seed"))).unwrap(), format!("{seed}\n"));
    }
}

/// What `du` says that the cache takes up.
fn used(served: &Served) -> u64 {
    let text = served.buildctl("du").succeeds().text();
    let total = text.lines().find_map(|line| line.strip_prefix("Total:")).unwrap().trim().to_owned();
    let digits = total.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap();
    let unit = match &total[digits..] {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        unit => panic!("{unit}"),
    };
    (total[..digits].parse::<f64>().unwrap() * unit) as u64
}

/// Whoever asked may have gone: it is done, and the log says what is waited for.
#[test]
fn a_daemon_that_ends_finishes_pruning_that_was_asked_for() {
    let who = if is_root() { Who::Root } else { Who::Single };
    // It has to take longer than the daemon needs to hear of its end.
    let told = [50_000, 500_000].iter().any(|files| {
        let Some(served) = Served::new(who, "") else { return true };
        served.kitchen.dockerfile(&format!(
            "FROM busybox\nRUN mkdir /d && cd /d && seq 1 {files} | busybox xargs busybox touch\n"
        ));
        served.build("").succeeds();
        let trash = served.kitchen.world.path("daemon/hullworks");
        let trash = fs::read_dir(trash.join("snapshots")).unwrap().map(|dir| dir.unwrap().path().join("trash"));
        let trash: Vec<PathBuf> = trash.filter(|dir| dir.is_dir()).collect();
        let client = served.buildctl("prune --all").starts();
        eventually(|| trash.iter().any(|dir| fs::read_dir(dir).is_ok_and(|mut dir| dir.next().is_some())));
        client.signal("KILL");
        drop(client.ends());
        served.daemon.signal("TERM");
        let ended = served.daemon.ends_soon();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let left = trash.iter().flat_map(|dir| fs::read_dir(dir).unwrap()).count();
        assert_eq!(left, 0, "{ended:?}");
        ended.stderr.contains("waiting for the end of pruning that was asked for")
    });
    assert!(told, "nobody was told what the daemon waited for");
}

/// In megabytes, as BuildKit's flags have it; no disk has 10^9 of them.
#[test]
fn pruning_goes_as_far_as_it_is_told() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    served.kitchen.dockerfile("FROM busybox\nRUN echo hi > /f\n");
    served.build("").succeeds();
    let before = used(&served);
    for keeps in ["--free-storage 1", "--free-storage 1000000000 --keep-storage-min 1000000000", "--keep-storage 1000"]
    {
        served.buildctl(&format!("prune --all {keeps}")).succeeds();
        assert_eq!(used(&served), before, "{keeps}");
    }
    served.buildctl("prune --all --free-storage 1000000000").succeeds();
    assert_eq!(used(&served), 0);
    let kitchen = served.ends();
    // The daemon's own flag: what is reserved, what is to be free, and the most, of all that is not in use.
    let step = |served: &Served| {
        served.kitchen.dockerfile("FROM busybox\nRUN busybox dd if=/dev/zero of=/f bs=1M count=20\n");
        served.build("").succeeds();
    };
    let served = Served::again(kitchen, "--oci-worker-gc-keepstorage=0,0,1000");
    step(&served);
    assert!(used(&served) > 20_000_000);
    let workers = served.buildctl("debug workers --verbose").succeeds().text();
    assert!(workers.contains("1GB") || workers.contains("1000MB") || workers.contains("1.0"), "{workers}");
    // Rules that are new are met at the start, without a build.
    let served = Served::again(served.ends(), "--oci-worker-gc-keepstorage=0,0,1");
    eventually(|| used(&served) < 20_000_000);
    step(&served);
    eventually(|| used(&served) < 20_000_000);
    served.ends();
}

/// Filters look for these words, which have no values of build arguments.
#[test]
fn cache_mounts_have_the_description_that_buildkit_gives_them() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    served.kitchen.dockerfile(
        "FROM busybox\nARG U\nRUN --mount=type=cache,target=/other echo $U > /u\n\
         RUN --mount=type=cache,id=named,target=/o echo > /o/f\n",
    );
    served.build("--opt build-arg:U=mine").succeeds();
    let described = || {
        let du = served.buildctl("du --verbose").succeeds().text();
        assert!(!du.contains("mine"), "{du}");
        let mounts = du.lines().filter(|line| line.contains("cached mount"));
        let mut mounts: Vec<_> = mounts.map(|line| line.trim_start_matches("Description:").trim().to_owned()).collect();
        mounts.sort();
        mounts
    };
    let named = "cached mount /o from exec /bin/sh -c echo > /o/f with id \"/named\"";
    let other = "cached mount /other from exec /bin/sh -c echo $U > /u with id \"//other\"";
    assert_eq!(described(), [named, other]);
    served.buildctl("prune --filter").args(["type==exec.cachemount,description~=\"with id .*named\""]).succeeds();
    assert_eq!(described(), [other]);
    served.ends();
}
