"""When a stay ends: a model's guess, put right.

A small chance that a stay ends at any one token is a large one in a day of many: of
stays that always last a night some end on their first day. So the log odds that a visit
ends, of each type and after so many days, are moved as held-out patients have them, by
one number each: fitted on the validation split when training ends. What else happens in
a stay is left to the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel

from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.novelty import foretold

DAYS = (1, 2, 3, 4, 7, 14, 30)  # after so many nights other odds begin
PRIOR = 0.1  # weight of leaving them as they are
WIDEST = 12.0  # log odds are not moved further
HALVINGS = 40
Stays = dict[str, list[float]]  # of each visit type, what is added: len(DAYS) + 1


def fit_stays(
    model: PreTrainedModel, grammar: Grammar, histories: Iterable[np.ndarray]
) -> Stays:
    """Say what is added to the log odds that visits end; histories are (T,) ids."""
    is_inside = np.append(grammar.places == "visit", False)  # -1: not in the language
    closes = torch.as_tensor(closing(grammar), device=model.device)
    found = defaultdict(list)
    for history in histories:
        visits, spans = spans_of(grammar, history)
        inside = is_inside[grammar.walk(history)[:-1]]
        for places, labels, logits in foretold(model, grammar, history):
            at = places.cpu().numpy()
            here = torch.as_tensor(inside[at], device=model.device)
            odds = odds_of(logits[here], closes).cpu().numpy()
            ends = closes[labels[here]].cpu().numpy()
            at = at[inside[at]]
            cells = visits[at] * (len(DAYS) + 1) + spans[at]
            for cell in np.unique(cells):
                rows = cells == cell
                found[cell].append(np.stack([odds[rows], ends[rows]]))
    stays: Stays = {}
    for cell, rows in found.items():
        visit, span = divmod(int(cell), len(DAYS) + 1)
        of_visit = stays.setdefault(grammar.tokens[visit], [0.0] * (len(DAYS) + 1))
        of_visit[span] = round(shift(*np.concatenate(rows, axis=1)), 3)
    return stays


def closing(grammar: Grammar) -> np.ndarray:
    """Tell which tokens end the visit that they are written in: (V,) bool."""
    return (grammar.roles == "gap") | grammar.has_kind("discharge", "eos")


def spans_of(grammar: Grammar, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell of each token the last visit before it, and which of DAYS are over.

    Token ids (T,), 0 where there is none, and indices (T,).
    """
    opened = np.where(grammar.has_kind("visit")[history], np.arange(len(history)), -1)
    opened = np.append(-1, np.maximum.accumulate(opened)[:-1])
    moved = np.cumsum(np.where(grammar.moves_cursor, grammar.days, 0)[history])
    days = np.append(0, moved[:-1]) - moved[opened]
    visits = np.where(opened < 0, 0, history[opened])
    return visits, np.searchsorted(DAYS, days, side="right")


def odds_of(logits: torch.Tensor, closes: torch.Tensor) -> torch.Tensor:
    """Log odds that the visit ends, from logits (N, V): (N,)."""
    ends = logits.masked_fill(~closes, -torch.inf).logsumexp(-1)
    return ends - logits.masked_fill(closes, -torch.inf).logsumexp(-1)


def shift(odds: np.ndarray, ends: np.ndarray) -> float:
    """Return what log odds (N,) lack, so that as many ends are foretold as came (N,).

    The intercept of a logistic regression, drawn to 0 as PRIOR says; by halving, for
    the sum only falls where it goes down.
    """
    low, high = -WIDEST, WIDEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        foretold_ends = (1 / (1 + np.exp(-odds - middle))).sum()
        if foretold_ends + PRIOR * middle < ends.sum():
            low = middle
        else:
            high = middle
    return (low + high) / 2


class StayProcessor(LogitsProcessor):
    """Gives the ends of visits the odds that held-out patients have."""

    def __init__(self, stays: Stays, grammar: Grammar, mask: Mask) -> None:
        """Keep what is added; `mask` knows the visit that each row is in."""
        self.mask = mask
        added = np.zeros((grammar.vocab_size, len(DAYS) + 1), dtype=np.float32)
        for token_id, token in enumerate(grammar.tokens):
            added[token_id] = stays.get(token, 0)

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, device=mask.device)

        self.added = tensor(added)
        self.days = tensor(np.array(DAYS))
        self.inside = tensor(grammar.places == "visit")
        self.closes = tensor(closing(grammar))

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) of the rows of the mask."""
        mask = self.mask
        days = mask.cursor - mask.visit_start
        spans = torch.bucketize(days, self.days, right=True)
        added = self.added[mask.visit, spans] * self.inside[mask.state]
        return scores + added[:, None] * self.closes
