//! Steps started by the root of a user namespace: devices are the host's, limits are not ours to set.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sys::userns::{Ids, Isolation};
use tokio_util::sync::CancellationToken;

use crate::helper::Helper;
use crate::message::CgroupView;
use crate::run::{Surroundings, run};
use crate::{Error, Executor, Exit, Step, StepIo};

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

#[async_trait]
impl Executor for Rootless {
    async fn run(&self, step: Step, io: StepIo, cancel: CancellationToken) -> Result<Exit, Error> {
        if !step.resources.is_unlimited() {
            tracing::warn!("a step runs without the limits that it asks for: control groups belong to root");
        }
        let surroundings = Surroundings {
            state: self.state.clone(),
            group: None,
            join: Vec::new(),
            cgroup: CgroupView::None,
            no_devices: false,
            bind_devices: true,
            single_id: self.single_id,
        };
        run(self.helper.clone(), step, io, surroundings, cancel).await
    }

    fn close(&self) {
        self.helper.stop();
    }

    fn name(&self) -> &'static str {
        "rootless"
    }
}
