//! A bug in an op ends the build that met it, with words, instead of leaving it to wait.
//!
//! The program is its own harness: the engine's executor starts it again as init.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test harness")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::progress::Discard;
use base::{Fault, Kind, Platform, Secret};
use engine::{Engine, EngineOptions, Frontend, SnapshotterChoice, SolveRequest};
use llb::build::{Builder, Constraints, Defaults, Local};
use proto::Message as _;
use session::{Credentials, LocalDir, Output, Session};
use sys::userns::Level;
use tokio_util::sync::CancellationToken;

const NAME: &str = "a_panic_is_a_fault_of_the_build";

fn main() -> ExitCode {
    if executor::init::is_requested() {
        executor::init::main();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    if args.iter().any(|arg| !arg.starts_with('-') && !NAME.contains(arg.as_str())) {
        println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out");
        return ExitCode::SUCCESS;
    }
    let isolation = sys::userns::enter().unwrap();
    if isolation.level == Level::Unprivileged {
        println!("skipped: no isolation: {}", isolation.why);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(a_panic_is_a_fault_of_the_build(isolation));
    println!("test {NAME} ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

/// A client that has a bug.
struct Buggy;

#[async_trait]
impl Session for Buggy {
    fn id(&self) -> &str {
        "buggy"
    }

    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault> {
        panic!("no idea of {name}")
    }

    async fn secret(&self, _: &str) -> Result<Option<Secret>, Fault> {
        Ok(None)
    }

    async fn credentials(&self, _: &str) -> Result<Option<Credentials>, Fault> {
        Ok(None)
    }

    async fn output(&self, _: usize) -> Result<Output, Fault> {
        Ok(Output::None)
    }
}

async fn a_panic_is_a_fault_of_the_build(isolation: sys::userns::Isolation) {
    let state = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        step_log: engine::LogLimits::default(),
        root: state.path().to_owned(),
        config: config::Config::default(),
        snapshotter: SnapshotterChoice::Copy,
        lock_wait: Duration::ZERO,
        proxy: BTreeMap::new(),
        isolation,
    };
    let engine = Engine::open(options).await.unwrap();
    let mut builder = Builder::new();
    let local = builder.local(&Local { name: "context".into(), ..Local::default() }, Constraints::default());
    let defaults = Defaults { platform: Platform::host(), local_unique: "here".into() };
    let definition = builder.marshal(&local, &defaults).unwrap().encode_to_vec();

    let request = SolveRequest {
        frontend: Frontend::Llb(definition),
        exports: Vec::new(),
        cache_imports: Vec::new(),
        cache_exports: Vec::new(),
        entitlements: Vec::new(),
        session: Arc::new(Buggy),
        progress: Arc::new(Discard),
        cancel: CancellationToken::new(),
    };
    let fault = engine.solve(request).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Internal);
    assert_eq!(fault.cause(), "a bug in the builder: no idea of context");
    engine.close().await;
}
