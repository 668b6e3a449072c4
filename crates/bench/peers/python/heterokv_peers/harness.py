"""What is measured, the same for every engine: quality against the engine's own full cache, then speed."""

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from heterokv_peers import memory
from heterokv_peers.metrics import Steps
from heterokv_peers.protocol import Request, Speed, Window, check_tokens, say

# SnapKV refuses prompts that are no longer than its window of 64 queries.
WARM_UP_TOKENS = 256


class Cache(Protocol):
    """One sequence in one kind of cache."""

    def prefill(self, tokens: list[int]) -> None:
        """Takes in the context, and compresses it if that is what the cache does."""

    def step(self, token: int) -> np.ndarray:
        """Feeds one token; the logits [vocab_size] of what comes next, f32, valid until the next call."""

    def kv_bytes(self) -> int:
        """Bytes of the keys and values held now."""

    def close(self) -> None:
        """Frees what is held."""


class Engine(Protocol):
    """A model and the caches that a program has for it."""

    full: str
    vocab_size: int

    def describe(self) -> dict:
        """Name, version and whatever else a reader of the figures must know."""

    def full_f16_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens in a full f16 cache."""

    def open(self, cache: str, capacity: int) -> Cache:
        """An empty cache of the kind, with room for so many tokens."""


def run(request: Request, engine: Engine, emit: Callable[[dict], None]) -> None:
    """Measures all that the request asks for, a line at a time."""
    check_tokens(request, engine.vocab_size)
    name = engine.describe()["name"]
    emit({"engine": engine.describe()})
    for index, window in enumerate(request.windows):
        say(f"{name}: window {index + 1} of {len(request.windows)}, {engine.full} for comparison")
        full_logits: list[np.ndarray] = []
        _feed(engine, engine.full, window, lambda _, logits: full_logits.append(logits.copy()))
        for cache in request.caches:
            say(f"{name}: window {index + 1} of {len(request.windows)}, {cache}")
            emit({"cache": cache, "window": index} | _compare(engine, cache, window, full_logits))
    if request.speed is not None:
        _warm_up(engine, request.caches[0], request.speed.tokens)
        for context in request.speed.contexts:
            for cache in request.caches:
                say(f"{name}: {context} tokens, {cache}")
                emit({"cache": cache} | _time(engine, cache, request.speed, context))


def _compare(engine: Engine, cache: str, window: Window, full_logits: list[np.ndarray]) -> dict:
    steps = Steps()

    def add(step: int, logits: np.ndarray) -> None:
        steps.add(full_logits[step], logits, window.continuation[step + 1])

    return {"steps": steps.columns} | _feed(engine, cache, window, add)


def _feed(engine: Engine, name: str, window: Window, look: Callable[[int, np.ndarray], None]) -> dict:
    """Prefills and feeds the continuation but its last token; `look` sees the logits of every step."""
    memory.reset_peak()
    cache = engine.open(name, len(window.context) + window.steps)
    try:
        start = time.perf_counter()
        cache.prefill(window.context)
        prefill_seconds = time.perf_counter() - start
        step_seconds = []
        for step, token in enumerate(window.continuation[: window.steps]):
            start = time.perf_counter()
            logits = cache.step(token)
            step_seconds.append(time.perf_counter() - start)
            look(step, logits)
        return {
            "kv_bytes": cache.kv_bytes(),
            "full_f16_bytes": engine.full_f16_bytes(len(window.context) + window.steps),
            "prefill_seconds": prefill_seconds,
            "step_seconds": step_seconds,
            "peak_rss_bytes": memory.peak_bytes(),
        }
    finally:
        cache.close()


def _warm_up(engine: Engine, name: str, tokens: list[int]) -> None:
    """A short prompt and a step that nobody times: the first ones read the weights in and set things up."""
    context = min(WARM_UP_TOKENS, len(tokens) - 1)
    cache = engine.open(name, context + 1)
    try:
        cache.prefill(tokens[:context])
        cache.step(tokens[context])
    finally:
        cache.close()


def _time(engine: Engine, name: str, speed: Speed, context: int) -> dict:
    """One prefill and the median of steps behind it; the first step behind a prompt, which sets things up, is not timed."""
    tokens = speed.tokens[: context + speed.steps + 1]
    memory.reset_peak()
    cache = engine.open(name, len(tokens))
    try:
        start = time.perf_counter()
        cache.prefill(tokens[:context])
        prefill_seconds = time.perf_counter() - start
        cache.step(tokens[context])
        step_seconds = []
        for token in tokens[context + 1 :]:
            began = time.perf_counter()
            cache.step(token)
            step_seconds.append(time.perf_counter() - began)
    finally:
        cache.close()
    return {
        "speed": {
            "context": context,
            "prefill_seconds": prefill_seconds,
            "step_seconds": statistics.median(step_seconds),
        },
        "peak_rss_bytes": memory.peak_bytes(),
    }
