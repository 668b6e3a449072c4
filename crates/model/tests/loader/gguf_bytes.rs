//! A writer of GGUF headers that obeys: it writes whatever counts and offsets it is told.

/// Type numbers of metadata values.
pub(crate) const U32: u32 = 4;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

/// A header under construction.
#[derive(Clone)]
pub(crate) struct Header {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// The counts to claim; the true ones where `None`.
    pub(crate) claimed_tensors: Option<u64>,
    pub(crate) claimed_pairs: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl Header {
    pub(crate) fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            claimed_tensors: None,
            claimed_pairs: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
            data: vec![0; 64],
        }
    }

    /// A pair with a value of these bytes. A later pair of the same key comes in its place.
    pub(crate) fn pair(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        let mut bytes = string(key);
        self.pairs.retain(|pair| !pair.starts_with(&bytes));
        bytes.extend(ty.to_le_bytes());
        bytes.extend(value);
        self.pairs.push(bytes);
        self
    }

    /// A pair, whether or not the key is there already.
    pub(crate) fn pair_again(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        let added = Self::new().pair(key, ty, value);
        self.pairs.extend(added.pairs);
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        let start = string(key);
        self.pairs.retain(|pair| !pair.starts_with(&start));
        self
    }

    /// A directory entry; `axes` innermost first, as in the file.
    pub(crate) fn tensor(mut self, name: &str, axes: &[u64], ty: u32, offset: u64) -> Self {
        let mut bytes = string(name);
        bytes.extend((axes.len() as u32).to_le_bytes());
        bytes.extend(axes.iter().flat_map(|len| len.to_le_bytes()));
        bytes.extend(ty.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    /// A tensor of F32 zeros behind all others.
    pub(crate) fn zeros(mut self, name: &str, axes: &[u64]) -> Self {
        let offset = self.data.len().next_multiple_of(32);
        let num_bytes = 4 * axes.iter().product::<u64>() as usize;
        self.data.resize(offset + num_bytes, 0);
        self.tensor(name, axes, 0, offset as u64)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.claimed_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.claimed_pairs.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.iter().chain(&self.tensors).flatten());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    /// A whole model of one layer: hidden 8, 2 heads of 4, 1 KV head, MLP 6, vocabulary 5.
    pub(crate) fn model() -> Self {
        let mut header = Self::new().pair("general.architecture", STRING, &string("llama")).pair(
            "llama.attention.layer_norm_rms_epsilon",
            F32,
            &1e-5_f32.to_le_bytes(),
        );
        for (key, value) in [
            ("block_count", 1_u32),
            ("context_length", 64),
            ("embedding_length", 8),
            ("feed_forward_length", 6),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("vocab_size", 5),
        ] {
            header = header.pair(&format!("llama.{key}"), U32, &value.to_le_bytes());
        }
        for (name, axes) in [
            ("token_embd.weight", &[8, 5][..]),
            ("output_norm.weight", &[8]),
            ("blk.0.attn_norm.weight", &[8]),
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.attn_k.weight", &[8, 4]),
            ("blk.0.attn_v.weight", &[8, 4]),
            ("blk.0.attn_output.weight", &[8, 8]),
            ("blk.0.ffn_norm.weight", &[8]),
            ("blk.0.ffn_gate.weight", &[8, 6]),
            ("blk.0.ffn_up.weight", &[8, 6]),
            ("blk.0.ffn_down.weight", &[6, 8]),
        ] {
            header = header.zeros(name, axes);
        }
        header
    }
}
