//! Profiles: key-coder tables fitted once for a model, kept in a file, used for any context.
//!
//! The file is in safetensors form: one array per table, named `layer.kv_head.table`, and the format (of a
//! mix, one for each head), the model's fingerprint and the shape in its metadata. HCAttention fits its
//! codebooks offline this way (arXiv 2507.19823); a cache without a profile fits them on the prompt itself.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use half::f16;
use heterokv_quant::keys::Tables;
use heterokv_quant::{KeyCoder, KeyFormat};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use crate::cache::{KvCache, KvShape, check_len};
use crate::model_file::{FileKind, LEN_BYTES, ModelIdentity};
use crate::{Keys, Result};

/// Version of the file's layout.
const VERSION: &str = "1";

/// Most bytes of a header, some times what the names of all tables of the largest shape take.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Most bytes of a file, some times what the largest tables of the largest models take.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Fitted coders for every (layer, KV head) of one model.
#[derive(Clone, Debug)]
pub struct Profile {
    model: ModelIdentity,
    /// `[num_layers, num_kv_heads]`, one at least.
    coders: Vec<KeyCoder>,
}

impl Profile {
    /// Fitted coders `[num_layers, num_kv_heads]` for the model of `fingerprint`, which is of `shape`.
    ///
    /// # Errors
    /// [`Error::HeadCount`](crate::Error::HeadCount), and [`Error::Length`](crate::Error::Length) for another number of coders or one for keys of another length.
    pub fn new(fingerprint: &str, shape: &KvShape, coders: Vec<KeyCoder>) -> Result<Self> {
        let model = ModelIdentity::of(fingerprint, shape)?;
        check_len("coders", coders.len(), model.num_heads())?;
        coders.iter().try_for_each(|c| check_len("a key", c.head_dim(), model.head_dim))?;
        Ok(Self { model, coders })
    }

    /// The tables that `cache` has fitted, for the model of `fingerprint`. None while any of its heads
    /// has coded nothing, and for more heads than any model has.
    #[must_use]
    pub fn of(cache: &KvCache, fingerprint: &str) -> Option<Self> {
        let KvShape { num_layers, heads } = cache.shape();
        let places = (0..num_layers).flat_map(|l| (0..heads.num_kv_heads).map(move |h| (l, h)));
        let coders: Option<Vec<KeyCoder>> =
            places.map(|(layer, head)| cache.coder(layer, head).cloned()).collect();
        Self::new(fingerprint, &cache.shape(), coders?).ok()
    }

    /// The key format that was fitted; none where heads have different ones.
    #[must_use]
    pub fn format(&self) -> Option<KeyFormat> {
        let format = self.coders[0].format();
        self.coders.iter().all(|coder| coder.format() == format).then_some(format)
    }

    /// The coder of a (layer, KV head) that the shape has.
    pub(crate) fn coder(&self, (layer, kv_head): (usize, usize)) -> &KeyCoder {
        &self.coders[layer * self.model.num_kv_heads + kv_head]
    }

    /// Every coder with its (layer, KV head).
    fn placed(&self) -> impl Iterator<Item = ((usize, usize), &KeyCoder)> {
        let num_kv_heads = self.model.num_kv_heads;
        let places = (0..self.coders.len()).map(move |i| (i / num_kv_heads, i % num_kv_heads));
        places.zip(&self.coders)
    }

    /// Refuses a cache of another shape or of other key formats.
    pub(crate) fn check(&self, shape: &KvShape, keys: &Keys) -> Result<()> {
        let kind = FileKind::Profile;
        self.model.check_shape(kind, shape)?;
        if let (Some(found), Keys::Uniform(expected)) = (self.format(), keys) {
            return kind.check("key format", &found.to_string(), &expected.to_string());
        }
        for (place, coder) in self.placed() {
            let at_place = |format| format!("{format} in layer {}, KV head {}", place.0, place.1);
            let (found, expected) = (at_place(coder.format()), at_place(keys.format(place)));
            kind.check("key format", &found, &expected)?;
        }
        Ok(())
    }

    /// Refuses a model other than the one the tables were fitted for.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch).
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        self.model.check_fingerprint(FileKind::Profile, fingerprint)
    }

    /// Refuses a path that [`Profile::save`] could not write to, before the work of fitting one.
    ///
    /// # Errors
    /// [`Error::FileIo`](crate::Error::FileIo): a folder that is missing or not writable, and a path that is there and not a
    /// regular file. [`Error::Occupied`](crate::Error::Occupied): a file that is read-only or no profile.
    pub fn check_writable(path: &Path) -> Result<()> {
        FileKind::Profile.check_writable(path)
    }

    /// Writes the profile; an older profile at this path, or an empty file, is replaced whole or not at all.
    ///
    /// # Errors
    /// As [`Profile::check_writable`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let kind = FileKind::Profile;
        let ModelIdentity { num_layers, num_kv_heads, head_dim, .. } = self.model;
        let metadata = HashMap::from([
            (kind.mark().to_owned(), VERSION.to_owned()),
            ("model".to_owned(), self.model.fingerprint().to_owned()),
            ("keys".to_owned(), self.format_names()),
            ("num_layers".to_owned(), num_layers.to_string()),
            ("num_kv_heads".to_owned(), num_kv_heads.to_string()),
            ("head_dim".to_owned(), head_dim.to_string()),
        ]);
        let arrays: Vec<(String, Vec<u8>)> = self
            .placed()
            .flat_map(|((layer, head), coder)| {
                coder.tables().into_iter().map(move |(name, table)| {
                    let bytes = table.iter().flat_map(|x| x.to_le_bytes()).collect();
                    (format!("{layer}.{head}.{name}"), bytes)
                })
            })
            .collect();
        let damaged =
            |error: safetensors::SafeTensorError| kind.damaged(path, &[], error.to_string());
        let views: Result<Vec<_>> = arrays
            .iter()
            .map(|(name, bytes)| {
                let view = TensorView::new(Dtype::F16, vec![bytes.len() / 2], bytes);
                Ok((name, view.map_err(damaged)?))
            })
            .collect();
        kind.replace(path, &safetensors::serialize(views?, Some(metadata)).map_err(damaged)?)
    }

    /// The name of the format, or of a mix the names of all heads with blanks between them.
    fn format_names(&self) -> String {
        match self.format() {
            Some(format) => format.to_string(),
            None => {
                let names = self.coders.iter().map(|coder| coder.format().to_string());
                names.collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// Reads a profile. The tables are read only where the file is as long as its header says that it must be.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), [`Error::FileIo`](crate::Error::FileIo), and [`Error::FileFormat`](crate::Error::FileFormat) for a file that is damaged, too large, of another version
    /// or no profile at all.
    pub fn load(path: &Path) -> Result<Self> {
        let kind = FileKind::Profile;
        let file = kind.open(path)?;
        let mut bytes = Vec::new();
        let header = read_header(&file, &mut bytes).map_err(|source| kind.io(path, source))?;
        let header = header.and_then(|()| Header::parse(&bytes[LEN_BYTES..]));
        let header = header.map_err(|reason| kind.damaged(path, &bytes, reason))?;
        let len = file.metadata().map_err(|source| kind.io(path, source))?.len();
        header.check_len(bytes.len(), len).map_err(|reason| kind.damaged(path, &[], reason))?;
        (&file)
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|source| kind.io(path, source))?;
        header.profile(&bytes).map_err(|reason| kind.damaged(path, &[], reason))
    }
}

/// Reads the length of a header and the header, or says what is wrong with the length.
fn read_header(file: &File, bytes: &mut Vec<u8>) -> std::io::Result<Result<(), String>> {
    // A little more, by which other files show what they are.
    const START_BYTES: u64 = 64;
    file.take(START_BYTES).read_to_end(bytes)?;
    let len = bytes.first_chunk::<LEN_BYTES>().map(|len| u64::from_le_bytes(*len));
    let Some(len) = len.filter(|len| (START_BYTES..=MAX_HEADER_BYTES).contains(len)) else {
        return Ok(Err("it does not begin with the length of a header".to_owned()));
    };
    file.take(len + LEN_BYTES as u64 - START_BYTES).read_to_end(bytes)?;
    Ok(Ok(()))
}

/// What a file's header says.
struct Header {
    model: ModelIdentity,
    /// One for all heads, or one for each.
    formats: Vec<KeyFormat>,
}

/// The header as it is written; its other fields are the tables.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "__metadata__")]
    metadata: HashMap<String, String>,
}

impl Header {
    /// Reads a header, or says what is wrong with it.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Written { metadata } =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let field = |name: &str| metadata.get(name).ok_or(format!("it does not say its {name}"));
        let count = |name: &str| {
            let count = field(name)?.parse::<usize>().ok().filter(|&n| (1..=65_536).contains(&n));
            count.ok_or(format!("its {name} is not a count"))
        };
        let version = field(FileKind::Profile.mark())?;
        if version != VERSION {
            return Err(format!("it is of version {version}, this program reads {VERSION}"));
        }
        let shape = [count("num_layers")?, count("num_kv_heads")?, count("head_dim")?];
        let model = ModelIdentity::new(field("model")?.clone(), shape);
        let model = model.map_err(|error| error.to_string())?;
        let names = field("keys")?.split(' ').map(str::parse);
        let formats: Result<Vec<KeyFormat>, heterokv_quant::Error> = names.collect();
        let formats = formats.map_err(|error| error.to_string())?;
        if formats.len() != 1 && formats.len() != model.num_heads() {
            let (found, heads) = (formats.len(), model.num_heads());
            return Err(format!("it has {found} formats for {heads} KV heads"));
        }
        Ok(Self { model, formats })
    }

    /// The formats of all heads.
    fn head_formats(&self) -> impl Iterator<Item = KeyFormat> {
        self.formats.iter().copied().cycle().take(self.model.num_heads())
    }

    /// Refuses a file of `len` bytes, `header_len` of them up to the tables, that is too long or too short for them.
    fn check_len(&self, header_len: usize, len: u64) -> Result<(), String> {
        let mut expected = header_len as u64;
        for format in self.head_formats() {
            let layout = format.layout(self.model.head_dim).map_err(|error| error.to_string())?;
            expected += layout.table_bytes as u64;
        }
        if len != expected {
            return Err(format!(
                "it has {len} bytes, with all its tables it would have {expected}"
            ));
        }
        if len > MAX_FILE_BYTES {
            return Err(format!(
                "it has {len} bytes, more than the {MAX_FILE_BYTES} of any profile"
            ));
        }
        Ok(())
    }

    /// The profile of the file `bytes`, or what is wrong with its tables.
    fn profile(self, bytes: &[u8]) -> Result<Profile, String> {
        let in_words = |error: safetensors::SafeTensorError| error.to_string();
        let arrays = SafeTensors::deserialize(bytes).map_err(in_words)?;
        let ModelIdentity { num_kv_heads, head_dim, .. } = self.model;
        let mut coders = Vec::with_capacity(self.model.num_heads());
        for (i, format) in self.head_formats().enumerate() {
            let (layer, head) = (i / num_kv_heads, i % num_kv_heads);
            let mut tables = Tables::new();
            for &name in KeyCoder::table_names(format) {
                let array = arrays.tensor(&format!("{layer}.{head}.{name}")).map_err(in_words)?;
                if array.dtype() != Dtype::F16 {
                    return Err(format!("table {layer}.{head}.{name} is not f16"));
                }
                let values = array.data().as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x));
                tables.push((name, values.collect()));
            }
            let coder = KeyCoder::restore(format, head_dim, &tables);
            coders.push(coder.map_err(|error| error.to_string())?);
        }
        Ok(Profile { model: self.model, coders })
    }
}
