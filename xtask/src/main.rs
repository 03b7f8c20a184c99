//! Tasks of the workspace: `cargo xtask <task>`.

fn main() {}
