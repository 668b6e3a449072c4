//! A decode step of one layer on a device, and the host's part of it.

use std::sync::Arc;

use heterokv_attn::device::{KeyRows, RowSlot};
use heterokv_attn::{AttnState, HeadShape};
use heterokv_evict::Union;
use heterokv_gpu::{Bound, Commands};

use super::coded::{Choice, KeySource, KeysToCode};
use super::lists::{RowAttention, States};
use super::prompt::as_stored;
use super::results::{Reader, Results, Wanted, copy_lses, land};
use super::rows::RowRun;
use super::scratch::Scratch;
use super::{DeviceCache, Layer};
use crate::Result;
use crate::cache::{check_finite, check_len};
use crate::host_step::HostStep;
use crate::select::HeadSelection;
use crate::spec::HcaConfig;

/// Room for selected tokens in a landing comes in multiples of this.
pub(super) const EXPECTED_STEP: usize = 64;

/// One token's rows in a layer, on the device.
#[derive(Clone, Copy, Debug)]
pub struct TokenOnDevice<'a> {
    /// Post-RoPE queries `[num_qo_heads, head_dim]`, f32.
    pub q: Bound<'a>,
    /// Post-RoPE key `[num_kv_heads, head_dim]`, f32.
    pub k: Bound<'a>,
    /// Value of the same shape.
    pub v: Bound<'a>,
    /// Where the output goes `[num_qo_heads, head_dim]`, f32.
    pub out: Bound<'a>,
}

impl DeviceCache {
    /// Appends a token to a layer and attends over all of its tokens. What `commands` hold is done before, and is
    /// submitted where the host takes part; the commands returned end with `out`. They are to be submitted before the
    /// next token of the same layer.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`](crate::Error::NoSuchLayer), rows that are not finite, no memory, and what the host store
    /// fails with.
    pub fn step_on_device<'g>(
        &mut self,
        layer: usize,
        mut commands: Commands<'g>,
        token: TokenOnDevice<'_>,
    ) -> Result<Commands<'g>> {
        self.check_layer(layer)?;
        let gpu = commands.gpu();
        let TokenOnDevice { q, k, v, out } = token;
        let heads = self.shape.heads;
        for (tensor, bound, len) in [
            ("q", q, heads.qo_row_len()),
            ("k", k, heads.kv_row_len()),
            ("v", v, heads.kv_row_len()),
            ("out", out, heads.qo_row_len()),
        ] {
            check_len(tensor, bound.num_bytes() as usize / 4, len)?;
        }
        let entered = self.enter()?;
        let device = Arc::clone(&self.device);
        let Self { rows, layers, .. } = self;
        if !rows.has_room(heads.num_kv_heads) {
            // Memory that grows is copied at once: what is to be stored by commands must be there.
            commands.submit()?;
            commands = Commands::new(gpu);
        }
        let own = &mut layers[layer];
        let mut slots: Vec<(usize, RowSlot)> = Vec::new();
        for (kv_head, head) in own.heads.iter_mut().enumerate() {
            let place = rows.push(gpu, head.run_of_next())?;
            slots.push(rows.slot(place, 0, kv_head));
        }
        own.lists.set_slots(gpu, rows, &slots)?;
        own.lists.store(&device, &mut commands, rows, heads, [k, v])?;
        self.code_leaving(layer, &mut commands)?;
        let commands = self.attend_on_device(layer, commands, q, out, Some([k, v]))?;
        self.leave(entered);
        Ok(commands)
    }

    /// Appends a token `[num_kv_heads, head_dim]` that the host has.
    pub(super) fn append_from_host(&mut self, layer: usize, k: &[f32], v: &[f32]) -> Result<()> {
        let device = Arc::clone(&self.device);
        let head_dim = self.shape.heads.head_dim;
        let Self { rows, layers, .. } = self;
        let tokens = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (head, (key, value)) in layers[layer].heads.iter_mut().zip(tokens) {
            rows.extend(device.gpu(), head.run_of_next(), key, value)?;
        }
        self.layers[layer].remember(k, v, head_dim)?;
        let mut commands = Commands::new(device.gpu());
        self.code_leaving(layer, &mut commands)?;
        Ok(commands.submit()?)
    }

    /// Codes the tokens that have grown out of the window.
    fn code_leaving(&mut self, layer: usize, commands: &mut Commands<'_>) -> Result<()> {
        let device = Arc::clone(&self.device);
        let gpu = device.gpu();
        let Self { rows, layers, host, level, shape, .. } = self;
        let Some(host) = host else { return Ok(()) };
        let own: &mut Layer = &mut layers[layer];
        let mut leaving = vec![0; own.heads.len()];
        for (kv_head, leaving) in leaving.iter_mut().enumerate() {
            let has_coder = own.has_coder(kv_head);
            let head = &own.heads[kv_head];
            let Some(plan) = head.plan else { continue };
            *leaving = plan.leaving(head.window.len(), has_coder);
            if *leaving > 0 {
                let [keys, values] = [0, 1].map(|which| head.window_rows(which, *leaving));
                own.hand_over(gpu, *level, host, (layer, kv_head), [&keys, &values])?;
            }
        }
        let key_words = shape.heads.head_dim / 2;
        let source = KeySource {
            rows: KeyRows::F16,
            key_stride: key_words,
            key_words,
            buffers: rows.slabs().iter().collect(),
            is_once: false,
        };
        let Layer { heads, sets, .. } = &mut *own;
        let on_host = |kv_head: usize| heads[kv_head].window_rows(0, leaving[kv_head]);
        for set in sets {
            let of = |&kv_head: &usize| heads[kv_head].window.first_keys(rows, leaving[kv_head]);
            let stretches = set.heads().iter().map(of).collect();
            let keys = KeysToCode { source: &source, stretches, on_host: &on_host };
            set.code(&device, commands, *level, &keys)?;
        }
        // They leave the window when they are elsewhere.
        for (head, &leaving) in own.heads.iter_mut().zip(&leaving) {
            head.window_rows.drain(..leaving);
            rows.drop_front(&mut head.window, leaving);
        }
        Ok(())
    }

    /// Attends over all tokens of a layer; `kv` are the rows of the last one where the host does not have them yet.
    pub(super) fn attend_on_device<'g>(
        &mut self,
        layer: usize,
        mut commands: Commands<'g>,
        q: Bound<'_>,
        out: Bound<'_>,
        kv: Option<[Bound<'_>; 2]>,
    ) -> Result<Commands<'g>> {
        let device = Arc::clone(&self.device);
        let gpu = commands.gpu();
        let shape = self.shape.heads;
        let config = self.config.coded().cloned();
        self.make_scratch(layer)?;
        let Self { rows, layers, states, scratch, buffers, landing, .. } = self;
        let own = &mut layers[layer];
        let runs: Vec<Vec<&RowRun>> =
            own.heads.iter().map(|head| vec![&head.resident, &head.window]).collect();
        own.lists.set_runs(gpu, rows, &runs)?;
        let needed = own.lists.num_states();
        if needed > states.capacity() {
            *states = States::new(gpu, shape, needed + needed / 8)?;
        }
        let states = &*states;
        let merged = [out, Bound::all(&buffers.lse)];
        let attention = RowAttention { shape, pool: rows, states, q };
        let Some(config) = config else {
            own.lists.attend(&device, &mut commands, attention, true)?;
            own.lists.merge(&device, &mut commands, shape, states, merged)?;
            self.stats.steps += 1;
            return Ok(commands);
        };
        let has_tables = (0..own.heads.len()).all(|kv_head| own.has_coder(kv_head));
        let has_coded = own.sets.iter().any(|set| set.max_tokens() > 0);
        let rescores = has_coded && config.rescore.is_some();
        let wanted = Wanted {
            shape,
            q: (rescores || !has_tables).then_some(q),
            kv,
            has_scores: config.rescore.is_none() || config.union == Union::Head,
            has_lses: !config.renormalise,
        };
        // In the order of the commands: the layer before may not have merged yet.
        states.forget_host(&mut commands)?;
        let results = match scratch.as_ref().filter(|_| has_coded) {
            None => {
                own.lists.attend(&device, &mut commands, attention, true)?;
                own.lists.merge(&device, &mut commands, shape, states, merged)?;
                wanted.make_room(landing, gpu, own)?;
                let mut at = 0;
                wanted.land(&mut commands, landing, &mut at)?;
                let bytes = commands.submit_to_land(landing, at)?.wait()?;
                let mut results = wanted.results(&mut Reader::new(&bytes));
                results.selections.resize_with(shape.num_kv_heads, HeadSelection::default);
                results
            }
            Some(scratch) => {
                // First only what the resident tokens add up to: the selection starts from that.
                own.lists.attend(&device, &mut commands, attention, false)?;
                let lse = [Bound::all(&buffers.out), Bound::all(&buffers.lse)];
                own.lists.merge(&device, &mut commands, shape, states, lse)?;
                let choice =
                    Choice { shape, enough: config.selector()?.enough()?, union: config.union };
                let mut rest = Commands::new(gpu);
                own.lists.attend(&device, &mut rest, attention, true)?;
                let mut rest = Some(rest);
                loop {
                    wanted.make_room(landing, gpu, own)?;
                    let mut at = 0;
                    wanted.land(&mut commands, landing, &mut at)?;
                    if wanted.has_lses {
                        land(&mut commands, landing, &mut at, Bound::all(&buffers.lse))?;
                    }
                    let room = own.expected.min(scratch.max_tokens());
                    for set in own.sets.iter_mut().filter(|set| set.max_tokens() > 0) {
                        copy_lses(&mut commands, set.heads(), shape, &buffers.lse, scratch)?;
                        set.select(&device, &mut commands, choice, q, scratch)?;
                        wanted.land_selection(
                            &mut commands,
                            (landing, &mut at),
                            scratch,
                            (set.heads().len(), room),
                        )?;
                    }
                    let landed = commands.submit_to_land(landing, at)?;
                    if let Some(rest) = rest.take() {
                        rest.submit()?;
                    }
                    let bytes = landed.wait()?;
                    let mut reader = Reader::new(&bytes);
                    let mut results = wanted.results(&mut reader);
                    if wanted.has_lses {
                        results.resident_lse = reader.floats(shape.num_qo_heads);
                    }
                    let most = wanted.read_selections(&mut reader, own, room, &mut results);
                    own.expected = (most + most / 4 + 1).next_multiple_of(EXPECTED_STEP);
                    if most <= room {
                        break results;
                    }
                    commands = Commands::new(gpu);
                }
            }
        };
        self.take_results(layer, &results)?;
        self.stats.steps += 1;
        let mut commands = Commands::new(gpu);
        self.sum_on_host(layer, &config, &results)?;
        if has_coded {
            let Self { layers, states, buffers, .. } = self;
            let merged = [out, Bound::all(&buffers.lse)];
            layers[layer].lists.merge(&device, &mut commands, shape, states, merged)?;
        }
        Ok(commands)
    }

    /// Makes sure that there is room to score and select among the coded keys of a layer.
    fn make_scratch(&mut self, layer: usize) -> Result<()> {
        let device = Arc::clone(&self.device);
        let (gpu, shape) = (device.gpu(), self.shape.heads);
        let own = &self.layers[layer];
        let coded = own.sets.iter().map(super::CodedSet::max_tokens).max().unwrap_or(0);
        if coded > self.scratch.as_ref().map_or(0, Scratch::max_tokens) {
            // An eighth more, as far as a buffer holds the scores and a selection counts.
            let most = self.scratch_shape(coded).max_tokens(shape, gpu.limits());
            let size = self.scratch_shape((coded + coded / 8).min(most.max(coded)));
            // The one that is there first, or there would have to be memory for both.
            self.scratch = None;
            self.scratch = Some(Scratch::new(gpu, shape, size)?);
        }
        Ok(())
    }

    /// What has landed of a token and its queries goes where it is remembered.
    fn take_results(&mut self, layer: usize, results: &Results) -> Result<()> {
        let HeadShape { head_dim, .. } = self.shape.heads;
        let own = &mut self.layers[layer];
        check_finite("q", &results.q)?;
        let group_len = self.shape.heads.group_size() * head_dim;
        for (kv_head, queries) in results.q.chunks_exact(group_len).enumerate() {
            for query in queries.chunks_exact(head_dim) {
                let squares = query.iter().map(|&q| f64::from(q) * f64::from(q));
                own.add_query_energy(kv_head, squares);
            }
        }
        let (k, v) = results.kv.split_at(results.kv.len() / 2);
        check_finite("k", k)?;
        check_finite("v", v)?;
        own.remember(k, v, head_dim)
    }

    /// Sums what was selected and sends the states up.
    fn sum_on_host(&mut self, layer: usize, config: &HcaConfig, results: &Results) -> Result<()> {
        let shape = self.shape.heads;
        let Some(host) = &self.host else { return Ok(()) };
        let queries: Vec<f32> = results.q.iter().map(|q| q * shape.sm_scale).collect();
        let step = HostStep { config, host, shape, level: self.level, layer, queries: &queries };
        let group_size = shape.group_size();
        let mut states: Vec<AttnState> =
            (0..shape.num_kv_heads).map(|_| AttnState::empty(group_size, shape.head_dim)).collect();
        let own = &self.layers[layer];
        let num_tokens = (0..shape.num_kv_heads).map(|kv_head| own.num_tokens(kv_head));
        self.stats.count_rows(num_tokens, &results.selections, &step);
        let is_empty = |selection: &HeadSelection| {
            selection.positions.is_empty() && selection.full_lse.is_empty()
        };
        if results.selections.iter().all(is_empty) {
            // As the states of the host are.
            return Ok(());
        }
        self.hints.before(host, layer, results.selections.iter());
        step.add_rows(&mut states, &results.selections)?;
        self.hints.after(host, layer, results.selections.iter());
        if !config.renormalise {
            for (kv_head, (state, selection)) in
                states.iter_mut().zip(&results.selections).enumerate()
            {
                for (head, &full) in selection.full_lse.iter().enumerate() {
                    // The host's share of the normaliser is what the resident tokens leave of it.
                    let resident = results.resident_lse[kv_head * group_size + head];
                    let rest = full + (-(resident - full).exp()).ln_1p();
                    if rest.is_finite() {
                        state.widen_normaliser(head, rest)?;
                    } else {
                        // They leave nothing that f32 could tell.
                        let (out, lse) = state.head_mut(head)?;
                        out.fill(0.0);
                        *lse = f32::NEG_INFINITY;
                    }
                }
            }
        }
        let gpu = self.device.gpu();
        let outs: Vec<f32> = states.iter().flat_map(AttnState::out).copied().collect();
        let lses: Vec<f32> = states.iter().flat_map(AttnState::lse).copied().collect();
        gpu.write(&self.states.outs, 0, bytemuck::cast_slice(&outs))?;
        gpu.write(&self.states.lses, 0, bytemuck::cast_slice(&lses))?;
        Ok(())
    }
}

impl Layer {
    /// Keeps the rows of a token `[num_kv_heads, head_dim]` whose place in the window is there already.
    fn remember(&mut self, k: &[f32], v: &[f32], head_dim: usize) -> Result<()> {
        let tokens = k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim));
        for (head, (key, value)) in self.heads.iter_mut().zip(tokens) {
            if head.window_rows.len() < head.window.len() && head.plan.is_some() {
                head.window_rows.push_back([as_stored(key)?, as_stored(value)?]);
            }
        }
        Ok(())
    }
}

impl super::Head {
    /// Keys (0) or values (1) of the first `count` tokens of the window `[count, head_dim]`.
    fn window_rows(&self, which: usize, count: usize) -> Vec<f32> {
        self.window_rows.range(..count).flat_map(|rows| &rows[which]).copied().collect()
    }

    /// Where the next token goes.
    fn run_of_next(&mut self) -> &mut RowRun {
        match &self.plan {
            Some(plan) if self.resident.len() >= plan.sinks => &mut self.window,
            _ => &mut self.resident,
        }
    }
}
