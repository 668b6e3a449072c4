//! A cache that is saved and loaded is the one that was saved, to the bit; what is another or damaged is refused.

use std::path::Path;

use heterokv_cache::{Error, HeadMeasure, HeadProfile, HeadRole, KeyMix, SavedCache, SimilarityAt};
use heterokv_offload::{DiskOptions, Store, StoreOptions};
use proptest::prelude::*;

use super::*;

const SPECS: [&str; 12] = [
    "full",
    "keys=f16,select=top-p:0.9",
    "keys=int4-channel/64,values=int8@host,select=top-k:40,recent=20",
    "keys=rot-int2-channel/32,values=int4@host,sinks=0",
    "keys=lm2,rescore=int8@host,min=10",
    "keys=pq/2x16,union=head,renorm=off",
    "keys=pq/4x16+x2,recent=9",
    "keys=opq/2x16+x1,values=int8@host",
    "keys=alloc/2,sinks=70,recent=3",
    "hca:50%,recent=20",
    "hca-rescore:50%",
    "hca:50%,recent=20,prefill=anchor:64:32",
];

/// What every cache is saved under.
const NAME: &str = "session";

const COMPANION: &[u8] = b"what the caller knows";

fn store(folder: &Path, spec: &str, shape: KvShape, ram_budget_bytes: usize) -> Store {
    let shape = config(spec, shape).store_shape(&shape);
    let disk = Some(DiskOptions::new(folder, "a model"));
    Store::open(StoreOptions { shape, ram_budget_bytes, disk }).expect("a folder of a test")
}

fn empty_in(store: &Store, spec: &str, shape: KvShape) -> KvCache {
    let config = config(spec, shape);
    KvCache::in_store(shape, config, Level::detect(), None, store).expect("a store of its shape")
}

fn load(store: &Store, spec: &str, shape: KvShape) -> Result<KvCache, Error> {
    let saved = SavedCache::open(store, NAME)?;
    assert_eq!(saved.companion(), COMPANION);
    let num_tokens = saved.num_tokens();
    let cache = saved.load(shape, config(spec, shape), Level::detect(), None)?;
    assert_eq!(cache.num_tokens(), num_tokens);
    Ok(cache)
}

/// What the cache gives for further tokens, and where its bytes are after each.
fn goes_on(
    tokens: &Tokens,
    cache: &mut KvCache,
    further: std::ops::Range<usize>,
) -> Vec<(Vec<u32>, String)> {
    further
        .map(|token| {
            tokens.append(cache, token);
            let out = bits(&tokens.attend(cache, token));
            (out, format!("{:?} {}", cache.device_bytes(), cache.host_in_use_bytes()))
        })
        .collect()
}

/// Saves a cache, loads it, and holds what comes then against what the saved one and one in RAM give.
#[track_caller]
fn check_round_trip(tokens: &Tokens, spec: &str, prompt: usize, total: usize, budget: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let own = store(folder.path(), spec, tokens.shape, budget);
    let mut cache = empty_in(&own, spec, tokens.shape);
    let mut in_ram = super::cache(spec, tokens.shape);
    for cache in [&mut cache, &mut in_ram] {
        if prompt > 0 {
            tokens.fill(cache, prompt, total);
        }
        // Queries of decode steps count for tables that are not fitted yet.
        (prompt..total).for_each(|token| drop(tokens.attend(cache, token)));
    }
    let mut fork = cache.fork().expect("memory");
    cache.save(NAME, COMPANION).expect("a disk of a test");
    let further = total..total + 90;
    let expected = goes_on(tokens, &mut in_ram, further.clone());
    assert_eq!(expected, goes_on(tokens, &mut cache, further.clone()), "{spec}: the saved one");
    assert_eq!(expected, goes_on(tokens, &mut fork, further.clone()), "{spec}: its fork");
    drop((cache, fork, own));
    let own = store(folder.path(), spec, tokens.shape, budget);
    let mut loaded = load(&own, spec, tokens.shape).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let mut fork = loaded.fork().expect("memory");
    assert_eq!(expected, goes_on(tokens, &mut loaded, further.clone()), "{spec}: the loaded one");
    assert_eq!(expected, goes_on(tokens, &mut fork, further), "{spec}: its fork");
    // A fork, and what was loaded, are saved as what they are.
    fork.save("other", b"").expect("a disk of a test");
    assert!(SavedCache::open(&own, "other").expect("it was saved").companion().is_empty());
    let mut again = load(&own, spec, tokens.shape).expect("it is still there");
    assert_eq!(again.num_tokens(), total);
    again.save(NAME, COMPANION).expect("a disk of a test");
}

#[test]
fn what_is_loaded_is_what_was_saved_to_the_bit() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 460);
    for spec in SPECS {
        // Tokens wait for their group, and the window begins within a page.
        check_round_trip(&tokens, spec, 330, 347, usize::MAX);
    }
}

#[test]
fn with_less_memory_than_rows_too() {
    let tokens = Tokens::new(2, shape(2, 4, 2, 16), 3_100);
    for spec in ["full", "hca:50%,recent=20", "keys=pq/2x16,values=int8@host,rescore=int8@host"] {
        check_round_trip(&tokens, spec, 2_980, 3_000, 120 << 10);
    }
}

#[test]
fn caches_that_have_no_tables_yet_or_hold_nothing() {
    let tokens = Tokens::new(3, shape(2, 4, 2, 16), 460);
    for spec in SPECS {
        check_round_trip(&tokens, spec, 150, 160, usize::MAX);
        check_round_trip(&tokens, spec, 2, 3, usize::MAX);
        check_round_trip(&tokens, spec, 0, 0, usize::MAX);
    }
}

#[test]
fn a_save_between_opening_and_loading_is_not_mixed_in() {
    let shape = shape(2, 4, 2, 16);
    let [one, other] = [10, 11].map(|seed| Tokens::new(seed, shape, 460));
    for spec in ["full", "hca:50%,recent=20", "keys=pq/2x16,rescore=int8@host,recent=20"] {
        let folder = tempfile::tempdir().expect("a folder");
        let own = store(folder.path(), spec, shape, usize::MAX);
        let save = |tokens: &Tokens| {
            let mut cache = empty_in(&own, spec, shape);
            tokens.fill(&mut cache, 330, 347);
            cache.save(NAME, COMPANION).expect("a disk of a test");
        };
        let load = |saved: &SavedCache| {
            let cache = saved.load(shape, config(spec, shape), Level::detect(), None);
            goes_on(&one, &mut cache.expect("it was saved"), 347..360)
        };
        save(&one);
        let before = SavedCache::open(&own, NAME).expect("it was saved");
        // As many tokens, and others.
        save(&other);
        let after = SavedCache::open(&own, NAME).expect("it was saved");
        let mut in_ram = [&one, &other].map(|tokens| tokens.cache(spec, 330, 347));
        let expected = in_ram.each_mut().map(|cache| goes_on(&one, cache, 347..360));
        assert_ne!(expected[0], expected[1], "{spec}: there is something to mix");
        // Loading takes nothing of it.
        for _ in 0..2 {
            assert_eq!(load(&before), expected[0], "{spec}");
            assert_eq!(load(&after), expected[1], "{spec}");
        }
    }
}

#[test]
fn a_mix_is_what_it_chose_and_not_its_file() {
    let shape = shape(2, 4, 2, 16);
    let tokens = Tokens::new(4, shape, 460);
    let folder = tempfile::tempdir().expect("a folder");
    let formats = |names: [&str; 4]| names.map(|name| name.parse().expect("a format")).to_vec();
    let mix = |file: &str, names| {
        let path = folder.path().join(file);
        KeyMix::create(&path, "a model", &shape, formats(names)).expect("a mix of this shape");
        format!("keys=mix:{},recent=20", path.display())
    };
    let names = ["lm2", "int4-channel/32", "pq/2x16", "alloc/2"];
    let [spec, same] = ["a.mix", "b.mix"].map(|file| mix(file, names));
    let other = mix("c.mix", ["lm2", "int4-channel/32", "pq/2x16", "alloc/3"]);
    check_round_trip(&tokens, &spec, 330, 347, usize::MAX);
    let sessions = tempfile::tempdir().expect("a folder");
    let own = store(sessions.path(), &spec, shape, usize::MAX);
    let mut cache = empty_in(&own, &spec, shape);
    tokens.fill(&mut cache, 330, 347);
    cache.save(NAME, COMPANION).expect("a disk of a test");
    load(&own, &same, shape).expect("the same formats");
    let error = load(&own, &other, shape).unwrap_err();
    let is_told = matches!(&error, Error::OtherSave { field: "keys", found, .. }
        if found == "lm2 int4-channel/32 pq/2x16 alloc/2.00" || found.ends_with("alloc/2"));
    assert!(is_told, "{error}");
}

/// A saved cache, and what is attached to it.
struct Saved {
    _folder: tempfile::TempDir,
    store: Store,
    shape: KvShape,
    spec: String,
    bytes: Vec<u8>,
}

impl Saved {
    fn new(tokens: &Tokens, spec: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), spec, tokens.shape, usize::MAX);
        let mut cache = empty_in(&store, spec, tokens.shape);
        tokens.fill(&mut cache, 330, 347);
        cache.save(NAME, COMPANION).expect("a disk of a test");
        let mut attachment = store.attachment(NAME).expect("it was saved");
        let mut bytes = vec![0; attachment.rest_bytes() as usize];
        attachment.read_exact(&mut bytes).expect("it is whole");
        Self { _folder: folder, store, shape: tokens.shape, spec: spec.to_owned(), bytes }
    }

    /// The end of the header.
    fn header_end(&self) -> usize {
        4 + u32::from_le_bytes(self.bytes[..4].try_into().expect("four bytes")) as usize
    }

    fn header(&self) -> String {
        let header = self.bytes[4..self.header_end()].to_vec();
        String::from_utf8(header).expect("JSON")
    }

    /// The same with another header.
    fn with_header(&self, header: &str) -> Vec<u8> {
        let len = (header.len() as u32).to_le_bytes();
        [&len[..], header.as_bytes(), &self.bytes[self.header_end()..]].concat()
    }

    /// What comes of the rows with other bytes, of which the disk says that they are those that were written.
    fn load(&self, bytes: &[u8]) -> Result<KvCache, Error> {
        let mut rows = self.store.load(NAME).expect("it was saved");
        rows.save_with("changed", |out| out.write_all(bytes)).expect("a disk of a test");
        let saved = SavedCache::open(&self.store, "changed")?;
        saved.load(self.shape, config(&self.spec, self.shape), Level::detect(), None)
    }
}

#[test]
fn a_changed_byte_of_the_state_is_another_cache() {
    // The negative control: what the comparisons above hold equal differs where it should.
    let tokens = Tokens::new(5, shape(1, 4, 2, 16), 460);
    for spec in ["full", "hca:50%,recent=20", "keys=pq/2x16,recent=20"] {
        let saved = Saved::new(&tokens, spec);
        let mut sound = saved.load(&saved.bytes).expect("nothing is changed");
        let sound = bits(&tokens.attend(&mut sound, 346));
        let state = saved.header_end() + COMPANION.len();
        let mut num_seen = 0;
        // Signs of values and bits of codes; some codes are never selected.
        let places: Vec<usize> = (state + 1..saved.bytes.len()).step_by(977).collect();
        for &place in &places {
            let mut bytes = saved.bytes.clone();
            bytes[place] ^= 0x80;
            let Ok(mut changed) = saved.load(&bytes) else {
                num_seen += 1;
                continue;
            };
            num_seen += usize::from(bits(&tokens.attend(&mut changed, 346)) != sound);
        }
        assert!(2 * num_seen > places.len(), "{spec}: {num_seen} of {}", places.len());
    }
}

#[test]
fn another_spec_shape_version_or_profile_is_refused_with_what_differs() {
    let tokens = Tokens::new(6, shape(2, 4, 2, 16), 460);
    let saved = Saved::new(&tokens, "keys=pq/2x16,recent=20");
    let open = || SavedCache::open(&saved.store, NAME).expect("it was saved");
    let refusal = |spec: &str, shape: KvShape, field: &str, parts: [&str; 2]| {
        let error = open().load(shape, config(spec, shape), Level::detect(), None).unwrap_err();
        let Error::OtherSave { field: told, .. } = &error else { panic!("{error}") };
        assert_eq!(*told, field, "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{error}"));
    };
    let (spec, own) = (&saved.spec[..], saved.shape);
    refusal("full", own, "a cache", ["not full", "recent=20"]);
    refusal("keys=pq/2x32,recent=20", own, "keys", ["keys pq/2x16, not pq/2x32", ""]);
    refusal("keys=pq/2x16,recent=21", own, "a cache", ["recent=20, not ", "recent=21"]);
    refusal(spec, shape(1, 4, 2, 16), "a shape", ["2 layers of", "not 1 layers of"]);
    refusal(spec, shape(2, 2, 2, 16), "a shape", ["of 4 query", "of 2 query"]);
    let profile = |seed: u64| {
        let tokens = Tokens::new(seed, own, 400);
        let cache = tokens.cache("keys=pq/2x16,recent=20", 400, 400);
        Profile::of(&cache, "a model").expect("everything is fitted")
    };
    let config = || config(spec, own);
    let error = open().load(own, config(), Level::detect(), Some(&profile(7))).unwrap_err();
    assert!(error.to_string().contains("of tables others, not those of the profile"), "{error}");
    let mut cache = open().load(own, config(), Level::detect(), None).expect("it is of this spec");
    let same = Profile::of(&cache, "a model").expect("everything is fitted");
    open().load(own, config(), Level::detect(), Some(&same)).expect("its own tables");
    let header = saved.header();
    for version in ["0", "1", "3", "4294967295"] {
        let header = header.replace("\"version\":2", &format!("\"version\":{version}"));
        let error = saved.load(&saved.with_header(&header)).unwrap_err();
        assert!(matches!(&error, Error::OtherSave { field: "version", .. }), "{error}");
    }
    // In the middle of a token, and without a disk.
    let row = vec![0.5; own.heads.kv_row_len()];
    cache.append(0, &row, &row).expect("finite");
    let error = cache.save(NAME, COMPANION).unwrap_err();
    assert!(matches!(error, Error::MidToken { layer: 1, num_tokens: 347, expected: 348 }));
    for spec in ["full", "keys=lm2"] {
        let mut in_ram = super::cache(spec, own);
        let error = in_ram.save(NAME, COMPANION).unwrap_err();
        assert!(matches!(error, Error::Offload(heterokv_offload::Error::NoDisk)), "{error}");
    }
    let config = super::config("keys=lm2,values=int8@host", own);
    let foreign = KvCache::in_store(own, config, Level::detect(), None, &saved.store);
    assert!(matches!(foreign, Err(Error::OtherStore)));
}

#[test]
fn a_profile_of_heads_is_what_it_says_wherever_its_file_is() {
    let tokens = Tokens::new(12, shape(2, 4, 2, 16), 460);
    let folder = tempfile::tempdir().expect("a folder");
    let spec_of = |name: &str, stabilities: [f64; 4], first: HeadRole| {
        let measure = HeadMeasure {
            prompt_tokens: 400,
            steps: 10,
            top_k: 64,
            tau_stable: 0.5,
            tau_sim: 0.5,
            similarity: SimilarityAt::Prompt,
        };
        let roles = vec![first, HeadRole::Anchor, HeadRole::Anchor, HeadRole::Anchor];
        let profile =
            HeadProfile::new("a model", &tokens.shape, measure, stabilities.to_vec(), roles);
        let file = folder.path().join(name);
        profile.expect("sound").save(&file).expect("a folder of a test");
        format!(
            "keys=int8-token,values=int8@host,select=none,evict=last-query,budget=stability,keep=70%,every=4,sinks=2,\
             recent=8,heads={}",
            file.display()
        )
    };
    let stabilities = [0.4, 0.6, 0.7, 0.8];
    let spec = spec_of("one", stabilities, HeadRole::Volatile);
    let saved = Saved::new(&tokens, &spec);
    let load = |spec: &str| {
        let open = SavedCache::open(&saved.store, NAME).expect("it was saved");
        open.load(saved.shape, config(spec, saved.shape), Level::detect(), None)
    };
    load(&spec).expect("its own");
    load(&spec_of("two", stabilities, HeadRole::Volatile)).expect("the same, elsewhere");
    for other in [
        spec_of("one", stabilities, HeadRole::Anchor),
        spec_of("one", [0.4, 0.6, 0.7, 0.9], HeadRole::Volatile),
    ] {
        let error = load(&other).unwrap_err();
        let is_told =
            matches!(&error, Error::OtherSave { field: "roles and weights of heads", .. });
        assert!(is_told, "{error}");
        assert!(error.to_string().contains("volatile/"), "{error}");
    }
}

#[test]
fn a_header_that_is_cut_anywhere_is_an_error() {
    let tokens = Tokens::new(8, shape(1, 2, 1, 16), 460);
    let saved = Saved::new(&tokens, "hca:50%,recent=20");
    saved.load(&saved.bytes).expect("nothing is cut");
    let ends = (0..saved.header_end() + COMPANION.len() + 2).chain([saved.bytes.len() - 1]);
    for len in ends {
        let error = saved.load(&saved.bytes[..len]).unwrap_err();
        assert!(!error.to_string().is_empty(), "{len} bytes");
    }
    let longer = [&saved.bytes[..], &[0]].concat();
    assert!(matches!(saved.load(&longer), Err(Error::DamagedSave { .. })));
}

/// Numbers that counts can be replaced by.
fn hostile_count() -> impl Strategy<Value = u64> {
    prop_oneof![0..600u64, Just(u64::from(u32::MAX)), Just(u64::MAX), Just(1 << 40), any::<u64>()]
}

#[test]
fn hostile_headers_are_errors_and_take_no_memory() {
    let tokens = Tokens::new(9, shape(1, 2, 1, 16), 460);
    for spec in ["full", "hca:50%,recent=20", "keys=int4-channel/32"] {
        let saved = Saved::new(&tokens, spec);
        let header = saved.header();
        let numbers: Vec<(usize, usize)> = header
            .match_indices(|c: char| c.is_ascii_digit())
            .map(|(start, _)| start)
            .filter(|&start| !header[..start].ends_with(|c: char| c.is_ascii_digit()))
            .map(|start| {
                let rest = &header[start..];
                let len = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                (start, start + len)
            })
            .collect();
        let config = ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() };
        proptest!(config, |(
            changes in prop::collection::vec((any::<prop::sample::Index>(), hostile_count()), 1..4),
            flip in prop::option::of((any::<prop::sample::Index>(), 0..8u8)),
        )| {
            let mut changed = header.clone();
            let (which, count) = &changes[0];
            let (start, end) = numbers[which.index(numbers.len())];
            changed.replace_range(start..end, &count.to_string());
            let mut bytes = saved.with_header(&changed);
            for (place, byte) in &changes[1..] {
                let place = place.index(bytes.len());
                bytes[place] = *byte as u8;
            }
            if let Some((place, bit)) = flip {
                let place = place.index(saved.header_end());
                bytes[place] ^= 1 << bit;
            }
            // An error or a cache; never a panic, and nothing that the bytes do not stand behind.
            if let Ok(mut cache) = saved.load(&bytes) {
                let mut out = vec![0.0; tokens.shape.heads.qo_row_len()];
                let _ = cache.attend(0, tokens.query(0, 346), &mut out);
                tokens.append(&mut cache, 347);
            }
        });
    }
}
