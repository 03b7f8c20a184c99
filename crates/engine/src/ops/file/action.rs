//! One action of a file op: from the wire's terms to those of `files`.

use std::path::{Path, PathBuf};

use base::{Cancel, Fault, Kind};
use files::copy::{Copied, Copy, CopyEnv, Source, copy};
use files::ops::{Mkdir, Mkfile, Rm, Symlink, mkdir, mkfile, rm, symlink};
use files::{ModeChange, Owner, OwnerRef, Symbolic, Target, Time, resolve_owner};
use llb::pb;
use llb::pb::file_action::Action;
use sys::path::Root;

use super::archive::Archives;
use super::{Reading, Run, Slot, State, Step, Work};
use crate::local::LocalTree;
use crate::shadow::Recording;

impl Run<'_> {
    pub(super) fn act(&self, step: &Step<'_>, work: &mut Work, states: &[State]) -> Result<(), Fault> {
        let owner = self.owner(step, work, states)?;
        let recording = self.core.shadow.then(|| Recording::new(work.mounted.path()));
        let target = Target { root: &work.root, recorder: recording.as_ref().map(|r| r as _) };
        let mut allocated = None;
        let result = match step.action {
            Action::Copy(action) => {
                let reading = self.read(step.source, states)?;
                allocated = self.copy(action, owner, &reading, &target, recording.as_ref())?.allocated;
                Ok(())
            }
            Action::Mkdir(action) => mkdir(
                &target,
                &Mkdir {
                    path: action.path.clone().into(),
                    mode: mode_bits(action.mode),
                    make_parents: action.make_parents,
                    owner,
                    timestamp: time(action.timestamp),
                },
            ),
            Action::Mkfile(action) => mkfile(
                &target,
                &Mkfile {
                    path: action.path.clone().into(),
                    mode: mode_bits(action.mode),
                    data: action.data.clone(),
                    owner,
                    timestamp: time(action.timestamp),
                },
            ),
            Action::Symlink(action) => symlink(
                &target,
                &Symlink {
                    old_path: action.oldpath.clone().into(),
                    new_path: action.newpath.clone().into(),
                    owner,
                    timestamp: time(action.timestamp),
                },
            ),
            Action::Rm(action) => rm(
                &target,
                &Rm {
                    path: action.path.clone().into(),
                    allow_wildcard: action.allow_wildcard,
                    allow_not_found: action.allow_not_found,
                },
            ),
        };
        result.map_err(|error| fault(error, None))?;
        work.allocated = work.allocated.zip(allocated).map(|(before, more)| before + more);
        if let Some(recording) = recording {
            work.active.record_links(&recording.into_links());
        }
        Ok(())
    }

    fn copy(
        &self,
        action: &pb::FileActionCopy,
        owner: Option<Owner>,
        reading: &Reading,
        target: &Target<'_>,
        recording: Option<&Recording>,
    ) -> Result<Copied, Fault> {
        let mode = match action.mode_str.as_str() {
            "" if action.mode < 0 => ModeChange::Keep,
            "" => ModeChange::Set(u32::try_from(action.mode).unwrap_or(0) & 0o7777),
            text => ModeChange::Change(Symbolic::parse(text).map_err(|error| fault(error, None))?),
        };
        let request = Copy {
            src: action.src.clone().into(),
            dest: action.dest.clone().into(),
            owner,
            mode,
            timestamp: time(action.timestamp),
            follow_symlink: action.follow_symlink,
            dir_copy_contents: action.dir_copy_contents,
            attempt_unpack: action.attempt_unpack_docker_compatibility,
            create_dest_path: action.create_dest_path,
            allow_wildcard: action.allow_wildcard,
            allow_empty_wildcard: action.allow_empty_wildcard,
            include: action.include_patterns.clone(),
            exclude: action.exclude_patterns.clone(),
            always_replace: action.always_replace_existing_dest_paths,
        };
        let archives = Archives { recording, cancel: self.cancel };
        let env = CopyEnv { cancel: Some(self.cancel), threads: None, unpack: Some(&archives) };
        let recalling = match reading {
            Reading::Snapshot { links, .. } => links.as_ref(),
            _ => None,
        };
        let copied = match reading {
            // The root of nothing is an empty directory, and can be copied.
            Reading::Empty => {
                let root = self.core.empty_root()?;
                copy(&Source::snapshot(&root), target, &request, &env)
            }
            Reading::Snapshot { root, .. } => {
                copy(&Source::snapshot(root).with_recall(recalling.map(|r| r as _)), target, &request, &env)
            }
            Reading::Local(local) => copy(&Source::context(&local.root, &local.tree), target, &request, &env),
        };
        copied.map_err(|error| {
            let why = match reading {
                Reading::Local(local) if error.is_not_found() => local.why_missing(&action.src),
                _ => None,
            };
            fault(error, why)
        })
    }

    /// The numbers of an owner; names are looked up where the op says.
    fn owner(&self, step: &Step<'_>, work: &Work, states: &[State]) -> Result<Option<Owner>, Fault> {
        let owner = match step.action {
            Action::Copy(action) => &action.owner,
            Action::Mkdir(action) => &action.owner,
            Action::Mkfile(action) => &action.owner,
            Action::Symlink(action) => &action.owner,
            Action::Rm(_) => &None,
        };
        let Some(owner) = owner else { return Ok(None) };
        let (users, groups) = (self.names(step, step.user_names, states)?, self.names(step, step.group_names, states)?);
        let half = |user: &Option<pb::UserOpt>| user.as_ref().and_then(|user| user.user.clone());
        let (user, group) = (half(&owner.user), half(&owner.group));
        let reference = |user: &Option<pb::user_opt::User>, names: &Names| match user {
            None => None,
            Some(pb::user_opt::User::ById(id)) => Some(NameOrId::Id(*id)),
            Some(pb::user_opt::User::ByName(by)) => Some(NameOrId::Name(by.name.clone(), names.is_own())),
        };
        let (user, group) = (reference(&user, &users), reference(&group, &groups));
        let resolved = resolve_owner(
            user.as_ref().map(|user| user.to_ref(&users, &work.root)),
            group.as_ref().map(|group| group.to_ref(&groups, &work.root)),
        )
        .map_err(|error| fault(error, None))?;
        for (what, name) in [("user", resolved.unknown_user), ("group", resolved.unknown_group)] {
            if let Some(name) = name {
                let text = format!("{what} `{name}` is not known in the image, 0 is used\n");
                self.tasks.log(base::progress::Stream::Stderr, text.as_bytes());
            }
        }
        Ok(Some(resolved.owner))
    }

    fn names(&self, step: &Step<'_>, slot: Option<Slot>, states: &[State]) -> Result<Names, Fault> {
        match slot {
            None => Ok(Names::None),
            // Its own target is mounted already.
            Some(slot) if slot == step.target => Ok(Names::Own),
            Some(slot) => self.read(slot, states).map(Names::Other),
        }
    }
}

/// Where names of users are looked up.
enum Names {
    None,
    Own,
    Other(Reading),
}

impl Names {
    fn is_own(&self) -> bool {
        matches!(self, Names::Own)
    }
}

enum NameOrId {
    Id(u32),
    Name(String, bool),
}

impl NameOrId {
    fn to_ref<'a>(&'a self, names: &'a Names, own: &'a Root) -> OwnerRef<'a> {
        match self {
            NameOrId::Id(id) => OwnerRef::Id(*id),
            NameOrId::Name(name, true) => OwnerRef::Name(name, Some(own)),
            NameOrId::Name(name, false) => OwnerRef::Name(
                name,
                match names {
                    Names::Other(reading) => reading.root(),
                    Names::Own | Names::None => None,
                },
            ),
        }
    }
}

/// Copies all that a local source shows into a directory.
pub(crate) fn copy_everything(local: &LocalTree, dir: &Path, cancel: &Cancel) -> Result<(), Fault> {
    let root = Root::open(dir).map_err(|e| Fault::because(Kind::Environment, "cannot open a snapshot", e))?;
    let request = Copy {
        src: PathBuf::from("/"),
        dest: PathBuf::from("/"),
        dir_copy_contents: true,
        create_dest_path: true,
        ..Copy::default()
    };
    let env = CopyEnv { cancel: Some(cancel), ..CopyEnv::default() };
    let copied = copy(&Source::context(&local.root, &local.tree), &Target::new(&root), &request, &env);
    copied.map(drop).map_err(|error| fault(error, None))
}

fn fault(error: files::Error, why_missing: Option<String>) -> Fault {
    let (changed, full) = (error.is_changed(), store::is_full(&error));
    let kind = if full { Kind::Environment } else { Kind::User };
    let fault = Fault::because(kind, "failed to change files", error);
    match why_missing {
        _ if full => fault.hint(base::hint::no_space()),
        _ if changed => fault.hint(crate::local::AT_REST),
        Some(why) => fault.hint(why),
        None => fault,
    }
}

fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

/// Nanoseconds since 1970; -1 keeps what is there.
fn time(nanos: i64) -> Option<Time> {
    (nanos != -1).then(|| Time::from_nanos(nanos))
}
