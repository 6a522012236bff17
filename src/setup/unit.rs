//! The environment of a service, as systemd reads it from the files of the node: the unit, its drop-ins, and the files that they name.
//!
//! Drop-ins count in the order of their names, wherever they lie; of one name, the first folder counts. `EnvironmentFile=` is read
//! after all `Environment=`, and `UnsetEnvironment=` last. Specifiers (`%h`) are left as they are.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use super::aim::Wanted;
use super::error::SetupError;
use super::files::Files;

/// The folders of units, the one that counts first.
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The variables of a service, each with the file that gives it.
pub type ServiceVariables = BTreeMap<String, (String, PathBuf)>;

/// Reads them, with this drop-in in the place of the one on the disk.
/// Fails when a file cannot be read.
pub fn environment(files: &Files<'_>, service: &str, planned: Option<&Wanted>) -> Result<ServiceVariables, SetupError> {
    let mut paths = Vec::new();
    for folder in FOLDERS {
        let unit = Path::new(folder).join(service);
        if files.read(&unit)?.is_some() {
            paths.push(unit);
            break;
        }
    }
    paths.extend(drop_ins(files, service, planned)?.into_values());
    let mut given = Given::default();
    for path in paths {
        let planned = planned.filter(|planned| planned.path == path).map(|planned| planned.text.clone());
        let text = match planned {
            Some(text) => text,
            None => files.read(&path)?.unwrap_or_default(),
        };
        given.take(&text, &path);
    }
    given.all(files)
}

/// The drop-ins of a service by their names, in the order in which they count.
fn drop_ins(
    files: &Files<'_>,
    service: &str,
    planned: Option<&Wanted>,
) -> Result<BTreeMap<PathBuf, PathBuf>, SetupError> {
    let named = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
    let mut found: BTreeMap<PathBuf, PathBuf> =
        planned.into_iter().map(|planned| (named(&planned.path), planned.path.clone())).collect();
    for drop_ins in [format!("{service}.d"), "service.d".to_owned()] {
        for folder in FOLDERS {
            for path in files.list(&Path::new(folder).join(&drop_ins), ".conf")? {
                found.entry(named(&path)).or_insert(path);
            }
        }
    }
    Ok(found)
}

/// The environment as far as the files of a unit say it.
#[derive(Default)]
struct Given {
    variables: ServiceVariables,
    /// The values of `EnvironmentFile=`.
    named: Vec<String>,
    unset: Vec<String>,
}

impl Given {
    fn take(&mut self, text: &str, path: &Path) {
        for (key, value) in settings_of_service(text) {
            match (key.as_str(), value.is_empty()) {
                ("Environment", true) => self.variables.clear(),
                ("EnvironmentFile", true) => self.named.clear(),
                ("UnsetEnvironment", true) => self.unset.clear(),
                ("Environment", false) => {
                    let words = words(&value);
                    let set = words.iter().filter_map(|word| word.split_once('='));
                    self.variables
                        .extend(set.map(|(name, value)| (name.to_owned(), (value.to_owned(), path.to_owned()))));
                }
                ("EnvironmentFile", false) => self.named.push(value),
                ("UnsetEnvironment", false) => self.unset.extend(words(&value)),
                _ => {}
            }
        }
    }

    fn all(mut self, files: &Files<'_>) -> Result<ServiceVariables, SetupError> {
        for named in &self.named {
            // One with a minus may be missing. Without it the service does not start.
            for path in paths_of(files, named.strip_prefix('-').unwrap_or(named))? {
                let text = files.read(&path)?.unwrap_or_default();
                let set = assignments(&text).into_iter().map(|(name, value)| (name, (value, path.clone())));
                self.variables.extend(set);
            }
        }
        for unset in &self.unset {
            let (name, value) =
                unset.split_once('=').map_or((unset.as_str(), None), |(name, value)| (name, Some(value)));
            if value.is_none_or(|value| self.variables.get(name).is_some_and(|(set, _)| set == value)) {
                self.variables.remove(name);
            }
        }
        Ok(self.variables)
    }
}

/// The files that a value of `EnvironmentFile=` names, which may have one `*` in its last name.
fn paths_of(files: &Files<'_>, named: &str) -> Result<Vec<PathBuf>, SetupError> {
    let path = Path::new(named);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((before, after)) = name.split_once('*') else { return Ok(vec![path.to_owned()]) };
    let mut found = files.list(path.parent().unwrap_or(Path::new("/")), after)?;
    let begins =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(before));
    found.retain(begins);
    Ok(found)
}

/// The settings of the section `[Service]` in their order. A line that ends in `\` goes on in the next; comments in between are left out.
fn settings_of_service(text: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let (mut section, mut whole) = (String::new(), String::new());
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with(['#', ';'])) {
        whole += line;
        let slashes = whole.len() - whole.trim_end_matches('\\').len();
        if slashes % 2 == 1 {
            whole.pop();
            whole.push(' ');
            continue;
        }
        let line = std::mem::take(&mut whole);
        if let Some(name) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| section == "Service") {
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    settings
}

/// The words of a value. Quotes hold blanks together, anywhere in a word; a quote that does not end leaves the rest out.
fn words(value: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = value.chars().peekable();
    while chars.peek().is_some() {
        let (mut word, mut quote, mut has_quotes) = (String::new(), None, false);
        while let Some(char) = chars.next() {
            match (char, quote) {
                ('\\', _) => word.extend(escaped(&mut chars)),
                (char, Some(mark)) if char == mark => quote = None,
                ('"' | '\'', None) => (quote, has_quotes) = (Some(char), true),
                (char, None) if char.is_ascii_whitespace() => break,
                (char, _) => word.push(char),
            }
        }
        if quote.is_some() {
            break;
        }
        if has_quotes || !word.is_empty() {
            words.push(word);
        }
    }
    words
}

fn escaped(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    Some(match chars.next()? {
        'n' => '\n',
        't' => '\t',
        's' => ' ',
        other => other,
    })
}

/// The assignments of an environment file: as in a shell, without its expansions.
fn assignments(text: &str) -> Vec<(String, String)> {
    let mut set = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        if first.is_ascii_whitespace() {
            continue;
        }
        let mut name = String::from(first);
        let mut ends = None;
        while let Some(char) = chars.next() {
            if char == '\n' || char == '=' && !first_of_comment(first) {
                ends = Some(char);
                break;
            }
            // A comment goes on behind a `\`, too.
            if char == '\\' && first_of_comment(first) {
                chars.next();
            }
            name.push(char);
        }
        if ends == Some('=') {
            set.push((name.trim().to_owned(), value_of(&mut chars)));
        }
    }
    set
}

fn first_of_comment(char: char) -> bool {
    matches!(char, '#' | ';')
}

/// The value up to the end of its line. Blanks around its parts are left out, and quotes count where a part begins.
fn value_of(chars: &mut Peekable<Chars<'_>>) -> String {
    let (mut value, mut begins) = (String::new(), true);
    // As much of the value as stays when the blanks at its end go.
    let mut kept = 0;
    while let Some(char) = chars.next() {
        match char {
            '\n' => break,
            '"' | '\'' if begins => {
                while let Some(quoted) = chars.next().filter(|quoted| *quoted != char) {
                    match (quoted, chars.peek()) {
                        ('\\', Some('\n')) if char == '"' => drop(chars.next()),
                        ('\\', Some('"' | '\\' | '`' | '$')) if char == '"' => value.extend(chars.next()),
                        _ => value.push(quoted),
                    }
                }
                kept = value.len();
            }
            '\\' => {
                value.extend(chars.next().filter(|escaped| *escaped != '\n'));
                (kept, begins) = (value.len(), false);
            }
            blank if blank.is_ascii_whitespace() => {
                if !begins {
                    value.push(blank);
                }
            }
            other => {
                value.push(other);
                (kept, begins) = (value.len(), false);
            }
        }
    }
    value.truncate(kept);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_read_as_systemd_reads_it() {
        for (text, expected) in [
            ("[Service]\nEnvironment=A=1 B=2\n", "A=1|B=2"),
            ("[Service]\n  Environment = \"A=1\"\n", "A=1"),
            ("[Service]\nEnvironment=\"A=1, 2\" 'B=x y' C=\"p q\"\n", "A=1, 2|B=x y|C=p q"),
            ("[Service]\nEnvironment=A=1 \\\n# between\n  B=2\n; and\n", "A=1|B=2"),
            ("[Service]\nEnvironment=A=1\nEnvironment=\nEnvironment=B=2\n", "B=2"),
            ("[Service]\nEnvironment=A=1\nEnvironment=A=2\n", "A=2"),
            ("[Service]\nEnvironment=A=1 B=2 C=3\nUnsetEnvironment=A B=2 C=4\n", "C=3"),
            ("[Service]\nEnvironment=A=1\nUnsetEnvironment=A\nUnsetEnvironment=\n", "A=1"),
            ("[Service]\nEnvironment=A=%h \"B=a\\\"b\" no assignment\n", "A=%h|B=a\"b"),
            ("[Service]\nEnvironment=A=1 \"B=2\n", "A=1"),
            ("[Unit]\nEnvironment=A=1\n[Service]\n#Environment=B=2\n[Install]\nEnvironment=C=3\n", ""),
            ("Environment=A=1\n", ""),
            ("[Service]\r\nEnvironment=A=1\r\n", "A=1"),
        ] {
            let mut given = Given::default();
            given.take(text, Path::new("/f"));
            let root = tempfile::tempdir().unwrap();
            let all = given.all(&Files::as_they_are(root.path())).unwrap();
            let all: Vec<String> = all.iter().map(|(name, (value, _))| format!("{name}={value}")).collect();
            assert_eq!(all.join("|"), expected, "{text}");
        }
    }

    #[test]
    fn an_environment_file_is_read_as_systemd_reads_it() {
        for (text, expected) in [
            ("A=1\nB = 2 \n\n", "A=1|B=2"),
            ("# A=1\n; B=2\\\nC=3\n  D=4\n", "D=4"),
            ("A=\"x y\"\nB='x \"y'\nC=x\"y\n", "A=x y|B=x \"y|C=x\"y"),
            ("A=\"x\\\"y\\z\"  'and'\nB=x\\ny\n", "A=x\"y\\zand|B=xny"),
            ("A=x \\\n  y\nB=\"x\ny\"\n", "A=x   y|B=x\ny"),
            ("A=\nB\nC=3", "A=|C=3"),
        ] {
            let all: Vec<String> = assignments(text).iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(all.join("|"), expected, "{text}");
        }
    }

    /// Names order the drop-ins, wherever they lie; of one name, /etc counts before /run, and that before /usr.
    #[test]
    fn drop_ins_count_in_the_order_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let files = Files::as_they_are(root.path());
        let value = |name: &str| {
            let all = environment(&files, "docker.service", None).unwrap();
            all.get(name).map(|(value, path)| format!("{value} {}", path.display()))
        };
        let set = |value: &str| format!("[Service]\nEnvironment=A={value}\n");
        put("usr/lib/systemd/system/docker.service", &set("unit"));
        assert_eq!(value("A").unwrap(), "unit /usr/lib/systemd/system/docker.service");
        put("usr/lib/systemd/system/docker.service.d/50.conf", &set("usr"));
        put("usr/lib/systemd/system/docker.service.d/50.txt", &set("txt"));
        assert!(value("A").unwrap().starts_with("usr "));
        put("etc/systemd/system/service.d/40.conf", &set("forty"));
        assert!(value("A").unwrap().starts_with("usr "));
        put("run/systemd/system/docker.service.d/50.conf", &set("run"));
        assert!(value("A").unwrap().starts_with("run "));
        std::fs::create_dir_all(root.path().join("etc/systemd/system/docker.service.d")).unwrap();
        let masked = root.path().join("etc/systemd/system/docker.service.d/50.conf");
        std::os::unix::fs::symlink("/dev/null", &masked).unwrap();
        assert!(value("A").unwrap().starts_with("forty "));
        put("usr/lib/systemd/system/docker.service.d/60.conf", "[Service]\nEnvironmentFile=-/etc/default/dock*\n");
        put("etc/default/docker", "A=file\n");
        assert_eq!(value("A").unwrap(), "file /etc/default/docker");
        put("etc/systemd/system/docker.service.d/70.conf", &set("last"));
        assert!(value("A").unwrap().starts_with("file "), "it counts after all Environment=");
        put("etc/systemd/system/docker.service.d/80.conf", "[Service]\nEnvironmentFile=\n");
        assert!(value("A").unwrap().starts_with("last "));
    }
}
