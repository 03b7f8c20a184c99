//! What the frontend must be told by others: it opens no file and no connection.

use base::{Digest, Fault, Platform};
use llb::build::ResolveMode;
use llb::pb;

use crate::lint::Warning;

/// Answers the frontend's questions. The engine implements it; calls block.
pub trait Ask {
    /// Resolves images to digests and configurations, all at once: one answer per request, in order.
    ///
    /// Asked when it is known which base images a target needs: once per platform, and again if `ONBUILD` triggers
    /// of a base image need further ones.
    fn resolve_images(&self, requests: &[ImageRequest]) -> Vec<Result<ResolvedImage, Fault>>;

    /// Reads files. A file that is not there is no error, its answer is none.
    ///
    /// Asked once for the Dockerfile, once for `.dockerignore` if the context is used, and once for each named
    /// local context.
    fn read_files(&self, request: &ReadRequest) -> Result<Vec<Option<Vec<u8>>>, Fault>;

    /// An input of the build by name: LLB that the client made (`input:` contexts, or the context itself).
    ///
    /// Asked for `context` and `dockerfile`, and for each `input:` context that is needed.
    fn input(&self, name: &str) -> Result<Option<pb::Definition>, Fault> {
        let _ = name;
        Ok(None)
    }

    /// The time of a source, in seconds since 1970: of a commit, or of a file of the web; none where it has none.
    ///
    /// Asked where `SOURCE_DATE_EPOCH` names a context or a stage, before anything else is lowered.
    fn source_time(&self, source: &pb::SourceOp, log_name: &str) -> Result<Option<i64>, Fault> {
        let _ = (source, log_name);
        Ok(None)
    }

    /// Whether the patterns of an ignore file take a path out of a context, for a build check. When in doubt not.
    ///
    /// Asked for each source of a `COPY` or `ADD` in a context that has such a file.
    fn ignored(&self, patterns: &[String], path: &str) -> bool {
        let _ = (patterns, path);
        false
    }

    /// Is told what may be wrong with the Dockerfile.
    ///
    /// Called while the frontend works, so that people see it even if the build fails, and once for each finding.
    fn warn(&self, warning: &Warning);

    /// Tells people of an option that has no effect, and why.
    fn tell_vain_option(&self, _name: &str, _why: &str) {}
}

/// An image whose digest and configuration are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// Normalised: domain, path, and a tag or digest.
    pub reference: String,
    /// Which of an index.
    pub platform: Platform,
    /// When to ask the registry.
    pub mode: ResolveMode,
    /// What to call this in progress displays.
    pub log_name: String,
    /// From an OCI layout of the session instead of a registry.
    pub layout: Option<LayoutStore>,
}

/// An OCI layout that a session offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutStore {
    /// The session.
    pub session: String,
    /// The layout's name there.
    pub store: String,
}

/// A resolved image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference, which a policy or mirror may have changed. The same as asked for otherwise.
    pub reference: String,
    /// Digest of what the reference named: an index or a manifest.
    pub digest: Option<Digest>,
    /// The image configuration as it is stored.
    pub config: Vec<u8>,
    /// The identifier of what a policy wants in the place of the image, where that is none.
    pub instead: Option<String>,
}

/// Files to read.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadRequest {
    /// LLB whose result holds the files: solving it is always right.
    pub definition: pb::Definition,
    /// The same for those who can read a session's directory in place.
    pub local: Option<LocalRead>,
    /// What to read.
    pub paths: Vec<String>,
    /// Only so many bytes of each.
    pub limit: Option<u64>,
    /// What to call this in progress displays.
    pub log_name: String,
}

impl ReadRequest {
    /// The vertex that the files come from, as progress displays know it.
    pub fn vertex(&self) -> Digest {
        // The last op only names the result.
        let head = self.definition.def.iter().nth_back(1);
        head.map_or_else(|| Digest::of(&self.log_name), Digest::of)
    }
}

/// A directory of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRead {
    /// The session.
    pub session: String,
    /// The directory's name there.
    pub name: String,
}
