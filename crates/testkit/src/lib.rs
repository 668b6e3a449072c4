//! Comparers, seeded inputs and guard bands for the tests of heterokv.
