//! Ops: for each, first how its result is remembered, then how it is made. One file per op.

mod diff;
pub(crate) mod exec;
pub(crate) mod file;
mod limits;
mod merge;
pub(crate) mod source;

use std::sync::Arc;

use base::{Digest, Fault, Kind, Platform, Secret};
use llb::key::{OpKey, Selector};
use llb::pb;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::job::Job;
use crate::tree::Tree;
use crate::wreck::{Subject, Wreck};
use base::report::{Label, Tasks};

/// What definitions may ask of ops: BuildKit's capability ids.
pub const CAPS: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.image.layerlimit",
    "source.image.checksum",
    "source.policy",
    "source.local",
    "source.ocilayout",
    "source.imageblob",
    "source.git",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "source.http",
    "source.http.checksum",
    "source.http.perm",
    // Spelled as BuildKit spells it.
    "soruce.http.uidgid",
    "source.http.auth",
    "source.http.header",
    "exec.meta.base",
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.meta.removemountstubs.recursive",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.cache.content",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.cgroup",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.rm.wildcard",
    "file.rm.nofollowsymlink",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.copy.modestring",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "mergeop",
    "diffop",
    "passthroughop",
    // No ops: what exports, clean-up and records can do. Clients look for it here.
    "exporter.image.annotations",
    "exporter.multiple",
    "exporter.session",
    "exporter.sourcedateepoch",
    "gc.freespacefilter",
    "history.filter",
];

/// Refuses ops that rely on something which this version does not know.
pub(crate) fn check_caps(vertex: &llb::Vertex) -> Result<(), Fault> {
    let unknown = vertex.metadata.caps.iter().find(|(cap, needed)| **needed && !CAPS.contains(&cap.as_str()));
    match unknown {
        None => Ok(()),
        Some((cap, _)) => Err(Fault::user(format!("`{}` needs `{cap}`, which is not supported yet", vertex.name()))),
    }
}

/// Refuses ops that say too little, or what only a newer version may understand: nobody guesses at what is meant.
pub(crate) fn check_values(vertex: &llb::Vertex) -> Result<(), Fault> {
    match &vertex.op.op {
        Some(pb::op::Op::Exec(exec)) => exec.mounts.iter().try_for_each(exec::check_mount),
        Some(pb::op::Op::Merge(merge)) if merge.inputs.is_empty() => {
            Err(Fault::user("invalid merge op with no inputs"))
        }
        Some(pb::op::Op::Diff(diff)) if diff.lower.is_none() || diff.upper.is_none() => {
            Err(Fault::user("invalid diff op with nil lower or upper input"))
        }
        _ => Ok(()),
    }
}

/// An op of a graph with what was read out of it.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) vertex: llb::Vertex,
    pub(crate) platform: Platform,
    pub(crate) label: Label,
    /// Which reading of the client's directories it belongs to ([`Job::reading`]).
    pub(crate) reading: u32,
    /// What inputs are digested by, found out together with the key.
    content: std::sync::OnceLock<Vec<Option<Vec<Selector>>>>,
}

/// What an op has at hand while it runs.
pub(crate) struct OpContext {
    pub(crate) core: Arc<Core>,
    /// The builds that want it, never empty; the first one is asked first.
    pub(crate) jobs: Vec<Arc<Job>>,
    /// The builds whose clients are asked for secrets and agents, in this order: first those whose results are made by it.
    /// That may be one that waits for another build, which wants it for the first one's result.
    pub(crate) lenders: Vec<Arc<Job>>,
    pub(crate) op: Arc<Op>,
    pub(crate) tasks: Tasks,
    pub(crate) cancel: CancellationToken,
    /// The same for code that blocks.
    pub(crate) flag: base::Cancel,
}

impl OpContext {
    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.jobs[0]
    }

    /// A flag for blocking code, set when the op is cancelled.
    pub(crate) fn blocking_cancel(&self) -> base::Cancel {
        self.flag.clone()
    }

    /// The secret of the first client that has it.
    async fn secret(&self, id: &str) -> Result<Option<Secret>, Fault> {
        crate::job::secret(&self.lenders, id).await
    }

    /// The SSH agent of the first client that lends one.
    async fn agent(&self, id: &str) -> Result<Option<Arc<dyn session::Agent>>, Fault> {
        crate::job::agent(&self.lenders, id).await
    }
}

/// The digest that an op states, and whether it can state another one.
pub(crate) struct StatedKey {
    pub(crate) digest: solver::KeyDigest,
    pub(crate) inputs: Vec<solver::CacheMapInput>,
    pub(crate) last: solver::Last,
}

impl Op {
    pub(crate) fn new(vertex: llb::Vertex, label: Label, reading: u32, default_platform: &Platform) -> Op {
        let platform = vertex.op.platform.as_ref().map(platform).unwrap_or_else(|| default_platform.clone());
        Op { vertex, platform, label, reading, content: std::sync::OnceLock::new() }
    }

    fn kind(&self) -> Result<&pb::op::Op, Fault> {
        self.vertex.op.op.as_ref().ok_or_else(|| Fault::user("vertex without an op"))
    }

    pub(crate) fn is_source(&self) -> bool {
        matches!(self.vertex.op.op, Some(pb::op::Op::Source(_)))
    }

    /// How the result of an op that is no source is remembered.
    pub(crate) fn stated_key(&self) -> Result<StatedKey, Fault> {
        let key = self.op_key()?;
        let inputs = key
            .inputs
            .iter()
            .map(|input| solver::CacheMapInput { selector: input.selector, by_content: input.content.is_some() });
        let inputs = inputs.collect();
        let _ = self.content.set(key.inputs.into_iter().map(|input| input.content).collect());
        Ok(StatedKey { digest: solver::KeyDigest::Stable(key.digest), inputs, last: solver::Last::Yes })
    }

    fn op_key(&self) -> Result<OpKey, Fault> {
        let inputs = self.vertex.inputs.len();
        if let Some(passthrough) = &self.vertex.passthrough {
            return Ok(llb::key::passthrough(passthrough, inputs));
        }
        let key = match self.kind()? {
            pb::op::Op::Exec(op) => llb::key::exec(op, &self.platform, inputs),
            pb::op::Op::File(op) => llb::key::file(op, inputs),
            pb::op::Op::Merge(op) => Ok(llb::key::merge(op)),
            pb::op::Op::Diff(op) => Ok(llb::key::diff(op)),
            pb::op::Op::Source(_) => return Err(Fault::new(Kind::Internal, "sources state their keys themselves")),
            pb::op::Op::Build(_) => return Err(Fault::user("build ops are not supported yet")),
        };
        key.map_err(|e| Fault::because(Kind::User, "malformed op", e))
    }
}

/// How the op's result is remembered.
pub(crate) async fn key(ctx: &OpContext, index: u32) -> Result<StatedKey, Fault> {
    match &ctx.op.vertex.op.op {
        Some(pb::op::Op::Source(op)) => source::key(ctx, op, index).await,
        _ => ctx.op.stated_key(),
    }
}

/// Digests what the op reads of an input.
pub(crate) async fn content(ctx: &OpContext, input: u32, tree: &Tree) -> Result<Option<Digest>, Fault> {
    let selectors = ctx.op.content.get().and_then(|inputs| inputs.get(input as usize)).cloned().flatten();
    match selectors {
        None => Ok(None),
        Some(selectors) => match ctx.core.content_digest(ctx, tree, selectors).await {
            Err(fault) if ctx.wants_wrecks() && fault.kind() != Kind::Cancelled => {
                Err(fault.leaves(Wreck::new(ctx, Subject::Content(input as usize), vec![Some(tree.clone())])))
            }
            digest => digest.map(Some),
        },
    }
}

/// Makes the op's outputs.
pub(crate) async fn run(ctx: &OpContext, inputs: &[Tree]) -> Result<Vec<Tree>, Fault> {
    if let Some(passthrough) = &ctx.op.vertex.passthrough {
        let passed = passthrough.outputs.iter().filter_map(|input| inputs.get(usize::try_from(*input).ok()?));
        return Ok(passed.cloned().collect());
    }
    // All see to their own room, as far as what they do can be done again: a step that has begun is not.
    match ctx.op.kind()? {
        pb::op::Op::Source(op) => source::run(ctx, op).await.map(|tree| vec![tree]),
        pb::op::Op::Exec(op) => exec::run(ctx, op, inputs).await,
        pb::op::Op::File(op) => file::run(ctx, op, inputs).await,
        pb::op::Op::Merge(op) => merge::run(ctx, op, inputs).await,
        pb::op::Op::Diff(op) => diff::run(ctx, op, inputs).await,
        pb::op::Op::Build(_) => Err(Fault::user("build ops are not supported yet")),
    }
}

/// A platform as it stands in LLB.
pub(crate) fn platform(platform: &pb::Platform) -> Platform {
    let mut own = Platform::new(&platform.os, &platform.architecture, &platform.variant);
    own.os_version.clone_from(&platform.os_version);
    own.os_features.clone_from(&platform.os_features);
    own
}
