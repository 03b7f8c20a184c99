//! The client's directories, read in place.
//!
//! Only what the source's filters let through exists, owners are root, and nothing is ever written there. The list of
//! files is taken once, when the source is opened; what changes afterwards is noticed when it is copied. Then the build is
//! solved again with a new reading of the directory ([`Job::read_anew`]), a few times at most.

use std::sync::Arc;

use base::{Fault, Kind};
use files::checksum;
use files::walk::Filter;
use session::LocalDir;
use store::Hold;
use sys::path::Root;
use tokio::sync::OnceCell;

use crate::core::{Core, blocking};
use crate::job::Job;
use crate::memo::FileDigests;
use crate::ops::OpContext;
use crate::ops::source::LocalSource;
use crate::tree::Tree;

/// Where digests of files are kept, by directory.
const DIGESTS: &str = "file-digests";

/// What to do about a directory that changed each time it was read.
pub(crate) const AT_REST: &str = "the directory changes while it is built: build again when it is at rest";

/// A directory of the client.
#[derive(Debug)]
pub(crate) struct LocalTree {
    pub(crate) root: Arc<Root>,
    /// Its files and what is known of their content.
    pub(crate) tree: checksum::Tree,
    /// Digests of files that earlier builds read.
    pub(crate) memo: FileDigests,
    /// What `.dockerignore` and the like leave out.
    exclude: Vec<String>,
    /// A copy of it, for those who cannot read it in place.
    copy: OnceCell<Arc<Hold>>,
}

impl LocalTree {
    pub(crate) async fn open(ctx: &OpContext, source: &LocalSource) -> Result<Tree, Fault> {
        let root = open_dir(&ctx.jobs, source.session.as_deref(), &source.name).await?;
        let filter = Filter {
            include: source.include.clone().unwrap_or_default(),
            exclude: source.exclude.clone().unwrap_or_default(),
            follow: source.follow_paths.clone().unwrap_or_default(),
        };
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
        Ok(Tree::Local(Arc::new(LocalTree { root, tree, memo, exclude, copy: OnceCell::new() })))
    }

    /// Whether the path is there, but excluded: worth a hint where it is missed.
    pub(crate) fn is_excluded(&self, path: &str) -> bool {
        let path = path.trim_start_matches('/');
        let matches = files::pattern::Matcher::new(&self.exclude).and_then(|matcher| matcher.matches(path));
        matches.unwrap_or(false) && self.root.stat(path, sys::path::Links::FollowParents).is_ok()
    }

    /// The directory as a snapshot, made when first asked for.
    pub(crate) async fn copied(self: &Arc<Self>, core: &Core, cancel: base::Cancel) -> Result<Arc<Hold>, Fault> {
        let copy = self.copy.get_or_try_init(|| async {
            let active = core.prepare(None, "local source").await?;
            let (tree, dir) = (self.clone(), active.dir());
            blocking(move || crate::ops::file::copy_everything(&tree, &dir, &cancel)).await?;
            match core.commit(active).await? {
                Tree::Snapshot(hold) => Ok(hold),
                _ => Err(Fault::new(Kind::Internal, "a commit made no snapshot")),
            }
        });
        copy.await.cloned()
    }
}

/// Opens the directory that a session shares under `name`: the named session's, else that of any of the builds.
pub(crate) async fn open_dir(jobs: &[Arc<Job>], session: Option<&str>, name: &str) -> Result<Arc<Root>, Fault> {
    let named = jobs.iter().filter(|job| Some(job.session.id()) == session);
    for job in named.chain(jobs) {
        let Some(LocalDir::InPlace(path)) = job.session.local(name).await? else { continue };
        return Root::open(&path)
            .map(Arc::new)
            .map_err(|e| Fault::because(Kind::User, format!("cannot open `{}`", path.display()), e));
    }
    Err(Fault::user(format!("no local directory named `{name}` was given"))
        .hint(format!("share it with `--local {name}=<directory>`")))
}
