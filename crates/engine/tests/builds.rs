//! Builds by the engine itself, with clients that no program has: one with a bug, one whose files change at the worst moment.
//!
//! The program is its own harness: the engine's executor starts it again as init.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test harness")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use base::progress::{Discard, Event, Sink};
use base::{Fault, Kind, Platform, Secret};
use engine::{Engine, EngineOptions, ExportRequest, Frontend, PruneOptions, SnapshotterChoice, SolveRequest};
use llb::build::{Builder, Constraints, CopyInfo, Defaults, FileAction, Http, Local, State};
use proto::Message as _;
use session::local::LocalSession;
use session::{Credentials, LocalDir, Output, Session};
use sys::userns::{Isolation, Level};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

type Test = (&'static str, fn(&Runtime, &Isolation));

const TESTS: [Test; 7] = [
    ("a_panic_is_a_fault_of_the_build", |runtime, isolation| runtime.block_on(panics(isolation))),
    ("closing_names_what_does_not_end", |runtime, isolation| runtime.block_on(stuck(isolation))),
    ("a_file_that_changes_once_is_read_again", |runtime, isolation| runtime.block_on(changes_once(isolation))),
    ("a_file_that_always_changes_is_an_error", |runtime, isolation| runtime.block_on(always_changes(isolation))),
    ("a_file_of_the_web_is_downloaded_when_it_changed", |runtime, isolation| runtime.block_on(downloads(isolation))),
    ("nothing_has_a_root_and_no_files", |runtime, isolation| runtime.block_on(nothing(isolation))),
    ("what_describes_an_image_stays_for_its_record", |runtime, isolation| runtime.block_on(documents(isolation))),
];

fn main() -> ExitCode {
    if executor::init::is_requested() {
        executor::init::main();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let isolation = sys::userns::enter().unwrap();
    if isolation.level == Level::Unprivileged {
        println!("skipped: no isolation: {}", isolation.why);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut passed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        test(&runtime, &isolation);
        passed += 1;
        println!("test {name} ... ok");
    }
    let left = TESTS.len() - passed;
    println!("\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {left} filtered out");
    ExitCode::SUCCESS
}

async fn engine(state: &Path, isolation: &Isolation) -> Engine {
    let options = EngineOptions {
        root: state.to_owned(),
        config: config::Config::default(),
        snapshotter: SnapshotterChoice::Copy,
        lock_wait: Duration::ZERO,
        reserve: engine::Reserve::Keep,
        proxy: BTreeMap::new(),
        path: None,
        step_log: engine::LogLimits::default(),
        isolation: isolation.clone(),
    };
    Engine::open(options).await.unwrap()
}

fn request(frontend: Frontend, session: impl Session + 'static, progress: Arc<dyn Sink>) -> SolveRequest {
    SolveRequest {
        reference: String::new(),
        frontend,
        exports: Vec::new(),
        late_exports: false,
        cache_imports: Vec::new(),
        cache_exports: Vec::new(),
        entitlements: Vec::new(),
        source_policies: Vec::new(),
        session: Arc::new(session),
        progress,
        cancel: CancellationToken::new(),
    }
}

/// A client that does something odd when it is asked for a directory.
struct Odd<F>(F);

#[async_trait]
impl<F: Fn(&str) + Send + Sync> Session for Odd<F> {
    fn id(&self) -> &str {
        "odd"
    }

    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault> {
        (self.0)(name);
        Ok(None)
    }

    async fn secret(&self, _: &str) -> Result<Option<Secret>, Fault> {
        Ok(None)
    }

    async fn credentials(&self, _: &str) -> Result<Option<Credentials>, Fault> {
        Ok(None)
    }

    async fn content(&self, _: &str) -> Result<Option<Arc<dyn session::Blobs>>, Fault> {
        Ok(None)
    }

    async fn cache(&self, _: &str) -> Result<Option<Arc<dyn session::CacheDir>>, Fault> {
        Ok(None)
    }

    async fn output(&self, _: usize) -> Result<Output, Fault> {
        Ok(Output::None)
    }
}

/// LLB that reads a directory of the client.
fn reading(name: &str) -> Frontend {
    let mut builder = Builder::new();
    let local = builder.local(&Local { name: name.into(), ..Local::default() }, Constraints::default());
    let defaults = Defaults { platform: Platform::host(), local_unique: "here".into() };
    Frontend::Llb { definition: builder.marshal(&local, &defaults).unwrap().encode_to_vec(), options: BTreeMap::new() }
}

async fn panics(isolation: &Isolation) {
    let state = tempfile::tempdir().unwrap();
    let engine = engine(state.path(), isolation).await;
    let session = Odd(|name: &str| panic!("no idea of {name}"));
    let fault = engine.solve(request(reading("context"), session, Arc::new(Discard))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Internal);
    assert_eq!(fault.cause(), "a bug in the builder: no idea of context");
    assert_eq!(engine.close().await, [""; 0]);
}

/// As a file system that went away: cancelling changes nothing.
async fn stuck(isolation: &Isolation) {
    let state = tempfile::tempdir().unwrap();
    let engine = engine(state.path(), isolation).await;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (released, cancel) = (Mutex::new(released), CancellationToken::new());
    let ends = cancel.clone();
    let session = Odd(move |_: &str| {
        ends.cancel();
        tokio::task::block_in_place(|| _ = released.lock().unwrap().recv());
    });
    let request = SolveRequest { cancel, ..request(reading("context"), session, Arc::new(Discard)) };
    let fault = engine.solve(request).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Cancelled);
    assert_eq!(engine.clone().close_within(Duration::ZERO).await, ["local://context"]);
    drop(release);
    assert_eq!(engine.close().await, [""; 0]);
}

/// A directory of which `f` is written anew each time when a copy of it begins: after its digest was taken.
struct Changing {
    dir: tempfile::TempDir,
    engine: Engine,
    builds: AtomicUsize,
}

/// What a build came to, and what was said of its copies.
struct Built {
    result: Result<String, Fault>,
    started: usize,
    cached: usize,
    failed: usize,
}

impl Changing {
    async fn new(isolation: &Isolation) -> Changing {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(&dir.path().join("state"), isolation).await;
        std::fs::create_dir(dir.path().join("context")).unwrap();
        let changing = Changing { dir, engine, builds: AtomicUsize::new(0) };
        std::fs::write(changing.path("context/Dockerfile"), "FROM scratch\nCOPY f /f\n").unwrap();
        std::fs::write(changing.path("context/f"), "0").unwrap();
        changing
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds; the file changes for the first `changes` copies.
    async fn build(&self, changes: usize) -> Built {
        let number = self.builds.fetch_add(1, Ordering::Relaxed);
        let (context, out) = (self.path("context"), self.path(&format!("out{number}")));
        let session = LocalSession::new(format!("session{number}"))
            .with_dir("context", &context)
            .with_dir("dockerfile", &context)
            .with_output(Output::Directory(out.clone()));
        // Started, cached, failed.
        let seen = Arc::new(Mutex::new([0; 3]));
        let counts = seen.clone();
        let sink = move |event: Event| {
            let Event::Vertex(vertex) = event else { return };
            if !vertex.name.contains("COPY f /f") || vertex.started.is_none() {
                return;
            }
            let mut counts = counts.lock().unwrap();
            match (vertex.completed, vertex.cached, &vertex.error) {
                (None, ..) => {
                    counts[0] += 1;
                    if counts[0] <= changes {
                        std::fs::write(context.join("f"), counts[0].to_string()).unwrap();
                    }
                }
                (_, true, _) => counts[1] += 1,
                (_, _, Some(error)) if error != base::progress::CANCELLED => counts[2] += 1,
                _ => {}
            }
        };
        let frontend =
            Frontend::Named { name: "dockerfile.v0".into(), options: BTreeMap::new(), inputs: BTreeMap::new() };
        let mut request = request(frontend, session, Arc::new(sink));
        request.exports.push(ExportRequest { kind: "local".into(), attrs: BTreeMap::new() });
        let result = self.engine.solve(request).await.map(|_| std::fs::read_to_string(out.join("f")).unwrap());
        let [started, cached, failed] = *seen.lock().unwrap();
        Built { result, started, cached, failed }
    }
}

async fn changes_once(isolation: &Isolation) {
    let changing = Changing::new(isolation).await;
    let built = changing.build(1).await;
    assert_eq!((built.result.unwrap().as_str(), built.started, built.failed), ("1", 2, 0));
    // What was remembered is remembered of what was copied.
    let built = changing.build(0).await;
    assert_eq!((built.result.unwrap().as_str(), built.started, built.cached), ("1", 0, 1));
    std::fs::write(changing.path("context/f"), "0").unwrap();
    let built = changing.build(0).await;
    assert_eq!((built.result.unwrap().as_str(), built.started, built.cached), ("0", 1, 0));
    assert_eq!(changing.engine.close().await, [""; 0]);
}

async fn always_changes(isolation: &Isolation) {
    let changing = Changing::new(isolation).await;
    let built = changing.build(usize::MAX).await;
    let fault = built.result.unwrap_err();
    assert_eq!(fault.cause(), "failed to change files: `/f` changed while it was read");
    assert_eq!(fault.get_hint(), Some("the directory changes while it is built: build again when it is at rest"));
    assert_eq!(fault.places().len(), 1, "the line of the Dockerfile");
    assert_eq!((built.started, built.failed), (4, 1));
    let built = changing.build(0).await;
    assert_eq!((built.result.unwrap().as_str(), built.started), ("4", 1));
    assert_eq!(changing.engine.close().await, [""; 0]);
}

/// A web server with one file.
struct Server {
    address: String,
    /// Its ETag and content.
    file: Arc<Mutex<(&'static str, &'static str)>>,
    /// Methods, and what was known of the file.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let file = Arc::new(Mutex::new(("\"one\"", "1")));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let server = Server { address, file: file.clone(), asked: asked.clone() };
        // It ends with the program.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let known = head.lines().find_map(|line| line.strip_prefix("if-none-match: ")).unwrap_or("-");
                let method = head.split(' ').next().unwrap();
                asked.lock().unwrap().push(format!("{method} {known}"));
                let (etag, content) = *file.lock().unwrap();
                let status = match (head.contains(" /gone "), known == etag) {
                    (true, _) => "404 Not Found",
                    (false, true) => "304 Not Modified",
                    (false, false) => "200 OK",
                };
                let (length, content) = if status.starts_with("200") { (content.len(), content) } else { (0, "") };
                let content = if method == "head" { "" } else { content };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nETag: {etag}\r\nLast-Modified: Sunday, 06-Nov-94 08:49:37 GMT\r\n\
                     Content-Length: {length}\r\nConnection: close\r\n\r\n{content}"
                );
                // Whoever hangs up early has seen enough.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        server
    }

    /// What was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// LLB of one of its files.
    fn download(&self, path: &str, checksum: Option<base::Digest>) -> Frontend {
        let mut builder = Builder::new();
        let http = Http { url: format!("{}{path}", self.address), filename: String::new(), checksum };
        let state = builder.http(&http, Constraints::default());
        marshalled(&builder, &state)
    }
}

fn marshalled(builder: &Builder, state: &State) -> Frontend {
    let defaults = Defaults { platform: Platform::host(), local_unique: "here".into() };
    Frontend::Llb { definition: builder.marshal(state, &defaults).unwrap().encode_to_vec(), options: BTreeMap::new() }
}

/// The content of `f`, and when it last changed.
async fn read(engine: &Engine, frontend: Frontend) -> Result<(String, i64), Fault> {
    let session = Arc::new(LocalSession::new("reader".to_owned()));
    let (progress, cancel) = (Arc::new(Discard), CancellationToken::new());
    let bridge = engine
        .begin(engine::Begin {
            reference: String::new(),
            session,
            progress,
            cancel,
            entitlements: Vec::new(),
            source_policies: Vec::new(),
        })
        .await?;
    let result = bridge.solve(frontend).await?;
    let file = result.all()[0];
    let bytes = bridge.read_file(file, "/f", None).await?;
    let mtime = bridge.stat_file(file, "/f").await?.mtime;
    Ok((String::from_utf8(bytes).unwrap(), mtime.secs))
}

async fn downloads(isolation: &Isolation) {
    const MODIFIED: i64 = 784_111_777;
    let state = tempfile::tempdir().unwrap();
    let engine = engine(state.path(), isolation).await;
    let server = Server::start();
    let one = ("1".to_owned(), MODIFIED);
    // A build that comes while the one before is being put away may share its work, and asks nothing.
    let asks = async || loop {
        let read = read(&engine, server.download("/f", None)).await.unwrap();
        match server.asked() {
            asked if asked.is_empty() => {}
            asked => return (read, asked),
        }
    };
    assert_eq!(asks().await, (one.clone(), vec!["get -".to_owned()]));
    assert_eq!(asks().await, (one, vec!["head \"one\"".to_owned()]), "it is the same, and not sent again");
    *server.file.lock().unwrap() = ("\"two\"", "22");
    let all = ["head \"one\"", "get \"one\""].map(str::to_owned).to_vec();
    assert_eq!(asks().await, (("22".to_owned(), MODIFIED), all));
    let wanted = Some(base::Digest::of("22"));
    assert_eq!(read(&engine, server.download("/f", wanted)).await.unwrap().0, "22");
    let wrong = read(&engine, server.download("/f", Some(base::Digest::of("1")))).await.unwrap_err();
    assert!(wrong.cause().starts_with("digest mismatch for http://127.0.0.1:"), "{wrong}");
    let gone = read(&engine, server.download("/gone", None)).await.unwrap_err();
    assert!(gone.cause().ends_with("/gone`: invalid response status 404"), "{gone}");
    assert_eq!(engine.close().await, [""; 0]);
}

async fn nothing(isolation: &Isolation) {
    let state = tempfile::tempdir().unwrap();
    let engine = engine(state.path(), isolation).await;
    let copied = |path: &str| {
        let mut builder = Builder::new();
        let copy = FileAction::Copy(Box::new(CopyInfo::new(&State::scratch(), path, "/")));
        let state = builder.file(&State::scratch(), vec![copy], Constraints::default());
        request(marshalled(&builder, &state), Odd(|_: &str| ()), Arc::new(Discard))
    };
    engine.solve(copied("/")).await.unwrap();
    let fault = engine.solve(copied("/f")).await.unwrap_err();
    assert!(fault.cause().ends_with("/f: no such file or directory"), "{fault}");
    assert_eq!(engine.close().await, [""; 0]);
}

/// Whoever keeps a record of a build reads them when it has ended, and others clean at any time.
async fn documents(isolation: &Isolation) {
    let state = tempfile::tempdir().unwrap();
    let engine = engine(state.path(), isolation).await;
    let scratch = Frontend::Llb { definition: Vec::new(), options: BTreeMap::new() };
    let mut request = request(scratch, Odd(|_: &str| ()), Arc::new(Discard));
    request.exports.push(ExportRequest { kind: "image".into(), attrs: BTreeMap::new() });
    let response = engine.solve(request).await.unwrap();
    let documents = ["containerimage.digest", "containerimage.config.digest"];
    let documents = documents.map(|name| response.exporter_response[name].parse().unwrap());
    let left = async || {
        engine.prune(PruneOptions { all: true, ..PruneOptions::default() }).await.1.unwrap();
        documents.map(|document| engine.store().content().has(&document))
    };
    assert_eq!(left().await, [true; 2]);
    drop(response);
    assert_eq!(left().await, [false; 2]);
    assert_eq!(engine.close().await, [""; 0]);
}
