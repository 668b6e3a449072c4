//! Classes of waits, and what goes through the facade.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
    SharedString, Unit,
};

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

/// What comes through the facade, by name.
#[derive(Debug, Default)]
struct Recorder(Arc<Mutex<BTreeMap<String, f64>>>);

/// Where the values of one name go.
#[derive(Debug)]
struct Sink(Arc<Mutex<BTreeMap<String, f64>>>, String);

impl Sink {
    fn set(&self, with: impl Fn(f64) -> f64) {
        let mut values = self.0.lock().expect("no test panicked");
        let value = values.entry(self.1.clone()).or_default();
        *value = with(*value);
    }
}

impl CounterFn for Sink {
    fn increment(&self, value: u64) {
        self.set(|before| before + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.set(|_| value as f64);
    }
}

impl GaugeFn for Sink {
    fn increment(&self, value: f64) {
        self.set(|before| before + value);
    }

    fn decrement(&self, value: f64) {
        self.set(|before| before - value);
    }

    fn set(&self, value: f64) {
        Self::set(self, |_| value);
    }
}

impl HistogramFn for Sink {
    fn record(&self, value: f64) {
        self.set(|before| before + value);
    }
}

impl Recorder {
    fn sink(&self, key: &Key) -> Arc<Sink> {
        Arc::new(Sink(Arc::clone(&self.0), key.name().to_owned()))
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.sink(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.sink(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.sink(key))
    }
}

#[test]
fn what_is_counted_goes_through_the_facade_too() {
    let recorder = Recorder::default();
    metrics::with_local_recorder(&recorder, || {
        let counters = Counters::new();
        counters.hits.add(2);
        counters.hits.add(0);
        counters.hits.add(3);
        counters.read_waits.record(Duration::from_millis(1500));
        let stats = counters.stats();
        assert_eq!((stats.hits, stats.read_waits.total()), (5, 1));
        Stats { dirty_pages: 7, ..stats }.publish();
    });
    let values = recorder.0.lock().expect("no test panicked");
    assert_eq!(values["heterokv_offload_hits"], 5.0);
    assert_eq!(values["heterokv_offload_read_wait_seconds"], 1.5);
    assert_eq!(values["heterokv_offload_dirty_pages"], 7.0);
}
