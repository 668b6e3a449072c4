//! What a head that forgets tokens knows of those that it still holds.

use std::io::{self, Write};

use heterokv_offload::{Arena, Attachment, Charge};

use crate::Result;
use crate::saved::damaged;

/// Tokens for whose numbers memory is taken at a time.
pub(crate) const EVIDENCE_TOKENS: usize = 16;

/// The tokens that a head holds, in ascending order of their positions, wherever their rows are.
#[derive(Debug)]
pub(crate) struct Held {
    /// Tokens taken in, forgotten ones included.
    seen: usize,
    /// Position of each in the sequence.
    positions: Vec<u32>,
    /// What the scorer has gathered of each; empty where it gathers nothing.
    evidence: Vec<f32>,
    /// The evidence as device bytes; none where there is none to be gathered.
    charge: Option<Charge>,
}

impl Held {
    /// No tokens; with `has_evidence` a number is kept of each, in `device`.
    pub(crate) fn new(device: &Arena, has_evidence: bool) -> Result<Self> {
        let charge = has_evidence.then(|| device.charge(0)).transpose()?;
        Ok(Self { seen: 0, positions: Vec::new(), evidence: Vec::new(), charge })
    }

    /// Device bytes of the evidence of `num_tokens`.
    pub(crate) fn evidence_bytes(num_tokens: usize) -> usize {
        num_tokens.div_ceil(EVIDENCE_TOKENS) * EVIDENCE_TOKENS * size_of::<f32>()
    }

    /// Tokens taken in.
    pub(crate) fn seen(&self) -> usize {
        self.seen
    }

    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(crate) fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub(crate) fn evidence(&self) -> &[f32] {
        &self.evidence
    }

    pub(crate) fn evidence_mut(&mut self) -> &mut [f32] {
        &mut self.evidence
    }

    /// Device bytes of the evidence.
    pub(crate) fn device_bytes(&self) -> usize {
        self.charge.as_ref().map_or(0, Charge::bytes)
    }

    /// Of the tokens held, those of the first `sinks` positions and of the last `recent`.
    pub(crate) fn protected(&self, sinks: usize, recent: usize) -> (usize, usize) {
        let sinks = self.positions.partition_point(|&position| (position as usize) < sinks);
        let first = self.seen.saturating_sub(recent);
        let recent = self.positions.partition_point(|&position| (position as usize) < first);
        (sinks, self.len() - recent)
    }

    /// How many of the tokens held come before a position.
    pub(crate) fn num_before(&self, position: usize) -> usize {
        self.positions.partition_point(|&held| (held as usize) < position)
    }

    /// Makes room for the evidence of so many tokens, where there is less; what is held afterwards says how much of it
    /// stays. After an error there is as much as before.
    pub(crate) fn reserve(&mut self, num_tokens: usize) -> Result<()> {
        let bytes = Self::evidence_bytes(num_tokens);
        self.charge.as_mut().map_or(Ok(()), |charge| Ok(charge.grow_to(bytes)?))
    }

    /// Gives back what no token held needs.
    pub(crate) fn release(&mut self) {
        let bytes = Self::evidence_bytes(self.len());
        self.charge.iter_mut().for_each(|charge| charge.shrink_to(bytes));
    }

    /// Takes in one more token, for which there is [room](Self::reserve), with what is known of it.
    pub(crate) fn push(&mut self, evidence: f32) {
        self.positions.push(self.seen as u32);
        self.seen += 1;
        if self.charge.is_some() {
            self.evidence.push(evidence);
        }
        self.release();
    }

    /// Takes in the tokens of a prompt of which only those at `kept` are held.
    pub(crate) fn take_prompt(
        &mut self,
        num_tokens: usize,
        kept: &[u32],
        evidence: &[f32],
    ) -> Result<()> {
        self.reserve(kept.len())?;
        self.seen = num_tokens;
        self.positions = kept.to_vec();
        if self.charge.is_some() {
            self.evidence = kept.iter().map(|&token| evidence[token as usize]).collect();
        }
        self.release();
        Ok(())
    }

    /// Leaves the tokens at `kept`, ascending indices.
    pub(crate) fn keep(&mut self, kept: &[u32]) {
        self.positions = kept.iter().map(|&index| self.positions[index as usize]).collect();
        if self.charge.is_some() {
            self.evidence = kept.iter().map(|&index| self.evidence[index as usize]).collect();
        }
        self.release();
    }

    /// Puts tokens at other positions, for which there is [room](Self::reserve), with what is known of each, in the place
    /// of those before `end`.
    pub(crate) fn replace_front(&mut self, end: usize, positions: &[u32], evidence: &[f32]) {
        let replaced = ..self.num_before(end);
        if self.charge.is_some() {
            self.evidence.splice(replaced, evidence.iter().copied());
        }
        self.positions.splice(replaced, positions.iter().copied());
        self.release();
    }

    /// Forgets the tokens from a position on, also that they were there. The evidence keeps its memory until a token comes.
    pub(crate) fn truncate(&mut self, num_tokens: usize) {
        let left = self.num_before(num_tokens);
        self.seen = self.seen.min(num_tokens);
        self.positions.truncate(left);
        self.evidence.truncate(left);
    }

    /// Bytes that are written of so many tokens.
    pub(crate) fn saved_bytes(num_tokens: usize, has_evidence: bool) -> usize {
        num_tokens * if has_evidence { 8 } else { 4 }
    }

    /// Writes the positions and the evidence.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let positions = self.positions.iter().map(|position| position.to_le_bytes());
        let mut numbers = positions.chain(self.evidence.iter().map(|x| x.to_le_bytes()));
        numbers.try_for_each(|bytes| out.write_all(&bytes))
    }

    /// Reads what was written so of `len` of `seen` tokens.
    pub(crate) fn read(
        &mut self,
        (seen, len): (usize, usize),
        data: &mut Attachment,
    ) -> Result<()> {
        let mut word = || -> Result<[u8; 4]> {
            let mut bytes = [0; 4];
            data.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        for _ in 0..len {
            let position = u32::from_le_bytes(word()?);
            let is_next = self.positions.last().is_none_or(|&last| last < position);
            if !is_next || position as usize >= seen {
                return Err(damaged("positions of tokens do not ascend to their number"));
            }
            self.positions.push(position);
        }
        if self.charge.is_some() {
            for _ in 0..len {
                let evidence = f32::from_le_bytes(word()?);
                if evidence.is_nan() {
                    return Err(damaged("what is known of a token is not a number"));
                }
                self.evidence.push(evidence);
            }
        }
        self.seen = seen;
        self.reserve(len)
    }

    /// A copy that counts in `device`.
    pub(crate) fn fork(&self, device: &Arena) -> Result<Self> {
        let charge =
            self.charge.as_ref().map(|charge| device.charge(charge.bytes())).transpose()?;
        let (positions, evidence) = (self.positions.clone(), self.evidence.clone());
        Ok(Self { seen: self.seen, positions, evidence, charge })
    }
}
