//! Head profiles: what each KV head of one model is to its cache, measured once and kept in a file.
//!
//! The file is JSON: the version of its layout, the model's fingerprint, the shape, how the heads were measured, and
//! roles, stabilities and weights, a row for each layer. The files that the authors of HeteroCache publish are read
//! as well (arXiv 2601.13684); they name no model.

mod own;
mod published;

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use heterokv_evict::{HeadRole, check_roles, check_threshold, stability_weights};

use crate::cache::check_len;
use crate::model_file::{FileKind, ModelIdentity};
use crate::{Error, KvShape, Result};

/// Most bytes of a file, some times what the largest shape needs.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// How far the mean of weights may be from 1.
const MEAN_ERROR: f64 = 1e-6;

/// How the heads of a model were measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadMeasure {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens behind it whose queries are held against its last one.
    pub steps: usize,
    /// Positions of the prompt that count as what a query attends to.
    pub top_k: usize,
    /// The least stability of an anchor, in (0, 1].
    pub tau_stable: f64,
    /// The least similarity of a satellite and its pivot, in (0, 1].
    pub tau_sim: f64,
    /// Where heads are held against each other.
    pub similarity: SimilarityAt,
}

/// Where heads of a layer are held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimilarityAt {
    /// At the last token of the prompt, as in the published profiles.
    Prompt,
    /// At every step behind it: the median.
    Steps,
}

/// The roles of all KV heads of one model, and the weights by which those that hold a part of the tokens divide
/// what there is.
///
/// ```
/// use heterokv_cache::{HeadMeasure, HeadProfile, HeadRole, HeadShape, KvShape, SimilarityAt};
///
/// // One layer of three KV heads, two of which attend to the same tokens.
/// let shape = KvShape { num_layers: 1, heads: HeadShape::new(3, 3, 64)? };
/// let measure = HeadMeasure {
///     prompt_tokens: 5000,
///     steps: 100,
///     top_k: 1024,
///     tau_stable: 0.5,
///     tau_sim: 0.5,
///     similarity: SimilarityAt::Prompt,
/// };
/// let roles = vec![HeadRole::Pivot, HeadRole::Satellite { pivot: 0 }, HeadRole::Anchor];
/// let heads = HeadProfile::new("a fingerprint", &shape, measure, vec![0.7, 0.6, 0.9], roles)?;
///
/// assert_eq!(heads.role(0, 2), HeadRole::Anchor);
/// // The less stable of the two that share a budget has more of it: 3/2 of what the other has.
/// assert!((heads.weight(0, 1) - 1.2).abs() < 1e-5 && (heads.weight(0, 2) - 0.8).abs() < 1e-5);
/// assert_eq!(heads.weight(0, 0), 0.0);
/// assert_eq!(heads.full_share(), 1.0 / 3.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeadProfile {
    num_layers: usize,
    num_kv_heads: usize,
    /// `[num_layers, num_kv_heads]`, as all below.
    roles: Vec<HeadRole>,
    weights: Vec<f64>,
    budget_weights: Option<Vec<f64>>,
    /// None of a published file, which does not say it.
    measured: Option<Measured>,
}

/// Where a profile comes from.
#[derive(Clone, Debug, PartialEq)]
struct Measured {
    model: ModelIdentity,
    measure: HeadMeasure,
    stability: Vec<f64>,
}

impl HeadMeasure {
    /// Refuses a measure that says nothing: no prompt, no steps, thresholds that are none, and a `top_k` that is 0
    /// or not less than the prompt, for which all overlaps are 1.
    ///
    /// # Errors
    /// [`Error::HeadMeasure`], and [`Error::Evict`] for a threshold outside (0, 1].
    pub fn check(&self) -> Result<()> {
        check_threshold("tau_stable", self.tau_stable)?;
        check_threshold("tau_sim", self.tau_sim)?;
        let refused = |what, value, remedy| Err(Error::HeadMeasure { what, value, remedy });
        match *self {
            Self { steps: 0, .. } => refused("steps", 0, "at least one token follows the prompt"),
            Self { top_k, prompt_tokens, .. } if top_k == 0 || top_k >= prompt_tokens => {
                let remedy = "it is at least 1 and less than the tokens of the prompt, since all sets \
                              are the same otherwise";
                refused("a top-k", top_k, remedy)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for SimilarityAt {
    /// `prompt` or `steps`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prompt => "prompt",
            Self::Steps => "steps",
        })
    }
}

impl FromStr for SimilarityAt {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "prompt" => Ok(Self::Prompt),
            "steps" => Ok(Self::Steps),
            _ => Err(format!("unknown '{word}'; known are prompt and steps")),
        }
    }
}

impl HeadProfile {
    /// The profile of the model of `fingerprint`, which is of `shape`: `stability` and `roles`
    /// `[num_layers, num_kv_heads]`, measured as `measure` says. Weights are those of
    /// [`stability_weights`](heterokv_evict::stability_weights).
    ///
    /// # Errors
    /// [`Error::HeadCount`], [`Error::Length`], what [`HeadMeasure::check`] refuses, and [`Error::Evict`] for a
    /// stability that is none and roles that do not go together.
    pub fn new(
        fingerprint: &str,
        shape: &KvShape,
        measure: HeadMeasure,
        stability: Vec<f64>,
        roles: Vec<HeadRole>,
    ) -> Result<Self> {
        let model = ModelIdentity::of(fingerprint, shape)?;
        Self::of(Measured { model, measure, stability }, roles)
    }

    fn of(measured: Measured, roles: Vec<HeadRole>) -> Result<Self> {
        let Measured { model, measure, stability } = &measured;
        let (num_layers, num_kv_heads) = (model.num_layers, model.num_kv_heads);
        measure.check()?;
        check_len("stability", stability.len(), model.num_heads())?;
        check_len("roles", roles.len(), model.num_heads())?;
        roles.chunks_exact(num_kv_heads).try_for_each(check_roles)?;
        let weights = stability_weights(stability, &roles)?;
        let measured = Some(measured);
        Ok(Self { num_layers, num_kv_heads, roles, weights, budget_weights: None, measured })
    }

    /// The same with weights `[num_layers, num_kv_heads]` by which all heads, whatever their roles, divide a budget
    /// (BaKlaVa, arXiv 2502.13176), in place of those that were there.
    ///
    /// # Errors
    /// [`Error::Length`], and [`Error::HeadWeights`] where one is no number above 0 or their mean is not 1.
    pub fn with_budget_weights(mut self, weights: Vec<f64>) -> Result<Self> {
        check_len("budget weights", weights.len(), self.roles.len())?;
        let refused = |reason| Error::HeadWeights { what: "budget weights", reason };
        check_weights(&weights, |_| true, self.num_kv_heads).map_err(refused)?;
        self.budget_weights = Some(weights);
        Ok(self)
    }

    /// Layers of the model.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// KV heads of each layer.
    #[must_use]
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// The roles of all heads `[num_layers, num_kv_heads]`.
    #[must_use]
    pub fn roles(&self) -> &[HeadRole] {
        &self.roles
    }

    /// The role of a (layer, KV head).
    ///
    /// # Panics
    /// When there is no such head; as all calls below.
    #[must_use]
    pub fn role(&self, layer: usize, kv_head: usize) -> HeadRole {
        self.roles[self.index(layer, kv_head)]
    }

    /// What an anchor or satellite has of a budget per head: the mean over all of them is 1. 0 for a head that keeps
    /// all tokens.
    #[must_use]
    pub fn weight(&self, layer: usize, kv_head: usize) -> f64 {
        self.weights[self.index(layer, kv_head)]
    }

    /// What a head has of a budget per head where all heads divide one: the mean over all of them is 1. None where
    /// the profile has no such weights.
    #[must_use]
    pub fn budget_weight(&self, layer: usize, kv_head: usize) -> Option<f64> {
        let index = self.index(layer, kv_head);
        self.budget_weights.as_ref().map(|weights| weights[index])
    }

    /// What a cache takes from the profile, in words for each (layer, KV head): its role, its weight, and its budget's where there
    /// is one.
    pub(crate) fn said_of_heads(&self) -> Vec<String> {
        let said = |(index, role): (usize, &HeadRole)| match &self.budget_weights {
            None => format!("{role}/{}", self.weights[index]),
            Some(weights) => format!("{role}/{}/{}", self.weights[index], weights[index]),
        };
        self.roles.iter().enumerate().map(said).collect()
    }

    /// How far the positions that a head attends to stay those of the end of the prompt, in [0, 1]. None of a
    /// published file, which does not say it.
    #[must_use]
    pub fn stability(&self, layer: usize, kv_head: usize) -> Option<f64> {
        let index = self.index(layer, kv_head);
        self.measured.as_ref().map(|measured| measured.stability[index])
    }

    /// How the heads were measured. None of a published file, which does not say it.
    #[must_use]
    pub fn measure(&self) -> Option<HeadMeasure> {
        self.measured.as_ref().map(|measured| measured.measure)
    }

    /// The share of the heads that keep all tokens, volatile ones and pivots: no cache by this profile can be
    /// smaller, measured in tokens of all heads.
    #[must_use]
    pub fn full_share(&self) -> f64 {
        let full = self.roles.iter().filter(|role| !role.is_compressed()).count();
        full as f64 / self.roles.len() as f64
    }

    fn index(&self, layer: usize, kv_head: usize) -> usize {
        assert!(kv_head < self.num_kv_heads, "a KV head of the layer");
        layer * self.num_kv_heads + kv_head
    }

    /// Refuses a model other than the one whose heads were measured; a published file names none, and passes.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<()> {
        self.measured.as_ref().map_or(Ok(()), |measured| {
            measured.model.check_fingerprint(FileKind::Heads, fingerprint)
        })
    }

    /// Refuses a model of another shape; of a published file only layers and KV heads are known.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn check_shape(&self, shape: &KvShape) -> Result<()> {
        let kind = FileKind::Heads;
        if let Some(measured) = &self.measured {
            return measured.model.check_shape(kind, shape);
        }
        let in_words =
            |num_layers, num_kv_heads| format!("{num_layers} layers of {num_kv_heads} KV heads");
        let found = in_words(self.num_layers, self.num_kv_heads);
        kind.check("shape", &found, &in_words(shape.num_layers, shape.heads.num_kv_heads))
    }

    /// Refuses a path that [`HeadProfile::save`] could not write to, before the work of measuring heads.
    ///
    /// # Errors
    /// [`Error::FileIo`]: a folder that is missing or not writable, and a path that is there and not a regular
    /// file. [`Error::Occupied`]: a file that is read-only or no head profile; a published one is none that this
    /// program would write.
    pub fn check_writable(path: &Path) -> Result<()> {
        FileKind::Heads.check_writable(path)
    }

    /// Writes the profile; an older one at this path, or an empty file, is replaced whole or not at all.
    ///
    /// # Errors
    /// As [`HeadProfile::check_writable`], and [`Error::NotMeasured`] for a profile from a published file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Some(measured) = &self.measured else {
            return Err(Error::NotMeasured);
        };
        FileKind::Heads.replace(path, own::text(self, measured).as_bytes())
    }

    /// Reads a profile of [`HeadProfile::save`], or one of those that the authors of HeteroCache publish.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::FileIo`], and [`Error::FileFormat`] for a file that is damaged, too large, of
    /// another version, contradicts itself, or is no head profile at all.
    pub fn load(path: &Path) -> Result<Self> {
        let kind = FileKind::Heads;
        let mut bytes = Vec::new();
        let mut opened = kind.open(path)?.take(MAX_FILE_BYTES + 1);
        opened.read_to_end(&mut bytes).map_err(|source| kind.io(path, source))?;
        let parsed = if bytes.len() as u64 > MAX_FILE_BYTES {
            Err(format!("it has more than {MAX_FILE_BYTES} bytes"))
        } else if published::is_published(&bytes) {
            published::parse(&bytes)
        } else {
            own::parse(&bytes)
        };
        parsed.map_err(|reason| kind.damaged(path, &bytes, reason))
    }
}

/// Refuses weights `[num_layers, num_kv_heads]` that are no numbers above 0 in a head that has one, not 0 in others,
/// or of another mean than 1, and says which.
fn check_weights(
    weights: &[f64],
    has_one: impl Fn(usize) -> bool,
    num_kv_heads: usize,
) -> Result<(), String> {
    let (mut sum, mut count) = (0.0, 0usize);
    for (index, &weight) in weights.iter().enumerate() {
        let (layer, head) = (index / num_kv_heads, index % num_kv_heads);
        let fits = if has_one(index) { weight > 0.0 && weight.is_finite() } else { weight == 0.0 };
        if !fits {
            return Err(format!("that of layer {layer}, KV head {head} is {weight}"));
        }
        sum += weight;
        count += usize::from(has_one(index));
    }
    let mean = sum / count.max(1) as f64;
    let fits = count == 0 || (mean - 1.0).abs() <= MEAN_ERROR;
    if fits { Ok(()) } else { Err(format!("their mean is {mean}, not 1")) }
}

/// Says in which layer roles `[num_layers, num_kv_heads]` do not go together.
fn check_layers(roles: &[HeadRole], num_kv_heads: usize) -> Result<(), String> {
    for (layer, roles) in roles.chunks_exact(num_kv_heads).enumerate() {
        check_roles(roles).map_err(|error| format!("layer {layer}: {error}"))?;
    }
    Ok(())
}

/// Rows of all layers in one list, or says which is not of `num_kv_heads`, or that there are not `num_layers`.
fn concat<T: Clone>(
    what: &str,
    layers: &[Vec<T>],
    num_layers: usize,
    num_kv_heads: usize,
) -> Result<Vec<T>, String> {
    if layers.len() != num_layers {
        return Err(format!("it has {what} for {} layers, not {num_layers}", layers.len()));
    }
    if let Some(layer) = layers.iter().position(|layer| layer.len() != num_kv_heads) {
        let found = layers[layer].len();
        return Err(format!(
            "it has {what} for {found} KV heads in layer {layer}, not {num_kv_heads}"
        ));
    }
    Ok(layers.concat())
}
