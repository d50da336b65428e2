//! Whom to trust.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::{Error, Kind, Result};

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, trusting the certificates in `ca`, or else those of the
/// system (with `SSL_CERT_FILE` and `SSL_CERT_DIR`).
///
/// # Errors
/// `Io` when `ca` cannot be read, `Corrupt` when it holds no certificate. A system without
/// certificates is no error here: `http:` needs none.
pub(super) fn config(ca: Option<&Path>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| {
                    let path = path.display();
                    Error::new(
                        Kind::Corrupt,
                        format!("{path} holds an unusable certificate"),
                    )
                    .caused_by(error)
                })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!("some of the system's certificates are left out: {error}");
            }
            // Old roots that break today's rules are left out by every client.
            roots.add_parsable_certificates(found.certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Unsupported, "TLS cannot be set up").caused_by(error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let pem = std::fs::read(path)
        .map_err(|error| Error::io(format!("cannot read certificates from {shown}"), error))?;
    let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("{shown} {what}"));
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| corrupt("is no PEM file").caused_by(error))?;
    if found.is_empty() {
        return Err(corrupt("holds no certificate").hint("a PEM file is expected"));
    }
    Ok(found)
}
