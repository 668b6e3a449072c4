//! The weights of a Hugging Face folder: one `model.safetensors`, or shards with their index.
//!
//! Headers are parsed by the `safetensors` crate over the mapped file. It bounds the header by
//! 100 MB, demands that the tensors tile the data section without gap or overlap, and checks their
//! shapes against their byte ranges. What it adds up unchecked is bounded here first.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use heterokv_quant::weights::TensorType;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::{
    checkpoint::{Bytes, StoredTensor, read_text},
    error::{Error, Result},
};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The mapped files of a folder and the tensors in them.
pub(crate) struct FolderWeights {
    pub(crate) files: Vec<Bytes>,
    pub(crate) tensors: Vec<StoredTensor>,
}

/// Opens `model.safetensors`, or, where there is none, all shards that the index names.
///
/// # Errors
/// [`Error::MissingFile`] without either; [`Error::ShardName`] and [`Error::ShardIndex`] for an index
/// that does not fit its folder; [`Error::Safetensors`], [`Error::SafetensorsBounds`] and
/// [`Error::UnsupportedTensorType`] for a file.
pub(crate) fn open_folder(folder: &Path) -> Result<FolderWeights> {
    let mut weights = FolderWeights { files: Vec::new(), tensors: Vec::new() };
    if folder.join(SINGLE).exists() {
        weights.add(folder, SINGLE)?;
        return Ok(weights);
    }
    let Some(json) = read_text(&folder.join(INDEX))? else {
        return Err(Error::MissingFile {
            folder: folder.to_path_buf(),
            file: "model.safetensors or model.safetensors.index.json",
        });
    };
    let index: Index = serde_json::from_str(&json)
        .map_err(|source| Error::Json { file: INDEX.to_owned(), source })?;
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        if is_unread(tensor) {
            continue;
        }
        if !is_plain_shard_name(shard) {
            return Err(Error::ShardName { tensor: tensor.clone(), shard: shard.clone() });
        }
        by_shard.entry(shard).or_default().push(tensor);
    }
    for (shard, listed) in by_shard {
        let first = weights.tensors.len();
        weights.add(folder, shard)?;
        let held = &weights.tensors[first..];
        let disagree = |tensor: &str, in_index| Error::ShardIndex {
            tensor: tensor.to_owned(),
            shard: shard.to_owned(),
            in_index,
        };
        // Both lists are sorted by name.
        if let Some(tensor) =
            held.iter().find(|tensor| listed.binary_search(&tensor.name.as_str()).is_err())
        {
            return Err(disagree(&tensor.name, "not there"));
        }
        if let Some(tensor) =
            listed.iter().find(|name| held.binary_search_by(|t| t.name.as_str().cmp(name)).is_err())
        {
            return Err(disagree(tensor, "there"));
        }
    }
    Ok(weights)
}

/// The shard index. Its other keys say nothing that the shards do not.
#[derive(Deserialize)]
struct Index {
    /// File name of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// A shard lies directly in its folder: one plain path component, so that no index reaches other
/// files. (The file itself may be a link, as it is in the Hugging Face cache.)
fn is_plain_shard_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    name.ends_with(".safetensors")
        && !name.contains(['/', '\\', '\0'])
        && matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Older Llama checkpoints hold the unscaled inverse frequencies of every layer, which follow from the
/// configuration; transformers does not read them either.
fn is_unread(tensor: &str) -> bool {
    tensor.ends_with(".rotary_emb.inv_freq")
}

impl FolderWeights {
    /// Maps one file and appends its tensors, sorted by name.
    fn add(&mut self, folder: &Path, file: &str) -> Result<()> {
        let bytes = Bytes::map(&folder.join(file))?;
        let file_idx = self.files.len();
        let mut tensors = parse(&bytes, file)?;
        for tensor in &mut tensors {
            tensor.file_idx = file_idx;
        }
        self.files.push(bytes);
        self.tensors.append(&mut tensors);
        Ok(())
    }
}

/// The tensors of one file, sorted by name.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Vec<StoredTensor>> {
    check_offsets(bytes, file)?;
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|source| Error::Safetensors { file: file.to_owned(), source })?;
    let data_start = 8 + header_bytes;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        if is_unread(&name) {
            continue;
        }
        let ty = match info.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::BF16 => TensorType::BF16,
            other => {
                return Err(Error::UnsupportedTensorType {
                    tensor: name,
                    found: format!("{other:?}"),
                    known: "F32, F16, BF16".to_owned(),
                });
            }
        };
        let (start, end) = info.data_offsets;
        tensors.push(StoredTensor {
            name,
            ty,
            shape: info.shape.iter().map(|&len| len as u64).collect(),
            file_idx: 0,
            range: data_start + start..data_start + end,
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Holds the header's length and every end offset against the file, before the `safetensors` crate
/// adds them up: it does so unchecked, which would panic in builds with overflow checks.
fn check_offsets(bytes: &[u8], file: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Ends {
        data_offsets: Option<(u64, u64)>,
    }
    let beyond = |what: &str, claimed_bytes, available_bytes: usize| Error::SafetensorsBounds {
        file: file.to_owned(),
        what: what.to_owned(),
        claimed_bytes,
        available_bytes: available_bytes as u64,
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(beyond("header length", 8, bytes.len()));
    };
    let header_bytes = u64::from_le_bytes(*length);
    let header = usize::try_from(header_bytes).ok().and_then(|len| rest.split_at_checked(len));
    let Some((header, data)) = header else {
        return Err(beyond("header", header_bytes, rest.len()));
    };
    let json = |source| Error::Json { file: format!("the header of {file}"), source };
    let tensors: BTreeMap<String, Ends> = serde_json::from_slice(header).map_err(json)?;
    for (name, tensor) in tensors {
        if let Some((_, end)) = tensor.data_offsets
            && end > data.len() as u64
        {
            return Err(beyond(&format!("data for tensor {name}"), end, data.len()));
        }
    }
    Ok(())
}
