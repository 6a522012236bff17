//! Real programs as child processes, and YAML as values.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use roadstead_test_support::real::find_program;
use serde_json::Value;

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program in the version that `tests/deploy/requirements.txt` pins, whatever else the machine has: Python with YAML,
/// kubectl, kubernetes-validate.
pub fn pinned(name: &str) -> PathBuf {
    find_program("kubernetes-validate").with_file_name(name)
}

/// The text of a file in the repository.
///
/// # Panics
/// When it is not there.
pub fn text_of(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program to its end, whatever that is.
///
/// # Panics
/// When it cannot be started.
pub fn end_of(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a program that must succeed; what it printed, on both outputs.
///
/// # Panics
/// When it fails.
pub fn run(command: &mut Command) -> String {
    let output = end_of(command);
    let printed = both(&output);
    assert!(output.status.success(), "{command:?}: {}\n{printed}", output.status);
    printed
}

/// Both outputs of a program.
pub fn both(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Runs a program with this standard input.
///
/// # Panics
/// When it cannot be started.
pub fn feed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut pipe = child.stdin.take().expect("standard input is piped");
    let input = input.to_owned();
    // In a thread of its own: a child that prints while it reads must not hold us up.
    let writer = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("a child can be waited for");
    // A child that failed may not have read to the end; its status says so.
    let _ = writer.join().expect("the writer");
    output
}

/// The documents of some YAML.
///
/// # Panics
/// When it is none.
pub fn documents(yaml: &str) -> Vec<Value> {
    let output = feed(Command::new(pinned("python3")).arg(repository("tests/deploy/yaml_to_json.py")), yaml);
    assert!(output.status.success(), "{}", both(&output));
    serde_json::from_slice(&output.stdout).expect("a list of documents")
}

/// Copies a folder with all that is in it.
///
/// # Panics
/// When it cannot.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Says on the terminal, also when the test passes, that a part was not run.
pub fn not_run(what: &str, cause: &str) {
    // Not println!, which is shown for failed tests only.
    writeln!(std::io::stderr(), "NOT RUN: {what}: {cause}").expect("standard error can be written");
}
