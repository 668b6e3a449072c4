"""How two next-token distributions differ, in f64, as `heterokv eval` counts it."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural-log probabilities [vocab_size] of logits [vocab_size], f64."""
    logits = logits.astype(np.float64)
    top = logits.max()
    return logits - (top + np.log(np.exp(logits - top).sum()))


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q) = Σ p · (ln p − ln q) in nats, of log-probabilities; exactly 0 when both are the same."""
    held = p > -np.inf
    return float((np.exp(p[held]) * (p[held] - q[held])).sum())


def most_probable(distribution: np.ndarray, count: int) -> np.ndarray:
    """The `count` most probable tokens, best first, the lowest of equals first."""
    return np.argsort(-distribution, kind="stable")[:count]


class Steps:
    """The figures of one cache, step by step; those of no step are empty lists."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {name: [] for name in ("kl", "top1", "top5", "nll", "full_nll")}

    def add(self, full_logits: np.ndarray, logits: np.ndarray, true_token: int) -> None:
        """Adds a step from the logits [vocab_size] of both caches and the token that comes next in the text.

        Raises ArithmeticError if either is no distribution.
        """
        full, own = log_softmax(full_logits), log_softmax(logits)
        figures = {
            "kl": kl_divergence(full, own),
            "top1": int(full.argmax() == own.argmax()),
            "top5": float(np.isin(most_probable(full, 5), most_probable(own, 5)).mean()),
            "nll": float(-own[true_token]),
            "full_nll": float(-full[true_token]),
        }
        for name, value in figures.items():
            if not np.isfinite(value):
                raise ArithmeticError(f"{name} is not finite at step {len(self.columns[name])}")
            self.columns[name].append(value)
