//! The types of metadata values and the walk over their bytes.

use std::{collections::BTreeMap, ops::Range};

use super::{cursor::Cursor, metadata::Value};
use crate::error::{Error, Result};

/// Nesting of arrays that is followed; real files have one level.
const MAX_DEPTH: u32 = 4;
/// Bytes the smallest pair takes: an empty key, a type and a one-byte value.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;

/// Where a value lies and how it is to be read.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The value's kind, or that of an array's elements.
    pub(super) kind: Kind,
    /// Number of elements of an array.
    pub(super) array_len: Option<usize>,
    /// Bytes of the file: the number, the text without its length, or the elements.
    pub(super) range: Range<usize>,
}

/// What a value or an array's element is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Number(Number),
    Text,
    Array,
}

/// Values of a fixed number of bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

/// Reads `num_pairs` pairs.
pub(super) fn parse(cursor: &mut Cursor<'_>, num_pairs: u64) -> Result<BTreeMap<String, Place>> {
    cursor.ensure(num_pairs, MIN_PAIR_BYTES, "the metadata")?;
    let mut entries = BTreeMap::new();
    for _ in 0..num_pairs {
        let key = cursor.name("a metadata key")?;
        let place = parse_value(cursor, key)?;
        if entries.insert(key.to_owned(), place).is_some() {
            return Err(Error::Duplicate { what: "metadata key", name: key.to_owned() });
        }
    }
    Ok(entries)
}

fn parse_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Place> {
    let (kind, array_len, start) = match Kind::parse(cursor, key)? {
        Kind::Array => {
            let kind = Kind::parse(cursor, key)?;
            let len = cursor.u64("an array's length")?;
            let start = cursor.offset();
            skip_elements(cursor, kind, len, key, 1)?;
            // Every element took at least one byte of a file that is in memory.
            let len = usize::try_from(len).expect("no more elements than bytes");
            (kind, Some(len), start)
        }
        Kind::Text => {
            let text = cursor.string_bytes("a metadata string")?;
            (Kind::Text, None, cursor.offset() - text.len())
        }
        Kind::Number(number) => {
            let start = cursor.offset();
            skip_elements(cursor, Kind::Number(number), 1, key, 0)?;
            (Kind::Number(number), None, start)
        }
    };
    Ok(Place { kind, array_len, range: start..cursor.offset() })
}

/// Moves over `len` elements. The time taken is bounded by the bytes of the file, because every
/// element takes at least one and the count is compared with them first.
fn skip_elements(
    cursor: &mut Cursor<'_>,
    kind: Kind,
    len: u64,
    key: &str,
    depth: u32,
) -> Result<()> {
    match kind {
        Kind::Number(number) => {
            let num_bytes = number.num_bytes() as u64;
            cursor.ensure(len, num_bytes, "an array")?;
            let bytes = cursor.take(len * num_bytes, "a metadata value")?;
            if number == Number::Bool
                && let Some(&byte) = bytes.iter().find(|&&byte| byte > 1)
            {
                return Err(Error::GgufField {
                    what: format!("a bool of {key}"),
                    value: u64::from(byte),
                    rule: "0 or 1",
                });
            }
        }
        Kind::Text => {
            cursor.ensure(len, 8, "an array of strings")?;
            for _ in 0..len {
                cursor.string_bytes("a string of an array")?;
            }
        }
        Kind::Array => {
            if depth >= MAX_DEPTH {
                return Err(Error::GgufField {
                    what: format!("the nesting of arrays in {key}"),
                    value: u64::from(depth) + 1,
                    rule: "at most 4",
                });
            }
            cursor.ensure(len, 4 + 8, "an array of arrays")?;
            for _ in 0..len {
                let kind = Kind::parse(cursor, key)?;
                let len = cursor.u64("an array's length")?;
                skip_elements(cursor, kind, len, key, depth + 1)?;
            }
        }
    }
    Ok(())
}

impl Kind {
    fn parse(cursor: &mut Cursor<'_>, key: &str) -> Result<Self> {
        Ok(match cursor.u32("a metadata type")? {
            0 => Self::Number(Number::U8),
            1 => Self::Number(Number::I8),
            2 => Self::Number(Number::U16),
            3 => Self::Number(Number::I16),
            4 => Self::Number(Number::U32),
            5 => Self::Number(Number::I32),
            6 => Self::Number(Number::F32),
            7 => Self::Number(Number::Bool),
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Number(Number::U64),
            11 => Self::Number(Number::I64),
            12 => Self::Number(Number::F64),
            id => {
                return Err(Error::GgufField {
                    what: format!("the value type of {key}"),
                    value: u64::from(id),
                    rule: "from 0 to 12",
                });
            }
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Number(number) => number.name(),
            Self::Text => "string",
            Self::Array => "array",
        }
    }
}

impl Number {
    pub(super) fn num_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::F32 => "float32",
            Self::Bool => "bool",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F64 => "float64",
        }
    }

    /// The number in `bytes`, which hold [`num_bytes`](Self::num_bytes).
    pub(super) fn read(self, bytes: &[u8]) -> Value<'static> {
        match self {
            Self::U8 => Value::Unsigned(u64::from(u8::from_le_bytes(fixed(bytes)))),
            Self::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(fixed(bytes)))),
            Self::U32 => Value::Unsigned(u64::from(u32::from_le_bytes(fixed(bytes)))),
            Self::U64 => Value::Unsigned(u64::from_le_bytes(fixed(bytes))),
            Self::I8 => Value::Signed(i64::from(i8::from_le_bytes(fixed(bytes)))),
            Self::I16 => Value::Signed(i64::from(i16::from_le_bytes(fixed(bytes)))),
            Self::I32 => Value::Signed(i64::from(i32::from_le_bytes(fixed(bytes)))),
            Self::I64 => Value::Signed(i64::from_le_bytes(fixed(bytes))),
            Self::F32 => Value::Float(f64::from(f32::from_le_bytes(fixed(bytes)))),
            Self::F64 => Value::Float(f64::from_le_bytes(fixed(bytes))),
            Self::Bool => Value::Bool(u8::from_le_bytes(fixed(bytes)) != 0),
        }
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("callers pass as many bytes as the type has")
}
