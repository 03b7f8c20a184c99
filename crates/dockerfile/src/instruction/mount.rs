//! `RUN --mount`.

use super::csv;
use crate::error::{Error, Result};

/// One mount of a `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `type`.
    pub kind: Kind,
    /// `from`.
    pub from: Option<String>,
    /// `source`.
    pub source: String,
    /// `target`.
    pub target: String,
    /// `readonly`, or what the type implies.
    pub readonly: bool,
    /// `size`, in bytes.
    pub size: i64,
    /// `id`.
    pub id: String,
    /// `sharing`.
    pub sharing: Option<Sharing>,
    /// `required`.
    pub required: bool,
    /// `env`.
    pub env: Option<String>,
    /// `mode`.
    pub mode: Option<u32>,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Files of the context, a stage or an image.
    #[default]
    Bind,
    /// A directory that survives between builds.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret of the session.
    Secret,
    /// An ssh agent of the session.
    Ssh,
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Anybody.
    Shared,
    /// One; another gets a new one.
    Private,
    /// One; another waits.
    Locked,
}

const KINDS: [(&str, Kind); 5] = [
    ("bind", Kind::Bind),
    ("cache", Kind::Cache),
    ("tmpfs", Kind::Tmpfs),
    ("secret", Kind::Secret),
    ("ssh", Kind::Ssh),
];
const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl Mount {
    /// The `from` of a mount. It decides which stages are built, so that it cannot hold variables.
    pub(super) fn source_of(text: &str) -> Result<Option<String>> {
        let mut from = None;
        for field in fields(text)? {
            let Some((key, value)) = field.split_once('=') else { continue };
            if !key.eq_ignore_ascii_case("from") {
                continue;
            }
            if value.find('$').is_some_and(|at| at + 1 < value.len()) {
                let error = Error::new("'from' doesn't support variable expansion, define alias stage instead");
                let hint = format!("`{value}`: name the image in a stage, FROM <image> AS <name>, and mount from that");
                return Err(error.hint(hint));
            }
            from = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
        Ok(from)
    }

    /// Reads a mount; `expand` resolves the variables of a value.
    pub(crate) fn parse(text: &str, mut expand: impl FnMut(&str) -> Result<String>) -> Result<Mount> {
        let mut mount = Mount::default();
        let mut readonly = None;
        for field in fields(text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_ascii_lowercase(), Some(expand(value)?)),
                None => (field.to_ascii_lowercase(), None),
            };
            match (key.as_str(), &value) {
                ("readonly" | "ro", None) => readonly = Some(true),
                ("readwrite" | "rw", None) => readonly = Some(false),
                ("readonly" | "ro", Some(value)) => readonly = Some(boolean(&key, value)?),
                ("readwrite" | "rw", Some(value)) => readonly = Some(!boolean(&key, value)?),
                _ => mount.set(&key, value.as_deref(), &field)?,
            }
        }
        mount.readonly = readonly.unwrap_or(!matches!(mount.kind, Kind::Cache | Kind::Tmpfs));
        mount.check()?;
        Ok(mount)
    }

    fn set(&mut self, key: &str, value: Option<&str>, field: &str) -> Result<()> {
        if key == "required" && !matches!(self.kind, Kind::Secret | Kind::Ssh) {
            return Err(self.misplaced(key));
        }
        if !KEYS.contains(&key) {
            return Err(Error::new(format!("unexpected key '{key}' of a mount")).suggest(key, KEYS));
        }
        let value = match value {
            Some(value) => value,
            None if key == "required" => "true",
            None => return Err(Error::new(format!("option `{field}` of a mount needs a value"))),
        };
        match key {
            "type" => self.kind = choose("mount type", value, &KINDS)?,
            "sharing" => self.sharing = Some(choose("sharing mode", value, &SHARINGS)?),
            "from" => self.from = Some(value.to_owned()).filter(|value| !value.is_empty()),
            "source" | "src" => value.clone_into(&mut self.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "id" => value.clone_into(&mut self.id),
            "env" => self.env = Some(value.to_owned()),
            "required" => self.required = boolean(key, value)?,
            "size" if self.kind != Kind::Tmpfs => return Err(self.misplaced(key)),
            "size" => self.size = bytes(value).ok_or_else(|| wrong(key, value, "a size such as 64m"))?,
            "mode" => {
                self.mode = Some(u32::from_str_radix(value, 8).map_err(|_| wrong(key, value, "an octal number"))?);
            }
            "uid" => self.uid = Some(value.parse().map_err(|_| wrong(key, value, "a number"))?),
            _ => self.gid = Some(value.parse().map_err(|_| wrong(key, value, "a number"))?),
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let owned = matches!(self.kind, Kind::Secret | Kind::Ssh | Kind::Cache);
        for (key, given) in [("mode", self.mode.is_some()), ("uid", self.uid.is_some()), ("gid", self.gid.is_some())] {
            if given && !owned {
                return Err(self.misplaced(key));
            }
        }
        if self.sharing.is_some() && self.kind != Kind::Cache {
            return Err(self.misplaced("sharing"));
        }
        if self.kind == Kind::Secret {
            if self.from.is_some() {
                return Err(self.misplaced("from"));
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return Err(Error::new("a secret mount needs `id`, `source` or `target`"));
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return Err(Error::new("a secret mount has both `id` and `source`"));
            }
        }
        if self.kind == Kind::Ssh && !self.source.is_empty() {
            return Err(self.misplaced("source"));
        }
        Ok(())
    }

    fn misplaced(&self, key: &str) -> Error {
        let kind = KINDS.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        let error = Error::new(format!("a {kind} mount has no option `{key}`"));
        if matches!(key, "required" | "size") { error.hint(format!("`type` must stand before `{key}`")) } else { error }
    }
}

fn fields(text: &str) -> Result<Vec<String>> {
    csv::fields(text).map_err(|what| Error::new(format!("mount `{text}`: {what}")))
}

fn choose<T: Copy>(what: &str, value: &str, choices: &[(&'static str, T)]) -> Result<T> {
    let lower = value.to_ascii_lowercase();
    if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == lower) {
        return Ok(*choice);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    Err(Error::new(format!("unsupported {what} \"{value}\": expected {}", names.join(", "))).suggest(&lower, names))
}

fn wrong(key: &str, value: &str, expected: &str) -> Error {
    Error::new(format!("option `{key}` of a mount is `{value}`, not {expected}"))
}

fn boolean(key: &str, value: &str) -> Result<bool> {
    parse_bool(value).ok_or_else(|| wrong(key, value, "true or false"))
}

/// A truth value in the spellings that Go's `strconv.ParseBool` takes.
pub(crate) fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// `64`, `64b`, `64k`, `64KiB`, `1.5g`, .. in powers of 1024.
fn bytes(text: &str) -> Option<i64> {
    let digits = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = text.split_at(digits + 1);
    let number: f64 = number.strip_suffix(' ').unwrap_or(number).parse().ok()?;
    let unit = unit.to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let size = number * 1024f64.powi(power);
    (size >= 0.0 && size < i64::MAX as f64).then_some(size as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("0", 0), ("64", 64), ("64b", 64), ("1k", 1024), ("1.5KiB", 1536), ("2 MB", 2 << 20), ("1T", 1 << 40)]
        {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1kk", "1ib", "1e400p", "999999999p"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
