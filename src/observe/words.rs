//! The observation as lines of `roadstead status`, from what `/status` shows.

use std::fmt::Write;

use serde_json::Value;

/// The slots that may not be used now, and why.
pub fn of_slots(registry: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let mut text = String::new();
    if let reserved @ 1.. = number(&registry["reserved"]) {
        let _ = writeln!(text, "           {reserved} reserved: another process holds them");
    }
    let lease = &registry["lease"];
    let (pool, in_force) = (number(&lease["pool"]), number(&lease["pool_in_force"]));
    if in_force < pool {
        let sign = registry["adapt"]["lowered_by"].as_str().filter(|sign| !sign.is_empty()).unwrap_or("not known");
        let sign = sign.replace('_', " ");
        let _ = writeln!(text, "           {in_force} of {pool} slots of all nodes in force (last sign: {sign})");
    }
    if let Some(granted) = lease["granted"].as_u64() {
        let (wished, held) = (number(&lease["wished"]), number(&lease["held"]));
        let until = lease["until_seconds"].as_f64();
        let until = until.map_or("no lease now".to_owned(), |left| format!("for {left:.0} s more"));
        let _ = writeln!(text, "           lease: {granted} lent, {wished} wished, {held} held, {until}");
        of_store(&mut text, lease);
    }
    text
}

/// The state of the store, where it does not lend as usual.
fn of_store(text: &mut String, lease: &Value) {
    if let Some(left) = lease["learning_seconds"].as_f64() {
        let _ = writeln!(text, "           the store lends nothing new for {left:.0} s");
    }
    match lease["unanswered"].as_u64() {
        Some(1) => *text += "           the store has not answered the last request\n",
        Some(unanswered @ 2..) => {
            let _ = writeln!(text, "           the store has not answered the last {unanswered} requests");
        }
        _ if lease["store_latency_seconds"].is_null() => *text += "           the store has not answered yet\n",
        _ => {}
    }
}

/// Nothing for a registry whose cap holds.
pub fn text(observed: &Value) -> String {
    let number = |key: &str| observed[key].as_u64().unwrap_or_default();
    let Some(requests) = observed["requests"].as_u64() else { return String::new() };
    let mut text = format!(
        "  observe  nothing is held; {} of {requests} requests would have waited\n           \
         with {} slots, at most {} busy at once, {} waiting\n",
        number("waited"),
        number("slots"),
        number("peak_busy"),
        number("peak_waiting"),
    );
    if let Some((half, most)) = observed["wait_p50_seconds"].as_f64().zip(observed["wait_max_seconds"].as_f64()) {
        let _ = writeln!(text, "           half of the waits up to {half:.1} s, the longest {most:.1} s");
    }
    if let refused @ 1.. = number("refused") {
        let _ = writeln!(text, "           {refused} would have been refused");
    }
    let signs = observed["signs"].as_object().into_iter().flatten();
    let signs: Vec<String> = signs.map(|(sign, count)| format!("{} {count}", sign.replace('_', " "))).collect();
    if !signs.is_empty() {
        let _ = writeln!(text, "           signs of overload: {}", signs.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slots_that_yield_on_all_nodes_are_told() {
        let mut registry = json!({"reserved": 0, "lease": {"pool": 60, "pool_in_force": 60}});
        assert_eq!(of_slots(&registry), "");
        registry["lease"]["pool_in_force"] = json!(17);
        (registry["adapt"], registry["reserved"]) = (json!({"lowered_by": "database_error"}), json!(2));
        let expected = "           2 reserved: another process holds them\n           \
                        17 of 60 slots of all nodes in force (last sign: database error)\n";
        assert_eq!(of_slots(&registry), expected);
    }

    #[test]
    fn a_lease_is_told_with_the_state_of_its_store() {
        let told = |more: Value| {
            let mut lease = json!({"granted": 20, "wished": 3, "held": 5, "until_seconds": 41.2, "unanswered": 0});
            lease.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of_slots(&json!({ "lease": lease }))
        };
        let lease = "           lease: 20 lent, 3 wished, 5 held, for 41 s more\n";
        let table = [
            (json!({"store_latency_seconds": 0.001}), ""),
            (json!({"store_latency_seconds": null}), "           the store has not answered yet\n"),
            (json!({"unanswered": 1}), "           the store has not answered the last request\n"),
            (
                json!({"unanswered": 7, "learning_seconds": 12.3, "store_latency_seconds": 0.001}),
                "           the store lends nothing new for 12 s\n           \
                            the store has not answered the last 7 requests\n",
            ),
        ];
        for (more, store) in table {
            assert_eq!(told(more), format!("{lease}{store}"));
        }
        assert!(told(json!({"until_seconds": null})).contains("5 held, no lease now\n"));
    }

    #[test]
    fn what_would_have_waited_is_told() {
        assert_eq!(text(&Value::Null), "");
        let mut observed = json!({
            "slots": 10, "requests": 300, "waited": 290, "peak_busy": 300, "peak_waiting": 290, "refused": 0,
            "wait_p50_seconds": 1.52, "wait_max_seconds": 3.04, "signs": {},
        });
        let first = "  observe  nothing is held; 290 of 300 requests would have waited\n           \
                     with 10 slots, at most 300 busy at once, 290 waiting\n";
        let waits = "           half of the waits up to 1.5 s, the longest 3.0 s\n";
        assert_eq!(text(&observed), format!("{first}{waits}"));
        observed["wait_p50_seconds"] = Value::Null;
        (observed["refused"], observed["signs"]) = (json!(2), json!({"database_error": 7, "failed_dial": 1}));
        let rest =
            "           2 would have been refused\n           signs of overload: database error 7, failed dial 1\n";
        assert_eq!(text(&observed), format!("{first}{rest}"));
    }
}
