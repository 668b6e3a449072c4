//! Quality of a compressed KV cache against the full one: KL, top-1, perplexity, recall, passkey.
