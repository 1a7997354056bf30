"""What is known of the simulated population, against another way to count it."""

from collections import defaultdict

import duckdb
import numpy as np
import pandas as pd
import pytest
from omop_gpt.evaluation import cohorts
from omop_gpt.evaluation.report import truth_table
from omop_gpt.evaluation.results import Results
from omop_gpt.evaluation.truth import laws, measure_truth, ratio
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.simulation.knowledge import Knowledge
from scipy import stats

SECOND_LINES = {
    "type 2 diabetes": {19077638, 1525221, 40169222, 43526467, 1516978},
    "depression": {743721, 725178},  # what is for smokers, too, is not told apart
}


@pytest.fixture(scope="module")
def knowledge():
    return Knowledge()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth") / "omop"
    settings = {"output_folder": str(folder), "num_of_patients": 8_000, "seed": 5}
    simulate(SimulateConfig(**settings))
    return folder


@pytest.fixture(scope="module")
def con(folder):
    con = duckdb.connect(config={"threads": 2})
    con.execute(f"create schema {cohorts.SCHEMA}")
    for table, query in cohorts.synthetic_queries(folder, "train").items():
        con.execute(f"create table {cohorts.SCHEMA}.{table} as {query}")
    return con


def measured(con, *names):
    results = Results()
    measure_truth(con, names or ("train",), results)
    return {(m.stratum, m.cohort): m for m in results.metrics}, results


@pytest.fixture(scope="module")
def train(con):
    found, _ = measured(con)
    return {name: metric for (name, _), metric in found.items()}


@pytest.fixture(scope="module")
def rows(con):
    """Persons, and their visits and events, as days since 1970."""

    def read(table, *days):
        found = con.execute(f"from {cohorts.SCHEMA}.{table}").df()
        for day in days:
            epoch = pd.Timestamp("1970-01-01")
            found[day] = (pd.to_datetime(found[day]) - epoch).dt.days
        return found.to_dict("records")

    people = {row["person_id"]: row for row in read("persons", "death_date")}
    for person in people.values():
        person["visits"], person["events"] = [], []
    for row in read("visits", "visit_start_date", "visit_end_date"):
        people[row["person_id"]]["visits"].append(row)
    for row in read("events", "event_date"):
        people[row["person_id"]]["events"].append(row)
    for person in list(people.values()):
        days = [visit["visit_start_date"] for visit in person["visits"]]
        if not days:
            del people[person["person_id"]]
            continue
        days += [event["event_date"] for event in person["events"]]
        ends = [visit["visit_end_date"] for visit in person["visits"]]
        person["first"], person["last"] = min(days), max(days + ends)
        if person["death_date"] == person["death_date"]:
            person["last"] = person["death_date"]
        known = person["conditions"] = {}
        for event in person["events"]:
            if event["source_table"] == "condition_occurrence":
                day = known.get(event["concept_id"], event["event_date"])
                known[event["concept_id"]] = min(day, event["event_date"])
    return list(people.values())


def values(person, concept):
    for event in person["events"]:
        value = event["value_as_number"]
        if event["concept_id"] == concept and value == value:
            yield event["event_date"], value


@pytest.mark.parametrize(
    ("name", "condition", "concept"),
    [
        ("type 2 diabetes", 201826, 3004410),
        ("chronic kidney disease", 46271022, 46236952),
    ],
)
def test_values_at_diagnosis(rows, train, name, condition, concept):
    found = [
        value
        for person in rows
        if person["conditions"].get(condition, -1e9) > person["first"] + 400
        for day, value in values(person, concept)
        if day == person["conditions"][condition]
    ]
    metric = train[f"value at the diagnosis of {name}"]
    assert len(found) > 100
    assert metric.value == pytest.approx(np.mean(found))
    if metric.n == len(found):  # one each: as of any mean
        error = stats.sem(found)
        assert metric.ci_high - metric.value == pytest.approx(1.96 * error)


def test_the_course_of_dementia(rows, train):
    times, scores, owners = [], [], []
    for person in rows:
        since = person["conditions"].get(378419)
        if since is None:
            continue
        of_person = [
            ((day - since) / 365.25, value)
            for day, value in values(person, 42869860)
            if 0 <= day - since <= 1096
        ]
        if len({day for day, _ in of_person}) > 1:
            times += [day for day, _ in of_person]
            scores += [value for _, value in of_person]
            owners += [person["person_id"]] * len(of_person)
    # regression with an intercept of each person's own
    dummies = (np.array(owners)[:, None] == np.unique(owners)).astype(float)
    design = np.column_stack([times, dummies])
    slope = np.linalg.lstsq(design, np.array(scores), rcond=None)[0][0]
    metric = train["change a year in dementia"]
    assert metric.value == pytest.approx(slope)
    assert metric.ci_low < -3 < metric.ci_high
    assert metric.n == len(np.unique(owners)) > 40


@pytest.mark.parametrize(
    ("name", "condition"), [("type 2 diabetes", 201826), ("depression", 4152280)]
)
def test_lines_of_treatment(rows, train, name, condition):
    outcomes = []
    for person in rows:
        since = person["conditions"].get(condition)
        if since is None or since <= person["first"] + 400:
            continue
        if person["last"] < since + 1096:
            continue
        drugs = [
            event["event_date"]
            for event in person["events"]
            if event["source_table"] == "drug_exposure"
            and event["concept_id"] in SECOND_LINES[name]
        ]
        outcomes.append(min(drugs, default=1e9) <= since + 1096)
    metric = train[f"second line of {name} within 3 years"]
    assert metric.n == len(outcomes) > 100
    assert metric.value == pytest.approx(np.mean(outcomes))


@pytest.mark.parametrize("days", [30, 90])
def test_readmissions(rows, train, days):
    followed, again = 0, 0
    for person in rows:
        stays = sorted(
            (visit["visit_start_date"], visit["visit_end_date"])
            for visit in person["visits"]
            if visit["visit_concept_id"] == 9201
        )
        for place, (_, end) in enumerate(stays):
            year = 1970 + int(
                np.datetime64(end, "D").astype("datetime64[Y]").astype(int)
            )
            old = year - person["year_of_birth"] >= 65
            if old and person["last"] >= end + days:
                followed += 1
                later = stays[place + 1][0] if place + 1 < len(stays) else 1e9
                again += later - end <= days
    metric = train[f"of 65 and older, within {days} days"]
    assert metric.value == pytest.approx(again / followed)
    assert followed > 500


@pytest.mark.parametrize("condition", ["", "dementia"])
def test_deaths_are_held_against_the_law(rows, train, knowledge, condition):
    law = knowledge.survival
    recorded = {
        index: next(
            care.concept_id
            for care in knowledge.conditions[index].care
            if care.is_record and care.domain == "Condition"
        )
        for index in law.boosts
    }
    expected, died = 0.0, 0
    for person in rows:
        start = person["first"]
        if condition:
            since = person["conditions"].get(recorded[knowledge.index[condition]])
            if since is None:
                continue
            start = max(start, since)
        if start >= person["last"]:
            continue
        born = np.datetime64(f"{person['year_of_birth']}-07-01", "D").astype(int)
        died += person["death_date"] == person["death_date"]
        factors = defaultdict(lambda: 1.0)
        factor = law.factors[int(person["gender_concept_id"] == 8532)]
        begins = np.datetime64(int(start), "D").astype(object)
        for year in range(120):
            try:
                day = begins.replace(year=begins.year + year)
            except ValueError:  # 29 February
                day = begins.replace(year=begins.year + year, day=28)
            day = (day - np.datetime64(0, "D").astype(object)).days
            if day >= person["last"]:
                break
            for index, ratio_of in law.boosts.items():
                if person["conditions"].get(recorded[index], 1e9) <= day:
                    factors[index] = ratio_of
            # by small steps, where ours has the integral
            length = min(person["last"] - day, 365.25) / 365.25
            ages = (day - born) / 365.25 + length * (np.arange(20) + 0.5) / 20
            rates = law.rate_60 * np.exp(law.growth * (ages - 60))
            expected += np.prod([*factors.values()]) * factor * rates.mean() * length
            expected += law.infant * length * ((day - born) / 365.25 < 1)
    name = "deaths over expected ones" + f" with {condition}" * bool(condition)
    assert died > 100
    assert train[name].value == pytest.approx(died / expected, rel=1e-3)


def test_the_records_come_close_to_the_laws(train, knowledge):
    assert {law.name for law in laws(knowledge)} == train.keys()
    truth = {law.name: law.truth for law in laws(knowledge)}
    for name, metric in train.items():
        assert metric.value == pytest.approx(truth[name], rel=0.45), name
    for name in ("type 2 diabetes", "chronic kidney disease"):
        name = f"value at the diagnosis of {name}"
        assert train[name].value == pytest.approx(truth[name], rel=0.06)


def test_who_breaks_a_law_is_seen(con, folder, train):
    """Deaths, values and stays that are dealt out anew keep all their marginals."""
    schema = cohorts.SCHEMA
    for table, query in cohorts.synthetic_queries(folder, "synthetic").items():
        con.execute(f"insert into {schema}.{table} by name {query}")
    con.execute(
        f"""
        update {schema}.persons set death_date = null where cohort = 'synthetic';
        update {schema}.persons set death_date = last_date
        from (
            select person_id, max(visit_end_date) as last_date
            from {schema}.visits where cohort = 'synthetic' group by 1
            order by hash(person_id)
            limit (select count(death_date) from {schema}.persons)
        ) as chosen
        where cohort = 'synthetic' and persons.person_id = chosen.person_id;
        update {schema}.events set value_as_number = other.value_as_number
        from (
            select a.event, b.value_as_number
            from (
                select
                    rowid as event, concept_id,
                    row_number() over (
                        partition by concept_id
                        order by person_id, event_date, value_as_number
                    ) as place
                from {schema}.events
                where cohort = 'synthetic' and value_as_number is not null
            ) as a
            inner join (
                select
                    value_as_number, concept_id,
                    row_number() over (
                        partition by concept_id
                        order by hash(person_id, event_date, value_as_number)
                    ) as place
                from {schema}.events
                where cohort = 'synthetic' and value_as_number is not null
            ) as b using (concept_id, place)
        ) as other
        where events.rowid = other.event
        """
    )
    found, results = measured(con, "train", "synthetic")
    con.execute(f"delete from {schema}.persons where cohort = 'synthetic'")
    for name in (
        "value at the diagnosis of chronic kidney disease",
        "change a year in dementia",
        "deaths over expected ones with dementia",
    ):
        real, ours = found[name, "train"], found[name, "synthetic"]
        assert real.value == pytest.approx(train[name].value)
        assert ours.ci_high < real.ci_low or real.ci_high < ours.ci_low, name
    table = truth_table(results.curves["truth"], ["synthetic", "ideal"])
    assert table.count("<tr>") == len(train) + 1
    assert "6.5</td>" in table


def test_ratio():
    rng = np.random.default_rng(3)
    whole = rng.integers(0, 4, 400)
    part = rng.binomial(whole, 0.3)
    value, low, high, persons = ratio(part.astype(float), whole.astype(float))
    drawn = rng.integers(0, 400, (4_000, 400))
    again = part[drawn].sum(1) / whole[drawn].sum(1)
    assert value == part.sum() / whole.sum()
    assert [low, high] == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.006)
    assert persons == (whole > 0).sum()
    assert np.isnan(ratio(np.ones(19), np.ones(19))[0])
