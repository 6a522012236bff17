//! `roadstead man`: one manual page for all commands, out of what `--help` says.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;

pub fn page(mut command: Command) -> io::Result<Vec<u8>> {
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    command.build();
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        section(&mut page, command)?;
    }
    writeln!(page, ".SH NOTES\n.nf\n{}\n.fi", notes.replace('-', "\\-"))?;
    Ok(page)
}

/// One command: how it is called, what it does, and what only it takes.
fn section(page: &mut Vec<u8>, command: &Command) -> io::Result<()> {
    let own = |argument: &&clap::Arg| !argument.is_global_set() && !argument.is_hide_set();
    let hidden = |name: &str| ["help", "version"].contains(&name);
    let own: Vec<_> = command.get_arguments().filter(own).filter(|own| !hidden(own.get_id().as_str())).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let places = own.iter().filter(|argument| argument.is_positional());
    let places = places.fold(String::new(), |places, argument| places + &format!(" \\fI{}\\fR", shown(argument)));
    writeln!(page, ".SS \"{}{places}\"\n{about}.", command.get_name())?;
    for argument in own.iter().filter(|argument| !argument.is_positional()) {
        let value =
            if argument.get_action().takes_values() { format!(" \\fI{}\\fR", shown(argument)) } else { String::new() };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(page, ".TP\n\\fB\\-\\-{}\\fR{value}\n{help}", argument.get_long().unwrap_or_default())?;
    }
    Ok(())
}

/// The placeholder for the value of an argument.
fn shown(argument: &clap::Arg) -> String {
    argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect()
}
