//! Which tree each action of a file op works on. Pure: checks the indexes and says what must be kept.
//!
//! An action changes a tree: an input of the op, nothing, or the result of an earlier action. As long as nobody
//! else reads a result, the next action goes on in the same snapshot; only what is an output or has a
//! second reader is committed.

use llb::pb;

/// A tree that an action reads or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// An empty tree.
    Empty,
    /// An input of the op.
    Input(usize),
    /// The result of an action.
    Action(usize),
}

/// One action with its trees.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) action: &'a pb::file_action::Action,
    /// What it changes.
    pub(super) target: Slot,
    /// What it copies from.
    pub(super) source: Slot,
    /// Where names of users and groups are looked up.
    pub(super) user_names: Option<Slot>,
    pub(super) group_names: Option<Slot>,
    /// Its result is an output of the op or has several readers.
    pub(super) commit: bool,
}

/// All actions in order, and which result is which output.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) steps: Vec<Step<'a>>,
    /// Action index per output.
    pub(super) outputs: Vec<usize>,
}

/// Why a file op makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("file action {action} reads tree {index}, but only {count} come before it")]
    BadInput { action: usize, index: i64, count: usize },
    #[error("file action {0} does nothing that this version knows")]
    Unknown(usize),
    #[error("output {0} of the file op is made by two actions")]
    DuplicateOutput(i64),
    #[error("the file op has no output {0}")]
    MissingOutput(usize),
}

impl Plan<'_> {
    /// Whether an action begins with this input and changes it.
    pub(super) fn changes(&self, input: usize) -> bool {
        self.steps.iter().any(|step| step.target == Slot::Input(input))
    }
}

pub(super) fn plan(op: &pb::FileOp, inputs: usize) -> Result<Plan<'_>, Error> {
    let mut steps: Vec<Step<'_>> = Vec::with_capacity(op.actions.len());
    let mut outputs = Vec::new();
    for (index, action) in op.actions.iter().enumerate() {
        let slot = |at: i64| slot(at, index, inputs);
        let kind = action.action.as_ref().ok_or(Error::Unknown(index))?;
        let owner = owner_of(kind);
        let names = |user: Option<&pb::UserOpt>| match user.and_then(|u| u.user.as_ref()) {
            Some(pb::user_opt::User::ByName(by)) => slot(by.input).map(Some),
            _ => Ok(None),
        };
        let step = Step {
            action: kind,
            target: slot(action.input)?,
            source: slot(action.secondary_input)?,
            user_names: names(owner.and_then(|o| o.user.as_ref()))?,
            group_names: names(owner.and_then(|o| o.group.as_ref()))?,
            commit: action.output != -1,
        };
        keep_what_others_read(&mut steps, &step);
        steps.push(step);
        if action.output != -1 {
            outputs.push((action.output, index));
        }
    }
    outputs.sort_unstable();
    for (expected, (output, _)) in outputs.iter().enumerate() {
        if *output != expected as i64 {
            let duplicate = outputs.iter().filter(|(o, _)| o == output).count() > 1;
            return Err(if duplicate { Error::DuplicateOutput(*output) } else { Error::MissingOutput(expected) });
        }
    }
    if outputs.is_empty() {
        return Err(Error::MissingOutput(0));
    }
    Ok(Plan { steps, outputs: outputs.into_iter().map(|(_, action)| action).collect() })
}

fn slot(at: i64, action: usize, inputs: usize) -> Result<Slot, Error> {
    match usize::try_from(at) {
        Err(_) if at == -1 => Ok(Slot::Empty),
        Ok(at) if at < inputs => Ok(Slot::Input(at)),
        Ok(at) if at < inputs + action => Ok(Slot::Action(at - inputs)),
        _ => Err(Error::BadInput { action, index: at, count: inputs + action }),
    }
}

fn owner_of(action: &pb::file_action::Action) -> Option<&pb::ChownOpt> {
    use pb::file_action::Action;
    match action {
        Action::Copy(a) => a.owner.as_ref(),
        Action::Mkfile(a) => a.owner.as_ref(),
        Action::Mkdir(a) => a.owner.as_ref(),
        Action::Symlink(a) => a.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

/// The first to change a result may have it; whoever else reads it needs it committed. An action may
/// look names up in its own target without that.
fn keep_what_others_read(steps: &mut [Step<'_>], step: &Step<'_>) {
    if let Slot::Action(target) = step.target {
        let taken = steps.iter().any(|earlier| earlier.target == step.target);
        steps[target].commit |= taken;
    }
    let names = [step.user_names, step.group_names].into_iter().flatten().filter(|slot| *slot != step.target);
    for slot in names.chain([step.source]) {
        if let Slot::Action(read) = slot {
            steps[read].commit = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(actions: &[(i64, i64, i64)]) -> pb::FileOp {
        let action = |&(input, secondary_input, output): &(i64, i64, i64)| pb::FileAction {
            input,
            secondary_input,
            output,
            action: Some(pb::file_action::Action::Mkdir(pb::FileActionMkDir::default())),
        };
        pb::FileOp { actions: actions.iter().map(action).collect() }
    }

    fn commits(actions: &[(i64, i64, i64)], inputs: usize) -> Vec<bool> {
        let op = op(actions);
        plan(&op, inputs).expect("a good op").steps.iter().map(|s| s.commit).collect()
    }

    #[test]
    fn only_what_is_read_twice_or_an_output_is_committed() {
        assert_eq!(commits(&[(0, -1, -1), (1, -1, -1), (2, -1, 0)], 1), [false, false, true]);
        assert_eq!(commits(&[(-1, -1, -1), (-1, 0, 0)], 0), [true, true]);
        assert_eq!(commits(&[(0, -1, -1), (1, -1, 0), (1, -1, 1)], 1), [true, true, true]);
    }

    #[test]
    fn bad_ops_are_refused() {
        for (actions, inputs, error) in [
            (&[(1, -1, 0)][..], 1, Error::BadInput { action: 0, index: 1, count: 1 }),
            (&[(0, -2, 0)], 1, Error::BadInput { action: 0, index: -2, count: 1 }),
            (&[(0, -1, -1)], 1, Error::MissingOutput(0)),
            (&[(0, -1, 1)], 1, Error::MissingOutput(0)),
            (&[(0, -1, 0), (0, -1, 0)], 1, Error::DuplicateOutput(0)),
        ] {
            assert_eq!(plan(&op(actions), inputs).expect_err("a bad op"), error);
        }
        let nothing = pb::FileOp { actions: vec![pb::FileAction::default()] };
        assert_eq!(plan(&nothing, 1).expect_err("a bad op"), Error::Unknown(0));
    }
}
