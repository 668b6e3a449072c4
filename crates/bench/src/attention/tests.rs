//! What the suite measures on rows of no model, and that wrong answers end it.

use heterokv_quant::Level;

use super::*;
use crate::caches::PRESETS;
use crate::environment::Environment;
use crate::machine::{Sizes, threads};
use crate::memory::Room;
use crate::selection::Selection;

/// Filled caches over `num_tokens` tokens, and the context that they hold.
fn candidates<'a>(
    specs: &[&str],
    rows: &'a PromptRows,
    queries: &'a [&'a [f32]],
    num_tokens: usize,
) -> (Vec<Candidate<'a>>, Context<'a>) {
    let level = Level::detect();
    let context = rows.context(0, num_tokens);
    let candidates = specs.iter().map(|spec| {
        let planned = Planned::new(spec, &rows.shape, num_tokens).expect("it is valid");
        let cache = KvCache::new(rows.shape, planned.config.clone(), level, None);
        let mut caches = [cache.expect("it is valid")];
        context.store(&mut caches, 0, level).expect("it fits");
        let [cache] = caches;
        let case = Case::new(SUITE, format!("{SUITE}/{spec}@{num_tokens}"));
        Candidate::new(case, planned, cache, queries, 0.0).expect("it answers")
    });
    (candidates.collect(), context)
}

#[test]
fn right_answers_pass_and_wrong_ones_end_the_run() {
    let rows = PromptRows::synthetic(600).expect("it is made");
    let queries: Vec<&[f32]> = rows.queries(0).collect();
    let (mut all, context) = candidates(&[FULL, "hca:25%"], &rows, &queries, 600);
    check_full(&all, &rows.shape, queries[0], &context).expect("full is right");
    compare_with_full(&mut all, true).expect("hca:25% is near");
    all.iter().for_each(|candidate| candidate.check_again().expect("nothing has changed"));
    assert_eq!(all[0].case.figure("relative_error_to_full"), 0.0);
    assert!(all[1].case.figure("relative_error_to_full") > 0.0);

    // One channel of `full` off by a thousandth of the output's length.
    let length: f32 = all[0].before[..queries[0].len()].iter().map(|x| x * x).sum::<f32>().sqrt();
    all[0].before[3] += 1e-3 * length;
    assert!(check_full(&all, &rows.shape, queries[0], &context).is_err());
    assert!(all[0].check_again().is_err());
    // Heads of another order, noise, and what is not a number.
    for wrong in [
        all[1].before.chunks(64).rev().flatten().copied().collect(),
        all[1].before.iter().enumerate().map(|(i, _)| (i as f32).sin()).collect::<Vec<f32>>(),
        vec![f32::NAN; all[1].before.len()],
    ] {
        all[1].before = wrong;
        let told = compare_with_full(&mut all, true).expect_err("it is wrong");
        assert!(told.to_string().starts_with("hca:25%: the cosine to full"), "{told}");
    }
}

#[test]
fn a_filter_keeps_full_beside_what_it_selects_and_every_case_is_complete() {
    let pool = threads(2).expect("threads");
    let mut record = Record::new(&Environment::detect(Level::detect(), 2));
    let settings = Settings {
        selection: Selection::new(Some("hca:25%".to_owned())),
        caches: PRESETS.map(str::to_owned).to_vec(),
        contexts: vec![400, 800],
        num_rounds: 3,
        sample_seconds: 0.0,
        level: Level::detect(),
        pool: &pool,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let sizes = Sizes::small(1);
    let machine = &settings.selection;
    let ceilings = crate::machine::measure(machine, sizes, &pool, folder.path(), &mut record);
    let rows = PromptRows::synthetic(500).expect("it is made");
    measure(&settings, &rows, &ceilings.expect("it runs"), Room::new(), &mut record)
        .expect("it runs");
    let names: Vec<&str> = record.cases.iter().map(|case| case.name.as_str()).collect();
    let expected = [
        "attention/full@400",
        "attention/hca:25%@400",
        "attention/full@800",
        "attention/hca:25%@800",
        "attention/slope/full",
    ];
    assert_eq!(names, expected);
    for case in &record.cases[..4] {
        assert_eq!(case.samples_ns.len(), 3);
        for figure in ["attainable_ns", "overlap_efficiency", "device_bytes_read", "ratio_to_full"]
        {
            assert!(case.figure(figure) > 0.0, "{}: {figure}", case.name);
        }
        assert_eq!(case.notes.is_empty(), case.context == Some(400), "{}", case.name);
    }
}
