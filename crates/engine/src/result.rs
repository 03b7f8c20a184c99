//! What a frontend answers: references to trees, and words about them for exporters.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Fault, Kind, Platform};
use futures_util::future::try_join_all;
use llb::{Graph, pb};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::driver::{JobHandle, Made};
use crate::job::{Built, BuiltPlatform};
use crate::policy::Rules;
use crate::tree::Tree;
use crate::wreck::Wreck;

const PLATFORMS: &str = "refs.platforms";
const CONFIG: &str = "containerimage.config";
const BASE_CONFIG: &str = "containerimage.base.config";
const EPOCH: &str = "source.date.epoch";
const IMAGE_NAME: &str = "image.name";
/// What begins so is told to the client as it is.
const FOR_CLIENTS: &str = "frontend.";

/// A frontend's answer, BuildKit's `Result`.
#[derive(Clone, Debug, Default)]
pub struct FrontendResult {
    /// What was made.
    pub refs: Refs,
    /// `containerimage.config`, `refs.platforms`, ..
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// The trees of an answer. None is an empty one.
#[derive(Clone, Debug)]
pub enum Refs {
    /// One result.
    One(Option<Ref>),
    /// One for each key; keys are platforms, most often.
    Many(BTreeMap<String, Option<Ref>>),
}

impl Default for Refs {
    fn default() -> Self {
        Refs::One(None)
    }
}

/// A tree that is made when somebody needs it.
#[derive(Clone, Debug)]
pub struct Ref(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    definition: pb::Definition,
    /// None for what was not made by a definition.
    graph: Option<Graph>,
    made: OnceCell<Made>,
    /// What it is a part of. Given back after the tree: fields drop in this order.
    _wreck: Option<Arc<Wreck>>,
}

impl Ref {
    /// The result of a definition. An empty definition makes nothing.
    pub(crate) fn new(definition: pb::Definition, rules: &Rules) -> Result<Option<Ref>, Fault> {
        if definition.def.is_empty() {
            return Ok(None);
        }
        let graph = rules.read(definition.clone())?;
        Ok(Some(Ref(Arc::new(Inner { definition, graph: Some(graph), made: OnceCell::new(), _wreck: None }))))
    }

    /// A tree that an op left when it failed.
    pub(crate) fn left(tree: Tree, wreck: Arc<Wreck>) -> Ref {
        let made = OnceCell::new_with(Some(Made { tree, keys: Vec::new() }));
        Ref(Arc::new(Inner { definition: pb::Definition::default(), graph: None, made, _wreck: Some(wreck) }))
    }

    /// The same, not made yet.
    fn anew(&self) -> Ref {
        let Inner { definition, graph, .. } = &*self.0;
        let (definition, graph, made) = (definition.clone(), graph.clone(), OnceCell::new());
        Ref(Arc::new(Inner { definition, graph, made, _wreck: None }))
    }

    /// What it is made by, read.
    pub(crate) fn graph(&self) -> Option<&Graph> {
        self.0.graph.as_ref()
    }

    /// What it is made by.
    pub fn definition(&self) -> &pb::Definition {
        &self.0.definition
    }

    /// The tree, made now unless it is there.
    pub(crate) async fn tree(&self, job: &JobHandle) -> Result<Tree, Fault> {
        self.made(job).await.map(|made| made.tree)
    }

    /// The same, with what it is remembered by.
    pub(crate) async fn made(&self, job: &JobHandle) -> Result<Made, Fault> {
        let Some(graph) = &self.0.graph else {
            let gone = || Fault::new(Kind::Internal, "a tree that was left is not there");
            return self.0.made.get().cloned().ok_or_else(gone);
        };
        self.0.made.get_or_try_init(|| job.solve(graph)).await.cloned()
    }
}

impl FrontendResult {
    /// All references.
    pub fn all(&self) -> Vec<&Ref> {
        match &self.refs {
            Refs::One(one) => one.iter().collect(),
            Refs::Many(many) => many.values().flatten().collect(),
        }
    }

    /// The same answer, nothing of it made.
    pub(crate) fn anew(&self) -> FrontendResult {
        let anew = |reference: &Option<Ref>| reference.as_ref().map(Ref::anew);
        let refs = match &self.refs {
            Refs::One(one) => Refs::One(anew(one)),
            Refs::Many(many) => {
                Refs::Many(many.iter().map(|(key, reference)| (key.clone(), anew(reference))).collect())
            }
        };
        FrontendResult { refs, metadata: self.metadata.clone() }
    }

    /// The name that the frontend chose for the image.
    pub(crate) fn image_name(&self) -> Option<&str> {
        self.metadata.get(IMAGE_NAME).and_then(|name| std::str::from_utf8(name).ok())
    }

    /// What the frontend wants its client to know.
    pub(crate) fn told_clients(&self) -> BTreeMap<String, String> {
        let told = self.metadata.iter().filter(|(key, _)| key.starts_with(FOR_CLIENTS));
        told.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())).collect()
    }

    /// Whether the frontend said for which platforms its result is.
    pub(crate) fn names_platforms(&self) -> bool {
        self.metadata.contains_key(PLATFORMS)
    }

    /// For which platforms the result is, as far as the frontend said so.
    pub(crate) fn shown_platforms(&self) -> Result<Vec<Platform>, Fault> {
        if self.names_platforms() {
            return Ok(self.platforms()?.iter().map(Listed::platform).collect());
        }
        let Some(config) = self.metadata.get(CONFIG) else { return Ok(vec![Platform::host()]) };
        let config: Option<ListedPlatform> =
            serde_json::from_slice(config).map_err(|e| Fault::because(Kind::User, "malformed image config", e))?;
        let config = config.unwrap_or_default();
        match (config.os.is_empty(), config.architecture.is_empty()) {
            (false, false) => Ok(vec![Listed { id: String::new(), platform: config }.platform()]),
            // It is no image's, and nobody exports it as one.
            (true, true) => Ok(vec![Platform::host()]),
            _ => Err(Fault::user("invalid image config: os and architecture must be specified together")),
        }
    }

    /// Makes all trees and reads what exporters need to know.
    pub(crate) async fn build(&self, job: &JobHandle) -> Result<Built, Fault> {
        let wanted: Vec<(String, Option<Platform>, Option<&Ref>)> = match &self.refs {
            Refs::One(one) => vec![(String::new(), None, one.as_ref())],
            Refs::Many(many) => {
                let platforms = self.platforms()?;
                if platforms.is_empty() && !many.is_empty() {
                    return Err(Fault::user(format!("a result with several references names no `{PLATFORMS}`")));
                }
                let find = |listed: Listed| {
                    let reference = many.get(&listed.id);
                    let reference = reference.ok_or_else(|| {
                        Fault::user(format!("`{PLATFORMS}` names `{}`, and there is no such reference", listed.id))
                    })?;
                    let platform = listed.platform();
                    Ok((listed.id, Some(platform), reference.as_ref()))
                };
                platforms.into_iter().map(find).collect::<Result<_, Fault>>()?
            }
        };
        let multi = matches!(self.refs, Refs::Many(_));
        let mut made = Vec::new();
        for (id, platform, reference) in wanted {
            made.push(async move {
                let made = match reference {
                    Some(reference) => reference.made(job).await?,
                    None => Made { tree: Tree::Empty, keys: Vec::new() },
                };
                let about = |name: &str| match multi {
                    true => self.metadata.get(&format!("{name}/{id}")).or_else(|| self.metadata.get(name)),
                    false => self.metadata.get(name),
                };
                let epoch = about(EPOCH).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                Ok::<_, Fault>(BuiltPlatform {
                    platform,
                    tree: made.tree,
                    keys: made.keys,
                    config: about(CONFIG).cloned(),
                    base_config: about(BASE_CONFIG).cloned(),
                    epoch,
                    id,
                })
            });
        }
        let mut platforms = try_join_all(made).await?;
        // One result of one platform says which by the list, if there is one.
        if let (Refs::One(_), [one]) = (&self.refs, &mut platforms[..])
            && let [listed] = &self.platforms()?[..]
        {
            one.id.clone_from(&listed.id);
            one.platform = Some(listed.platform());
        }
        Ok(Built { platforms, multi })
    }

    fn platforms(&self) -> Result<Vec<Listed>, Fault> {
        let Some(bytes) = self.metadata.get(PLATFORMS) else { return Ok(Vec::new()) };
        let list = serde_json::from_slice::<Option<List>>(bytes);
        let list = list.map_err(|e| Fault::because(Kind::User, format!("malformed `{PLATFORMS}`"), e))?;
        let platforms = list.unwrap_or_default().platforms.unwrap_or_default();
        if platforms.is_empty() {
            return Err(Fault::user("invalid empty platforms index for exporter"));
        }
        for Listed { id, platform } in &platforms {
            if id.is_empty() {
                return Err(Fault::user("invalid empty platform key for exporter"));
            }
            if platform.os.is_empty() || platform.architecture.is_empty() {
                let text = format!("invalid platform value of `{id}` for exporter: it needs an os and an architecture");
                return Err(Fault::user(text));
            }
        }
        Ok(platforms)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct List {
    #[serde(default)]
    platforms: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: ListedPlatform,
}

/// `ocispecs.Platform`.
#[derive(Default, Deserialize)]
struct ListedPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
    #[serde(default, rename = "os.version")]
    os_version: String,
    #[serde(default, rename = "os.features")]
    os_features: Vec<String>,
}

impl Listed {
    fn platform(&self) -> Platform {
        let own = &self.platform;
        let mut platform = Platform::new(&own.os, &own.architecture, &own.variant);
        platform.os_version.clone_from(&own.os_version);
        platform.os_features.clone_from(&own.os_features);
        platform
    }
}
