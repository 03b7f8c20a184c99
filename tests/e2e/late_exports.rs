//! Outputs that a client names when the result is there, after a look into it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base::{Fault, Secret};
use proto::Message as _;
use proto::moby::buildkit::v1 as wire;
use proto::moby::buildkit::v1::frontend;
use proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use proto::solve::{SOLVE, Solve};
use session::local::LocalSession;
use session::{Blobs, CacheDir, Credentials, LateExport, LocalDir, Output, Session};
use tonic::transport::Channel;

use crate::daemon::Served;
use crate::guest::{Guest, Most};
use crate::harness::{eventually, is_root};
use crate::who::Who;

/// A client that looks into the result, and then wants it as an archive.
struct Late {
    inner: LocalSession,
    bridge: LlbBridgeClient<Channel>,
    seen: Arc<Mutex<Vec<String>>>,
    verdict: Verdict,
}

/// What the client says of the outputs in the end.
#[derive(Clone, Copy)]
enum Verdict {
    Good,
    Bad(&'static str),
    /// Nothing, for ever.
    Silence,
}

#[async_trait]
impl Session for Late {
    fn id(&self) -> &str {
        self.inner.id()
    }

    async fn late_exports(
        &self,
        about: BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<LateExport>, Fault> {
        let read = frontend::ReadFileRequest {
            r#ref: refs[0].clone(),
            file_path: "/f".to_owned(),
            ..frontend::ReadFileRequest::default()
        };
        let read =
            self.bridge.clone().read_file(of(self.id(), read)).await.map_err(|status| Fault::user(status.message()))?;
        let content = String::from_utf8(read.into_inner().data).unwrap();
        self.seen.lock().unwrap().extend([content, format!("{} trees, {} words", refs.len(), about.len())]);
        let attrs = [("compression", "zstd"), ("name", "example.com/late:1")];
        let attrs = attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
        Ok(vec![LateExport { kind: "oci".to_owned(), attrs }])
    }

    async fn exported(&self, response: &BTreeMap<String, String>) -> Result<(), Fault> {
        self.seen.lock().unwrap().push(response["image.name"].clone());
        match self.verdict {
            Verdict::Good => Ok(()),
            Verdict::Bad(why) => Err(Fault::user(why)),
            Verdict::Silence => std::future::pending().await,
        }
    }

    async fn local(&self, name: &str) -> Result<Option<LocalDir>, Fault> {
        self.inner.local(name).await
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault> {
        self.inner.secret(id).await
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Fault> {
        self.inner.credentials(host).await
    }

    async fn content(&self, name: &str) -> Result<Option<Arc<dyn Blobs>>, Fault> {
        self.inner.content(name).await
    }

    async fn cache(&self, dir: &str) -> Result<Option<Arc<dyn CacheDir>>, Fault> {
        self.inner.cache(dir).await
    }

    async fn output(&self, index: usize) -> Result<Output, Fault> {
        self.inner.output(index).await
    }
}

/// A call of the build of that name.
fn of<T>(build: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().unwrap());
    request
}

/// What the client saw, and how its build ended. Who hears no verdict gives up.
fn builds(served: &Served, asks: bool, verdict: Verdict) -> (Vec<String>, Result<(), tonic::Status>) {
    let world = &served.kitchen.world;
    let guest = Guest::new(&world.path("b.sock"));
    let mut bridge = LlbBridgeClient::new(guest.channel.clone());
    let seen = Arc::new(Mutex::new(Vec::new()));
    // One of its own: a build that has just ended still answers to its name.
    let id = session::random_id();
    let inner = LocalSession::new(&id)
        .with_dir("context", world.path("context"))
        .with_output(Output::Directory(world.path("asked")))
        .with_output(Output::File(world.path("late.tar")));
    let joined = guest.joins(Late { inner, bridge: bridge.clone(), seen: seen.clone(), verdict }, Most::ALL);
    let solve = wire::SolveRequest {
        r#ref: id.clone(),
        session: joined.id.clone(),
        exporters: vec![wire::Exporter { r#type: "local".to_owned(), ..wire::Exporter::default() }],
        enable_session_exporter: asks,
        ..wire::SolveRequest::default()
    };
    let drives = async {
        // The build is there a moment after it was asked for: the daemon waits for it.
        let pong = bridge.ping(of(&id, frontend::PingRequest {})).await.unwrap().into_inner();
        assert!(pong.llb_caps.iter().any(|cap| cap.id == "exporter.session" && cap.enabled), "it is not told");
        let request = frontend::SolveRequest {
            frontend: "dockerfile.v0".to_owned(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..Default::default()
        };
        let context = [("contextkey", "context"), ("dockerfilekey", "context")];
        let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let request = frontend::SolveRequest { frontend_opt: context.into_iter().collect(), ..request };
        let result = bridge.solve(of(&id, request)).await.unwrap().into_inner().result;
        bridge.r#return(of(&id, frontend::ReturnRequest { result, error: None })).await.unwrap();
    };
    let mut control = guest.control();
    let heard = seen.clone();
    let solved = guest.waits(async {
        let gives_up = async {
            while heard.lock().unwrap().len() < 3 || !matches!(verdict, Verdict::Silence) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            (solved, ()) = async { tokio::join!(control.solve(solve), drives) } => solved.map(drop),
            () = gives_up => Err(tonic::Status::cancelled("gave up")),
        }
    });
    if matches!(verdict, Verdict::Silence) {
        // Its session is still there, but the build's name is free.
        let again = || wire::SolveRequest {
            r#ref: id.clone(),
            definition: Some(proto::pb::Definition::default()),
            ..wire::SolveRequest::default()
        };
        let is_free = || guest.waits(async { guest.control().solve(again()).await });
        eventually(|| !is_free().is_err_and(|status| status.code() == tonic::Code::AlreadyExists));
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, solved)
}

#[test]
fn a_client_says_what_it_wants_when_the_result_is_there() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    let (kitchen, world) = (&served.kitchen, &served.kitchen.world);
    kitchen.file("f", "content");
    kitchen.dockerfile("FROM scratch\nCOPY f /f\n");
    let (seen, solved) = builds(&served, true, Verdict::Good);
    solved.unwrap();
    assert_eq!(seen[0], "content");
    assert!(seen[1].starts_with("1 trees, ") && !seen[1].ends_with(" 0 words"), "{seen:?}");
    assert_eq!(seen[2..], ["example.com/late:1"]);
    assert_eq!(fs::read_to_string(world.path("asked/f")).unwrap(), "content");
    let listed = world.run("tar").args(["xOf", "late.tar", "index.json"]).succeeds().text();
    assert!(listed.contains("example.com/late:1"), "{listed}");
    let all = world.run("tar").args(["xOf", "late.tar", "--wildcards", "blobs/sha256/*"]).succeeds().stdout;
    let names = |text: &str| all.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(names("tar+zstd") && !names("tar+gzip"), "layers are as it wanted them");
    fs::remove_file(world.path("late.tar")).unwrap();

    // What it does not accept has failed.
    let (_, solved) = builds(&served, true, Verdict::Bad("that is not what was wanted"));
    let refused = solved.unwrap_err();
    assert!(refused.message().contains("that is not what was wanted"), "{refused:?}");
    fs::remove_file(world.path("late.tar")).unwrap();

    // Who does not want to be asked is not.
    let (seen, solved) = builds(&served, false, Verdict::Good);
    solved.unwrap();
    assert!(seen.is_empty() && !world.path("late.tar").exists(), "{seen:?}");

    // A client that says nothing and gives up leaves no build behind.
    let (seen, solved) = builds(&served, true, Verdict::Silence);
    assert_eq!((seen.len(), solved.unwrap_err().message()), (3, "gave up"));
    served.ends();
}

/// Nobody is asked what is to become of a result that there is not.
#[test]
fn a_build_that_fails_asks_its_client_nothing() {
    let who = if is_root() { Who::Root } else { Who::Single };
    let Some(served) = Served::new(who, "") else { return };
    served.kitchen.dockerfile("FROM scratch\nCOPY nothing /\n");
    let (seen, solved) = builds(&served, true, Verdict::Good);
    assert!(solved.unwrap_err().message().contains("nothing"));
    assert!(seen.is_empty(), "{seen:?}");
    served.ends();
}

#[test]
fn new_wishes_of_clients_are_refused_by_name() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let guest = Guest::new(&served.kitchen.world.path("b.sock"));
    let request = wire::SolveRequest {
        r#ref: session::random_id(),
        definition: Some(proto::pb::Definition::default()),
        ..wire::SolveRequest::default()
    };
    let ends = |wish: Solve| {
        let message = wish.encode_to_vec();
        let length = (message.len() as u32).to_be_bytes();
        guest.calls(SOLVE, [&[0], length.as_slice(), message.as_slice()].concat())
    };
    let plain = Solve { request, ..Solve::default() };
    assert_eq!(ends(plain.clone()), ("0".to_owned(), String::new()));
    assert_eq!(ends(Solve { compatibility_version: 30, ..plain.clone() }), ("0".to_owned(), String::new()));
    let (code, message) = ends(Solve { compatibility_version: 20, ..plain.clone() });
    assert!(code != "0" && message.contains("compatibility-version%20"), "{code}: {message}");
    let (code, message) = ends(Solve { proxy_network: true, ..plain });
    assert!(code != "0" && message.contains("--proxy-network"), "{code}: {message}");
    // Of definitions, and of what the client drives itself.
    for definition in [Some(proto::pb::Definition::default()), None] {
        for (name, value, is_refused) in [
            ("attest:sbom", "", true),
            ("attest:provenance", "mode=max", true),
            ("attest:provenance", "mode=min,inline-only=true", false),
        ] {
            let request = wire::SolveRequest {
                r#ref: session::random_id(),
                frontend_attrs: [(name.to_owned(), value.to_owned())].into(),
                definition: definition.clone(),
                exporters: vec![wire::Exporter { r#type: "image".to_owned(), ..wire::Exporter::default() }],
                ..wire::SolveRequest::default()
            };
            if !is_refused && definition.is_none() {
                // It would wait for what the client makes.
                continue;
            }
            let (code, message) = ends(Solve { request, ..Solve::default() });
            assert_eq!(code != "0", is_refused, "{name}={value}: {code}: {message}");
            assert!(!is_refused || message.contains(name), "{message}");
        }
    }
    drop(guest);
    served.ends();
}
