//! The radar's sight as lines of `roadstead status`, from what `/status` shows.

use serde_json::Value;

/// All that is wrong, in lines that are painted so.
pub fn text(seen: &Value, painted: impl Fn(&str) -> String) -> String {
    lines(seen).iter().fold(String::new(), |text, line| text + "  " + &painted(line) + "\n")
}

/// So many connections go around: the subject and the verb.
pub fn going_around(connections: u64) -> String {
    if connections == 1 {
        "1 connection goes around".to_owned()
    } else {
        format!("{connections} connections go around")
    }
}

/// Nothing where nothing is wrong.
fn lines(seen: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(around @ 1..) = seen["connections"].as_u64() {
        let owners = seen["owners"].as_array().into_iter().flatten();
        let owners = owners.map(|owner| {
            let command = owner["command"].as_str().unwrap_or("unknown");
            format!("{command} (uid {}) {}", owner["uid"], owner["connections"])
        });
        let owners = owners.collect::<Vec<_>>().join(", ");
        lines.push(format!("bypass   {} the cap: {owners}", going_around(around)));
    }
    if let Some(excess @ 1..) = seen["excess_sockets"].as_u64() {
        let sockets = if excess == 1 { "socket" } else { "sockets" };
        lines.push(format!("audit    {excess} {sockets} beyond the slots: a defect, please report it"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_said_where_nothing_is_wrong() {
        assert!(lines(&Value::Null).is_empty());
        let well = json!({"connections": 0, "owners": [], "excess_sockets": 0});
        assert!(lines(&well).is_empty());
        let bad = json!({"connections": 3, "owners": [{"uid": 0, "connections": 3}], "excess_sockets": 1});
        assert_eq!(lines(&bad)[0], "bypass   3 connections go around the cap: unknown (uid 0) 3");
        assert!(lines(&bad)[1].contains("1 socket beyond"));
        let one = json!({"connections": 1, "owners": [{"uid": 7, "command": "ctr", "connections": 1}]});
        assert_eq!(lines(&one), ["bypass   1 connection goes around the cap: ctr (uid 7) 1"]);
    }
}
