//! Named contexts: `--opt context:NAME=..` puts something else in the place of a stage or an image.

use base::{Fault, Platform};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageConfig, Reference};
use llb::build::{Constraints, Image, Local, OciLayout, Output, ResolveMode, State};
use llb::path;

use super::base_image::{cause, parse_config};
use super::{IGNORE, Lowering, follow};
use crate::ask::{ImageRequest, LayoutStore, ResolvedImage};
use crate::context;
use crate::error::{Error, Result};
use crate::git::Repository;

/// A named context that the options give.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// The name, with the platform if it was given for one.
    name: String,
    /// Without the platform.
    plain: String,
    value: String,
    platform: Option<Platform>,
    /// Whose place it takes.
    stage: usize,
}

/// A local named context: what is read of it is known at the end.
pub(super) struct LocalSlot {
    slot: Output,
    stage: usize,
    named: String,
    local: Local,
}

impl Lowering<'_> {
    /// The context that takes the place of a name, first one that was given for this platform.
    pub(super) fn named_context(&self, name: &str, platform: Option<&Platform>) -> Option<Named> {
        let contexts = &self.input.options.contexts;
        if contexts.is_empty() || name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let plain = match Reference::parse(name) {
            Ok(reference) => reference.familiar(),
            Err(_) => name.to_owned(),
        };
        let plain = plain.strip_suffix(":latest").unwrap_or(&plain).to_owned();
        let asked = platform.cloned().or_else(|| (!self.implicit).then(|| self.target_platform.clone()));
        let keyed = asked.clone().unwrap_or_else(|| self.target_platform.clone()).normalize();
        let names = [format!("{plain}::{keyed}"), plain.clone()];
        names.into_iter().find_map(|name| {
            let value = contexts.get(&name)?.clone();
            Some(Named { name, plain: plain.clone(), value, platform: asked.clone(), stage: usize::MAX })
        })
    }

    /// What must be resolved to load a context.
    pub(super) fn named_request(&self, named: &Named) -> Result<Option<ImageRequest>> {
        let platform = named.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let mode = self.input.options.resolve_mode;
        match named.scheme() {
            ("docker-image", "scratch") => Ok(None),
            ("docker-image", typed) => {
                let reference = named.reference(typed)?.or_latest().to_string();
                let log_name = format!("[context {}] load metadata for {typed}", named.name);
                Ok(Some(ImageRequest { reference, platform, mode, log_name, layout: None }))
            }
            ("oci-layout", typed) => {
                let (reference, store) = named.layout(typed)?;
                let log_name = format!("[context {}] load metadata for {reference}", named.name);
                let layout = Some(LayoutStore { session: self.input.session.to_owned(), store });
                Ok(Some(ImageRequest { reference, platform, mode: ResolveMode::Default, log_name, layout }))
            }
            _ => Ok(None),
        }
    }

    /// The context's files, and its configuration if it is an image.
    pub(super) fn load_named(
        &mut self,
        named: &Named,
        answer: Option<std::result::Result<ResolvedImage, Fault>>,
    ) -> Result<(State, Option<ImageConfig>)> {
        let resolved = answer.transpose().map_err(|fault| {
            let doing = format!("context `{}`", named.name);
            Error::Ask { doing, spans: Vec::new(), hint: None, fault: Box::new(fault) }
        })?;
        if let Some(instead) = resolved.as_ref().and_then(|resolved| resolved.instead.as_deref()) {
            let (scheme, rest) = instead.split_once("://").unwrap_or(("", instead));
            let value = match scheme {
                "http" | "https" => instead.to_owned(),
                _ => format!("{scheme}:{rest}"),
            };
            return self.load_named(&Named { value, ..named.clone() }, None);
        }
        let label = |what: &str| format!("[context {}] {what}", named.name);
        match (named.scheme(), resolved) {
            (("docker-image", "scratch"), _) => Ok((State::scratch(), None)),
            (("docker-image", typed), Some(resolved)) => {
                let mut constraints = Constraints::named(label(typed));
                constraints.platform.clone_from(&named.platform);
                let image = Image { reference: resolved.reference.clone(), resolve_mode: ResolveMode::Default };
                let state = self.builder.image(&image, constraints);
                let image = named.config(&resolved)?;
                Ok((configured(state, &image), Some(ImageConfig { created: None, ..image })))
            }
            (("oci-layout", typed), Some(resolved)) => {
                let (reference, store) = named.layout(typed)?;
                let mut constraints = Constraints::named(label("OCI load from client"));
                constraints.platform.clone_from(&named.platform);
                let session = self.input.session.to_owned();
                let state = self.builder.oci_layout(&OciLayout { reference, session, store }, constraints);
                let image = named.config(&resolved)?;
                Ok((configured(state, &image), Some(image)))
            }
            (("git" | "http" | "https", _), _) => Ok((self.load_address(named)?, None)),
            (("local", name), _) => Ok((self.load_local(named, name)?, None)),
            (("input", name), _) => self.load_input(named, name),
            (("target", _), _) => {
                let error = named.wrong("`target:` is resolved by the client, which did not");
                Err(error.hint("name a stage, or an image by docker-image://"))
            }
            ((scheme, _), _) => {
                let error = named.wrong(&format!("`{scheme}:` is not a kind of context"));
                Err(error.suggest(scheme, ["docker-image", "git", "http", "https", "oci-layout", "local", "input"]))
            }
        }
    }

    /// The context's files, unless they can have no time: images and directories of the client.
    pub(super) fn load_timed(&mut self, named: &Named) -> Result<Option<State>> {
        match named.scheme().0 {
            "docker-image" | "oci-layout" | "local" => Ok(None),
            _ => Ok(Some(self.load_named(named, None)?.0)),
        }
    }

    fn load_address(&mut self, named: &Named) -> Result<State> {
        let shown = base::redact_url(&named.value);
        match Repository::parse(&named.value).map_err(|what| named.wrong(&what))? {
            Some(repository) => {
                let name = format!("[internal] load git source {}", Repository::shown(&named.value));
                Ok(self.builder.git(&repository.source(), Constraints::named(name)))
            }
            None if named.scheme().0 == "git" => Err(named.wrong(&format!("`{shown}` is not a repository"))),
            None => {
                let name = format!("[context {}] {shown}", named.name);
                Ok(context::download(&mut self.builder, &named.value, &name))
            }
        }
    }

    fn load_local(&mut self, named: &Named, name: &str) -> Result<State> {
        let hint = format!("context:{}-{IGNORE}", named.name);
        let exclude = self.read_ignore(name, &hint, format!("[context {}] load {IGNORE}", named.name))?;
        let shared = self.input.options.shared_keys.get(&named.name).cloned().unwrap_or_default();
        let local = Local {
            name: name.to_owned(),
            session: self.session_of(name),
            exclude,
            shared_key_hint: format!("context:{}-{shared}", named.name),
            ..Local::default()
        };
        let slot = self.builder.slot();
        self.named_locals.push(LocalSlot { slot, stage: named.stage, named: named.name.clone(), local });
        Ok(State::of(slot))
    }

    /// Makes the sources of local named contexts, now that it is known what is read of them.
    pub(super) fn fill_named(&mut self) -> Result<()> {
        for LocalSlot { slot, stage, named, local } in std::mem::take(&mut self.named_locals) {
            let follow = follow(&self.paths[self.stages[stage].paths]);
            let constraints = Constraints::named(format!("[context {named}] load from client"));
            let state = self.builder.local(&Local { follow, ..local }, constraints);
            self.builder.fill(slot, state.output());
        }
        Ok(())
    }

    fn load_input(&mut self, named: &Named, name: &str) -> Result<(State, Option<ImageConfig>)> {
        let input = self.input.ask.input(name)?;
        let input = input.ok_or_else(|| named.wrong(&format!("the client has no input `{name}`")))?;
        let state = self.builder.import(&input)?;
        let Some(metadata) = self.input.options.input_metadata.get(name) else { return Ok((state, None)) };
        let config = input_config(metadata).map_err(|what| named.wrong(&what))?;
        Ok(match config {
            Some(image) => (configured(state, &image), Some(image)),
            None => (state, None),
        })
    }
}

impl Named {
    /// The context in the place of a stage.
    pub(super) fn at(self, stage: usize) -> Named {
        Named { stage, ..self }
    }

    /// The kind and what follows it.
    fn scheme(&self) -> (&str, &str) {
        if self.value.starts_with("git@") {
            return ("git", &self.value);
        }
        let (scheme, rest) = self.value.split_once(':').unwrap_or(("", &self.value));
        let rest = match scheme {
            "docker-image" | "oci-layout" => rest.strip_prefix("//").unwrap_or(rest),
            _ => rest,
        };
        (scheme, rest)
    }

    fn wrong(&self, what: &str) -> Error {
        Error::option(&format!("context:{}", self.name), what)
    }

    fn reference(&self, typed: &str) -> Result<Reference> {
        Reference::parse(typed).map_err(|error| self.wrong(&cause(&error)))
    }

    /// The reference that people see, which has the context's name, and the name of the store.
    fn layout(&self, typed: &str) -> Result<(String, String)> {
        let (store, digest) = typed.split_once('@').ok_or_else(|| self.wrong(&format!("`{typed}` has no digest")))?;
        let digest = digest.parse().map_err(|e: base::DigestParseError| self.wrong(&e.to_string()))?;
        let shown = self.reference(&self.plain)?.with_digest(digest);
        let last = store.rfind('/').map_or(0, |slash| slash + 1);
        let store = store[last..].find(':').map_or(store, |colon| &store[..last + colon]);
        Ok((shown.to_string(), store.to_owned()))
    }

    fn config(&self, resolved: &ResolvedImage) -> Result<ImageConfig> {
        parse_config(&resolved.config).map_err(|what| self.wrong(&what))
    }
}

/// The state with what an image's configuration says.
fn configured(mut state: State, image: &ImageConfig) -> State {
    for pair in &image.config.env {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !key.is_empty() {
            state.set_env(key, value);
        }
    }
    state.set_dir(&image.config.working_dir);
    if !path::is_abs(state.dir()) {
        state.set_dir("/");
    }
    if !image.architecture.is_empty() && !image.os.is_empty() {
        state.set_platform(&image.platform());
    }
    state
}

/// The image configuration among an input's metadata: JSON whose values are base64.
fn input_config(metadata: &str) -> std::result::Result<Option<ImageConfig>, String> {
    let malformed = |e: serde_json::Error| format!("its metadata is malformed: {e}");
    let values: std::collections::BTreeMap<String, Option<String>> =
        serde_json::from_str(metadata).map_err(malformed)?;
    let Some(Some(config)) = values.get("containerimage.config") else { return Ok(None) };
    let bytes = STANDARD.decode(config).map_err(|e| format!("its image configuration is not base64: {e}"))?;
    parse_config(&bytes).map(Some)
}
