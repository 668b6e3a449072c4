//! A request for memory that will be read soon.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "prefetch by pointer"))]

/// Asks for the cache line at an address, whatever lies there; does nothing where there is no way to ask.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) fn prefetch(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    #[allow(unused_unsafe, reason = "Rust from 1.92 on counts it as safe")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address does nothing that a program can see.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
}

/// Asks for the cache line at an address, whatever lies there; does nothing where there is no way to ask.
#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch(_line: *const u8) {}
