//! The end-to-end tests: the shipped binary from outside.

use anyhow::Result;

use crate::process::{self, cargo};
use crate::{binary, packages};

/// Builds the binary unless `HULLWORKS_BIN` names one, then runs the tests of `tests/e2e` with it.
pub fn run(args: &[String]) -> Result<()> {
    test(&[], args)
}

/// The same for the tests that take minutes: large layers, and applications of package registries.
pub fn long(args: &[String]) -> Result<()> {
    test(&["--ignored", "--test-threads=1"], args)
}

fn test(flags: &[&str], args: &[String]) -> Result<()> {
    packages::ensure(packages::TESTS)?;
    let newer = packages::unpack_newer(packages::NEWER)?;
    let binary = binary::find_or_build()?;
    let mut test = cargo(&["test", "--workspace", "--test", "e2e", "--locked", "--"]);
    process::run_tests(test.args(flags).args(args).env("HULLWORKS_BIN", binary).env("HULLWORKS_TOOLS", newer))
}
