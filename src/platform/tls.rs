//! TLS for outgoing connections, with the certificates that the system trusts.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

/// The settings of TLS, and how many authorities the system trusts. Without any, as in an image without certificates,
/// every connection fails.
pub(crate) fn client_config() -> Result<(ClientConfig, usize), rustls::Error> {
    let mut roots = RootCertStore::empty();
    let (trusted, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok((builder.with_root_certificates(roots).with_no_client_auth(), trusted))
}
