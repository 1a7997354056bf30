"""The simulator's five mechanisms do what their published parameters say."""

import duckdb
import numpy as np
import pytest
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.simulation.draws import Draws
from omop_gpt.simulation.events import Clinic
from omop_gpt.simulation.knowledge import NEVER, Knowledge, read
from omop_gpt.simulation.mechanisms import YEAR, Waiting, creatinine
from omop_gpt.simulation.patients import make_people
from omop_gpt.simulation.visits import INPATIENT, Encounters

PERSONS = 30_000
EGFR, CREATININE, MMSE = 46236952, 3016723, 42869860
PATIENTS = 10_000
SECOND_LINE = "('Glipizide 5 MG Oral Tablet', 'pioglitazone 15 MG Oral Tablet', "
SECOND_LINE += "'3 ML liraglutide 6 MG/ML Pen Injector', "
SECOND_LINE += "'canagliflozin 100 MG Oral Tablet')"


@pytest.fixture(scope="module")
def clinic():
    return Clinic(Knowledge(), seed=7)


@pytest.fixture(scope="module")
def people(clinic):
    return make_people(np.arange(PERSONS), clinic.knowledge, clinic.draws)


@pytest.fixture(scope="module")
def con(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mechanisms") / "omop"
    settings = {"output_folder": str(folder), "num_of_patients": PATIENTS, "seed": 7}
    simulate(SimulateConfig(**settings))
    con = duckdb.connect(config={"threads": 2})
    for table in sorted(path.name for path in folder.iterdir()):
        con.execute(f"create view {table} as from '{folder}/{table}/*.parquet'")
    return con


@pytest.fixture(scope="module")
def diagnosed(clinic, con):
    """Table `onsets`: when the diseases that measurements find began, if observed."""
    people = make_people(np.arange(PATIENTS), clinic.knowledge, clinic.draws)
    con.execute(
        "create table onsets (person_id bigint, condition_concept_id int, day date)"
    )
    for condition, concept in (
        ("type 2 diabetes", 201826),
        ("chronic kidney disease", 46271022),
    ):
        onset = people.onset[:, clinic.knowledge.index[condition]]
        seen = np.flatnonzero((onset > people.start + 400) & (onset <= people.end))
        days = onset[seen].astype("datetime64[D]").astype(str)
        rows = [[int(p) + 1, concept, d] for p, d in zip(seen, days, strict=True)]
        con.executemany("insert into onsets values (?, ?, ?)", rows)


def trend(clinic, condition):
    index = clinic.knowledge.index[condition]
    return next(t for t in clinic.knowledge.trends if t.condition == index)


def column(con, query):
    return np.array([row[0] for row in con.execute(query).fetchall()], float)


@pytest.mark.parametrize(
    "waiting",
    [
        Waiting(scale=400, shape=0.6),
        Waiting(scale=98, shape=np.inf, share=0.6),
        Waiting.through(30, 0.196, 90, 0.34),
    ],
)
def test_waiting_times_follow_their_law(waiting):
    part = Draws(1)("part", np.arange(200_000))
    for factor in (1, 0.5, 3):
        days = waiting.days(part, factor)
        for day in (1, 30, 97, 99, 400, 5000):
            assert (days <= day).mean() == pytest.approx(
                waiting.by(day, factor), abs=0.004
            )


def test_two_published_shares_make_a_law():
    waiting = Waiting.through(30, 0.196, 90, 0.34)
    assert waiting.by(np.array([30, 90])) == pytest.approx([0.196, 0.34])
    assert waiting.shape < 1  # the hazard falls


def test_deaths_are_as_many_as_the_law_expects(clinic, people):
    law = {row["name"]: float(row["value"]) for row in read("survival")}
    index = clinic.knowledge.index
    expected, months = np.zeros(PERSONS), np.arange(0, 5479, 30.4375)
    for month in months + 15:
        day = people.start + month
        age = (day - people.birth) / YEAR
        hazard = law["rate at 60"] * np.exp(law["growth"] * (age - 60))
        hazard += law["first year"] * (age < 1)
        hazard *= np.where(people.is_female, law["female"], law["male"])
        for name in law.keys() & index.keys():
            hazard *= np.where(people.onset[:, index[name]] <= day, law[name], 1)
        expected += hazard * 30.4375 / YEAR * (day <= people.end)
    died = people.death < NEVER
    dementia = people.onset[:, index["dementia"]] <= people.start
    for group in (~dementia, dementia, people.is_female, ~people.is_female):
        deaths = expected[group].sum()
        assert deaths > 150
        assert died[group].sum() == pytest.approx(deaths, rel=0.03, abs=4 * deaths**0.5)


def test_survival_is_known(clinic):
    law = clinic.knowledge.survival
    hazard = law.hazard
    assert law.alive(60, 60) == 1
    assert law.alive(60, 80, 2) == pytest.approx(np.exp(-2 * hazard[60:80].sum()), 1e-3)
    assert hazard[0] > law.infant > hazard[1]


def test_treatment_goes_on_as_published(clinic, people):
    everyone = np.arange(PERSONS)

    def share(condition, line, years):
        condition = clinic.knowledge.conditions[clinic.knowledge.index[condition]]
        since = np.full(PERSONS, years * YEAR)
        return (clinic.line(people, condition, everyone, since) >= line).mean()

    assert share("type 2 diabetes", 2, 3) == pytest.approx(0.5, abs=0.012)
    assert share("type 2 diabetes", 2, 9) == pytest.approx(0.75, abs=0.012)
    assert share("depression", 2, 0.25) == 0
    assert share("depression", 2, 1) == pytest.approx(0.632, abs=0.012)
    assert share("depression", 3, 1) == pytest.approx(0.632 * 0.694, abs=0.012)
    assert share("hypertension", 2, 9) == 0  # has no lines


def test_drugs_tell_the_line_of_treatment(clinic, con, diagnosed):
    waiting = clinic.knowledge.lines[clinic.knowledge.index["type 2 diabetes"]][0]
    days = column(
        con,
        f"""
        select min(drug_exposure_start_date - day) filter (
            where concept_name in {SECOND_LINE})
        from onsets
        join drug_exposure using (person_id)
        join concept on drug_concept_id = concept_id
        join observation_period using (person_id)
        where condition_concept_id = 201826 and observation_period_end_date > day + 1096
        group by person_id
        """,
    )
    assert days.size > 60
    assert np.nanmin(days) > 0
    by_then = (days <= 1096).mean()
    # it takes some visits until the drug of a new line is written down
    chance = 3 * (0.25 / days.size) ** 0.5
    assert waiting.by(365) - chance < by_then < waiting.by(1096) + chance


def test_stays_bring_stays_by_the_published_hazard(clinic, people):
    schedule, law = clinic.schedule, clinic.knowledge.readmission
    illness = Encounters.concat(list(schedule._episodes(people)))
    stays = illness.where(illness.setting == INPATIENT)
    order = np.argsort(stays.person * 2**16 + stays.day)
    first = np.unique(stays.person[order], return_index=True)[1]
    stays = stays.where(order[first])  # one each: nothing else is near
    end = stays.day + stays.stay
    stays = stays.where(end + law.DAYS <= people.end[stays.person])
    end = stays.day + stays.stay
    again = next(schedule.readmissions(people, stays))
    gap = np.full(PERSONS, np.inf)
    gap[again.person] = again.day
    gap = gap[stays.person] - end
    factor = law.factors(stays.condition, people.age(stays.person, end))
    for days in (7, 30, 90):
        # days are whole, from 1 on
        expected = law.waiting.by(days, factor).sum()
        assert (gap <= days).sum() == pytest.approx(expected, abs=4 * expected**0.5)
    named = {row["name"] for row in read("readmissions")}
    others = [
        i for i, c in enumerate(clinic.knowledge.conditions) if c.name not in named
    ]
    for age, share in ((40, 0.1), (70, 0.196)):
        factor = law.factors(np.array(others), np.full(len(others), age))
        assert law.waiting.by(30, factor) == pytest.approx(share)
    assert gap.min() >= 1
    assert gap[np.isfinite(gap)].max() <= law.DAYS


def test_readmissions_are_in_the_data(con):
    gaps = column(
        con,
        """
        select coalesce(lead(visit_start_date) over (
            partition by person_id order by visit_start_date
        ) - visit_end_date, 9999)
        from visit_occurrence join person using (person_id)
        where visit_concept_id = 9201 and year(visit_end_date) - year_of_birth >= 65
        """,
    )
    assert 0.17 < (gaps <= 30).mean() < 0.27
    rates = [((gaps > a) & (gaps <= b)).sum() / (b - a) for a, b in
             ((0, 10), (10, 30), (30, 90), (90, 300))]  # fmt: skip
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("condition", "concept", "noise"),
    [("chronic kidney disease", 46271022, 4), ("type 2 diabetes", 201826, 0.15)],
)
def test_measurements_drive_diagnoses(
    clinic, con, diagnosed, condition, concept, noise
):
    law = trend(clinic, condition)
    sign = np.sign(law.slope)
    rows = con.execute(
        f"""
        select measurement_date - day, value_as_number
        from measurement join onsets using (person_id)
        where measurement_concept_id = {law.measurement.concept_id}
        and condition_concept_id = {concept}
        """
    ).fetchall()
    days, values = (np.array(c, float) for c in zip(*rows, strict=True))
    found = values[days == 0]
    # what is found, is found by a measurement, and written down that day
    recorded = con.execute(
        f"""
        select count(*), count(distinct person_id) from onsets
        join condition_occurrence using (person_id, condition_concept_id)
        where condition_concept_id = {concept} and condition_start_date = day
        """
    ).fetchone()
    assert recorded == (found.size, found.size)
    assert found.size > 100
    assert found.mean() == pytest.approx(law.threshold, abs=noise / 4)
    assert found.std() < 2 * noise
    before, after = values[days < 0], values[days > 2 * YEAR]
    # on the near side before, but for noise; on the far side after
    assert (sign * (before - law.threshold) > 2 * noise).mean() < 0.05
    assert (sign * (after - law.threshold) < -2 * noise).mean() < 0.05
    first = con.execute(
        """
        select count(*) from onsets join condition_occurrence
        using (person_id, condition_concept_id) where condition_start_date < day
        """
    ).fetchone()
    assert first == (0,)


def test_onset_is_where_the_line_meets_the_threshold(clinic, people):
    for condition in ("type 2 diabetes", "chronic kidney disease"):
        law = trend(clinic, condition)
        onset = people.onset[:, law.condition]
        some = np.flatnonzero(onset < NEVER)
        at = law.value(people, clinic.draws, some, onset[some])
        day_before = law.value(people, clinic.draws, some, onset[some] - 1)
        sign = np.sign(law.slope)
        begun = law.years(people, some, onset[some] - 1) > 0
        assert (sign * (at - law.threshold) >= -1e-9).all()
        assert (sign * (day_before - law.threshold) < 0)[begun].all()
        # once found it is treated: to the same person, years are shorter
        year = law.value(people, clinic.draws, some, onset[some] + 366) - at
        last = day_before - law.value(people, clinic.draws, some, onset[some] - 367)
        steady = law.years(people, some, onset[some] - 367) > 0
        steady &= (np.abs(people.onset[some][:, list(law.faster)] - onset[some, None])
                   > 400).all(axis=1)  # fmt: skip
        assert steady.sum() > 1000
        ratio = year[steady] / last[steady]
        assert np.isclose(ratio, law.treated).mean() > 0.98


def test_filtration_falls_as_published(clinic, people):
    law = trend(clinic, "chronic kidney disease")
    healthy = (people.onset[:, list(law.faster)] == NEVER).all(axis=1)
    persons = np.flatnonzero(healthy)
    day = people.birth[persons] + int(40 * YEAR)
    change = law.change(people, clinic.draws, persons, day + int(10 * YEAR))
    change -= law.change(people, clinic.draws, persons, day)
    assert change.mean() / 10 == pytest.approx(-0.97, abs=0.02)


def test_creatinine_and_filtration_agree(con):
    rows = con.execute(
        f"""
        select a.value_as_number, b.value_as_number, gender_concept_id = 8532,
            year(a.measurement_date) - year_of_birth
        from measurement as a join measurement as b
        using (visit_occurrence_id, measurement_date) join person on
            a.person_id = person.person_id
        join visit_occurrence using (visit_occurrence_id)
        where a.measurement_concept_id = {EGFR}
        and b.measurement_concept_id = {CREATININE} and visit_concept_id = 9202
        and year(a.measurement_date) - year_of_birth > 27 and a.value_as_number > 20
        """
    ).fetchall()
    egfr, serum, is_female, age = (np.array(c, float) for c in zip(*rows, strict=True))
    assert egfr.size > 300
    error = np.log(serum / creatinine(egfr, age, is_female == 1))
    assert abs(np.median(error)) < 0.02
    assert np.quantile(np.abs(error), 0.9) < 0.25
    # Levey 2006: 175 x Scr^-1.154 x age^-0.203, a man of 60 with 1.0 mg/dl has 76
    assert creatinine(np.array([76.2]), np.array([60.0]), np.array([False])) == (
        pytest.approx(1, abs=0.01)
    )


def test_dementia_runs_its_course(clinic, people, con):
    law = trend(clinic, "dementia")
    some = np.flatnonzero(people.onset[:, law.condition] < NEVER)
    onset = people.onset[some, law.condition]
    five = law.value(people, clinic.draws, some, onset + int(5 * YEAR))
    start = law.value(people, clinic.draws, some, onset)
    assert start.mean() == pytest.approx(22.5, abs=0.1)
    assert (five - start).mean() / 5 == pytest.approx(-3.4, abs=0.1)
    # what is written down falls, visit by visit
    rows = con.execute(
        f"""
        select regr_slope(value_as_number, datediff('day', observation_date, today()))
            * -{YEAR}
        from observation where observation_concept_id = {MMSE}
        group by person_id having count(*) >= 3
        """
    ).fetchall()
    slopes = np.array(rows, float)
    assert slopes.size > 20
    assert -5.5 < np.median(slopes) < -2


def test_stages_are_those_of_the_filtration_rate(con):
    rows = con.execute(
        f"""
        select concept_name, value_as_number
        from condition_occurrence join measurement using (visit_occurrence_id)
        join concept on condition_concept_id = concept_id
        where measurement_concept_id = {EGFR} and concept_name like '%disease stage%'
        """
    ).fetchall()
    bounds = {"3": (30, 60), "4": (15, 30), "5": (0, 15)}
    noise = 4 * 4  # a measurement is noisy, the stage is not
    for name, value in rows:
        low, high = bounds[name[-1]]
        assert low - noise < value < high + noise
    assert {name[-1] for name, _ in rows} == set(bounds)


def test_every_parameter_has_its_source():
    for table in ("survival", "trends", "treatment_lines"):
        assert all(row["source"] for row in read(table)), table
    for row in read("readmissions"):
        assert row["source"] or not row["within_30_days"] + row["same_reason"], row
