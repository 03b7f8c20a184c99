//! BuildKit's addresses: sockets, and programs whose standard input and output are a connection.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Fault, Kind};
use hyper_util::rt::TokioIo;
use proto::health::{HealthCheckRequest, HealthCheckResponse};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use session::remote::{CONNECTION_WINDOW, MAX_FRAME, MAX_MESSAGE, STREAM_WINDOW};
use tls::{KeyPair, Roots, Servers};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::program::{Program, Talk};
use super::{Broken, carrier};

/// Which daemon, and who it must be.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// `unix:///run/buildkit/buildkitd.sock`, `tcp://host:1234`, ..
    pub address: String,
    /// The name in the daemon's certificate, where it is not the address's.
    pub server_name: Option<String>,
    /// Who signs daemons' certificates.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// How long connecting may take.
    pub timeout: Duration,
}

impl Remote {
    /// Says where it is that no daemon answers, or does not any more.
    pub fn name(&self, fault: Fault) -> Fault {
        let address = &self.address;
        let named = match fault.find() {
            None => return fault,
            Some(Broken::Foreign(cause)) => no_answer(self, cause).hint(FOREIGN),
            Some(Broken::Lost(_)) if self.has_foreign_socket() => no_answer(self, HTTP1).hint(FOREIGN),
            Some(Broken::Lost(cause)) => {
                let text = format!("the connection to the daemon at `{address}` was lost: {cause}");
                Fault::new(Kind::Remote, text).hint("see whether it still runs, and what its log says; then try again")
            }
        };
        if fault.cause().starts_with("failed to solve") { named.context("failed to solve") } else { named }
    }

    /// Whether a server of another kind listens at a socket of this machine. Nobody knocked there before.
    fn has_foreign_socket(&self) -> bool {
        let Some(path) = socket(&self.address) else { return false };
        let (path, (tell, told)) = (PathBuf::from(path), std::sync::mpsc::channel());
        let ask = move || {
            let mut stream = std::os::unix::net::UnixStream::connect(path)?;
            io::Write::write_all(&mut stream, REQUEST)?;
            let mut begin = [0; 5];
            io::Read::read_exact(&mut stream, &mut begin)?;
            io::Result::Ok(begin)
        };
        // A thread of its own: a socket whose server takes nobody in lets us wait for ever.
        let asking = std::thread::Builder::new().spawn(move || tell.send(ask()));
        asking.is_ok() && told.recv_timeout(PROBE).is_ok_and(|begin| begin.is_ok_and(|begin| &begin == ANSWER))
    }
}

/// How servers of another kind are found out, and how long that may take.
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
const ANSWER: &[u8; 5] = b"HTTP/";
const PROBE: Duration = Duration::from_secs(3);
/// What is said of them.
const HTTP1: &str = "what listens there speaks HTTP/1";

/// What to try where it is no buildkitd that answers.
const FOREIGN: &str = "another server listens there: name buildkitd's address by `--addr` or BUILDKIT_HOST";

/// The largest message either way.
pub(crate) const LARGEST: usize = MAX_MESSAGE;

/// Connects to a daemon.
pub async fn connect(remote: &Remote) -> Result<Channel, Fault> {
    let failed = |error: tonic::transport::Error| {
        let doubts = innermost(&error).contains("certificate");
        let is_forbidden = socket(&remote.address).is_some() && is_forbidden(&error);
        let fault = Fault::because(Kind::Remote, format!("cannot reach the daemon at `{}`", remote.address), error);
        fault.hint(match () {
            () if doubts => "who signed its certificate is told by --tlscacert, another name in it by --tlsservername",
            () if is_forbidden => {
                "this user may not use the socket: its owner and group may, and must be able to enter the directories above it"
            }
            () => "start buildkitd, or name another address by `--addr` or BUILDKIT_HOST",
        })
    };
    let way = Arc::new(Way::parse(remote)?);
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(remote.timeout)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(16 << 20);
    let dialed = way.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let way = dialed.clone();
        async move { way.open().await.map(TokioIo::new) }
    });
    let channel = match (endpoint.connect_with_connector(connector).await, &*way) {
        (Ok(channel), _) => channel,
        // It may end before anything was said; one that did not start has no last words.
        (Err(error), Way::Program(program)) if program.has_started() => {
            return Err(unanswered(remote, program, innermost(&error)).await);
        }
        (Err(error), _) => return Err(failed(error)),
    };
    if !matches!(*way, Way::Unix(_)) {
        knock(&channel, remote, &way).await?;
    }
    Ok(channel)
}

/// Asks the daemon whether it is there. Over a socket of the net the first question is where it shows that one side speaks
/// TLS and the other does not, or that a certificate is missing, and with a program, that it does not get through; what then
/// fails says nothing of the kind.
async fn knock(channel: &Channel, remote: &Remote, way: &Way) -> Result<(), Fault> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let asked = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        grpc.unary(tonic::Request::new(HealthCheckRequest::default()), path, codec).await
    };
    // A program may have to ask its user for a password first.
    let patience = if matches!(way, Way::Program(_)) { Duration::MAX } else { remote.timeout };
    let cause = match tokio::time::timeout(patience, asked).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(status)) => match Broken::of(&status) {
            // Whatever a daemon says, it is one; a connection that broke has a cause.
            None if status.code() != Code::Unavailable => return Ok(()),
            Some(Broken::Foreign(cause)) => return Err(no_answer(remote, &cause).hint(FOREIGN)),
            _ => innermost(&status),
        },
        Err(_) => "nothing is said".to_owned(),
    };
    if let Way::Program(program) = way {
        return Err(unanswered(remote, program, cause).await);
    }
    if matches!(way, Way::Tcp { tls: None, .. }) && speaks_http(way).await {
        return Err(no_answer(remote, HTTP1).hint(FOREIGN));
    }
    let hint = match (&remote.ca, &remote.cert) {
        (None, None) => {
            "if it speaks TLS, give --tlscacert, and --tlscert and --tlskey where it asks for a certificate"
        }
        (_, None) => "it may ask for a client certificate: give --tlscert and --tlskey",
        _ => "it may not accept this client certificate: its log says so",
    };
    Err(no_answer(remote, &cause).hint(hint))
}

/// Whether a server of another kind listens: it answers a request of HTTP/1. One of HTTP/2 may break the connection before
/// its answer is read.
async fn speaks_http(way: &Way) -> bool {
    let ask = async {
        let mut stream = way.open().await?;
        stream.write_all(REQUEST).await?;
        let mut begin = [0; 5];
        stream.read_exact(&mut begin).await?;
        io::Result::Ok(begin)
    };
    tokio::time::timeout(PROBE, ask).await.is_ok_and(|begin| begin.is_ok_and(|begin| &begin == ANSWER))
}

fn no_answer(remote: &Remote, cause: &str) -> Fault {
    Fault::new(Kind::Remote, format!("no buildkitd answers at `{}`: {cause}", remote.address))
}

/// A program did not get through: what it said is the cause, if it did.
async fn unanswered(remote: &Remote, program: &Program, cause: String) -> Fault {
    let cause = program.last_words().await.unwrap_or(cause);
    no_answer(remote, &cause).hint("`buildctl` has to be there, and a buildkitd that it reaches")
}

/// Whether the system keeps this user from a socket.
fn is_forbidden(error: &(dyn std::error::Error + 'static)) -> bool {
    let is = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    error.downcast_ref().is_some_and(is) || error.source().is_some_and(is_forbidden)
}

/// What an error goes back to.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// A plain connection to a daemon, for those who speak for themselves.
pub async fn stream(remote: &Remote) -> Result<impl AsyncRead + AsyncWrite + use<>, Fault> {
    let opened = Way::parse(remote)?.open().await;
    opened.map_err(|e| Fault::because(Kind::Remote, format!("cannot reach the daemon at `{}`", remote.address), e))
}

/// How the daemon is reached.
enum Way {
    Unix(PathBuf),
    Tcp {
        address: String,
        tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    },
    /// Another program passes bytes on.
    Program(Arc<Program>),
}

impl Way {
    fn parse(remote: &Remote) -> Result<Way, Fault> {
        let address = remote.address.as_str();
        if let Some(path) = socket(address) {
            return match path {
                "" => Err(Fault::user(format!("address `{address}` has no path of a socket"))),
                path => Ok(Way::Unix(PathBuf::from(path))),
            };
        }
        let unknown = || Fault::user(format!("address `{address}` is of no known kind")).hint(known(address));
        let (scheme, rest) = address.split_once(':').ok_or_else(unknown)?;
        match (scheme.to_ascii_lowercase().as_str(), rest.strip_prefix("//")) {
            ("tcp", Some(rest)) => {
                let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
                Ok(Way::Tcp { address: with_port(place), tls: encryption(remote, place)? })
            }
            (scheme, _) => match carrier::line(scheme, address)? {
                Some(line) => Ok(Way::Program(Program::new(line))),
                None => Err(unknown()),
            },
        }
    }

    async fn open(&self) -> io::Result<Connection> {
        match self {
            Way::Unix(path) => Ok(Connection::Unix(UnixStream::connect(path).await?)),
            Way::Tcp { address, tls } => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                match tls {
                    None => Ok(Connection::Tcp(stream)),
                    Some((config, name)) => {
                        let connector = tokio_rustls::TlsConnector::from(config.clone());
                        Ok(Connection::Tls(Box::new(connector.connect(name.clone(), stream).await?)))
                    }
                }
            }
            Way::Program(program) => program.start().map(Connection::Program),
        }
    }
}

/// The path of a socket: `unix:///run/x.sock`, and as gRPC has it `unix:/run/x.sock` and `unix:x.sock`.
fn socket(address: &str) -> Option<&str> {
    let (scheme, rest) = address.split_once(':')?;
    scheme.eq_ignore_ascii_case("unix").then(|| rest.strip_prefix("//").unwrap_or(rest))
}

/// What an address of no known kind may have been, or which kinds there are.
fn known(address: &str) -> String {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    match address.rsplit_once(':') {
        _ if address.starts_with('/') => format!("did you mean `unix://{address}`?"),
        Some((host, port)) if is_port(port) && !host.contains(':') => format!("did you mean `tcp://{address}`?"),
        _ => "known are unix://, tcp://, ssh://, docker-container://, podman-container://, nerdctl-container:// and \
              kube-pod://"
            .to_owned(),
    }
}

fn with_port(address: &str) -> String {
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && !port.is_empty()
            && (!host.contains(':') || host.ends_with(']'))
    });
    if has_port { address.to_owned() } else { format!("{address}:1234") }
}

type Tls = (Arc<rustls::ClientConfig>, ServerName<'static>);

fn encryption(remote: &Remote, address: &str) -> Result<Option<Tls>, Fault> {
    if remote.ca.is_none() && remote.cert.is_none() && remote.key.is_none() {
        return Ok(None);
    }
    let unusable = |error: tls::Error| Fault::user(error.to_string());
    let (mut roots, mut more) = (Roots::default(), Some(tls::system_roots as fn() -> _));
    if let Some(ca) = &remote.ca {
        roots.add_file(ca).map_err(unusable)?;
        more = None;
    }
    let provider = tls::provider();
    let internal = |error: rustls::Error| Fault::because(Kind::Internal, "cannot set up TLS", error);
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(internal)?;
    let servers = Servers::new(roots, more, provider.clone());
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(servers));
    let mut config = match (&remote.cert, &remote.key) {
        (Some(cert), Some(key)) => {
            let pair = KeyPair { certificate: cert.clone(), key: key.clone() };
            let certified = pair.load(&provider).map_err(unusable)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(Fault::user("--tlscert and --tlskey come together")),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let host = remote.server_name.clone().unwrap_or_else(|| {
        let address = with_port(address);
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    });
    let name = ServerName::try_from(host.clone());
    let name = name.map_err(|_| Fault::user(format!("`{host}` is no name of a server")))?;
    Ok(Some((Arc::new(config), name)))
}

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Program(Talk),
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Connection::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Connection::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Connection::Program(talk) => Pin::new(&mut talk.stdout).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Connection::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Connection::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Connection::Program(talk) => Pin::new(&mut talk.stdin).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Program(talk) => Pin::new(&mut talk.stdin).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Program(talk) => Pin::new(&mut talk.stdin).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_buildkits() {
        let program = |address: &str| match Way::parse(&Remote { address: address.to_owned(), ..Remote::default() }) {
            Ok(Way::Program(program)) => program.line.join(" "),
            Ok(Way::Unix(path)) => format!("unix {}", path.display()),
            Ok(Way::Tcp { address, tls }) => format!("tcp {address} {}", tls.is_some()),
            Err(fault) => fault.cause(),
        };
        for (address, expected) in [
            ("unix:///run/x.sock", "unix /run/x.sock"),
            ("unix:/run/x.sock", "unix /run/x.sock"),
            ("unix:x.sock", "unix x.sock"),
            ("UNIX://x.sock", "unix x.sock"),
            ("unix:", "address `unix:` has no path of a socket"),
            ("tcp://host:99", "tcp host:99 false"),
            ("tcp://host", "tcp host:1234 false"),
            ("tcp://me@[::1]:99/x?y=z", "tcp [::1]:99 false"),
            ("kube-pod://p", "kubectl exec -i p -- buildctl dial-stdio"),
            ("http://x", "address `http://x` is of no known kind"),
            ("tcp:host:1", "address `tcp:host:1` is of no known kind"),
            ("x", "address `x` is of no known kind"),
        ] {
            assert_eq!(program(address), expected);
        }
        let hint = |address: &str| match Way::parse(&Remote { address: address.to_owned(), ..Remote::default() }) {
            Ok(_) => panic!("`{address}` is of a known kind"),
            Err(fault) => fault.get_hint().unwrap_or_default().to_owned(),
        };
        assert_eq!(hint("/run/x.sock"), "did you mean `unix:///run/x.sock`?");
        assert_eq!(hint("host:1234"), "did you mean `tcp://host:1234`?");
        assert!(hint("http://x").starts_with("known are unix://"));
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let remote = Remote { address: "tcp://h:1".to_owned(), ..Remote::default() };
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let lost = Status::from_error(Box::new(broken));
        let fault = remote.name(super::super::fault(&lost).context("failed to solve"));
        assert_eq!(fault.cause(), "failed to solve: the connection to the daemon at `tcp://h:1` was lost: broken pipe");
        let foreign = Status::unimplemented("grpc-status header missing, mapped from HTTP status code 404");
        let fault = remote.name(super::super::fault(&foreign));
        assert_eq!(fault.cause(), "no buildkitd answers at `tcp://h:1`: HTTP status code 404");
        assert_eq!(remote.name(super::super::fault(&Status::unknown("said"))).cause(), "said");
    }
}
