"""Canaries: legal, like nobody, and told by a model that has learnt them by heart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_grammar, random_history
from omop_gpt.canaries import (
    DECOYS,
    TOKENS,
    draw_canaries,
    insert_canaries,
    read_canaries,
)
from omop_gpt.evaluation.canaries import measure_canaries
from omop_gpt.evaluation.results import Results
from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.packing import read_chunks
from omop_gpt.step import InputError, folder_fingerprint, read_manifest, write_manifest
from scipy.stats import rankdata
from test_packing import write_split
from test_train import run

LEARNT = {
    "hidden_size": 64,
    "max_position_embeddings": 192,
    "learning_rate": 0.005,
    "num_train_epochs": 8,
    "bf16": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Return a patient_sequence folder of the language that uses the whole grammar."""
    folder = tmp_path_factory.mktemp("canaries") / "patient_sequence"
    grammar = make_grammar(folder / "vocabulary")
    rng = np.random.default_rng(3)
    for split, people in (("train", 60), ("validation", 20)):
        histories = [random_history(grammar, rng, 40) for _ in range(people)]
        write_split(folder / split, dict(enumerate(map(list, histories))))
    return folder


@pytest.fixture(scope="module")
def models(data) -> dict[str, Path]:
    """Return a model that was trained on canaries, and one that was not."""
    folders = {name: data.parent / name for name in ("with", "without")}
    run(data, folders["with"], canaries=50, seed=5, **LEARNT)
    run(data, folders["without"], seed=5, **LEARNT)
    return folders


def found(model: Path, synthetic: Path = Path("nowhere")) -> dict[tuple, float]:
    results = Results()
    measure_canaries(model, synthetic, results)
    assert {m.n for m in results.metrics} <= {10}
    return {(m.name, int(m.stratum)): m.value for m in results.metrics}


def test_a_canary_is_what_a_sampler_may_write(grammar):
    canaries = draw_canaries(grammar, 50, 1)
    times = canaries["multiplicity"].to_numpy()
    assert np.bincount(times)[[1, 2, 4, 8, 16]].tolist() == [10] * 5
    assert (times == 0).sum() == len(times) - 50 == DECOYS
    histories = canaries["token_ids"].to_pylist()
    assert len(set(map(tuple, histories))) == len(histories)
    assert canaries["token_count"].to_pylist() == list(map(len, histories))
    assert max(map(len, histories)) <= TOKENS
    mask = Mask(grammar, rows=1, max_tokens=TOKENS)
    for history in histories[:100]:
        assert grammar.is_history(history)
        mask.open(1)
        for token_id in history:
            assert mask.allowed()[0][0, token_id]
            mask.advance(torch.tensor([token_id]), torch.tensor([True]))
    # any event, and nothing but the draw tells canaries from decoys
    written = np.unique(np.concatenate(histories))
    events = mask.is_common & grammar.has_kind("event")
    assert np.isin(np.flatnonzero(events), written).all()
    lengths = canaries["token_count"].to_numpy()
    assert abs(lengths[:50].mean() - lengths[50:].mean()) < 1


def test_the_same_seed_draws_the_same_canaries(grammar):
    canaries = draw_canaries(grammar, 10, 1)
    assert draw_canaries(grammar, 10, 1).equals(canaries)
    other = draw_canaries(grammar, 10, 2)
    assert not set(map(tuple, other["token_ids"].to_pylist())) & set(
        map(tuple, canaries["token_ids"].to_pylist())
    )


def test_canaries_are_added_as_often_as_they_say(data):
    grammar = Grammar.load(data / "vocabulary")
    real = read_chunks(data / "train", grammar, max_tokens=192)
    canaries = draw_canaries(grammar, 10, 1)
    both = insert_canaries(real, canaries)
    assert (len(both), both.patients) == (len(real) + 62, real.patients + 62)
    for index in range(len(real)):
        assert np.array_equal(both[index][0], real[index][0])
    added = [tuple(both[n][0].tolist()) for n in range(len(real), len(both))]
    for row in canaries.to_pylist():
        assert added.count(tuple(row["token_ids"])) == row["multiplicity"]


def test_only_what_is_learnt_has_canaries(data, models):
    grammar = Grammar.load(data / "vocabulary")
    with_, without = models["with"], models["without"]
    assert read_canaries(with_).equals(draw_canaries(grammar, 50, 5))
    assert read_canaries(without) is None
    results = {name: read_manifest(models[name])["result"] for name in models}
    assert results["with"]["canary_copies"] == 310
    assert results["without"]["canary_copies"] == 0
    # real patients are counted and compared as ever
    for name in (
        "patients", "validation_patients", "validation_tokens_predicted",
        "bigram_nats_per_patient", "fingerprint",
    ):  # fmt: skip
        assert results["with"][name] == results["without"][name]
    assert not list(with_.glob("**/*.pt")) + list(with_.glob("**/*.pkl"))


def test_who_has_learnt_them_ranks_them_first(models):
    metrics = found(models["with"])
    assert metrics["canary_rank", 16] < 0.01
    assert metrics["canary_rank_p", 16] < 1e-4
    # half of the bits that tell one of a thousand, at least
    assert metrics["canary_exposure", 16] > np.log2(DECOYS + 1) / 2
    assert metrics["canary_exposure", 16] > metrics["canary_exposure", 1] + 2


def test_who_never_saw_them_ranks_them_anywhere(models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models["without"], folder)
    shutil.copytree(models["with"] / "canaries", folder / "canaries")
    metrics = found(folder)
    for multiplicity in (1, 2, 4, 8, 16):
        assert metrics["canary_rank_p", multiplicity] > 0.01
        # ten of a uniform rank: the mean is within three standard errors
        assert abs(metrics["canary_rank", multiplicity] - 0.5) < 3 * 0.29 / 10**0.5
        assert abs(metrics["canary_exposure", multiplicity] - np.log2(np.e)) < 1.4


def test_ranks_are_those_among_the_decoys(tmp_path, monkeypatch):
    nats = np.concatenate([np.arange(10.0), np.arange(DECOYS) / 100])
    times = np.repeat([1, 2, 0], [5, 5, DECOYS])
    (tmp_path / "canaries").mkdir()
    pq.write_table(
        pa.table(
            {
                "person_id": range(len(nats)),
                "token_ids": pa.array([[0]] * len(nats), pa.list_(pa.int32())),
                "multiplicity": times,
            }
        ),
        tmp_path / "canaries" / "part.parquet",
    )
    monkeypatch.setattr(
        "omop_gpt.nats.nats_of_persons", lambda *_, **__: dict(enumerate(nats))
    )
    results = Results()
    measure_canaries(tmp_path, Path("nowhere"), results)
    values = {(m.name, m.stratum): m.value for m in results.metrics}
    for stratum, ours in (("1", nats[:5]), ("2", nats[5:10])):
        ranks = np.array([rankdata([one, *nats[10:]])[0] for one in ours])
        least = np.array([rankdata([one, *nats[10:]], "min")[0] for one in ours])
        assert values["canary_rank", stratum] == pytest.approx(
            np.mean(ranks - 1) / DECOYS
        )
        assert values["canary_exposure", stratum] == pytest.approx(
            np.mean(np.log2(1001) - np.log2(least))
        )
        assert np.isnan(values["canary_regenerated", stratum])
    # 0 to 4 of decoys that go up to 10 are early, 5 to 9 are not
    assert values["canary_rank_p", "1"] < 0.05 < 0.9 < values["canary_rank_p", "2"]


def test_what_came_out_again_is_counted(models, tmp_path):
    model = models["with"]
    rows = read_canaries(model).to_pylist()
    once = [row["token_ids"] for row in rows if row["multiplicity"] == 1]
    often = [row["token_ids"] for row in rows if row["multiplicity"] == 16]
    decoys = [row["token_ids"] for row in rows if row["multiplicity"] == 0]
    nearly = [*once[3][:-2], once[3][-1]]
    written = [once[2], once[2], often[0], often[1], decoys[0], nearly]
    samples = tmp_path / "generated_sequences"
    write_split(samples, dict(enumerate(written)))

    def sampled_by(fingerprint: str) -> None:
        write_manifest(
            samples, step="sample", settings={}, inputs="", started=0,
            result={"model": fingerprint},
        )  # fmt: skip

    sampled_by(folder_fingerprint(model, "*.safetensors"))
    metrics = found(model, tmp_path / "omop")
    assert [metrics["canary_regenerated", n] for n in (1, 2, 4, 8, 16)] == [
        1, 0, 0, 0, 2,
    ]  # fmt: skip
    # samples of another model say nothing
    sampled_by("0" * 64)
    assert np.isnan(found(model, tmp_path / "omop")["canary_regenerated", 1])


def test_a_model_without_canaries_is_not_asked(models):
    assert found(models["without"]) == {}


def test_a_model_that_is_trained_further_keeps_its_record(data, models, tmp_path):
    further = {"num_train_epochs": 1, "bf16": False}
    with pytest.raises(InputError, match="on canaries already: leave out --canaries"):
        run(
            data, tmp_path / "no", model_name_or_path=models["with"], canaries=5,
            **further,
        )  # fmt: skip
    run(data, tmp_path / "more", model_name_or_path=models["with"], **further)
    assert read_canaries(tmp_path / "more").equals(read_canaries(models["with"]))
    assert read_manifest(tmp_path / "more")["result"]["canary_copies"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"canaries": 7}, "--canaries 7: 0, or a multiple of 5"),
        ({"canaries": -5}, "--canaries -5: 0, or a multiple of 5"),
        ({"canaries": 5, "max_position_embeddings": 40}, "have up to 48 tokens"),
    ],
)
def test_wrong_numbers_are_one_line(data, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as error:
        run(data, tmp_path / "model", **flags)
    assert "\n" not in str(error.value)
