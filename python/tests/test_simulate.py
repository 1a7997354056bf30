"""The simulated population: repeatable, consistent, plausible, and dirty on demand."""

import logging
from datetime import date
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
from omop_gpt import simulate as module
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.simulation.knowledge import Knowledge, read
from omop_gpt.step import InputError

PATIENTS = 2000
# table: its concept column and its date
EVENTS = {
    "condition_occurrence": ("condition_concept_id", "condition_start_date"),
    "drug_exposure": ("drug_concept_id", "drug_exposure_start_date"),
    "procedure_occurrence": ("procedure_concept_id", "procedure_date"),
    "device_exposure": ("device_concept_id", "device_exposure_start_date"),
    "measurement": ("measurement_concept_id", "measurement_date"),
    "observation": ("observation_concept_id", "observation_date"),
}
TABLES = {row["table"] for row in read("columns")}


def make(folder: Path, **settings) -> Path:
    simulate(SimulateConfig(output_folder=str(folder), **settings))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.parquet"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """Open the tables, and a view `events` of all that happened."""
    con = duckdb.connect(config={"threads": 2})
    for table in TABLES:
        con.execute(f"create view {table} as from '{folder}/{table}/*.parquet'")
    union = " union all ".join(
        f"select '{table}' as source_table, person_id, visit_occurrence_id, "
        f"{concept} as concept_id, {date} as event_date, "
        f"{date}time as event_datetime from {table}"
        for table, (concept, date) in EVENTS.items()
    )
    con.execute(f"create table events as {union}")
    return con


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate") / "clean"
    return connect(make(folder, num_of_patients=PATIENTS))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate") / "dirty"
    return connect(make(folder, num_of_patients=PATIENTS, dirty=True))


def value(con, query):
    return con.execute(query).fetchall()[0][0]


def share(con, concept, condition):
    """Return the share of the cases of a condition for which something holds."""
    return value(
        con,
        f"""
        select avg(({condition})::int)
        from condition_occurrence
        join concept on condition_concept_id = concept_id
        join person using (person_id)
        where concept_name = '{concept}'
        """,
    )


@pytest.mark.parametrize("dirt", [False, True])
def test_same_seed_same_bytes(tmp_path, dirt):
    first, second, other = (
        contents(make(tmp_path / name, num_of_patients=200, seed=seed, dirty=dirt))
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert first == second
    patients = [f for f in first if not f.startswith(("concept", "cdm_source"))]
    assert len(patients) == 10
    assert all(first[file] != other[file] for file in patients)


@pytest.mark.parametrize("dirt", [False, True])
def test_rows_do_not_depend_on_blocks(tmp_path, monkeypatch, dirt):
    whole = make(tmp_path / "whole", num_of_patients=200, dirty=dirt)
    monkeypatch.setattr(module, "PATIENTS_PER_BLOCK", 70)
    parts = make(tmp_path / "parts", num_of_patients=200, dirty=dirt)
    assert len(list((parts / "person").iterdir())) == 3
    for table in TABLES:
        one, many = (ds.dataset(folder / table).to_table() for folder in (whole, parts))
        assert one.equals(many), table


def test_a_patient_is_the_same_in_any_population(tmp_path):
    small, large = (
        ds.dataset(
            make(tmp_path / str(n), num_of_patients=n) / "measurement"
        ).to_table()
        for n in (50, 100)
    )
    assert large.slice(0, small.num_rows).equals(small)


def test_the_source_says_that_it_is_simulated(clean):
    (source,) = clean.execute("from cdm_source").fetchall()
    assert "no row describes a real person" in " ".join(map(str, source))
    dates = "source_release_date, cdm_release_date"
    fixed = (date(2024, 1, 1), date(2024, 1, 1))  # never the clock
    assert clean.execute(f"select {dates} from cdm_source").fetchall() == [fixed]


def test_rows_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "out"
    rows = simulate(SimulateConfig(output_folder=str(folder), num_of_patients=30))
    assert rows.keys() == TABLES
    assert rows["person"] == 30
    for table, count in rows.items():
        assert ds.dataset(folder / table).count_rows() == count, table
    assert "30 patients" in caplog.text


def test_dirt_leaves_columns_alone(clean, dirty):
    expected = {}
    for row in read("columns"):
        expected.setdefault(row["table"], []).append(row["column"])
    for table, columns in expected.items():
        described = [c.execute(f"describe {table}").fetchall() for c in (clean, dirty)]
        assert described[0] == described[1]
        assert [column[0] for column in described[0]] == columns
    types = dict(row[:2] for row in clean.execute("describe measurement").fetchall())
    assert types["measurement_id"] == types["person_id"] == "BIGINT"
    assert types["measurement_date"] == "DATE"
    assert types["measurement_datetime"] == "TIMESTAMP"
    assert types["value_as_number"] == "DOUBLE"


def test_knowledge_is_consistent():
    knowledge = Knowledge()
    names = [row["concept_name"] for row in knowledge.concepts]
    assert len(names) == len(set(names))
    assert [c.index for c in knowledge.chronic] == list(range(len(knowledge.chronic)))
    for condition in knowledge.conditions:
        others = [*condition.boosts, *filter(None, [condition.needs])]
        earlier = min(condition.index, len(knowledge.chronic))
        assert all(other < earlier for other in others), condition.name
        assert condition.emergency_share + condition.inpatient_share <= 1
    for care in knowledge.care:
        assert care.persons[1] <= 1 + 1e-9, care.line
        assert sum(care.answers.values()) in (0, pytest.approx(1)), care
        assert 0 < care.share <= 1
    ids = {row["concept_id"] for row in knowledge.concepts}
    for row in read("concept_ancestor"):
        assert {row["ancestor_concept_id"], row["descendant_concept_id"]} <= ids


@pytest.mark.parametrize("fixture", ["clean", "dirty"])
def test_every_concept_is_listed(fixture, request):
    con = request.getfixturevalue(fixture)
    columns = [
        (row["table"], row["column"])
        for row in read("columns")
        if row["column"].endswith("concept_id") and row["table"] != "concept"
    ]
    assert len(columns) == 50
    for table, column in columns:
        unknown = con.execute(
            f"select distinct {column} from {table} where {column} is not null "
            f"and {column} not in (select concept_id from concept)"
        ).fetchall()
        assert not unknown, (table, column)


def test_events_lie_in_the_table_of_their_domain(clean):
    found = clean.execute(
        "select distinct source_table, domain_id from events join concept "
        "using (concept_id)"
    ).fetchall()
    assert sorted(found) == [
        ("condition_occurrence", "Condition"),
        ("device_exposure", "Device"),
        ("drug_exposure", "Drug"),
        ("measurement", "Measurement"),
        ("observation", "Observation"),
        ("procedure_occurrence", "Procedure"),
    ]


def test_every_drug_product_has_its_ingredient(clean):
    missing = clean.execute(
        """
        select distinct concept_name
        from drug_exposure
        join concept on drug_concept_id = concept_id
        where vocabulary_id = 'RxNorm' and concept_class_id != 'Ingredient'
        and concept_id not in (
            select descendant_concept_id
            from concept_ancestor
            join concept on ancestor_concept_id = concept_id
            where concept_class_id = 'Ingredient'
        )
        """
    ).fetchall()
    assert not missing


VISITS = "visit_occurrence"
IN_VISIT = f"events join {VISITS} using (person_id, visit_occurrence_id)"
IN_WINDOW = "join observation_period using (person_id)"
# what must not be found in clean tables
FAULTS = {
    "ids repeat": f"""select visit_occurrence_id from {VISITS} group by 1
        having count(*) > 1 union all select person_id from person group by 1
        having count(*) > 1""",
    "an event without its visit": """select * from events anti join visit_occurrence
        using (person_id, visit_occurrence_id)""",
    "a visit without its person": f"select * from {VISITS} anti join person "
    "using (person_id)",
    "a death without its person": "select * from death anti join person "
    "using (person_id)",
    "a person without a window": "select * from person anti join observation_period "
    "using (person_id)",
    "events outside their visit": f"""select * from {IN_VISIT}
        where event_date not between visit_start_date and visit_end_date
        or event_datetime not between visit_start_datetime and visit_end_datetime""",
    "times of another day": """select * from events
        where event_datetime::date is distinct from event_date""",
    "hours of outpatients": f"""select * from {IN_VISIT} where visit_concept_id = 9202
        and event_datetime != event_date""",
    "visits outside the window": f"""select * from {VISITS} {IN_WINDOW}
        where visit_start_date < observation_period_start_date
        or visit_end_date < visit_start_date
        or visit_end_date > observation_period_end_date""",
    "windows of another length": """select * from observation_period
        left join death using (person_id)
        where observation_period_start_date < '2005-01-01'
        or observation_period_end_date > '2023-12-31'
        or observation_period_end_date > observation_period_start_date + 5479
        or (observation_period_end_date < observation_period_start_date + 730
            and death_date is null)""",
    "something after death": f"""select person_id from death join {VISITS}
        using (person_id) where visit_end_date > death_date
        union all select person_id from death join events using (person_id)
        where event_date > death_date
        union all select person_id from death join drug_exposure using (person_id)
        where drug_exposure_end_date > death_date
        union all select person_id from death join condition_occurrence
        using (person_id) where condition_end_date > death_date""",
    "ends before starts": """select person_id from drug_exposure
        where drug_exposure_end_date < drug_exposure_start_date
        union all select person_id from condition_occurrence
        where condition_end_date < condition_start_date""",
    "a visit inside a stay": f"""select * from {VISITS} as stay join {VISITS} as visit
        using (person_id) where stay.visit_occurrence_id != visit.visit_occurrence_id
        and visit.visit_start_date > stay.visit_start_date
        and visit.visit_start_date < stay.visit_end_date""",
    "exact repeats": "select * from events group by all having count(*) > 1",
    "children before their birth": f"select * from {VISITS} join person "
    "using (person_id) where visit_start_date < birth_datetime",
    "deaths out of hospital that ended there": f"""select * from {VISITS}
        left join death using (person_id) where discharged_to_concept_id = 4216643
        and visit_end_date is distinct from death_date""",
    "pregnant men": """select * from condition_occurrence join person using (person_id)
        where condition_concept_id = 4217975 and gender_concept_id != 8532""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_clean_tables_hold_together(clean, fault):
    assert value(clean, f"select count(*) from ({FAULTS[fault]})") == 0


# what must be found in dirty tables, and not in clean ones
ODDITIES = {
    "negative ids": "select * from person where person_id < 0",
    "large ids": "select * from person where person_id > 9007199254740992",
    "events a day before their visit": f"""select * from {IN_VISIT}
        where event_date = visit_start_date - 1""",
    "events long after their visit": f"""select * from {IN_VISIT}
        where event_date > visit_start_date + 50 and event_date > visit_end_date""",
    "visit ids that point nowhere": """select * from events where visit_occurrence_id
        not in (select visit_occurrence_id from visit_occurrence)""",
    "events without visits": "select * from events where visit_occurrence_id is null",
    "visits of unknown persons": FAULTS["a visit without its person"],
    "events of unknown persons": "select * from events anti join person "
    "using (person_id)",
    "persons without a window": FAULTS["a person without a window"],
    "concept 0": "select * from events where concept_id = 0",
    "no concept": "select * from events where concept_id is null",
    "visits of concept 0": f"select * from {VISITS} where visit_concept_id = 0",
    "visits of no concept": f"select * from {VISITS} where visit_concept_id is null",
    "exact repeats": """select * from events where concept_id > 0 and event_date
        is not null and visit_occurrence_id is not null
        group by all having count(*) > 1""",
    "no event date": "select * from events where event_date is null",
    "no visit start": f"select * from {VISITS} where visit_start_date is null",
    "no visit end": f"select * from {VISITS} where visit_end_date is null",
    "visit ends before starts": f"select * from {VISITS} "
    "where visit_end_date < visit_start_date",
    "drug ends before starts": "select * from drug_exposure "
    "where drug_exposure_end_date = drug_exposure_start_date - 2",
    "event times of 1900": "select * from events "
    "where event_datetime = '1900-01-01'::timestamp",
    "visit times of 1900": f"select * from {VISITS} "
    "where visit_start_datetime = '1900-01-01'::timestamp",
    "ages over 120": """select * from events join person using (person_id)
        where year(event_date) - year_of_birth > 120""",
    "no month of birth": "select * from person where month_of_birth is null",
    "no day of birth": "select * from person where day_of_birth is null",
    "no year of birth": "select * from person where year_of_birth is null",
    "values of -1": "select * from measurement where value_as_number = -1",
    "no supply": "select * from drug_exposure where days_supply = 0",
    "negative supply": "select * from drug_exposure where days_supply = -5",
    "endless supply": "select * from drug_exposure where days_supply = 18615",
    "visits that overlap": FAULTS["a visit inside a stay"]
    + " and stay.visit_end_date < stay.visit_start_date + 80",
    "outpatients for 54 years": f"""select * from {VISITS} where visit_concept_id = 9202
        and visit_end_date - visit_start_date > 54 * 365""",
    "persons twice": "select person_id from person group by 1 having count(*) > 1",
    "deaths twice": "select person_id from death group by 1 having count(*) > 1",
    "deaths before the last visit": f"""select * from death join {VISITS}
        using (person_id) where death_date < visit_start_date""",
    "deaths after everything": """select * from death join observation_period
        using (person_id) where death_date > observation_period_end_date + 365""",
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_dirty_tables_have_each_oddity(clean, dirty, oddity):
    query = f"select count(*) from ({ODDITIES[oddity]})"
    assert value(clean, query) == 0
    found = value(dirty, query)
    assert 0 < found < value(dirty, "select count(*) from events") / 10


def test_dirt_adds_persons_and_visits_with_nothing(clean, dirty):
    persons = "select count(distinct person_id) from person anti join {} using ({})"
    window = persons.format("observation_period", "person_id")
    assert value(clean, window) == 0 < value(dirty, window)
    bare = f"select avg((n is null)::int) from {VISITS} left join (select "
    bare += "visit_occurrence_id, count(*) as n from events group by 1) "
    bare += "using (visit_occurrence_id)"
    assert value(dirty, bare) > value(clean, bare) + 0.005


def test_dirt_is_rare(clean, dirty):
    counts = [
        {table: value(con, f"select count(*) from {table}") for table in TABLES}
        for con in (clean, dirty)
    ]
    for table in TABLES:
        assert counts[1][table] == pytest.approx(counts[0][table], rel=0.1), table


def test_illness_has_its_season(clean):
    month = "month(condition_start_date)"
    assert share(clean, "Influenza", f"{month} in (11, 12, 1, 2, 3)") > 0.65
    assert share(clean, "Influenza", f"{month} in (6, 7, 8)") < 0.12
    rhinitis = "Seasonal allergic rhinitis"
    assert share(clean, rhinitis, f"{month} in (3, 4, 5, 6)") > 0.5
    assert share(clean, "Low back pain", f"{month} in (12, 1, 2)") < 0.35


def test_illness_has_its_age(clean):
    age = "year(condition_start_date) - year_of_birth"
    assert share(clean, "Otitis media", f"{age} < 12") > 0.4
    assert share(clean, "Otitis media", f"{age} > 60") < 0.3
    assert share(clean, "Closed fracture of hip", f"{age} > 60") > 0.8
    assert share(clean, "Essential hypertension", f"{age} > 45") > 0.85
    assert share(clean, "Normal pregnancy", f"{age} between 12 and 50") == 1
    assert share(clean, "COVID-19", "condition_start_date >= '2020-01-01'") == 1
    old = "select avg(year(death_date) - year_of_birth) from death join person "
    assert 68 < value(clean, f"{old} using (person_id)") < 88


def test_illness_brings_illness(clean):
    clean.execute(
        """
        create or replace temp table has as
        select distinct person_id, concept_name
        from condition_occurrence join concept on condition_concept_id = concept_id
        """
    )
    both = """
        select avg((d.person_id is not null)::int) from person
        left join (from has where concept_name = 'Type 2 diabetes mellitus') as d
        using (person_id) where year_of_birth < 1975 and person_id {} (
        select person_id from has where concept_name = 'Obesity')
        """
    with_obesity = value(clean, both.format("in"))
    assert with_obesity > 1.5 * value(clean, both.format("not in"))


def test_illness_moves_measurements(clean):
    sugar = """
        select median(value_as_number) from measurement
        join visit_occurrence using (person_id, visit_occurrence_id)
        where measurement_concept_id = {} and unit_concept_id = {} and person_id {} (
        select person_id from condition_occurrence where condition_concept_id = 201826)
        """
    low = value(clean, sugar.format(3004501, 8840, "not in"))
    high = value(clean, sugar.format(3004501, 8840, "in"))
    assert 80 < low < 110 < 120 < high
    # The same measurement comes in two units.
    assert 4 < value(clean, sugar.format(3004501, 8753, "not in")) < 7
    troponin = """
        select median(value_as_number) from measurement
        where measurement_concept_id = 36306105 and visit_occurrence_id {} (
        select visit_occurrence_id from condition_occurrence
        where condition_concept_id = 312327)
        """
    assert value(clean, troponin.format("in")) > 100
    assert value(clean, troponin.format("not in")) < 100


def test_measurements_have_all_kinds_of_values(clean):
    count = "select count(*) from measurement where "
    assert value(clean, count + "operator_concept_id = 4171756") > 0
    assert value(clean, count + "value_as_concept_id = 45884084") > 0
    assert value(clean, count + "value_as_concept_id = 45878583") > 0
    assert value(clean, count + "unit_concept_id is null") > 0
    pressure = "measurement_concept_id = 3004249 and value_as_number % 1 != 0"
    assert value(clean, count + pressure) == 0


def test_second_line_drugs_come_later(clean):
    first = """
        select avg(drug_exposure_start_date - diagnosed)
        from drug_exposure join (
            select person_id, min(condition_start_date) as diagnosed
            from condition_occurrence where condition_concept_id = 201826 group by 1
        ) using (person_id)
        where drug_concept_id = {} and drug_exposure_start_date >= diagnosed
        """
    assert value(clean, first.format(1516978)) > value(clean, first.format(40164929))


def test_stays_have_days_hours_and_ends(clean):
    stays = f"from {VISITS} where visit_concept_id = 9201"
    length = f"select median(visit_end_date - visit_start_date) {stays}"
    assert 2 <= value(clean, length) <= 6
    ends = clean.execute(f"select distinct discharged_to_concept_id {stays}").fetchall()
    assert {end for (end,) in ends} == {8536, 8676, 8863, 4216643}
    days = f"""
        select avg(days) from (
            select count(distinct event_date) as days from {IN_VISIT}
            where visit_concept_id = 9201 and visit_end_date > visit_start_date + 2
            group by visit_occurrence_id)
        """
    assert value(clean, days) > 3
    hours = f"""
        select avg((event_datetime != event_date)::int) from {IN_VISIT}
        where visit_concept_id in (9201, 9203)
        """
    assert value(clean, hours) > 0.95
    again = f"""
        select avg((gap between 1 and 30)::int) from (
            select condition_concept_id, lead(visit_start_date) over (
                partition by person_id order by visit_start_date
            ) - visit_end_date as gap
            from {VISITS} left join (
                select distinct visit_occurrence_id, condition_concept_id
                from condition_occurrence where condition_concept_id = 40480602
            ) using (visit_occurrence_id) where visit_concept_id = 9201)
        where condition_concept_id is not null
        """
    assert 0.15 < value(clean, again) < 0.4


def test_records_have_a_plausible_size(clean):
    sizes = f"""
        with adults as (
            select person_id from person {IN_WINDOW}
            where year_of_birth < 1987 and observation_period_end_date
            > observation_period_start_date + 3652
        )
        select avg(visits), avg(n) from adults
        join (select person_id, count(*) as visits from {VISITS} group by 1)
        using (person_id)
        join (select person_id, count(*) as n from events group by 1) using (person_id)
        """
    visits, events = clean.execute(sizes).fetchall()[0]
    assert 25 < visits < 40
    assert 120 < events < 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_folder": ""}, "--output_folder is empty"),
        ({"output_folder": "x", "num_of_patients": 0}, "--num_of_patients 0"),
        ({"output_folder": "x", "seed": -1}, "--seed -1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SimulateConfig(**settings)


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="there already"):
        make(tmp_path, num_of_patients=5)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (make(empty, num_of_patients=5) / "person").is_dir()


def test_a_broken_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, *args):
        raise OSError("disk full")

    monkeypatch.setattr(module.Clinic, "block", fail)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "out", num_of_patients=5)
    assert not list(tmp_path.iterdir())
