"""What is asked for is measured, line by line, and a request that is wrong is answered by what is wrong."""

import json
import unittest
from pathlib import Path

import numpy as np

from heterokv_peers import harness
from heterokv_peers.protocol import BadRequest, Request, Speed, Window, check_tokens, parse

GOOD = {
    "model": __file__,
    "threads": 2,
    "caches": ["exact", "noise"],
    "windows": [{"context": [1, 2, 3], "continuation": [4, 5, 6]}],
    "speed": {"tokens": [1, 2, 3, 4, 5, 6, 7], "contexts": [4, 3], "steps": 2},
    "seed": 0,
}

EXAMPLE = Path(__file__).parents[4] / "eval/src/peer/example.jsonl"


def shape(value: object) -> object:
    """Names and types without the values; lists by their first element."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return "number" if isinstance(value, (int, float)) else type(value).__name__


class CountingCache:
    """Its logits are a function of the tokens so far; those of a noisy one of nothing that was fed."""

    def __init__(self, noise: np.random.Generator | None, log: list) -> None:
        self.noise, self.log, self.tokens = noise, log, []

    def prefill(self, tokens: list[int]) -> None:
        self.tokens += tokens

    def step(self, token: int) -> np.ndarray:
        self.tokens.append(token)
        if self.noise is not None:
            return self.noise.normal(size=16).astype(np.float32)
        return np.roll(np.arange(16, dtype=np.float32), sum(self.tokens))

    def kv_bytes(self) -> int:
        return len(self.tokens)

    def close(self) -> None:
        self.log.append(self.tokens)


class CountingEngine:
    full = "exact"
    vocab_size = 16

    def __init__(self) -> None:
        self.opened, self.closed = [], []

    def describe(self) -> dict:
        return {"name": "counting"}

    def full_f16_bytes(self, tokens: int) -> int:
        return 4 * tokens

    def open(self, cache: str, capacity: int) -> CountingCache:
        self.opened.append((cache, capacity))
        return CountingCache(np.random.default_rng(0) if cache == "noise" else None, self.closed)


def request(**changes: object) -> Request:
    return parse(json.dumps(GOOD | changes))


class Measuring(unittest.TestCase):
    def measure(self, asked: Request) -> tuple[list[dict], CountingEngine]:
        lines, engine = [], CountingEngine()
        harness.run(asked, engine, lines.append)
        return lines, engine

    def test_every_line_is_there_in_order(self) -> None:
        lines, _ = self.measure(request())
        self.assertEqual(lines[0], {"engine": {"name": "counting"}})
        kinds = [(line["cache"], "speed" in line) for line in lines[1:]]
        self.assertEqual(kinds, [("exact", False), ("noise", False)] + 2 * [("exact", True), ("noise", True)])
        self.assertEqual([line["speed"]["context"] for line in lines[3:]], [4, 4, 3, 3])

    def test_the_last_token_is_predicted_and_not_fed(self) -> None:
        lines, engine = self.measure(request(speed=None))
        self.assertEqual(engine.closed, [[1, 2, 3, 4, 5]] * 3)
        self.assertEqual((lines[1]["kv_bytes"], lines[1]["full_f16_bytes"]), (5, 20))
        self.assertEqual(len(lines[1]["step_seconds"]), 2)
        # After 1 2 3 4 the likeliest token is (15 + 10) mod 16; the true one, 5, is four less likely.
        self.assertAlmostEqual(lines[1]["steps"]["nll"][0] - 4.0, -np.log((1 - 1 / np.e) / (1 - np.exp(-16))), places=9)

    def test_the_full_cache_agrees_with_itself_and_noise_does_not(self) -> None:
        lines, _ = self.measure(request(speed=None))
        self.assertEqual(lines[1]["steps"]["kl"], [0.0, 0.0])
        self.assertGreater(min(lines[2]["steps"]["kl"]), 0.5)

    def test_speed_is_of_the_tokens_asked_for_behind_a_warm_up(self) -> None:
        lines, engine = self.measure(request(windows=[], caches=["noise"]))
        self.assertEqual(engine.closed, [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]])
        self.assertTrue(all(line["speed"]["step_seconds"] > 0 for line in lines[1:]))


class Requests(unittest.TestCase):
    def test_a_good_one_is_read(self) -> None:
        expected = Request(
            model=Path(__file__),
            threads=2,
            caches=["exact", "noise"],
            windows=[Window([1, 2, 3], [4, 5, 6])],
            speed=Speed([1, 2, 3, 4, 5, 6, 7], [4, 3], 2),
            seed=0,
        )
        self.assertEqual(request(), expected)

    def test_the_example_that_the_caller_is_tested_by_is_a_request_and_its_answer(self) -> None:
        asked, *answer = EXAMPLE.read_text().splitlines()
        asked = parse(json.dumps(json.loads(asked) | {"model": __file__, "caches": ["exact"]}))
        lines = []
        harness.run(asked, CountingEngine(), lines.append)
        self.assertEqual([shape(line) for line in lines[1:]], [shape(json.loads(line)) for line in answer[1:]])

    def test_each_mistake_is_named(self) -> None:
        mistakes = [
            ({"model": "no-such-file.gguf"}, "no-such-file.gguf is not a file"),
            ({"threads": 0}, "`threads` must be at least 1"),
            ({"threads": True}, "`threads` is missing or not of the type int"),
            ({"caches": []}, "`caches` must be names"),
            ({"caches": ["full", "full"]}, "names one twice"),
            ({"windows": [{"context": [], "continuation": [1, 2]}]}, "`context` of window 0"),
            ({"windows": [{"context": [1], "continuation": [1]}]}, "`continuation` of window 0"),
            ({"windows": [{"context": [1, -1], "continuation": [1, 2]}]}, "`context` of window 0"),
            ({"windows": [], "speed": None}, "nothing to measure"),
            ({"speed": {"tokens": [1], "contexts": [], "steps": 1}}, "`contexts` of `speed`"),
            ({"speed": {"tokens": [1], "contexts": [4], "steps": 0}}, "`steps` must be at least 1"),
            ({"speed": {"tokens": 6 * [1], "contexts": [4, 1], "steps": 2}}, "`tokens` of `speed` must be token ids, at least 7"),
            ({"seed": None}, "`seed` is missing"),
        ]
        for change, message in mistakes:
            with self.subTest(change), self.assertRaisesRegex(BadRequest, message):
                request(**change)
        for text in ("{", "[]", ""):
            with self.subTest(text), self.assertRaises(BadRequest):
                parse(text)

    def test_a_token_outside_the_vocabulary_is_an_error_before_anything_is_measured(self) -> None:
        with self.assertRaisesRegex(BadRequest, "window 0 has the token 6, but the vocabulary ends at 6"):
            check_tokens(request(), 6)
        with self.assertRaisesRegex(BadRequest, "`speed` has the token 7, but the vocabulary ends at 7"):
            check_tokens(request(), 7)
        check_tokens(request(), 8)


if __name__ == "__main__":
    unittest.main()
