//! Candidates taking turns, so that whatever disturbs the machine hits them alike.

use anyhow::Result;

use crate::samples::Samples;

/// Takes `num_rounds` samples of each of `candidates`, one of each per round, and gives those of each. The i-th
/// samples of all stand beside each other, and every round begins with another candidate, so that none always
/// follows the same one's traces in the caches first.
///
/// # Errors
/// The first of `sample`.
pub(crate) fn interleaved<T>(
    candidates: &mut [T],
    num_rounds: usize,
    mut sample: impl FnMut(&mut T) -> Result<f64>,
) -> Result<Vec<Samples>> {
    let mut samples = vec![Samples::default(); candidates.len()];
    in_turns(candidates, num_rounds, |index, candidate| {
        samples[index].push(sample(candidate)?);
        Ok(())
    })?;
    Ok(samples)
}

/// Gives each of `candidates`, with its place, to `turn` once in each of `num_rounds` rounds, of which every one begins with
/// another.
///
/// # Errors
/// The first of `turn`.
pub(crate) fn in_turns<T>(
    candidates: &mut [T],
    num_rounds: usize,
    mut turn: impl FnMut(usize, &mut T) -> Result<()>,
) -> Result<()> {
    for round in 0..num_rounds {
        for place in 0..candidates.len() {
            let index = (round + place) % candidates.len();
            turn(index, &mut candidates[index])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_takes_each_once_and_begins_with_the_next() {
        let mut order = Vec::new();
        let samples = interleaved(&mut [0usize, 1, 2], 4, |candidate| {
            order.push(*candidate);
            Ok(*candidate as f64)
        });
        assert_eq!(order, [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]);
        let samples = samples.expect("none fails");
        assert!(samples.iter().enumerate().all(|(i, s)| s.as_slice() == [i as f64; 4]));
        let failed = interleaved(&mut [0], 1, |_| anyhow::bail!("no"));
        assert!(failed.is_err());
    }
}
