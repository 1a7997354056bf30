"""Gates: what passes, fails, and cannot be said; against cases worked out by hand."""

import math
from dataclasses import replace
from datetime import datetime

import duckdb
import pytest
from omop_gpt.evaluation.results import Metric
from omop_gpt.evaluation.scorecard import (
    Gate,
    add_to_scorecard,
    check_anchors,
    doubts,
    gate_rows,
    leaks,
    score_rows,
    verdict,
)


def gate(**changes) -> Gate:
    plain = {
        "gate_order": 1, "metric": "m", "stratum": "all", "family": "fidelity",
        "level": "must", "title": "t", "bound": "value", "direction": "at_most",
        "threshold": 0.1, "ideal_factor": 0.0, "ideal_margin": 0.0, "cap": 0.0,
        "is_optional": 0,
    }  # fmt: skip
    return Gate(**(plain | changes))


def metric(value, low=math.nan, high=math.nan, cohort="synthetic", name="m") -> Metric:
    return Metric(name=name, cohort=cohort, value=value, ci_low=low, ci_high=high, n=9)


IDEAL = metric(0.05, cohort="ideal")
LARGE_IDEAL = metric(0.2, cohort="ideal")
PRIVACY = {"bound": "ci_high", "family": "privacy"}


@pytest.mark.parametrize(
    ("changes", "ours", "ideal", "status"),
    [
        ({}, metric(0.1), IDEAL, "passed"),
        ({}, metric(0.11), IDEAL, "failed"),
        ({}, metric(0.11), None, "failed"),
        ({}, None, IDEAL, "not_run"),
        ({}, metric(math.nan), IDEAL, "undefined"),
        ({"direction": "at_least", "threshold": 0.9}, metric(0.8), metric(1), "failed"),
        ({"direction": "at_least", "threshold": 0.9}, metric(0.9), metric(1), "passed"),
        # the bound follows the ideal, up to a cap
        ({"ideal_factor": 3.0}, metric(0.14), IDEAL, "passed"),
        ({"ideal_factor": 3.0, "cap": 0.12}, metric(0.14), IDEAL, "failed"),
        ({"ideal_factor": 1.0, "ideal_margin": 1.0}, metric(1.06), IDEAL, "failed"),
        # the ideal misses: nobody passes, and who is twice as far fails
        ({}, metric(0.05), LARGE_IDEAL, "underpowered"),
        ({}, metric(0.25), LARGE_IDEAL, "underpowered"),
        ({}, metric(0.31), LARGE_IDEAL, "failed"),
        ({}, LARGE_IDEAL, LARGE_IDEAL, "underpowered"),
        # fidelity with an interval: missed for sure where all of it is beyond
        ({}, metric(0.09, 0, 0.2), IDEAL, "passed"),
        ({}, metric(0.12, 0.09, 0.15), IDEAL, "underpowered"),
        ({}, metric(0.13, 0.11, 0.15), IDEAL, "failed"),
        ({}, metric(0.13, 0.11, 0.15), None, "failed"),
        ({}, metric(0.13, 0.09, 0.15), None, "underpowered"),
        ({"family": "utility"}, metric(0.12, 0.09, 0.15), IDEAL, "underpowered"),
        ({"family": "quality"}, metric(0.12, 0.09, 0.15), IDEAL, "failed"),
        (
            {"direction": "at_least", "threshold": 0.9}, metric(0.8, 0.7, 0.91),
            metric(1), "underpowered",
        ),
        (
            {"direction": "at_least", "threshold": 0.9}, metric(0.8, 0.7, 0.89),
            metric(1), "failed",
        ),
        # the bound follows the ideal
        (
            {"ideal_margin": 0.07, "ideal_factor": 1.0}, metric(0.14, 0.11, 0.17),
            IDEAL, "underpowered",
        ),
        # the ideal misses, too
        ({}, metric(0.19, 0.15, 0.23), LARGE_IDEAL, "underpowered"),
        ({}, metric(0.21, 0.15, 0.27), LARGE_IDEAL, "failed"),
        ({}, metric(0.05, 0.0, 0.1), LARGE_IDEAL, "underpowered"),
        # with intervals, of privacy
        (PRIVACY, metric(0.05, 0.01, 0.09), metric(0, 0, 0.1), "passed"),
        (
            PRIVACY, metric(0.05, 0.01, 0.2), metric(0, -0.1, 0.1),
            "underpowered",
        ),
        (PRIVACY, metric(0.3, 0.2, 0.4), metric(0, -0.1, 0.1), "failed"),
        (PRIVACY, metric(0.3, 0.21, 0.4), metric(0, -0.2, 0.2), "failed"),
        (
            PRIVACY, metric(0.3, 0.1, 0.4), metric(0, -0.2, 0.2),
            "underpowered",
        ),
    ],
)  # fmt: skip
def test_status(changes, ours, ideal, status):
    assert gate(**changes).status(ours, ideal) == status


def test_verdict_and_anchors():
    gates = [
        gate(),
        gate(gate_order=2, metric="leak", family="privacy", threshold=0.5),
        gate(gate_order=3, metric="nice", level="should"),
    ]
    metrics = [
        metric(value, cohort=cohort, name=name)
        for name, values in {
            "m": {"synthetic": 0.1, "ideal": 0.0, "copy": 0.0, "unigram": 0.9},
            "leak": {"synthetic": 0.1, "ideal": 0.1, "copy": 1.0, "unigram": 0.1},
            "nice": {"synthetic": 0.05, "ideal": 0.0, "copy": 0.0, "unigram": 0.0},
        }.items()
        for cohort, value in values.items()
    ]
    cohorts = ("synthetic", "ideal", "copy", "unigram")
    rows = gate_rows(metrics, gates, cohorts)
    expected = [
        ("copy", "leak", "all", "failed"),
        ("copy", "m", "all", "kept"),
        ("unigram", "m", "all", "failed"),
        ("unigram", "leak", "all", "kept"),
    ]
    fine = {"is_right": True, "wrong": []}
    checks = check_anchors(rows, expected)
    assert checks == dict.fromkeys(("copy", "unigram"), fine)
    assert not doubts(checks)
    assert verdict(rows, 5_000)["outcome"] == "passed"
    assert verdict(rows, 500)["outcome"] == "undecided"
    # a copy that gets through privacy puts the evaluation in doubt
    blind = [m for m in metrics if (m.name, m.cohort) != ("leak", "copy")]
    rows = gate_rows(blind, gates, cohorts)
    assert check_anchors(rows, expected)["copy"] == {"is_right": False, "wrong": []}
    # so does one that passes, or fails what it has to keep
    for name, value, cohort in (
        ("leak", 0.1, "copy"), ("m", 0.9, "copy"), ("leak", 1.0, "unigram"),
    ):  # fmt: skip
        changed = [
            replace(m, value=value) if (m.name, m.cohort) == (name, cohort) else m
            for m in metrics
        ]
        checks = check_anchors(gate_rows(changed, gates, cohorts), expected)
        assert checks[cohort] == {"is_right": False, "wrong": [f"{name} all"]}
        assert f"{name} all" in doubts(checks)[-1]
        assert all(checks[other] == fine for other in checks if other != cohort)
    unasked = [m for m in metrics if m.name != "leak"]
    rows = gate_rows(unasked, gates, cohorts)
    assert verdict(rows, 5_000)["outcome"] == "undecided"
    # what only some models have keeps nothing open, unless it was tried in vain
    optional = [replace(g, is_optional=int(g.metric == "leak")) for g in gates]
    rows = gate_rows(unasked, optional, cohorts)
    assert verdict(rows, 5_000)["outcome"] == "passed"
    rows = gate_rows([*unasked, metric(math.nan, name="leak")], optional, cohorts)
    assert verdict(rows, 5_000)["outcome"] == "undecided"
    rows = gate_rows([*unasked, metric(0.6, name="leak")], optional, cohorts)
    assert verdict(rows, 5_000)["outcome"] == "failed"
    failed = [m for m in metrics if m.name != "m" or m.cohort != "synthetic"]
    rows = gate_rows([*failed, metric(0.2)], gates, cohorts)
    assert verdict(rows, 500)["outcome"] == "failed"


def test_of_several_sets_the_worst_is_judged():
    sets = ("synthetic", "synthetic_2", "synthetic_3")
    gates = [
        gate(family="fidelity"),
        gate(gate_order=2, metric="high", family="utility", direction="at_least"),
        gate(gate_order=3, metric="leak", family="privacy"),
        gate(gate_order=4, metric="missing", family="fidelity"),
        gate(gate_order=5, metric="unknown", family="fidelity"),
    ]
    values = {
        "m": (0.1, 0.3, math.nan),
        "high": (0.9, 0.8, 0.7),
        "leak": (0.1, 0.9, 0.9),
        "unknown": (math.nan,) * 3,
    }
    metrics = [
        metric(value, cohort=cohort, name=name)
        for name, of_sets in values.items()
        for cohort, value in zip(sets, of_sets, strict=True)
    ]
    rows = gate_rows(metrics, gates, ("synthetic", "ideal"), sets)
    ours = [row["value"] for row in rows if row["cohort"] == "synthetic"]
    assert ours[:3] == [0.3, 0.7, 0.1]
    assert [row["status"] for row in rows[6::2]] == ["not_run", "undefined"]
    alone = gate_rows(metrics, gates, ("synthetic",))
    assert [row["value"] for row in alone][:3] == [0.1, 0.9, 0.1]


def test_the_scorecard_only_grows():
    metrics = [
        metric(0.3), metric(0.1, cohort="ideal"), metric(0.5, cohort="unigram"),
        metric(1.0, cohort="copy"), metric(0.25, name="leak"),
        metric(0.0, cohort="ideal", name="leak"),
        metric(0.5, cohort="copy", name="leak"),
    ]  # fmt: skip
    rows = score_rows(metrics, {"m": "fidelity", "leak": "privacy"}, [gate()])
    scores = {(row["name"], row["cohort"]): row["score"] for row in rows}
    # half way from the ideal to the unigram; half as leaky as a copy
    assert scores["m", "synthetic"] == pytest.approx(0.5)
    assert scores["m", "ideal"] == 1
    assert scores["leak", "synthetic"] == pytest.approx(0.5)
    con = duckdb.connect()
    con.execute("create schema evaluation")
    # the scorecard of an earlier version keeps its rows, and gets the new columns
    con.execute("create table evaluation.eval_scorecard as select 'old' as run_id")
    run = {
        "run_id": "a", "run_at": "2026-11-28 09:00:00", "version": "1",
        "revision": "", "model": "", "sampling": {"top_p": 1}, "profile": "smoke",
        "seed": 1,
    }  # fmt: skip
    add_to_scorecard(con, run, rows)
    add_to_scorecard(con, run | {"run_id": "b"}, rows)
    kept = "select count(*) from evaluation.eval_scorecard where run_id = 'old'"
    assert con.execute(kept).fetchone() == (1,)
    found = con.execute(
        "select run_id, status, count(*) from evaluation.eval_scorecard "
        "where metric = 'm' and cohort = 'synthetic' group by all order by 1"
    ).fetchall()
    assert found == [("a", "failed", 1), ("b", "failed", 1)]
    asked = con.execute(
        "select distinct sampling ->> 'top_p', run_at from evaluation.eval_scorecard "
        "where run_id = 'a'"
    ).fetchall()
    assert asked == [("1", datetime(2026, 11, 28, 9))]


def test_a_metric_is_told_in_standard_errors_of_the_ideal():
    ideal = metric(0.1, 0.06, 0.14, cohort="ideal")  # 1.96 standard errors each way
    rows = score_rows([metric(0.14), ideal], {}, [gate()])
    assert rows[0]["ideal_sd"] == pytest.approx(0.04 / 1.96)
    assert rows[0]["z"] == pytest.approx(1.96)
    rows = score_rows([metric(0.14), metric(0.1, cohort="ideal")], {}, [gate()])
    assert math.isnan(rows[0]["z"])


def test_a_leak_is_a_share_of_what_a_copy_leaks():
    ours = [
        metric(0.05, 0.0, 0.2, name="nnaa_loss"),
        metric(0.0, -0.1, 0.1, cohort="ideal", name="nnaa_loss"),
        metric(0.5, 0.5, 0.5, cohort="copy", name="nnaa_loss"),
        metric(0.3),
    ]
    shares = {m.cohort: (m.value, m.ci_low, m.ci_high) for m in leaks(ours)}
    assert shares["synthetic"] == pytest.approx((0.1, 0.0, 0.4))
    assert shares["ideal"] == pytest.approx((0.0, -0.2, 0.2))
    assert shares["copy"] == pytest.approx((1.0, 1.0, 1.0))
    assert {m.name for m in leaks(ours)} == {"nnaa_leak"}
    alone = leaks(ours[:1])  # without the anchors it has no value
    assert [math.isnan(m.value) for m in alone] == [True]
