//! The log on standard error.

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Whose every frame and byte would drown what is about builds; at level `trace` they are heard.
const CHATTY: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"];

/// Starts it, at most once per process: a second call finds the first one's log.
pub fn start(level: Level, json: bool) {
    let mut wanted = Targets::new().with_default(level);
    if level < Level::TRACE {
        wanted = wanted.with_targets(CHATTY.map(|name| (name, level.min(Level::INFO))));
    }
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let _ = match json {
        true => log.json().finish().with(wanted).try_init(),
        false => log.with_ansi(false).finish().with(wanted).try_init(),
    };
}
