//! Real work: images of applications whose parts come from package registries inside `RUN`, on a Debian base. Then the
//! images are run.
//!
//! Tests named `net_` need the registries, and use this machine's own way to them (`machine.rs`). Those that take longer
//! than a test command may are `cargo xtask long`'s.

use std::fs;
use std::sync::Arc;

use serde_json::Value;

use crate::harness::{Ended, has_tool, or_skip};
use crate::kitchen::{Kitchen, ran};
use crate::larder::Larder;
use crate::machine::{self, Machine, fixture};
use crate::who::Who;

/// An application to be built by somebody.
struct App {
    larder: Arc<Larder>,
    kitchen: Kitchen,
    machine: Machine,
    flags: String,
}

impl App {
    /// None, with the reason told, where it cannot be built.
    fn new(who: Who) -> Option<App> {
        let kitchen = Kitchen::new(who)?;
        let larder = Larder::open()?;
        let machine = Machine::new(&larder.release, who);
        let flags = machine.flags(&kitchen);
        Some(App { larder, kitchen, machine, flags })
    }

    fn dockerfile(&self, text: &str) {
        self.kitchen.dockerfile(&self.machine.mounts(text));
    }

    fn files(&self, app: &str, names: &[&str]) {
        for name in names {
            self.kitchen.file(name, fixture(&format!("{app}/{name}")));
        }
    }

    fn build(&self, args: &str) -> Ended {
        self.kitchen.build(&format!("{args}{}", self.flags)).succeeds()
    }

    /// What a program of a pushed image says in a step, which is run by whoever built it, as the image's user.
    fn says(&self, image: &str, program: &str) -> String {
        self.kitchen.dockerfile(&format!(
            "FROM {image} AS run\nRUN {program} > /tmp/said\nFROM scratch\nCOPY --from=run /tmp/said /\n"
        ));
        self.kitchen.build("--output said").succeeds();
        fs::read_to_string(self.kitchen.world.path("said/said")).unwrap()
    }

    /// What it says when another runtime runs its entry point with these arguments as its user; none, with the reason told,
    /// where there is none.
    fn runs(&self, image: &str, args: &[&str]) -> Option<String> {
        if let Some(tool) = ["skopeo", "umoci", "runc"].into_iter().find(|tool| !has_tool(tool)) {
            testkit::need::report_skip(&format!("another runtime: it wants `{tool}`"));
            return None;
        }
        let world = &self.kitchen.world;
        let image = format!("docker://{image}");
        world.run("skopeo").args(["copy", "--quiet", "--src-tls-verify=false", &image, "oci:layout:app"]).succeeds();
        world.run("umoci").args(["unpack", "--image", "layout:app", "bundle"]).succeeds();
        let path = world.path("bundle/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        let words = config["process"]["args"].as_array_mut().unwrap();
        words.extend(args.iter().map(|arg| Value::from(*arg)));
        fs::write(&path, config.to_string()).unwrap();
        let name = format!("hullworks-{}", std::process::id());
        Some(world.run("runc").args(["--root", "runc", "run", "--bundle", "bundle", &name]).succeeds().text())
    }
}

/// Debian packages are installed; lists and archives stay in cache mounts.
fn debian_packages(who: Who) {
    let Some(app) = App::new(who) else { return };
    let dockerfile = format!(
        "FROM {} AS tools\n\
         RUN --mount=type=cache,target=/var/cache/apt,sharing=locked --mount=type=cache,target=/var/lib/apt,sharing=locked \\\n    \
         @machine apt-get update && apt-get install -y --no-install-recommends jq\n\
         RUN jq --null-input 6*7 > /answer && find /var/cache/apt /var/lib/apt -name '*.deb' -o -name '*Packages*' > /left\n\
         RUN find / -xdev -name machine -path '*secrets*' >> /left\n\
         FROM scratch\nCOPY --from=tools /answer /left /\n",
        app.larder.name("debian")
    );
    app.dockerfile(&dockerfile);
    app.build("--output out");
    let read = |name: &str| fs::read_to_string(app.kitchen.world.path("out").join(name)).unwrap();
    assert_eq!(read("answer"), "42\n");
    assert_eq!(read("left"), "", "what only the mounts should have");
    assert_eq!(ran(&app.build("--output out")), [""; 0]);
    // Nothing is downloaded twice.
    app.dockerfile(&dockerfile.replace(" jq\n", " jq && true\n"));
    app.build("--output out").says("Need to get 0 B/");
}

#[test]
fn net_root_installs_debian_packages() {
    debian_packages(Who::Root);
}

#[test]
fn net_a_user_with_ranges_installs_debian_packages() {
    debian_packages(Who::Ranges);
}

#[test]
fn net_a_user_with_one_id_installs_debian_packages() {
    debian_packages(Who::Single);
}

fn python_app(who: Who) {
    let files = ["requirements.txt", "main.py"];
    let requirements = fixture("python/requirements.txt");
    let Some(()) = or_skip(machine::python_packages(requirements.trim())) else { return };
    let Some(app) = App::new(who) else { return };
    let python = app.larder.with_packages("python", "python3-venv");
    let dockerfile = format!(
        "FROM {python} AS build\n\
         RUN python3 -m venv /app/venv\n\
         RUN --mount=type=cache,target=/root/.cache/pip --mount=source=requirements.txt,target=/tmp/requirements.txt \\\n    \
         @machine /app/venv/bin/pip install --requirement /tmp/requirements.txt \\\n    \
         && echo again >> /root/.cache/pip/builds && cp /root/.cache/pip/builds /app/venv/\n\
         FROM {python}\n\
         RUN useradd --system --uid 999 app\n\
         COPY --from=build /app/venv /app/venv\n\
         COPY --chown=app:app main.py /app/\n\
         USER app\nENTRYPOINT [\"/app/venv/bin/python\", \"/app/main.py\"]\n"
    );
    app.dockerfile(&dockerfile);
    app.files("python", &files);
    let image = app.larder.name(&format!("app-{who:?}").to_lowercase());
    let build = || app.build(&format!("--push -t {image}"));
    assert_eq!(ran(&build()).len(), 5);

    // A source file changes, then what is required.
    let main = fixture("python/main.py");
    app.kitchen.file("main.py", main.replace("print(", "print('new', "));
    assert_eq!(ran(&build()), ["COPY --chown=app:app main.py /app/"]);
    app.kitchen.file("requirements.txt", requirements + "\n");
    let again = ran(&build());
    assert!(again.iter().any(|step| step.contains("pip install")), "{again:?}");
    assert!(!again.contains(&"RUN python3 -m venv /app/venv".to_owned()), "{again:?}");

    // Whether pip itself keeps what it downloads is the index's say, but the cache mount was there both times.
    let said = app.says(&image, "(/app/venv/bin/python /app/main.py arg; cat /app/venv/builds)");
    assert_eq!(said, "new 999 2024-03-31 arg\nagain\nagain\n");
    if who == Who::Root
        && let Some(said) = app.runs(&image, &["a", "b c"])
    {
        assert_eq!(said, "new 999 2024-03-31 a b c\n");
    }
}

#[test]
fn net_root_builds_a_python_app_that_runs() {
    python_app(Who::Root);
}

#[test]
fn net_a_user_with_ranges_builds_a_python_app_that_runs() {
    python_app(Who::Ranges);
}

#[test]
#[ignore = "takes minutes: `cargo xtask long`"]
fn net_long_a_node_app_is_built_and_runs() {
    let Some(()) = or_skip(machine::node_packages("debug@4.3.7")) else { return };
    for who in [Who::Root, Who::Ranges] {
        let Some(app) = App::new(who) else { continue };
        let node = app.larder.with_packages("node", "nodejs npm");
        app.dockerfile(&format!(
            "FROM {node} AS build\n\
             WORKDIR /app\n\
             COPY package.json package-lock.json ./\n\
             RUN --mount=type=cache,target=/root/.npm @machine npm ci --omit=dev\n\
             COPY index.js ./\n\
             FROM {node}\n\
             WORKDIR /app\n\
             COPY --from=build /app ./\n\
             USER nobody\nENTRYPOINT [\"node\", \"index.js\"]\n"
        ));
        app.files("node", &["package.json", "package-lock.json", "index.js"]);
        let image = app.larder.name(&format!("node-{who:?}").to_lowercase());
        let build = || app.build(&format!("--push -t {image}"));
        build().says("added 2 packages");
        app.kitchen.file("index.js", fixture("node/index.js").replace("console.log(", "console.log('new', "));
        assert_eq!(ran(&build()), ["COPY --from=build /app ./", "COPY index.js ./"], "{who:?}");
        app.kitchen.file("package.json", fixture("node/package.json").replace("1.0.0", "1.0.1"));
        let again = ran(&build());
        assert!(again.iter().any(|step| step.contains("npm ci")), "{who:?}: {again:?}");
        assert_eq!(app.says(&image, "node index.js 7200000"), "new 65534 2h\n", "{who:?}");
        if who == Who::Root
            && let Some(said) = app.runs(&image, &["180000"])
        {
            assert_eq!(said, "new 65534 3m\n");
        }
    }
}

#[test]
#[ignore = "takes minutes: `cargo xtask long`"]
fn net_long_a_rust_app_is_built_and_runs() {
    let Some(()) = or_skip(machine::crates("serde_json")) else { return };
    for who in [Who::Root, Who::Ranges] {
        let Some(app) = App::new(who) else { continue };
        let debian = app.larder.name("debian");
        // Debian's newer compilers have names of their own where the release's is old.
        let newest = "$(apt-cache show cargo-web > /dev/null 2>&1 && echo cargo-web rustc-web || echo cargo rustc)";
        let rust = app.larder.with_packages("rust", &format!("gcc libc6-dev {newest}"));
        app.dockerfile(&format!(
            "FROM {rust} AS build\n\
             WORKDIR /src\n\
             COPY Cargo.toml Cargo.lock ./\n\
             COPY src src\n\
             RUN --mount=type=cache,target=/root/.cargo/registry --mount=type=cache,target=/src/target \\\n    \
             @machine cargo build --locked --release && cp target/release/app /app\n\
             FROM {debian}\n\
             COPY --from=build /app /usr/local/bin/\n\
             USER nobody\nENTRYPOINT [\"app\"]\n"
        ));
        app.files("rust", &["Cargo.toml", "Cargo.lock", "src/main.rs"]);
        let image = app.larder.name(&format!("rust-{who:?}").to_lowercase());
        let build = || app.build(&format!("--push -t {image}"));
        build().says("Compiling serde_json").says("Compiling app");
        assert_eq!(ran(&build()), [""; 0], "{who:?}");
        app.kitchen.file("src/main.rs", fixture("rust/src/main.rs").replace("{} elements", "{} new elements"));
        let ended = build();
        let again = ran(&ended);
        assert!(again.len() == 3 && again[1] == "COPY src src" && again[2].starts_with("RUN "), "{who:?}: {again:?}");
        ended.says("Compiling app");
        for work in ["Compiling serde_json", "Downloaded", "Downloading"] {
            assert!(!ended.stderr.contains(work), "{who:?}: {work} again: {ended:?}");
        }
        assert_eq!(app.says(&image, "app '[1, 2, 3]'"), "3 new elements\n", "{who:?}");
        if who == Who::Root
            && let Some(said) = app.runs(&image, &["[1]"])
        {
            assert_eq!(said, "1 new elements\n");
        }
    }
}
