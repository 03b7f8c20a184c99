//! Debian's `docker-registry` (distribution's own server) on a free port with storage of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::need;
use crate::scratch::{free_port, scratch};

/// A running `docker-registry`; stopped when dropped.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Child,
    port: u16,
    storage: TempDir,
}

/// The one account of [`DockerRegistry::start_with_login`].
pub const LOGIN: (&str, &str) = ("hull", "works");

/// bcrypt of [`LOGIN`], since docker-registry reads nothing else.
const HTPASSWD: &str = "hull:$2b$05$abcdefghijklmnopqrstuujP6sM.y/7WKNZOoVUF67pOq8vuu3Vx2\n";

/// Starts may collide on the port with another test; further ones are tried.
const STARTS: usize = 5;

impl DockerRegistry {
    /// Starts it without login. Use `needs!("docker-registry")` before.
    pub fn start() -> Result<DockerRegistry> {
        DockerRegistry::launch("")
    }

    /// Starts it with basic authentication for [`LOGIN`].
    pub fn start_with_login() -> Result<DockerRegistry> {
        DockerRegistry::launch("auth:\n  htpasswd:\n    realm: test\n    path: HTPASSWD\n")
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The directory that it stores in.
    pub fn storage(&self) -> &std::path::Path {
        self.storage.path()
    }

    fn launch(auth: &str) -> Result<DockerRegistry> {
        let program = need::program("docker-registry").map_err(anyhow::Error::msg)?;
        for _ in 0..STARTS {
            let storage = scratch("docker-registry");
            let port = free_port();
            let htpasswd = storage.path().join("htpasswd");
            std::fs::write(&htpasswd, HTPASSWD)?;
            let root = storage.path().join("data");
            let config = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
                 enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{}",
                root.display(),
                auth.replace("HTPASSWD", &htpasswd.display().to_string()),
            );
            let path = storage.path().join("config.yml");
            std::fs::File::create(&path)?.write_all(config.as_bytes())?;
            let mut process = Command::new(&program)
                .arg("serve")
                .arg(&path)
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("docker-registry does not start")?;
            if answers(&mut process, port) {
                return Ok(DockerRegistry { process, port, storage });
            }
            // Ours, but already dead or useless: the port was taken.
            let _ = process.kill();
            process.wait()?;
        }
        bail!("docker-registry did not answer on {STARTS} ports")
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have died by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until the API answers or the process ends. A slow machine gets its time.
fn answers(process: &mut Child, port: u16) -> bool {
    for _ in 0..600 {
        if process.try_wait().ok().flatten().is_some() {
            return false;
        }
        if ask(port).is_ok_and(|answer| answer.starts_with("HTTP/1.")) {
            // Another program may have had the port first: then ours ends at once.
            std::thread::sleep(Duration::from_millis(20));
            return process.try_wait().ok().flatten().is_none();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n")?;
    let mut head = [0; 64];
    let n = stream.read(&mut head)?;
    Ok(String::from_utf8_lossy(&head[..n]).into_owned())
}
