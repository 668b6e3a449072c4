//! Codes that move as they are: what moved decodes and scores as before, to the bit, and nothing else changes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use heterokv_testkit::{Guarded, Inputs};

use super::*;

/// Tokens of a page: whole blocks of every format.
const PAGE: usize = 128;

/// A page of codes, and what it decodes to and scores, in bits.
struct Page {
    codes: Vec<u8>,
    /// `[PAGE, head_dim]`.
    decoded: Vec<u32>,
    /// Of every level and precision, `[heads, PAGE]`.
    scores: Vec<Vec<u32>>,
}

/// How a page differs from what it should be after a move.
#[derive(Debug, PartialEq)]
enum Difference {
    Decoded { token: usize },
    Score { run: usize, head: usize, token: usize },
}

impl Page {
    fn of(coder: &KeyCoder, queries: &[f32], codes: Vec<u8>) -> Self {
        let decoded = decoded(coder, &codes).iter().map(|x| x.to_bits()).collect();
        let num_heads = queries.len() / coder.head_dim;
        let mut prepared = PreparedQueries::default();
        let mut scores = Vec::new();
        for precision in [Precision::Exact, Precision::Select] {
            coder.prepare(queries, 0.3, precision, &mut prepared);
            for level in Level::available() {
                let mut out = vec![0.0f32; num_heads * PAGE];
                let rows = ScoreRows { scores: &mut out, stride: PAGE, maxima: &mut [] };
                coder.score(level, &prepared, &codes, PAGE, rows);
                scores.push(out.iter().map(|x| x.to_bits()).collect());
            }
        }
        Self { codes, decoded, scores }
    }

    /// Holds this page to what `before` is after `group_tokens` tokens of `from` have come to the place of its own.
    fn check(
        &self,
        before: &Self,
        (from, from_token): (&Self, usize),
        (to_token, group_tokens): (usize, usize),
    ) -> Result<(), Difference> {
        let head_dim = self.decoded.len() / PAGE;
        // The page and the token that each token is from.
        let source = |token: usize| match token.checked_sub(to_token) {
            Some(i) if i < group_tokens => (from, from_token + i),
            _ => (before, token),
        };
        for (token, row) in self.decoded.chunks_exact(head_dim).enumerate() {
            let (page, of) = source(token);
            if row != &page.decoded[of * head_dim..][..head_dim] {
                return Err(Difference::Decoded { token });
            }
        }
        for (run, scores) in self.scores.iter().enumerate() {
            for (i, score) in scores.iter().enumerate() {
                let (head, token) = (i / PAGE, i % PAGE);
                let (page, of) = source(token);
                if *score != page.scores[run][head * PAGE + of] {
                    return Err(Difference::Score { run, head, token });
                }
            }
        }
        Ok(())
    }
}

/// A coder, two pages of its codes, and queries.
fn case(
    format: KeyFormat,
    head_dim: usize,
    inputs: &mut Inputs,
) -> (KeyCoder, Vec<f32>, [Page; 2]) {
    let num_tokens = fit_tokens(format, head_dim).max(2 * PAGE);
    let keys = Input::HeavyChannels.keys(inputs, num_tokens, head_dim);
    let coder = fitted(format, head_dim, &keys);
    let queries = inputs.gaussian_rows(5, head_dim, 1.0);
    let page = |i: usize| {
        let keys = &keys[i * PAGE * head_dim..][..PAGE * head_dim];
        Page::of(&coder, &queries, encoded(&coder, keys))
    };
    let pages = [page(0), page(1)];
    (coder, queries, pages)
}

/// A page after a group of another, or of its own as it was, has come to it.
fn moved(coder: &KeyCoder, from: (&Page, usize), to: (&Page, usize)) -> Vec<u8> {
    let mut codes = Guarded::new(to.0.codes.len());
    codes.payload_mut().copy_from_slice(&to.0.codes);
    coder.copy_group(&from.0.codes, from.1, codes.payload_mut(), to.1);
    codes.check_bands().unwrap().to_vec()
}

#[test]
fn a_group_that_moved_decodes_and_scores_as_before_and_no_other_changes() {
    for (seed, (format, head_dim)) in shapes(&[8, 16, 64, 80]).into_iter().enumerate() {
        let mut inputs = Inputs::new(400 + seed as u64);
        let (coder, queries, pages) = case(format, head_dim, &mut inputs);
        let group_tokens = coder.layout().group_tokens;
        assert_eq!(coder.layout().moves_tokens(), group_tokens == 1, "{format}");
        let mut group = || inputs.below(PAGE / group_tokens) * group_tokens;
        let mut places: Vec<_> = (0..6).map(|_| (group(), group())).collect();
        // Each end to the other, and in place.
        let last = PAGE - group_tokens;
        places.extend([(0, last), (last, 0), (0, 0)]);
        for (from, to) in places {
            for source in &pages {
                let codes = moved(&coder, (source, from), (&pages[1], to));
                let after = Page::of(&coder, &queries, codes);
                after
                    .check(&pages[1], (source, from), (to, group_tokens))
                    .unwrap_or_else(|e| panic!("{format} {head_dim}: {from} to {to}: {e:?}"));
            }
        }
    }
}

#[test]
fn all_tokens_that_stay_move_down_over_the_others_in_place() {
    for (seed, (format, head_dim)) in shapes(&[16, 80]).into_iter().enumerate() {
        let mut inputs = Inputs::new(900 + seed as u64);
        let (coder, queries, [page, _]) = case(format, head_dim, &mut inputs);
        let group_tokens = coder.layout().group_tokens;
        let kept: Vec<usize> = (0..PAGE / group_tokens).filter(|_| inputs.below(3) > 0).collect();
        let mut codes = page.codes.clone();
        for (to, &from) in kept.iter().enumerate() {
            // From the page as it is now: what is behind has not changed.
            let now = codes.clone();
            coder.copy_group(&now, from * group_tokens, &mut codes, to * group_tokens);
        }
        let after = Page::of(&coder, &queries, codes);
        let kept = kept.iter().flat_map(|group| group * group_tokens..(group + 1) * group_tokens);
        let kept: Vec<usize> = kept.collect();
        for (to, from) in kept.into_iter().enumerate() {
            let row =
                |page: &Page, token: usize| page.decoded[token * head_dim..][..head_dim].to_vec();
            assert_eq!(row(&after, to), row(&page, from), "{format}: {from} to {to}");
            for (run, scores) in after.scores.iter().enumerate() {
                assert_eq!(scores[to], page.scores[run][from], "{format}: {from} to {to}");
            }
        }
    }
}

#[test]
fn a_move_to_a_wrong_place_and_a_wrong_token_are_seen() {
    for (format, head_dim) in shapes(&[64]) {
        let mut inputs = Inputs::new(7);
        let (coder, queries, [from, to]) = case(format, head_dim, &mut inputs);
        let group_tokens = coder.layout().group_tokens;
        let check = |codes: Vec<u8>| {
            let place = (0, group_tokens);
            Page::of(&coder, &queries, codes).check(&to, (&from, 0), place)
        };
        check(moved(&coder, (&from, 0), (&to, 0))).unwrap();
        assert!(check(to.codes.clone()).is_err(), "{format}: nothing has moved");
        let last = PAGE - group_tokens;
        if last > 0 {
            assert!(check(moved(&coder, (&from, last), (&to, 0))).is_err(), "{format}");
            let beside = moved(&coder, (&from, 0), (&to, last));
            let differs = matches!(check(beside), Err(Difference::Decoded { token: 0 }));
            assert!(differs, "{format}");
            // The right move, and one that it does not know of.
            let mut codes = moved(&coder, (&from, 0), (&to, 0));
            coder.copy_group(&from.codes, last, &mut codes, last);
            let differs = |token| token >= last;
            assert!(
                matches!(check(codes), Err(Difference::Decoded { token }) if differs(token)),
                "{format}"
            );
        }
    }
}

#[test]
fn places_that_no_group_begins_at_or_that_codes_do_not_hold_are_refused() {
    for name in ["int4-channel/64", "alloc/4", "f16"] {
        let (coder, _, [page, _]) = case(name.parse().unwrap(), 64, &mut Inputs::new(1));
        let group_tokens = coder.layout().group_tokens;
        let mut wrong = vec![(PAGE, 0), (0, PAGE)];
        if group_tokens > 1 {
            wrong.extend([(1, 0), (0, group_tokens / 2)]);
        }
        for (from, to) in wrong {
            let copy = AssertUnwindSafe(|| {
                let mut codes = page.codes.clone();
                coder.copy_group(&page.codes, from, &mut codes, to);
            });
            assert!(catch_unwind(copy).is_err(), "{name}: {from} to {to}");
        }
    }
}
