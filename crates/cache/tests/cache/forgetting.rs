//! Caches that forget tokens: budgets that hold, attention over what is held, and copies that live on their own.

mod attention;
mod budgets;
mod saved;
mod sequences;

use heterokv_attn::reference::subset_attention;
use heterokv_cache::{
    CachePlan, Error, HeadMeasure, HeadProfile, HeadRole, PromptLayer, RotaryTurns, SimilarityAt,
};

use super::*;

const SCORERS: [&str; 10] = [
    "window",
    "accumulated",
    "last-query",
    "squared",
    "votes",
    "votes-seen",
    "key-norm",
    "key-diff",
    "expected",
    "position",
];

/// Budgets that go with every scorer and need no file.
const BUDGETS: [&str; 7] = [
    "uniform",
    "pyramid:4",
    "pyramid-within:2",
    "adaptive:0.2",
    "global",
    "norm-drop:0.05",
    "norm-drop-tail:0.3",
];

/// Those that find on the text how much they keep.
fn has_own_amount(budget: &str) -> bool {
    budget.starts_with("norm-drop") || budget == "votes"
}

const EXACT: &str = "keys=f16,values=f16@device";

const CODED: [&str; 6] = [
    "keys=int8-token,values=f16@device,select=none",
    "keys=int8-token,values=int8@host,select=none",
    "keys=int4-channel/32,values=int8@device,select=none",
    "keys=int4-channel/32,values=int8@host,select=none",
    "keys=lm2,values=int8@device,select=none",
    "keys=alloc/4,values=int8@host,select=none",
];

/// How much is asked for, beyond the least that there can be.
#[derive(Clone, Copy, Debug)]
enum Amount {
    /// Tokens of each head.
    Tokens(usize),
    /// Bytes of each head.
    Bytes(usize),
    /// Percent, at least this much.
    Ratio(f64),
}

/// A way to forget.
#[derive(Clone, Debug)]
struct Way {
    layout: &'static str,
    scorer: &'static str,
    budget: &'static str,
    /// `observe`, `pool` and `gqa`.
    scoring: String,
    amount: Amount,
    every: String,
    sinks: usize,
    recent: usize,
}

impl Way {
    fn new(layout: &'static str, scorer: &'static str, budget: &'static str) -> Self {
        let scoring = "observe=8,pool=mean:3,gqa=mean".to_owned();
        let (amount, every) = (Amount::Tokens(30), "4".to_owned());
        Self { layout, scorer, budget, scoring, amount, every, sinks: 2, recent: 6 }
    }

    fn with(&self, keep: &str) -> String {
        let Self { layout, scorer, budget, scoring, every, sinks, recent, .. } = self;
        format!(
            "{layout},evict={scorer},{scoring},budget={budget},keep={keep},every={every},sinks={sinks},recent={recent}"
        )
    }

    /// The same with a file of heads, where it goes by one, and the folder of it.
    fn with_heads(mut self, shape: &KvShape) -> (Self, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        if self.every.starts_with("drift") && !self.every.contains("heads=") {
            self.every += &format!(",heads={}", head_profile(folder.path(), shape));
        }
        (self, folder)
    }

    /// The same of exact rows that come back on drift, within a ratio.
    fn on_drift(self, seed: u64) -> Self {
        let steps = 1 + seed % 4;
        let refresh = if seed % 8 < 4 { ",refresh=sync" } else { "" };
        let every = format!("drift:{steps},tau=0.9{refresh}");
        let amount = match self.amount {
            Amount::Tokens(more) | Amount::Bytes(more) => Amount::Ratio(more as f64 % 80.0 + 5.0),
            // Less is promised from another length on, at which the least is another.
            Amount::Ratio(percent) => Amount::Ratio(percent.max(5.0)),
        };
        let budget = if has_own_amount(self.budget) { "stability" } else { self.budget };
        Self { layout: EXACT, budget, amount, every, ..self }
    }

    /// What is kept, asked for as a number, and the spec: the least is what the refusal of less names.
    fn spec(&self, shape: &KvShape) -> (usize, String) {
        if has_own_amount(self.budget) {
            return (usize::MAX, self.with("own"));
        }
        let refusal = |keep: &str| {
            let spec: CacheSpec = self.with(keep).parse().expect("words that are known");
            spec.resolve(shape, None)
        };
        let num_heads = shape.num_layers * shape.heads.num_kv_heads;
        match self.amount {
            Amount::Tokens(more) => {
                let least = match refusal("1") {
                    Err(Error::BudgetTooSmall {
                        what: "tokens of each head",
                        budget: 1,
                        least,
                    }) => least,
                    other => {
                        other.expect("one token is enough");
                        1
                    }
                };
                assert!(least == 1 || refusal(&(least - 1).to_string()).is_err(), "{self:?}");
                (least + more, self.with(&(least + more).to_string()))
            }
            Amount::Bytes(more) => {
                let Err(Error::BudgetTooSmall { what: "bytes", least, .. }) = refusal("1B") else {
                    panic!("one byte is enough for {self:?}")
                };
                let bytes = least + more * num_heads;
                (bytes, self.with(&format!("{bytes}B")))
            }
            Amount::Ratio(percent) => {
                let percent = match refusal(&format!("{percent}%")) {
                    Err(Error::Ratio { least, .. }) => (least * 100.0).ceil() / 100.0,
                    other => other.map(|_| percent).unwrap_or_else(|e| panic!("{e} for {self:?}")),
                };
                (usize::MAX, self.with(&format!("{percent}%")))
            }
        }
    }
}

/// Angles per position for up to 16 channels.
const ANGLES: [f32; 8] = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001];

/// [`Tokens::prefill`] with rotary turns, as models give them.
fn prefill(tokens: &Tokens, caches: &mut [KvCache], count: usize) {
    prefill_layers(tokens, caches, count, 0..tokens.shape.num_layers);
}

/// The same of layers in an order of their own.
fn prefill_layers(
    tokens: &Tokens,
    caches: &mut [KvCache],
    count: usize,
    layers: impl Iterator<Item = usize>,
) {
    let heads = tokens.shape.heads;
    let (qo, kv) = (heads.qo_row_len(), heads.kv_row_len());
    let turns =
        RotaryTurns { inverse_frequencies: &ANGLES[..heads.head_dim / 2], attention_factor: 1.0 };
    for layer in layers {
        let (k, v) = (&tokens.k[layer][..count * kv], &tokens.v[layer][..count * kv]);
        let prompt = PromptLayer::new(heads, Level::detect(), k, v).expect("a prompt of a test");
        let mut prompt = prompt.watch(caches, Some(turns)).expect("turns of this shape");
        let mut out = vec![f32::NAN; count * qo];
        prompt.attend(0, &tokens.q[layer][..count * qo], &mut out).expect("finite queries");
        prompt.store(caches, layer).expect("empty caches");
    }
}

/// Positions that every head holds, `[num_layers, num_kv_heads]`.
fn held(cache: &KvCache) -> Vec<Vec<u32>> {
    let KvShape { num_layers, heads } = cache.shape();
    let places = (0..num_layers).flat_map(|layer| (0..heads.num_kv_heads).map(move |h| (layer, h)));
    places.map(|(layer, head)| cache.held_positions(layer, head).to_vec()).collect()
}

/// Attention of a token's queries over what a cache holds, of which position `p` is token `history[p]`, in f64.
fn masked(tokens: &Tokens, held: &[Vec<u32>], history: &[usize], token: usize) -> Vec<f64> {
    let KvShape { num_layers, heads } = tokens.shape;
    let layer = |layer: usize| {
        let held = &held[layer * heads.num_kv_heads..][..heads.num_kv_heads];
        let places = |held: &Vec<u32>| held.iter().map(|&p| history[p as usize]).collect();
        let seen: Vec<Vec<usize>> = held.iter().map(places).collect();
        let query = tokens.query(layer, token);
        subset_attention(&heads, query, &tokens.k[layer], &tokens.v[layer], &seen).out
    };
    (0..num_layers).flat_map(layer).collect()
}

/// How far exact rows may be from [`masked`]: a few roundings of f32.
const NEAR: f64 = 1e-4;

fn distance(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
}

/// Holds what is held against what must be: ascending positions of tokens that came, sinks and recent ones among them.
#[track_caller]
fn check_positions(held: &[Vec<u32>], way: &Way, num_tokens: usize) {
    for positions in held {
        assert!(positions.is_sorted_by(|a, b| a < b), "{way:?}: {positions:?}");
        let always =
            (0..way.sinks.min(num_tokens)).chain(num_tokens.saturating_sub(way.recent)..num_tokens);
        for position in always {
            let is_held = positions.binary_search(&(position as u32)).is_ok();
            assert!(is_held, "{way:?}: {position} of {num_tokens} is not in {positions:?}");
        }
        assert!(positions.last().is_none_or(|&last| (last as usize) < num_tokens), "{way:?}");
    }
}

/// A profile of heads of a shape: the first head of a layer is a pivot, the second its satellite, others anchors.
pub(crate) fn head_profile(folder: &std::path::Path, shape: &KvShape) -> String {
    let num_kv_heads = shape.heads.num_kv_heads;
    let num_heads = shape.num_layers * num_kv_heads;
    let role = |head: usize| match head % num_kv_heads {
        0 if num_kv_heads > 1 => HeadRole::Pivot,
        1 => HeadRole::Satellite { pivot: 0 },
        _ => HeadRole::Anchor,
    };
    let stability = (0..num_heads).map(|head| 0.5 + 0.004 * head as f64).collect();
    let measure = HeadMeasure {
        prompt_tokens: 200,
        top_k: 32,
        steps: 10,
        tau_sim: 0.4,
        tau_stable: 0.5,
        similarity: SimilarityAt::Prompt,
    };
    let roles = (0..num_heads).map(role).collect();
    let profile = HeadProfile::new("a model", shape, measure, stability, roles).expect("roles");
    let weights = (0..num_heads).map(|head| 0.5 + (head % 2) as f64).collect::<Vec<_>>();
    let mean = weights.iter().sum::<f64>() / num_heads as f64;
    let weights = weights.iter().map(|weight| weight / mean).collect();
    let path = folder.join("heads");
    profile.with_budget_weights(weights).expect("weights of mean 1").save(&path).expect("a folder");
    path.display().to_string()
}

#[test]
fn the_layers_of_a_prompt_may_come_in_any_order() {
    let tokens = Tokens::new(7, shape(3, 4, 2, 16), 200);
    for budget in BUDGETS {
        let spec = Way::new(EXACT, "accumulated", budget).spec(&tokens.shape).1;
        let stored = |layers: &[usize]| -> Vec<Vec<u32>> {
            let mut cache = cache(&spec, tokens.shape);
            let layers = layers.iter().copied();
            prefill_layers(&tokens, std::slice::from_mut(&mut cache), 200, layers);
            held(&cache)
        };
        let in_order = stored(&[0, 1, 2]);
        assert!(in_order.iter().any(|held| held.len() < 200), "{spec}: nothing is forgotten");
        assert_eq!(stored(&[2, 0, 1]), in_order, "{spec}");
        assert_eq!(stored(&[2, 1, 0]), in_order, "{spec}");
    }
}

#[test]
#[should_panic(expected = "a KV head of the layer")]
fn positions_of_a_head_that_there_is_not_are_none_of_another_one() {
    let cache = cache(
        &Way::new(EXACT, "window", "uniform").spec(&shape(2, 4, 2, 16)).1,
        shape(2, 4, 2, 16),
    );
    let _ = cache.held_positions(0, 2);
}
