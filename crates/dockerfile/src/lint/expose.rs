//! `EXPOSE`.

use super::{Place, Rule};

pub(super) const PROTOCOL_CASING: Rule = Rule {
    name: "ExposeProtoCasing",
    description: "The protocol of a port should be in lower case",
    url: Some("https://docs.docker.com/go/dockerfile/rule/expose-proto-casing/"),
    experimental: false,
};
pub(super) const FORMAT: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "EXPOSE names ports of the container: addresses and ports of the host do nothing in it, \
                  and will be an error one day",
    url: Some("https://docs.docker.com/go/dockerfile/rule/expose-invalid-format/"),
    experimental: false,
};

/// `typed` has its variables expanded and is a port.
pub(crate) fn port(place: Place<'_>, typed: &str) {
    let mut parts = typed.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let protocol = container.split_once('/').map_or("", |(_, protocol)| protocol);
    if protocol != protocol.to_lowercase() {
        let message = format!("Defined protocol '{typed}' in EXPOSE instruction should be lowercase");
        place.scope.report(&PROTOCOL_CASING, place.span, message);
    }
    if parts.any(|part| !part.is_empty()) {
        let message =
            format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{typed}'");
        place.scope.report(&FORMAT, place.span, message);
    }
}
