"""What the model itself finds likely: how well it knows histories, and whose.

One pass over a sample of the training and of the holdout. Persons of the holdout tell
what the model has learnt of the language; that it finds those of the training likelier
still is what it has learnt of them (privacy.py has the attacks on a release).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.auroc import person_weights
from omop_gpt.evaluation.cohorts import HOLDOUT, RESERVE, SYNTHETIC, TRAIN
from omop_gpt.evaluation.privacy import LEAST_TARGETS, add_attack, add_difference

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results
    from omop_gpt.grammar import Grammar

SPLITS = (TRAIN, HOLDOUT)  # members, and others
CALIBRATION = 0.5  # of the difficulty, that is taken off


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model leaves unsaid of P persons, in nats; tokens are of C classes.

    `counts`, `nats`: (P, C), tokens and the model's nats of them. `by_counting`: the
    same of a bigram of the training. `difficulty`: (P,), nats per token of a bigram of
    the reserve, whom no model saw.
    """

    counts: np.ndarray
    nats: np.ndarray
    by_counting: np.ndarray
    difficulty: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Nats per token under the model, (P,)."""
        return self.nats.sum(axis=1) / np.maximum(self.counts.sum(axis=1), 1)


def classes_of(grammar: Grammar) -> tuple[list[str], np.ndarray]:
    """Name the classes of tokens, and tell that of each token, (V,).

    The role of its kind in the grammar; of an event, its table.
    """
    names = np.where(
        grammar.has_kind("event"), grammar.source_table.astype(str), grammar.roles
    )
    found, places = np.unique(names, return_inverse=True)
    return found.tolist(), places


def read(
    con: duckdb.DuckDBPyConnection,
    model_folder: Path,
    real_folder: Path,
    profile: Profile,
) -> tuple[list[str], tuple[Reading, Reading]]:
    """Let the model read targets of the training and of the holdout, as many of each.

    Returns the classes of tokens, and a reading of each split.
    """
    from omop_gpt.grammar import Grammar
    from omop_gpt.nats import Bigram
    from omop_gpt.packing import read_chunks

    grammar = Grammar.load(model_folder / "vocabulary")
    histories = Path(real_folder) / "patient_sequence"
    whole = np.iinfo(np.int32).max  # no history is cut
    counted = [
        Bigram.of(
            read_chunks(histories / split, grammar, max_tokens=whole),
            grammar.vocab_size,
        )
        for split in (TRAIN, RESERVE)
    ]
    names, class_of = classes_of(grammar)
    readings = []
    for split in SPLITS:
        sequences = str(histories / split).replace("'", "''")
        with tempfile.TemporaryDirectory() as folder:
            if any((histories / split).glob("*.parquet")):
                # files are in order of persons, and the first may be of one kind
                con.execute(
                    f"""
                    copy (
                        from read_parquet('{sequences}/*.parquet')
                        order by md5('target:{split}:' || person_id), person_id
                        limit {profile.targets}
                    ) to '{folder}/targets.parquet'
                    """
                )
            readings.append(
                reading(model_folder, Path(folder), grammar, counted, class_of)
            )
    return names, tuple(readings)


def reading(
    model_folder: Path,
    folder: Path,
    grammar: Grammar,
    counted: Sequence,
    class_of: np.ndarray,
) -> Reading:
    """Read all persons of a folder of sequences, which may have none."""
    from omop_gpt.nats import losses
    from omop_gpt.packing import read_histories

    files = sorted(folder.glob("*.parquet"))
    histories = dict(read_histories(files, grammar))
    place = {person: number for number, person in enumerate(histories)}
    shape = (len(histories), int(class_of.max(initial=0)) + 1)
    counts, nats, by_counting = np.zeros((3, *shape))
    difficulty = np.zeros(len(histories))
    for person, ids in histories.items():
        row, classes = place[person], class_of[ids[1:]]
        train, reserve = (-np.log(one.chance(ids[:-1], ids[1:])) for one in counted)
        counts[row] = np.bincount(classes, minlength=shape[1])
        by_counting[row] = np.bincount(classes, train, shape[1])
        difficulty[row] = reserve.mean()
    for person, ids, found in losses(model_folder, folder) if files else ():
        nats[place[person]] += np.bincount(class_of[ids], found, shape[1])
    return Reading(
        counts=counts, nats=nats, by_counting=by_counting, difficulty=difficulty
    )


def measure_attack(
    readings: Sequence[Reading], profile: Profile, results: Results
) -> None:
    """Attack with the released model itself: members are those it finds likely.

    The score of a target is how likely the model finds it, less half of how likely a
    bigram of the reserve does: a history that anybody would foretell does not count as
    known (calibrated by difficulty, as Watson et al., 2022). The whole of it would be
    too much of a rough guess: half finds more members than all or nothing. Adds
    model_membership_* and, in nats per token of the model alone, model_loss_gap.
    """
    scores = tuple(CALIBRATION * side.difficulty - side.loss for side in readings)
    least = min(len(side) for side in scores)
    if least < LEAST_TARGETS:
        for name in ("auc", "tpr_1", "tpr_01"):
            results.add(f"model_membership_{name}", SYNTHETIC, np.nan, n=least)
        results.add("model_loss_gap", SYNTHETIC, np.nan, n=least)
        return
    weights = tuple(
        person_weights(len(side), profile.bootstraps, profile.seed + number)
        for number, side in enumerate(scores)
    )
    add_attack("model_membership", SYNTHETIC, scores, weights, results)
    likely = tuple(-side.loss for side in readings)
    add_difference("model_loss_gap", SYNTHETIC, likely, weights, results)


def measure_fit(
    names: Sequence[str], readings: Sequence[Reading], results: Results
) -> None:
    """Tell how well the model knows histories of persons whom it never saw.

    Adds holdout_nats, of a person, in all and by class of tokens, and the same per
    token, holdout_nats_per_token; beside them what a bigram of the training reaches
    (holdout_bigram_nats_per_token), and the model with persons of the training
    (train_nats_per_token).
    """
    members, others = readings

    def means(nats: np.ndarray, counts: np.ndarray) -> dict[str, float]:
        counts = counts.sum(axis=0)
        per_token = np.divide(
            nats.sum(axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0
        )
        total = nats.sum() / counts.sum() if counts.sum() else np.nan
        return {"all": total} | {
            name: value
            for name, value, count in zip(names, per_token, counts, strict=True)
            if count
        }

    persons = len(others.counts)
    found = {
        "holdout_nats_per_token": means(others.nats, others.counts),
        "holdout_bigram_nats_per_token": means(others.by_counting, others.counts),
        "train_nats_per_token": means(members.nats, members.counts),
    }
    for name, values in found.items():
        of = members if name.startswith("train") else others
        for stratum, value in values.items():
            results.add(name, SYNTHETIC, value, stratum=stratum, n=len(of.counts))
    by_class = others.nats.sum(axis=0) / max(persons, 1)
    results.add(
        "holdout_nats", SYNTHETIC, by_class.sum() if persons else np.nan, n=persons
    )
    for name, value in zip(names, by_class):
        if value:
            results.add("holdout_nats", SYNTHETIC, value, stratum=name, n=persons)
