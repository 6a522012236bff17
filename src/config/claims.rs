//! Hosts, names and addresses that only one table may have, and the allowed names of tables.

use std::fmt::Display;

use super::reader::Section;

/// The most of anything that is counted. More is a slip of the pen, and would not fit a machine.
pub(super) const MAX_COUNT: u32 = 1_000_000;

/// Longest name of a registry or a class, in bytes.
const MAX_NAME: usize = 63;

/// Things that tables have claimed so far, each with the path of its table.
pub(super) struct Claims<T>(Vec<(T, String)>);

impl<T> Default for Claims<T> {
    fn default() -> Claims<T> {
        Claims(Vec::new())
    }
}

impl<T: PartialEq + Display> Claims<T> {
    /// Gives a thing to a table, unless another table has it.
    pub(super) fn claim(&mut self, table: &str, thing: T) -> Result<(), String> {
        if let Some((_, owner)) = self.0.iter().find(|(claimed, owner)| *claimed == thing && owner != table) {
            return Err(format!("{thing} is claimed by {owner} and by {table}: remove it from one of the two"));
        }
        self.0.push((thing, table.to_owned()));
        Ok(())
    }
}

/// Notes the name of a table that metrics and messages could not carry.
pub(super) fn check_name(section: &mut Section<'_>, what: &str, name: &str) {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        let reason = format!(
            "the name of a {what} has 1 to {MAX_NAME} characters, each a lower-case letter, a digit, '_' or '-'"
        );
        section.problem("", reason);
    }
}
