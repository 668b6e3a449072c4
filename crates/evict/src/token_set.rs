//! A set of tokens, a bit each.

use crate::simd::{Form, LANES, WORD, bits, mark, pick, positions};

/// Some of the first `num_tokens` tokens of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// Token `t` is bit `t % 64` of word `t / 64`; bits behind the last token are unset.
    words: Vec<u64>,
    num_tokens: usize,
}

impl TokenSet {
    /// Bytes of a set of some of `num_tokens` tokens.
    #[must_use]
    pub fn bytes(num_tokens: usize) -> usize {
        8 * num_tokens.div_ceil(WORD)
    }

    /// Tokens that can be in the set.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Tokens in the set.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether a token is in the set. None from `num_tokens` on is.
    #[must_use]
    pub fn contains(&self, token: usize) -> bool {
        self.words.get(token / WORD).is_some_and(|word| word >> (token % WORD) & 1 != 0)
    }

    /// The tokens in the set, ascending.
    #[must_use]
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = Vec::new();
        self.positions_into(&mut positions);
        positions
    }

    /// Makes `out` the tokens in the set, ascending.
    pub fn positions_into(&self, out: &mut Vec<u32>) {
        let count = self.count();
        resize(out, count + LANES);
        positions(Form::detect(), &self.words, out);
        out.truncate(count);
    }

    /// Makes `out [count]` the values of the tokens in the set, ascending. The values come in tiles with one for every token,
    /// in its order, and tokens by whole 64, in the last tile too.
    ///
    /// # Panics
    /// When a tile is of another length, and when there is not a value for every token in the set, and room for it.
    pub fn pick<'a>(&self, tiles: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
        let (mut next, mut words) = (0, &self.words[..]);
        for tile in tiles {
            assert!(tile.len().is_multiple_of(WORD), "a tile has tokens by whole {WORD}");
            let (own, rest) = words.split_at(words.len().min(tile.len() / WORD));
            next += pick(Form::detect(), own, tile, &mut out[next..]);
            words = rest;
        }
        assert!(
            next == out.len() && words.iter().all(|&word| word == 0),
            "a value for every token in the set"
        );
    }

    /// Adds the tokens of another set of as many tokens.
    ///
    /// # Panics
    /// When the other is of another number of tokens.
    pub fn add_all(&mut self, other: &Self) {
        assert_eq!(self.num_tokens, other.num_tokens, "sets of as many tokens");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// Makes it all of `num_tokens` tokens.
    pub(crate) fn fill(&mut self, num_tokens: usize) {
        self.clear(num_tokens);
        self.words.fill(u64::MAX);
        if let (Some(last), rest @ 1..) = (self.words.last_mut(), num_tokens % WORD) {
            *last = (1 << rest) - 1;
        }
    }

    /// Makes it none of `num_tokens` tokens.
    pub fn clear(&mut self, num_tokens: usize) {
        self.words.clear();
        self.words.resize(num_tokens.div_ceil(WORD), 0);
        self.num_tokens = num_tokens;
    }

    /// Makes it the tokens of at least some weight.
    pub(crate) fn mark(&mut self, weights: &[f32], least: f32) {
        self.clear(weights.len());
        mark(Form::detect(), weights, least, &mut self.words);
    }

    /// A word for every 64 of `num_tokens` tokens, whatever is in it, to be written.
    pub(crate) fn words_of(&mut self, num_tokens: usize) -> &mut [u64] {
        self.words.resize(num_tokens.div_ceil(WORD), 0);
        self.num_tokens = num_tokens;
        &mut self.words
    }

    /// Adds those of the tokens `open`, whose weights are `weights` in their order, that weigh at least `least`.
    pub(crate) fn add_open(&mut self, open: &[u64], weights: &[f32], least: f32) {
        let mut weights = weights.iter();
        for (word, &open) in self.words.iter_mut().zip(open).filter(|(_, open)| **open != 0) {
            for (bit, &weight) in bits(open).zip(&mut weights) {
                *word |= u64::from(weight >= least) << bit;
            }
        }
    }

    /// Removes the last `count` tokens in the set that weigh less than `above`, all where there are no more.
    pub(crate) fn remove_last(&mut self, mut count: usize, weights: &[f32], above: f32) {
        for (word, weights) in self.words.iter_mut().zip(weights.chunks(WORD)).rev() {
            if count == 0 {
                return;
            }
            let mut heavier = [0];
            mark(Form::detect(), weights, above, &mut heavier);
            let mut light = *word & !heavier[0];
            while light != 0 && count > 0 {
                let last = 1 << light.ilog2();
                (light, *word, count) = (light ^ last, *word ^ last, count - 1);
            }
        }
    }
}

/// Makes it of this length, whatever is in it.
fn resize<T: Copy + Default>(out: &mut Vec<T>, len: usize) {
    out.reserve_exact(len.saturating_sub(out.len()));
    out.resize(len, T::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of every third token, and of every fifth.
    fn sets(num_tokens: usize) -> [TokenSet; 2] {
        [3, 5].map(|every| {
            let is_in = |token: usize| f32::from(u8::from(token.is_multiple_of(every)));
            let mut set = TokenSet::default();
            set.mark(&(0..num_tokens).map(is_in).collect::<Vec<_>>(), 1.0);
            set
        })
    }

    #[test]
    fn a_union_has_the_tokens_of_both() {
        for num_tokens in [0, 1, 64, 65, 300] {
            let [mut all, fifths] = sets(num_tokens);
            all.add_all(&fifths);
            let is_in = |token: &u32| token.is_multiple_of(3) || token.is_multiple_of(5);
            let expected: Vec<u32> = (0..num_tokens as u32).filter(is_in).collect();
            assert_eq!((all.count(), all.positions()), (expected.len(), expected.clone()));
            for token in 0..num_tokens + 100 {
                assert_eq!(all.contains(token), expected.contains(&(token as u32)), "{token}");
            }
        }
    }

    #[test]
    fn values_of_tokens_are_picked_out_of_tiles() {
        let values: Vec<f32> = (0..384).map(|at| 1000.0 + at as f32).collect();
        for num_tokens in [300, 0, 1, 64, 200] {
            let [set, _] = sets(num_tokens);
            let mut picked = vec![-1.0; set.count()];
            set.pick(values.chunks(128), &mut picked);
            let expected = set.positions().into_iter().map(|at| 1000.0 + at as f32);
            assert_eq!(picked, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic = "a value for every token in the set"]
    fn a_token_without_a_value_is_refused() {
        let [set, _] = sets(200);
        set.pick([&[0.0; 128][..]].into_iter(), &mut vec![0.0; set.count()]);
    }

    #[test]
    #[should_panic]
    fn a_value_without_a_place_is_refused() {
        let [set, _] = sets(200);
        set.pick([&[0.0; 256][..]].into_iter(), &mut vec![0.0; set.count() - 1]);
    }

    #[test]
    fn a_set_of_all_has_no_more() {
        for num_tokens in [0, 1, 64, 65, 128] {
            let mut set = sets(7)[0].clone();
            set.fill(num_tokens);
            assert_eq!(set.positions(), (0..num_tokens as u32).collect::<Vec<_>>());
            assert!(!set.contains(num_tokens));
            set.clear(num_tokens);
            assert_eq!((set.count(), set.num_tokens()), (0, num_tokens));
            assert_eq!(TokenSet::bytes(num_tokens), 8 * set.words.len());
        }
    }

    #[test]
    fn open_tokens_are_added_by_their_weights() {
        let open = [1 << 3 | 1 << 63, 0, 1 << 5];
        let mut set = TokenSet::default();
        set.words_of(180).copy_from_slice(&[1, 0, 0]);
        set.add_open(&open, &[0.5, 0.25, 0.5, 9.0], 0.5);
        assert_eq!(set.positions(), [0, 3, 133]);
        set.add_open(&open, &[0.0; 3], 0.0);
        assert_eq!(set.positions(), [0, 3, 63, 133]);
    }

    #[test]
    fn the_last_light_ones_are_removed() {
        let weights: Vec<f32> = (0..150).map(|token| (1 + token % 2) as f32).collect();
        let mut set = TokenSet::default();
        set.mark(&weights, 1.0);
        set.remove_last(40, &weights, 2.0);
        let expected = (0..150).filter(|token| token % 2 == 1 || *token < 70);
        assert_eq!(set.positions(), expected.collect::<Vec<u32>>());
        set.remove_last(1, &weights, 3.0);
        assert_eq!((set.contains(149), set.contains(147), set.count()), (false, true, 109));
        set.remove_last(usize::MAX, &weights, 2.0);
        assert_eq!(set.count(), 74);
    }
}
