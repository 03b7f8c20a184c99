//! The client's directories: read in place, or mirrored here.
//!
//! Only what the source's filters let through exists, owners are root, and nothing is ever written there. The list of
//! files is taken once, when the source is opened; what changes afterwards is noticed when it is copied. Then the build is
//! solved again with a new reading of the directory ([`Job::read_anew`]), a few times at most.
//!
//! The directory of a client elsewhere is transferred into a snapshot of its own, one build at a time, which the next
//! build of the same directory brings up to date. From then on it is a directory in place that nobody changes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use base::{Fault, Kind};
use files::checksum;
use files::receive::{Mirror, Receiver};
use files::walk::{Filter, Hidden};
use session::remote::Nearby;
use session::{LocalDir, RemoteDir};
use store::Hold;
use sys::path::Root;
use tokio::sync::OnceCell;

use crate::core::{Core, blocking, store_fault};
use crate::job::Job;
use crate::memo::FileDigests;
use crate::ops::OpContext;
use crate::ops::source::LocalSource;
use crate::room;
use crate::tree::Tree;

/// Where digests of files are kept, by directory.
const DIGESTS: &str = "file-digests";

/// What is in mirrors, by snapshot: the machine's start, then the files.
const MIRRORS: &str = "mirrors";

/// What to do about a directory that changed each time it was read.
pub(crate) const AT_REST: &str = "the directory changes while it is built: build again when it is at rest";

/// A directory of the client.
#[derive(Debug)]
pub(crate) struct LocalTree {
    /// What the client calls the directory.
    name: String,
    pub(crate) root: Arc<Root>,
    /// Its files and what is known of their content.
    pub(crate) tree: checksum::Tree,
    /// Digests of files that earlier builds read.
    pub(crate) memo: FileDigests,
    /// What `.dockerignore` and the like leave out.
    exclude: Vec<String>,
    /// A copy of it, for those who cannot read it in place.
    copy: OnceCell<Arc<Hold>>,
    /// What keeps others from changing it, where it is a mirror.
    mirror: Option<store::CacheMount>,
}

/// Where a directory of the client is.
pub(crate) enum Found {
    /// Here.
    InPlace(Arc<Root>),
    /// With the client.
    Remote(Arc<dyn RemoteDir>),
}

impl LocalTree {
    pub(crate) async fn open(ctx: &OpContext, source: &LocalSource) -> Result<Tree, Fault> {
        let mut filter = Filter {
            include: source.include.clone().unwrap_or_default(),
            exclude: source.exclude.clone().unwrap_or_default(),
            follow: source.follow_paths.clone().unwrap_or_default(),
            hidden: None,
        };
        let root = match find(&ctx.jobs, source.session.as_deref(), &source.name).await? {
            Found::InPlace(root) => root,
            Found::Remote(remote) => return mirrored(ctx, source, &filter, &*remote).await,
        };
        // The state directory changes all the time, and nobody wants it in an image.
        let state = Hidden::new(ctx.core.store.dir()).map(Arc::new);
        filter.hidden.clone_from(&state);
        let opened = match source.chosen {
            // What is made of it is not what is there.
            Some(_) => mirrored(ctx, source, &filter, &Nearby::new(&source.name, root)).await,
            None => LocalTree::open_here(ctx, source, filter, root).await,
        };
        if let Some(path) = state.as_ref().and_then(|state| state.met()) {
            tell_left_out(ctx, source, path.as_os_str());
        }
        opened
    }

    async fn open_here(ctx: &OpContext, source: &LocalSource, filter: Filter, root: Arc<Root>) -> Result<Tree, Fault> {
        let cancel = ctx.blocking_cancel();
        let kept = ctx.core.store.kv(DIGESTS);
        let directory = root.path().to_string_lossy().into_owned();
        // To read back what is known of many files takes about as long as to list them: both at once.
        let (memo, walked) = tokio::join!(
            blocking(move || FileDigests::load(kept, directory, &store::boot_id())),
            blocking(move || checksum::Tree::of_context(&root, &filter, &cancel).map(|tree| (root, tree))),
        );
        let (root, tree) = walked.map_err(|error| {
            let is_bracket = matches!(&error, files::Error::Pattern { .. })
                && source.include.iter().chain(&source.follow_paths).flatten().any(|pattern| pattern.starts_with('['));
            let fault = Fault::because(Kind::User, format!("cannot read the files of `{}`", source.name), error);
            if is_bracket {
                fault.hint("a list is JSON, with all names in double quotes: COPY [\"a\", \"/b\"]")
            } else {
                fault
            }
        })?;
        let exclude = source.exclude.clone().unwrap_or_default();
        Ok(Tree::Local(Arc::new(LocalTree {
            name: source.name.clone(),
            root,
            tree,
            memo,
            exclude,
            copy: OnceCell::new(),
            mirror: None,
        })))
    }

    /// Whether it is kept here for a client elsewhere.
    pub(crate) fn is_mirror(&self) -> bool {
        self.mirror.is_some()
    }

    /// A hint for who misses a path that is excluded.
    pub(crate) fn why_missing(&self, path: &str) -> Option<String> {
        let name = path.trim_start_matches('/');
        let matches = files::pattern::Matcher::new(&self.exclude).and_then(|matcher| matcher.matches(name));
        match (matches.unwrap_or(false), &self.mirror) {
            (false, None) => self.similar(name).map(|similar| format!("did you mean `{similar}`?")),
            (false, Some(_)) => None,
            // Only the client knows what is there.
            (true, Some(_)) => Some(format!("`.dockerignore` excludes `{path}`")),
            (true, None) => {
                let is_there = self.root.stat(name, sys::path::Links::FollowParents).is_ok();
                is_there.then(|| format!("`{path}` is there, but `.dockerignore` excludes it"))
            }
        }
    }

    /// A path that is here, where one name of it is nearly that of `path`.
    fn similar(&self, path: &str) -> Option<String> {
        use sys::path::Links;
        /// Names of a directory that are looked at.
        const MOST: usize = 10_000;
        let mut parent = String::new();
        let mut names = path.trim_end_matches('/').split('/');
        loop {
            let name = names.next()?;
            let here = format!("{parent}{name}");
            if self.root.stat(&here, Links::FollowParents).is_ok() {
                parent = format!("{here}/");
                continue;
            }
            let at = if parent.is_empty() { "." } else { &parent };
            let dir = rustix::fs::Dir::new(self.root.open_dir(at, Links::FollowParents).ok()?).ok()?;
            let entries =
                dir.flatten().take(MOST).filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
            let mut there: Vec<String> = entries.filter(|name| name != "." && name != "..").collect();
            there.sort_unstable();
            let near = base::suggest::likely(name, there.iter().map(String::as_str))?;
            let found = std::iter::once(near).chain(names).collect::<Vec<_>>().join("/");
            let found = format!("{parent}{found}");
            let is_hidden = files::pattern::Matcher::new(&self.exclude).and_then(|matcher| matcher.matches(&found));
            let is_there = self.root.stat(&found, Links::FollowParents).is_ok();
            return (is_there && !is_hidden.unwrap_or(true)).then_some(found);
        }
    }

    /// The directory as a snapshot, made when first asked for.
    pub(crate) async fn copied(self: &Arc<Self>, core: &Core, cancel: base::Cancel) -> Result<Arc<Hold>, Fault> {
        let copy = self.copy.get_or_try_init(|| async {
            let mut room = core.store.room();
            loop {
                match self.copy_now(core, cancel.clone()).await {
                    Err(fault) if room::wants_room(&fault) && room::make_quietly(&mut room, 0).await.is_some() => {}
                    copied => return copied,
                }
            }
        });
        copy.await.cloned()
    }

    async fn copy_now(self: &Arc<Self>, core: &Core, cancel: base::Cancel) -> Result<Arc<Hold>, Fault> {
        let active = core.prepare(None, &format!("local source for {}", self.name)).await?;
        let (tree, dir) = (self.clone(), active.dir());
        blocking(move || crate::ops::file::copy_everything(&tree, &dir, &cancel)).await?;
        match core.commit(active).await? {
            Tree::Snapshot(hold) => Ok(hold),
            _ => Err(Fault::new(Kind::Internal, "a commit made no snapshot")),
        }
    }
}

/// Warns that the state directory is left out, unless it is excluded anyway.
fn tell_left_out(ctx: &OpContext, source: &LocalSource, path: &OsStr) {
    let exclude = source.exclude.iter().flatten().map(String::as_bytes);
    let matches = files::pattern::Matcher::new(exclude).and_then(|matcher| matcher.matches(path.as_bytes()));
    if !matches.unwrap_or(true) {
        let state = path.display();
        let text = format!("the state directory `{state}` is left out of the context: put it into .dockerignore");
        ctx.jobs.iter().for_each(|job| job.warn_once("reading the context", text.clone()));
    }
}

/// How long what a mirror is found by may be, as it is.
const MAX_ID: usize = 8 << 10;

/// Brings the mirror of a directory up to date.
async fn mirrored(
    ctx: &OpContext,
    source: &LocalSource,
    filter: &Filter,
    remote: &dyn RemoteDir,
) -> Result<Tree, Fault> {
    let described = if source.chosen.is_some() { ":metadata" } else { "" };
    let chosen = source.chosen.as_deref().map(files::pattern::Matcher::new).transpose();
    let chosen = chosen.map_err(|e| Fault::because(Kind::User, "cannot choose files to transfer", e))?;
    let id = format!("local{described}:{}:{}:{}", source.name, source.shared_key_hint, remote.shared_key());
    let request = store::CacheMountRequest {
        // Clients may have megabytes in it.
        id: if id.len() > MAX_ID { format!("local:{}", base::Digest::of(&id)) } else { id },
        from: None,
        sharing: store::Sharing::Private,
        kind: store::RecordKind::LocalSource,
        description: format!("local source for {}", source.name),
    };
    let snapshots = ctx.core.store.snapshots();
    let mirror = blocking(move || snapshots.cache_mount(&request, || ())).await;
    let mirror = mirror.map_err(|e| store_fault("cannot open a mirror of the client's directory", e))?;
    let mirror = mirror.ok_or_else(|| Fault::new(Kind::Internal, "a private mirror is in use"))?;
    let view = mirror.view().map_err(|e| store_fault("cannot open a mirror of the client's directory", e))?;
    let sys::mount::FsView::Dir { path, .. } = view else {
        return Err(Fault::new(Kind::Internal, "a mirror is no plain directory"));
    };
    let mut task = ctx.tasks.start(format!("transferring {}:", source.name), 0);
    let transfer = tokio::select! {
        transfer = remote.transfer(filter) => transfer?,
        () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
    };
    let (id, differ, cancel) = (mirror.id(), source.differ, ctx.blocking_cancel());
    let (records, digests) = (ctx.core.store.kv(MIRRORS), ctx.core.store.kv(DIGESTS));
    let failed = |what: &str, path: &std::path::Path, error| {
        Fault::because(Kind::Environment, format!("cannot {what} `{}`", path.display()), error)
    };
    let tree = blocking(move || {
        let boot = store::boot_id();
        let root = Root::open(&path).map_err(|error| failed("open", &path, error))?;
        let memo = FileDigests::load(digests, path.to_string_lossy().into_owned(), &boot);
        let kept = |error| store_fault("cannot keep what the client sent", error);
        let known = records.get(id.to_string()).ok().flatten();
        // Of another start of the machine nothing is known.
        let known = known.filter(|bytes| bytes.starts_with(boot.as_bytes()));
        let known = known.and_then(|mut bytes| Mirror::from_bytes(bytes.split_off(boot.len())));
        let mut changed = false;
        // From then on what is there is not what the record says.
        let mut forget = || {
            changed = true;
            records.delete(id.to_string()).map_err(std::io::Error::other)
        };
        let receiving = |error| Fault::because(Kind::Environment, "cannot receive the client's directory", error);
        let mut receiver = Receiver::new(&root, known, differ, &memo, &mut forget).map_err(receiving)?;
        match &chosen {
            Some(chosen) => transfer.into_dir_chosen(&mut receiver, chosen, &cancel, &mut |bytes| task.at(bytes))?,
            None => transfer.into_dir(&mut receiver, &cancel, &mut |bytes| task.at(bytes))?,
        }
        let received = receiver.finish().map_err(receiving)?;
        if changed {
            let mut record = boot.into_bytes();
            received.write_to(&mut record);
            if let Some(allocated) = received.allocated() {
                mirror.holds(allocated);
            }
            records.put_with(id.to_string(), record, &id).map_err(kept)?;
            memo.save();
        } else {
            mirror.is_as_it_was();
        }
        Ok((Arc::new(root), checksum::Tree::of_entries(received.into_entries()), memo, mirror))
    });
    let tree =
        tree.await.map_err(|fault| if room::is_full(&fault) { fault.hint(base::hint::no_space()) } else { fault });
    let (root, tree, memo, mirror) = tree?;
    let exclude = filter.exclude.clone();
    let name = source.name.clone();
    let tree = LocalTree { name, root, tree, memo, exclude, copy: OnceCell::new(), mirror: Some(mirror) };
    Ok(Tree::Local(Arc::new(tree)))
}

/// Finds the directory that a session shares under `name`: the named session's, else that of any of the builds.
pub(crate) async fn find(jobs: &[Arc<Job>], session: Option<&str>, name: &str) -> Result<Found, Fault> {
    for session in crate::job::sessions(jobs, session).await {
        match session.local(name).await? {
            None => continue,
            Some(LocalDir::Remote(remote)) => return Ok(Found::Remote(remote)),
            Some(LocalDir::InPlace(path)) => {
                let root = Root::open(&path).map(Arc::new);
                return root
                    .map(Found::InPlace)
                    .map_err(|e| Fault::because(Kind::User, format!("cannot open `{}`", path.display()), e));
            }
        }
    }
    Err(Fault::user(format!("no local directory named `{name}` was given"))
        .hint(format!("share it with `--local {name}=<directory>`")))
}
