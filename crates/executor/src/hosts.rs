//! /etc/hosts and /etc/resolv.conf as a step sees them.

use std::fmt::Write;
use std::net::IpAddr;

use crate::{DEFAULT_HOSTNAME, ExtraHost, Network, Resolver};

/// Where resolvers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved names the ones behind its stub.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// The stub of systemd-resolved.
const STUB: &str = "127.0.0.53";
/// For machines that name none; upstream's choice.
const FALLBACK: [&str; 4] = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

/// The hosts file.
pub(crate) fn hosts(hostname: &str, extra: &[ExtraHost]) -> String {
    let hostname = if hostname.is_empty() { DEFAULT_HOSTNAME } else { hostname };
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, ip } in extra {
        let _ = writeln!(text, "{ip}\t{host}");
    }
    text
}

/// The resolver's file: the machine's own, but for what `resolver` says.
pub(crate) fn resolv_conf(network: Network, resolver: &Resolver) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let text = read(RESOLV_CONF);
    let conf = Conf::parse(&text);
    // A network of its own has another loopback, on which no resolver listens.
    if network == Network::None && conf.servers == [STUB] {
        return Conf::parse(&read(RESOLVED_CONF)).with(resolver).render(network);
    }
    conf.with(resolver).render(network)
}

/// resolv.conf(5).
#[derive(Default)]
struct Conf<'a> {
    servers: Vec<&'a str>,
    search: Vec<&'a str>,
    options: Vec<&'a str>,
    others: Vec<&'a str>,
}

impl<'a> Conf<'a> {
    fn parse(text: &'a str) -> Conf<'a> {
        let mut conf = Conf::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            let Some(keyword) = words.next() else { continue };
            let words: Vec<&str> = words.collect();
            match (keyword, &words[..]) {
                ("nameserver", [server, ..]) => conf.servers.extend(address(server).is_some().then_some(*server)),
                // The last one counts; `domain` is its old name.
                ("search" | "domain", [_, ..]) => conf.search = words,
                ("options", [_, ..]) => conf.options.extend(words),
                ("nameserver" | "search" | "domain" | "options", []) => {}
                _ => conf.others.push(line),
            }
        }
        conf
    }

    fn with(mut self, resolver: &'a Resolver) -> Conf<'a> {
        let chosen = [
            (&mut self.servers, &resolver.servers),
            (&mut self.search, &resolver.search),
            (&mut self.options, &resolver.options),
        ];
        for (words, instead) in chosen {
            if !instead.is_empty() {
                *words = instead.iter().map(String::as_str).collect();
            }
        }
        self
    }

    fn render(mut self, network: Network) -> String {
        if network == Network::None {
            self.servers.retain(|server| address(server).is_some_and(|address| !address.is_loopback()));
        }
        if self.servers.is_empty() {
            self.servers.extend(FALLBACK);
        }
        let mut text = String::new();
        for server in self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        for (keyword, words) in [("search", self.search), ("options", self.options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        }
        for line in self.others {
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// An address, without the interface that a link-local one may carry.
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next().and_then(|address| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_the_step_and_the_extra_ones() {
        let extra = [ExtraHost { host: "db".into(), ip: "10.0.0.1".parse().expect("an address") }];
        assert_eq!(
            hosts("", &extra),
            "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.1\tdb\n"
        );
        assert!(hosts("box", &[]).starts_with("127.0.0.1\tlocalhost box\n"));
    }

    #[test]
    fn resolvers_come_from_the_machine() {
        let cluster = "# made by kubelet\nsearch ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
                       options ndots:5\nsortlist 1.2.3.4\n";
        let same = "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local\noptions ndots:5\n\
                    sortlist 1.2.3.4\n";
        let fallback = "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\n\
                        nameserver 2001:4860:4860::8844\n";
        for (text, network, expected) in [
            (cluster, Network::Host, same),
            (cluster, Network::None, same),
            ("nameserver 127.0.0.53\noptions edns0", Network::Host, "nameserver 127.0.0.53\noptions edns0\n"),
            ("nameserver 127.0.0.1\nnameserver 9.9.9.9", Network::None, "nameserver 9.9.9.9\n"),
            ("nameserver ::1\n", Network::None, fallback),
            ("nameserver fe80::1%eth0\n", Network::Host, "nameserver fe80::1%eth0\n"),
            ("nameserver bogus\nnameserver\n", Network::Host, fallback),
            ("domain a\nsearch b c\nnameserver 1.1.1.1", Network::Host, "nameserver 1.1.1.1\nsearch b c\n"),
        ] {
            assert_eq!(Conf::parse(text).render(network), expected, "{text}");
        }
    }

    #[test]
    fn settings_take_the_place_of_the_machines() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let machine = "nameserver 10.96.0.10\nsearch a b\noptions ndots:5\n";
        let servers = Resolver { servers: words(&["1.1.1.1", "9.9.9.9"]), ..Resolver::default() };
        let rest = Resolver { search: words(&["c"]), options: words(&["edns0", "trust-ad"]), ..Resolver::default() };
        for (resolver, expected) in [
            (Resolver::default(), machine),
            (servers, "nameserver 1.1.1.1\nnameserver 9.9.9.9\nsearch a b\noptions ndots:5\n"),
            (rest, "nameserver 10.96.0.10\nsearch c\noptions edns0 trust-ad\n"),
        ] {
            assert_eq!(Conf::parse(machine).with(&resolver).render(Network::Host), expected, "{resolver:?}");
        }
    }
}
