//! The files of a commit, out of the shared repository into a snapshot.

use std::io;
use std::path::{Path, PathBuf};

use base::{Fault, Kind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use store::{PrepareOptions, RecordKind};

use super::super::super::OpContext;
use super::program::Git;
use super::remote::Commit;
use super::{GitSource, gone};
use crate::core::{blocking, store_fault};
use crate::tree::Tree;

/// Makes the snapshot. `repository` has the commit.
pub(super) async fn checkout(
    ctx: &OpContext,
    git: &Git,
    source: &GitSource,
    commit: &Commit,
    repository: &Path,
) -> Result<Tree, Fault> {
    let _task = ctx.tasks.start(format!("checking out {}", commit.commit), 0);
    let description = match source.reference.as_str() {
        "" => format!("git snapshot for {}", source.shown()),
        reference => format!("git snapshot for {}#{reference}", source.shown()),
    };
    let options = PrepareOptions { kind: RecordKind::GitCheckout, description, ..PrepareOptions::default() };
    let snapshots = ctx.core.store.snapshots();
    let active = blocking(move || snapshots.prepare(None, options)).await;
    let active = active.map_err(|e| store_fault("cannot begin a snapshot", e))?;
    let dir = active.dir().to_owned();
    let failed = || format!("failed to checkout remote {}", source.shown());
    // Nothing but submodules needs the network from here on.
    let here = Git { login: None, agent: None, ..git.clone() };
    let part = match source.subdir.as_str() {
        "" => None,
        subdir => {
            Some(Part { above: dir.join(format!("checkout-{}", session::random_id())), subdir: subdir.to_owned() })
        }
    };
    let work_tree = part.as_ref().map_or(dir.as_path(), |part| &part.above);
    std::fs::create_dir_all(work_tree).map_err(|e| gone("make", e))?;
    let git_dir = match source.keep_git_dir && part.is_none() {
        true => clone(&here, source, commit, repository, &dir).await.map_err(|trouble| trouble.fault(failed()))?,
        false => {
            let checkout = here.with_work_tree(repository, work_tree);
            // An index of an earlier checkout says nothing about this one.
            let _ = std::fs::remove_file(repository.join("index"));
            let done = checkout.run(&["checkout", "--quiet", "--no-overlay", &commit.object, "--", "."]).await;
            match done {
                // A commit without files.
                Err(trouble) if trouble.says(&["pathspec '.' did not match"]) => {}
                done => drop(done.map_err(|trouble| trouble.fault(failed()))?),
            }
            repository.to_owned()
        }
    };
    if !source.skip_submodules && work_tree.join(".gitmodules").is_file() {
        submodules(git, source, &git_dir, work_tree).await?;
    }
    let time = match source.commit_times {
        true => {
            let peeled = format!("{}^{{commit}}", commit.object);
            let time = here.in_dir(repository).line(&["log", "-1", "--format=%ct", &peeled]).await;
            let time = time.map_err(|t| t.fault(format!("failed to get commit time for {}", source.shown())))?;
            let time = time.parse::<i64>();
            Some(time.map_err(|e| Fault::because(Kind::Remote, "the commit has a malformed time", e))?)
        }
        false => None,
    };
    if let Some(part) = part {
        let dir = dir.clone();
        blocking(move || part.take_out(&dir)).await?;
    }
    if let Some(time) = time {
        let dir = dir.clone();
        blocking(move || set_times(&dir, time)).await.map_err(|e| gone("set the times of", e))?;
    }
    ctx.core.commit(active).await
}

/// A repository of its own in the snapshot, with this one commit, as if it had been cloned from the remote.
async fn clone(
    here: &Git,
    source: &GitSource,
    commit: &Commit,
    repository: &Path,
    dir: &Path,
) -> Result<PathBuf, super::program::Trouble> {
    let git_dir = dir.join(".git");
    let (shared, own) = (here.in_dir(repository), here.with_work_tree(&git_dir, dir));
    let format = if commit.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    own.run(&["init", "--quiet", format]).await?;
    // By a transport: what copies files of a local repository may be tricked into copying others.
    let mut from = std::ffi::OsString::from("file://");
    from.push(repository);
    own.run(&["remote".as_ref(), "add".as_ref(), "origin".as_ref(), from.as_os_str()]).await?;
    let is_tag = shared.line(&["cat-file", "-t", &commit.object]).await? == "tag";
    let passing = format!("refs/buildkit/{}", session::random_id());
    shared.run(&["update-ref", &passing, &commit.object]).await?;
    let names = names(&commit.reference, is_tag).into_iter().map(|name| format!("{passing}:{name}"));
    let mut wanted: Vec<String> = names.collect();
    if wanted.is_empty() {
        wanted.push(passing.clone());
    }
    // Which tags lie around in the shared repository is chance.
    let mut fetch = vec!["fetch", "--quiet", "-u", "--no-tags", "--depth=1", "--", "origin"];
    fetch.extend(wanted.iter().map(String::as_str));
    let fetched = own.run(&fetch).await;
    shared.run(&["update-ref", "-d", &passing]).await?;
    fetched?;
    own.run(&["checkout", "--quiet", "FETCH_HEAD"]).await?;
    own.run(&["remote", "set-url", "origin", &source.remote]).await?;
    own.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
    // It names the shared repository.
    let _ = std::fs::remove_file(git_dir.join("FETCH_HEAD"));
    Ok(git_dir)
}

/// What the one commit of a clone is called there. BuildKit fetches a branch into a tag, and a tag into a branch, of the
/// same name, unless the tag is an object of its own; steps may look for either.
fn names(reference: &str, is_tag: bool) -> Vec<String> {
    let tag = |name: &str| format!("refs/tags/{name}");
    match reference.strip_prefix("refs/") {
        None if is_tag => vec![tag(reference)],
        None => Vec::new(),
        Some(_) if is_tag => vec![reference.to_owned()],
        Some(name) => match name.strip_prefix("tags/") {
            Some(name) => vec![format!("refs/heads/{name}"), reference.to_owned()],
            None => vec![reference.to_owned(), tag(name.strip_prefix("heads/").unwrap_or(name))],
        },
    }
}

async fn submodules(git: &Git, source: &GitSource, git_dir: &Path, work_tree: &Path) -> Result<(), Fault> {
    let modules = git.with_work_tree(git_dir, work_tree);
    let failed = || format!("failed to update submodules for {}", source.shown());
    // The shared repository may know other addresses from an earlier commit.
    for args in [
        &["submodule", "--quiet", "sync", "--recursive"][..],
        &["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"],
    ] {
        modules.run(args).await.map_err(|trouble| trouble.fault(failed()))?;
    }
    if !source.keep_git_dir || git_dir != work_tree.join(".git") {
        // They name places of ours.
        let work_tree = work_tree.to_owned();
        blocking(move || remove_git_files(&work_tree)).await.map_err(|e| gone("tidy up", e))?;
    }
    Ok(())
}

fn remove_git_files(dir: &Path) -> io::Result<()> {
    each(dir, &mut |path, is_dir| {
        if !is_dir && path.file_name().is_some_and(|name| name == ".git") {
            std::fs::remove_file(path)?;
        }
        Ok(())
    })
}

/// All files take the time, links themselves, too.
fn set_times(dir: &Path, time: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let set = |path: &Path| Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?);
    each(dir, &mut |path, _| set(path))?;
    set(dir)
}

/// All below a directory, what a directory holds before it. Links are not followed.
fn each(dir: &Path, visit: &mut dyn FnMut(&Path, bool) -> io::Result<()>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        if is_dir {
            each(&entry.path(), visit)?;
        }
        visit(&entry.path(), is_dir)?;
    }
    Ok(())
}

/// A directory of the repository that becomes the whole of a snapshot.
struct Part {
    /// Where all of the commit is.
    above: PathBuf,
    subdir: String,
}

impl Part {
    fn take_out(&self, to: &Path) -> Result<(), Fault> {
        let mut from = self.above.clone();
        for name in self.subdir.split('/') {
            from.push(name);
            let is_dir = match std::fs::symlink_metadata(&from) {
                Ok(meta) => meta.is_dir(),
                Err(e) => return Err(Fault::because(Kind::User, format!("invalid subdir {}", self.subdir), e)),
            };
            if !is_dir {
                let text =
                    format!("invalid subdir {0}: git subpath \"{0}\" contains non-directory \"{name}\"", self.subdir);
                return Err(Fault::user(text));
            }
        }
        let moved = || -> io::Result<()> {
            for entry in std::fs::read_dir(&from)? {
                let entry = entry?;
                std::fs::rename(entry.path(), to.join(entry.file_name()))?;
            }
            std::fs::remove_dir_all(&self.above)
        };
        moved().map_err(|e| gone("take a directory out of", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_of_a_clone_is_a_branch_and_a_tag() {
        for (reference, is_tag, expected) in [
            ("refs/heads/a/b", false, &["refs/heads/a/b", "refs/tags/a/b"][..]),
            ("refs/tags/v1", false, &["refs/heads/v1", "refs/tags/v1"]),
            ("refs/tags/v1", true, &["refs/tags/v1"]),
            ("refs/pull/1/head", false, &["refs/pull/1/head", "refs/tags/pull/1/head"]),
            ("0123", false, &[]),
            ("0123", true, &["refs/tags/0123"]),
        ] {
            assert_eq!(names(reference, is_tag), expected, "{reference}");
        }
    }

    #[test]
    fn a_directory_of_a_commit_is_taken_out_of_it() {
        let scratch = tempfile::tempdir().expect("scratch");
        let above = scratch.path().join("all");
        std::fs::create_dir_all(above.join("a/b/c")).expect("made");
        std::fs::write(above.join("a/b/f"), "f").expect("made");
        std::os::unix::fs::symlink("a", above.join("link")).expect("made");
        let part = |subdir: &str| Part { above: above.clone(), subdir: subdir.to_owned() };
        for (subdir, words) in [("x", "invalid subdir x"), ("link/b", "contains non-directory \"link\"")] {
            let fault = part(subdir).take_out(scratch.path()).expect_err(subdir);
            assert!(fault.to_string().contains(words), "{fault}");
        }
        part("a/b").take_out(scratch.path()).expect("taken out");
        let mut names: Vec<_> = std::fs::read_dir(scratch.path())
            .expect("listed")
            .map(|entry| entry.expect("listed").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["c", "f"]);
        set_times(scratch.path(), 7).expect("set");
        let modified = std::fs::metadata(scratch.path().join("f")).expect("there").modified().expect("known");
        assert_eq!(modified, std::time::UNIX_EPOCH + std::time::Duration::from_secs(7));
    }
}
