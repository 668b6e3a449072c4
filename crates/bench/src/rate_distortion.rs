//! The suite of quality: every codec over keys of a model and synthetic ones.

use anyhow::{Context, Result};
use heterokv_quant::{KeyCoder, KeyFormat, Level};

use crate::args::QuantArgs;
use crate::formats;
use crate::outcome::{Outcome, Table};
use crate::quality::{self, DataSet, Dump, KeyCodec, Origin, OurCodec, Tables};

/// What the bits of formats cost, on keys of a model and on synthetic ones.
pub(crate) fn rate_distortion(
    arguments: &QuantArgs,
    peers: Vec<Box<dyn KeyCodec>>,
    level: Level,
) -> Result<Outcome> {
    let say = |message: &str| eprintln!("{message}");
    let ours: Vec<KeyFormat> = match &arguments.formats[..] {
        [] => formats::parse(formats::COMPARED)?,
        some => some.to_vec(),
    };
    let mut codecs: Vec<(Origin, Box<dyn KeyCodec>)> = Vec::new();
    for format in ours {
        for tables in [Tables::Own, Tables::Profile] {
            // A format without tables has nothing to take from a profile.
            if tables == Tables::Own || !KeyCoder::table_names(format).is_empty() {
                codecs.push((Origin::Ours, Box::new(OurCodec { format, tables, level })));
            }
        }
    }
    let others = quality::published().into_iter().chain(peers);
    codecs.extend(others.map(|codec| (Origin::Peer, codec)));
    let wanted = &arguments.dump;
    // The page shows tables from the last to the first: the model's keys come last.
    let mut data = match arguments.test {
        true => vec![DataSet::synthetic(2, 512, 4)?],
        false => vec![DataSet::synthetic(8, wanted.context, wanted.steps)?],
    };
    if !arguments.test {
        let model = wanted.model.as_deref();
        data.push(quality::dump(
            &Dump {
                model: model.context("pass a model by --model PATH")?,
                corpus: &wanted.corpus.clone().unwrap_or_else(quality::default_corpus),
                offset: wanted.offset,
                num_coded: wanted.context,
                num_steps: wanted.steps,
                num_layers: wanted.layers,
                profile_tokens: wanted.profile_tokens,
                level,
            },
            &say,
        )?);
    }
    let (mut tables, mut is_held) = (Vec::new(), true);
    for data in &data {
        let rows = quality::measure(data, &codecs, &say)?;
        let [all, front] = data.files;
        tables.push(Table::new(all, quality::quality_sheet(data, &rows)));
        tables.push(Table::new(front, quality::front_sheet(&data.name, &rows)));
        // Keys that no model made are shown and judge nothing.
        is_held &= !data.is_dumped || quality::is_ahead(&rows);
    }
    Ok(Outcome { tables, is_held, is_void: false })
}
