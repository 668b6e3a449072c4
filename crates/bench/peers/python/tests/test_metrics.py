"""The metrics give the textbook numbers, and what is no distribution is an error."""

import math
import unittest

import numpy as np

from heterokv_peers.metrics import Steps, kl_divergence, log_softmax, most_probable


class Metrics(unittest.TestCase):
    def test_kl_of_a_distribution_with_itself_is_exactly_zero(self) -> None:
        p = log_softmax(np.array([1.0, -3.0, 0.25, 7.5], dtype=np.float32))
        self.assertEqual(kl_divergence(p, p), 0.0)

    def test_kl_of_two_coins_is_the_textbook_number(self) -> None:
        p = log_softmax(np.log([0.5, 0.5]))
        q = log_softmax(np.log([0.9, 0.1]))
        expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
        self.assertAlmostEqual(kl_divergence(p, q), expected, places=12)
        self.assertNotAlmostEqual(kl_divergence(q, p), expected, places=3)

    def test_a_token_that_cannot_come_adds_nothing(self) -> None:
        p = log_softmax(np.array([0.0, 0.0, -np.inf]))
        q = log_softmax(np.array([0.0, 0.0, 0.0]))
        self.assertAlmostEqual(kl_divergence(p, q), math.log(1.5), places=12)

    def test_large_logits_do_not_overflow(self) -> None:
        p = log_softmax(np.array([1e4, 1e4 - 1.0], dtype=np.float32))
        self.assertAlmostEqual(p[0], -math.log1p(math.exp(-1.0)), places=6)

    def test_of_equal_tokens_the_lowest_comes_first(self) -> None:
        self.assertEqual(most_probable(np.array([0.0, 2.0, 1.0, 2.0]), 3).tolist(), [1, 3, 2])

    def test_a_step_compares_with_full(self) -> None:
        full = np.arange(8, dtype=np.float32)
        own = full.copy()
        own[[7, 0]] = own[[0, 7]]
        steps = Steps()
        steps.add(full, full, true_token=6)
        steps.add(full, own, true_token=7)
        self.assertEqual(steps.columns["top1"], [1, 0])
        # Of full's 7 6 5 4 3 the other, whose best are 0 6 5 4 3, has four.
        self.assertEqual(steps.columns["top5"], [1.0, 0.8])
        self.assertEqual(steps.columns["kl"][0], 0.0)
        self.assertGreater(steps.columns["kl"][1], 1.0)
        self.assertEqual(steps.columns["nll"][0], steps.columns["full_nll"][0])
        self.assertAlmostEqual(steps.columns["nll"][1] - steps.columns["full_nll"][1], 7.0, places=9)

    def test_logits_that_are_no_numbers_are_an_error(self) -> None:
        bad = np.array([0.0, np.nan], dtype=np.float32)
        with self.assertRaisesRegex(ArithmeticError, "kl is not finite at step 0"):
            Steps().add(np.zeros(2, dtype=np.float32), bad, true_token=0)


if __name__ == "__main__":
    unittest.main()
