//! The devices that cases run on, and how a case is run.

use std::env;
use std::sync::{Arc, OnceLock};

use heterokv_attn::device::{Device, DeviceResult};
use heterokv_gpu::{Commands, DeviceChoice, Gpu, LimitsChoice, OpenOptions, adapters};
use heterokv_shaders::Reduction;
use heterokv_testkit::{Controls, Tolerance, compare};

use crate::wrong::Edit;

/// Sizes of subgroups that are emulated.
const EMULATED: [u32; 6] = [4, 8, 16, 32, 64, 128];

/// A device in one of its ways, and what to call it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) device: Arc<Device>,
    pub(crate) name: String,
    /// What is wrong with kernels on purpose.
    pub(crate) edit: Option<Edit>,
}

/// All of them; none where that is allowed, which is printed once.
pub(crate) fn places() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let wanted = env::var("HETEROKV_GPU").unwrap_or_else(|_| "auto".to_owned());
        let found = match wanted.as_str() {
            "none" => Vec::new(),
            "auto" | "required" => adapters(),
            other => panic!("HETEROKV_GPU is `{other}`: required, auto or none"),
        };
        assert!(
            !found.is_empty() || wanted != "required",
            "no adapter was found, and one is required; on Debian, apt-get install mesa-vulkan-drivers"
        );
        let places: Vec<Place> = (0..found.len()).flat_map(of_adapter).collect();
        places.iter().for_each(|place| println!("device: {}", place.name));
        places
    })
}

/// The same, with a line that says so where there are none.
pub(crate) fn places_or_skip() -> &'static [Place] {
    let places = places();
    if places.is_empty() {
        println!("SKIPPED: there is no GPU, and no adapter that plays one");
    }
    places
}

fn of_adapter(number: usize) -> Vec<Place> {
    let mut places = Vec::new();
    for limits in [LimitsChoice::Adapter, LimitsChoice::WebGpuMinimum] {
        let options = OpenOptions { limits, ..OpenOptions::new(DeviceChoice::Index(number)) };
        let gpu = Arc::new(Gpu::open(options).unwrap());
        let mut reductions = vec![Reduction::Workgroup];
        reductions.extend(gpu.subgroup_sizes().map(|_| Reduction::Subgroup));
        if limits == LimitsChoice::Adapter {
            reductions.extend(EMULATED.map(Reduction::Emulated));
        }
        places.extend(reductions.into_iter().map(|reduction| Place {
            name: format!("{}, {limits:?} limits, {reduction:?}", gpu.summary()),
            device: Arc::new(Device::with_reduction(Arc::clone(&gpu), reduction)),
            edit: None,
        }));
    }
    places
}

/// Records, submits and waits.
pub(crate) fn run(device: &Device, record: impl FnOnce(&mut Commands<'_>) -> DeviceResult<()>) {
    let mut commands = Commands::new(device.gpu());
    record(&mut commands).unwrap();
    commands.submit().unwrap();
}

/// What a case expects: the reference, and what a plain f32 implementation gives, by which the tolerance is derived.
pub(crate) struct Expected {
    pub(crate) exact: Vec<f64>,
    pub(crate) naive: Vec<f32>,
    /// Size of what is summed, for the part of the tolerance that does not vanish.
    pub(crate) norm: f64,
    /// Rows, for what is damaged in the negative controls.
    pub(crate) controls: Controls,
}

impl Expected {
    fn tolerance(&self) -> Tolerance {
        Tolerance::derived(&self.naive, &self.exact, 4.0 * f64::from(f32::EPSILON), self.norm)
    }

    /// Holds a result against it, and sees that wrong ones are refused.
    pub(crate) fn check(&self, actual: &[f32], label: &str, seed: u64) {
        let check = |actual: &[f32]| compare(actual, &self.exact, self.tolerance());
        if let Err(mismatch) = check(actual) {
            panic!("{}", mismatch.at(label, seed));
        }
        if actual.is_empty() {
            return;
        }
        let tried = self.controls.assert_rejects(actual, check);
        assert!(tried.len() >= 4, "{label}: only {tried:?} changes this answer");
    }
}
