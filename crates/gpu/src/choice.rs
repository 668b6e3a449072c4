//! Which device: a name, and the adapters that there are.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// `gpu`: a discrete GPU before an integrated or virtual one; never one that is software.
    Auto,
    /// `gpu:N`: adapter N of [`adapters`].
    Index(usize),
    /// `gpu:software`: one that computes on the CPU.
    Software,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let bad = || Error::BadChoice { name: name.to_owned() };
        match name.split_once(':') {
            None if name == "gpu" => Ok(Self::Auto),
            Some(("gpu", "software")) => Ok(Self::Software),
            Some(("gpu", number)) => number.parse().map(Self::Index).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("gpu"),
            Self::Index(number) => write!(f, "gpu:{number}"),
            Self::Software => f.write_str("gpu:software"),
        }
    }
}

/// What an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU of a virtual machine.
    Virtual,
    /// The CPU.
    Software,
    /// Not known.
    Other,
}

impl DeviceKind {
    pub(crate) fn of(kind: wgpu::DeviceType) -> Self {
        match kind {
            wgpu::DeviceType::DiscreteGpu => Self::Discrete,
            wgpu::DeviceType::IntegratedGpu => Self::Integrated,
            wgpu::DeviceType::VirtualGpu => Self::Virtual,
            wgpu::DeviceType::Cpu => Self::Software,
            wgpu::DeviceType::Other => Self::Other,
        }
    }

    /// The lower, the sooner it is taken; none for what is taken only when it is asked for.
    fn rank(self) -> Option<u8> {
        match self {
            Self::Discrete => Some(0),
            Self::Integrated => Some(1),
            Self::Virtual => Some(2),
            Self::Other => Some(3),
            Self::Software => None,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete GPU",
            Self::Integrated => "integrated GPU",
            Self::Virtual => "virtual GPU",
            Self::Software => "software",
            Self::Other => "other device",
        })
    }
}

/// An adapter, for people and for choosing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// The interface: `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, backend, driver } = self;
        write!(f, "{name} ({kind}, {backend}, {driver})")
    }
}

/// The adapters of this machine, in the order of their numbers; none where there is no driver.
#[must_use]
pub fn adapters() -> Vec<AdapterSummary> {
    enumerate().iter().map(|adapter| summary(&adapter.get_info())).collect()
}

pub(crate) fn summary(info: &wgpu::AdapterInfo) -> AdapterSummary {
    AdapterSummary {
        name: info.name.clone(),
        kind: DeviceKind::of(info.device_type),
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
    }
}

fn enumerate() -> Vec<wgpu::Adapter> {
    // Not those of OpenGL, whose compute lacks what kernels need.
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(backends))
}

/// The adapter of that name.
pub(crate) fn find(choice: DeviceChoice) -> Result<wgpu::Adapter> {
    let mut found = enumerate();
    let summaries: Vec<AdapterSummary> =
        found.iter().map(|adapter| summary(&adapter.get_info())).collect();
    let kinds: Vec<DeviceKind> = summaries.iter().map(|summary| summary.kind).collect();
    match place(choice, &kinds) {
        Some(place) => Ok(found.swap_remove(place)),
        None => Err(not_found(choice, &summaries)),
    }
}

/// Which of adapters of these kinds is meant.
fn place(choice: DeviceChoice, kinds: &[DeviceKind]) -> Option<usize> {
    let numbered = kinds.iter().enumerate();
    match choice {
        DeviceChoice::Index(place) => (place < kinds.len()).then_some(place),
        DeviceChoice::Software => kinds.iter().position(|kind| *kind == DeviceKind::Software),
        DeviceChoice::Auto => {
            let ranked = numbered.filter_map(|(place, kind)| Some((kind.rank()?, place)));
            ranked.min().map(|(_, place)| place)
        }
    }
}

fn not_found(choice: DeviceChoice, summaries: &[AdapterSummary]) -> Error {
    let listed = summaries.iter().enumerate();
    let listed: Vec<String> =
        listed.map(|(number, summary)| format!("gpu:{number} {summary}")).collect();
    let wanted = match choice {
        DeviceChoice::Auto => "GPU".to_owned(),
        DeviceChoice::Index(number) => format!("adapter {number}"),
        DeviceChoice::Software => "software adapter".to_owned(),
    };
    let remedy = match choice {
        DeviceChoice::Index(_) if !listed.is_empty() => "Give the number of one of them",
        DeviceChoice::Auto | DeviceChoice::Index(_) => {
            "Install the driver of the GPU (on Debian: mesa-vulkan-drivers, or NVIDIA's own and \
             libvulkan1), or ask for gpu:software"
        }
        DeviceChoice::Software => "Install one (on Debian: apt-get install mesa-vulkan-drivers)",
    };
    let found = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
    Error::NoAdapter { wanted, found, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["gpu", "gpu:0", "gpu:17", "gpu:software"] {
            assert_eq!(name.parse::<DeviceChoice>().expect("it is one").to_string(), name);
        }
        for name in ["", "cpu", "gpu:", "gpu:-1", "gpu:Software", "cuda:0", "gpu:1x"] {
            let error = name.parse::<DeviceChoice>().expect_err("it is none").to_string();
            assert!(error.contains("gpu:software"), "{error}");
        }
    }

    #[test]
    fn a_discrete_one_is_taken_first_and_software_never_by_itself() {
        use DeviceKind::{Discrete, Integrated, Software};
        let auto = |kinds: &[DeviceKind]| place(DeviceChoice::Auto, kinds);
        assert_eq!(auto(&[Software, Integrated, Discrete, Discrete]), Some(2));
        assert_eq!(auto(&[Software, Integrated]), Some(1));
        assert_eq!(auto(&[Software]), None);
        assert_eq!(place(DeviceChoice::Software, &[Discrete, Software]), Some(1));
        assert_eq!(place(DeviceChoice::Software, &[Discrete]), None);
        assert_eq!(place(DeviceChoice::Index(1), &[Software]), None);
        assert_eq!(place(DeviceChoice::Index(0), &[Software]), Some(0));
    }

    #[test]
    fn what_is_missing_is_told_with_a_package() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Index(0), DeviceChoice::Software] {
            let error = not_found(choice, &[]).to_string();
            assert!(error.contains("none") && error.contains("mesa-vulkan-drivers"), "{error}");
        }
    }
}
