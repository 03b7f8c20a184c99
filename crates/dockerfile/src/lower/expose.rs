//! `EXPOSE`: ports and ranges of them.

use std::net::IpAddr;

use crate::error::{Error, Result};

/// The ports that `[[ip:]host:]port[-port][/protocol]` stands for, as `port/protocol`. Host parts are checked only.
pub(super) fn ports(typed: &str) -> Result<Vec<String>> {
    let wrong = |what: &str| Error::new(format!("`{typed}` is no port: {what}"));
    let mut parts = typed.rsplitn(3, ':');
    let (container, host, ip) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let (container, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        let error = wrong(&format!("`{protocol}` is not a protocol"));
        return Err(error.suggest(&protocol, ["tcp", "udp", "sctp"]));
    }
    if let Some(ip) = ip.filter(|ip| !ip.is_empty()) {
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        bare.parse::<IpAddr>().map_err(|_| wrong(&format!("`{ip}` is not an address")))?;
    }
    let (first, last) = range(container).map_err(&wrong)?;
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        let (from, to) = range(host).map_err(&wrong)?;
        if to - from != last - first && last != first {
            return Err(wrong("the ranges differ in length"));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> std::result::Result<(u16, u16), &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().map_err(|_| "a port is a number from 0 to 65535");
    let (first, last) = (number(first)?, number(last)?);
    if last < first { Err("the range ends before it begins") } else { Ok((first, last)) }
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_and_ranges() {
        for (typed, out) in [
            ("80", vec!["80/tcp"]),
            ("80/UDP", vec!["80/udp"]),
            ("8000-8002/sctp", vec!["8000/sctp", "8001/sctp", "8002/sctp"]),
            ("127.0.0.1:8080:80", vec!["80/tcp"]),
            ("[::1]:8080:80", vec!["80/tcp"]),
            ("8080-8090:80", vec!["80/tcp"]),
            ("80/", vec!["80/tcp"]),
        ] {
            assert_eq!(ports(typed).expect(typed), out);
        }
        for bad in ["", "x", "80/icmp", "65536", "9-8", "x:80", "1.2.3:80:80", "1-2:80-85", "-80", "80-"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
