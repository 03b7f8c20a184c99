//! Steps started by the root of a user namespace: devices are the host's, limits are not ours to set.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sys::userns::{Ids, Isolation};
use tokio_util::sync::CancellationToken;

use crate::helper::Helper;
use crate::message::CgroupView;
use crate::run::{Surroundings, What, run};
use crate::{Attached, Error, Executor, Exit, Inside, Process, Step, StepIo};

pub(crate) struct Rootless {
    helper: Arc<Helper>,
    state: PathBuf,
    single_id: bool,
}

impl Rootless {
    pub(crate) fn open(state: PathBuf, isolation: &Isolation) -> Result<Rootless, Error> {
        let helper = Arc::new(Helper::start(Vec::new())?);
        Ok(Rootless { helper, state, single_id: isolation.ids == Ids::Single })
    }
}

impl Rootless {
    /// What every process finds here.
    fn surroundings(&self) -> Surroundings {
        Surroundings {
            state: self.state.clone(),
            group: None,
            join: Vec::new(),
            cgroup: CgroupView::None,
            no_devices: false,
            bind_devices: true,
            single_id: self.single_id,
        }
    }
}

#[async_trait]
impl Executor for Rootless {
    async fn run_attached(
        &self,
        step: Step,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error> {
        if !step.resources.is_unlimited() {
            const WHY: &str = "control groups belong to root";
            tracing::warn!("a step runs without the limits that it asks for: {WHY}");
            (io.unlimited)(WHY);
        }
        let step = What::Step(Box::new(step));
        run(self.helper.clone(), step, io, attached, self.surroundings(), cancel).await
    }

    async fn join(
        &self,
        inside: &Inside,
        process: Process,
        io: StepIo,
        attached: Attached,
        cancel: CancellationToken,
    ) -> Result<Exit, Error> {
        let entry = What::Entry(inside.clone(), process);
        run(self.helper.clone(), entry, io, attached, self.surroundings(), cancel).await
    }

    fn close(&self) {
        self.helper.stop();
    }

    fn name(&self) -> &'static str {
        "rootless"
    }
}
