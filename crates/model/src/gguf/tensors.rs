//! The tensor directory: names, shapes, types and the byte ranges they claim.

use std::collections::HashSet;

use heterokv_quant::weights::{TensorType, ggml_name};

use super::cursor::Cursor;
use crate::{
    checkpoint::StoredTensor,
    error::{Error, Result},
};

/// Axes the format allows; the models here use one or two.
const MAX_AXES: u32 = 4;
/// Bytes the smallest directory entry takes: an empty name, one axis, type and offset.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// Reads the directory at `cursor` and turns its offsets into ranges of the file.
pub(super) fn parse(
    cursor: &mut Cursor<'_>,
    num_tensors: u64,
    alignment: u64,
) -> Result<Vec<StoredTensor>> {
    cursor.ensure(num_tensors, MIN_ENTRY_BYTES, "the tensor directory")?;
    let mut names = HashSet::new();
    let mut entries = Vec::new();
    for _ in 0..num_tensors {
        let entry = Entry::parse(cursor, alignment)?;
        if !names.insert(entry.name.clone()) {
            return Err(Error::Duplicate { what: "tensor", name: entry.name });
        }
        entries.push(entry);
    }
    let data_start = (cursor.offset() as u64).next_multiple_of(alignment);
    let data_bytes = (cursor.file_bytes() as u64).saturating_sub(data_start);
    entries.sort_by_key(|entry| entry.start);
    let mut previous_end = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in entries {
        if entry.end > data_bytes {
            let rule = format!("the section has {data_bytes} bytes: the file is truncated");
            return Err(entry.out_of_bounds(rule));
        }
        if entry.start < previous_end {
            let rule = format!("another tensor reaches up to byte {previous_end}");
            return Err(entry.out_of_bounds(rule));
        }
        previous_end = entry.end;
        let in_file = |offset: u64| {
            usize::try_from(data_start + offset).expect("inside a file that is in memory")
        };
        let range = in_file(entry.start)..in_file(entry.end);
        tensors.push(StoredTensor {
            name: entry.name,
            ty: entry.ty,
            shape: entry.shape,
            file_idx: 0,
            range,
        });
    }
    Ok(tensors)
}

struct Entry {
    name: String,
    ty: TensorType,
    /// Outermost axis first; the file has it innermost first.
    shape: Vec<u64>,
    /// Bytes of the data section.
    start: u64,
    end: u64,
}

impl Entry {
    fn parse(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Self> {
        let name = cursor.name("a tensor's name")?.to_owned();
        let num_axes = cursor.u32("a tensor's number of axes")?;
        if !(1..=MAX_AXES).contains(&num_axes) {
            return Err(Error::GgufField {
                what: format!("the number of axes of tensor {name}"),
                value: u64::from(num_axes),
                rule: "from 1 to 4",
            });
        }
        let mut shape = Vec::new();
        for _ in 0..num_axes {
            let len = cursor.u64("a tensor's axes")?;
            if len == 0 {
                return Err(Error::GgufField {
                    what: format!("an axis of tensor {name}"),
                    value: 0,
                    rule: "at least 1",
                });
            }
            shape.push(len);
        }
        let ty_id = cursor.u32("a tensor's type")?;
        let start = cursor.u64("a tensor's offset")?;
        let Some(ty) = TensorType::from_ggml(ty_id) else {
            return Err(Error::UnsupportedTensorType {
                tensor: name,
                found: format!("{} (ggml type {ty_id})", ggml_name(ty_id)),
                known: TensorType::ALL.map(TensorType::name).join(", "),
            });
        };
        if !shape[0].is_multiple_of(ty.block_len() as u64) {
            return Err(Error::GgufField {
                what: format!("the row length of {ty} tensor {name}"),
                value: shape[0],
                rule: "whole blocks of its type",
            });
        }
        let num_bytes = shape
            .iter()
            .try_fold(1_u64, |product, &len| product.checked_mul(len))
            .and_then(|num_elements| ty.bytes_of(num_elements));
        shape.reverse();
        let end = num_bytes.and_then(|num_bytes| start.checked_add(num_bytes));
        let entry = Self { name, ty, shape, start, end: end.unwrap_or(u64::MAX) };
        if end.is_none() {
            return Err(entry.out_of_bounds("that is more than a file can hold".to_owned()));
        }
        if !start.is_multiple_of(alignment) {
            return Err(entry.out_of_bounds(format!("tensors start at multiples of {alignment}")));
        }
        Ok(entry)
    }

    fn out_of_bounds(self, rule: String) -> Error {
        Error::TensorBounds { name: self.name, start: self.start, end: self.end, rule }
    }
}
