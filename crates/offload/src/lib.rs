//! Host store for the cold rows of a KV cache: pages, byte counters, row gather.
