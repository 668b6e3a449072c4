"""llama.cpp: one model, and a context of its own for every cache that is measured.

Keys and values have the same type. Flash attention is on for all types, since llama.cpp quantizes no values
without it, so that the types differ in nothing else.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

import llama_cpp
import numpy as np

from heterokv_peers.harness import run
from heterokv_peers.protocol import BadRequest, Request, serve

TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}

# Tokens that go through the model at once in prefill: llama.cpp's own default for a physical batch.
BATCH = 512

# ggml's level of warnings is 3, of errors 4; 5 continues the line before.
ERROR_LEVEL = 4


@llama_cpp.llama_log_callback
def _log_errors(level: int, text: bytes, _: object) -> None:
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


class LlamaCache:
    """A llama.cpp context that holds one sequence."""

    def __init__(self, engine: "LlamaEngine", cache_type: int, capacity: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = BATCH
        params.n_ubatch = BATCH
        params.n_threads = engine.threads
        params.n_threads_batch = engine.threads
        params.type_k = cache_type
        params.type_v = cache_type
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.vocab_size = engine.vocab_size
        self.context = llama_cpp.llama_init_from_model(engine.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp makes no context of {capacity} tokens; its words are above")

    def prefill(self, tokens: list[int]) -> None:
        for first in range(0, len(tokens), BATCH):
            self._decode(tokens[first : first + BATCH])
        llama_cpp.llama_synchronize(self.context)

    def step(self, token: int) -> np.ndarray:
        self._decode([token])
        # Asking for the logits waits until they are there.
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.vocab_size,))

    def kv_bytes(self) -> int:
        # The size of the sequence's state: the rows of keys and values of the tokens held, and a few bytes a
        # token that say which cell is which.
        return llama_cpp.llama_state_seq_get_size(self.context, 0)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)

    def _decode(self, tokens: list[int]) -> None:
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        # Positions go on from those held; only the last token of the batch gets logits.
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, len(tokens)))
        if status != 0:
            raise RuntimeError(f"llama.cpp does not decode: status {status}")


class LlamaEngine:
    """A GGUF model in llama.cpp."""

    full = "f16"

    def __init__(self, request: Request) -> None:
        for cache in request.caches:
            if cache not in TYPES:
                raise BadRequest(f"llama.cpp has no cache `{cache}` here; there are {', '.join(TYPES)}")
        self.threads = request.threads
        llama_cpp.llama_log_set(_log_errors, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(request.model).encode(), params)
        if not self.model:
            raise BadRequest(f"llama.cpp does not read the model {request.model}; its words are above")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)

    def describe(self) -> dict:
        return {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "threads": self.threads,
            "attention": "flash attention",
            "kv_bytes_from": "llama_state_seq_get_size: the rows of the tokens held, not of free cells",
            "build": llama_cpp.llama_print_system_info().decode().strip(),
        }

    def full_f16_bytes(self, tokens: int) -> int:
        # The widths that the file states: heads may be wider than their share of the model.
        key, value = (self._head_width(name) for name in ("key_length", "value_length"))
        heads = llama_cpp.llama_model_n_head_kv(self.model) * llama_cpp.llama_model_n_layer(self.model)
        return tokens * heads * (key + value) * 2

    def open(self, cache: str, capacity: int) -> LlamaCache:
        return LlamaCache(self, TYPES[cache], capacity)

    def tokenize(self, text: str) -> list[int]:
        """The model's own tokens of a text, none added, special ones read as text."""
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 1))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        if count < 0:
            raise RuntimeError(f"llama.cpp needs room for {-count} tokens of {len(data)} bytes")
        return ids[:count]

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)

    def _head_width(self, name: str) -> int:
        architecture = self._metadata("general.architecture")
        stated = self._metadata(f"{architecture}.attention.{name}")
        if stated is not None:
            return int(stated)
        return llama_cpp.llama_model_n_embd(self.model) // llama_cpp.llama_model_n_head(self.model)

    def _metadata(self, key: str) -> str | None:
        buffer = ctypes.create_string_buffer(256)
        length = llama_cpp.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if length >= 0 else None


@contextlib.contextmanager
def opened(request: Request) -> Iterator[LlamaEngine]:
    """The engine that the request asks for, freed at the end."""
    engine = LlamaEngine(request)
    try:
        yield engine
    finally:
        engine.close()


def answer(request: Request, emit: Callable[[dict], None]) -> None:
    """Measures all that the request asks for."""
    with opened(request) as engine:
        run(request, engine, emit)


if __name__ == "__main__":
    sys.exit(serve(answer))
