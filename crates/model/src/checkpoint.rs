//! A model on disk: one face over Hugging Face folders and GGUF files.
//!
//! Opening maps the weights and reads headers only. By the time [`Checkpoint::open`] returns, the
//! configuration is validated and every tensor that it demands is known to be there, of the demanded
//! shape, with its bytes inside the file; no tensor is there that it has no use for. A fault is an
//! error that names the file, key or tensor.
//!
//! This module decodes no weights. Rotary halves: the models here turn element i of a head together
//! with element i + head_dim / 2, as Hugging Face's weights expect. GGUF files of the `llama`
//! architecture store the rows of q and k in another order, for a rotation of neighbours; for these
//! tensors [`Tensor::row_order`] says which stored row is the wanted one.

mod fingerprint;
mod mapping;
mod roles;

use std::{
    collections::HashSet,
    fs::File,
    io::Read,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use heterokv_quant::weights::TensorType;

pub use fingerprint::Fingerprint;
pub(crate) use mapping::{Bytes, read_text};
pub use roles::{LayerTensor, TensorRole};

use crate::{
    config::{Architecture, ModelConfig},
    error::{Error, Result},
    gguf::{self, Gguf, Metadata},
    safetensors::{self, FolderWeights},
};

/// An opened checkpoint. It owns the memory maps that its tensors borrow from.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    source: Source,
    files: Vec<Arc<Bytes>>,
    /// Sorted by name, names unique.
    tensors: Vec<StoredTensor>,
}

#[derive(Debug)]
enum Source {
    Folder(PathBuf),
    Gguf(Metadata),
}

/// Where a tensor lies.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) ty: TensorType,
    /// Outermost axis first.
    pub(crate) shape: Vec<u64>,
    pub(crate) file_idx: usize,
    /// Bytes of the file, checked to lie inside it.
    pub(crate) range: Range<usize>,
}

/// One tensor, borrowed from the mapped file.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its name in the file's own naming.
    pub name: &'a str,
    /// How its elements are stored.
    pub ty: TensorType,
    /// Rows; 1 for a tensor of one axis.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
    /// The rows one after the other, without any promise about alignment.
    pub bytes: &'a [u8],
    /// How output features are ordered: the rows of a matrix, the elements of a bias.
    pub row_order: RowOrder,
}

/// The order of a tensor's output features in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// The order in which they are used.
    AsStored,
    /// Within each head the two rotary halves alternate: the file has 0, h, 1, h + 1, ... where
    /// h is half the head, because its rotation pairs neighbours.
    InterleavedHalves {
        /// Output features per head, even.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The stored row (or bias element) that is feature `row` of the order in use.
    #[must_use]
    pub fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::InterleavedHalves { head_dim } => {
                let (head, feature) = (row / head_dim, row % head_dim);
                let (half, pair) = (feature / (head_dim / 2), feature % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a GGUF file, which is told by its first bytes.
    ///
    /// The files are mapped, not read: they must not be changed while the checkpoint lives.
    ///
    /// # Errors
    /// Anything wrong with the checkpoint, named: see [`enum@Error`].
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        if path.metadata().map_err(io)?.is_dir() {
            return Self::open_folder(path);
        }
        let mut found = Vec::new();
        File::open(path).and_then(|file| file.take(4).read_to_end(&mut found)).map_err(io)?;
        if found != gguf::MAGIC {
            return Err(Error::NotACheckpoint { path: path.to_path_buf(), found });
        }
        Self::from_gguf(Bytes::map(path)?)
    }

    /// Opens a GGUF file that is in memory already.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_gguf_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_gguf(Bytes::Owned(bytes))
    }

    /// The model's shapes and constants.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tensor for a role.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] where this model has none; [`Error::TensorShape`] where it is not of
    /// the shape that the configuration demands.
    pub fn tensor(&self, role: TensorRole) -> Result<Tensor<'_>> {
        let name = self.name(role);
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(&name));
        let Some(stored) = found.ok().map(|at| &self.tensors[at]) else {
            return Err(Error::MissingTensor { name });
        };
        if !role.is_used(&self.config) {
            return Err(Error::UnexpectedTensor { name });
        }
        let expected = role.shape(&self.config);
        if stored.shape != expected {
            return Err(Error::TensorShape { name, expected, actual: stored.shape.clone() });
        }
        let interleaved = matches!(self.source, Source::Gguf(_))
            && self.config.architecture == Architecture::Llama
            && matches!(role, TensorRole::Layer(_, tensor) if tensor.is_rotated());
        let row_order = if interleaved {
            RowOrder::InterleavedHalves { head_dim: self.config.head_dim }
        } else {
            RowOrder::AsStored
        };
        Ok(Tensor { row_order, ..self.borrow(stored) })
    }

    /// The tensor for a role that not every model has, such as a bias; `None` where this one does
    /// not.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`] where the model does have it.
    pub fn optional_tensor(&self, role: TensorRole) -> Result<Option<Tensor<'_>>> {
        role.is_used(&self.config).then(|| self.tensor(role)).transpose()
    }

    /// The metadata of a GGUF file, for its tokenizer; `None` for a folder.
    #[must_use]
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        match &self.source {
            Source::Gguf(metadata) => Some(metadata),
            Source::Folder(_) => None,
        }
    }

    /// The folder, for its tokenizer; `None` for a GGUF file.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Folder(folder) => Some(folder),
            Source::Gguf(_) => None,
        }
    }

    /// A stable name for this model. Reads at most 512 bytes of every tensor.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint::of(self)
    }

    /// Gives back the memory of the parts of mapped files that were read, for whoever has made of them what it needs. They
    /// are read again when next touched.
    pub fn release(&self) {
        self.files.iter().for_each(|file| file.release());
    }

    /// Every tensor of the checkpoint in the order of their names, as stored: tensors of more than
    /// two axes with all but the last as rows, and all with [`RowOrder::AsStored`].
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|stored| self.borrow(stored))
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let Some(json) = read_text(&folder.join("config.json"))? else {
            let folder = folder.to_path_buf();
            return Err(Error::MissingFile { folder, file: "config.json" });
        };
        let mut config = ModelConfig::from_hf_json(&json)?;
        if let Some(json) = read_text(&folder.join("generation_config.json"))? {
            config.add_generation_json(&json)?;
        }
        let FolderWeights { files, tensors } = safetensors::open_folder(folder)?;
        let files = files.into_iter().map(Arc::new).collect();
        Self::verified(config, Source::Folder(folder.to_path_buf()), files, tensors)
    }

    fn from_gguf(bytes: Bytes) -> Result<Self> {
        let bytes = Arc::new(bytes);
        let gguf = Gguf::parse(Arc::clone(&bytes))?;
        let config = gguf.config(&bytes)?;
        Self::verified(config, Source::Gguf(gguf.metadata), vec![bytes], gguf.tensors)
    }

    /// Holds the tensors against the configuration, both ways.
    fn verified(
        config: ModelConfig,
        source: Source,
        files: Vec<Arc<Bytes>>,
        mut tensors: Vec<StoredTensor>,
    ) -> Result<Self> {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::Duplicate { what: "tensor", name: pair[0].name.clone() });
        }
        let checkpoint = Self { config, source, files, tensors };
        // The first missing tensor ends the walk, so that a claimed number of layers costs nothing.
        let mut used = HashSet::new();
        for role in TensorRole::all(&checkpoint.config) {
            used.insert(checkpoint.tensor(role)?.name);
        }
        let extra = match checkpoint.source {
            // Tied models may hold the output projection all the same; transformers ties it anyway.
            Source::Folder(_) => "lm_head.weight",
            Source::Gguf(_) => gguf::ROPE_FACTORS,
        };
        for tensor in &checkpoint.tensors {
            if !used.contains(tensor.name.as_str()) && tensor.name != extra {
                return Err(Error::UnexpectedTensor { name: tensor.name.clone() });
            }
        }
        Ok(checkpoint)
    }

    /// The name of the tensor that fills a role.
    fn name(&self, role: TensorRole) -> String {
        let role = match role {
            TensorRole::Output if self.config.tie_word_embeddings => TensorRole::TokenEmbedding,
            role => role,
        };
        match self.source {
            Source::Folder(_) => role.hf_name(),
            Source::Gguf(_) => role.gguf_name(),
        }
    }

    fn borrow<'a>(&'a self, stored: &'a StoredTensor) -> Tensor<'a> {
        // The parsers have checked that the elements fit the file, which is in memory, so that
        // these products fit; an axis of length 0 gives 0 rows or 0 columns.
        let cols = stored.shape.last().copied().unwrap_or(1) as usize;
        let outer = stored.shape.len().saturating_sub(1);
        let rows = stored.shape[..outer].iter().map(|&len| len as usize).product();
        Tensor {
            name: &stored.name,
            ty: stored.ty,
            rows,
            cols,
            bytes: &self.files[stored.file_idx][stored.range.clone()],
            row_order: RowOrder::AsStored,
        }
    }
}
