"""What is measured, the same for every engine: quality against the engine's own full cache, then speed."""

import statistics
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from heterokv_peers import memory
from heterokv_peers.metrics import Steps
from heterokv_peers.protocol import Request, Window, check_tokens, say


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
        for context in request.speed.contexts:
            for line in _time_context(request, engine, name, context):
                emit(line)


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


def _time_context(request: Request, engine: Engine, name: str, context: int) -> list[dict]:
    """Every cache at one depth, the order turned by one from repeat to repeat."""
    speed, window = request.speed, request.windows[0]
    text = window.context + window.continuation
    tokens = (text * (1 + (context + speed.steps) // len(text)))[: context + speed.steps + 1]
    samples = {cache: {"prefill": [], "decode": [], "peak": []} for cache in request.caches}
    for repeat in range(speed.repeats):
        turn = (request.seed + repeat) % len(request.caches)
        for cache in request.caches[turn:] + request.caches[:turn]:
            say(f"{name}: {context} tokens, repeat {repeat + 1} of {speed.repeats}, {cache}")
            _time_once(engine, cache, tokens, context, samples[cache])
    return [
        {
            "cache": cache,
            "speed": {
                "context": context,
                "prefill_tokens_per_second": statistics.median(sample["prefill"]),
                "prefill_samples": sample["prefill"],
                "decode_tokens_per_second": sample["decode"],
            },
            "peak_rss_bytes": max(sample["peak"]),
        }
        for cache, sample in samples.items()
    ]


def _time_once(engine: Engine, name: str, tokens: list[int], context: int, sample: dict) -> None:
    """One prefill and one run of steps; the first step, which sets things up, is not timed."""
    memory.reset_peak()
    cache = engine.open(name, len(tokens))
    try:
        start = time.perf_counter()
        cache.prefill(tokens[:context])
        prefilled = time.perf_counter()
        cache.step(tokens[context])
        first = time.perf_counter()
        for token in tokens[context + 1 :]:
            cache.step(token)
        end = time.perf_counter()
    finally:
        cache.close()
    sample["prefill"].append(context / (prefilled - start))
    sample["decode"].append((len(tokens) - context - 1) / (end - first))
    sample["peak"].append(memory.peak_bytes())
