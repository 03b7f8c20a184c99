//! The one name that policies know a source by, however it is written.

use image::Reference;

use super::FULL_URL;
use crate::path;
use crate::pb;

/// The name that policies know a source by: a repository's is that of where it is fetched from.
pub(super) fn name(source: &pb::SourceOp) -> String {
    let identifier = &source.identifier;
    let Some(url) = source.attrs.get(FULL_URL).filter(|_| identifier.starts_with("git://")) else {
        return canonical(identifier);
    };
    let url = url.split('#').next().unwrap_or_default();
    let fragment = identifier.find('#').map_or("", |at| &identifier[at..]);
    canonical(&format!("git://{url}{fragment}"))
}

/// One way to write an identifier: ways through the directories of a repository lead straight to their end, or a
/// rule could be walked around.
pub(super) fn canonical(identifier: &str) -> String {
    let Some((scheme, rest)) = identifier.split_once("://") else { return identifier.to_owned() };
    match scheme {
        "git" => repository_name(identifier, rest),
        "docker-image" => match Reference::parse(rest) {
            Ok(image) => format!("{scheme}://{}", image.or_latest()),
            Err(_) => identifier.to_owned(),
        },
        "http" | "https" => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            // Who logs in does not say what is fetched.
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            format!("{scheme}://{}{path}", host.to_ascii_lowercase())
        }
        _ => identifier.to_owned(),
    }
}

fn repository_name(identifier: &str, rest: &str) -> String {
    let (remote, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    // It is not fetched with a query.
    let remote = remote.split_once('?').map_or(remote, |(remote, _)| remote);
    let (has_scheme, remote) = remote.split_once("://").map_or((false, remote), |(_, remote)| (true, remote));
    let (authority, repository) = remote.split_once('/').unwrap_or((remote, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // `git@host:repository`: what follows the host is no port.
    let scp = host.split_once(':').filter(|(_, rest)| !has_scheme && !rest.bytes().all(|b| b.is_ascii_digit()));
    let (host, repository) = match scp {
        Some((host, first)) => (host, format!("{first}/{repository}")),
        None => (host, repository.to_owned()),
    };
    if host.is_empty() || repository.is_empty() {
        return identifier.to_owned();
    }
    let (reference, dir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let dir = path::clean(&format!("/{dir}"));
    let dir = dir.trim_start_matches('/');
    let mut name = format!("git://{}{}", host.to_ascii_lowercase(), path::clean(&format!("/{repository}")));
    if !reference.is_empty() || !dir.is_empty() {
        name.push_str(&format!("#{reference}"));
    }
    if !dir.is_empty() {
        name.push_str(&format!(":{dir}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_one_name() {
        for (given, wanted) in [
            (
                "git://github.com/user/repo.git#main:../absolute/path",
                "git://github.com/user/repo.git#main:absolute/path",
            ),
            ("git://https://u:p@h/a/../b.git", "git://h/b.git"),
            ("git://h/a#:", "git://h/a"),
            ("git://h/a#:./x/", "git://h/a#:x"),
            ("git://git@h:a/b", "git://h/a/b"),
            ("git://git@h:b.git#x", "git://h/b.git#x"),
            ("git://h:80/b", "git://h:80/b"),
            ("https://h/a/../b", "https://h/a/../b"),
        ] {
            assert_eq!(canonical(given), wanted);
        }
    }
}
