//! A line of the log, as `tracing-subscriber` writes it, for a third of its instructions: one is written for each request.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_serde::fields::AsMap;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Room for the line of a request.
const USUAL: usize = 1024;

/// Writes each event as one line.
pub enum PlainLine {
    /// Without colours, and without the module that it comes from.
    Text,
    Json,
}

impl<S, N> FormatEvent<S, N> for PlainLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::with_capacity(USUAL);
        match self {
            PlainLine::Text => text(&mut line, event)?,
            PlainLine::Json => line = json(line, event)?,
        }
        line.push('\n');
        writer.write_str(&line)
    }
}

fn text(line: &mut String, event: &Event<'_>) -> fmt::Result {
    SystemTime.format_time(&mut Writer::new(line))?;
    write!(line, " {:>5}", event.metadata().level().as_str())?;
    event.record(&mut TextFields(line));
    Ok(())
}

fn json(mut line: String, event: &Event<'_>) -> Result<String, fmt::Error> {
    let metadata = event.metadata();
    line.push_str("{\"timestamp\":\"");
    SystemTime.format_time(&mut Writer::new(&mut line))?;
    write!(line, "\",\"level\":\"{}\",\"fields\":", metadata.level())?;
    let mut line = line.into_bytes();
    serde_json::to_writer(&mut line, &event.field_map()).map_err(|_| fmt::Error)?;
    line.extend_from_slice(b",\"target\":");
    serde_json::to_writer(&mut line, metadata.target()).map_err(|_| fmt::Error)?;
    line.push(b'}');
    String::from_utf8(line).map_err(|_| fmt::Error)
}

struct TextFields<'a>(&'a mut String);

impl Visit for TextFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push(' ');
        if field.name() == "message" {
            let _ = write!(Harmless(self.0), "{value:?}");
            return;
        }
        self.0.push_str(field.name());
        self.0.push('=');
        let _ = write!(self.0, "{value:?}");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }
}

/// Text that moves no terminal.
struct Harmless<'a>(&'a mut String);

impl Write for Harmless<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            match char {
                '\x1b' | '\x07' | '\x08' | '\x0c' | '\x7f' => write!(self.0, "\\x{:02x}", char as u32)?,
                '\u{80}'..='\u{9f}' => write!(self.0, "\\u{{{:x}}}", char as u32)?,
                _ => self.0.push(char),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::layer;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Without the time, which is another one for each.
    fn told(lines: &Lines) -> Vec<String> {
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let rest =
            |line: &str| line.split_once("Z\"").or(line.split_once("Z ")).map_or(line.into(), |(_, rest)| rest.into());
        text.lines().map(rest).collect()
    }

    #[test]
    fn a_line_is_the_one_that_the_library_writes() {
        let lines = [(); 4].map(|()| Lines::default());
        let [our_json, their_json, our_text, their_text] = lines.clone().map(|lines| move || lines.clone());
        let subscriber = tracing_subscriber::registry()
            .with(layer().event_format(PlainLine::Json).with_writer(our_json))
            .with(layer().json().with_writer(their_json))
            .with(layer().event_format(PlainLine::Text).with_writer(our_text))
            .with(layer().with_ansi(false).with_target(false).with_writer(their_text));
        tracing::subscriber::with_default(subscriber, || {
            for text in ["", "plain", "\"quoted\" \\ back", "a\nb\r\tc\u{8}\u{c}\u{1}\u{1f}\u{7f}", "Größe 😀", "\\\""]
            {
                tracing::info!(text, shown = %text, debugged = ?text, "what {text} says");
            }
            for number in [0.0, -0.0, 0.001, 5030.144, 1e15, 1e16, 1e300, 1.0 / 3.0, f64::NAN, f64::INFINITY] {
                tracing::warn!(number, small = 7_u8, negative = -5_i64, is_true = true, huge = u128::MAX);
            }
            let nothing: Option<f64> = None;
            tracing::error!(nothing, some = Some(1.5), error = %io::Error::other("\"x\""), target = "t");
            tracing::info!(target: "log\"ged", "another target");
        });
        let [our_json, their_json, our_text, their_text] = lines.map(|lines| told(&lines));
        assert_eq!((our_json.len(), our_text.len()), (18, 20), "one text has two ends of lines in it");
        assert_eq!(our_json, their_json);
        assert_eq!(our_text, their_text);
    }
}
