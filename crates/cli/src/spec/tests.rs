use std::collections::BTreeMap;

use base::Fault;
use engine::{Entitlement, ExportRequest};
use session::Output;
use session::local::SecretSource;

use super::cache::{Direction, caches};
use super::context::{NamedContext, build_context};
use super::csv::{CsvError, fields};
use super::output::Export;
use super::*;
use crate::environment::Environment;

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn said<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
    result.expect_err("an error").to_string()
}

#[test]
fn csv_records() {
    let ok = |text: &str, wanted: &[&str]| assert_eq!(fields(text), Ok(strings(wanted)), "{text}");
    ok("a", &["a"]);
    ok("a,b=c,", &["a", "b=c", ""]);
    ok("\"a,b\",c", &["a,b", "c"]);
    ok("\"a\"\"b\"", &["a\"b"]);
    ok("type=image,\"name=a,b\",push=true\n", &["type=image", "name=a,b", "push=true"]);
    ok("\"\"", &[""]);
    for (text, error) in [
        ("", CsvError::Empty),
        ("a\"b", CsvError::BareQuote),
        ("name=\"a,b\"", CsvError::BareQuote),
        ("\"a", CsvError::Quote),
        ("\"a\"b", CsvError::Quote),
    ] {
        assert_eq!(fields(text), Err(error), "{text}");
    }
}

fn shown(export: Result<Export, Fault>) -> String {
    match export {
        Err(fault) => fault.to_string(),
        Ok(Export { request, output }) => {
            let attrs: Vec<String> = request.attrs.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let output = match output {
                Output::File(path) => format!("file {}", path.display()),
                Output::Directory(path) => format!("directory {}", path.display()),
                Output::Mirror(path) => format!("nothing else in directory {}", path.display()),
                Output::Stdout => "stdout".to_owned(),
                Output::Store(store) => format!("{store:?}"),
                Output::Remote(remote) => format!("{remote:?}"),
                Output::None => "nowhere".to_owned(),
            };
            format!("{} [{}] -> {output}", request.kind, attrs.join(" "))
        }
    }
}

#[test]
fn outputs_of_buildkit() {
    let pipe = Environment::default();
    let terminal = Environment { stdout_is_terminal: true, ..Environment::default() };
    for (value, wanted) in [
        ("type=image,name=a.example/b,push=true", "image [name=a.example/b push=true] -> nowhere"),
        ("type=image,\"name=a,b\"", "image [name=a,b] -> nowhere"),
        ("type=local,dest=out", "local [] -> directory out"),
        ("type=oci,dest=x.tar,compression=zstd", "oci [compression=zstd] -> file x.tar"),
        ("type=oci,tar=false,dest=layout", "oci [tar=false] -> directory layout"),
        ("type=docker", "docker [] -> stdout"),
        ("type=tar,dest=-", "tar [] -> stdout"),
        ("TYPE=tar", "tar [] -> stdout"),
        ("type=local", "invalid value `type=local` for --output: type=local wants a directory: dest= is missing"),
        (
            "type=local,dest=-",
            "invalid value `type=local,dest=-` for --output: type=local wants a directory, `-` is standard output",
        ),
        ("dest=x", "invalid value `dest=x` for --output: type= is missing"),
        ("out", "invalid value `out` for --output: `out` is no key=value pair"),
        ("type=image,name=a,Name=b", "invalid value `type=image,name=a,Name=b` for --output: `name` is given twice"),
        (
            "type=tar,output=x",
            "invalid value `type=tar,output=x` for --output: unknown key `output`, did you mean dest=x?",
        ),
        (
            "type=image,dest=x",
            "invalid value `type=image,dest=x` for --output: type=image has no dest=, it stays in the store or is pushed",
        ),
        ("dst=x", "invalid value `dst=x` for --output: unknown key `dst`, did you mean dest=x?"),
        (
            "type=local,dest=/dev/null/x",
            "invalid value `type=local,dest=/dev/null/x` for --output: `/dev/null/x`: not a directory",
        ),
        ("type=tar,dest=/", "invalid value `type=tar,dest=/` for --output: `/` is a directory, a file is wanted"),
        (
            "type=tar,dest=/no/such/x.tar",
            "invalid value `type=tar,dest=/no/such/x.tar` for --output: there is no directory `/no/such`",
        ),
        (
            "type=zip",
            "invalid value `type=zip` for --output: unknown type `zip`: known are image, oci, docker, local and tar",
        ),
    ] {
        assert_eq!(shown(output::buildkit(value, &pipe)), wanted);
    }
    assert_eq!(
        shown(output::buildkit("type=oci", &terminal)),
        "invalid value `type=oci` for --output: type=oci would write an archive to the terminal: add dest=FILE or redirect"
    );
}

#[test]
fn outputs_of_docker() {
    let pipe = Environment::default();
    for (value, wanted) in [
        ("out", "local [] -> directory out"),
        ("-", "tar [] -> stdout"),
        ("type=registry,name=a", "image [name=a push=true] -> nowhere"),
        ("type=docker,dest=x.tar", "docker [] -> file x.tar"),
        (
            "type=docker",
            "invalid value `type=docker` for --output: there is no docker daemon to load into, dest= is missing",
        ),
    ] {
        let export = output::docker(value, &pipe).map(|export| export.expect("one that goes somewhere"));
        assert_eq!(shown(export), wanted);
    }
    assert!(output::docker("type=cacheonly", &pipe).expect("no export").is_none());
    assert!(output::docker("type=cacheonly,dest=x", &pipe).is_err());
}

#[test]
fn options_and_build_args() {
    let environment = Environment::with(&[("SET", "s"), ("EMPTY", ""), ("SOURCE_DATE_EPOCH", "7")]);
    let opts = |values: &[&str]| pairs::frontend_options(&strings(values), &environment).expect("options");
    let epoch = ("build-arg:SOURCE_DATE_EPOCH", "7");
    assert_eq!(opts(&["target=a", "build-arg:X=1=2"]), map(&[epoch, ("target", "a"), ("build-arg:X", "1=2")]));
    assert_eq!(opts(&["build-arg:SET", "build-arg:UNSET"]), map(&[epoch, ("build-arg:SET", "s")]));
    assert_eq!(opts(&["build-arg:EMPTY"]), map(&[epoch, ("build-arg:EMPTY", "")]));
    assert_eq!(opts(&["build-arg:SET=x", "build-arg:SET"]), map(&[epoch, ("build-arg:SET", "s")]));
    assert_eq!(opts(&["build-arg:UNSET=x", "build-arg:UNSET"]), map(&[epoch, ("build-arg:UNSET", "x")]));
    assert_eq!(opts(&["build-arg:SOURCE_DATE_EPOCH=0"]), map(&[("build-arg:SOURCE_DATE_EPOCH", "0")]));
    for bad in ["target", "build-arg:"] {
        let error = said(pairs::frontend_options(&strings(&[bad]), &environment));
        assert_eq!(error, format!("invalid value `{bad}` for --opt: expected key=value"));
    }

    let args = |values: &[&str]| pairs::build_args(&strings(values), &environment).expect("arguments");
    assert_eq!(args(&["A=b", "SET", "UNSET"]), map(&[epoch, ("build-arg:A", "b"), ("build-arg:SET", "s")]));
    assert!(pairs::build_args(&strings(&["=x"]), &environment).is_err());
    assert_eq!(pairs::labels(&strings(&["a=b=c", "d"])).expect("labels"), map(&[("label:a", "b=c"), ("label:d", "")]));
    assert!(pairs::labels(&strings(&["=x"])).is_err());
}

#[test]
fn local_directories_must_be_there() {
    assert_eq!(pairs::locals(&strings(&["context=/"])).expect("a directory").len(), 1);
    for (value, wanted) in [
        ("context", "invalid value `context` for --local: expected key=value"),
        ("c=/no/such", "invalid value `c=/no/such` for --local: `/no/such`: no such file or directory"),
        ("c=/proc/version", "invalid value `c=/proc/version` for --local: `/proc/version` is not a directory"),
    ] {
        assert_eq!(said(pairs::locals(&strings(&[value]))), wanted);
    }
}

#[test]
fn secrets() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("s");
    std::fs::write(&file, "v").expect("write");
    let big = dir.path().join("big");
    std::fs::write(&big, vec![0; 600 << 10]).expect("write");
    let environment = Environment::with(&[("TOKEN", "t")]);
    let path = file.display();
    for value in [
        format!("id=a,src={path}"),
        format!("id=a,source={path}"),
        format!("type=file,id=a,src={path}"),
        format!("id={path}"),
    ] {
        let (id, source) = secret::secret(&value, &environment).expect(&value);
        assert_eq!(source, SecretSource::File(file.clone()), "{value}");
        assert!(id == "a" || id == path.to_string());
    }
    for value in ["id=a,env=TOKEN", "id=TOKEN", "type=env,id=a,src=TOKEN", "id=TOKEN,type=env"] {
        let (_, source) = secret::secret(value, &environment).expect(value);
        assert_eq!(source, SecretSource::Value(base::Secret::new("t")), "{value}");
    }
    for (value, why) in [
        ("src=x".to_owned(), "id= is missing".to_owned()),
        ("a=b".to_owned(), "unknown key `a`: known are id, src, env and type".to_owned()),
        ("id=a,foo=b".to_owned(), "unknown key `foo`: known are id, src, env and type".to_owned()),
        ("id=a,type=x".to_owned(), "unknown type `x`: known are file and env".to_owned()),
        ("id=a,src=/no/such".to_owned(), "`/no/such`: no such file or directory".to_owned()),
        ("id=a,src=/".to_owned(), "`/` is a directory".to_owned()),
        (format!("id=a,src={}", big.display()), format!("`{}` is larger than 500 KiB", big.display())),
    ] {
        assert_eq!(said(secret::secret(&value, &environment)), format!("invalid value `{value}` for --secret: {why}"));
    }
}

#[test]
fn cache_options() {
    let none = Environment::default();
    let github = Environment::with(&[
        ("ACTIONS_CACHE_SERVICE_V2", "True"),
        ("ACTIONS_CACHE_URL", "https://one"),
        ("ACTIONS_RESULTS_URL", "https://two"),
        ("ACTIONS_RUNTIME_TOKEN", "t"),
    ]);
    let one = |direction, value: &str, environment| {
        let parsed = caches("--cache", direction, &strings(&[value]), environment)?;
        let option = parsed.into_iter().next().expect("one");
        Ok::<_, Fault>((option.kind, option.attrs))
    };
    use Direction::{Export, Import};
    for (direction, value, kind, attrs) in [
        (Import, "example.com/a", "registry", map(&[("ref", "example.com/a")])),
        (Export, "example.com/a", "registry", map(&[("ref", "example.com/a"), ("mode", "min")])),
        (Export, "type=local,dest=d,mode=max", "local", map(&[("dest", "d"), ("mode", "max")])),
        (Import, "type=local,src=d", "local", map(&[("src", "d")])),
        (
            Import,
            "type=gha,url=https://x",
            "gha",
            map(&[("url", "https://x"), ("url_v2", "https://two"), ("token", "t")]),
        ),
    ] {
        assert_eq!(one(direction, value, &github).expect(value), (kind.to_owned(), attrs), "{value}");
    }
    // Whether there is such a cache is said first, by who builds.
    assert_eq!(one(Import, "type=gha", &none).expect("read"), ("gha".to_owned(), map(&[])));
    for (value, why) in [("type=,ref=x", "type= is missing"), ("", "it is empty")] {
        assert_eq!(said(one(Import, value, &none)), format!("invalid value `{value}` for --cache: {why}"));
    }
}

#[test]
fn entitlements() {
    let all = strings(&["network.host", "security.insecure", "device", "device=vendor.com/x,alias=y"]);
    assert_eq!(
        allow::entitlements(&all).expect("known"),
        [
            Entitlement::NetworkHost,
            Entitlement::SecurityInsecure,
            Entitlement::Device(None),
            Entitlement::Device(Some("vendor.com/x,alias=y".to_owned()))
        ]
    );
    for bad in ["network", "", "network.host=x", "device=a,b=c"] {
        assert!(allow::entitlements(&strings(&[bad])).is_err(), "{bad}");
    }
}

#[test]
fn hosts_limits_sizes_platforms_tags() {
    let host = |value: &str| docker::add_hosts(&strings(&[value]));
    assert_eq!(host("a:1.2.3.4").as_deref().ok(), Some("a=1.2.3.4"));
    assert_eq!(host("a=[::1],b:::2").as_deref().ok(), Some("a=::1,b=::2"));
    for bad in ["a", "a:b", ":1.2.3.4", "a:host-gateway"] {
        assert!(host(bad).is_err(), "{bad}");
    }
    let limit = |value: &str| docker::ulimits(&strings(&[value]));
    assert_eq!(limit("nofile=1024").as_deref().ok(), Some("nofile=1024:1024"));
    assert_eq!(limit("nproc=1:2").as_deref().ok(), Some("nproc=1:2"));
    assert_eq!(limit("core=-1").as_deref().ok(), Some("core=-1:-1"));
    for bad in ["nofile", "nofile=x", "nofile=3:2", "files=1", "nofile=-2"] {
        assert!(limit(bad).is_err(), "{bad}");
    }
    assert_eq!(docker::shm_size("64m").as_deref().ok(), Some("67108864"));
    assert!(docker::shm_size("big").is_err());
    let platforms = |values: &[&str]| docker::platforms(&strings(values));
    assert_eq!(
        platforms(&["linux/amd64,linux/arm64/v8", "linux/x86_64"]).as_deref().ok(),
        Some("linux/amd64,linux/arm64,linux/amd64")
    );
    assert!(platforms(&["amiga"]).is_err());
    assert_eq!(docker::stages(&strings(&["a,b", "c"])).expect("stages"), ["a", "b", "c"]);
    for good in ["a", "a:1", "Host.example:5000/a/b:V1", "docker.io/library/x"] {
        assert_eq!(docker::tag(good).ok(), Some(good));
    }
    for bad in ["", "A", "a b", "https://a/b", "host/A:x", "a:b:c", "a:", "a//b", "a:-x", "a@sha256:00", "a,b"] {
        assert!(docker::tag(bad).is_err(), "{bad}");
    }
    assert_eq!(docker::network("none").ok(), Some(Some("none")));
    assert_eq!(docker::network("default").ok(), Some(None));
    assert!(docker::network("bridge").is_err());
}

#[test]
fn annotations() {
    for (text, wanted) in [
        ("k=v=w", "annotation.k=v=w"),
        ("a.example/k:x=v", "annotation.a.example/k:x=v"),
        ("manifest:k=v", "annotation-manifest.k=v"),
        ("index,manifest:k=", "annotation-index.k= annotation-manifest.k="),
        ("manifest-descriptor[linux/arm64]:k=v", "annotation-manifest-descriptor[linux/arm64].k=v"),
        ("k", "invalid value `k` for --annotation: expected key=value"),
        ("index:=v", "invalid value `index:=v` for --annotation: the key is empty"),
        ("index[linux/arm64]:k=v", "invalid value `index[linux/arm64]` for --annotation: an index has no platform"),
    ] {
        let shown = docker::annotation(text)
            .map(|attrs| attrs.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" "));
        assert_eq!(shown.unwrap_or_else(|error| error.to_string()), wanted);
    }
}

#[test]
fn named_contexts() {
    let directory = |share: &str| NamedContext::Directory { share: share.to_owned(), path: "/proc".into() };
    assert_eq!(build_context("src=/proc").expect("one"), ("src".to_owned(), directory("src")));
    assert_eq!(build_context("context=/proc").expect("one").1, directory("_context_"));
    assert_eq!(
        build_context("base=docker-image://alpine").expect("one"),
        ("base".to_owned(), NamedContext::Reference("docker-image://alpine".to_owned()))
    );
    for address in ["https://x/y.git#v1:d", "git@h:a.git", "http://x/y.tar.gz"] {
        let (_, context) = build_context(&format!("src={address}")).expect("one");
        assert_eq!(context, NamedContext::Reference(address.to_owned()));
    }
    for name in ["docker.io/library/Alpine", "alpine:latest", "alpine"] {
        let (name, _) = build_context(&format!("{name}=docker-image://b")).expect("one");
        assert_eq!(name, "alpine");
    }
    for (value, why) in [
        ("src=target:a", "target: contexts are for bake files, which are built by `docker buildx bake`"),
        ("src", "expected name=path"),
        ("src=", "expected name=path"),
        ("src=/no/such", "`/no/such`: no such file or directory"),
        ("src=oci-layout:///no/such:tag", "`/no/such`: no such file or directory"),
        (
            "src=oci-layout:///proc@sha256:12",
            "`sha256:12` is not a digest: expected `sha256:` and 64 hexadecimal digits",
        ),
    ] {
        assert_eq!(said(build_context(value)), format!("invalid value `{value}` for --build-context: {why}"));
    }
    let digest = base::Digest::of("x");
    for (place, path) in [("/proc", "/proc"), ("/proc/self:tag", "/proc/self")] {
        let (_, context) = build_context(&format!("src=oci-layout://{place}@{digest}")).expect("one");
        let NamedContext::Layout { share, path: shared, digest: named } = context else { panic!("a layout") };
        assert_eq!((shared.to_str(), named, share.len()), (Some(path), digest, 25));
    }
    let dir = tempfile::tempdir().expect("scratch");
    let with_at = dir.path().join("a@b");
    std::fs::create_dir(&with_at).expect("made");
    let (_, context) = build_context(&format!("src=oci-layout://{}@{digest}", with_at.display())).expect("one");
    assert!(matches!(context, NamedContext::Layout { path, .. } if path == with_at));
    assert!(context::is_remote("git@github.com:a/b.git") && context::is_remote("github.com/a/b"));
    assert!(!context::is_remote("./github.com"));
}

#[test]
fn what_deletes_spares_other_outputs_and_what_the_build_reads() {
    let export =
        |output| Export { request: ExportRequest { kind: "local".to_owned(), attrs: BTreeMap::new() }, output };
    let mirror = |path: &str| export(Output::Mirror(path.into()));
    let dir = |path: &str| export(Output::Directory(path.into()));
    let file = |path: &str| export(Output::File(path.into()));
    let distinct = |exports: &[Export]| output::expect_distinct(exports).map_err(|fault| fault.to_string());
    assert_eq!(distinct(&[mirror("no/out"), dir("no/other"), file("no/out.tar")]), Ok(()));
    assert_eq!(distinct(&[dir("no/out"), file("no/out/x.tar")]), Ok(()));
    for (exports, why) in [
        ([mirror("no/out"), dir("no/out")], "two outputs go to `no/out`"),
        ([mirror("no/out"), mirror("no/out")], "two outputs go to `no/out`"),
        ([file("no/out/x.tar"), mirror("no/out")], "mode=delete of `no/out` would delete the output"),
    ] {
        assert!(distinct(&exports).is_err_and(|said| said.contains(why)), "{why}");
    }
    let spared = |exports: &[Export], kept: &str| output::expect_spared(exports, [std::path::Path::new(kept)]).is_ok();
    assert!(spared(&[mirror("no/out")], "no"));
    assert!(spared(&[dir("no")], "no/context"));
    assert!(!spared(&[mirror("no")], "no/context"));
    assert!(!spared(&[mirror(".")], "."));
}
