//! Words for terminals: spans of time, names that others chose, and what limits a registry.

use serde_json::Value;

/// Clients choose their names: what would steer the terminal, or take more than a column, is a question mark.
pub fn plain(name: &str, most: usize) -> String {
    let fits = |char: char| {
        char.is_ascii_graphic() || char == ' ' || ('\u{a1}'..'\u{300}').contains(&char) && char != '\u{ad}'
    };
    let mut plain: String = name.chars().map(|char| if fits(char) { char } else { '?' }).take(most + 1).collect();
    if plain.chars().count() > most {
        plain = plain.chars().take(most - 1).chain(['~']).collect();
    }
    plain
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "spans are positive and short")]
pub fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min", whole / 60),
        7200..172_800 => format!("{} h", whole / 3600),
        _ => format!("{} days", whole / 86_400),
    }
}

pub fn number(value: &Value) -> usize {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}

/// A count of things.
pub fn count(number: usize, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

/// The limit of a registry, by `limited_by` of `/queue`.
pub fn limit(registry: &Value) -> String {
    match registry["limited_by"].as_str() {
        Some("slots") => "no slot is free".to_owned(),
        Some("distress") => "the registry showed signs of overload".to_owned(),
        Some("rate_per_second") => "rate_per_second lets no connection open yet".to_owned(),
        Some("max_connecting") => "max_connecting dials are under way".to_owned(),
        Some("paused") => "paused by the operator".to_owned(),
        Some("fleet_paused") => "paused on all nodes by the operator".to_owned(),
        Some("unreachable") => "the registry takes no connections".to_owned(),
        Some(other) => plain(other, 30),
        None => "the next is admitted at once".to_owned(),
    }
}

/// The slots of a registry in `/status`: `8 of 8 slots open`.
pub fn slots(status: &Value) -> String {
    let open = number(&status["open"]);
    status["slots"].as_u64().map_or_else(|| format!("{open} open"), |slots| format!("{open} of {slots} slots open"))
}
