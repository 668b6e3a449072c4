//! What goes wrong with a device is an error that says so, and wrong kernels are seen to be wrong.

use std::process::Command;
use std::{env, fs};

use heterokv_gpu::{
    Access, Bound, Commands, DeviceChoice, DeviceKind, Error, Gpu, KernelSource, LimitsChoice,
    OpenOptions, adapters,
};

/// Devices of our own: what is done to them is not undone.
fn fresh(budget_bytes: Option<u64>) -> Option<Gpu> {
    crate::devices::places_or_skip().first()?;
    let choice = DeviceChoice::Index(adapters().len() - 1);
    Some(Gpu::open(OpenOptions { budget_bytes, ..OpenOptions::new(choice) }).unwrap())
}

const DOUBLE: &str = "
struct Params { count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.count {
        y[id.x] = 2.0 * x[id.x];
    }
}";

const BINDINGS: [Access; 2] = [Access::Read, Access::Write];

fn source(wgsl: &str) -> KernelSource<'_> {
    KernelSource { name: "double", wgsl, bindings: &BINDINGS, constants: &[] }
}

#[test]
fn the_budget_and_the_limits_are_kept() {
    let Some(gpu) = fresh(Some(1 << 20)) else { return };
    let first = gpu.buffer("first", 3 << 18).unwrap();
    let error = gpu.buffer("second", (1 << 18) + 4).unwrap_err();
    assert!(matches!(error, Error::OverBudget { in_use_bytes: 786_432, .. }), "{error}");
    assert!(error.to_string().contains("second") && error.to_string().contains("raise the budget"));
    let second = gpu.buffer("second", 1 << 18).unwrap();
    assert_eq!((gpu.in_use_bytes(), gpu.peak_bytes()), (1 << 20, 1 << 20));
    drop((first, second));
    assert_eq!(gpu.in_use_bytes(), 0);
    let error = gpu.buffer("third", gpu.limits().binding_bytes + 1).unwrap_err();
    assert!(matches!(error, Error::BufferTooLarge { .. }), "{error}");
}

#[test]
fn ranges_bindings_and_grids_are_checked() {
    let Some(gpu) = fresh(None) else { return };
    let x = gpu.upload("x", &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(gpu.read(&x, 0, 8).unwrap(), [1, 2, 3, 4, 5, 0, 0, 0]);
    assert!(gpu.read(&x, 8, 0).unwrap().is_empty());
    for (start, num_bytes) in [(0, 12), (2, 4), (0, 3), (8, 4), (u64::MAX - 3, 8)] {
        assert!(matches!(gpu.read(&x, start, num_bytes), Err(Error::BadRange { .. })), "{start}");
    }
    assert!(matches!(gpu.write(&x, 4, &[0; 8]), Err(Error::BadRange { .. })));
    let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
    let mut commands = Commands::new(&gpu);
    let one = commands.dispatch(&kernel, &1u32, &[Bound::all(&x)], [1, 1, 1]);
    assert!(matches!(one, Err(Error::Bindings { expected: 2, actual: 1, .. })));
    let wide = gpu.limits().grid + 1;
    let wide = commands.dispatch(&kernel, &1u32, &[Bound::all(&x); 2], [wide, 1, 1]);
    assert!(matches!(wide, Err(Error::GridTooLarge { .. })));
}

#[test]
fn a_shader_that_does_not_compile_and_a_wrong_binding_are_errors_by_name() {
    let Some(gpu) = fresh(None) else { return };
    let error = gpu.kernel(&source("fn main() { nonsense }")).unwrap_err().to_string();
    assert!(error.contains("double is not valid") && error.contains("expected"), "{error}");
    // One buffer to be read and written at once.
    let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
    let x = gpu.upload("x", &[0; 16]).unwrap();
    let mut commands = Commands::new(&gpu);
    commands.dispatch(&kernel, &4u32, &[Bound::all(&x), Bound::all(&x)], [1, 1, 1]).unwrap();
    let error = commands.submit().unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("double"), "{error}");
    // And the device goes on.
    let y = gpu.buffer("y", 16).unwrap();
    let x = gpu.upload("x", bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0])).unwrap();
    let mut commands = Commands::new(&gpu);
    commands.dispatch(&kernel, &4u32, &[Bound::all(&x), Bound::all(&y)], [1, 1, 1]).unwrap();
    commands.submit().unwrap();
    let doubled: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read(&y, 0, 16).unwrap());
    assert_eq!(doubled, [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn a_lost_device_is_told_by_every_call() {
    let Some(gpu) = fresh(None) else { return };
    let x = gpu.upload("x", &[0; 16]).unwrap();
    let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
    gpu.lose();
    let is_lost = |error: Error| {
        assert!(matches!(error, Error::Lost { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    };
    is_lost(gpu.buffer("y", 16).unwrap_err());
    is_lost(gpu.read(&x, 0, 16).unwrap_err());
    is_lost(gpu.write(&x, 0, &[0; 4]).unwrap_err());
    is_lost(gpu.wait().unwrap_err());
    let mut commands = Commands::new(&gpu);
    commands.dispatch(&kernel, &4u32, &[Bound::all(&x), Bound::all(&x)], [1, 1, 1]).unwrap();
    is_lost(commands.submit().unwrap_err());
}

#[test]
fn nothing_is_kept_of_what_is_dropped() {
    let Some(gpu) = fresh(None) else { return };
    let cycle = || {
        let words = vec![1u8; 16 << 20];
        let x = gpu.upload("x", &words).unwrap();
        let y = gpu.buffer("y", 16 << 20).unwrap();
        let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
        let mut commands = Commands::new(&gpu);
        let count = 64u32;
        commands.dispatch(&kernel, &count, &[Bound::all(&x), Bound::all(&y)], [1, 1, 1]).unwrap();
        commands.submit().unwrap();
        assert_ne!(gpu.read(&y, 0, 4).unwrap(), [0; 4]);
    };
    (0..5).for_each(|_| cycle());
    let before = resident_bytes();
    (0..100).for_each(|_| cycle());
    let grown = resident_bytes().saturating_sub(before);
    assert_eq!(gpu.in_use_bytes(), 0);
    // A leak of one buffer a cycle would be 1.6 GB.
    assert!(grown < 64 << 20, "{grown} bytes more after 100 cycles");
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[test]
fn times_are_there_where_they_are_asked_for() {
    let Some(gpu) = fresh(None) else { return };
    assert!(matches!(Commands::new(&gpu).submit_timed(), Err(Error::NoFeature { .. })));
    let options = OpenOptions {
        is_profiled: true,
        limits: LimitsChoice::WebGpuMinimum,
        ..OpenOptions::new(DeviceChoice::Index(adapters().len() - 1))
    };
    let gpu = match Gpu::open(options) {
        Ok(gpu) => gpu,
        Err(Error::NoFeature { .. }) => return println!("SKIPPED: the device takes no times"),
        Err(error) => panic!("{error}"),
    };
    let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
    let (x, y) = (gpu.upload("x", &[1; 4096]).unwrap(), gpu.buffer("y", 4096).unwrap());
    let mut commands = Commands::new(&gpu);
    for _ in 0..3 {
        let buffers = [Bound::all(&x), Bound::all(&y)];
        commands.dispatch(&kernel, &1024u32, &buffers, [16, 1, 1]).unwrap();
    }
    let times = commands.submit_timed().unwrap();
    assert_eq!(times.len(), 3);
    assert!(times.iter().all(|time| time.name == "double" && time.nanoseconds > 0.0), "{times:?}");
}

/// Tells a process of the test below that it is the one whose address space is limited.
const IS_LIMITED: &str = "HETEROKV_IS_LIMITED";

/// The driver has no more, not the budget: one that the CPU plays, in a process of its own with little address space.
#[test]
fn a_driver_without_memory_is_told_and_goes_on() {
    if env::var_os(IS_LIMITED).is_some() {
        return fill_a_device();
    }
    if crate::devices::places_or_skip().is_empty() {
        return;
    }
    if !adapters().iter().any(|adapter| adapter.kind == DeviceKind::Software) {
        return println!("SKIPPED: there is no adapter that the CPU plays");
    }
    let mut limited = Command::new("prlimit");
    limited.arg("--as=1500000000").arg(env::current_exe().unwrap());
    limited.args(["--exact", "faults::a_driver_without_memory_is_told_and_goes_on"]);
    // Each of the device's threads takes address space, too.
    limited.env(IS_LIMITED, "yes").env("LP_NUM_THREADS", "1");
    let output = match limited.output() {
        Ok(output) => output,
        Err(error) => return println!("SKIPPED: prlimit: {error}"),
    };
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

fn fill_a_device() {
    const BYTES: u64 = 64 << 20;
    let gpu = Gpu::open(OpenOptions::new(DeviceChoice::Software)).unwrap();
    let kernel = gpu.kernel(&source(DOUBLE)).unwrap();
    let mut held = Vec::new();
    let error = loop {
        match gpu.buffer("a filler", BYTES) {
            Ok(buffer) => held.push(buffer),
            Err(error) => break error,
        }
        assert!(held.len() < 24, "more than the address space holds");
    };
    let in_use = held.len() as u64 * BYTES;
    assert!(
        matches!(error, Error::OutOfMemory { num_bytes: BYTES, in_use_bytes, .. } if in_use_bytes == in_use),
        "{error}, with {in_use} in use"
    );
    let text = error.to_string();
    assert!(text.contains("a filler") && text.contains("make the cache smaller"), "{text}");
    assert_eq!((text.lines().count(), gpu.in_use_bytes()), (1, in_use), "{text}");
    let landing = gpu.landing("what comes down", BYTES).unwrap_err();
    assert!(matches!(landing, Error::OutOfMemory { .. }), "{landing}");
    // What was given back can be had again.
    drop(held);
    let x = gpu.upload("x", bytemuck::cast_slice(&[1.0f32, 2.0])).unwrap();
    let y = gpu.buffer("y", BYTES).unwrap();
    let mut commands = Commands::new(&gpu);
    commands.dispatch(&kernel, &2u32, &[Bound::all(&x), Bound::all(&y)], [1, 1, 1]).unwrap();
    commands.submit().unwrap();
    let doubled: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read(&y, 0, 8).unwrap());
    assert_eq!(doubled, [2.0, 4.0]);
}
