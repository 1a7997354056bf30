"""Packing: every token is predicted once, and no patient sees another."""

from __future__ import annotations

import csv
import inspect
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import BIN_SCHEMA
from omop_gpt import packing
from omop_gpt.grammar import TABLES, Grammar, save_language
from omop_gpt.packing import IGNORED, Packs, Pad, pack, packed_attention, read_chunks
from omop_gpt.step import InputError

SEEDS = Path(__file__).parents[2] / "seeds" / "grammar"
CONDITIONS = 12


def make_language(folder: Path, *, conditions: int = CONDITIONS) -> Grammar:
    """Write a vocabulary folder: the real grammar, a few years, ages and conditions."""
    with (SEEDS / "fixed_tokens.csv").open(newline="") as file:
        rows = [
            (row["token"], row["kind"], int(row["days"]))
            for row in csv.DictReader(file)
            if row["scheme"] in ("all", "day")
        ]
    rows += [(f"year:{year}", "year", 0) for year in range(1990, 2030)]
    rows += [(f"age:{age}", "age", 0) for age in range(100)]
    rows += [("gender:8507", "gender", 0), ("gender:8532", "gender", 0)]
    rows += [("race:0", "race", 0), ("ethnicity:0", "ethnicity", 0)]
    rows += [("visit:9202", "visit", 0), ("visit:9201", "visit", 0)]
    rows += [(f"condition:{n}", "event", 0) for n in range(conditions)]
    numbers = [
        int(token.split(":")[1]) if kind in ("year", "age") else None
        for token, kind, _ in rows
    ]
    table = pa.table(
        {
            "token_id": pa.array(range(len(rows)), pa.int32()),
            "token": [token for token, _, _ in rows],
            "kind": [kind for _, kind, _ in rows],
            "days": pa.array([days for _, _, days in rows], pa.int32()),
            "number": pa.array(numbers, pa.int64()),
            "train_count": pa.array([9] * len(rows), pa.int64()),
            "train_persons": pa.array([9] * len(rows), pa.int64()),
            "source_table": [
                "condition_occurrence" if kind == "event" else None
                for _, kind, _ in rows
            ],
        }
    )
    timeline = folder.parent / f".{folder.name}.timeline"
    nothing = pa.table({"token_id": pa.array([], pa.int32())})
    tables = dict.fromkeys(TABLES, nothing)
    tables |= {"vocabulary": table, "value_bins": BIN_SCHEMA.empty_table()}
    for name, content in tables.items():
        (timeline / name).mkdir(parents=True)
        pq.write_table(content, timeline / name / "part-0.parquet")
    facts = {"first_date": "1990-01-01", "last_date": "2029-12-31"}
    save_language(folder, grammar=SEEDS, timeline=timeline, facts=facts)
    return Grammar.load(folder)


def make_history(grammar: Grammar, rng: np.random.Generator, visits: int) -> list[int]:
    """Make one legal history; conditions mostly follow their number, in order."""
    token_id = {token: n for n, token in enumerate(grammar.tokens)}
    names = [token for token in grammar.tokens if token.startswith("condition:")]
    history = [
        grammar.bos_id,
        token_id[f"year:{rng.integers(1990, 2000)}"],
        token_id[f"age:{rng.integers(0, 80)}"],
        token_id[str(rng.choice(["gender:8507", "gender:8532"]))],
        token_id["race:0"],
        token_id["ethnicity:0"],
    ]
    condition = int(rng.integers(len(names)))
    for _ in range(visits):
        history += grammar.spell("gap", int(rng.choice([0, 7, 30, 400])))
        history.append(token_id[str(rng.choice(["visit:9202", "visit:9201"]))])
        for _ in range(int(rng.integers(1, 5))):
            history.append(token_id[names[condition]])
            condition = (condition + 1) % len(names)
        if rng.random() < 0.3:
            history += grammar.spell("move", int(rng.integers(1, 40)))
            history.append(token_id[names[condition]])
    return [*history, grammar.eos_id]


def write_split(folder: Path, histories: dict[int, list[int]], *, files: int = 2):
    """Write {person_id: token ids} as the packer does."""
    folder.mkdir(parents=True, exist_ok=True)
    people = list(histories)
    for n in range(files):
        part = people[n::files]
        table = pa.table(
            {
                "person_id": pa.array(part, pa.int64()),
                "token_ids": pa.array(
                    [histories[p] for p in part], pa.list_(pa.int32())
                ),
                "token_count": pa.array([len(histories[p]) for p in part], pa.int32()),
                "visit_count": pa.array([1 for _ in part], pa.int32()),
            }
        )
        pq.write_table(table, folder / f"part-{n:05d}.parquet")


def make_split(
    folder: Path, grammar: Grammar, *, people: int, seed: int = 0, longest: int = 8
) -> dict[int, list[int]]:
    """Write a split of random histories and return them."""
    rng = np.random.default_rng(seed)
    histories = {
        int(person_id): make_history(grammar, rng, int(rng.integers(0, longest + 1)))
        for person_id in rng.choice(2**62, people, replace=False) - 2**61
    }
    write_split(folder, histories)
    return histories


@pytest.fixture(scope="module")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Grammar:
    return make_language(tmp_path_factory.mktemp("language") / "vocabulary")


@pytest.fixture(scope="module")
def split(
    grammar: Grammar, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, list[int]]]:
    folder = tmp_path_factory.mktemp("sequences") / "train"
    return folder, make_split(folder, grammar, people=120, longest=60)


def predicted_tokens(batch: dict) -> list[int]:
    """Return the labels that the shifted loss looks at."""
    labels = batch["labels"][..., 1:]
    return labels[labels != IGNORED].tolist()


@pytest.mark.parametrize("max_tokens", [64, 100, 10_000])
def test_every_token_is_predicted_once(grammar, split, max_tokens):
    folder, histories = split
    chunks = read_chunks(folder, grammar, max_tokens=max_tokens)
    longest = max(map(len, histories.values()))
    assert (len(chunks) > len(histories)) == (longest > max_tokens)
    assert chunks.lengths.max() <= max_tokens
    wanted = sorted(t for history in histories.values() for t in history[1:])
    assert chunks.predicted == len(wanted)
    packs = Packs(chunks, max_tokens=max(max_tokens, 500), seed=1, epochs=3)
    pad = Pad(pad_id=grammar.pad_id)
    for epoch in range(3):
        chunks.set_epoch(epoch)
        batches = [[chunks[i] for i in indices] for indices in packs]
        for collate in (pack, pad):
            found = [t for b in batches for t in predicted_tokens(collate(b))]
            assert sorted(found) == wanted


def test_a_history_is_predicted_in_order(grammar, split):
    folder, histories = split
    chunks = read_chunks(folder, grammar, max_tokens=64)
    items = [chunks[i] for i in range(len(chunks))]
    by_person = [t for p in sorted(histories) for t in histories[p][1:]]
    assert predicted_tokens(pack(items)) == by_person


def test_file_layout_does_not_matter(grammar, split, tmp_path):
    folder, histories = split
    backwards = dict(reversed(histories.items()))
    write_split(tmp_path / "train", backwards, files=5)
    one = read_chunks(folder, grammar, max_tokens=64)
    other = read_chunks(tmp_path / "train", grammar, max_tokens=64)
    assert len(one) == len(other)
    for (ids, context), (other_ids, other_context) in zip(one, other, strict=True):
        assert np.array_equal(ids, other_ids)
        assert context == other_context


def test_packs_are_as_many_in_every_epoch(grammar, split):
    folder, _ = split
    chunks = read_chunks(folder, grammar, max_tokens=64)
    packs = Packs(chunks, max_tokens=200, seed=3, epochs=40, multiple_of=4)
    seen = []
    for epoch in range(40):
        chunks.set_epoch(epoch)
        batches = list(packs)
        assert len(batches) == len(packs)
        assert len(batches) % 4 == 0
        assert sorted(i for batch in batches for i in batch) == [*range(len(chunks))]
        assert all(chunks.lengths[batch].sum() <= 200 for batch in batches)
        seen.append(batches)
    assert seen[0] != seen[1]
    chunks.set_epoch(0)
    assert list(packs) == seen[0]


def test_more_processes_than_chunks_are_refused(grammar, split):
    chunks = read_chunks(split[0], grammar, max_tokens=10_000)
    with pytest.raises(InputError, match="cannot be shared by 1000 processes"):
        Packs(chunks, max_tokens=10_000, seed=0, multiple_of=1000)


def test_packs_are_nearly_full(grammar, split):
    folder, _ = split
    chunks = read_chunks(folder, grammar, max_tokens=64)
    packs = Packs(chunks, max_tokens=2000, seed=3, epochs=5)
    assert len(packs) <= 1.05 * chunks.lengths.sum() / 2000 + 1


def test_batches_of_patients(grammar, split):
    folder, _ = split
    chunks = read_chunks(folder, grammar, max_tokens=64)
    sizes = [len(batch) for batch in Packs(chunks, batch_size=7, seed=0)]
    assert sum(sizes) == len(chunks)
    assert set(sizes[:-1]) == {7}


def test_cache_is_never_stale(grammar, split, tmp_path):
    folder, _ = split
    plain = read_chunks(folder, grammar, max_tokens=64)
    cached = [
        read_chunks(folder, grammar, max_tokens=64, cache=tmp_path / "cache")
        for _ in range(2)
    ][1]
    assert isinstance(cached.tokens, np.memmap)
    for name in packing.ARRAYS:
        assert np.array_equal(getattr(plain, name), getattr(cached, name))
    changed = tmp_path / "train"
    histories = make_split(changed, grammar, people=5)
    first = read_chunks(changed, grammar, max_tokens=64, cache=tmp_path / "cache")
    person, history = next(iter(histories.items()))
    histories[person] = [*history[:2], history[2] + 1, *history[3:]]
    write_split(changed, histories)
    second = read_chunks(changed, grammar, max_tokens=64, cache=tmp_path / "cache")
    assert (first.tokens != second.tokens).sum() == 1
    wider = read_chunks(folder, grammar, max_tokens=100, cache=tmp_path / "cache")
    assert cached.lengths.max() <= 64 < wider.lengths.max()


def test_an_absent_folder_holds_nothing(grammar, tmp_path):
    chunks = read_chunks(tmp_path / "validation", grammar, max_tokens=64)
    assert (len(chunks), chunks.patients, chunks.predicted) == (0, 0, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda h, g: h | {1: [*h[1][:-1], g.vocab_size, g.eos_id]}, "vocabulary"),
        (lambda h, g: h | {1: h[1][1:]}, r"\[BOS\]"),
        (lambda h, g: h | {1: h[1][:-1]}, r"\[EOS\]"),
        (lambda h, g: h | {1: []}, r"\[BOS\]"),
    ],
)
def test_unfit_rows_are_refused(grammar, tmp_path, spoil, message):
    rng = np.random.default_rng(0)
    histories = {person: make_history(grammar, rng, 3) for person in range(3)}
    write_split(tmp_path / "train", spoil(histories, grammar))
    with pytest.raises(InputError, match=message):
        read_chunks(tmp_path / "train", grammar, max_tokens=64)


def test_unfit_files_are_refused(grammar, tmp_path):
    histories = {7: make_history(grammar, np.random.default_rng(0), 2)}
    folder = tmp_path / "miscounted"
    write_split(folder, histories, files=1)
    table = pq.read_table(folder / "part-00000.parquet")
    table = table.set_column(2, "token_count", pa.array([3], pa.int32()))
    pq.write_table(table, folder / "part-00000.parquet")
    with pytest.raises(InputError, match="token_count does not match"):
        read_chunks(folder, grammar, max_tokens=64)
    folder = tmp_path / "twice"
    write_split(folder, histories, files=1)
    (folder / "copy.parquet").write_bytes((folder / "part-00000.parquet").read_bytes())
    with pytest.raises(InputError, match="person_id twice"):
        read_chunks(folder, grammar, max_tokens=64)
    (folder / "copy.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"copy\.parquet is not a Parquet file"):
        read_chunks(folder, grammar, max_tokens=64)
    pq.write_table(pa.table({"person_id": [1]}), folder / "copy.parquet")
    with pytest.raises(InputError, match="no column token_ids"):
        read_chunks(folder, grammar, max_tokens=64)


def reference_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
    """Attend chunk by chunk, with the shapes of torch's CUDA kernel: (T, H, D)."""
    assert options.pop("window_size") == (-1, 0)
    assert query.dtype == torch.bfloat16
    assert max_q == max_k == int(cu_seq_q.diff().max())
    parts = []
    for start, end in pairwise(cu_seq_q):
        q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, **options
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_cuda_path_is_called_as_the_kernel_wants(monkeypatch, key_heads):
    """Without a GPU: the same arguments, against a reference of the kernel."""
    signature = inspect.signature(packing.varlen_attn)

    def kernel(*args, **kwargs):
        signature.bind(*args, **kwargs)
        return reference_varlen(*args, **kwargs)

    torch.manual_seed(0)
    query = torch.randn(1, 4, 30, 8)
    key, value = torch.randn(2, 1, key_heads, 30, 8)
    borders = torch.tensor([0, 3, 4, 17, 30], dtype=torch.int32)
    settings = {"scaling": 0.3, "cu_seq_lens_q": borders, "max_length_q": 13}
    plain, _ = packed_attention(torch.nn.Module(), query, key, value, None, **settings)
    monkeypatch.setattr(packing, "varlen_attn", kernel)
    monkeypatch.setattr(packing, "_varlen_dtype", lambda query: torch.bfloat16)
    fast, _ = packed_attention(torch.nn.Module(), query, key, value, None, **settings)
    assert fast.shape == plain.shape == (1, 30, 4, 8)
    assert torch.allclose(fast.float(), plain, atol=0.03)
