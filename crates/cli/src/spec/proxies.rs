//! `proxies` of docker's `config.json`: docker's clients pass them to every build as build arguments, which neither
//! the image nor the cache keys remember.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// Key of the file -> build argument; both spellings are set, since programs differ in which they read.
const KEYS: [(&str, &str); 5] = [
    ("httpProxy", "HTTP_PROXY"),
    ("httpsProxy", "HTTPS_PROXY"),
    ("ftpProxy", "FTP_PROXY"),
    ("noProxy", "NO_PROXY"),
    ("allProxy", "ALL_PROXY"),
];

/// The build arguments that `config.json` in `dir` asks for. A file that is not there, or is no JSON, asks for none:
/// who looks for credentials in it says what is wrong with it.
pub fn build_args(dir: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read(dir.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    let proxies = &config["proxies"]["default"];
    let mut out = BTreeMap::new();
    for (key, name) in KEYS {
        if let Some(value) = proxies[key].as_str().filter(|value| !value.is_empty()) {
            for name in [name.to_owned(), name.to_lowercase()] {
                out.insert(format!("build-arg:{name}"), value.to_owned());
            }
        }
    }
    out
}

/// Adds them to the build arguments of a command line, which go before them in whichever spelling they are.
pub fn add(given: &mut BTreeMap<String, String>, proxies: BTreeMap<String, String>) {
    let mut proxies = proxies;
    proxies.retain(|name, _| !given.keys().any(|key| key.eq_ignore_ascii_case(name)));
    given.extend(proxies);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_build_arguments() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(build_args(dir.path()).is_empty());
        let config = r#"{"proxies":{"default":{"httpProxy":"http://p:1","noProxy":"","ftpProxy":3}}}"#;
        std::fs::write(dir.path().join("config.json"), config).expect("written");
        let args: Vec<(String, String)> = build_args(dir.path()).into_iter().collect();
        let arg = |name: &str| (format!("build-arg:{name}"), "http://p:1".to_owned());
        assert_eq!(args, [arg("HTTP_PROXY"), arg("http_proxy")]);
        std::fs::write(dir.path().join("config.json"), "{").expect("written");
        assert!(build_args(dir.path()).is_empty());
    }

    #[test]
    fn the_command_line_goes_before_the_file_in_any_spelling() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (format!("build-arg:{name}"), (*value).to_owned())).collect()
        };
        let file = map(&[("HTTP_PROXY", "f"), ("http_proxy", "f"), ("NO_PROXY", "f"), ("no_proxy", "f")]);
        for spelling in ["NO_PROXY", "no_proxy"] {
            let mut args = map(&[(spelling, "a"), ("other", "a")]);
            add(&mut args, file.clone());
            let expected = map(&[("HTTP_PROXY", "f"), ("http_proxy", "f"), (spelling, "a"), ("other", "a")]);
            assert_eq!(args, expected);
        }
    }
}
