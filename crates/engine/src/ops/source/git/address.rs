//! Addresses of repositories: `https://host/path`, `ssh://`, `git://`, and `user@host:path`.

/// Schemes that git is asked to speak. Others, files of this machine above all, are no sources.
const SCHEMES: [&str; 4] = ["http", "https", "ssh", "git"];

/// Whether a text says how it is reached.
fn has_transport(text: &str) -> bool {
    match text.split_once("://") {
        Some((scheme, _)) => SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)),
        None => is_scp(text),
    }
}

/// `user@host:path`.
fn is_scp(text: &str) -> bool {
    let word = |text: &str, extra: &str| {
        !text.is_empty()
            && !text.starts_with('-')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let parts = text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?)));
    parts.is_some_and(|(user, (host, _))| word(user, "-_") && word(host, "-."))
}

/// A text that does not say how it is reached is on the web.
pub(super) fn with_transport(text: &str) -> String {
    if has_transport(text) { text.to_owned() } else { format!("https://{text}") }
}

/// Remote, reference and directory of `remote#reference:directory`.
pub(super) fn split(text: &str) -> (String, String, String) {
    let (remote, fragment) = text.split_once('#').unwrap_or((text, ""));
    let remote = remote.split_once('?').map_or(remote, |(remote, _)| remote);
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut parts: Vec<&str> = Vec::new();
    for part in subdir.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    (remote.to_owned(), reference.to_owned(), parts.join("/"))
}

/// The address without `user:password`, and those: of web servers only, others need the user to be asked at all.
pub(super) fn without_user(remote: &str) -> (String, Option<String>) {
    let none = || (remote.to_owned(), None);
    let Some((scheme, rest)) = remote.split_once("://") else { return none() };
    if !scheme.to_ascii_lowercase().starts_with("http") {
        return none();
    }
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let Some((user, host)) = authority.rsplit_once('@') else { return none() };
    let user = super::super::http_answer::decoded(user);
    let user = if user.contains(':') { user } else { format!("{user}:") };
    (format!("{scheme}://{host}{path}"), Some(user))
}

/// Host and port, of an address on the web without a user.
pub(super) fn web_host(remote: &str) -> Option<&str> {
    let (scheme, rest) = remote.split_once("://")?;
    let is_web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    is_web.then(|| rest.split('/').next().unwrap_or(rest))
}

/// For which addresses a login is: this one; on github.com, where submodules are likely to need the same, all there.
pub(super) fn login_scope(remote: &str) -> String {
    let hosts = ["https://github.com/", "https://www.github.com/"];
    hosts.into_iter().find(|host| remote.starts_with(host)).unwrap_or(remote).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, remote, reference, subdir) in [
            ("h.io/a/b.git", "https://h.io/a/b.git", "", ""),
            ("h.io/a.git#v1", "https://h.io/a.git", "v1", ""),
            ("h.io/a.git#:d", "https://h.io/a.git", "", "d"),
            ("http://h.io/a?x=y#v1:/d/./../../e/f/", "http://h.io/a", "v1", "e/f"),
            ("git@h.io:a/b.git#main:d", "git@h.io:a/b.git", "main", "d"),
            ("ssh://git@h.io/a", "ssh://git@h.io/a", "", ""),
            ("file:///etc", "https://file:///etc", "", ""),
            ("-x@h:p", "https://-x@h:p", "", ""),
        ] {
            let parts = split(&with_transport(text));
            assert_eq!(parts, (remote.into(), reference.into(), subdir.into()), "{text}");
        }
    }

    #[test]
    fn users_of_web_addresses_are_no_part_of_them() {
        for (text, remote, user) in [
            ("https://u:p%40@h:1/a", "https://h:1/a", Some("u:p@")),
            ("http://token@h/a", "http://h/a", Some("token:")),
            ("https://h/a@b", "https://h/a@b", None),
            ("ssh://git@h/a", "ssh://git@h/a", None),
            ("git@h:a", "git@h:a", None),
        ] {
            assert_eq!(without_user(text), (remote.to_owned(), user.map(str::to_owned)), "{text}");
        }
        assert_eq!(web_host("https://h.io:8443/a/b"), Some("h.io:8443"));
        assert_eq!(web_host("ssh://git@h.io/a"), None);
        assert_eq!(login_scope("https://github.com/a/b.git"), "https://github.com/");
        assert_eq!(login_scope("https://h.io/a"), "https://h.io/a");
    }
}
