//! A throw-away certificate authority and one server certificate, made by openssl.
//!
//! The authority is its own certificate, so that a client that trusts it proves the whole chain and the name,
//! as with a company's own authority in front of Harbor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program::{find_program, run};

/// Paths of the files, all in one folder that outlives the tests' use of them.
pub struct Certificates {
    /// The certificate that a client must trust.
    pub authority: PathBuf,
    /// The certificate that the server presents.
    pub server: PathBuf,
    /// The server's private key.
    pub server_key: PathBuf,
}

impl Certificates {
    /// Makes an authority and a certificate for `name` in `folder`; with `addresses`, for 127.0.0.1 and `::1`, too.
    ///
    /// # Panics
    /// When openssl cannot be run or refuses.
    #[must_use]
    pub fn make(folder: &Path, name: &str, addresses: bool) -> Self {
        let made = Self {
            authority: folder.join("ca.crt"),
            server: folder.join("server.crt"),
            server_key: folder.join("server.key"),
        };
        made.make_authority();
        made.make_server(name, addresses);
        made
    }

    fn make_authority(&self) {
        run(new_key(&self.authority.with_extension("key"))
            .args(["-x509", "-days", "30", "-subj", "/CN=roadstead test CA"])
            .arg("-out")
            .arg(&self.authority));
    }

    /// Makes a certificate for a client in `folder`, and hands it out with its private key, as one PEM text.
    ///
    /// # Panics
    /// When openssl cannot be run or refuses.
    #[must_use]
    pub fn make_client(&self, folder: &Path) -> Vec<u8> {
        let (certificate, key) = (folder.join("client.crt"), folder.join("client.key"));
        self.sign(&certificate, &key, "puller", "extendedKeyUsage=clientAuth");
        [certificate, key].into_iter().flat_map(|file| fs::read(file).expect("openssl has made it")).collect()
    }

    fn make_server(&self, name: &str, addresses: bool) {
        let addresses = if addresses { ",IP:127.0.0.1,IP:::1" } else { "" };
        let names = format!("subjectAltName=DNS:{name}{addresses}");
        self.sign(&self.server, &self.server_key, name, &names);
    }

    /// Makes a key and a certificate over it, signed by the authority.
    fn sign(&self, certificate: &Path, key: &Path, name: &str, extension: &str) {
        let request = certificate.with_extension("csr");
        let extensions = certificate.with_extension("ext");
        run(new_key(key).args(["-subj", &format!("/CN={name}"), "-out"]).arg(&request));
        fs::write(&extensions, format!("{extension}\nbasicConstraints=critical,CA:FALSE\n"))
            .expect("the folder is ours");
        run(openssl()
            .args(["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
            .arg(&request)
            .arg("-CA")
            .arg(&self.authority)
            .arg("-CAkey")
            .arg(self.authority.with_extension("key"))
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(certificate));
    }
}

fn openssl() -> Command {
    Command::new(find_program("openssl"))
}

/// `openssl req` with a new key of the quick kind.
fn new_key(key: &Path) -> Command {
    let mut command = openssl();
    command.args(["req", "-nodes", "-newkey", "ec"]).args(["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout"]).arg(key);
    command
}
