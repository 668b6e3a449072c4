//! Every form of a kernel against the scalar one, to the bit, and that one against what it is to
//! do.

use super::*;

/// Lengths around those of vectors and words.
const LENGTHS: [usize; 10] = [0, 1, 15, 16, 63, 64, 65, 127, 200, 1000];

/// Numbers in no order, many of them equal, from 0 to 1.
fn weights(len: usize) -> Vec<f32> {
    let bits = (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 20);
    bits.map(|bits| (bits % 101 * (bits % 7)) as f32 / 600.0).collect()
}

/// What [`split`] gives, with the weights between the edges, and the bits of the heavy ones and of these.
fn split_by(form: Form, weights: &[f32], edges: [f32; 2]) -> (Split, Vec<f32>, [Vec<u64>; 2]) {
    let mut between = vec![f32::NAN; weights.len() + LANES];
    let [mut heavy, mut open] = [0; 2].map(|_| vec![u64::MAX; weights.len().div_ceil(WORD)]);
    let sides = Sides { heavy: &mut heavy, open: &mut open, between: &mut between };
    let found = split(form, weights, edges, sides);
    between.truncate(found.num_between);
    (found, between, [heavy, open])
}

fn marked_by(form: Form, weights: &[f32], least: f32) -> Vec<u64> {
    let mut words = vec![u64::MAX; weights.len().div_ceil(WORD)];
    mark(form, weights, least, &mut words);
    words
}

#[test]
fn all_forms_split_alike() {
    for len in LENGTHS {
        let weights = weights(len);
        for edges in [[0.0, f32::INFINITY], [0.0, 0.0], [0.1, 0.3], [0.3, 0.3], [2.0, 3.0]] {
            let (found, between, words) = split_by(Form::SCALAR, &weights, edges);
            let is_between = |weight: &f32| (edges[0]..edges[1]).contains(weight);
            let expected: Vec<f32> = weights.iter().copied().filter(is_between).collect();
            assert_eq!(between, expected, "{len} {edges:?}");
            let [heavier, least] = [edges[1], edges[0].min(edges[1])]
                .map(|least| marked_by(Form::SCALAR, &weights, least));
            let open = least.iter().zip(&heavier).map(|(least, heavy)| least & !heavy);
            assert_eq!(words, [heavier.clone(), open.collect()], "{len} {edges:?}");
            let heavy = || weights.iter().filter(|weight| **weight >= edges[1]);
            assert_eq!(found.num_heavy, heavy().count());
            let mass: f64 = heavy().map(|&weight| f64::from(weight)).sum();
            assert!((found.heavy_mass - mass).abs() <= 1e-12 * mass && found.is_sound);
            for form in Form::available() {
                let other = split_by(form, &weights, edges);
                let expected = (found, between.clone(), words.clone());
                assert_eq!(other, expected, "{form:?} {len} {edges:?}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_none_is_seen_wherever_it_is() {
    for form in Form::available() {
        for len in [1, 64, 100, 200] {
            assert!(split_by(form, &vec![f32::MAX; len], [0.0, 1.0]).0.is_sound);
            for (at, wrong) in [f32::NAN, f32::INFINITY, -1.0, -f32::NAN].into_iter().enumerate() {
                let mut weights = weights(len);
                weights[(at * 53 + len - 1) % len] = wrong;
                let found = split_by(form, &weights, [0.1, 0.3]).0;
                assert!(!found.is_sound, "{form:?} {len} {wrong}");
            }
        }
    }
}

#[test]
fn all_forms_mark_alike() {
    for len in LENGTHS {
        let weights = weights(len);
        for least in [0.0, 0.1, 0.5, 2.0] {
            let words = marked_by(Form::SCALAR, &weights, least);
            for token in 0..len.next_multiple_of(WORD) {
                let is_set = words[token / WORD] >> (token % WORD) & 1 != 0;
                assert_eq!(is_set, token < len && weights[token] >= least, "{len} {least} {token}");
            }
            for form in Form::available() {
                assert_eq!(marked_by(form, &weights, least), words, "{form:?} {len} {least}");
            }
        }
    }
}

#[test]
fn all_forms_find_and_pick_the_same_positions() {
    let sparse = [0, 1 << 63, 0, 1, 0];
    let dense = [u64::MAX, 0x5555_0000_FFFF_8001, u64::MAX];
    for words in [&[][..], &[0], &sparse, &dense] {
        let is_set =
            |token: &u32| words[*token as usize / WORD] >> (*token as usize % WORD) & 1 != 0;
        let expected: Vec<u32> = (0..(words.len() * WORD) as u32).filter(is_set).collect();
        let values: Vec<f32> = (0..words.len() * WORD).map(|token| -(token as f32)).collect();
        for form in Form::available() {
            let count = expected.len();
            let mut found = vec![u32::MAX; count + LANES];
            positions(form, words, &mut found);
            assert_eq!(found[..count], expected, "{form:?} {words:x?}");
            let mut picked = vec![f32::NAN; count];
            assert_eq!(pick(form, words, &values, &mut picked), count);
            let is_right = |(value, token): (&f32, &u32)| *value == -(*token as f32);
            assert!(picked.iter().zip(&expected).all(is_right), "{form:?} {words:x?}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn forms_for_avx_512_are_run_or_counted_as_skipped() {
    if !has_avx512() {
        println!("SKIPPED: this CPU has no AVX-512; evict's forms for it were not run");
    }
}
