//! Kernels on a GPU: the bytes that each must move, the time that follows from a bandwidth, and what a device reaches.
//!
//! The shape is that of one layer of Llama-3-8B. Bytes are of what a kernel reads and writes once at least; a device is
//! held against its own copy from buffer to buffer, measured in the same run.

mod answers;
mod kernels;
mod keys;
mod measured;
mod pages;
mod stages;
mod tokens;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use heterokv_gpu::{DeviceChoice, Gpu, OpenOptions};

use crate::page;
use crate::sheet::{Cell, Sheet};
use kernels::{Kernel, Shape};
use measured::Measured;

/// A GPU as its maker publishes it, or for want of that as it is commonly stated.
struct Published {
    name: &'static str,
    /// Of its memory, GB/s.
    bandwidth: f64,
    /// In f32 without matrix units, which no kernel here uses, TFLOP/s.
    arithmetic: f64,
}

const PUBLISHED: [Published; 3] = [
    Published { name: "A100-80GB SXM", bandwidth: 2039.0, arithmetic: 19.5 },
    Published { name: "RTX 4090", bandwidth: 1008.0, arithmetic: 82.6 },
    Published { name: "Apple M3 Max", bandwidth: 400.0, arithmetic: 14.2 },
];

impl Published {
    /// The least time of so many bytes and operations, in microseconds: that of the slower of the two.
    fn least_us(&self, bytes: u64, flops: u64) -> f64 {
        // A GB/s is a byte in a nanosecond.
        let of_memory = 1e-3 * bytes as f64 / self.bandwidth;
        of_memory.max(1e-6 * flops as f64 / self.arithmetic)
    }
}

/// How to measure kernels on a GPU.
#[derive(Args, Clone, Debug)]
pub(crate) struct GpuArgs {
    /// gpu, the first that is no software; gpu:N; gpu:software, one that the CPU plays
    #[arg(long, value_name = "DEVICE", default_value = "gpu")]
    device: DeviceChoice,
    /// Coded tokens of a KV head
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = from_1_to_4m)]
    context: usize,
    /// Samples of each kernel
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Print the bytes of each kernel and the times that follow on known GPUs, and measure nothing
    #[arg(long)]
    derived: bool,
    /// Put that table into docs/gpu.md
    #[arg(long, requires = "derived")]
    splice: bool,
    /// Measure each kernel once and small, to see that its answer is right
    #[arg(long, conflicts_with = "derived")]
    test: bool,
}

fn from_1_to_4m(text: &str) -> Result<usize, String> {
    let tokens = text.parse().ok().filter(|tokens| (1..=1 << 22).contains(tokens));
    tokens.ok_or_else(|| "expected a whole number from 1 to 4194304".to_owned())
}

/// Prints what the options ask for.
///
/// # Errors
/// No device, one that takes no times, a wrong answer, or a page that cannot be written.
pub(crate) fn run(arguments: &GpuArgs) -> Result<()> {
    let shape = if arguments.test { Shape::SMALL } else { Shape::llama(arguments.context) };
    if arguments.derived {
        let sheet = derived(&shape)?;
        println!("{}", sheet.aligned());
        if arguments.splice {
            page::splice(&page_path(), "derived", &sheet.markdown())?;
        }
        return Ok(());
    }
    let options = OpenOptions { is_profiled: true, ..OpenOptions::new(arguments.device) };
    let gpu = Gpu::open(options)?;
    let name = gpu.summary().to_string();
    let rounds = if arguments.test { 1 } else { usize::from(arguments.rounds) };
    let measured = Measured::of(gpu, &shape, rounds)?;
    ensure!(!measured.kernels.is_empty(), "nothing was measured");
    println!("{}", table(&name, &shape, &measured)?.aligned());
    Ok(())
}

fn page_path() -> PathBuf {
    page::docs("gpu.md")
}

fn derived(shape: &Shape) -> Result<Sheet> {
    let mut columns = vec!["kernel".to_owned(), "on".to_owned(), "MB".to_owned()];
    columns.push("GFLOP".to_owned());
    columns.extend(PUBLISHED.iter().map(|Published { name, bandwidth, arithmetic }| {
        format!("µs at {bandwidth:.0} GB/s and {arithmetic} TFLOP/s ({name})")
    }));
    let title = format!(
        "Bytes of each kernel in one layer of Llama-3-8B, {} coded tokens, and the times that follow (derived)",
        shape.context
    );
    let mut sheet = Sheet::new(title, &columns);
    for kernel in Kernel::ALL {
        let (bytes, flops) = (kernel.bytes(shape)?, kernel.flops(shape));
        let mut row = vec![
            Cell::text(kernel.name()),
            Cell::text(kernel.what(shape)),
            Cell::Scientific(1e-6 * bytes as f64),
            match flops {
                0 => Cell::text(""),
                flops => Cell::Scientific(1e-9 * flops as f64),
            },
        ];
        row.extend(PUBLISHED.iter().map(|gpu| Cell::Scientific(gpu.least_us(bytes, flops))));
        sheet.push(row);
    }
    Ok(sheet)
}

fn table(device: &str, shape: &Shape, measured: &Measured) -> Result<Sheet> {
    let title = format!(
        "{device}, one layer, {} coded tokens: a copy moves {:.1} GB/s",
        shape.context,
        1e-9 * measured.copy
    );
    let columns = ["kernel", "on", "MB", "µs", "MAD %", "GB/s", "% of copy"];
    let mut sheet = Sheet::new(title, &columns);
    for (kernel, samples) in &measured.kernels {
        let bytes = kernel.bytes(shape)? as f64;
        let median = samples.median();
        let rate = 1e9 * bytes / median;
        sheet.push(vec![
            Cell::text(kernel.name()),
            Cell::text(kernel.what(shape)),
            Cell::Scientific(1e-6 * bytes),
            Cell::Number(1e-3 * median, 1),
            Cell::Number(100.0 * samples.mad() / median, 0),
            Cell::Scientific(1e-9 * rate),
            Cell::Number(100.0 * rate / measured.copy, 0),
        ]);
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use heterokv_attn::device::Device;

    use super::measured::Stage;
    use super::*;

    /// A device that the CPU plays; none where there is none and none is asked for.
    fn software_or_skip() -> Option<Gpu> {
        let wanted = std::env::var("HETEROKV_GPU").unwrap_or_default();
        if wanted == "none" {
            return None;
        }
        let options = OpenOptions { is_profiled: true, ..OpenOptions::new(DeviceChoice::Software) };
        let opened = Gpu::open(options).inspect_err(|error| {
            assert_ne!(wanted, "required", "{error}");
            println!("SKIPPED: {error}");
        });
        opened.ok()
    }

    #[test]
    fn what_no_kernel_has_written_is_no_answer() {
        let Some(gpu) = software_or_skip() else { return };
        let stage = Stage::new(Device::new(Arc::new(gpu)), Shape::SMALL).expect("it fits");
        for kernel in Kernel::ALL {
            assert!(stage.check(kernel).is_err(), "{} has written nothing", kernel.name());
        }
    }

    #[test]
    fn every_shader_is_among_them() {
        let Some(gpu) = software_or_skip() else { return };
        let stage = Stage::new(Device::new(Arc::new(gpu)), Shape::SMALL).expect("it fits");
        let times = |kernel| stage.times(kernel).expect("it runs");
        let started: Vec<&str> =
            Kernel::ALL.into_iter().flat_map(times).map(|time| time.name).collect();
        for shader in heterokv_shaders::SHADERS {
            assert!(started.contains(&shader.name), "{}", shader.name);
        }
    }

    #[test]
    fn kernels_answer_right_on_a_device_that_the_cpu_plays() {
        let Some(gpu) = software_or_skip() else { return };
        let measured = Measured::of(gpu, &Shape::SMALL, 1).expect("every answer is right");
        assert_eq!(measured.kernels.len(), Kernel::ALL.len());
        assert!(measured.kernels.iter().all(|(_, samples)| samples.median() > 0.0));
    }

    #[test]
    fn every_kernel_moves_something_and_more_of_more() {
        let (small, large) = (Shape::SMALL, Shape::llama(1 << 20));
        for kernel in Kernel::ALL {
            let bytes = |shape| kernel.bytes(shape).expect("the formats hold such keys");
            assert!(bytes(&small) > 0 && bytes(&small) < bytes(&large), "{}", kernel.name());
        }
        let scored = Kernel::ScorePlanes.bytes(&large).expect("the format holds such keys");
        // 4 bits a channel of eight heads are half a gigabyte; scales, zeros and scores come on top.
        assert!((512 << 20..1 << 30).contains(&scored), "{scored}");
    }
}
