//! CUDA devices as places that cases run on, and copies beside kernels.

use std::sync::OnceLock;

use heterokv_attn::cuda::{CudaBound, CudaBuffer, CudaDevice, CudaError};
use heterokv_attn::device::Launch;

use super::Wanted;
use crate::sites::{Memories, Site};

/// A device and what to call it.
pub(super) struct CudaSite {
    device: CudaDevice,
    name: String,
}

/// The first device; none where that is allowed.
pub(super) fn sites() -> &'static [CudaSite] {
    static SITES: OnceLock<Vec<CudaSite>> = OnceLock::new();
    SITES.get_or_init(|| {
        let wanted = Wanted::here();
        if wanted == Wanted::None {
            return Vec::new();
        }
        match CudaDevice::open(0) {
            Ok(device) => {
                println!("device: {}", device.summary());
                let name = device.summary();
                vec![CudaSite { device, name }]
            }
            Err(error) => {
                wanted.miss(&error.to_string());
                Vec::new()
            }
        }
    })
}

impl Memories for CudaDevice {
    type Memory = CudaBuffer;
    type Part<'a> = CudaBound<'a>;

    fn upload_words(&self, words: &[u32]) -> CudaBuffer {
        self.upload("input", words).unwrap()
    }

    fn part(memory: &CudaBuffer, start: u64, num_bytes: u64) -> CudaBound<'_> {
        CudaBound::part(memory, start, num_bytes)
    }

    fn words(&self, memory: &CudaBuffer) -> Vec<u32> {
        self.read(memory).unwrap()
    }
}

impl Site for CudaSite {
    type Memories = CudaDevice;

    fn name(&self) -> &str {
        &self.name
    }

    fn memories(&self) -> &CudaDevice {
        &self.device
    }

    fn run(&self, launches: &[Launch<CudaBound<'_>>]) {
        launches.iter().for_each(|launch| self.device.run(launch).unwrap());
        self.device.wait().unwrap();
    }
}

/// Pages go out and come back on two streams while kernels are at work, and each waits for what it has to.
#[test]
fn copies_beside_kernels_see_what_they_wait_for() {
    use heterokv_attn::device::MergeStates;
    let Some(CudaSite { device, .. }) = sites().first() else { return };
    let shape = heterokv_attn::HeadShape::new(1, 1, 64).unwrap();
    let (to_device, to_host) = (device.side_stream().unwrap(), device.side_stream().unwrap());
    let mut states = device.buffer("states", 64 * 4).unwrap();
    let first = device.upload("first", &[0, 1]).unwrap();
    let ids = device.upload("ids", &[0]).unwrap();
    let lses = device.upload("lses", &[0]).unwrap();
    let (out, lse) = (device.buffer("out", 64 * 4).unwrap(), device.buffer("lse", 4).unwrap());
    let mut sent = device.pinned(64).unwrap();
    let mut back = device.pinned(64).unwrap();
    for round in 0..100u16 {
        let values: Vec<u32> = (0..64u16).map(|i| f32::from(round + i).to_bits()).collect();
        sent.words_mut().unwrap().copy_from_slice(&values);
        to_device.upload(&sent, &mut states, 0).unwrap();
        // The merge of one state is that state.
        let merge = MergeStates {
            shape,
            num_states: 1,
            first: CudaBound::all(&first),
            ids: CudaBound::all(&ids),
            outs: CudaBound::all(&states),
            lses: CudaBound::all(&lses),
            out: CudaBound::all(&out),
            lse: CudaBound::all(&lse),
        };
        device.run(&merge.launch().unwrap()).unwrap();
        let transfer = to_host.download(&out, 0, &mut back).unwrap();
        transfer.wait().unwrap();
        assert!(transfer.is_done().unwrap());
        assert_eq!(back.words().unwrap(), values, "round {round}");
    }
    assert!(matches!(to_device.upload(&sent, &mut states, 4), Err(CudaError::BadRange { .. })));
    assert!(matches!(to_host.download(&out, 2, &mut back), Err(CudaError::BadRange { .. })));
}
