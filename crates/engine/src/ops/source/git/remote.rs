//! What a reference stands for, and fetching it into the bare repository that all builds of a remote share.

use std::path::{Path, PathBuf};

use base::{Fault, Kind};
use store::{CacheMountRequest, RecordKind, Sharing};

use super::program::{Git, Trouble, last_words};
use super::{Asking, GitSource};
use crate::core::{blocking, store_fault};
use crate::room::with_room;

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The full name, such as `refs/heads/main`; of a commit, its digest.
    pub(super) reference: String,
    /// What it names: of an annotated tag, the tag.
    pub(super) object: String,
    /// The commit behind it.
    pub(super) commit: String,
}

/// Locks that a killed git leaves. Nobody else is at work in the repository.
const LOCKS: [&str; 5] = ["shallow.lock", "index.lock", "HEAD.lock", "config.lock", "packed-refs.lock"];
/// How the names of objects and packs begin before they are whole.
const TEMPORARY: [&[u8]; 4] = [b"tmp_pack_", b"tmp_idx_", b"tmp_rev_", b"tmp_obj_"];
/// What git says where references or objects that are here stand in the way of new ones.
const STALE: [&str; 8] = [
    "would clobber existing tag",
    "some local refs could not be updated",
    "cannot lock ref",
    "unable to update local ref",
    "object file",
    "bad object",
    "not a git repository",
    "index file",
];

/// The digest of a commit, whole.
fn is_sha(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What need not be asked for.
pub(super) fn known(source: &GitSource) -> Result<Option<Commit>, Fault> {
    let GitSource { reference, checksum, .. } = source;
    let commit = |reference: String, sha: &str| Commit { reference, object: sha.to_owned(), commit: sha.to_owned() };
    if is_sha(reference) {
        let known = commit(reference.clone(), reference);
        check(source, &known)?;
        return Ok(Some(known));
    }
    if !source.fetch_by_commit {
        return Ok(None);
    }
    if !is_sha(checksum) {
        let text = match checksum.as_str() {
            "" => "fetch-by-commit requires a checksum or a commit SHA ref".to_owned(),
            part => format!("fetch-by-commit requires a full commit SHA checksum, got \"{part}\""),
        };
        return Err(Fault::user(text));
    }
    let reference = match reference.as_str() {
        "" => checksum.clone(),
        full if full.starts_with("refs/") => full.to_owned(),
        branch => format!("refs/heads/{branch}"),
    };
    Ok(Some(commit(reference, checksum)))
}

/// A commit must be the one that the build wants.
pub(super) fn check(source: &GitSource, commit: &Commit) -> Result<(), Fault> {
    let Commit { object, commit, .. } = commit;
    if object.starts_with(&source.checksum) || commit.starts_with(&source.checksum) {
        return Ok(());
    }
    let found = if object == commit { object.clone() } else { format!("{object} or {commit}") };
    Err(Fault::user(format!("expected checksum to match {}, got {found}", source.checksum)))
}

/// Asks the remote what the reference stands for.
pub(super) async fn ask(git: &Git, source: &GitSource) -> Result<Commit, Fault> {
    let remote = git.remote.as_str();
    let doing = || format!("failed to fetch remote {}", source.shown());
    let mut wanted = source.reference.clone();
    if wanted.is_empty() {
        let told = git.line(&["ls-remote", "--symref", "--", remote, "HEAD"]).await.map_err(|t| t.fault(doing()))?;
        let branch = told.split("refs/heads/").nth(1).and_then(|rest| rest.split_whitespace().next());
        let branch = branch.filter(|branch| !branch.starts_with('-'));
        let branch = branch.ok_or_else(|| {
            Fault::new(Kind::Remote, format!("could not find default branch for repository: {}", source.shown()))
        })?;
        wanted = branch.to_owned();
    }
    let peeled = format!("{wanted}^{{}}");
    let told = git.line(&["ls-remote", "--", remote, &wanted, &peeled]).await.map_err(|t| t.fault(doing()))?;
    choose(&wanted, &told).ok_or_else(|| {
        Fault::user(format!("repository does not contain ref {wanted}, output: {:?}", last_words(&told)))
            .hint("check the spelling of the branch, tag or commit; a commit is given by all of its digits")
    })
}

/// What a name stands for among what the remote has: a full name, a branch, then a tag.
fn choose(wanted: &str, told: &str) -> Option<Commit> {
    let bare = |prefix: &str| format!("{prefix}{}", wanted.strip_prefix(prefix).unwrap_or(wanted));
    let find = |name: &str| {
        let lines = told.lines().filter_map(|line| line.split_once('\t'));
        lines.filter(|(sha, _)| is_sha(sha)).find(|(_, known)| *known == name).map(|(sha, _)| sha.to_owned())
    };
    let names = [bare("refs/"), bare("refs/heads/"), bare("refs/tags/")];
    names.into_iter().find_map(|reference| {
        let object = find(&reference)?;
        let commit = find(&format!("{reference}^{{}}")).unwrap_or_else(|| object.clone());
        Some(Commit { reference, object, commit })
    })
}

/// A repository that nobody else uses meanwhile.
pub(super) struct Repository {
    dir: PathBuf,
    _mount: store::CacheMount,
}

impl Repository {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Brings a commit into the shared repository.
pub(super) async fn fetch(
    ctx: &Asking<'_>,
    git: &Git,
    source: &GitSource,
    commit: &Commit,
) -> Result<Repository, Fault> {
    let repository = open(ctx, source, commit).await?;
    with_room(&ctx.core.store, &ctx.tasks, || fetch_into(git, source, commit, &repository.dir)).await?;
    Ok(repository)
}

async fn fetch_into(git: &Git, source: &GitSource, commit: &Commit, dir: &Path) -> Result<(), Fault> {
    let was_there = dir.join("HEAD").exists();
    let mut brought = bring(git, source, commit, dir).await;
    if was_there && brought.as_ref().is_err_and(|trouble| trouble.says(&STALE)) {
        // A tag that moved, a branch where there was a directory of branches, what a crash has torn: it begins anew.
        let emptied = dir.to_owned();
        blocking(move || empty(&emptied)).await.map_err(|e| super::gone("empty the repository of", e))?;
        brought = bring(git, source, commit, dir).await;
    }
    if brought.is_err() {
        // What it leaves would take the room that the next try needs.
        tidy(dir).await;
    }
    brought.map_err(|trouble| trouble.fault(format!("failed to fetch remote {}", source.shown())))
}

async fn open(ctx: &Asking<'_>, source: &GitSource, commit: &Commit) -> Result<Repository, Fault> {
    let request = CacheMountRequest {
        id: format!("git:{}:{}", commit.object.len(), source.remote),
        from: None,
        sharing: Sharing::Locked,
        kind: RecordKind::GitCheckout,
        description: format!("shared git repo for {}", source.shown()),
    };
    let failed = |e| store_fault("cannot open the repository of a git remote", e);
    let mount = loop {
        let (wake, woken) = tokio::sync::oneshot::channel();
        let (snapshots, request) = (ctx.core.store.snapshots(), request.clone());
        let taken = blocking(move || snapshots.cache_mount(&request, move || wake.send(()).unwrap_or(()))).await;
        if let Some(mount) = taken.map_err(failed)? {
            break mount;
        }
        let _waiting = ctx.tasks.start(format!("waiting for another build of {}", source.shown()), 0);
        tokio::select! {
            // Sent or closed, it is time to ask again.
            _ = woken => {}
            () = ctx.cancel.cancelled() => return Err(Fault::cancelled()),
        }
    };
    let sys::mount::FsView::Dir { path, .. } = mount.view().map_err(failed)? else {
        return Err(Fault::new(Kind::Internal, "the repository of a git remote is no plain directory"));
    };
    Ok(Repository { dir: path, _mount: mount })
}

fn empty(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Removes what a git that was killed, or found the disk full, left.
async fn tidy(dir: &Path) {
    let dir = dir.to_owned();
    blocking(move || {
        LOCKS.iter().for_each(|lock| drop(std::fs::remove_file(dir.join(lock))));
        let objects = dir.join("objects");
        for place in std::fs::read_dir(objects).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(place.path()).into_iter().flatten().flatten() {
                if TEMPORARY.iter().any(|prefix| file.file_name().as_encoded_bytes().starts_with(prefix)) {
                    // In nobody's way where it stays.
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
    })
    .await;
}

async fn bring(git: &Git, source: &GitSource, commit: &Commit, dir: &Path) -> Result<(), Trouble> {
    let repo = git.in_dir(dir);
    if !dir.join("HEAD").exists() {
        let format = if commit.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        repo.run(&["init", "--quiet", "--bare", format]).await?;
    }
    tidy(dir).await;
    // Each time: whoever made the repository may have been killed before this.
    repo.run(&["config", "--replace-all", "remote.origin.url", &repo.remote]).await?;
    let Commit { reference, object, .. } = commit;
    let is_named = !is_sha(reference) && !source.fetch_by_commit;
    if is_named && !has(&repo, object).await {
        let both = format!("{reference}:{reference}");
        repo.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--force", "--", "origin", &both]).await?;
    }
    if !has(&repo, object).await {
        // It is a commit, or the name stands for another one by now.
        fetch_commit(&repo, source, object, dir).await?;
    }
    match has(&repo, object).await {
        true => Ok(()),
        false if is_named => Err(Trouble::git(format!(
            "fetched ref {reference} does not match expected commit {object} and commit can not be found in the repository"
        ))),
        false => Err(Trouble::git(format!("the repository has no commit {object}"))),
    }
}

async fn has(repo: &Git, object: &str) -> bool {
    repo.agrees(&["cat-file", "-e", &format!("{object}^{{commit}}")]).await
}

/// Not every server gives what none of its references names; then all branches and tags come.
async fn fetch_commit(repo: &Git, source: &GitSource, sha: &str, dir: &Path) -> Result<(), Trouble> {
    let alone = repo.quiet().run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", "origin", sha]).await;
    match alone {
        Ok(_) => return Ok(()),
        Err(trouble @ Trouble::Fault(_)) => return Err(trouble),
        Err(trouble) if source.fetch_by_commit => return Err(trouble),
        Err(_) => {}
    }
    let mut args = vec!["fetch", "--quiet", "--tags", "--force"];
    if dir.join("shallow").exists() {
        args.push("--unshallow");
    }
    args.extend(["--", "origin", "+refs/heads/*:refs/heads/*"]);
    repo.run(&args).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const C: &str = "cccccccccccccccccccccccccccccccccccccccc";

    #[tokio::test]
    async fn what_a_failed_git_leaves_is_removed() {
        let dir = tempfile::tempdir().expect("scratch");
        let kept = ["objects/pack/pack-1.pack", "objects/pack/pack-1.idx", "objects/aa/bb", "HEAD"];
        let left = ["objects/pack/tmp_pack_x", "objects/pack/tmp_idx_x", "objects/aa/tmp_obj_x", "shallow.lock"];
        for name in kept.iter().chain(&left) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("made");
            std::fs::write(path, "").expect("written");
        }
        tidy(dir.path()).await;
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert!(!left.iter().any(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn names_stand_for_branches_before_tags() {
        let told = format!(
            "{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n{C}\trefs/tags/v1^{{}}\n{B}\trefs/pull/1/head\nx\trefs/heads/x\n"
        );
        let commit = |reference: &str, object: &str, commit: &str| {
            Some(Commit { reference: reference.into(), object: object.into(), commit: commit.into() })
        };
        for (wanted, expected) in [
            ("v1", commit("refs/heads/v1", A, A)),
            ("refs/heads/v1", commit("refs/heads/v1", A, A)),
            ("refs/tags/v1", commit("refs/tags/v1", B, C)),
            ("tags/v1", commit("refs/tags/v1", B, C)),
            ("refs/pull/1/head", commit("refs/pull/1/head", B, B)),
            ("x", None),
            ("none", None),
        ] {
            assert_eq!(choose(wanted, &told), expected, "{wanted}");
        }
    }

    #[test]
    fn commits_are_not_asked_for_and_must_be_the_wanted_ones() {
        let source = |reference: &str, checksum: &str, fetch_by_commit| GitSource {
            reference: reference.into(),
            checksum: checksum.into(),
            fetch_by_commit,
            ..GitSource::default()
        };
        let names = |source: &GitSource| known(source).map(|known| known.map(|known| (known.reference, known.object)));
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        for (source, expected) in [
            (source(A, "", false), Ok(pair(A, A))),
            (source(A, "aaaa", false), Ok(pair(A, A))),
            (source("main", "aaaa", false), Ok(None)),
            (source("main", A, true), Ok(pair("refs/heads/main", A))),
            (source("", A, true), Ok(pair(A, A))),
            (source(A, "bbbb", false), Err("expected checksum to match bbbb, got aaaa")),
            (source("main", "aaaa", true), Err("requires a full commit SHA checksum, got \"aaaa\"")),
            (source("main", "", true), Err("fetch-by-commit requires a checksum or a commit SHA ref")),
        ] {
            match (names(&source), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(fault), Err(expected)) => assert!(fault.to_string().contains(expected), "{fault}"),
                (found, expected) => panic!("{found:?}, not {expected:?}"),
            }
        }
    }
}
