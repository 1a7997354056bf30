"""Random numbers by hashing: they depend on the seed, a name and keys, never on order.

So a patient is the same in a population of any size, cut into blocks of any size.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

STEP = 0x9E3779B97F4A7C15


class Draws:
    """Random numbers for arrays of integer keys that broadcast together."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def key(self, name: str, *keys: Any) -> np.ndarray:
        """Hash a name and integers into uint64."""
        start = (self.seed * STEP + zlib.crc32(name.encode())) % 2**64
        state = _mix(np.array([start], np.uint64))
        for key in keys:
            state = _mix(state ^ np.asarray(key).astype(np.uint64))
        return state

    def __call__(self, name: str, *keys: Any) -> np.ndarray:
        """Draw from the uniform distribution over [0, 1)."""
        return _uniform(self.key(name, *keys))

    def normal(self, name: str, *keys: Any) -> np.ndarray:
        """Draw from the standard normal distribution (Box and Muller)."""
        key = self.key(name, *keys)
        radius = np.sqrt(-2 * np.log1p(-_uniform(key)))
        return radius * np.cos(2 * np.pi * _uniform(_mix(key)))

    def choice(self, shares: dict[int, float], name: str, *keys: Any) -> np.ndarray:
        """Draw one of some integers, each with its share."""
        edges = np.cumsum(list(shares.values()))[:-1]
        chosen = np.searchsorted(edges, self(name, *keys), side="right")
        return np.array(list(shares))[chosen]


def _uniform(key: np.ndarray) -> np.ndarray:
    """Turn uint64 into 53-bit fractions of [0, 1)."""
    return (key >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64 (the step of splitmix64); products wrap around."""
    state = state + np.uint64(STEP)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state
