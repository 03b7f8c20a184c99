//! `HEALTHCHECK`, and durations as Go writes them.

use super::{command_line, flag::Flags, words};
use crate::error::{Error, Result};
use crate::parse::Line;

/// A health check. Times are nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// `NONE`, or `CMD` or `CMD-SHELL` and the command.
    pub test: Vec<String>,
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i32,
}

pub(super) fn parse(line: &Line, flags: &mut Flags<'_>) -> Result<Health> {
    let [kind, command @ ..] = words(line) else {
        return Err(Error::new("HEALTHCHECK needs CMD and a command, or NONE"));
    };
    let mut health = Health::default();
    let mut time = |name| match flags.text(name)?.as_deref() {
        None | Some("") => Ok(0),
        Some(text) => match parse_duration(text) {
            None => Err(Error::new(format!("flag --{name} of HEALTHCHECK is `{text}`, not a time such as 30s"))),
            Some(time) if time != 0 && time < 1_000_000 => {
                Err(Error::new(format!("flag --{name} of HEALTHCHECK is `{text}`, less than a millisecond")))
            }
            Some(time) => Ok(time),
        },
    };
    health.interval = time("interval")?;
    health.timeout = time("timeout")?;
    health.start_period = time("start-period")?;
    health.start_interval = time("start-interval")?;
    if let Some(text) = flags.text("retries")?.filter(|text| !text.is_empty()) {
        let retries = text.parse::<i32>().ok().filter(|retries| *retries >= 0);
        let wrong = || Error::new(format!("flag --retries of HEALTHCHECK is `{text}`, not a number from 0"));
        health.retries = retries.ok_or_else(wrong)?;
    }
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if command.is_empty() => {
            health = Health { test: vec!["NONE".to_owned()], ..Health::default() };
        }
        "NONE" => return Err(Error::new(format!("HEALTHCHECK NONE takes nothing, and has `{}`", command.join(" ")))),
        "CMD" if command.is_empty() => return Err(Error::new("HEALTHCHECK CMD has no command")),
        "CMD" => {
            let line = command_line(line);
            health.test.push(if line.shell { "CMD-SHELL" } else { "CMD" }.to_owned());
            match &line.shell {
                true => health.test.push(command.join(" ")),
                false => health.test.extend(command.iter().cloned()),
            }
        }
        other => {
            let error = Error::new(format!("HEALTHCHECK has no type `{other}`: expected CMD or NONE"));
            return Err(error.suggest(other, ["CMD", "NONE"]));
        }
    }
    Ok(health)
}

/// Nanoseconds of a time such as `1h30m`, `1.5s`, `-300ms`.
fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let mut part = whole.checked_mul(unit)?;
        if !fraction.is_empty() {
            let fraction = &fraction[..fraction.len().min(18)];
            let digits: u128 = fraction.parse().ok()?;
            part = part.checked_add((digits * u128::from(unit) / 10u128.pow(fraction.len() as u32)) as u64)?;
        }
        total = total.checked_add(part)?;
        rest = after;
    }
    let total = i64::try_from(total).ok()?;
    Some(if negative { -total } else { total })
}

/// A time as Go prints it: `1h30m0s`, `1.5s`, `300ms`, `0s`.
pub(crate) fn show_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let decimal = |n: u64, unit: u64, name: &str| {
        let fraction = format!("{:0width$}", n % unit, width = unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let dot = if fraction.is_empty() || unit == 1 { String::new() } else { format!(".{fraction}") };
        format!("{}{dot}{name}", n / unit)
    };
    let body = match n {
        0 => "0s".to_owned(),
        1..1_000 => format!("{n}ns"),
        1_000..1_000_000 => decimal(n, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(n, 1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (n / 60_000_000_000, n % 60_000_000_000);
            let seconds = decimal(rest, 1_000_000_000, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    };
    format!("{sign}{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_has_them() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("1h", 3_600_000_000_000, "1h0m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            (".5m", 30_000_000_000, "30s"),
            ("300ms", 300_000_000, "300ms"),
            ("-1.25ms", -1_250_000, "-1.25ms"),
            ("7us", 7_000, "7µs"),
            ("9ns", 9, "9ns"),
        ] {
            assert_eq!(parse_duration(text), Some(nanos), "{text}");
            assert_eq!(show_duration(nanos), shown);
        }
        for bad in ["", "s", "1", "1x", ".s", "1..2s", "99999999999h", "-"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
