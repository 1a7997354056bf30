"""The grammar is walked by a process of its own, and what it leaves by dbt's plugin."""

import shutil
import time
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.decode import DecodeConfig, decode, is_of_this_version
from omop_gpt.grammar import Grammar
from omop_gpt.step import read_manifest
from omop_gpt.walk import begun, walking, was_walked
from test_histories import garbled, plugin, tables_of


@pytest.fixture(scope="module")
def files(loop, tmp_path_factory):
    """Sequences, good and garbled, in two files of other types and columns."""
    grammar = Grammar.load(loop / "vocabulary")
    folder = tmp_path_factory.mktemp("sequences")
    sequences = garbled(loop, grammar)
    half = len(sequences) // 2
    for name, lists, number, token in (
        ("a.parquet", sequences[:half], pa.int32(), pa.int64()),
        ("b.parquet", sequences[half:], pa.int64(), pa.int32()),
    ):
        columns = {
            "token_ids": pa.array(lists, pa.list_(token)),
            "of_no_interest": ["x"] * len(lists),
            "person_id": pa.array([None, *range(1, len(lists))], number),
        }
        pq.write_table(pa.table(columns), folder / name, row_group_size=100)
    return sorted(folder.iterdir())


def ask(loop, files, folder) -> list[dict]:
    """Have the plugin walk, as a macro does; return the rows."""
    con = duckdb.connect()
    language = {}
    for name, table in tables_of(Grammar.load(loop / "vocabulary")).items():
        con.register("looked_up", table)
        con.execute(f'create table "{name}" as from looked_up')
        language[name] = f'from "{name}"'
    sequences = "select person_id::bigint as person_id, token_ids from read_parquet("
    sequences += f"{[str(file) for file in files]}, union_by_name = true)"
    plugin(con).walk(folder, sequences, language)
    rows = pq.read_table(folder / "walked").to_pylist()
    return sorted(rows, key=lambda row: (row["person_id"] or 0, str(row)))


def test_it_says_what_the_plugin_would(loop, files, tmp_path, monkeypatch):
    wanted = ask(loop, files, tmp_path / "plugin")
    with walking(files, loop / "vocabulary", tmp_path / "beside", 2):
        monkeypatch.setattr("omop_gpt.plugin.walk", None)  # it has nothing to do
        assert ask(loop, files, tmp_path / "beside") == wanted
    assert sum(row["is_whole"] for row in wanted) > 100
    assert sum(not row["is_known"] for row in wanted) > 100
    assert not begun


def test_where_it_fails_the_plugin_walks(loop, files, tmp_path):
    wanted = ask(loop, files, tmp_path / "plugin")
    with walking([*files, tmp_path / "none"], loop / "vocabulary", tmp_path / "w", 1):
        assert ask(loop, files, tmp_path / "w") == wanted


def test_it_ends_with_what_it_is_for(loop, files, tmp_path):
    with walking(files * 500, loop / "vocabulary", tmp_path, 1):
        (process,) = begun.values()
        while not (tmp_path / "walked").exists():
            time.sleep(0.01)
    assert process.returncode < 0  # killed, and waited for
    assert not was_walked(tmp_path)


def test_decode_takes_what_was_walked(loop, tmp_path, monkeypatch):
    monkeypatch.setattr("omop_gpt.plugin.walk", None)
    decode(
        DecodeConfig(
            patient_sequence_folder=str(loop / "generated_sequences"),
            omop_folder=str(tmp_path / "omop"),
            check_quality=False,
            cpu_cores=2,
        )
    )
    rows = read_manifest(tmp_path / "omop")["result"]["rows"]
    assert rows == read_manifest(loop / "omop")["result"]["rows"]


def test_another_grammar_is_left_to_dbt(loop, tmp_path):
    shutil.copytree(loop / "vocabulary" / "grammar", tmp_path / "grammar")
    copied = SimpleNamespace(folder=tmp_path)
    assert is_of_this_version(copied)
    transitions = tmp_path / "grammar" / "transitions.csv"
    transitions.write_text(transitions.read_text() + "between,visit,visit,0\n")
    assert not is_of_this_version(copied)
