"""Attacks: each against a computation of its own, and on releases of known leaks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from omop_gpt.evaluation import copies, privacy
from omop_gpt.evaluation.neighbours import nearest
from omop_gpt.evaluation.results import PROFILES, Results
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

ROOT = Path(__file__).parents[2]
# more of the training than of the holdout, as in every split
PERSONS = {"train": 610, "holdout": 300, "calibration": 150, "fresh": 610}
CANDIDATES = ("fresh", "copy", "leak")
PROFILE = replace(PROFILES["smoke"], targets=400)
BASE = np.datetime64("2010-01-01")
COLUMNS = {
    "persons": "cohort text, person_id bigint, gender_concept_id bigint, "
    "race_concept_id bigint, ethnicity_concept_id bigint, year_of_birth int, "
    "death_date date",
    "visits": "cohort text, person_id bigint, visit_order int, "
    "visit_concept_id bigint, visit_start_date date, visit_end_date date",
    "events": "cohort text, person_id bigint, visit_order int, source_table text, "
    "concept_id bigint, event_date date, value_as_number double, "
    "unit_concept_id bigint",
}


def history(rng: np.random.Generator) -> dict:
    """A person with chronic concepts that come back, and others by chance."""
    chronic = rng.choice(30, 4, replace=False) + 100
    visits, day = [], int(rng.integers(3000))
    for _ in range(int(rng.integers(2, 12))):
        concepts = sorted(
            [("condition_occurrence", int(c)) for c in rng.choice(chronic, 2)]
            + [("measurement", 200 + int(c)) for c in rng.zipf(1.4, 2) % 90]
        )
        visits.append((day, int(rng.choice([9201, 9202])), concepts))
        day += int(rng.choice([7, 14, int(rng.integers(1, 600))]))
    return {
        "gender": int(rng.choice([8507, 8532])),
        "race": int(rng.choice([8527, 8516, 0], p=[0.7, 0.2, 0.1])),
        "birth": int(rng.integers(1900, 2005)),
        "visits": visits,
        "loose": [("observation", 400 + int(rng.integers(3)))] * int(rng.integers(3)),
    }


def altered(one: dict) -> list[dict]:
    """Return a person with an event twice, and with one thing of another kind each."""
    *before, (day, kind, concepts) = one["visits"]
    last = [
        (day, kind, [*concepts, concepts[0]]),
        (day + 1, kind, concepts),
        (day, 9203, concepts),
        (day, kind, concepts[:-1]),
        (day, kind, [("procedure_occurrence", c) for _, c in concepts]),
    ]
    visits = [one | {"visits": [*before, visit]} for visit in last]
    return [*visits, one | {"race": 1}, one | {"gender": 1}, one | {"birth": 1}]


@pytest.fixture(scope="module")
def people() -> dict[str, dict[int, dict]]:
    """Cohorts of persons by id, in the order of the hash that samples them."""
    rng = np.random.default_rng(5)
    made = {name: [history(rng) for _ in range(n)] for name, n in PERSONS.items()}
    made["copy"] = made["train"][::-1]
    made["leak"] = made["train"][:61] + made["fresh"][61:]
    made["mixed"] = made["train"][:60] + made["holdout"][:20] + made["fresh"][:120]
    made["mixed"] += [one for some in made["train"][:9] for one in altered(some)]
    cohorts = {}
    for number, (name, some) in enumerate(made.items()):
        ids = {1000 * number + place: one for place, one in enumerate(some)}
        order = sorted(
            ids, key=lambda i: hashlib.md5(f"target:{name}:{i}".encode()).hexdigest()
        )
        cohorts[name] = {i: ids[i] for i in order}
    return cohorts


@pytest.fixture(scope="module")
def con(people, tmp_path_factory):
    """A warehouse with the cohorts, and the marts as dbt makes them."""
    folder = tmp_path_factory.mktemp("privacy")
    rows = {"persons": [], "visits": [], "events": []}
    rng = np.random.default_rng(1)
    for cohort, some in people.items():
        for person, one in some.items():
            # a copy on other days, with events in another order, is a copy
            shift = int(rng.integers(50)) if cohort == "copy" else 0
            days = [one["visits"][0][0], one["visits"][-1][0]]
            years = [(BASE + d).astype("datetime64[Y]") for d in days]
            if years != [(BASE + (d + shift)).astype("datetime64[Y]") for d in days]:
                shift = 0
            rows["persons"].append(
                (cohort, person, one["gender"], one["race"], 0, one["birth"], None)
            )
            events = [(None, event, one["visits"][0][0]) for event in one["loose"]]
            for order, (day, kind, concepts) in enumerate(one["visits"], 1):
                date = str(BASE + (day + shift))
                rows["visits"].append((cohort, person, order, kind, date, date))
                events += [(order, event, day) for event in concepts]
            for place in rng.permutation(len(events)):
                order, (table, concept), day = events[place]
                date = str(BASE + (day + shift))
                rows["events"].append(
                    (cohort, person, order, table, concept, date, None, None)
                )
    warehouse = folder / "warehouse.duckdb"
    with duckdb.connect(str(warehouse)) as con:
        con.execute("create schema evaluation_private")
        for table, columns in COLUMNS.items():
            con.execute(f"create table evaluation_private.{table} ({columns})")
            frame = pd.DataFrame(rows[table], dtype=object)  # noqa: F841
            con.execute(f"insert into evaluation_private.{table} from frame")
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "build", "--select", "history_keys",
            "exact_copies", "--project-dir", ROOT, "--profiles-dir", ROOT,
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
    results = Results()
    for candidate in CANDIDATES:
        privacy.measure(con, candidate, PROFILE, results)
    return results


@pytest.fixture(scope="module")
def found(results) -> dict:
    return {(m.name, m.cohort, m.stratum): m for m in results.metrics}


def curve(results: Results, name: str, cohort: str, **wanted) -> list[dict]:
    return [
        row
        for row in results.curves[name]
        if row["cohort"] == cohort and all(row[k] == v for k, v in wanted.items())
    ]


def concepts_of(one: dict) -> set[tuple[str, int]]:
    return {event for _, _, events in one["visits"] for event in events} | set(
        one["loose"]
    )


class World:
    """Persons as the attack sees them, made by hand."""

    def __init__(self, people: dict[str, dict[int, dict]]) -> None:
        self.people = people
        self.real = [
            one
            for cohort in ("train", "holdout", "calibration")
            for one in people[cohort].values()
        ]
        counts: dict[tuple[str, int], int] = {}
        for one in self.real:
            for concept in concepts_of(one):
                counts[concept] = counts.get(concept, 0) + 1
        self.counts = counts
        # the commonest first
        self.concepts = sorted(counts, key=lambda c: (-counts[c], c))
        self.head = 6

    def first_year(self, one: dict) -> int:
        day = BASE + one["visits"][0][0]
        return int(day.astype("datetime64[Y]").astype(int)) + 1970

    def last_year(self, one: dict) -> int:
        day = BASE + one["visits"][-1][0]
        return int(day.astype("datetime64[Y]").astype(int)) + 1970

    def vectors(self, cohort: str, most: int = 10_000) -> np.ndarray:
        rows = []
        for one in list(self.people[cohort].values())[:most]:
            has = concepts_of(one)
            rows.append(
                [
                    *(one["gender"] == g for g in (8507, 8532)),
                    *(one["race"] == r for r in (8527, 8516, 0)),
                    (self.first_year(one) - one["birth"]) / 100,
                    *(c in has for c in self.concepts),
                ]
            )
        return np.array(rows, dtype=float)

    def sides(self, of=None) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.vectors(side, 400) for side in ("train", "holdout"))


@pytest.fixture(scope="module")
def world(people) -> World:
    return World(people)


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.round(cdist(a, b, "sqeuclidean"), 4)


def half_up(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.where(np.isclose(one, other, rtol=0, atol=1e-6), 0.5, one < other)


def scores_of(world: World, release: np.ndarray) -> list[np.ndarray]:
    calibration = world.vectors("calibration")
    return [
        np.round(
            squared(side, calibration).min(axis=1) - squared(side, release).min(axis=1),
            4,
        )
        for side in world.sides()
    ]


# what the whole is for


def test_a_copy_and_a_leak_are_found_and_fresh_patients_are_not(found):
    def metric(name: str, candidate: str):
        return found[name, candidate, "all"]

    for name, least in {
        "membership_auc": 0.95, "membership_tpr_1": 0.6, "exact_copy_excess": 1.0,
        "ngram_copy_excess": 0.45, "ngram_rare_excess": 0.8, "nnaa_loss": 0.45,
        "attribute_f1_excess": 0.2, "singling_out_risk": 0.7, "linkability_risk": 0.7,
        "inference_risk": 0.15, "identity_disclosure_excess": 0.05,
        "worst_subgroup_membership_auc": 0.95,
    }.items():  # fmt: skip
        assert metric(name, "copy").value >= least, name
        assert metric(name, "copy").ci_low > metric(name, "fresh").value, name
    assert metric("exact_copy_share", "fresh").value == 0
    for name in (
        "ngram_copy_excess", "ngram_rare_excess", "nnaa_loss", "nnaa_loss_equal",
        "attribute_f1_excess", "singling_out_risk", "linkability_risk",
        "inference_risk", "exact_copy_excess", "identity_disclosure_excess",
    ):  # fmt: skip
        assert metric(name, "fresh").ci_low <= 0 <= metric(name, "fresh").ci_high, name
    assert metric("membership_auc", "fresh").ci_low < 0.5
    assert metric("membership_auc", "fresh").ci_high > 0.5
    assert metric("membership_tpr_1", "fresh").ci_low < 0.01
    # one patient in ten: the mean sees little, the tail and the copies all of it
    assert metric("membership_auc", "leak").value < 0.65
    assert metric("membership_tpr_1", "leak").ci_low > 0.03
    assert metric("exact_copy_excess", "leak").value == pytest.approx(0.1, abs=0.015)
    assert metric("ngram_rare_excess", "leak").value == pytest.approx(0.1, abs=0.03)
    assert metric("ngram_copy_excess", "leak").value > 0.03


def test_a_sample_of_the_release_would_hide_the_copy(con):
    attacker = privacy.attacker_of(con, PROFILE)
    release = attacker.space.people("copy")
    areas = {}
    for some in (len(release), len(release) // 30):
        results = Results()
        distances = tuple(
            attacker.nearest(side, release.first(some)) for side in attacker.sides
        )
        privacy.measure_membership(attacker, "copy", distances, results)
        areas[some] = results.metrics[0]
    whole, sample = areas.values()
    assert whole.value > 0.95
    assert sample.value < 0.56
    assert sample.ci_low < 0.53


# copies


def key_of(one: dict) -> str:
    return repr(
        (
            one["gender"], one["race"], sorted(set(one["loose"])),
            np.diff([day for day, _, _ in one["visits"]]).tolist(),
            [(kind, sorted(set(events))) for _, kind, events in one["visits"]],
        )
    )  # fmt: skip


def events_of(one: dict) -> int:
    return len(one["loose"]) + sum(len(events) for _, _, events in one["visits"])


def test_keys_are_equal_where_histories_are(con, people):
    keys = con.sql(
        "select cohort, person_id, history_key, event_count "
        "from evaluation_private.history_keys"
    ).fetchall()
    assert len(keys) == sum(map(len, people.values()))
    ours = [key_of(people[cohort][person]) for cohort, person, _, _ in keys]
    theirs = [key for _, _, key, _ in keys]
    assert len(set(zip(ours, theirs))) == len(set(ours)) == len(set(theirs))
    assert len(set(ours)) < len(keys)
    repeated = sum(key_of(one) == key_of(made) for one in people["train"].values()
                   for made in altered(one)[:1])  # fmt: skip
    assert repeated == len(people["train"])
    for cohort, person, _, count in keys[::50]:
        assert count == events_of(people[cohort][person])


@pytest.mark.parametrize("candidate", [*CANDIDATES, "mixed"])
def test_exact_copies_are_counted_beyond_chance(con, people, candidate):
    results = Results()
    copies.measure_exact_copies(con, candidate, results)
    metrics = {m.name: m for m in results.metrics}
    keys = {
        cohort: [key_of(one) for one in some.values() if events_of(one) >= 10]
        for cohort, some in people.items()
    }
    shares = [
        np.mean([key in set(keys[real]) for key in keys[candidate]])
        for real in ("train", "holdout")
    ]
    metric = metrics["exact_copy_excess"]
    scale = len(keys["train"]) / len(keys["holdout"])
    assert metric.value == pytest.approx(shares[0] - scale * shares[1])
    assert metric.n == len(keys[candidate])
    share = metrics["exact_copy_share"]
    hits = round(shares[0] * metric.n)
    expected = stats.binomtest(hits, metric.n).proportion_ci(method="wilson")
    assert share.value == pytest.approx(shares[0])
    assert (share.ci_low, share.ci_high) == pytest.approx(tuple(expected))


def test_interval_of_a_difference_is_newcombes():
    # 56 of 70 and 48 of 80 (Newcombe, 1998): 0.0524 to 0.3339
    value, low, high = copies.combined(
        lambda a, b: a - b, copies.rate_of(56, 70), copies.rate_of(48, 80)
    )
    assert (value, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def stream(one: dict) -> list[tuple]:
    words = [(table, concept) for table, concept in sorted(set(one["loose"]))]
    before = None
    for day, kind, events in one["visits"]:
        words.append(("gap", None if before is None else min((day - before) // 7, 52)))
        words.append(("visit", kind))
        words += sorted(set(events))
        before = day
    return words


def runs(streams: list[list[tuple]], length: int) -> list[tuple]:
    return [
        tuple(words[i : i + length])
        for words in streams
        for i in range(len(words) - length + 1)
    ]


@pytest.mark.parametrize("candidate", ["fresh", "leak"])
@pytest.mark.parametrize("length", [4, 12])
def test_runs_of_words_are_those_of_sets_of_tuples(
    con, people, monkeypatch, candidate, length
):
    monkeypatch.setattr(copies, "RUN", length)
    results = Results()
    copies.measure_runs(con, candidate, results)
    metrics = {m.name: m for m in results.metrics}
    train, holdout, streams = (
        [stream(one) for one in people[name].values()]
        for name in ("train", "holdout", candidate)
    )
    ours = runs(streams, length)
    whole = set(runs(train, length))
    parts = [set(runs(some, length)) for some in (train[:300], train[300:600], holdout)]
    shares = [np.mean([run in part for run in ours]) for part in parts]
    (row,) = curve(results, "ngram_copies", candidate, length=length)
    assert row["share_train"] == pytest.approx(np.mean(shares[:2]))
    assert row["share_holdout"] == pytest.approx(shares[2])
    assert row["share_train_whole"] == pytest.approx(
        np.mean([r in whole for r in ours])
    )
    assert metrics["ngram_copy_share"].value == row["share_train_whole"]
    in_parts = np.array([[run in part for part in parts] for run in ours])
    alone = (in_parts & (in_parts.sum(axis=1) == 1)[:, None]).mean(axis=0)
    assert length == 12 or alone.min() > 0
    for name, these, times in (
        ("ngram_copy_excess", shares, 1), ("ngram_rare_excess", alone, 2),
    ):  # fmt: skip
        value = times * (np.mean(these[:2]) - these[2])
        # a third draw beside two: its interval of prediction
        half = stats.t.ppf(0.975, 1) * np.std(these[:2], ddof=1) * np.sqrt(1.5)
        assert metrics[name].value == pytest.approx(value)
        assert metrics[name].ci_high == pytest.approx(value + times * half)


@pytest.mark.parametrize("candidate", ["fresh", "leak"])
def test_longest_run_of_one_person_in_a_hundred(people, found, candidate):
    train = [stream(one) for one in people["train"].values()]
    ours = [stream(one) for one in people[candidate].values()]
    longest = np.zeros(len(ours), dtype=int)
    for length in range(1, 80):
        known = set(runs(train, length))
        for person, words in enumerate(ours):
            if any(run in known for run in runs([words], length)):
                longest[person] = length
    expected = np.sort(longest)[::-1][int(np.ceil(0.01 * len(ours))) - 1]
    assert found["longest_run_p99", candidate, "all"].value == expected


# distances


def test_nearest_is_that_of_all_rows():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (9_000, 12)).astype(np.uint8)
    rows[:, 0] = rng.integers(0, 90, len(rows))
    scale = np.full(12, 100, dtype=np.float32)
    scale[0] = 1
    own = rng.choice(len(rows), 2_500, replace=False)
    for leave_out in (None, own):
        distances, places = nearest(rows[own], rows, scale, leave_out)
        for start in range(0, len(own), 500):
            here = slice(start, start + 500)
            expected = squared(rows[own[here]] * scale / 100, rows * scale / 100)
            if leave_out is not None:
                expected[np.arange(500), own[here]] = np.inf
            assert np.allclose(distances[here], expected.min(axis=1))
            assert np.allclose(
                expected[np.arange(500), places[here]], expected.min(axis=1)
            )
    alone, _ = nearest(rows[:1], rows[:1], scale, np.zeros(1, dtype=int))
    assert np.isinf(alone).all()


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_membership_is_the_difference_of_nearest_distances(
    world, found, results, candidate
):
    scores = scores_of(world, world.vectors(candidate))
    truth, both = np.repeat([1, 0], [400, 300]), np.concatenate(scores)
    metric = found["membership_auc", candidate, "all"]
    assert metric.value == pytest.approx(roc_auc_score(truth, both))
    false, true, _ = roc_curve(truth, both, drop_intermediate=False)
    for name, rate in (("1", 0.01), ("01", 0.001)):
        assert found[f"membership_tpr_{name}", candidate, "all"].value == (
            pytest.approx(np.interp(rate, false, true))
        )
    (row,) = curve(results, "membership_roc", candidate, false_positive_rate=1.0)
    assert row["true_positive_rate"] == 1
    # of Hanley and McNeil (1982), as both outcomes are drawn anew
    area = metric.value
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + 399 * (q1 - area**2) + 299 * (q2 - area**2)
    width = 2 * 1.96 * np.sqrt(variance / (400 * 300))
    if candidate != "copy":
        assert metric.ci_high - metric.ci_low == pytest.approx(width, rel=0.35)
    assert metric.n == 700


def test_samples_of_an_attack_are_those_of_repeated_persons():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 30).astype(float)
    weights = rng.integers(0, 3, (120, 40)), rng.integers(0, 3, (120, 30))
    attack = privacy.Attack.of(scores, weights)
    for sample in (0, 49, 50, 119):
        drawn = [np.repeat(s, w[sample]) for s, w in zip(scores, weights)]
        truth = np.repeat([1, 0], [len(side) for side in drawn])
        both = np.concatenate(drawn)
        assert attack.samples["auc"][sample] == pytest.approx(
            roc_auc_score(truth, both)
        )
        false, true, _ = roc_curve(truth, both, drop_intermediate=False)
        assert attack.samples["tpr_1"][sample] == pytest.approx(
            np.interp(0.01, false, true)
        )


def test_subgroups_are_attacked_on_their_own(con, world, monkeypatch):
    monkeypatch.setattr(privacy, "LEAST_TARGETS", 20)
    attacker = privacy.attacker_of(con, PROFILE)
    release = attacker.space.people("leak")
    results = Results()
    distances = tuple(attacker.nearest(side, release) for side in attacker.sides)
    privacy.measure_membership(attacker, "leak", distances, results)
    found = {(m.name, m.cohort, m.stratum): m for m in results.metrics}
    both = [
        *list(world.people["train"].values())[:400],
        *list(world.people["holdout"].values())[:400],
    ]
    length = np.array([events_of(one) for one in both])
    cuts = np.quantile(length, np.arange(1, 10) / 10)
    rarest = np.array([min(world.counts[c] for c in concepts_of(one)) for one in both])
    age = np.array([world.last_year(one) - one["birth"] for one in both])
    groups = {
        f"length, tenth {n + 1}": np.searchsorted(cuts, length, side="right") == n
        for n in range(10)
    } | {
        "rarest concepts": rarest <= np.quantile(rarest, 0.1),
        "aged 85 and over": age >= 85,
        "race in the minority": np.array([one["race"] != 8527 for one in both]),
    }
    truth = np.repeat([1, 0], [400, 300])
    score = np.concatenate(scores_of(world, world.vectors("leak")))
    areas = {}
    for name, chosen in groups.items():
        key = "subgroup_membership_auc", "leak", name
        if min(chosen[truth == side].sum() for side in (0, 1)) < 20:
            assert key not in found
            continue
        areas[name] = roc_auc_score(truth[chosen], score[chosen])
        assert found[key].value == pytest.approx(areas[name])
        assert found[key].n == chosen.sum()
    assert {"length, tenth 1", "length, tenth 10", "aged 85 and over"} <= set(areas)
    worst = found["worst_subgroup_membership_auc", "leak", "all"]
    assert worst.value == pytest.approx(max(areas.values()))
    assert worst.n == groups[max(areas, key=areas.get)].sum()
    assert worst.ci_low < worst.value < worst.ci_high


def test_nearer_to_the_release_than_to_training(world, found):
    train, release = world.vectors("train"), world.vectors("leak")
    nearer = []
    for number, side in enumerate(world.sides()):
        to_train = squared(side, train)
        if number == 0:
            np.fill_diagonal(to_train, np.inf)
        nearer.append(half_up(squared(side, release).min(axis=1), to_train.min(axis=1)))
    metric = found["nnaa_loss", "leak", "all"]
    assert metric.value == pytest.approx(nearer[0].mean() - nearer[1].mean())
    se = np.sqrt(sum(side.var() / len(side) for side in nearer))
    assert metric.ci_high == pytest.approx(metric.value + 1.96 * se, abs=se)


def test_adversarial_accuracy_is_of_equal_numbers(world, found):
    ours = world.vectors("leak", 300)

    def within(some: np.ndarray) -> np.ndarray:
        distances = squared(some, some)
        np.fill_diagonal(distances, np.inf)
        return distances.min(axis=1)

    values = {}
    for side in ("train", "holdout"):
        real = world.vectors(side, 300)
        across = squared(real, ours)
        values[side] = (
            half_up(within(real), across.min(axis=1)).mean()
            + half_up(within(ours), across.min(axis=0)).mean()
        ) / 2
        metric = found["nnaa_accuracy", "leak", side]
        assert metric.value == pytest.approx(values[side])
        assert metric.n == 300
        assert metric.ci_low < metric.value < metric.ci_high
    assert found["nnaa_loss_equal", "leak", "all"].value == pytest.approx(
        values["holdout"] - values["train"]
    )


# attributes and risks


def guesses_of(world: World, candidate: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Places that are known, and the nearest of the release by them."""
    conditions = [
        world.head + place
        for place, (table, _) in enumerate(world.concepts)
        if table == "condition_occurrence"
    ]
    known = np.array([*range(world.head), *conditions[:8]])
    release = world.vectors(candidate)[:, known]
    return known, [squared(s[:, known], release).argmin(axis=1) for s in world.sides()]


def test_attributes_come_from_the_nearest_by_what_is_known(world, found):
    known, guesses = guesses_of(world, "leak")
    release = world.vectors("leak")
    unknown = np.setdiff1d(np.arange(release.shape[1]), known)
    share = np.array([world.counts[c] for c in world.concepts]) / len(world.real)
    rare = world.head + np.array(
        [
            place
            for place, (table, _) in enumerate(world.concepts)
            if table == "condition_occurrence" and share[place] < 0.01
        ],
        dtype=int,
    )
    values = []
    for side, guess in zip(world.sides(), guesses):
        assert not side[:, rare].any()  # too few: rare_attribute_f1 says nothing
        values.append(
            f1_score(side[:, unknown].ravel(), release[guess][:, unknown].ravel())
        )
    for stratum, value in zip(("members", "others"), values):
        assert found["attribute_f1", "leak", stratum].value == pytest.approx(value)
    assert found["attribute_f1_excess", "leak", "all"].value == pytest.approx(
        values[0] - values[1]
    )
    assert np.isnan(found["rare_attribute_f1_excess", "leak", "all"].value)


def test_attributes_of_those_who_have_a_rare_condition(world, con, monkeypatch):
    monkeypatch.setattr(privacy, "RARE", 0.125)
    attacker = privacy.attacker_of(con, PROFILE)
    known, guesses = guesses_of(world, "leak")
    results = Results()
    release = attacker.space.people("leak")
    privacy.measure_attributes(attacker, "leak", release, guesses, results)
    has_rare = {
        c
        for c, n in world.counts.items()
        if c[0] == "condition_occurrence" and n < 0.125 * len(world.real)
    }
    unknown = np.setdiff1d(np.arange(release.rows.shape[1]), known)
    guessed = world.vectors("leak")
    values = []
    for cohort, side, guess in zip(("train", "holdout"), world.sides(), guesses):
        some = list(world.people[cohort].values())[:400]
        chosen = np.array([bool(concepts_of(one) & has_rare) for one in some])
        assert 50 < chosen.sum() < len(chosen)
        values.append(
            f1_score(
                side[chosen][:, unknown].ravel(),
                guessed[guess[chosen]][:, unknown].ravel(),
            )
        )
    values = values[0] - values[1]
    metrics = {m.name: m for m in results.metrics}
    assert metrics["rare_attribute_f1_excess"].value == pytest.approx(values)


def residual(hits: list[float], trials: list[int]) -> float:
    ours, other = (h / t for h, t in zip(hits, trials))
    return (ours - other) / (1 - other)


@pytest.mark.parametrize("candidate", ["fresh", "leak"])
def test_halves_are_linked_where_they_meet_in_one_person(world, found, candidate):
    release, columns = world.vectors(candidate), np.arange(world.head, 10_000)
    columns = columns[: release.shape[1] - world.head]
    halves = [0, 1, 5, *columns[::2]], [2, 3, 4, *columns[1::2]]
    hits = []
    for side in world.sides():
        found_ = [squared(side[:, h], release[:, h]).argmin(axis=1) for h in halves]
        hits.append(np.sum(found_[0] == found_[1]))
    metric = found["linkability_risk", candidate, "all"]
    assert metric.value == pytest.approx(residual(hits, [400, 300]))
    assert metric.n == 700


@pytest.mark.parametrize("candidate", ["fresh", "leak"])
def test_one_secret_is_the_rarest_of_the_neighbour(world, found, candidate):
    known, guesses = guesses_of(world, candidate)
    release = list(world.people[candidate].values())
    known_concepts = {world.concepts[k - world.head] for k in known if k >= world.head}
    hits, trials = [0, 0], [0, 0]
    for number, side in enumerate(("train", "holdout")):
        some = list(world.people[side].values())[:400]
        for one, guess in zip(some, guesses[number]):
            secrets = concepts_of(release[guess]) & set(world.concepts)
            secrets -= known_concepts
            if secrets:
                secret = max(secrets, key=world.concepts.index)
                trials[number] += 1
                hits[number] += secret in concepts_of(one)
    metric = found["inference_risk", candidate, "all"]
    assert metric.value == pytest.approx(residual(hits, trials))
    assert metric.n == sum(trials)


@pytest.mark.parametrize("candidate", ["fresh", "copy"])
def test_who_is_singled_out_is_counted_once(world, found, candidate):
    """The same draws, counted person by person."""
    rng = np.random.default_rng(PROFILE.seed)
    groups = [world.vectors(name) for name in (candidate, "train", "holdout")]
    singled, trials = [set(), set()], 0
    for person in rng.permutation(len(groups[0])):
        row = groups[0][person]
        facts, size = np.flatnonzero(row), int(rng.integers(3, 6))
        if len(facts) < size:
            continue
        places = [*rng.choice(facts[:-1], size - 1, replace=False), facts[-1]]
        who = [
            np.flatnonzero(np.isclose(group[:, places], row[places]).all(axis=1))
            for group in groups
        ]
        if len(who[0]) != 1:
            continue
        trials += 1
        if len(who[1]) + len(who[2]) == 1:
            side = 0 if len(who[1]) else 1
            singled[side].add(int(who[1 + side][0]))
    hits = [len(singled[0]), len(singled[1]) * 610 / 300]
    metric = found["singling_out_risk", candidate, "all"]
    assert metric.value == pytest.approx(residual(hits, [trials, trials]))
    assert trials > 100
    assert metric.n == 2 * trials
    assert metric.ci_low < metric.value < metric.ci_high


def test_a_match_is_weighed_by_those_who_look_the_same(world, found, results):
    """Every match in place of one by chance: alike within what chance allows."""
    telling = {c for c, n in world.counts.items() if n < 0.1 * len(world.real)}

    def facts(one: dict) -> tuple:
        return one["birth"], one["gender"], one["race"]

    def shared(one: dict, other: dict) -> bool:
        return len(concepts_of(one) & concepts_of(other) & telling) >= 2

    train = list(world.people["train"].values())
    everybody = {}
    for name, some in {"all": world.real, "train": train}.items():
        everybody[name] = pd.Series([facts(one) for one in some]).value_counts()
    release = list(world.people["copy"].values())
    terms = []
    for one in train[:400]:
        matches = [
            shared(one, other) for other in release if facts(one) == facts(other)
        ]
        learnt = 0.615 * np.mean(matches) if matches else 0.0
        terms.append(
            (
                learnt / everybody["train"][facts(one)] * len(train) / len(world.real),
                learnt / everybody["all"][facts(one)],
            )
        )
    terms = np.array(terms)
    (row,) = curve(
        results, "identity_generalisations", "copy", facts="birth year, sex, race"
    )
    assert row["risk"] == pytest.approx(terms.mean(axis=0).max(), rel=0.12)
    rows = curve(results, "identity_generalisations", "copy")
    assert len(rows) == len({row["facts"] for row in rows}) == 127
    metric = found["identity_disclosure", "copy", "all"]
    assert metric.value == max(row["risk"] for row in rows)
    assert metric.ci_low < metric.value < metric.ci_high


def test_distances_are_drawn_to_sides_of_one_size(world, found, results):
    release = world.vectors("fresh", 400)
    to = [
        squared(release, world.vectors(side, 300)).min(axis=1)
        for side in ("train", "holdout")
    ]
    assert found["dcr_share", "fresh", "all"].value == pytest.approx(
        half_up(*to).mean()
    )
    rows = curve(results, "nearest_distances", "fresh")
    assert [row["train"] for row in rows] == pytest.approx(
        np.quantile(to[0], [row["share"] for row in rows])
    )


# nothing


@pytest.mark.parametrize("kept", ["nothing", "no holdout", "no candidate"])
def test_too_few_persons_say_nothing(con, kept):
    where = {
        "nothing": "false",
        "no holdout": "cohort <> 'holdout'",
        "no candidate": "cohort <> 'fresh'",
    }[kept]
    few = duckdb.connect()
    few.execute("create schema evaluation_private")
    for table in (*COLUMNS, "history_keys", "exact_copies"):
        rows = con.sql(  # noqa: F841
            f"from evaluation_private.{table} where {where}"
        ).to_arrow_table()
        few.execute(f"create table evaluation_private.{table} as from rows")
    results = Results()
    privacy.measure(few, "fresh", PROFILE, results)
    values = {m.name: m.value for m in results.metrics}
    assert set(privacy.OF_TARGETS) <= set(values)
    assert {"exact_copy_excess", "ngram_copy_excess", "longest_run_p99"} <= set(values)
    assert all(np.isnan(value) for value in values.values() if value)
    few.close()
