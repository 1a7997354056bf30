"""Attacks: each against a computation of its own, and on releases of known leaks."""

import hashlib

import duckdb
import numpy as np
import pytest
from omop_gpt.evaluation import privacy
from omop_gpt.evaluation.results import PROFILES, Results
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

PERSONS = {"train": 300, "holdout": 300, "calibration": 150, "fresh": 300}
PROFILE = PROFILES["smoke"]
BASE = np.datetime64("2010-01-01")


def history(rng: np.random.Generator) -> dict:
    """A person with chronic concepts that come back, and others by chance."""
    chronic = rng.choice(30, 4, replace=False) + 100
    visits, day = [], int(rng.integers(3000))
    for _ in range(int(rng.integers(4, 12))):
        day += int(rng.integers(1, 200))
        concepts = set(rng.choice(chronic, 2)) | set(rng.integers(200, 280, 2))
        visits.append((day, int(rng.choice([9201, 9202])), sorted(map(int, concepts))))
    return {
        "gender": int(rng.choice([8507, 8532])),
        "race": int(rng.choice([8527, 8516], p=[0.8, 0.2])),
        "birth": int(rng.integers(1930, 2005)),
        "visits": visits,
    }


@pytest.fixture(scope="module")
def people() -> dict[str, list[dict]]:
    rng = np.random.default_rng(5)
    cohorts = {name: [history(rng) for _ in range(n)] for name, n in PERSONS.items()}
    cohorts["copy"] = cohorts["train"][::-1]
    cohorts["leak"] = cohorts["train"][:30] + cohorts["fresh"][:270]
    return cohorts


@pytest.fixture(scope="module")
def con(people):
    """The cohorts, and the two marts as their models say."""
    con = duckdb.connect()
    con.execute("create schema evaluation_private")
    con.execute(
        """
        create table evaluation_private.persons (
            cohort varchar, person_id bigint, gender_concept_id bigint,
            race_concept_id bigint, ethnicity_concept_id bigint, year_of_birth int,
            death_date date
        );
        create table evaluation_private.visits (
            cohort varchar, person_id bigint, visit_order int, visit_concept_id bigint,
            visit_start_date date, visit_end_date date
        );
        create table evaluation_private.events (
            cohort varchar, person_id bigint, visit_order int, source_table varchar,
            concept_id bigint, event_date date, value_as_number double,
            unit_concept_id bigint
        );
        create table evaluation_private.history_keys (
            cohort varchar, person_id bigint, event_count bigint, history_key varchar
        );
        """
    )
    persons, visits, events, keys = [], [], [], []
    for cohort, members in people.items():
        for person, one in enumerate(members, 1):
            persons.append(
                (cohort, person, one["gender"], one["race"], 0, one["birth"], None)
            )
            for order, (day, kind, concepts) in enumerate(one["visits"], 1):
                date = str(BASE + day)
                visits.append((cohort, person, order, kind, date, date))
                events += [
                    (cohort, person, order, "condition_occurrence", c, date, None, None)
                    for c in concepts
                ]
            days = [day for day, _, _ in one["visits"]]
            told = (one["gender"], one["race"], np.diff(days).tolist(),
                    [visit[1:] for visit in one["visits"]])  # fmt: skip
            size = sum(len(c) for _, _, c in one["visits"])
            keys.append(
                (cohort, person, size, hashlib.md5(str(told).encode()).hexdigest())
            )
    for table, rows in {
        "persons": persons, "visits": visits, "events": events, "history_keys": keys,
    }.items():  # fmt: skip
        places = ", ".join("?" * len(rows[0]))
        con.executemany(
            f"insert into evaluation_private.{table} values ({places})", rows
        )
    con.execute(
        """
        create table evaluation_private.exact_copies as
        select
            c.cohort, c.person_id, o.cohort as original_cohort,
            o.person_id as original_person_id, c.event_count
        from evaluation_private.history_keys as c
        inner join evaluation_private.history_keys as o using (history_key)
        where
            c.event_count >= 10 and o.cohort in ('train', 'holdout')
            and c.cohort not in ('train', 'holdout')
        """
    )
    return con


@pytest.fixture(scope="module")
def found(con) -> dict:
    results = Results()
    for candidate in ("fresh", "copy", "leak"):
        privacy.measure(con, candidate, PROFILE, results)
    return {(m.name, m.stratum, m.cohort): m for m in results.metrics} | {
        "curves": results.curves
    }


def vectors(people: list[dict]) -> np.ndarray:
    """A person as the attack sees it, made by hand: (N, D)."""
    rows = []
    for one in people:
        codes = {c for _, _, concepts in one["visits"] for c in concepts}
        year = (BASE + one["visits"][0][0]).astype("datetime64[Y]").astype(int) + 1970
        rows.append(
            [
                *(one["gender"] == g for g in (8507, 8532)),
                *(one["race"] == r for r in (8527, 8516)),
                (year - one["birth"]) / 100,
                (one["birth"] - 2000) / 100,
                *(c in codes for c in range(100, 280)),
            ]
        )
    return np.array(rows, dtype=float)


def squared(a: list[dict], b: list[dict]) -> np.ndarray:
    return cdist(vectors(a), vectors(b), "sqeuclidean")


@pytest.mark.parametrize("candidate", ["fresh", "copy", "leak"])
def test_membership_is_the_difference_of_nearest_distances(people, found, candidate):
    score, truth = [], []
    for side, is_member in (("train", 1), ("holdout", 0)):
        near = squared(people[side], people["calibration"]).min(axis=1)
        release = squared(people[side], people[candidate]).min(axis=1)
        score.append(np.round(near, 4) - np.round(release, 4))
        truth.append(np.full(len(near), is_member))
    score, truth = np.concatenate(score), np.concatenate(truth)
    metric = found["membership_auc", "all", candidate]
    assert metric.value == pytest.approx(roc_auc_score(truth, score), abs=2e-3)
    assert metric.ci_low <= metric.value <= metric.ci_high
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    assert found["membership_tpr_1", "all", candidate].value == pytest.approx(
        np.interp(0.01, false, true), abs=0.02
    )


def test_a_copy_a_leak_and_fresh_patients_are_told_apart(found):
    def value(name: str, candidate: str) -> float:
        return found[name, "all", candidate].value

    assert value("membership_auc", "copy") > 0.98
    assert value("exact_copy_excess", "copy") == 1
    assert value("nnaa_loss", "copy") == pytest.approx(0.5, abs=0.02)
    assert value("attribute_f1_excess", "copy") > 0.3
    assert value("ngram_copy_excess", "copy") > 0.9
    # one patient in ten: the mean sees little, the tail and the copies all of it
    assert value("membership_tpr_1", "leak") > 0.08
    assert value("exact_copy_excess", "leak") == pytest.approx(0.1, abs=0.01)
    assert value("ngram_copy_excess", "leak") == pytest.approx(0.1, abs=0.03)
    for name in ("exact_copy_excess", "ngram_copy_excess", "attribute_f1_excess"):
        assert abs(value(name, "fresh")) < 0.03, name
    auc = found["membership_auc", "all", "fresh"]
    assert auc.ci_low < 0.5 < auc.ci_high
    assert abs(value("nnaa_loss", "fresh")) < 0.1


def test_a_sample_of_the_release_would_hide_the_copy(people):
    truth = np.repeat([1, 0], 300)

    def auc(release: list[dict]) -> float:
        near = [
            squared(people[side], release).min(axis=1) for side in ("train", "holdout")
        ]
        return roc_auc_score(truth, -np.concatenate(near))

    assert auc(people["copy"]) > 0.98
    assert auc(people["copy"][::30]) < 0.6


def test_nearer_to_the_release_than_to_training(people, found):
    release = {
        s: squared(people[s], people["leak"]).min(1) for s in ("train", "holdout")
    }
    own = squared(people["train"], people["train"])
    np.fill_diagonal(own, np.inf)
    other = squared(people["holdout"], people["train"])
    train = {"train": own.min(1), "holdout": other.min(1)}
    nearer = {
        side: np.mean(
            (np.round(release[side], 4) < np.round(train[side], 4))
            + 0.5 * (np.round(release[side], 4) == np.round(train[side], 4))
        )
        for side in train
    }
    assert found["nnaa_loss", "all", "leak"].value == pytest.approx(
        nearer["train"] - nearer["holdout"], abs=5e-3
    )


def test_attributes_come_from_the_nearest_of_the_known(con, people, found):
    attacker = privacy.attacker_of(con, PROFILE)
    head = len(attacker.categories) + 2
    known = np.append(np.arange(head), attacker.conditions[:8])
    unknown = np.setdiff1d(np.arange(head + len(attacker.concepts)), known)
    release = attacker.vectors("copy").rows
    for side, stratum in ((attacker.members, "members"), (attacker.others, "others")):
        near = cdist(side.rows[:, known], release[:, known], "sqeuclidean").argmin(
            axis=1
        )
        truth, guess = side.rows[:, unknown] > 0, release[near][:, unknown] > 0
        assert found["attribute_f1", stratum, "copy"].value == pytest.approx(
            f1_score(truth.ravel(), guess.ravel()), abs=0.02
        )
    del people


def test_runs_of_words_are_those_of_a_set_of_tuples(con, found):
    def runs(cohort: str, length: int) -> list[tuple]:
        persons, words = privacy.words_of(con, cohort, 10_000)
        return [
            tuple(words[i : i + length])
            for i in range(len(words) - length + 1)
            if len(set(persons[i : i + length])) == 1
        ]

    for length in (4, 12):
        known = set(runs("train", length))
        ours = runs("leak", length)
        row = next(
            r for r in found["curves"]["ngram_copies"]
            if (r["cohort"], r["length"]) == ("leak", length)
        )  # fmt: skip
        share = np.mean([run in known for run in ours])
        assert row["share_train"] == pytest.approx(share)


def test_found_at_a_share_of_false_alarms():
    members, others = np.array([3.0, 2, 2, 1]), np.array([2.0, 2, 1, 0])
    # half of the others are at the threshold 2: a quarter of all is half of those
    assert privacy.found_at(members, others, 0.25) == pytest.approx(0.25 + 0.5 * 0.5)
    assert privacy.found_at(members, others, 1.0) == 1.0


def test_too_few_targets_say_nothing(con):
    few = duckdb.connect()
    few.execute("create schema evaluation_private")
    for table in ("persons", "visits", "events", "history_keys", "exact_copies"):
        rows = con.sql(f"from evaluation_private.{table}").to_arrow_table()  # noqa: F841
        few.execute(f"create table evaluation_private.{table} as from rows limit 0")
    results = Results()
    privacy.measure(few, "fresh", PROFILE, results)
    values = {m.name: m.value for m in results.metrics}
    assert np.isnan(values["membership_auc"])
    assert np.isnan(values["exact_copy_excess"])
