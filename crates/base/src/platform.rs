//! Platforms as containerd writes them: `os[(version)]/arch[/variant]`, normalised.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor (OCI image-spec `image-index.md`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`, ..
    pub architecture: String,
    /// GOOS: `linux`, ..
    pub os: String,
    /// Version of the operating system (Windows).
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Features of the operating system (Windows).
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor: `v7`, `v8`, ..
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform: expected os/arch or os/arch/variant, such as linux/arm64")]
pub struct PlatformParseError(String);

impl Platform {
    /// A platform without version or features, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            os_version: String::new(),
            os_features: Vec::new(),
            variant: variant.to_owned(),
        }
        .normalize()
    }

    /// The platform of this machine.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::new("linux", architecture, "")
    }

    /// The one spelling of each platform: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`.
    #[must_use]
    pub fn normalize(mut self) -> Platform {
        self.os.make_ascii_lowercase();
        if self.os == "macos" {
            self.os = "darwin".to_owned();
        }
        let (arch, variant) = (self.architecture.to_ascii_lowercase(), self.variant.to_ascii_lowercase());
        let (arch, variant) = match (arch.as_str(), variant.as_str()) {
            ("i386", v) => ("386", v),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64", v) => ("arm64", v),
            ("arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        (self.architecture, self.variant) = (arch.to_owned(), variant.to_owned());
        self
    }

    /// How well an image for `self` runs where `wanted` is asked for: 0 is exact, larger is worse, none
    /// does not run. A processor runs older variants of its own architecture.
    pub fn distance_from(&self, wanted: &Platform) -> Option<u32> {
        let (have, want) = (self.clone().normalize(), wanted.clone().normalize());
        if have.os != want.os {
            return None;
        }
        let order = |arch: &str, variant: &str| -> Option<u32> {
            match arch {
                "arm" => variant.strip_prefix('v')?.parse().ok(),
                "amd64" if variant.is_empty() => Some(1),
                "amd64" => variant.strip_prefix('v')?.parse().ok(),
                "arm64" if variant.is_empty() => Some(80),
                "arm64" => {
                    let mut parts = variant.strip_prefix('v')?.splitn(2, '.');
                    let major: u32 = parts.next()?.parse().ok()?;
                    let minor: u32 = parts.next().unwrap_or("0").parse().ok()?;
                    Some(major * 10 + minor)
                }
                _ => (variant.is_empty()).then_some(0),
            }
        };
        if have.architecture == want.architecture {
            if have.variant == want.variant {
                return Some(0);
            }
            let (h, w) = (order(&have.architecture, &have.variant)?, order(&want.architecture, &want.variant)?);
            return (h <= w).then(|| w - h);
        }
        // 32-bit code on 64-bit processors, as containerd's `platforms.Only` allows.
        match (want.architecture.as_str(), have.architecture.as_str()) {
            ("arm64", "arm") => order("arm", &have.variant).filter(|v| *v <= 8).map(|v| 108 - v),
            ("amd64", "386") => Some(100),
            _ => None,
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let err = || PlatformParseError(text.to_owned());
        let host = Platform::host();
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|p| p.is_empty() || !p.chars().all(|c| c.is_ascii_alphanumeric() || "_-.()+".contains(c))) {
            return Err(err());
        }
        let (os, os_version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')').ok_or_else(err)?),
            None => (parts[0], ""),
        };
        let mut platform = match parts.len() {
            // One word is an operating system or a processor, whichever is known.
            1 if ["linux", "windows", "darwin", "macos", "freebsd"].contains(&os.to_ascii_lowercase().as_str()) => {
                Platform::new(os, &host.architecture, &host.variant)
            }
            1 if os_version.is_empty() => {
                const KNOWN: &[&str] = &[
                    "386", "i386", "amd64", "x86_64", "x86-64", "arm", "armhf", "armel", "arm64", "aarch64", "ppc64le",
                    "s390x", "riscv64", "mips64", "mips64le", "loong64", "wasm",
                ];
                if !KNOWN.contains(&os.to_ascii_lowercase().as_str()) {
                    return Err(err());
                }
                Platform::new(&host.os, os, "")
            }
            2 => Platform::new(os, parts[1], ""),
            3 => Platform::new(os, parts[1], parts[2]),
            _ => return Err(err()),
        };
        os_version.clone_into(&mut platform.os_version);
        Ok(platform)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if !self.os_version.is_empty() {
            write!(f, "({})", self.os_version)?;
        }
        write!(f, "/{}", self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn spellings_are_normalised() {
        for (text, shown) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AArch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("arm64", "linux/arm64"),
        ] {
            assert_eq!(p(text).to_string(), shown, "{text}");
        }
        for bad in ["", "/", "linux/", "bogus", "a/b/c/d", "linux/a b", "windows(1/amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn older_variants_run_and_others_do_not() {
        assert_eq!(p("linux/arm/v6").distance_from(&p("linux/arm/v7")), Some(1));
        assert_eq!(p("linux/arm/v7").distance_from(&p("linux/arm/v6")), None);
        assert_eq!(p("linux/amd64").distance_from(&p("linux/amd64")), Some(0));
        assert_eq!(p("linux/amd64").distance_from(&p("linux/arm64")), None);
        assert!(p("linux/arm/v7").distance_from(&p("linux/arm64")).is_some());
        assert_eq!(p("windows/amd64").distance_from(&p("linux/amd64")), None);
    }
}
