"""Canaries: made-up patients to train on, to see what a model learns by heart.

Carlini et al. (2019), "The Secret Sharer": what was drawn like a canary and not trained
on, a decoy, says how likely a canary would be to a model that never saw it. Both come
from one draw, and both stay in the model's folder: no real person is in them. Nothing
here knows models or files of real patients.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.packing import Chunks

FOLDER = "canaries"  # of a model, in the form of a split of sequences
MULTIPLICITIES = (1, 2, 4, 8, 16)  # times that a fifth of the canaries each is seen
DECOYS = 1_000
TOKENS = 48  # of a canary, at most: it fits any context that the sampler takes
STREAM = 4_711  # tells these numbers from others of the same seed


def draw_canaries(grammar: Grammar, count: int, seed: int) -> pa.Table:
    """Draw so many canaries, and the decoys: rows as of a split, and `multiplicity`.

    `multiplicity` is 0 for a decoy. `person_id` counts from 0.
    """
    histories = draw_histories(grammar, count + DECOYS, seed)
    times = [MULTIPLICITIES[number % len(MULTIPLICITIES)] for number in range(count)]
    return pa.table(
        {
            "person_id": pa.array(range(len(histories)), pa.int64()),
            "token_ids": pa.array(histories, pa.list_(pa.int32())),
            "token_count": pa.array(map(len, histories), pa.int32()),
            "multiplicity": pa.array(times + [0] * DECOYS, pa.int32()),
        }
    )


def draw_histories(grammar: Grammar, count: int, seed: int) -> list[np.ndarray]:
    """Walk at random through what a sampler may write: `count` whole histories.

    At each step a role is drawn of those that may follow, and a token of it, both
    evenly: legal, and like nobody. A history goes on until only its shortest end fits.
    """
    mask = Mask(grammar, rows=count, max_tokens=TOKENS)
    _, role = np.unique(grammar.roles, return_inverse=True)
    is_role = torch.eye(role.max() + 1, dtype=torch.float64)[role]  # (V, roles)
    closes = torch.as_tensor(grammar.has_kind("eos", "death"))
    rng = np.random.default_rng([seed, STREAM])
    drawn = []
    while bool((goes_on := mask.state != mask.finish).any()):
        allowed, _, ending = mask.allowed()
        rest = allowed & ~closes
        ending |= ~rest.any(dim=1)
        weights = torch.where(ending[:, None], allowed, rest).double()
        weights /= (weights @ is_role).clamp(min=1)[:, role]
        weights[~goes_on, grammar.pad_id] = 1
        sums = weights.cumsum(dim=1)
        # just below the sum: rounding must never pick a token of no weight
        target = torch.as_tensor(rng.random(count)) * sums[:, -1] * (1 - 2.0**-50)
        token_ids = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
        mask.advance(token_ids, goes_on)
        drawn.append(token_ids)
    histories = torch.stack(drawn, dim=1).numpy().astype(np.int32)
    return [row[row != grammar.pad_id] for row in histories]


def insert_canaries(chunks: Chunks, canaries: pa.Table) -> Chunks:
    """Add each canary to a split, as often as its multiplicity says."""
    times = canaries["multiplicity"].to_numpy()
    copies = canaries.take(np.repeat(np.arange(len(times)), times))
    lengths = copies["token_count"].to_numpy()
    starts = len(chunks.tokens) + np.cumsum(lengths, dtype=np.int64) - lengths
    more = {
        "tokens": pc.list_flatten(copies["token_ids"]).to_numpy(),
        "starts": starts,
        "lengths": lengths,
        "contexts": np.zeros_like(lengths),
    }
    return dataclasses.replace(
        chunks,
        patients=chunks.patients + len(copies),
        **{
            name: np.concatenate([getattr(chunks, name), values])
            for name, values in more.items()
        },
    )


def write_canaries(canaries: pa.Table, model_folder: Path) -> None:
    """Put canaries and decoys into a model's folder."""
    folder = model_folder / FOLDER
    folder.mkdir()
    pq.write_table(canaries, folder / "part-00000.parquet")


def read_canaries(model_folder: Path) -> pa.Table | None:
    """Return the canaries and decoys of a model; None: it was trained without."""
    folder = model_folder / FOLDER
    return pq.read_table(folder) if folder.is_dir() else None
