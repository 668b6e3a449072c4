//! The device side of one (layer, KV head): sinks, recent window, coded keys.

mod saved;
mod tail;

use heterokv_attn::ResidentRows;
use heterokv_offload::{Arena, Sequence};
use heterokv_quant::{KeyCoder, Level};

use crate::Result;
use crate::coded::CodedKeys;
use crate::exact::ExactRows;
use crate::held::Held;
use crate::plan::{DeviceBytes, DevicePlan, WINDOW_PAGE_TOKENS, sink_page_tokens};
use tail::Tail;

pub(crate) use tail::normalised;

/// One (layer, KV head). A token goes to the resident rows while there is room for sinks, then to the
/// window; what leaves the window is coded on the device and its exact row goes to the host.
#[derive(Debug)]
pub(crate) struct HeadCache {
    layer: usize,
    kv_head: usize,
    head_dim: usize,
    resident: ExactRows,
    /// None where resident rows take everything, as in a `full` cache.
    tail: Option<Tail>,
    /// Which tokens these are, where some are forgotten.
    held: Option<Held>,
    /// Whether the rows of all tokens are on the host too, also of those that are not held.
    is_complete_on_host: bool,
}

/// The tokens of a prompt that a head keeps.
pub(crate) struct PromptTokens<'a> {
    /// Their indices, ascending.
    pub(crate) kept: &'a [u32],
    /// What is known of every token of the prompt.
    pub(crate) evidence: &'a [f32],
}

/// What a head holds, wherever it is.
pub(crate) struct HeadContents {
    /// Keys and values `[n, head_dim]` that stay exact.
    pub(crate) resident: [Vec<f32>; 2],
    /// The same of the window.
    pub(crate) window: [Vec<f32>; 2],
    pub(crate) coder: Option<KeyCoder>,
    /// Sum of q² per channel, while there is no coder.
    pub(crate) energy: Vec<f64>,
    /// Codes in whole pages.
    pub(crate) pages: Vec<Vec<u8>>,
    /// Tokens in them.
    pub(crate) num_coded: usize,
}

/// Where a head's tokens and bytes go, and what codes them.
pub(crate) struct Stores<'a> {
    pub(crate) level: Level,
    pub(crate) device: &'a Arena,
    pub(crate) host: Option<&'a mut Sequence>,
}

impl HeadCache {
    /// A head of exact rows in pages of `page_tokens`.
    pub(crate) fn exact(
        (layer, kv_head): (usize, usize),
        head_dim: usize,
        page_tokens: usize,
    ) -> Self {
        let resident = ExactRows::new(head_dim, page_tokens);
        Self {
            layer,
            kv_head,
            head_dim,
            resident,
            tail: None,
            held: None,
            is_complete_on_host: false,
        }
    }

    /// The same head, empty, that forgets some of its tokens, with what it knows of them, and whether the rows of all are on the
    /// host too.
    pub(crate) fn forgetting(self, held: Held, is_complete_on_host: bool) -> Self {
        Self { held: Some(held), is_complete_on_host, ..self }
    }

    /// An `hca` head; with `coder`, tables are not fitted but taken.
    pub(crate) fn hca(
        (layer, kv_head): (usize, usize),
        plan: DevicePlan,
        head_dim: usize,
        coder: Option<KeyCoder>,
        device: &Arena,
    ) -> Result<Self> {
        let tail = Tail {
            plan,
            window: ExactRows::new(head_dim, WINDOW_PAGE_TOKENS),
            coded: coder.map(|coder| CodedKeys::new(coder, device)).transpose()?,
            query_energy: vec![0.0; head_dim],
        };
        let resident = ExactRows::new(head_dim, sink_page_tokens(plan.sinks));
        Ok(Self {
            layer,
            kv_head,
            head_dim,
            resident,
            tail: Some(tail),
            held: None,
            is_complete_on_host: false,
        })
    }

    /// Tokens taken in, forgotten ones included.
    pub(crate) fn num_tokens(&self) -> usize {
        self.held.as_ref().map_or_else(|| self.num_held(), Held::seen)
    }

    /// Tokens held.
    pub(crate) fn num_held(&self) -> usize {
        let tail = self.tail.as_ref();
        self.resident.len() + tail.map_or(0, |tail| tail.window.len() + tail.num_coded())
    }

    /// Of the exact rows, those before what is coded.
    pub(crate) fn num_resident(&self) -> usize {
        self.resident.len()
    }

    /// The coded keys, where there are any.
    pub(crate) fn coded(&self) -> Option<&CodedKeys> {
        self.tail.as_ref().and_then(|tail| tail.coded.as_ref()).filter(|c| c.num_tokens() > 0)
    }

    /// The fitted coder, for a profile.
    pub(crate) fn coder(&self) -> Option<&KeyCoder> {
        self.coded().map(CodedKeys::coder)
    }

    /// Stretches that exact rows on the device lie in.
    pub(crate) fn num_exact_segments(&self) -> usize {
        let of_window = self.tail.as_ref().map_or(0, |tail| tail.window.num_segments());
        self.resident.num_segments() + of_window
    }

    /// One of the stretches that there are, in the order of their tokens.
    pub(crate) fn exact_segment(&self, index: usize) -> ResidentRows<'_> {
        match (index.checked_sub(self.resident.num_segments()), &self.tail) {
            (Some(index), Some(tail)) => tail.window.segment(index),
            _ => self.resident.segment(index),
        }
    }

    /// Takes note of queries `[n, head_dim]` of this head's group, by which errors are weighed once
    /// tables are fitted.
    pub(crate) fn observe_queries(&mut self, queries: &[f32]) {
        for query in queries.chunks_exact(self.head_dim) {
            self.add_energy(query.iter().map(|&q| f64::from(q) * f64::from(q)));
        }
    }

    /// The same for queries whose squares were summed by channel, `[head_dim]`.
    pub(crate) fn add_query_energy(&mut self, energy: &[f64]) {
        self.add_energy(energy.iter().copied());
    }

    fn add_energy(&mut self, energy: impl Iterator<Item = f64>) {
        let Some(tail) = self.tail.as_mut().filter(|tail| tail.coded.is_none()) else { return };
        tail.query_energy.iter_mut().zip(energy).for_each(|(sum, energy)| *sum += energy);
    }

    /// Takes a whole prompt, `keys` and `values` `[n, head_dim]`, into an empty head.
    pub(crate) fn store_prompt(
        &mut self,
        stores: &mut Stores<'_>,
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let head_dim = self.head_dim;
        let num_tokens = keys.len() / head_dim;
        let num_coded = self.tail.as_ref().map_or(0, |tail| match tail.coded {
            // With tables at hand there is no need to wait for enough tokens to fit them.
            Some(_) => tail.whole_groups(num_tokens),
            None => tail.plan.coded_after_prompt(num_tokens),
        });
        let first = self.tail.as_ref().map_or(num_tokens, |tail| tail.plan.sinks.min(num_tokens));
        let rows = |from: usize, to: usize| (from * head_dim..to * head_dim).step_by(head_dim);
        for at in rows(0, first) {
            self.resident.push(
                stores.device,
                &keys[at..][..head_dim],
                &values[at..][..head_dim],
            )?;
        }
        let Some(tail) = &mut self.tail else { return Ok(()) };
        if num_coded > 0 {
            let coded = first * head_dim..(first + num_coded) * head_dim;
            let place = (self.layer, self.kv_head);
            tail.code(place, stores, &keys[coded.clone()], &values[coded])?;
        }
        for at in rows(first + num_coded, num_tokens) {
            tail.window.push(stores.device, &keys[at..][..head_dim], &values[at..][..head_dim])?;
        }
        Ok(())
    }

    /// Takes the tokens of a whole prompt that stay into an empty head that forgets.
    pub(crate) fn store_kept(
        &mut self,
        stores: &mut Stores<'_>,
        keys: &[f32],
        values: &[f32],
        PromptTokens { kept, evidence }: PromptTokens<'_>,
    ) -> Result<()> {
        let head_dim = self.head_dim;
        let rows = |all: &[f32]| -> Vec<f32> {
            let row = |&token: &u32| &all[token as usize * head_dim..][..head_dim];
            kept.iter().flat_map(row).copied().collect()
        };
        if let Some(held) = &mut self.held {
            held.take_prompt(keys.len() / head_dim, kept, evidence)?;
        }
        self.complete(stores, keys, values)?;
        self.store_prompt(stores, &rows(keys), &rows(values))
    }

    /// Takes one more token, of which `evidence` is known, into a head that forgets. After an error all is as before.
    pub(crate) fn append_with(
        &mut self,
        stores: &mut Stores<'_>,
        key: &[f32],
        value: &[f32],
        evidence: f32,
    ) -> Result<()> {
        let num_tokens = self.num_tokens();
        if let Some(held) = &mut self.held {
            held.reserve(held.len() + 1)?;
        }
        let completed = self.complete(stores, key, value);
        let stored = completed.and_then(|()| self.append(stores, key, value));
        match (&mut self.held, &stored) {
            (Some(held), Ok(())) => held.push(evidence),
            (Some(held), Err(_)) => {
                held.release();
                if let Some(host) = stores.host.as_mut().filter(|_| self.is_complete_on_host) {
                    host.truncate(self.layer, self.kv_head, num_tokens);
                }
            }
            (None, _) => {}
        }
        stored
    }

    /// Sends rows to the host whose head has all of them there.
    fn complete(&self, stores: &mut Stores<'_>, keys: &[f32], values: &[f32]) -> Result<()> {
        match &mut stores.host {
            Some(host) if self.is_complete_on_host => {
                Ok(host.append(self.layer, self.kv_head, keys, values)?)
            }
            _ => Ok(()),
        }
    }

    /// Adds the key and the value of an exact row before what is coded to `out`, f16.
    pub(crate) fn push_row_to(&self, index: usize, out: &mut Vec<u8>) {
        self.resident.push_row_to(index, out);
    }

    /// Puts rows of the tokens at `positions`, f16 keys and values side by side, in the place of those of all tokens held
    /// before `end`. After an error all is as before.
    pub(crate) fn replace_before(
        &mut self,
        device: &Arena,
        end: usize,
        positions: &[u32],
        evidence: &[f32],
        rows: &[u8],
    ) -> Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let replaced = held.num_before(end);
        held.reserve(held.len() - replaced + positions.len())?;
        let stored = self.resident.replace_front(device, replaced, rows);
        match stored {
            Ok(()) => held.replace_front(end, positions, evidence),
            Err(_) => held.release(),
        }
        stored
    }

    /// Takes one more token. After an error all is as before.
    pub(crate) fn append(
        &mut self,
        stores: &mut Stores<'_>,
        key: &[f32],
        value: &[f32],
    ) -> Result<()> {
        let Some(tail) = &mut self.tail else {
            return self.resident.push(stores.device, key, value);
        };
        if self.resident.len() < tail.plan.sinks {
            return self.resident.push(stores.device, key, value);
        }
        tail.window.push(stores.device, key, value)?;
        let leaving = tail.whole_groups_leaving();
        if leaving > 0 {
            let (keys, values) = tail.window.front(leaving);
            if let Err(error) = tail.code((self.layer, self.kv_head), stores, &keys, &values) {
                tail.window.truncate(tail.window.len() - 1);
                return Err(error);
            }
            tail.window.drop_front(leaving);
        }
        Ok(())
    }

    /// Device bytes by component, as allocated.
    pub(crate) fn device_bytes(&self) -> DeviceBytes {
        let mut bytes = DeviceBytes {
            resident: self.resident.held_bytes(),
            evidence: self.held.as_ref().map_or(0, Held::device_bytes),
            ..DeviceBytes::default()
        };
        if let Some(tail) = &self.tail {
            bytes.window = tail.window.held_bytes();
            bytes.codes = tail.coded.as_ref().map_or(0, CodedKeys::page_bytes);
            bytes.tables = tail.coded.as_ref().map_or(0, CodedKeys::table_bytes);
        }
        bytes
    }

    /// Positions of the tokens held, ascending; empty where none is ever forgotten.
    pub(crate) fn positions(&self) -> &[u32] {
        self.held.as_ref().map_or(&[], Held::positions)
    }

    /// What is known of each of them; empty where nothing is gathered.
    pub(crate) fn evidence(&self) -> &[f32] {
        self.held.as_ref().map_or(&[], Held::evidence)
    }

    pub(crate) fn evidence_mut(&mut self) -> &mut [f32] {
        self.held.as_mut().map_or(&mut [], Held::evidence_mut)
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Keys of the tokens held `[num_held, head_dim]`, as near as they are known.
    pub(crate) fn keys(&self) -> Vec<f32> {
        let (mut keys, _) = self.resident.front(self.resident.len());
        let Some(tail) = &self.tail else { return keys };
        if let Some(coded) = &tail.coded {
            keys.extend(coded.decoded());
        }
        keys.extend(tail.window.front(tail.window.len()).0);
        keys
    }

    /// Of the tokens held, the first and the last that stay in any case: those of the first `sinks` positions and the last
    /// `recent`, and whatever is exact beside codes.
    pub(crate) fn protected(&self, sinks: usize, recent: usize) -> (usize, usize) {
        let (first, last) = self.held.as_ref().map_or((0, 0), |held| held.protected(sinks, recent));
        match &self.tail {
            None => (first, last),
            Some(tail) => (first.max(self.resident.len()), last.max(tail.window.len())),
        }
    }

    /// How many of the coded tokens at `kept` are more than whole groups of their format.
    pub(crate) fn part_of_group(&self, kept: &[u32]) -> usize {
        let Some(tail) = &self.tail else { return 0 };
        let coded = self.coded_of(kept).len();
        coded - tail.plan.whole_groups(coded)
    }

    /// Of ascending indices of tokens held, those that are coded.
    fn coded_of<'a>(&self, kept: &'a [u32]) -> &'a [u32] {
        let first = self.resident.len();
        let end = first + self.tail.as_ref().map_or(0, Tail::num_coded);
        let place = |index: usize| kept.partition_point(|&kept| (kept as usize) < index);
        &kept[place(first)..place(end)]
    }

    /// Leaves the tokens at `kept`, ascending indices of those held, and frees the pages behind them. Where keys are coded,
    /// all that is exact must stay, and whole groups of what is coded.
    pub(crate) fn keep(&mut self, stores: &mut Stores<'_>, kept: &[u32]) -> Result<()> {
        let first = self.resident.len() as u32;
        let coded: Vec<u32> = self.coded_of(kept).iter().map(|index| index - first).collect();
        match &mut self.tail {
            None => self.resident.keep(kept),
            Some(tail) => {
                debug_assert_eq!(kept.len(), self.resident.len() + coded.len() + tail.window.len());
                // What can fail for want of room comes first, and leaves everything as it was.
                if let Some(host) = &mut stores.host {
                    host.keep(self.layer, self.kv_head, &coded)?;
                }
                if let Some(keys) = &mut tail.coded {
                    keys.keep(stores.level, &coded)?;
                }
            }
        }
        if let Some(held) = &mut self.held {
            held.keep(kept);
        }
        Ok(())
    }

    /// The most tokens, `num_tokens` at most, that can be left of the head's: coded tokens go by whole groups. Of a head that
    /// forgets, a number of tokens taken in.
    pub(crate) fn cut_at_most(&self, num_tokens: usize) -> usize {
        let num_tokens = num_tokens.min(self.num_tokens());
        let Some(held) = &self.held else { return self.cut_rows_at_most(num_tokens) };
        let wanted = held.num_before(num_tokens);
        match self.cut_rows_at_most(wanted) {
            left if left == wanted => num_tokens,
            left => held.positions()[left] as usize,
        }
    }

    /// The most rows, `num_rows` at most, that can be left.
    fn cut_rows_at_most(&self, num_rows: usize) -> usize {
        let Some(tail) = &self.tail else { return num_rows };
        let behind_sinks = num_rows.saturating_sub(self.resident.len());
        if behind_sinks == 0 || behind_sinks >= tail.num_coded() {
            return num_rows;
        }
        self.resident.len() + tail.plan.whole_groups(behind_sinks)
    }

    /// Forgets the tokens from the `num_tokens`-th on, as many as [can be](Self::cut_at_most) left.
    pub(crate) fn truncate(&mut self, num_tokens: usize, host: Option<&mut Sequence>) {
        let num_rows = match &mut self.held {
            None => num_tokens,
            Some(held) => {
                held.truncate(num_tokens);
                held.len()
            }
        };
        let behind_sinks = num_rows.saturating_sub(self.resident.len());
        if let Some(tail) = &mut self.tail {
            let coded = tail.num_coded().min(behind_sinks);
            if let Some(keys) = &mut tail.coded {
                keys.truncate(coded);
            }
            if let Some(host) = host {
                host.truncate(self.layer, self.kv_head, coded);
            }
            tail.window.truncate(behind_sinks - coded);
        } else if let Some(host) = host.filter(|_| self.is_complete_on_host) {
            host.truncate(self.layer, self.kv_head, num_tokens);
        }
        self.resident.truncate(num_rows);
    }

    /// The coder, whether anything is coded yet or not.
    pub(crate) fn tables(&self) -> Option<&KeyCoder> {
        self.tail.as_ref().and_then(|tail| tail.coded.as_ref()).map(CodedKeys::coder)
    }

    /// A copy of what it holds.
    pub(crate) fn contents(&self) -> HeadContents {
        let all = |rows: &ExactRows| <[_; 2]>::from(rows.front(rows.len()));
        let tail = self.tail.as_ref();
        let coded = tail.and_then(|tail| tail.coded.as_ref());
        HeadContents {
            resident: all(&self.resident),
            window: tail.map_or_else(Default::default, |tail| all(&tail.window)),
            coder: coded.map(|keys| keys.coder().clone()),
            energy: tail.map_or_else(Vec::new, |tail| tail.query_energy.clone()),
            pages: coded.map_or_else(Vec::new, CodedKeys::pages),
            num_coded: coded.map_or(0, CodedKeys::num_tokens),
        }
    }

    /// Takes what another holds into one that is empty and has no tables.
    pub(crate) fn fill(&mut self, device: &Arena, contents: HeadContents) -> Result<()> {
        let HeadContents { resident, window, coder, energy, pages, num_coded } = contents;
        let push = |rows: &mut ExactRows, [keys, values]: [Vec<f32>; 2]| -> Result<()> {
            let values = values.chunks_exact(self.head_dim);
            let mut tokens = keys.chunks_exact(self.head_dim).zip(values);
            tokens.try_for_each(|(key, value)| rows.push(device, key, value))
        };
        push(&mut self.resident, resident)?;
        let Some(tail) = &mut self.tail else { return Ok(()) };
        push(&mut tail.window, window)?;
        tail.query_energy = energy;
        if let Some(coder) = coder {
            tail.coded.insert(CodedKeys::new(coder, device)?).fill(device, num_coded, &pages)?;
        }
        Ok(())
    }

    /// A copy whose bytes are in `device`.
    pub(crate) fn fork(&self, device: &Arena) -> Result<Self> {
        let tail = self.tail.as_ref().map(|tail| tail.fork(device)).transpose()?;
        let held = self.held.as_ref().map(|held| held.fork(device)).transpose()?;
        Ok(Self { resident: self.resident.fork(device)?, tail, held, ..*self })
    }
}

#[cfg(test)]
mod tests;
