//! Builds with an engine of the test in place of the real one.

use std::collections::BTreeMap;
use std::sync::Mutex;

use base::progress::{Event, Vertex};
use base::{Digest, Secret};
use engine::{ExportRequest, Frontend};
use session::Output;
use session::local::SecretSource;

use super::*;
use crate::display::Mode;
use crate::spec::output::Export;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn plan(mode: Mode) -> BuildPlan {
    let (options, inputs) = Default::default();
    BuildPlan::new(Frontend::Named { name: "dockerfile.v0".to_owned(), options, inputs }, mode)
}

fn failed_vertex(error: &str) -> Event {
    let now = Some(jiff::Timestamp::now());
    Event::Vertex(Vertex {
        digest: Digest::of("v"),
        inputs: Vec::new(),
        name: "[1/1] RUN false".to_owned(),
        started: now,
        completed: now,
        cached: false,
        error: Some(error.to_owned()),
        group: None,
    })
}

#[tokio::test]
async fn the_engine_gets_everything_and_the_files_get_its_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let mut plan = plan(Mode::Plain);
    plan.dirs.insert("context".to_owned(), "/proc".into());
    plan.secrets.insert("s".to_owned(), SecretSource::Value(Secret::new("v")));
    let request = ExportRequest { kind: "oci".to_owned(), attrs: BTreeMap::new() };
    plan.exports.push(Export { request, output: Output::Directory("/out".into()) });
    plan.metadata_file = Some(path("m.json"));
    plan.iid_file = Some(path("iid"));
    plan.ref_file = Some(path("ref"));
    plan.trace = Some(path("trace"));

    let environment = Environment::default();
    let cancel = CancellationToken::new();
    drive(plan, &environment, Box::new(Shared::default()), cancel, |request| async move {
        let session = &request.session;
        assert_eq!(session.id().len(), 25);
        let local = session.local("context").await.expect("asked");
        assert!(matches!(local, Some(session::LocalDir::InPlace(path)) if path == Path::new("/proc")));
        assert_eq!(session.secret("s").await.expect("asked"), Some(Secret::new("v")));
        assert!(matches!(session.output(0).await.expect("asked"), Output::Directory(dir) if dir == Path::new("/out")));
        assert_eq!(session.credentials("example.com").await.expect("asked"), None);
        assert_eq!(request.exports[0].kind, "oci");
        request.progress.emit(failed_vertex("x"));
        let answer = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let exporter_response = BTreeMap::from([
            answer("containerimage.digest", "sha256:d"),
            answer("containerimage.config.digest", "sha256:c"),
        ]);
        Ok(SolveResponse { exporter_response, ..SolveResponse::default() })
    })
    .await
    .expect("built");

    let read = |name: &str| std::fs::read_to_string(path(name)).expect("written");
    assert_eq!(read("iid"), "sha256:c");
    assert!(read("m.json").contains("\"containerimage.digest\": \"sha256:d\""));
    assert_eq!(read("ref").len(), 25);
    assert!(read("trace").starts_with("{\"vertexes\":[{"));
}

#[tokio::test]
async fn failures_carry_the_output_of_their_steps() {
    let out = Shared::default();
    let environment = Environment::default();
    let result =
        drive(plan(Mode::Plain), &environment, Box::new(out), CancellationToken::new(), |request| async move {
            request.progress.emit(failed_vertex("exit code: 1"));
            Err(Fault::user("exit code: 1"))
        });
    let failure = result.await.expect_err("failed");
    assert_eq!(failure.fault.to_string(), "failed to solve: exit code: 1");
    assert_eq!(failure.steps.len(), 1);
    assert_eq!(failure.steps[0].name, "[1/1] RUN false");
}

#[tokio::test]
async fn a_cancelled_build_has_no_failed_steps() {
    let cancel = CancellationToken::new();
    let environment = Environment::default();
    let result =
        drive(plan(Mode::Plain), &environment, Box::new(Shared::default()), cancel.clone(), |request| async move {
            request.progress.emit(failed_vertex("interrupted"));
            cancel.cancel();
            request.cancel.cancelled().await;
            Err(Fault::cancelled())
        });
    let failure = result.await.expect_err("cancelled");
    assert_eq!(failure.fault.to_string(), "failed to solve: build cancelled");
    assert!(failure.steps.is_empty());
}

/// Without a reader, whoever opens a pipe waits.
#[tokio::test]
async fn a_pipe_that_nobody_reads_can_be_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
    let mut plan = plan(Mode::Plain);
    plan.metadata_file = Some(pipe.clone());
    let (cancel, out) = (CancellationToken::new(), Box::new(Shared::default()));
    let failure = drive(plan, &Environment::default(), out, cancel.clone(), |_| async move {
        cancel.cancel();
        Ok(SolveResponse::default())
    })
    .await
    .expect_err("nobody reads");
    assert_eq!(failure.fault.to_string(), format!("cannot write `{}`: build cancelled", pipe.display()));
    // The thread of it ends.
    std::fs::read(&pipe).expect("read");

    let mut plan = self::plan(Mode::Plain);
    plan.trace = Some(pipe.clone());
    let (cancel, out) = (CancellationToken::new(), Box::new(Shared::default()));
    cancel.cancel();
    let built = |_| async move { panic!("it was built") };
    let failure = drive(plan, &Environment::default(), out, cancel, built).await.expect_err("nobody reads");
    assert_eq!(failure.fault.to_string(), format!("cannot write `{}`: build cancelled", pipe.display()));
    std::fs::read(&pipe).expect("read");
}

#[test]
fn references_differ() {
    let many: std::collections::HashSet<String> = (0..100).map(|_| session::random_id()).collect();
    assert_eq!(many.len(), 100);
}
