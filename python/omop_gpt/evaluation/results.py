"""What a family of metrics finds: numbers for the scorecard, curves for pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omop_gpt.step import InputError

if TYPE_CHECKING:
    import duckdb

Add = Callable[..., None]  # (name, value, stratum="all", ends=UNKNOWN)
UNKNOWN = math.nan, math.nan  # the ends of an interval
MEASURED = "measured_"  # tables of what Python counted, beside the marts of dbt


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number about one cohort.

    `value` is NaN where the data cannot say (too few rows): it is reported as such, and
    no gate passes on it. `ci_low` and `ci_high`: 95 % interval, NaN where none is
    computed. `n`: persons, or targets, that the number rests on.
    """

    name: str
    cohort: str
    value: float
    stratum: str = "all"
    ci_low: float = math.nan
    ci_high: float = math.nan
    n: int = 0


@dataclass
class Results:
    """Metrics; and aggregates for pictures, by name (each row has `cohort`)."""

    metrics: list[Metric] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, cohort: str, value: float, **more: Any) -> None:
        """Add one metric."""
        self.metrics.append(
            Metric(name=name, cohort=cohort, value=float(value), **more)
        )

    def adder(self, cohort: str, n: int) -> Add:
        """Return what adds metrics of one cohort of `n` persons; None is no number."""

        def add(
            name: str,
            value: float | None,
            stratum: str = "all",
            ends: tuple[float, float] = UNKNOWN,
        ) -> None:
            value, (low, high) = math.nan if value is None else value, ends
            self.add(
                name, cohort, value, stratum=str(stratum), ci_low=low, ci_high=high, n=n
            )

        return add

    def draw(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to a curve."""
        self.curves.setdefault(name, []).extend(rows)

    def keep_curves(self, con: duckdb.DuckDBPyConnection) -> None:
        """Write each curve as table evaluation.measured_<name>; those of before go."""
        import pyarrow as pa

        query = (
            "select table_name from information_schema.tables "
            f"where table_schema = 'evaluation' and table_name like '{MEASURED}%'"
        )
        for (name,) in con.execute(query).fetchall():
            con.execute(f"drop table evaluation.{name}")
        for name, rows in self.curves.items():
            if rows:
                con.register("curve", pa.Table.from_pylist(rows))
                con.execute(f"create table evaluation.{MEASURED}{name} as from curve")
                con.unregister("curve")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much work an evaluation does."""

    name: str
    anchors: tuple[str, ...]
    targets: int  # of the attacks, from the training and from the holdout each
    bootstraps: int
    discriminator_persons: int  # of each side
    reads_histories: bool  # whether one of the classifiers does
    rollouts: int  # of the model, of each person of a task; 0: none
    rollout_persons: int  # of the holdout, of each task
    sets: int = 1  # of synthetic patients that `run` samples
    seed: int = 42

    def changed(self, seed: int, rollouts: int = -1) -> Profile:
        """Return the same, with another seed, and so many roll-outs, if not -1."""
        if rollouts < 0:
            rollouts = self.rollouts
        return dataclasses.replace(self, seed=seed, rollouts=rollouts)


PROFILES = {
    "smoke": Profile(
        name="smoke",
        anchors=("ideal", "copy", "unigram"),
        targets=500,
        bootstraps=100,
        discriminator_persons=1_000,
        reads_histories=False,
        rollouts=0,
        rollout_persons=200,
    ),
    "standard": Profile(
        name="standard",
        anchors=("ideal", "copy", "unigram"),
        targets=10_000,
        bootstraps=200,
        discriminator_persons=10_000,
        reads_histories=False,
        rollouts=0,
        rollout_persons=200,
    ),
    "full": Profile(
        name="full",
        anchors=(
            "ideal", "copy", "near_copy", "leak_10", "unigram", "independent", "chain",
            "visit_shuffle",
        ),
        targets=10_000,
        bootstraps=1_000,
        discriminator_persons=20_000,
        reads_histories=True,
        rollouts=50,
        rollout_persons=2_000,
        sets=3,
    ),
}  # fmt: skip


def profile_of(name: str) -> Profile:
    """Return a profile. Raises InputError where there is none of the name."""
    if name not in PROFILES:
        raise InputError(f"--profile {name}: it is one of {', '.join(PROFILES)}.")
    return PROFILES[name]
