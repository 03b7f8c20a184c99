use std::collections::BTreeMap;

use base::{Fault, Kind};
use proptest::prelude::*;

use crate::{Ask, ImageRequest, Outcome, ReadRequest, Request, ResolvedImage};

/// A Dockerfile, and images that all look alike.
struct Toy<'a>(&'a str);

impl Ask for Toy<'_> {
    fn resolve_images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, Fault>> {
        let resolve = |request: &ImageRequest| {
            if request.reference.contains("missing") {
                return Err(Fault::new(Kind::Remote, "registry answered 404"));
            }
            let config = br#"{"architecture":"amd64","os":"linux","config":{"OnBuild":["USER x"]},
                "history":[{"created_by":"x"}]}"#;
            Ok(ResolvedImage {
                reference: request.reference.clone(),
                digest: None,
                config: config.to_vec(),
                instead: None,
            })
        };
        requests.iter().map(resolve).collect()
    }

    fn read_files(&self, request: &ReadRequest) -> Result<Vec<Option<Vec<u8>>>, Fault> {
        let read = |path: &String| (path == "Dockerfile").then(|| self.0.as_bytes().to_vec());
        Ok(request.paths.iter().map(read).collect())
    }

    fn source_time(&self, source: &llb::pb::SourceOp, log_name: &str) -> Result<Option<i64>, Fault> {
        // What has a time says so itself.
        let words = format!("{} {log_name}", source.identifier);
        Ok(words.split(['/', '#', ' ']).find_map(|word| word.strip_prefix("at-")?.parse().ok()))
    }

    fn warn(&self, _: &crate::Warning) {}
}

fn build(dockerfile: &str, options: &[(&str, &str)]) -> Result<Outcome, Fault> {
    let options: BTreeMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let platforms = [base::Platform::new("linux", "amd64", "")];
    let request = Request { options: &options, session: "s", build_platforms: &platforms };
    crate::build(&request, &Toy(dockerfile))
}

fn built(dockerfile: &str, options: &[(&str, &str)]) -> crate::Built {
    match build(dockerfile, options).expect(dockerfile) {
        Outcome::Built(built) => built,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_the_target_needs_is_asked_for() {
    let dockerfile = "FROM missing AS a\nRUN x\nFROM b\nCOPY --from=missing2 / /\nFROM scratch AS c\nFROM c";
    assert_eq!(built(dockerfile, &[("target", "c")]).platforms.len(), 1);
    let fault = build(dockerfile, &[("target", "a")]).expect_err("not there");
    assert_eq!(fault.to_string(), "no stage `missing`, and no image: registry answered 404");
    let fault = build(dockerfile, &[("target", "d")]).expect_err("not there");
    assert_eq!(fault.to_string(), "target stage \"d\" could not be found");
    assert_eq!(fault.get_hint(), Some("the stages are `a`, `c`"));
}

#[test]
fn devices_are_part_of_a_step() {
    let dockerfile =
        "FROM b\nRUN --device=v.com/a=b,required --device=name=class1 --device=v.com/a=*,required=false x\n";
    let built = built(dockerfile, &[]);
    let graph = llb::Graph::new(built.platforms[0].definition.clone(), llb::Limits::default()).expect("a graph");
    let mut steps = graph.vertices().iter().filter_map(|vertex| match &vertex.op.op {
        Some(llb::pb::op::Op::Exec(exec)) => Some((exec, vertex.metadata.caps.get("exec.meta.cdi"))),
        _ => None,
    });
    let (exec, cap) = steps.next().expect("a step");
    let devices: Vec<_> = exec.cdi_devices.iter().map(|device| (device.name.as_str(), device.optional)).collect();
    assert_eq!(devices, [("v.com/a=b", false), ("class1", true), ("v.com/a=*", true)]);
    assert_eq!(cap, Some(&true));
}

#[test]
fn passwords_of_addresses_are_in_no_name() {
    let dockerfile = "FROM b\nARG LOGIN=me:s3cret\nADD https://${LOGIN}@host/x https://git@host/y:1@2 /to/\n";
    let built = built(dockerfile, &[]);
    let graph = llb::Graph::new(built.platforms[0].definition.clone(), llb::Limits::default()).expect("a graph");
    let names: Vec<String> = graph.vertices().iter().map(llb::Vertex::name).collect();
    let shown = "[2/3] ADD https://me:xxxxx@host/x https://git@host/y:1@2 /to/";
    assert!(names.iter().any(|name| name == shown), "{names:?}");
    assert!(names.iter().all(|name| !name.contains("s3cret")), "{names:?}");
}

#[test]
fn another_frontend_is_reported() {
    let gateway = |dockerfile: &str, options: &[(&str, &str)]| match build(dockerfile, options).expect(dockerfile) {
        Outcome::Gateway(gateway) => Some((gateway.image, gateway.cmdline, gateway.place.is_some())),
        Outcome::Built(_) | Outcome::Answered(_) => None,
    };
    let other = "# syntax=me/front:1 --x\nFROM scratch";
    assert_eq!(gateway(other, &[]), Some(("me/front:1".into(), "me/front:1 --x".into(), true)));
    assert_eq!(gateway(other, &[("cmdline", "me/front:1")]), None);
    let own = "# syntax=docker/dockerfile:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nFROM scratch";
    assert_eq!(gateway(own, &[]), None);
    assert_eq!(gateway("# syntax = docker.io/docker/dockerfile-upstream:master\nFROM scratch", &[]), None);
    let forced = [("build-arg:BUILDKIT_SYNTAX", "me/front:2")];
    assert_eq!(gateway("FROM scratch", &forced), Some(("me/front:2".into(), "me/front:2".into(), false)));
}

#[test]
fn metadata_has_buildkits_names() {
    let metadata = built("FROM a", &[("build-arg:SOURCE_DATE_EPOCH", "7")]).metadata();
    let names: Vec<&str> = metadata.keys().map(String::as_str).collect();
    assert_eq!(names, ["containerimage.base.config", "containerimage.config", "refs.platforms", "source.date.epoch"]);
    let platforms = r#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#;
    assert_eq!(metadata["refs.platforms"], platforms.as_bytes());
    let metadata = built("FROM scratch", &[("platform", "linux/arm64,linux/arm/v7")]).metadata();
    let names: Vec<&str> = metadata.keys().map(String::as_str).collect();
    assert_eq!(names, ["containerimage.config/linux/arm/v7", "containerimage.config/linux/arm64", "refs.platforms"]);
}

#[test]
fn contexts_and_stages_have_times() {
    const NAME: &str = "build-arg:SOURCE_DATE_EPOCH";
    let time = |dockerfile: &str, options: &[(&str, &str)]| built(dockerfile, options).platforms[0].epoch;
    let named = |value| [(NAME, "src"), ("context:src", value)];
    for (value, expected) in [
        ("https://h/at-7", Some(7)),
        ("https://h/x", None),
        ("https://h/r.git#at-8", Some(8)),
        // These have none, and are not looked at.
        ("docker-image://at-9", None),
        ("local:at-9", None),
    ] {
        assert_eq!(time("FROM scratch AS src\nRUN x\nFROM b", &named(value)), expected, "{value}");
    }
    let fault = build("FROM b", &named("target:x")).expect_err("no context");
    assert!(fault.to_string().contains("context:src"), "{fault}");

    let stage = |lines: &str| format!("ARG SOURCE_DATE_EPOCH=src\nARG at=at-1\nFROM scratch AS Src\n{lines}\nFROM b\n");
    for (lines, expected) in [
        ("ADD https://h/at-7 /", Some(7)),
        ("ADD https://h/x /", None),
        ("ADD https://h/$at /", Some(1)),
        ("ARG at=at-2\nADD https://h/${at} /", Some(2)),
        ("ARG SOURCE_DATE_EPOCH\nADD --keep-git-dir https://h/r.git#at-8$SOURCE_DATE_EPOCH /", Some(8)),
    ] {
        assert_eq!(time(&stage(lines), &[]), expected, "{lines}");
    }
    assert_eq!(time(&stage("ARG at\nADD https://h/${at} /"), &[("build-arg:at", "at-3")]), Some(3));
    assert_eq!(time(&stage("ADD https://h/at-7 /"), &[(NAME, "5")]), Some(5));
    for (lines, words, line) in [
        ("", "must contain exactly one remote ADD", 3),
        ("COPY a /", "does not meet source-only requirements: unsupported COPY instruction", 4),
        ("ADD https://h/a /\nRUN x", "unsupported RUN instruction", 5),
        ("ADD https://h/a /\nADD https://h/b /", "must contain exactly one remote ADD", 5),
        ("ADD https://h/a https://h/b /", "exactly one remote ADD source", 4),
        ("ADD a /", "must be a single HTTP(S) or Git ADD", 4),
        ("ADD --checksum=x https://h/a /", "--checksum", 4),
    ] {
        let fault = build(&stage(lines), &[]).expect_err(lines);
        assert!(fault.to_string().contains(words), "{lines}: {fault}");
        assert_eq!(fault.places()[0].1, [base::SourceSpan::lines(line, line)], "{lines}");
    }
    let fault = build("FROM b AS src\nADD https://h/at-7 /", &[(NAME, "src")]).expect_err("stands on an image");
    assert!(fault.to_string().contains("must use FROM scratch"), "{fault}");
    let fault = build("FROM scratch", &[(NAME, "src")]).expect_err("nothing has the name");
    assert!(fault.to_string().contains("invalid SOURCE_DATE_EPOCH: src"), "{fault}");
}

#[test]
fn places_and_hints_reach_the_fault() {
    let fault = build("FROM scratch AS base\nFROM bsae:missing", &[]).expect_err("not there");
    assert_eq!(fault.places()[0].1, [base::SourceSpan::lines(2, 2)]);
    assert_eq!(fault.places()[0].0.name, "Dockerfile");
    let fault = build("FROM scratch AS missing1\nFROM missing2", &[]).expect_err("not there");
    assert_eq!(fault.get_hint(), Some("did you mean stage `missing1` (line 1)?"));
}

#[test]
fn a_mistyped_stage_is_no_matter_of_credentials() {
    let fault = base::Fault::new(base::Kind::Remote, "registry answered 401").hint("log in");
    let (doing, hint) =
        ("no stage `biulder`, and no image".to_owned(), Some("did you mean stage `builder`?".to_owned()));
    let error = crate::error::Error::Ask { doing, spans: Vec::new(), hint, fault: Box::new(fault) };
    let fault = error.into_fault(None);
    assert_eq!(fault.to_string(), "no stage `biulder`, and no image: registry answered 401");
    assert_eq!(fault.get_hint(), Some("did you mean stage `builder`?"));
}

#[test]
fn many_stages_and_steps_need_no_stack() {
    let mut dockerfile = String::from("FROM scratch AS s0\n");
    for i in 1..2_000 {
        dockerfile.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} a /\n", i - 1, i - 1));
    }
    assert_eq!(built(&dockerfile, &[]).platforms[0].definition.def.len(), 2_000);
}

#[test]
fn short_dockerfiles_cannot_ask_for_endless_memory() {
    let mut growing = String::from("FROM scratch\n");
    (0..3_000).for_each(|i| growing.push_str(&format!("ENV K{i}=v\nRUN x\n")));
    let mut ports = String::from("FROM scratch\n");
    (0..1_000).for_each(|_| ports.push_str("EXPOSE 0-65535\n"));
    let mut stages = String::from("FROM scratch AS s0\n");
    (1..1_500).for_each(|i| stages.push_str(&format!("FROM s{} AS s{i}\nENV K{i}=v\n", i - 1)));
    assert_eq!(built(&stages, &[]).platforms[0].definition.def.len(), 0);
    for (dockerfile, part) in [(growing, "environments of the steps"), (ports, "history of the image")] {
        let fault = build(&dockerfile, &[]).expect_err("too large");
        assert!(fault.to_string().contains(part) && fault.places().len() == 1, "{fault}");
    }
}

const PIECES: &[&str] = &[
    "FROM scratch\n",
    "FROM a AS b\n",
    "FROM b\n",
    "FROM $A\n",
    "ARG A=b\n",
    "ARG A\n",
    "ENV A=${A:-$B} C=d\n",
    "RUN x $A\n",
    "RUN <<E\n#!x\nE\n",
    "RUN --mount=type=cache,target=$A,uid=1 x\n",
    "RUN --mount=from=b,target=/x,rw y\n",
    "RUN --mount=type=secret,id=a,env=A --mount=type=ssh z\n",
    "COPY a b ./\n",
    "COPY --from=b --link / /\n",
    "COPY --from=0 a b\n",
    "COPY --parents a/./b ${A#?} /\n",
    "ADD https://x/y.git z.tar /\n",
    "COPY <<E /x\n$A\nE\n",
    "WORKDIR $A\n",
    "WORKDIR ..\n",
    "USER $A\n",
    "EXPOSE 1-3 $A\n",
    "VOLUME $A /v\n",
    "LABEL a=\"$A\"\n",
    "CMD [\"a\"]\n",
    "ENTRYPOINT x\n",
    "HEALTHCHECK --interval=1s CMD x\n",
    "SHELL [\"a\"]\n",
    "STOPSIGNAL 9\n",
    "ONBUILD COPY --from=b a /\n",
    "ONBUILD RUN x\n",
    "# escape=`\n",
    "MAINTAINER x\n",
];

proptest! {
    #[test]
    fn any_order_of_instructions_is_lowered_or_refused_with_its_lines(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 1..25)
    ) {
        let dockerfile = format!("FROM a AS b\n{}", pieces.concat());
        let count = dockerfile.lines().count() as u32;
        match build(&dockerfile, &[("platform", "linux/amd64,linux/arm64"), ("no-cache", "b")]) {
            Ok(Outcome::Built(built)) => {
                for result in &built.platforms {
                    llb::Graph::new(result.definition.clone(), llb::Limits::default()).expect("valid LLB");
                }
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(fault) => {
                prop_assert!(fault.kind() == Kind::User, "{}", fault);
                for span in fault.places().iter().flat_map(|(_, spans)| spans) {
                    prop_assert!(1 <= span.start.0 && span.end.0 <= count, "{:?}", span);
                }
            }
        }
    }
}

/// What a question about a Dockerfile is answered: as text, and as JSON.
fn answered(dockerfile: &str, request: &str, options: &[(&str, &str)]) -> (String, serde_json::Value) {
    let options: Vec<(&str, &str)> = options.iter().copied().chain([("requestid", request)]).collect();
    let Ok(Outcome::Answered(answer)) = build(dockerfile, &options) else { panic!("{request} of {dockerfile}") };
    let text = String::from_utf8(answer["result.txt"].clone()).expect("text");
    (text, serde_json::from_slice(&answer["result.json"]).expect("JSON"))
}

#[test]
fn outlines_name_what_a_target_uses_and_nothing_else() {
    // As upstream has answered the same questions.
    let dockerfile = "# TAG is a tag\nARG TAG=${NAME}-1\nARG NAME=x\nARG UNUSED=1\nFROM scratch AS one\n\
                      # WORD is said\nARG WORD=hello\nRUN --mount=type=secret,id=s,required=true \\\n true\n\
                      FROM scratch AS other\nARG NAME\nRUN --mount=type=ssh true\nFROM one\nCOPY --from=other / /\n";
    let (text, json) = answered(dockerfile, "frontend.outline", &[("build-arg:WORD", "bye")]);
    let expected = "BUILD ARG   VALUE   DESCRIPTION\nNAME        x       \nWORD        bye     is said\n\n\
                    SECRET   REQUIRED\ns        true\n\nSSH       REQUIRED\ndefault   \n\n";
    assert_eq!(text, expected);
    let lines: Vec<_> = json["secrets"][0]["location"]["ranges"].as_array().expect("ranges").iter().collect();
    assert_eq!((&lines[0]["start"]["line"], &lines[1]["end"]["line"]), (&8.into(), &9.into()));
    let (text, json) = answered(dockerfile, "frontend.outline", &[("target", "other")]);
    assert!(text.starts_with("TARGET: other\n\nBUILD ARG   VALUE"), "{text}");
    assert_eq!(json["args"].as_array().map(Vec::len), Some(1), "{json}");
}

#[test]
fn checks_answer_with_what_stops_a_build() {
    let (text, json) = answered("FROM scratch AS A\nRUN true\n", "frontend.lint", &[]);
    assert!(text.starts_with("\nWARNING: StageNameCasing - https://"), "{text}");
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(1), "{json}");
    let (text, json) = answered("FROM scratch\nCOPY --from=9 / /\n", "frontend.lint", &[]);
    assert_eq!((text.as_str(), json["warnings"].is_null()), ("", true));
    assert_eq!(json["buildError"]["location"]["ranges"][0]["start"]["line"], 2);
    let unknown = build("FROM scratch\n", &[("requestid", "frontend.bogus")]).expect_err("unknown");
    assert!(unknown.find::<crate::Unsupported>().is_some(), "{unknown}");
}
