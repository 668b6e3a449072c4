//! A vector as affine integers in groups along its channels.
//!
//! `codes | scales and zeros`: chunks of eight codes (see `bits`), the last filled up with zeros, then a
//! [`Group`] for every 32, 64 or 128 channels; the last group takes what is left.

use crate::affine::Group;
use crate::bits::{CHUNK, pack_chunk, unpack_chunk};

/// Channels that share a scale and a zero; all of them where a vector has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupSize {
    /// 32 channels.
    G32,
    /// 64 channels.
    G64,
    /// 128 channels.
    G128,
}

impl GroupSize {
    /// All of them, smallest first.
    pub const ALL: [Self; 3] = [Self::G32, Self::G64, Self::G128];

    /// The number of channels.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::G32 => 32,
            Self::G64 => 64,
            Self::G128 => 128,
        }
    }

    /// The size that a name gives by its number of channels.
    pub(crate) fn named(channels: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.channels().to_string() == channels)
    }
}

/// Vectors of one length, width and size of groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouped {
    bits: u8,
    head_dim: usize,
    size: GroupSize,
}

impl Grouped {
    pub(crate) fn new(bits: u8, head_dim: usize, size: GroupSize) -> Self {
        Self { bits, head_dim, size }
    }

    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(crate) fn group_channels(&self) -> usize {
        self.size.channels()
    }

    /// Bytes of the codes, which come first.
    pub(crate) fn code_bytes(&self) -> usize {
        usize::from(self.bits) * self.head_dim.div_ceil(CHUNK)
    }

    /// Bytes of a vector.
    pub(crate) fn num_bytes(&self) -> usize {
        let groups = self.head_dim.div_ceil(self.group_channels());
        self.code_bytes() + groups * Group::header_bytes(self.bits)
    }

    /// Encodes finite values `x [head_dim]` into `out [num_bytes]`.
    pub(crate) fn encode(&self, x: &[f32], out: &mut [u8]) {
        let (codes, headers) = out.split_at_mut(self.code_bytes());
        let headers = headers.chunks_exact_mut(Group::header_bytes(self.bits));
        let codes = codes.chunks_mut(usize::from(self.bits) * self.group_channels() / CHUNK);
        for ((x, header), codes) in x.chunks(self.group_channels()).zip(headers).zip(codes) {
            let group = Group::of(x, self.bits);
            group.write(header);
            for (x, packed) in x.chunks(CHUNK).zip(codes.chunks_exact_mut(self.bits.into())) {
                let mut chunk = [0; CHUNK];
                chunk.iter_mut().zip(x).for_each(|(code, &x)| *code = group.code(x));
                pack_chunk(&chunk, self.bits, packed);
            }
        }
    }

    /// The values of the chunk from `8 · chunk` on, those beyond the end as their codes have it.
    pub(crate) fn eight(&self, bytes: &[u8], chunk: usize) -> [f32; CHUNK] {
        let (codes, headers) = bytes.split_at(self.code_bytes());
        let header_bytes = Group::header_bytes(self.bits);
        let header = &headers[chunk * CHUNK / self.group_channels() * header_bytes..];
        let group = Group::read(&header[..header_bytes], self.bits);
        let codes = unpack_chunk(&codes[chunk * usize::from(self.bits)..], self.bits);
        codes.map(|code| group.value(code))
    }

    /// Decodes `bytes [num_bytes]` into `out [head_dim]`.
    pub(crate) fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
            out.copy_from_slice(&self.eight(bytes, chunk)[..out.len()]);
        }
    }
}
