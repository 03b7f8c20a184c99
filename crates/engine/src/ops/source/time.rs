//! The time of a source: when it was committed, or changed where it is fetched from. What `SOURCE_DATE_EPOCH`
//! names has that time.

use std::io::Read;

use base::{Cancel, Fault, Kind};
use image::layer::compression::Decompressor;
use image::layer::tar;
use llb::pb;
use sys::path::{Links, Root};

use super::git::Asking;
use super::http::download;
use super::identifier::Source;
use crate::core::blocking;
use crate::tree::Tree;

impl Asking<'_> {
    /// In seconds since 1970; none where a source has no time.
    pub(crate) async fn time_of(&self, op: &pb::SourceOp) -> Result<Option<i64>, Fault> {
        match Source::read(op)? {
            Source::Git(_) => Ok(committed(&self.describe(op, true).await?.commit_object)),
            Source::Http(source) => {
                let download = download(self, &source).await?;
                match (download.modified, &download.tree) {
                    (Some(modified), _) => Ok(Some(modified.as_second())),
                    (None, Tree::Snapshot(hold)) => {
                        let (core, hold, name) = (self.core.clone(), hold.clone(), download.filename.clone());
                        let cancel = Cancel::new();
                        let _unwanted = super::http::Unwanted(cancel.clone());
                        blocking(move || {
                            let mounted = core.mount(&core.view(&hold)?)?;
                            let newest = newest(mounted.path(), &name, &cancel);
                            newest.map_err(|e| Fault::because(Kind::Environment, "cannot read a download", e))
                        })
                        .await
                    }
                    _ => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }
}

/// When a commit was made, as git keeps it: `committer NAME <ADDRESS> SECONDS ZONE` among the lines before an empty one.
fn committed(object: &[u8]) -> Option<i64> {
    let mut lines = object.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let line = lines.find_map(|line| line.strip_prefix(b"committer "))?;
    let line = String::from_utf8_lossy(line);
    line.rsplit_once('>')?.1.split_whitespace().next()?.parse().ok()
}

/// The time of the newest file of an archive; none for what is no archive.
fn newest(dir: &std::path::Path, name: &str, cancel: &Cancel) -> std::io::Result<Option<i64>> {
    let file = Root::open(dir)?.open_file(name, Links::FollowParents)?;
    Ok(newest_entry(cancel.reader(file)))
}

fn newest_entry(archive: impl Read) -> Option<i64> {
    let mut reader = tar::Reader::new(Decompressor::new(archive, u64::MAX).ok()?);
    let mut newest = None;
    while let Some(header) = reader.next().ok()? {
        if matches!(header.flag, tar::TypeFlag::File | tar::TypeFlag::HardLink) {
            newest = newest.max(Some(header.mtime.secs));
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_say_when_they_were_made() {
        let object = "tree x\nparent y\nauthor A <a@b> 1 +0000\ncommitter B > C <b@c> 1700000101 +0100\n\ncommitter D <d> 3 +0000\n";
        assert_eq!(committed(object.as_bytes()), Some(1_700_000_101));
        for object in ["", "tree x\n\ncommitter D <d> 3 +0000", "committer D <d>", "committer D"] {
            assert_eq!(committed(object.as_bytes()), None, "{object}");
        }
    }

    #[test]
    fn what_is_no_archive_has_no_newest_entry() {
        assert_eq!(newest_entry(&b"no archive"[..]), None);
    }
}
