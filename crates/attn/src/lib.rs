//! Attention states that merge by log-sum-exp, with CPU kernels for prefill, resident rows and host rows.
