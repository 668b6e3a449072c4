//! What a case needs of whatever runs kernels: memory, guarded outputs, and launches.

use heterokv_attn::device::{DeviceError, DeviceResult, Launch, Operand, ScorePlanes};
use heterokv_gpu::{Access, Bound, Buffer, Commands, Gpu, KernelSource};
use heterokv_shaders as shaders;

use crate::devices::{Place, run};
use crate::wrong::Edit;

/// Bytes of poison before and behind what a kernel writes: a multiple of what bindings are aligned to.
const GUARD_BYTES: u64 = 256;

/// A bit pattern that no kernel writes: a NaN with a payload.
const POISON: u32 = 0x7fc0_dead;

/// Memory that kernels reach.
pub(crate) trait Memories {
    type Memory;
    type Part<'a>: Operand + From<&'a Self::Memory>
    where
        Self::Memory: 'a;

    fn upload_words(&self, words: &[u32]) -> Self::Memory;

    /// Bytes `start .. start + num_bytes`.
    fn part(memory: &Self::Memory, start: u64, num_bytes: u64) -> Self::Part<'_>;

    fn words(&self, memory: &Self::Memory) -> Vec<u32>;
}

/// Where a case runs.
pub(crate) trait Site: Sized {
    type Memories: Memories;

    fn name(&self) -> &str;

    fn memories(&self) -> &Self::Memories;

    /// Runs these one after the other and waits.
    fn run(&self, launches: &[Launch<PartOf<'_, Self>>]);

    /// Whether it rounds as the host does, operation by operation.
    fn is_exact(&self) -> bool {
        false
    }

    /// Scores in half precision; false where it has none.
    fn score_to_select(&self, _: &ScorePlanes<PartOf<'_, Self>>) -> bool {
        false
    }
}

/// Part of a site's memory.
pub(crate) type PartOf<'a, S> = <<S as Site>::Memories as Memories>::Part<'a>;

impl Memories for Gpu {
    type Memory = Buffer;
    type Part<'a> = Bound<'a>;

    fn upload_words(&self, words: &[u32]) -> Buffer {
        self.upload("input", bytemuck::cast_slice(words)).unwrap()
    }

    fn part(memory: &Buffer, start: u64, num_bytes: u64) -> Bound<'_> {
        Bound::part(memory, start, num_bytes)
    }

    fn words(&self, memory: &Buffer) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.read(memory, 0, memory.num_bytes()).unwrap())
    }
}

impl Site for Place {
    type Memories = Gpu;

    fn name(&self) -> &str {
        &self.name
    }

    fn memories(&self) -> &Gpu {
        self.device.gpu()
    }

    fn run(&self, launches: &[Launch<Bound<'_>>]) {
        run(&self.device, |commands| {
            launches.iter().try_for_each(|launch| {
                match self.edit.filter(|edit| edit.kernel == launch.shader.name) {
                    Some(edit) => run_wrong(commands, launch, edit),
                    None => self.device.launch(commands, launch),
                }
            })
        });
    }

    fn score_to_select(&self, score: &ScorePlanes<Bound<'_>>) -> bool {
        let gpu = self.device.gpu();
        let mut commands = Commands::new(gpu);
        match self.device.score_planes_to_select(&mut commands, score) {
            Err(DeviceError::NoHalf { .. }) if !gpu.has_f16() => return false,
            recorded => recorded.unwrap(),
        }
        commands.submit().unwrap();
        true
    }
}

/// Adds a launch of a kernel that is wrong on purpose.
fn run_wrong(
    commands: &mut Commands<'_>,
    launch: &Launch<Bound<'_>>,
    edit: Edit,
) -> DeviceResult<()> {
    let Launch { shader, variant, params, buffers, grid } = launch;
    let bindings = shader.bindings.iter().map(|access| match access {
        shaders::Access::Read => Access::Read,
        shaders::Access::Write => Access::Write,
    });
    let source = KernelSource {
        name: shader.name,
        wgsl: &edit.apply(shader.name, shader.wgsl(*variant)),
        bindings: &bindings.collect::<Vec<_>>(),
        constants: &[],
    };
    let kernel = commands.gpu().kernel(&source)?;
    commands.dispatch_bytes(&kernel, bytemuck::cast_slice(params), buffers, *grid)?;
    Ok(())
}

pub(crate) fn upload<M: Memories, T: bytemuck::NoUninit>(memories: &M, values: &[T]) -> M::Memory {
    memories.upload_words(&bytemuck::pod_collect_to_vec(bytemuck::cast_slice::<T, u8>(values)))
}

/// Memory that a kernel writes, full of poison, between guards of it.
pub(crate) struct Output<M: Memories> {
    memory: M::Memory,
    num_bytes: u64,
}

impl<M: Memories> Output<M> {
    pub(crate) fn new(memories: &M, len: usize) -> Self {
        Self::of_words(memories, &vec![POISON; len])
    }

    /// One that begins as these values.
    pub(crate) fn of(memories: &M, values: &[f32]) -> Self {
        Self::of_words(memories, bytemuck::cast_slice(values))
    }

    fn of_words(memories: &M, words: &[u32]) -> Self {
        let guard = [POISON; GUARD_BYTES as usize / 4];
        let memory = memories.upload_words(&[&guard, words, &guard].concat());
        Self { memory, num_bytes: 4 * words.len() as u64 }
    }

    pub(crate) fn bound(&self) -> M::Part<'_> {
        M::part(&self.memory, GUARD_BYTES, self.num_bytes.max(4))
    }

    /// What was written; fails where a guard was.
    pub(crate) fn read(&self, memories: &M, label: &str) -> Vec<f32> {
        let words = memories.words(&self.memory);
        let guard = GUARD_BYTES as usize / 4;
        let (before, rest) = words.split_at(guard);
        let (written, behind) = rest.split_at(self.num_bytes as usize / 4);
        let untouched = |words: &[u32]| words.iter().all(|word| *word == POISON);
        assert!(untouched(before) && untouched(&behind[..guard]), "{label}: a guard was written");
        written.iter().map(|word| f32::from_bits(*word)).collect()
    }
}
