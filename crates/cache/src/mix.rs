//! Mixes: a key format for every (layer, KV head) of one model, kept in a file.
//!
//! The file is JSON: the version of its layout, the model's fingerprint, the shape, and the names of the
//! formats, a row for each layer. It names formats only; tables are fitted on the prompt or come from a
//! [`Profile`](crate::Profile), as with any other keys.

use std::io::Read;
use std::path::{Path, PathBuf};

use heterokv_quant::KeyFormat;
use serde::Deserialize;

use crate::{Error, KvShape, Result, whole_file};

/// Version of the file's layout.
const VERSION: u64 = 1;

/// Most bytes of a file, some times what the largest shape needs.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Most heads that a mix is for, as of a profile.
const MAX_HEADS: usize = 65_536;

/// The key format of every (layer, KV head) of one model.
///
/// ```
/// use heterokv_cache::{HeadShape, KeyFormat, KeyMix, KvShape};
///
/// // Two layers of two KV heads.
/// let shape = KvShape { num_layers: 2, heads: HeadShape::new(4, 2, 64)? };
/// let names = ["alloc/1.5", "alloc/3", "alloc/2", "alloc/1.5"];
/// let formats: Result<Vec<KeyFormat>, _> = names.iter().map(|name| name.parse()).collect();
/// let mix = KeyMix::new("fingerprint of a model", &shape, formats?)?;
///
/// assert_eq!(mix.format(0, 1).to_string(), "alloc/3");
/// assert_eq!(mix.counts()[0], ("alloc/1.5".parse()?, 2));
/// // 13, 25, 17 and 13 bytes a row, and four tables of 528 bytes, for 4,096 rows of 64 elements.
/// assert!((mix.bits_per_element(4096)? - (17.0 / 8.0 + 528.0 / 32_768.0)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KeyMix {
    file: PathBuf,
    fingerprint: String,
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `[num_layers, num_kv_heads]`.
    formats: Vec<KeyFormat>,
}

/// The file as it is read; what is left of it after its version is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(rename = "heterokv_mix")]
    _version: u64,
    model: String,
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// `[num_layers][num_kv_heads]`.
    keys: Vec<Vec<String>>,
}

/// What every version of the file says.
#[derive(Deserialize)]
struct Versioned {
    heterokv_mix: u64,
}

impl KeyMix {
    /// `formats [num_layers, num_kv_heads]` for the model of `fingerprint`, which is of `shape`. It has no
    /// file until it is [saved](KeyMix::save).
    ///
    /// # Errors
    /// [`Error::Length`] for another number of formats, [`Error::MixMismatch`] for a shape of no or too many
    /// heads, and a format's refusal of the `head_dim`.
    pub fn new(fingerprint: &str, shape: &KvShape, formats: Vec<KeyFormat>) -> Result<Self> {
        let KvShape { num_layers, heads } = *shape;
        let mix = Self {
            file: PathBuf::new(),
            fingerprint: fingerprint.to_owned(),
            num_layers,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            formats,
        };
        let num_heads = num_layers.checked_mul(heads.num_kv_heads);
        let expected = num_heads.filter(|heads| (1..=MAX_HEADS).contains(heads));
        let expected = expected.ok_or_else(|| Error::MixMismatch {
            field: "shape",
            found: mix.shape_in_words(),
            expected: format!("1 to {MAX_HEADS} heads"),
        })?;
        let actual = mix.formats.len();
        if actual != expected {
            return Err(Error::Length { tensor: "formats", actual, expected });
        }
        mix.formats.iter().try_for_each(|format| format.layout(heads.head_dim).map(drop))?;
        Ok(mix)
    }

    /// The format of a (layer, KV head).
    ///
    /// # Panics
    /// When there is no such head.
    #[must_use]
    pub fn format(&self, layer: usize, kv_head: usize) -> KeyFormat {
        assert!(kv_head < self.num_kv_heads, "a KV head of the layer");
        self.formats[layer * self.num_kv_heads + kv_head]
    }

    /// Every format and the number of heads that have it, in the order of first appearance.
    #[must_use]
    pub fn counts(&self) -> Vec<(KeyFormat, usize)> {
        let mut counts: Vec<(KeyFormat, usize)> = Vec::new();
        for &format in &self.formats {
            match counts.iter_mut().find(|(known, _)| *known == format) {
                Some((_, count)) => *count += 1,
                None => counts.push((format, 1)),
            }
        }
        counts
    }

    /// All bits of a coded element at `num_tokens` coded tokens, the mean over all heads: codes, scales and
    /// tables.
    ///
    /// # Errors
    /// None that a mix of this crate's making gives: its formats hold the `head_dim`.
    pub fn bits_per_element(&self, num_tokens: usize) -> Result<f64> {
        let mut bits = 0.0;
        for (format, count) in self.counts() {
            bits += count as f64 * format.bits_per_element(self.head_dim, num_tokens)?;
        }
        Ok(bits / self.formats.len() as f64)
    }

    /// Where it was read from or saved to; empty where neither was done. A cache spec names the mix by it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Refuses a model other than the one whose heads were measured.
    ///
    /// # Errors
    /// [`Error::MixMismatch`].
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        mismatch("model", self.fingerprint.clone(), fingerprint.to_owned())
    }

    /// Refuses a model of another shape.
    pub(crate) fn check_shape(&self, shape: &KvShape) -> Result<()> {
        let heads = shape.heads;
        let expected = in_words(shape.num_layers, heads.num_kv_heads, heads.head_dim);
        mismatch("shape", self.shape_in_words(), expected)
    }

    fn shape_in_words(&self) -> String {
        in_words(self.num_layers, self.num_kv_heads, self.head_dim)
    }

    /// Refuses a path that [`KeyMix::save`] could not write to, before the work of measuring for one.
    ///
    /// # Errors
    /// [`Error::MixIo`]: a folder that is missing or not writable, and a path that is there and not a
    /// regular file.
    pub fn check_writable(path: &Path) -> Result<()> {
        whole_file::check_writable(path)
            .map_err(|source| Error::MixIo { path: path.to_owned(), source })
    }

    /// Writes the mix; a file of that name is replaced whole or not at all. From here on the mix is of
    /// that file.
    ///
    /// # Errors
    /// [`Error::MixIo`].
    pub fn save(&mut self, path: &Path) -> Result<()> {
        whole_file::replace(path, self.text().as_bytes())
            .map_err(|source| Error::MixIo { path: path.to_owned(), source })?;
        self.file = path.to_owned();
        Ok(())
    }

    /// The file's text: a line for each field, and one for each layer.
    fn text(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let layers = self.formats.chunks_exact(self.num_kv_heads).map(|layer| {
            let names: Vec<String> =
                layer.iter().map(|format| quoted(&format.to_string())).collect();
            format!("    [{}]", names.join(", "))
        });
        format!(
            "{{\n  \"heterokv_mix\": {VERSION},\n  \"model\": {},\n  \"num_layers\": {},\n  \
             \"num_kv_heads\": {},\n  \"head_dim\": {},\n  \"keys\": [\n{}\n  ]\n}}\n",
            quoted(&self.fingerprint),
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            layers.collect::<Vec<_>>().join(",\n")
        )
    }

    /// Reads a mix.
    ///
    /// # Errors
    /// [`Error::MixIo`], and [`Error::MixFormat`] for a file that is damaged, of another version or no mix at
    /// all.
    pub fn load(path: &Path) -> Result<Self> {
        let io = |source| Error::MixIo { path: path.to_owned(), source };
        let damaged = |reason| Error::MixFormat { path: path.to_owned(), reason };
        if path.exists() && !path.is_file() {
            let reason = "there is something else than a regular file at this path";
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason)));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(damaged(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        let mix = parse(&bytes).map_err(damaged)?;
        Ok(Self { file: path.to_owned(), ..mix })
    }
}

/// Reads a mix from the bytes of its file, or says what is wrong with them.
fn parse(bytes: &[u8]) -> std::result::Result<KeyMix, String> {
    let in_words = |error: serde_json::Error| error.to_string();
    let Versioned { heterokv_mix: version } = serde_json::from_slice(bytes).map_err(in_words)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, this program reads {VERSION}"));
    }
    let contents: Contents = serde_json::from_slice(bytes).map_err(in_words)?;
    let Contents { num_layers, num_kv_heads, head_dim, keys, .. } = contents;
    if keys.len() != num_layers {
        return Err(format!("it has keys for {} layers and says {num_layers}", keys.len()));
    }
    let mut formats = Vec::new();
    for (layer, names) in keys.iter().enumerate() {
        if names.len() != num_kv_heads {
            let found = names.len();
            return Err(format!(
                "it has keys for {found} KV heads in layer {layer}, not {num_kv_heads}"
            ));
        }
        for (kv_head, name) in names.iter().enumerate() {
            let place = |error| format!("layer {layer}, KV head {kv_head}: {error}");
            let format: KeyFormat = name.parse().map_err(place)?;
            format.layout(head_dim).map_err(place)?;
            formats.push(format);
        }
    }
    if formats.is_empty() || formats.len() > MAX_HEADS {
        return Err(format!("{num_layers} layers of {num_kv_heads} KV heads are no model's"));
    }
    let (file, fingerprint) = (PathBuf::new(), contents.model);
    Ok(KeyMix { file, fingerprint, num_layers, num_kv_heads, head_dim, formats })
}

fn in_words(num_layers: usize, num_kv_heads: usize, head_dim: usize) -> String {
    format!("{num_layers} layers of {num_kv_heads} KV heads of {head_dim}")
}

fn mismatch(field: &'static str, found: String, expected: String) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::MixMismatch { field, found, expected }) }
}
