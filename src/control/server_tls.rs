//! TLS of control's own listeners: certificate and key from files, read at the start.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls::provider;

/// Reads certificate and key, if both are configured in `section`. `protocols` are those that
/// clients may choose of, by ALPN, the best first. The error is one line.
pub fn acceptor(
    section: &str,
    cert: Option<&Path>,
    key: Option<&Path>,
    protocols: &[&[u8]],
) -> Result<Option<TlsAcceptor>, String> {
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let wrong = |name: &str, path: &Path, why: String| {
        format!("{section}.{name} = {}: {why}", path.display())
    };
    let certs = fs::read(cert).map_err(|e| wrong("tls_cert", cert, e.to_string()))?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&certs)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong("tls_cert", cert, e.to_string()))?;
    if certs.is_empty() {
        return Err(wrong("tls_cert", cert, "there is no PEM certificate in it".into()));
    }
    let text = fs::read(key).map_err(|e| wrong("tls_key", key, e.to_string()))?;
    let own = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|e| wrong("tls_key", key, format!("no PEM private key: {e}")))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(certs, own)
        .map_err(|e| wrong("tls_key", key, format!("does not go with {section}.tls_cert: {e}")))?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
