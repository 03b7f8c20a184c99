//! Which files are read, and what is said about them.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::Config;
use crate::document::{Flaw, apply, position};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("`{path}`, line {line}, column {column}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A key has a value that it cannot have.
    #[error("`{path}`, line {line}: `{key}`: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The full key.
        key: String,
        /// What is expected.
        message: String,
    },
}

/// Something that the user should know and that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A key that nobody knows.
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The full key.
        key: String,
        /// A known key that looks like it.
        nearest: Option<String>,
    },
    /// The file that was asked for is not there.
    Missing(PathBuf),
    /// The system's file, which this user may not read.
    Denied(PathBuf),
    /// A key whose meaning has a better name.
    Deprecated {
        /// The full key.
        key: &'static str,
        /// What to write.
        instead: &'static str,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey { path, line, key, nearest } => {
                write!(f, "`{}`, line {line}: unknown key `{key}` is ignored", path.display())?;
                match nearest {
                    Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
                    None => Ok(()),
                }
            }
            Warning::Missing(path) => write!(f, "`{}` does not exist, going on with the defaults", path.display()),
            Warning::Denied(path) => {
                write!(f, "`{}` cannot be read by this user, going on without it", path.display())
            }
            Warning::Deprecated { key, instead } => write!(f, "key `{key}` is deprecated, write `{instead}`"),
        }
    }
}

/// What the environment says about where files are.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// `--config`. Nothing else is read then.
    pub explicit: Option<PathBuf>,
    /// The program runs for an ordinary user.
    pub rootless: bool,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// In place of `/etc/buildkit`, for tests.
    pub system_dir: Option<PathBuf>,
}

impl Lookup {
    /// The files to read, the later ones on top of the earlier.
    ///
    /// An ordinary user's own file stands on top of the system's, because pods of the buildx kubernetes driver
    /// mount `/etc/buildkit` for rootless daemons too.
    pub fn files(&self) -> Vec<PathBuf> {
        const NAME: &str = "buildkitd.toml";
        if let Some(path) = &self.explicit {
            return vec![path.clone()];
        }
        let mut files = vec![self.system_dir.as_deref().unwrap_or(Path::new("/etc/buildkit")).join(NAME)];
        if self.rootless {
            let config_home =
                self.xdg_config_home.clone().or_else(|| self.home.as_ref().map(|home| home.join(".config")));
            files.extend(config_home.map(|dir| dir.join("buildkit").join(NAME)));
        }
        files
    }

    /// Whether a file is the system's, and we run for an ordinary user.
    fn is_others(&self, path: &Path) -> bool {
        self.rootless && self.explicit.is_none() && self.files().first().is_some_and(|system| system == path)
    }
}

/// A configuration and what is to be said about it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The files that it was read from.
    pub files: Vec<PathBuf>,
    /// What the user should know.
    pub warnings: Vec<Warning>,
}

/// Reads every file that `lookup` names and that exists.
pub fn load(lookup: &Lookup) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    for path in lookup.files() {
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                add(&mut loaded, &path, &text)?;
                loaded.files.push(path);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if lookup.explicit.is_some() {
                    loaded.warnings.push(Warning::Missing(path));
                }
            }
            // A pod's ordinary user may not look into root's directory, and may not need to.
            Err(error) if error.kind() == ErrorKind::PermissionDenied && lookup.is_others(&path) => {
                loaded.warnings.push(Warning::Denied(path));
            }
            Err(source) => return Err(Error::Read { path, source }),
        }
    }
    Ok(loaded)
}

/// Reads one text; `path` is for messages.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Error> {
    let mut loaded = Loaded { files: vec![path.to_owned()], ..Loaded::default() };
    add(&mut loaded, path, text)?;
    Ok(loaded)
}

fn add(loaded: &mut Loaded, path: &Path, text: &str) -> Result<(), Error> {
    let unknown = apply(&mut loaded.config, text).map_err(|flaw| match flaw {
        Flaw::Syntax { at, message } => {
            let (line, column) = position(text, at);
            Error::Syntax { path: path.to_owned(), line, column, message }
        }
        Flaw::Value { at, key, message } => {
            Error::Value { path: path.to_owned(), line: position(text, at).0, key, message }
        }
    })?;
    loaded.warnings.extend(unknown.into_iter().map(|key| Warning::UnknownKey {
        path: path.to_owned(),
        line: position(text, key.span.start).0,
        key: key.path,
        nearest: key.nearest,
    }));
    let config = &loaded.config;
    let old = [
        (config.debug, "debug", "log.level = \"debug\""),
        (config.trace, "trace", "log.level = \"trace\""),
        (!config.worker.oci.gc.keep_storage.is_unset(), "worker.oci.gckeepstorage", "worker.oci.reservedSpace"),
    ];
    for (_, key, instead) in old.into_iter().filter(|(used, ..)| *used) {
        let warning = Warning::Deprecated { key, instead };
        if !loaded.warnings.contains(&warning) {
            loaded.warnings.push(warning);
        }
    }
    Ok(())
}
