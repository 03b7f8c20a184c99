//! Addresses that other programs carry out, read as BuildKit reads them: what stands in one becomes a command line. What
//! would be left out of it unseen, so that another daemon than the one that was meant builds, is refused.

use base::Fault;
use percent_encoding::percent_decode_str;
use url::Url;

/// What the other side is asked for.
const DIAL: [&str; 2] = ["buildctl", "dial-stdio"];

/// The command line for an address, if its scheme is carried out by a program.
pub(super) fn line(scheme: &str, address: &str) -> Result<Option<Vec<String>>, Fault> {
    let read: fn(&Parts<'_>) -> Result<Vec<String>, Fault> = match scheme {
        "docker-container" => docker,
        "podman-container" => podman,
        "nerdctl-container" => nerdctl,
        "kube-pod" => kubectl,
        "ssh" => ssh,
        _ => return Ok(None),
    };
    let url = Url::parse(address).map_err(|error| {
        let shown = base::redact_url(address);
        Fault::user(format!("address `{shown}` cannot be read: {error}"))
    })?;
    read(&Parts { address, url }).map(Some)
}

fn docker(parts: &Parts<'_>) -> Result<Vec<String>, Fault> {
    let [context] = parts.options(["context"])?;
    let name = parts.host("container")?;
    Ok(words(["docker"], [("--context", context)], ["exec", "-i", &name], DIAL))
}

fn podman(parts: &Parts<'_>) -> Result<Vec<String>, Fault> {
    let [] = parts.options([])?;
    let name = parts.host("container")?;
    Ok(words(["podman"], [], ["exec", "-i", &name], DIAL))
}

fn nerdctl(parts: &Parts<'_>) -> Result<Vec<String>, Fault> {
    let [namespace] = parts.options(["namespace"])?;
    let name = parts.host("container")?;
    Ok(words(["nerdctl", "exec"], [("--namespace", namespace)], ["-i", &name], DIAL))
}

fn kubectl(parts: &Parts<'_>) -> Result<Vec<String>, Fault> {
    let [context, namespace, container] = parts.options(["context", "namespace", "container"])?;
    let pod = parts.host("pod")?;
    for (kind, name) in [("pod", Some(&pod)), ("namespace", namespace.as_ref()), ("container", container.as_ref())] {
        let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if let Some(name) = name.filter(|name| !name.chars().all(is_good)) {
            return Err(parts.fault(&format!("`{name}` cannot be the name of a {kind}")));
        }
    }
    let exec = words(["exec", "-i"], [("--container", container)], [&pod, "--"], DIAL);
    let mut line = words(["kubectl"], [("--context", context), ("--namespace", namespace)], [], []);
    line.extend(exec);
    Ok(line)
}

fn ssh(parts: &Parts<'_>) -> Result<Vec<String>, Fault> {
    let url = &parts.url;
    if url.password().is_some() {
        // Not said with its address, where it stands.
        return Err(Fault::user("an address of ssh:// has no place for a password"));
    }
    let extra = url.query().or(url.fragment()).filter(|extra| !extra.is_empty());
    if let Some(extra) = extra {
        return Err(parts.fault(&format!("`{extra}` has no meaning there")));
    }
    let host = parts.host("host")?;
    let user = Some(decoded(url.username())).filter(|user| !user.is_empty());
    let port = url.port().map(|port| port.to_string());
    let path = Some(decoded(url.path())).filter(|path| !["", "/"].contains(&path.as_str()));
    let mut line = words(["ssh"], [("-l", user), ("-p", port)], ["--", &host], ["buildctl"]);
    line.extend(words([], [("--addr", path.map(|path| format!("unix://{path}")))], [], ["dial-stdio"]));
    Ok(line)
}

/// `program --flag value.. words..`, without the flags that have no value.
fn words<const A: usize, const B: usize, const C: usize, const D: usize>(
    program: [&str; A],
    flags: [(&str, Option<String>); B],
    more: [&str; C],
    last: [&str; D],
) -> Vec<String> {
    let flags = flags.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten();
    let owned = |word: &str| word.to_owned();
    program.map(owned).into_iter().chain(flags).chain(more.map(owned)).chain(last.map(owned)).collect()
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// An address taken apart.
struct Parts<'a> {
    address: &'a str,
    url: Url,
}

impl Parts<'_> {
    fn fault(&self, why: &str) -> Fault {
        Fault::user(format!("address `{}`: {why}", self.address))
    }

    /// Whom it names.
    fn host(&self, kind: &str) -> Result<String, Fault> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(self.fault(&format!("the name of a {kind} is missing")));
        }
        Ok(host.to_owned())
    }

    /// The values of what may be asked for, the first of each.
    fn options<const N: usize>(&self, names: [&str; N]) -> Result<[Option<String>; N], Fault> {
        for (key, _) in self.url.query_pairs() {
            if names.contains(&&*key) {
                continue;
            }
            let fault = self.fault(&format!("there is no option `{key}`"));
            return Err(match (base::suggest::likely(&key, names), names.as_slice()) {
                (Some(name), _) => fault.hint(format!("did you mean `{name}`?")),
                (None, []) => fault.hint("there are none for this kind"),
                (None, names) => fault.hint(format!("known is {}", names.join(", "))),
            });
        }
        let first =
            |name: &str| self.url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        Ok(names.map(|name| first(name).filter(|value| !value.is_empty())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_buildkits() {
        for (address, expected) in [
            ("docker-container://c", "docker exec -i c buildctl dial-stdio"),
            ("docker-container://C_x", "docker exec -i C_x buildctl dial-stdio"),
            ("docker-container://c?context=x", "docker --context x exec -i c buildctl dial-stdio"),
            ("docker-container://c?context=a%20b", "docker --context a b exec -i c buildctl dial-stdio"),
            ("docker-container://c?context=", "docker exec -i c buildctl dial-stdio"),
            // A container's name ends where a host's does.
            ("docker-container://c/path", "docker exec -i c buildctl dial-stdio"),
            ("docker-container://u:p@c:80", "docker exec -i c buildctl dial-stdio"),
            ("docker-container://", "address `docker-container://`: the name of a container is missing"),
            ("docker-container:c", "address `docker-container:c`: the name of a container is missing"),
            ("docker-container:///c", "address `docker-container:///c`: the name of a container is missing"),
            (
                "docker-container://c?namespace=n",
                "address `docker-container://c?namespace=n`: there is no option `namespace`",
            ),
            ("podman-container://c", "podman exec -i c buildctl dial-stdio"),
            ("podman-container://c?x=y", "address `podman-container://c?x=y`: there is no option `x`"),
            ("nerdctl-container://c", "nerdctl exec -i c buildctl dial-stdio"),
            ("nerdctl-container://c?namespace=n", "nerdctl exec --namespace n -i c buildctl dial-stdio"),
            ("kube-pod://p", "kubectl exec -i p -- buildctl dial-stdio"),
            ("kube-pod://p/x", "kubectl exec -i p -- buildctl dial-stdio"),
            (
                "kube-pod://p?context=c&namespace=n&container=b&namespace=m",
                "kubectl --context c --namespace n exec -i --container b p -- buildctl dial-stdio",
            ),
            ("kube-pod://a_b", "address `kube-pod://a_b`: `a_b` cannot be the name of a pod"),
            ("kube-pod://p?namespace=N", "address `kube-pod://p?namespace=N`: `N` cannot be the name of a namespace"),
            ("ssh://u@h:22/run/b.sock", "ssh -l u -p 22 -- h buildctl --addr unix:///run/b.sock dial-stdio"),
            ("ssh://u%40x@[::1]/a%20b", "ssh -l u@x -- ::1 buildctl --addr unix:///a b dial-stdio"),
            ("ssh://h", "ssh -- h buildctl dial-stdio"),
            ("ssh://h/", "ssh -- h buildctl dial-stdio"),
            ("ssh://", "address `ssh://`: the name of a host is missing"),
            ("ssh://u:secret@h", "an address of ssh:// has no place for a password"),
            ("ssh://h?x", "address `ssh://h?x`: `x` has no meaning there"),
            ("ssh://h#x", "address `ssh://h#x`: `x` has no meaning there"),
        ] {
            let scheme = address.split(':').next().expect("a scheme");
            let found =
                line(scheme, address).map_or_else(|fault| fault.cause(), |line| line.expect("a line").join(" "));
            assert_eq!(found, expected);
        }
        assert!(line("http", "http://x").expect("no line").is_none());
        let hint =
            |address: &str| line("kube-pod", address).expect_err("refused").get_hint().unwrap_or_default().to_owned();
        assert_eq!(hint("kube-pod://p?namespce=n"), "did you mean `namespace`?");
        assert_eq!(hint("kube-pod://p?x=n"), "known is context, namespace, container");
    }
}
