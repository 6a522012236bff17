//! Another name for 127.0.0.1, because pullers written in Go never use a proxy for `localhost` or 127.x.
//!
//! Only the sidecar has to know it: a puller hands the name to its proxy unresolved. So the sidecar is started with
//! an `/etc/hosts` of its own (a mount namespace), and the machine's stays as it is, whatever happens to the test.
//! Where namespaces are forbidden, as in many containers, root adds a line to `/etc/hosts` and takes it away again.

use std::fs;
use std::iter;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::program::run;
use super::rotating_names::RotatingNames;

const HOSTS: &str = "/etc/hosts";

/// Adds line `$1` to the file `$0`, one test at a time.
const ADD_LINE: &str = r#"flock "$0" sh -c 'printf "%s\n" "$1" >>"$0"' "$0" "$1""#;

/// Takes line `$1` out of the file `$0`, one test at a time. The file is overwritten and then cut, in place: in a
/// container it cannot be renamed, and nobody may find it empty meanwhile.
const REMOVE_LINE: &str = r#"flock "$0" sh -c '
    kept=$(grep -vxF -- "$1" "$0"; echo .)
    kept=${kept%.}
    printf "%s" "$kept" 1<>"$0"
    truncate -s "$(printf "%s" "$kept" | wc -c)" "$0"
' "$0" "$1""#;

/// A name that means 127.0.0.1 to the programs started by [`program`](Self::program), while the value lives.
pub struct LoopbackName {
    name: String,
    way: Destination,
    folder: TempDir,
    /// The name server that our programs ask and that never answers.
    silent: Option<UdpSocket>,
    /// The one that knows some names.
    rotating: Option<RotatingNames>,
}

/// How the name is made known.
enum Destination {
    /// Only to our programs: they see this hosts file, by `unshare` with these options.
    OwnHosts(PathBuf, &'static [&'static str]),
    /// To the whole machine, by a line in this file.
    Line { _kept: HostsLine },
}

impl LoopbackName {
    /// Makes up a name that no other test has.
    ///
    /// # Panics
    /// When neither a mount namespace nor `/etc/hosts` is ours to use: the test cannot run here.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a name is made, not a default")]
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("registry-{}-{number}.roadstead.test", process::id());
        let folder = TempDir::new().expect("a temporary folder");
        let line = format!("127.0.0.1 {name}");
        let way = own_hosts(folder.path(), &line)
            .unwrap_or_else(|| Destination::Line { _kept: HostsLine::add(Path::new(HOSTS), line) });
        Self { name, way, folder, silent: None, rotating: None }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on the programs that are started ask a name server for all other names, and it never answers.
    ///
    /// # Panics
    /// When port 53 of a loopback address or a mount namespace is not ours to use: the test cannot run here.
    #[must_use]
    pub fn with_silent_name_server(mut self) -> Self {
        let server = self.name_server();
        server.set_nonblocking(true).expect("an option of a socket");
        self.silent = Some(server);
        self
    }

    /// From now on the programs that are started ask a name server for all other names. It knows these, each with its
    /// addresses in another order at each question, and says of all others that they do not exist.
    ///
    /// # Panics
    /// As [`with_silent_name_server`](Self::with_silent_name_server).
    #[must_use]
    pub fn with_rotating_names(mut self, names: &[(&str, &[Ipv4Addr])]) -> Self {
        let server = self.name_server();
        let names = names.iter().map(|(name, addresses)| ((*name).to_owned(), addresses.to_vec())).collect();
        self.rotating = Some(RotatingNames::serve(server, names));
        self
    }

    /// A name server's socket, which our programs will ask.
    fn name_server(&self) -> UdpSocket {
        assert!(matches!(self.way, Destination::OwnHosts(..)), "needs a mount namespace: run the tests as root");
        // Tests run side by side: each has an address of its own.
        let mut free = (1..=254_u8).map(|last| UdpSocket::bind((Ipv4Addr::new(127, 53, 53, last), 53)));
        let server = free.find_map(Result::ok).expect("port 53: run the tests as root");
        let address = server.local_addr().expect("it is bound").ip();
        let lines = format!("nameserver {address}\noptions timeout:5 attempts:2\n");
        fs::write(self.folder.path().join("resolv.conf"), lines).expect("the folder is ours");
        server
    }

    /// The questions that came to the silent name server since the last call.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let server = self.silent.as_ref().expect("a silent name server");
        iter::from_fn(|| server.recv(&mut [0; 512]).ok()).count()
    }

    /// The program to start so that `binary` knows the name. It becomes `binary`, with the same process id.
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    #[must_use]
    pub fn program(&self, binary: &str) -> String {
        let Destination::OwnHosts(hosts, options) = &self.way else {
            return binary.to_owned();
        };
        let own_resolver = (self.silent.is_some() || self.rotating.is_some()).then(|| {
            let file = self.folder.path().join("resolv.conf");
            format!("mount --bind {} $(readlink -f /etc/resolv.conf) && ", file.display())
        });
        let text = format!(
            "#!/bin/sh\nexec unshare {} sh -c 'mount --bind \"$0\" {HOSTS} && {}exec \"$@\"' '{}' '{}' \"$@\"\n",
            options.join(" "),
            own_resolver.unwrap_or_default(),
            hosts.display(),
            binary,
        );
        let draft = self.folder.path().join("draft");
        let script = self.folder.path().join("with-own-hosts");
        fs::write(&draft, text).expect("the folder is ours");
        // Another thread's fork may hold a file that we write open for a moment, and such a file cannot be
        // executed ("text file busy"): let another process write it.
        run(Command::new("install").args(["-m", "755"]).args([&draft, &script]));
        script.display().to_string()
    }
}

/// A hosts file of our own in `folder`, if this machine lets us show it to our programs.
fn own_hosts(folder: &Path, line: &str) -> Option<Destination> {
    let hosts = folder.join("hosts");
    let machine = fs::read_to_string(HOSTS).unwrap_or_default();
    fs::write(&hosts, format!("{machine}\n{line}\n")).expect("the folder is ours");
    // As root, then as anybody who may become root in a user namespace.
    let choices: [&'static [&'static str]; 2] = [&["--mount"], &["--mount", "--map-root-user"]];
    let options = choices.into_iter().find(|options| can_mount(&hosts, options))?;
    Some(Destination::OwnHosts(hosts, options))
}

fn can_mount(hosts: &Path, options: &[&str]) -> bool {
    Command::new("unshare")
        .args(options)
        .args(["mount", "--bind"])
        .arg(hosts)
        .arg(HOSTS)
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A line in a hosts file, taken away again on Drop.
struct HostsLine {
    file: PathBuf,
    line: String,
}

impl HostsLine {
    fn add(file: &Path, line: String) -> Self {
        if let Err(complaint) = edit(file, &line, ADD_LINE) {
            panic!(
                "a name for 127.0.0.1 needs a mount namespace or a writable {HOSTS}, and neither is \
                 to be had: run the tests as root; {complaint}"
            );
        }
        Self { file: file.to_owned(), line }
    }
}

impl Drop for HostsLine {
    fn drop(&mut self) {
        if let Err(complaint) = edit(&self.file, &self.line, REMOVE_LINE) {
            eprintln!("the line {:?} is left behind: {complaint}", self.line);
        }
    }
}

/// Runs one of the scripts above on a file and a line; fails with what the script complained of.
fn edit(file: &Path, line: &str, script: &str) -> Result<(), String> {
    let output =
        Command::new("sh").args(["-c", script]).arg(file).arg(line).output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or(complaint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_knows_the_name_and_the_machine_does_not_afterwards() {
        let name = LoopbackName::new();
        let known = run(Command::new(name.program("/usr/bin/getent")).args(["hosts", name.name()]));
        assert!(known.starts_with("127.0.0.1 "), "{known}");
        let gone = name.name().to_owned();
        drop(name);
        let hosts = fs::read_to_string(HOSTS).unwrap_or_default();
        assert!(!hosts.contains(&gone), "{hosts}");
    }

    #[test]
    fn lines_come_and_go_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hosts");
        let before = "127.0.0.1 localhost\n\n# a word\n";
        fs::write(&file, before).unwrap();
        let first = HostsLine::add(&file, "127.0.0.1 first.test".to_owned());
        let second = HostsLine::add(&file, "127.0.0.1 second.test".to_owned());
        drop(first);
        let with_second = format!("{before}127.0.0.1 second.test\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), with_second);
        drop(second);
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
    }
}
