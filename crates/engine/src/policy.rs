//! What clients and frontends say about sources, held against all that is asked for.

use std::sync::Arc;

use base::{Fault, Kind};
use llb::policy::{Policies, Policy};
use llb::{Graph, Limits, pb};

use crate::job::Job;

/// Reads policies.
pub(crate) fn read(policies: &[Policy]) -> Result<Policies, Fault> {
    Policies::read(policies).map_err(malformed)
}

fn malformed(error: llb::policy::Error) -> Fault {
    Fault::because(Kind::User, "malformed source policy", error)
}

/// The rules of a build, and those of one question.
#[derive(Clone)]
pub(crate) struct Rules {
    job: Arc<Job>,
    policies: Policies,
}

impl Rules {
    /// The build's rules, and more.
    pub(crate) fn of(job: &Arc<Job>, more: &[Policy]) -> Result<Rules, Fault> {
        let policies = job.policies.and(more).map_err(malformed)?;
        Ok(Rules { job: job.clone(), policies })
    }

    /// Reads a definition that a client or a frontend made, its sources as the rules want them.
    pub(crate) fn read(&self, definition: pb::Definition) -> Result<Graph, Fault> {
        let mut graph = Graph::new(definition, Limits::default())
            .map_err(|error| Fault::because(Kind::User, "malformed definition", error))?;
        if self.policies.is_empty() {
            return Ok(graph);
        }
        if let Some(places) = graph.source() {
            self.job.add_places(places);
        }
        let renamed = graph.change_sources(|vertex, source| {
            let applied = self.policies.apply(source);
            applied.map_err(|error| self.job.locate(refused("error evaluating the source policy", error), *vertex))
        });
        self.job.add_converted(renamed?);
        Ok(graph)
    }

    /// Holds a source against the rules that is only asked about. Whether they changed it.
    pub(crate) fn apply_to_metadata(&self, source: &mut pb::SourceOp) -> Result<bool, Fault> {
        let applied = self.policies.apply(source);
        applied.map_err(|error| refused("could not resolve image due to policy", error))
    }
}

fn refused(doing: &str, error: llb::policy::Error) -> Fault {
    let hint = match &error {
        llb::policy::Error::Denied { selector, .. } => Some(format!("the rule that denies it is for `{selector}`")),
        _ => None,
    };
    let fault = Fault::because(Kind::User, doing, error);
    hint.into_iter().fold(fault, Fault::hint)
}
