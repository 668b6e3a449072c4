//! What can go wrong in this crate.

use std::path::PathBuf;

use heterokv_attn::PrefillPattern;
use heterokv_quant::KeyFormat;

use crate::FileKind;

/// The result of a fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A word of a cache spec that is not known.
    #[error("unknown {what} '{word}' in a cache spec; known are {known}")]
    UnknownWord {
        /// What the word was read as.
        what: &'static str,
        /// The word as given.
        word: String,
        /// The words that would be accepted.
        known: &'static str,
    },
    /// Words of a cache spec that do not go together.
    #[error("cache spec: {conflict}")]
    Conflict {
        /// What does not go together, and what does.
        conflict: &'static str,
    },
    /// An option of a cache spec that is given more than once.
    #[error("cache spec: {option} is given twice; give it once")]
    Repeated {
        /// The option.
        option: String,
    },
    /// A ratio that the preset cannot keep for this model.
    #[error(
        "{preset} cannot keep {asked:.2} % from {min_tokens} tokens on for this model; the least it can keep is \
         {least:.2} %, or less with lower sinks, recent or every, or fewer heads that hold all tokens"
    )]
    Ratio {
        /// Name of the preset.
        preset: &'static str,
        /// Percentage asked for.
        asked: f64,
        /// Length from which the ratio is promised.
        min_tokens: usize,
        /// Percentage of the smallest configuration.
        least: f64,
    },
    /// An amount that is less than what every head holds in any case.
    #[error(
        "{budget} {what} are fewer than the {least} that first and last tokens and a cut take; keep more, or \
         lower sinks, recent or every"
    )]
    BudgetTooSmall {
        /// Tokens of each head, or bytes of the whole cache.
        what: &'static str,
        /// As many as were asked for.
        budget: usize,
        /// As many as it takes.
        least: usize,
    },
    /// A prompt of which a cache that forgets did not see the queries.
    #[error(
        "the queries of layer {layer} were not watched for a cache that forgets tokens by them; call \
         `PromptLayer::watch` before the first block"
    )]
    NotWatched {
        /// Layer.
        layer: usize,
    },
    /// Expected attention, where nobody said how the model turns queries by their positions.
    #[error(
        "evict=expected undoes the rotary embedding of queries and needs its frequencies; give them to `PromptLayer::watch`"
    )]
    NoRotary,
    /// Something that caches which forget tokens cannot do.
    #[error("a cache that forgets tokens, or holds values on the device, {cannot}")]
    Forgetful {
        /// What it cannot, and what to do.
        cannot: &'static str,
    },
    /// A prompt was given to a cache that holds tokens.
    #[error(
        "layer {layer} already holds {num_tokens} tokens; only an empty cache takes a prompt whole"
    )]
    NotEmpty {
        /// Layer.
        layer: usize,
        /// Tokens held.
        num_tokens: usize,
    },
    /// A layer that the cache does not have.
    #[error("layer {layer} does not exist, the cache has {num_layers}")]
    NoSuchLayer {
        /// Layer asked for.
        layer: usize,
        /// Layers of the cache.
        num_layers: usize,
    },
    /// Caches that are to take one prompt are of different models.
    #[error("cache {index} is of another shape than the first; prefill together only equal shapes")]
    DifferentShapes {
        /// Place of the cache in the list.
        index: usize,
    },
    /// Caches that are to take one prompt differ in what its tokens attend to.
    #[error(
        "cache {index} asks for prefill={asked}, and the prompt is read with prefill={given}; prefill together only \
         caches that ask for the same, and show them to `PromptLayer::watch` before the first block"
    )]
    DifferentPrefills {
        /// Place of the cache in the list.
        index: usize,
        /// What it asks for.
        asked: PrefillPattern,
        /// What the prompt's tokens attend to.
        given: PrefillPattern,
    },
    /// A slice has the wrong length.
    #[error("{tensor} has {actual} values, expected {expected}")]
    Length {
        /// Name of the argument.
        tensor: &'static str,
        /// Values found.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
    /// A shape of no heads, or of more than any model has.
    #[error(
        "{num_layers} layers of {num_kv_heads} KV heads are no model's; give a shape of 1 to {max} KV heads in all"
    )]
    HeadCount {
        /// Layers.
        num_layers: usize,
        /// KV heads of each.
        num_kv_heads: usize,
        /// Most heads of all layers.
        max: usize,
    },
    /// A path of a mix that does not go into a cache spec.
    #[error(
        "a cache spec cannot hold the path '{path}' of a mix: {reason}; give the file another name"
    )]
    MixPath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A profile or mix made for something else.
    #[error(
        "the {kind} is for {field} {found}, not {expected}; make one with `{command}`",
        command = kind.command()
    )]
    Mismatch {
        /// Which of them.
        kind: FileKind,
        /// What differs.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A profile or mix that cannot be read or written.
    #[error("{kind} {path}: {source}")]
    FileIo {
        /// Which of them.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A profile or mix that is to be read and is not there.
    #[error(
        "there is no {kind} {path}, which {option} asks for; make one with `{command}`",
        option = kind.option(),
        command = kind.command()
    )]
    Missing {
        /// Which of them.
        kind: FileKind,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A profile or mix that would take the place of a file that is to stay.
    #[error("cannot write the {kind} {path}: {reason}; give another path or remove that file")]
    Occupied {
        /// Which of them.
        kind: FileKind,
        /// Where it was to go.
        path: PathBuf,
        /// Why the file that is there stays.
        reason: &'static str,
    },
    /// A file that is not a profile or mix.
    #[error(
        "{kind} {path} is damaged or not a {kind}: {reason}; make one with `{command}`",
        command = kind.command()
    )]
    FileFormat {
        /// What it was read as.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A way of measuring heads by which nothing is measured.
    #[error("the roles of heads cannot be measured with {what} of {value}: {remedy}")]
    HeadMeasure {
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What would be right.
        remedy: &'static str,
    },
    /// A head profile from a published file is to be saved.
    #[error(
        "a published head profile does not say of which model it is and cannot be saved for one; copy its file"
    )]
    NotMeasured,
    /// Weights by which the heads of a profile cannot divide anything.
    #[error("{what} of heads cannot be used: {reason}")]
    HeadWeights {
        /// Which weights.
        what: &'static str,
        /// What is wrong with them.
        reason: String,
    },
    /// A store of another shape than that of the rows of a cache.
    #[error(
        "the store is of another shape than the rows of this cache; open one of the shape that its config has"
    )]
    OtherStore,
    /// A cache that is to be saved in the middle of a token.
    #[error(
        "layer {layer} holds {num_tokens} tokens, the first layer {expected}; save a cache between two tokens"
    )]
    MidToken {
        /// Layer.
        layer: usize,
        /// Tokens that it holds.
        num_tokens: usize,
        /// Tokens of the first layer.
        expected: usize,
    },
    /// A saved cache of something else than what it is asked for.
    #[error(
        "what is saved is of {field} {found}, not {expected}; ask for the same, or save in another place"
    )]
    OtherSave {
        /// What differs.
        field: &'static str,
        /// What was saved.
        found: String,
        /// What is asked for.
        expected: String,
    },
    /// A saved cache that contradicts itself.
    #[error("what is saved is damaged: {reason}; save it anew")]
    DamagedSave {
        /// What is wrong.
        reason: String,
    },
    /// A cache in which a step has failed.
    #[error(
        "an earlier step of this cache failed, and what it holds is incomplete; make a new one, and read the context again"
    )]
    Broken,
    /// A shape that no kernel takes.
    #[error("kernels on a GPU are not made for {what} of {value}: {remedy}")]
    DeviceShape {
        /// What is wrong.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What they are made for, and what to do.
        remedy: &'static str,
    },
    /// A key format that has no kernels.
    #[error(
        "keys={format} cannot be scored on a GPU here; formats that can are f16, int{{8,6,4,3,2}}-token and -channel (of a \
         head_dim in eights), their rotated forms, lm1, lm2 and lm4, alloc, and pq and opq without exact tokens"
    )]
    NotOnDevice {
        /// The format.
        format: KeyFormat,
    },
    /// A prefill that has no kernel.
    #[error("prefill={pattern} is not on a GPU here; use prefill=exact, or leave --device out")]
    PrefillNotOnDevice {
        /// What tokens of a prompt were to attend to.
        pattern: PrefillPattern,
    },
    /// Memory on the device is not to be had, or the device is gone.
    #[error(transparent)]
    Gpu(#[from] heterokv_gpu::Error),
    /// An operation on the device refused its input.
    #[error(transparent)]
    Device(#[from] heterokv_attn::device::DeviceError),
    /// A key could not be encoded, or a format does not fit the model.
    #[error(transparent)]
    Quant(#[from] heterokv_quant::Error),
    /// A selection is impossible, or a weight is not a number.
    #[error(transparent)]
    Evict(#[from] heterokv_evict::Error),
    /// The host store or an arena refused.
    #[error(transparent)]
    Offload(#[from] heterokv_offload::Error),
    /// Attention refused its input.
    #[error(transparent)]
    Attn(#[from] heterokv_attn::AttnError),
}
