"""Each metric of population and visits, against another way to compute it from rows."""

from __future__ import annotations

from itertools import combinations, permutations, product

import duckdb
import numpy as np
import pandas as pd
import pytest
from omop_gpt.evaluation import effects, population, violations
from omop_gpt.evaluation import values as numbers
from omop_gpt.evaluation.cohorts import families_query
from omop_gpt.evaluation.results import PROFILES, Results
from omop_gpt.warehouse import build
from scipy import optimize, stats
from scipy.spatial.distance import jensenshannon

MALE, FEMALE = 8507, 8532
TESTICLE = 26662  # of seed plausible_genders: of men alone
CONCEPTS = [("condition_occurrence", 1_000 + n) for n in range(14)]
CONCEPTS += [("drug_exposure", 2_000 + n) for n in range(6)]
CONCEPTS += [("procedure_occurrence", 3_000 + n) for n in range(3)]
CONCEPTS += [("condition_occurrence", TESTICLE)]
LABS = {4_000: 8_840, 4_001: 8_753, 4_002: None}
NAMES = {"gender": "gender_concept_id", "race": "race_concept_id"}


def world(cohort: str, size: int, *, seed: int, other: float = 0) -> tuple:
    """Make persons, visits and events; `other`: how much they differ from the rest."""
    rng = np.random.default_rng(seed)
    persons, visits, events = [], [], []
    for person_id in range(1, size + 1):
        gender = int(rng.choice([MALE, FEMALE], p=[0.5 + other / 5, 0.5 - other / 5]))
        birth = int(rng.integers(1930, 2011 - int(40 * other)))
        frailty = rng.gamma(2, 1)
        has = rng.random(len(CONCEPTS)) < np.linspace(0.5, 0.002, len(CONCEPTS)) * (
            0.3 + frailty / 3
        ) * (1 + other * np.sin(np.arange(len(CONCEPTS))))
        has[1] |= has[0] & (rng.random() < 0.7 - other)
        # one concept of men but for few; one of the young, one of men, and one that is
        # never beside the first
        few = person_id <= 4 or rng.random() < other
        has[4] = (rng.random() < 0.7) & (gender == MALE or few)
        has[3] = (rng.random() < 0.5) & ((birth > 1960) | (rng.random() < other))
        has[-1] = (rng.random() < 0.6) & ((gender == MALE) | (rng.random() < other))
        has[2] = (rng.random() < 0.8) & (~has[0] | (rng.random() < other))
        entry = max(birth, 1990) + int(rng.integers(0, 10))
        day = np.datetime64(f"{entry}-01-15")
        count = int(rng.poisson(2 * frailty + other))
        for order in range(1, count + 1):
            kind = int(rng.choice([9201, 9202, 9203], p=[0.35, 0.5, 0.15]))
            stay = int(rng.poisson(4 + 3 * other)) if kind == 9201 else 0
            visits.append((cohort, person_id, order, kind, day, day + stay))
            told = [c for c, h in zip(CONCEPTS, has) if h and rng.random() < 0.5]
            for table, concept in told:
                at = day + int(rng.integers(0, stay + 1))
                events.append(
                    (cohort, person_id, order, table, concept, at, None, None)
                )
            for concept, unit in LABS.items():
                if rng.random() < 0.5:
                    mean = 10 + frailty + other * (4_002 - concept)
                    value = round(rng.normal(mean, 2 + concept % 3), 1)
                    value = None if rng.random() < 0.1 + other / 5 else value
                    unit = 9_999 if unit and rng.random() < other / 4 else unit
                    row = ("measurement", concept, day, value, unit)
                    events.append((cohort, person_id, order, *row))
            day = day + int(rng.integers(1, 400))
        if has[5]:  # of no visit
            row = (*CONCEPTS[5], day, None, None)
            events.append((cohort, person_id, None, *row))
        death = None
        if rng.random() < 0.2:
            death = day - 30 if rng.random() < other / 2 else day + 5
        if other and person_id % 50 == 0:
            birth = entry + 1
        race = int(rng.choice([8527, 8515, 0], p=[0.6, 0.3, 0.1]))
        persons.append((cohort, person_id, gender, race, 38003564, birth, death))
    return persons, visits, events


@pytest.fixture(scope="module")
def rows():
    """Persons, visits and events as data frames, built without a warehouse."""
    parts = [
        world("train", 900, seed=1),
        world("holdout", 500, seed=2),
        world("other", 600, seed=3, other=0.5),
        world("few", 3, seed=4),
    ]
    persons, visits, events = (
        [row for part in parts for row in part[n]] for n in range(3)
    )
    # each known to some of the cohorts alone
    known = {5_000: ["holdout"], 5_001: ["other"], 5_002: ["train", "other"]}
    for concept, cohorts in known.items():
        for cohort, person_id in product(cohorts, range(1, 41)):
            row = ("device_exposure", concept, "2005-05-05", None, None)
            events.append((cohort, person_id, None, *row))
    persons = pd.DataFrame(persons, columns=PERSONS)
    visits = pd.DataFrame(visits, columns=VISITS)
    events = pd.DataFrame(events, columns=EVENTS)
    persons["death_date"] = pd.to_datetime(persons["death_date"])
    for frame, names in ((visits, VISITS[-2:]), (events, ["event_date"])):
        for name in names:
            frame[name] = pd.to_datetime(frame[name])
    events["value_as_number"] = events["value_as_number"].astype(float)
    for name in ("visit_order", "unit_concept_id"):
        events[name] = events[name].astype("Int64")
    return persons, visits, events


PERSONS = [
    "cohort", "person_id", "gender_concept_id", "race_concept_id",
    "ethnicity_concept_id", "year_of_birth", "death_date",
]  # fmt: skip
VISITS = [
    "cohort", "person_id", "visit_order", "visit_concept_id", "visit_start_date",
    "visit_end_date",
]  # fmt: skip
EVENTS = [
    "cohort", "person_id", "visit_order", "source_table", "concept_id", "event_date",
    "value_as_number", "unit_concept_id",
]  # fmt: skip


@pytest.fixture(scope="module")
def con(rows, tmp_path_factory):
    """A warehouse with the cohorts and the marts that dbt makes of them."""
    folder = tmp_path_factory.mktemp("evaluation")
    warehouse = folder / "warehouse.duckdb"
    types = {"person_id": "bigint", "visit_order": "int", "year_of_birth": "int"}
    with duckdb.connect(str(warehouse)) as made:
        made.execute("create schema evaluation_private")
        for name, frame in zip(("persons", "visits", "events"), rows):
            made.register("frame", frame)
            columns = [
                f"cast({c} as {types.get(c, 'bigint')}) as {c}"
                if c in types or c.endswith("concept_id")
                else f"cast({c} as date) as {c}" if c.endswith("date")
                else c
                for c in frame.columns
            ]  # fmt: skip
            made.execute(
                f"create table evaluation_private.{name} as "
                f"select {', '.join(columns)} from frame"
            )
        families = families_query(folder)  # without a vocabulary: each its own
        made.execute(f"create table evaluation_private.concept_families as {families}")
    build(
        "evaluate",
        variables={},
        warehouse=warehouse,
        work_folder=folder,
        cores=1,
        memory="2GB",
    )
    with duckdb.connect(str(warehouse), read_only=True) as found:
        yield found


def measured(con, cohort):
    for mined in ("training_matrix", "exclusive_pairs", "indications"):
        getattr(violations, mined).cache_clear()
    effects.effect_pairs.cache_clear()
    results = Results()
    population.measure(con, cohort, PROFILES["smoke"], results)
    values = {(m.name, m.stratum): m.value for m in results.metrics}
    assert len(values) == len(results.metrics)
    return values, results


@pytest.fixture(scope="module")
def found(con):
    return measured(con, "other")[0]


@pytest.fixture(scope="module")
def matrices(rows):
    """X of each cohort: persons by concepts, 0 or 1, over all concepts of anybody."""
    persons, _, events = rows
    made = {}
    for cohort in ("train", "holdout", "other"):
        table = pd.crosstab(of(events, cohort).person_id, key(of(events, cohort)))
        ids = of(persons, cohort).person_id
        columns = sorted(set(key(events)))
        made[cohort] = table.reindex(ids, columns=columns, fill_value=0) > 0
    return made


def key(frame):
    return frame.source_table + " " + frame.concept_id.astype(str)


def of(frame, cohort):
    return frame[frame.cohort == cohort]


def r2(x, y):
    return 1 - np.sum((x - y) ** 2) / np.sum((x - np.mean(x)) ** 2)


def test_shares_of_persons_with_each_concept(found, matrices):
    p, q = matrices["holdout"].mean(), matrices["other"].mean()
    large = np.maximum(p, q)
    kept = large >= 0.002
    assert 0 < kept.sum() < len(kept) or kept.all()
    assert found["prevalence_r2", "all"] == pytest.approx(r2(p[kept], q[kept]))
    x, y = np.log10(p[kept] + 1 / 500), np.log10(q[kept] + 1 / 500)
    assert found["prevalence_log_r2", "all"] == pytest.approx(r2(x, y))
    assert found["prevalence_log_r", "all"] == pytest.approx(stats.pearsonr(x, y)[0])
    gaps = (p - q).abs()[large >= 0.01]
    assert found["prevalence_apd", "all"] == pytest.approx(gaps.mean())
    of_drugs = gaps.index.str.startswith("drug_exposure")
    expected = pytest.approx(gaps[of_drugs].mean())
    assert found["prevalence_apd", "drug_exposure"] == expected
    common = large >= 0.005
    outside = [not 0.8 <= b / a <= 1.25 if a else True for a, b in zip(p, q)]
    expected = np.mean(np.array(outside)[common])
    assert found["prevalence_ratio_outside", "all"] == pytest.approx(expected)


def test_shares_that_chance_does_not_explain(found, matrices):
    x, y = matrices["holdout"], matrices["other"]
    kept = np.maximum(x.mean(), y.mean()) >= 0.002
    far, surely = [], []
    for name in x.columns[kept]:
        a, b = x[name].sum(), y[name].sum()
        table = [[a, 500 - a], [b, 600 - b]]
        z = np.sqrt(stats.chi2_contingency(table, correction=False).statistic)
        far.append(z > 3.3)
    assert 0 < np.mean(far) < 1
    assert found["prevalence_misses", "all"] == pytest.approx(np.mean(far))
    common = np.maximum(x.mean(), y.mean()) >= 0.005
    for name in x.columns[common]:
        a, b = x[name].sum() + 0.5, y[name].sum() + 0.5
        error = np.sqrt((1 - x[name].mean()) / a + (1 - y[name].mean()) / b)
        ratio = np.log(b / 601) - np.log(a / 501)
        interval = ratio - 1.96 * error, ratio + 1.96 * error
        surely.append(interval[0] > np.log(1.25) or interval[1] < np.log(0.8))
    expected = pytest.approx(np.mean(surely))
    assert 0 < np.mean(surely) < 1
    assert found["prevalence_ratio_outside_surely", "all"] == expected


def test_rare_and_unknown_concepts(found, matrices):
    counts = matrices["holdout"].sum()
    rare = (counts >= 5) & (counts < 50)
    # device 5000 is one of them, and the other cohort lacks it
    expected = (matrices["other"].sum()[rare] > 0).mean()
    assert expected < 1
    assert found["rare_concept_coverage", "all"] == pytest.approx(expected)
    ours = matrices["other"].any()
    unknown = ours & ~matrices["train"].any()
    expected = unknown.sum() / ours.sum()
    assert expected > 0
    assert found["concepts_not_in_train", "all"] == pytest.approx(expected)


def described(rows, cohort):
    persons, visits, _ = rows
    first = of(visits, cohort).groupby("person_id").visit_start_date.min().dt.year
    table = of(persons, cohort).set_index("person_id")
    table["age_from"] = (first - table.year_of_birth) // 5 * 5
    table["decade"] = first // 10 * 10
    age = first - table.year_of_birth
    table["age"] = pd.cut(
        age.reindex(table.index),
        [-np.inf, 17, 39, 64, np.inf],
        labels=["0-17", "18-39", "40-64", "65+"],
    )
    return table


def tv(x, y):
    """Total variation of two samples of anything."""
    p, q = (pd.Series(list(s)).value_counts(normalize=True) for s in (x, y))
    return p.sub(q, fill_value=0).abs().sum() / 2


def test_demographics(found, rows):
    real, ours = (described(rows, name) for name in ("holdout", "other"))
    margins = {
        "gender": "gender_concept_id",
        "race": "race_concept_id",
        "ethnicity": "ethnicity_concept_id",
        "age_at_first_visit": "age_from",
        "decade": "decade",
    }
    columns = list(margins.values())
    for stratum, names in {
        "all": columns,
        **{k: [v] for k, v in margins.items()},
    }.items():
        samples = [t[names].fillna(-1).apply(tuple, axis=1) for t in (real, ours)]
        expected = tv(*samples)
        assert found["demographics_tv", stratum] == pytest.approx(expected), stratum
    assert found["demographics_tv", "ethnicity"] == 0
    # what chance alone makes of it, by relabelling the same persons
    rng = np.random.default_rng(1)
    for stratum, names in {"all": columns, "gender": ["gender_concept_id"]}.items():
        both = pd.concat([real, ours])[names].fillna(-1).apply(tuple, axis=1).to_numpy()
        mixed = [rng.permutation(both) for _ in range(100)]
        by_chance = np.mean([tv(m[:500], m[500:]) for m in mixed])
        excess = found["demographics_tv", stratum] - by_chance
        # relabelling takes without putting back: a little nearer in small cells
        assert abs(excess) > 0.03
        expected = pytest.approx(excess, abs=0.015)
        assert found["demographics_tv_excess", stratum] == expected


def test_subgroups(found, rows, matrices):
    real, ours = (described(rows, name) for name in ("holdout", "other"))
    overall = np.maximum(matrices["holdout"].mean(), matrices["other"].mean())
    top = matrices["holdout"].sum()
    top = sorted(top.index[top > 0], key=lambda c: (-top[c], *c.split()))[:150]
    r2s, gaps, divergences = {}, {}, {}
    for dimension in ("gender", "age", "race", "decade"):
        column = NAMES.get(dimension, dimension)
        for value in real[column].dropna().unique():
            groups = [t.index[t[column] == value] for t in (real, ours)]
            if min(map(len, groups)) < 100:
                continue
            stratum = int(value) if dimension != "age" else value
            p = matrices["holdout"].loc[groups[0]].mean()
            q = matrices["other"].loc[groups[1]].mean()
            kept = overall >= 0.002
            r2s[f"{dimension} {stratum}"] = r2(p[kept], q[kept])
            gaps[f"{dimension} {stratum}"] = (p - q).abs()[overall >= 0.01].mean()
            pairs = []
            for name, group in zip(("holdout", "other"), groups):
                has = matrices[name].loc[group, top].to_numpy(int)
                pairs.append([has[:, a] @ has[:, b] + 0.5 for a, b in combinations(
                    range(len(top)), 2
                )])  # fmt: skip
            divergences[f"{dimension} {stratum}"] = stats.entropy(*pairs)
    assert len(r2s) >= 6
    r2s["all"], gaps["all"] = min(r2s.values()), max(gaps.values())
    divergences["all"] = max(divergences.values())
    for name, values in {
        "subgroup_prevalence_r2": r2s,
        "subgroup_apd": gaps,
        "subgroup_cooccurrence_kl": divergences,
    }.items():
        strata = {key[1]: value for key, value in found.items() if key[0] == name}
        assert strata == pytest.approx(values)


def pairs_of(rows, cohort, top):
    """Count pairs by walking over each person's rows: four dicts."""
    events = of(rows[2], cohort)
    events = events.assign(key=key(events))[key(events).isin(top)]
    upper = list(combinations(range(len(top)), 2))
    both = list(permutations(range(len(top)), 2))
    place = {name: n for n, name in enumerate(top)}
    made = {
        "cooccurrence": dict.fromkeys(upper, 0),
        "cooccurrence_ordered": dict.fromkeys(both, 0),
        "cooccurrence_nearby": dict.fromkeys(both, 0),
        "visit_pair": dict.fromkeys(upper, 0),
    }
    for _, person in events.groupby("person_id"):
        days = {}
        by_visit = {}
        columns = person.key, person.event_date, person.visit_order
        for name, day, order in zip(*columns):
            days.setdefault(place[name], []).append(day)
            if not pd.isna(order):
                by_visit.setdefault(int(order), set()).add(place[name])
        for a, b in combinations(sorted(days), 2):
            made["cooccurrence"][a, b] += 1
        for a, b in permutations(days, 2):
            made["cooccurrence_ordered"][a, b] += any(
                x < y for x in days[a] for y in days[b]
            )
        for order, codes in by_visit.items():
            for a, b in combinations(sorted(codes), 2):
                made["visit_pair"][a, b] += 1
            for a, b in permutations(codes, 2):
                made["cooccurrence_nearby"][a, b] += 1
            for a in codes:
                for b in by_visit.get(order + 1, ()):
                    if a != b:
                        made["cooccurrence_nearby"][a, b] += 1
    return made


def test_pairs_of_concepts(found, rows, matrices):
    counts = matrices["holdout"].sum()
    top = sorted(counts.index[counts > 0], key=lambda name: (-counts[name], name))
    real, ours = (pairs_of(rows, name, top) for name in ("holdout", "other"))
    for name in real:
        p = np.array(list(real[name].values())) + 0.5
        q = np.array(list(ours[name].values())) + 0.5
        expected = stats.entropy(p, q)  # normalises
        assert found[f"{name}_kl", "all"] == pytest.approx(expected), name
        expected = jensenshannon(p, q, base=2) ** 2
        assert found[f"{name}_js", "all"] == pytest.approx(expected), name
    third = len(top) / 3
    for number, stratum in enumerate(("frequent", "middle", "rare")):
        low, high = number * third, (number + 1) * third
        kept = [k for k in real["cooccurrence"] if low <= k[0] < high and k[1] < high]
        p, q = ([c["cooccurrence"][k] + 0.5 for k in kept] for c in (real, ours))
        expected = pytest.approx(stats.entropy(p, q))
        assert found["cooccurrence_kl", stratum] == expected
    x = np.array(list(real["visit_pair"].values())) / 500
    y = np.array(list(ours["visit_pair"].values())) / 600
    assert found["visit_pair_r2", "all"] == pytest.approx(r2(x, y))


def test_correlations(found, matrices):
    counts = matrices["holdout"].sum()
    top = sorted(counts.index[counts > 0], key=lambda name: (-counts[name], name))
    gaps = [
        np.nan_to_num(matrices[name][top].astype(float).corr().to_numpy())
        for name in ("holdout", "other")
    ]
    upper = np.triu_indices(len(top), 1)
    expected = np.abs(gaps[0] - gaps[1])[upper].mean()
    assert found["correlation_gap", "all"] == pytest.approx(expected)


def test_only_the_top_concepts_make_pairs(con, monkeypatch):
    monkeypatch.setattr(population, "TOP", 4)
    monkeypatch.setattr(population, "DRAWN", 3)
    values, results = measured(con, "other")
    assert len(results.curves["cooccurrence"]) == 3
    assert values["cooccurrence_kl", "all"] < 0.5


def test_numbers(found, rows):
    _, _, events = rows
    values = events[events.value_as_number.notna()]
    w1s, distances = [], []
    for lab, unit in LABS.items():
        x, y = (
            v[(v.concept_id == lab) & (v.unit_concept_id.fillna(0) == (unit or 0))]
            .value_as_number.to_numpy()
            for v in (of(values, "holdout"), of(values, "other"))
        )  # fmt: skip
        stratum = f"measurement {lab}" + (f" {unit}" if unit else "")
        w1s.append(stats.wasserstein_distance(x, y) / np.std(x))
        distances.append(stats.ks_2samp(x, y).statistic)
        # the quantiles say it to half a percent, without the tails
        assert found["value_w1", stratum] == pytest.approx(w1s[-1], abs=0.02)
        assert found["value_ks", stratum] == pytest.approx(distances[-1], abs=0.011)
    assert found["value_w1", "all"] == pytest.approx(np.median(w1s), abs=0.02)
    assert found["value_ks", "all"] == pytest.approx(np.median(distances), abs=0.011)
    expected = np.mean(np.array(distances) > 0.1)
    assert 0 < expected < 1
    assert found["value_ks_far", "all"] == pytest.approx(expected)


def test_quantiles_are_numbers_that_occur(con, rows):
    values = of(rows[2], "holdout")
    x = values[(values.concept_id == 4_002)].value_as_number.dropna()
    query = """
        select quantile, value_as_number
        from evaluation.value_quantiles
        where cohort = 'holdout' and concept_id = 4002
        order by 1
    """
    found = np.array(con.execute(query).fetchall())
    assert found[:, 0] == pytest.approx(np.arange(1, 200) / 200)
    expected = np.quantile(x, found[:, 0], method="inverted_cdf")
    np.testing.assert_array_equal(found[:, 1], expected)


def test_numbers_that_are_not_there_and_their_units(found, rows):
    _, _, events = rows
    events = events[events.source_table == "measurement"]
    missing = [
        of(events, name).value_as_number.isna().groupby(events.concept_id).mean()
        for name in ("holdout", "other")
    ]
    gaps = (missing[0] - missing[1]).abs()
    assert found["value_missing_gap", "all"] == pytest.approx(gaps.mean())
    assert found["value_missing_gap_largest", "all"] == pytest.approx(gaps.max())
    given = events[events.value_as_number.notna()]
    units = []
    for lab in LABS:
        of_lab = given[given.concept_id == lab]
        samples = [
            of(of_lab, c).unit_concept_id.fillna(0) for c in ("holdout", "other")
        ]
        units.append(tv(*samples))
    assert max(units) > 0.05
    assert found["value_unit_tv", "all"] == pytest.approx(np.mean(units))


def test_numbers_by_sex_and_age(con, rows, monkeypatch):
    monkeypatch.setattr(numbers, "LEAST_ROWS", 60)
    found, _ = measured(con, "other")
    persons, _, events = rows
    given = events[events.value_as_number.notna()].merge(persons)
    age = (given.event_date.dt.year - given.year_of_birth) // 20
    given = given.assign(age=age, unit=given.unit_concept_id.fillna(0))
    keys = ["concept_id", "unit", "gender_concept_id", "age"]
    means = given.groupby(["cohort", *keys]).value_as_number.agg(["mean", "size"])
    means = means[means["size"] >= 60]["mean"]
    gaps = (means["holdout"] - means["other"]).abs().dropna()
    deviation = of(given, "holdout").groupby(keys[:2]).value_as_number.std(ddof=0)
    expected = (gaps / deviation).dropna()
    assert len(expected) >= 3
    assert found["value_group_gap", "all"] == pytest.approx(expected.mean())


@pytest.mark.parametrize(
    "measure", ["visits_per_person", "concepts_per_person", "events_per_visit"]
)
def test_counts(found, rows, matrices, measure):
    persons, visits, events = rows
    samples = []
    for cohort in ("holdout", "other"):
        ids = of(persons, cohort).person_id
        if measure == "visits_per_person":
            n = of(visits, cohort).person_id.value_counts().reindex(ids, fill_value=0)
        elif measure == "concepts_per_person":
            n = matrices[cohort].sum(axis=1)
        else:
            keys = ["person_id", "visit_order"]
            n = of(events, cohort).groupby(keys).size()
            n = n.reindex(pd.MultiIndex.from_frame(of(visits, cohort)[keys]))
            n = n.fillna(0)
        samples.append(n.to_numpy())
    x, y = samples
    assert found[f"{measure}_ks", "all"] == pytest.approx(
        stats.ks_2samp(x, y).statistic
    )
    expected = stats.wasserstein_distance(x, y) / np.std(x)
    assert found[f"{measure}_w1", "all"] == pytest.approx(expected)


def test_stays(found, rows):
    _, visits, _ = rows
    visits = visits.assign(
        days=(visits.visit_end_date - visits.visit_start_date).dt.days
    )
    stays = visits[visits.visit_concept_id == 9201]
    x, y = (of(stays, cohort).days for cohort in ("holdout", "other"))
    expected = {
        "length_of_stay_ks": stats.ks_2samp(x, y).statistic,
        "length_of_stay_w1": stats.wasserstein_distance(np.log1p(x), np.log1p(y)),
    }
    for name, value in expected.items():
        # the other two types are of one day, all of them
        strata = {key[1]: v for key, v in found.items() if key[0] == name}
        assert strata == pytest.approx({"9201": value, "all": value})


def test_visit_types_and_domains(found, rows):
    persons, visits, events = rows
    told = visits.merge(persons)
    age = (told.visit_start_date.dt.year - told.year_of_birth) // 10
    told = told.assign(key=list(zip(told.visit_concept_id, age)))
    expected = tv(*(of(told, cohort).key for cohort in ("holdout", "other")))
    assert found["visit_type_tv", "all"] == pytest.approx(expected)
    within = events[events.visit_order.notna()].merge(visits)
    worst = {}
    for kind in (9201, 9202, 9203):
        rows_of = within[within.visit_concept_id == kind]
        samples = [of(rows_of, c).source_table for c in ("holdout", "other")]
        if min(map(len, samples)) >= 200:
            worst[str(kind)] = tv(*samples)
    assert len(worst) >= 2
    worst["all"] = max(worst.values())
    strata = {key[1]: v for key, v in found.items() if key[0] == "visit_domain_tv"}
    assert strata == pytest.approx(worst)


def test_what_cannot_be(found, rows, matrices, con):
    persons, visits, events = rows
    ours = of(persons, "other").set_index("person_id")
    has = matrices["other"][f"condition_occurrence {TESTICLE}"]
    women = (ours.gender_concept_id == FEMALE).reindex(has.index)
    assert found["violation_gender", "all"] == pytest.approx(
        (has & women).sum() / has.sum()
    )
    days = pd.concat([
        of(events, "other").groupby("person_id").event_date.max(),
        of(visits, "other").groupby("person_id").visit_start_date.max(),
    ]).groupby("person_id").max()  # fmt: skip
    died = ours.death_date.dropna()
    late = (days.reindex(died.index) > died).mean()
    assert late > 0
    assert found["violation_after_death", "all"] == pytest.approx(late)
    first = pd.concat([
        of(events, "other").groupby("person_id").event_date.min(),
        of(visits, "other").groupby("person_id").visit_start_date.min(),
    ]).groupby("person_id").min().dt.year  # fmt: skip
    early = (first < ours.year_of_birth.reindex(first.index)).mean()
    assert early > 0
    assert found["violation_before_birth", "all"] == pytest.approx(early)


def with_genders(rows, matrices, cohort):
    table = matrices[cohort].copy()
    genders = of(rows[0], cohort).set_index("person_id").gender_concept_id
    for gender in (MALE, FEMALE):
        table[f"gender {gender}"] = (genders == gender).reindex(table.index)
    return table


def test_what_is_never_together(found, rows, matrices):
    train, ours = (with_genders(rows, matrices, name) for name in ("train", "other"))
    broken = pd.Series(False, index=ours.index)
    rules = []
    for a, b in combinations(train.columns, 2):
        expected = train[a].sum() * train[b].sum() / len(train)
        if expected >= 50 and not (train[a] & train[b]).any() and a != f"gender {MALE}":
            rules.append((a, b))
            broken |= ours[a] & ours[b]
    # the two that the world has: of men alone, and never beside the first
    assert (f"condition_occurrence {TESTICLE}", f"gender {FEMALE}") in rules
    assert ("condition_occurrence 1000", "condition_occurrence 1002") in rules
    # seldom is not never
    women = train["condition_occurrence 1004"] & train[f"gender {FEMALE}"]
    assert 1 <= women.sum() <= 3
    assert broken.mean() > 0
    assert found["violation_never_together", "all"] == pytest.approx(broken.mean())


def test_drugs_that_nothing_speaks_for(con, rows, matrices, monkeypatch):
    # so much is explained in a world whose drugs have little to do with its conditions
    monkeypatch.setattr(violations, "COVERED", 0.9)
    monkeypatch.setattr(violations, "LIFT", 1.2)
    found, _ = measured(con, "other")
    train, ours = matrices["train"], matrices["other"]
    conditions = [c for c in train if c.startswith("condition")]
    conditions = [c for c in conditions if train[c].sum() >= 50]
    # of equals the most frequent is first
    conditions.sort(key=lambda c: (-train[c].sum(), int(c.split()[1])))
    wrong = about = rules = 0
    for drug in [c for c in train if c.startswith("drug") and train[c].sum() >= 50]:
        takers, chosen = train[train[drug]], []
        left = takers
        while len(chosen) < 3 and len(left):
            gains = {
                c: left[c].sum()
                for c in conditions
                if takers[c].mean() >= 1.2 * train[c].mean()
            }
            best = max(gains, key=gains.get, default=None)
            if best is None or not gains[best]:
                break
            chosen.append(best)
            left = left[~left[best]]
        if len(left) <= 0.1 * len(takers):
            rules += 1
            about += ours[drug].sum()
            wrong += (ours[drug] & ~ours[chosen].any(axis=1)).sum()
    assert 1 <= rules < 6
    assert 0 < wrong < about
    assert found["violation_no_indication", "all"] == pytest.approx(wrong / about)


def test_ages_at_which_nobody_has_it(con, rows, monkeypatch):
    # so many are expected in a world this small
    monkeypatch.setattr(violations, "EXPECTED", 2)
    found, _ = measured(con, "other")
    persons, _, events = rows
    keys = ["cohort", "person_id", "source_table", "concept_id"]
    first = events.groupby(keys).event_date.min().reset_index().merge(persons)
    first = first.assign(age=(first.event_date.dt.year - first.year_of_birth) // 10)
    train, ours = (
        pd.crosstab(key(of(first, c)), of(first, c).age) for c in ("train", "other")
    )
    total = train.to_numpy().sum()
    broken = 0
    train = train.reindex(ours.index, columns=ours.columns, fill_value=0)
    for name, band in product(ours.index, ours.columns):
        expected = train.loc[name].sum() * train[band].sum() / total
        if not train.loc[name, band] and expected >= 2:
            broken += ours.loc[name, band]
    assert broken > 0
    expected = pytest.approx(broken / ours.to_numpy().sum())
    assert found["violation_age", "all"] == expected


def fitted(exposed, male, age, outcome):
    """The log odds ratio of the exposure by a general optimiser, person by person."""
    years = (age - 50) / 20
    design = np.stack([np.ones_like(years), exposed, male, years, years**2], axis=1)

    def loss(weights):
        logits = design @ weights
        prior = np.sum(weights[1:] ** 2) / 2 / effects.PRIOR_VARIANCE
        return np.sum(np.logaddexp(0, logits) - outcome * logits) + prior

    best = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    risk = 1 / (1 + np.exp(-design @ best.x))
    curvature = design.T @ (design * (risk * (1 - risk))[:, None])
    curvature += np.diag([0, *[1 / effects.PRIOR_VARIANCE] * 4])
    return best.x[1], np.sqrt(np.linalg.inv(curvature)[1, 1])


def ratio_by_hand(rows, cohort, exposure, outcome):
    persons, visits, events = rows
    table = of(persons, cohort).set_index("person_id")
    events = of(events, cohort)
    first = events.groupby(["concept_id", "person_id"]).event_date.min()
    record = pd.concat([
        events.groupby("person_id").event_date.min(),
        of(visits, cohort).groupby("person_id").visit_start_date.min(),
    ]).groupby("person_id").min()  # fmt: skip
    table["exposed"] = first[exposure].reindex(table.index)
    table["ends"] = first[outcome].reindex(table.index)
    table["start"] = table.exposed.fillna(record.reindex(table.index))
    table = table[table.start.notna() & ~(table.ends <= table.start)]
    age = (table.start.dt.year - table.year_of_birth).clip(0, 119).to_numpy(float)
    return fitted(
        table.exposed.notna().to_numpy(float),
        (table.gender_concept_id == MALE).to_numpy(float),
        age,
        table.ends.notna().to_numpy(float),
    )


def test_effects(con, rows):
    values, results = measured(con, "other")
    drawn = results.curves["effects"]
    assert 5 <= len(drawn) <= effects.EFFECTS
    for row in drawn:
        pair = row["exposure"], row["outcome"]
        for cohort, suffix in (("holdout", "_holdout"), ("other", "")):
            ratio, error = ratio_by_hand(rows, cohort, *pair)
            assert row[f"log_odds_ratio{suffix}"] == pytest.approx(ratio, abs=1e-4)
            assert row[f"standard_error{suffix}"] == pytest.approx(error, rel=1e-3)
    x, y = (
        np.array([row[name] for row in drawn])
        for name in ("log_odds_ratio_holdout", "log_odds_ratio")
    )
    line = stats.linregress(x, y)
    assert values["effect_slope", "all"] == pytest.approx(line.slope)
    assert values["effect_r2", "all"] == pytest.approx(line.rvalue**2)
    overlap = [
        min(a + 1.96 * s, b + 1.96 * t) >= max(a - 1.96 * s, b - 1.96 * t)
        for a, b, s, t in (
            (
                row["log_odds_ratio_holdout"], row["log_odds_ratio"],
                row["standard_error_holdout"], row["standard_error"],
            )
            for row in drawn
        )
    ]  # fmt: skip
    assert values["effect_overlap", "all"] == pytest.approx(np.mean(overlap))


def test_numbers_out_of_the_range_of_the_training(con, rows, monkeypatch):
    monkeypatch.setattr(numbers, "LEAST_RANGE", 100)
    monkeypatch.setattr(numbers, "RANGE", (0.02, 0.98))
    _, results = measured(con, "other")
    (metric,) = [m for m in results.metrics if m.name == "value_outside"]
    _, _, events = rows
    keys = ["source_table", "concept_id", "unit_concept_id"]
    outside, count = 0, 0
    for key, ours in of(events, "other").groupby(keys, dropna=False):
        train = of(events, "train")
        same = [
            (train[name] == value) | (train[name].isna() & pd.isna(value))
            for name, value in zip(keys, key)
        ]
        train = train[np.logical_and.reduce(same)].value_as_number.dropna()
        values = ours.value_as_number.dropna()
        if len(train) >= 100:
            low, high = np.quantile(train, [0.02, 0.98], method="inverted_cdf")
            outside += ((values < low) | (values > high)).sum()
            count += len(values)
    assert count > 200
    assert metric.value == pytest.approx(outside / count)
    assert 0.01 < metric.value < 0.9
    assert metric.ci_low <= metric.value <= metric.ci_high


def test_pairs_of_effects_come_from_the_training(con, rows):
    """Every pair is frequent enough there, from the least lift to the largest."""
    _, _, events = rows
    train = of(events, "train")
    first = train.groupby(["concept_id", "person_id"]).event_date.min().unstack(0)
    share = first.notna().sum() / 900
    kept = [
        concept
        for table, concept in CONCEPTS
        if table != "procedure_occurrence" and 0.02 <= share.get(concept, 0) <= 0.5
    ]
    lifts = {}
    for a, b in permutations(kept, 2):
        later = (first[b] > first[a]).sum()
        if later >= 18 and ("condition_occurrence", b) in CONCEPTS:
            lifts[a, b] = later / first[a].notna().sum() / first[b].notna().sum()
    chosen = [(a[1], b[1]) for a, b in effects.effect_pairs(con)]
    assert set(chosen) <= set(lifts)
    assert len(chosen) == len(set(chosen)) == min(30, len(lifts))
    found = [lifts[pair] for pair in chosen]
    assert found == sorted(found)
    assert found[0] == min(lifts.values())
    assert found[-1] == max(lifts.values())


def test_a_cohort_against_itself_is_the_same(con):
    """Nothing differs, but what is rare in the holdout already."""
    values, _ = measured(con, "holdout")
    ones = ("_r2", "_log_r", "slope", "overlap", "coverage")
    for (name, stratum), value in values.items():
        of_one = ("violation", "concepts_not", "value_outside")
        if name.startswith(of_one) or "excess" in name:
            continue
        expected = 1 if name.endswith(ones) else 0
        if np.isfinite(value):
            assert value == pytest.approx(expected, abs=1e-9), (name, stratum)


@pytest.mark.parametrize("cohort", ["few", "nobody"])
def test_too_few_persons_say_nothing_and_stop_nothing(con, found, cohort):
    values, _ = measured(con, cohort)
    alone = {name for name, stratum in found if stratum == "all"}
    assert alone <= {name for name, stratum in values if stratum == "all"}
    assert np.isnan(values["value_ks", "all"])
    assert np.isnan(values["length_of_stay_ks", "all"])
    assert np.isnan(values["subgroup_apd", "all"])
    if cohort == "nobody":
        assert {n: v for n, v in values.items() if np.isfinite(v)} == {}


def test_it_is_the_same_each_time(con, found):
    again, _ = measured(con, "other")
    np.testing.assert_equal(again, found)


def test_intervals_are_about_the_numbers_that_have_gates(con, redrawn_in_vain):
    assert redrawn_in_vain(lambda: measured(con, "other")[1]) == 9
