//! What the measurements of one run of the suite of speed share.

use heterokv_quant::Level;
use rayon::ThreadPool;

use crate::args::QuantArgs;

/// Shapes, sizes and the machine's part of a run.
pub(crate) struct Conditions<'a> {
    /// Lengths of keys and values.
    pub(crate) head_dims: Vec<usize>,
    /// Query heads of a KV head.
    pub(crate) group_sizes: Vec<usize>,
    /// Samples of each case.
    pub(crate) num_rounds: usize,
    /// Bytes of codes or rows of a case that is read from memory.
    pub(crate) memory_bytes: usize,
    /// How long a sample takes, about.
    pub(crate) sample_seconds: f64,
    /// The instruction set of our kernels.
    pub(crate) level: Level,
    /// The threads, each of which takes its own share of the work.
    pub(crate) pool: &'a ThreadPool,
}

impl<'a> Conditions<'a> {
    /// Those asked for; where only the answers are tested, of one round and little memory.
    pub(crate) fn of(arguments: &QuantArgs, level: Level, pool: &'a ThreadPool) -> Self {
        let scan = &arguments.scan;
        let (num_rounds, memory_bytes, sample_seconds) = match arguments.test {
            true => (1, 4 << 20, 0.0),
            false => (scan.rounds, scan.memory << 20, 0.1),
        };
        let (head_dims, group_sizes) = (scan.head_dims.clone(), scan.group_sizes.clone());
        Self { head_dims, group_sizes, num_rounds, memory_bytes, sample_seconds, level, pool }
    }
}
