//! `--allow`: rights that a build asks for.

use base::Fault;
use engine::Entitlement;

use super::{csv, invalid};

/// Parses every `--allow`.
pub fn entitlements(values: &[String]) -> Result<Vec<Entitlement>, Fault> {
    values.iter().map(|value| entitlement(value)).collect()
}

fn entitlement(value: &str) -> Result<Entitlement, Fault> {
    match value.split_once('=') {
        None if value == "network.host" => Ok(Entitlement::NetworkHost),
        None if value == "security.insecure" => Ok(Entitlement::SecurityInsecure),
        None if value == "device" => Ok(Entitlement::Device(None)),
        Some(("device", "")) => Ok(Entitlement::Device(None)),
        Some(("device", device)) => device_entitlement(value, device),
        _ => Err(invalid("--allow", value, "known are network.host, security.insecure and device[=NAME]")),
    }
}

fn device_entitlement(value: &str, device: &str) -> Result<Entitlement, Fault> {
    let fields = csv::fields(device).map_err(|error| invalid("--allow", value, error))?;
    if let Some(option) = fields.iter().skip(1).find(|field| !field.starts_with("alias=")) {
        return Err(invalid("--allow", value, format!("unknown device option `{option}`")));
    }
    Ok(Entitlement::Device(Some(device.to_owned())))
}
