//! Old forms that have a better one.

use super::{Place, Rule};
use crate::parse::Pair;

pub(super) const MAINTAINER: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "MAINTAINER is out of use: LABEL org.opencontainers.image.authors names the author of an image",
    url: Some("https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/"),
    experimental: false,
};
pub(super) const KEY_VALUE: Rule = Rule {
    name: "LegacyKeyValueFormat",
    description: "A name and its value should be joined by `=`, not parted by a space",
    url: Some("https://docs.docker.com/go/dockerfile/rule/legacy-key-value-format/"),
    experimental: false,
};

pub(crate) fn maintainer(place: Place<'_>) {
    let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
    place.scope.report(&MAINTAINER, place.span, message);
}

pub(crate) fn key_value(place: Place<'_>, name: &str, pair: &Pair) {
    if pair.legacy {
        let message = format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
        place.scope.report(&KEY_VALUE, place.span, message);
    }
}
