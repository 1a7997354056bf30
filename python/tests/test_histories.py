"""Sequences walked and counted in numpy: as the grammar says, token by token."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.grammar import Grammar
from omop_gpt.histories import Language, walked_batch

PER_TOKEN = (
    "visits", "events", "days", "stays", "ends", "is_end_of_event", "hours", "years",
    "numbers", "concepts",
)  # fmt: skip


@pytest.fixture(scope="module")
def grammar(loop) -> Grammar:
    return Grammar.load(loop / "vocabulary")


def language(grammar: Grammar) -> Language:
    """What dbt looks up in the seeds, from the grammar's own tables."""
    states, kinds = np.nonzero(grammar.next_state >= 0)
    zeros = np.zeros(grammar.vocab_size, dtype=np.int32)
    return Language.of(
        {
            "tokens": pa.table(
                {"kinds": grammar.kind.astype(np.int32) + 1}
                | dict.fromkeys(PER_TOKEN, zeros)
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
    )


def test_whole_is_what_the_grammar_calls_a_history(loop, grammar):
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
    batch = pa.record_batch(
        {
            "person_id": pa.array(range(len(sequences)), pa.int64()),
            "token_ids": pa.array(sequences, pa.list_(pa.int32())),
        }
    )
    found = walked_batch(language(grammar), batch).to_pylist()
    size = grammar.vocab_size
    wholes = 0
    for row in found:
        ids = row["token_ids"] or []
        is_known = all(i is not None and 0 <= i < size for i in ids)
        is_whole = is_known and grammar.is_history(np.array(ids, dtype=np.int64))
        assert (row["is_known"], row["is_whole"]) == (is_known, is_whole), ids
        wholes += is_whole
    assert len(rows) <= wholes < len(sequences) / 2
