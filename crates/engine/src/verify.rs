//! Whether a result is for the platforms that were asked for. Where it is not, the user is warned, as BuildKit warns.

use std::collections::{BTreeMap, BTreeSet};

use base::{Fault, Platform};

use crate::result::{FrontendResult, Refs};

/// What is odd about a result; `options` are those of its frontend.
pub(crate) fn odd_platforms(options: &BTreeMap<String, String>, result: &FrontendResult) -> Result<Vec<String>, Fault> {
    let several = match &result.refs {
        // Nothing was made, and nobody says for what.
        Refs::One(None) if !result.names_platforms() => return Ok(Vec::new()),
        Refs::One(_) => false,
        Refs::Many(many) => !many.is_empty(),
    };
    let mut odd = Vec::new();
    let mut wanted = BTreeSet::new();
    let mut listed = Vec::new();
    let host = Platform::host().to_string();
    let requested = options.get("platform").map_or(host.as_str(), String::as_str);
    for text in requested.split(',') {
        match text.parse::<Platform>() {
            Ok(platform) => {
                let name = platform.normalize().to_string();
                if !wanted.insert(name.clone()) {
                    odd.push(format!("Duplicate platform result requested \"{text}\""));
                }
                listed.push(name);
            }
            Err(error) => odd.push(format!("Invalid platform result requested \"{text}\": {error}")),
        }
    }
    if !odd.is_empty() {
        return Ok(odd);
    }
    let made: Vec<Platform> = result.shown_platforms()?.into_iter().map(Platform::normalize).collect();
    let is_wanted = |platform: &Platform| {
        // Who asks for a system seldom says which version of it.
        let plain = Platform { os_version: String::new(), ..platform.clone() };
        wanted.contains(&platform.to_string()) || wanted.len() == 1 && wanted.contains(&plain.to_string())
    };
    match &made[..] {
        [only] if wanted.len() == 1 && !is_wanted(only) => {
            odd.push(format!("Requested platform \"{requested}\" does not match result platform \"{only}\""));
        }
        _ if !several && wanted.len() > 1 => {
            odd.push("Multiple platforms requested but result is not multi-platform".to_owned());
        }
        _ if made.len() != wanted.len() || !made.iter().all(is_wanted) => {
            let made: Vec<String> = made.iter().map(ToString::to_string).collect();
            let (listed, made) = (listed.join(","), made.join(","));
            odd.push(format!("Requested platforms {listed} do not match result platforms {made}"));
        }
        _ => {}
    }
    Ok(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(requested: Option<&str>, made: &str, several: bool) -> Vec<String> {
        let options = requested.map(|text| ("platform".to_owned(), text.to_owned())).into_iter().collect();
        let list: Vec<_> = made
            .split(',')
            .map(|text| serde_json::json!({ "ID": text, "Platform": text.parse::<Platform>().expect("a platform") }))
            .collect();
        let list = serde_json::json!({ "Platforms": list }).to_string().into_bytes();
        let refs = match several {
            true => Refs::Many(made.split(',').map(|text| (text.to_owned(), None)).collect()),
            false => Refs::One(None),
        };
        let result = FrontendResult { refs, metadata: [("refs.platforms".to_owned(), list)].into() };
        odd_platforms(&options, &result).expect("platforms")
    }

    #[test]
    fn other_platforms_than_were_asked_for_are_told() {
        let host = Platform::host().to_string();
        assert!(odd(None, &host, false).is_empty());
        assert!(odd(Some("linux/arm64"), "linux/arm64", false).is_empty());
        assert!(odd(Some("linux/amd64,linux/arm64"), "linux/amd64,linux/arm64", true).is_empty());
        assert!(odd(Some("windows/amd64"), "windows(10.0)/amd64", false).is_empty());
        for (requested, made, several, told) in [
            (
                Some("linux/s390x"),
                "linux/arm64",
                false,
                "\"linux/s390x\" does not match result platform \"linux/arm64\"",
            ),
            (Some("linux/amd64,linux/arm64"), "linux/amd64", false, "result is not multi-platform"),
            (Some("linux/amd64,linux/amd64"), "linux/amd64", false, "Duplicate platform result requested"),
            (Some("linux/amd64,a/b/c/d"), "linux/amd64", false, "Invalid platform result requested \"a/b/c/d\""),
            (None, "linux/s390x,linux/arm64", true, "do not match result platforms linux/s390x,linux/arm64"),
        ] {
            let all = odd(requested, made, several);
            assert!(all.len() == 1 && all[0].contains(told), "{all:?}");
        }
    }
}
