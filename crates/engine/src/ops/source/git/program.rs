//! Running `git`: without anybody's configuration, hooks, prompts or secrets in its arguments.
//!
//! What logs in is given in its environment, which only we and root can read, and is taken out of what it prints.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base::progress::Stream;
use base::report::Tasks;
use base::{Fault, Kind, Secret};
use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How long git may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is kept of what it prints.
const OUTPUT_LIMIT: u64 = 16 << 20;
/// What of its words is shown, the last of them: servers speak through it.
const WORDS_LIMIT: usize = 16 << 10;
/// What is kept of them until secrets are taken out, which must not be cut.
const KEPT_WORDS: usize = 4 * WORDS_LIMIT;
/// What holds for every command. Housekeeping must not go on when the command has ended.
const SETTINGS: [&str; 7] = [
    "protocol.file.allow=user",
    "core.hooksPath=/dev/null",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "init.defaultBranch=master",
    "advice.detachedHead=false",
    "safe.directory=*",
];

/// What programs of this machine are run with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// Where they are looked for.
    pub(crate) path: Option<OsString>,
    /// Proxies, by the names of their variables.
    pub(crate) proxies: Vec<(String, String)>,
}

/// What logs in to a web server.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// Addresses that begin so.
    pub(super) scope: String,
    /// The value of the header `Authorization`.
    pub(super) header: Secret,
    /// What of it must not be seen, in all forms.
    pub(super) hidden: Vec<Secret>,
}

impl Login {
    /// A user and a password, with a colon between them.
    pub(super) fn basic(scope: String, user: &[u8]) -> Login {
        let encoded = base64::engine::general_purpose::STANDARD.encode(user);
        let mut login = Login::header(scope, format!("basic {encoded}").as_bytes());
        let password = user.iter().position(|byte| *byte == b':').map_or(user, |colon| &user[colon + 1..]);
        login.hidden.extend([Secret::new(user), Secret::new(password)]);
        login
    }

    /// A header.
    pub(super) fn header(scope: String, header: &[u8]) -> Login {
        // Without the word that says what it is, too.
        let space = header.iter().position(|byte| *byte == b' ');
        let bare = space.map_or(header, |space| header[space..].trim_ascii());
        Login { scope, header: Secret::new(header), hidden: vec![Secret::new(header), Secret::new(bare)] }
    }
}

/// How git is run for one source.
#[derive(Clone)]
pub(super) struct Git {
    pub(super) surroundings: Surroundings,
    /// Where it asks.
    pub(super) remote: String,
    pub(super) login: Option<Login>,
    pub(super) ssh_command: String,
    /// The socket of an SSH agent.
    pub(super) agent: Option<PathBuf>,
    pub(super) git_dir: Option<PathBuf>,
    pub(super) work_tree: Option<PathBuf>,
    pub(super) tasks: Tasks,
    /// What it says is nobody's concern: a failure is an answer.
    pub(super) is_quiet: bool,
    pub(super) cancel: CancellationToken,
}

/// Why a command failed.
pub(super) enum Trouble {
    /// What git said, and whether it is to be believed that the disk is full.
    Git { said: String, is_full: bool },
    /// It could not be run, or nobody waits for it any more.
    Fault(Fault),
}

impl Trouble {
    /// As a fault. `doing` says what failed.
    pub(super) fn fault(self, doing: impl Into<String>) -> Fault {
        const NO_LOGIN: [&str; 3] = ["could not read Username", "could not read Password", "Authentication failed"];
        let wants_login = self.says(&NO_LOGIN);
        match self {
            Trouble::Git { said, is_full: true } => {
                // An error of a kind that is known wherever a full disk is looked for.
                let full = std::io::Error::new(std::io::ErrorKind::StorageFull, Said(said));
                Fault::because(Kind::Environment, doing, full).hint(base::hint::no_space())
            }
            Trouble::Git { said, .. } if wants_login => Fault::because(Kind::Remote, doing, Said(said))
                .hint("give a token of the server with `--secret id=GIT_AUTH_TOKEN,env=..`, or a whole header as GIT_AUTH_HEADER"),
            Trouble::Git { said, .. } => Fault::because(Kind::Remote, doing, Said(said)),
            Trouble::Fault(fault) => fault,
        }
    }

    /// What git might have said.
    pub(super) fn git(said: String) -> Trouble {
        Trouble::Git { said, is_full: false }
    }

    /// Whether git said one of these.
    pub(super) fn says(&self, words: &[&str]) -> bool {
        matches!(self, Trouble::Git { said, .. } if words.iter().any(|words| said.contains(words)))
    }
}

/// git's own words.
#[derive(Debug, thiserror::Error)]
#[error("git stderr:\n{0}")]
struct Said(String);

impl Git {
    /// The same for a repository.
    pub(super) fn in_dir(&self, git_dir: &Path) -> Git {
        Git { git_dir: Some(git_dir.to_owned()), work_tree: None, ..self.clone() }
    }

    /// The same for a repository whose files are in a directory.
    pub(super) fn with_work_tree(&self, git_dir: &Path, work_tree: &Path) -> Git {
        Git { work_tree: Some(work_tree.to_owned()), ..self.in_dir(git_dir) }
    }

    /// The same, whose words nobody reads.
    pub(super) fn quiet(&self) -> Git {
        Git { is_quiet: true, ..self.clone() }
    }

    /// Whether a command says yes.
    pub(super) async fn agrees<S: AsRef<OsStr>>(&self, args: &[S]) -> bool {
        self.quiet().run(args).await.is_ok()
    }

    /// Runs a command. What asks too much of a simple server is asked for again without that.
    pub(super) async fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Vec<u8>, Trouble> {
        let args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        let depth = |arg: &OsString| arg == "--depth=1";
        match self.run_once(args.clone()).await {
            Err(trouble) if args.iter().any(depth) && trouble.says(&["--depth", "shallow"]) => {
                self.run_once(args.into_iter().filter(|arg| !depth(arg)).collect()).await
            }
            ended => ended,
        }
    }

    /// Runs a command and answers the one line that it prints.
    pub(super) async fn line<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, Trouble> {
        let printed = self.run(args).await?;
        Ok(String::from_utf8_lossy(&printed).trim().to_owned())
    }

    async fn run_once(&self, args: Vec<OsString>) -> Result<Vec<u8>, Trouble> {
        let fault = |fault| Trouble::Fault(fault);
        let (started, group) = oneshot::channel();
        let command = self.command(&args);
        // Its own thread: the umask of a process is that of the thread which starts it.
        let (ended, end) = oneshot::channel();
        let thread = std::thread::Builder::new().name("git".to_owned());
        let spawned = thread.spawn(move || _ = ended.send(run(command, started)));
        spawned.map_err(|e| fault(Fault::because(Kind::Environment, "cannot start a thread", e)))?;
        let mut end = std::pin::pin!(end);
        let ended = tokio::select! {
            ended = &mut end => ended,
            () = self.cancel.cancelled() => {
                if let Ok(group) = group.await {
                    for signal in [Signal::TERM, Signal::KILL] {
                        // Whoever has ended is not there to be signalled.
                        let _ = kill_process_group(group, signal);
                        if tokio::time::timeout(PATIENCE, &mut end).await.is_ok() {
                            break;
                        }
                    }
                }
                return Err(fault(Fault::cancelled()));
            }
        };
        let ended = ended.map_err(|_| fault(Fault::new(Kind::Internal, "the thread that runs git stopped")))?;
        let ended = ended.map_err(|error| fault(cannot_run(error)))?;
        let said = self.without_secrets(&ended.stderr);
        if !said.is_empty() && !self.is_quiet {
            self.tasks.log(Stream::Stderr, said.as_bytes());
        }
        match ended.success {
            true => Ok(ended.stdout),
            false => Err(Trouble::Git { is_full: says_full(&said) && self.has_little_room(), said }),
        }
    }

    /// Whether what it writes to may be full: servers and what logs in to them speak through git, too, and it is not for them
    /// to say when our cache goes.
    fn has_little_room(&self) -> bool {
        self.work_tree.iter().chain(&self.git_dir).any(|dir| store::has_little_room(dir))
    }

    fn command(&self, args: &[OsString]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if let Some(path) = &self.surroundings.path {
            command.env("PATH", path);
        }
        command.envs(self.surroundings.proxies.iter().map(|(name, value)| (name, value)));
        for (name, value) in [
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("HOME", "/dev/null"),
            ("XDG_CONFIG_HOME", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("LC_ALL", "C"),
            ("GIT_SSH_COMMAND", &self.ssh_command),
        ] {
            command.env(name, value);
        }
        if let Some(agent) = &self.agent {
            command.env("SSH_AUTH_SOCK", agent);
        }
        if let Some(Login { scope, header, .. }) = &self.login {
            let header = [b"Authorization: ", header.expose()].concat();
            let header = <OsString as std::os::unix::ffi::OsStringExt>::from_vec(header);
            command.env("GIT_CONFIG_COUNT", "2").env("GIT_CONFIG_KEY_0", format!("http.{scope}.extraheader"));
            command.env("GIT_CONFIG_VALUE_0", header);
            command.env("GIT_CONFIG_KEY_1", format!("http.{}.followRedirects", self.remote));
            command.env("GIT_CONFIG_VALUE_1", "false");
        }
        command.current_dir(self.work_tree.as_deref().or(self.git_dir.as_deref()).unwrap_or(Path::new("/")));
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        if let Some(dir) = &self.work_tree {
            command.arg("--work-tree").arg(dir);
        }
        if let Some(dir) = &self.git_dir {
            command.arg("--git-dir").arg(dir);
        }
        command.args(args);
        command
    }

    /// What git said, as anybody may read it.
    fn without_secrets(&self, said: &[u8]) -> String {
        let mut said = String::from_utf8_lossy(said).into_owned();
        for secret in self.login.iter().flat_map(|login| &login.hidden) {
            let text = String::from_utf8_lossy(secret.expose()).into_owned();
            if !text.is_empty() {
                said = said.replace(&text, "xxxxx");
            }
        }
        last_words(&said).to_owned()
    }
}

/// Whether git itself, and not the server, speaks of a full disk.
fn says_full(said: &str) -> bool {
    const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
    const REMOTE: [&str; 2] = ["remote:", "fatal: remote error:"];
    let own = said.lines().filter(|line| !REMOTE.iter().any(|prefix| line.trim_start().starts_with(prefix)));
    own.into_iter().any(|line| FULL.iter().any(|words| line.contains(words)))
}

struct Ended {
    success: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a command to its end, on a thread that is there for nothing else. Tells its process group first.
fn run(mut command: Command, started: oneshot::Sender<Pid>) -> std::io::Result<Ended> {
    sys::ns::own_working_directory()?;
    // Files of a checkout are the same whoever started us.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // This thread waits for it: it ends before it only where the daemon is killed.
    sys::process::end_with_parent(&mut command);
    let mut child = command.spawn()?;
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        // Nobody listens where nobody will cancel.
        let _ = started.send(pid);
    }
    let stderr = child.stderr.take();
    let errors = std::thread::Builder::new().spawn(move || stderr.map_or_else(Vec::new, read_last))?;
    let stdout = child.stdout.take().map_or_else(Vec::new, read_all);
    let stderr = errors.join().unwrap_or_default();
    Ok(Ended { success: child.wait()?.success(), stdout, stderr })
}

/// What is too much is read and forgotten, so that nobody waits for us to read it.
fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What cannot be read any more has ended.
    let _ = pipe.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    bytes
}

/// The end of what is read.
fn read_last(mut pipe: impl Read) -> Vec<u8> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; WORDS_LIMIT]);
    loop {
        match pipe.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // What cannot be read any more has ended.
            Ok(0) | Err(_) => return bytes,
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                let too_many = bytes.len().saturating_sub(KEPT_WORDS);
                bytes.drain(..too_many);
            }
        }
    }
}

/// As much of a text as is shown.
pub(super) fn last_words(text: &str) -> &str {
    let mut start = text.len().saturating_sub(WORDS_LIMIT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

fn cannot_run(error: std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Fault::new(Kind::Environment, "git repositories need the program `git`, which is not installed here")
                .hint("install git where the builder runs, or clone the repository and build its directory")
        }
        _ => Fault::because(Kind::Environment, "cannot run `git`", error),
    }
}

/// What git starts for `ssh://`: nothing of the user that we run as. Only hosts that the build knows, where it knows any.
pub(super) fn ssh_command(known_hosts: Option<&Path>) -> String {
    let plain = "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none";
    match known_hosts {
        Some(path) => {
            // In quotes for ssh, in which % stands for something else, and these in quotes for the shell that git runs.
            let path = path.display().to_string().replace('%', "%%").replace('\'', "'\\''");
            format!("{plain} -o GlobalKnownHostsFile=/dev/null -o 'UserKnownHostsFile=\"{path}\"'")
        }
        None => format!("{plain} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"),
    }
}

/// A file that is removed with its last user.
pub(super) struct KnownHosts(Arc<PathBuf>);

impl KnownHosts {
    /// Writes it below `scratch`.
    pub(super) fn write(scratch: &Path, text: &str) -> Result<KnownHosts, Fault> {
        let path = scratch.join(format!("known-hosts-{}", session::random_id()));
        let written = std::fs::write(&path, text);
        written.map_err(|e| Fault::because(Kind::Environment, format!("cannot write `{}`", path.display()), e))?;
        Ok(KnownHosts(Arc::new(path)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for KnownHosts {
    fn drop(&mut self) {
        // In nobody's way where it stays.
        let _ = std::fs::remove_file(&*self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl base::progress::Sink for Nowhere {
        fn emit(&self, _: base::progress::Event) {}
    }

    fn git() -> Git {
        let label = base::report::Label::phase("test");
        let running = base::report::Running::start(Arc::new(Nowhere), &label);
        Git {
            surroundings: Surroundings { path: std::env::var_os("PATH"), proxies: Vec::new() },
            remote: "https://h/".to_owned(),
            login: Some(Login::basic("https://h/".to_owned(), b"u:secret")),
            ssh_command: ssh_command(None),
            agent: None,
            git_dir: None,
            work_tree: None,
            tasks: running.tasks(),
            is_quiet: false,
            cancel: CancellationToken::new(),
        }
    }

    #[test]
    fn secrets_are_no_arguments_and_are_not_repeated() {
        let git = git();
        let command = git.command(&["fetch".into()]);
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        assert!(args.iter().all(|arg| !arg.contains("dTpzZWNyZXQ=")), "{args:?}");
        let value = command.get_envs().find(|(name, _)| *name == "GIT_CONFIG_VALUE_0").and_then(|(_, value)| value);
        assert_eq!(value, Some(OsStr::new("Authorization: basic dTpzZWNyZXQ=")));
        for (said, shown) in [
            ("a secret: basic dTpzZWNyZXQ=\n", "a xxxxx: xxxxx\n"),
            ("Basic dTpzZWNyZXQ=, u:secret", "Basic xxxxx, xxxxx"),
        ] {
            assert_eq!(git.without_secrets(said.as_bytes()), shown);
        }
        let git = Git { login: Some(Login::header("https://h/".to_owned(), b"Bearer t0ken")), ..git };
        assert_eq!(git.without_secrets(b"t0ken, Bearer t0ken"), "xxxxx, xxxxx");
    }

    #[test]
    fn servers_do_not_say_that_our_disk_is_full() {
        for (said, expected) in [
            ("fatal: write error: No space left on device\nfatal: fetch-pack: invalid index-pack output\n", true),
            ("error: unable to write file x\nfatal: cannot create directory: Disk quota exceeded", true),
            ("remote: fatal: No space left on device\nfatal: the remote end hung up", false),
            ("fatal: remote error: No space left on device", false),
        ] {
            assert_eq!(says_full(said), expected, "{said}");
        }
    }

    #[test]
    fn of_many_words_the_last_ones_are_shown() {
        let many = format!("first{}last", "\u{e4}".repeat(KEPT_WORDS));
        let kept = read_last(many.as_bytes());
        assert_eq!(kept.len(), KEPT_WORDS);
        let shown = git().without_secrets(&kept);
        assert!(shown.len() <= WORDS_LIMIT && shown.ends_with("last"), "{}", shown.len());
        assert_eq!(last_words("few"), "few");
    }

    #[test]
    fn hosts_that_a_build_knows_are_in_a_file() {
        let command = ssh_command(Some(Path::new("/a b/it's/100%")));
        let options = "-o GlobalKnownHostsFile=/dev/null -o 'UserKnownHostsFile=\"/a b/it'\\''s/100%%\"'";
        assert!(command.ends_with(options) && !command.contains("StrictHostKeyChecking"), "{command}");
        assert!(ssh_command(None).contains("StrictHostKeyChecking=no"));
    }

    #[tokio::test]
    async fn commands_end_when_nobody_waits_any_more() {
        if Command::new("git").arg("version").output().is_err() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: there is no `git` here\n");
            return;
        }
        let git = git();
        let alias = |command: &str| ["-c".to_owned(), format!("alias.x=!{command}"), "x".to_owned()];
        let printed = git.line(&alias("umask; echo said >&2")).await;
        assert_eq!(printed.ok().as_deref(), Some("0022"));
        let trouble = git.run(&alias("echo no secret >&2; exit 3")).await.expect_err("it failed");
        assert_eq!(trouble.fault("cannot x").to_string(), "cannot x: git stderr:\nno xxxxx\n");
        let scratch = tempfile::tempdir().expect("scratch");
        let fifo = scratch.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("made");
        let command = format!("echo > {0}; cat {0}", fifo.display());
        let (waiting, cancel) = (git.clone(), git.cancel.clone());
        let running = tokio::spawn(async move { waiting.run(&alias(&command)).await.err() });
        // It has begun; then nobody writes to what it reads.
        tokio::task::spawn_blocking(move || std::fs::read(fifo)).await.expect("joined").expect("read");
        cancel.cancel();
        let trouble = running.await.expect("joined").expect("it was ended");
        assert!(matches!(trouble, Trouble::Fault(fault) if fault.kind() == Kind::Cancelled));
    }
}
