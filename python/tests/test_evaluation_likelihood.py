"""What a model finds likely, against sums by hand and scikit-learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import numpy as np
import pytest
from omop_gpt import nats
from omop_gpt.evaluation import likelihood
from omop_gpt.evaluation.likelihood import Reading, measure_attack, measure_fit
from omop_gpt.evaluation.results import PROFILES, Results
from omop_gpt.grammar import Grammar
from omop_gpt.packing import read_chunks, read_histories
from sklearn.metrics import roc_auc_score
from test_packing import make_language, make_split
from test_train import run

PROFILE = dataclasses.replace(PROFILES["smoke"], targets=60, bootstraps=200)
SPLITS = ("train", "validation", "holdout", "reserve")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Eighty histories of each split, some longer than the context, and a model."""
    folder = tmp_path_factory.mktemp("likelihood")
    grammar = make_language(folder / "patient_sequence" / "vocabulary")
    for seed, split in enumerate(SPLITS):
        make_split(
            folder / "patient_sequence" / split, grammar, people=80, seed=seed,
            longest=20,
        )  # fmt: skip
    run(folder / "patient_sequence", folder / "model", num_train_epochs=1, bf16=False)
    return folder


@pytest.fixture(scope="module")
def found(root):
    return likelihood.read(duckdb.connect(), root / "model", root, PROFILE)


def test_a_reading_is_what_the_model_says_of_each_person(root, found):
    grammar = Grammar.load(root / "model" / "vocabulary")
    for split, reading in zip(("train", "holdout"), found[1], strict=True):
        folder = root / "patient_sequence" / split
        of_model = nats.nats_of_persons(root / "model", folder, per_token=True)
        histories = dict(read_histories(nats.files_of(folder), grammar))
        assert max(map(len, histories.values())) > 96  # the context
        lengths = sorted(len(ids) - 1 for ids in histories.values())
        assert reading.counts.shape[0] == PROFILE.targets < len(histories)
        assert set(reading.counts.sum(axis=1)) <= set(lengths)
        # sixty of the eighty, each with its own loss
        told = np.round(list(of_model.values()), 4)
        assert set(np.round(reading.loss, 4)) <= set(told)
        # not the first of the files
        first = np.round([of_model[person] for person in list(histories)[:60]], 4)
        assert set(np.round(reading.loss, 4)) != set(first)


def test_counting_is_that_of_the_baselines(root, monkeypatch):
    everybody = dataclasses.replace(PROFILE, targets=80)
    _, (_, others) = likelihood.read(duckdb.connect(), root / "model", root, everybody)
    grammar = Grammar.load(root / "model" / "vocabulary")

    def bigram(of: str) -> float:
        """Nats per person of the holdout, whose histories are not cut."""
        chunks = (
            read_chunks(root / "patient_sequence" / split, grammar, max_tokens=1 << 30)
            for split in (of, "holdout")
        )
        return nats.baselines(*chunks, grammar.vocab_size)["bigram"]

    assert others.by_counting.sum() / 80 == pytest.approx(bigram("train"))
    per_person = others.difficulty * others.counts.sum(axis=1)
    assert per_person.sum() / 80 == pytest.approx(bigram("reserve"))


def test_classes_are_roles_and_tables(root, found):
    grammar = Grammar.load(root / "model" / "vocabulary")
    names, class_of = likelihood.classes_of(grammar)
    assert names == found[0]
    assert "event" not in names
    assert {"condition_occurrence", "gap", "visit", "structure"} <= set(names)
    (death,) = np.flatnonzero(grammar.has_kind("death"))
    assert names[class_of[death]] == "death"
    counts = np.zeros(len(names))
    for split in ("train",):
        files = nats.files_of(root / "patient_sequence" / split)
        for _, ids in read_histories(files, grammar):
            for token in ids[1:]:
                counts[class_of[token]] += 1
    everybody = dataclasses.replace(PROFILE, targets=80)
    _, (members, _) = likelihood.read(duckdb.connect(), root / "model", root, everybody)
    assert members.counts.sum(axis=0).tolist() == counts.tolist()


def test_the_models_own_loss_tells_members():
    """Whom a model knows is told the better by what anybody would foretell."""
    rng = np.random.default_rng(0)
    readings = []
    for count, learnt in ((400, 0.5), (300, 0.0)):
        hard = rng.normal(3, 1, size=count)
        loss = hard - learnt + rng.normal(0, 0.3, size=count)
        readings.append(
            Reading(
                counts=np.full((count, 2), 5.0),
                nats=np.column_stack([4 * loss, 6 * loss]),
                by_counting=np.zeros((count, 2)),
                difficulty=hard,
            )
        )
    results = Results()
    measure_attack(readings, PROFILE, results)
    metrics = {m.name: m for m in results.metrics}
    truth = np.repeat([1, 0], [400, 300])
    loss, hard = (
        np.concatenate([getattr(side, name) for side in readings])
        for name in ("loss", "difficulty")
    )
    area = metrics["model_membership_auc"]
    assert area.value == pytest.approx(roc_auc_score(truth, hard / 2 - loss))
    assert area.value > roc_auc_score(truth, -loss) + 0.05
    assert area.ci_low < area.value < area.ci_high
    members, others = (side.loss for side in readings)
    gap = metrics["model_loss_gap"]
    assert gap.value == pytest.approx(others.mean() - members.mean())
    error = np.sqrt(members.var() / 400 + others.var() / 300)
    assert gap.ci_high == pytest.approx(gap.value + 1.96 * error, rel=0.1)
    assert {m.cohort for m in results.metrics} == {"synthetic"}


def test_how_well_a_model_knows_histories():
    counts = np.array([[2.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    others = Reading(
        counts=counts, nats=np.array([[3.0, 0.0, 2.0], [6.0, 0.0, 1.0]]),
        by_counting=2 * counts, difficulty=np.zeros(2),
    )  # fmt: skip
    members = dataclasses.replace(others, nats=others.nats / 2)
    results = Results()
    measure_fit(["gap", "nothing", "visit"], (members, others), results)
    told = {(m.name, m.stratum): m.value for m in results.metrics}
    assert told == {
        ("holdout_nats", "all"): 6.0,
        ("holdout_nats", "gap"): 4.5,
        ("holdout_nats", "visit"): 1.5,
        ("holdout_nats_per_token", "all"): 1.5,
        ("holdout_nats_per_token", "gap"): 1.5,
        ("holdout_nats_per_token", "visit"): 1.5,
        ("holdout_bigram_nats_per_token", "all"): 2.0,
        ("holdout_bigram_nats_per_token", "gap"): 2.0,
        ("holdout_bigram_nats_per_token", "visit"): 2.0,
        ("train_nats_per_token", "all"): 0.75,
        ("train_nats_per_token", "gap"): 0.75,
        ("train_nats_per_token", "visit"): 0.75,
    }


def test_of_nobody_nothing_is_said(root, tmp_path):
    folder = tmp_path / "patient_sequence"
    folder.mkdir()
    for split in ("train", "reserve"):
        (folder / split).symlink_to(root / "patient_sequence" / split)
    names, readings = likelihood.read(
        duckdb.connect(), root / "model", tmp_path, PROFILE
    )
    results = Results()
    measure_attack(readings, PROFILE, results)
    assert all(np.isnan(m.value) and m.n == 0 for m in results.metrics)
    assert len(results.metrics) == 4
    measure_fit(names, readings, results)
    told = {(m.name, m.stratum): m.value for m in results.metrics}
    assert np.isnan(told["holdout_nats", "all"])
    assert told["train_nats_per_token", "all"] > 0
