"""Sequences walked and counted in numpy: as the grammar says, token by token."""

from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.grammar import Grammar
from omop_gpt.histories import Language, States, walked_batch
from omop_gpt.plugin import Plugin

PER_TOKEN = (
    "visits", "events", "days", "stays", "ends", "is_end_of_event", "hours", "years",
    "numbers", "concepts",
)  # fmt: skip


@pytest.fixture(scope="module")
def grammar(loop) -> Grammar:
    return Grammar.load(loop / "vocabulary")


def tables_of(grammar: Grammar) -> dict[str, pa.Table]:
    """What dbt looks up in the seeds, from the grammar's own tables.

    Of the tokens, the kinds, and which are visits, events and years; no hours.
    """
    states, kinds = np.nonzero(grammar.next_state >= 0)
    zeros = np.zeros(grammar.vocab_size, dtype=np.int32)
    visits = grammar.has_kind("visit", "no_visit").astype(np.int32)
    return {
        "tokens": pa.table(
            {"kinds": grammar.kind.astype(np.int32) + 1}
            | dict.fromkeys(PER_TOKEN, zeros)
            | {"visits": visits, "events": grammar.has_kind("event").astype(np.int32)}
            | {"hours": zeros - 2, "years": 2000 * grammar.has_kind("year")}
        ),
        "kinds": pa.table(
            {"kind": grammar.kinds, "kind_order": range(1, len(grammar.kinds) + 1)}
        ),
        "transitions": pa.table(
            {
                "state": states + 1,
                "kind": kinds + 1,
                "next_state": grammar.next_state[states, kinds] + 1,
            }
        ),
        "ends": pa.table({"state": [grammar.states.index("end") + 1]}),
        "openers": pa.table({"kind": [grammar.kinds.index("bos") + 1]}),
    }


def garbled(loop, grammar: Grammar) -> list[list[int] | None]:
    """Sampled sequences, each followed by twenty with one fault or another."""
    rng = np.random.default_rng(3)
    rows = pq.read_table(loop / "generated_sequences")["token_ids"].to_pylist()
    sequences = [None, [], [grammar.bos_id], [grammar.eos_id]]
    for row in rows:
        sequences.append(row)
        for _ in range(20):
            ids = list(row)
            place = rng.integers(len(ids))
            change = rng.integers(5)
            if change == 0:
                ids[place] = int(rng.integers(-2, grammar.vocab_size + 2))
            elif change == 1:
                del ids[place]
            elif change == 2:
                ids.insert(place, ids[rng.integers(len(ids))])
            elif change == 3:
                ids = ids[:place]
            else:
                ids[place] = None
            sequences.append(ids)
    return sequences


def test_whole_is_what_the_grammar_calls_a_history(loop, grammar):
    sequences = garbled(loop, grammar)
    batch = pa.record_batch(
        {
            "person_id": pa.array(range(len(sequences)), pa.int64()),
            "token_ids": pa.array(sequences, pa.list_(pa.int32())),
        }
    )
    language = Language.of(tables_of(grammar))
    found = walked_batch(language, batch).to_pylist()
    assert walked_batch(States.of_grammar(grammar), batch).to_pylist() == found
    size = grammar.vocab_size
    wholes = 0
    for row in found:
        ids = row["token_ids"] or []
        is_known = all(i is not None and 0 <= i < size for i in ids)
        is_whole = is_known and grammar.is_history(np.array(ids, dtype=np.int64))
        assert (row["is_known"], row["is_whole"]) == (is_known, is_whole), ids
        wholes += is_whole
    assert len(sequences) // 21 <= wholes < len(sequences) / 2


def plugin(con: duckdb.DuckDBPyConnection) -> Plugin:
    """A plugin as dbt makes it, on a connection."""
    made = Plugin.__new__(Plugin)
    made.configure_connection(con)
    made.creds = SimpleNamespace(settings={"threads": 2, "memory_limit": "1GB"})
    return made


def read(con: duckdb.DuckDBPyConnection, folder, grammar: Grammar) -> None:
    """Read table `sequences` as dbt asks for it, without numbers."""
    for name, table in tables_of(grammar).items():
        con.register("looked_up", table)
        con.execute(f'create or replace table "{name}" as from looked_up')
    names = [
        "value_as_number",
        "has_unknown_number",
        "quantity",
        "has_unknown_quantity",
    ]
    plugin(con).read(
        folder,
        sequences="from sequences order by person_id",
        language={name: f'from "{name}"' for name in tables_of(grammar)},
        meanings="select 'a' as event_token, 'observation' as source_table, "
        f"null::bigint as concept_id from range({grammar.vocab_size})",
        tables="select unnest(['measurement', 'observation']) as source_table",
        drawn="select event_id, "
        + ", ".join(f"null::double as {name}" for name in names)
        + " from events_with_bins order by 1",
    )


def test_of_nobody_there_are_files_without_rows(tmp_path, grammar):
    con = duckdb.connect()
    con.execute("create table sequences (person_id bigint, token_ids int[])")
    read(con, tmp_path, grammar)
    names = ("persons", "visits", "tokens", "events/source_table=measurement")
    for name in (*names, "events/source_table=observation"):
        table = pq.read_table(tmp_path / name / "part-00.parquet", partitioning=None)
        assert table.num_rows == 0, name
        assert table.num_columns > 1, name


def test_batches_change_nothing(tmp_path, grammar, loop, monkeypatch):
    """Ids are counted on, and tokens summed, from batch to batch and piece to piece."""
    con = duckdb.connect()
    files = f"'{loop}/generated_sequences/*.parquet'"
    con.execute(f"create table sequences as select person_id, token_ids from {files}")
    found = []
    for size in (100, 10_000_000):
        monkeypatch.setattr("omop_gpt.plugin.SEQUENCES_PER_BATCH", 64)
        monkeypatch.setattr("omop_gpt.batches.TOKENS_PER_BATCH", size)
        monkeypatch.setattr("omop_gpt.histories.TOKENS_PER_PIECE", size)
        read(con, tmp_path / str(size), grammar)
        found.append(
            {
                name: pq.read_table(tmp_path / str(size) / name)
                for name in ("persons", "visits", "events", "tokens")
            }
        )
    assert found[0] == found[1]
    assert found[0]["persons"].num_rows > 64
    assert found[0]["events"].num_rows > 1000
    assert (
        found[0]["tokens"]["token_count"].to_numpy().sum()
        == (con.execute("select sum(len(token_ids)) from sequences").fetchone()[0])
    )


def test_a_table_is_copied_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("omop_gpt.plugin.ROWS_PER_FILE", 8_000)  # into 13 files
    con = duckdb.connect()
    con.execute(
        """
        create table rows as
        select
            (i * 7919) % 1000003 as row_id,
            case when i % 3 = 0 then i % 5 end as some_concept_id,
            null::bigint as provider_id,
            null::varchar as source_value,
            'it''s ' || (i % 11) as name,
            date '1850-01-01' + i::int as day,
            case when i % 2 = 0 then timestamp '2020-01-01' + to_hours(i) end as moment,
            i / 7 as number,
            i % 2 = 0 as flag
        from range(100000) as numbers (i)
        """
    )
    plugin(con).copy(tmp_path / "a quote ' in it", "from rows")
    con.execute(f"create view copied as from read_parquet('{tmp_path}/*/*.parquet')")
    rows = con.execute("from rows").fetchall()
    assert con.execute("from copied").fetchall() == rows
    described = [
        con.execute(f"describe {name}").fetchall() for name in ("rows", "copied")
    ]
    assert described[0] == described[1]
