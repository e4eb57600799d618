//! Certificates that a test's own authority signs.

use std::path::Path;
use std::process::Command;

use super::process::output_of;

/// An authority, and a server's certificate that it signed. A strict client accepts no self-signed certificate. Nodes of a
/// Redis Cluster are clients of each other, and show their certificate too.
pub fn make_certificates(dir: &Path) {
    const CONFIG: &str = "
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
";
    std::fs::write(dir.join("openssl.conf"), CONFIG).expect("a configuration");
    let certificate = |name: &str, extensions: &str, more: &[&str]| {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        let made = output_of(
            Command::new("openssl")
                .args(["req", "-x509", "-config", "openssl.conf", "-extensions", extensions, "-days", "2"])
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
                .args(["-subj", &format!("/CN=headcount's tests: {name}")])
                .args(["-keyout", &key, "-out", &certificate])
                .args(more)
                .current_dir(dir),
        );
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    };
    certificate("ca", "authority", &[]);
    certificate("server", "server", &["-CA", "ca.pem", "-CAkey", "ca.key"]);
}
