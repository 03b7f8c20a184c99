//! Image references: `[domain/]path[:tag][@digest]`, normalised as `docker pull` does.
//!
//! Only what a frontend needs: spelling out what is implied, and taking it away again for names that people typed.

use std::fmt;
use std::sync::LazyLock;

use base::Digest;
use regex::Regex;

static NAME: LazyLock<Regex> = LazyLock::new(|| {
    let component = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let domain = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    Regex::new(&format!("^{domain}/{component}(?:/{component})*$")).expect("a constant")
});
static TAG: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}$").expect("a constant"));

/// A reference with everything spelled out but the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference; what is wrong with it otherwise.
    pub fn parse(text: &str) -> Result<Reference, String> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
            None => (text, None),
        };
        if name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err("64 hexadecimal digits are no image name".to_owned());
        }
        let (domain, rest) = match name.split_once('/') {
            Some((first, rest)) if is_domain(first) => (first, rest),
            _ => ("docker.io", name),
        };
        let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err("the name of an image is lower case".to_owned());
        }
        let library = if domain == "docker.io" && !path.contains('/') { "library/" } else { "" };
        let path = format!("{library}{path}");
        if !NAME.is_match(&format!("{domain}/{path}")) || path.len() > 255 {
            return Err("it has characters or an order that image names do not have".to_owned());
        }
        if tag.is_some_and(|tag| !TAG.is_match(tag)) {
            return Err(format!("`{}` is not a tag", tag.unwrap_or_default()));
        }
        Ok(Reference { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    /// With the tag `latest` if there is neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Domain and path.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The short form that people type.
    pub fn familiar(&self) -> String {
        let path = if self.domain == "docker.io" {
            match self.path.strip_prefix("library/") {
                Some(path) if !path.contains('/') => path.to_owned(),
                _ => self.path.clone(),
            }
        } else {
            self.name()
        };
        format!("{path}{}", self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        format!("{tag}{digest}")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), self.suffix())
    }
}

fn is_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_implied_is_spelled_out() {
        let d = "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, full, familiar) in [
            ("alpine".to_owned(), "docker.io/library/alpine:latest".to_owned(), "alpine:latest".to_owned()),
            ("a/b:1".into(), "docker.io/a/b:1".into(), "a/b:1".into()),
            ("index.docker.io/a".into(), "docker.io/library/a:latest".into(), "a:latest".into()),
            ("localhost/a".into(), "localhost/a:latest".into(), "localhost/a:latest".into()),
            ("r:5000/a/b".into(), "r:5000/a/b:latest".into(), "r:5000/a/b:latest".into()),
            ("[::1]:5000/a:x".into(), "[::1]:5000/a:x".into(), "[::1]:5000/a:x".into()),
            (format!("a{d}"), format!("docker.io/library/a{d}"), format!("a{d}")),
            (format!("a:t{d}"), format!("docker.io/library/a:t{d}"), format!("a:t{d}")),
        ] {
            let reference = Reference::parse(&text).expect(&text).or_latest();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let hex = "a".repeat(64);
        for bad in
            ["", "A", "a:", "a b", "a/", "/a", "a//b", "a:b:c", "a@x", "a@sha256:00", "-a", "a..b", &hex, "r.io/B"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
