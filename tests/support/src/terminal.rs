//! Programs on a terminal of their own, as people run them.

use std::process::Stdio;

use tokio::process::Command;

/// Runs a program on a terminal of so many rows and columns, until it ends. Once it has drawn a text so often it gets this answer,
/// or Ctrl-C where that is empty. Prints what it drew, and ends as it did.
const ON_TERMINAL: &str = r#"
import fcntl, os, pty, signal, struct, subprocess, sys, termios
rows, columns, text, often = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])
answer, command = sys.argv[5].encode(), sys.argv[6:]
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
child = subprocess.Popen(command, stdin=theirs if answer else subprocess.DEVNULL, stdout=theirs, stderr=theirs)
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
        if answer:
            os.write(ours, answer)
        else:
            child.send_signal(signal.SIGINT)
sys.stdout.buffer.write(seen)
sys.exit(child.wait())
"#;

/// `program`, to which arguments are still to be added, on a terminal of so many rows and columns. It is sent Ctrl-C when it has
/// drawn this text so often.
#[must_use]
pub fn on_terminal(size: (usize, usize), (text, often): (&str, usize), program: &str) -> Command {
    command(size, (text, often), "", program)
}

/// `program` on a terminal, where it gets this answer to this question.
#[must_use]
pub fn on_terminal_that_answers((question, answer): (&str, &str), program: &str) -> Command {
    command((24, 80), (question, 1), answer, program)
}

fn command((rows, columns): (usize, usize), (text, often): (&str, usize), answer: &str, program: &str) -> Command {
    let [rows, columns, often] = [rows, columns, often].map(|number| number.to_string());
    let mut command = Command::new("python3");
    command.args(["-c", ON_TERMINAL, &rows, &columns, text, &often, answer, program]);
    command.env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null()).kill_on_drop(true);
    command
}
