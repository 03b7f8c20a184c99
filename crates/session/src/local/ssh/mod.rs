//! SSH agents that a client lends to a build: its own one, private keys in files, or any socket.
//!
//! A step gets a socket that speaks ssh-agent's protocol (draft-miller-ssh-agent). Of an agent it may use the keys, and
//! neither add, remove nor lock any; keys of files are never handed out, they only sign.

mod key;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Fault, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

pub use key::{Key, KeyError};

use crate::Agent;

/// The largest message, as OpenSSH has it.
const MAX_MESSAGE: u32 = 256 << 10;
/// The largest file that is taken for a key.
const MAX_KEY_BYTES: u64 = 100 << 10;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// What answers a step.
#[derive(Clone, Debug)]
pub enum SshSource {
    /// The socket of an agent, whose keys may be used and not changed.
    Agent(PathBuf),
    /// A socket that is passed on as it is.
    Raw(PathBuf),
    /// Private keys.
    Keys(Arc<Vec<Key>>),
}

impl SshSource {
    /// Whatever `paths` lead to: one socket, or files with private keys.
    pub fn open(paths: &[PathBuf], raw: bool) -> Result<SshSource, Fault> {
        let failed = |path: &Path, error| Fault::because(Kind::User, format!("cannot use `{}`", path.display()), error);
        let mut sockets = Vec::new();
        let mut keys = Vec::new();
        for path in paths {
            use std::os::unix::fs::FileTypeExt as _;
            let meta = std::fs::metadata(path).map_err(|error| failed(path, error))?;
            if meta.file_type().is_socket() {
                sockets.push(path.clone());
            } else if raw {
                return Err(Fault::user(format!("`{}` is no socket: raw=true takes one", path.display())));
            } else {
                keys.push(read_key(path)?);
            }
        }
        match (&sockets[..], keys.is_empty()) {
            ([], false) => Ok(SshSource::Keys(Arc::new(keys))),
            ([socket], true) if raw => Ok(SshSource::Raw(socket.clone())),
            ([socket], true) => Ok(SshSource::Agent(socket.clone())),
            ([], true) => Err(Fault::user("neither a socket nor a key")),
            ([_, ..], true) => Err(Fault::user("only one socket can be given")),
            ([_, ..], false) => Err(Fault::user("sockets and keys cannot be mixed: add the keys to the agent")),
        }
    }
}

fn read_key(path: &Path) -> Result<Key, Fault> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| Fault::because(Kind::User, format!("cannot read the key `{}`", path.display()), error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_KEY_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Key::parse(&bytes).map_err(|error| {
        let hint = match error {
            KeyError::Passphrase => "add the key to an agent (`ssh-add`), and forward that",
            KeyError::Unsupported(_) => "add the key to an agent (`ssh-add`), or take an Ed25519 key",
            KeyError::Malformed(_) => "a file with a private key is needed, such as ~/.ssh/id_ed25519",
        };
        Fault::because(Kind::User, format!("cannot use the key `{}`", path.display()), error).hint(hint)
    })
}

#[async_trait]
impl Agent for SshSource {
    async fn answer(&self, mut step: UnixStream) -> Result<(), Fault> {
        let connect = |path: PathBuf| async move {
            let connected = UnixStream::connect(&path).await;
            connected.map_err(|e| Fault::because(Kind::User, format!("cannot reach `{}`", path.display()), e))
        };
        let talked = match self {
            SshSource::Raw(path) => {
                let mut socket = connect(path.clone()).await?;
                tokio::io::copy_bidirectional(&mut step, &mut socket).await.map(drop)
            }
            SshSource::Agent(path) => {
                let mut agent = connect(path.clone()).await?;
                async {
                    while let Some(request) = receive(&mut step).await? {
                        let answer = match request.first() {
                            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => ask(&mut agent, &request).await?,
                            _ => vec![FAILURE],
                        };
                        send(&mut step, &answer).await?;
                    }
                    Ok(())
                }
                .await
            }
            SshSource::Keys(keys) => {
                async {
                    while let Some(request) = receive(&mut step).await? {
                        let keys = keys.clone();
                        // A large RSA key takes milliseconds.
                        let answer = tokio::task::spawn_blocking(move || answer(&keys, &request));
                        send(&mut step, &answer.await.unwrap_or_else(|_| vec![FAILURE])).await?;
                    }
                    Ok(())
                }
                .await
            }
        };
        talked.map_err(|e| Fault::because(Kind::User, "the talk with the SSH agent broke off", e))
    }
}

/// The answer of an agent that has these keys.
fn answer(keys: &[Key], request: &[u8]) -> Vec<u8> {
    let Some((kind, body)) = request.split_first() else { return vec![FAILURE] };
    match *kind {
        REQUEST_IDENTITIES => {
            let mut out = vec![IDENTITIES_ANSWER];
            out.extend_from_slice(&(keys.len() as u32).to_be_bytes());
            for key in keys {
                wire::put_string(&mut out, key.public());
                wire::put_string(&mut out, key.comment().as_bytes());
            }
            out
        }
        SIGN_REQUEST => {
            let mut body = wire::Reader(body);
            let mut signature = || {
                let (public, data, flags) = (body.string()?, body.string()?, body.number()?);
                keys.iter().find(|key| key.public() == public)?.sign(data, flags)
            };
            signature().map_or_else(
                || vec![FAILURE],
                |signature| {
                    let mut out = vec![SIGN_RESPONSE];
                    wire::put_string(&mut out, &signature);
                    out
                },
            )
        }
        _ => vec![FAILURE],
    }
}

/// What an agent answers.
async fn ask(agent: &mut UnixStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    send(agent, request).await?;
    receive(agent).await?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
}

/// The next message; none where the other end has hung up.
async fn receive(stream: &mut UnixStream) -> std::io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_MESSAGE {
        return Err(std::io::Error::other(format!("a message of {length} bytes")));
    }
    let mut message = vec![0; length as usize];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn send(stream: &mut UnixStream, message: &[u8]) -> std::io::Result<()> {
    stream.write_u32(message.len() as u32).await?;
    stream.write_all(message).await
}

#[cfg(test)]
mod tests;
