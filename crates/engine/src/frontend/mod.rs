//! Frontends: what turns a request into trees.

pub(crate) mod dockerfile;
