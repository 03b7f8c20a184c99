//! Registries that want to know who asks, by a daemon that has no credentials: the client of the build has.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use testkit::image::TestImage;
use testkit::registry::{Auth, Registry, TokenAuth};

use crate::daemon::Served;
use crate::harness::{has_tool, is_root};
use crate::who::Who;

const REPO: &str = "team/app";

fn anybody() -> Who {
    if is_root() { Who::Root } else { Who::Single }
}

#[test]
fn a_client_s_login_is_used_for_its_build_and_no_other() {
    let token = || Auth::Token(TokenAuth { anonymous_pull: false, ..TokenAuth::default() });
    for (auth, login) in [
        (Auth::basic(), ("auth", STANDARD.encode("hull:works"))),
        (token(), ("auth", STANDARD.encode("hull:works"))),
        (token(), ("identitytoken", "refresh-me".to_owned())),
    ] {
        let what = format!("{auth:?} by {}", login.0);
        let registry = Registry::builder().auth(auth).start();
        let Some(served) = Served::new(anybody(), "") else { return };
        let (kitchen, host) = (&served.kitchen, registry.host());
        TestImage::busybox().unwrap().put(&registry, REPO, "v1");
        let entry = format!("\"{}\":\"{}\"", login.0, login.1);
        kitchen.world.write("knows/config.json", format!("{{\"auths\":{{\"{host}\":{{{entry}}}}}}}"));
        let wrong = STANDARD.encode("hull:works-not");
        kitchen.world.write("errs/config.json", format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{wrong}\"}}}}}}"));
        kitchen.world.write("nobody/config.json", "{}");
        for dir in ["knows", "errs", "nobody"] {
            kitchen.who.own(&kitchen.world, dir);
        }
        kitchen
            .dockerfile(&format!("FROM {host}/{REPO}:v1\nRUN read u < /proc/sys/kernel/random/uuid; echo $u > /new\n"));
        let push = format!("--output type=image,name={host}/out/app:1,push=true");
        let build = |who: &str, line: &str| served.build(line).env("DOCKER_CONFIG", kitchen.world.path(who)).ends();
        let refused = |who: &str, line: &str| {
            let ended = build(who, line);
            assert_eq!(ended.code, Some(1), "{what}, {who}: {ended:?}");
            assert!(!ended.stderr.contains("works-not"), "{ended:?}");
            ended
        };
        // Not even the metadata.
        for who in ["nobody", "errs"] {
            refused(who, "").says("   1 | >>> FROM ").says(&format!("{host}/{REPO}:v1"));
        }
        let ended = build("knows", &push);
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        assert!(registry.manifest("out/app", "1").is_some(), "{what}");
        assert!(registry.requests().iter().any(|request| request.path.contains("/blobs/") && request.is_authorized()));
        // What one client may see is not shown to the next, though all of it is here by now.
        for who in ["nobody", "errs"] {
            refused(who, "--output type=local,dest=stolen");
        }
        assert!(!kitchen.world.path("stolen/new").exists(), "{what}");

        // A push wants one as well.
        kitchen.dockerfile("FROM busybox\nRUN echo > /new\n");
        let elsewhere = format!("--output type=image,name={host}/out/other:1,push=true");
        for who in ["nobody", "errs"] {
            refused(who, &elsewhere).says(&format!("failed to push {host}/out/other:1"));
        }
        assert!(registry.manifest("out/other", "1").is_none());
        // And caches: written by who may, read by who may.
        let cache = format!("type=registry,ref={host}/cache/app");
        let ended = build("knows", &format!("{elsewhere} --export-cache {cache},mode=max"));
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        served.buildctl("prune --all").succeeds();
        let ended = build("knows", &format!("--import-cache {cache}"));
        assert_eq!(ended.code, Some(0), "{what}: {ended:?}");
        ended.says("CACHED");

        // Nothing of it stays with the daemon.
        for secret in [login.1.as_str(), "works"] {
            let found = kitchen.world.run("grep").args(["-r", "-l", "-a", "-w", secret, "daemon"]).ends();
            assert_eq!((found.code, found.text().as_str()), (Some(1), ""), "{what}: {found:?}");
        }
        let said = served.daemon.said();
        assert!(!said.contains(&login.1) && !said.contains("refresh-me"), "{said}");
        if has_tool("docker-buildx") {
            buildx_logs_in(&served, &host);
        }
        served.ends();
    }
}

fn buildx_logs_in(served: &Served, host: &str) {
    let kitchen = &served.kitchen;
    let socket = format!("unix://{}", kitchen.world.path("b.sock").display());
    let buildx = |args: &str| {
        let client = kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", kitchen.world.path("knows"));
        client.args(args.split_whitespace())
    };
    buildx(&format!("create --name b --driver remote {socket}")).succeeds();
    kitchen.dockerfile(&format!("FROM {host}/{REPO}:v1\nRUN echo by buildx > /new\n"));
    buildx(&format!("--builder b build --progress=plain -t {host}/out/buildx:1 --push context")).succeeds();
    buildx("--builder b build --progress=plain -o type=local,dest=bx context").succeeds();
    assert_eq!(fs::read_to_string(kitchen.world.path("bx/new")).unwrap(), "by buildx\n");
}
