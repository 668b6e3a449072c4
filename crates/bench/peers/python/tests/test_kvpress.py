"""Presses on a small model of random weights: what keeps everything loses nothing, and a wrong position shows."""

import unittest

import torch
import transformers

from heterokv_peers.harness import run
from heterokv_peers.kvpress import PRESSES, PressedCache, PressEngine, check_pyramids, press_of, pyramid_steepness
from heterokv_peers.protocol import BadRequest, Request, Window

VOCAB_SIZE = 97
# Long enough for a quarter of it to make a pyramid.
CONTEXT = 640


def engine() -> PressEngine:
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        # Wide enough weights for attention to be far from even.
        initializer_range=0.3,
    )
    return PressEngine(transformers.LlamaForCausalLM(config), threads=2)


def measure(caches: list[str], full_engine: PressEngine) -> dict[str, dict]:
    tokens = torch.randint(VOCAB_SIZE, (CONTEXT + 9,), generator=torch.Generator().manual_seed(3)).tolist()
    request = Request(
        model=None,
        threads=2,
        caches=caches,
        windows=[Window(tokens[:CONTEXT], tokens[CONTEXT:])],
        speed=None,
        seed=0,
    )
    lines: list[dict] = []
    run(request, full_engine, lines.append)
    return {line["cache"]: line for line in lines[1:]}


class Presses(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.engine = engine()

    def test_keeping_everything_changes_nothing(self) -> None:
        lines = measure([f"{name}:100%" for name in PRESSES] + ["full"], self.engine)
        for cache, line in lines.items():
            self.assertLess(max(line["steps"]["kl"]), 1e-6, cache)
            self.assertEqual(line["kv_bytes"], line["full_f16_bytes"], cache)

    def test_dropping_tokens_shows_in_bytes_and_distributions(self) -> None:
        lines = measure([f"{name}:25%" for name in PRESSES], self.engine)
        for cache, line in lines.items():
            # A quarter of the context, and all eight tokens that were fed.
            expected = self.engine.full_f16_bytes(CONTEXT // 4 + 8)
            self.assertLess(abs(line["kv_bytes"] / expected - 1), 0.02, cache)
            self.assertGreater(max(line["steps"]["kl"]), 1e-3, cache)

    def test_a_position_off_by_one_shows(self) -> None:
        full_cache = measure(["full"], self.engine)["full"]
        opened = self.engine.open
        calls = 0

        def wrong_after_first(cache: str, capacity: int) -> PressedCache:
            # The first cache is the one that the others are compared with.
            nonlocal calls
            calls += 1
            made = opened(cache, capacity)
            made.position_error = int(calls > 1)
            return made

        self.engine.open = wrong_after_first
        try:
            wrong = measure(["full"], self.engine)["full"]
        finally:
            del self.engine.open
        self.assertLess(max(full_cache["steps"]["kl"]), 1e-6)
        self.assertGreater(max(wrong["steps"]["kl"]), 1e-3)

    def test_a_pyramid_keeps_more_in_lower_layers_and_its_share_in_all(self) -> None:
        tokens = list(range(VOCAB_SIZE)) * 7
        for name, is_even in (("pyramidkv:25%", False), ("snapkv:25%", True)):
            cache = self.engine.open(name, len(tokens))
            cache.prefill(tokens)
            kept = [layer.keys.shape[2] for layer in cache.held.layers]
            # Each layer's number is rounded.
            self.assertAlmostEqual(sum(kept), len(tokens) * 0.25 * 3, delta=3, msg=name)
            self.assertEqual(len(set(kept)) == 1, is_even, name)
            self.assertEqual(kept, sorted(kept, reverse=True), name)

    def test_steepness_is_lowered_only_where_kvpress_would_make_it_flat(self) -> None:
        for name, tokens, expected in (("pyramidkv:25%", 8192, 20), ("pyramidkv:25%", 4096, 16), ("pyramidkv:25%", 100, 1)):
            self.assertEqual(pyramid_steepness(press_of(name), tokens), expected)

    def test_a_window_too_short_for_a_pyramid_is_an_error(self) -> None:
        short = Request(None, 2, ["pyramidkv:12.5%"], [Window([1] * 1000, [1, 2])], None, 0)
        with self.assertRaisesRegex(BadRequest, "keeps 125 tokens of window 0, too few for a pyramid"):
            check_pyramids(short)
        check_pyramids(Request(None, 2, ["pyramidkv:12.5%"], [Window([1] * 1024, [1, 2])], None, 0))

    def test_names_say_what_is_kept(self) -> None:
        self.assertIsNone(press_of("full"))
        self.assertEqual(press_of("snapkv:12.5%").compression_ratio, 0.875)
        for name in ("snapkv", "snapkv:0%", "snapkv:101%", "snapkv:x%", "h2o:25%", "f16", "snapkv:25"):
            with self.subTest(name), self.assertRaises(BadRequest):
                press_of(name)


if __name__ == "__main__":
    unittest.main()
