//! Steps started by root: control groups, real devices, all ids.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sys::cgroup::{DeviceRule, Devices, Group, Groups, own_memory_limit, own_oom_kills};
use sys::userns::Isolation;
use tokio_util::sync::CancellationToken;

use crate::helper::Helper;
use crate::message::CgroupView;
use crate::run::{Surroundings, What, run};
use crate::{
    Attached, DeviceKind, DeviceNode, Error, Executor, Exit, Inside, OutOfMemory, Process, Security, Step, StepIo,
};

pub(crate) struct Privileged {
    // First, so that init has left the groups when they are removed.
    helper: Arc<Helper>,
    groups: Option<Groups>,
    state: PathBuf,
    /// For want of device rules, and where devices are real, no device node can be opened at all.
    no_devices: bool,
    /// There is version 2 only, of which every step sees its own part.
    unified: bool,
    next: AtomicU64,
    /// How often memory ran out in our own group, when last looked at.
    oom_kills: Mutex<Option<u64>>,
}

impl Privileged {
    pub(crate) fn open(state: PathBuf, isolation: &Isolation) -> Result<Privileged, Error> {
        let groups = match Groups::open() {
            Ok(mut groups) => {
                groups.remember_parents(state.join("cgroup-parents"));
                Some(groups)
            }
            Err(error) => {
                tracing::warn!("steps run without control groups: {error}");
                None
            }
        };
        let ruled = groups.as_ref().is_some_and(Groups::rules_devices);
        if !ruled && !isolation.nested {
            tracing::warn!("no writable device control group: steps cannot open device nodes of their own making");
        }
        let helper = Helper::start(groups.as_ref().map(Groups::shared).unwrap_or_default())?;
        Ok(Privileged {
            helper: Arc::new(helper),
            groups,
            state,
            no_devices: !ruled && !isolation.nested,
            unified: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            next: AtomicU64::new(0),
            oom_kills: Mutex::new(own_oom_kills()),
        })
    }

    /// What every process finds here.
    fn surroundings(&self, security: Security, group: Option<Group>) -> Surroundings {
        // A group of its own has no device rules where it is to have none.
        let join = match (security, &group, &self.groups) {
            (Security::Insecure, None, Some(groups)) => groups.outside(),
            _ => Vec::new(),
        };
        Surroundings {
            state: self.state.clone(),
            join,
            cgroup: match &self.groups {
                _ if self.unified => CgroupView::Unified,
                Some(groups) => CgroupView::Version1(groups.view(group.as_ref())),
                None => CgroupView::None,
            },
            group,
            no_devices: self.no_devices && security == Security::Sandbox,
            bind_devices: false,
            single_id: false,
        }
    }

    /// The group of a step that asks for limits, or to be elsewhere, or may do everything, which includes groups of its own.
    fn group(&self, step: &Step, io: &StepIo) -> Result<Option<Group>, Error> {
        let parent = step.cgroup_parent.as_deref().filter(|parent| !parent.is_empty());
        let is_asked_for = !step.resources.is_unlimited() || parent.is_some();
        let are_ruled = self.groups.as_ref().is_some_and(Groups::rules_devices);
        let rules = if are_ruled { rules(&step.devices) } else { Vec::new() };
        if !is_asked_for && rules.is_empty() && step.security == Security::Sandbox {
            return Ok(None);
        }
        let missing = |what: String| {
            match is_asked_for {
                true => tracing::warn!("a step runs without the limits that it asks for: {what}"),
                false => tracing::warn!("a step runs without control groups of its own: {what}"),
            }
            if !step.resources.is_unlimited() {
                (io.unlimited)(&what);
            }
        };
        let Some(groups) = &self.groups else {
            missing("no control groups".to_owned());
            return Ok(None);
        };
        if let Some(controller) = groups.missing_for(&step.resources) {
            missing(format!("the controller `{controller}` is not available"));
        }
        let name = format!("step-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let devices = match step.security {
            Security::Insecure => Devices::All,
            Security::Sandbox if rules.is_empty() => Devices::Ruled,
            Security::Sandbox => Devices::Also(&rules),
        };
        match groups.create(&name, parent, devices, &step.resources) {
            Ok(group) => {
                if let Some(parent) = parent.filter(|_| !group.left_out().is_empty()) {
                    let out = group.left_out().join(", ");
                    tracing::warn!("a step is not below the control group `{parent}` that it asks for in: {out}");
                }
                Ok(Some(group))
            }
            // A wrong value is the user's business, the rest is the machine's.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ERANGE)) => {
                Err(Error::Invalid(crate::init::chain(&error)))
            }
            // Under the rules for all, it could not open them.
            Err(error) if matches!(devices, Devices::Also(_)) => {
                Err(Error::Setup(format!("cannot allow a step its devices: {}", crate::init::chain(&error))))
            }
            Err(error) => {
                missing(crate::init::chain(&error));
                Ok(None)
            }
        }
    }

    /// Whether our own group ran out of memory since last asked, which tells why a step was killed.
    fn ran_out_of_memory(&self) -> Option<OutOfMemory> {
        let mut last = self.oom_kills.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = own_oom_kills();
        let before = std::mem::replace(&mut *last, now);
        let limit = own_memory_limit().map(base::ByteSize);
        (now > before && before.is_some()).then_some(OutOfMemory { limit })
    }
}

/// What a step may open for the sake of its devices.
fn rules(devices: &[DeviceNode]) -> Vec<DeviceRule> {
    let device = |device: &&DeviceNode| device.kind != DeviceKind::Pipe;
    let rule = |device: &DeviceNode| DeviceRule {
        block: device.kind == DeviceKind::Block,
        number: device.number,
        read: device.read,
        write: device.write,
    };
    devices.iter().filter(device).map(rule).collect()
}

#[async_trait]
impl Executor for Privileged {
    async fn run_attached(
        &self,
        step: Step,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error> {
        let surroundings = self.surroundings(step.security, self.group(&step, &io)?);
        let step = What::Step(Box::new(step));
        let mut exit = run(self.helper.clone(), step, io, attached, surroundings, cancel).await?;
        if exit.code == 128 + libc::SIGKILL && exit.out_of_memory.is_none() {
            exit.out_of_memory = self.ran_out_of_memory();
        }
        Ok(exit)
    }

    async fn join(
        &self,
        inside: &Inside,
        process: Process,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error> {
        let mut surroundings = self.surroundings(process.security, None);
        if let (false, Some(groups)) = (inside.groups.is_empty(), &self.groups) {
            // Who is locked in otherwise than the first one has other device rules.
            match process.security == inside.security {
                true => surroundings.join = inside.groups.clone(),
                false => surroundings.join.extend(groups.without_device_rules(&inside.groups)),
            }
        }
        let entry = What::Entry(inside.clone(), process);
        run(self.helper.clone(), entry, io, attached, surroundings, cancel).await
    }

    fn close(&self) {
        self.helper.stop();
        if let Some(groups) = &self.groups {
            groups.wait_for_steps();
            groups.remove();
        }
    }

    fn name(&self) -> &'static str {
        "privileged"
    }
}
