//! The changes of a file, as `diff -u` shows it, without the secrets of others.

use super::originals::FileChange;

/// `adds_ours` is false where the lines that are added are those of others, which come back.
pub fn shown(change: &FileChange, adds_ours: bool) -> String {
    let path = change.path.display().to_string();
    let name = |text: &Option<String>| if text.is_some() { path.clone() } else { "/dev/null".to_owned() };
    let mut options = diffy::DiffOptions::new();
    // The lines around a change are those of others.
    options.set_context_len(0);
    options.set_original_filename(name(&change.before)).set_modified_filename(name(&change.after));
    let (before, after) = (change.before.as_deref().unwrap_or_default(), change.after.as_deref().unwrap_or_default());
    let shown = options.create_patch(before, after).to_string();
    // A last line that only gets its end of line is shown as added.
    let is_ours = |line: &str| {
        adds_ours && line.strip_prefix('+').is_some_and(|added| before.lines().all(|stood| stood != added))
    };
    let lines = shown.lines().map(|line| if is_ours(line) { line.to_owned() } else { without_secrets(line) });
    lines.map(|line| line + "\n").collect()
}

/// A line of a config of somebody else, with what looks like a secret in it left out.
pub fn without_secrets(line: &str) -> String {
    const NAMES: [&str; 12] = [
        "auth",
        "basic ",
        "bearer ",
        "passw",
        "passphrase",
        "pwd",
        "secret",
        "token",
        "credential",
        "cookie",
        "apikey",
        "api-key",
    ];
    let lower = line.to_ascii_lowercase();
    let Some((at, name)) = NAMES.iter().filter_map(|name| Some((lower.find(name)?, name))).min() else {
        return without_users(line);
    };
    // The rest, as it may go on in any form.
    let end = lower[at..].find(['=', ':']).map_or(at + name.len(), |sign| at + sign + 1);
    format!("{} ***", without_users(line[..end].trim_end()))
}

/// The text without the user and password of any URL in it.
pub fn without_users(text: &str) -> String {
    let mut parts = text.split("://");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|char: char| char.is_whitespace() || "/?#\"'<>,;)".contains(char)).unwrap_or(part.len());
        let (authority, rest) = part.split_at(end);
        let host = authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("***@{host}"));
        kept.extend(["://", &host, rest]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last line has no end of line, and gets one; an undo adds the lines of others again.
    #[test]
    fn an_added_line_of_others_keeps_its_secret() {
        let change = |before: &str, after: &str| FileChange {
            path: "/f".into(),
            before: Some(before.to_owned()),
            after: Some(after.to_owned()),
            original: None,
        };
        let grown = shown(&change("password: hunter2", "password: hunter2\nproxy: http://me:x@h\n"), true);
        assert!(!grown.contains("hunter2") && grown.contains("+proxy: http://me:x@h"), "{grown}");
        let restored = shown(&change("proxy: http://me:x@h\n", "proxy: http://me:hunter2@h\n"), false);
        assert!(!restored.contains("hunter2") && restored.contains("+proxy: http://***@h"), "{restored}");
    }

    #[test]
    fn secrets_of_others_are_left_out() {
        for (line, shown) in [
            ("  Authorization = [\"Basic dTpw\"]", "  Authorization = ***"),
            ("-password: hunter2", "-password: ***"),
            ("-header = {Authorization = [\"Basic dTpw\"]}", "-header = {Authorization = ***"),
            ("-  \"Basic dTpw\"", "-  \"Basic ***"),
            ("-a: {user: x, passwd: y}", "-a: {user: x, passwd: ***"),
            ("-X-Api-Key = [\"k\"]", "-X-Api-Key = ***"),
            (
                "Environment=HTTP_PROXY=http://me:hunter2@10.0.0.1:3128",
                "Environment=HTTP_PROXY=http://***@10.0.0.1:3128",
            ),
            ("server = \"https://harbor.example.com\"", "server = \"https://harbor.example.com\""),
            (" mail = \"http://a/b:c@d\"", " mail = \"http://a/b:c@d\""),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }

    #[test]
    fn the_user_of_a_url_is_taken_out() {
        for (text, expected) in [
            ("redis://:pass@redis:6379/0", "redis://***@redis:6379/0"),
            ("a=redis://u:p@h, b=https://harbor.example.com/x@y", "a=redis://***@h, b=https://harbor.example.com/x@y"),
            ("\"http://u:p@w@h\"\nhttp://h", "\"http://***@h\"\nhttp://h"),
            ("nothing :// here", "nothing :// here"),
            ("", ""),
        ] {
            assert_eq!(without_users(text), expected);
        }
    }
}
