//! Forks, caches filled together, and numbers of threads: none of them changes a bit.

use super::*;

const SPECS: [&str; 7] = [
    "full",
    "keys=f16,select=top-p:0.9",
    "keys=int4-channel/32,values=int8@host,select=top-k:40",
    "keys=rot-int4-channel/32,values=int4@host",
    "keys=lm2,rescore=int8@host,min=10",
    "keys=pq/2x16,union=head",
    "hca:50%,recent=20",
];

#[test]
fn forks_are_equal_and_independent() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 460);
    let other = Tokens::new(2, tokens.shape, 460);
    for spec in SPECS {
        let mut cache = tokens.cache(spec, 330, 350);
        let mut fork = cache.fork().expect("memory");
        let mut untouched = cache.fork().expect("memory");
        let before = bits(&tokens.attend(&mut cache, 349));
        assert_eq!(before, bits(&tokens.attend(&mut fork, 349)), "{spec}: equal");
        // The fork goes its own way, the cache its own; each is what it would be without the other.
        (350..460).for_each(|token| other.append(&mut fork, token));
        assert_eq!(before, bits(&tokens.attend(&mut cache, 349)), "{spec}: appending to the fork");
        let forked = bits(&tokens.attend(&mut fork, 459));
        (350..460).for_each(|token| tokens.append(&mut cache, token));
        assert_eq!(forked, bits(&tokens.attend(&mut fork, 459)), "{spec}: appending to the cache");
        assert_ne!(forked, bits(&tokens.attend(&mut cache, 459)), "{spec}: they hold other tokens");
        drop(cache);
        assert_eq!(before, bits(&tokens.attend(&mut untouched, 349)), "{spec}: dropping the cache");
        (350..460).for_each(|token| other.append(&mut untouched, token));
        assert_eq!(forked, bits(&tokens.attend(&mut untouched, 459)), "{spec}: the same way again");
    }
}

#[test]
fn caches_filled_together_are_those_filled_alone() {
    let tokens = Tokens::new(3, shape(2, 4, 2, 16), 420);
    let mut together: Vec<KvCache> = SPECS.iter().map(|spec| cache(spec, tokens.shape)).collect();
    let outs = tokens.prefill(&mut together, 400);
    for (spec, from_all) in SPECS.iter().zip(&mut together) {
        let mut alone = cache(spec, tokens.shape);
        let alone_outs = tokens.prefill(std::slice::from_mut(&mut alone), 400);
        assert_eq!(outs, alone_outs, "{spec}: the prompt's own attention");
        assert_eq!(alone.device_bytes(), from_all.device_bytes(), "{spec}");
        for token in 400..420 {
            tokens.append(&mut alone, token);
            tokens.append(from_all, token);
            let step = bits(&tokens.attend(&mut alone, token));
            assert_eq!(step, bits(&tokens.attend(from_all, token)), "{spec} {token}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let tokens = Tokens::new(4, shape(1, 6, 2, 16), 1500);
    let run = |spec: &str, num_threads: usize| {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().expect("threads");
        pool.install(|| {
            let mut cache = cache(spec, tokens.shape);
            let mut seen = tokens.prefill(std::slice::from_mut(&mut cache), 1400);
            for token in 1400..1500 {
                tokens.append(&mut cache, token);
                if token % 9 == 0 {
                    seen.push(tokens.attend(&mut cache, token));
                }
            }
            seen.iter().flat_map(|out| bits(out)).collect::<Vec<u32>>()
        })
    };
    for spec in SPECS {
        let one = run(spec, 1);
        for num_threads in [2, 5] {
            assert_eq!(one, run(spec, num_threads), "{spec} on {num_threads} threads");
        }
    }
}

#[test]
fn a_fork_made_before_the_tables_are_fitted_fits_the_same() {
    let tokens = Tokens::new(5, shape(1, 4, 2, 16), 420);
    for keys in ["alloc/2", "pq/2x16", "lm3"] {
        let spec = format!("keys={keys},select=top-k:40,recent=20");
        let mut cache = tokens.cache(&spec, 150, 200);
        // Queries of decode steps count for the fit as those of the prompt do.
        (150..200).for_each(|token| drop(tokens.attend(&mut cache, token)));
        let mut fork = cache.fork().expect("memory");
        assert_eq!(cache.device_bytes().tables, 0, "{keys} is not fitted yet");
        for token in 200..420 {
            tokens.append(&mut cache, token);
            tokens.append(&mut fork, token);
            let step = bits(&tokens.attend(&mut cache, token));
            assert_eq!(step, bits(&tokens.attend(&mut fork, token)), "{keys} {token}");
        }
        assert!(cache.device_bytes().tables > 0, "{keys} is fitted");
    }
}
