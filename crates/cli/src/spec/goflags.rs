//! Command lines as Go's flag parsers read them: `-progress plain` is `--progress plain`, booleans take
//! `=false`, and a value may begin with a dash.
//!
//! People's scripts have all of these; the parser below does not, so arguments are put into its form first:
//! `--name=value` throughout.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// Rewrites the arguments of `command` and its subcommands: flags of an outer command may stand behind an inner one, the
/// last of a flag that has one value counts, and `help` asks for what `--help` asks for. Unknown flags stay as they are, for
/// the parser to complain about.
pub fn normalize(command: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let mut levels = vec![Level { command, words: Vec::new() }];
    let mut asks_for_help = false;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let inner = levels.len() - 1;
        let Some(text) = arg.to_str() else {
            levels[inner].words.push(arg);
            continue;
        };
        if text == "--" {
            levels[inner].words.push(arg);
            levels[inner].words.extend(args);
            break;
        }
        let Some((name, value)) = flag(text) else {
            let command = levels[inner].command;
            match command.find_subcommand(text) {
                Some(sub) => levels.push(Level { command: sub, words: vec![arg] }),
                None if matches!(text, "help" | "h") && !takes_words(command) => asks_for_help = true,
                None => levels[inner].words.push(arg),
            }
            continue;
        };
        let known = (0..=inner).rev().find_map(|level| Some((level, levels[level].find(name)?)));
        let Some((level, known)) = known else {
            levels[inner].words.push(arg);
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
        let flag = format!("--{long}");
        // What has one value is said once: the last time counts.
        if matches!(known.get_action(), ArgAction::Set) {
            levels[level].words.retain(|word| {
                let said = word.to_str().map_or("", |word| word.split_once('=').map_or(word, |(name, _)| name));
                said != flag
            });
        }
        let mut rewritten = OsString::from(flag);
        if let Some(value) = value {
            rewritten.push("=");
            rewritten.push(value);
        }
        levels[level].words.push(rewritten);
    }
    let words = levels.into_iter().flat_map(|level| level.words);
    words.chain(asks_for_help.then(|| "--help".into())).collect()
}

/// Takes out what a command has no use for: words that are no flags, where it takes none. Upstream's programs ignore them. Of
/// commands in `strict` they stay, for the parser to complain about. The arguments are [`normalize`]d ones.
pub fn take_extra(command: &Command, strict: &[&str], args: &mut Vec<OsString>) -> Vec<String> {
    let (mut command, mut extra) = (command, Vec::new());
    let mut is_program = true;
    args.retain(|arg| {
        let text = arg.to_string_lossy();
        if std::mem::take(&mut is_program) || text.starts_with('-') {
            return true;
        }
        if let Some(sub) = command.find_subcommand(&*text) {
            command = sub;
            return true;
        }
        let stays = command.has_subcommands() || takes_words(command) || strict.contains(&command.get_name());
        if !stays {
            extra.push(text.into_owned());
        }
        stays
    });
    extra
}

fn takes_words(command: &Command) -> bool {
    command.get_positionals().next().is_some()
}

/// A command, and what was said of its own: its name first, unless it is the program.
struct Level<'a> {
    command: &'a Command,
    words: Vec<OsString>,
}

impl<'a> Level<'a> {
    fn find(&self, name: &str) -> Option<&'a Arg> {
        self.command.get_arguments().find(|known| {
            known.get_long() == Some(name)
                || known.get_all_aliases().unwrap_or_default().contains(&name)
                || (name.len() == 1 && known.get_short() == name.chars().next())
        })
    }
}

/// The name and value of something that looks like a flag.
fn flag(text: &str) -> Option<(&str, Option<&str>)> {
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|name| !name.is_empty())?;
    let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_nobody_takes_are_taken_out() {
        let command = Command::new("x")
            .subcommand(Command::new("du").arg(Arg::new("filter").long("filter")))
            .subcommand(Command::new("prune"))
            .subcommand(Command::new("get").arg(Arg::new("digest")));
        for (typed, left, taken) in [
            ("x du a --filter=b c", "x du --filter=b", "a c"),
            ("x du --bogus", "x du --bogus", ""),
            ("x du du", "x du", "du"),
            ("x prune a", "x prune a", ""),
            ("x get a b", "x get a b", ""),
            ("x a", "x a", ""),
            ("x", "x", ""),
        ] {
            let mut words: Vec<OsString> = typed.split(' ').map(OsString::from).collect();
            let extra = take_extra(&command, &["prune"], &mut words);
            let left_over = words.join(" ".as_ref());
            assert_eq!((left_over.to_str(), &*extra.join(" ")), (Some(left), taken), "{typed}");
        }
    }

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
        let command = command.subcommand(
            Command::new("debug")
                .subcommand(Command::new("workers").arg(flag("verbose").short('v')).arg(Arg::new("x"))),
        );
        for (typed, meant) in [
            ("build --progress plain", "build --progress=plain"),
            ("-debug build -progress=plain", "--debug build --progress=plain"),
            ("b -o type=tar -o -", "b --output=type=tar --output=-"),
            ("build --no-cache=1 --progress=a --no-cache=F --progress b", "build --no-cache=false --progress=b"),
            ("build --no-cache=F --no-cache", "build --no-cache"),
            ("build --no-cache=maybe", "build --no-cache=maybe"),
            ("--addr -x build", "--addr=-x build"),
            ("build --bogus 1 -z", "build --bogus 1 -z"),
            ("build --debug", "--debug build"),
            ("--addr a debug workers -v --addr b", "--addr=b debug workers --verbose"),
            ("debug --debug=0 workers -v=false --addr=c", "--debug=false --addr=c debug workers --verbose=false"),
            ("help", "--help"),
            ("h build", "build --help"),
            ("debug help workers", "debug workers --help"),
            ("debug help nothing", "debug nothing --help"),
            ("debug workers help", "debug workers help"),
            ("build help", "build --help"),
            ("build -- --progress plain", "build -- --progress plain"),
            ("build --progress", "build --progress"),
            ("- build", "- build"),
        ] {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(normalize(&command, words(typed)), words(meant), "{typed}");
        }
    }
}
