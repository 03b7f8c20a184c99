//! Instructions that change the configuration, and the one place where all instructions meet.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::SourceSpan;
use image::Healthcheck;
use llb::build::{Env, FileAction, Owner};

use super::stage::{Stage, Step};
use super::{Lowering, display, expose, is_for_scanners, uppercase_first};
use crate::error::{Error, Result};
use crate::expand::Lexer;
use crate::instruction::{Arg, CommandLine, Copy, Health, Kind, show_duration};
use crate::lint::{self, Place};
use crate::parse::Pair;
use crate::request::{Argument, description};
use base::gotext::{plain_list, quoted_list};

impl Lowering<'_> {
    pub(super) fn dispatch(&mut self, index: usize, step: Step) -> Result<()> {
        self.present = (self.input.linter.scope_of(&step.instruction.comments), step.instruction.span);
        let typed = step.instruction.name.as_str();
        match &step.instruction.kind {
            Kind::Run(run) => return self.run(index, &step, run),
            Kind::Copy(copy) => {
                let copy = self.expand_copy(index, copy)?;
                return self.copy(index, &step, &copy);
            }
            Kind::Workdir(dir) => return self.workdir(index, &step, dir),
            Kind::Arg(args) => return self.arg(index, args, &step.instruction.comments),
            _ => {}
        }
        let text = match &step.instruction.kind {
            Kind::Env(pairs) => self.env(index, typed, pairs)?,
            Kind::Label(pairs) => self.label(index, typed, pairs)?,
            Kind::Maintainer(name) => {
                self.stages[index].image.author.clone_from(name);
                format!("MAINTAINER {name}")
            }
            Kind::User(user) => {
                let user = self.expand(index, user)?;
                let stage = &mut self.stages[index];
                stage.state.set_user(&user);
                let text = format!("USER {user}");
                stage.image.config.user = user;
                text
            }
            Kind::Cmd(line) => self.cmd(index, typed, line),
            Kind::Entrypoint(line) => self.entrypoint(index, typed, line),
            Kind::Expose(ports) => self.expose(index, ports)?,
            Kind::Volume(paths) => self.volume(index, paths)?,
            Kind::Healthcheck(health) => self.healthcheck(index, typed, health),
            Kind::Shell(shell) => {
                self.stages[index].image.config.shell.clone_from(shell);
                format!("SHELL {}", plain_list(shell))
            }
            Kind::StopSignal(signal) => {
                let signal = self.expand(index, signal)?;
                check_signal(&signal)?;
                let text = format!("STOPSIGNAL {signal}");
                self.stages[index].image.config.stop_signal = signal;
                text
            }
            // What a later image does leaves no trace in this one's history.
            Kind::Onbuild(trigger) => {
                self.stages[index].image.config.on_build.push(trigger.clone());
                return Ok(());
            }
            Kind::From(_) => return Err(Error::new("FROM cannot be triggered")),
            Kind::Run(_) | Kind::Copy(_) | Kind::Workdir(_) | Kind::Arg(_) => return Ok(()),
        };
        let epoch = self.history_time();
        self.stages[index].record(epoch, text, false)
    }

    fn environment(&self, index: usize) -> Arc<Env> {
        self.stages[index].state.env().clone()
    }

    pub(super) fn expand(&self, index: usize, text: &str) -> Result<String> {
        self.expand_by(self.lexer, index, text)
    }

    fn expand_by(&self, lexer: Lexer, index: usize, text: &str) -> Result<String> {
        let stage = &self.stages[index];
        let expanded = lexer.expand(text, &**stage.state.env())?;
        lint::variables::used(self.place(), &expanded.unmatched, &stage.args, stage.state.env());
        Ok(expanded.text)
    }

    fn expand_all(&self, index: usize, texts: &[String]) -> Result<Vec<String>> {
        texts.iter().map(|text| self.expand(index, text)).collect()
    }

    fn expand_pairs(&self, index: usize, pairs: &[Pair]) -> Result<Vec<(String, String)>> {
        pairs.iter().map(|pair| Ok((self.expand(index, &pair.key)?, self.expand(index, &pair.value)?))).collect()
    }

    fn expand_copy(&self, index: usize, copy: &Copy) -> Result<Copy> {
        let mut copy = copy.clone();
        copy.chown = self.expand(index, &copy.chown)?;
        copy.chmod = self.expand(index, &copy.chmod)?;
        copy.checksum = self.expand(index, &copy.checksum)?;
        copy.sources = self.expand_all(index, &copy.sources)?;
        copy.dest = self.expand(index, &copy.dest)?;
        for inline in copy.inline.iter_mut().filter(|inline| inline.expand) {
            inline.content = self.expand_by(Lexer::new('\\').ignore_quotes(), index, &inline.content)?;
        }
        Ok(copy)
    }

    fn env(&mut self, index: usize, typed: &str, pairs: &[Pair]) -> Result<String> {
        let mut text = String::from("ENV");
        for (pair, (key, value)) in pairs.iter().zip(self.expand_pairs(index, pairs)?) {
            lint::deprecated::key_value(self.place(), typed, pair);
            lint::secrets::name(self.place(), "ENV", &key);
            text.push_str(&format!(" {key}={value}"));
            let stage = &mut self.stages[index];
            // What the steps do not know is not in the configuration either.
            let known = stage.state.env().get(&key).is_some();
            stage.state.set_env(&key, &value);
            let pair = format!("{key}={value}");
            let env = &mut stage.image.config.env;
            match env.iter_mut().find(|have| known && have.split('=').next() == Some(&*key)) {
                Some(have) => *have = pair,
                None => env.push(pair),
            }
        }
        Ok(text)
    }

    fn label(&mut self, index: usize, typed: &str, pairs: &[Pair]) -> Result<String> {
        let mut text = String::from("LABEL");
        for (pair, (key, value)) in pairs.iter().zip(self.expand_pairs(index, pairs)?) {
            lint::deprecated::key_value(self.place(), typed, pair);
            text.push_str(&format!(" {key}={value}"));
            self.stages[index].image.config.labels.insert(key, value);
        }
        Ok(text)
    }

    fn arg(&mut self, index: usize, args: &[Arg], comments: &[String]) -> Result<()> {
        let mut texts = Vec::with_capacity(args.len());
        for arg in args {
            lint::secrets::name(self.place(), "ARG", &arg.key);
            let given = self.build_args.get(&arg.key).cloned();
            // Otherwise it is the one in front of the first stage.
            let is_own = given.is_some() || arg.value.is_some() || self.globals.get(&arg.key).is_none();
            let value = match (given, &arg.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(index, default)?),
                (None, None) => self.globals.get(&arg.key).map(str::to_owned),
            };
            let span = self.present.1;
            let stage = &mut self.stages[index];
            stage.capture.used.insert(arg.key.clone());
            if is_own {
                let argument = Argument {
                    value: value.clone().unwrap_or_default(),
                    description: description(comments, &arg.key),
                    uses: BTreeSet::new(),
                    span,
                };
                stage.capture.arguments.insert(arg.key.clone(), argument);
            }
            texts.push(match &value {
                Some(value) => {
                    if !is_for_scanners(&arg.key) {
                        stage.state.set_env(&arg.key, value);
                    }
                    format!("{}={value}", arg.key)
                }
                None => arg.key.clone(),
            });
            stage.args.push(Arg { key: arg.key.clone(), value });
        }
        let epoch = self.history_time();
        self.stages[index].record(epoch, format!("ARG {}", texts.join(" ")), false)
    }

    fn workdir(&mut self, index: usize, step: &Step, dir: &str) -> Result<()> {
        let dir = self.expand(index, dir)?;
        if !std::mem::replace(&mut self.stages[index].workdir_set, true) {
            lint::workdir::first(self.place(), &dir);
        }
        let dir = self.stages[index].set_workdir(&dir);
        let layer = dir != "/";
        if layer {
            let stage = &self.stages[index];
            let user = &stage.image.config.user;
            let mkdir = FileAction::Mkdir {
                path: dir.clone(),
                mode: 0o755,
                parents: true,
                owner: (!user.is_empty()).then(|| Owner::parse(user)),
                created: self.epoch.map(|epoch| i64::try_from(epoch.as_nanosecond()).unwrap_or(i64::MAX)),
            };
            let state = stage.state.clone();
            let text = uppercase_first(&display(self.lexer, step.instruction.code.trim(), &**state.env()));
            let name = self.step_name(index, step.trigger, &text);
            let mut constraints = self.step_constraints(index, &name, step.instruction.span);
            constraints.ignore_cache = false;
            constraints.platform.clone_from(&self.stages[index].platform);
            self.stages[index].state = self.builder.file(&state, vec![mkdir], constraints);
        }
        let epoch = self.history_time();
        self.stages[index].record(epoch, format!("WORKDIR {dir}"), layer)
    }

    /// Notes an instruction of which a stage should have one.
    fn once(&mut self, index: usize, typed: &str, own: fn(&mut Stage) -> &mut Option<SourceSpan>) {
        let place = Place { scope: &self.present.0, span: self.present.1 };
        lint::command::once(place, typed, own(&mut self.stages[index]));
    }

    fn command_args(&self, index: usize, typed: &str, line: &CommandLine) -> Vec<String> {
        lint::command::form(self.place(), typed, line.shell, &self.stages[index].image.config.shell);
        if line.shell { self.with_shell(index, &line.args.join(" ")) } else { line.args.clone() }
    }

    fn cmd(&mut self, index: usize, typed: &str, line: &CommandLine) -> String {
        self.once(index, typed, |stage| &mut stage.own_cmd);
        let args = self.command_args(index, typed, line);
        let text = format!("CMD {}", quoted_list(&args));
        let stage = &mut self.stages[index];
        stage.image.config.cmd = args;
        stage.image.config.args_escaped = true;
        text
    }

    fn entrypoint(&mut self, index: usize, typed: &str, line: &CommandLine) -> String {
        self.once(index, typed, |stage| &mut stage.own_entrypoint);
        let args = self.command_args(index, typed, line);
        let text = format!("ENTRYPOINT {}", quoted_list(&args));
        let stage = &mut self.stages[index];
        stage.image.config.entrypoint = args;
        // The base image's command was meant for the base image's entrypoint.
        if stage.own_cmd.is_none() {
            stage.image.config.cmd.clear();
        }
        text
    }

    fn expose(&mut self, index: usize, typed: &[String]) -> Result<String> {
        let env = self.environment(index);
        let mut all = Vec::new();
        for typed in typed {
            for port in self.lexer.expand(typed, &*env)?.words {
                let ports = expose::ports(&port)?;
                lint::expose::port(self.place(), &port);
                all.extend(ports);
            }
        }
        let exposed = &mut self.stages[index].image.config.exposed_ports;
        exposed.extend(all.iter().cloned());
        Ok(format!("EXPOSE {}", plain_list(&all)))
    }

    fn volume(&mut self, index: usize, paths: &[String]) -> Result<String> {
        let paths = self.expand_all(index, paths)?;
        if paths.iter().any(String::is_empty) {
            return Err(Error::new("VOLUME has an empty path"));
        }
        let volumes = &mut self.stages[index].image.config.volumes;
        volumes.extend(paths.iter().cloned());
        Ok(format!("VOLUME {}", plain_list(&paths)))
    }

    fn healthcheck(&mut self, index: usize, typed: &str, health: &Health) -> String {
        self.once(index, typed, |stage| &mut stage.own_healthcheck);
        self.stages[index].image.config.healthcheck = Some(Healthcheck {
            test: health.test.clone(),
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: i64::from(health.retries),
        });
        format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            plain_list(&health.test),
            show_duration(health.interval),
            show_duration(health.timeout),
            show_duration(health.start_period),
            show_duration(health.start_interval),
            health.retries
        )
    }
}

/// Refuses what is no signal of Linux.
fn check_signal(text: &str) -> Result<()> {
    const NAMES: [&str; 36] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    if text.is_empty() {
        return Err(Error::new("STOPSIGNAL has an empty signal"));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix, most: u32| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.parse::<u32>().ok());
        number.is_some_and(|number| (1..=most).contains(&number))
    };
    let known = NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14);
    if known || text.parse::<i32>().is_ok_and(|number| number != 0) {
        return Ok(());
    }
    Err(Error::new(format!("`{text}` is not a signal")).suggest(name, NAMES))
}
