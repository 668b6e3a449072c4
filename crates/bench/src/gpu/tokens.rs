//! The logits of a token, and the next one.

use anyhow::{Result, ensure};
use heterokv_attn::device::{Argmax, Device, Picked, Sample};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};

use super::kernels::Shape;
use super::measured::{number, room, upload};

const TEMPERATURE: f32 = 0.8;
const TOP_P: f32 = 0.95;

/// Where the draw falls, as a share of all kept weights.
const UNIFORM: f32 = 0.5;

/// How far from the edge of a token it may fall and be its neighbour's, as a share, too.
const SLACK: f64 = 2e-5;

/// Logits, and the token that is picked.
pub(super) struct TokenStage {
    logits: Buffer,
    uniforms: Buffer,
    ids: Buffer,
}

/// Logits of a spread at which some thousand tokens are kept.
fn logit(id: usize) -> f32 {
    16.0 * number(id)
}

impl TokenStage {
    pub(super) fn new(gpu: &Gpu, shape: &Shape) -> Result<Self> {
        let logits: Vec<f32> = (0..shape.vocab_size).map(logit).collect();
        Ok(Self {
            logits: upload(gpu, &logits)?,
            uniforms: upload(gpu, &[UNIFORM])?,
            ids: room(gpu, 1)?,
        })
    }

    pub(super) fn argmax(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        let argmax = Argmax {
            rows: 1,
            vocab_size: shape.vocab_size,
            logits: Bound::all(&self.logits),
            ids: Bound::all(&self.ids),
        };
        Ok(device.argmax(commands, &argmax)?)
    }

    pub(super) fn sample(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: &Shape,
    ) -> Result<()> {
        let sample = Sample {
            rows: 1,
            vocab_size: shape.vocab_size,
            temperature: TEMPERATURE,
            top_k: None,
            top_p: TOP_P,
            min_p: 0.0,
            logits: Bound::all(&self.logits),
            uniforms: Bound::all(&self.uniforms),
            ids: Bound::all(&self.ids),
        };
        Ok(device.sample(commands, &sample)?)
    }

    fn picked(&self, gpu: &Gpu) -> Result<Picked> {
        let ids: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&self.ids, 0, 4)?);
        Ok(Picked::of(ids[0]))
    }

    /// The token is the first of the most likely.
    pub(super) fn check_argmax(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let right = Picked::Token(ordered(shape)[0] as u32);
        let picked = self.picked(gpu)?;
        ensure!(picked == right, "it is {picked:?}, and {right:?} is right");
        Ok(())
    }

    /// The draw falls on the token, where the likeliest lie end to end.
    pub(super) fn check_sample(&self, gpu: &Gpu, shape: &Shape) -> Result<()> {
        let order = ordered(shape);
        let weight = |id: &usize| {
            let below = f64::from(logit(*id)) - f64::from(logit(order[0]));
            (below / f64::from(TEMPERATURE)).exp()
        };
        // Where each ends.
        let mut all = 0.0;
        let ends = order.iter().map(|id| {
            all += weight(id);
            all
        });
        let ends: Vec<f64> = ends.collect();
        let num_kept = ends.partition_point(|end| *end < f64::from(TOP_P) * all) + 1;
        let kept = ends[num_kept - 1];
        let (drawn, slack) = (f64::from(UNIFORM) * kept, SLACK * kept);
        let picked = self.picked(gpu)?;
        let is_right = (0..num_kept).any(|place| {
            let start = ends[place] - weight(&order[place]);
            picked == Picked::Token(order[place] as u32)
                && (start - slack..=ends[place] + slack).contains(&drawn)
        });
        ensure!(is_right, "{picked:?} is not where the draw falls");
        Ok(())
    }
}

/// Ids by falling logit, of equal ones the lowest first.
fn ordered(shape: &Shape) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..shape.vocab_size).collect();
    ids.sort_by(|a, b| logit(*b).total_cmp(&logit(*a)));
    ids
}
