"""What a sample must not be, beside the grammar: a copy, or impossible for a sex.

Counted from the training sequences and from a seed; nothing here knows models.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from omop_gpt.grammar import Grammar, read_csv
from omop_gpt.packing import read_sequences
from omop_gpt.warehouse import project_folder

EXPECTED = 50  # persons who would have an event if sex did not matter; nobody has


class Copies:
    """The runs of so many tokens that training patients have, as 64-bit hashes."""

    def __init__(self, files: list[Path], grammar: Grammar, length: int) -> None:
        """Read the training sequences; 8 bytes a token are kept."""
        self.length = length
        rng = np.random.default_rng(1)
        # odd, so that a run's hash can be had from two sums
        self.base = np.uint64(rng.integers(1 << 62) * 2 + 1)
        self.inverse = np.uint64(pow(int(self.base), -1, 1 << 64))
        self.code = rng.integers(1 << 63, size=grammar.vocab_size, dtype=np.uint64)
        hashes = [np.empty(0, np.uint64)]
        for _, values, counts in sequences(files, grammar):
            runs = self.hashes(values)
            left = np.repeat(np.cumsum(counts), counts) - np.arange(len(values))
            hashes.append(np.unique(runs[left[: len(runs)] >= length]))
        self.known = np.unique(np.concatenate(hashes))

    def hashes(self, token_ids: np.ndarray) -> np.ndarray:
        """Hash each run of `length` tokens: (T,) ids -> (T - length + 1,) uint64."""
        size = max(len(token_ids) - self.length + 1, 0)
        if not size:
            return np.empty(0, np.uint64)
        powers = np.full(len(token_ids), self.base, np.uint64)
        powers[0] = 1
        powers = np.cumprod(powers)
        sums = np.cumsum(self.code[token_ids] * powers)
        sums = np.concatenate([np.zeros(1, np.uint64), sums])
        runs = sums[self.length :] - sums[: -self.length]
        back = np.full(size, self.inverse, np.uint64)
        back[0] = 1
        return runs * np.cumprod(back)

    def are_in(self, token_ids: np.ndarray) -> bool:
        """Tell whether a history repeats a run of a training patient."""
        runs = self.hashes(np.asarray(token_ids))
        where = np.searchsorted(self.known, runs)
        where = np.minimum(where, len(self.known) - 1)
        return bool(len(self.known) and (self.known[where] == runs).any())


def sequences(files: list[Path], grammar: Grammar) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield person ids, tokens and counts of all files, as `read_sequences` does."""
    return chain.from_iterable(read_sequences(file, grammar) for file in files)


def impossible_events(grammar: Grammar, files: list[Path]) -> np.ndarray:
    """Tell which events each gender token rules out: (G + 1, V) bool.

    Row 0 is for who has no gender yet, then one row for each gender token, in order.
    From two sources: the concepts that the OHDSI Data Quality Dashboard calls plausible
    for one gender alone, and events that at least EXPECTED training persons of a gender
    would have had if it did not matter, and nobody had.
    """
    genders = np.flatnonzero(grammar.has_kind("gender"))
    events = grammar.has_kind("event")
    impossible = np.zeros((len(genders) + 1, grammar.vocab_size), dtype=bool)
    plausible = {
        int(row["concept_id"]): int(row["gender_concept_id"])
        for row in read_csv(project_folder() / "seeds/omop/plausible_genders.csv")
    }
    known = set(plausible.values())
    for number, gender in enumerate(genders, start=1):
        if grammar.concept[gender] not in known:  # unknown, other: anything may be
            continue
        others = [c for c, only in plausible.items() if only != grammar.concept[gender]]
        impossible[number] = events & np.isin(grammar.concept, others)
    if files:
        persons, having = np.zeros(len(genders)), np.zeros(impossible.shape)[1:]
        for _, values, counts in sequences(files, grammar):
            owner = np.repeat(np.arange(len(counts)), counts)
            is_gender = grammar.has_kind("gender")[values]
            gender_of = np.searchsorted(genders, values[is_gender])
            persons += np.bincount(gender_of, minlength=len(genders))
            is_event = events[values]
            pairs = owner[is_event] * grammar.vocab_size + values[is_event]
            pairs = np.unique(pairs)
            who, what = pairs // grammar.vocab_size, pairs % grammar.vocab_size
            np.add.at(having, (gender_of[who], what), 1)
        share = persons / max(persons.sum(), 1)
        expected = having.sum(axis=0) * share[:, None]
        impossible[1:] |= events & (having == 0) & (expected >= EXPECTED)
    return impossible
