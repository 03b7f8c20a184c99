//! `SOURCE_DATE_EPOCH`: seconds, or what has a time: the build context, a context by its name, or a stage that adds one
//! commit or file of the web and does nothing else.

use jiff::Timestamp;
use llb::build::{Constraints, Env, State};

use super::Lowering;
use super::copy::{download, is_address, repository};
use super::stage::SCRATCH;
use crate::error::{Error, Result};
use crate::git::Repository;
use crate::instruction::{Arg, Copy, Kind, Stage};

const NAME: &str = "SOURCE_DATE_EPOCH";
const OPTION: &str = "build-arg:SOURCE_DATE_EPOCH";

impl Lowering<'_> {
    /// As a build argument or in front of the first stage. Steps see the seconds.
    pub(super) fn set_epoch(&mut self) -> Result<()> {
        let global = || self.globals.get(NAME).filter(|value| !value.is_empty());
        let given = self.build_args.get(NAME).map(String::as_str).or_else(global);
        let Some(value) = given.map(str::to_owned) else { return Ok(()) };
        let invalid = |what: &str| Error::option(OPTION, format!("invalid SOURCE_DATE_EPOCH: {what}"));
        let seconds = match value.as_str() {
            "" => None,
            "context" => self.context_time()?,
            text => match text.parse() {
                Ok(seconds) => Some(seconds),
                Err(_) => self.time_of_name(text)?.ok_or_else(|| {
                    invalid(text).hint(
                        "give seconds since 1970, `context`, or the name of a context or of a stage that adds one commit \
                         or download",
                    )
                })?,
            },
        };
        let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|_| invalid(&seconds.to_string()));
        self.epoch = seconds.map(time).transpose()?;
        let shown = self.epoch.map(|epoch| epoch.as_second().to_string());
        if self.build_args.contains_key(NAME) {
            match &shown {
                Some(shown) => _ = self.build_args.insert(NAME.to_owned(), shown.clone()),
                None => _ = self.build_args.remove(NAME),
            }
        }
        if self.globals.get(NAME).is_some() {
            match shown {
                Some(shown) => self.globals.set(NAME, shown),
                None => self.globals.unset(NAME),
            }
        }
        Ok(())
    }

    /// The time of what the build context is made of: of a commit, or of a file of the web.
    fn context_time(&self) -> Result<Option<i64>> {
        let Some(source) = self.input.context.source(self.input.options, &self.defaults())? else { return Ok(None) };
        Ok(self.input.ask.source_time(&source, "[internal] resolve main build context metadata")?)
    }

    /// The time of a named context, else of a stage; nothing if there is neither.
    fn time_of_name(&mut self, name: &str) -> Result<Option<Option<i64>>> {
        if let Some(named) = self.named_context(name, None) {
            let Some(state) = self.load_timed(&named)? else { return Ok(Some(None)) };
            return self
                .time_of(&state, &format!("[internal] resolve SOURCE_DATE_EPOCH named context {name}"))
                .map(Some);
        }
        let is_meant =
            |stage: &&Stage| stage.from.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name));
        let Some(stage) = self.input.stages.iter().find(is_meant) else { return Ok(None) };
        let state = self.added_by(stage).map_err(|e| e.at(stage.span))?;
        self.time_of(&state, &format!("[internal] resolve SOURCE_DATE_EPOCH source stage {name}")).map(Some)
    }

    fn time_of(&self, state: &State, log_name: &str) -> Result<Option<i64>> {
        let source = llb::only_source(&self.builder.marshal(state, &self.defaults())?);
        let source = source.map_err(|error| Error::option(OPTION, format!("malformed source: {error}")))?;
        let Some(source) = source else { return Ok(None) };
        Ok(self.input.ask.source_time(&source, log_name)?)
    }

    /// What a stage adds, which must be all that it does.
    fn added_by(&mut self, stage: &Stage) -> Result<State> {
        let mut env = self.globals.clone();
        env.unset(NAME);
        if self.lexer.expand(&stage.from.base, &env)?.text != SCRATCH {
            return Err(Error::new("SOURCE_DATE_EPOCH stage must use FROM scratch"));
        }
        let one = || Error::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD");
        let mut added = None;
        for instruction in &stage.instructions {
            let at = |error: Error| error.at(instruction.span);
            match &instruction.kind {
                Kind::Arg(args) => self.declare(args, &mut env).map_err(at)?,
                Kind::Copy(copy) if copy.add && added.is_some() => return Err(at(one())),
                Kind::Copy(copy) if copy.add => added = Some(self.added(copy, &env).map_err(at)?),
                _ => {
                    return Err(at(Error::new(format!(
                        "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                        instruction.name.to_ascii_uppercase()
                    ))));
                }
            }
        }
        added.ok_or_else(one)
    }

    fn declare(&self, args: &[Arg], env: &mut Env) -> Result<()> {
        for arg in args {
            let value = match (self.build_args.get(&arg.key), &arg.value) {
                (Some(given), _) => given.clone(),
                (None, Some(value)) => self.lexer.expand(value, env)?.text,
                (None, None) => continue,
            };
            env.set(arg.key.clone(), value);
        }
        Ok(())
    }

    fn added(&mut self, copy: &Copy, env: &Env) -> Result<State> {
        let ([source], []) = (&copy.sources[..], &copy.inline[..]) else {
            return Err(Error::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source"));
        };
        let source = self.lexer.expand(source, env)?.text;
        let copy = Copy { checksum: self.lexer.expand(&copy.checksum, env)?.text, ..copy.clone() };
        let found = Repository::parse(&source).map_err(Error::new)?.filter(|repository| !repository.ambiguous);
        match found {
            Some(found) => Ok(self.builder.git(&repository(&copy, &found)?, Constraints::default())),
            None if is_address(&source) => Ok(self.builder.http(&download(&copy, &source)?, Constraints::default())),
            None => Err(Error::new("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")),
        }
    }
}
