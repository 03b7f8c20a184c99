//! Addresses of git repositories: `https://host/path.git#ref:subdir`, `git@host:path`, with options in the query.

use std::collections::BTreeMap;

use llb::build::Git;
use llb::path;

use crate::instruction::parse_bool;

/// A repository that an `ADD` or a context names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    /// The address to fetch from.
    pub remote: String,
    host: String,
    path: String,
    scheme: String,
    /// Branch, tag or commit.
    pub reference: String,
    pub subdir: String,
    pub checksum: String,
    pub keep_git_dir: Option<bool>,
    pub submodules: Option<bool>,
    pub mtime: String,
    pub fetch_by_commit: bool,
    /// `github.com/..`, which may just as well be a local path. Contexts take it, `ADD` does not.
    pub ambiguous: bool,
}

impl Repository {
    /// The repository that a text names. None if it names none; an error if it does, and wrongly.
    pub fn parse(text: &str) -> Result<Option<Repository>, String> {
        if let Some(rest) = text.strip_prefix("github.com/") {
            let url = format!("https://github.com/{rest}");
            return Repository::url("https", &url, true);
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            return match scheme.to_ascii_lowercase().as_str() {
                scheme @ ("http" | "https" | "ssh" | "git") => Repository::url(scheme, text, false),
                _ => Ok(None),
            };
        }
        Repository::scp(text)
    }

    fn url(scheme: &str, text: &str, ambiguous: bool) -> Result<Option<Repository>, String> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
        let after = remote.split_once("://").map_or("", |(_, after)| after);
        let (authority, path) = after.find('/').map_or((after, ""), |slash| after.split_at(slash));
        let host = authority.rsplit('@').next().unwrap_or(authority);
        let path = decode(path, false);
        if matches!(scheme, "http" | "https") && !ambiguous && !path.ends_with(".git") {
            return Ok(None);
        }
        Repository::new(scheme, remote, host, &path, &decode(fragment, false), query, ambiguous).map(Some)
    }

    /// `user@host:path`.
    fn scp(text: &str) -> Result<Option<Repository>, String> {
        let Some((user, rest)) = text.split_once('@') else { return Ok(None) };
        let Some((host, rest)) = rest.split_once(':') else { return Ok(None) };
        let word = |text: &str, extra: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if !word(user, "-_") || !word(host, "-.") || text.contains('\n') {
            return Ok(None);
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let remote = format!("{user}@{host}:{path}");
        Repository::new("ssh", &remote, host, path, fragment, query, false).map(Some)
    }

    fn new(
        scheme: &str,
        remote: &str,
        host: &str,
        path: &str,
        fragment: &str,
        query: &str,
        ambiguous: bool,
    ) -> Result<Repository, String> {
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut repository = Repository {
            remote: remote.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            scheme: scheme.to_owned(),
            reference: reference.to_owned(),
            subdir: path::join(&["/", subdir]).trim_start_matches('/').to_owned(),
            checksum: String::new(),
            keep_git_dir: None,
            submodules: None,
            mtime: String::new(),
            fetch_by_commit: false,
            ambiguous,
        };
        repository.query(query)?;
        Ok(repository)
    }

    fn query(&mut self, query: &str) -> Result<(), String> {
        let mut pairs: BTreeMap<String, String> = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, true);
            if pairs.insert(key.clone(), decode(value, true)).is_some() {
                return Err(format!("`{key}` is given twice in the address of a git repository"));
            }
        }
        for (key, value) in &pairs {
            let switches = ["submodules", "keep-git-dir", "fetch-by-commit"];
            if value.is_empty() && !switches.contains(&key.as_str()) {
                return Err(format!("`{key}` has no value in the address of a git repository"));
            }
            let switch = || match value.as_str() {
                "" => Ok(true),
                value => parse_bool(value).ok_or_else(|| format!("`{key}` is `{value}`, not true or false")),
            };
            match key.as_str() {
                "ref" => agree("ref", &mut self.reference, value)?,
                "tag" => agree("ref", &mut self.reference, &prefixed(value, "refs/tags/"))?,
                "branch" if pairs.contains_key("tag") => {
                    return Err("a git repository has both `tag` and `branch`".to_owned());
                }
                "branch" => agree("ref", &mut self.reference, &prefixed(value, "refs/heads/"))?,
                "subdir" => agree("subdir", &mut self.subdir, value)?,
                "checksum" | "commit" => value.clone_into(&mut self.checksum),
                "keep-git-dir" => self.keep_git_dir = Some(switch()?),
                "submodules" => self.submodules = Some(switch()?),
                "fetch-by-commit" => self.fetch_by_commit = switch()?,
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => value.clone_into(&mut self.mtime),
                "mtime" => return Err(format!("`mtime` of a git repository is `{value}`, not checkout or commit")),
                _ => return Err(format!("the address of a git repository has no option `{key}`")),
            }
        }
        Ok(())
    }

    /// An address of a repository as it is shown: what such addresses have for a query is no secret.
    pub fn shown(typed: &str) -> String {
        match typed.split_once('?') {
            Some((address, query)) => format!("{}?{query}", base::redact_url(address)),
            None => base::redact_url(typed),
        }
    }

    /// As a source of LLB.
    pub fn source(&self) -> Git {
        Git {
            host_and_path: format!("{}{}", self.host, path::join(&["/", &self.path])),
            remote: self.remote.clone(),
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            keep_git_dir: self.keep_git_dir.unwrap_or(false),
            checksum: self.checksum.clone(),
            skip_submodules: self.submodules == Some(false),
            mtime: self.mtime.clone(),
            fetch_by_commit: self.fetch_by_commit,
            ssh: self.scheme == "ssh",
        }
    }
}

fn agree(what: &str, have: &mut String, value: &str) -> Result<(), String> {
    if !have.is_empty() && have != value {
        return Err(format!("{what} conflicts in the address of a git repository: `{have}` and `{value}`"));
    }
    value.clone_into(have);
    Ok(())
}

fn prefixed(value: &str, prefix: &str) -> String {
    if value.starts_with(prefix) { value.to_owned() } else { format!("{prefix}{value}") }
}

/// Resolves `%41`, and `+` in queries.
pub(crate) fn decode(text: &str, query: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let [first, rest @ ..] = bytes {
        let digits = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                bytes = &rest[2..];
            }
            None => {
                out.push(if query && *first == b'+' { b' ' } else { *first });
                bytes = rest;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_login_and_what_is_built() {
        for (typed, shown) in [
            ("https://u:p@h.io/a.git?ref=v1&subdir=x", "https://xxxxx@h.io/a.git?ref=v1&subdir=x"),
            ("https://u:p@h.io/a.git#v1:x", "https://xxxxx@h.io/a.git#v1:x"),
        ] {
            assert_eq!(Repository::shown(typed), shown);
        }
    }

    #[test]
    fn repositories_and_other_texts() {
        for (text, id, reference, subdir) in [
            ("https://h.io/a/b.git", "h.io/a/b.git", "", ""),
            ("https://u:p@h.io:8443/a.git#v1:sub/dir", "h.io:8443/a.git", "v1", "sub/dir"),
            ("git://h.io/a#x", "h.io/a", "x", ""),
            ("ssh://git@h.io/a.git", "h.io/a.git", "", ""),
            ("git@h.io:a/b.git#main", "h.io/a/b.git", "main", ""),
            ("github.com/a/b#c", "github.com/a/b", "c", ""),
            ("https://h.io/a.git?tag=v1&subdir=x", "h.io/a.git", "refs/tags/v1", "x"),
            ("https://h.io/a.git?branch=refs/heads/b", "h.io/a.git", "refs/heads/b", ""),
        ] {
            let repository = Repository::parse(text).expect(text).expect(text);
            let source = repository.source();
            assert_eq!(
                (source.host_and_path.as_str(), source.reference.as_str(), source.subdir.as_str()),
                (id, reference, subdir)
            );
        }
        for other in ["a", "./a@b:c", "https://h.io/a.tar.gz", "ftp://h/a.git", "a/b.git", ""] {
            assert_eq!(Repository::parse(other), Ok(None), "{other}");
        }
        for bad in ["x?y=1", "x?ref=", "x?ref=a&ref=b", "x?ref=a#b", "x?tag=a&branch=b", "x?mtime=z", "x?submodules=z"]
        {
            let text = format!("https://h.io/{}", bad.replace('x', "x.git"));
            assert!(Repository::parse(&text).is_err(), "{text}");
        }
    }
}
