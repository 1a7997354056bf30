"""What a sampled history starts with: nothing, demographics, or a real history so far.

Knows files of sequences and the grammar; nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omop_gpt.grammar import Grammar, day_of
from omop_gpt.packing import read_histories
from omop_gpt.step import InputError

PROMPT_TOKENS = 6  # [BOS] year age gender race ethnicity


@dataclass(frozen=True)
class Prompt:
    """A history that is written already, and what the model is shown of it."""

    history: np.ndarray  # (T,) int64, [BOS] first
    shown: Sequence[int]  # its last chunk, with what a chunk is told
    contexts: int = 1  # 1: all of it is shown
    person_id: int | None = None  # whose history it is
    first_day: int | None = None  # nothing new is before it; None: as the rules say
    last_day: int | None = None  # beyond it a history need not be written


class Prompts:
    """The prompts that patients are dealt out: patient n has the same one anywhere."""

    def __init__(self, grammar: Grammar, heads: np.ndarray | None = None) -> None:
        """`heads` (N, 6): demographics to draw from; None: [BOS] alone."""
        self.heads = np.array([[grammar.bos_id]]) if heads is None else heads

    def __call__(self, _patient: int, uniform: Callable[[], float]) -> Prompt:
        """Return a patient's prompt; `uniform` draws a number for it, from 0 to 1."""
        number = int(uniform() * len(self.heads)) if len(self.heads) > 1 else 0
        return Prompt(self.heads[number], self.heads[number].tolist())


class Forecasts:
    """Real histories up to an index date, each of them so many times."""

    def __init__(
        self,
        histories: Sequence[tuple[int, np.ndarray]],
        grammar: Grammar,
        *,
        rollouts: int,
        known: int,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """`histories`: person ids and what is known of them; `known`: tokens shown.

        `spans`: first and last day of each that is to be written, if not the same.
        """
        self.rollouts = rollouts
        self.prompts = []
        days = spans or [(None, None)] * len(histories)
        for (person_id, history), span in zip(histories, days, strict=True):
            shown = grammar.tail(history, known).tolist()
            contexts = 1 if len(history) <= known else 2
            self.prompts.append(Prompt(history, shown, contexts, person_id, *span))

    def __len__(self) -> int:
        """Count the forecasts that there are: histories times roll-outs."""
        return len(self.prompts) * self.rollouts

    def __call__(self, patient: int, _uniform: Callable[[], float]) -> Prompt:
        """Return a patient's prompt: one person's roll-outs follow one another."""
        return self.prompts[patient // self.rollouts]


def sequence_files(path: str, flag: str) -> list[Path]:
    """Files of sequences below a folder. Raises InputError where one is none."""
    files = sorted(Path(path).glob("**/*.parquet"))
    files = [file for file in files if file.parent.name != "vocabulary"]
    if not files:
        raise InputError(f"--{flag} {path} holds no sequences: name patient_sequence.")
    for file in files:
        if "token_ids" not in pq.read_schema(file).names:
            raise InputError(
                f"--{flag}: {file} has no column token_ids: name "
                "patient_sequence/train."
            )
    return files


def read_demographics(path: str, grammar: Grammar) -> np.ndarray | None:
    """Demographics of the sequences in a folder: (N, 6) token ids; empty path: None.

    Without those that are unknown, which sampling does not write. Raises InputError if
    there are none, or they are in another vocabulary.
    """
    if not path:
        return None
    heads = [np.empty((0, PROMPT_TOKENS), np.int64)]
    for file in sequence_files(path, "demographic_data_path"):
        lists = pq.read_table(file, columns=["token_ids"])["token_ids"]
        is_long = pc.greater_equal(pc.list_value_length(lists), PROMPT_TOKENS)
        lists = lists.filter(is_long)
        flat = pc.list_flatten(pc.list_slice(lists, 0, PROMPT_TOKENS))
        heads.append(flat.to_numpy().reshape(-1, PROMPT_TOKENS))
    prompts = np.concatenate(heads)
    legal = (prompts < grammar.vocab_size).all(axis=1)
    state = np.full(len(prompts), grammar.states.index("start"))
    is_sampled = legal.copy()
    for token_ids in np.where(legal[:, None], prompts, 0).T:
        kind = grammar.kind[token_ids]
        is_sampled &= grammar.is_sampled[state, kind]
        state = grammar.next_state[state, kind]
        legal &= state >= 0
    if not legal.all():
        raise InputError(
            f"--demographic_data_path {path} was written with another vocabulary than "
            f"{grammar.folder}: name the data that the model was trained on."
        )
    if not is_sampled.any():
        raise InputError(
            f"--demographic_data_path {path} holds no demographics: name "
            "patient_sequence/train, or leave the flag out."
        )
    return prompts[is_sampled]


def read_known(
    path: str, grammar: Grammar, index_date: str
) -> list[tuple[int, np.ndarray]]:
    """Person ids and histories up to the end of a day, of those who have one by then.

    A history is cut before its first move or gap past that day, or before [EOS]: that
    nothing more is known is an outcome too. Who is dead by then has no forecast, nor
    has who starts later, or whose demographics are unknown. Raises InputError if nobody
    is left.
    """
    last = day_of(index_date)
    found = []
    files = sequence_files(path, "history_data_path")
    for person_id, history in read_histories(files, grammar):
        if not grammar.is_history(history):
            raise InputError(
                f"--history_data_path {path} was written with another vocabulary than "
                f"{grammar.folder}: name the data of the model's encode."
            )
        stop = known_until(history, grammar, last)
        if stop > PROMPT_TOKENS:
            # a copy, so that the rest of its file need not be kept
            found.append((person_id, history[:stop].astype(np.int64)))
    if not found:
        raise InputError(
            f"--history_data_path {path} has nobody with a history up to {index_date} "
            "and alive: give another --index_date."
        )
    return sorted(found, key=lambda row: row[0])


def known_until(history: np.ndarray, grammar: Grammar, last: int) -> int:
    """Count the tokens of a history up to the end of a day, for which it can go on.

    0 where the person is dead by then, or sampling could not have begun it.
    """
    states = grammar.walk(history)
    begins = states[:PROMPT_TOKENS], grammar.kind[history[:PROMPT_TOKENS]]
    if not grammar.is_sampled[begins].all():
        return 0
    moves, cursor = grammar.moves_cursor[history], grammar.cursor(history)
    in_number = grammar.places[states[1:]] == "days"
    # where a number of days is complete, and lies beyond
    beyond = np.flatnonzero(moves & ~in_number & (cursor > last))
    if not len(beyond):
        is_dead = grammar.has_kind("death")[history].any()
        return 0 if is_dead else len(history) - 1
    stop = int(beyond[0])
    while grammar.places[states[stop]] == "days":
        stop -= 1
    return stop
