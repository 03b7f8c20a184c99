//! A file system on the way, and what the next step inherits with it.

use std::sync::Arc;

use base::Platform;
use indexmap::IndexMap;

use super::{Output, Place};
use crate::{path, pb};

/// Environment variables in the order in which they were last set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env(IndexMap<String, String>);

impl Env {
    /// No variables.
    pub fn new() -> Env {
        Env::default()
    }

    /// Sets a variable. One that is set again moves to the end.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let key = key.into();
        if self.0.last().is_some_and(|(last, _)| *last == key) {
            self.0.insert(key, value.into());
            return;
        }
        self.0.shift_remove(&key);
        self.0.insert(key, value.into());
    }

    /// Sets many variables, one after the other but in one pass.
    pub fn set_all<'a>(&mut self, pairs: impl DoubleEndedIterator<Item = (&'a str, &'a str)>) {
        let mut added: IndexMap<String, String> = IndexMap::new();
        // Of a name that is given twice the last one counts, value and place.
        for (key, value) in pairs.rev() {
            if !added.contains_key(key) {
                added.insert(key.to_owned(), value.to_owned());
            }
        }
        added.reverse();
        self.0.retain(|key, _| !added.contains_key(key));
        self.0.extend(added);
    }

    /// Removes a variable.
    pub fn unset(&mut self, key: &str) {
        self.0.shift_remove(key);
    }

    /// A variable's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `KEY=value` for each variable.
    pub fn to_list(&self) -> Vec<String> {
        self.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }
}

/// An output and the settings that steps made from it inherit.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) output: Option<Output>,
    pub(super) meta: Arc<Meta>,
}

#[derive(Clone, Debug)]
pub(super) struct Meta {
    pub env: Arc<Env>,
    pub dir: String,
    pub user: String,
    pub hostname: String,
    pub platform: Option<Platform>,
    pub network: pb::NetMode,
}

impl State {
    /// The empty file system.
    pub fn scratch() -> State {
        State::new(None, None)
    }

    /// The state of an output of this builder, such as a [slot](super::Builder::slot).
    pub fn of(output: Output) -> State {
        State::new(Some(output), None)
    }

    pub(super) fn new(output: Option<Output>, platform: Option<&Platform>) -> State {
        let meta = Meta {
            env: Arc::default(),
            dir: "/".to_owned(),
            user: String::new(),
            hostname: String::new(),
            platform: platform.map(|platform| platform.clone().normalize()),
            network: pb::NetMode::Unset,
        };
        State { output, meta: Arc::new(meta) }
    }

    /// Its output; none for the empty file system.
    pub fn output(&self) -> Option<Output> {
        self.output
    }

    /// The same settings on another file system.
    #[must_use]
    pub fn with_output(&self, output: Option<Output>) -> State {
        State { output, meta: self.meta.clone() }
    }

    /// Whether this stands for something that is not known yet.
    pub fn is_slot(&self) -> bool {
        matches!(self.output, Some(Output(Place::Slot(_))))
    }

    /// The environment.
    pub fn env(&self) -> &Arc<Env> {
        &self.meta.env
    }

    /// Sets an environment variable.
    pub fn set_env(&mut self, key: &str, value: &str) {
        Arc::make_mut(&mut self.meta_mut().env).set(key, value);
    }

    /// Sets many environment variables.
    pub fn set_env_all<'a>(&mut self, pairs: impl DoubleEndedIterator<Item = (&'a str, &'a str)>) {
        Arc::make_mut(&mut self.meta_mut().env).set_all(pairs);
    }

    /// Forgets the environment: nothing will run on this state any more.
    pub fn forget_env(&mut self) {
        self.meta_mut().env = Arc::default();
    }

    /// The working directory.
    pub fn dir(&self) -> &str {
        &self.meta.dir
    }

    /// Sets the working directory; a relative one counts from the present one.
    pub fn set_dir(&mut self, dir: &str) {
        let dir = if path::is_abs(dir) { dir.to_owned() } else { path::join(&[self.dir(), dir]) };
        self.meta_mut().dir = dir;
    }

    /// Sets the user of later steps.
    pub fn set_user(&mut self, user: &str) {
        user.clone_into(&mut self.meta_mut().user);
    }

    /// Sets the host name of later steps.
    pub fn set_hostname(&mut self, hostname: &str) {
        hostname.clone_into(&mut self.meta_mut().hostname);
    }

    /// Sets the network of later steps.
    pub fn set_network(&mut self, network: pb::NetMode) {
        self.meta_mut().network = network;
    }

    /// The platform, if the file system has one of its own.
    pub fn platform(&self) -> Option<&Platform> {
        self.meta.platform.as_ref()
    }

    /// Sets the platform of later steps.
    pub fn set_platform(&mut self, platform: &Platform) {
        self.meta_mut().platform = Some(platform.clone().normalize());
    }

    fn meta_mut(&mut self) -> &mut Meta {
        Arc::make_mut(&mut self.meta)
    }
}

impl Default for State {
    fn default() -> State {
        State::scratch()
    }
}
