//! Standard output and error, which may be full, or closed by their reader.

use std::io::{self, Write};

/// Prints to standard output; tells whether it is still read. A reader that has gone is no failure: it has seen what it
/// wanted.
/// Fails when it cannot be written for another reason.
pub fn print(text: &[u8]) -> Result<bool, String> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(format!("standard output: {error}")),
        Ok(()) => Ok(true),
    }
}

/// Writes to standard error. A failure cannot be reported.
pub fn say(line: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
