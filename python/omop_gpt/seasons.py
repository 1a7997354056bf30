"""In which months events happen: a model's guess, put right.

A date is the sum of all gaps before it, and a model does not do that sum modulo a year:
what it writes has no season. So an event's log odds, among those of its table, are
moved by how much more of the training's events it is in the month of the cursor than in
the year. How much of that the model lacks is one number an event, fitted on the
validation split when training ends: the vaccine against influenza needs all of it, a
drug that follows a diagnosis nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel

from omop_gpt.grammar import Grammar, day_of
from omop_gpt.mask import Mask
from omop_gpt.novelty import foretold, runs_of

LEAST = 100  # months in which somebody has an event, from which it may have a season
SHARES = np.arange(0, 1.55, 0.05)  # of the training's months, that are tried
PRIOR = 0.5  # standard deviation of what events lack
TINY = 1e-9
FIRST_DAY, LAST_DAY = day_of("1700-01-01"), day_of("2300-12-31")
Seasons = dict[str, list[float]]  # of each event, what each month adds to its log odds


def fit_seasons(
    model: PreTrainedModel,
    grammar: Grammar,
    training: Iterable[np.ndarray],
    validation: Iterable[np.ndarray],
) -> Seasons:
    """Say what each month adds to the log odds of events; histories are (T,) ids."""
    runs = runs_of(grammar)
    had = count_months(grammar, training)
    came, expected = np.zeros((2, grammar.vocab_size, 12))
    for history in validation:
        numbers = months_of(grammar, history)
        if numbers is None:
            continue
        months = numbers % 12
        for places, labels, logits in foretold(model, grammar, history):
            month = months[places.cpu()]
            for run in runs.values():
                here = (labels >= run.start) & (labels < run.stop)
                if not bool(here.any()):
                    continue
                chances = logits[here, run].softmax(-1).cpu().numpy()
                of = month[here.cpu()]
                np.add.at(came, (labels[here].cpu().numpy(), of), 1)
                for number in np.unique(of):
                    expected[run, number] += chances[of == number].sum(axis=0)
    found = {}
    for run in runs.values():
        index = log_indices(had[run])
        index *= lacking(index, came[run], expected[run])[:, None]
        for event in np.flatnonzero(index.any(axis=1)):
            token = grammar.tokens[run.start + event]
            found[token] = [round(float(value), 3) for value in index[event]]
    return found


def lacking(index: np.ndarray, came: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How much of each index (E, 12) a model lacks: (E,), from SHARES.

    `came`, `expected` (E, 12): how often events came in a month, and by the model. The
    likeliest share of each event, drawn to that of all, as if told by PRIOR.
    """
    scores = np.log(np.maximum(expected, TINY)) + SHARES[:, None, None] * index
    scores -= np.logaddexp.reduce(scores, axis=2, keepdims=True)
    likelihood = (came * scores).sum(axis=2)  # (shares, E)
    has_one = index.any(axis=1)
    of_all = SHARES[likelihood[:, has_one].sum(axis=1).argmax()]
    likelihood -= ((SHARES - of_all) ** 2)[:, None] / (2 * PRIOR**2)
    return SHARES[likelihood.argmax(axis=0)]


def months_of(grammar: Grammar, history: np.ndarray) -> np.ndarray | None:
    """Month in which each token leaves the cursor, by number: (T,); None: no year."""
    if not grammar.has_kind("year")[history].any():
        return None
    return month_number(grammar.cursor(history))


def month_number(days: np.ndarray) -> np.ndarray:
    """Count the months since January 1970, of days since its first."""
    return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def count_months(grammar: Grammar, histories: Iterable[np.ndarray]) -> np.ndarray:
    """Count the months in which somebody has a token, by calendar month: (V, 12).

    Not rows: what somebody has each day of a stay has no season by that.
    """
    counts = np.zeros((grammar.vocab_size, 12), dtype=np.int64)
    is_event = grammar.has_kind("event")
    for history in histories:
        numbers = months_of(grammar, history)
        if numbers is None:
            continue
        places = np.flatnonzero(is_event[history])
        found = np.unique(np.stack([history[places], numbers[places]]), axis=1)
        np.add.at(counts, (found[0], found[1] % 12), 1)
    return counts


def log_indices(counts: np.ndarray) -> np.ndarray:
    """Logarithm of each event's seasonal index, from counts (E, 12): (E, 12).

    Its share of the month's events over that of the year's. What chance explains of
    it is taken off, as James and Stein do (Efron and Morris, 1975): all of it where
    the counts vary no more than chance has them vary, nearly nothing where much more.
    """
    size = counts.sum(axis=1, keepdims=True)
    expected = size * counts.sum(axis=0) / max(counts.sum(), 1)
    distance = ((counts - expected) ** 2 / np.maximum(expected, TINY)).sum(axis=1)
    kept = np.clip(1 - 11 / np.maximum(distance, TINY), 0, 1)
    kept[size[:, 0] < LEAST] = 0
    ratio = (counts + 0.5) / (expected + 0.5)
    return np.log(1 + kept[:, None] * (ratio - 1))


class SeasonProcessor(LogitsProcessor):
    """Gives events of a table the months that those of the training have."""

    def __init__(self, seasons: Seasons, grammar: Grammar, mask: Mask) -> None:
        """Keep what is added; `mask` knows the day that each row stands at."""
        self.mask = mask
        added = np.zeros((12, grammar.vocab_size), dtype=np.float32)
        for token_id, token in enumerate(grammar.tokens):
            added[:, token_id] = seasons.get(token, 0)
        self.runs = [run for run in runs_of(grammar).values() if added[:, run].any()]
        self.added = torch.as_tensor(added, device=mask.device)
        months = month_number(np.arange(FIRST_DAY, LAST_DAY + 1)) % 12
        self.months = torch.as_tensor(months, device=mask.device)

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) of the rows of the mask."""
        day = self.mask.cursor.clamp(FIRST_DAY, LAST_DAY) - FIRST_DAY
        moved = scores + self.added[self.months[day]]
        for run in self.runs:  # the table keeps its chance
            change = scores[:, run].logsumexp(-1) - moved[:, run].logsumexp(-1)
            moved[:, run] += change.where(change.isfinite(), 0)[:, None]
        return moved
