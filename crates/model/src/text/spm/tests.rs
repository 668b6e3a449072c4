//! The queue against the definition: look at all neighbours, join the best, start again.

use proptest::prelude::*;

use super::*;

/// Joins by the definition, in quadratic time.
fn naive(model: &SpmModel, text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let mut origin: HashMap<String, (String, String)> = HashMap::new();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for left in 0..parts.len().saturating_sub(1) {
            let joined = format!("{}{}", parts[left], parts[left + 1]);
            let Some(piece) = model.pieces.get(joined.as_str()) else { continue };
            if best.is_none_or(|(score, _)| piece.score > score) {
                best = Some((piece.score, left));
            }
        }
        let Some((_, left)) = best else { break };
        let right = parts.remove(left + 1);
        let joined = format!("{}{right}", parts[left]);
        origin.insert(joined.clone(), (parts[left].clone(), right));
        parts[left] = joined;
    }
    let mut ids = Vec::new();
    let mut was_unknown = false;
    parts.reverse();
    while let Some(part) = parts.pop() {
        match (model.pieces.get(part.as_str()), origin.get(&part)) {
            (Some(piece), Some((left, right))) if piece.unused => {
                parts.extend([right.clone(), left.clone()]);
            }
            (Some(piece), _) => {
                ids.push(piece.id);
                was_unknown = false;
            }
            (None, _) => {
                if !was_unknown {
                    ids.push(model.unk_id.unwrap());
                }
                was_unknown = true;
            }
        }
    }
    ids
}

fn model(pieces: &[(&str, f32, bool)]) -> SpmModel {
    let pieces = pieces.iter().enumerate().map(|(id, &(text, score, unused))| {
        (Box::from(text), Piece { id: u32::try_from(id).unwrap() + 1, score, unused })
    });
    SpmModel::new(pieces.collect(), vec![None; 256], Some(0))
}

#[test]
fn best_score_then_leftmost() {
    let tied = model(&[("a", 0.0, false), ("aa", -1.0, false), ("aaa", -1.0, false)]);
    assert_eq!(tied.encode("aaaa").unwrap(), [3, 1]);
    let scored = model(&[("a", 0.0, false), ("aa", -1.0, false), ("aaa", -2.0, false)]);
    assert_eq!(scored.encode("aaaa").unwrap(), [2, 2]);
    assert_eq!(scored.encode("").unwrap(), [0_u32; 0]);
    assert_eq!(scored.encode("a").unwrap(), [1]);
}

#[test]
fn unknown_runs_are_one_token() {
    let model = model(&[("a", 0.0, false)]);
    assert_eq!(model.encode("xxaxyx").unwrap(), [0, 1, 0]);
    let strict = SpmModel::new(model.pieces, model.byte_ids, None);
    assert!(matches!(strict.encode("ax"), Err(Error::NoToken { text }) if text == "x"));
}

#[test]
fn an_unused_piece_is_taken_apart() {
    let model = model(&[("a", 0.0, false), ("b", 0.0, false), ("ab", 5.0, true)]);
    assert_eq!(model.encode("abab").unwrap(), [1, 2, 1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn queue_follows_the_definition(
        pieces in prop::collection::btree_map("[abc]{2,4}", (-3_i8..3, prop::bool::weighted(0.15)), 0..25),
        text in "[abcx]{0,24}",
    ) {
        // Few score values, so that ties are common.
        let mut listed = vec![("a", 0.0, false), ("b", 0.0, false), ("c", 0.0, false)];
        for (piece, &(score, unused)) in &pieces {
            listed.push((piece, f32::from(score), unused));
        }
        let model = model(&listed);
        prop_assert_eq!(model.encode(&text).unwrap(), naive(&model, &text));
    }
}
