//! `RUN`.

use super::{CommandLine, Kind, Mount, command_line, csv, flag::Flags, parse_bool};
use crate::error::{Error, Result};
use crate::parse::Line;

/// `RUN`.
#[derive(Clone, Debug)]
pub struct Run {
    /// What runs.
    pub command: CommandLine,
    /// `--mount`, each as it was typed: values may hold variables.
    pub mounts: Vec<String>,
    /// The `from` of each mount, which may not.
    pub mount_sources: Vec<Option<String>>,
    /// `--network`.
    pub network: Network,
    /// `--security=insecure`.
    pub insecure: bool,
    /// `--device`.
    pub devices: Vec<Device>,
}

/// A device that a step asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A device, a kind or a class of them.
    pub name: String,
    /// It is an error if there is none.
    pub required: bool,
}

impl Device {
    /// `NAME[,required[=BOOL]]` or `name=NAME[,..]`.
    fn parse(text: &str) -> Result<Device> {
        let fields = csv::fields(text).map_err(|why| Error::new(format!("`{text}` is no device: {why}")))?;
        let mut device = Device { name: String::new(), required: false };
        for field in fields {
            let (key, value) = field.split_once('=').map_or((&*field, None), |(key, value)| (key, Some(value)));
            match (key.to_ascii_lowercase().as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => {
                    let wrong = || Error::new(format!("invalid value for required: {value}"));
                    device.required = parse_bool(value).ok_or_else(wrong)?;
                }
                ("name", Some(value)) if device.name.is_empty() => value.clone_into(&mut device.name),
                ("name", Some(_)) => return Err(Error::new(format!("device name already set to {}", device.name))),
                _ if device.name.is_empty() => device.name = field,
                (_, None) => return Err(Error::new(format!("invalid field '{field}' must be a key=value pair"))),
                (key, Some(_)) => {
                    let error = Error::new(format!("unexpected key '{key}' in '{field}'"));
                    return Err(error.suggest(key, ["name", "required"]));
                }
            }
        }
        Ok(device)
    }
}

/// The network of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// As the builder is configured.
    Default,
    /// None.
    None,
    /// The host's.
    Host,
}

impl Run {
    /// Checks the mounts that hold no variables, so that nothing is downloaded for a step that cannot run.
    pub(crate) fn check_mounts(&self) -> Result<()> {
        let mut plain = self.mounts.iter().filter(|mount| !mount.contains(['$', '\'', '"', '\\', '`']));
        plain.try_for_each(|mount| Mount::parse(mount, |value| Ok(value.to_owned())).map(drop))
    }
}

pub(super) fn parse(line: &Line, flags: &mut Flags<'_>) -> Result<Kind> {
    let command = command_line(line);
    // An empty shell form is an empty script: such a line is often what is left of one that was commented out.
    if !command.shell && command.args.is_empty() {
        return Err(Error::new("RUN has no command"));
    }
    let mounts = flags.texts("mount")?;
    let mount_sources = mounts.iter().map(|mount| Mount::source_of(mount)).collect::<Result<_>>()?;
    let network = match flags.text("network")?.as_deref() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => {
            let error = Error::new(format!("`{other}` is not a network: expected default, none or host"));
            return Err(error.suggest(other, ["default", "none", "host"]));
        }
    };
    let insecure = match flags.text("security")?.as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => {
            let error = Error::new(format!("`{other}` is not a security mode: expected sandbox or insecure"));
            return Err(error.suggest(other, ["sandbox", "insecure"]));
        }
    };
    let devices = flags.texts("device")?.iter().map(|text| Device::parse(text)).collect::<Result<_>>()?;
    Ok(Kind::Run(Box::new(Run { command, mounts, mount_sources, network, insecure, devices })))
}
