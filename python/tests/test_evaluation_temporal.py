"""Each metric of order and timing, against another way to compute it from rows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from omop_gpt.evaluation import temporal
from omop_gpt.evaluation.results import PROFILES, Results
from scipy import integrate, stats
from sklearn.metrics import mutual_info_score, r2_score

ROOT = Path(__file__).parents[2]
CHRONIC = [1_000 + n for n in range(8)]
ACUTE = [1_100 + n for n in range(4)]
PEAKS = (1, 4, 7, 10)  # months of the acute ones
DRUGS = [2_000 + n for n in range(8)]
PROCEDURES = [3_000, 3_001]
LAB = 4_000
TABLES = {
    "condition_occurrence": [*CHRONIC, *ACUTE],
    "drug_exposure": DRUGS,
    "procedure_occurrence": PROCEDURES,
    "measurement": [LAB],
}
TABLE_OF = {concept: table for table, ids in TABLES.items() for concept in ids}
COLUMNS = {
    "persons": {
        "cohort": "varchar",
        "person_id": "bigint",
        "gender_concept_id": "bigint",
        "race_concept_id": "bigint",
        "ethnicity_concept_id": "bigint",
        "year_of_birth": "int",
        "death_date": "date",
    },
    "visits": {
        "cohort": "varchar",
        "person_id": "bigint",
        "visit_order": "int",
        "visit_concept_id": "bigint",
        "visit_start_date": "date",
        "visit_end_date": "date",
    },
    "events": {
        "cohort": "varchar",
        "person_id": "bigint",
        "visit_order": "int",
        "source_table": "varchar",
        "concept_id": "bigint",
        "event_date": "date",
        "value_as_number": "double",
        "unit_concept_id": "bigint",
    },
}
# a class of two drugs, one of which is of another, too; the others are their own
CLASSES = {drug: (drug,) for drug in DRUGS}
CLASSES |= {DRUGS[0]: (21600001,), DRUGS[1]: (21600001, 21600002)}
BANDS = {1: "1", 2: "2", **dict.fromkeys((3, 4, 5), "3-5")}
BANDS |= dict.fromkeys(range(6, 11), "6-10")
LAGS = (1, 2, 5, 10, 20)


def world(cohort: str, size: int, *, seed: int, other: float = 0) -> dict[str, list]:
    """Make persons, visits and events; `other`: how much they differ from the rest."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"persons": [], "visits": [], "events": []}
    for person_id in range(1, size + 1):
        birth = int(rng.integers(1935, 1970))
        day = np.datetime64("1998-01-01") + int(rng.integers(0, 2_500))
        pace = rng.choice([20, 100, 500], p=[0.4, 0.3, 0.3])
        has: dict[int, int] = {}  # chronic conditions and drugs, by their first visit
        kind, last = 9202, day
        count = int(rng.choice([0, 1, int(rng.integers(2, 45))], p=[0.03, 0.05, 0.92]))
        for order in range(1, count + 1):
            if rng.random() < other / 2:
                kind = int(rng.choice([9201, 9202, 9203]))
            else:
                kind = 9203 if kind == 9201 else 9202 if rng.random() < 0.7 else 9201
            stay = int(rng.poisson(4)) if kind == 9201 else 0
            fault = rng.random() < other / 10
            end = day - 3 if fault else day + stay
            rows["visits"].append((cohort, person_id, order, kind, day, end))
            age = day.astype("datetime64[Y]").astype(int) + 1970 - birth
            told = []
            for number, concept in enumerate(CHRONIC):
                chance = 0.01 + max(age - 8 * number, 0) / 400
                chance *= 4 if number and CHRONIC[number - 1] in has else 1
                if concept not in has and rng.random() < chance * (1 - other / 2):
                    has[concept] = order
                    # what is new is told, and a drug is started with most of them
                    told.append(concept)
                    if rng.random() < 0.9 - other / 2:
                        has[DRUGS[int((number + (rng.random() < 0.3)) % 8)]] = order
            keep = 0.5 - other / 4
            told += [concept for concept in has if rng.random() < keep]
            month = day.astype("datetime64[M]").astype(int) % 12 + 1
            for concept, peak in zip(ACUTE, PEAKS):
                near = np.cos((month - peak - other * 2) * np.pi / 6)
                if rng.random() < 0.12 * (1 + near):
                    told.append(concept)
            if rng.random() < (0.2 if CHRONIC[0] in has else other / 10):
                told.append(PROCEDURES[int(rng.integers(0, 2))])
            year = day.astype("datetime64[Y]").astype(int) - 28
            if rng.random() < min(max(year / 12 * (1 - other), 0.05), 0.95):
                told += [LAB, LAB]  # two rows of one day
            for concept in told:
                at = day + (40 if rng.random() < 0.01 + other / 20 else 0)
                row = (TABLE_OF[concept], concept, at, None, None)
                rows["events"].append((cohort, person_id, order, *row))
            last = day
            gap = int(rng.exponential(pace))
            gap = int(rng.choice([0, 7, 30, 365])) if rng.random() < 0.2 else gap
            gap = int(rng.exponential(90)) if rng.random() < other else gap
            day = day + (-5 if rng.random() < other / 20 else gap)
        if person_id % 7 == 0:  # of no visit
            row = ("condition_occurrence", CHRONIC[7], last + 3, None, None)
            rows["events"].append((cohort, person_id, None, *row))
        death = None
        if rng.random() < 0.12 + other / 4 + max(60 - (birth - 1925), 0) / 150:
            death = last + int(rng.integers(-10 if other else 0, 300))
        birth = 2020 if other and person_id % 60 == 0 else birth
        rows["persons"].append((cohort, person_id, 8507, 8527, 0, birth, death))
    return rows


@pytest.fixture(scope="module")
def rows():
    """Persons, visits and events as data frames, built without a warehouse."""
    parts = [
        world("train", 500, seed=1),
        world("holdout", 400, seed=2),
        world("other", 450, seed=3, other=0.4),
        world("few", 3, seed=4),
    ]
    frames = {}
    for name, columns in COLUMNS.items():
        found = [row for part in parts for row in part[name]]
        frames[name] = frame = pd.DataFrame(found, columns=list(columns))
        for column in columns:
            if column.endswith("date"):
                frame[column] = pd.to_datetime(frame[column])
    frames["events"]["visit_order"] = frames["events"]["visit_order"].astype("Int64")
    return frames


@pytest.fixture(scope="module")
def con(rows, tmp_path_factory):
    """A warehouse with the cohorts and the marts that dbt makes of them."""
    folder = tmp_path_factory.mktemp("evaluation")
    warehouse = folder / "warehouse.duckdb"
    with duckdb.connect(str(warehouse)) as made:
        made.execute("create schema evaluation_private")
        for name, columns in COLUMNS.items():
            made.register("frame", rows[name])
            types = ", ".join(f"cast({c} as {t}) as {c}" for c, t in columns.items())
            made.execute(
                f"create table evaluation_private.{name} as select {types} from frame"
            )
        made.execute(
            "create table evaluation_private.concept_families "
            "(source_table varchar, concept_id bigint, family_concept_id bigint)"
        )
        made.executemany(
            "insert into evaluation_private.concept_families values "
            "('drug_exposure', ?, ?)",
            [(drug, family) for drug, some in CLASSES.items() for family in some],
        )
        made.execute(
            "insert into evaluation_private.persons by name "
            "select 'many' as cohort, unnest(range(30000)) as person_id"
        )
    # this family alone: all of them take a minute
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", "run", "--select",
            "+path:models/marts/evaluation/temporal", "--project-dir", ROOT,
            "--profiles-dir", ROOT, "--target-path", folder / "target",
            "--log-path", folder / "logs",
        ],
        env=os.environ | {"OMOP_GPT_WAREHOUSE": str(warehouse)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    with duckdb.connect(str(warehouse), read_only=True) as found:
        yield found


def measured(con, cohort):
    temporal.next_visit_counts.cache_clear()
    temporal.visit_matrix.cache_clear()
    temporal.first_counts.cache_clear()
    temporal.first_days.cache_clear()
    results = Results()
    temporal.measure(con, cohort, PROFILES["smoke"], results)
    values = {(m.name, m.stratum): m.value for m in results.metrics}
    assert len(values) == len(results.metrics)
    return values, results


@pytest.fixture(scope="module")
def found(con):
    return measured(con, "other")


@pytest.fixture(scope="module")
def visits(rows):
    """Visits of each cohort in their order, with what follows and what they tell."""
    frame = rows["visits"].sort_values(["cohort", "person_id", "visit_order"])
    within = frame.groupby(["cohort", "person_id"])
    frame["days"] = (within.visit_start_date.shift(-1) - frame.visit_start_date).dt.days
    frame["band"] = frame.visit_order.map(BANDS).fillna("11+")
    told = rows["events"].dropna(subset=["visit_order"])
    told = told.groupby(["cohort", "person_id", "visit_order"]).concept_id.agg(set)
    keys = frame[["cohort", "person_id", "visit_order"]].itertuples(index=False)
    frame["told"] = [told.get(tuple(key), set()) for key in keys]
    return dict(iter(frame.groupby("cohort")))


@pytest.fixture(scope="module")
def persons(rows):
    """Persons by cohort, with their first and last day, and that of their leaving."""
    days = pd.concat(
        [
            rows["visits"][["cohort", "person_id", "visit_start_date"]].set_axis(
                ["cohort", "person_id", "day"], axis=1
            ),
            rows["events"][["cohort", "person_id", "event_date"]].set_axis(
                ["cohort", "person_id", "day"], axis=1
            ),
        ]
    )
    days = days.groupby(["cohort", "person_id"]).day.agg(["min", "max"])
    counts = rows["events"].groupby(["cohort", "person_id"]).size().rename("events")
    frame = rows["persons"].set_index(["cohort", "person_id"]).join(days).join(counts)
    frame["exit"] = frame.death_date.fillna(frame["max"])
    return {cohort: frame.loc[cohort] for cohort in ("train", "holdout", "other")}


@pytest.fixture(scope="module")
def onsets(rows):
    """By cohort and person: the first day of each concept, and how often it is told."""
    keys = ["cohort", "person_id", "concept_id"]
    frame = rows["events"].groupby(keys).event_date.agg(["min", "size"]).reset_index()
    result: dict = {}
    for cohort, person, concept, day, size in frame.itertuples(index=False):
        result.setdefault(cohort, {}).setdefault(person, {})[concept] = (day, size)
    return result


def tv(real, ours):
    """Total variation of two lists of hashable things."""
    real, ours = Counter(real), Counter(ours)
    return 0.5 * sum(
        abs(real[key] / real.total() - ours[key] / ours.total()) for key in real | ours
    )


def gap_class(days):
    for label, most in [
        ("below", -1), (0, 0), ("week", 6), (7, 7), ("2 weeks", 13), (14, 14),
        ("4 weeks", 27), ("month", 32), ("months", 84), ("quarter", 95),
        ("quarters", 354), ("year", 375), ("years", 1080),
    ]:  # fmt: skip
        if days <= most:
            return label
    return "long"


def test_gaps_are_as_far_apart_as_scipy_says(found, visits):
    for key, column in (("visit", "band"), ("type", "visit_concept_id"), ("all", None)):
        for stratum in visits["holdout"][column].unique() if column else [None]:
            real, ours = (
                (part[part[column] == stratum] if column else part).days.dropna()
                for part in (visits["holdout"], visits["other"])
            )
            name = "all" if column is None else f"{key} {stratum}"
            if min(len(real), len(ours)) < 200:
                assert ("gap_ks", name) not in found[0]
                continue
            values = {metric: found[0][metric, name] for metric in (
                "gap_ks", "gap_w1", "gap_class_tv"
            )}  # fmt: skip
            logs = [np.log1p(days.clip(lower=0)) for days in (real, ours)]
            assert values == pytest.approx(
                {
                    "gap_ks": stats.ks_2samp(real, ours).statistic,
                    "gap_w1": stats.wasserstein_distance(*logs) / logs[0].std(ddof=0),
                    "gap_class_tv": tv(real.map(gap_class), ours.map(gap_class)),
                }
            )


def test_gaps_remember_as_rows_say(found, visits):
    values = found[0]
    memory, between = {}, {}
    for cohort in ("holdout", "other"):
        pairs, groups = [], []
        for _, part in visits[cohort].groupby("person_id"):
            days = part.days.dropna().to_numpy()
            pairs += pairwise(days)
            if len(days) > 1:
                groups.append(np.log1p(np.maximum(days, 0)))
        memory[cohort] = stats.spearmanr(*zip(*pairs)).statistic
        # variances from the F of scipy, for ICC = (F - 1) / (F - 1 + size)
        f = stats.f_oneway(*groups).statistic
        sizes = np.array([len(group) for group in groups])
        size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1)
        between[cohort] = (f - 1) / (f - 1 + size)
    for name, each in (("gap_memory", memory), ("gap_between_persons", between)):
        assert values[name, "all"] == pytest.approx(each["other"])
        gap = abs(each["other"] - each["holdout"])
        assert values[f"{name}_difference", "all"] == pytest.approx(gap)
        assert gap > 0.01


def test_transitions_lead_where_rows_lead(found, con, visits, rows):
    steps = {}
    died = rows["persons"].dropna(subset=["death_date"])
    died = set(zip(died.cohort, died.person_id))
    for cohort in ("holdout", "other"):
        for person, part in visits[cohort].groupby("person_id"):
            last = "DEATH" if (cohort, person) in died else "END"
            for a, b in pairwise(["START", *part.visit_concept_id, last]):
                steps.setdefault(str(a), {}).setdefault(cohort, []).append(str(b))
    mart = con.execute(
        "select from_state, to_state, transitions from evaluation.visit_transitions "
        "where cohort = 'other'"
    ).fetchall()
    counts = {state: Counter(each.get("other", [])) for state, each in steps.items()}
    assert {(a, b): n for a, b, n in mart} == {
        (a, b): n for a, each in counts.items() for b, n in each.items()
    }
    expected = {
        state: tv(each["holdout"], each["other"])
        for state, each in steps.items()
        if min(map(len, each.values())) >= 500
    }
    assert len(expected) > 1
    expected["all"] = max(expected.values())
    assert {
        stratum: value
        for (name, stratum), value in found[0].items()
        if name == "transition_tv"
    } == pytest.approx(expected)


def test_next_visits_tell_the_pairs_that_rows_tell(found, visits):
    counts = []
    for cohort in ("holdout", "other"):
        pairs = Counter()
        for _, part in visits[cohort].groupby("person_id"):
            for before, after in pairwise(part.told):
                pairs.update(product(before, after))
        size = visits[cohort].person_id.nunique()
        counts.append([pairs[pair] / size for pair in product(TABLE_OF, TABLE_OF)])
    assert found[0]["next_visit_pair_r2", "all"] == pytest.approx(r2_score(*counts))


def test_information_is_that_of_scikit_learn_without_its_bias(found, con, visits):
    number = "select person_number from evaluation_private.temporal_persons "
    number += "where cohort = ? and person_id = ?"
    curves = {row["lag"]: row for row in found[1].curves["lagged_information"]}
    for cohort, key in (("holdout", "information_holdout"), ("other", "information")):
        told, group = [], []
        for person, part in visits[cohort].groupby("person_id"):
            each = list(part.told)
            told += zip(each[:-5], each[5:])
            (which,) = con.execute(number, [cohort, person]).fetchone()
            group += [which % 10] * max(len(each) - 5, 0)
        group = np.array(group)

        causes, effects = (
            [np.array([concept in pair[n] for pair in told]) for concept in concepts]
            for n, concepts in enumerate(
                (TABLES["condition_occurrence"], [*DRUGS, *PROCEDURES])
            )
        )

        def mean(kept, causes=causes, effects=effects):
            tables = [
                [[(kept & a & b).sum(), (kept & a & ~b).sum()],
                 [(kept & ~a & b).sum(), (kept & ~a & ~b).sum()]]
                for a, b in product(causes, effects)
            ]  # fmt: skip
            return np.mean(
                [mutual_info_score(None, None, contingency=np.array(t)) for t in tables]
            )

        without = np.mean([mean(group != g) for g in range(10)])
        expected = 10 * mean(group >= 0) - 9 * without
        assert curves[5][key] == pytest.approx(expected, abs=1e-9)
    real, ours = (
        np.array([curves[lag][key] for lag in LAGS])
        for key in ("information_holdout", "information")
    )
    gap = np.abs(real - ours).mean()
    assert found[0]["lag_information_gap", "all"] == pytest.approx(gap)
    relative = found[0]["lag_information_relative_gap", "all"]
    assert relative == pytest.approx(gap / real.mean())


def test_visits_come_back_as_sets_do(found, visits):
    curves = []
    for cohort in ("holdout", "other"):
        curve = []
        for lag in LAGS:
            shared = []
            for _, part in visits[cohort].groupby("person_id"):
                each = list(part.told)
                pairs = zip(each[:-lag], each[lag:])
                shared += [len(a & b) / len(a | b) for a, b in pairs if a | b]
            curve.append(np.mean(shared))
        curves.append(curve)
    real, ours = curves
    values = found[0]
    for lag, value in zip(LAGS, ours):
        assert values["lag_jaccard", str(lag)] == pytest.approx(value)
    assert values["lag_5_jaccard", "all"] == pytest.approx(ours[2])
    error = abs(ours[2] - real[2]) / real[2]
    assert values["lag_5_relative_error", "all"] == pytest.approx(error)
    area, below = (
        integrate.quad(curve, 1, 20, points=LAGS, limit=200)[0]
        for curve in (
            lambda x: abs(np.interp(x, LAGS, real) - np.interp(x, LAGS, ours)),
            lambda x: np.interp(x, LAGS, real),
        )
    )
    found_area = values["lag_area_difference", "all"]
    assert found_area == pytest.approx(area / below, rel=1e-4)


def test_conditions_begin_at_the_ages_of_rows(found, persons, onsets):
    ages = {}
    for cohort, concept in product(
        ("holdout", "other"), TABLES["condition_occurrence"]
    ):
        births = persons[cohort].year_of_birth
        ages[cohort, concept] = [
            first[concept][0].year - births[person]
            for person, first in onsets[cohort].items()
            if concept in first
        ]
    expected = {}
    for concept in TABLES["condition_occurrence"]:
        real, ours = ages["holdout", concept], ages["other", concept]
        if min(len(real), len(ours)) >= 20:
            expected[str(concept)] = stats.wasserstein_distance(real, ours)
    assert len(expected) > 5
    expected["all"] = np.median(list(expected.values()))
    assert {
        stratum: value
        for (name, stratum), value in found[0].items()
        if name == "onset_age_w1"
    } == pytest.approx(expected)


def test_incidence_counts_those_at_risk(con, found, persons, onsets):
    def age(day, birth):
        return day.year - birth + (day.dayofyear - 1) / 366

    cases, years = Counter(), Counter()
    concepts = TABLES["condition_occurrence"]
    for cohort in ("holdout", "other"):
        for person, row in persons[cohort].iterrows():
            if pd.isna(row["min"]) or row["exit"] < row["min"]:
                continue
            birth = row.year_of_birth
            begin, end = age(row["min"], birth), age(row["exit"], birth)
            for concept in concepts:
                first = onsets[cohort].get(person, {}).get(concept)
                onset = age(first[0], birth) if first else np.inf
                if begin < onset <= end:
                    cases[cohort, concept, int(onset // 5) * 5] += 1
                for band in range(0, 120, 5):
                    part = min(end, onset, band + 5) - max(begin, band)
                    years[cohort, concept, band] += max(part, 0)
    mart = con.execute(
        "select cohort, concept_id, age_from, onsets, person_years, rate "
        "from evaluation.onset_incidence where cohort in ('holdout', 'other')"
    ).fetchall()
    assert (
        sum(row[3] for row in mart)
        == sum(n for key, n in cases.items() if key[2] >= 0)
        > 500
    )
    for *key, onset_count, person_years, rate in mart:
        assert onset_count == cases[tuple(key)]
        assert person_years == pytest.approx(years[tuple(key)], abs=1e-6)
        if person_years > 1e-6:
            assert rate == pytest.approx(1000 * onset_count / person_years)
    ratios = []
    for concept, band in product(concepts, range(0, 120, 5)):
        keys = [(cohort, concept, band) for cohort in ("holdout", "other")]
        if min(cases[key] for key in keys) >= 20:
            real, ours = (cases[key] / years[key] for key in keys)
            ratios.append(abs(np.log(ours / real)))
    assert found[0]["incidence_log_ratio", "all"] == pytest.approx(np.mean(ratios))


def lives(persons, axis):
    """Days in and out and whether dead, of persons who are known before they go."""
    known = persons[persons["min"] <= persons["exit"]]
    birth = pd.to_datetime(known.year_of_birth.astype(str) + "-01-01")
    origin = birth if axis == "age" else known["min"]
    return (
        (known["min"] - origin).dt.days.to_numpy(),
        (known["exit"] - origin).dt.days.to_numpy(),
        known.death_date.notna().to_numpy(),
    )


def test_survival_on_age_is_the_product_of_its_days(found, persons, con):
    sides = [lives(persons[cohort], "age") for cohort in ("holdout", "other")]
    days = np.arange(min(s[0].min() for s in sides), max(s[1].max() for s in sides) + 1)
    at_risk = np.array(
        [
            [((day_in <= day) & (day <= day_out)).sum() for day in days]
            for day_in, day_out, _ in sides
        ]
    )
    deaths = np.array(
        [[(day_out[dead] == day).sum() for day in days] for _, day_out, dead in sides]
    )
    enough = np.flatnonzero((at_risk >= 50).all(axis=0))
    window = slice(enough[0], enough[-1] + 1)
    kept = np.where(at_risk >= 50, deaths, 0)[:, window]
    assert kept.sum(axis=1).min() >= 10
    curves = np.cumprod(1 - kept / at_risk[:, window], axis=1)
    expected = np.abs(curves[0] - curves[1]).max()
    assert found[0]["survival_sup", "all"] == pytest.approx(expected)
    # and the mart, where at least 20 are at risk
    kept = np.where(at_risk[1] >= 20, deaths[1], 0)
    curve = np.cumprod(1 - kept / np.maximum(at_risk[1], 1))
    mart = con.execute(
        "select years, survival, deaths from evaluation.survival "
        "where cohort = 'other' and axis = 'age' order by years"
    ).fetchall()
    assert sum(row[2] for row in mart) == kept.sum()
    for years, survival, _ in mart:
        ended = days < years * 365.25
        assert survival == pytest.approx(curve[ended][-1])


def test_survival_from_a_diagnosis_on(found, persons, con):
    """The conditions that most of the holdout's dead had; counted from their onset."""
    frequent = con.execute(
        "select concept_id from evaluation.temporal_concepts "
        "where source_table = 'condition_occurrence' and table_rank <= 50"
    ).fetchall()
    onsets = {
        (cohort, concept): con.execute(
            "select person_id, min(event_date) as onset from evaluation_private.events "
            "where cohort = ? and source_table = 'condition_occurrence' "
            "and concept_id = ? group by 1",
            [cohort, concept],
        ).df().set_index("person_id")["onset"]
        for cohort, (concept,) in product(("holdout", "other"), frequent)
    }  # fmt: skip

    def known(cohort, concept):
        of = persons[cohort]
        of = of.assign(onset=onsets[cohort, concept].reindex(of.index)).dropna(
            subset=["onset"]
        )
        return of[of.onset <= of.exit]

    dead = {
        concept: known("holdout", concept).death_date.notna().sum()
        for (concept,) in frequent
    }
    chosen = sorted((c for c in dead if dead[c]), key=lambda c: (-dead[c], c))[:5]
    strata = {key[1] for key in found[0] if key[0] == "survival_sup"}
    assert strata == {"all", "follow_up", *(f"since {concept}" for concept in chosen)}
    compared = 0
    for concept in chosen:
        sides = [known(cohort, concept) for cohort in ("holdout", "other")]
        lengths = [(side.exit - side.onset).dt.days for side in sides]
        last = min(sorted(days)[-50] if len(days) >= 50 else -1 for days in lengths)
        died = [
            (side.death_date.notna() & (days <= last)).sum()
            for side, days in zip(sides, lengths)
        ]
        value = found[0]["survival_sup", f"since {concept}"]
        if last < 0 or min(died) < 10:
            assert np.isnan(value)
            continue
        curves = [
            stats.ecdf(
                stats.CensoredData(
                    days[side.death_date.notna()], right=days[side.death_date.isna()]
                )
            ).sf.evaluate(np.arange(last + 1))
            for side, days in zip(sides, lengths)
        ]
        assert value == pytest.approx(np.abs(curves[0] - curves[1]).max())
        compared += 1
    assert compared > 0


@pytest.mark.filterwarnings("ignore:The confidence interval is undefined")
def test_survival_from_the_first_day_is_that_of_scipy(found, persons, con):
    curves, last = [], []
    for cohort in ("holdout", "other"):
        _, days, dead = lives(persons[cohort], "follow_up")
        last.append(np.sort(days)[-50])  # the last day on which 50 are at risk
        curves.append(stats.ecdf(stats.CensoredData(days[dead], right=days[~dead])).sf)
    days = np.arange(min(last) + 1)
    real, ours = (curve.evaluate(days) for curve in curves)
    expected = np.abs(real - ours).max()
    assert found[0]["survival_sup", "follow_up"] == pytest.approx(expected)
    assert min(last) > 3_653
    means = [(side[:3_652].sum() + 0.5 * side[3_652]) / 365.25 for side in (real, ours)]
    rmst = found[0]["survival_rmst_difference", "all"]
    assert rmst == pytest.approx(abs(means[0] - means[1]))
    (error,) = con.execute(
        "select standard_error from evaluation.survival "
        "where cohort = 'other' and axis = 'follow_up' and years <= 5 "
        "order by years desc limit 1"
    ).fetchone()
    interval = curves[1].confidence_interval(method="linear")
    low, high = (
        side.evaluate(int(5 * 365.25)) for side in (interval.low, interval.high)
    )
    assert error == pytest.approx((high - low) / 2 / stats.norm.ppf(0.975), rel=1e-6)


def test_dates_out_of_order_are_found(found, con, rows, visits):
    shares = {}
    for cohort in ("holdout", "other"):
        events = rows["events"].query("cohort == @cohort")
        events = events.merge(rows["persons"], on=["cohort", "person_id"]).merge(
            rows["visits"].astype({"visit_order": "Int64"}),
            on=["cohort", "person_id", "visit_order"],
            how="left",
        )
        part, inside = visits[cohort], events.dropna(subset=["visit_start_date"])
        end = inside[["visit_end_date", "visit_start_date"]].max(axis=1)
        week = pd.Timedelta(days=7)
        outside = (inside.event_date < inside.visit_start_date - week) | (
            inside.event_date > end + week
        )
        shares[cohort] = {
            "visit_before_the_last": (part.days.dropna() < 0).mean(),
            "visit_end_before_start": (
                part.visit_end_date < part.visit_start_date
            ).mean(),
            "event_outside_visit": outside.mean(),
            "event_before_birth": (
                events.event_date.dt.year < events.year_of_birth
            ).mean(),
            "event_after_death": (events.event_date > events.death_date).mean(),
        }
    assert min(shares["other"].values()) > 0
    assert {
        stratum: value
        for (name, stratum), value in found[0].items()
        if name == "time_violations"
    } == pytest.approx(shares["other"])
    worst = max(
        shares["other"][name] - shares["holdout"][name] for name in shares["other"]
    )
    assert found[0]["time_violation_excess", "all"] == pytest.approx(worst)
    assert measured(con, "holdout")[0]["time_violation_excess", "all"] == 0


def test_seasons_are_those_of_acute_conditions(found, con, rows, visits):
    chosen, peaks = {}, {}
    for concept in TABLES["condition_occurrence"]:
        months, repeats = [], []
        for _, part in visits["train"].groupby("person_id"):
            told = [concept in each for each in part.told]
            months += list(part.visit_start_date.dt.month[told])
            repeats += [after for now, after in pairwise(told) if now]
        counts = [months.count(month) for month in range(1, 13)]
        strength = (stats.chisquare(counts).statistic - 11) / len(months)
        if len(months) >= 100 and np.mean(repeats) <= 0.2 and strength > 0:
            chosen[concept] = strength
            peaks[concept] = 1 + int(np.argmax(counts))
    mart = con.execute(
        "select concept_id, seasonality from evaluation.acute_conditions "
        "order by season_rank"
    ).fetchall()
    assert dict(mart) == pytest.approx(chosen)
    assert [row[0] for row in mart] == sorted(chosen, key=chosen.get, reverse=True)
    assert set(ACUTE) <= set(chosen)

    keys = ["cohort", "person_id", "concept_id", "event_date"]
    days = rows["events"][keys].drop_duplicates()
    days = days[days.concept_id.isin(chosen)]
    months = {
        cohort: days[days.cohort == cohort].assign(
            month=lambda d: d.event_date.dt.month
        )
        for cohort in ("holdout", "other")
    }
    from_peak = [
        [(month - peaks[c]) % 12 for c, month in zip(part.concept_id, part.month)]
        for part in months.values()
    ]
    expected = {"all": tv(*from_peak)}
    shifts = []
    for concept in chosen:
        real, ours = (
            part[part.concept_id == concept].month for part in months.values()
        )
        if min(len(real), len(ours)) >= 100:
            expected[str(concept)] = tv(real, ours)
            shift = stats.circmean(real, 12) - stats.circmean(ours, 12)
            shifts.append(abs((shift + 6) % 12 - 6))
    assert len(shifts) >= 4
    assert {
        stratum: value
        for (name, stratum), value in found[0].items()
        if name == "season_tv"
    } == pytest.approx(expected)
    assert found[0]["season_peak_shift", "all"] == pytest.approx(np.median(shifts))


def test_trends_are_those_of_shares_by_year(found, visits):
    told, years = {}, {}
    for cohort in ("train", "holdout", "other"):
        part = visits[cohort].assign(year=visits[cohort].visit_start_date.dt.year)
        years[cohort] = Counter(part.year)
        told[cohort] = Counter(
            (concept, year)
            for each, year in zip(part.told, part.year)
            for concept in each
        )
    value = 0.5 * sum(
        abs(
            years["holdout"][year] / years["holdout"].total()
            - years["other"][year] / years["other"].total()
        )
        for year in years["holdout"] | years["other"]
    )
    assert found[0]["calendar_tv", "all"] == pytest.approx(value)
    totals = {
        cohort: {y: sum(told[cohort][c, y] for c in TABLE_OF) for y in years[cohort]}
        for cohort in told
    }
    trend = {}
    for concept in TABLE_OF:
        table = [
            [told["train"][concept, y], n - told["train"][concept, y]]
            for y, n in totals["train"].items()
            if n
        ]
        chi2 = stats.chi2_contingency(table, correction=False)
        trend[concept] = chi2.statistic - chi2.dof
    assert max(trend, key=trend.get) == LAB
    known = [
        year
        for year in years["holdout"]
        if min(years[cohort][year] for cohort in ("holdout", "other")) >= 200
    ]
    weight = [min(totals[c][y] for c in ("holdout", "other")) for y in known]
    departures, gaps = ([], []), []
    for concept in (concept for concept in trend if trend[concept] > 0):
        real, ours = (
            np.array([told[c][concept, y] / totals[c][y] for y in known])
            for c in ("holdout", "other")
        )
        mean = np.average(real, weights=weight)
        spread = (mean * (1 - mean)) ** 0.5
        departures[0].append((real - mean) / spread)
        departures[1].append((ours - np.average(ours, weights=weight)) / spread)
        gaps.append(np.average(np.abs(real - ours), weights=weight))
    weights = np.tile(weight, len(gaps))
    cov = np.cov(*(np.concatenate(side) for side in departures), aweights=weights)
    r = cov[0, 1] / (cov[0, 0] * cov[1, 1]) ** 0.5
    assert found[0]["calendar_trend_r", "all"] == pytest.approx(r)
    assert found[0]["calendar_trend_gap", "all"] == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize("most", [2, 50])
def test_strong_orders_are_those_beyond_chance(con, onsets, monkeypatch, most):
    monkeypatch.setattr(temporal, "ORDERED", most)
    values, results = measured(con, "other")

    def shares(cohort):
        first, both, chance = Counter(), Counter(), Counter()
        for each in onsets[cohort].values():
            for a, b in product(each, each):
                if each[a][0] != each[b][0]:
                    both[a, b] += 1
                    first[a, b] += each[a][0] < each[b][0]
                    chance[a, b] += each[a][1] / (each[a][1] + each[b][1])
        return first, both, chance

    chosen_first, chosen_both, chance = shares("train")
    first, both, _ = shares("holdout")
    our_first, our_both, _ = shares("other")
    strong = {
        pair: (chosen_first[pair] - chance[pair]) / n**0.5
        for pair, n in chosen_both.items()
        if n >= 30 and chosen_first[pair] / n > 0.9
    }
    assert len(strong) >= 3
    kept = sorted(strong, key=strong.get, reverse=True)[:most]
    kept = [pair for pair in kept if min(both[pair], our_both[pair]) >= 10]
    gaps = [
        first[pair] / both[pair] - our_first[pair] / our_both[pair] for pair in kept
    ]
    same = [our_first[pair] / our_both[pair] > 0.5 for pair in kept]
    assert values["order_gap", "all"] == pytest.approx(np.mean(np.abs(gaps)))
    assert values["order_consistency", "all"] == pytest.approx(np.mean(same))
    drawn = [(r["concept_a"], r["concept_b"]) for r in results.curves["pair_order"]]
    assert sorted(drawn) == sorted(kept)
    assert measured(con, "holdout")[0]["order_gap", "all"] == 0


def test_pathways_are_the_first_drugs_that_follow(found, con, onsets):
    treated = {}
    for concept in TABLES["condition_occurrence"]:
        each = [first for first in onsets["train"].values() if concept in first]
        started = [
            any(0 <= (first[d][0] - first[concept][0]).days <= 30
                for d in DRUGS if d in first)
            for first in each
        ]  # fmt: skip
        if np.mean(started) >= 0.5:
            treated[concept] = len(each)
    chosen = sorted(treated, key=lambda c: (-treated[c], c))[:5]
    mart = con.execute("select concept_id, persons from evaluation.treated_conditions")
    assert dict(mart.fetchall()) == {concept: treated[concept] for concept in chosen}
    assert chosen
    expected = {}
    for concept in chosen:
        paths = {}
        for cohort in ("holdout", "other"):
            paths[cohort] = []
            for first in onsets[cohort].values():
                if concept not in first:
                    continue
                begun: dict = {}
                for drug, classes in CLASSES.items():
                    for one in classes if drug in first else ():
                        begun[one] = min(first[drug][0], begun.get(one, first[drug][0]))
                begun = sorted(
                    (day, one)
                    for one, day in begun.items()
                    if 0 <= (day - first[concept][0]).days <= 365
                )
                paths[cohort].append(tuple(one for _, one in begun[:3]))
        if min(map(len, paths.values())) < 100:
            continue
        counts = Counter(paths["holdout"])

        def name(path):
            return " > ".join(map(str, path)) or "none"

        frequent = sorted(counts, key=lambda p: (-counts[p], name(p)))[:20]
        expected[str(concept)] = tv(
            *(
                [p if p in frequent else "other" for p in side]
                for side in paths.values()
            )
        )
    assert expected
    expected["all"] = np.mean(list(expected.values()))
    assert {
        stratum: value
        for (name, stratum), value in found[0].items()
        if name == "pathway_tv"
    } == pytest.approx(expected)


def test_histories_are_as_long_as_rows_say(found, persons):
    real, ours = (persons[cohort] for cohort in ("holdout", "other"))
    events = stats.ks_2samp(real.events.fillna(0), ours.events.fillna(0)).statistic
    assert found[0]["history_events_ks", "all"] == pytest.approx(events)
    months = (
        np.floor((part["max"] - part["min"]).dropna().dt.days / 30.4375)
        for part in (real, ours)
    )
    span = stats.ks_2samp(*months).statistic
    assert found[0]["history_span_ks", "all"] == pytest.approx(span)


def test_a_cohort_is_like_itself_and_the_training_nearly_so(con, found):
    same, alike = measured(con, "holdout")[0], measured(con, "train")[0]
    for name in (
        "gap_ks", "gap_w1", "gap_class_tv", "gap_memory_difference",
        "gap_between_persons_difference", "transition_tv", "lag_information_gap",
        "lag_5_relative_error", "lag_area_difference", "onset_age_w1",
        "incidence_log_ratio", "survival_sup", "survival_rmst_difference", "season_tv",
        "season_peak_shift", "calendar_tv", "calendar_trend_gap", "order_gap",
        "pathway_tv", "history_events_ks", "history_span_ks",
    ):  # fmt: skip
        assert same[name, "all"] == pytest.approx(0, abs=1e-9), name
        assert alike[name, "all"] < found[0][name, "all"], name
    for name in ("next_visit_pair_r2", "calendar_trend_r", "order_consistency"):
        assert same[name, "all"] == pytest.approx(1), name
        assert alike[name, "all"] >= found[0][name, "all"], name


def test_too_few_rows_are_no_number(con):
    expected = {key for key in measured(con, "other")[0] if key[1] == "all"}
    for cohort in ("few", "nobody"):
        values = measured(con, cohort)[0]
        assert expected <= set(values)
        told = {name for (name, _), value in values.items() if not np.isnan(value)}
        few = {"time_violations", "time_violation_excess"}  # of whatever there is
        assert told == (few if cohort == "few" else set())


def test_where_no_concept_is_counted_there_is_no_trend():
    con = duckdb.connect()
    con.execute("create schema evaluation")
    con.execute(
        "create table evaluation.calendar_trend (cohort varchar, source_table varchar, "
        "concept_id bigint, visit_year integer, visits bigint, year_visits bigint)"
    )
    told = {}
    temporal.measure_trend(con, "other", told.__setitem__)
    assert told == dict.fromkeys(
        ("calendar_tv", "calendar_trend_r", "calendar_trend_gap")
    )


def test_of_a_large_cohort_a_sample_is_looked_at(con):
    query = "select cohort, count(*), count(distinct person_number) "
    query += "from evaluation_private.temporal_persons group by 1"
    counts = {
        cohort: (n, numbers) for cohort, n, numbers in con.execute(query).fetchall()
    }
    many, numbers = counts.pop("many")
    assert many == numbers
    assert abs(many - 20_000) < 5 * (30_000 * 2 / 9) ** 0.5
    sizes = {"train": 500, "holdout": 400, "other": 450, "few": 3}
    assert counts == {cohort: (n, n) for cohort, n in sizes.items()}


def test_intervals_are_about_the_numbers_that_have_gates(con, redrawn_in_vain):
    assert redrawn_in_vain(lambda: measured(con, "other")[1]) == 9
