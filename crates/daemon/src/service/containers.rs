//! Containers of a client that is the frontend: what the gateway's container calls come to.
//!
//! One `ExecProcess` call carries all processes that a client has started by it; each has an id of the client's choice. A
//! process is told to have started, says what it writes, how it ended, and that this was all.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use base::progress::Stream as Output;
use base::{Fault, Kind};
use engine::{Bridge, Container, Control, Exit, NewContainer, NewProcess, ProcessIo, Ref, StepIo};
use futures_util::Stream;
use proto::moby::buildkit::v1::frontend as wire;
use proto::moby::buildkit::v1::frontend::exec_message::Input;
use proto::{pb, rpc};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::error;

/// Processes of one call, those that have ended included: their ids are taken.
const MAX_PROCESSES: usize = 1 << 16;
/// Pieces of input that wait for a process.
const INPUT_QUEUE: usize = 64;
/// Messages that wait for the client.
const QUEUE: usize = 16;
/// As much output of a process may wait for the client before the process does.
const MOST_WAITING: usize = 256 << 10;
/// The exit code that says that there is none.
const NO_EXIT_CODE: u32 = 255;

/// The containers of a build.
#[derive(Default)]
pub(crate) struct Containers(Mutex<State>);

#[derive(Default)]
struct State {
    known: HashMap<String, Arc<Container>>,
    /// The build has ended: no new ones.
    closed: bool,
}

/// What a client is told.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<wire::ExecMessage, Status>> + Send>>;

impl Containers {
    /// Makes a container; `find` knows the results that its mounts begin with.
    pub(crate) async fn create(
        &self,
        bridge: &Bridge,
        request: wire::NewContainerRequest,
        find: impl Fn(&str) -> Result<Option<Ref>, Fault>,
    ) -> Result<(), Status> {
        super::check_name("id of the container", &request.container_id)?;
        let exists = || Status::already_exists(format!("Container {} already exists", request.container_id));
        if self.get(&request.container_id).is_some() {
            return Err(exists());
        }
        let network = pb::NetMode::try_from(request.network);
        let network = network.map_err(|_| Status::invalid_argument("unknown network mode"))?;
        let mounts = request.mounts.iter().map(|mount| {
            let reference = find(&mount.result_id);
            let named = |fault: Fault| fault.context(format!("mount `{}`", mount.dest));
            Ok((mount.clone(), reference.map_err(named)?))
        });
        let new = NewContainer {
            id: request.container_id.clone(),
            mounts: mounts.collect::<Result<_, Fault>>().map_err(|fault| error::status(&fault))?,
            network,
            hostname: request.hostname.clone(),
            extra_hosts: request.extra_hosts.clone(),
            platform: request.platform.clone(),
        };
        let made = Arc::new(bridge.new_container(new).await.map_err(|fault| error::status(&fault))?);
        let refused = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.closed {
                Some(Status::cancelled("the build has ended"))
            } else if state.known.contains_key(&request.container_id) {
                Some(exists())
            } else {
                state.known.insert(request.container_id.clone(), made.clone());
                None
            }
        };
        match refused {
            None => Ok(()),
            Some(status) => {
                made.release().await;
                Err(status)
            }
        }
    }

    fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).known.get(id).cloned()
    }

    /// The container of that name.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Container>, Status> {
        self.get(id).ok_or_else(|| Status::unknown(format!("container details for {id} not found")))
    }

    /// Ends a container; nothing of it is left.
    pub(crate) async fn release(&self, id: &str) -> Result<(), Status> {
        let container = self.0.lock().unwrap_or_else(PoisonError::into_inner).known.remove(id);
        match container {
            // In the words that clients know of a process whose container was taken from it.
            Some(container) => match container.release().await {
                true => Err(Status::cancelled("context canceled")),
                false => Ok(()),
            },
            None => Err(Status::unknown(format!("container details for {id} not found"))),
        }
    }

    /// Ends all containers. There are no more from now on.
    pub(crate) async fn close(&self) {
        let known = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.closed = true;
            std::mem::take(&mut state.known)
        };
        futures_util::future::join_all(known.values().map(|container| container.release())).await;
    }
}

/// Carries processes until the client hangs up or has no more to say and all have ended. Whoever hangs up ends them.
pub(crate) fn exec(containers: Arc<Containers>, incoming: Streaming<wire::ExecMessage>) -> Messages {
    let (outgoing, messages) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let cancel = CancellationToken::new();
        let call = Call { containers, outgoing: outgoing.clone(), cancel: cancel.clone(), processes: HashMap::new() };
        let _ends_with_us = cancel.drop_guard();
        let mut tasks = tokio::task::JoinSet::new();
        let heard = tokio::select! {
            heard = call.listen(incoming, &mut tasks) => heard,
            () = outgoing.closed() => return,
        };
        if let Err(status) = heard {
            let _ = outgoing.send(Err(status)).await;
            return;
        }
        tokio::select! {
            () = async { while tasks.join_next().await.is_some() {} } => {}
            () = outgoing.closed() => {}
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(messages))
}

/// One call and its processes.
struct Call {
    containers: Arc<Containers>,
    outgoing: mpsc::Sender<Result<wire::ExecMessage, Status>>,
    cancel: CancellationToken,
    processes: HashMap<String, Ends>,
}

/// Our ends of what a process is connected with.
struct Ends {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    control: mpsc::UnboundedSender<Control>,
}

impl Call {
    async fn listen(
        mut self,
        mut incoming: Streaming<wire::ExecMessage>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Result<(), Status> {
        while let Some(message) = incoming.message().await? {
            let id = message.process_id;
            if id.is_empty() {
                return Err(Status::invalid_argument("ProcessID required"));
            }
            let known = || Status::not_found(format!("IO for process \"{id}\" not found"));
            match message.input {
                Some(Input::Init(init)) => {
                    super::check_name("id of the process", &id)?;
                    if self.processes.len() >= MAX_PROCESSES {
                        let refused = format!("one call starts no more than {MAX_PROCESSES} processes");
                        return Err(Status::resource_exhausted(refused));
                    }
                    if self.processes.contains_key(&id) {
                        return Err(Status::already_exists(format!("Process {id} already exists")));
                    }
                    let container = self.containers.get(&init.container_id).ok_or_else(|| {
                        let container = &init.container_id;
                        Status::not_found(format!("container \"{container}\" previously released or not created"))
                    })?;
                    let ends = self.start(id.clone(), container, init, tasks)?;
                    self.processes.insert(id, ends);
                }
                Some(Input::File(file)) => {
                    let ends = self.processes.get_mut(&id).ok_or_else(known)?;
                    let stdin = ends.stdin.as_ref().filter(|_| file.fd == 0);
                    let stdin =
                        stdin.ok_or_else(|| Status::out_of_range(format!("fd {} unavailable to write", file.fd)))?;
                    if !file.data.is_empty() {
                        // Where it does not read any more, nobody wants to know.
                        let _ = stdin.send(file.data).await;
                    }
                    if file.eof {
                        ends.stdin = None;
                    }
                }
                Some(Input::Resize(size)) => {
                    let ends = self.processes.get(&id).ok_or_else(known)?;
                    let most = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
                    let _ = ends.control.send(Control::Resize { rows: most(size.rows), columns: most(size.cols) });
                }
                Some(Input::Signal(signal)) => {
                    let ends = self.processes.get(&id).ok_or_else(known)?;
                    let number = signal_number(&signal.name);
                    let number =
                        number.ok_or_else(|| Status::invalid_argument(format!("Unknown signal {}", signal.name)))?;
                    let _ = ends.control.send(Control::Signal(number));
                }
                Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                    return Err(Status::invalid_argument("a message that only we send"));
                }
            }
        }
        Ok(())
    }

    fn start(
        &self,
        id: String,
        container: Arc<Container>,
        init: wire::InitMessage,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Result<Ends, Status> {
        let security = pb::SecurityMode::try_from(init.security);
        let security = security.map_err(|_| Fault::user(format!("invalid security mode {}", init.security)));
        let new = security.map(|security| NewProcess {
            meta: init.meta.unwrap_or_default(),
            security,
            secret_env: init.secretenv,
            terminal: init.tty,
        });
        let (stdin, input) = mpsc::channel(INPUT_QUEUE);
        let (control, wanted) = mpsc::unbounded_channel();
        let wants_input = init.fds.contains(&0);
        let (output, waiting) = output(&init.fds);
        let io = ProcessIo {
            stdin: wants_input.then_some(input),
            control: wanted,
            output: output.step_io(),
            cancel: self.cancel.clone(),
        };
        let process = Process { id, outgoing: self.outgoing.clone(), fds: init.fds };
        tasks.spawn(process.run(container, new, io, output, waiting));
        Ok(Ends { stdin: wants_input.then_some(stdin), control })
    }
}

/// What a process writes on its way to the client.
#[derive(Clone)]
struct Outflow {
    sender: mpsc::UnboundedSender<(u32, Vec<u8>)>,
    waiting: Arc<watch::Sender<usize>>,
    fds: Arc<Vec<u32>>,
}

fn output(fds: &[u32]) -> (Outflow, mpsc::UnboundedReceiver<(u32, Vec<u8>)>) {
    let (sender, waiting) = mpsc::unbounded_channel();
    (Outflow { sender, waiting: Arc::default(), fds: Arc::new(fds.to_vec()) }, waiting)
}

impl Outflow {
    /// Where the process writes to, and what holds it back.
    fn step_io(&self) -> StepIo {
        let (taker, waiting) = (self.clone(), self.waiting.clone());
        let take = move |stream: Output, bytes: &[u8]| {
            let fd = match stream {
                Output::Stdout => 1,
                Output::Stderr => 2,
            };
            // What nobody asked for goes nowhere.
            if taker.fds.contains(&fd) {
                taker.waiting.send_modify(|waiting| *waiting += bytes.len());
                let _ = taker.sender.send((fd, bytes.to_vec()));
            }
        };
        StepIo::new(take).held_back_by(move || {
            let mut waiting = waiting.subscribe();
            Box::pin(async move {
                let _ = waiting.wait_for(|waiting| *waiting < MOST_WAITING).await;
            })
        })
    }

    fn gone(&self, bytes: usize) {
        self.waiting.send_modify(|waiting| *waiting -= bytes);
    }
}

/// A process as the client knows it.
struct Process {
    id: String,
    outgoing: mpsc::Sender<Result<wire::ExecMessage, Status>>,
    fds: Vec<u32>,
}

impl Process {
    async fn run(
        self,
        container: Arc<Container>,
        new: Result<NewProcess, Fault>,
        io: ProcessIo,
        output: Outflow,
        mut written: mpsc::UnboundedReceiver<(u32, Vec<u8>)>,
    ) {
        let started = match new {
            Ok(new) => container.start(new, io).await,
            Err(fault) => Err(fault),
        };
        // Before it has started nobody listens to how it failed.
        self.tell(Input::Started(wire::StartedMessage {})).await;
        let ended = match started {
            Err(fault) => Err(fault),
            Ok(running) => {
                let mut running = std::pin::pin!(running);
                let ended = loop {
                    tokio::select! {
                        ended = &mut running => break ended,
                        Some((fd, data)) = written.recv() => self.pass_on(&output, fd, data).await,
                    }
                };
                while let Ok((fd, data)) = written.try_recv() {
                    self.pass_on(&output, fd, data).await;
                }
                ended
            }
        };
        for fd in self.fds.iter().copied().filter(|fd| *fd != 0) {
            self.tell(Input::File(wire::FdMessage { fd, eof: true, data: Vec::new() })).await;
        }
        self.tell(Input::Exit(exit_message(ended))).await;
        self.tell(Input::Done(wire::DoneMessage {})).await;
    }

    async fn pass_on(&self, output: &Outflow, fd: u32, data: Vec<u8>) {
        let size = data.len();
        self.tell(Input::File(wire::FdMessage { fd, eof: false, data })).await;
        output.gone(size);
    }

    async fn tell(&self, input: Input) {
        let message = wire::ExecMessage { process_id: self.id.clone(), input: Some(input) };
        // A client that has hung up ends the call, and that its processes.
        let _ = self.outgoing.send(Ok(message)).await;
    }
}

fn exit_message(ended: Result<Exit, Fault>) -> wire::ExitMessage {
    let failed = |code: u32, kind: Code, message: String| wire::ExitMessage {
        code,
        error: Some(rpc::Status { code: kind as i32, message, details: Vec::new() }),
    };
    match ended {
        Ok(exit) if exit.is_success() => wire::ExitMessage::default(),
        Ok(exit) => failed(exit.code.unsigned_abs(), Code::Unknown, exit.describe()),
        // The words that clients look for.
        Err(fault) if fault.kind() == Kind::Cancelled => {
            failed(NO_EXIT_CODE, Code::Cancelled, "context canceled".to_owned())
        }
        Err(fault) => failed(NO_EXIT_CODE, Code::Unknown, fault.cause()),
    }
}

/// The number of a signal of Linux by its name, with or without `SIG`.
fn signal_number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        name => name,
    };
    NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_kernels_numbers() {
        for (name, number) in [("HUP", 1), ("KILL", 9), ("SIGTERM", 15), ("CLD", 17), ("WINCH", 28), ("SYS", 31)] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        assert_eq!(signal_number("BOGUS"), None);
    }

    #[test]
    fn ends_are_told_as_clients_expect_them() {
        let told = exit_message(Err(Fault::cancelled()));
        let error = told.error.expect("an error");
        assert_eq!((told.code, error.code, error.message.as_str()), (255, 1, "context canceled"));
        assert_eq!(exit_message(Err(Fault::user("x"))).error.expect("an error").message, "x");
    }

    #[tokio::test]
    async fn a_process_waits_for_a_slow_client() {
        let (output, mut written) = output(&[1]);
        let io = output.step_io();
        (io.output)(Output::Stderr, b"not asked for");
        (io.output)(Output::Stdout, &vec![0; MOST_WAITING]);
        let mut waits = (io.room)();
        assert!(futures_util::poll!(&mut waits).is_pending());
        let (fd, data) = written.recv().await.expect("output");
        assert_eq!((fd, data.len()), (1, MOST_WAITING));
        output.gone(data.len());
        waits.await;
        assert!(written.try_recv().is_err());
    }
}
