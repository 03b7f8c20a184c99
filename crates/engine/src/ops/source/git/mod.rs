//! `git://`: the files of a commit, by the program `git`.
//!
//! What a branch or tag stands for is asked once in a build; the commit is the key of the result, so that a commit is
//! checked out once. Objects of a remote are kept in one bare repository for all builds, which take turns.

mod address;
mod checkout;
mod program;
mod remote;

use std::sync::Arc;

use base::progress::Stream;
use base::report::Tasks;
use base::{Fault, Kind, Secret};
use http_client::header::{self, HeaderValue};
use http_client::{Redirects, Request, Retry, TlsIdentity, Url};
use llb::pb;
use tokio_util::sync::CancellationToken;

use super::super::OpContext;
use super::identifier::{Source, bad, unknown};
use crate::core::{Core, blocking, joined, store_fault};
use crate::job::Job;
use crate::room::with_room;
use crate::ssh::AgentSocket;
use crate::tree::Tree;

use program::{Git, KnownHosts, Login, ssh_command};

pub(crate) use program::Surroundings;
pub(crate) use remote::Commit;

/// The snapshots of commits.
const CHECKOUTS: &str = "git-checkouts";

/// A commit of a repository, or some of its files.
#[derive(Clone, Debug, Default)]
pub(crate) struct GitSource {
    /// Where it is fetched from, without user or password where that is a web server.
    remote: String,
    /// `user:password` of the address.
    user: Option<Secret>,
    /// Branch, tag or commit; empty: the default branch.
    reference: String,
    /// Relative, without `..`; empty: all.
    subdir: String,
    /// What its commit begins with.
    checksum: String,
    keep_git_dir: bool,
    skip_submodules: bool,
    /// Files are as old as the commit.
    commit_times: bool,
    /// Nobody is asked what the reference stands for: it is the checksum.
    fetch_by_commit: bool,
    /// Names of secrets.
    auth_token_secret: String,
    auth_header_secret: String,
    known_hosts: String,
    /// The id of an SSH agent of the client.
    agent: String,
}

impl GitSource {
    pub(super) fn read(rest: &str, op: &pb::SourceOp) -> Result<GitSource, Fault> {
        let (mut remote, reference, subdir) = address::split(&address::with_transport(rest));
        let mut source = GitSource { reference, subdir, ..GitSource::default() };
        for (key, value) in &op.attrs {
            let flag = value == "true";
            match key.as_str() {
                "git.fullurl" => remote = address::with_transport(value),
                "git.keepgitdir" => source.keep_git_dir = flag,
                "git.skipsubmodules" => source.skip_submodules = flag,
                "git.fetchbycommit" => source.fetch_by_commit = flag,
                "git.checksum" => source.checksum.clone_from(value),
                "git.mtime" => {
                    source.commit_times = match value.as_str() {
                        "" | "checkout" => false,
                        "commit" => true,
                        _ => return Err(bad(key, value, "neither `checkout` nor `commit`")),
                    }
                }
                "git.authtokensecret" => source.auth_token_secret.clone_from(value),
                "git.authheadersecret" => source.auth_header_secret.clone_from(value),
                "git.knownsshhosts" => source.known_hosts.clone_from(value),
                "git.mountsshsock" => source.agent.clone_from(value),
                _ => return Err(unknown(key)),
            }
        }
        if source.reference.starts_with('-') {
            return Err(Fault::user(format!("invalid git ref \"{}\"", source.reference)));
        }
        if !source.checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let text = format!("invalid checksum {} for Git URL, expected hex commit hash", source.checksum);
            return Err(Fault::user(text));
        }
        let (remote, user) = address::without_user(&remote);
        (source.remote, source.user) = (remote, user.map(Secret::new));
        Ok(source)
    }

    /// How it is shown.
    fn shown(&self) -> String {
        base::redact_url(&self.remote)
    }

    /// What tells the snapshot of a commit from others.
    fn key_of(&self, commit: &Commit) -> String {
        let sha = if self.keep_git_dir { &commit.object } else { &commit.commit };
        let mut key = sha.clone();
        if self.keep_git_dir {
            key.push_str(".git");
            if !commit.reference.is_empty() {
                key.push_str(&format!("#{}", commit.reference));
            }
        }
        if !self.subdir.is_empty() {
            key.push_str(&format!(":{}", self.subdir));
        }
        if self.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if self.commit_times {
            key.push_str("(mtime=commit)");
        }
        key
    }
}

/// What builds ask for repositories with.
pub(crate) struct Asking<'a> {
    pub(crate) core: &'a Arc<Core>,
    /// Never empty.
    pub(crate) jobs: &'a [Arc<Job>],
    pub(crate) tasks: Tasks,
    pub(crate) cancel: CancellationToken,
}

impl<'a> Asking<'a> {
    pub(super) fn of(ctx: &'a OpContext) -> Asking<'a> {
        Asking { core: &ctx.core, jobs: &ctx.jobs, tasks: ctx.tasks.clone(), cancel: ctx.cancel.clone() }
    }

    /// What a client may know of a commit before it is read; its objects, too, where they are wanted.
    ///
    /// A client may go away meanwhile. What git needs is not taken from it before it has ended, hence a task.
    pub(crate) async fn describe(&self, op: &pb::SourceOp, wants_objects: bool) -> Result<GitDescription, Fault> {
        let (core, jobs, tasks, op) = (self.core.clone(), self.jobs.to_vec(), self.tasks.clone(), op.clone());
        let cancel = self.cancel.child_token();
        let _unwanted = cancel.clone().drop_guard();
        let work = async move {
            let asking = Asking { core: &core, jobs: &jobs, tasks, cancel };
            asking.describe_here(&op, wants_objects).await
        };
        joined(tokio::spawn(work)).await
    }

    async fn describe_here(&self, op: &pb::SourceOp, wants_objects: bool) -> Result<GitDescription, Fault> {
        let Source::Git(source) = Source::read(op)? else {
            return Err(Fault::new(Kind::Internal, "no git source"));
        };
        let Commit { reference, object, commit } = (*commit(self, &source).await?).clone();
        let mut described = GitDescription { reference, object, ..GitDescription::default() };
        if !source.keep_git_dir && commit != described.object {
            described.commit = commit;
        }
        if wants_objects {
            self.add_objects(&source, &mut described).await?;
        }
        Ok(described)
    }

    async fn add_objects(&self, source: &GitSource, described: &mut GitDescription) -> Result<(), Fault> {
        let access = access(self, source).await?;
        let GitDescription { reference, object, .. } = described;
        let found = Commit { reference: reference.clone(), object: object.clone(), commit: object.clone() };
        let repository = remote::fetch(self, &access.git, source, &found).await?;
        let git = access.git.in_dir(repository.dir());
        let failed = |trouble: program::Trouble| trouble.fault(format!("cannot read a commit of {}", source.shown()));
        let mut commit = object.clone();
        if git.line(&["cat-file", "-t", object]).await.map_err(failed)? == "tag" {
            described.tag_object = git.run(&["cat-file", "tag", object]).await.map_err(failed)?;
            commit = git.line(&["rev-parse", &format!("{object}^{{commit}}")]).await.map_err(failed)?;
            described.commit.clone_from(&commit);
        }
        described.commit_object = git.run(&["cat-file", "commit", &commit]).await.map_err(failed)?;
        Ok(())
    }
}

/// What is known of a commit.
#[derive(Clone, Debug, Default)]
pub struct GitDescription {
    /// The full name of the branch or tag.
    pub reference: String,
    /// What it names.
    pub object: String,
    /// Of an annotated tag: the commit behind it.
    pub commit: String,
    /// The commit, as git keeps it; empty where it was not asked for.
    pub commit_object: Vec<u8>,
    /// The tag, likewise.
    pub tag_object: Vec<u8>,
}

/// How git is run for this source. Sockets and files last as long as this does.
struct Access {
    git: Git,
    _agent: Option<AgentSocket>,
    _known_hosts: Option<KnownHosts>,
}

async fn access(ctx: &Asking<'_>, source: &GitSource) -> Result<Access, Fault> {
    let core = ctx.core;
    let known_hosts = match source.known_hosts.as_str() {
        "" => None,
        text => Some(KnownHosts::write(&core.scratch, text)?),
    };
    let agent = match source.agent.as_str() {
        "" => None,
        id => {
            let agent = crate::job::agent(ctx.jobs, id).await?;
            let agent = agent.ok_or_else(|| {
                Fault::user(format!("no SSH key \"{id}\" forwarded from the client"))
                    .hint(format!("forward an agent or a key with `--ssh {id}`"))
            })?;
            let opt = pb::SshOpt { mode: 0o700, ..pb::SshOpt::default() };
            Some(AgentSocket::open(&core.scratch, agent, &opt)?)
        }
    };
    let (mut remote, mut login) = (source.remote.clone(), login(ctx, source).await?);
    if let Some(known) = login.take()
        && let Some(settled) = settled(ctx, source, &known.header).await
    {
        remote = settled;
        login = Some(Login { scope: address::login_scope(&remote), ..known });
    }
    let git = Git {
        surroundings: core.surroundings.clone(),
        remote,
        login,
        ssh_command: ssh_command(known_hosts.as_ref().map(KnownHosts::path)),
        agent: agent.as_ref().map(AgentSocket::path),
        git_dir: None,
        work_tree: None,
        tasks: ctx.tasks.clone(),
        is_quiet: false,
        cancel: ctx.cancel.clone(),
    };
    Ok(Access { git, _agent: agent, _known_hosts: known_hosts })
}

/// What logs in: secrets of the client, one for the host first; else what the address says.
async fn login(ctx: &Asking<'_>, source: &GitSource) -> Result<Option<Login>, Fault> {
    let Some(host) = address::web_host(&source.remote) else { return Ok(None) };
    let (header, token) = (&source.auth_header_secret, &source.auth_token_secret);
    let names = [(header, format!("{header}.{host}")), (token, format!("{token}.{host}"))];
    let names = names.into_iter().chain([(header, header.clone()), (token, token.clone())]);
    let scope = address::login_scope(&source.remote);
    for (kind, name) in names.filter(|(kind, _)| !kind.is_empty()) {
        let Some(secret) = crate::job::secret(ctx.jobs, &name).await? else { continue };
        let value = secret.expose().trim_ascii();
        if value.iter().any(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
            return Err(Fault::user(format!("secret `{name}` has several lines, which no header can have")));
        }
        return Ok(Some(match std::ptr::eq(kind, token) {
            true => Login::basic(scope, &[b"x-access-token:", value].concat()),
            false => Login::header(scope, value),
        }));
    }
    Ok(source.user.as_ref().map(|user| Login::basic(scope, user.expose())))
}

/// Where a repository that takes a login is by now; nowhere, if that is not for who has the login to say.
///
/// git tells a login to whomever it is redirected to. With one, it is given the address where redirects end on the same server, and
/// follows none itself.
async fn settled(ctx: &Asking<'_>, source: &GitSource, login: &Secret) -> Option<String> {
    const REFERENCES: &str = "/info/refs";
    let stay = || Some(source.remote.clone());
    let Ok(mut url) = Url::parse(&source.remote) else { return stay() };
    url.set_path(&format!("{}{REFERENCES}", url.path().trim_end_matches('/')));
    url.set_query(Some("service=git-upload-pack"));
    let Ok(mut value) = HeaderValue::from_bytes(login.expose()) else { return stay() };
    value.set_sensitive(true);
    let mut request = Request::get(url.clone()).header(header::USER_AGENT, "git/hullworks").retry(Retry::NEVER);
    request.headers.insert(header::AUTHORIZATION, value);
    request.redirects = Redirects::Home;
    let client = ctx.core.http.client(&TlsIdentity::default());
    match async { client?.send(&request).await }.await {
        Ok(answer) if *answer.url() != url => {
            let mut moved = answer.url().clone();
            let Some(path) = moved.path().strip_suffix(REFERENCES).map(str::to_owned) else { return stay() };
            moved.set_path(&path);
            moved.set_query(None);
            Some(moved.into())
        }
        Err(error @ http_client::Error::Redirect { .. }) => {
            ctx.tasks.log(Stream::Stderr, format!("{error}: it is asked without\n").as_bytes());
            None
        }
        // git says itself what is wrong.
        Ok(_) | Err(_) => stay(),
    }
}

/// The commit; one build asks for it once.
async fn commit(ctx: &Asking<'_>, source: &GitSource) -> Result<Arc<Commit>, Fault> {
    if let Some(known) = remote::known(source)? {
        return Ok(Arc::new(known));
    }
    let cell = ctx.jobs[0].commit(&format!("{}#{}", source.remote, source.reference));
    let asked = cell.get_or_try_init(|| async {
        let access = access(ctx, source).await?;
        remote::ask(&access.git, source).await.map(Arc::new)
    });
    let commit = asked.await?.clone();
    remote::check(source, &commit)?;
    Ok(commit)
}

/// What stands for the files.
pub(super) async fn key(ctx: &OpContext, source: &GitSource) -> Result<String, Fault> {
    Ok(source.key_of(&*commit(&Asking::of(ctx), source).await?))
}

pub(super) async fn run(ctx: &OpContext, source: &GitSource) -> Result<Tree, Fault> {
    let asking = Asking::of(ctx);
    let commit = commit(&asking, source).await?;
    let key = source.key_of(&commit);
    let checkouts = ctx.core.store.kv(CHECKOUTS);
    let known = checkouts.get(&key).ok().flatten().and_then(|id| String::from_utf8(id).ok()?.parse().ok());
    if let Some(hold) = known.and_then(|id| ctx.core.store.snapshots().hold(&id)) {
        return Ok(Tree::snapshot(hold));
    }
    let access = access(&asking, source).await?;
    let repository = remote::fetch(&asking, &access.git, source, &commit).await?;
    let checkout = || checkout::checkout(ctx, &access.git, source, &commit, repository.dir());
    let tree = with_room(&ctx.core.store, &ctx.tasks, checkout).await?;
    if let Tree::Snapshot(hold) = &tree {
        let (store, snapshot) = (ctx.core.store.clone(), hold.id());
        let put = move || store.with_room(0, || checkouts.put_with(&key, snapshot.to_string(), &snapshot));
        blocking(put).await.map_err(|e| store_fault("cannot keep a checkout", e))?;
    }
    Ok(tree)
}

fn gone(what: &str, error: std::io::Error) -> Fault {
    Fault::because(Kind::Environment, format!("cannot {what} a git checkout"), error)
}
