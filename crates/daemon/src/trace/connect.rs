//! A channel to a collector, with TLS where its address says so.

use std::io;
use std::sync::Arc;

use http_client::{TlsIdentity, Url};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// The channel; it is connected when it is used.
pub(super) fn lazily(endpoint: Endpoint, address: &Url, identity: &TlsIdentity) -> Result<Channel, http_client::Error> {
    if address.scheme() != "https" {
        return Ok(endpoint.connect_lazy());
    }
    let mut config = identity.client_config()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let host = address.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = address.port_or_known_default().unwrap_or(443);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let (connector, host) = (connector.clone(), host.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            let name = ServerName::try_from(host).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            connector.connect(name, stream).await.map(TokioIo::new)
        }
    })))
}
