//! Registries that want a login which only the client has: it reaches the daemon by the session, for one build.

use std::os::unix::fs::symlink;

use hyper::Method;
use serde_json::{Value, json};
use testkit::image::{File, TestImage, tar};
use testkit::registry::{Action, Auth, Fault, Registry, TokenAuth};

use crate::buildx::{NEWEST, OLDER};
use crate::daemon::Served;
use crate::frontends::anywhere;
use crate::harness::{Ended, Invocation, is_root, or_skip, tools};
use crate::kitchen::Kitchen;
use crate::who::Who;

/// `hull:works`, and another password.
const RIGHT: &str = "aHVsbDp3b3Jrcw==";
const WRONG: &str = "aHVsbDpwNHNzdzByZA==";

/// Only who logs in gets anything.
fn closed() -> Auth {
    Auth::Token(TokenAuth { anonymous_pull: false, ..TokenAuth::default() })
}

/// A daemon that knows how the registry is reached, and no login.
fn served(auth: Auth) -> Option<Served> {
    let kitchen =
        Kitchen::with(if is_root() { Who::Root } else { Who::Single }, Registry::builder().auth(auth).start())?;
    for name in ["buildkitd", "buildctl"] {
        symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let host = kitchen.registry.host();
    kitchen.world.write("buildkitd.toml", format!("[registry.\"{host}\"]\nhttp = true\n"));
    let note = File { path: "note", mode: 0o644, data: b"private".to_vec(), link: None };
    let layers = vec![TestImage::busybox().unwrap().layers[0].clone(), tar(&[note])];
    TestImage::of_layers(layers).put(&kitchen.registry, "team/base", "v1");
    kitchen.dockerfile(&format!("FROM {host}/team/base:v1\nRUN cp /note /copied\n"));
    for (name, login) in [
        ("right", json!({ "auth": RIGHT })),
        ("wrong", json!({ "auth": WRONG })),
        ("refresh", json!({ "auth": "aHVsbDo=", "identitytoken": "refresh-me" })),
    ] {
        logs_in(&kitchen, name, &json!({"auths": {host.as_str(): login}}));
    }
    logs_in(&kitchen, "nobody", &json!({}));
    Some(Served::again(kitchen, ""))
}

/// A directory with docker's configuration.
fn logs_in(kitchen: &Kitchen, name: &str, config: &Value) {
    kitchen.world.write(&format!("{name}/config.json"), config.to_string());
    kitchen.who.own(&kitchen.world, name);
}

/// Builds on the private image as one who has such a configuration, and pushes to a repository.
fn builds(served: &Served, client: &str, login: &str, repository: &str) -> Invocation {
    let world = &served.kitchen.world;
    let name = format!("{}/{repository}:1", served.kitchen.registry.host());
    if client == "buildctl" {
        let output = format!("--output type=image,name={name},push=true");
        return served.build(&output).env("DOCKER_CONFIG", world.path(login));
    }
    let docker = |line: &str| {
        let run = served.kitchen.who.run(world, client).env("DOCKER_CONFIG", world.path(login));
        run.env("BUILDX_CONFIG", world.path("buildx")).args(line.split_whitespace())
    };
    if !world.path("buildx").exists() {
        docker(&format!("create --name b --driver remote unix://{}", world.path("b.sock").display())).succeeds();
    }
    docker(&format!("--builder b build --progress=plain --push -t {name} context"))
}

fn each_client_logs_in(auth: fn() -> Auth, logins: &[&str]) {
    for client in ["buildctl", NEWEST, OLDER] {
        if client != "buildctl" && or_skip(tools(&[client])).is_none() {
            continue;
        }
        let Some(served) = served(auth()) else { return };
        let registry = &served.kitchen.registry;
        let refused = |login: &str| {
            let ended = builds(&served, client, login, "x/refused").fails();
            assert!(ended.stderr.contains("team/base:v1") && ended.stderr.contains("401"), "{login}: {ended:?}");
            assert!(registry.manifest("x/refused", "1").is_none());
            ended
        };
        let mut said: Vec<Ended> = vec![refused("nobody"), refused("wrong")];
        for login in logins {
            let repository = format!("x/{login}");
            said.push(builds(&served, client, login, &repository).succeeds());
            let (_, manifest) = registry.manifest(&repository, "1").unwrap();
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            assert_eq!(manifest["layers"].as_array().unwrap().len(), 3, "{client}, {login}: {manifest}");
        }
        // What the daemon has by now is not for everybody: who may not ask the registry does not get it.
        said.extend([refused("nobody"), refused("wrong")]);
        for hidden in ["hull:works", RIGHT, "p4ssw0rd", WRONG, "refresh-me", "token-1"] {
            let found = anywhere(&served.kitchen.world.path("daemon"), hidden);
            assert_eq!(found, None, "{client}: `{hidden}` is in the daemon's state");
            assert!(!served.daemon.said().contains(hidden), "{client}: `{hidden}` is in the daemon's log");
            let ended = said.iter().find(|ended| ended.stderr.contains(hidden));
            assert!(ended.is_none(), "`{hidden}` is said: {ended:?}");
        }
        served.ends();
    }
}

#[test]
fn clients_log_in_by_a_password() {
    each_client_logs_in(Auth::basic, &["right"]);
}

#[test]
fn clients_log_in_where_tokens_are_handed_out() {
    each_client_logs_in(closed, &["right", "refresh"]);
}

/// Two registries, two logins: each is told to its own registry only.
#[test]
fn a_login_is_for_one_registry() {
    let Some(served) = served(Auth::basic()) else { return };
    let (kitchen, base) = (&served.kitchen, &served.kitchen.registry);
    let auth = Auth::Basic { user: "other".to_owned(), password: "0th3r".to_owned() };
    let target = Registry::builder().auth(auth).start();
    // Two ports of one machine are two registries.
    let mut config = json!({"auths": {target.host(): {"auth": "b3RoZXI6MHRoM3I="}}});
    let line = format!("--output type=image,name={}/y:1,push=true,registry.insecure=true", target.host());
    let build = || served.build(&line).env("DOCKER_CONFIG", kitchen.world.path("both"));
    logs_in(kitchen, "both", &config);
    build().fails().says("team/base:v1");
    config["auths"][base.host()] = json!({"auth": RIGHT});
    logs_in(kitchen, "both", &config);
    build().succeeds();
    assert!(target.manifest("y", "1").is_some());
    for (registry, own) in [(base, RIGHT), (&target, "b3RoZXI6MHRoM3I=")] {
        let requests = registry.requests();
        let told = requests.iter().map(|request| request.header("authorization")).filter(|told| !told.is_empty());
        assert!(told.clone().count() > 0);
        assert!(told.clone().all(|told| told == format!("Basic {own}")), "{:?}", told.collect::<Vec<_>>());
    }
    assert!(base.requests().iter().all(|request| request.method != Method::PUT), "something was pushed there");
    served.ends();
}

/// Where a redirect leads no login is told, whatever is demanded there: not that of this build, and not that of the next one.
#[test]
fn a_login_is_not_for_where_redirects_lead() {
    let Some(served) = served(Auth::Open) else { return };
    let (registry, storage) = (&served.kitchen.registry, Registry::start());
    let challenge = format!(r#"Bearer realm="{}/token",service="hullworks-test""#, storage.url());
    let headers = vec![("www-authenticate", challenge)];
    storage.fault(Fault::anywhere("/v2/", Action::Answer { status: 401, headers, body: String::new() }));
    registry.fault(Fault::on(Method::GET, "/blobs/", Action::Redirect(storage.url())));
    // The daemon uses the password, or the client fetches tokens with it.
    let builds = |of_daemon: bool| {
        let build = builds(&served, "buildctl", "right", "x/y");
        if of_daemon { build.env("BUILDKIT_NO_CLIENT_TOKEN", "1") } else { build }
    };
    for of_daemon in [true, false] {
        let ended = builds(of_daemon).fails();
        ended.says(&format!("`{}`, where a redirect leads, answered 401 (unauthorized)", storage.host()));
        ended.hints("no login is sent to where a redirect leads: ask those who run the registry");
        assert!(!ended.stderr.contains("secret-signature"), "{ended:?}");
    }
    let asked = storage.requests().len();
    assert!(asked > 0);
    registry.behave();
    for of_daemon in [true, false] {
        builds(of_daemon).succeeds();
    }
    let requests = storage.requests();
    assert_eq!(requests.len(), asked, "{requests:?}");
    assert!(requests.iter().all(|r| !r.is_authorized() && r.path.starts_with("/v2/")), "{requests:?}");
    served.ends();
}
