//! COPY, ADD, WORKDIR and what else changes files.
//!
//! Everything that the actions read is made readable first; then the whole op runs on one blocking thread, action by
//! action, each on its target's tree ([`plan`]).

mod action;
mod archive;
mod plan;

use std::sync::Arc;

use base::{Cancel, Fault, Kind};
use futures_util::future::try_join_all;
use llb::pb;
use store::{Active, CommitOptions, Hold, PrepareOptions};
use sys::mount::Mounted;
use sys::path::Root;

use super::OpContext;
use crate::core::{Core, active_view, blocking, store_fault};
use crate::local::LocalTree;
use crate::room::{is_full, with_room};
use crate::shadow::Recalling;
use crate::tree::Tree;
use crate::wreck::{Subject, Wreck};
use plan::{Plan, Slot, Step};

pub(crate) use action::copy_everything;

/// A tree that actions can work with.
#[derive(Clone)]
enum Input {
    Empty,
    Snapshot(Arc<Hold>),
    Local(Arc<LocalTree>),
}

/// The source paths of the copies in an op, without the slash that they begin with.
pub(crate) fn sources(op: &pb::Op) -> impl Iterator<Item = &str> {
    let actions = match &op.op {
        Some(pb::op::Op::File(file)) => &file.actions[..],
        _ => &[],
    };
    actions.iter().filter_map(|action| match &action.action {
        Some(pb::file_action::Action::Copy(copy)) => Some(copy.src.trim_start_matches('/')),
        _ => None,
    })
}

pub(super) async fn run(ctx: &OpContext, op: &pb::FileOp, inputs: &[Tree]) -> Result<Vec<Tree>, Fault> {
    // Checked before anything is fetched.
    let plan = plan::plan(op, inputs.len()).map_err(malformed)?;
    let plan = &plan;
    let ready = inputs.iter().enumerate().map(|(index, tree)| async move {
        Ok::<_, Fault>(match tree {
            Tree::Empty => Input::Empty,
            // Nothing is written to the user's directory: a copy of it is a layer of its own, below the changes.
            Tree::Local(local) if plan.changes(index) => {
                Input::Snapshot(local.copied(&ctx.core, ctx.blocking_cancel()).await?)
            }
            Tree::Local(local) => Input::Local(local.clone()),
            Tree::Snapshot(hold) => {
                ctx.core.fill(ctx.job(), &ctx.tasks, &ctx.cancel, hold).await?;
                Input::Snapshot(hold.clone())
            }
        })
    });
    let ready = try_join_all(ready).await?;
    let run = |keep_full| run_once(ctx, op, inputs, ready.clone(), keep_full);
    match with_room(&ctx.core.store, &ctx.tasks, || run(false)).await {
        Err(fault) if ctx.wants_wrecks() && is_full(&fault) => run(true).await,
        done => done,
    }
}

/// What found the disk full leaves something to look at only where asked to: it would take the room that the next try needs.
async fn run_once(
    ctx: &OpContext,
    op: &pb::FileOp,
    trees: &[Tree],
    inputs: Vec<Input>,
    keep_full: bool,
) -> Result<Vec<Tree>, Fault> {
    let (core, op, cancel) = (ctx.core.clone(), op.clone(), ctx.blocking_cancel());
    let description = ctx.op.label.name.clone();
    let warn = ctx.tasks.clone();
    let keep = ctx.wants_wrecks();
    let (result, left) = blocking(move || {
        let plan = match plan::plan(&op, inputs.len()) {
            Ok(plan) => plan,
            Err(error) => return (Err(malformed(error)), None),
        };
        let run = Run { core: &core, inputs: &inputs, cancel: &cancel, description: &description, tasks: &warn };
        let mut left = None;
        let result = run.all(&plan, |fault, action, work, states| {
            // Nobody looks at what was cancelled.
            let keep = keep && !cancel.is_cancelled() && (keep_full || !is_full(fault));
            left = keep.then(|| run.left(&plan, action, work, states));
        });
        (result, left)
    })
    .await;
    result.map_err(|fault| match left {
        Some(left) if fault.kind() != Kind::Cancelled => {
            let inputs = trees.iter().map(|tree| Some(tree.clone())).collect();
            let mut wreck = Wreck::new(ctx, Subject::FileAction(left.action), inputs);
            wreck.set_mount(op_actions(ctx).saturating_sub(1), None);
            if let Some((action, tree)) = left.source {
                wreck.set_own_mount(&ctx.core, action, tree);
            }
            if let Some(tree) = left.target {
                wreck.set_own_mount(&ctx.core, left.action, tree);
            }
            fault.leaves(wreck)
        }
        _ => fault,
    })
}

/// What there is to see of an action that failed.
struct Left {
    action: usize,
    /// What it changed.
    target: Option<Tree>,
    /// The action whose result it read, and that.
    source: Option<(usize, Tree)>,
}

fn op_actions(ctx: &OpContext) -> usize {
    match &ctx.op.vertex.op.op {
        Some(pb::op::Op::File(op)) => op.actions.len(),
        _ => 0,
    }
}

fn malformed(error: plan::Error) -> Fault {
    Fault::because(Kind::User, "malformed file op", error)
}

/// One op under way.
struct Run<'a> {
    core: &'a Core,
    inputs: &'a [Input],
    cancel: &'a Cancel,
    description: &'a str,
    tasks: &'a base::report::Tasks,
}

/// The result of an action.
enum State {
    /// The next action goes on here.
    Open(Work),
    Done(Input),
    /// Handed on to the action that goes on with it.
    Taken,
}

/// A tree being changed. Unmounted before it is committed: fields drop in this order.
struct Work {
    root: Root,
    mounted: Mounted,
    active: Active,
    /// What the file system allocated for it, as long as that is counted: else all of it would be looked at once more.
    allocated: Option<u64>,
}

impl Run<'_> {
    /// Runs all actions. `failed` is told why, which one failed, on what, and of the results until then.
    fn all(&self, plan: &Plan<'_>, failed: impl FnOnce(&Fault, usize, Work, &[State])) -> Result<Vec<Tree>, Fault> {
        let mut states: Vec<State> = Vec::with_capacity(plan.steps.len());
        let done = self.each(plan, &mut states, failed);
        if done.is_err() {
            self.forget(states);
        }
        done
    }

    fn each(
        &self,
        plan: &Plan<'_>,
        states: &mut Vec<State>,
        failed: impl FnOnce(&Fault, usize, Work, &[State]),
    ) -> Result<Vec<Tree>, Fault> {
        for step in &plan.steps {
            self.cancel.check().map_err(|_| Fault::cancelled())?;
            let mut work = self.target(step, states)?;
            if let Err(fault) = self.act(step, &mut work, states) {
                failed(&fault, states.len(), work, states);
                return Err(fault);
            }
            states.push(if step.commit { State::Done(self.commit(work)?) } else { State::Open(work) });
        }
        let output = |action: &usize| match &states[*action] {
            State::Done(Input::Snapshot(hold)) => Ok(Tree::Snapshot(hold.clone())),
            _ => Err(Fault::new(Kind::Internal, "an output of a file op was not committed")),
        };
        plan.outputs.iter().map(output).collect()
    }

    /// Nobody can find the results of actions of an op that failed. What people are to look at is held.
    fn forget(&self, mut states: Vec<State>) {
        while let Some(state) = states.pop() {
            if let State::Done(Input::Snapshot(hold)) = state {
                let id = hold.id();
                drop(hold);
                if let Err(error) = self.core.store.snapshots().remove(&id) {
                    tracing::warn!(%error, snapshot = %id, "a part of what failed was not removed");
                }
            }
        }
    }

    fn left(&self, plan: &Plan<'_>, action: usize, work: Work, states: &[State]) -> Left {
        let tree = |input: &Input| match input {
            Input::Snapshot(hold) => Some(Tree::Snapshot(hold.clone())),
            Input::Local(local) => Some(Tree::Local(local.clone())),
            Input::Empty => None,
        };
        // What failed first is what people want to know.
        let target = self.commit(work).inspect_err(|error| tracing::warn!(%error, "what failed is not kept"));
        let source = match plan.steps.get(action).map(|step| step.source) {
            Some(Slot::Action(source)) => match states.get(source) {
                Some(State::Done(input)) => tree(input).map(|tree| (source, tree)),
                _ => None,
            },
            _ => None,
        };
        Left { action, target: target.ok().as_ref().and_then(tree), source }
    }

    fn target(&self, step: &Step<'_>, states: &mut [State]) -> Result<Work, Fault> {
        match step.target {
            Slot::Empty => self.begin(None),
            Slot::Input(index) => self.begin(Some(&self.inputs[index])),
            Slot::Action(index) => match std::mem::replace(&mut states[index], State::Taken) {
                State::Open(work) => Ok(work),
                State::Done(input) => {
                    states[index] = State::Done(input.clone());
                    self.begin(Some(&input))
                }
                State::Taken => Err(Fault::new(Kind::Internal, "a tree of a file op was used twice")),
            },
        }
    }

    fn begin(&self, base: Option<&Input>) -> Result<Work, Fault> {
        let base = match base {
            None | Some(Input::Empty) => None,
            Some(Input::Snapshot(hold)) => Some(hold.id()),
            Some(Input::Local(_)) => {
                return Err(Fault::new(Kind::Internal, "a directory of the client was to be changed"));
            }
        };
        let active = self.core.store.snapshots().prepare(base.as_ref(), self.options());
        // What is not stacked holds a copy of its base, which nobody counts.
        let starts_empty = base.is_none() || self.core.store.driver().driver == store::Driver::Overlay;
        self.open(active.map_err(|e| store_fault("cannot begin a snapshot", e))?, starts_empty.then_some(0))
    }

    fn options(&self) -> PrepareOptions {
        PrepareOptions { description: self.description.to_owned(), ..PrepareOptions::default() }
    }

    fn open(&self, active: Active, allocated: Option<u64>) -> Result<Work, Fault> {
        let mounted = self.core.mount(&active_view(&active)?)?;
        let root = open_root(&mounted)?;
        Ok(Work { root, mounted, active, allocated })
    }

    fn commit(&self, work: Work) -> Result<Input, Fault> {
        let Work { root, mounted, active, allocated } = work;
        drop(root);
        let unmounted = mounted.unmount();
        unmounted.map_err(|e| Fault::because(Kind::Environment, "cannot unmount a snapshot", e))?;
        let hold = self.core.store.snapshots().commit(active, CommitOptions { allocated, ..CommitOptions::default() });
        Ok(Input::Snapshot(Arc::new(hold.map_err(|e| store_fault("cannot commit a snapshot", e))?)))
    }

    /// A tree that is only read.
    fn read(&self, slot: Slot, states: &[State]) -> Result<Reading, Fault> {
        let input = match slot {
            Slot::Empty => &Input::Empty,
            Slot::Input(index) => &self.inputs[index],
            Slot::Action(index) => match &states[index] {
                State::Done(input) => input,
                _ => return Err(Fault::new(Kind::Internal, "a tree of a file op was read before it was done")),
            },
        };
        Ok(match input {
            Input::Empty => Reading::Empty,
            Input::Local(local) => Reading::Local(local.clone()),
            Input::Snapshot(hold) => {
                let mounted = self.core.mount(&self.core.view(hold)?)?;
                let links = match self.core.shadow {
                    true => {
                        let table = self.core.store.snapshots().link_owners(&hold.id());
                        let table = table.map_err(|e| store_fault("cannot read a snapshot", e))?;
                        Some(Recalling::new(mounted.path(), table))
                    }
                    false => None,
                };
                Reading::Snapshot { root: open_root(&mounted)?, links, _mounted: mounted }
            }
        })
    }
}

fn open_root(mounted: &Mounted) -> Result<Root, Fault> {
    Root::open(mounted.path()).map_err(|e| Fault::because(Kind::Environment, "cannot open a snapshot", e))
}

/// A tree that is only read; unmounted when dropped.
enum Reading {
    Empty,
    /// `links` reads records of what the kernel refused.
    Snapshot {
        root: Root,
        links: Option<Recalling>,
        _mounted: Mounted,
    },
    Local(Arc<LocalTree>),
}

impl Reading {
    fn root(&self) -> Option<&Root> {
        match self {
            Reading::Empty => None,
            Reading::Snapshot { root, .. } => Some(root),
            Reading::Local(local) => Some(&local.root),
        }
    }
}
