//! Random lives: tokens that come and are taken back, copies that go their own way, memory that is given back.

use heterokv_offload::{Store, StoreOptions};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Append(usize),
    Attend,
    Fork,
    /// Leaves so much of the tokens, in percent.
    Truncate(usize),
    /// Goes on with another of the copies.
    Turn,
    Drop,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (1..24usize).prop_map(Event::Append),
        6 => Just(Event::Attend),
        2 => Just(Event::Fork),
        2 => (60..=100usize).prop_map(Event::Truncate),
        3 => Just(Event::Turn),
        1 => Just(Event::Drop),
    ];
    prop::collection::vec(event, 1..30)
}

/// A cache and the tokens that came to it, by position.
struct Life {
    cache: KvCache,
    history: Vec<usize>,
    /// Tokens that were recent when the last ones were taken back: what was forgotten by then stays so.
    known_from: usize,
}

/// One way, whose copies may have rows of the host in common.
struct Lives {
    tokens: Tokens,
    way: Way,
    _folder: tempfile::TempDir,
    /// The most tokens of all heads together, or bytes.
    amount: usize,
    lives: Vec<Life>,
    next: usize,
}

impl Lives {
    fn new(seed: u64, way: Way, prompt: usize, store: Option<&Store>) -> Self {
        let tokens = Tokens::new(seed, shape(2, 4, 2, 16), 900);
        let (way, folder) = way.with_heads(&tokens.shape);
        let (amount, spec) = way.spec(&tokens.shape);
        let config = config(&spec, tokens.shape);
        let cache = match store {
            Some(store) => KvCache::in_store(tokens.shape, config, Level::detect(), None, store),
            None => KvCache::new(tokens.shape, config, Level::detect(), None),
        };
        let mut cache = cache.expect("a cache of a test");
        prefill(&tokens, std::slice::from_mut(&mut cache), prompt);
        let life = Life { cache, history: (0..prompt).collect(), known_from: 0 };
        Self { tokens, way, _folder: folder, amount, lives: vec![life], next: prompt }
    }

    fn check(&self, life: &Life) {
        let Self { way, amount, .. } = self;
        let (cache, num_tokens) = (&life.cache, life.history.len());
        assert_eq!(cache.num_tokens(), num_tokens, "{way:?}");
        assert_eq!(cache.device_in_use_bytes(), cache.device_bytes().total(), "{way:?}");
        let held = held(cache);
        let recent = way.recent.min(num_tokens.saturating_sub(life.known_from));
        check_positions(&held, &Way { recent, ..way.clone() }, num_tokens);
        let num_held: usize = held.iter().map(Vec::len).sum();
        match way.amount {
            _ if *amount == usize::MAX || way.every == "once" => {}
            Amount::Tokens(_) => assert!(num_held <= amount * held.len(), "{way:?}"),
            Amount::Bytes(_) => {
                let bytes = cache.device_in_use_bytes();
                assert!(bytes <= *amount, "{way:?}: {bytes} of {amount}");
            }
            Amount::Ratio(_) => {}
        }
    }

    fn live(&mut self, event: &Event) {
        let Self { tokens, way, lives, next, .. } = self;
        let Some(life) = lives.last_mut() else { return };
        match *event {
            Event::Append(count) => {
                for _ in 0..count {
                    let token = *next % tokens.len;
                    tokens.append(&mut life.cache, token);
                    life.history.push(token);
                    *next += 1;
                }
            }
            Event::Attend => {
                let token = life.history.last().copied().unwrap_or(0);
                let held = held(&life.cache);
                let out = tokens.attend(&mut life.cache, token);
                let expected = masked(tokens, &held, &life.history, token);
                assert!(out.iter().all(|x| x.is_finite()), "{way:?}");
                if way.layout == EXACT {
                    assert!(distance(&out, &expected) < NEAR, "{way:?}");
                }
            }
            Event::Fork => {
                let Life { history, known_from, .. } = &*life;
                let (history, known_from) = (history.clone(), *known_from);
                let cache = life.cache.fork().expect("memory");
                assert_eq!(held(&cache), held(&life.cache));
                assert_eq!(cache.device_bytes(), life.cache.device_bytes());
                if lives.len() < 3 {
                    lives.insert(0, Life { cache, history, known_from });
                }
            }
            Event::Truncate(percent) => {
                let before = held(&life.cache);
                let bytes = life.cache.device_in_use_bytes();
                let left = life.cache.truncate(life.history.len() * percent / 100);
                let kept = |positions: &Vec<u32>| -> Vec<u32> {
                    positions.iter().copied().filter(|&p| (p as usize) < left).collect()
                };
                assert_eq!(
                    held(&life.cache),
                    before.iter().map(kept).collect::<Vec<_>>(),
                    "{way:?}"
                );
                assert!(life.cache.device_in_use_bytes() <= bytes, "{way:?}");
                if left < life.history.len() {
                    life.history.truncate(left);
                    life.known_from = left;
                }
            }
            Event::Turn => lives.rotate_right(1),
            Event::Drop => {
                if lives.len() > 1 {
                    lives.pop();
                }
            }
        }
        if let Some(life) = self.lives.last() {
            self.check(life);
        }
    }

    /// What every copy holds and gives, of copies of these, which show nothing to them.
    fn state(&self) -> Vec<(Vec<Vec<u32>>, Vec<u32>)> {
        let of_life = |life: &Life| {
            let mut cache = life.cache.fork().expect("memory");
            (held(&cache), bits(&self.tokens.attend(&mut cache, 0)))
        };
        self.lives.iter().map(of_life).collect()
    }
}

fn ways() -> impl Strategy<Value = (Way, u64)> {
    let layout = prop_oneof![Just(EXACT), prop::sample::select(CODED.to_vec())];
    let amount = prop_oneof![
        (0..40usize).prop_map(Amount::Tokens),
        (0..3_000usize).prop_map(Amount::Bytes),
        (1.0..60.0).prop_map(Amount::Ratio),
    ];
    let parts =
        (layout, prop::sample::select(SCORERS.to_vec()), prop::sample::select(BUDGETS.to_vec()));
    let every = prop::sample::select(vec!["once", "step", "7"]);
    (parts, amount, every, 0..4usize, 1..20usize, any::<u64>()).prop_map(
        |((layout, scorer, budget), amount, every, sinks, recent, seed)| {
            let budget = if scorer == "votes" && seed % 2 == 0 { "votes" } else { budget };
            let every = every.to_owned();
            let way = Way { amount, every, sinks, recent, ..Way::new(layout, scorer, budget) };
            // A third of them; the seed has other uses too.
            (if seed / 64 % 3 == 0 { way.on_drift(seed / 256) } else { way }, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn copies_go_their_own_way((way, seed) in ways(), prompt in 0..340usize, events in events()) {
        let mut lives = Lives::new(seed, way, prompt, None);
        for event in &events {
            let before = lives.state();
            lives.live(event);
            // Only the last has lived.
            let (after, num_others) = (lives.state(), lives.lives.len().min(before.len()) - 1);
            if matches!(event, Event::Append(_) | Event::Attend | Event::Truncate(_)) {
                prop_assert!(after[..num_others] == before[..num_others]);
            }
        }
    }
}

#[test]
fn what_is_forgotten_is_given_back() {
    for layout in CODED.into_iter().chain([EXACT]) {
        let way = Way::new(layout, "window", "uniform");
        let lives = Lives::new(1, way.clone(), 800, None);
        let all = format!("{layout},sinks=2,recent=6");
        let all = lives.tokens.cache(&all, 800, 800);
        let cache = &lives.lives[0].cache;
        let share = held(cache)[0].len() as f64 / 800.0;
        let bytes = |cache: &KvCache| cache.device_in_use_bytes() + cache.host_in_use_bytes();
        let found = bytes(cache) as f64 / bytes(&all) as f64;
        // Sinks, window and tables stay, and what is known of each token comes in addition.
        let bar = if layout == EXACT { share + 0.1 } else { 0.75 };
        assert!(share < 0.42 && found < bar, "{way:?}: {found} for {share} of the tokens");
    }
}

#[test]
fn the_store_is_empty_when_all_are_gone() {
    let way = Way::new(CODED[1], "accumulated", "global");
    let tokens_shape = shape(2, 4, 2, 16);
    let config = config(&way.spec(&tokens_shape).1, tokens_shape);
    let shape = config.store_shape(&tokens_shape);
    let store = Store::open(StoreOptions { shape, ram_budget_bytes: usize::MAX, disk: None })
        .expect("a store in RAM");
    let mut lives = Lives::new(2, way, 200, Some(&store));
    let many = store.stats().ram.bytes;
    assert!(many > 0);
    for event in [Event::Append(40), Event::Fork, Event::Append(9), Event::Turn, Event::Append(30)]
    {
        lives.live(&event);
    }
    assert_eq!(lives.lives.len(), 2);
    drop(lives);
    assert_eq!(store.stats().ram.bytes, 0);
}
