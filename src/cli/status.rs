//! `roadstead status`: the live picture of a running sidecar, as text that fits 80 columns.
//!
//! One pure function turns `/status` into text. Colours only repeat what the words say.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::explain::words::{limit, number, plain, span};

/// Columns that a line may take.
const WIDTH: usize = 80;
/// Cells of the bar of slots, at most.
const BAR: usize = 40;
/// Clients that are named for each registry.
const MOST_CLIENTS: usize = 8;
/// Lines of what is wrong with the config, at most.
const MOST_PROBLEM_LINES: usize = 6;
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const BLUE: Style = AnsiColor::Blue.on_default();
const MAGENTA: Style = AnsiColor::Magenta.on_default();
/// The states of a connection, each with its letter in the bar, its word and its colour.
const STATES: [(&str, char, &str, Style); 4] = [
    ("active", '#', "active", GREEN),
    ("connecting", '+', "dialling", YELLOW),
    ("idle", '-', "idle", BLUE),
    ("closing", 'x', "closing", MAGENTA),
];

/// The text in a colour; the picture is stripped of colours where they are not wanted.
fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The room in a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub columns: usize,
    pub rows: usize,
}

/// The picture that `/status` gives; what it lacks counts as nothing.
pub fn render(status: &Value) -> String {
    let mut text = head(status);
    for (_, block) in blocks(status) {
        text += &block;
    }
    text + &foot(status)
}

/// The same for a window of this size, where what is above its upper end cannot be seen: the busiest registries first, as
/// many as fit, and no line longer than the window is wide.
pub fn render_in(status: &Value, window: Window) -> String {
    // The last line stays free for the cursor.
    let rows = window.rows.saturating_sub(1);
    let whole = render(status);
    let text = if whole.lines().count() <= rows { whole } else { the_busiest(status, rows) };
    text.lines().take(rows).map(|line| cut(line, window.columns) + "\n").collect()
}

fn the_busiest(status: &Value, rows: usize) -> String {
    let (mut text, foot) = (head(status), foot(status));
    let mut blocks = blocks(status);
    blocks.sort_by_key(|(busy, _)| std::cmp::Reverse(*busy));
    // Two lines tell how many more there are.
    let mut left = rows.saturating_sub(text.lines().count() + foot.lines().count() + 2);
    let mut shown = 0;
    for (_, block) in &blocks {
        let lines = block.lines().count();
        if lines > left && shown > 0 {
            break;
        }
        // The first is shown as far as it goes.
        text.extend(block.lines().take(left).flat_map(|line| [line, "\n"]));
        left = left.saturating_sub(lines);
        shown += 1;
    }
    let more = match blocks.len() - shown {
        0 => "...".to_owned(),
        1 => "... 1 more registry".to_owned(),
        more => format!("... {more} more registries"),
    };
    let _ = writeln!(text, "\n{}", painted(DIM, &more));
    text + &foot
}

/// A line, cut to these columns; colours take no room.
fn cut(line: &str, columns: usize) -> String {
    let (mut kept, mut room, mut escape) = (String::new(), columns, false);
    for char in line.chars() {
        escape |= char == '\x1b';
        if escape {
            escape = char != 'm';
        } else if room == 0 {
            continue;
        } else {
            room -= 1;
        }
        kept.push(char);
    }
    kept
}

fn head(status: &Value) -> String {
    let mut text = String::new();
    let version = plain(status["version"].as_str().unwrap_or("?"), 20);
    let uptime = span(status["uptime_seconds"].as_f64().unwrap_or(0.0));
    let clients = number(&status["clients"]);
    let _ = write!(text, "{} {version}, up {uptime}, {clients} client connections", painted(BOLD, "roadstead"));
    if status["draining"] == true {
        let _ = write!(text, ", {}", painted(YELLOW, "draining"));
    }
    text.push('\n');
    problem(&mut text, &status["config"]);
    text
}

/// The problem of the current config file, if it was refused.
fn problem(text: &mut String, config: &Value) {
    let Some(problem) = config["problem"].as_str() else { return };
    let age = span(config["problem_age_seconds"].as_f64().unwrap_or(0.0));
    let told = format!("the config file was refused {age} ago; the config before it stays in force:");
    let _ = writeln!(text, "{}", painted(RED, &told));
    let lines: Vec<String> = problem.lines().flat_map(|line| folded(line, WIDTH - 2)).collect();
    for line in lines.iter().take(MOST_PROBLEM_LINES) {
        let _ = writeln!(text, "  {line}");
    }
    if lines.len() > MOST_PROBLEM_LINES {
        let _ = writeln!(text, "  {}", painted(DIM, "and more: `roadstead check` prints all"));
    }
}

/// A line as several that are no longer than this: between words, where there is a place.
fn folded(line: &str, columns: usize) -> Vec<String> {
    let mut rest: Vec<char> = plain(line, usize::MAX - 1).chars().collect();
    let mut lines = Vec::new();
    while rest.len() > columns {
        let space = rest[..columns].iter().rposition(|char| *char == ' ').map_or(columns, |space| space + 1);
        let after = rest.split_off(space);
        lines.push(std::mem::replace(&mut rest, after).into_iter().collect());
    }
    lines.push(rest.into_iter().collect());
    lines
}

/// Each registry, with how busy it is.
fn blocks(status: &Value) -> Vec<((usize, usize), String)> {
    let registries = status["registries"].as_object().into_iter().flatten();
    let blocks = registries.map(|(name, registry)| {
        let mut text = String::from("\n");
        picture(&mut text, name, registry);
        ((number(&registry["waiting"]), number(&registry["open"])), text)
    });
    blocks.collect()
}

fn foot(status: &Value) -> String {
    let others = &status["other_hosts"];
    let line = format!("other hosts: {} open, {} active", number(&others["open"]), number(&others["active"]));
    format!("\n{}\n", painted(DIM, &line))
}

fn picture(text: &mut String, name: &str, registry: &Value) {
    let (slots, open) = (number(&registry["slots"]), number(&registry["open"]));
    let condition = condition(registry);
    let _ = writeln!(text, "{}  {condition}", painted(BOLD, &plain(name, 40)));
    let _ = writeln!(text, "  slots    {} {open} of {slots}", bar(registry));
    *text += &crate::observe::words::of_slots(registry);
    let states = STATES.map(|(key, letter, word, colour)| {
        format!("{} {word} {}", painted(colour, &letter.to_string()), number(&registry[key]))
    });
    let _ = writeln!(text, "           {}", states.join("   "));
    let waiting = number(&registry["waiting"]);
    let oldest = match waiting {
        0 => String::new(),
        _ => format!(", the oldest for {}", span(registry["oldest_wait_seconds"].as_f64().unwrap_or(0.0))),
    };
    let _ = writeln!(text, "  waiting  {waiting}{oldest}");
    *text += &crate::observe::words::text(&registry["observe"]);
    *text += &crate::bypass::words::text(&registry["bypass"], |line| painted(RED, &plain(line, WIDTH - 2)));
    let classes = registry["classes"].as_object().into_iter().flatten();
    let classes: Vec<Row> = classes.map(|(class, counts)| Row::new(&[class], counts)).collect();
    table(text, &["class"], &classes);
    let clients = registry["clients"].as_array().map_or(&[][..], Vec::as_slice);
    let named = clients.iter().take(MOST_CLIENTS);
    let rows: Vec<Row> =
        named.map(|client| Row::new(&[word(client, "client"), word(client, "class")], client)).collect();
    table(text, &["client", "class"], &rows);
    let left_out = clients.len() - rows.len() + number(&registry["clients_left_out"]);
    if left_out > 0 {
        let _ = writeln!(text, "  {}", painted(DIM, &format!("and {left_out} more clients")));
    }
}

/// The reason why requests wait, in words.
fn condition(registry: &Value) -> String {
    if registry["lease"]["paused"] == true {
        return painted(YELLOW, "paused on all nodes: no request is admitted");
    }
    if registry["paused"] == true {
        return painted(YELLOW, "paused: no request is admitted");
    }
    match registry["limited_by"].as_str() {
        Some(limited_by) => painted(if limited_by == "unreachable" { RED } else { YELLOW }, &limit(registry)),
        None if registry["mode"] == "observe" => painted(YELLOW, "observed: nothing is held"),
        None => painted(GREEN, "open"),
    }
}

/// The slots as a strip: one cell each, or as many slots to a cell as make it fit.
fn bar(registry: &Value) -> String {
    let all = number(&registry["slots"]).max(number(&registry["open"])).max(1);
    let cells = all.min(BAR);
    // The cell in which so many slots end, rounded up: every state that is not empty is visible.
    let cell_of = |slots: usize| (slots * cells).div_ceil(all);
    let (mut bar, mut before, mut slots) = (String::from("["), 0, 0);
    for (key, letter, _, colour) in STATES {
        slots += number(&registry[key]);
        let end = cell_of(slots).max(before);
        bar += &painted(colour, &letter.to_string().repeat(end - before));
        before = end;
    }
    bar += &painted(DIM, &".".repeat(cells - before.min(cells)));
    bar + "]"
}

/// A line of a table: names, then the numbers of waiting requests and of holders.
struct Row {
    names: Vec<String>,
    waiting: usize,
    holding: usize,
}

impl Row {
    fn new(names: &[&str], counts: &Value) -> Row {
        let names = names.iter().map(|name| plain(name, 28)).collect();
        Row { names, waiting: number(&counts["waiting"]), holding: number(&counts["holding"]) }
    }
}

fn table(text: &mut String, titles: &[&str], rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let line = |names: &mut dyn Iterator<Item = &str>, waiting: &str, holding: &str| {
        let names = names.fold(String::new(), |names, name| names + &format!("{name:<29}"));
        format!("  {names:<58}{waiting:>8}{holding:>9}")
    };
    let title = line(&mut titles.iter().copied(), "waiting", "holding");
    debug_assert!(title.len() <= WIDTH);
    let _ = writeln!(text, "{}", painted(DIM, &title));
    for row in rows {
        let (waiting, holding) = (row.waiting.to_string(), row.holding.to_string());
        let _ = writeln!(text, "{}", line(&mut row.names.iter().map(String::as_str), &waiting, &holding));
    }
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bare(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn busy() -> Value {
        json!({
            "version": "0.1.0", "uptime_seconds": 4000, "draining": false, "clients": 31,
            "registries": {"harbor": {
                "slots": 10, "open": 9, "connecting": 1, "active": 6, "idle": 1, "closing": 1, "waiting": 24,
                "oldest_wait_seconds": 12.34, "paused": false, "limited_by": "slots",
                "classes": {"default": {"waiting": 20, "holding": 6}, "interactive": {"waiting": 4, "holding": 2}},
                "clients": [
                    {"client": "dfdaemon", "class": "default", "waiting": 20, "holding": 6},
                    {"client": "kubelet", "class": "interactive", "waiting": 4, "holding": 2},
                ],
                "clients_left_out": 3,
            }},
            "other_hosts": {"open": 2, "active": 1},
        })
    }

    #[test]
    fn a_busy_registry_is_told_as_a_table() {
        let expected = "\
roadstead 0.1.0, up 66 min, 31 client connections

harbor  no slot is free
  slots    [######+-x.] 9 of 10
           # active 6   + dialling 1   - idle 1   x closing 1
  waiting  24, the oldest for 12 s
  class                                                      waiting  holding
  default                                                         20        6
  interactive                                                      4        2
  client                       class                         waiting  holding
  dfdaemon                     default                            20        6
  kubelet                      interactive                         4        2
  and 3 more clients

other hosts: 2 open, 1 active
";
        assert_eq!(bare(&render(&busy())), expected);
    }

    #[test]
    fn slots_that_are_held_elsewhere_are_told() {
        let mut status = busy();
        status["registries"]["harbor"]["reserved"] = json!(1);
        assert!(bare(&render(&status)).contains("9 of 10\n           1 reserved: another process holds them\n"));
        status["registries"]["harbor"]["lease"] =
            json!({"granted": 8, "wished": 12, "held": 6, "until_seconds": 41.2, "pool": 60, "pool_in_force": 60});
        assert!(bare(&render(&status)).contains("           lease: 8 lent, 12 wished, 6 held, for 41 s more\n"));
    }

    #[test]
    fn colours_change_no_word() {
        let coloured = render(&busy());
        assert!(coloured.contains("\x1b[33mno slot is free\x1b[0m"), "{coloured:?}");
        assert!(!bare(&coloured).contains('\x1b') && bare(&coloured).contains("  no slot is free\n"), "{coloured:?}");
    }

    #[test]
    fn what_keeps_those_who_wait_is_told_in_words() {
        let table = [
            (json!({"paused": true, "limited_by": "paused"}), "paused: no request is admitted"),
            (json!({"limited_by": "rate_per_second"}), "rate_per_second lets no connection open yet"),
            (json!({"limited_by": "max_connecting"}), "max_connecting dials are under way"),
            (json!({"limited_by": "unreachable"}), "the registry takes no connections"),
            (json!({"mode": "observe"}), "observed: nothing is held"),
            (json!({}), "open"),
        ];
        for (registry, words) in table {
            assert_eq!(bare(&condition(&registry)), words);
        }
    }

    #[test]
    fn no_line_is_longer_than_80_columns() {
        let mut status = busy();
        let registry = &mut status["registries"]["harbor"];
        registry["slots"] = json!(5000);
        registry["active"] = json!(4000);
        registry["open"] = json!(4003);
        registry["reserved"] = json!(997);
        registry["waiting"] = json!(100_000);
        registry["clients"][0]["client"] = json!("a".repeat(64));
        registry["clients"][1]["class"] = json!("b".repeat(64));
        status["registries"][&"c".repeat(100)] = registry.clone();
        let text = bare(&render(&status));
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(text.contains("[################################+.......] 4003 of 5000\n"), "{text}");
    }

    #[test]
    fn a_config_that_does_not_hold_is_told_at_the_top() {
        let mut status = busy();
        let long = format!("/etc/roadstead/sidecar.toml:7: registries.harbor.depht: {}", "unknown key ".repeat(8));
        status["config"] = json!({"problem": format!("{long}\nsecond\x1b[2J"), "problem_age_seconds": 300});
        let text = bare(&render(&status));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "the config file was refused 5 min ago; the config before it stays in force:");
        assert!(lines[2].starts_with("  /etc/roadstead/sidecar.toml:7: registries.harbor.depht: unknown"), "{text}");
        assert_eq!((lines[4], lines[5]), ("  second?[2J", ""));
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(folded("aa bb cc", 5), ["aa ", "bb cc"]);
        assert_eq!(folded("aaaaaaa b", 5), ["aaaaa", "aa b"]);
        status["config"]["problem"] = json!("line\n".repeat(40));
        let text = bare(&render(&status));
        assert!(text.contains("  and more: `roadstead check` prints all\n"), "{text}");
        assert_eq!(text.matches("  line\n").count(), MOST_PROBLEM_LINES);
    }

    /// Twenty registries in windows of all sizes: what is seen is the busiest ones, whole as far as the window goes.
    #[test]
    fn a_picture_for_a_window_fits_it_with_the_busiest_first() {
        let mut status = busy();
        for number in 0..20 {
            let mut quiet = status["registries"]["harbor"].clone();
            quiet["waiting"] = json!(number);
            quiet["clients"] = json!([]);
            status["registries"][format!("a{number:02}")] = quiet;
        }
        for (columns, rows) in [(80, 24), (40, 60), (200, 500), (80, 3), (1, 1)] {
            let text = render_in(&status, Window { columns, rows });
            assert!(text.lines().count() < rows.max(2), "{rows}: {text}");
            assert!(bare(&text).lines().all(|line| line.chars().count() <= columns), "{columns}: {text}");
            assert_eq!(text.matches("\x1b[0m").count() * 2, text.matches('\x1b').count(), "no colour runs on");
        }
        let window = |rows| bare(&render_in(&status, Window { columns: 80, rows }));
        let shown = |text: &str| -> Vec<String> {
            let names = text.lines().filter_map(|line| line.split_once("  no slot is free"));
            names.map(|(name, _)| name.to_owned()).collect()
        };
        assert_eq!(shown(&window(24)), ["harbor"], "24 wait there");
        assert_eq!(shown(&window(40)), ["harbor", "a19", "a18"]);
        assert!(window(40).contains("\n... 18 more registries\n\nother hosts: "), "{}", window(40));
        assert_eq!(shown(&window(500)).len(), 21);
        assert!(!window(500).contains("..."));
    }

    #[test]
    fn no_name_of_a_client_reaches_the_terminal_as_more_than_text() {
        let table = [
            ("kubelet", "kubelet"),
            ("\x1b]0;owned\x07", "?]0;owned?"),
            ("a\u{202e}b", "a?b"),
            ("\u{9b}31m", "?31m"),
            ("zweigstelle-münchen", "zweigstelle-münchen"),
            ("桟橋", "??"),
        ];
        for (name, shown) in table {
            assert_eq!(plain(name, 28), shown);
        }
    }

    #[test]
    fn an_answer_of_another_kind_is_no_reason_to_panic() {
        for status in [json!(null), json!([]), json!({"registries": 3}), json!({"registries": {"a": null}})] {
            assert!(bare(&render(&status)).starts_with("roadstead ?"));
        }
    }
}
