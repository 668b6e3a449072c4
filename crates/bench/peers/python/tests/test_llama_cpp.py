"""llama.cpp on the model that HETEROKV_MODEL names; without it these tests are skipped."""

import os
import unittest
from pathlib import Path

from heterokv_peers.harness import run
from heterokv_peers.llama_cpp import LlamaEngine, opened
from heterokv_peers.protocol import BadRequest, Request, Window

TEXT = "Some years ago, never mind how long precisely, I thought I would sail about a little. " * 8


def request(caches: list[str]) -> Request:
    model = os.environ.get("HETEROKV_MODEL")
    if model is None:
        raise unittest.SkipTest("HETEROKV_MODEL names no GGUF model")
    return Request(model=Path(model), threads=2, caches=caches, windows=[], speed=None, seed=0)


class ShiftedEngine:
    """The engine, but every cache after the first misses the first token of its context."""

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine, self.opened = engine, 0
        self.full, self.vocab_size = engine.full, engine.vocab_size
        self.describe, self.full_f16_bytes = engine.describe, engine.full_f16_bytes

    def open(self, cache: str, capacity: int) -> object:
        made = self.engine.open(cache, capacity)
        prefill = made.prefill
        if self.opened > 0:
            made.prefill = lambda tokens: prefill(tokens[1:])
        self.opened += 1
        return made


def measure(asked: Request, wrap: type | None = None) -> dict[str, dict]:
    with opened(asked) as engine:
        tokens = engine.tokenize(TEXT)
        window = Window(tokens[:-9], tokens[-9:])
        lines: list[dict] = []
        asked = Request(asked.model, 2, asked.caches, [window], None, 0)
        run(asked, engine if wrap is None else wrap(engine), lines.append)
    return {line["cache"]: line for line in lines[1:]}


class Types(unittest.TestCase):
    def test_f16_agrees_with_itself_and_fewer_bits_lose_more(self) -> None:
        lines = measure(request(["f16", "q8_0", "q4_0"]))
        kl = {cache: sum(line["steps"]["kl"]) for cache, line in lines.items()}
        self.assertEqual(kl["f16"], 0.0)
        self.assertLess(kl["f16"], kl["q8_0"])
        self.assertLess(kl["q8_0"], kl["q4_0"])

    def test_bytes_are_those_of_the_types(self) -> None:
        for cache, bits in (("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)):
            line = measure(request([cache]))[cache]
            expected = line["full_f16_bytes"] * bits / 16
            self.assertGreaterEqual(line["kv_bytes"], expected, cache)
            self.assertLess(line["kv_bytes"], expected * 1.005, cache)

    def test_a_missing_token_shows(self) -> None:
        wrong = measure(request(["f16"]), ShiftedEngine)["f16"]
        self.assertGreater(max(wrong["steps"]["kl"]), 1e-4)

    def test_an_unknown_type_is_an_error(self) -> None:
        with self.assertRaisesRegex(BadRequest, "no cache `q3_0`"):
            LlamaEngine(request(["q3_0"]))

    def test_a_file_that_is_no_model_is_an_error(self) -> None:
        asked = request(["f16"])
        with self.assertRaisesRegex(BadRequest, "does not read the model"):
            LlamaEngine(Request(Path(__file__), 2, asked.caches, [], None, 0))


if __name__ == "__main__":
    unittest.main()
