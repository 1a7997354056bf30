"""Distances between a real and another distribution, as several families use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def total_variation(counts: np.ndarray) -> float:
    """Return half the summed differences of the shares of two rows of counts."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def ks(counts: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two rows of counts, in their order."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(np.abs(np.diff(shares.cumsum(axis=1), axis=0)).max())


def w1(values: np.ndarray, counts: np.ndarray) -> float:
    """Return the Wasserstein-1 distance of two rows of counts of these values."""
    return float(stats.wasserstein_distance(values, values, *counts))


def standard_w1(values: np.ndarray, counts: np.ndarray) -> float:
    """Return W1, in standard deviations of the first row of counts."""
    mean = np.average(values, weights=counts[0])
    spread = np.average((values - mean) ** 2, weights=counts[0]) ** 0.5
    return w1(values, counts) / spread if spread > 0 else np.nan


def identity_r2(real: np.ndarray, ours: np.ndarray) -> float:
    """Return R² on the line of identity: 1 is equal, 0 as good as the mean."""
    spread = ((real - real.mean()) ** 2).sum() if real.size else 0.0
    return float(1 - ((real - ours) ** 2).sum() / spread) if spread > 0 else np.nan


def divergences(real: np.ndarray, ours: np.ndarray) -> tuple[float, float]:
    """Return KL(real ‖ ours) in nats and JS in bits, of counts plus one half."""
    if not real.sum() or not ours.sum():
        return np.nan, np.nan
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (real, ours))
    middle = (p + q) / 2
    js = (p * np.log2(p / middle) + q * np.log2(q / middle)).sum() / 2
    return float((p * np.log(p / q)).sum()), float(js)


def correlations(together: np.ndarray, persons: int) -> np.ndarray:
    """Pearson's r of each two columns of 0 and 1, of their counts (K, K) of persons."""
    if not persons:
        return np.full(together.shape, np.nan)
    share = np.diagonal(together) / persons
    deviation = np.sqrt(share * (1 - share))
    covariance = together / persons - np.outer(share, share)
    product = np.outer(deviation, deviation)
    # a column that is all the same goes with nothing
    return np.divide(covariance, product, where=product > 0, out=np.zeros_like(product))


def distances(
    real: np.ndarray,
    ours: np.ndarray,
    real_weights: np.ndarray | None = None,
    our_weights: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return Wasserstein-1 and Kolmogorov-Smirnov distance of two weighted samples."""
    grid = np.unique(np.concatenate([real, ours]))
    shares = []
    for values, weights in ((real, real_weights), (ours, our_weights)):
        place = np.searchsorted(grid, values)
        mass = np.bincount(place, weights, len(grid))
        shares.append(np.cumsum(mass) / mass.sum())
    gap = np.abs(shares[0] - shares[1])
    return float((gap[:-1] * np.diff(grid)).sum()), float(gap.max())


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's r; NaN where one of them is all the same."""
    known = len(x) >= 2 and np.std(x) > 0 and np.std(y) > 0
    return float(np.corrcoef(x, y)[0, 1]) if known else np.nan


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean; NaN of nothing, in silence."""
    return float(np.mean(values)) if np.size(values) else np.nan
