//! Profiles: key-coder tables fitted once for a model, kept in a file, used for any context.
//!
//! The file is in safetensors form: one array per table, named `layer.kv_head.table`, and the format (of a
//! mix, one for each head), the model's fingerprint and the shape in its metadata. HCAttention fits its
//! codebooks offline this way (arXiv 2507.19823); a cache without a profile fits them on the prompt itself.

use std::collections::HashMap;
use std::path::Path;

use half::f16;
use heterokv_quant::keys::Tables;
use heterokv_quant::{KeyCoder, KeyFormat};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::cache::{KvCache, KvShape};
use crate::{Error, Keys, Result, whole_file};

/// Version of the file's layout.
const VERSION: &str = "1";

/// Fitted coders for every (layer, KV head) of one model.
#[derive(Clone, Debug)]
pub struct Profile {
    fingerprint: String,
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `[num_layers, num_kv_heads]`, one at least.
    coders: Vec<KeyCoder>,
}

impl Profile {
    /// The tables that `cache` has fitted, for the model of `fingerprint`. None while any of its heads
    /// has coded nothing.
    #[must_use]
    pub fn of(cache: &KvCache, fingerprint: &str) -> Option<Self> {
        let KvShape { num_layers, heads } = cache.shape();
        let places = (0..num_layers).flat_map(|l| (0..heads.num_kv_heads).map(move |h| (l, h)));
        let coders: Option<Vec<KeyCoder>> =
            places.map(|(layer, head)| cache.coder(layer, head).cloned()).collect();
        let coders = coders.filter(|coders| !coders.is_empty())?;
        Some(Self {
            fingerprint: fingerprint.to_owned(),
            num_layers,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            coders,
        })
    }

    /// The key format that was fitted; none where heads have different ones.
    #[must_use]
    pub fn format(&self) -> Option<KeyFormat> {
        let format = self.coders[0].format();
        self.coders.iter().all(|coder| coder.format() == format).then_some(format)
    }

    /// The coder of a (layer, KV head) that the shape has.
    pub(crate) fn coder(&self, (layer, kv_head): (usize, usize)) -> &KeyCoder {
        &self.coders[layer * self.num_kv_heads + kv_head]
    }

    /// Refuses a cache of another shape or of other key formats.
    pub(crate) fn check(&self, shape: &KvShape, keys: &Keys) -> Result<()> {
        let show = |l: usize, h: usize, d: usize| format!("{l} layers of {h} KV heads of {d}");
        let found = show(self.num_layers, self.num_kv_heads, self.head_dim);
        let heads = shape.heads;
        let expected = show(shape.num_layers, heads.num_kv_heads, heads.head_dim);
        mismatch("shape", found, expected)?;
        if let (Some(found), Keys::Uniform(expected)) = (self.format(), keys) {
            return mismatch("key format", found.to_string(), expected.to_string());
        }
        for (i, coder) in self.coders.iter().enumerate() {
            let (layer, head) = (i / self.num_kv_heads, i % self.num_kv_heads);
            let at_place = |format| format!("{format} in layer {layer}, KV head {head}");
            let expected = at_place(keys.format((layer, head)));
            mismatch("key format", at_place(coder.format()), expected)?;
        }
        Ok(())
    }

    /// Refuses a model other than the one the tables were fitted for.
    ///
    /// # Errors
    /// [`Error::ProfileMismatch`].
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        mismatch("model", self.fingerprint.clone(), fingerprint.to_owned())
    }

    /// Refuses a path that [`Profile::save`] could not write to, before the work of fitting one.
    ///
    /// # Errors
    /// [`Error::ProfileIo`]: a folder that is missing or not writable, and a path that is there and not a
    /// regular file.
    pub fn check_writable(path: &Path) -> Result<()> {
        whole_file::check_writable(path)
            .map_err(|source| Error::ProfileIo { path: path.to_owned(), source })
    }

    /// Writes the profile; a file of that name is replaced whole or not at all.
    ///
    /// # Errors
    /// [`Error::ProfileIo`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let metadata = HashMap::from([
            ("heterokv_profile".to_owned(), VERSION.to_owned()),
            ("model".to_owned(), self.fingerprint.clone()),
            ("keys".to_owned(), self.format_names()),
            ("num_layers".to_owned(), self.num_layers.to_string()),
            ("num_kv_heads".to_owned(), self.num_kv_heads.to_string()),
            ("head_dim".to_owned(), self.head_dim.to_string()),
        ]);
        let arrays: Vec<(String, Vec<u8>)> = self
            .coders
            .iter()
            .enumerate()
            .flat_map(|(i, coder)| {
                let (layer, head) = (i / self.num_kv_heads, i % self.num_kv_heads);
                coder.tables().into_iter().map(move |(name, table)| {
                    let bytes = table.iter().flat_map(|x| x.to_le_bytes()).collect();
                    (format!("{layer}.{head}.{name}"), bytes)
                })
            })
            .collect();
        let damaged = |reason: String| Error::ProfileFormat { path: path.to_owned(), reason };
        let views: Result<Vec<_>> = arrays
            .iter()
            .map(|(name, bytes)| {
                let view = TensorView::new(Dtype::F16, vec![bytes.len() / 2], bytes);
                Ok((name, view.map_err(|error| damaged(error.to_string()))?))
            })
            .collect();
        let bytes = safetensors::serialize(views?, Some(metadata));
        let bytes = bytes.map_err(|error| damaged(error.to_string()))?;
        whole_file::replace(path, &bytes)
            .map_err(|source| Error::ProfileIo { path: path.to_owned(), source })
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

    /// Reads a profile.
    ///
    /// # Errors
    /// [`Error::ProfileIo`], and [`Error::ProfileFormat`] for a file that is damaged, of another version
    /// or no profile at all.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)
            .map_err(|source| Error::ProfileIo { path: path.to_owned(), source })?;
        parse(&bytes).map_err(|reason| Error::ProfileFormat { path: path.to_owned(), reason })
    }
}

/// Reads a profile from the bytes of its file, or says what is wrong with them.
fn parse(bytes: &[u8]) -> std::result::Result<Profile, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let metadata = header.metadata().as_ref().ok_or("it has no metadata")?;
    let field = |name: &str| metadata.get(name).ok_or(format!("it does not say its {name}"));
    let count = |name: &str| {
        let count = field(name)?.parse::<usize>().ok().filter(|&n| (1..=65_536).contains(&n));
        count.ok_or(format!("its {name} is not a count"))
    };
    let version = field("heterokv_profile")?;
    if version != VERSION {
        return Err(format!("it is of version {version}, this program reads {VERSION}"));
    }
    let (num_layers, num_kv_heads) = (count("num_layers")?, count("num_kv_heads")?);
    let head_dim = count("head_dim")?;
    // Formats without tables have no arrays whose absence would end the loop below.
    if num_layers * num_kv_heads > 65_536 {
        return Err(format!("{num_layers} layers of {num_kv_heads} KV heads are no model's"));
    }
    let formats: Vec<KeyFormat> = field("keys")?
        .split(' ')
        .map(|name| name.parse().map_err(|e: heterokv_quant::Error| e.to_string()))
        .collect::<std::result::Result<_, _>>()?;
    if formats.len() != 1 && formats.len() != num_layers * num_kv_heads {
        let found = formats.len();
        return Err(format!(
            "it has {found} formats for {num_layers} layers of {num_kv_heads} KV heads"
        ));
    }
    let arrays = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut coders = Vec::new();
    for layer in 0..num_layers {
        for head in 0..num_kv_heads {
            let format = formats[coders.len() % formats.len()];
            let mut tables = Tables::new();
            for &name in KeyCoder::table_names(format) {
                let array = arrays.tensor(&format!("{layer}.{head}.{name}"));
                let array = array.map_err(|error| error.to_string())?;
                if array.dtype() != Dtype::F16 {
                    return Err(format!("table {layer}.{head}.{name} is not f16"));
                }
                let values = array.data().as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x));
                tables.push((name, values.collect()));
            }
            let coder = KeyCoder::restore(format, head_dim, &tables);
            coders.push(coder.map_err(|error| error.to_string())?);
        }
    }
    let fingerprint = field("model")?.clone();
    Ok(Profile { fingerprint, num_layers, num_kv_heads, head_dim, coders })
}

fn mismatch(field: &'static str, found: String, expected: String) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::ProfileMismatch { field, found, expected }) }
}
