"""The area under the ROC curve, of many bootstrap samples at once."""

from __future__ import annotations

import numpy as np


def auroc(
    outcomes: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Chance that a positive row has a higher score than a negative one, ties half.

    `outcomes` and `scores`: (rows,), the former 0 or 1. `weights`: (samples, rows), how
    often each row is in each sample; None: one sample, every row once. Returns
    (samples,); NaN where one of the outcomes is absent. This is the statistic of Mann
    and Whitney, weighted.
    """
    if not len(scores):
        return np.full(1 if weights is None else len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    sorted_scores = scores[order]
    positive = (outcomes[order] == 1).astype(float)
    counts = np.ones((1, len(order))) if weights is None else weights[:, order]
    ties = np.flatnonzero(np.diff(sorted_scores, prepend=np.nan) != 0)
    positives = np.add.reduceat(counts * positive, ties, axis=1)
    negatives = np.add.reduceat(counts * (1 - positive), ties, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)


def person_weights(persons: int, samples: int, seed: int) -> np.ndarray:
    """How often each person is drawn into each bootstrap sample: (samples, persons)."""
    if not persons:
        return np.zeros((samples, 0), np.float32)
    rng = np.random.default_rng(seed)
    shares = np.full(persons, 1 / persons)
    return rng.multinomial(persons, shares, size=samples).astype(np.float32)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the samples that are numbers; NaN if few are."""
    numbers = samples[np.isfinite(samples)]
    if len(numbers) < max(len(samples) / 2, 2):
        return np.nan, np.nan
    low, high = np.quantile(numbers, (0.025, 0.975))
    return float(low), float(high)
