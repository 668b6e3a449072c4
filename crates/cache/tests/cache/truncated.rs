//! A cache that forgets its last tokens holds those before them, and takes others in their place.

use super::*;

const SPECS: [(&str, usize); 8] = [
    ("full", 1),
    ("keys=f16,recent=20", 1),
    ("keys=int4-channel/32,recent=20,sinks=3", 32),
    ("keys=rot-int3-token,rescore=int8@host,recent=20", 1),
    ("keys=lm2,values=int8@host,recent=20", 1),
    ("keys=pq/2x16+x2,recent=20", 128),
    ("keys=alloc/2,sinks=0,recent=20", 1),
    ("hca:50%,recent=20", 1),
];

/// The largest difference between two rows of outputs.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn as_many_tokens_are_left_as_whole_groups_allow_and_others_come_behind_them() {
    let tokens = Tokens::new(1, shape(2, 4, 2, 16), 460);
    let other = Tokens::new(2, tokens.shape, 460);
    for (spec, group) in SPECS {
        let cache = tokens.cache(spec, 330, 400);
        let mut whole = cache.fork().expect("memory");
        (400..460).for_each(|token| tokens.append(&mut whole, token));
        let expected = tokens.attend(&mut whole, 459);
        for num_tokens in
            [0, 1, 2, 3, 5, 64, 200, 257, 340, 379, 380, 385, 399, 400, 401, usize::MAX]
        {
            let mut cut = cache.fork().expect("memory");
            let left = cut.truncate(num_tokens);
            assert_eq!(left, cut.num_tokens(), "{spec} {num_tokens}");
            assert!(
                left <= num_tokens && num_tokens.min(400) - left < group,
                "{spec} {num_tokens}: {left}"
            );
            assert!(cut.device_in_use_bytes() <= cache.device_in_use_bytes());
            assert_eq!(cut.device_in_use_bytes(), cut.device_bytes().total());
            assert_eq!(cut.truncate(num_tokens), left, "{spec}: again changes nothing");
            // The same tokens again: up to the place of the window in its pages, the same cache.
            let mut again = cut.fork().expect("memory");
            (left..460).for_each(|token| tokens.append(&mut again, token));
            assert_eq!(again.host_in_use_bytes(), whole.host_in_use_bytes(), "{spec} {left}");
            let found = tokens.attend(&mut again, 459);
            assert!(
                distance(&found, &expected) < 1e-5,
                "{spec} {left}: {}",
                distance(&found, &expected)
            );
            // The negative control: other tokens are another cache.
            (left..460).for_each(|token| other.append(&mut cut, token));
            let found = tokens.attend(&mut cut, 459);
            assert!(distance(&found, &expected) > 1e-3, "{spec} {left}");
        }
    }
}

#[test]
fn tokens_of_the_window_come_back_to_the_bit() {
    let tokens = Tokens::new(3, shape(2, 4, 2, 16), 460);
    for (spec, _) in SPECS {
        let mut cache = tokens.cache(spec, 330, 400);
        let expected = bits(&tokens.attend(&mut cache, 399));
        assert_eq!(cache.truncate(381), 381, "{spec}: all of them are in the window");
        assert_ne!(bits(&tokens.attend(&mut cache, 399)), expected, "{spec}");
        (381..400).for_each(|token| tokens.append(&mut cache, token));
        assert_eq!(bits(&tokens.attend(&mut cache, 399)), expected, "{spec}");
    }
}

#[test]
fn every_token_of_what_is_left_counts_and_no_other() {
    let tokens = Tokens::new(4, shape(1, 2, 1, 16), 460);
    let mut cut = tokens.cache("keys=f16,select=none,recent=20", 330, 400);
    assert_eq!(cut.truncate(230), 230);
    let mut fresh = tokens.cache("keys=f16,select=none,recent=20", 230, 230);
    let (found, expected) = (tokens.attend(&mut cut, 229), tokens.attend(&mut fresh, 229));
    assert!(distance(&found, &expected) < 1e-4, "keys in f16 are the same, coded or not");
    cut.truncate(229);
    assert!(distance(&tokens.attend(&mut cut, 229), &expected) > 1e-4);
}
