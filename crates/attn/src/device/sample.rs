//! The next token on a device.

use bytemuck::{Pod, Zeroable};
use heterokv_gpu::{Bound, Commands};
use heterokv_shaders as shaders;

use super::{Device, DeviceError, DeviceResult, Launch, Operand, check_len, word};

/// The highest logit of each row, and of equal ones the lowest id.
#[derive(Clone, Copy, Debug)]
pub struct Argmax<B> {
    /// Rows.
    pub rows: usize,
    /// Their length.
    pub vocab_size: usize,
    /// `[rows, vocab_size]`, f32; minus infinity excludes a token.
    pub logits: B,
    /// `[rows]`, u32: what [`Picked::of`] reads.
    pub ids: B,
}

/// One token drawn from each row, by the rule of the host's sampler.
///
/// Its order of steps, of tokens and of ties; weights are of f32 where the host's are of f64, and a token whose edge lies
/// within the rounding of these may be its neighbour's. The penalty of repetitions is the caller's, on the logits.
#[derive(Clone, Copy, Debug)]
pub struct Sample<B> {
    /// Rows.
    pub rows: usize,
    /// Their length.
    pub vocab_size: usize,
    /// Logits are divided by it; above 0.
    pub temperature: f32,
    /// Only that many of the highest logits stay. `None` keeps all.
    pub top_k: Option<usize>,
    /// Only the smallest set of the most probable tokens stays whose probabilities reach this sum; above 0. 1 keeps all.
    pub top_p: f32,
    /// Only tokens stay that have at least this share of the highest probability. 0 keeps all.
    pub min_p: f32,
    /// `[rows, vocab_size]`, f32; minus infinity excludes a token.
    pub logits: B,
    /// A number for each row `[rows]`, f32, uniform from 0 to below 1.
    pub uniforms: B,
    /// `[rows]`, u32: what [`Picked::of`] reads.
    pub ids: B,
}

/// What a row of logits gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picked {
    /// A token.
    Token(u32),
    /// No logit is above minus infinity.
    NoToken,
    /// A logit is NaN or infinite.
    BadLogit,
}

impl Picked {
    /// What a kernel wrote.
    #[must_use]
    pub fn of(id: u32) -> Self {
        match id {
            u32::MAX => Self::NoToken,
            0xffff_fffe => Self::BadLogit,
            id => Self::Token(id),
        }
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ArgmaxParams {
    vocab_size: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SampleParams {
    vocab_size: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
}

impl<B: Operand> Argmax<B> {
    /// What runs.
    ///
    /// # Errors
    /// [`DeviceError::Length`].
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "argmax";
        let Self { rows, vocab_size, logits, ids } = *self;
        check_logits(NAME, rows, vocab_size, &logits, &ids)?;
        let params = ArgmaxParams { vocab_size: word(NAME, "a vocab_size", vocab_size as u64)? };
        let grid = [word(NAME, "rows", rows as u64)?, 1, 1];
        Ok(Launch::new(&shaders::ARGMAX, &params, [logits, ids], grid))
    }
}

impl<B: Operand> Sample<B> {
    /// What runs.
    ///
    /// # Errors
    /// [`DeviceError::Length`]; [`DeviceError::Setting`] and [`DeviceError::Shape`] for settings out of their ranges.
    pub fn launch(&self) -> DeviceResult<Launch<B>> {
        const NAME: &str = "sample";
        let Self { rows, vocab_size, temperature, top_k, top_p, min_p, .. } = *self;
        let bad = |what, value, remedy| {
            Err(DeviceError::Setting { operation: NAME, what, value, remedy })
        };
        if !(temperature.is_finite() && temperature > 0.0) {
            return bad("a temperature", temperature, "give one above 0, or take the argmax");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return bad("a top-p", top_p, "give one above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return bad("a min-p", min_p, "give one from 0 to 1");
        }
        if top_k == Some(0) {
            let (what, remedy) = ("a top-k", "leave it out to keep all tokens");
            return Err(DeviceError::Shape { operation: NAME, what, value: 0, remedy });
        }
        check_logits(NAME, rows, vocab_size, &self.logits, &self.ids)?;
        check_len(NAME, "uniforms", &self.uniforms, rows as u64)?;
        let params = SampleParams {
            vocab_size: word(NAME, "a vocab_size", vocab_size as u64)?,
            temperature,
            top_k: top_k.and_then(|top_k| u32::try_from(top_k).ok()).unwrap_or(u32::MAX),
            top_p,
            min_p,
        };
        let buffers = [self.logits, self.uniforms, self.ids];
        let grid = [word(NAME, "rows", rows as u64)?, 1, 1];
        Ok(Launch::new(&shaders::SAMPLE, &params, buffers, grid))
    }
}

impl Device {
    /// Adds [`Argmax`] to `commands`.
    ///
    /// # Errors
    /// As [`Argmax::launch`], and those of the device.
    pub fn argmax(
        &self,
        commands: &mut Commands<'_>,
        argmax: &Argmax<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &argmax.launch()?)
    }

    /// Adds [`Sample`] to `commands`.
    ///
    /// # Errors
    /// As [`Sample::launch`], and those of the device.
    pub fn sample(
        &self,
        commands: &mut Commands<'_>,
        sample: &Sample<Bound<'_>>,
    ) -> DeviceResult<()> {
        self.launch(commands, &sample.launch()?)
    }
}

fn check_logits(
    operation: &'static str,
    rows: usize,
    vocab_size: usize,
    logits: &impl Operand,
    ids: &impl Operand,
) -> DeviceResult<()> {
    let len = rows as u64 * vocab_size as u64;
    check_len(operation, "logits", logits, len)?;
    check_len(operation, "ids", ids, rows as u64)?;
    word(operation, "logits", len)?;
    Ok(())
}

#[cfg(test)]
pub(super) fn twins() -> Vec<super::reflection::Twin> {
    super::reflection::twins! {
        Params of ARGMAX = ArgmaxParams { vocab_size };
        Params of SAMPLE = SampleParams { vocab_size, temperature, top_k, top_p, min_p };
    }
}
