//! A GGUF file with random weights and the layer shapes of a published model: Llama 3 8B (Grattafiori et al., "The Llama 3
//! Herd of Models", arXiv 2407.21783), two layers of it, in the blocks that llama.cpp's Q4_K_M has.
//!
//! What it costs to read such layers does not depend on what they say. The queries' weights are drawn so wide that scores
//! have a deviation of 3, at which nearly all attention rests on a seventh of the tokens, as in a text; with equal widths a
//! selection would read all rows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use half::f16;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// Version 3 of the format.
const VERSION: u32 = 3;

/// Where tensors begin: at multiples of this.
const ALIGNMENT: usize = 32;

/// Elements of a super-block of K-quants.
const BLOCK: usize = 256;

/// Same file, every time.
const SEED: u64 = 8;

/// Deviation of the scores of a query.
const SCORE_DEVIATION: f64 = 3.0;

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Of the file.
    pub(super) name: &'static str,
    pub(super) num_layers: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_qo_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) vocab_size: usize,
}

/// Two layers of Llama 3 8B and a small vocabulary.
pub(super) const LLAMA3_8B: Shape = Shape {
    name: "llama3-8b-2-layers.Q4_K_M",
    num_layers: 2,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_qo_heads: 32,
    num_kv_heads: 8,
    vocab_size: 1024,
};

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Ones in f32.
    Ones,
    Q4K,
    Q6K,
}

impl Form {
    /// The number of the type in the format.
    fn code(self) -> u32 {
        match self {
            Self::Ones => 0,
            Self::Q4K => 12,
            Self::Q6K => 14,
        }
    }

    fn bytes(self, num_elements: usize) -> usize {
        match self {
            Self::Ones => 4 * num_elements,
            Self::Q4K => num_elements / BLOCK * 144,
            Self::Q6K => num_elements / BLOCK * 210,
        }
    }
}

/// One tensor: its axes, the contiguous one first, and the deviation of its elements.
struct Tensor {
    name: String,
    axes: Vec<usize>,
    form: Form,
    deviation: f64,
}

impl Tensor {
    fn num_elements(&self) -> usize {
        self.axes.iter().product()
    }

    fn bytes(&self) -> usize {
        self.form.bytes(self.num_elements())
    }
}

/// The file of the shape in `folder`, made where it is not there.
///
/// # Errors
/// If it cannot be written.
pub(super) fn obtain(shape: &Shape, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{}.gguf", shape.name));
    if path.is_file() {
        return Ok(path);
    }
    let context = || format!("cannot write {}", path.display());
    // Under its name only when it is whole.
    let file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    write(shape, file.as_file()).with_context(context)?;
    file.persist(&path).with_context(context)?;
    Ok(path)
}

fn write(shape: &Shape, file: &File) -> Result<()> {
    let tensors = tensors(shape);
    let mut header = Header::default();
    metadata(shape, &mut header);
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(header.num_pairs.to_le_bytes());
    bytes.extend(header.bytes);
    let mut offset = 0;
    for tensor in &tensors {
        bytes.extend(string(&tensor.name));
        bytes.extend((tensor.axes.len() as u32).to_le_bytes());
        tensor.axes.iter().for_each(|&axis| bytes.extend((axis as u64).to_le_bytes()));
        bytes.extend(tensor.form.code().to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&bytes)?;
    let mut rng = StdRng::seed_from_u64(SEED);
    for tensor in &tensors {
        match tensor.form {
            Form::Ones => {
                for _ in 0..tensor.num_elements() {
                    out.write_all(&1f32.to_le_bytes())?;
                }
            }
            Form::Q4K => {
                for _ in 0..tensor.num_elements() / BLOCK {
                    out.write_all(&q4_k(&mut rng, tensor.deviation))?;
                }
            }
            Form::Q6K => {
                for _ in 0..tensor.num_elements() / BLOCK {
                    out.write_all(&q6_k(&mut rng, tensor.deviation))?;
                }
            }
        }
        let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
        out.write_all(&[0; ALIGNMENT][..padding])?;
    }
    Ok(out.flush()?)
}

fn tensors(shape: &Shape) -> Vec<Tensor> {
    let Shape { hidden_size: hidden, intermediate_size, num_qo_heads, num_kv_heads, .. } = *shape;
    let kv = hidden / num_qo_heads * num_kv_heads;
    // Of a row that makes elements of deviation 1 from such.
    let unit = |len: usize| 1.0 / (len as f64).sqrt();
    let matrix = |name: &str, axes: [usize; 2], form| Tensor {
        name: name.to_owned(),
        axes: axes.to_vec(),
        form,
        deviation: unit(axes[0]),
    };
    let ones = |name: &str| Tensor {
        name: name.to_owned(),
        axes: vec![hidden],
        form: Form::Ones,
        deviation: 0.0,
    };
    let mut tensors = vec![
        Tensor {
            deviation: 1.0,
            ..matrix("token_embd.weight", [hidden, shape.vocab_size], Form::Q4K)
        },
        ones("output_norm.weight"),
        matrix("output.weight", [hidden, shape.vocab_size], Form::Q6K),
    ];
    for layer in 0..shape.num_layers {
        let in_layer = |name: &str| format!("blk.{layer}.{name}.weight");
        tensors.push(ones(&in_layer("attn_norm")));
        let query = matrix(&in_layer("attn_q"), [hidden, hidden], Form::Q4K);
        tensors.push(Tensor { deviation: SCORE_DEVIATION * query.deviation, ..query });
        tensors.push(matrix(&in_layer("attn_k"), [hidden, kv], Form::Q4K));
        tensors.push(matrix(&in_layer("attn_v"), [hidden, kv], Form::Q6K));
        tensors.push(matrix(&in_layer("attn_output"), [hidden, hidden], Form::Q4K));
        tensors.push(ones(&in_layer("ffn_norm")));
        tensors.push(matrix(&in_layer("ffn_gate"), [hidden, intermediate_size], Form::Q4K));
        tensors.push(matrix(&in_layer("ffn_up"), [hidden, intermediate_size], Form::Q4K));
        tensors.push(matrix(&in_layer("ffn_down"), [intermediate_size, hidden], Form::Q6K));
    }
    tensors
}

/// Eight groups of 32: `d · scale · q − d_min · min` of 4-bit `q`, scales and minima of 6 bits.
fn q4_k(rng: &mut StdRng, deviation: f64) -> [u8; 144] {
    /// Of 0 to 15, all as likely.
    const MEAN: f64 = 7.5;
    const DEVIATION: f64 = 4.61;
    const MEAN_SCALE: f64 = 47.5;
    let d = deviation / (DEVIATION * MEAN_SCALE);
    let mut block = [0; 144];
    block[..2].copy_from_slice(&f16::from_f64(d).to_le_bytes());
    block[2..4].copy_from_slice(&f16::from_f64(MEAN * d).to_le_bytes());
    // The minimum of a group is its scale, so that its mean is 0.
    let scales: [u8; 8] = std::array::from_fn(|_| rng.random_range(32..64));
    for (group, &scale) in scales.iter().enumerate() {
        if group < 4 {
            block[4 + group] |= scale;
            block[8 + group] |= scale;
        } else {
            block[8 + group] = (scale & 15) | (scale & 15) << 4;
            block[group] |= (scale >> 4) << 6;
            block[4 + group] |= (scale >> 4) << 6;
        }
    }
    rng.fill_bytes(&mut block[16..]);
    block
}

/// Sixteen groups of 16: `d · scale · (q − 32)` of 6-bit `q`, scales of 8 bits.
fn q6_k(rng: &mut StdRng, deviation: f64) -> [u8; 210] {
    /// Of −32 to 31, all as likely.
    const DEVIATION: f64 = 18.5;
    const MEAN_SCALE: f64 = 11.5;
    let d = deviation / (DEVIATION * MEAN_SCALE);
    let mut block = [0; 210];
    rng.fill_bytes(&mut block[..192]);
    block[192..208].fill_with(|| rng.random_range(8..16));
    block[208..].copy_from_slice(&f16::from_f64(d).to_le_bytes());
    block
}

/// Pairs of metadata.
#[derive(Default)]
struct Header {
    num_pairs: u64,
    bytes: Vec<u8>,
}

impl Header {
    fn pair(&mut self, key: &str, type_code: u32, value: &[u8]) {
        self.num_pairs += 1;
        self.bytes.extend(string(key));
        self.bytes.extend(type_code.to_le_bytes());
        self.bytes.extend(value);
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.pair(key, 4, &(value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.pair(key, 6, &value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &string(value));
    }

    /// Elements of a type, each already as bytes.
    fn array(&mut self, key: &str, type_code: u32, elements: &[Vec<u8>]) {
        let mut value = type_code.to_le_bytes().to_vec();
        value.extend((elements.len() as u64).to_le_bytes());
        value.extend(elements.iter().flatten());
        self.pair(key, 9, &value);
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn metadata(shape: &Shape, header: &mut Header) {
    header.text("general.architecture", "llama");
    header.text("general.name", shape.name);
    header.u32("llama.block_count", shape.num_layers);
    header.u32("llama.context_length", 8192);
    header.u32("llama.embedding_length", shape.hidden_size);
    header.u32("llama.feed_forward_length", shape.intermediate_size);
    header.u32("llama.attention.head_count", shape.num_qo_heads);
    header.u32("llama.attention.head_count_kv", shape.num_kv_heads);
    header.u32("llama.rope.dimension_count", shape.hidden_size / shape.num_qo_heads);
    header.u32("llama.vocab_size", shape.vocab_size);
    header.f32("llama.rope.freq_base", 500_000.0);
    header.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    // A vocabulary that every program takes: what is unknown, begin and end, all bytes, and words.
    let mut tokens: Vec<(String, i32)> =
        vec![("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("</s>".to_owned(), 3)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    tokens.extend((tokens.len()..shape.vocab_size).map(|word| (format!("▁w{word}"), 1)));
    let texts: Vec<Vec<u8>> = tokens.iter().map(|(text, _)| string(text)).collect();
    let types: Vec<Vec<u8>> = tokens.iter().map(|(_, kind)| kind.to_le_bytes().to_vec()).collect();
    let scores = vec![0f32.to_le_bytes().to_vec(); tokens.len()];
    header.text("tokenizer.ggml.model", "llama");
    header.array("tokenizer.ggml.tokens", 8, &texts);
    header.array("tokenizer.ggml.scores", 6, &scores);
    header.array("tokenizer.ggml.token_type", 5, &types);
    header.u32("tokenizer.ggml.unknown_token_id", 0);
    header.u32("tokenizer.ggml.bos_token_id", 1);
    header.u32("tokenizer.ggml.eos_token_id", 2);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use heterokv_model::text::{EncodeOptions, ModelText};
    use heterokv_model::{Checkpoint, ComputeType, Model};
    use heterokv_quant::Level;
    use heterokv_quant::weights::{TensorType, WeightMatrix};

    use super::*;

    #[test]
    fn a_small_one_is_loaded_and_computes() {
        let folder = tempfile::tempdir().expect("a folder");
        let shape = Shape {
            name: "small",
            num_layers: 1,
            hidden_size: 256,
            intermediate_size: 512,
            num_qo_heads: 4,
            num_kv_heads: 2,
            vocab_size: 512,
        };
        let path = obtain(&shape, folder.path()).expect("it can be written");
        let bytes = fs::read(&path).expect("it is there");
        fs::remove_file(&path).expect("it is ours");
        obtain(&shape, folder.path()).expect("it can be written again");
        assert!(fs::read(&path).expect("it is there") == bytes, "the same bytes every time");
        let checkpoint = Checkpoint::open(&path).expect("it is valid");
        let text = ModelText::of(&checkpoint).expect("it has a vocabulary");
        let options = EncodeOptions { add_special: false, parse_special: false };
        assert!(!text.tokenizer.encode("whale", options).expect("it has all bytes").is_empty());
        let model = Model::load(&checkpoint, ComputeType::Q8, Level::detect()).expect("it loads");
        let hidden = model.prefill(&[5, 300, 7], &mut [], None).expect("it computes");
        let square = hidden.iter().map(|x| x * x).sum::<f32>() / hidden.len() as f32;
        assert!(square > 0.1 && square < 100.0, "{square}");
        assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn blocks_have_the_deviation_asked_for_and_no_mean() {
        let mut rng = StdRng::seed_from_u64(1);
        for (ty, bytes) in [
            (TensorType::Q4K, (0..64).flat_map(|_| q4_k(&mut rng, 0.05)).collect::<Vec<u8>>()),
            (TensorType::Q6K, (0..64).flat_map(|_| q6_k(&mut rng, 0.05)).collect()),
        ] {
            let axes = [64, BLOCK];
            let (compute, level) = (ComputeType::F32, Level::SCALAR);
            let matrix = WeightMatrix::from_tensor(ty, &bytes, axes, |row| row, compute, level);
            let matrix = matrix.expect("they are blocks");
            let mut all = vec![0.0; 64 * BLOCK];
            all.chunks_exact_mut(BLOCK).enumerate().for_each(|(row, out)| {
                matrix.row(row, out).expect("it is one");
            });
            let mean = all.iter().sum::<f32>() / all.len() as f32;
            let deviation = (all.iter().map(|x| x * x).sum::<f32>() / all.len() as f32).sqrt();
            assert!(mean.abs() < 0.003, "{ty:?}: {mean}");
            assert!((deviation / 0.05 - 1.0).abs() < 0.1, "{ty:?}: {deviation}");
        }
    }
}
