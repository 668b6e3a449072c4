"""The request, its checks, and the lines of the answer.

A request is one JSON object on stdin:

    {"model": "model.gguf", "threads": 2, "caches": ["f16", "q8_0"],
     "windows": [{"context": [ids], "continuation": [ids]}],
     "speed": {"tokens": [ids], "contexts": [512, 2048], "steps": 32} or null, "seed": 0}

`tokens` are those of the longest context, of as many steps, and one more. The answer is one JSON object a line on
stdout: the engine first, then one line a window and cache, then one a speed context and cache. Words for people go to stderr. A request that
cannot be served is answered by {"error": "..."} and exit status 2, before anything is measured.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class BadRequest(Exception):
    """A request that cannot be served; the message says what is wrong with it."""


@dataclass(frozen=True)
class Window:
    """A context and the tokens fed behind it, one more than there are steps."""

    context: list[int]
    continuation: list[int]

    @property
    def steps(self) -> int:
        return len(self.continuation) - 1


@dataclass(frozen=True)
class Speed:
    """What is fed, at which depths to time, and how many steps each time."""

    tokens: list[int]
    contexts: list[int]
    steps: int


@dataclass(frozen=True)
class Request:
    """What to measure."""

    model: Path
    threads: int
    caches: list[str]
    windows: list[Window]
    speed: Speed | None
    seed: int


def parse(text: str) -> Request:
    """The request in `text`; raises BadRequest for anything else than one, or a model file that is not there."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the request is not JSON: {error}") from error
    _expect(isinstance(fields, dict), "the request is not a JSON object")
    model = _field(fields, "model", str)
    _expect(Path(model).is_file(), f"the model {model} is not a file")
    caches = _field(fields, "caches", list)
    _expect(caches and all(isinstance(cache, str) for cache in caches), "`caches` must be names, at least one")
    _expect(len(set(caches)) == len(caches), "`caches` names one twice")
    windows = [_window(index, window) for index, window in enumerate(_field(fields, "windows", list))]
    speed = None if fields.get("speed") is None else _speed(fields["speed"])
    _expect(windows or speed, "there is nothing to measure: no window and no speed")
    return Request(
        model=Path(model),
        threads=_count(fields, "threads"),
        caches=caches,
        windows=windows,
        speed=speed,
        seed=_field(fields, "seed", int),
    )


def check_tokens(request: Request, vocab_size: int) -> None:
    """Raises BadRequest for a token that the model does not have."""
    for index, window in enumerate(request.windows):
        top = max(max(window.context), max(window.continuation))
        _expect(top < vocab_size, f"window {index} has the token {top}, but the vocabulary ends at {vocab_size}")
    top = 0 if request.speed is None else max(request.speed.tokens)
    _expect(top < vocab_size, f"`speed` has the token {top}, but the vocabulary ends at {vocab_size}")


def _window(index: int, fields: object) -> Window:
    _expect(isinstance(fields, dict), f"window {index} is not an object")
    tokens = {}
    for name, fewest in (("context", 1), ("continuation", 2)):
        tokens[name] = _ids(fields, name, f"window {index}", fewest)
    return Window(**tokens)


def _ids(fields: dict, name: str, of: str, fewest: int) -> list[int]:
    values = fields.get(name)
    is_ids = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    _expect(is_ids and len(values) >= fewest, f"`{name}` of {of} must be token ids, at least {fewest}")
    return values


def _speed(fields: object) -> Speed:
    _expect(isinstance(fields, dict), "`speed` is neither an object nor null")
    contexts = fields.get("contexts")
    is_counts = isinstance(contexts, list) and all(type(value) is int and value > 0 for value in contexts)
    _expect(is_counts and contexts, "`contexts` of `speed` must be numbers of tokens, at least one")
    steps = _count(fields, "steps")
    return Speed(_ids(fields, "tokens", "`speed`", max(contexts) + steps + 1), contexts, steps)


def _field(fields: dict, name: str, kind: type) -> object:
    value = fields.get(name)
    # True is an int to Python.
    _expect(type(value) is kind, f"`{name}` is missing or not of the type {kind.__name__}")
    return value


def _count(fields: dict, name: str) -> int:
    value = _field(fields, name, int)
    _expect(value > 0, f"`{name}` must be at least 1, not {value}")
    return value


def _expect(holds: object, message: str) -> None:
    if not holds:
        raise BadRequest(message)


def serve(answer: Callable[[Request, Callable[[dict], None]], None]) -> int:
    """Reads the request, hands it and a function that writes a line to `answer`; returns the exit status.

    Whatever else a library prints on stdout goes to stderr, so that every line of stdout is ours.
    """
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(line: dict) -> None:
        lines.write(json.dumps(line, allow_nan=False) + "\n")
        lines.flush()

    try:
        answer(parse(sys.stdin.read()), emit)
    except BadRequest as error:
        emit({"error": str(error)})
        return 2
    return 0


def say(message: str) -> None:
    """A word of progress for people."""
    print(message, file=sys.stderr, flush=True)
