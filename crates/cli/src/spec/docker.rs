//! Forms that only docker's command line has: `--add-host`, `--ulimit`, `--shm-size`, `--platform`, `--tag`, ..

use base::{Fault, Platform};

use super::{csv, invalid};

/// `--add-host name:ip` or `name=ip`, as the frontend's `add-hosts`.
pub fn add_hosts(values: &[String]) -> Result<String, Fault> {
    const FLAG: &str = "--add-host";
    let mut out = Vec::new();
    for value in values.iter().flat_map(|value| value.split(',')) {
        let (host, ip) = value
            .split_once('=')
            .or_else(|| value.split_once(':'))
            .filter(|(host, ip)| !host.is_empty() && !ip.is_empty())
            .ok_or_else(|| invalid(FLAG, value, "expected host:ip"))?;
        let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        if ip == "host-gateway" {
            return Err(invalid(FLAG, value, "host-gateway needs docker's network: give an address"));
        }
        let address: std::net::IpAddr =
            ip.parse().map_err(|_| invalid(FLAG, value, format!("`{ip}` is no address")))?;
        out.push(format!("{host}={address}"));
    }
    Ok(out.join(","))
}

/// `--ulimit name=soft[:hard]`, as the frontend's `ulimit`.
pub fn ulimits(values: &[String]) -> Result<String, Fault> {
    const FLAG: &str = "--ulimit";
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let mut out = Vec::new();
    for value in values {
        let (name, limits) = value.split_once('=').ok_or_else(|| invalid(FLAG, value, "expected name=soft[:hard]"))?;
        if !NAMES.contains(&name) {
            return Err(invalid(FLAG, value, format!("unknown limit `{name}`: known are {}", NAMES.join(", "))));
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| match text.parse::<i64>() {
            Ok(number) if number >= -1 => Ok(number),
            _ => Err(invalid(FLAG, value, format!("`{text}` is no limit: expected a number, or -1 for none"))),
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(invalid(FLAG, value, "the soft limit is above the hard limit"));
        }
        out.push(format!("{name}={soft}:{hard}"));
    }
    Ok(out.join(","))
}

/// `--shm-size`, in bytes.
pub fn shm_size(value: &str) -> Result<String, Fault> {
    config::parse_bytes(value)
        .map(|bytes| bytes.to_string())
        .map_err(|error| invalid("--shm-size", value, format!("not {}", error.expected())))
}

/// `--platform`, repeated or with commas, normalised and in the order given.
pub fn platforms(values: &[String]) -> Result<String, Fault> {
    let mut out: Vec<String> = Vec::new();
    for value in values.iter().flat_map(|value| value.split(',')).filter(|value| !value.is_empty()) {
        let platform = match value {
            "local" => Platform::host(),
            other => other.parse().map_err(|error| invalid("--platform", other, error))?,
        };
        out.push(platform.to_string());
    }
    Ok(out.join(","))
}

/// `--no-cache-filter stage,stage`: the stages.
pub fn stages(values: &[String]) -> Result<Vec<String>, Fault> {
    let mut out = Vec::new();
    for value in values {
        out.extend(csv::fields(value).map_err(|error| invalid("--no-cache-filter", value, error))?);
    }
    Ok(out)
}

/// `--annotation [PLACE[,PLACE]:]key=value`, where a place is `manifest`, `index`, `manifest-descriptor` or
/// `index-descriptor`, the ones about manifests perhaps of one `[platform]`: the attributes of an export.
pub fn annotation(text: &str) -> Result<Vec<(String, String)>, Fault> {
    const FLAG: &str = "--annotation";
    let (key, value) = text.split_once('=').ok_or_else(|| invalid(FLAG, text, "expected key=value"))?;
    let place = |text: &str| -> Option<Result<String, Fault>> {
        let (kind, platform) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
            Some((kind, platform)) => (kind, Some(platform)),
            None => (text, None),
        };
        let is_index = matches!(kind, "index" | "index-descriptor");
        if !is_index && !matches!(kind, "manifest" | "manifest-descriptor") {
            return None;
        }
        Some(match platform.map(str::parse::<Platform>) {
            None => Ok(format!("annotation-{kind}")),
            Some(_) if is_index => Err(invalid(FLAG, text, "an index has no platform")),
            Some(Ok(platform)) => Ok(format!("annotation-{kind}[{platform}]")),
            Some(Err(error)) => Err(invalid(FLAG, text, error)),
        })
    };
    // A key may have a colon of its own.
    let places = key.split_once(':').and_then(|(places, key)| {
        let places: Option<Vec<_>> = places.split(',').map(place).collect();
        Some((places?, key))
    });
    let (places, key) = places.unwrap_or_else(|| (vec![Ok("annotation".to_owned())], key));
    if key.is_empty() {
        return Err(invalid(FLAG, text, "the key is empty"));
    }
    places.into_iter().map(|place| Ok((format!("{}.{key}", place?), value.to_owned()))).collect()
}

/// `--tag`, checked before the build begins.
pub fn tag(value: &str) -> Result<&str, Fault> {
    let bad = |why: &str| Err(invalid("--tag", value, why));
    match value {
        "" => bad("it is empty"),
        _ if value.contains("://") => bad("a reference has no scheme, write host/name:tag"),
        _ if value.contains(char::is_whitespace) => bad("a reference has no spaces"),
        _ if value.contains('@') => bad("a tag cannot have a digest"),
        _ if value.contains(',') => bad("give --tag once for each name"),
        _ => match image::Reference::parse(value) {
            Ok(_) => Ok(value),
            Err(error) => bad(&error.to_string()),
        },
    }
}

/// `--network`, as the frontend's `force-network-mode`.
pub fn network(value: &str) -> Result<Option<&str>, Fault> {
    match value {
        "" | "default" => Ok(None),
        "none" | "host" => Ok(Some(value)),
        _ => Err(invalid("--network", value, "known are default, none and host")),
    }
}
