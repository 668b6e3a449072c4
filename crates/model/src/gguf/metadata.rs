//! The key-value pairs of a GGUF header, left where they lie in the file.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    cursor::Cursor,
    values::{Kind, Number, Place},
};
use crate::{
    checkpoint::Bytes,
    error::{Error, Result},
};

/// The metadata of a GGUF file.
///
/// Getters return `Ok(None)` for an absent key and [`Error::ValueType`] for a value of another type,
/// never a default.
#[derive(Debug, Clone)]
pub struct Metadata {
    bytes: Arc<Bytes>,
    entries: BTreeMap<String, Place>,
}

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `uint8` to `uint64`.
    Unsigned(u64),
    /// `int8` to `int64`.
    Signed(i64),
    /// `float32`, `float64`.
    Float(f64),
    /// `bool`.
    Bool(bool),
    /// A string, which the format wants in UTF-8 and which may not be.
    Text(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

/// An array of metadata values of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    /// The elements as they lie in the file.
    bytes: &'a [u8],
}

impl Array<'_> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Display for Value<'_> {
    /// Strings in quotes with escapes, arrays as type and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{:?}", String::from_utf8_lossy(text)),
            Self::Array(array) => write!(f, "[{}; {}]", array.kind.name(), array.len),
        }
    }
}

impl Metadata {
    pub(super) fn new(bytes: Arc<Bytes>, entries: BTreeMap<String, Place>) -> Self {
        Self { bytes, entries }
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|(key, place)| (key.as_str(), self.read(place)))
    }

    /// The value of `key`, whatever its type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.entries.get(key).map(|place| self.read(place))
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else or not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a UTF-8 string", |value| match value {
            Value::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        })
    }

    /// A whole number of any integer type that is not negative.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number", |value| match value {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        })
    }

    /// A whole number of any integer type that fits 32 bits.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a whole number of 32 bits", |value| match value {
            Value::Unsigned(value) => u32::try_from(value).ok(),
            Value::Signed(value) => u32::try_from(value).ok(),
            _ => None,
        })
    }

    /// A number of either float type.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", |value| match value {
            Value::Float(value) => Some(value),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// An array of strings. The text stays in the file; the list of references is new.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else or an element is not UTF-8.
    pub fn str_array(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "an array of UTF-8 strings", |value| match value {
            Value::Array(Array { kind: Kind::Text, len, bytes }) => {
                let mut cursor = Cursor::new(bytes);
                (0..len).map(|_| cursor.name("a string of an array").ok()).collect()
            }
            _ => None,
        })
    }

    /// An array of whole numbers of any integer type that all fit `u32`.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else.
    pub fn u32_array(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.typed(key, "an array of whole numbers of 32 bits", |value| match value {
            Value::Array(array) => array
                .numbers()?
                .map(|value| match value {
                    Value::Unsigned(value) => u32::try_from(value).ok(),
                    Value::Signed(value) => u32::try_from(value).ok(),
                    _ => None,
                })
                .collect(),
            _ => None,
        })
    }

    /// An array of floats.
    ///
    /// # Errors
    /// [`Error::ValueType`] where the value is something else, `float64` included.
    pub fn f32_array(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.typed(key, "an array of 32-bit floats", |value| match value {
            Value::Array(Array { kind: Kind::Number(Number::F32), bytes, .. }) => {
                let (floats, _) = bytes.as_chunks::<4>();
                Some(floats.iter().copied().map(f32::from_le_bytes).collect())
            }
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => {
                let mut actual = value.to_string();
                if actual.len() > 80 {
                    actual = format!("{}...", actual.chars().take(60).collect::<String>());
                }
                Err(Error::ValueType { key: key.to_owned(), expected, actual })
            }
        }
    }

    fn read(&self, place: &Place) -> Value<'_> {
        let bytes = &self.bytes[place.range.clone()];
        match (place.kind, place.array_len) {
            (kind, Some(len)) => Value::Array(Array { kind, len, bytes }),
            (Kind::Number(number), None) => number.read(bytes),
            (Kind::Text | Kind::Array, None) => Value::Text(bytes),
        }
    }
}

impl<'a> Array<'a> {
    /// The elements; `None` where they are strings or arrays.
    fn numbers(self) -> Option<impl Iterator<Item = Value<'a>>> {
        let Kind::Number(number) = self.kind else { return None };
        Some(self.bytes.chunks_exact(number.num_bytes()).map(move |bytes| number.read(bytes)))
    }
}
