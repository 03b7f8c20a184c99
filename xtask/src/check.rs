//! Everything that needs no built binary, and the renewal of what is generated.

use anyhow::Result;

use crate::process::{cargo, run, run_tests};
use crate::{arrows, packages};

/// The cheap ones first.
pub fn all() -> Result<()> {
    // Unit tests meet the same tools that the end-to-end tests do.
    packages::ensure(packages::TESTS)?;
    let newer = packages::unpack_newer(packages::NEWER)?;
    arrows::check()?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    run(&mut cargo(&["clippy", "--package", "hullworks", "--test", "e2e", "--locked", "--", "-D", "warnings"]))?;
    run_tests(cargo(&["test", "--workspace", "--locked"]).env("HULLWORKS_TOOLS", newer))
}

/// Goldens are written by the tests that read them: `BLESS` for our own, `INSTA_UPDATE` for snapshots.
pub fn bless() -> Result<()> {
    run(cargo(&["test", "--workspace", "--no-fail-fast"]).env("BLESS", "1").env("INSTA_UPDATE", "always"))
}
