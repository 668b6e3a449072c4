//! A host store under a budget, on a disk below it: the same attention, in bounded memory.

use std::time::{Duration, Instant};

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
            let expected = bits(&tokens.attend(&mut in_ram, token));
            assert_eq!(bits(&tokens.attend(&mut cache, token)), expected, "{spec}: token {token}");
        }
        let stats = stats(&cache);
        assert!(stats.ram_peak.bytes <= budget && stats.disk.pages > 0, "{spec}: {stats:?}");
        assert!(stats.misses > 0 && stats.read_bytes > 0, "{spec}: {stats:?}");
        assert_eq!(cache.host_in_use_bytes(), in_ram.host_in_use_bytes());
        // One row more would be seen.
        let (mut other, before) = (cache.fork().expect("memory"), tokens.attend(&mut cache, 1_999));
        tokens.append(&mut other, 0);
        let after = tokens.attend(&mut other, 1_999);
        assert_ne!(bits(&before), bits(&after), "{spec}");
    }
}

#[test]
fn the_next_layers_pages_are_there_when_it_comes() {
    let shape = shape(8, 4, 2, 64);
    let tokens = Tokens::new(12, shape, 3_000);
    let spec = "keys=int8-token,values=int8@host,select=none";
    let folder = tempfile::tempdir().expect("a folder");
    // A layer has 48 pages, and hints are for a quarter of RAM: of 384 pages it holds 220.
    let mut cache = on_disk(spec, shape, 220 * 8_192, folder.path());
    tokens.fill(&mut cache, 2_990, 2_990);
    let mut out = vec![0.0; shape.heads.qo_row_len()];
    let pause = Duration::from_millis(10);
    // A step; each layer but the last is given time until some pages have come while nothing is read, and no more come.
    let mut step = |cache: &mut KvCache, token: usize, patience: Duration| {
        tokens.append(cache, token);
        let mut num_ahead = 0;
        for layer in 0..shape.num_layers {
            cache.attend(layer, tokens.query(layer, token), &mut out).expect("finite queries");
            if layer + 1 == shape.num_layers {
                break;
            }
            let (start, before) = (Instant::now(), stats(cache).prefetched);
            let mut seen = before;
            loop {
                std::thread::sleep(pause);
                let now = stats(cache).prefetched;
                if now == seen && (now > before + 2 || start.elapsed() >= patience) {
                    break;
                }
                seen = now;
            }
            num_ahead += seen - before;
        }
        num_ahead
    };
    let num_ahead = step(&mut cache, 2_990, pause);
    assert_eq!(num_ahead, 0, "in the first step nobody knows what a layer will read");
    for token in 2_991..2_994 {
        let num_ahead = step(&mut cache, token, 100 * pause);
        assert!(num_ahead > 20, "{num_ahead} of those that are not in RAM: {:?}", stats(&cache));
    }
    assert!(stats(&cache).ram_peak.bytes <= 220 * 8_192);
}

#[test]
fn a_cache_that_was_cut_reads_and_hints_what_is_left() {
    let tokens = Tokens::new(14, shape(2, 4, 2, 64), 2_000);
    let spec = "keys=int8-token,values=int8@host,select=none";
    let folder = tempfile::tempdir().expect("a folder");
    let mut in_ram = tokens.cache(spec, 1_900, 1_900);
    let mut cache = on_disk(spec, tokens.shape, 40 * 8_192, folder.path());
    tokens.fill(&mut cache, 1_900, 1_900);
    tokens.attend(&mut cache, 1_899);
    let in_use = cache.host_in_use_bytes();
    assert_eq!([&mut in_ram, &mut cache].map(|cache| cache.truncate(700)), [700, 700]);
    assert!(cache.host_in_use_bytes() < in_use / 2);
    // No hint of before keeps what was cut off.
    assert!(stats(&cache).disk.pages * 8_192 < in_use / 2, "{:?}", stats(&cache));
    for token in 700..720 {
        tokens.append(&mut in_ram, token);
        tokens.append(&mut cache, token);
        let expected = bits(&tokens.attend(&mut in_ram, token));
        assert_eq!(bits(&tokens.attend(&mut cache, token)), expected, "token {token}");
    }
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
