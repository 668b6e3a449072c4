//! A cache that forgets is saved with what it knows of its tokens, and goes on as if it had never been away.

use heterokv_cache::SavedCache;
use heterokv_offload::{DiskOptions, Store, StoreOptions};
use proptest::prelude::*;

use super::*;

const NAME: &str = "session";

/// Layouts of which nothing but exact rows and codes is on the device.
const LAYOUTS: [&str; 4] = [EXACT, CODED[1], CODED[3], CODED[5]];

struct Disk {
    folder: tempfile::TempDir,
    shape: KvShape,
    config: CacheConfig,
}

impl Disk {
    fn new(spec: &str, shape: KvShape) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, shape, config: config(spec, shape) }
    }

    fn store(&self) -> Store {
        let shape = self.config.store_shape(&self.shape);
        let disk = Some(DiskOptions::new(self.folder.path(), "a model"));
        let options = StoreOptions { shape, ram_budget_bytes: usize::MAX, disk };
        Store::open(options).expect("a folder of a test")
    }

    fn empty(&self, store: &Store) -> KvCache {
        let config = self.config.clone();
        KvCache::in_store(self.shape, config, Level::detect(), None, store).expect("its own shape")
    }

    fn load(&self, store: &Store, name: &str) -> Result<KvCache, Error> {
        let saved = SavedCache::open(store, name)?;
        saved.load(self.shape, self.config.clone(), Level::detect(), None)
    }
}

/// What a cache holds and gives as it goes on, byte by byte.
fn goes_on(tokens: &Tokens, cache: &mut KvCache, further: std::ops::Range<usize>) -> Vec<String> {
    let step = |token: usize| {
        tokens.append(cache, token);
        let out = bits(&tokens.attend(cache, token));
        format!(
            "{out:?} {:?} {:?} {}",
            held(cache),
            cache.device_bytes(),
            cache.host_in_use_bytes()
        )
    };
    further.map(step).collect()
}

#[test]
fn what_is_loaded_goes_on_as_what_was_saved() {
    let every_way = SCORERS.into_iter().flat_map(|scorer| BUDGETS.map(|budget| (scorer, budget)));
    for (i, (scorer, budget)) in every_way.chain([("votes", "votes")]).enumerate() {
        let layout = LAYOUTS[i % 4];
        let amount = if i % 3 == 0 { Amount::Bytes(400) } else { Amount::Tokens(9) };
        let every = ["4", "step", "once"][i % 3].to_owned();
        let way = Way { amount, every, ..Way::new(layout, scorer, budget) };
        let prompt = if layout == CODED[5] { 330 } else { 140 };
        let tokens = Tokens::new(i as u64, shape(2, 4, 2, 16), prompt + 60);
        let spec = way.spec(&tokens.shape).1;
        let disk = Disk::new(&spec, tokens.shape);
        let expected = {
            let store = disk.store();
            let mut cache = disk.empty(&store);
            prefill(&tokens, std::slice::from_mut(&mut cache), prompt);
            goes_on(&tokens, &mut cache, prompt..prompt + 21);
            cache.save(NAME, b"").expect("a disk of a test");
            goes_on(&tokens, &mut cache, prompt + 21..tokens.len)
        };
        let store = disk.store();
        let saved = SavedCache::open(&store, NAME).expect("it was saved");
        assert_eq!(saved.num_tokens(), prompt + 21, "{spec}");
        let mut loaded = disk.load(&store, NAME).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let mut fork = loaded.fork().expect("memory");
        assert!(goes_on(&tokens, &mut loaded, prompt + 21..tokens.len) == expected, "{spec}");
        assert!(goes_on(&tokens, &mut fork, prompt + 21..tokens.len) == expected, "{spec}: fork");
        // The negative control: what one token more has changed is seen.
        let mut other = disk.load(&store, NAME).expect("it is still there");
        other.truncate(prompt + 20);
        tokens.append(&mut other, 0);
        assert!(goes_on(&tokens, &mut other, prompt + 21..tokens.len) != expected, "{spec}");
    }
}

#[test]
fn caches_of_few_tokens_and_none_are_saved_too() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        for scorer in ["accumulated", "expected", "position"] {
            let tokens = Tokens::new(i as u64, shape(1, 4, 2, 16), 60);
            let spec = Way::new(layout, scorer, "uniform").spec(&tokens.shape).1;
            for prompt in [0, 1, 40] {
                let disk = Disk::new(&spec, tokens.shape);
                let store = disk.store();
                let mut cache = disk.empty(&store);
                prefill(&tokens, std::slice::from_mut(&mut cache), prompt);
                cache.save(NAME, b"").expect("a disk of a test");
                let expected = goes_on(&tokens, &mut cache, prompt..60);
                let mut loaded = disk.load(&store, NAME).unwrap_or_else(|e| panic!("{spec}: {e}"));
                assert!(goes_on(&tokens, &mut loaded, prompt..60) == expected, "{spec} {prompt}");
            }
        }
    }
}

#[test]
fn what_has_rows_on_their_way_back_is_not_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let shape = shape(1, 6, 3, 16);
    let heads = head_profile(folder.path(), &shape);
    let disk = Disk::new(&format!("heterocache:80%,sinks=2,recent=4,heads={heads}"), shape);
    let store = disk.store();
    let error = disk.empty(&store).save(NAME, b"").unwrap_err();
    assert!(matches!(error, Error::Forgetful { .. }), "{error}");
    assert!(error.to_string().contains("every="), "{error}");
}

/// A saved cache, and what is attached to it.
struct Saved {
    disk: Disk,
    tokens: Tokens,
    store: Store,
    bytes: Vec<u8>,
}

impl Saved {
    fn new(layout: &'static str, scorer: &'static str) -> Self {
        let tokens = Tokens::new(4, shape(1, 2, 1, 16), 460);
        let spec = Way::new(layout, scorer, "uniform").spec(&tokens.shape).1;
        let disk = Disk::new(&spec, tokens.shape);
        let store = disk.store();
        let mut cache = disk.empty(&store);
        prefill(&tokens, std::slice::from_mut(&mut cache), 340);
        goes_on(&tokens, &mut cache, 340..350);
        cache.save(NAME, b"").expect("a disk of a test");
        let mut attachment = store.attachment(NAME).expect("it was saved");
        let mut bytes = vec![0; attachment.rest_bytes() as usize];
        attachment.read_exact(&mut bytes).expect("it is whole");
        Self { disk, tokens, store, bytes }
    }

    fn header(&self) -> &str {
        let len = u32::from_le_bytes(self.bytes[..4].try_into().expect("four bytes")) as usize;
        std::str::from_utf8(&self.bytes[4..4 + len]).expect("JSON")
    }

    fn with_header(&self, header: &str) -> Vec<u8> {
        let len = (header.len() as u32).to_le_bytes();
        [&len[..], header.as_bytes(), &self.bytes[4 + self.header().len()..]].concat()
    }

    /// What comes of the rows with other bytes, of which the disk says that they are those that were written.
    fn load(&self, bytes: &[u8]) -> Result<KvCache, Error> {
        let mut rows = self.store.load(NAME).expect("it was saved");
        rows.save_with("changed", |out| out.write_all(bytes)).expect("a disk of a test");
        self.disk.load(&self.store, "changed")
    }
}

#[test]
fn damaged_counts_and_numbers_are_typed_errors() {
    let saved = Saved::new(EXACT, "accumulated");
    let cache = saved.load(&saved.bytes).expect("nothing is changed");
    let num_held = held(&cache)[0].len();
    let header = saved.header().to_owned();
    let told = |from: &str, to: &str, reason: &str| {
        assert!(header.contains(from), "{from} is not in {header}");
        let error = saved.load(&saved.with_header(&header.replacen(from, to, 1))).unwrap_err();
        assert!(matches!(error, Error::DamagedSave { .. }), "{to}: {error}");
        assert!(error.to_string().contains(reason), "{to}: {error}");
    };
    told(&format!("\"resident\":{num_held}"), "\"resident\":351", "counts of layer 0");
    told(&format!("\"resident\":{num_held}"), "\"resident\":2", "not as long as");
    told("\"seen\":350", "\"seen\":4294967295", "counts of layer 0");
    told("\"seen\":350", "\"seen\":18446744073709551615", "are none");
    told("\"limits_at\":", "\"limits_at\":9", "are none");
    told("\"expects\":false", "\"expects\":true", "not as long as");
    told(&header[header.find("\"policy\"").expect("a policy")..], "\"policy\":null}", "are none");
    // Behind the rows: positions, evidence, the weight of the head.
    let end = saved.bytes.len();
    let first = end - 8 - 8 * num_held;
    let changed = |place: usize, to: &[u8], reason: &str| {
        let mut bytes = saved.bytes.clone();
        bytes[place..place + to.len()].copy_from_slice(to);
        let error = saved.load(&bytes).unwrap_err();
        assert!(matches!(error, Error::DamagedSave { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    };
    changed(first, &7_000u32.to_le_bytes(), "positions");
    changed(first + 4, &0u32.to_le_bytes(), "positions");
    changed(first + 4 * num_held, &f32::NAN.to_le_bytes(), "not a number");
    changed(end - 8, &(-1.0f64).to_le_bytes(), "share");
    changed(end - 8, &f64::INFINITY.to_le_bytes(), "share");
    let saved = Saved::new(EXACT, "expected");
    let mut bytes = saved.bytes.clone();
    let end = bytes.len();
    bytes[end - 8..].copy_from_slice(&f64::NAN.to_le_bytes());
    let error = saved.load(&bytes).unwrap_err();
    assert!(error.to_string().contains("expected of queries"), "{error}");
}

/// Numbers that counts can be replaced by.
fn hostile_count() -> impl Strategy<Value = u64> {
    prop_oneof![0..600u64, Just(u64::from(u32::MAX)), Just(u64::MAX), Just(1 << 40), any::<u64>()]
}

#[test]
fn hostile_headers_are_errors_and_take_no_memory() {
    for (layout, scorer) in [(EXACT, "expected"), (CODED[3], "votes"), (CODED[5], "squared")] {
        let saved = Saved::new(layout, scorer);
        let header = saved.header().to_owned();
        let is_digit = |c: char| c.is_ascii_digit();
        let numbers: Vec<(usize, usize)> = header
            .match_indices(is_digit)
            .map(|(start, _)| start)
            .filter(|&start| !header[..start].ends_with(is_digit))
            .map(|start| (start, header[start..].find(|c| !is_digit(c)).unwrap_or(0) + start))
            .collect();
        let config = ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() };
        proptest!(config, |(
            which in any::<prop::sample::Index>(),
            count in hostile_count(),
            bytes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        )| {
            let mut changed = header.clone();
            let (start, end) = numbers[which.index(numbers.len())];
            changed.replace_range(start..end, &count.to_string());
            let mut changed = saved.with_header(&changed);
            for (place, byte) in bytes {
                let place = place.index(changed.len());
                changed[place] = byte;
            }
            // An error or a cache; never a panic, and nothing that the bytes do not stand behind.
            if let Ok(mut cache) = saved.load(&changed) {
                let len = saved.tokens.shape.heads.kv_row_len();
                let mut out = vec![0.0; saved.tokens.shape.heads.qo_row_len()];
                for token in 350..400 {
                    let row = token * len..(token + 1) * len;
                    let (k, v) = (&saved.tokens.k[0][row.clone()], &saved.tokens.v[0][row]);
                    let _ = cache.append(0, k, v);
                    let _ = cache.attend(0, saved.tokens.query(0, token), &mut out);
                }
            }
        });
    }
}
