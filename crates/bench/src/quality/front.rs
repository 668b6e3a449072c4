//! Which codecs are on the front: as few bits for as little divergence as any other.

use super::report::{Origin, QualityRow};
use crate::sheet::{Cell, Sheet};

/// The sizes at which our best is held against the peers' best, bits per element.
const STEPS: std::ops::RangeInclusive<u32> = 4..=16;
const STEP_BITS: f64 = 0.5;

/// Whether no other row has at most its bits and at most its divergence, and less of one.
pub(super) fn is_on_front(row: &QualityRow, rows: &[QualityRow]) -> bool {
    !rows.iter().any(|other| {
        other.bits <= row.bits && other.kl <= row.kl && (other.bits < row.bits || other.kl < row.kl)
    })
}

/// The best of either side at every size.
struct Step<'a> {
    bits: f64,
    ours: Option<&'a QualityRow>,
    peers: Option<&'a QualityRow>,
}

impl Step<'_> {
    /// Ours is at least as close as any peer of that size; none of ours is a failure.
    fn is_held(&self) -> bool {
        match (self.ours, self.peers) {
            (Some(ours), Some(peers)) => ours.kl <= peers.kl,
            (ours, _) => ours.is_some(),
        }
    }
}

fn steps(rows: &[QualityRow]) -> impl Iterator<Item = Step<'_>> {
    STEPS.map(move |step| {
        let bits = STEP_BITS * f64::from(step);
        let best = |origin| {
            let fitting = rows.iter().filter(move |r| r.origin == origin && r.bits <= bits);
            fitting.min_by(|a, b| a.kl.total_cmp(&b.kl))
        };
        Step { bits, ours: best(Origin::Ours), peers: best(Origin::Peer) }
    })
}

/// Size by size, our best and the peers'.
pub(crate) fn front_sheet(name: &str, rows: &[QualityRow]) -> Sheet {
    let columns =
        ["at most, bits", "our best", "bits", "KL", "best peer", "its bits", "its KL", "verdict"];
    let mut sheet =
        Sheet::new(format!("{name}: our best beside the best peer of a size"), &columns);
    for step in steps(rows) {
        let mut row = vec![Cell::Number(step.bits, 1)];
        for best in [step.ours, step.peers] {
            match best {
                Some(best) => row.extend([
                    Cell::text(&best.codec),
                    Cell::Number(best.bits, 2),
                    Cell::Scientific(best.kl),
                ]),
                None => row.extend([Cell::text("none"), Cell::text(""), Cell::text("")]),
            }
        }
        row.push(Cell::text(if step.is_held() { "held" } else { "MISSED" }));
        sheet.push(row);
    }
    sheet
}

/// The bar: at every size our best is on the front.
pub(crate) fn is_ahead(rows: &[QualityRow]) -> bool {
    steps(rows).all(|step| step.is_held())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(origin: Origin, bits: f64, kl: f64) -> QualityRow {
        QualityRow { codec: String::new(), origin, bits, kl, rms: 0.0, p99: 0.0, out_error: 0.0 }
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let rows = [
            row(Origin::Ours, 2.0, 0.1),
            row(Origin::Peer, 2.0, 0.2),
            row(Origin::Peer, 3.0, 0.1),
            row(Origin::Ours, 4.0, 0.01),
        ];
        let on_front: Vec<bool> = rows.iter().map(|row| is_on_front(row, &rows)).collect();
        assert_eq!(on_front, [true, false, false, true]);
    }

    #[test]
    fn a_better_peer_of_a_size_is_seen_there_and_above() {
        let missed = |rows: &[QualityRow]| -> Vec<f64> {
            steps(rows).filter(|step| !step.is_held()).map(|step| step.bits).collect()
        };
        let ours = [row(Origin::Ours, 1.9, 0.1), row(Origin::Ours, 5.0, 0.001)];
        assert!(is_ahead(&ours));
        let better_at_four = [ours.to_vec(), vec![row(Origin::Peer, 3.9, 0.05)]].concat();
        // From 5 bits on ours is better again.
        assert_eq!(missed(&better_at_four), [4.0, 4.5]);
        assert!(!is_ahead(&better_at_four));
        assert_eq!(missed(&[row(Origin::Ours, 2.5, 0.0)]), [2.0], "none of ours at 2 bits");
        let nan = [row(Origin::Peer, 2.0, 0.1), row(Origin::Ours, 2.0, f64::NAN)];
        assert!(!is_ahead(&nan));
    }
}
