"""Nats: what a model leaves unsaid of a patient, and what counting alone would leave.

Lower is better. Unigram and bigram are the baselines that any model must beat; they are
counted on the training split, over the very tokens that a model predicts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from omop_gpt.grammar import Grammar
from omop_gpt.packing import Chunks, pack, read_histories
from omop_gpt.step import InputError
from omop_gpt.trainer import ATTENTION, check_vocabulary

BLOCK = 1 << 24  # tokens that are counted at once
PACK = 8192  # tokens of a forward pass


def predicted(chunks: Chunks) -> np.ndarray:
    """Tell which tokens a model predicts: (T,) bool over `chunks.tokens`.

    All but each patient's first and the prompts of later chunks.
    """
    found = np.ones(len(chunks.tokens), dtype=bool)
    contexts = np.maximum(chunks.contexts, 1)
    ends = np.cumsum(contexts, dtype=np.int64)
    offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
        ends - contexts, contexts
    )
    found[np.repeat(chunks.starts, contexts) + offsets] = False
    return found


def pairs_of(chunks: Chunks, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Count pairs of a token and the predicted one after it.

    Returns `before * vocab_size + token`, ascending (P,) int64, and counts (P,) int64.
    """
    places = np.flatnonzero(predicted(chunks))
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(places), BLOCK):
        here = places[start : start + BLOCK]
        found = chunks.tokens[here - 1].astype(np.int64) * vocab_size
        found, times = np.unique(found + chunks.tokens[here], return_counts=True)
        both, where = np.unique(np.concatenate([keys, found]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, times])).astype(np.int64)
        keys = both
    return keys, counts


def baselines(train: Chunks, held_out: Chunks, vocab_size: int) -> dict[str, float]:
    """Nats per held-out patient of a unigram and a bigram of the training split.

    The unigram adds one to each count. The bigram falls back on it as Witten and Bell
    (1991) do: with the weight of the different tokens that were seen after this one.
    """
    keys, counts = pairs_of(train, vocab_size)
    before, token = keys // vocab_size, keys % vocab_size
    times = np.bincount(token, counts, vocab_size)
    unigram = (times + 1) / (times.sum() + vocab_size)
    followed = np.bincount(before, counts, vocab_size)
    kinds = np.bincount(before, minlength=vocab_size)
    asked, weight = pairs_of(held_out, vocab_size)
    before, token = asked // vocab_size, asked % vocab_size
    where = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
    seen = np.where(keys[where] == asked, counts[where], 0) if len(keys) else 0
    spread = np.maximum(kinds[before], 1)  # a token never seen before another
    bigram = (seen + spread * unigram[token]) / (followed[before] + spread)
    patients = held_out.patients
    return {
        "unigram": float(-(weight @ np.log(unigram[token])) / patients),
        "bigram": float(-(weight @ np.log(bigram)) / patients),
    }


@torch.inference_mode()
def nats_of_persons(
    model_folder: str | Path,
    sequences: str | Path,
    *,
    given: int = 1,
    most: int | None = None,
    per_token: bool = False,
) -> dict[int, float]:
    """Nats of each person in a folder of sequences, under a trained model.

    Of the tokens after the first `given`, in sum or per token. Persons whose history is
    longer than the context are left out; at most so many others are asked. Raises
    InputError for another vocabulary.
    """
    folder = Path(model_folder)
    grammar = Grammar.load(folder / "vocabulary")
    check_vocabulary(folder, grammar)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=ATTENTION,
        dtype=torch.float32,
        local_files_only=True,
    )
    model = model.to(device).eval()
    context = model.config.max_position_embeddings
    files = sorted(Path(sequences).glob("*.parquet"))
    if not files:
        raise InputError(f"{sequences} holds no sequences: name a folder of a split.")
    nats: dict[int, float] = {}
    waiting: list[tuple[int, np.ndarray]] = []

    def score() -> None:
        batch = pack([(ids, given) for _, ids in waiting])
        labels = batch.pop("labels")[0].to(device)
        borders = batch["cu_seq_lens_q"].tolist()
        del batch["token_count"]
        batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        logits = model(**batch, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], reduction="none"
        )
        sums = torch.cat([loss.new_zeros(1), loss]).double().cumsum(0)
        for (person, _), start, end in zip(
            waiting, borders[:-1], borders[1:], strict=True
        ):
            asked = end - start - given if per_token else 1
            nats[person] = float(sums[end - 1] - sums[start]) / max(asked, 1)
        waiting.clear()

    for person, history in read_histories(files, grammar):
        if most is not None and len(nats) + len(waiting) >= most:
            break
        if len(history) <= context:
            waiting.append((person, history))
        if sum(len(ids) for _, ids in waiting) >= PACK:
            score()
    if waiting:
        score()
    return nats
