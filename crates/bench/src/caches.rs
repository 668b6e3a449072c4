//! The caches that are measured, by spec: a new preset joins by a line; and what a step of each must read.

use anyhow::{Result, ensure};
use heterokv_cache::{CacheConfig, CachePlan, CacheSpec, KvCache, KvShape, full_bytes};

use crate::machine::Ceilings;
use crate::record::Case;

/// What every other cache is held against.
pub(crate) const FULL: &str = "full";

/// All presets.
pub(crate) const PRESETS: [&str; 7] = [
    FULL,
    "hca:25%",
    "hca:12.5%",
    "hca:6.25%",
    "hca-rescore:25%",
    "hca-rescore:12.5%",
    "hca-rescore:6.25%",
];

/// For models whose heads are too short for the ratios of the presets.
pub(crate) const TINY: [&str; 3] =
    [FULL, "hca,keys=int8-token,sinks=2,recent=8", "hca-rescore,keys=int4-token,sinks=2,recent=8"];

/// Bits of the ladder, most first. Beside its codes, a cache of it reads the same number of host rows whatever its
/// bits and its length, so that only the codes make the slope.
pub(crate) const LADDER_BITS: [&str; 5] = ["8", "4", "3", "2", "1"];

/// The cache of the ladder whose keys have `bits`.
pub(crate) fn of_ladder(bits: &str) -> String {
    format!("keys=alloc/{bits},values=int8@host,select=top-k:256")
}

/// A cache at one length.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) spec: String,
    pub(crate) config: CacheConfig,
    pub(crate) plan: CachePlan,
}

impl Planned {
    /// What `spec` makes of a model of `shape` after a prompt of `num_tokens`.
    ///
    /// # Errors
    /// A spec that is none, or that the shape refuses.
    pub(crate) fn new(spec: &str, shape: &KvShape, num_tokens: usize) -> Result<Self> {
        let config = spec.parse::<CacheSpec>()?.resolve(shape, None)?;
        let plan = CachePlan::new(&config, shape, num_tokens)?;
        Ok(Self { spec: spec.to_owned(), config, plan })
    }

    /// Bytes of the cache, wherever they are.
    pub(crate) fn total_bytes(&self) -> u64 {
        (self.plan.device.total() + self.plan.host_bytes + self.plan.score_scratch_bytes) as u64
    }

    /// Device bytes that a step over `num_tokens` must read in all layers: exact tokens, and the codes of others.
    ///
    /// # Errors
    /// A key format that the shape refuses.
    pub(crate) fn device_bytes_read(&self, shape: &KvShape, num_tokens: usize) -> Result<usize> {
        let CacheConfig::Hca(config) = &self.config else {
            return Ok(full_bytes(shape, num_tokens));
        };
        let one_head = KvShape { num_layers: 1, ..*shape };
        let exact_bytes = full_bytes(&one_head, 1) / shape.heads.num_kv_heads;
        let candidates = num_tokens.saturating_sub(config.sinks + config.recent);
        let mut bytes = 0;
        for format in config.keys.formats(shape)? {
            let layout = format.layout(shape.heads.head_dim)?;
            let is_coded = num_tokens >= self.plan.coded_from_tokens;
            let coded =
                if is_coded { candidates / layout.group_tokens * layout.group_tokens } else { 0 };
            bytes += exact_bytes * (num_tokens - coded) + layout.bytes(coded);
        }
        Ok(bytes)
    }

    /// Bytes of a row of the host store; 0 where there is none.
    pub(crate) fn host_row_bytes(&self, shape: &KvShape) -> usize {
        let CacheConfig::Hca(config) = &self.config else { return 0 };
        let bytes = |format: heterokv_quant::RowFormat| format.bytes(shape.heads.head_dim);
        bytes(config.values) + config.rescore.map_or(0, bytes)
    }

    /// Holds the bytes that the arenas of a filled cache count against the plan, and writes both into `case`.
    ///
    /// # Errors
    /// If they differ, or where compression was asked for and did not happen.
    pub(crate) fn count_bytes(&self, cache: &KvCache, case: &mut Case) -> Result<()> {
        let (device, host) = (cache.device_in_use_bytes(), cache.host_in_use_bytes());
        let planned = (self.plan.device.total(), self.plan.host_bytes);
        ensure!(
            (device, host) == planned,
            "{}: {device} device and {host} host bytes are counted, {} and {} were predicted",
            self.spec,
            planned.0,
            planned.1
        );
        let num_tokens = self.plan.num_tokens;
        let must_code =
            self.config != CacheConfig::Full && num_tokens >= self.plan.coded_from_tokens;
        ensure!(
            !must_code || cache.device_bytes().codes > 0,
            "{}: compression was asked for and did not happen at {num_tokens} tokens",
            self.spec
        );
        case.set("device_bytes_predicted", planned.0 as f64);
        case.set("device_bytes_counted", device as f64);
        case.set("host_bytes_predicted", planned.1 as f64);
        case.set("host_bytes_counted", host as f64);
        case.set("full_bytes", self.plan.full_bytes as f64);
        Ok(())
    }
}

/// What a step reads, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reads {
    /// From the device, weights included.
    pub(crate) device: f64,
    /// Host rows.
    pub(crate) host: f64,
    /// Length of a host row.
    pub(crate) row_bytes: usize,
}

impl Reads {
    /// Sets a step of `step_ns` against what the machine can read, tier by tier.
    pub(crate) fn describe(&self, ceilings: &Ceilings, step_ns: f64, case: &mut Case) {
        let device_ns = 1e9 * ceilings.read_seconds(self.device);
        let rows_gb_s = ceilings.rows_gb_s(self.row_bytes);
        let host_ns = if self.host > 0.0 { self.host / rows_gb_s } else { 0.0 };
        case.set("device_bytes_read", self.device);
        case.set("host_bytes_read", self.host);
        case.set("device_attainable_gb_s", ceilings.read_gb_s());
        case.set("device_achieved_gb_s", self.device / step_ns);
        if self.host > 0.0 {
            case.set("host_attainable_gb_s", rows_gb_s);
            case.set("host_achieved_gb_s", self.host / step_ns);
        }
        case.set("attainable_ns", device_ns + host_ns);
        case.set("overlap_efficiency", device_ns.max(host_ns) / step_ns);
    }
}

/// The cosine between two outputs, and the length of their difference over that of the second.
///
/// Zeros and what is not finite give NaN.
pub(crate) fn distance(actual: &[f32], expected: &[f32]) -> (f64, f64) {
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        actual.iter().zip(expected).map(|(&a, &e)| of(f64::from(a), f64::from(e))).sum()
    };
    let (aa, ee, ae) = (sum(&|a, _| a * a), sum(&|_, e| e * e), sum(&|a, e| a * e));
    (ae / (aa * ee).sqrt(), (sum(&|a, e| (a - e).powi(2)) / ee).sqrt())
}

#[cfg(test)]
mod tests {
    use heterokv_attn::HeadShape;

    use super::*;

    fn shape() -> KvShape {
        KvShape { num_layers: 2, heads: HeadShape::new(9, 3, 64).expect("it is valid") }
    }

    #[test]
    fn every_preset_and_step_of_the_ladder_can_be_planned() {
        let ladder = LADDER_BITS.map(of_ladder);
        for spec in PRESETS.into_iter().chain(ladder.iter().map(String::as_str)) {
            let planned = Planned::new(spec, &shape(), 32_768).expect(spec);
            let read = planned.device_bytes_read(&shape(), 32_768).expect(spec);
            // Tables and the unused parts of pages are held and not read.
            assert!(read > 0 && read <= planned.plan.device.total(), "{spec}: {read}");
        }
    }

    #[test]
    fn what_a_step_reads_is_exact_tokens_and_codes() {
        let spec = "keys=f16,values=int8@host,select=top-k:16,sinks=4,recent=64";
        let planned = Planned::new(spec, &shape(), 4096).expect("it is valid");
        let of_head = 256 * 68 + 128 * (4096 - 68);
        assert_eq!(planned.device_bytes_read(&shape(), 4096).expect("it is"), 6 * of_head);
        assert_eq!(planned.host_row_bytes(&shape()), 66);
        let full = Planned::new(FULL, &shape(), 100).expect("it is valid");
        assert_eq!(full.device_bytes_read(&shape(), 100).expect("it is"), 6 * 256 * 100);
        assert_eq!(full.host_row_bytes(&shape()), 0);
    }

    #[test]
    fn an_uncompressed_cache_in_the_place_of_another_is_an_error() {
        use heterokv_quant::Level;

        let planned = Planned::new(&of_ladder("2"), &shape(), 4096).expect("it is valid");
        let full = KvCache::new(shape(), CacheConfig::Full, Level::SCALAR, None).expect("it is");
        let mut case = Case::new("model", "model/x");
        let told = planned.count_bytes(&full, &mut case).expect_err("nothing is in it");
        assert!(told.to_string().contains("were predicted"), "{told}");
    }

    #[test]
    fn distances_are_of_directions_and_lengths() {
        let (cosine, error) = distance(&[2.0, 0.0], &[1.0, 0.0]);
        assert!((cosine - 1.0).abs() < 1e-12 && (error - 1.0).abs() < 1e-12);
        assert!(distance(&[0.0, 1.0], &[1.0, 0.0]).0.abs() < 1e-12);
        assert!(distance(&[f32::NAN], &[1.0]).0.is_nan() && distance(&[0.0], &[1.0]).0.is_nan());
    }
}
