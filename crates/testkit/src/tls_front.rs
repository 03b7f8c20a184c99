//! TLS in front of a server that has none.

use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::{registry, scratch};

/// Takes TLS and passes on what is in it. Stops when dropped.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    certificates: TempDir,
    runtime: Option<Runtime>,
}

impl TlsFront {
    /// In front of `server`; with `client_certificates` clients must show one.
    pub fn start(server: SocketAddr, client_certificates: bool) -> TlsFront {
        let certificates = scratch("tls-front");
        let acceptor = TlsAcceptor::from(registry::certificates(certificates.path(), client_certificates));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a loopback port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let (Ok(mut inside), Ok(mut server)) =
                        (acceptor.accept(socket).await, TcpStream::connect(server).await)
                    else {
                        return;
                    };
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut server).await;
                });
            }
        });
        TlsFront { address, certificates, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `ca.crt`, `client.cert` and `client.key` are.
    pub fn certificate_dir(&self) -> &Path {
        self.certificates.path()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
