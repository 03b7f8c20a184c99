//! What probes hear of a daemon: while it serves, while it ends, and when it does not know what they ask for.

use std::fs;

use proto::Message as _;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;
use proto::health::{HealthCheckRequest, HealthListRequest};
use proto::reflection::{Answer, Answered, Asked, METHOD, Question, SERVICES};
use tonic::Code;

use crate::daemon::Served;
use crate::guest::Guest;
use crate::harness::is_root;
use crate::who::Who;

/// Tools that know nothing of the daemon ask it for its services.
#[test]
fn services_are_listed() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let guest = Guest::new(&served.kitchen.world.path("b.sock"));
    for service in SERVICES {
        let ask = |asked: Asked| {
            let question = Question { asked: Some(asked), ..Question::default() }.encode_to_vec();
            let framed = [&[0][..], &u32::try_from(question.len()).unwrap().to_be_bytes(), &question].concat();
            let (code, words, body) = guest.hears(&format!("/{service}/{METHOD}"), framed);
            assert_eq!((&code[..], &words[..]), ("0", ""), "{service}");
            Answer::decode(&body[5..]).unwrap().answered.unwrap()
        };
        let Answered::Services(listed) = ask(Asked::Services("*".to_owned())) else { panic!("{service}: no list") };
        let names: Vec<&str> = listed.services.iter().map(|service| &service.name[..]).collect();
        assert!(names.contains(&"moby.buildkit.v1.Control") && names.len() == 7, "{names:?}");
        let Answered::Error(error) = ask(Asked::Symbol(names[0].to_owned())) else { panic!("{service}: no error") };
        assert!(error.message.contains(".proto"), "{error:?}");
    }
    drop(guest);
    served.ends();
}

#[test]
fn probes_hear_the_truth() {
    let Some(served) = Served::new(if is_root() { Who::Root } else { Who::Single }, "") else { return };
    let guest = Guest::new(&served.kitchen.world.path("b.sock"));
    let check = |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut health = HealthClient::new(guest.channel.clone());
        guest.waits(async { health.check(request).await }).map(|answer| answer.into_inner().status())
    };
    for service in ["", "moby.buildkit.v1.Control"] {
        assert_eq!(check(service).unwrap(), ServingStatus::Serving, "`{service}`");
    }
    assert_eq!(check("no.such.Service").unwrap_err().code(), Code::NotFound);
    let mut health = HealthClient::new(guest.channel.clone());
    let list = guest.waits(async { health.list(HealthListRequest {}).await }).unwrap().into_inner();
    assert_eq!(list.statuses[""].status(), ServingStatus::Serving);
    let watch = guest.waits(async { health.watch(HealthCheckRequest::default()).await }).unwrap();
    let mut watch = watch.into_inner();
    let mut hears = || guest.waits(async { watch.message().await }).unwrap().map(|answer| answer.status());
    assert_eq!(hears(), Some(ServingStatus::Serving));

    // Told to end, it says so to who watches and to who asks; the build that runs is finished.
    let kitchen = &served.kitchen;
    let mount = "--mount=type=cache,target=/c";
    kitchen.dockerfile(&format!("FROM busybox\nRUN {mount} echo begun; sleep 3; echo ended > /e\n"));
    let build = served.build("--output type=local,dest=out").starts();
    build.waits_for("begun");
    served.daemon.signal("TERM");
    assert_eq!(hears(), Some(ServingStatus::NotServing));
    assert_eq!(check("").unwrap(), ServingStatus::NotServing);
    let ended = build.ends();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_to_string(kitchen.world.path("out/e")).unwrap(), "ended\n");
    drop(guest);
    let daemon = served.daemon.ends_soon();
    assert_eq!(daemon.code, Some(0), "{daemon:?}");
}
