//! Input, terminals, signals, and several processes in one container.

use std::sync::{Arc, Mutex};

use base::progress::Stream;
use executor::{Attached, CancellationToken, Control, Error, Exit, Inside, Network, Process, Security, Step, StepIo};
use tokio::sync::{mpsc, oneshot};

use crate::bed::Bed;
use crate::{Outcome, Test};

pub const ALL: &[(&str, Test)] = &[
    ("input_is_read_to_its_end", input),
    ("a_terminal_has_a_size_and_echoes", terminal),
    ("signals_reach_a_process", signals),
    ("others_join_a_container", joined),
    ("who_joins_is_in_the_groups_of_the_container", groups),
    ("a_container_ends_with_its_first_process", ended),
    ("who_joins_is_ended_alone", cancelled),
];

/// A process under way.
struct Running {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    control: mpsc::UnboundedSender<Control>,
    inside: Inside,
    said: Arc<Mutex<Vec<u8>>>,
    heard: Arc<tokio::sync::Notify>,
    cancel: CancellationToken,
    ended: tokio::task::JoinHandle<Result<Exit, Error>>,
}

enum What {
    First(Box<Step>),
    More(Inside, Process),
}

impl Running {
    /// Starts it; it has started when this returns.
    fn start(bed: &Bed, what: What, terminal: bool) -> Running {
        let (stdin, input) = mpsc::channel(1);
        let (control, wanted) = mpsc::unbounded_channel();
        let (started, begun) = oneshot::channel();
        let attached = Attached { stdin: Some(input), terminal, control: Some(wanted), started: Some(started) };
        let (said, heard) = (Arc::new(Mutex::new(Vec::new())), Arc::new(tokio::sync::Notify::new()));
        let io = {
            let (said, heard) = (said.clone(), heard.clone());
            StepIo::new(move |_: Stream, bytes: &[u8]| {
                said.lock().unwrap().extend_from_slice(bytes);
                heard.notify_one();
            })
        };
        let (cancel, executor) = (CancellationToken::new(), bed.executor.clone());
        let token = cancel.clone();
        let mut ended = bed.runtime.spawn(async move {
            match what {
                What::First(step) => executor.run_attached(*step, io, attached, token).await,
                What::More(inside, process) => executor.join(&inside, process, io, attached, token).await,
            }
        });
        let inside = bed.runtime.block_on(begun);
        let inside = inside.unwrap_or_else(|_| panic!("it did not start: {:?}", bed.runtime.block_on(&mut ended)));
        Running { stdin: Some(stdin), control, inside, said, heard, cancel, ended }
    }

    fn first(bed: &Bed, step: Step) -> Running {
        Running::start(bed, What::First(Box::new(step)), false)
    }

    fn join(&self, bed: &Bed, script: &str) -> Running {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let process = Process { args, ..Process::default() };
        Running::start(bed, What::More(self.inside.clone(), process), false)
    }

    fn write(&self, bed: &Bed, text: &str) {
        bed.runtime.block_on(self.stdin.as_ref().unwrap().send(text.into())).unwrap();
    }

    /// Waits until it has said this.
    fn says(&self, bed: &Bed, text: &str) {
        let waiting = async {
            while !String::from_utf8_lossy(&self.said.lock().unwrap()).contains(text) {
                self.heard.notified().await;
            }
        };
        let patience = std::time::Duration::from_secs(20);
        let waited = bed.runtime.block_on(async { tokio::time::timeout(patience, waiting).await });
        assert!(waited.is_ok(), "no `{text}` in {:?}", String::from_utf8_lossy(&self.said.lock().unwrap()));
    }

    /// Its end, and all that it said.
    fn ends(mut self, bed: &Bed) -> (Result<Exit, Error>, String) {
        self.stdin.take();
        let exit = bed.runtime.block_on(&mut self.ended).unwrap();
        let said = String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned();
        (exit, said)
    }

    fn ends_with(self, bed: &Bed, code: i32) -> String {
        let (exit, said) = self.ends(bed);
        assert_eq!(exit.unwrap().code, code, "{said}");
        said
    }
}

fn input(bed: &Bed) -> Outcome {
    let cat = Running::first(bed, bed.script("a", "cat; echo end"));
    let large = "x".repeat(300 << 10);
    cat.write(bed, &large);
    cat.write(bed, "more\n");
    let said = cat.ends_with(bed, 0);
    assert!(said.starts_with(&large) && said.ends_with("more\nend\n"), "{} bytes", said.len());
    // What nobody reads is in nobody's way.
    let deaf = Running::first(bed, bed.script("a", "exit 3"));
    deaf.ends_with(bed, 3);
    Ok(())
}

fn terminal(bed: &Bed) -> Outcome {
    for as_user in [false, true] {
        if as_user && bed.single_id() {
            continue;
        }
        let mut step = bed.script("a", "while read line; do stty size; echo \"got $line on $(tty)\"; done");
        step.args = ["/bin/sh".to_owned(), "-i".to_owned()].to_vec();
        step.env.push("PS1=ready ".to_owned());
        if as_user {
            step.user = "ann".to_owned();
        }
        let shell = Running::start(bed, What::First(Box::new(step)), true);
        shell.says(bed, "ready ");
        shell.control.send(Control::Resize { rows: 40, columns: 80 }).unwrap();
        shell.write(bed, "test -t 0 -a -t 1 -a -t 2 && /bin/busybox stty size > /tmp/s; cat /tmp/s\n");
        shell.says(bed, "40 80\r\n");
        shell.write(bed, "echo $((40 + 2)) > /dev/tty; echo open > /dev/stdout\n");
        shell.says(bed, "42\r\n");
        shell.says(bed, "open\r\n");
        shell.write(bed, "exit 9\n");
        shell.ends_with(bed, 9);
    }
    Ok(())
}

fn signals(bed: &Bed) -> Outcome {
    let script = "trap 'echo hup; exit 7' HUP; echo ready; while :; do sleep 0.05; done";
    let first = Running::first(bed, bed.script("a", script));
    first.says(bed, "ready");
    let more = first.join(bed, script);
    more.says(bed, "ready");
    more.control.send(Control::Signal(1)).unwrap();
    assert_eq!(more.ends_with(bed, 7), "ready\nhup\n");
    // Without a handler it ends whoever is not the first one.
    let more = first.join(bed, "echo ready; sleep 1000");
    more.says(bed, "ready");
    more.control.send(Control::Signal(15)).unwrap();
    more.ends_with(bed, 128 + 15);
    first.control.send(Control::Signal(1)).unwrap();
    assert_eq!(first.ends_with(bed, 7), "ready\nhup\n");
    Ok(())
}

fn joined(bed: &Bed) -> Outcome {
    let mut step = bed.script("a", "echo one > /f; hostname > /h; echo ready; cat");
    step.hostname = Some("together".to_owned());
    step.network = Network::None;
    let first = Running::first(bed, step);
    first.says(bed, "ready");
    let look = "cat /f /h; hostname; ls /proc | grep -c '^1$'; grep -c : /proc/net/dev; \
                grep -E 'Seccomp:|CapEff' /proc/self/status; pwd; echo $HOME; echo two > /f";
    let said = first.join(bed, look).ends_with(bed, 0);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..5], ["one", "together", "together", "1", "1"], "{said}");
    let own = bed.say(bed.script("b", "grep -E 'Seccomp:|CapEff' /proc/self/status"));
    assert_eq!(lines[5..7], own.lines().collect::<Vec<_>>(), "as locked in as others");
    assert_eq!(lines[7..], ["/", "/root"]);
    // Both see what the other writes; the exit code is its own.
    assert_eq!(first.join(bed, "cat /f; cat; exit 5").ends_with(bed, 5), "two\n");
    if !bed.single_id() {
        let args = ["/bin/sh", "-c", "id -un; pwd"].map(str::to_owned).to_vec();
        let (user, cwd) = ("ann".to_owned(), "/home/ann".to_owned());
        let process = Process { args, user, cwd, ..Process::default() };
        let as_user = Running::start(bed, What::More(first.inside.clone(), process), false);
        assert_eq!(as_user.ends_with(bed, 0), "ann\n/home/ann\n");
    }
    // A terminal of its own.
    let process = Process { args: ["/bin/sh".to_owned()].to_vec(), ..Process::default() };
    let shell = Running::start(bed, What::More(first.inside.clone(), process), true);
    shell.control.send(Control::Resize { rows: 3, columns: 4 }).unwrap();
    shell.write(bed, "/bin/busybox stty size; exit 6\n");
    shell.says(bed, "3 4\r\n");
    shell.ends_with(bed, 6);
    first.ends_with(bed, 0);
    Ok(())
}

fn groups(bed: &Bed) -> Outcome {
    for security in [Security::Sandbox, Security::Insecure] {
        let print = "cat /proc/self/cgroup; echo end";
        let mut step = bed.script("a", &format!("{print}; cat"));
        step.security = security;
        // Then it has a group of its own.
        step.resources.pids = Some(100);
        let first = Running::first(bed, step);
        first.says(bed, "end");
        let args = ["/bin/sh", "-c", print].map(str::to_owned).to_vec();
        let process = Process { args, security, ..Process::default() };
        let more = Running::start(bed, What::More(first.inside.clone(), process), false).ends_with(bed, 0);
        assert_eq!(more, first.ends_with(bed, 0), "{security:?}");
    }
    Ok(())
}

fn ended(bed: &Bed) -> Outcome {
    let first = Running::first(bed, bed.script("a", "echo ready; read line; exit 3"));
    first.says(bed, "ready");
    let more = first.join(bed, "echo ready; sleep 1000 & sleep 1000");
    more.says(bed, "ready");
    let inside = first.inside.clone();
    first.write(bed, "\n");
    first.ends_with(bed, 3);
    more.ends_with(bed, 128 + 9);
    // Nobody comes there any more.
    let (cancel, args) = (CancellationToken::new(), vec!["/bin/true".to_owned()]);
    let process = Process { args, ..Process::default() };
    let late = bed.executor.join(&inside, process, StepIo::discard(), Attached::default(), cancel);
    assert!(matches!(bed.runtime.block_on(late), Err(Error::Setup(_))));
    Ok(())
}

fn cancelled(bed: &Bed) -> Outcome {
    let first = Running::first(bed, bed.script("a", "echo ready; cat"));
    first.says(bed, "ready");
    let more = first.join(bed, "echo ready; sleep 1000");
    more.says(bed, "ready");
    more.cancel.cancel();
    assert!(matches!(more.ends(bed).0, Err(Error::Cancelled)));
    first.join(bed, "true").ends_with(bed, 0);
    // The first one takes all others along.
    let more = first.join(bed, "echo ready; sleep 1000");
    more.says(bed, "ready");
    first.cancel.cancel();
    assert!(matches!(first.ends(bed).0, Err(Error::Cancelled)));
    more.ends_with(bed, 128 + 9);
    Ok(())
}
