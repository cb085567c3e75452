//! YAML as a tree in which every key and value has its place.
//!
//! Keys that are given twice are kept, so that the reader can report the second one by its path.

use super::ConfigError;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Location, Spanned};
use std::fmt;

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) line: u64,
    /// From 1, in characters.
    pub(super) column: u64,
}

impl Place {
    /// The beginning of the file.
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line().max(1), column: location.column().max(1) }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What YAML can say.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A number that is a count or could be one.
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// One line of a table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) value: Node,
}

impl Value {
    /// For "expected text, found ...".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(given) => format!("`{given}`, which YAML reads as a truth value"),
            Self::Integer(given) => format!("the number {given}"),
            Self::Float(given) => format!("the number {given}"),
            Self::Text(given) => format!("`{given}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table of keys".to_owned(),
        }
    }
}

/// Reads the text as one YAML document.
pub(super) fn parse(file: &str, text: &str) -> Result<Node, ConfigError> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options).map(Node::from).map_err(
        |error| {
            let place = error.location().map_or(Place::START, Place::from);
            let (problem, hint) = syntax_problem(text, place, &error);
            ConfigError {
                file: file.to_owned(),
                line: place.line,
                column: place.column,
                key: String::new(),
                problem,
                hint,
            }
        },
    )
}

/// The parser's message without its own account of the place, and advice where the cause is plain.
fn syntax_problem(
    text: &str,
    place: Place,
    error: &serde_saphyr::Error,
) -> (String, Option<String>) {
    let error = error.without_snippet();
    match error {
        serde_saphyr::Error::MultipleDocuments { .. } => {
            return (
                "a second YAML document begins here".to_owned(),
                Some("the file is one document: remove the `---` or what follows".to_owned()),
            );
        }
        serde_saphyr::Error::MergeKeyNotAllowed { .. } => {
            return (
                "the merge key `<<` is not allowed".to_owned(),
                Some("write the keys out, or repeat a whole value by an anchor".to_owned()),
            );
        }
        // Only keys are asked for as text.
        serde_saphyr::Error::NullIntoString { .. } | serde_saphyr::Error::Unexpected { .. } => {
            return ("this cannot be a key".to_owned(), Some("write a plain word".to_owned()));
        }
        _ => {}
    }
    let message = error.to_string();
    let message = message.lines().next().unwrap_or_default();
    // " at line 3, column 5" is what the reader of this message is told already.
    let message = match message.find(" at line ") {
        Some(end) => &message[..end],
        None => message,
    };
    let line = text.lines().nth(place.line.saturating_sub(1) as usize).unwrap_or_default();
    let indent = &line[..line.len() - line.trim_start().len()];
    if indent.contains('\t') {
        return (
            "this line is indented with a tab".to_owned(),
            Some("indent with spaces: YAML does not allow tabs here".to_owned()),
        );
    }
    let misplaced = message.contains("not allowed in this context")
        || message.contains("did not find expected key");
    let hint = misplaced
        .then_some("look at the indentation, and for a missing quote, here and in the line before");
    (format!("this is not valid YAML: {message}"), hint.map(str::to_owned))
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { place: spanned.referenced.into(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, a truth value, a list or a table")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, given: bool) -> Result<Value, E> {
        Ok(Value::Bool(given))
    }

    fn visit_i64<E>(self, given: i64) -> Result<Value, E> {
        Ok(Value::Integer(given.into()))
    }

    fn visit_u64<E>(self, given: u64) -> Result<Value, E> {
        Ok(Value::Integer(given.into()))
    }

    fn visit_i128<E>(self, given: i128) -> Result<Value, E> {
        Ok(Value::Integer(given))
    }

    fn visit_f64<E>(self, given: f64) -> Result<Value, E> {
        Ok(Value::Float(given))
    }

    fn visit_str<E>(self, given: &str) -> Result<Value, E> {
        Ok(Value::Text(given.to_owned()))
    }

    fn visit_string<E>(self, given: String) -> Result<Value, E> {
        Ok(Value::Text(given))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut table = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value = access.next_value::<Spanned<Value>>()?;
            table.push(Entry { key: key.value, place: key.referenced.into(), value: value.into() });
        }
        Ok(Value::Table(table))
    }
}
