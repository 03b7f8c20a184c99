//! Platforms as they are typed in `FROM --platform`: containerd keeps a variant there that is implied.

use base::Platform;

/// Reads a platform without normalising the variant away: upstream asks the registry for exactly this.
pub(crate) fn parse(text: &str) -> Result<Platform, base::PlatformParseError> {
    let mut platform: Platform = text.parse()?;
    let parts = text.split('/').count();
    match (platform.architecture.as_str(), parts) {
        ("arm", 1 | 2) if platform.variant == "v7" => platform.variant.clear(),
        ("arm64", 3) if platform.variant.is_empty() => "v8".clone_into(&mut platform.variant),
        _ => {}
    }
    Ok(platform)
}

/// `os/arch[/variant]`, without the version of the operating system.
pub(crate) fn short(platform: &Platform) -> String {
    Platform { os_version: String::new(), ..platform.clone() }.to_string()
}
