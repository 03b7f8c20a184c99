//! Command lines as Go's flag parsers read them: `-progress plain` is `--progress plain`, booleans take
//! `=false`, and a value may begin with a dash.
//!
//! People's scripts have all of these; the parser below does not, so arguments are put into its form first:
//! `--name=value` throughout.

use std::ffi::OsString;

use clap::{ArgAction, Command};

/// Rewrites the arguments of `command` and its subcommands. Unknown flags stay as they are, for the parser to
/// complain about.
pub fn normalize(command: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let mut levels = vec![command];
    let mut out = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(args);
            break;
        }
        let Some((name, value)) = flag(text) else {
            if let Some(sub) = levels.last().and_then(|command| command.find_subcommand(text)) {
                levels.push(sub);
            }
            out.push(arg);
            continue;
        };
        let known = levels.iter().rev().flat_map(|command| command.get_arguments()).find(|known| {
            known.get_long() == Some(name)
                || known.get_all_aliases().unwrap_or_default().contains(&name)
                || (name.len() == 1 && known.get_short() == name.chars().next())
        });
        let Some(known) = known else {
            out.push(arg);
            continue;
        };
        let long = known.get_long().unwrap_or(name);
        let takes_value = matches!(known.get_action(), ArgAction::Set | ArgAction::Append);
        let is_bool = known.get_num_args().is_some_and(|count| count.min_values() == 0);
        let value: Option<OsString> = match value {
            Some(value) if is_bool => {
                Some(config::parse_bool(value).map_or(value.to_owned(), |b| b.to_string()).into())
            }
            Some(value) => Some(value.into()),
            None if is_bool || !takes_value => None,
            None => args.next(),
        };
        let mut rewritten = OsString::from(format!("--{long}"));
        if let Some(value) = value {
            rewritten.push("=");
            rewritten.push(value);
        }
        out.push(rewritten);
    }
    out
}

/// The name and value of something that looks like a flag.
fn flag(text: &str) -> Option<(&str, Option<&str>)> {
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|name| !name.is_empty())?;
    let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn go_forms_become_ours() {
        let flag = |name: &'static str| {
            Arg::new(name).long(name).num_args(0..=1).require_equals(true).default_missing_value("true")
        };
        let command = Command::new("x").arg(flag("debug")).arg(Arg::new("addr").long("addr")).subcommand(
            Command::new("build")
                .alias("b")
                .arg(Arg::new("output").long("output").short('o').action(ArgAction::Append))
                .arg(flag("no-cache"))
                .arg(Arg::new("progress").long("progress")),
        );
        for (typed, meant) in [
            ("build --progress plain", "build --progress=plain"),
            ("-debug build -progress=plain", "--debug build --progress=plain"),
            ("b -o type=tar -o -", "b --output=type=tar --output=-"),
            ("build --no-cache=F --no-cache --no-cache=1", "build --no-cache=false --no-cache --no-cache=true"),
            ("build --no-cache=maybe", "build --no-cache=maybe"),
            ("--addr -x build", "--addr=-x build"),
            ("build --bogus 1 -z", "build --bogus 1 -z"),
            ("build --debug", "build --debug"),
            ("build -- --progress plain", "build -- --progress plain"),
            ("build --progress", "build --progress"),
            ("- build", "- build"),
        ] {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(normalize(&command, words(typed)), words(meant), "{typed}");
        }
    }
}
