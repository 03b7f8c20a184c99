//! Ops that bring files in from outside.

use std::collections::BTreeMap;

use base::{Digest, Platform};

use super::{Builder, Constraints, Op, State, caps};
use crate::go_json::{array, string};

/// When to ask the registry for an image that is known already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// As the solver is configured.
    #[default]
    Default,
    /// Always.
    ForcePull,
    /// Only if it is not known.
    PreferLocal,
}

impl ResolveMode {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ResolveMode::Default => "default",
            ResolveMode::ForcePull => "pull",
            ResolveMode::PreferLocal => "local",
        }
    }
}

/// An image of a registry.
#[derive(Clone, Debug)]
pub struct Image {
    /// Normalised: domain, and a tag or digest.
    pub reference: String,
    /// When to ask the registry.
    pub resolve_mode: ResolveMode,
}

/// An image of an OCI layout that a session offers.
#[derive(Clone, Debug)]
pub struct OciLayout {
    /// Name and digest. The name matters to people only.
    pub reference: String,
    /// The session that has the layout.
    pub session: String,
    /// Which of the session's layouts.
    pub store: String,
}

/// A directory of a session.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// The name that the session knows it by.
    pub name: String,
    /// The session. Without one the source is unique by [`Defaults::local_unique`](super::Defaults::local_unique).
    pub session: String,
    /// Only what matches these.
    pub include: Vec<String>,
    /// Not what matches these.
    pub exclude: Vec<String>,
    /// Only these paths, and what their symbolic links lead to.
    pub follow: Vec<String>,
    /// Earlier uploads with the same hint are a starting point.
    pub shared_key_hint: String,
    /// Files are sent whole each time, not compared by their metadata.
    pub no_differ: bool,
}

/// A git repository.
#[derive(Clone, Debug, Default)]
pub struct Git {
    /// Host and path of the repository, which make its identity whatever the protocol.
    pub host_and_path: String,
    /// The address to fetch from.
    pub remote: String,
    /// Branch, tag or commit.
    pub reference: String,
    /// Directory inside the repository.
    pub subdir: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// The commit that it must be.
    pub checksum: String,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// File times: `checkout` or `commit`.
    pub mtime: String,
    /// Fetch `checksum` without asking where the reference points.
    pub fetch_by_commit: bool,
    /// The session's ssh agent signs; set for ssh remotes.
    pub ssh: bool,
}

/// A file of a web server.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// Its address.
    pub url: String,
    /// The name that the file gets.
    pub filename: String,
    /// What its content must be.
    pub checksum: Option<Digest>,
}

impl Builder {
    /// An image's file system. Its platform becomes the state's.
    pub fn image(&mut self, image: &Image, mut constraints: Constraints) -> State {
        let mut attrs = BTreeMap::new();
        constraints.caps.insert(caps::SOURCE_IMAGE);
        if image.resolve_mode != ResolveMode::Default {
            set(&mut attrs, "image.resolvemode", image.resolve_mode.as_str());
        }
        if image.resolve_mode == ResolveMode::ForcePull {
            constraints.caps.insert(caps::SOURCE_IMAGE_RESOLVE_MODE);
        }
        self.source(format!("docker-image://{}", image.reference), attrs, constraints)
    }

    /// The file system of an image in an OCI layout.
    pub fn oci_layout(&mut self, layout: &OciLayout, mut constraints: Constraints) -> State {
        let mut attrs = BTreeMap::new();
        set(&mut attrs, "oci.session", &layout.session);
        set(&mut attrs, "oci.store", &layout.store);
        constraints.caps.insert(caps::SOURCE_OCI_LAYOUT);
        self.source(format!("oci-layout://{}", layout.reference), attrs, constraints)
    }

    /// A directory of a session.
    pub fn local(&mut self, local: &Local, mut constraints: Constraints) -> State {
        let mut attrs = BTreeMap::new();
        let mut add = |key: &str, value: &str, cap| {
            if !value.is_empty() {
                set(&mut attrs, key, value);
                constraints.caps.insert(cap);
            }
        };
        add("local.session", &local.session, caps::SOURCE_LOCAL_SESSION);
        add("local.includepattern", &json_list(&local.include), caps::SOURCE_LOCAL_INCLUDE);
        add("local.followpaths", &json_list(&local.follow), caps::SOURCE_LOCAL_FOLLOW);
        add("local.excludepatterns", &json_list(&local.exclude), caps::SOURCE_LOCAL_EXCLUDE);
        add("local.sharedkeyhint", &local.shared_key_hint, caps::SOURCE_LOCAL_SHARED_KEY);
        if local.no_differ {
            set(&mut attrs, "local.differ", "none");
        }
        constraints.caps.insert(caps::SOURCE_LOCAL);
        self.source(format!("local://{}", local.name), attrs, constraints)
    }

    /// The files of a git repository.
    pub fn git(&mut self, git: &Git, mut constraints: Constraints) -> State {
        let mut identifier = format!("git://{}", git.host_and_path);
        if !git.reference.is_empty() || !git.subdir.is_empty() {
            identifier = format!("{identifier}#{}", git.reference);
        }
        if !git.subdir.is_empty() {
            identifier = format!("{identifier}:{}", git.subdir);
        }
        let mut attrs = BTreeMap::new();
        let mut add = |key: &str, value: &str, cap| {
            if !value.is_empty() {
                set(&mut attrs, key, value);
                constraints.caps.insert(cap);
            }
        };
        let yes = |flag: bool| if flag { "true" } else { "" };
        add("git.keepgitdir", yes(git.keep_git_dir), caps::SOURCE_GIT_KEEP_DIR);
        add("git.fullurl", &git.remote, caps::SOURCE_GIT_FULL_URL);
        add("git.checksum", &git.checksum, caps::SOURCE_GIT_CHECKSUM);
        add("git.skipsubmodules", yes(git.skip_submodules), caps::SOURCE_GIT_SKIP_SUBMODULES);
        add("git.mtime", &git.mtime, caps::SOURCE_GIT_MTIME);
        add("git.fetchbycommit", yes(git.fetch_by_commit), caps::SOURCE_GIT_FETCH_BY_COMMIT);
        add("git.mountsshsock", if git.ssh { "default" } else { "" }, caps::SOURCE_GIT_SSH_SOCK);
        if git.ssh {
            constraints.caps.insert(caps::SOURCE_GIT_KNOWN_HOSTS);
        }
        // Names of the secrets that hold credentials, where the session has them.
        set(&mut attrs, "git.authtokensecret", "GIT_AUTH_TOKEN");
        set(&mut attrs, "git.authheadersecret", "GIT_AUTH_HEADER");
        constraints.caps.insert(caps::SOURCE_GIT);
        self.source(identifier, attrs, constraints)
    }

    /// A downloaded file.
    pub fn http(&mut self, http: &Http, mut constraints: Constraints) -> State {
        let mut attrs = BTreeMap::new();
        if let Some(checksum) = http.checksum {
            set(&mut attrs, "http.checksum", &checksum.to_string());
            constraints.caps.insert(caps::SOURCE_HTTP_CHECKSUM);
        }
        if !http.filename.is_empty() {
            set(&mut attrs, "http.filename", &http.filename);
        }
        constraints.caps.insert(caps::SOURCE_HTTP);
        self.source(http.url.clone(), attrs, constraints)
    }

    fn source(&mut self, identifier: String, attrs: BTreeMap<String, String>, constraints: Constraints) -> State {
        let platform: Option<Platform> = constraints.platform.clone();
        let output = self.push(Op::Source { identifier, attrs }, constraints);
        State::new(Some(output), platform.as_ref())
    }
}

fn set(attrs: &mut BTreeMap<String, String>, key: &str, value: &str) {
    attrs.insert(key.to_owned(), value.to_owned());
}

/// A JSON array; nothing for an empty list.
fn json_list(list: &[String]) -> String {
    if list.is_empty() { String::new() } else { array(list, |text| string(text)) }
}
