//! One layer of Llama-3-8B over a long context: the device against the arena in RAM.

use std::sync::Arc;

use heterokv_attn::HeadShape;
use heterokv_attn::device::{Device, KeyRows};
use heterokv_gpu::{Buffer, Commands, DeviceChoice, Gpu, OpenOptions};
use heterokv_quant::{FitInput, KeyCoder, Level};

use super::coded::{KeySource, KeyStretch, KeysToCode};
use super::{DeviceCache, Layer, Reservation};
use crate::{CacheSpec, KvCache, KvShape};

/// Tokens where every bar is measured, and where time is short.
const LONG_TOKENS: usize = 1_000_000;
const SHORT_TOKENS: usize = 50_000;

/// Keys that a buffer holds on every device.
const KEYS_OF_A_BUFFER: usize = 200_000;

/// From −1 to 1, the same in every run.
fn number(i: usize) -> f32 {
    let mut x = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    f32::from((x >> 40) as u16 as i16) / 32_768.0
}

/// Codes the keys of one KV head whose rows are stored. A prompt has those of all heads on the device at once, which this
/// machine need not hold.
fn code_head(cache: &mut DeviceCache, kv_head: usize, keys: &[f32]) {
    let device = Arc::clone(&cache.device);
    let gpu = device.gpu();
    let Layer { heads, sets, .. } = &mut cache.layers[0];
    let head = &heads[kv_head];
    let head_dim = head.query_energy.len();
    let end = keys.len() / head_dim - head.window.len();
    let coded = &keys[head.resident.len() * head_dim..end * head_dim];
    let buffers: Vec<Buffer> = coded
        .chunks(KEYS_OF_A_BUFFER * head_dim)
        .map(|part| gpu.upload("keys", bytemuck::cast_slice(part)).unwrap())
        .collect();
    let stretches = buffers.iter().enumerate().map(|(buffer, keys)| KeyStretch {
        buffer,
        word: 0,
        num_tokens: keys.num_bytes() as usize / (4 * head_dim),
    });
    let source = KeySource {
        rows: KeyRows::F32,
        key_stride: head_dim,
        key_words: head_dim,
        buffers: buffers.iter().collect(),
        is_once: true,
    };
    let (set, member) = head.place;
    let mut of_members = vec![Vec::new(); sets[set].heads().len()];
    of_members[member] = stretches.collect();
    let on_host = |_| unreachable!("a kernel encodes int4-token");
    let keys = KeysToCode { source: &source, stretches: of_members, on_host: &on_host };
    let mut commands = Commands::new(gpu);
    sets[set].code(&device, &mut commands, cache.level, &keys).unwrap();
    commands.submit().unwrap();
}

#[test]
fn a_long_context_of_llama_3_8b_on_a_device() {
    let wanted = std::env::var("HETEROKV_GPU").unwrap_or_default();
    let gpu = match Gpu::open(OpenOptions::new(DeviceChoice::Software)) {
        Ok(gpu) if wanted != "none" => gpu,
        Ok(_) => return,
        Err(error) => {
            assert_ne!(wanted, "required", "{error}");
            return;
        }
    };
    let is_long = std::env::var("HETEROKV_LONG").is_ok_and(|long| long == "1");
    let num_tokens = if is_long { LONG_TOKENS } else { SHORT_TOKENS };
    let heads = HeadShape::new(32, 8, 128).unwrap();
    let shape = KvShape { num_layers: 1, heads };
    let spec: CacheSpec =
        "keys=int4-token,values=int4@host,select=top-k:500,union=head".parse().unwrap();
    let config = spec.resolve(&shape, None).unwrap();
    let level = Level::detect();
    let mut host = KvCache::new(shape, config.clone(), level, None).unwrap();
    let reservation = Reservation { prompt_tokens: num_tokens, total_tokens: num_tokens + 1 };
    let device = Arc::new(Device::new(Arc::new(gpu)));
    let mut cache = DeviceCache::new(device, shape, config, level, None, reservation).unwrap();
    // What fits nothing is there from the start: heads are coded one by one.
    let Layer { heads: of_layer, sets, .. } = &mut cache.layers[0];
    for head in of_layer {
        let (set, member) = head.place;
        let (head_dim, format) = (heads.head_dim, "int4-token".parse().unwrap());
        let query_energy = vec![1.0; head_dim];
        let input = FitInput { head_dim, keys: &[], query_energy: &query_energy, seed: 0, level };
        let coder = KeyCoder::fit(format, &input).unwrap();
        sets[set].set_coder(cache.device.gpu(), member, coder).unwrap();
    }
    for kv_head in 0..heads.num_kv_heads {
        let rows = |seed: usize| -> Vec<f32> {
            let first = (2 * kv_head + seed) * num_tokens * heads.head_dim;
            (first..first + num_tokens * heads.head_dim).map(number).collect()
        };
        let (keys, values) = (rows(0), rows(1));
        cache.store_head((0, kv_head), [&keys, &values]).unwrap();
        code_head(&mut cache, kv_head, &keys);
        let (own, mut stores) = host.layer_mut(0);
        own[kv_head].store_prompt(&mut stores, &keys, &values).unwrap();
    }
    let token = |seed: usize, len: usize, size: f32| -> Vec<f32> {
        (seed * 1_000_003..seed * 1_000_003 + len).map(|i| size * number(i)).collect()
    };
    let (k, v) = (token(7, heads.kv_row_len(), 1.0), token(8, heads.kv_row_len(), 1.0));
    // Large enough for few tokens to hold the mass: those at the threshold, where the two may choose otherwise, weigh
    // little.
    let q = token(9, heads.qo_row_len(), 20.0);
    let mut outs = [vec![0.0; heads.qo_row_len()], vec![0.0; heads.qo_row_len()]];
    let [expected, actual] = &mut outs;
    host.append(0, &k, &v).unwrap();
    host.attend(0, &q, expected).unwrap();
    crate::AttentionCache::append(&mut cache, 0, &k, &v).unwrap();
    crate::AttentionCache::attend(&mut cache, 0, &q, actual).unwrap();
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
    };
    let reached = distance(actual, expected);
    println!("{num_tokens} tokens: {reached:.1e}");
    assert!(reached <= 1e-2, "{num_tokens} tokens: {reached}");
    assert!(largest > 1e-3, "there is something to compare");
    let mut swapped = actual.clone();
    swapped.rotate_left(heads.head_dim);
    assert!(distance(&swapped, expected) > 1e-1, "another head's output is far away");
}
