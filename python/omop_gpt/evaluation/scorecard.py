"""Gates over metrics: what passes, what fails, and what the data is too small to say.

A gate is a row of seed `gates`. The ideal anchor, real persons whom no model saw, goes
through the same gates: where they fail one, the data is too small for it, and nobody
passes. The scorecard is table evaluation.eval_scorecard: rows are added, never changed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omop_gpt.evaluation.cohorts import IDEAL, SYNTHETIC
from omop_gpt.evaluation.results import Metric

if TYPE_CHECKING:
    import duckdb

# of the holdout and of each half of the reserve, below which nothing is judged
LEAST_PERSONS = 1_000
# which anchor a family's score counts to: 0 is the ideal, 1 is this one
WORST = {"privacy": "copy"}
FIDELITY_WORST = "unigram"
NORMAL_95 = 1.96  # standard errors from the middle of a 95 % interval to its ends
# families whose gates fail only where the whole interval is beyond the bound
BY_INTERVAL = ("fidelity", "utility")
# attacks whose leak is gated as a share of what a copy of the training leaks, too
LEAKS = {"nnaa_loss": "nnaa_leak"}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A bound on one metric; see the columns of seed `gates`."""

    gate_order: int
    metric: str
    stratum: str
    family: str
    level: str
    title: str
    bound: str
    direction: str
    threshold: float
    ideal_factor: float
    ideal_margin: float
    cap: float
    is_optional: int

    def limit(self, ideal: Metric | None) -> float:
        """Return the bound, which may follow the ideal anchor up to a cap."""
        limit = self.threshold
        if (self.ideal_factor or self.ideal_margin) and is_known(ideal):
            limit = max(limit, self.ideal_factor * ideal.value + self.ideal_margin)
        return min(limit, self.cap) if self.cap else limit

    def worse(self, one: float, other: float) -> float:
        """Return by how much one value is worse than another; below 0: better."""
        return one - other if self.direction == "at_most" else other - one

    def excess(self, metric: Metric, ideal: Metric | None) -> float:
        """Return by how much a metric misses the bound; 0 or below: it is kept."""
        by_interval = self.bound == "ci_high" and not math.isnan(metric.ci_high)
        value = metric.ci_high if by_interval else metric.value
        return self.worse(value, self.limit(ideal))

    def worst(self, metrics: Sequence[Metric | None]) -> Metric | None:
        """Return the metric of the worst value; one without a value, if all are."""
        there = [metric for metric in metrics if metric is not None]
        known = [metric for metric in there if is_known(metric)]
        return max(known or there, key=lambda m: self.worse(m.value, 0), default=None)

    def status(self, metric: Metric | None, ideal: Metric | None) -> str:
        """Return passed, failed, underpowered, undefined (NaN), or not_run.

        A gate of fidelity or utility with an interval fails where the whole interval is
        beyond the bound, and the value beyond the ideal's: chance does not explain it.
        A bound on the upper end of an interval is missed for sure only where the value
        itself is beyond it and the interval beyond the ideal; between, the targets are
        too few. A gate that the ideal anchor misses cannot be passed. It still fails
        where the interval lies beyond the ideal's; without intervals, at twice the
        ideal's miss.
        """
        if metric is None:
            return "not_run"
        if not is_known(metric):
            return "undefined"
        excess = self.excess(metric, ideal)
        if self.family in BY_INTERVAL and excess > 0 and not math.isnan(metric.ci_low):
            best = metric.ci_low if self.direction == "at_most" else metric.ci_high
            is_sure = self.worse(best, self.limit(ideal)) > 0 and (
                not is_known(ideal) or self.worse(metric.value, ideal.value) > 0
            )
            return "failed" if is_sure else "underpowered"
        if not is_known(ideal) or self.excess(ideal, ideal) <= 0:
            if excess <= 0:
                return "passed"
            if self.bound == "ci_high" and is_known(ideal):
                is_sure = self.worse(metric.value, self.limit(ideal)) > 0 and (
                    math.isnan(metric.ci_low)
                    or self.worse(metric.ci_low, ideal.value) > 0
                )
                return "failed" if is_sure else "underpowered"
            return "failed"
        if metric.cohort == IDEAL or excess <= 0:
            return "underpowered"
        if math.isnan(metric.ci_low) or math.isnan(ideal.ci_high):
            is_clear = excess > 2 * self.excess(ideal, ideal)
        elif self.direction == "at_most":
            is_clear = metric.ci_low > ideal.ci_high
        else:
            is_clear = metric.ci_high < ideal.ci_low
        return "failed" if is_clear else "underpowered"


def is_known(metric: Metric | None) -> bool:
    """Tell whether a metric was computed and has a value."""
    return metric is not None and not math.isnan(metric.value)


def read_gates(con: duckdb.DuckDBPyConnection) -> list[Gate]:
    """Read the gates from the warehouse."""
    cursor = con.execute("from evaluation.gates order by gate_order")
    names = [column[0] for column in cursor.description]
    return [Gate(**dict(zip(names, row))) for row in cursor.fetchall()]


def score_rows(
    metrics: Sequence[Metric], families: Mapping[str, str], gates: Sequence[Gate]
) -> list[dict[str, Any]]:
    """Return one row per metric and cohort, with its anchors, its gate and its score.

    `families`: of each metric's name. The score of fidelity and utility is 1 at the
    ideal and 0 at the unigram; that of privacy is 0 at the ideal and 1 at the copy.
    """
    found = {(m.name, m.stratum, m.cohort): m for m in metrics}
    by_metric = {(gate.metric, gate.stratum): gate for gate in gates}
    rows = []
    for metric in metrics:
        key = (metric.name, metric.stratum)
        ideal = found.get((*key, IDEAL))
        family = families.get(metric.name, "quality")
        worst = found.get((*key, WORST.get(family, FIDELITY_WORST)))
        gate = by_metric.get(key)
        rows.append(
            {
                "family": family,
                **dataclasses.asdict(metric),
                "ideal": ideal.value if ideal else math.nan,
                "ideal_sd": (sd := spread(ideal)),
                "z": (metric.value - ideal.value) / sd if sd > 0 else math.nan,
                "worst": worst.value if worst else math.nan,
                "score": score(family, metric, ideal, worst),
                "threshold": gate.limit(ideal) if gate else math.nan,
                "level": gate.level if gate else "",
                "status": gate.status(metric, ideal) if gate else "",
            }
        )
    return rows


def spread(metric: Metric | None) -> float:
    """Return the standard error of a metric, by its interval; NaN without one."""
    if metric is None:
        return math.nan
    return (metric.ci_high - metric.ci_low) / (2 * NORMAL_95)


def score(
    family: str, metric: Metric, ideal: Metric | None, worst: Metric | None
) -> float:
    """Return a metric's place between two anchors; NaN where they do not separate."""
    if not (is_known(metric) and is_known(ideal) and is_known(worst)):
        return math.nan
    span = worst.value - ideal.value
    if not span:
        return math.nan
    place = (metric.value - ideal.value) / span
    return place if family == "privacy" else min(1.0, max(0.0, 1 - place))


def gate_rows(
    metrics: Sequence[Metric],
    gates: Sequence[Gate],
    cohorts: Sequence[str],
    sets: Sequence[str] = (SYNTHETIC,),
) -> list[dict[str, Any]]:
    """Return one row per gate and cohort, in the order of the gates.

    `sets`: cohorts of the same model and several seeds. Fidelity and utility of the
    first are those of the worst of them.
    """
    found = {(m.name, m.stratum, m.cohort): m for m in metrics}
    rows = []
    for gate in gates:
        ideal = found.get((gate.metric, gate.stratum, IDEAL))
        for cohort in cohorts:
            metric = found.get((gate.metric, gate.stratum, cohort))
            if cohort == SYNTHETIC and gate.family in BY_INTERVAL:
                metric = gate.worst(
                    [found.get((gate.metric, gate.stratum, name)) for name in sets]
                )
            rows.append(
                {
                    "cohort": cohort,
                    **dataclasses.asdict(gate),
                    "value": metric.value if metric else math.nan,
                    "ci_low": metric.ci_low if metric else math.nan,
                    "ci_high": metric.ci_high if metric else math.nan,
                    "n": metric.n if metric else 0,
                    "ideal": ideal.value if ideal else math.nan,
                    "limit": gate.limit(ideal),
                    "status": gate.status(metric, ideal),
                }
            )
    return rows


def verdict(rows: Sequence[Mapping[str, Any]], least_persons: int) -> dict[str, Any]:
    """Judge the synthetic patients by their gates; every must, and most shoulds.

    `least_persons`: of the holdout and the halves of the reserve. Below LEAST_PERSONS
    nothing passes; what fails clearly still fails. A gate that is optional and was not
    run keeps nothing open.
    """
    ours = [row for row in rows if row["cohort"] == SYNTHETIC]
    counts = {
        level: {
            status: sum(r["level"] == level and r["status"] == status for r in ours)
            for status in ("passed", "failed", "underpowered", "undefined", "not_run")
        }
        for level in ("must", "should")
    }
    must, should = counts["must"], counts["should"]
    judged = should["passed"] + should["failed"]
    if must["failed"] or (judged and should["passed"] < 0.8 * judged):
        outcome = "failed"
    elif least_persons < LEAST_PERSONS or any(
        row["level"] == "must"
        and row["status"] != "passed"
        and not (row["is_optional"] and row["status"] == "not_run")
        for row in ours
    ):
        outcome = "undecided"
    else:
        outcome = "passed"
    return {"outcome": outcome, "least_persons": least_persons, **counts}


def leaks(metrics: Sequence[Metric]) -> list[Metric]:
    """Return what each of LEAKS is as a share: 0 is the ideal's, 1 that of the copy.

    The interval is that of the leak, on the same scale; NaN without both anchors.
    """
    found = {(m.name, m.cohort): m for m in metrics}
    shares = []
    for metric in metrics:
        if metric.name in LEAKS:
            low, high = (
                found.get((metric.name, name)) for name in (IDEAL, WORST["privacy"])
            )
            value, *ends = (
                score("privacy", replace(metric, value=number), low, high)
                for number in (metric.value, metric.ci_low, metric.ci_high)
            )
            shares.append(
                replace(
                    metric,
                    name=LEAKS[metric.name],
                    value=value,
                    ci_low=ends[0],
                    ci_high=ends[1],
                )
            )
    return shares


def read_expected(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str, str, str]]:
    """Read what anchors have to come to: anchor, metric, stratum, failed or kept."""
    query = "select anchor, metric, stratum, outcome from evaluation.anchors"
    return con.execute(query).fetchall()


def check_anchors(
    rows: Sequence[Mapping[str, Any]], expected: Sequence[tuple[str, str, str, str]]
) -> dict[str, dict[str, Any]]:
    """Tell of each anchor whether it came out as it must, and which gates it did not.

    An anchor fails one gate at least of those that it has to fail, and passes none of
    them; it fails none that it has to keep. What the data is too small to tell speaks
    neither for nor against. The ideal cannot fail: what it misses judges nobody.
    """
    statuses = {
        (row["cohort"], row["metric"], row["stratum"]): row["status"] for row in rows
    }
    checks: dict[str, dict[str, Any]] = {}
    for anchor in dict.fromkeys(row["cohort"] for row in rows):
        told = [
            (" ".join(gate), outcome, statuses.get((anchor, *gate)))
            for name, *gate, outcome in expected
            if name == anchor
        ]
        wrong = [
            gate
            for gate, *pair in told
            if pair in (["failed", "passed"], ["kept", "failed"])
        ]
        is_caught = any(o == status == "failed" for _, o, status in told)
        if told:
            checks[anchor] = {"is_right": is_caught and not wrong, "wrong": wrong}
    return checks


def doubts(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of each anchor that did not come out as it must what it should have been."""
    return [
        f"{anchor} did not come out as it must"
        + (
            f" ({', '.join(check['wrong'])})"
            if check["wrong"]
            else " (nothing that it must fail was seen to fail)"
        )
        for anchor, check in checks.items()
        if not check["is_right"]
    ]


# columns of the scorecard, and their types: of the run, then of each row
RUN_COLUMNS = {
    "run_id": "varchar", "run_at": "timestamp", "version": "varchar",
    "revision": "varchar", "model": "varchar", "sampling": "varchar",
    "profile": "varchar", "seed": "integer",
}  # fmt: skip
ROW_COLUMNS = {
    "family": "varchar", "metric": "varchar", "stratum": "varchar",
    "cohort": "varchar", "value": "double", "ci_low": "double", "ci_high": "double",
    "n": "bigint", "ideal": "double", "ideal_sd": "double", "z": "double",
    "worst": "double", "score": "double", "threshold": "double", "level": "varchar",
    "status": "varchar",
}  # fmt: skip


def add_to_scorecard(
    con: duckdb.DuckDBPyConnection,
    run: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Add the rows of a run; a scorecard of an earlier version gets its new columns."""
    columns = RUN_COLUMNS | ROW_COLUMNS
    types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    con.execute(f"create table if not exists evaluation.eval_scorecard ({types})")
    for name, kind in columns.items():
        con.execute(
            "alter table evaluation.eval_scorecard "
            f"add column if not exists {name} {kind}"
        )
    head = [
        json.dumps(run[name]) if name == "sampling" else run[name]
        for name in RUN_COLUMNS
    ]
    con.executemany(
        f"insert into evaluation.eval_scorecard ({', '.join(columns)}) "
        f"values ({', '.join('?' * len(columns))})",
        [
            head + [row["name" if name == "metric" else name] for name in ROW_COLUMNS]
            for row in rows
        ],
    )
