//! A model from disk, and the line that says what is running.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use heterokv_attn::device::Device;
use heterokv_cache::{CacheConfig, CacheSpec, KvCache, Level, Profile};
use heterokv_model::text::ModelText;
use heterokv_model::{Checkpoint, ComputeType, DeviceModel, Model, Progress};
use sha2::{Digest, Sha256};

use crate::args::ModelArgs;
use crate::output::{bytes, count, tokens};
use crate::progress::Bar;
use crate::requirement::kv_shape;

/// A checkpoint that is open, its weights not read yet.
pub(crate) struct Opened {
    /// What people call the file.
    pub(crate) name: String,
    pub(crate) checkpoint: Checkpoint,
    compute: ComputeType,
    level: Level,
}

impl Opened {
    /// Opens the checkpoint and reads its headers.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub(crate) fn new(args: &ModelArgs) -> Result<Self> {
        let checkpoint = open_checkpoint(&args.model)?;
        Ok(Self {
            name: model_name(&args.model),
            checkpoint,
            compute: args.compute,
            level: Level::detect(),
        })
    }

    /// The tokenizer and the chat template.
    ///
    /// # Errors
    /// When there is no tokenizer, or one of another kind.
    pub(crate) fn text(&self) -> Result<ModelText> {
        let _bar = Bar::spinner("reading the tokenizer");
        ModelText::of(&self.checkpoint).with_context(|| format!("the tokenizer of {}", self.name))
    }

    /// Bytes that the weights will take.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub(crate) fn weight_bytes(&self) -> Result<u64> {
        Ok(heterokv_model::held_weight_bytes(&self.checkpoint, self.compute)?)
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor that the form cannot hold.
    pub(crate) fn load(&self) -> Result<Model> {
        let bar = Bar::new("loading the model");
        let mut show = |done, total| bar.set(done, total);
        Ok(Model::load_with(&self.checkpoint, self.compute, self.level, Some(&mut show))?)
    }

    /// Reads the weights onto a device.
    ///
    /// # Errors
    /// As [`Opened::load`], a form that has no kernels, and what the device lacks.
    pub(crate) fn load_on(&self, device: Arc<Device>) -> Result<DeviceModel> {
        let bar = Bar::new("loading the model");
        let mut show = |done, total| bar.set(done, total);
        let progress: Progress<'_> = &mut show;
        let (checkpoint, compute, level) = (&self.checkpoint, self.compute, self.level);
        Ok(DeviceModel::load(device, checkpoint, compute, level, Some(progress))?)
    }

    /// The profile in `path`, held against this model.
    ///
    /// # Errors
    /// A file that is no profile, or one for another model.
    pub(crate) fn profile(&self, path: Option<&PathBuf>) -> Result<Option<Profile>> {
        let Some(path) = path else { return Ok(None) };
        let profile = Profile::load(path)?;
        profile.check_fingerprint(&self.fingerprint())?;
        Ok(Some(profile))
    }

    /// What `spec` means for this model.
    ///
    /// # Errors
    /// A spec that does not fit the model, and a mix of formats for another one.
    pub(crate) fn resolve(&self, spec: &CacheSpec) -> Result<CacheConfig> {
        let fingerprint = self.fingerprint();
        Ok(spec.resolve(&kv_shape(self.checkpoint.config())?, Some(&fingerprint))?)
    }

    /// An empty cache for this model.
    ///
    /// # Errors
    /// A profile that does not fit the cache.
    pub(crate) fn cache(&self, config: CacheConfig, profile: Option<&Profile>) -> Result<KvCache> {
        let shape = kv_shape(self.checkpoint.config())?;
        Ok(KvCache::new(shape, config, self.level, profile)?)
    }

    /// What tells the model from every other one, for files that are for one only.
    pub(crate) fn fingerprint(&self) -> String {
        self.checkpoint.fingerprint().to_string()
    }

    /// What is running: model, form, instruction set, threads.
    pub(crate) fn first_line(&self) -> String {
        let threads = rayon::current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        let level = self.level;
        format!("{}: {} weights, {level}, {threads} thread{plural}", self.name, self.compute)
    }

    /// The instruction set to compute with.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// The form of the weights.
    pub(crate) fn compute(&self) -> ComputeType {
        self.compute
    }
}

/// Opens a GGUF file or a Hugging Face folder.
///
/// # Errors
/// Whatever is wrong with it.
pub(crate) fn open_checkpoint(path: &Path) -> Result<Checkpoint> {
    ensure!(
        path.exists(),
        "there is no model at {}; give a GGUF file or a Hugging Face folder",
        path.display()
    );
    ensure!(
        path.is_file() || path.is_dir(),
        "{} is neither a regular file nor a folder; give a GGUF file or a Hugging Face folder",
        path.display()
    );
    Ok(Checkpoint::open(path)?)
}

/// The file's name without `.gguf`, or the folder's.
pub(crate) fn model_name(path: &Path) -> String {
    // `.` and `..` have no name of their own.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

/// Most bytes of a text file that are read: more than any model's context.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// The size of a text file, without reading it.
///
/// # Errors
/// When it is not there, not a regular file, or above every bound.
pub(crate) fn text_bytes(path: &Path) -> Result<u64> {
    let metadata = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        metadata.is_file(),
        "{} is not a regular file; give one, or write what it yields to one first",
        path.display()
    );
    ensure!(
        metadata.len() <= MAX_TEXT_BYTES,
        "{} takes {}, more than the {} that a text may; use a shorter text",
        path.display(),
        bytes(metadata.len()),
        bytes(MAX_TEXT_BYTES)
    );
    Ok(metadata.len())
}

/// The text of a file.
///
/// # Errors
/// As [`text_bytes`], and when it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    text_bytes(path)?;
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_text = String::from_utf8(text);
    is_text.map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{} is not UTF-8 text (byte {at}); convert it first", path.display())
    })
}

/// What tells the contents of a file from others.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn file_digest(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Refuses a ratio above what `spec` promises.
///
/// # Errors
/// When it is.
pub(crate) fn check_ratio(spec: &CacheSpec, ratio: f64, num_tokens: usize) -> Result<()> {
    let Some(promise) = spec.promise() else { return Ok(()) };
    ensure!(
        100.0 * ratio <= promise.percent,
        "{spec} takes {:.1} % at {} and keeps {} % from {} tokens on; give it a longer context, a \
         higher ratio, or leave out --strict-ratio",
        100.0 * ratio,
        tokens(num_tokens),
        promise.percent,
        count(promise.min_tokens)
    );
    Ok(())
}
