//! Platforms of `FROM`, and of the images behind it.

use base::{Platform, SourceSpan};

use super::{Place, Rule, Scope};
use crate::expand::{Expanded, Variables};
use base::gotext::quote;

pub(super) const BASE_IMAGE: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "The base image was made for another platform than the one that is built",
    url: None,
    experimental: false,
};
pub(super) const REDUNDANT_TARGET: Rule = Rule {
    name: "RedundantTargetPlatform",
    description: "A stage has the target platform unless it says otherwise",
    url: Some("https://docs.docker.com/go/dockerfile/rule/redundant-target-platform/"),
    experimental: false,
};
pub(super) const CONSTANT: Rule = Rule {
    name: "FromPlatformFlagConstDisallowed",
    description: "A constant platform keeps a stage from being built for others",
    url: Some("https://docs.docker.com/go/dockerfile/rule/from-platform-flag-const-disallowed/"),
    experimental: false,
};

/// Looks at `FROM --platform`: as it was typed, and expanded.
pub(crate) fn flag(
    place: Place<'_>,
    typed: &str,
    expanded: &Expanded,
    stage_name: Option<&str>,
    globals: &dyn Variables,
) {
    const TARGET: &str = "TARGETPLATFORM";
    let (matched, unmatched) = (&expanded.matched, &expanded.unmatched);
    if matched.len() == 1 && unmatched.is_empty() && matched.contains(TARGET) {
        // The variable and nothing beside it.
        if globals.get(TARGET) == Some(&expanded.text) {
            let message =
                format!("Setting platform to predefined {typed} in FROM is redundant as this is the default behavior");
            place.scope.report(&REDUNDANT_TARGET, place.span, message);
        }
    }
    if !matched.is_empty() || !unmatched.is_empty() {
        return;
    }
    let Ok(platform) = crate::platform::parse(&expanded.text) else { return };
    let name = stage_name.unwrap_or_default();
    if name.contains(&platform.os) || name.contains(&platform.architecture) {
        // The stage is meant for this platform, and says so.
        return;
    }
    let message = format!("FROM --platform flag should not use constant value {}", quote(&expanded.text));
    place.scope.report(&CONSTANT, place.span, message);
}

/// Compares a base image with what was asked for.
pub(crate) fn base_image(scope: &Scope<'_>, span: SourceSpan, typed: &str, expected: &Platform, actual: &Platform) {
    if expected.os == actual.os && expected.architecture == actual.architecture {
        return;
    }
    let shown = |platform: &Platform| match platform.os.as_str() {
        "" => quote("unknown"),
        _ => quote(&platform.clone().normalize().to_string()),
    };
    let (expected, actual) = (shown(expected), shown(actual));
    let message =
        format!("Base image {typed} was pulled with platform {actual}, expected {expected} for current build");
    scope.report(&BASE_IMAGE, span, message);
}
