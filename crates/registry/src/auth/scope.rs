//! What a token is good for (distribution's `auth/scope` page): `repository:library/alpine:pull,push`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Scopes in one spelling: sorted, merged, without repeats. The text is the cache key of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading a repository.
    pub(crate) fn pull(path: &str) -> Scopes {
        Scopes::default().and(path, &["pull"])
    }

    /// Writing a repository, which includes reading it.
    pub(crate) fn push(path: &str) -> Scopes {
        Scopes::default().and(path, &["pull", "push"])
    }

    /// Reading another repository too, to mount a blob from there.
    #[must_use]
    pub(crate) fn and_pull(self, path: &str) -> Scopes {
        self.and(path, &["pull"])
    }

    fn and(mut self, path: &str, actions: &[&str]) -> Scopes {
        let set = self.0.entry(format!("repository:{path}")).or_default();
        set.extend(actions.iter().map(|action| (*action).to_owned()));
        self
    }

    /// Adds what a challenge asks for. Says whether that was new.
    pub(crate) fn merge(&mut self, text: &str) -> bool {
        let mut new = false;
        for scope in text.split_ascii_whitespace() {
            // `type:name:actions`, where a name may hold colons (a host with a port).
            // What has no actions is passed on as it is.
            let parts = scope.rsplit_once(':').filter(|(_, actions)| !actions.is_empty());
            let (resource, actions) = parts.unwrap_or((scope, ""));
            new |= !self.0.contains_key(resource);
            let set = self.0.entry(resource.to_owned()).or_default();
            for action in actions.split(',').filter(|action| !action.is_empty()) {
                new |= set.insert(action.to_owned());
            }
        }
        new
    }

    /// The scopes one by one, as a token request lists them.
    pub(crate) fn each(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(resource, actions)| {
            if actions.is_empty() {
                return resource.clone();
            }
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        })
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.each().collect::<Vec<_>>().join(" "))
    }
}
