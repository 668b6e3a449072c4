//! Heterogeneous KV cache: coded keys on the device, values on the host, one exact merge.
