//! All codecs over a data set, measured and put into a table.

use anyhow::{Context, Result, ensure};
use heterokv_eval::{AttentionError, ExactAttention};
use rayon::prelude::*;

use super::front::is_on_front;
use super::{DataSet, KeyCodec};
use crate::sheet::{Cell, Sheet};

/// Divergence that keys in half precision stay below, or the measure is broken.
const F16_KL: f64 = 1e-5;

/// Whose codec it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Ours,
    Peer,
}

/// What one codec costs.
#[derive(Clone, Debug)]
pub(crate) struct QualityRow {
    pub(crate) codec: String,
    pub(crate) origin: Origin,
    /// All bits per element of the coded keys.
    pub(crate) bits: f64,
    /// Root mean square and 99th percentile of the error of a score.
    pub(crate) rms: f64,
    pub(crate) p99: f64,
    /// Mean KL(exact ‖ coded) of the attention distributions, nats.
    pub(crate) kl: f64,
    /// Error of the attention output over its size, root mean square over heads.
    pub(crate) out_error: f64,
}

/// Measures every codec on every head; a codec that does not hold the shape has no row.
///
/// # Errors
/// An answer that is wrong, and what codecs refuse.
pub(crate) fn measure(
    data: &DataSet,
    codecs: &[(Origin, Box<dyn KeyCodec>)],
    say: &dyn Fn(&str),
) -> Result<Vec<QualityRow>> {
    let truths: Vec<ExactAttention> =
        data.heads.par_iter().map(|head| ExactAttention::of(&head.sample)).collect();
    let mut rows = Vec::new();
    for (origin, codec) in codecs {
        let name = codec.name();
        say(&format!("{}: {name}", data.name));
        let heads = data.heads.par_iter().zip(&truths).map(|(head, truth)| {
            let coded = codec.scores(&head.as_keys()).with_context(|| name.clone())?;
            Ok(coded
                .map(|coded| (coded.bits_per_element, truth.compare(&head.sample, &coded.scores))))
        });
        let heads: Option<Vec<(f64, AttentionError)>> =
            heads.collect::<Result<Vec<_>>>()?.into_iter().collect();
        let Some(heads) = heads else { continue };
        let row = summarise(name, *origin, &heads);
        ensure!(row.kl.is_finite(), "{}: the divergence is not finite", row.codec);
        ensure!(
            row.codec != "f16" || row.kl < F16_KL,
            "keys in half precision have a divergence of {}",
            row.kl
        );
        rows.push(row);
    }
    Ok(rows)
}

fn summarise(codec: String, origin: Origin, heads: &[(f64, AttentionError)]) -> QualityRow {
    let num_heads = heads.len() as f64;
    let sum = |f: fn(&AttentionError) -> f64| heads.iter().map(|(_, error)| f(error)).sum::<f64>();
    let mut errors: Vec<f32> = heads.iter().flat_map(|(_, error)| &error.scores).copied().collect();
    let squares: f64 = errors.iter().map(|&e| f64::from(e) * f64::from(e)).sum();
    let rms = (squares / errors.len() as f64).sqrt();
    let place = errors.len() * 99 / 100;
    let (_, p99, _) = errors.select_nth_unstable_by(place, f32::total_cmp);
    QualityRow {
        codec,
        origin,
        bits: heads.iter().map(|(bits, _)| bits).sum::<f64>() / num_heads,
        rms,
        p99: f64::from(*p99),
        kl: sum(|error| error.kl_sum) / sum(|error| error.num_queries as f64),
        out_error: (sum(|error| error.out_error / error.out_energy) / num_heads).sqrt(),
    }
}

/// Every codec by falling bits, the front marked.
pub(crate) fn quality_sheet(data: &DataSet, rows: &[QualityRow]) -> Sheet {
    let columns =
        ["keys", "whose", "bits", "KL", "front", "RMS q·k/√d", "p99 q·k/√d", "output error, %"];
    let mut sheet = Sheet::new(format!("{}: {}", data.name, data.details), &columns);
    let mut sorted: Vec<&QualityRow> = rows.iter().collect();
    sorted.sort_by(|a, b| b.bits.total_cmp(&a.bits).then(a.kl.total_cmp(&b.kl)));
    for row in sorted {
        sheet.push(vec![
            Cell::text(&row.codec),
            Cell::text(if row.origin == Origin::Ours { "ours" } else { "peer" }),
            Cell::Number(row.bits, 3),
            Cell::Scientific(row.kl),
            Cell::text(if is_on_front(row, rows) { "*" } else { "" }),
            Cell::Scientific(row.rms),
            Cell::Scientific(row.p99),
            Cell::Scientific(100.0 * row.out_error),
        ]);
    }
    sheet
}
