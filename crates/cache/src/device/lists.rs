//! The lists by which kernels find the exact rows of a layer, and the attention states that come of them.

use heterokv_attn::HeadShape;
use heterokv_attn::device::{AttendRows, Device, MergeStates, RowPart, RowSlot, StoreRows};
use heterokv_gpu::{Bound, Buffer, Commands, Gpu};

use super::rows::{RowPool, RowRun};
use crate::Result;

/// Lists have room for so many bytes or a multiple.
const LIST_STEP_BYTES: usize = 256;

/// What the kernels read of the exact rows of one layer, on the device.
#[derive(Debug)]
pub(super) struct RowLists {
    /// By buffer of the pool.
    parts: Vec<GrowingList<RowPart>>,
    /// By buffer of the pool.
    slots: Vec<GrowingList<RowSlot>>,
    pages: GrowingList<u32>,
    /// Where the states of each KV head begin in `ids`.
    first: GrowingList<u32>,
    /// States, KV head by KV head.
    ids: GrowingList<u32>,
}

/// What attends over which rows into which states.
#[derive(Clone, Copy)]
pub(super) struct RowAttention<'a> {
    pub(super) shape: HeadShape,
    pub(super) pool: &'a RowPool,
    pub(super) states: &'a States,
    /// `[num_qo_heads, head_dim]`, f32.
    pub(super) q: Bound<'a>,
}

impl RowLists {
    /// None yet.
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            parts: Vec::new(),
            slots: Vec::new(),
            pages: GrowingList::new(gpu, "row lists: pages")?,
            first: GrowingList::new(gpu, "row lists: first states")?,
            ids: GrowingList::new(gpu, "row lists: states")?,
        })
    }

    /// Bytes on the device.
    pub(super) fn num_bytes(&self) -> u64 {
        let of_parts: u64 = self.parts.iter().map(|list| list.buffer.num_bytes()).sum();
        let of_slots: u64 = self.slots.iter().map(|list| list.buffer.num_bytes()).sum();
        let rest = [&self.pages, &self.first, &self.ids].map(|list| list.buffer.num_bytes());
        of_parts + of_slots + rest.iter().sum::<u64>()
    }

    /// States of the layer, those of the host included.
    pub(super) fn num_states(&self) -> usize {
        self.ids.items.len()
    }

    /// Names the rows of each KV head, each stretch of which gives a state. The first states, one for each KV head, are
    /// the host's.
    pub(super) fn set_runs(
        &mut self,
        gpu: &Gpu,
        pool: &RowPool,
        heads: &[Vec<&RowRun>],
    ) -> Result<()> {
        let mut parts = vec![Vec::new(); pool.slabs().len()];
        let (mut pages, mut first, mut ids) = (Vec::new(), vec![0], Vec::new());
        let mut state = heads.len() as u32;
        for (kv_head, runs) in heads.iter().enumerate() {
            ids.push(kv_head as u32);
            for stretch in runs.iter().flat_map(|run| run.stretches(pool)) {
                parts[stretch.slab].push(RowPart {
                    kv_head: kv_head as u32,
                    first_page: pages.len() as u32,
                    num_tokens: stretch.num_tokens as u32,
                    first_slot: stretch.first_slot as u32,
                    state,
                });
                pages.extend(stretch.words);
                ids.push(state);
                state += 1;
            }
            first.push(ids.len() as u32);
        }
        set_all(&mut self.parts, gpu, "row lists: parts", parts)?;
        self.pages.set(gpu, pages)?;
        self.first.set(gpu, first)?;
        self.ids.set(gpu, ids)
    }

    /// Names where the rows go that [`RowLists::store`] stores.
    pub(super) fn set_slots(
        &mut self,
        gpu: &Gpu,
        pool: &RowPool,
        slots: &[(usize, RowSlot)],
    ) -> Result<()> {
        let mut by_slab = vec![Vec::new(); pool.slabs().len()];
        slots.iter().for_each(|(slab, slot)| by_slab[*slab].push(*slot));
        set_all(&mut self.slots, gpu, "row lists: slots", by_slab)
    }

    /// Adds the storing of keys and values `[tokens, num_kv_heads, head_dim]`, f32, where the slots say.
    pub(super) fn store(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        pool: &RowPool,
        shape: HeadShape,
        [k, v]: [Bound<'_>; 2],
    ) -> Result<()> {
        for (slots, rows) in self.slots.iter().zip(pool.slabs()) {
            let store = StoreRows {
                shape,
                page_tokens: pool.page_tokens(),
                num_slots: slots.items.len(),
                slots: Bound::all(&slots.buffer),
                k,
                v,
                rows: Bound::all(rows),
            };
            device.store_rows(commands, &store)?;
        }
        Ok(())
    }

    /// Adds the attention over all rows, into the states, or only what they add up to.
    pub(super) fn attend(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        attention: RowAttention<'_>,
        writes_out: bool,
    ) -> Result<()> {
        let RowAttention { shape, pool, states, q } = attention;
        for (parts, rows) in self.parts.iter().zip(pool.slabs()) {
            let attend = AttendRows {
                shape,
                page_tokens: pool.page_tokens(),
                num_parts: parts.items.len(),
                parts: Bound::all(&parts.buffer),
                pages: Bound::all(&self.pages.buffer),
                rows: Bound::all(rows),
                q,
                writes_out,
                num_states: states.capacity,
                out: Bound::all(&states.outs),
                lse: Bound::all(&states.lses),
            };
            device.attend_rows(commands, &attend)?;
        }
        Ok(())
    }

    /// Adds the merge of the states of the rows.
    pub(super) fn merge(
        &self,
        device: &Device,
        commands: &mut Commands<'_>,
        shape: HeadShape,
        states: &States,
        [out, lse]: [Bound<'_>; 2],
    ) -> Result<()> {
        let merge = MergeStates {
            shape,
            num_states: states.capacity,
            first: Bound::all(&self.first.buffer),
            ids: Bound::all(&self.ids.buffer),
            outs: Bound::all(&states.outs),
            lses: Bound::all(&states.lses),
            out,
            lse,
        };
        Ok(device.merge_states(commands, &merge)?)
    }
}

/// States of one layer on the device, those of the host first: outputs and log-sum-exps of a KV head's group each.
#[derive(Debug)]
pub(super) struct States {
    capacity: usize,
    /// `[capacity, group_size, head_dim]`, f32.
    pub(super) outs: Buffer,
    /// `[capacity, group_size]`, f32.
    pub(super) lses: Buffer,
    /// `[num_qo_heads]`, minus infinity: the log-sum-exps of the host where it has nothing.
    nothing: Buffer,
}

impl States {
    /// Room for so many states.
    pub(super) fn new(gpu: &Gpu, shape: HeadShape, capacity: usize) -> Result<Self> {
        let heads = (capacity * shape.group_size()) as u64;
        let nothing = vec![f32::NEG_INFINITY; shape.num_qo_heads];
        let nothing: &[u8] = bytemuck::cast_slice(&nothing);
        let lses = gpu.buffer("attention states: lse", 4 * heads)?;
        gpu.write(&lses, 0, nothing)?;
        Ok(Self {
            capacity,
            outs: gpu.buffer("attention states", 4 * heads * shape.head_dim as u64)?,
            lses,
            nothing: gpu.upload("attention states of nothing", nothing)?,
        })
    }

    /// Makes the host's states empty.
    pub(super) fn forget_host(&self, commands: &mut Commands<'_>) -> Result<()> {
        let num_bytes = self.nothing.num_bytes();
        Ok(commands.copy((&self.nothing, 0), (&self.lses, 0), num_bytes)?)
    }

    /// How many there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }
}

/// A list that the host rewrites as a whole where it has changed.
#[derive(Debug)]
pub(super) struct GrowingList<T> {
    items: Vec<T>,
    buffer: Buffer,
}

impl<T: bytemuck::NoUninit + PartialEq> GrowingList<T> {
    pub(super) fn new(gpu: &Gpu, label: &'static str) -> Result<Self> {
        Ok(Self { items: Vec::new(), buffer: gpu.buffer(label, 0)? })
    }

    /// Bytes of a list of so many that grew to them at once.
    pub(super) fn bytes(len: usize) -> usize {
        let bytes = len * size_of::<T>();
        (bytes + bytes / 8).next_multiple_of(LIST_STEP_BYTES)
    }

    /// What the device holds; beyond the items it holds anything.
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Makes the device hold `items`.
    pub(super) fn set(&mut self, gpu: &Gpu, items: Vec<T>) -> Result<()> {
        if items == self.items {
            return Ok(());
        }
        let bytes: &[u8] = bytemuck::cast_slice(&items);
        if bytes.len() as u64 > self.buffer.num_bytes() {
            // Lists grow token by token: some room more, so that it is made anew rarely.
            self.buffer = gpu.buffer(self.buffer.label(), Self::bytes(items.len()) as u64)?;
        }
        gpu.write(&self.buffer, 0, bytes)?;
        self.items = items;
        Ok(())
    }
}

/// [`GrowingList::set`] of a list for each buffer of a pool.
fn set_all<T: bytemuck::NoUninit + PartialEq>(
    lists: &mut Vec<GrowingList<T>>,
    gpu: &Gpu,
    label: &'static str,
    items: Vec<Vec<T>>,
) -> Result<()> {
    while lists.len() < items.len() {
        lists.push(GrowingList::new(gpu, label)?);
    }
    lists.iter_mut().zip(items).try_for_each(|(list, items)| list.set(gpu, items))
}
