//! Git repositories on a web server: `git http-backend` behind a few lines of HTTP.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;

use crate::need::program;
use crate::scratch;

/// A server on a port of its own; it stops when dropped.
pub struct GitServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
}

struct Shared {
    dir: TempDir,
    /// The value of `Authorization` without which nobody gets anything.
    wanted: Mutex<Option<String>>,
    requests: Mutex<Vec<String>>,
    /// The values of `Authorization` that came.
    logins: Mutex<Vec<String>>,
    /// Repositories that are elsewhere by now: paths and addresses.
    moved: Mutex<Vec<(String, String)>>,
    stopped: AtomicBool,
}

/// A repository of the server, and a directory with its files.
pub struct Repository {
    /// Where it is.
    pub git_dir: PathBuf,
    /// Where its files are.
    pub files: PathBuf,
    /// Where it is had.
    pub url: String,
}

impl GitServer {
    /// Starts it, where git is installed.
    pub fn start() -> Result<GitServer, String> {
        program("git")?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let addr = listener.local_addr().map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared {
            dir: scratch("git"),
            wanted: Mutex::default(),
            requests: Mutex::default(),
            logins: Mutex::default(),
            moved: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stopped.load(Ordering::Acquire) {
                    return;
                }
                let (serving, Ok(stream)) = (serving.clone(), stream) else { continue };
                // A client that hangs up has what it wants.
                std::thread::spawn(move || drop(serving.answer(stream)));
            }
        });
        Ok(GitServer { shared, addr })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// From now on only who sends this as `Authorization` is answered.
    pub fn wants(&self, authorization: &str) {
        *self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.to_owned());
    }

    /// The requests so far: method and path. They are forgotten.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on whoever asks for a repository is redirected to an address, with or without a login.
    pub fn moves(&self, name: &str, address: &str) {
        let mut moved = self.shared.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.insert(0, (format!("/{name}.git"), address.to_owned()));
    }

    /// What was told as `Authorization` so far. It is forgotten.
    pub fn take_logins(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.logins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An empty repository.
    pub fn repository(&self, name: &str) -> Repository {
        let git_dir = self.shared.dir.path().join(format!("{name}.git"));
        let files = self.shared.dir.path().join("files").join(name);
        fs::create_dir_all(&files).expect("scratch is writable");
        let repository = Repository { git_dir, files, url: format!("http://{}/{name}.git", self.addr) };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes it up.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Repository {
    /// Runs git on it; answers what it prints.
    pub fn git(&self, args: &[&str]) -> String {
        let mut command = git();
        command.arg("--git-dir").arg(&self.git_dir).arg("--work-tree").arg(&self.files).current_dir(&self.files);
        let output = command.args(args).output().expect("git starts");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes files and commits all that there is; answers the commit.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        for (name, content) in files {
            let path = self.files.join(name);
            fs::create_dir_all(path.parent().expect("it is below")).expect("scratch is writable");
            fs::write(path, content).expect("scratch is writable");
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "test"]);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// Nobody's settings, and always the same author.
fn git() -> Command {
    let mut command = Command::new("git");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "test").env(format!("GIT_{who}_EMAIL"), "test@example.com");
    }
    command
}

impl Shared {
    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(()) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {target}"));
        let login = header("authorization").map(str::to_owned);
        self.logins.lock().unwrap_or_else(PoisonError::into_inner).extend(login);
        let mut out = &stream;
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(location) = moved.iter().find_map(|(from, to)| Some(format!("{to}{}", target.strip_prefix(from)?)))
        {
            let head = "HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\nConnection: close";
            return write!(out, "{head}\r\nLocation: {location}\r\n\r\n");
        }
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if wanted.is_some() && wanted.as_deref() != header("authorization") {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return out.write_all(refusal.as_bytes());
        }
        let mut body = Vec::new();
        match header("content-length").and_then(|length| length.parse::<u64>().ok()) {
            Some(length) => _ = reader.take(length).read_to_end(&mut body)?,
            None if header("transfer-encoding").is_some() => read_chunks(&mut reader, &mut body)?,
            None => {}
        }
        let mut command = git();
        command.arg("http-backend").env("GIT_PROJECT_ROOT", self.dir.path()).env("GIT_HTTP_EXPORT_ALL", "1");
        command.env("PATH_INFO", path).env("QUERY_STRING", query).env("REQUEST_METHOD", method);
        command.env("CONTENT_LENGTH", body.len().to_string());
        for (name, variable) in [
            ("content-type", "CONTENT_TYPE"),
            ("content-encoding", "HTTP_CONTENT_ENCODING"),
            ("git-protocol", "HTTP_GIT_PROTOCOL"),
        ] {
            if let Some(value) = header(name) {
                command.env(variable, value);
            }
        }
        let mut backend = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdin = backend.stdin.take();
        // Small bodies; it reads them before it answers.
        if let Some(stdin) = &mut stdin {
            stdin.write_all(&body)?;
        }
        drop(stdin);
        let answer = backend.wait_with_output()?.stdout;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
        let (head, body) = answer.split_at(end);
        let head = String::from_utf8_lossy(head);
        let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
        let kept: String =
            head.lines().filter(|line| !line.starts_with("Status: ")).map(|l| format!("{l}\r\n")).collect();
        write!(out, "HTTP/1.1 {status}\r\nConnection: close\r\n{kept}\r\n")?;
        out.write_all(body.get(4..).unwrap_or_default())
    }
}

fn read_chunks(reader: &mut impl io::BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
        reader.by_ref().take(size).read_to_end(body)?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(());
        }
    }
}
