//! The shipped binary from outside: real files, real processes, real registries.
//!
//! `cargo xtask e2e` builds the binary and runs this with `HULLWORKS_BIN`. Each test has a directory and a state of its
//! own ([`harness::World`]), so that tests run side by side. One file per subject.

#![expect(clippy::unwrap_used, reason = "a test says why it fails by failing")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

mod guest;
mod harness;
mod kitchen;
mod larder;
mod machine;
mod who;
mod wire;

mod apps;
mod attributes;
mod base_layers;
mod buildx;
mod buildx_answers;
mod buildx_cache;
mod buildx_inputs;
mod cache;
mod cases;
mod checks;
mod cleaning;
mod collectors;
mod commands;
mod contexts;
mod crash;
mod daemon;
mod daemon_health;
mod daemon_hostile;
mod daemon_sockets;
mod daemon_sync;
mod daemon_trouble;
mod daemon_ways;
mod definitions;
mod devices;
mod dumps;
mod ends;
mod first_steps;
mod frontends;
mod full_disk;
mod groups;
mod history;
mod hostile;
mod large;
mod late_exports;
mod layouts;
mod leftovers;
mod logins;
mod logs;
mod lost_caches;
mod one_state;
mod outputs;
mod own_image;
mod platforms;
mod policies;
mod program;
mod proxies;
mod registries;
mod registry_faults;
mod remote_caches;
mod repositories;
mod settings;
mod smoke;
mod sources;
mod steps;
mod tokens;
mod traces;
mod trees;
mod upstream;
mod upstream_client;
