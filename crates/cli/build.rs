//! Puts the revision into `--version`: `HULLWORKS_REVISION` when it is set, else git's, else `unknown`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=HULLWORKS_REVISION");
    let revision = std::env::var("HULLWORKS_REVISION").ok().filter(|text| !text.is_empty());
    println!("cargo:rustc-env=HULLWORKS_REVISION={}", revision.or_else(of_git).unwrap_or_else(|| "unknown".to_owned()));
}

fn of_git() -> Option<String> {
    // Release builds only: a debug build would be rebuilt with every commit.
    if std::env::var("PROFILE").ok()? != "release" {
        return None;
    }
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "HEAD"])?);
    git(&["rev-parse", "HEAD"])
}
