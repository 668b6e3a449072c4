//! One integration package: parity, property, golden, end to end, regression.
