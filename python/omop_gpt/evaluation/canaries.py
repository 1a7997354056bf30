"""Canaries: made-up patients of the training, and how well the model knows them.

Exposure (Carlini et al., 2019, "The Secret Sharer"): the rank of a canary among decoys,
which come from the same draw and were not trained on, by what the model leaves unsaid
of them. No real person is asked about. Knows the model's folder and its samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import mannwhitneyu

from omop_gpt.canaries import FOLDER, read_canaries
from omop_gpt.evaluation.cohorts import SYNTHETIC
from omop_gpt.evaluation.results import Results
from omop_gpt.grammar import Grammar
from omop_gpt.step import folder_fingerprint, read_manifest


def measure_canaries(
    model_folder: Path, synthetic_folder: Path, results: Results
) -> None:
    """Tell what the model learnt by heart of its canaries, if it has any.

    Strata are how often an epoch showed them. Adds canary_rank (share of decoys that
    are likelier, 0.5 by chance), canary_rank_p (of that by chance or lower, Mann and
    Whitney), canary_exposure (mean of log2 of decoys and canary over its place among
    them, 1.4 by chance) and canary_regenerated (canaries of which the samples have the
    very tokens); and curve canary_exposures.
    """
    canaries = read_canaries(model_folder)
    if canaries is None:
        return
    from omop_gpt.nats import nats_of_persons

    found = nats_of_persons(model_folder, model_folder / FOLDER, per_token=True)
    nats = np.array([found[number] for number in canaries["person_id"].to_pylist()])
    times = canaries["multiplicity"].to_numpy()
    decoys = np.sort(nats[times == 0])
    again = regenerated(canaries, model_folder, synthetic_folder)
    for multiplicity in np.unique(times[times > 0]):
        ours = nats[times == multiplicity]
        likelier, not_rarer = (
            np.searchsorted(decoys, ours, side) for side in ("left", "right")
        )
        exposure = np.log2((len(decoys) + 1) / (1 + likelier))
        metrics = {
            "canary_rank": np.mean(likelier + not_rarer) / (2 * len(decoys)),
            "canary_rank_p": mannwhitneyu(ours, decoys, alternative="less").pvalue,
            "canary_exposure": exposure.mean(),
            "canary_regenerated": again[times == multiplicity].sum(),
        }
        for name, value in metrics.items():
            results.add(name, SYNTHETIC, value, stratum=str(multiplicity), n=len(ours))
        results.draw(
            "canary_exposures",
            [
                {
                    "cohort": SYNTHETIC,
                    "multiplicity": int(multiplicity),
                    "exposure": float(value),
                    "most": float(np.log2(len(decoys) + 1)),
                }
                for value in exposure
            ],
        )


def regenerated(
    canaries: pa.Table, model_folder: Path, synthetic_folder: Path
) -> np.ndarray:
    """Tell which canaries the samples repeat, token by token: (N,) of 0 and 1.

    The samples are generated_sequences beside the synthetic tables, if this very model
    wrote them; NaN where they are not there.
    """
    from omop_gpt.packing import read_histories

    folder = synthetic_folder.parent / "generated_sequences"
    sampled = (read_manifest(folder) or {}).get("result") or {}
    if sampled.get("model") != folder_fingerprint(model_folder, "*.safetensors"):
        return np.full(len(canaries), np.nan)
    grammar = Grammar.load(model_folder / "vocabulary")
    written = [
        np.array(token_ids, np.int32).tobytes()
        for token_ids in canaries["token_ids"].to_pylist()
    ]
    asked = set(written)
    files = sorted(folder.glob("*.parquet"))
    seen = {
        key
        for _, history in read_histories(files, grammar)
        if (key := history.tobytes()) in asked
    }
    return np.array([key in seen for key in written], float)
