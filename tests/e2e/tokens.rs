//! Clients that fetch the tokens of registries themselves: their passwords never reach the daemon.
//!
//! Who asked the token server is told by how: a daemon tries a password by GET first, a client by POST.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use hyper::Method;
use serde_json::json;
use testkit::registry::{Action, Auth, Fault, Registry};

use crate::daemon::Served;
use crate::harness::{Invocation, has_tool, is_root};
use crate::kitchen::Kitchen;
use crate::who::Who;

fn served(registry: Registry, toml: impl FnOnce(&Registry) -> String) -> Option<Served> {
    let kitchen = Kitchen::with(if is_root() { Who::Root } else { Who::Single }, registry)?;
    for name in ["buildkitd", "buildctl"] {
        std::os::unix::fs::symlink("hullworks", kitchen.world.path(name)).unwrap();
    }
    let host = kitchen.registry.host();
    let more = toml(&kitchen.registry);
    kitchen.world.write("buildkitd.toml", format!("[registry.\"{host}\"]\n{more}\n"));
    // By its own name, so that nobody else is asked for it where this registry says no.
    kitchen.dockerfile(&format!("FROM {host}/library/busybox\nRUN echo hi > /hi\n"));
    logs_in(&kitchen, "aHVsbDp3b3Jrcw==");
    Some(Served::again(kitchen, ""))
}

/// Writes docker's configuration. The first login is `hull:works`.
fn logs_in(kitchen: &Kitchen, login: &str) {
    let config = json!({"auths": {kitchen.registry.host(): {"auth": login}}});
    kitchen.world.write("docker/config.json", config.to_string());
    kitchen.who.own(&kitchen.world, "docker");
}

fn pushes(served: &Served, more: &str) -> Invocation {
    let host = served.kitchen.registry.host();
    let build = served.build(&format!("--output type=image,name={host}/x/y:1,push=true {more}"));
    build.env("DOCKER_CONFIG", served.kitchen.world.path("docker"))
}

/// How often the token server was asked with a password: by the daemon, by clients.
fn passwords(registry: &Registry) -> (usize, usize) {
    let asked = registry.requests().into_iter().filter(|request| request.path == "/token");
    let (get, post): (Vec<_>, Vec<_>) = asked.partition(|request| request.method == Method::GET);
    (get.iter().filter(|request| request.is_authorized()).count(), post.len())
}

#[test]
fn passwords_stay_with_the_client() {
    let Some(served) = served(Registry::builder().auth(Auth::token()).start(), |_| "http = true".to_owned()) else {
        return;
    };
    let (kitchen, registry) = (&served.kitchen, &served.kitchen.registry);
    pushes(&served, "").succeeds();
    assert!(registry.manifest("x/y", "1").is_some());
    let (daemon, client) = passwords(registry);
    assert!(daemon == 0 && client > 0, "the daemon used a password {daemon} times, the client {client} times");
    let seed = fs::metadata(kitchen.world.path("docker/.token_seed")).unwrap();
    assert_eq!(seed.permissions().mode() & 0o777, 0o600);

    // The same client is given what was fetched for it before; another one with the same name and host is not.
    registry.forget_requests();
    pushes(&served, "").succeeds();
    assert_eq!(passwords(registry), (0, 0), "tokens are fetched again and again");
    fs::remove_file(kitchen.world.path("docker/.token_seed")).unwrap();
    pushes(&served, "").succeeds();
    let (daemon, client) = passwords(registry);
    assert!(daemon == 0 && client > 0, "another client was given its tokens");

    if has_tool("docker-buildx") {
        registry.forget_requests();
        registry.revoke_tokens();
        let run = |line: &str| {
            let docker = kitchen.world.path("docker");
            let client = kitchen.who.run(&kitchen.world, "docker-buildx").env("DOCKER_CONFIG", docker);
            client.args(line.split_whitespace()).succeeds()
        };
        let socket = kitchen.world.path("b.sock");
        run(&format!("create --name b --driver remote unix://{}", socket.display()));
        fs::remove_file(kitchen.world.path("docker/.token_seed")).unwrap();
        run(&format!("--builder b build --progress=plain --push -t {}/x/z:1 context", registry.host()));
        assert!(registry.manifest("x/z", "1").is_some());
        let (daemon, client) = passwords(registry);
        assert!(daemon == 0 && client > 0, "the daemon used a password {daemon} times, the client {client} times");
    } else {
        println!("docker-buildx is not asked: it is not there");
    }

    // A client may leave it to the daemon.
    registry.forget_requests();
    registry.revoke_tokens();
    pushes(&served, "").env("BUILDKIT_NO_CLIENT_TOKEN", "1").succeeds();
    let (daemon, client) = passwords(registry);
    assert!(daemon > 0 && client == 0, "the daemon used a password {daemon} times, the client {client} times");

    logs_in(kitchen, "aHVsbDp3cm9uZw==");
    registry.revoke_tokens();
    fs::remove_file(kitchen.world.path("docker/.token_seed")).unwrap();
    pushes(&served, "").fails().says("cannot get a token for");
    served.ends();
}

#[test]
fn token_servers_are_trusted_as_the_client_says() {
    let registry = Registry::builder().tls().auth(Auth::token()).start();
    let Some(served) = served(registry, |registry| format!("ca = [{:?}]", registry.ca())) else { return };
    let registry = &served.kitchen.registry;
    pushes(&served, "").fails().says("cannot get a token for");
    let context = format!("host=https://{}", registry.host());
    let ca = registry.ca();
    pushes(&served, &format!("--registry-auth-tlscontext {context},ca={}", ca.display())).succeeds();
    assert!(registry.manifest("x/y", "1").is_some());
    registry.revoke_tokens();
    pushes(&served, &format!("--registry-auth-tlscontext {context},insecure=true")).succeeds();
    assert_eq!(passwords(registry).0, 0, "the daemon used the password");
    served.ends();
}

#[test]
fn passwords_are_not_sent_on_to_where_a_token_server_redirects() {
    let Some(served) = served(Registry::builder().auth(Auth::token()).start(), |_| "http = true".to_owned()) else {
        return;
    };
    let (registry, abroad) = (&served.kitchen.registry, Registry::builder().auth(Auth::token()).start());
    registry.fault(Fault::on(Method::POST, "/token", Action::Redirect(abroad.url())));
    let words = format!("/token`: it redirects to `{}`, where the login must not go", abroad.url());
    pushes(&served, "").fails().says(&words);
    assert!(abroad.requests().is_empty(), "{:?}", abroad.requests());
    registry.behave();
    pushes(&served, "").succeeds();
    served.ends();
}
