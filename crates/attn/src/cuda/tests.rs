//! Without a device: what is missing is said.

use super::*;

/// A machine without a driver is told in one line what to do; a number beyond the last device, too.
#[test]
fn what_is_not_there_is_told_in_a_line() {
    let error = CudaDevice::open(1000).expect_err("no machine has so many");
    let said = error.to_string();
    assert_eq!(said.lines().count(), 1, "{said}");
    match error {
        CudaError::NoDriver => assert!(said.contains("install NVIDIA's driver"), "{said}"),
        CudaError::NoCompiler => assert!(said.contains("nvidia-cuda-nvrtc-cu12"), "{said}"),
        CudaError::NoDevice { ordinal: 1000, .. } => assert!(said.contains("from 0"), "{said}"),
        other => panic!("{other}"),
    }
}
