"""Nats of models and of what counting alone reaches, against plain Python."""

from __future__ import annotations

from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from omop_gpt import nats
from omop_gpt.grammar import Grammar
from omop_gpt.nats import baselines, nats_of_persons, predicted
from omop_gpt.packing import Chunks, read_chunks, read_sequences
from omop_gpt.step import InputError
from test_packing import make_language, make_split
from test_train import TINY, run
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nats") / "patient_sequence"
    grammar = make_language(folder / "vocabulary")
    make_split(folder / "train", grammar, people=60, seed=1, longest=20)
    make_split(folder / "validation", grammar, people=20, seed=2, longest=20)
    return folder


def pairs(chunks: Chunks) -> list[tuple[int, int]]:
    """Each predicted token with the one before it."""
    found = []
    for ids, context in chunks:
        ids = ids.tolist()
        start = max(context, 1)
        found += zip(ids[start - 1 :], ids[start:], strict=False)
    return found


@pytest.mark.parametrize("block", [1 << 24, 7])
def test_baselines_are_what_counting_gives(data, monkeypatch, block):
    monkeypatch.setattr(nats, "BLOCK", block)
    grammar = Grammar.load(data / "vocabulary")
    train, held_out = (
        read_chunks(data / split, grammar, max_tokens=96)
        for split in ("train", "validation")
    )
    assert len(train) > train.patients  # with later chunks, whose prompts do not count
    assert predicted(train).sum() == train.predicted
    seen, size = pairs(train), grammar.vocab_size
    tokens, both = Counter(t for _, t in seen), Counter(seen)
    before, kinds = Counter(b for b, _ in seen), Counter(b for b, _ in set(seen))

    def unigram(token: int) -> float:
        return (tokens[token] + 1) / (len(seen) + size)

    def bigram(last: int, token: int) -> float:
        spread = max(kinds[last], 1)
        return (both[last, token] + spread * unigram(token)) / (before[last] + spread)

    asked = pairs(held_out)
    expected = {
        "unigram": -sum(log(unigram(t)) for _, t in asked) / held_out.patients,
        "bigram": -sum(log(bigram(b, t)) for b, t in asked) / held_out.patients,
    }
    assert baselines(train, held_out, size) == pytest.approx(expected)
    assert expected["bigram"] < expected["unigram"]
    for last in (grammar.bos_id, asked[5][0], size - 1):  # probabilities add up to 1
        assert sum(bigram(last, t) for t in range(size)) == pytest.approx(1)


def test_nats_of_persons_are_those_of_a_plain_forward(data, tmp_path):
    result = run(data, tmp_path / "model", num_train_epochs=1, bf16=False)
    assert result["unigram_nats_per_patient"] > result["bigram_nats_per_patient"] > 0
    grammar = Grammar.load(data / "vocabulary")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    folder, context = data / "validation", TINY["max_position_embeddings"]
    for given in (1, 6):
        found = nats_of_persons(tmp_path / "model", folder, given=given)
        expected, longest = {}, 0
        for file in folder.glob("*.parquet"):
            for persons, values, counts in read_sequences(file, grammar):
                ends = np.cumsum(counts)
                for person, end, count in zip(persons, ends, counts, strict=True):
                    nats, asked = 0.0, 0
                    history = values[end - count : end]
                    longest = max(longest, count)
                    chunks = grammar.chunks(history, context, overlap=context // 2)
                    for chunk, known in chunks:
                        ids = torch.from_numpy(chunk.astype(np.int64))
                        first = known or given
                        with torch.no_grad():
                            logits = model(ids[None]).logits[0, first - 1 : -1]
                        nats += float(
                            torch.nn.functional.cross_entropy(
                                logits, ids[first:], reduction="sum"
                            )
                        )
                        asked += len(ids) - first
                    assert asked == count - given
                    expected[int(person)] = nats, asked
        assert len(expected) == 20
        assert longest > context
        sums = {person: nats for person, (nats, _) in expected.items()}
        assert found == pytest.approx(sums, rel=1e-4)
        found = nats_of_persons(tmp_path / "model", folder, given=given, per_token=True)
        means = {person: nats / asked for person, (nats, asked) in expected.items()}
        assert found == pytest.approx(means, rel=1e-4)
    with pytest.raises(InputError, match="holds no sequences"):
        nats_of_persons(tmp_path / "model", data / "nothing")
