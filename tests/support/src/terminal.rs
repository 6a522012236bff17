//! Programs on a terminal of their own, as people run them.

use std::process::Stdio;

use tokio::process::Command;

/// Runs a program on a terminal of so many rows and columns, until it ends, or has drawn a text so often and is sent Ctrl-C;
/// prints what it drew, and ends as it did.
const ON_TERMINAL: &str = r#"
import fcntl, os, pty, signal, struct, subprocess, sys, termios
rows, columns, text, often, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4]), sys.argv[5:]
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
os.close(theirs)
seen, told = b"", False
while True:
    try:
        part = os.read(ours, 65536)
    except OSError:  # the end of a terminal
        break
    seen += part
    if not told and seen.count(text) >= often:
        told = True
        child.send_signal(signal.SIGINT)
sys.stdout.buffer.write(seen)
sys.exit(child.wait())
"#;

/// `program`, to which arguments are still to be added, on a terminal of so many rows and columns. It is sent Ctrl-C when it has
/// drawn this text so often.
#[must_use]
pub fn on_terminal((rows, columns): (usize, usize), (text, often): (&str, usize), program: &str) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", ON_TERMINAL, &rows.to_string(), &columns.to_string(), text, &often.to_string(), program]);
    command.env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null()).kill_on_drop(true);
    command
}
