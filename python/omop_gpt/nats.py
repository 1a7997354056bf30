"""Nats: what a model leaves unsaid of a patient, and what counting alone would leave.

Lower is better. Unigram and bigram are the baselines that any model must beat; they are
counted on the training split, over the very tokens that a model predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from omop_gpt.grammar import Grammar, overlap_of
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


@dataclass(frozen=True)
class Bigram:
    """A token by the one before it, as counted in histories.

    Where few tokens were seen after one, it falls back on the unigram, which adds one
    to each count, as Witten and Bell (1991) do: with the weight of the different tokens
    that were.
    """

    vocab_size: int
    keys: np.ndarray  # before * vocab_size + token, ascending
    counts: np.ndarray

    @classmethod
    def of(cls, chunks: Chunks, vocab_size: int) -> Bigram:
        """Count the tokens that a model predicts."""
        return cls(vocab_size, *pairs_of(chunks, vocab_size))

    @cached_property
    def unigram(self) -> np.ndarray:
        """Chance of each token, (V,)."""
        times = np.bincount(self.keys % self.vocab_size, self.counts, self.vocab_size)
        return (times + 1) / (times.sum() + self.vocab_size)

    @cached_property
    def followed(self) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens, and how many different ones, follow each: (V,) each."""
        before = self.keys // self.vocab_size
        return (
            np.bincount(before, self.counts, self.vocab_size),
            np.bincount(before, minlength=self.vocab_size),
        )

    def chance(self, before: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Chance of tokens (N,) after others (N,)."""
        asked = before.astype(np.int64) * self.vocab_size + token
        seen = np.zeros(len(asked))
        if len(self.keys):
            where = np.searchsorted(self.keys, asked).clip(max=len(self.keys) - 1)
            seen = np.where(self.keys[where] == asked, self.counts[where], 0)
        total, kinds = (numbers[before] for numbers in self.followed)
        spread = np.maximum(kinds, 1)  # a token never seen before another
        return (seen + spread * self.unigram[token]) / (total + spread)


def baselines(train: Chunks, held_out: Chunks, vocab_size: int) -> dict[str, float]:
    """Nats per held-out patient of a unigram and a bigram of the training split."""
    counted = Bigram.of(train, vocab_size)
    asked, weight = pairs_of(held_out, vocab_size)
    before, token = asked // vocab_size, asked % vocab_size
    chances = {
        "unigram": counted.unigram[token],
        "bigram": counted.chance(before, token),
    }
    return {
        name: float(-(weight @ np.log(chance)) / held_out.patients)
        for name, chance in chances.items()
    }


def files_of(sequences: str | Path) -> list[Path]:
    """Return the files of a folder of sequences. Raises InputError without one."""
    files = sorted(Path(sequences).glob("*.parquet"))
    if not files:
        raise InputError(f"{sequences} holds no sequences: name a folder of a split.")
    return files


@torch.inference_mode()
def losses(
    model_folder: str | Path, sequences: str | Path, *, given: int = 1
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield persons of a folder of sequences, and tokens and their nats under a model.

    (N,) each: the tokens after the first `given`. A history longer than the context is
    read in chunks, as sampling goes on with it; a person comes once for each. Raises
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
    waiting: list[tuple[int, np.ndarray, int]] = []

    def score() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        batch = pack([(ids, known) for _, ids, known in waiting])
        labels = batch.pop("labels")[0].to(device)
        borders = batch["cu_seq_lens_q"].tolist()
        del batch["token_count"]
        batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}
        logits = model(**batch, use_cache=False).logits[0].float()
        loss = torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], reduction="none"
        )
        nats = loss.double().cpu().numpy()
        for (person, ids, known), start, end in zip(
            waiting, borders[:-1], borders[1:], strict=True
        ):
            yield person, ids[known:], nats[start + known - 1 : end - 1]
        waiting.clear()

    for person, history in read_histories(files_of(sequences), grammar):
        for ids, known in grammar.chunks(history, context, overlap=overlap_of(context)):
            waiting.append((person, ids, known or given))
            if sum(len(ids) for _, ids, _ in waiting) >= PACK:
                yield from score()
    if waiting:
        yield from score()


def nats_of_persons(
    model_folder: str | Path,
    sequences: str | Path,
    *,
    given: int = 1,
    per_token: bool = False,
) -> dict[int, float]:
    """Nats of each person in a folder of sequences, under a trained model.

    Of the tokens after the first `given`, in sum or per token; see `losses`.
    """
    nats: dict[int, float] = {}
    asked: dict[int, int] = {}
    for person, ids, found in losses(model_folder, sequences, given=given):
        nats[person] = nats.get(person, 0.0) + float(found.sum())
        asked[person] = asked.get(person, 0) + len(ids)
    if per_token:
        return {person: total / max(asked[person], 1) for person, total in nats.items()}
    return nats
