//! The fitted tables of a coder as plain named arrays, for profiles and saved sessions.

use std::ops::RangeInclusive;
use std::sync::Arc;

use half::f16;

use super::codec::Codec;
use super::{KeyCoder, KeyFormat, alloc, codec, lloyd_max, pq};
use crate::bits::{CHUNK, MAX_BITS};
use crate::{Error, Result};

/// Fitted tables: arrays by name, empty for formats that need no fit. Integers up to 2,048 and f16 values
/// are both held exactly by f16.
pub type Tables = Vec<(&'static str, Vec<f16>)>;

impl KeyCoder {
    /// The tables of this coder; [`KeyCoder::restore`] takes them back.
    #[must_use]
    pub fn tables(&self) -> Tables {
        self.codec.tables()
    }

    /// The names of the tables of `format`.
    #[must_use]
    pub fn table_names(format: KeyFormat) -> &'static [&'static str] {
        match format {
            KeyFormat::LloydMax { .. } => &["centre"],
            KeyFormat::Pq { is_rotated: false, .. } => &["codebooks", "weights"],
            KeyFormat::Pq { .. } => &["codebooks", "weights", "rotation"],
            KeyFormat::Alloc { .. } => &["order", "centre", "step", "weight", "widths"],
            _ => &[],
        }
    }

    /// The coder of `format` with tables made earlier.
    ///
    /// # Errors
    /// [`Error::Table`] for a table that is missing or of the wrong length, [`Error::TableValue`] and
    /// [`Error::TableRow`] for values out of range; [`Error::HeadDim`] as for a fit.
    pub fn restore(format: KeyFormat, head_dim: usize, tables: &Tables) -> Result<Self> {
        let layout = format.layout(head_dim)?;
        let table = |name: &'static str, expected: usize| {
            let found = tables.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, t)| t);
            if found.len() != expected {
                let (format, actual) = (format.to_string(), found.len());
                return Err(Error::Table { format, table: name, actual, expected });
            }
            match found.iter().position(|x| !x.is_finite()) {
                None => Ok(found.to_vec()),
                Some(place) => Err(bad_value(format, name, place)),
            }
        };
        let within = |name, range: RangeInclusive<f32>| {
            let values = table(name, head_dim)?;
            match values.iter().position(|x| !range.contains(&x.to_f32())) {
                None => Ok(values),
                Some(place) => Err(bad_value(format, name, place)),
            }
        };
        let codec: Arc<dyn Codec> = match format {
            KeyFormat::LloydMax { bits } => {
                Arc::new(lloyd_max::LloydMax::restore(bits, table("centre", head_dim)?)?)
            }
            KeyFormat::Pq { width, code_bits, is_rotated, num_exact } => {
                let shape = pq::PqShape::new(width, code_bits, is_rotated, num_exact);
                let tables = pq::PqTables {
                    codebooks: table("codebooks", head_dim * shape.num_centroids())?,
                    weights: within("weights", pq::WEIGHTS)?,
                    rotation: is_rotated
                        .then(|| table("rotation", head_dim * head_dim))
                        .transpose()?,
                };
                let coder = pq::Pq::restore(shape, tables);
                Arc::new(coder.map_err(|error| bad_rotation(format, head_dim, error))?)
            }
            KeyFormat::Alloc { .. } => {
                let code_bytes = format.alloc_code_bytes(head_dim);
                let integers = |name, expected, limit: usize| {
                    let values = table(name, expected)?;
                    match values.iter().position(|&x| !is_integer_below(x, limit)) {
                        None => Ok(values.iter().map(|x| x.to_f32() as u16).collect::<Vec<u16>>()),
                        Some(place) => Err(bad_value(format, name, place)),
                    }
                };
                let order = integers("order", head_dim, head_dim)?;
                let max_bits = usize::from(MAX_BITS);
                let widths = integers("widths", head_dim / CHUNK, max_bits + 1)?;
                let total: usize = widths.iter().map(|&b| usize::from(b)).sum();
                if total != code_bytes {
                    let format = format.to_string();
                    return Err(Error::TableRow { format, actual: total, expected: code_bytes });
                }
                let mut seen = vec![false; head_dim];
                for (place, &c) in order.iter().enumerate() {
                    if std::mem::replace(&mut seen[usize::from(c)], true) {
                        return Err(bad_value(format, "order", place));
                    }
                }
                Arc::new(alloc::Alloc::restore(alloc::AllocTables {
                    order,
                    centre: table("centre", head_dim)?,
                    step: within("step", 0.0..=f32::INFINITY)?,
                    weight: within("weight", alloc::WEIGHTS)?,
                    widths: widths.iter().map(|&b| b as u8).collect(),
                }))
            }
            _ => codec::unfitted(format, head_dim)?,
        };
        Ok(Self { format, head_dim, layout, codec })
    }
}

fn bad_value(format: KeyFormat, table: &'static str, place: usize) -> Error {
    Error::TableValue { format: format.to_string(), table, place }
}

/// The error of a rotation that is none, at the first value of the row that shows it.
pub(super) fn bad_rotation(format: KeyFormat, head_dim: usize, error: pq::NotOrthonormal) -> Error {
    bad_value(format, "rotation", error.row * head_dim)
}

fn is_integer_below(x: f16, limit: usize) -> bool {
    let x = x.to_f32();
    x >= 0.0 && x.fract() == 0.0 && x < limit as f32
}
