//! Git repositories as contexts, by name, and of `ADD`: without a daemon, with it, and by docker's client.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use testkit::GitServer;

use crate::daemon::Served;
use crate::frontends::{anyone, anywhere, buildx};
use crate::harness::{Invocation, each, or_skip};
use crate::kitchen::{Kitchen, ran};
use crate::needs;
use crate::who::Who;

/// `hullworks build` of what a repository has. Of the machine's programs it finds git.
fn build(kitchen: &Kitchen, context: &str, args: &str) -> Invocation {
    let (world, bin) = (&kitchen.world, kitchen.world.path("bin"));
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(testkit::need::program("git").unwrap(), bin.join("git")).unwrap();
    }
    let line = ["build", "--progress=plain", "--config=buildkitd.toml", "--root=state", context];
    let path = format!("PATH={}", bin.display());
    let program = world.path("hullworks");
    kitchen.who.run(world, "/usr/bin/env").arg(path).arg(program).args(line).args(args.split_whitespace())
}

fn read(kitchen: &Kitchen, name: &str) -> String {
    fs::read_to_string(kitchen.world.path(name)).unwrap()
}

const DOCKERFILE: &str = "FROM scratch\nCOPY f /\n";

#[test]
fn a_commit_is_a_context() {
    for who in [Who::Root, Who::Single] {
        let Some(kitchen) = Kitchen::new(who) else { continue };
        let Some(server) = or_skip(GitServer::start()) else { return };
        let repository = server.repository("r");
        let url = &repository.url;
        let first = repository.commit(&[
            ("Dockerfile", DOCKERFILE),
            ("f", "one"),
            ("d/Dockerfile", DOCKERFILE),
            ("d/f", "below"),
            ("Other", "FROM scratch\nCOPY f /other\n"),
        ]);
        repository.git(&["tag", "--annotate", "--message", "m", "v1"]);
        build(&kitchen, url, "--output out").succeeds();
        assert_eq!(read(&kitchen, "out/f"), "one");
        // The same commit under other names is the same, and is not fetched again.
        for name in ["main", "refs/heads/main", "v1", &first] {
            let again = build(&kitchen, &format!("{url}#{name}"), "").succeeds();
            assert!(!again.stderr.contains("checking out"), "{who:?} {name}: {again:?}");
            assert_eq!(ran(&again), [""; 0], "{who:?} {name}");
        }
        build(&kitchen, &format!("{url}#v1:d"), "--output below").succeeds();
        assert_eq!(read(&kitchen, "below/f"), "below");
        build(&kitchen, url, "--file Other --output other").succeeds();
        assert_eq!(read(&kitchen, "other/other"), "one");
        // A branch moves on; the tag and the commit do not.
        repository.commit(&[("f", "two")]);
        for (name, wanted) in [("main", "two"), ("v1", "one"), (&first, "one"), ("", "two")] {
            let context = if name.is_empty() { url.clone() } else { format!("{url}#{name}") };
            build(&kitchen, &context, "--output out").succeeds();
            assert_eq!(read(&kitchen, "out/f"), wanted, "{who:?} {name}");
        }
        // A tag that is another commit now, and a branch below the name of one that is gone.
        repository.git(&["tag", "--force", "v1"]);
        repository.git(&["branch", "a"]);
        build(&kitchen, &format!("{url}#a"), "").succeeds();
        repository.git(&["branch", "--move", "a", "a/b"]);
        repository.commit(&[("f", "three")]);
        repository.git(&["branch", "--force", "a/b"]);
        for (name, wanted) in [("v1", "two"), ("a/b", "three")] {
            build(&kitchen, &format!("{url}#{name}"), "--output out").succeeds();
            assert_eq!(read(&kitchen, "out/f"), wanted, "{who:?} {name}");
        }

        build(&kitchen, &format!("{url}#nothing"), "").fails().says("repository does not contain ref nothing");
        build(&kitchen, &format!("{url}#v1:nowhere"), "").fails().says("invalid subdir nowhere");
        let none = url.replace("r.git", "none.git");
        build(&kitchen, &none, "").fails().says(&format!("failed to fetch remote {none}"));
    }
}

#[test]
fn times_may_be_those_of_the_commit() {
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let repository = server.repository("r");
    let dockerfile = "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo \"<$SOURCE_DATE_EPOCH>\" > /epoch\n";
    repository.commit(&[("Dockerfile", dockerfile), ("f", "x")]);
    let time = repository.git(&["log", "-1", "--format=%ct"]);
    let args = "--build-arg SOURCE_DATE_EPOCH=context --output out";
    build(&kitchen, &repository.url, args).succeeds();
    assert_eq!(read(&kitchen, "out/epoch"), format!("<{time}>\n"));
    // A directory has no time.
    kitchen.dockerfile(dockerfile);
    kitchen.build(args).succeeds();
    assert_eq!(read(&kitchen, "out/epoch"), "<>\n");
    kitchen.build("--build-arg SOURCE_DATE_EPOCH=elsewhere").fails().says("invalid SOURCE_DATE_EPOCH: elsewhere");
}

#[test]
fn times_may_be_those_of_a_context_by_its_name_or_of_a_stage() {
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let repository = server.repository("r");
    repository.commit(&[("f", "x")]);
    let (url, time) = (&repository.url, repository.git(&["log", "-1", "--format=%ct"]));
    // Its entries are of time zero.
    let archive = kitchen.registry.put_blob("web", testkit::tar::Archive::new().file("f", "x").end());
    let download = format!("http://{}/v2/web/blobs/{archive}", kitchen.registry.host());
    let plain = kitchen.registry.put_blob("web", "no archive");
    let plain = format!("http://{}/v2/web/blobs/{plain}", kitchen.registry.host());
    let stages = |source: &str| {
        format!(
            "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD {source} /\nFROM busybox\nARG SOURCE_DATE_EPOCH\n\
             RUN echo \"<$SOURCE_DATE_EPOCH>\" > /epoch\n"
        )
    };
    for (stage, context, expected) in [
        (url, None, time.as_str()),
        (&download, None, "0"),
        (&plain, None, ""),
        (&plain, Some(url), &time),
        (url, Some(&download), "0"),
    ] {
        kitchen.dockerfile(&stages(stage));
        let context = context.map(|context| format!("--build-context src={context}")).unwrap_or_default();
        kitchen.build(&format!("{context} --output out")).succeeds();
        assert_eq!(read(&kitchen, "out/epoch"), format!("<{expected}>\n"), "{stage} {context}");
    }
    kitchen.dockerfile(&stages("local"));
    kitchen.build("").fails().says("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD");
}

#[test]
fn a_repository_is_a_context_by_name_and_can_be_added() {
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let (library, repository) = (server.repository("library"), server.repository("r"));
    library.commit(&[("l", "library")]);
    repository.commit(&[("f", "one"), ("d/f", "below"), ("run", "#!/bin/sh\n")]);
    repository.git(&["-c", "protocol.http.allow=always", "submodule", "--quiet", "add", &library.url, "m"]);
    fs::set_permissions(repository.files.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let commit = repository.commit(&[]);
    let url = &repository.url;
    kitchen.dockerfile(&format!(
        "FROM busybox AS look\n\
         ADD --keep-git-dir {url}#main /kept/\n\
         RUN test -d /kept/.git && cut -c1-40 /kept/.git/HEAD > /head && stat -c %a-%u /kept/f /kept/run > /modes\n\
         FROM scratch\n\
         COPY --from=repo . /all/\n\
         COPY --from=repo /d /d\n\
         ADD {url}#main:d /added/\n\
         ADD --checksum={commit} {url} /checked/\n\
         COPY --from=look /head /modes /kept/f /\n"
    ));
    let line = format!("--build-context repo={url}#main --output out");
    kitchen.build(&line).succeeds();
    for (file, content) in [
        ("all/f", "one"),
        ("all/m/l", "library"),
        ("d/f", "below"),
        ("added/f", "below"),
        ("checked/f", "one"),
        ("f", "one"),
    ] {
        assert_eq!(read(&kitchen, &format!("out/{file}")), content, "{file}");
    }
    assert_eq!(read(&kitchen, "out/head").trim(), commit);
    assert_eq!(read(&kitchen, "out/modes"), "644-0\n755-0\n");
    for absent in ["all/.git", "all/m/.git", "checked/.git"] {
        assert!(!kitchen.world.path(format!("out/{absent}")).exists(), "{absent}");
    }
    kitchen.dockerfile(&format!("FROM scratch\nADD --checksum=0123abc {url} /\n"));
    kitchen.build("").fails().says(&format!("expected checksum to match 0123abc, got {commit}"));
}

/// Steps may look for the commit by any name that BuildKit gives it.
#[test]
fn a_kept_repository_knows_its_commit_by_name() {
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let repository = server.repository("r");
    let commit = repository.commit(&[("f", "one")]);
    repository.git(&["branch", "a/b"]);
    repository.git(&["tag", "light"]);
    repository.git(&["tag", "--annotate", "--message", "m", "v1"]);
    let tag = repository.git(&["rev-parse", "refs/tags/v1"]);
    let url = &repository.url;
    for (name, expected) in [
        ("", vec![format!("{commit} refs/heads/main"), format!("{commit} refs/tags/main")]),
        ("#main", vec![format!("{commit} refs/heads/main"), format!("{commit} refs/tags/main")]),
        ("#refs/heads/a/b", vec![format!("{commit} refs/heads/a/b"), format!("{commit} refs/tags/a/b")]),
        ("#light", vec![format!("{commit} refs/heads/light"), format!("{commit} refs/tags/light")]),
        ("#v1", vec![format!("{tag} refs/tags/v1")]),
        (&format!("#{commit}"), vec![]),
    ] {
        kitchen.dockerfile(&format!("FROM scratch\nADD --keep-git-dir {url}{name} /\n"));
        kitchen.build("--output out").succeeds();
        let git = |args: &[&str]| {
            let dir = kitchen.world.path("out/.git");
            let told = std::process::Command::new("git").arg("--git-dir").arg(dir).args(args).output().unwrap();
            String::from_utf8(told.stdout).unwrap()
        };
        let told = git(&["for-each-ref", "--format=%(objectname) %(refname)"]);
        assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{name}");
        assert_eq!(read(&kitchen, "out/.git/HEAD").trim(), commit, "{name}");
        assert_eq!(git(&["config", "remote.origin.url"]).trim(), url, "{name}");
        fs::remove_dir_all(kitchen.world.path("out")).unwrap();
    }
}

#[test]
fn the_clients_of_a_daemon_build_repositories() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let kitchen = &served.kitchen;
    let repository = server.repository("r");
    repository.commit(&[("Dockerfile", DOCKERFILE), ("f", "one"), ("d/Dockerfile", DOCKERFILE), ("d/f", "below")]);
    let url = &repository.url;
    let buildctl = |context: &str, args: &str| {
        let line = "build --progress=plain --frontend=dockerfile.v0";
        served.buildctl(&format!("{line} --opt context={context} {args}"))
    };
    // They take turns at the one repository.
    each((0..4).collect(), |n: usize| {
        buildctl(&format!("{url}#main:d"), &format!("--output type=local,dest=out{n}")).succeeds();
        assert_eq!(read(kitchen, &format!("out{n}/f")), "below");
    });
    let listed = served.buildctl("du --verbose").succeeds().text();
    let shared = format!("shared git repo for {url}");
    assert_eq!(listed.matches(&shared).count(), 1, "{listed}");
    assert_eq!(listed.matches(&format!("git snapshot for {url}#main")).count(), 1, "{listed}");
    if or_skip(crate::harness::tools(&["docker-buildx"])).is_some() {
        let by_git =
            buildx(&served, &format!("build --builder b --progress=plain --output type=local,dest=x {url}#:d"));
        by_git.succeeds();
        assert_eq!(read(kitchen, "x/f"), "below");
        kitchen.dockerfile("FROM scratch\nCOPY --from=repo f /\n");
        let named = format!("--build-context repo={url} --output type=local,dest=y context");
        buildx(&served, &format!("build --builder b --progress=plain {named}")).succeeds();
        assert_eq!(read(kitchen, "y/f"), "one");
    }
    served.buildctl("prune --all").succeeds();
    assert!(served.buildctl("du").succeeds().text().contains("Total:\t\t0B"));
    buildctl(url, "--output type=local,dest=again").succeeds();
    assert_eq!(read(kitchen, "again/f"), "one");
    served.ends();
}

#[test]
fn what_logs_in_is_nowhere_to_be_seen() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let kitchen = &served.kitchen;
    let repository = server.repository("r");
    repository.commit(&[("Dockerfile", DOCKERFILE), ("f", "one")]);
    // "x-access-token:t0ps3cret" and "user:t0ps3cret".
    let (token, user) = ("eC1hY2Nlc3MtdG9rZW46dDBwczNjcmV0", "dXNlcjp0MHBzM2NyZXQ=");
    let build = |url: &str, args: &str| {
        let line = format!("build --progress=plain --frontend=dockerfile.v0 --opt context={url} {args}");
        served.buildctl(&line).env("TOKEN", "t0ps3cret").env("WRONG", "wr0ngs3cret")
    };
    let url = &repository.url;
    server.wants(&format!("basic {token}"));
    build(url, "")
        .fails()
        .says("failed to fetch remote")
        .says("hint: give a token of the server with `--secret id=GIT_AUTH_TOKEN");
    let wrong = build(url, "--secret id=GIT_AUTH_TOKEN,env=WRONG").fails();
    let keep_git = "--opt build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR=1 --output type=local,dest=out";
    let right = build(url, &format!("--secret id=GIT_AUTH_TOKEN,env=TOKEN {keep_git}")).succeeds();
    assert_eq!(read(kitchen, "out/f"), "one");
    // For one host only.
    let for_host = format!("--no-cache --secret id=GIT_AUTH_TOKEN.{},env=TOKEN", server.host());
    build(url, &for_host).succeeds();
    let other_host = "--no-cache --secret id=GIT_AUTH_TOKEN.example.com,env=TOKEN";
    build(url, other_host).fails().says("hint: give a token of the server with `--secret id=GIT_AUTH_TOKEN");
    server.wants(&format!("basic {user}"));
    let in_url = url.replace("http://", "http://user:t0ps3cret@");
    repository.commit(&[("f", "two")]);
    let by_url = build(&in_url, keep_git).succeeds();
    assert_eq!(read(kitchen, "out/f"), "two");
    for ended in [&wrong, &right, &by_url] {
        for hidden in ["wr0ngs3cret", "t0ps3cret", token, user] {
            assert!(!ended.stderr.contains(hidden), "{ended:?}");
        }
    }
    let state = kitchen.world.path("daemon");
    for hidden in [token, user, "wr0ngs3cret", "t0ps3cret"] {
        assert_eq!(anywhere(&state, hidden), None, "{hidden}");
    }
    served.ends();
}

/// git by itself tells a login to whomever it is redirected to.
#[test]
fn a_login_goes_where_the_server_redirects_only_if_that_is_the_server() {
    let Some(served) = Served::new(anyone(), "") else { return };
    let (Some(home), Some(abroad)) = (or_skip(GitServer::start()), or_skip(GitServer::start())) else { return };
    let kitchen = &served.kitchen;
    let (old, new, other) = (home.repository("old"), home.repository("new"), abroad.repository("other"));
    new.commit(&[("Dockerfile", DOCKERFILE), ("f", "new")]);
    other.commit(&[("Dockerfile", DOCKERFILE), ("f", "other")]);
    let build = || {
        let secret = "--secret id=GIT_AUTH_TOKEN,env=TOKEN --output type=local,dest=out";
        let line = format!("build --progress=plain --frontend=dockerfile.v0 --opt context={} {secret}", old.url);
        served.buildctl(&line).env("TOKEN", "t0ps3cret")
    };
    let login = "basic eC1hY2Nlc3MtdG9rZW46dDBwczNjcmV0";
    home.wants(login);
    home.moves("old", &new.url);
    build().succeeds();
    assert_eq!(read(kitchen, "out/f"), "new");
    // What anybody may have there is had.
    home.moves("old", &other.url);
    let said = format!("it redirects to `http://{}`, where the login must not go: it is asked without", abroad.host());
    build().succeeds().says(&said);
    assert_eq!(read(kitchen, "out/f"), "other");
    abroad.wants(login);
    other.commit(&[("f", "secret")]);
    build().fails().says(&said);
    assert_eq!(abroad.take_logins(), [""; 0]);
    assert!(home.take_logins().iter().all(|told| told == login));
    served.ends();
}

/// `ssh` of this machine is a script that notes how it was called, and has the repository here.
#[test]
fn a_clients_key_opens_a_repository() {
    needs!(tool "ssh-keygen");
    let Some(kitchen) = Kitchen::new(anyone()) else { return };
    let Some(server) = or_skip(GitServer::start()) else { return };
    let repository = server.repository("r");
    repository.commit(&[("Dockerfile", DOCKERFILE), ("f", "one")]);
    // Whoever builds reads it.
    kitchen.who.own(&kitchen.world, repository.git_dir.to_str().unwrap());
    let made = kitchen.world.run("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", "key"]);
    made.succeeds();
    kitchen.who.own(&kitchen.world, "key");
    fs::create_dir(kitchen.world.path("bin")).unwrap();
    symlink(testkit::need::program("git").unwrap(), kitchen.world.path("bin/git")).unwrap();
    let noted = kitchen.world.path("noted");
    let script = format!(
        "#!/bin/sh\n[ -S \"$SSH_AUTH_SOCK\" ] || exit 7\necho \"$@\" >> {}\nfor last; do :; done\nPATH=/usr/local/bin:/usr/bin:/bin eval \"$last\"\n",
        noted.display()
    );
    let ssh = kitchen.world.write("bin/ssh", script);
    fs::set_permissions(ssh, fs::Permissions::from_mode(0o755)).unwrap();
    kitchen.who.own(&kitchen.world, "bin");
    let url = format!("ssh://git@repositories.example{}", repository.git_dir.display());
    build(&kitchen, &url, "")
        .fails()
        .says("no SSH key \"default\" forwarded from the client")
        .says("hint: forward an agent or a key with `--ssh default`");
    build(&kitchen, &url, "--ssh default=key --output out").succeeds();
    assert_eq!(read(&kitchen, "out/f"), "one");
    let noted = read(&kitchen, "noted");
    for option in ["-F /dev/null", "BatchMode=yes", "IdentityFile=none", "git@repositories.example"] {
        assert!(noted.lines().all(|line| line.contains(option)), "{option}: {noted}");
    }
    assert!(!noted.contains("key"), "{noted}");
}

#[test]
fn a_machine_without_git_says_so() {
    let Some(kitchen) = Kitchen::new(Who::Root) else { return };
    let line = ["build", "--progress=plain", "--root=state", "http://127.0.0.1:1/r.git"];
    let failed = kitchen.who.hullworks(&kitchen.world).args(line).env("PATH", "/nowhere").fails();
    failed
        .says("git repositories need the program `git`, which is not installed here")
        .hints("install git where the builder runs, or clone the repository and build its directory");
}
