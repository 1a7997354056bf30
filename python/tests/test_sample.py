"""Sampling: so many patients, all of them histories, the same ones for a seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import RARE, make_grammar, make_model, random_history
from omop_gpt import sample as sampling
from omop_gpt.grammar import Grammar
from omop_gpt.prompts import PROMPT_TOKENS, read_demographics
from omop_gpt.sample import SampleConfig, load_model, sample
from omop_gpt.sampler import (
    LONGEST_UNCUT,
    SHORTEST_CONTEXT,
    Sampler,
    stream,
    warpers,
)
from omop_gpt.step import InputError
from transformers import PreTrainedModel

FAMILIES = ("gender", "race", "ethnicity")


def long_winded(grammar: Grammar) -> PreTrainedModel:
    """Make a model that hardly ever ends a history of its own accord."""
    model = make_model(grammar)
    with torch.no_grad():  # other logits are a few nats above and below 0
        model.lm_head.weight[grammar.eos_id] = 0
    return model


def save_model(folder: Path, model: PreTrainedModel, grammar: Grammar) -> Path:
    """Write a model with its vocabulary, as train does."""
    model.save_pretrained(folder)
    shutil.copytree(grammar.folder, folder / "vocabulary")
    return folder


@pytest.fixture(scope="module")
def folder(grammar, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "model"
    return save_model(folder, make_model(grammar), grammar)


@pytest.fixture(scope="module")
def long_grammar(tmp_path_factory) -> Grammar:
    """Return a language without deaths, which would end histories early."""
    folder = tmp_path_factory.mktemp("language") / "vocabulary"
    return make_grammar(folder, persons=RARE | {"[DEATH]": 0})


@pytest.fixture(scope="module")
def long_folder(long_grammar, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "model"
    return save_model(folder, long_winded(long_grammar), long_grammar)


def config(folder: Path, output: Path, **flags) -> SampleConfig:
    flags = {"num_of_patients": 20, "batch_size": 8, "buffer_size": 7} | flags
    # the model's own distribution
    flags = {"max_tokens_per_patient": 40, "event_min_p": 0.0} | flags
    return SampleConfig(model_folder=str(folder), output_folder=str(output), **flags)


def read_table(output: Path) -> pa.Table:
    files = sorted((output / "generated_sequences").glob("*.parquet"))
    return pa.concat_tables(pq.read_table(file) for file in files)


def read(output: Path) -> dict[int, list[int]]:
    """Histories by person_id."""
    table = read_table(output).to_pydict()
    return dict(zip(table["person_id"], table["token_ids"], strict=True))


def draw(folder: Path, output: Path, **flags) -> list[list[int]]:
    """Sample and return the histories, in the order of person_id."""
    sample(config(folder, output, **flags))
    found = read(output)
    assert list(found) == [10**9 + 1 + n for n in range(len(found))]
    return list(found.values())


def result(output: Path) -> dict:
    path = output / "generated_sequences" / "_manifest.json"
    return json.loads(path.read_text())["result"]


def in_memory(folder: Path, grammar: Grammar, **flags) -> Sampler:
    return Sampler(
        load_model(folder, grammar), grammar, config(folder, folder, **flags)
    )


def histories(sampler: Sampler, patients: list[int]) -> dict[int, list[int]]:
    with torch.inference_mode():
        return {s.patient: s.token_ids.tolist() for s in sampler.run(patients)}


def bytes_of(output: Path) -> dict[str, bytes]:
    files = (output / "generated_sequences").glob("*.parquet")
    return {file.name: file.read_bytes() for file in sorted(files)}


def test_so_many_patients_all_of_them_histories(folder, grammar, tmp_path):
    found = draw(folder, tmp_path, num_of_patients=23)
    assert len(found) == 23
    assert all(grammar.is_history(ids) for ids in found)
    assert max(map(len, found)) <= 40
    assert len({tuple(ids) for ids in found}) == 23
    target = tmp_path / "generated_sequences"
    assert {path.name for path in target.iterdir()} == {
        "_manifest.json", *(f"part-{n:05d}.parquet" for n in range(4)),
    }  # fmt: skip
    table = read_table(tmp_path)
    assert table["token_count"].to_pylist() == [len(ids) for ids in found]
    visits = grammar.has_kind("visit", "no_visit")
    assert table["visit_count"].to_pylist() == [visits[ids].sum() for ids in found]
    counts = result(tmp_path)
    assert counts["patients"] == 23
    assert counts["tokens"] == sum(map(len, found))
    assert counts["not_histories"] == 0
    assert counts["vocabulary"] == grammar.fingerprint
    assert Grammar.load(tmp_path / "vocabulary").fingerprint == grammar.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {
        "generated_sequences", "vocabulary",
    }  # fmt: skip


def test_the_longest_training_history_is_the_limit(long_folder, long_grammar, tmp_path):
    found = draw(long_folder, tmp_path, max_tokens_per_patient=0, num_of_patients=6)
    lengths = np.array([len(ids) for ids in found])
    longest = long_grammar.facts["longest_history"]
    assert lengths.max() <= longest
    assert result(tmp_path)["ended_by_limit"] == (lengths > longest - 8).sum() > 2


def test_the_seed_decides(folder, tmp_path):
    first = draw(folder, tmp_path / "first")
    draw(folder, tmp_path / "again")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "again")
    assert draw(folder, tmp_path / "shards", buffer_size=3) == first
    assert draw(folder, tmp_path / "fewer", num_of_patients=5) == first[:5]
    other = draw(folder, tmp_path / "other", seed=43)
    assert not {tuple(ids) for ids in first} & {tuple(ids) for ids in other}


@pytest.mark.parametrize("flags", [{}, {"repetition_penalty": 3}, {"top_p": 0.6}])
def test_a_patient_is_the_same_in_any_order(folder, grammar, flags):
    sampler = in_memory(folder, grammar, **flags)
    first = histories(sampler, list(range(30)))
    assert histories(sampler, [29, 3, 17]) == {p: first[p] for p in (29, 3, 17)}
    shuffled = np.random.default_rng(0).permutation(30).tolist()
    assert histories(sampler, shuffled) == first
    assert histories(sampler, []) == {}


class KilledError(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


def test_a_sampling_cut_off_ends_the_same(folder, tmp_path, monkeypatch):
    draw(folder, tmp_path / "whole")
    real = sampling.write_part
    written = []

    def write_part(path, rows, grammar):
        if written:
            raise KilledError
        written.append(path.name)
        real(path, rows, grammar)

    monkeypatch.setattr(sampling, "write_part", write_part)
    with pytest.raises(KilledError):
        draw(folder, tmp_path / "cut")
    assert not (tmp_path / "cut" / "generated_sequences").exists()
    monkeypatch.setattr(sampling, "write_part", real)
    run = Sampler.run
    asked = []

    def count(self, patients):
        asked.extend(patients)
        return run(self, patients)

    monkeypatch.setattr(Sampler, "run", count)
    draw(folder, tmp_path / "cut")
    assert asked == list(range(7, 20))  # the first shard is not sampled again
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_sampling_cut_off_with_other_settings_starts_over(
    folder, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "total_counts", None)  # dies after the last shard
        with pytest.raises(TypeError):
            draw(folder, tmp_path / "cut", seed=1)
    found = draw(folder, tmp_path / "cut", seed=2)
    assert found == draw(folder, tmp_path / "whole", seed=2)


def test_what_is_done_is_not_done_again(folder, tmp_path, monkeypatch):
    draw(folder, tmp_path)
    monkeypatch.setattr(sampling, "load_model", None)
    draw(folder, tmp_path)
    with pytest.raises(InputError, match="--seed 42, not 43"):
        draw(folder, tmp_path, seed=43)


def write_sequences(folder: Path, sequences: list) -> Path:
    folder.mkdir(parents=True)
    table = pa.table({"token_ids": pa.array(sequences, pa.list_(pa.int32()))})
    pq.write_table(table, folder / "part-00000.parquet")
    return folder


def test_prompts_are_respected(folder, grammar, tmp_path):
    rng = np.random.default_rng(0)
    people = [random_history(grammar, rng, 20).tolist() for _ in range(12)]
    unknown = {grammar.only("year_unknown"), grammar.only("age_unknown")}
    tokens = {token: n for n, token in enumerate(grammar.tokens)}
    text = "[BOS] year:unknown age:unknown gender:8507 race:0 ethnicity:0 [EOS]"
    people.append([tokens[token] for token in text.split()])
    path = str(write_sequences(tmp_path / "people", people))
    expected = {tuple(ids[:PROMPT_TOKENS]) for ids in people}
    expected = {ids for ids in expected if not unknown & set(ids)}
    assert 2 < len(expected) < len(people)
    flags = {"demographic_data_path": path, "num_of_patients": 100}
    found = draw(folder, tmp_path / "out", **flags)
    assert all(grammar.is_history(ids) for ids in found)
    assert {tuple(ids[:PROMPT_TOKENS]) for ids in found} == expected
    assert len({tuple(ids) for ids in found}) > len(expected)
    assert found == draw(folder, tmp_path / "again", **flags, buffer_size=100)
    # in other folders, the same people; other people are another input
    moved = tmp_path / "moved"
    shutil.move(path, moved)
    assert found == draw(folder, tmp_path / "out", **flags | {
        "demographic_data_path": str(moved)
    })  # fmt: skip
    shutil.rmtree(moved)
    write_sequences(moved, people[:3])
    with pytest.raises(InputError, match="of another input"):
        draw(folder, tmp_path / "out", **flags | {"demographic_data_path": str(moved)})


def test_prompts_that_are_none(grammar, tmp_path):
    history = random_history(grammar, np.random.default_rng(2), 20).tolist()
    for n, (sequences, message) in enumerate(
        [
            ([], "holds no demographics"),
            ([history[:5]], "holds no demographics"),
            ([history[1:]], "another vocabulary"),
            ([[*history[:3], grammar.vocab_size, *history[4:]]], "another vocabulary"),
        ]
    ):
        path = write_sequences(tmp_path / str(n), sequences)
        with pytest.raises(InputError, match=message):
            read_demographics(str(path), grammar)
    with pytest.raises(InputError, match="holds no sequences"):
        read_demographics(str(tmp_path / "nowhere"), grammar)
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other" / "x.parquet")
    with pytest.raises(InputError, match="no column token_ids"):
        read_demographics(str(tmp_path / "other"), grammar)
    assert read_demographics("", grammar) is None


def test_a_history_goes_on_beyond_the_context(long_folder, long_grammar, monkeypatch):
    """Later contexts begin with a [CONT] prompt and what is known last."""
    fed: dict[int, list[list[int]]] = {}
    forward, go_on = Sampler.forward, Sampler.go_on

    def record_go_on(self, r, chunk, tokens, position):
        fed[self.rows[r].patient].append(list(chunk[:-1]))
        go_on(self, r, chunk, tokens, position)

    def record(self, tokens, position):
        for r, row in enumerate(self.rows):
            if row.patient < 0:  # a row that nobody waits for
                continue
            contexts = fed.setdefault(row.patient, [])
            if position[r] == 0:
                contexts.append([])
            contexts[-1].append(int(tokens[r]))
            assert len(contexts[-1]) == position[r] + 1 <= 96
        return forward(self, tokens, position)

    monkeypatch.setattr(Sampler, "forward", record)
    monkeypatch.setattr(Sampler, "go_on", record_go_on)
    sampler = in_memory(
        long_folder, long_grammar, context_window=96, max_tokens_per_patient=400
    )
    with torch.inference_mode():
        found = list(sampler.run(list(range(12))))
    longer = [s for s in found if s.contexts > 1]
    assert len(longer) > 5
    inside = repeated = 0
    for s in found:
        assert long_grammar.is_history(s.token_ids)
        assert len(fed[s.patient]) == s.contexts
        done = 0
        for n, context in enumerate(fed[s.patient]):
            known = long_grammar.tail(s.token_ids[: done + 1], 48) if n else [0]
            if n:
                assert context[: len(known)] == known.tolist()
                inside += long_grammar.only("in") in known
                repeated += len(known) > 16
            new = context[len(known) - 1 :]
            assert new == s.token_ids[done : done + len(new)].tolist()
            assert (long_grammar.walk(np.array(context)) >= 0).all()
            done += len(new)
        assert done == len(s.token_ids) - 1  # [EOS] is drawn, and fed to nobody
    assert inside
    assert repeated


def test_contexts_change_no_patient_but_their_own(long_folder, long_grammar):
    flags = {"context_window": 64, "max_tokens_per_patient": 200, "batch_size": 3}
    sampler = in_memory(long_folder, long_grammar, **flags)
    first = histories(sampler, list(range(7)))
    assert max(map(len, first.values())) > 100
    assert histories(sampler, [6, 2, 0, 1]) == {p: first[p] for p in (6, 2, 0, 1)}


def test_the_longest_run_without_a_cut(grammar):
    """From the token before which a context is cut to the next such token."""
    cuts = np.zeros(grammar.next_state.shape, dtype=bool)
    for state, kind in np.argwhere(grammar.next_state >= 0):
        token_id = int(np.flatnonzero(grammar.kind == kind)[0])
        cuts[state, kind] = grammar.is_cut(int(state), token_id)
    goes_on = (grammar.next_state >= 0) & ~cuts
    longest = np.zeros(len(grammar.states), int)
    for _ in range(2 * LONGEST_UNCUT):
        further = np.where(goes_on, longest[grammar.next_state] + 1, 0).max(axis=1)
        longest = further
    first = longest[np.unique(grammar.next_state[cuts])].max() + 1
    assert first <= LONGEST_UNCUT
    # [CONT], demographics, [IN], days to the start, the visit, days to the day, hour
    prompt = 1 + 5 + 1 + 3 + 1 + 3 + 1
    assert prompt + first + LONGEST_UNCUT <= SHORTEST_CONTEXT


@pytest.mark.parametrize(
    "flags",
    [
        {"top_p": 0.3},
        {"sampling_strategy": "TopKStrategy", "top_k": 2},
        {"sampling_strategy": "TopMixStrategy", "top_k": 30, "top_p": 0.5},
        {"temperature": 0.2},
        {"repetition_penalty": 5},
        {"epsilon_cutoff": 0.05},
        {"min_p": 0.5},
        {"event_min_p": 0.5},
    ],
)
def test_every_flag_changes_what_is_drawn(folder, grammar, flags):
    plain = histories(in_memory(folder, grammar), list(range(8)))
    other = histories(in_memory(folder, grammar, **flags), list(range(8)))
    assert other != plain
    assert all(grammar.is_history(ids) for ids in other.values())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_k": 1}, [0.5, 0.3, 0.15, 0.05]),  # of another strategy
        ({"sampling_strategy": "TopKStrategy", "top_k": 1}, [1, 0, 0, 0]),
        (
            {"sampling_strategy": "TopKStrategy", "top_k": 2, "top_p": 0.1},
            [0.625, 0.375, 0, 0],
        ),
        (
            {"sampling_strategy": "TopMixStrategy", "top_k": 2, "top_p": 0.6},
            [1, 0, 0, 0],
        ),
        ({"epsilon_cutoff": 0.1}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"temperature": 0.5}, [0.684932, 0.246575, 0.061644, 0.006849]),  # squares
        ({"min_p": 0.7}, [1, 0, 0, 0]),
        ({"event_min_p": 0.7}, [0.5 / 0.85, 0.3 / 0.85, 0, 0.05 / 0.85]),
    ],
)
def test_strategies(flags, expected):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    is_event = torch.tensor([False, True, True, False])
    chosen = warpers(config(Path(), Path(), **flags), is_event)
    processed = chosen(torch.tensor([[0]]), logits)
    torch.testing.assert_close(processed.softmax(-1)[0], torch.tensor(expected).float())


def test_repetition_is_paid_for():
    logits = torch.tensor([[1.0, -1.0, 1.0]])
    chosen = warpers(
        config(Path(), Path(), repetition_penalty=2), torch.zeros(3, dtype=bool)
    )
    assert chosen(torch.tensor([[0, 1]]), logits)[0].tolist() == [0.5, -2.0, 1.0]


def test_without_the_mask_histories_are_rejected(folder, grammar, tmp_path):
    found = draw(folder, tmp_path, use_mask=False, context_window=64)
    counts = result(tmp_path)
    assert counts["not_histories"] == sum(not grammar.is_history(i) for i in found) > 0
    assert counts["ended_by_limit"] == sum(i[-1] != grammar.eos_id for i in found)
    assert "rare_probability" not in counts  # no rule, nothing taken away


def test_rare_tokens_are_counted_not_written(folder, grammar, tmp_path):
    rare = np.flatnonzero((grammar.train_persons < 5) & grammar.has_kind("event"))
    found = draw(folder, tmp_path / "five", max_tokens_per_patient=150)
    assert not np.isin(np.concatenate(found), rare).any()
    share = result(tmp_path / "five")["rare_probability"]
    assert 0 < share < 0.2
    found = draw(
        folder, tmp_path / "one", max_tokens_per_patient=150, min_persons=1,
        num_of_patients=60,
    )  # fmt: skip
    assert np.isin(np.concatenate(found), rare).any()
    assert result(tmp_path / "one")["rare_probability"] == 0


@torch.inference_mode()
def test_rare_probability_is_that_of_the_model(folder, grammar):
    """Added up over what was drawn, as a plain forward has it."""
    sampler = in_memory(folder, grammar, batch_size=3, max_tokens_per_patient=140)
    model = make_model(grammar)
    row = torch.tensor([True, False, False])
    found = list(sampler.run(list(range(12))))
    for s in found:
        ids = torch.from_numpy(s.token_ids).long()
        probability = model(ids[None]).logits[0].softmax(-1)
        sampler.mask.begin(0, np.empty(0, np.int64))
        total = 0.0
        for token_id, mass in zip(ids[:-1], probability):
            sampler.mask.advance(token_id.repeat(3), row)
            allowed, before, ending = sampler.mask.allowed()
            known = before["rare"]
            if not ending[0]:
                total += 1 - float(mass[allowed[0]].sum() / mass[known[0]].sum())
        assert s.masked["rare"] == pytest.approx(total, rel=1e-3)
    assert max(s.masked["rare"] for s in found) > 0.1


def test_prompts_of_later_contexts_have_no_rare_probability(
    long_folder, long_grammar, monkeypatch
):
    taken: dict[tuple[int, int], float] = {}
    real = Sampler.draw

    def record(self, logits, drawn):
        before = {name: value.clone() for name, value in self.masked.items()}
        found = real(self, logits, drawn)
        rare = self.masked["rare"] - before.get("rare", 0)
        for r, row in enumerate(self.rows):
            assert drawn[r] or not rare[r]
            if drawn[r]:
                taken[row.patient, int(self.mask.count[r])] = float(rare[r])
        return found

    monkeypatch.setattr(Sampler, "draw", record)
    sampler = in_memory(
        long_folder, long_grammar, context_window=64, max_tokens_per_patient=140
    )
    with torch.inference_mode():
        found = list(sampler.run(list(range(8))))
    assert max(s.contexts for s in found) > 1
    for s in found:
        total = sum(taken[s.patient, n] for n in range(1, len(s.token_ids)))
        assert s.masked["rare"] == pytest.approx(total, rel=1e-4)


def test_frequencies_are_the_model_s_probabilities(folder, grammar):
    """Chi-square of the year, and of the age that follows the commonest one."""
    patients = 4000
    sampler = in_memory(folder, grammar, batch_size=250, max_tokens_per_patient=7)
    found = np.array(list(histories(sampler, list(range(patients))).values()))
    assert found.shape == (patients, 7)
    model = make_model(grammar)

    def compare(prompt: list[int], kind: str, drawn: np.ndarray) -> None:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0, -1].double()
        logits = logits.clone()
        logits[torch.from_numpy(~grammar.has_kind(kind))] = -torch.inf
        expected = logits.softmax(-1).numpy() * len(drawn)
        observed = np.bincount(drawn, minlength=grammar.vocab_size)
        assert not observed[expected == 0].any()
        assert expected.max() > 3 * np.median(expected[expected > 0])
        cells = expected >= 5
        chi = ((observed - expected)[cells] ** 2 / expected[cells]).sum()
        freedom = cells.sum() - 1
        assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)

    compare([grammar.bos_id], "year", found[:, 1])
    year = np.bincount(found[:, 1]).argmax()
    compare([grammar.bos_id, int(year)], "age", found[found[:, 1] == year, 2])


def test_streams_are_uniform_and_apart():
    patient, count = torch.arange(200)[:, None], torch.arange(200)[None]
    numbers = {
        seed: stream(seed, patient, count).numpy() for seed in (0, 1, -5, 2**70 + 3)
    }
    for drawn in numbers.values():
        assert drawn.min() >= 0
        assert drawn.max() < 1
        cells = np.histogram(drawn, 100, (0, 1))[0]
        assert abs(((cells - 400) ** 2 / 400).sum() - 99) < 4 * np.sqrt(2 * 99)
        for other in (
            drawn[1:, :-1] - drawn[:-1, 1:],
            np.diff(drawn),
            np.diff(drawn.T),
        ):
            assert abs(other.var() - 1 / 6) < 0.005
    every = np.concatenate([drawn.ravel() for drawn in numbers.values()])
    assert len(np.unique(every)) == len(every)
    assert stream(7, torch.tensor([3]), torch.tensor([4])) == stream(
        7, *torch.tensor([[3], [4]])
    )


@pytest.mark.parametrize(
    "flags",
    [
        {"num_of_patients": 0},
        {"batch_size": -1},
        {"buffer_size": 0},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"repetition_penalty": 0},
        {"epsilon_cutoff": 1},
        {"epsilon_cutoff": -0.1},
        {"context_window": 63},
        {"context_window": -1},
        {"max_tokens_per_patient": -1},
        {"min_persons": -1},
        {"sampling_strategy": "Top"},
    ],
)
def test_bad_flags(flags):
    with pytest.raises(InputError, match=next(iter(flags))):
        config(Path(), Path(), **flags)


def test_bad_folders(folder, grammar, tmp_path):
    with pytest.raises(InputError, match="holds no model: `omop-gpt train`"):
        draw(tmp_path / "nowhere", tmp_path)
    other = make_grammar(tmp_path / "language" / "vocabulary", persons={})
    for named in (tmp_path / "language", tmp_path / "language" / "vocabulary"):
        with pytest.raises(InputError, match="trained with vocabulary"):
            draw(folder, tmp_path / "out", tokenizer_folder=str(named))
    with pytest.raises(InputError, match="holds no vocabulary"):
        draw(folder, tmp_path / "out", tokenizer_folder=str(tmp_path))
    short = save_model(tmp_path / "short", make_model(grammar, context=32), grammar)
    with pytest.raises(InputError, match="sees only 32 tokens"):
        draw(short, tmp_path / "out")
    # what lies where the output goes is not mixed with it
    shutil.copytree(other.folder, tmp_path / "mixed" / "vocabulary")
    with pytest.raises(InputError, match="is not the vocabulary of the model"):
        draw(folder, tmp_path / "mixed")
    write_sequences(tmp_path / "taken" / "generated_sequences", [])
    with pytest.raises(InputError, match="is there already"):
        draw(folder, tmp_path / "taken")


def test_the_vocabulary_folder_itself_will_do(folder, grammar, tmp_path):
    found = draw(folder, tmp_path / "out", tokenizer_folder=str(grammar.folder))
    assert found == draw(folder, tmp_path / "model")
