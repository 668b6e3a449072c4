//! Mixes: a key format for every (layer, KV head) of one model, kept in a file.
//!
//! The file is JSON: the version of its layout, the model's fingerprint, the shape, and the names of the
//! formats, a row for each layer. It names formats only; tables are fitted on the prompt or come from a
//! [`Profile`](crate::Profile), as with any other keys.

use std::io::Read;
use std::path::Path;

use heterokv_quant::KeyFormat;
use serde::Deserialize;

use crate::model_file::{FileKind, ModelIdentity};
use crate::{Error, KvShape, Result};

/// Version of the file's layout.
const VERSION: u64 = 1;

/// Most bytes of a file, some times what the largest shape needs.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The key format of every (layer, KV head) of one model, and the file that keeps it, by whose path a cache
/// spec names it.
///
/// ```
/// use heterokv_cache::{HeadShape, KeyFormat, KeyMix, KvShape};
///
/// // Two layers of two KV heads.
/// let shape = KvShape { num_layers: 2, heads: HeadShape::new(4, 2, 64)? };
/// let names = ["alloc/1.5", "alloc/3", "alloc/2", "alloc/1.5"];
/// let formats: Result<Vec<KeyFormat>, _> = names.iter().map(|name| name.parse()).collect();
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.mix");
/// let mix = KeyMix::create(&path, "fingerprint of a model", &shape, formats?)?;
///
/// assert_eq!(mix.format(0, 1).to_string(), "alloc/3");
/// assert_eq!(mix.counts()[0], ("alloc/1.5".parse()?, 2));
/// // 13, 25, 17 and 13 bytes a row, and four tables of 528 bytes, for 4,096 rows of 64 elements.
/// assert!((mix.bits_per_element(4096)? - (17.0 / 8.0 + 528.0 / 32_768.0)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct KeyMix {
    /// A path that a spec can hold.
    file: String,
    model: ModelIdentity,
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
    /// Writes a mix to a file: `formats [num_layers, num_kv_heads]` for the model of `fingerprint`, which is of
    /// `shape`. An older mix at this path, or an empty file, is replaced whole or not at all.
    ///
    /// # Errors
    /// [`Error::MixPath`] for a path that no spec can hold, [`Error::HeadCount`], [`Error::Length`] for another
    /// number of formats, a format's refusal of the `head_dim`, [`Error::FileIo`] and [`Error::Occupied`].
    pub fn create(
        path: &Path,
        fingerprint: &str,
        shape: &KvShape,
        formats: Vec<KeyFormat>,
    ) -> Result<Self> {
        let model = ModelIdentity::of(fingerprint, shape)?;
        let (actual, expected) = (formats.len(), model.num_heads());
        if actual != expected {
            return Err(Error::Length { tensor: "formats", actual, expected });
        }
        formats.iter().try_for_each(|format| format.layout(model.head_dim).map(drop))?;
        let mix = Self { file: path_in_spec(path)?, model, formats };
        FileKind::Mix.replace(path, mix.text().as_bytes())?;
        Ok(mix)
    }

    /// The format of a (layer, KV head).
    ///
    /// # Panics
    /// When there is no such head.
    #[must_use]
    pub fn format(&self, layer: usize, kv_head: usize) -> KeyFormat {
        assert!(kv_head < self.model.num_kv_heads, "a KV head of the layer");
        self.formats[layer * self.model.num_kv_heads + kv_head]
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
            bits += count as f64 * format.bits_per_element(self.model.head_dim, num_tokens)?;
        }
        Ok(bits / self.formats.len() as f64)
    }

    /// The path of its file.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Refuses another model than the one whose heads were measured.
    pub(crate) fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        self.model.check_fingerprint(FileKind::Mix, fingerprint)
    }

    /// Refuses a model of another shape.
    pub(crate) fn check_shape(&self, shape: &KvShape) -> Result<()> {
        self.model.check_shape(FileKind::Mix, shape)
    }

    /// Refuses a path that [`KeyMix::create`] could not write to, before the work of measuring for one.
    ///
    /// # Errors
    /// [`Error::MixPath`]. [`Error::FileIo`]: a folder that is missing or not writable, and a path that is there
    /// and not a regular file. [`Error::Occupied`]: a file that is read-only or no mix.
    pub fn check_writable(path: &Path) -> Result<()> {
        path_in_spec(path)?;
        FileKind::Mix.check_writable(path)
    }

    /// The file's text: a line for each field, and one for each layer.
    fn text(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let layers = self.formats.chunks_exact(self.model.num_kv_heads).map(|layer| {
            let names: Vec<String> =
                layer.iter().map(|format| quoted(&format.to_string())).collect();
            format!("    [{}]", names.join(", "))
        });
        format!(
            "{{\n  \"{}\": {VERSION},\n  \"model\": {},\n  \"num_layers\": {},\n  \
             \"num_kv_heads\": {},\n  \"head_dim\": {},\n  \"keys\": [\n{}\n  ]\n}}\n",
            FileKind::Mix.mark(),
            quoted(self.model.fingerprint()),
            self.model.num_layers,
            self.model.num_kv_heads,
            self.model.head_dim,
            layers.collect::<Vec<_>>().join(",\n")
        )
    }

    /// Reads a mix.
    ///
    /// # Errors
    /// [`Error::MixPath`], [`Error::Missing`], [`Error::FileIo`], and [`Error::FileFormat`] for a file that is damaged, too large, of
    /// another version or no mix at all.
    pub fn load(path: &Path) -> Result<Self> {
        let kind = FileKind::Mix;
        let file = path_in_spec(path)?;
        let mut bytes = Vec::new();
        let mut opened = kind.open(path)?.take(MAX_FILE_BYTES + 1);
        opened.read_to_end(&mut bytes).map_err(|source| kind.io(path, source))?;
        let parsed = if bytes.len() as u64 > MAX_FILE_BYTES {
            Err(format!("it has more than {MAX_FILE_BYTES} bytes"))
        } else {
            parse(&bytes)
        };
        let (model, formats) = parsed.map_err(|reason| kind.damaged(path, &bytes, reason))?;
        Ok(Self { file, model, formats })
    }
}

/// A path as a spec holds it: between the `keys=mix:` before it and a comma or the end.
fn path_in_spec(path: &Path) -> Result<String> {
    let refused = |reason| Error::MixPath { path: path.to_owned(), reason };
    let text = path.to_str().ok_or_else(|| refused("it is not UTF-8"))?;
    let reason = match text {
        "" => "it is empty",
        _ if text.contains(',') => "it has a comma, which ends an option",
        _ if text.trim_end() != text => "it ends in white space",
        _ => return Ok(text.to_owned()),
    };
    Err(refused(reason))
}

/// Reads a mix from the bytes of its file, or says what is wrong with them.
fn parse(bytes: &[u8]) -> Result<(ModelIdentity, Vec<KeyFormat>), String> {
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
    let model = ModelIdentity::new(contents.model, [num_layers, num_kv_heads, head_dim]);
    Ok((model.map_err(|error| error.to_string())?, formats))
}
