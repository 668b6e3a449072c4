//! One integration package: golden, quality, passkey, determinism and hostile-input tests of the whole
//! system. All of it is in `tests/all`; this library is empty.
