//! What docker's clients get back: annotations, files with digests, progress for programs, and what several targets make.

use std::fs;

use serde_json::Value;

use crate::buildx::{Docker, with_each_client};

fn json(bytes: impl AsRef<[u8]>) -> Value {
    let bytes = bytes.as_ref();
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)))
}

/// A manifest or an index of the registry.
fn pushed(docker: &Docker, repository: &str, reference: &str) -> Value {
    let registry = &docker.served.kitchen.registry;
    json(registry.manifest(repository, reference).unwrap_or_else(|| panic!("no {repository}:{reference}")).1)
}

/// The entry of a platform in an index.
fn of_architecture<'a>(index: &'a Value, architecture: &str) -> &'a Value {
    let entries = index["manifests"].as_array().unwrap().iter();
    let mut entries = entries.filter(|entry| entry["platform"]["architecture"] == architecture);
    entries.next().unwrap_or_else(|| panic!("no {architecture}: {index}"))
}

#[test]
fn annotations_go_where_they_are_told_to() {
    with_each_client(|docker| {
        let kitchen = &docker.served.kitchen;
        let host = kitchen.registry.host();
        kitchen.file("a", "one");
        kitchen.dockerfile("FROM scratch\nCOPY a /\n");
        let annotations = "--annotation plain=1 --annotation manifest:m=2 --annotation index:i=3 \
                           --annotation manifest-descriptor:d=4 --annotation manifest[linux/arm64]:arm=5 \
                           --annotation index:both=6 --annotation manifest:both=6";
        let platforms = "--platform linux/amd64,linux/arm64";
        docker.build(&format!("{platforms} {annotations} -t {host}/x/a:1 --push context")).succeeds();
        let index = pushed(docker, "x/a", "1");
        assert_eq!(index["annotations"], serde_json::json!({"i": "3", "both": "6"}), "{index}");
        for architecture in ["amd64", "arm64"] {
            let entry = of_architecture(&index, architecture);
            assert_eq!(entry["annotations"], serde_json::json!({"d": "4"}), "{index}");
            let manifest = pushed(docker, "x/a", entry["digest"].as_str().unwrap());
            let mut expected = serde_json::json!({"plain": "1", "m": "2", "both": "6"});
            if architecture == "arm64" {
                expected["arm"] = "5".into();
            }
            assert_eq!(manifest["annotations"], expected, "{manifest}");
        }
        // One platform is a manifest alone, and in an archive it has an index around it.
        docker.build(&format!("--annotation plain=1 -t {host}/x/a:2 --push context")).succeeds();
        let manifest = pushed(docker, "x/a", "2");
        assert_eq!((&manifest["annotations"]["plain"], &manifest["manifests"]), (&"1".into(), &Value::Null));
        let archive = "-o type=oci,tar=false,dest=layout,annotation.a=1,annotation-manifest-descriptor.d=4";
        docker.build(&format!("{archive} context")).succeeds();
        let index = json(docker.read("layout/index.json"));
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["d"], "4", "{index}");
        let blob = entry["digest"].as_str().unwrap().replace(':', "/");
        assert_eq!(json(docker.read(&format!("layout/blobs/{blob}")))["annotations"]["a"], "1");
        docker.build("--annotation nowhere:a=b -o type=oci,dest=x.tar context").fails().says("nowhere");
    });
}

#[test]
fn images_are_looked_at_and_put_together() {
    with_each_client(|docker| {
        let kitchen = &docker.served.kitchen;
        let host = kitchen.registry.host();
        kitchen.file("a", "one");
        kitchen.dockerfile("FROM scratch\nARG TARGETARCH\nCOPY a /$TARGETARCH\nENV ARCH=$TARGETARCH\n");
        for architecture in ["amd64", "arm64"] {
            let line = format!("--platform linux/{architecture} -t {host}/x/i:{architecture} --push context");
            docker.build(&line).succeeds();
        }
        let tools = |line: &str| docker.run(&format!("imagetools {line}")).succeeds();
        tools(&format!("create -t {host}/x/i:all {host}/x/i:amd64 {host}/x/i:arm64"));
        let index = pushed(docker, "x/i", "all");
        let digests =
            ["amd64", "arm64"].map(|name| of_architecture(&index, name)["digest"].as_str().unwrap().to_owned());
        let shown = tools(&format!("inspect {host}/x/i:all")).text();
        for wanted in digests.iter().map(String::as_str).chain(["linux/amd64", "linux/arm64", "image.index.v1+json"]) {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        // The configs, by platform.
        let formatted = |format: &str, tag: &str| {
            let run = docker.run("imagetools inspect --format").args([format, &format!("{host}/x/i:{tag}")]);
            json(run.succeeds().stdout)
        };
        let images = formatted("{{json .Image}}", "all");
        for name in ["amd64", "arm64"] {
            let image = &images[format!("linux/{name}")];
            assert_eq!(image["architecture"], name, "{images}");
            assert!(image["config"]["Env"].as_array().unwrap().contains(&format!("ARCH={name}").into()), "{images}");
        }
        let manifest = formatted("{{json .Manifest}}", "arm64");
        assert_eq!(manifest["digest"], digests[1].as_str(), "{manifest}");
        // One that is appended to, in another repository.
        tools(&format!("create -t {host}/x/j:1 --annotation index:a=b {host}/x/i:amd64"));
        tools(&format!("create --append -t {host}/x/j:1 {host}/x/i:arm64"));
        assert_eq!(pushed(docker, "x/j", "1")["manifests"].as_array().unwrap().len(), 2);
        assert!(pushed(docker, "x/j", &digests[1])["layers"].is_array());
        // What was put together is built on.
        kitchen.dockerfile(&format!("FROM {host}/x/j:1\n"));
        docker.build("--platform linux/arm64 -o type=local,dest=out context").succeeds();
        assert_eq!(docker.read("out/arm64"), "one");
    });
}

#[test]
fn progress_is_for_programs_too() {
    with_each_client(|docker| {
        docker.served.kitchen.dockerfile("FROM busybox\nRUN echo heard-$((40 + 2)); exit 3\n");
        let failed = docker.run("--builder b build --progress=rawjson -o type=cacheonly context").fails();
        // Documents, over several lines each where the client is the older one; then its error for people.
        let documents = serde_json::Deserializer::from_str(&failed.stderr).into_iter();
        let events: Vec<Value> = documents.map_while(Result::ok).collect();
        let all = |key: &str| events.iter().filter_map(|event| event[key].as_array()).flatten().collect::<Vec<_>>();
        let named = |name: &str| {
            let found = all("vertexes").into_iter().rfind(|vertex| vertex["name"].as_str().unwrap().contains(name));
            found.unwrap_or_else(|| panic!("no vertex `{name}`: {failed:?}"))
        };
        assert!(named("load build definition")["completed"].is_string());
        let run = named("RUN echo heard");
        assert!(run["error"].as_str().unwrap().contains("exit code: 3"), "{run}");
        assert_eq!(run["inputs"].as_array().unwrap().len(), 1, "{run}");
        let log = all("logs").into_iter().find(|log| log["vertex"] == run["digest"]);
        // "heard-42\n"
        assert_eq!(log.map(|log| &log["data"]), Some(&"aGVhcmQtNDIK".into()), "{failed:?}");
        assert!(all("statuses").iter().any(|status| status["id"].as_str().unwrap().contains("transferring")));
        assert!(failed.stderr.lines().any(|line| line.starts_with("ERROR: ") && line.contains("exit code: 3")));
    });
}

#[test]
fn ids_are_written_where_scripts_look_for_them() {
    with_each_client(|docker| {
        let kitchen = &docker.served.kitchen;
        let host = kitchen.registry.host();
        kitchen.file("a", "one");
        kitchen.dockerfile("FROM scratch\nCOPY a /\n");
        let line = format!("--metadata-file meta.json --iidfile id -t {host}/x/m:1 -t {host}/x/m:2 --push context");
        docker.build(&line).succeeds();
        let meta = json(docker.read("meta.json"));
        let manifest = pushed(docker, "x/m", "1");
        let digest = base::Digest::of(&kitchen.registry.manifest("x/m", "2").unwrap().1).to_string();
        assert_eq!(meta["containerimage.digest"], digest.as_str(), "{meta}");
        assert_eq!(meta["containerimage.config.digest"], manifest["config"]["digest"], "{meta}");
        assert_eq!(meta["image.name"], format!("{host}/x/m:1,{host}/x/m:2"), "{meta}");
        let descriptor = &meta["containerimage.descriptor"];
        assert_eq!((&descriptor["digest"], &descriptor["mediaType"]), (&digest.clone().into(), &manifest["mediaType"]));
        let reference = meta["buildx.build.ref"].as_str().unwrap().rsplit('/').next().unwrap();
        assert!(docker.served.buildctl("debug histories").succeeds().text().contains(reference), "{meta}");
        // The id of an image is that of its config.
        assert_eq!(Value::from(docker.read("id")), manifest["config"]["digest"]);
        let quiet = docker.run("--builder b build --quiet -o type=image context").succeeds();
        assert_eq!(Value::from(quiet.text().trim()), manifest["config"]["digest"]);
        assert_eq!(quiet.stderr, "");
    });
}

#[test]
fn bake_builds_several_targets_and_says_what_became_of_each() {
    with_each_client(|docker| {
        let kitchen = &docker.served.kitchen;
        let host = kitchen.registry.host();
        kitchen.file("a", "one");
        kitchen.dockerfile(
            "FROM busybox AS base\nRUN read u < /proc/sys/kernel/random/uuid; echo $u > /u\n\
             FROM base AS one\nARG WORD\nRUN echo $WORD > /word\nFROM base AS two\nCOPY a /\n",
        );
        kitchen.world.write(
            "docker-bake.hcl",
            format!(
                "variable \"TAG\" {{ default = \"v1\" }}\n\
                 group \"default\" {{ targets = [\"one\", \"two\"] }}\n\
                 target \"common\" {{ context = \"context\" }}\n\
                 target \"one\" {{\n inherits = [\"common\"]\n target = \"one\"\n args = {{ WORD = \"baked\" }}\n \
                 tags = [\"{host}/x/one:${{TAG}}\"]\n output = [\"type=registry\"]\n}}\n\
                 target \"two\" {{\n inherits = [\"common\"]\n target = \"two\"\n output = [\"type=local,dest=two\"]\n}}\n"
            ),
        );
        let bake = |args: &str| {
            let run = docker.run(&format!("bake --builder b --progress=plain --metadata-file meta.json {args}"));
            run.env("TAG", "v7").env("BUILDX_BAKE_ENTITLEMENTS_FS", "0")
        };
        bake("").succeeds();
        let meta = json(docker.read("meta.json"));
        let digest = base::Digest::of(&kitchen.registry.manifest("x/one", "v7").unwrap().1).to_string();
        assert_eq!(meta["one"]["containerimage.digest"], digest.as_str(), "{meta}");
        assert!(meta["two"]["buildx.build.ref"].is_string(), "{meta}");
        assert_eq!(docker.read("two/a"), "one");
        bake("one --set one.output=type=local,dest=one").succeeds();
        assert_eq!(docker.read("one/word"), "baked\n");
        // What both stand on ran once.
        assert_eq!(docker.read("one/u"), docker.read("two/u"));
        // One that fails fails all, and says which.
        fs::remove_file(docker.path("context/a")).unwrap();
        bake("").fails().says("\"/a\": not found");
    });
}

/// What runs when a build is given up is told as given up.
#[test]
fn a_step_of_a_build_that_is_cancelled_is_told_as_cancelled() {
    with_each_client(|docker| {
        docker.served.kitchen.dockerfile("FROM busybox\nRUN echo begun && sleep 1000\n");
        let client = docker.build("context").starts();
        client.waits_for("begun");
        client.signal("INT");
        client.ends_soon().says(" CANCELED\n");
    });
}
