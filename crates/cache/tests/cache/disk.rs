//! A host store under a budget, on a disk below it: the same attention, in bounded memory.

use heterokv_cache::{DiskOptions, HostStats, Store, StoreOptions};

use super::*;

/// A cache whose host store has room for so many bytes, the rest in `folder`.
fn on_disk(spec: &str, shape: KvShape, budget: usize, folder: &std::path::Path) -> KvCache {
    let disk = Some(DiskOptions::new(folder, "a model"));
    let config = config(spec, shape);
    let options =
        StoreOptions { shape: config.store_shape(&shape), ram_budget_bytes: budget, disk };
    let store = Store::open(options).expect("a folder that is there");
    KvCache::in_store(shape, config, Level::detect(), None, &store).expect("a cache")
}

fn stats(cache: &KvCache) -> HostStats {
    cache.host_stats().expect("it has a host store")
}

#[test]
fn rows_on_disk_give_the_attention_of_rows_in_ram() {
    let tokens = Tokens::new(11, shape(3, 4, 2, 64), 2_000);
    for spec in [
        "keys=int8-token,values=int8@host,select=top-p:0.9",
        "keys=lm2,values=int4@host,select=top-k:400,union=head",
        "hca-rescore,keys=lm1,select=top-p:0.9",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut in_ram = tokens.cache(spec, 1_900, 1_900);
        let host_bytes = in_ram.host_in_use_bytes();
        let budget = host_bytes / 4;
        let mut cache = on_disk(spec, tokens.shape, budget, folder.path());
        tokens.fill(&mut cache, 1_900, 1_900);
        for token in 1_900..2_000 {
            tokens.append(&mut in_ram, token);
            tokens.append(&mut cache, token);
            let (expected, found) =
                (tokens.attend(&mut in_ram, token), tokens.attend(&mut cache, token));
            // Pages are summed as they arrive.
            for (expected, found) in expected.iter().zip(&found) {
                assert!((expected - found).abs() <= 1e-5, "{spec}: {found} is not {expected}");
            }
        }
        let stats = stats(&cache);
        assert!(stats.ram_peak.bytes <= budget && stats.disk.pages > 0, "{spec}: {stats:?}");
        assert!(stats.misses > 0 && stats.read_bytes > 0, "{spec}: {stats:?}");
        assert_eq!(cache.host_in_use_bytes(), in_ram.host_in_use_bytes());
        // Another value in one row on disk would be seen: attention over other tokens differs by more.
        let (mut other, before) = (cache.fork().expect("memory"), tokens.attend(&mut cache, 1_999));
        tokens.append(&mut other, 0);
        let after = tokens.attend(&mut other, 1_999);
        assert!(before.iter().zip(&after).any(|(a, b)| (a - b).abs() > 1e-3), "{spec}");
    }
}

#[test]
fn the_next_layers_pages_are_asked_for_ahead() {
    let tokens = Tokens::new(12, shape(4, 4, 2, 64), 3_000);
    let spec = "keys=int8-token,values=int8@host,select=top-k:200";
    let folder = tempfile::tempdir().expect("a folder");
    let pages_of_layer = 2 * 3_000_usize.div_ceil(123);
    // Hints are for a twentieth of RAM, here somewhat more than a layer's pages.
    let budget = 24 * pages_of_layer * 8_192;
    let mut cache = on_disk(spec, tokens.shape, budget, folder.path());
    tokens.fill(&mut cache, 2_900, 2_900);
    assert_eq!(stats(&cache).prefetched, 0, "nothing was read yet");
    for token in 2_900..2_960 {
        tokens.append(&mut cache, token);
        tokens.attend(&mut cache, token);
    }
    // All that was written is still in RAM, which has room for it.
    let stats = stats(&cache);
    assert_eq!((stats.misses, stats.prefetched), (0, 0), "{stats:?}");

    // With room for a third of it, most of what hints bring is read before it leaves.
    let folder = tempfile::tempdir().expect("a folder");
    let mut cache = on_disk(spec, tokens.shape, pages_of_layer * 8_192, folder.path());
    tokens.fill(&mut cache, 2_900, 2_900);
    for token in 2_900..2_960 {
        tokens.append(&mut cache, token);
        tokens.attend(&mut cache, token);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let stats = self::stats(&cache);
    assert!(stats.misses > 0 && stats.prefetched > 0, "{stats:?}");
    assert!(2 * stats.prefetch_hits >= stats.prefetched, "{stats:?}");
}

#[test]
fn a_budget_without_a_disk_is_an_error() {
    let tokens = Tokens::new(13, shape(1, 2, 1, 64), 600);
    let config = config("keys=int8-token,values=f16@host", tokens.shape);
    let store_shape = config.store_shape(&tokens.shape);
    let options = StoreOptions { shape: store_shape, ram_budget_bytes: 16 << 10, disk: None };
    let store = Store::open(options).expect("a page fits");
    let cache = KvCache::in_store(tokens.shape, config, Level::detect(), None, &store);
    let mut cache = cache.expect("it is empty");
    let kv = tokens.shape.heads.kv_row_len();
    let append = |token: usize| {
        let at = token * kv..(token + 1) * kv;
        cache.append(0, &tokens.k[0][at.clone()], &tokens.v[0][at])
    };
    let told = (0..600).map(append).find_map(Result::err);
    let told = told.expect("600 rows of 128 bytes are more than 16 KiB").to_string();
    assert!(told.contains("the host arena cannot give"), "{told}");
}
