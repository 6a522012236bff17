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
    /// What a client must trust.
    pub authority: PathBuf,
    /// What the server shows.
    pub server: PathBuf,
    /// The server's private key.
    pub server_key: PathBuf,
}

impl Certificates {
    /// Makes an authority and a certificate for `name`, 127.0.0.1 and `::1` in `folder`.
    ///
    /// # Panics
    /// When openssl cannot be run or refuses.
    #[must_use]
    pub fn make(folder: &Path, name: &str) -> Self {
        let made = Self {
            authority: folder.join("ca.crt"),
            server: folder.join("server.crt"),
            server_key: folder.join("server.key"),
        };
        let authority_key = folder.join("ca.key");
        made.make_authority(&authority_key);
        made.make_server(&authority_key, name);
        made
    }

    fn make_authority(&self, key: &Path) {
        run(new_key(key)
            .args(["-x509", "-days", "30", "-subj", "/CN=roadstead test CA"])
            .arg("-out")
            .arg(&self.authority));
    }

    fn make_server(&self, authority_key: &Path, name: &str) {
        let request = self.server.with_extension("csr");
        let extensions = self.server.with_extension("ext");
        run(new_key(&self.server_key).args(["-subj", &format!("/CN={name}"), "-out"]).arg(&request));
        let names = format!("subjectAltName=DNS:{name},IP:127.0.0.1,IP:::1");
        fs::write(&extensions, format!("{names}\nbasicConstraints=critical,CA:FALSE\n")).expect("the folder is ours");
        run(openssl()
            .args(["x509", "-req", "-days", "30", "-CAcreateserial", "-in"])
            .arg(&request)
            .arg("-CA")
            .arg(&self.authority)
            .arg("-CAkey")
            .arg(authority_key)
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(&self.server));
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
