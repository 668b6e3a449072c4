//! Llama-family loader (safetensors, GGUF), tokenizer and forward pass over a heterogeneous KV cache.
