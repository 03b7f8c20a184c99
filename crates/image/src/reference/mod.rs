//! Image references as Docker reads them: `ubuntu` is `docker.io/library/ubuntu`.
//!
//! The grammar is that of the distribution project:
//!
//! ```text
//! reference = name [":" tag] ["@" digest]
//! name      = domain "/" path            (after normalisation there is always a domain)
//! domain    = host [":" port]            host: dns labels, IPv4, or "[" IPv6 "]"
//! path      = component {"/" component}  component: [a-z0-9]+ joined by ".", "_", "__" or dashes
//! tag       = [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
//! ```
//!
//! Invariant: a [`Reference`] is normalised and valid; its `Display` parses back to an equal value.

mod grammar;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use base::{Digest, DigestParseError};

/// The registry that names without a domain belong to.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag that is meant where neither tag nor digest is given.
pub const DEFAULT_TAG: &str = "latest";
/// The longest repository path.
pub const MAX_PATH: usize = 255;

const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";

/// A normalised name of an image, with a tag, a digest, both or neither.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference. Each names the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("empty image reference")]
    Empty,
    /// Upper case in the repository.
    #[error("invalid reference `{0}`: repository name must be lower case")]
    Uppercase(String),
    /// 64 hexadecimal digits are an image id, not a name.
    #[error("invalid reference `{0}`: 64 hexadecimal digits cannot be a repository name")]
    Identifier(String),
    /// The path is longer than [`MAX_PATH`].
    #[error("invalid reference `{0}`: repository name must not be longer than {MAX_PATH} characters")]
    TooLong(String),
    /// The domain or path breaks the grammar.
    #[error("invalid reference `{0}`: malformed repository name")]
    Name(String),
    /// The tag breaks the grammar.
    #[error("invalid reference `{text}`: malformed tag `{tag}`")]
    Tag {
        /// The whole reference.
        text: String,
        /// What stands where the tag should.
        tag: String,
    },
    /// The part after `@` is no digest that we accept.
    #[error("invalid reference `{text}`")]
    Digest {
        /// The whole reference.
        text: String,
        /// What is wrong with the digest.
        source: DigestParseError,
    },
}

impl Reference {
    /// Parses a familiar or full name and normalises it. Adds no tag; see [`or_latest`](Self::or_latest).
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if grammar::is_identifier(text) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => {
                let error = |source| ReferenceError::Digest { text: text.to_owned(), source };
                (named, Some(digest.parse().map_err(error)?))
            }
            None => (text, None),
        };
        let (domain, rest) = split_domain(named);
        // The domain ends at its `/`, so a colon behind it starts the tag.
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path.into() };
        let name_error = || ReferenceError::Name(text.to_owned());
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(text.to_owned()));
        }
        if path.len() > MAX_PATH {
            return Err(ReferenceError::TooLong(text.to_owned()));
        }
        if !grammar::is_path(&path) || !(grammar::is_domain(domain) || grammar::is_path_component(domain)) {
            return Err(name_error());
        }
        if let Some(tag) = tag.filter(|tag| !grammar::is_tag(tag)) {
            return Err(ReferenceError::Tag { text: text.to_owned(), tag: tag.to_owned() });
        }
        Ok(Reference { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/ubuntu`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path: `docker.io/library/ubuntu`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Adds `:latest` where neither tag nor digest is given.
    #[must_use]
    pub fn or_latest(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// What a registry is asked for: the digest alone where there is one, else the tag, else `latest`.
    #[must_use]
    pub fn resolved_form(mut self) -> Reference {
        if self.digest.is_some() {
            self.tag = None;
        }
        self.or_latest()
    }

    /// The `<reference>` of the distribution API: the digest, else the tag, else `latest`.
    pub fn object(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository with another tag.
    pub fn with_tag(mut self, tag: &str) -> Result<Reference, ReferenceError> {
        if !grammar::is_tag(tag) {
            return Err(ReferenceError::Tag { text: self.to_string(), tag: tag.to_owned() });
        }
        self.tag = Some(tag.to_owned());
        Ok(self)
    }

    /// The same image pinned to a digest; a tag stays.
    #[must_use]
    pub fn with_digest(mut self, digest: Digest) -> Reference {
        self.digest = Some(digest);
        self
    }

    /// The repository alone.
    #[must_use]
    pub fn name_only(mut self) -> Reference {
        (self.tag, self.digest) = (None, None);
        self
    }

    /// As people write it: `ubuntu:22.04`, `me/app`, `localhost:5000/x`.
    pub fn familiar(&self) -> String {
        let mut out = self.familiar_name().to_owned();
        if self.domain != DEFAULT_DOMAIN {
            out.insert_str(0, &format!("{}/", self.domain));
        }
        self.push_suffix(&mut out);
        out
    }

    fn familiar_name(&self) -> &str {
        match self.path.strip_prefix(OFFICIAL) {
            Some(name) if self.domain == DEFAULT_DOMAIN && !name.contains('/') => name,
            _ => &self.path,
        }
    }

    fn push_suffix(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(&digest.to_string());
        }
    }
}

/// Splits the registry off, by the rule that tells `localhost/x` and `a.b/x` from `me/x`.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Reference::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = self.name();
        self.push_suffix(&mut out);
        f.write_str(&out)
    }
}
