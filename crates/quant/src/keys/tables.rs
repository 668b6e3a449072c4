//! The fitted tables of a coder as plain named arrays, for profiles and saved sessions.

use half::f16;

use super::{KeyCoder, KeyFormat, Kind, affine, alloc, lloyd_max, pq};
use crate::{Error, Result};

/// Fitted tables: arrays by name, empty for formats that need no fit. Integers up to 255 and f16 values
/// are both held exactly by f16.
pub type Tables = Vec<(&'static str, Vec<f16>)>;

impl KeyCoder {
    /// The tables of this coder; [`KeyCoder::restore`] takes them back.
    #[must_use]
    pub fn tables(&self) -> Tables {
        match &self.kind {
            Kind::F16 | Kind::IntToken(_) | Kind::IntChannel(_) => vec![],
            Kind::LloydMax(coder) => vec![("centre", coder.centre().to_vec())],
            Kind::Pq(coder) => {
                let (codebooks, weights) = coder.tables();
                vec![("codebooks", codebooks.to_vec()), ("weights", weights.to_vec())]
            }
            Kind::Alloc(coder) => {
                let tables = coder.tables();
                let order = tables.order.iter().map(|&c| f16::from_f32(f32::from(c))).collect();
                let widths = tables.widths.iter().map(|&b| f16::from_f32(f32::from(b))).collect();
                vec![
                    ("order", order),
                    ("centre", tables.centre),
                    ("step", tables.step),
                    ("weight", tables.weight),
                    ("widths", widths),
                ]
            }
        }
    }

    /// The names of the tables of `format`.
    #[must_use]
    pub fn table_names(format: KeyFormat) -> &'static [&'static str] {
        match format {
            KeyFormat::F16 | KeyFormat::IntToken { .. } | KeyFormat::IntChannel { .. } => &[],
            KeyFormat::LloydMax { .. } => &["centre"],
            KeyFormat::Pq { .. } => &["codebooks", "weights"],
            KeyFormat::Alloc { .. } => &["order", "centre", "step", "weight", "widths"],
        }
    }

    /// The coder of `format` with tables made earlier.
    ///
    /// # Errors
    /// [`Error::Table`] for a table that is missing, of the wrong length or with values out of range;
    /// [`Error::HeadDim`] as for a fit.
    pub fn restore(format: KeyFormat, head_dim: usize, tables: &Tables) -> Result<Self> {
        let layout = format.layout(head_dim)?;
        let table = |name: &'static str, expected: usize| {
            let found = tables.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, t)| t);
            let error =
                |actual| Error::Table { format: format.to_string(), table: name, actual, expected };
            if found.len() != expected {
                return Err(error(found.len()));
            }
            match found.iter().position(|x| !x.is_finite()) {
                None => Ok(found.to_vec()),
                Some(place) => Err(error(place)),
            }
        };
        let kind = match format {
            KeyFormat::F16 => Kind::F16,
            KeyFormat::IntToken { bits } => Kind::IntToken(affine::PerToken::new(bits, head_dim)),
            KeyFormat::IntChannel { bits, .. } => {
                Kind::IntChannel(affine::PerChannel::new(bits, head_dim))
            }
            KeyFormat::LloydMax { bits } => {
                Kind::LloydMax(lloyd_max::LloydMax::restore(bits, table("centre", head_dim)?)?)
            }
            KeyFormat::Pq { width, code_bits } => Kind::Pq(pq::Pq::restore(
                width,
                code_bits,
                table("codebooks", head_dim << code_bits)?,
                table("weights", head_dim)?,
            )),
            KeyFormat::Alloc { .. } => {
                let code_bytes = format.alloc_code_bytes(head_dim);
                let order = integers(&table("order", head_dim)?, head_dim as u16 - 1);
                let widths = integers(&table("widths", head_dim / crate::bits::CHUNK)?, 8);
                let total: usize = widths.iter().map(|&b| usize::from(b)).sum();
                let mut seen = vec![false; head_dim];
                order.iter().for_each(|&c| seen[usize::from(c)] = true);
                let bad = |table, actual, expected| {
                    Err(Error::Table { format: format.to_string(), table, actual, expected })
                };
                if total != code_bytes {
                    return bad("widths", total, code_bytes);
                }
                if let Some(missing) = seen.iter().position(|seen| !seen) {
                    return bad("order", missing, head_dim);
                }
                Kind::Alloc(alloc::Alloc::restore(alloc::AllocTables {
                    order,
                    centre: table("centre", head_dim)?,
                    step: table("step", head_dim)?,
                    weight: table("weight", head_dim)?,
                    widths: widths.iter().map(|&b| b as u8).collect(),
                }))
            }
        };
        Ok(Self { format, head_dim, layout, kind })
    }
}

fn integers(values: &[f16], max: u16) -> Vec<u16> {
    values.iter().map(|x| (x.to_f32().max(0.0) as u16).min(max)).collect()
}
