//! A line of the log, as `tracing-subscriber` writes it, for a third of its instructions: one is written for each request.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
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
            PlainLine::Json => json(&mut line, event)?,
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

fn json(line: &mut String, event: &Event<'_>) -> fmt::Result {
    let metadata = event.metadata();
    line.push_str("{\"timestamp\":\"");
    SystemTime.format_time(&mut Writer::new(line))?;
    line.push_str("\",\"level\":\"");
    line.push_str(metadata.level().as_str());
    line.push_str("\",\"fields\":{");
    event.record(&mut JsonFields { line, is_first: true });
    line.push_str("},\"target\":\"");
    Escaped(line).write_str(metadata.target())?;
    line.push_str("\"}");
    Ok(())
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

struct JsonFields<'a> {
    line: &'a mut String,
    is_first: bool,
}

impl JsonFields<'_> {
    fn name(&mut self, field: &Field) {
        if !std::mem::take(&mut self.is_first) {
            self.line.push(',');
        }
        self.line.push('"');
        self.line.push_str(field.name());
        self.line.push_str("\":");
    }

    fn plain(&mut self, field: &Field, value: &dyn fmt::Display) {
        self.name(field);
        let _ = write!(self.line, "{value}");
    }

    fn quoted(&mut self, field: &Field, write: impl FnOnce(&mut Escaped<'_>) -> fmt::Result) {
        self.name(field);
        self.line.push('"');
        let _ = write(&mut Escaped(self.line));
        self.line.push('"');
    }
}

impl Visit for JsonFields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.quoted(field, |escaped| write!(escaped, "{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.quoted(field, |escaped| escaped.write_str(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.plain(field, &serde_json::json!(value));
    }
}

/// Text within quotes.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.bytes().position(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
            let (plain, from) = rest.split_at(at);
            self.0.push_str(plain);
            match from.as_bytes()[0] {
                b'"' => self.0.push_str("\\\""),
                b'\\' => self.0.push_str("\\\\"),
                b'\n' => self.0.push_str("\\n"),
                b'\r' => self.0.push_str("\\r"),
                b'\t' => self.0.push_str("\\t"),
                0x08 => self.0.push_str("\\b"),
                0x0c => self.0.push_str("\\f"),
                other => write!(self.0, "\\u{other:04x}")?,
            }
            rest = &from[1..];
        }
        self.0.push_str(rest);
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
