//! The suite of speed: scan, encode, values and fit.

use anyhow::Result;
use heterokv_quant::{KeyFormat, Level};
use rayon::ThreadPool;

use crate::args::QuantArgs;
use crate::bars::{self, Bar};
use crate::conditions::Conditions;
use crate::outcome::{Outcome, Reach, Table};
use crate::scan::{self, OurFormat, Place, ScanFormat};
use crate::{encode, formats, train, values};

/// Scan, encode, values and fit.
pub(crate) fn throughput(
    arguments: &QuantArgs,
    peers: Vec<Box<dyn ScanFormat>>,
    level: Level,
    pool: &ThreadPool,
) -> Result<Outcome> {
    let say = |message: &str| eprintln!("{message}");
    let conditions = Conditions::of(arguments, level, pool);
    let ours: Vec<KeyFormat> = match &arguments.formats[..] {
        [] => formats::parse(formats::TIMED)?,
        some => some.to_vec(),
    };
    let mut formats = peers;
    formats.extend(ours.iter().map(|&format| Box::new(OurFormat(format)) as Box<dyn ScanFormat>));
    let result = scan::measure(&formats, &conditions, &say)?;
    let encoded = encode::measure(&ours, &conditions, &say)?;
    let values = values::measure(&conditions, &say)?;
    let trained = match ours.contains(&train::FORMAT) {
        true if arguments.test => {
            let small = train::Settings { num_heads: 2, num_tokens: 1024, pool, level };
            Some(train::measure(&small, &say)?)
        }
        true => Some(train::measure(&train::Settings::full(pool, level), &say)?),
        false => None,
    };
    let mut tables = vec![
        Table::new("quant-scan-samples", scan::samples_sheet(&result)).reaching(Reach::File),
        Table::new("quant-scan", scan::scan_sheet(&result)).reaching(Reach::Terminal),
        Table::new("quant-scan-cache", scan::shapes_sheet(&result, Place::Cache)),
        Table::new("quant-scan-memory", scan::shapes_sheet(&result, Place::Memory)),
        Table::new("quant-encode", encoded),
        Table::new("quant-values", values),
        Table::new("quant-bandwidth", scan::bandwidth_sheet(&result)),
    ];
    let judgement = scan::judge(&result);
    let is_held = judgement.as_ref().is_some_and(scan::Judgement::is_held)
        && trained.as_ref().is_some_and(train::Trained::is_held);
    let is_void = judgement.as_ref().is_some_and(|judgement| !judgement.yardstick.is_held());
    if judgement.is_none() || trained.is_none() {
        say("not every bar was measured: they need head_dim 64, G = 3 and every format");
    }
    let mut all: Vec<Bar> = Vec::new();
    if let Some(judgement) = judgement {
        all.push(judgement.yardstick);
        all.extend(judgement.classes.into_iter().flatten());
    }
    if let Some(trained) = trained {
        all.push(trained.fit);
        all.extend(trained.encode);
    }
    let at_bars = scan::bar_shape_sheet(&result);
    if at_bars.num_rows() > 0 {
        tables.push(Table::new("quant-scan-bars", at_bars));
    }
    tables.push(Table::new("quant-bars", bars::sheet("Bars", &all)));
    Ok(Outcome { tables, is_held, is_void })
}
