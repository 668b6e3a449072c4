//! Classes of waits.

use super::*;

#[test]
fn a_wait_is_in_the_class_of_its_power_of_two() {
    let clock = Clock::new("a clock");
    for micros in [0, 1, 2, 3, 4, 1 << 23, 1 << 24, 1 << 40] {
        clock.record(Duration::from_micros(micros));
    }
    clock.record(Duration::MAX);
    let waits = clock.get();
    assert_eq!(waits.total(), 9);
    assert_eq!(waits.counts[..4], [1, 1, 2, 1]);
    assert_eq!(waits.counts[24..], [1, 3]);
}

#[test]
fn percentiles_are_upper_ends_of_classes() {
    assert_eq!(Waits::default().percentile(0.5), Duration::ZERO);
    let clock = Clock::new("a clock");
    (0..90).for_each(|_| clock.record(Duration::from_micros(100)));
    (0..10).for_each(|_| clock.record(Duration::from_micros(5000)));
    let waits = clock.get();
    let micros = |share| waits.percentile(share).as_micros();
    assert_eq!([0.0, 0.5, 0.9, 0.91, 1.0].map(micros), [128, 128, 128, 8192, 8192]);
}
