//! What can be wrong with a configuration, in the words of those who write one.

use std::fmt;

use figment::error::{Actual, Kind};

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, with dots between levels.
    pub key: String,
    /// What is wrong: expected X, but found Y.
    pub message: String,
    /// The file or variable that the value comes from; `None` for what is not set anywhere.
    pub source: Option<String>,
}

const NOTHING_GIVEN: &str = "no configuration is given: use --config FILE or the variable SENDBIRD_BRIDGE_CONFIG; to look \
                             around without one, run: sendbird-bridge demo";

/// The key of a fault of the file as a whole.
const FILE: &str = "--config";

impl Fault {
    /// There is no file and no variable.
    pub(super) fn nothing_given() -> Self {
        Self::of_the_file(NOTHING_GIVEN.into())
    }

    /// The file itself can't be used. The message says which file, and is a whole sentence.
    pub(super) fn of_the_file(message: String) -> Self {
        Self { key: FILE.into(), message, source: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key == FILE {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.key, self.message)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, " (from {source})"))
    }
}

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.summary())]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    fn summary(&self) -> String {
        match self.0.as_slice() {
            [one] if one.key == FILE => one.message.clone(),
            [_] => "the configuration has 1 fault".to_owned(),
            several => format!("the configuration has {} faults", several.len()),
        }
    }

    /// Whether there is no configuration at all, neither a file nor a variable.
    pub fn is_nothing_given(&self) -> bool {
        self.0.iter().any(|fault| fault.message == NOTHING_GIVEN)
    }

    /// A line for each fault that the summary does not name itself.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().filter(|fault| fault.key != FILE).map(ToString::to_string).collect()
    }
}

/// What is wrong, without the value where that may be a secret.
pub(super) fn message(kind: &Kind, secret: bool) -> String {
    match kind {
        // A text in place of a table may be all that the table should have held.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
            if secret || in_words(expected) == "a table" =>
        {
            format!("expected {}, but found something else", in_words(expected))
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("expected {}, but found {}", in_words(expected), shown(found))
        }
        Kind::UnknownField(name, known) => match nearest(name, known) {
            Some(nearest) => format!("expected a known key, but found \"{name}\"; did you mean \"{nearest}\"?"),
            None => format!("expected a known key ({}), but found \"{name}\"", known.join(", ")),
        },
        Kind::UnknownVariant(name, known) => {
            let known: Vec<String> = known.iter().map(|known| format!("\"{known}\"")).collect();
            format!("expected one of {}, but found \"{name}\"", known.join(", "))
        }
        Kind::MissingField(name) => format!("expected the key \"{name}\", but found none"),
        other => other.to_string(),
    }
}

/// What a type is called by those who write configurations.
fn in_words(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, not negative",
        "a nonzero u32" | "NonZeroU32" => "a whole number, at least 1",
        "a boolean" => "true or false",
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// A value as it was written.
fn shown(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("\"{value}\""),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

/// The known word that a wrong one was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), *known));
    scored.min().filter(|(distance, known)| *distance <= known.len().div_ceil(3)).map(|(_, known)| known)
}
