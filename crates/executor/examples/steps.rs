//! How long a step takes that does nothing: `steps ROOT [COUNT [AT_ONCE]]`, where ROOT is a directory with a program
//! `/bin/true`. Run it as root or as an ordinary user.
#![expect(clippy::print_stdout, reason = "a tool for developers")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use executor::{CancellationToken, Executor, Step, StepIo};
use sys::mount::{FsView, Overlay};

fn main() {
    if executor::init::is_requested() {
        executor::init::main();
    }
    let args: Vec<String> = std::env::args().collect();
    let root = PathBuf::from(args.get(1).expect("ROOT"));
    let count: usize = args.get(2).map_or(200, |count| count.parse().expect("COUNT"));
    let at_once: usize = args.get(3).map_or(1, |count| count.parse().expect("AT_ONCE"));
    let isolation = sys::userns::enter().expect("isolation");
    println!("{:?}: {}", isolation.level, isolation.why);
    let dir = std::env::temp_dir().join(format!("hw-steps-{}", std::process::id()));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let executor = executor::open(dir.join("state"), &isolation).expect("an executor");
        let views: Vec<FsView> = (0..at_once)
            .map(|n| {
                let [upper, work] = ["upper", "work"].map(|name| dir.join(format!("{n}/{name}")));
                std::fs::create_dir_all(&upper).expect("a directory");
                std::fs::create_dir_all(&work).expect("a directory");
                let (userxattr, upper) = (isolation.nested, Some((upper, work)));
                FsView::Overlay(Overlay { lower: vec![root.clone()], upper, userxattr, volatile: true })
            })
            .collect();
        let began = Instant::now();
        let tasks: Vec<_> =
            views.into_iter().map(|view| tokio::spawn(many(executor.clone(), view, count / at_once))).collect();
        for task in tasks {
            task.await.expect("a task");
        }
        let took = began.elapsed().as_secs_f64() * 1000.0;
        println!("{count} steps, {at_once} at once: {took:.0} ms, {:.2} ms each", took / count as f64);
    });
    drop(runtime);
    std::fs::remove_dir_all(dir).expect("a clean-up");
}

async fn many(executor: Arc<dyn Executor>, view: FsView, count: usize) {
    for _ in 0..count {
        let step = Step::new(view.clone(), ["/bin/true"]);
        let exit = executor.run(step, StepIo::discard(), CancellationToken::new()).await.expect("a step");
        assert!(exit.is_success());
    }
}
