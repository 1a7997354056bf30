"""Where curves of other real persons lie: the bands of the pictures.

Holdout and ideal are persons of one population whom no model saw. Both are drawn anew
from their union, person by person; by how much one curve lies above the other in 95 %
of the draws, point by point, is what chance makes of real persons. The ideal is
smaller than most releases, so a band is too wide for these rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from omop_gpt.evaluation.cohorts import IDEAL
from omop_gpt.evaluation.intervals import TAIL, Draws, draw_persons, weighted

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile

LEAST_PERSONS = 100  # of the holdout and of the ideal
# of keys (n,) and counts (draws, n): the points across (m,), and curves (draws, m)
Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Band(NamedTuple):
    """Points across, and the lower and upper end of the band: (m,) each."""

    across: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shares(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the rows in each cell."""
    return keys, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def shares_below(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the rows in each cell and all before it."""
    return keys, np.cumsum(shares(keys, counts)[1], axis=1)


def quantiles(asked: np.ndarray) -> Curve:
    """Return the curve of the keys at these shares."""

    def curve(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = shares_below(keys, counts)[1]
        places = [np.searchsorted(row, asked - 1e-9) for row in below]
        return asked, keys[np.minimum(places, len(keys) - 1)].astype(float)

    return curve


class Bands:
    """Bands of holdout and ideal; none where one of them has too few persons."""

    def __init__(self, con: duckdb.DuckDBPyConnection, profile: Profile) -> None:
        self.con, self.profile = con, profile

    @cached_property
    def draws(self) -> Draws:
        """The draws of persons."""
        table = "evaluation_private.population_persons"
        return draw_persons(self.con, table, "person_id", IDEAL, self.profile)

    def of(
        self, rows: str, key: str, curve: Curve, within: str = "'all'"
    ) -> dict[str, Band]:
        """Return the band of a curve over the rows of a query, by stratum.

        `rows`: SQL, a table or a query in brackets, with cohort and person_id.
        """
        if min(len(persons) for persons in self.draws.persons) < LEAST_PERSONS:
            return {}
        cells = self.draws.cells(rows, key, within=within)
        real = weighted(self.draws.whole[:1], cells.counts)
        groups = self.draws.weights.shape[2]
        pools = weighted(self.draws.weights[2:].reshape(-1, groups), cells.counts)
        found = {}
        for place in cells.slices():
            if not real[:, place].any():
                continue
            keys = cells.keys[place]
            across, middle = curve(keys, real[:, place])
            ours, others = np.split(curve(keys, pools[:, place])[1], 2)
            ends = np.quantile(others - ours, (TAIL, 1 - TAIL), axis=0)
            found[str(cells.strata[place][0])] = Band(across, *(middle[0] + ends))
        return found
