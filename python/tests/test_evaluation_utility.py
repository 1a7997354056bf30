"""Discriminator and utility, each number against another way to compute it.

A small world in which one code tells who will be admitted, fall ill and die. Cohort
`good` is drawn from it again; in `bad` the codes are dealt out anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from omop_gpt.evaluation import discriminator, utility
from omop_gpt.evaluation.auroc import auroc, interval, person_weights
from omop_gpt.evaluation.results import PROFILES, Results
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedKFold

ROOT = Path(__file__).parents[2]
COHORTS = {"train": 900, "holdout": 800, "good": 900, "bad": 900, "small": 150}
PROFILE = replace(
    PROFILES["standard"], bootstraps=60, discriminator_persons=900, reads_histories=True
)
RISK, CHRONIC, ACUTE = 77, 320128, (11, 12, 13, 14, 15)
KIND_OF_IT = 4262182  # a descendant of the chronic condition
FAMILIES = {CHRONIC: (CHRONIC, KIND_OF_IT), KIND_OF_IT: (KIND_OF_IT,)}
START = date(2000, 1, 1)


def make_patients(cohort: str, count: int, seed: int) -> dict[str, list[tuple]]:
    """Rows of persons, visits and events."""
    rng = np.random.default_rng(seed)
    rows = {"persons": [], "visits": [], "events": []}
    for person in range(count):
        person_id = 1_000_000 * seed + person
        is_risky = rng.random() < 0.4
        day, is_ill, death = int(rng.integers(0, 400)), False, None
        end = 0
        for order in range(1, int(rng.integers(1, 24))):
            is_admitted = rng.random() < (0.3 if is_risky else 0.03)
            kind = 9201 if is_admitted else int(rng.choice([9202, 9202, 9203, 581477]))
            start = day
            end = start + (int(rng.integers(0, 8)) if is_admitted else 0)
            visit = START + timedelta(start), START + timedelta(end)
            rows["visits"].append((cohort, person_id, order, kind, *visit))
            codes = [("procedure_occurrence", int(rng.choice(ACUTE)))]
            if is_risky and rng.random() < 0.8:
                codes.append(("measurement", RISK))
            is_ill |= rng.random() < (0.12 if is_risky else 0.01)
            if is_ill:
                code = CHRONIC if rng.random() < 0.6 else KIND_OF_IT
                codes.append(("condition_occurrence", code))
            for table, code in codes:
                rows["events"].append(
                    (cohort, person_id, order, table, code, visit[0], None, None)
                )
            day = end + int(rng.choice([5, 20, 60, 150, 300]))
        if rng.random() < (0.3 if is_risky else 0.05):
            death = START + timedelta(end + int(rng.integers(1, 300)))
        rows["persons"].append(
            (
                cohort, person_id, int(rng.choice([8507, 8532])),
                int(rng.choice([8527, 8516])), 0, int(rng.integers(1920, 2000)), death,
            )
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    """A warehouse with the cohorts, and the marts as dbt makes them."""
    folder = tmp_path_factory.mktemp("utility")
    warehouse = folder / "warehouse.duckdb"
    with duckdb.connect(str(warehouse)) as con:
        con.execute(
            """
            create schema evaluation_private;
            create table evaluation_private.persons (
                cohort text, person_id bigint, gender_concept_id bigint,
                race_concept_id bigint, ethnicity_concept_id bigint,
                year_of_birth int, death_date date
            );
            create table evaluation_private.visits (
                cohort text, person_id bigint, visit_order int,
                visit_concept_id bigint, visit_start_date date, visit_end_date date
            );
            create table evaluation_private.events (
                cohort text, person_id bigint, visit_order int, source_table text,
                concept_id bigint, event_date date, value_as_number double,
                unit_concept_id bigint
            );
            create table evaluation_private.concept_families (
                source_table text, concept_id bigint, family_concept_id bigint
            )
            """
        )
        for seed, (cohort, count) in enumerate(COHORTS.items(), 1):
            rows = make_patients(cohort, count, seed)
            if cohort == "bad":
                codes = np.random.default_rng(0).permutation(
                    [r[3:5] for r in rows["events"]]
                )
                rows["events"] = [
                    (*row[:3], str(table), int(code), *row[5:])
                    for row, (table, code) in zip(rows["events"], codes)
                ]
            for table, some in rows.items():
                columns = con.sql(f"from evaluation_private.{table}").columns
                frame = pd.DataFrame(some, columns=columns, dtype=object)
                con.register("frame", frame)
                con.execute(f"insert into evaluation_private.{table} from frame")
        con.executemany(
            "insert into evaluation_private.concept_families values "
            "('condition_occurrence', ?, ?)",
            [(one, family) for family, some in FAMILIES.items() for one in some],
        )
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "run", "--select",
            "incident_conditions", "prediction_tasks", "task_outcomes", "task_labels",
            "task_prevalence",
            "person_summaries", "--project-dir", ROOT, "--profiles-dir", ROOT,
            "--target-path", folder / "target", "--log-path", folder / "logs",
        ],
        env=os.environ | {"OMOP_GPT_WAREHOUSE": str(warehouse)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    with duckdb.connect(str(warehouse), read_only=True) as con:
        yield con


@pytest.fixture(scope="module")
def results(con) -> Results:
    found = Results()
    found.add("of_another_family", "train", 0)
    for cohort in ("good", "bad", "small", "nobody"):
        discriminator.measure(con, cohort, PROFILE, found)
        utility.measure(con, cohort, PROFILE, found)
    return found


def value_of(results: Results, name: str, cohort: str, stratum: str = "all"):
    (metric,) = (
        m
        for m in results.metrics
        if (m.name, m.cohort, m.stratum) == (name, cohort, stratum)
    )
    return metric


# ---------- the area under the curve


def test_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    cases = rng.integers(0, 2, 200)
    scores = rng.integers(0, 9, 200) + cases  # many ties
    assert auroc(cases, scores)[0] == pytest.approx(roc_auc_score(cases, scores))
    weights = person_weights(200, 5, seed=3)
    assert (weights.sum(axis=1) == 200).all()
    expected = [roc_auc_score(cases, scores, sample_weight=some) for some in weights]
    assert auroc(cases, scores, weights) == pytest.approx(expected)


def test_auroc_of_one_outcome_or_no_rows_is_nan():
    assert np.isnan(auroc(np.ones(3), np.arange(3.0)))[0]
    assert np.isnan(auroc(np.empty(0), np.empty(0), np.empty((4, 0)))).all()


def test_interval_leaves_out_what_is_no_number():
    assert interval(np.array([*range(101), np.nan])) == pytest.approx((2.5, 97.5))
    assert np.isnan(interval(np.array([1.0, np.nan, np.nan]))).all()


# ---------- the scores of predictions


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    chance = rng.uniform(0.02, 0.98, 400)
    cases = (rng.random(400) < chance**2).astype(int)
    found = utility.scores(cases[:, None], chance[:, None])
    assert found["auprc"] == pytest.approx(average_precision_score(cases, chance))
    assert found["brier"] == pytest.approx(brier_score_loss(cases, chance))
    assert found["observed_expected"] == pytest.approx(cases.sum() / chance.sum())

    def loss(line):
        fitted = expit(line[0] + line[1] * logit(chance))
        return -np.sum(np.log(np.where(cases == 1, fitted, 1 - fitted)))

    assert found["calibration_slope"] == pytest.approx(
        minimize(loss, [0, 1]).x[1], rel=1e-3
    )


def test_several_classes_are_one_against_the_rest():
    rng = np.random.default_rng(3)
    chance = rng.dirichlet([1, 1, 1], 300)
    labels = np.array([rng.choice(3, p=row) for row in chance])
    truth = (labels[:, None] == np.arange(3)).astype(int)
    assert utility.macro_auroc(truth, chance)[0] == pytest.approx(
        roc_auc_score(labels, chance, multi_class="ovr", average="macro")
    )


def test_calibration_says_the_mean_of_each_tenth():
    chance = np.linspace(0, 1, 100)[:, None]
    truth = (chance > 0.5).astype(int)
    points = list(utility.calibration(truth, chance))
    assert [p["persons"] for p in points] == [10] * 10
    assert points[0]["chance"] == pytest.approx(chance[:10].mean())
    assert [p["observed"] for p in points] == [0] * 5 + [1] * 5


# ---------- the marts


def histories(con, cohort: str) -> dict[int, dict]:
    found = {
        row[0]: {"birth": row[1], "death": row[2], "visits": [], "events": []}
        for row in con.execute(
            "select person_id, year_of_birth, death_date "
            "from evaluation_private.persons where cohort = ?",
            [cohort],
        ).fetchall()
    }
    for person, *visit in con.execute(
        "select person_id, visit_start_date, visit_end_date, visit_concept_id "
        "from evaluation_private.visits where cohort = ? order by 1, visit_order",
        [cohort],
    ).fetchall():
        found[person]["visits"].append(visit)
    for person, *event in con.execute(
        "select person_id, event_date, source_table, concept_id, visit_order "
        "from evaluation_private.events where cohort = ?",
        [cohort],
    ).fetchall():
        found[person]["events"].append(event)
    return found


def kind_of(concept: int) -> int:
    return {9201: 0, 9203: 1, 9202: 2}.get(concept, 3)


def answers(task: str, person: dict) -> dict[date, int]:
    """Every day that a task can be asked on, and what is true of it."""
    visits, death = person["visits"], person["death"]
    days = [day for visit in visits for day in visit[:2]]
    days += [event[0] for event in person["events"]]
    first, last = min(days), death or max(days)
    horizon = {"readmit30": 30, "admit180": 180, "mortality365": 365}.get(task, 0)
    onset = None
    if task.startswith("incident"):
        horizon = 1095
        onset = min(
            (
                day
                for day, table, concept, _ in person["events"]
                if table == "condition_occurrence"
                and concept in FAMILIES[int(task.removeprefix("incident_"))]
            ),
            default=None,
        )
    found = {}
    for number, (start, end, concept) in enumerate(visits):
        kind = kind_of(concept)
        day = end if task == "readmit30" else start
        if task in ("readmit30", "los_over_3") and kind != 0:
            continue
        if task == "admit180" and kind != 2:
            continue
        least_age = {"mortality365": 50}.get(task, 18 if "incident" in task else -99)
        until = day + timedelta(horizon)
        if (
            (day - first).days < 365
            or day.year - person["birth"] < least_age
            or (death is None and until > last)
            or (death is not None and death <= day)
            or (task == "readmit30" and death is not None and death <= until)
            or (onset is not None and onset <= day)
        ):
            continue
        if task == "next_visit_type":
            if number + 1 < len(visits):
                found[day] = kind_of(visits[number + 1][2])
        elif task == "los_over_3":
            found[day] = int((end - start).days > 3)
        elif task == "mortality365":
            found[day] = int(death is not None and death <= until)
        elif onset is not None or "incident" in task:
            found[day] = int(onset is not None and onset <= until)
        else:
            kinds = (0,) if task == "readmit30" else (0, 1)
            found[day] = int(
                any(
                    day < other <= until and kind_of(concept) in kinds
                    for other, _, concept in visits
                )
            )
    return found


@pytest.mark.parametrize("cohort", ["holdout", "bad"])
def test_labels_are_what_comes_true(con, cohort):
    persons = histories(con, cohort)
    tasks = [
        "readmit30", "admit180", "mortality365", "next_visit_type", "los_over_3",
        *(f"incident_{concept}" for concept in FAMILIES),
    ]  # fmt: skip
    for task in tasks:
        expected = {
            person_id: found
            for person_id, person in persons.items()
            if person["visits"] and (found := answers(task, person))
        }
        rows = con.execute(
            "select person_id, index_date, label from evaluation_private.task_labels "
            "where cohort = ? and task = ?",
            [cohort, task],
        ).fetchall()
        assert len(rows) == len(expected) > 20, task
        for person_id, day, label in rows:
            assert expected[person_id][day] == label, (task, person_id)
        # any of the days, not always the first or the last
        places = [
            sorted(expected[person_id]).index(day) / (len(expected[person_id]) - 1)
            for person_id, day, _ in rows
            if len(expected[person_id]) > 1
        ]
        assert 0.3 < np.mean(places) < 0.7 or len(places) < 50, task


def test_what_is_known_is_of_the_index_and_before(con):
    persons = histories(con, "holdout")
    for person_id, day, age, *counts, gap in con.execute(
        "select person_id, index_date, age, inpatient_visits, emergency_visits, "
        "outpatient_visits, other_visits, mean_gap from evaluation_private.task_labels "
        "where cohort = 'holdout' and task = 'admit180'"
    ).fetchall():
        person = persons[person_id]
        before = [visit for visit in person["visits"] if visit[0] <= day]
        assert age == day.year - person["birth"]
        kinds = [kind_of(visit[2]) for visit in before]
        assert counts == [kinds.count(kind) for kind in range(4)]
        days = np.diff([visit[0].toordinal() for visit in before])
        assert gap == pytest.approx(days.mean() if len(days) else 0)


def test_prevalence_counts_the_labels(con):
    assert (
        con.execute(
            "select task, cohort, label, person_count from evaluation.task_prevalence "
            "order by all"
        ).fetchall()
        == con.execute(
            "select task, cohort, label, count(*) from evaluation_private.task_labels "
            "group by all order by all"
        ).fetchall()
    )


def test_the_chronic_condition_is_found(con):
    assert con.execute(
        "select concept_id, person_count from evaluation.incident_conditions "
        "order by condition_order"
    ).fetchall() == [
        (
            concept,
            sum(
                any(told in kinds for _, _, told, _ in person["events"])
                for person in histories(con, "train").values()
            ),
        )
        for concept, kinds in FAMILIES.items()
    ]
    # and a roll-out has it where one of its kinds comes up
    assert con.execute(
        "select task, concept_id from evaluation.task_outcomes "
        "where source_table = 'condition_occurrence' order by all"
    ).fetchall() == sorted(
        (f"incident_{concept}", kind)
        for concept, kinds in FAMILIES.items()
        for kind in kinds
    )


def test_summaries_are_those_of_the_histories(con):
    persons = histories(con, "small")
    table = con.execute(
        "from evaluation_private.person_summaries where cohort = 'small'"
    ).df()
    assert sorted(table["person_order"]) == list(range(1, len(persons) + 1))
    for _, row in table.iterrows():
        person = persons[row["person_id"]]
        visits = person["visits"]
        assert row["visits"] == len(visits)
        assert row["events"] == len(person["events"])
        assert row["concepts"] == len({event[2] for event in person["events"]})
        kinds = [kind_of(visit[2]) for visit in visits]
        names = ("inpatient", "emergency", "outpatient", "other")
        for kind, name in enumerate(names):
            assert row[f"{name}_visits"] == kinds.count(kind)
        assert row["stay_days"] == sum((v[1] - v[0]).days for v in visits)
        if visits:
            assert row["age"] == visits[0][0].year - person["birth"]
        gaps = np.diff([visit[0].toordinal() for visit in visits])
        if len(gaps) > 1:
            assert row["gap_sd"] == pytest.approx(gaps.std(ddof=1))
        for name in ("mean", "min", "median", "max"):
            expected = getattr(np, name)(gaps) if len(gaps) else np.nan
            assert row[f"gap_{name}"] == pytest.approx(expected, nan_ok=True)
        content = {}
        for _, _, concept, order in person["events"]:
            content.setdefault(order, set()).add(concept)
        for lag in (1, 5):
            found = [
                len(some & content[order + lag]) / len(some | content[order + lag])
                for order, some in content.items()
                if order + lag in content
            ]
            expected = np.mean(found) if found else np.nan
            assert row[f"lag_{lag}_jaccard"] == pytest.approx(expected, nan_ok=True)


# ---------- the discriminator


def test_a_perfect_generator_is_not_told_apart(results):
    for model in ("boosting", "logistic", "sequence"):
        metric = value_of(results, "discriminator_auc", "good", model)
        assert 0.45 < metric.value < 0.55
        assert metric.ci_low < metric.value < metric.ci_high
        assert metric.n == 2 * COHORTS["holdout"]
        assert value_of(results, "discriminator_auc", "bad", model).value > 0.8
    pmse = [
        value_of(results, "discriminator_pmse", cohort, "boosting").value
        for cohort in ("good", "bad")
    ]
    assert 0 < pmse[0] < 0.05 < 0.15 < pmse[1] < 0.25


def test_the_feature_that_tells_them_apart_is_named(results):
    rows = [
        row
        for row in results.curves["discriminator_features"]
        if row["cohort"] == "bad"
    ]
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert rows[0]["importance"] == max(row["importance"] for row in rows)
    telling = {"lag_1_jaccard", "lag_5_jaccard", f"concept_id {CHRONIC}"}
    assert rows[0]["feature"] in telling | {f"concept_id {RISK}"}


def test_discriminator_is_that_of_scikit_learn(con, results):
    features, names, is_synthetic = discriminator.load(con, "small", 150)
    assert features.shape == (300, len(names))
    assert is_synthetic.sum() == 150
    areas, errors = [], []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=42).split(
        features, is_synthetic
    ):
        model = discriminator.models(42)["logistic"]
        model.fit(features[train], is_synthetic[train])
        chance = model.predict_proba(features[test])[:, 1]
        areas.append(roc_auc_score(is_synthetic[test], chance))
        errors.extend((chance - 0.5) ** 2)
    metric = value_of(results, "discriminator_auc", "small", "logistic")
    assert metric.value == pytest.approx(np.mean(areas))
    metric = value_of(results, "discriminator_pmse", "small", "logistic")
    assert metric.value == pytest.approx(np.mean(errors))


def test_the_roc_curve_has_the_area(results):
    for cohort in ("good", "bad"):
        rows = [
            row
            for row in results.curves["discriminator_roc"]
            if (row["cohort"], row["model"]) == (cohort, "logistic")
        ]
        area = np.trapezoid(
            [row["true_positive_rate"] for row in rows],
            [row["false_positive_rate"] for row in rows],
        )
        metric = value_of(results, "discriminator_auc", cohort, "logistic")
        assert area == pytest.approx(metric.value, abs=0.01)


def test_discriminator_counts_codes_per_person(con):
    features, names, _ = discriminator.load(con, "bad", 200)
    expected = con.execute(
        """
        select ln(1 + count(events.concept_id))
        from evaluation_private.person_summaries as persons
        left join evaluation_private.events as events
            on
                persons.cohort = events.cohort
                and persons.person_id = events.person_id
                and events.concept_id = ?
        where person_order <= 200 and persons.cohort in ('holdout', 'bad')
        group by persons.cohort, person_order
        order by persons.cohort = 'bad', person_order
        """,
        [RISK],
    ).fetchnumpy()
    column = features[:, names.index(f"concept_id {RISK}")]
    assert column == pytest.approx(next(iter(expected.values())))


# ---------- utility


def test_features_are_of_the_index_and_before(con):
    reference = utility.make_reference(con, PROFILE)
    rows = reference.test["admit180"]
    numbers = dict(
        con.execute("select concept_id, number from frequent_concepts").fetchall()
    )
    persons = histories(con, "holdout")
    days = dict(
        con.execute(
            "select person_id, index_date from evaluation_private.task_labels "
            "where cohort = 'holdout' and task = 'admit180'"
        ).fetchall()
    )
    assert sorted(rows.person_ids) == sorted(days)
    for place, person_id in enumerate(rows.person_ids):
        expected = np.zeros(3 * utility.CONCEPTS)
        for day, _, concept, _ in persons[person_id]["events"]:
            past = (days[person_id] - day).days
            if past >= 0:
                window = 0 if past <= 90 else 1 if past <= 365 else 2
                expected[3 * numbers[concept] + window] += 1
        assert rows.counts[[place]].toarray()[0] == pytest.approx(np.log1p(expected))


def test_tstr_is_a_model_of_the_candidate_tested_on_the_holdout(con, results):
    reference = utility.make_reference(con, PROFILE)
    _, rows_of = utility.load(con, "good", 20_000, reference.races)
    task = f"incident_{CHRONIC}"
    test = reference.test[task]

    def tested(rows):
        def read(some):
            return np.hstack([some.demographics, some.history, some.counts.toarray()])

        model = LogisticRegression(C=0.03, max_iter=500).fit(read(rows), rows.labels)
        return roc_auc_score(test.labels, model.predict_proba(read(test))[:, 1])

    stratum = f"{task}/logistic"
    tstr, trtr = tested(rows_of[task]), tested(reference.train[task])
    close = {"abs": 2e-3}  # two solvers of one convex problem, dense and sparse
    assert value_of(results, "tstr_auroc", "good", stratum).value == pytest.approx(
        tstr, **close
    )
    assert value_of(results, "trtr_auroc", "train", stratum).value == pytest.approx(
        trtr, **close
    )
    found = value_of(results, "tstr_auroc_difference", "good", stratum)
    assert found.value == pytest.approx(tstr - trtr, **close)
    assert found.ci_low <= found.value <= found.ci_high
    floor = value_of(results, "floor_auroc", "train", stratum).value
    assert value_of(results, "relative_utility", "good", stratum).value == (
        pytest.approx((tstr - floor) / (trtr - floor), abs=0.03)
    )


def test_trts_is_a_model_of_real_patients_tested_on_the_candidate(con, results):
    reference = utility.make_reference(con, PROFILE)
    _, rows_of = utility.load(con, "good", 20_000, reference.races)
    train, rows = reference.train["admit180"], rows_of["admit180"]
    model = LogisticRegression(C=0.03, max_iter=500)
    model.fit(utility.inputs(train).toarray(), train.labels)
    chance = model.predict_proba(utility.inputs(rows).toarray())[:, 1]
    metric = value_of(results, "trts_auroc", "good", "admit180/logistic")
    assert metric.value == pytest.approx(roc_auc_score(rows.labels, chance), abs=2e-3)
    assert metric.n == len(rows.labels)


def test_the_paired_bootstrap_is_of_persons(con):
    reference = utility.make_reference(con, PROFILE)
    rows = reference.test["admit180"]
    weights = reference.weights_of(rows)
    trained = reference.trained_on("admit180", "logistic", len(rows.labels))
    expected = roc_auc_score(
        trained.truth[:, 0], trained.chance[:, 0], sample_weight=weights[7]
    )
    assert trained.areas[1 + 7] == pytest.approx(expected)
    other = reference.test["next_visit_type"]
    shared = set(rows.person_ids) & set(other.person_ids)
    one, two = (
        dict(zip(part.person_ids, reference.weights_of(part).T.tolist()))
        for part in (rows, other)
    )
    assert all(one[person] == two[person] for person in shared)


def test_a_good_generator_is_useful_and_a_bad_one_is_not(results):
    good, bad = (
        {
            name: value_of(results, name, cohort).value
            for name in ("relative_utility", "tstr_gap_mean", "tstr_gap_worst")
        }
        for cohort in ("good", "bad")
    )
    assert good["relative_utility"] > 0.8
    assert abs(good["tstr_gap_mean"]) < 0.03
    assert bad["relative_utility"] < 0.6
    assert bad["tstr_gap_mean"] > 0.05
    assert bad["tstr_gap_worst"] >= bad["tstr_gap_mean"]


def test_summaries_are_of_the_strata(results):
    for model in ("logistic", "boosting", "all"):
        gaps = [
            -m.value
            for m in results.metrics
            if m.name == "tstr_auroc_difference"
            and m.cohort == "bad"
            and model in ("all", m.stratum.split("/")[1])
        ]
        assert len(gaps) >= 4
        mean = value_of(results, "tstr_gap_mean", "bad", model).value
        assert mean == pytest.approx(np.mean(gaps))
        worst = value_of(results, "tstr_gap_worst", "bad", model).value
        assert worst == pytest.approx(max(gaps))
    parts = [
        (m.value - n.value, r.value - n.value)
        for m in results.metrics
        if m.name == "tstr_auroc" and m.cohort == "bad" and m.n
        for n in [value_of(results, "floor_auroc", "train", m.stratum)]
        for r in [value_of(results, "trtr_auroc", "train", m.stratum)]
        if r.value - n.value >= utility.LEAST_MARGIN
    ]
    expected = np.sum(parts, axis=0)
    assert value_of(results, "relative_utility", "bad").value == pytest.approx(
        expected[0] / expected[1]
    )


def test_a_small_cohort_is_held_against_as_many_real_patients(con, results):
    reference = utility.make_reference(con, PROFILE)
    rows = len(reference.train["admit180"].labels)
    sizes = {key[2] for key in reference.trained if key[0] == "admit180" and not key[3]}
    assert round(rows * COHORTS["small"] / COHORTS["train"]) in sizes
    for stratum in ("admit180/logistic",):
        (row,) = (
            row
            for row in results.curves["utility_auroc"]
            if (row["cohort"], f"{row['task']}/{row['model']}") == ("small", stratum)
        )
        assert row["trtr"] != value_of(results, "trtr_auroc", "train", stratum).value


def test_importances_are_those_of_shuffled_columns(con, results):
    task = f"incident_{CHRONIC}"
    reference = utility.make_reference(con, PROFILE)
    _, rows_of = utility.load(con, "good", 20_000, reference.races)
    test, learner = reference.test[task], reference.learners[task]
    read = utility.inputs(test).toarray()
    of_real = reference.trained_on(task, "logistic", len(reference.train[task].labels))
    models = [
        of_real.predictor.estimator,
        learner.learn("logistic", rows_of[task]).estimator,
    ]
    places = np.random.default_rng(PROFILE.seed).permutation(len(read))
    losses = np.zeros((2, read.shape[1]))
    for number, model in enumerate(models):
        whole = roc_auc_score(test.labels, model.decision_function(read))
        for column in np.flatnonzero(read.std(axis=0)):
            other = read.copy()
            other[:, column] = read[places, column]
            area = roc_auc_score(test.labels, model.decision_function(other))
            losses[number, column] = whole - area
    chosen = np.argsort(-losses[0])[: utility.IMPORTANT]
    chosen = chosen[losses[0, chosen] != 0]
    expected = spearmanr(*losses[:, chosen]).statistic
    found = value_of(results, "importance_agreement", "good", task).value
    assert found == pytest.approx(expected, abs=0.02)
    mean = value_of(results, "importance_agreement", "good").value
    assert mean == pytest.approx(
        np.mean(
            [
                m.value
                for m in results.metrics
                if m.name == "importance_agreement"
                and m.cohort == "good"
                and m.stratum != "all"
            ]
        )
    )


def test_importance_is_the_loss_of_a_shuffled_column(con):
    reference = utility.make_reference(con, PROFILE)
    predictor = reference.trained_on("admit180", "logistic", 10**6).predictor
    assert utility.agreement(predictor, predictor, reference, "admit180") == (
        pytest.approx(1)
    )
    backwards = LogisticRegression()
    backwards.classes_ = predictor.estimator.classes_
    backwards.coef_ = -predictor.estimator.coef_
    backwards.intercept_ = -predictor.estimator.intercept_
    # what made it better makes it as much worse
    assert utility.agreement(
        predictor, replace(predictor, estimator=backwards), reference, "admit180"
    ) == pytest.approx(-1)


def test_a_candidate_without_an_outcome_predicts_nothing(con):
    reference = utility.make_reference(con, PROFILE)
    rows = reference.train["admit180"].first(50)
    learner = reference.learners["admit180"]
    for labels in (np.zeros(50, int), np.zeros(0, int)):
        some = replace(rows.first(len(labels)), labels=labels)
        tested = reference.tested("admit180", learner.learn("boosting", some))
        assert tested.areas[0] == 0.5


def test_augmentation_adds_to_few_patients(con):
    found = Results()
    reference = utility.make_reference(con, PROFILE)
    utility.augment(reference, "admit180", reference.train["admit180"], "x", found)
    assert [m.stratum for m in found.metrics] == ["admit180/500", "admit180/2000"]
    few = reference.train["admit180"].first(500)
    both = few.joined(reference.train["admit180"])
    assert len(both.labels) == both.counts.shape[0]
    assert len(both.labels) == len(few.labels) + few.total
    gain = (
        reference.tested(
            "admit180", reference.learners["admit180"].learn("logistic", both)
        ).areas[0]
        - reference.trained_on("admit180", "logistic", 500).areas[0]
    )
    assert found.metrics[0].value == pytest.approx(gain)


def test_nobody_is_no_number_and_no_error(results):
    some = [m for m in results.metrics if m.cohort == "nobody"]
    assert some
    assert all(np.isnan(m.value) for m in some)


def test_the_same_again(con, results):
    again = Results()
    utility.measure(con, "good", PROFILE, again)
    for metric in again.metrics:
        assert value_of(
            results, metric.name, metric.cohort, metric.stratum
        ).value == pytest.approx(metric.value, nan_ok=True, abs=0)
