"""Distances between a real and another distribution, as several families use them."""

from __future__ import annotations

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
