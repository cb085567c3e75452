//! Tables that account for every one of their keys.
//!
//! A [`Table`] hands out fields by name and remembers which names were asked for; what is left at
//! [`Table::finish`] is unknown. So a key can be neither forgotten nor ignored: to know a key is to
//! read it, or to refuse it by [`Table::unsupported`].

use super::ConfigError;
use super::node::{Entry, Node, Place, Value};
use super::values::{Refusal, closest, duration, list_of};
use std::str::FromStr;
use std::time::Duration;

/// Collects what is wrong.
pub(super) struct Errors {
    file: String,
    pub(super) list: Vec<ConfigError>,
}

impl Errors {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), list: Vec::new() }
    }

    pub(super) fn add(&mut self, place: Place, key: &str, refusal: Refusal) {
        self.list.push(ConfigError {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            key: key.to_owned(),
            problem: refusal.problem,
            hint: refusal.hint,
        });
    }
}

/// A key with its value.
#[derive(Clone)]
pub(super) struct Field<'n> {
    /// The key itself.
    pub(super) name: &'n str,
    /// The whole path, `environments.main.type`.
    pub(super) path: String,
    key_place: Place,
    node: &'n Node,
}

impl<'n> Field<'n> {
    /// Where a complaint about the value points: at the value, or at the key if there is none.
    fn value_place(&self) -> Place {
        match self.node.value {
            Value::Null => self.key_place,
            _ => self.node.place,
        }
    }

    /// Complains about the value.
    pub(super) fn refuse(&self, errors: &mut Errors, refusal: Refusal) {
        errors.add(self.value_place(), &self.path, refusal);
    }

    /// Complains about the key.
    pub(super) fn refuse_key(&self, errors: &mut Errors, refusal: Refusal) {
        errors.add(self.key_place, &self.path, refusal);
    }

    fn refuse_kind(&self, errors: &mut Errors, expected: &str, hint: Option<&str>) {
        let problem = format!("expected {expected}, found {}", self.node.value.describe());
        self.refuse(errors, Refusal { problem, hint: hint.map(str::to_owned) });
    }

    /// The key as a name of type `T`.
    pub(super) fn key_as<T>(&self, errors: &mut Errors) -> Option<T>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        match self.name.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.refuse_key(errors, Refusal::new(error.to_string()));
                None
            }
        }
    }

    /// The value as text that is not empty.
    pub(super) fn text(&self, errors: &mut Errors) -> Option<&'n str> {
        match &self.node.value {
            Value::Text(text) if !text.is_empty() => Some(text),
            Value::Text(_) => {
                self.refuse(errors, Refusal::new("must not be empty"));
                None
            }
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                self.refuse_kind(errors, "text", Some("put it in quotes"));
                None
            }
            _ => {
                self.refuse_kind(errors, "text", None);
                None
            }
        }
    }

    /// The value as text that `check` turns into something else.
    pub(super) fn text_as<T>(
        &self,
        errors: &mut Errors,
        check: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        match check(self.text(errors)?) {
            Ok(value) => Some(value),
            Err(refusal) => {
                self.refuse(errors, refusal);
                None
            }
        }
    }

    /// The value as one of a few words.
    pub(super) fn word<T: Copy>(&self, errors: &mut Errors, words: &[(&str, T)]) -> Option<T> {
        self.text_as(errors, |given| {
            words.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or_else(
                || {
                    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    Refusal::not_one_of(given, &known)
                },
            )
        })
    }

    /// The value as `true` or `false`.
    pub(super) fn truth(&self, errors: &mut Errors) -> Option<bool> {
        let Value::Bool(given) = self.node.value else {
            self.refuse_kind(errors, "`true` or `false`", None);
            return None;
        };
        Some(given)
    }

    /// The value as a duration of more than nothing.
    pub(super) fn duration(&self, errors: &mut Errors) -> Option<Duration> {
        match &self.node.value {
            Value::Integer(count @ 1..) => {
                self.refuse(
                    errors,
                    Refusal::new("a duration needs a unit")
                        .hint(format!("write {count}s for seconds, {count}ms for milliseconds")),
                );
                None
            }
            Value::Text(_) => self.text_as(errors, duration),
            _ => {
                self.refuse_kind(errors, "a duration", Some("write 10s, 500ms, 2m or 1h"));
                None
            }
        }
    }

    /// The value as a number from 1 on.
    pub(super) fn count(&self, errors: &mut Errors) -> Option<usize> {
        let Value::Integer(given) = self.node.value else {
            self.refuse_kind(errors, "a whole number", None);
            return None;
        };
        let count = usize::try_from(given).ok().filter(|count| *count > 0);
        if count.is_none() {
            self.refuse_kind(errors, "a whole number from 1 on", None);
        }
        count
    }

    /// The value as a list of texts. One text alone is not a list.
    pub(super) fn texts(&self, errors: &mut Errors) -> Option<Vec<(Field<'n>, &'n str)>> {
        let Value::List(items) = &self.node.value else {
            let hint = match &self.node.value {
                Value::Text(text) => Some(format!("write [\"{text}\"]")),
                _ => None,
            };
            self.refuse_kind(errors, "a list of texts", hint.as_deref());
            return None;
        };
        let mut texts = Vec::new();
        for (index, node) in items.iter().enumerate() {
            let field = Field {
                name: self.name,
                path: format!("{}[{index}]", self.path),
                key_place: node.place,
                node,
            };
            let text = field.text(errors)?;
            texts.push((field, text));
        }
        Some(texts)
    }

    /// The field of this name in the value, without a word about any other.
    pub(super) fn child(&self, name: &str) -> Option<Field<'n>> {
        let Value::Table(entries) = &self.node.value else { return None };
        let entry = entries.iter().find(|entry| entry.key == name)?;
        Some(Field {
            name: &entry.key,
            path: format!("{}.{name}", self.path),
            key_place: entry.place,
            node: &entry.value,
        })
    }

    /// The value as a table.
    pub(super) fn table(&self, errors: &mut Errors) -> Option<Table<'n>> {
        Table::open(self.path.clone(), self.key_place, self.node, errors)
    }
}

/// A table whose keys are read one by one.
pub(super) struct Table<'n> {
    path: String,
    place: Place,
    left: Vec<&'n Entry>,
    known: Vec<&'static str>,
    /// Required, absent, each with what to write.
    missing: Vec<(&'static str, String)>,
}

impl<'n> Table<'n> {
    /// The file as a whole.
    pub(super) fn root(node: &'n Node, errors: &mut Errors) -> Option<Self> {
        Self::open(String::new(), Place::START, node, errors)
    }

    fn open(path: String, place: Place, node: &'n Node, errors: &mut Errors) -> Option<Self> {
        let Value::Table(entries) = &node.value else {
            let problem = format!("expected a table of keys, found {}", node.value.describe());
            errors.add(place, &path, Refusal::new(problem));
            return None;
        };
        let mut table =
            Self { path, place, left: Vec::new(), known: Vec::new(), missing: Vec::new() };
        for entry in entries {
            match table.left.iter().find(|other| other.key == entry.key) {
                None => table.left.push(entry),
                Some(first) => errors.add(
                    entry.place,
                    &table.path_of(&entry.key),
                    Refusal::new("this key is given twice")
                        .hint(format!("the first is in line {}: remove one", first.place.line)),
                ),
            }
        }
        Some(table)
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn field(&self, entry: &'n Entry) -> Field<'n> {
        Field {
            name: &entry.key,
            path: self.path_of(&entry.key),
            key_place: entry.place,
            node: &entry.value,
        }
    }

    /// The field of this name, if the file has it.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'n>> {
        self.known.push(key);
        let index = self.left.iter().position(|entry| entry.key == key)?;
        let entry = self.left.remove(index);
        Some(self.field(entry))
    }

    /// The field of this name; its absence is an error, with `hint` for what to write.
    pub(super) fn require(&mut self, key: &'static str, hint: &str) -> Option<Field<'n>> {
        let field = self.take(key);
        if field.is_none() {
            self.missing.push((key, hint.to_owned()));
        }
        field
    }

    /// Refuses a key that belongs to the format but that this version cannot honour. It is not
    /// among the known keys that an error offers: none of them is one that would work.
    pub(super) fn unsupported(&mut self, key: &'static str, errors: &mut Errors) {
        if let Some(index) = self.left.iter().position(|entry| entry.key == key) {
            let entry = self.left.remove(index);
            self.field(entry).refuse_key(errors, Refusal::unsupported(&format!("`{key}`")));
        }
    }

    /// Complains about the table as a whole.
    pub(super) fn refuse(&self, errors: &mut Errors, refusal: Refusal) {
        errors.add(self.place, &self.path, refusal);
    }

    /// Every field, for tables whose keys are names.
    pub(super) fn into_fields(self) -> Vec<Field<'n>> {
        self.left.iter().map(|entry| self.field(entry)).collect()
    }

    /// Every key that nobody asked for is an error, and so is every missing one, unless it is there
    /// with a typing error: then one complaint is enough.
    pub(super) fn finish(self, errors: &mut Errors) {
        let mut meant = Vec::new();
        for entry in &self.left {
            let near = closest(&entry.key, &self.known);
            let known = format!("Known keys here: {}", list_of(&self.known));
            let hint = match near {
                Some(near) => format!("did you mean `{near}`? {known}"),
                None => known,
            };
            meant.extend(near);
            let refusal = Refusal::new("unknown key").hint(hint);
            errors.add(entry.place, &self.path_of(&entry.key), refusal);
        }
        for (key, hint) in &self.missing {
            if !meant.contains(key) {
                let refusal = Refusal::new("this key is missing").hint(hint.as_str());
                errors.add(self.place, &self.path_of(key), refusal);
            }
        }
    }
}
