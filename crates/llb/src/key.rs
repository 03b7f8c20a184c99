//! What an op states for its cache key, byte for byte as BuildKit states it.
//!
//! `cacheconfig.v0` caches carry these digests between BuildKit and us, so they are a promise: the
//! tests hold digests that upstream computed. The solver combines them with the keys of the inputs.

mod blob;
mod http;

pub use blob::blob;
pub use http::{Http, http};

use base::{Digest, Platform};

use crate::go_json::{Object, array, base64, string};
use crate::pb;

/// The key of an op, and of each input what part of it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpKey {
    /// Over the op's own definition.
    pub digest: Digest,
    /// One per input.
    pub inputs: Vec<InputKey>,
}

/// How an input enters the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputKey {
    /// Mixed into the input's definition key.
    pub selector: Option<Digest>,
    /// What to digest by content when no definition key matches; none: the content is never looked at.
    pub content: Option<Vec<Selector>>,
}

/// Paths whose content counts. An empty list of selectors stands for the whole tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// A path, or a pattern when `wildcard`.
    pub path: String,
    /// `path` has wildcards.
    pub wildcard: bool,
    /// A symlink as the last component is followed.
    pub follow_links: bool,
    /// Only what matches one of these; empty: everything.
    pub include_patterns: Vec<String>,
    /// But not what matches these.
    pub exclude_patterns: Vec<String>,
    /// Paths that must exist.
    pub required_paths: Vec<String>,
}

impl Selector {
    fn filters(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

/// Why an op has no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A mount or action names an input that the op does not have.
    #[error("op reads input {0}, but has {1}")]
    NoSuchInput(i64, usize),
    /// `contentCache: on` where it would be wrong.
    #[error("mount `{0}` asks for a content cache, but is writable, partial and an output")]
    UnsafeContentCache(String),
}

/// The key of a source whose own text is `key` (a manifest digest, a commit, ..).
pub fn source(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}"))
}

/// What an image source states first: manifest and platform, and how many layers it takes where it does not take all.
pub fn image_manifest(manifest: Digest, platform: &Platform, layers: Option<usize>) -> Digest {
    let mut json = Object::new()
        .required("Digest", &manifest.to_string())
        .required("OS", &platform.os)
        .required("Arch", &platform.architecture)
        .str("Variant", &platform.variant)
        .str("OSVersion", &platform.os_version)
        .strs("OSFeatures", &platform.os_features);
    if let Some(layers) = layers {
        json = json.raw("Limit", &layers.to_string());
    }
    Digest::of(json.end())
}

/// What a local directory states: who shares it, and through which filters. `chosen` are the files that come with their
/// bytes, where not all do.
pub fn local(
    session: &str,
    include: Option<&[String]>,
    exclude: Option<&[String]>,
    follow: Option<&[String]>,
    chosen: Option<&[String]>,
) -> Digest {
    let list = |v: Option<&[String]>| v.map_or("null".to_owned(), |v| array(v, |s| string(s)));
    let json = Object::new()
        .required("SessionID", session)
        .raw("IncludePatterns", &list(include))
        .raw("ExcludePatterns", &list(exclude))
        .raw("FollowPaths", &list(follow))
        .bool("MetadataTransfer", chosen.is_some())
        .strs("MetadataExceptions", chosen.unwrap_or_default());
    Digest::of(json.end())
}

/// The key of an exec op with `inputs` inputs on `platform`.
pub fn exec(op: &pb::ExecOp, platform: &Platform, inputs: usize) -> Result<OpKey, Error> {
    let json = Object::new()
        .required("Type", "buildkit.exec.v0")
        .raw("Exec", &exec_json(op))
        .required("OS", &platform.os)
        .required("Arch", &platform.architecture)
        .str("Variant", &platform.variant)
        .str("OSVersion", &platform.os_version)
        .strs("OSFeatures", &platform.os_features);
    Ok(OpKey { digest: Digest::of(json.end()), inputs: exec_inputs(op, inputs)? })
}

fn exec_inputs(op: &pb::ExecOp, inputs: usize) -> Result<Vec<InputKey>, Error> {
    let mut paths = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &op.mounts {
        use pb::MountType::{Secret, Ssh, Tmpfs};
        if matches!(mount.mount_type(), Secret | Ssh | Tmpfs) || mount.input == -1 {
            continue;
        }
        let index = usize::try_from(mount.input).ok().filter(|i| *i < inputs);
        let index = index.ok_or(Error::NoSuchInput(mount.input, inputs))?;
        let selector = clean(&format!("/{}", mount.selector));
        // A writable partial mount that becomes an output carries files that the selector did not see,
        // so only the other mounts may be keyed by the content of what they select.
        let safe = mount.output == -1 || mount.readonly || selector == "/";
        by_content[index] = match mount.content_cache() {
            pb::MountContentCache::Off => false,
            pb::MountContentCache::On if !safe => return Err(Error::UnsafeContentCache(mount.dest.clone())),
            pb::MountContentCache::On => safe,
            // The whole root is too much to digest for what it brings.
            pb::MountContentCache::Default => safe && mount.dest != "/",
        };
        paths[index].push(selector);
    }
    let keys = paths.into_iter().zip(by_content).map(|(paths, by_content)| InputKey {
        selector: (!paths.is_empty()).then(|| Digest::of(paths.join("\0"))),
        content: by_content.then(|| {
            let paths = outermost(&paths);
            if paths.iter().any(|p| p.is_empty() || p == "/") {
                return Vec::new();
            }
            paths.into_iter().map(|path| Selector { path, follow_links: true, ..Selector::default() }).collect()
        }),
    });
    Ok(keys.collect())
}

fn exec_json(op: &pb::ExecOp) -> String {
    let mounts: Vec<pb::Mount> = op.mounts.iter().map(mount_for_key).collect();
    let mounts = if is_default_root(&mounts) { Vec::new() } else { mounts };
    Object::new()
        .optional("meta", op.meta.as_ref(), meta_json)
        .array("mounts", &mounts, mount_json)
        .int("network", op.network.into())
        .int("security", op.security.into())
        .array("secretenv", &op.secretenv, |s| {
            Object::new().str("ID", &s.id).str("name", &s.name).bool("optional", s.optional).end()
        })
        .array("cdiDevices", &op.cdi_devices, |d| Object::new().str("name", &d.name).bool("optional", d.optional).end())
        .end()
}

/// Selectors are keyed with the input; cache ids beyond the default are no part of the result.
fn mount_for_key(mount: &pb::Mount) -> pb::Mount {
    let mut mount = mount.clone();
    mount.selector.clear();
    if let Some(cache) = &mut mount.cache_opt {
        let default_id = cache.id == mount.dest || cache.id.split_once('/').is_some_and(|(_, rest)| rest == mount.dest);
        if !(default_id && cache.sharing == 0) {
            cache.id.clear();
            cache.sharing = 0;
        }
    }
    mount
}

/// The one mount of a plain `RUN`, which upstream leaves out for the sake of older caches.
fn is_default_root(mounts: &[pb::Mount]) -> bool {
    let [m] = mounts else { return false };
    m.dest == "/"
        && !m.readonly
        && m.mount_type() == pb::MountType::Bind
        && m.cache_opt.is_none()
        && m.ssh_opt.is_none()
        && m.secret_opt.is_none()
        && m.result_id.is_empty()
}

fn meta_json(meta: &pb::Meta) -> String {
    // The address of an extra host and the proxies are not part of the result.
    Object::new()
        .strs("args", &meta.args)
        .strs("env", &meta.env)
        .str("cwd", &meta.cwd)
        .str("user", &meta.user)
        .array("extraHosts", &meta.extra_hosts, |h| Object::new().str("Host", &h.host).end())
        .str("hostname", &meta.hostname)
        .array("ulimit", &meta.ulimit, |u| {
            Object::new().str("Name", &u.name).int("Soft", u.soft).int("Hard", u.hard).end()
        })
        .str("cgroupParent", &meta.cgroup_parent)
        .bool("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .array("validExitCodes", &meta.valid_exit_codes, ToString::to_string)
        .end()
}

pub(crate) fn mount_json(mount: &pb::Mount) -> String {
    Object::new()
        .int("input", mount.input)
        .str("selector", &mount.selector)
        .str("dest", &mount.dest)
        .int("output", mount.output)
        .bool("readonly", mount.readonly)
        .int("mountType", mount.mount_type.into())
        .optional("TmpfsOpt", mount.tmpfs_opt.as_ref(), |t| Object::new().int("size", t.size).end())
        .optional("cacheOpt", mount.cache_opt.as_ref(), |c| {
            Object::new().str("ID", &c.id).int("sharing", c.sharing.into()).end()
        })
        .optional("secretOpt", mount.secret_opt.as_ref(), |s| credential_json(&s.id, s.uid, s.gid, s.mode, s.optional))
        .optional("SSHOpt", mount.ssh_opt.as_ref(), |s| credential_json(&s.id, s.uid, s.gid, s.mode, s.optional))
        .str("resultID", &mount.result_id)
        .int("contentCache", mount.content_cache.into())
        .end()
}

fn credential_json(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> String {
    Object::new()
        .str("ID", id)
        .int("uid", uid.into())
        .int("gid", gid.into())
        .int("mode", mode.into())
        .bool("optional", optional)
        .end()
}

/// The key of a file op with `inputs` inputs.
pub fn file(op: &pb::FileOp, inputs: usize) -> Result<OpKey, Error> {
    let mut selectors: Vec<Vec<Selector>> = vec![Vec::new(); inputs];
    let mut whole = vec![false; inputs];
    let mut actions = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        if let Some(whole) = usize::try_from(action.input).ok().and_then(|i| whole.get_mut(i)) {
            *whole = true;
        }
        actions.push(action_json(action, inputs, &mut selectors)?);
    }
    let indexes: Vec<[i64; 3]> = op.actions.iter().map(|a| [a.input, a.secondary_input, a.output]).collect();
    let indexes = if is_default_order(&indexes) { Vec::new() } else { indexes };
    // Without actions Go writes `null` for the list; with them it is never empty.
    let actions =
        if actions.is_empty() { "[]".to_owned() } else { array(&actions, |a| format!("\"{}\"", base64(a.as_bytes()))) };
    let json = Object::new().required("Type", "buildkit.file.v0").raw("Actions", &actions).array(
        "indexes",
        &indexes,
        |[a, b, c]| format!("[{a},{b},{c}]"),
    );
    let inputs = selectors.into_iter().zip(whole).map(|(selectors, whole)| {
        // The destination of an action is keyed as a whole by its definition.
        if whole || selectors.is_empty() {
            return InputKey::default();
        }
        let mut paths: Vec<&str> = selectors.iter().map(|s| s.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        InputKey { selector: Some(Digest::of(paths.join("\0"))), content: Some(merge_selectors(&selectors)) }
    });
    Ok(OpKey { digest: Digest::of(json.end()), inputs: inputs.collect() })
}

fn action_json(action: &pb::FileAction, inputs: usize, selectors: &mut [Vec<Selector>]) -> Result<String, Error> {
    use pb::file_action::Action;
    let owner = |o: Option<&pb::ChownOpt>, selectors: &mut [Vec<Selector>]| select_owner(o, selectors);
    Ok(match &action.action {
        Some(Action::Copy(copy)) => {
            owner(copy.owner.as_ref(), selectors)?;
            let mut copy = copy.clone();
            if let Some(list) = usize::try_from(action.secondary_input).ok().filter(|i| *i < inputs) {
                selectors[list].push(Selector {
                    wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                    path: copy.src.clone(),
                    follow_links: copy.follow_symlink,
                    include_patterns: copy.include_patterns.clone(),
                    exclude_patterns: copy.exclude_patterns.clone(),
                    required_paths: copy.required_paths.clone(),
                });
                copy.src = base_name(&copy.src).to_owned();
            }
            copy_json(&copy)
        }
        Some(Action::Mkfile(file)) => {
            owner(file.owner.as_ref(), selectors)?;
            Object::new()
                .str("path", &file.path)
                .int("mode", file.mode.into())
                .bytes("data", &file.data)
                .optional("owner", file.owner.as_ref(), owner_json)
                .int("timestamp", file.timestamp)
                .end()
        }
        Some(Action::Mkdir(dir)) => {
            owner(dir.owner.as_ref(), selectors)?;
            Object::new()
                .str("path", &dir.path)
                .int("mode", dir.mode.into())
                .bool("makeParents", dir.make_parents)
                .optional("owner", dir.owner.as_ref(), owner_json)
                .int("timestamp", dir.timestamp)
                .end()
        }
        Some(Action::Symlink(link)) => Object::new()
            .str("oldpath", &link.oldpath)
            .str("newpath", &link.newpath)
            .optional("owner", link.owner.as_ref(), owner_json)
            .int("timestamp", link.timestamp)
            .end(),
        Some(Action::Rm(rm)) => Object::new()
            .str("path", &rm.path)
            .bool("allowNotFound", rm.allow_not_found)
            .bool("allowWildcard", rm.allow_wildcard)
            .end(),
        None => String::new(),
    })
}

pub(crate) fn copy_json(copy: &pb::FileActionCopy) -> String {
    Object::new()
        .str("src", &copy.src)
        .str("dest", &copy.dest)
        .optional("owner", copy.owner.as_ref(), owner_json)
        .int("mode", copy.mode.into())
        .bool("followSymlink", copy.follow_symlink)
        .bool("dirCopyContents", copy.dir_copy_contents)
        .bool("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .bool("createDestPath", copy.create_dest_path)
        .bool("allowWildcard", copy.allow_wildcard)
        .bool("allowEmptyWildcard", copy.allow_empty_wildcard)
        .int("timestamp", copy.timestamp)
        .strs("include_patterns", &copy.include_patterns)
        .strs("exclude_patterns", &copy.exclude_patterns)
        .bool("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .str("modeStr", &copy.mode_str)
        .strs("required_paths", &copy.required_paths)
        .end()
}

pub(crate) fn owner_json(owner: &pb::ChownOpt) -> String {
    let user = |user: &pb::UserOpt| {
        use pb::user_opt::User;
        let inner = match &user.user {
            Some(User::ByName(by)) => {
                let name = Object::new().str("name", &by.name).int("input", by.input);
                Object::new().raw("byName", &name.end())
            }
            Some(User::ById(id)) => Object::new().int("byId", (*id).into()),
            None => Object::new(),
        };
        Object::new().raw("User", &inner.end()).end()
    };
    Object::new().optional("user", owner.user.as_ref(), user).optional("group", owner.group.as_ref(), user).end()
}

/// Owners by name depend on the user database of an input.
fn select_owner(owner: Option<&pb::ChownOpt>, selectors: &mut [Vec<Selector>]) -> Result<(), Error> {
    let Some(owner) = owner else { return Ok(()) };
    let databases = [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")];
    for (user, path) in databases {
        let Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(by)) }) = user else { continue };
        let count = selectors.len();
        let list = usize::try_from(by.input).ok().and_then(|i| selectors.get_mut(i));
        let list = list.ok_or(Error::NoSuchInput(by.input, count))?;
        list.push(Selector { path: path.to_owned(), follow_links: true, ..Selector::default() });
    }
    Ok(())
}

/// Plain paths below other plain paths say nothing new; the rest stays, sorted by path.
fn merge_selectors(selectors: &[Selector]) -> Vec<Selector> {
    let plain = |follow: bool| {
        let paths = selectors.iter().filter(|s| !s.filters() && s.follow_links == follow);
        outermost(&paths.map(|s| s.path.clone()).collect::<Vec<_>>()).into_iter().map(move |path| Selector {
            path,
            follow_links: follow,
            ..Selector::default()
        })
    };
    let mut merged: Vec<Selector> = plain(false).chain(plain(true)).collect();
    merged.extend(selectors.iter().filter(|s| s.filters()).cloned());
    merged.sort_by(|a, b| a.path.cmp(&b.path));
    merged
}

/// The paths that are not below another one, sorted. A single path is left as it is.
fn outermost(paths: &[String]) -> Vec<String> {
    let below = |p: &str, dir: &str| {
        let rest = p.strip_prefix(dir);
        p != dir && rest.is_some_and(|rest| dir.ends_with('/') || rest.starts_with('/'))
    };
    let mut kept: Vec<String> = paths.iter().filter(|p| !paths.iter().any(|dir| below(p, dir))).cloned().collect();
    if paths.len() > 1 {
        kept.sort_unstable();
        kept.dedup();
    }
    kept
}

/// The order that upstream leaves out of the key: each action works on the one before.
fn is_default_order(indexes: &[[i64; 3]]) -> bool {
    let count = indexes.len() as i64;
    !indexes.is_empty()
        && indexes.iter().zip(0..).all(|(&[input, secondary, output], i)| {
            let expected = if i == 0 { 0 } else { count + i - 1 };
            let last = if i == count - 1 { 0 } else { -1 };
            input == expected && (secondary == -1 || secondary == 1) && output == last
        })
}

fn has_wildcards(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `path.Base`.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit('/').next() {
        _ if path.is_empty() => ".",
        Some("") | None => "/",
        Some(name) => name,
    }
}

/// Go's `path.Clean` of an absolute path.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The key of a merge op.
pub fn merge(op: &pb::MergeOp) -> OpKey {
    let inputs = |op: &pb::MergeOp| {
        Object::new().array("inputs", &op.inputs, |i| Object::new().int("input", i.input).end()).end()
    };
    let json = Object::new().required("Type", "buildkit.merge.v0").raw("Merge", &inputs(op));
    OpKey { digest: Digest::of(json.end()), inputs: vec![InputKey::default(); op.inputs.len()] }
}

/// The key of an op that hands on inputs.
pub fn passthrough(op: &crate::Passthrough, inputs: usize) -> OpKey {
    let passed = Object::new().str("id", &op.id).array("outputs", &op.outputs, |output| output.to_string()).end();
    let json = Object::new().required("Type", "buildkit.passthrough.v0").raw("Passthrough", &passed);
    OpKey { digest: Digest::of(json.end()), inputs: vec![InputKey::default(); inputs] }
}

/// The key of a diff op.
pub fn diff(op: &pb::DiffOp) -> OpKey {
    let side = |input: i64| Object::new().int("input", input).end();
    let diff = Object::new().optional("lower", op.lower.as_ref(), |l| side(l.input)).optional(
        "upper",
        op.upper.as_ref(),
        |u| side(u.input),
    );
    let json = Object::new().required("Type", "buildkit.diff.v0").raw("Diff", &diff.end());
    let sides = [op.lower.as_ref().map(|l| l.input), op.upper.as_ref().map(|u| u.input)];
    let count = sides.into_iter().flatten().filter(|input| *input != -1).count();
    OpKey { digest: Digest::of(json.end()), inputs: vec![InputKey::default(); count] }
}

#[cfg(test)]
mod tests {
    use proto::Message as _;

    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        (0..text.len()).step_by(2).map(digit).collect()
    }

    #[test]
    fn a_part_of_an_image_is_another_source() {
        let (manifest, platform) = (Digest::of("x"), Platform::new("linux", "amd64", ""));
        let stated = |rest: &str| Digest::of(format!(r#"{{"Digest":"{manifest}","OS":"linux","Arch":"amd64"{rest}}}"#));
        assert_eq!(image_manifest(manifest, &platform, None), stated(""));
        assert_eq!(image_manifest(manifest, &platform, Some(2)), stated(r#","Limit":2"#));
    }

    #[test]
    fn keys_are_those_that_buildkit_computes() {
        let mut seen = 0;
        for line in include_str!("key_golden.txt").lines().filter(|l| !l.starts_with('#')) {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("a complete line");
            let (name, inputs) = (word(), word().parse().expect("a number"));
            let op = pb::Op::decode(unhex(word()).as_slice()).expect("an op");
            let platform = Platform::new("linux", "amd64", "");
            let key = match op.op.as_ref().expect("an op") {
                pb::op::Op::Exec(op) => exec(op, &platform, inputs).expect("a key"),
                pb::op::Op::File(op) => file(op, inputs).expect("a key"),
                pb::op::Op::Merge(op) => merge(op),
                pb::op::Op::Diff(op) => diff(op),
                other => panic!("no key for {other:?}"),
            };
            let mut got = format!("{name} {}", key.digest);
            for input in &key.inputs {
                let selector = input.selector.map_or("-".to_owned(), |s| s.to_string());
                got += &format!(" {selector}/{}", if input.content.is_some() { "content" } else { "-" });
            }
            let want = format!("{name} {}", line.splitn(4, ' ').nth(3).expect("a complete line"));
            assert_eq!(got, want);
            seen += 1;
        }
        assert_eq!(seen, 13);
    }

    #[test]
    fn selectors_are_merged_and_inputs_checked() {
        let copy = |src: &str| pb::FileAction {
            input: 0,
            secondary_input: 1,
            output: 0,
            action: Some(pb::file_action::Action::Copy(pb::FileActionCopy { src: src.into(), ..Default::default() })),
        };
        let op = pb::FileOp { actions: vec![copy("/b/c"), copy("/b"), copy("/bb"), copy("/b")] };
        let key = file(&op, 2).expect("a key");
        assert_eq!(key.inputs[0], InputKey::default());
        let paths: Vec<_> = key.inputs[1].content.iter().flatten().map(|s| s.path.as_str()).collect();
        assert_eq!(paths, ["/b", "/bb"]);

        let mount = pb::Mount { input: 3, dest: "/m".into(), ..Default::default() };
        let op = pb::ExecOp { mounts: vec![mount], ..Default::default() };
        assert_eq!(exec(&op, &Platform::host(), 1), Err(Error::NoSuchInput(3, 1)));
    }

    #[test]
    fn paths_are_gos() {
        for (path, base) in [("", "."), ("/", "/"), ("a/b/", "b"), ("//", "/"), ("x", "x")] {
            assert_eq!(base_name(path), base);
        }
        for (path, cleaned) in [("/", "/"), ("/a/./b/../c//", "/a/c"), ("/../..", "/")] {
            assert_eq!(clean(path), cleaned);
        }
        assert!(has_wildcards("a*") && !has_wildcards("a\\*"));
    }
}
