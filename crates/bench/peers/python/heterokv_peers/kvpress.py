"""NVIDIA's kvpress on transformers: presses drop tokens at the end of the prefill.

The model runs in float32, the type in which a CPU is fast in PyTorch; a press chooses tokens all the same. So
that its bytes compare with those of other programs, keys and values count two bytes an element here, as in f16.

Presses have kvpress's own settings but for the steepness of PyramidKV: where its smallest layer would keep fewer
tokens than the window of queries, kvpress gives every layer the same and so makes it SnapKV. Steepness is lowered
here until that does not happen, and a window too short for any pyramid is refused.

A compressed cache is shorter than the text it stands for. As in kvpress's own pipeline, positions go on where
the text ended, not where the cache ends.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable

# Nothing is fetched, whatever a library would like to look up.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Bars that redraw themselves are no lines.
os.environ["TQDM_DISABLE"] = "1"

import importlib.metadata

import kvpress
import numpy as np
import torch
import transformers

from heterokv_peers.harness import run
from heterokv_peers.protocol import BadRequest, Request, serve

PRESSES = {
    "snapkv": kvpress.SnapKVPress,
    "pyramidkv": kvpress.PyramidKVPress,
    "tova": kvpress.TOVAPress,
    "expected-attention": kvpress.ExpectedAttentionPress,
    "streaming-llm": kvpress.StreamingLLMPress,
}

# Bytes of an element of the cache that is counted.
F16_BYTES = 2


def press_of(cache: str) -> kvpress.BasePress | None:
    """The press of a name like `snapkv:25%`, None for `full`; raises BadRequest for any other name.

    The percentage is the share of tokens kept.
    """
    if cache == "full":
        return None
    match = re.fullmatch(r"([a-z-]+):(\d+(?:\.\d+)?)%", cache)
    if match is None or match[1] not in PRESSES:
        raise BadRequest(f"kvpress has no cache `{cache}` here; there are full and {', '.join(PRESSES)}, as snapkv:25%")
    kept = float(match[2]) / 100
    if not 0 < kept <= 1:
        raise BadRequest(f"`{cache}` must keep more than 0 % and at most 100 % of the tokens")
    return PRESSES[match[1]](compression_ratio=1 - kept)


def pyramid_steepness(press: kvpress.PyramidKVPress, tokens: int) -> int:
    """The largest steepness up to the press's own that leaves every layer of a context its window of queries.

    1 is flat: there the press does as SnapKV does.
    """
    kept = tokens * (1 - press.compression_ratio)
    return max(1, min(kvpress.PyramidKVPress.beta, int(kept / press.window_size)))


def check_pyramids(request: Request) -> None:
    """Raises BadRequest for a window on which a PyramidKV that is asked for would be none."""
    for cache in request.caches:
        press = press_of(cache)
        if not isinstance(press, kvpress.PyramidKVPress) or press.compression_ratio == 0:
            continue
        for index, window in enumerate(request.windows):
            if pyramid_steepness(press, len(window.context)) < 2:
                kept = len(window.context) * (1 - press.compression_ratio)
                raise BadRequest(
                    f"`{cache}` keeps {kept:.0f} tokens of window {index}, too few for a pyramid; "
                    f"use a longer context or keep at least {2 * press.window_size}"
                )


class PressedCache:
    """A cache of transformers that a press makes smaller while the context goes through the model."""

    # Tokens by which positions are wrong on purpose: a test shows that such a mistake shows.
    position_error = 0

    def __init__(self, model: transformers.PreTrainedModel, press: kvpress.BasePress | None) -> None:
        self.model = model
        self.press = press
        self.held = transformers.DynamicCache()
        self.position = 0

    @torch.inference_mode()
    def prefill(self, tokens: list[int]) -> None:
        if isinstance(self.press, kvpress.PyramidKVPress):
            self.press.beta = pyramid_steepness(self.press, len(tokens))
        pressed = contextlib.nullcontext() if self.press is None else self.press(self.model)
        with pressed:
            # Without the head of the vocabulary: nobody asks for the logits of the context.
            self.model.model(torch.tensor([tokens]), past_key_values=self.held, use_cache=True)
        self.position = len(tokens) + self.position_error

    @torch.inference_mode()
    def step(self, token: int) -> np.ndarray:
        position = torch.tensor([[self.position]])
        output = self.model(torch.tensor([[token]]), past_key_values=self.held, position_ids=position)
        self.position += 1
        return output.logits[0, -1].numpy()

    def kv_bytes(self) -> int:
        return sum(layer.keys.numel() + layer.values.numel() for layer in self.held.layers) * F16_BYTES

    def close(self) -> None:
        self.held = None


class PressEngine:
    """A model in transformers, with the presses of kvpress."""

    full = "full"

    def __init__(self, model: transformers.PreTrainedModel, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = model.eval()
        self.threads = threads
        self.vocab_size = model.config.vocab_size

    @classmethod
    def load(cls, request: Request) -> "PressEngine":
        """The GGUF model of a request, its weights made float32."""
        check_pyramids(request)
        torch.manual_seed(request.seed)
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                request.model.resolve().parent, gguf_file=request.model.name, dtype=torch.float32
            )
        except (OSError, ValueError, NotImplementedError) as error:
            raise BadRequest(f"transformers does not read the model {request.model}: {error}") from error
        return cls(model, request.threads)

    def describe(self) -> dict:
        libraries = ("kvpress", "transformers", "torch")
        return {
            "name": "kvpress",
            "version": ", ".join(f"{library} {importlib.metadata.version(library)}" for library in libraries),
            "threads": self.threads,
            "attention": self.model.config._attn_implementation,
            "kv_bytes_from": "elements held, two bytes each; the process holds them as float32",
        }

    def full_f16_bytes(self, tokens: int) -> int:
        config = self.model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return tokens * config.num_hidden_layers * config.num_key_value_heads * width * 2 * F16_BYTES

    def open(self, cache: str, capacity: int) -> PressedCache:
        """An empty cache; it grows, so its capacity is not asked for."""
        return PressedCache(self.model, press_of(cache))


def answer(request: Request, emit: Callable[[dict], None]) -> None:
    """Measures all that the request asks for."""
    run(request, PressEngine.load(request), emit)


if __name__ == "__main__":
    sys.exit(serve(answer))
