//! SentencePiece BPE: merging by the score of the joined piece.
//!
//! The algorithm is that of SentencePiece (Kudo and Richardson 2018) and of llama.cpp for
//! vocabularies named `llama`. A text starts as one symbol per character. As long as two
//! neighbours join to a piece of the vocabulary, the join with the best score happens; among equal
//! scores, the leftmost. What is then no piece is written in byte pieces.
//!
//! This is not the `tokenizers` crate's BPE with a list of merges made from the scores. There,
//! every pair has a rank of its own, so that two joins of equal score are ordered by rank and not
//! by position, and vocabularies whose scores tie (converters that had no scores write one value
//! for all) would come out differently.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{Error, Result};

/// A vocabulary of scored pieces.
#[derive(Debug, Clone)]
pub(super) struct SpmModel {
    pieces: HashMap<Box<str>, Piece>,
    byte_ids: Vec<Option<u32>>,
    unk_id: Option<u32>,
}

/// One entry of the vocabulary that merging may produce.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Its id.
    pub(super) id: u32,
    /// Higher is merged earlier; never NaN.
    pub(super) score: f32,
    /// A step on the way to longer pieces that is never output itself.
    pub(super) unused: bool,
}

/// A run of characters that is one piece so far, in a doubly linked list. Empty when absorbed.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// A join of two neighbours that was possible when it was found.
struct Join {
    score: f32,
    left: usize,
    right: usize,
    end: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        // Adding zero makes the two zeros one, so that they tie.
        let by_score = (self.score + 0.0).total_cmp(&(other.score + 0.0));
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Join {}

impl SpmModel {
    /// A vocabulary; `byte_ids` has one entry per byte value.
    pub(super) fn new(
        pieces: HashMap<Box<str>, Piece>,
        byte_ids: Vec<Option<u32>>,
        unk_id: Option<u32>,
    ) -> Self {
        debug_assert_eq!(byte_ids.len(), 256);
        Self { pieces, byte_ids, unk_id }
    }

    /// The id of a piece that merging may produce.
    pub(super) fn piece_id(&self, piece: &str) -> Option<u32> {
        self.pieces.get(piece).map(|piece| piece.id)
    }

    /// The ids of `text`, in which spaces are already written as `▁`. Empty for the empty text.
    ///
    /// # Errors
    ///
    /// [`Error::NoToken`] where a character is no piece, its bytes are none and there is no
    /// unknown token either.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut symbols = split_chars(text);
        let mut queue = BinaryHeap::new();
        // How a text that is an unused piece came about, to take it apart again.
        let mut origin: HashMap<&str, usize> = HashMap::new();
        for left in 0..symbols.len().saturating_sub(1) {
            queue.extend(self.join(text, &symbols, left, left + 1, &mut origin));
        }
        while let Some(join) = queue.pop() {
            let (left, right) = (symbols[join.left], symbols[join.right]);
            // One of the two has grown or is gone since the join was found.
            let left_is_gone = left.start == left.end;
            if left_is_gone || right.end != join.end || left.next != Some(join.right) {
                continue;
            }
            symbols[join.left].end = right.end;
            symbols[join.left].next = right.next;
            symbols[join.right].end = right.start;
            if let Some(next) = right.next {
                symbols[next].prev = Some(join.left);
                queue.extend(self.join(text, &symbols, join.left, next, &mut origin));
            }
            if let Some(prev) = left.prev {
                queue.extend(self.join(text, &symbols, prev, join.left, &mut origin));
            }
        }
        self.output(text, &symbols, &origin)
    }

    /// The join of two neighbours, if it is a piece.
    fn join<'t>(
        &self,
        text: &'t str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        origin: &mut HashMap<&'t str, usize>,
    ) -> Option<Join> {
        let (start, end) = (symbols[left].start, symbols[right].end);
        let joined = &text[start..end];
        let piece = self.pieces.get(joined)?;
        if piece.unused {
            origin.insert(joined, symbols[right].start - start);
        }
        Some(Join { score: piece.score, left, right, end })
    }

    /// Ids of the symbols that are left, unused pieces taken apart.
    fn output(
        &self,
        text: &str,
        symbols: &[Symbol],
        origin: &HashMap<&str, usize>,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut last_unknown = false;
        let mut stack = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            stack.push(&text[symbol.start..symbol.end]);
            while let Some(part) = stack.pop() {
                let unknown = match (self.pieces.get(part), origin.get(part)) {
                    (Some(piece), Some(&cut)) if piece.unused => {
                        stack.extend([&part[cut..], &part[..cut]]);
                        continue;
                    }
                    (Some(piece), _) => {
                        ids.push(piece.id);
                        false
                    }
                    (None, _) => !self.push_bytes(part, &mut ids),
                };
                if unknown && !last_unknown {
                    let no_token = || Error::NoToken { text: part.to_owned() };
                    ids.push(self.unk_id.ok_or_else(no_token)?);
                }
                last_unknown = unknown;
            }
        }
        Ok(ids)
    }

    /// Appends the byte pieces of `part`; nothing and `false` where one of them does not exist.
    fn push_bytes(&self, part: &str, ids: &mut Vec<u32>) -> bool {
        let bytes = part.bytes().map(|byte| self.byte_ids[usize::from(byte)]);
        let Some(bytes) = bytes.collect::<Option<Vec<u32>>>() else { return false };
        ids.extend(bytes);
        true
    }
}

/// One symbol per character, linked in order.
fn split_chars(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(index, (start, c))| Symbol {
            start,
            end: start + c.len_utf8(),
            prev: index.checked_sub(1),
            next: Some(index + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    symbols
}

#[cfg(test)]
mod tests;
