//! Chat templates: the Jinja text by which a model was taught to see a conversation.
//!
//! The environment is the one that the `transformers` library documents: block tags take their
//! line end and their indentation with them, loops may break, and templates may call
//! `raise_exception`, `strftime_now` and the filter `tojson`, which writes plain JSON, not escaped
//! for HTML. Python's string, list and dict methods work on values.
//!
//! A template comes with a model file and is not trusted: instructions, recursion and output are
//! limited. A string that a template doubles over and over is not, as the engine has no hook
//! there.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value};

use super::strftime::strftime;
use super::{Error, Result};

/// Instructions that one rendering may take. Templates take some dozens per message.
const MAX_INSTRUCTIONS: u64 = 5_000_000;

/// Bytes that a template may write beyond eight times what the messages hold.
const MAX_EXTRA_OUTPUT_BYTES: usize = 16 << 20;

const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template is told besides the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RenderOptions<'a> {
    /// End with the beginning of an assistant's message, for the model to go on.
    pub add_generation_prompt: bool,
    /// Text of the beginning token, `bos_token` in the template. Undefined if none.
    pub bos_token: Option<&'a str>,
    /// Text of the end token, `eos_token` in the template. Undefined if none.
    pub eos_token: Option<&'a str>,
}

/// A parsed chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Parses a template. `strftime_now` will give the time of each rendering, in UTC.
    ///
    /// # Errors
    ///
    /// [`Error::TemplateSyntax`].
    pub fn new(source: &str) -> Result<Self> {
        Self::with_clock(source, || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_secs())
        })
    }

    /// Parses a template that sees the time `clock` gives, in seconds since 1970 (UTC).
    ///
    /// # Errors
    ///
    /// [`Error::TemplateSyntax`].
    pub fn with_clock(
        source: &str,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(Error::TemplateSyntax)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(MAX_INSTRUCTIONS));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| {
            let invalid = |directive| {
                let text = format!("strftime_now: unknown directive `%{directive}`");
                minijinja::Error::new(ErrorKind::InvalidOperation, text)
            };
            strftime(format, clock()).map_err(invalid)
        });
        environment.add_template_owned(NAME, source.to_owned()).map_err(Error::TemplateSyntax)?;
        Ok(Self { environment })
    }

    /// The text of a conversation. It already holds the tokens that begin a text, where the model
    /// wants them: encode it with `parse_special` and without `add_special`.
    ///
    /// # Errors
    ///
    /// [`Error::TemplateRender`] where the template raises an exception, as many do for an order
    /// of roles that they do not know, fails, or takes more than its limits.
    pub fn render(&self, messages: &[Message], options: RenderOptions<'_>) -> Result<String> {
        let text_bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut output = Limited {
            bytes: Vec::new(),
            max_bytes: text_bytes.saturating_mul(8).saturating_add(MAX_EXTRA_OUTPUT_BYTES),
        };
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                Value::from_pairs([
                    ("role", Value::from(message.role.as_str())),
                    ("content", Value::from(message.content.as_str())),
                ])
            })
            .collect();
        // Absent tools and documents are none, not undefined: templates tell the two apart.
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
        ];
        let tokens = [("bos_token", options.bos_token), ("eos_token", options.eos_token)];
        for (name, token) in tokens {
            variables.extend(token.map(|token| (name, Value::from(token))));
        }
        let template = self.environment.get_template(NAME).map_err(Error::TemplateRender)?;
        template
            .render_captured_to(Value::from_pairs(variables), &mut output)
            .map_err(Error::TemplateRender)?;
        String::from_utf8(output.bytes).map_err(|source| {
            let error = minijinja::Error::new(ErrorKind::WriteFailure, "output is not UTF-8");
            Error::TemplateRender(error.with_source(source))
        })
    }
}

/// Output that may not grow without end.
struct Limited {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max_bytes - self.bytes.len() {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The filter `tojson` as Python's `json.dumps` with `ensure_ascii=False`. The arguments
/// `ensure_ascii`, `separators` and `sort_keys` are not known and thus errors.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(value, indent, 0, &mut text)?;
    // A safe string is one that no auto-escaping changes; there is none here.
    Ok(Value::from(text))
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), minijinja::Error> {
    let invalid = |text: String| minijinja::Error::new(ErrorKind::BadSerialization, text);
    // The engine's own recursion limit does not cover a value nested in itself by a loop.
    if depth > 100 {
        return Err(invalid("value is nested too deeply for JSON".to_owned()));
    }
    let open = |out: &mut String, first: bool, depth: usize| match indent {
        Some(indent) => {
            out.push_str(if first { "\n" } else { ",\n" });
            out.push_str(&" ".repeat(indent.min(16) * depth));
        }
        None if !first => out.push_str(", "),
        None => {}
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut num_items = 0_usize;
            for item in value.try_iter()? {
                open(out, num_items == 0, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
                num_items += 1;
            }
            if num_items > 0 {
                close(indent, depth, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut num_items = 0_usize;
            for key in value.try_iter()? {
                open(out, num_items == 0, depth + 1);
                write_json_string(&key.to_string(), out);
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
                num_items += 1;
            }
            if num_items > 0 {
                close(indent, depth, out);
            }
            out.push('}');
        }
        kind => return Err(invalid(format!("{kind} cannot be written as JSON"))),
    }
    Ok(())
}

fn close(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(indent) = indent {
        out.push('\n');
        out.push_str(&" ".repeat(indent.min(16) * depth));
    }
}

fn write_json_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

#[cfg(test)]
mod tests;
