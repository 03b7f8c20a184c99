//! Colours of the frame: BuildKit's defaults, `BUILDKIT_COLORS` on top, none with `NO_COLOR`.

use crate::environment::Environment;

/// SGR parameters (ECMA-48 8.3.117) for each state; empty: no colour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Colors {
    pub run: String,
    pub cancel: String,
    pub error: String,
    pub faint: bool,
}

impl Colors {
    pub fn choose(environment: &Environment) -> Colors {
        if environment.get("NO_COLOR").is_some() {
            return Colors { run: String::new(), cancel: String::new(), error: String::new(), faint: false };
        }
        let mut colors = Colors { run: "34".into(), cancel: "33".into(), error: "31".into(), faint: true };
        let entries = environment.get("BUILDKIT_COLORS").unwrap_or_default().split(':');
        for (key, value) in entries.filter_map(|entry| entry.split_once('=')) {
            let Some(color) = sgr(value.trim_matches('"')) else { continue };
            match key.to_ascii_lowercase().as_str() {
                "run" => colors.run = color,
                "cancel" => colors.cancel = color,
                "error" => colors.error = color,
                _ => {}
            }
        }
        colors
    }

    /// `text` in the colour with these parameters.
    pub fn paint(parameters: &str, text: &str) -> String {
        if parameters.is_empty() { text.to_owned() } else { format!("\x1b[{parameters}m{text}\x1b[0m") }
    }
}

/// A name (`light-blue`) or `red,green,blue` from 0 to 255.
fn sgr(value: &str) -> Option<String> {
    const NAMES: [&str; 8] = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
    let value = value.to_ascii_lowercase();
    if value == "default" {
        return Some("39".to_owned());
    }
    let (base, name) = value.strip_prefix("light-").map_or((30, value.as_str()), |name| (90, name));
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Some((base + index).to_string());
    }
    let parts: Vec<u8> = value.split(',').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts.as_slice() {
        [red, green, blue] => Some(format!("38;2;{red};{green};{blue}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_chosen_by_the_environment() {
        let choose = |variables: &[(&str, &str)]| {
            let colors = Colors::choose(&Environment::with(variables));
            format!("{}/{}/{}", colors.run, colors.cancel, colors.error)
        };
        assert_eq!(choose(&[]), "34/33/31");
        assert_eq!(choose(&[("NO_COLOR", "1")]), "//");
        assert_eq!(choose(&[("BUILDKIT_COLORS", "run=green:error=light-red:cancel=1,2,3")]), "32/38;2;1;2;3/91");
        assert_eq!(choose(&[("BUILDKIT_COLORS", "run=mauve:x=red:cancel=1,2,300:nonsense")]), "34/33/31");
    }
}
