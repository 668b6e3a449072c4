//! Words of schedules, and drift.

use proptest::prelude::*;

use super::*;

#[test]
fn words_go_both_ways() {
    let cases = [
        ("once", Schedule::Once),
        ("step", Schedule::Every(1)),
        ("17", Schedule::Every(17)),
        ("drift:5", Schedule::OnDrift { steps: 5 }),
    ];
    for (word, schedule) in cases {
        assert_eq!(word.parse(), Ok(schedule));
        assert_eq!(schedule.to_string(), word);
    }
    assert_eq!("1".parse(), Ok(Schedule::Every(1)));
    for word in [
        "",
        "0",
        "drift",
        "drift:",
        "drift:0",
        "drift:-1",
        "-1",
        "1.5",
        "always",
        "99999999999999999999",
    ] {
        let error = word.parse::<Schedule>().unwrap_err();
        assert!(matches!(error, Error::UnknownWord { .. }), "{word}: {error}");
        assert!(error.to_string().contains("drift:W"), "{error}");
    }
}

#[test]
fn steps_that_are_due() {
    let due = |schedule: Schedule| (0..7).filter(|&step| schedule.is_due(step)).collect::<Vec<_>>();
    assert_eq!(due(Schedule::Every(3)), [3, 6]);
    assert_eq!(due(Schedule::Every(1)), [1, 2, 3, 4, 5, 6]);
    assert_eq!(due(Schedule::Every(0)), [1, 2, 3, 4, 5, 6], "no step is as short as one");
    assert!(due(Schedule::Once).is_empty() && due(Schedule::OnDrift { steps: 1 }).is_empty());
}

fn set() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::btree_set(0u32..24, 0..16).prop_map(|set| set.into_iter().collect())
}

proptest! {
    #[test]
    fn drift_is_a_median_below_the_bar(
        reference in set(),
        sets in prop::collection::vec(set(), 0..20),
        steps in 1usize..6,
        tau in (0u32..=8).prop_map(|x| f64::from(x) / 8.0),
    ) {
        let mut monitor = DriftMonitor::new(reference.clone(), steps, tau).unwrap();
        let mut reference = reference;
        for looks in sets.chunks(steps) {
            let mut overlaps: Vec<f64> = looks.iter().map(|set| overlap(&reference, set)).collect();
            overlaps.sort_by(f64::total_cmp);
            let middle = (overlaps[(overlaps.len() - 1) / 2] + overlaps[overlaps.len() / 2]) / 2.0;
            for (step, set) in looks.iter().enumerate() {
                let has_drifted = monitor.observe(set.clone()).unwrap();
                prop_assert_eq!(has_drifted, step + 1 == steps && middle < tau);
                if has_drifted {
                    reference = set.clone();
                }
                prop_assert_eq!(monitor.reference(), &reference[..]);
            }
        }
    }

    #[test]
    fn sets_that_are_not_needed_change_nothing(
        reference in set(),
        sets in prop::collection::vec(set(), 0..40),
        steps in 1usize..8,
        tau in (0u32..=8).prop_map(|x| f64::from(x) / 8.0),
    ) {
        let mut all = DriftMonitor::new(reference.clone(), steps, tau).unwrap();
        let mut needed = DriftMonitor::new(reference, steps, tau).unwrap();
        let mut num_passed = 0;
        for set in sets {
            let decided = match needed.needs_set() {
                true => needed.observe(set.clone()).unwrap(),
                false => {
                    num_passed += 1;
                    needed.pass().unwrap();
                    false
                }
            };
            prop_assert_eq!(decided, all.observe(set).unwrap());
            prop_assert_eq!(needed.reference(), all.reference());
        }
        prop_assert!(steps > 2 || num_passed == 0, "one of two steps decides nothing");
    }
}

#[test]
fn most_of_the_steps_decide() {
    let mut monitor = DriftMonitor::new(vec![0, 1], 5, 0.5).unwrap();
    for _ in 0..2 {
        for step in 0..3 {
            assert!(monitor.needs_set());
            assert_eq!(monitor.pass(), Err(Error::SetNeeded { step }));
            assert_eq!(
                monitor.observe(vec![0, 1]),
                Ok(false),
                "a step that is needed does not pass"
            );
        }
        for _ in 0..2 {
            assert!(!monitor.needs_set(), "three of five are as they were");
            monitor.pass().unwrap();
        }
    }
    for _ in 0..3 {
        assert_eq!(monitor.observe(vec![7, 8]), Ok(false));
    }
    assert!(!monitor.needs_set());
    monitor.pass().unwrap();
    assert!(monitor.needs_set(), "the last is what is chosen by");
    assert_eq!(monitor.observe(vec![8, 9]), Ok(true));
    assert_eq!(monitor.reference(), [8, 9]);
}

#[test]
fn bad_input_is_refused_by_name() {
    assert!(matches!(DriftMonitor::new(vec![], 0, 0.5), Err(Error::Zero { .. })));
    for tau in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(DriftMonitor::new(vec![], 1, tau), Err(Error::Range { .. })));
    }
    assert!(matches!(DriftMonitor::new(vec![0, 2, 2], 1, 0.5), Err(Error::Ascending { index: 2 })));
    let mut monitor = DriftMonitor::new(vec![1], 1, 0.5).unwrap();
    assert_eq!(monitor.observe(vec![3, 1]), Err(Error::Ascending { index: 1 }));
    assert_eq!(monitor.observe(vec![2]), Ok(true), "the refused step did not count");
}
