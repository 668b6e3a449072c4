//! A head that is refused memory is as it was.

use heterokv_attn::HeadShape;
use heterokv_offload::{Store, StoreOptions};
use heterokv_testkit::Inputs;

use super::*;
use crate::plan::{KEPT_PAGE_TOKENS, host_shape};
use crate::{CacheConfig, CacheSpec, KvShape};

const HEAD_DIM: usize = 8;
const LIMIT: usize = 1 << 20;

/// Bytes that are left at one try after another: some for what is known of a token, for a page, for tables.
const ROOMS: [usize; 6] = [0, 64, 512, 576, 1024, 4096];

/// A head, where its rows go, and the device's memory.
struct Held {
    head: HeadCache,
    host: Option<Sequence>,
    device: Arena,
}

impl Held {
    /// A head of a spec whose host has room for so many bytes.
    fn new(spec: &str, is_complete_on_host: bool, ram_budget_bytes: usize) -> Self {
        let heads = HeadShape::new(1, 1, HEAD_DIM).unwrap();
        let shape = KvShape { num_layers: 1, heads };
        let spec: CacheSpec = spec.parse().unwrap();
        let CacheConfig::Hca(config) = spec.resolve(&shape, None).unwrap() else { unreachable!() };
        let device = Arena::with_limit("device", LIMIT);
        let place = (0, 0);
        let head = if config.is_exact() {
            HeadCache::exact(place, HEAD_DIM, KEPT_PAGE_TOKENS)
        } else {
            let plan = DevicePlan::new(config.keys.format(place), &config, &shape).unwrap();
            HeadCache::hca(place, plan, HEAD_DIM, None, &device).unwrap()
        };
        let held = crate::held::Held::new(&device, true).unwrap();
        let has_host = is_complete_on_host || !config.is_exact();
        let layout = host_shape(&config, &shape).layout;
        let layout = match is_complete_on_host {
            true => {
                heterokv_quant::RowLayout { key: Some(heterokv_quant::RowFormat::F16), ..layout }
            }
            false => layout,
        };
        let store = StoreOptions {
            shape: heterokv_offload::StoreShape { layout, ..host_shape(&config, &shape) },
            ram_budget_bytes,
            disk: None,
        };
        let host = has_host.then(|| Store::open(store).unwrap().sequence());
        Self { head: head.forgetting(held, is_complete_on_host), host, device }
    }

    fn append(&mut self, (key, value): (&[f32], &[f32])) -> Result<()> {
        let (device, host) = (&self.device, self.host.as_mut());
        let mut stores = Stores { level: Level::detect(), device, host };
        self.head.append_with(&mut stores, key, value, key[0])
    }

    /// Does something with `room` bytes left of the device.
    fn within<T>(&mut self, room: usize, act: impl FnOnce(&mut Self) -> T) -> T {
        let left = LIMIT - self.device.in_use_bytes();
        let _taken = self.device.charge(left.saturating_sub(room)).unwrap();
        act(self)
    }

    /// All that there is to see of it.
    fn state(&self) -> impl PartialEq + use<> {
        let HeadContents { resident, window, coder, energy, num_coded, .. } = self.head.contents();
        let known = (self.head.positions().to_vec(), self.head.evidence().to_vec());
        let counts = (self.head.num_tokens(), self.head.num_held(), self.head.device_bytes());
        let on_host = self.host.as_ref().map(|host| host.rows(0, 0).num_rows());
        // What is left in a page behind its tokens is nothing.
        let coded = (coder.is_some(), energy, self.head.keys(), num_coded);
        (resident, window, coded, known, counts, on_host)
    }
}

#[test]
fn a_token_that_is_refused_leaves_nothing() {
    for (spec, is_complete_on_host) in [
        ("keys=f16,values=f16@device", false),
        ("keys=f16,values=f16@device", true),
        ("keys=int8-token,values=int8@host,sinks=2,recent=6", false),
        ("keys=int4-channel/32,values=int8@host,sinks=2,recent=6", false),
        ("keys=lm2,values=int8@host,sinks=2,recent=6", false),
    ] {
        let mut inputs = Inputs::new(3);
        let (keys, values) =
            (inputs.gaussian_rows(500, HEAD_DIM, 1.0), inputs.gaussian_rows(500, HEAD_DIM, 1.0));
        let mut head = Held::new(spec, is_complete_on_host, usize::MAX);
        let mut free = Held::new(spec, is_complete_on_host, usize::MAX);
        let mut num_refused = 0;
        for token in keys.chunks_exact(HEAD_DIM).zip(values.chunks_exact(HEAD_DIM)) {
            let before = head.state();
            for room in ROOMS.into_iter().chain([LIMIT]) {
                if head.within(room, |head| head.append(token)).is_ok() {
                    break;
                }
                num_refused += 1;
                assert!(head.state() == before, "{spec} with {room} bytes left");
            }
            free.append(token).unwrap();
            assert!(head.state() != before, "{spec}: a token more is seen");
        }
        assert!(head.state() == free.state(), "{spec}");
        assert!(num_refused > 10, "{spec}: {num_refused}");
    }
}

#[test]
fn a_token_that_the_host_refuses_leaves_nothing() {
    for (spec, is_complete_on_host) in [
        ("keys=f16,values=f16@device", true),
        ("keys=int8-token,values=int8@host,sinks=2,recent=6", false),
    ] {
        let mut head = Held::new(spec, is_complete_on_host, 1 << 14);
        let rows = Inputs::new(4).gaussian_rows(3000, HEAD_DIM, 1.0);
        let mut tokens = rows.chunks_exact(HEAD_DIM);
        let (token, before) = loop {
            let (before, token) = (head.state(), tokens.next().expect("it is full some time"));
            if head.append((token, token)).is_err() {
                break (token, before);
            }
        };
        assert!(head.state() == before, "{spec}");
        assert!(head.append((token, token)).is_err());
        assert!(head.state() == before, "{spec}");
    }
}

#[test]
fn rows_that_there_is_no_room_for_change_nothing() {
    let mut inputs = Inputs::new(5);
    let rows = inputs.gaussian_rows(100, HEAD_DIM, 1.0);
    let half = |x: &f32| half::f16::from_f32(*x).to_le_bytes();
    // Places before 90: 20 of them held, 5 behind.
    let kept: Vec<u32> = (0..20).map(|i| 4 * i).chain(95..100).collect();
    for num_new in [3usize, 19, 20, 21, 60] {
        let mut head = Held::new("keys=f16,values=f16@device", false, usize::MAX);
        let (device, host) = (&head.device, None);
        let mut stores = Stores { level: Level::detect(), device, host };
        let tokens = PromptTokens { kept: &kept, evidence: &[0.5; 100] };
        head.head.store_kept(&mut stores, &rows, &rows, tokens).unwrap();
        let positions: Vec<u32> = (0..num_new as u32).map(|i| i + 7).collect();
        let evidence = vec![0.25; num_new];
        let bytes: Vec<u8> = (0..num_new)
            .flat_map(|i| [&rows[(i + 7) * HEAD_DIM..][..HEAD_DIM]; 2].concat())
            .flat_map(|x| half(&x))
            .collect();
        let before = head.state();
        let mut num_refused = 0;
        for room in ROOMS.into_iter().chain([LIMIT]) {
            let replaced = head.within(room, |Held { head, device, .. }| {
                head.replace_before(device, 90, &positions, &evidence, &bytes)
            });
            if replaced.is_ok() {
                break;
            }
            num_refused += 1;
            assert!(head.state() == before, "{num_new} with {room} bytes left");
        }
        assert_eq!(num_refused > 0, num_new > 21, "{num_new}: {num_refused}");
        assert!(head.state() != before);
        let expected: Vec<u32> = positions.iter().copied().chain(95..100).collect();
        assert_eq!(head.head.positions(), expected);
        assert_eq!(head.head.evidence().len(), expected.len());
        let row = |&position: &u32| &rows[position as usize * HEAD_DIM..][..HEAD_DIM];
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-2;
        let expected: Vec<f32> = expected.iter().flat_map(row).copied().collect();
        assert_eq!(head.head.keys().len(), expected.len());
        assert!(head.head.keys().iter().zip(&expected).all(near));
        assert!(!head.head.keys().iter().zip(&expected[HEAD_DIM..]).all(near));
        let exact = ExactRows::bytes(HEAD_DIM, KEPT_PAGE_TOKENS, num_new + 5);
        assert_eq!(head.head.device_bytes().resident, exact, "no page is left over");
    }
}
