//! The `roadstead` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    roadstead::cli::main()
}
