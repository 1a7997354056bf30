"""How likely the next event is new to a patient: a model's guess, put right.

A model knows which events go together better than which of them a patient has had: in
long histories it gives new ones more chance than they have, what is written once is
told again, and patients collect diseases. So the log odds of a new event, among those
of its table, are scaled as held-out patients have them (Platt, 1999): fitted on the
validation split when training ends, and kept with the model. Which of the new ones, or
of the old, is left to the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel

from omop_gpt.grammar import Grammar, overlap_of

LEAST = 500  # events of a table from which its odds are scaled
PRIOR = 1.0  # weight of leaving them as they are
TINY = 1e-9  # a step that changes nothing
AS_IS = np.array([0.0, 1.0, 0.0])
Weights = dict[str, list[float]]  # of each table: intercept, of log odds, of log count


def fit_novelty(
    model: PreTrainedModel, grammar: Grammar, histories: Iterable[np.ndarray]
) -> Weights:
    """Scale the odds of new events as these histories have them, (T,) ids each."""
    runs = runs_of(grammar)
    found: dict[str, list[np.ndarray]] = {table: [] for table in runs}
    for history in histories:
        first = np.full(grammar.vocab_size, len(history))
        np.minimum.at(first, history, np.arange(len(history)))
        first_at = torch.as_tensor(first, device=model.device)
        for places, labels, logits in foretold(model, grammar, history):
            for table, run in runs.items():
                start = run.start
                here = ((labels >= start) & (labels < run.stop)).nonzero()[:, 0]
                if not len(here):
                    continue
                is_new = first_at[run] >= places[here, None]
                odds, count = odds_of(logits[here, run], is_new)
                label_is_new = is_new.gather(1, labels[here, None] - start)[:, 0]
                columns = torch.stack([odds, count, label_is_new.float()], dim=1)
                found[table].append(columns[odds.isfinite()].cpu().numpy())
    return {
        table: regression(*np.concatenate(rows).astype(float).T).tolist()
        for table, rows in found.items()
        if sum(map(len, rows)) >= LEAST
    }


def foretold(
    model: PreTrainedModel, grammar: Grammar, history: np.ndarray
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield, chunk by chunk, what a model expects of a history, of (T,) ids.

    Places of tokens in it (N,), the tokens (N,), and the logits (N, V) before each;
    nothing of the first.
    """
    context, device = model.config.max_position_embeddings, model.device
    done = 0
    for ids, known in grammar.chunks(history, context, overlap=overlap_of(context)):
        token_ids = torch.as_tensor(ids.astype(np.int64), device=device)
        logits = model(input_ids=token_ids[None], use_cache=False).logits[0].float()
        start = max(known, 1)
        places = done - known + torch.arange(start, len(ids), device=device)
        yield places, token_ids[start:], logits[start - 1 : -1]
        done += len(ids) - known


def runs_of(grammar: Grammar) -> dict[str, slice]:
    """Token ids of the events of each table; those of a later encode are left out."""
    tables = np.where(grammar.has_kind("event"), grammar.source_table, "")
    runs = {}
    for table in sorted(set(tables) - {""}):
        token_ids = np.flatnonzero(tables == table)
        breaks = np.flatnonzero(np.diff(token_ids) > 1)
        stop = token_ids[breaks[0]] + 1 if len(breaks) else token_ids[-1] + 1
        runs[table] = slice(int(token_ids[0]), int(stop))
    return runs


def odds_of(
    logits: torch.Tensor, is_new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log odds that an event is new (B,), and log of one more than the old ones (B,).

    `logits` and `is_new` (B, events of a table). Infinite where all or none are new.
    """
    new = logits.masked_fill(~is_new, -torch.inf).logsumexp(-1)
    old = logits.masked_fill(is_new, -torch.inf).logsumexp(-1)
    return new - old, (~is_new).sum(-1).float().log1p()


def regression(odds: np.ndarray, count: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Logistic regression by damped Newton steps, drawn to AS_IS: (3,)."""
    design = np.column_stack([np.ones_like(odds), odds, count])

    def loss(weights: np.ndarray) -> float:
        scores = design @ weights
        missed = np.logaddexp(0, scores).sum() - is_new @ scores
        return missed + PRIOR / 2 * ((weights - AS_IS) ** 2).sum()

    weights = AS_IS
    for _ in range(100):
        chance = np.exp(-np.logaddexp(0, -design @ weights))
        gradient = design.T @ (is_new - chance) - PRIOR * (weights - AS_IS)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curvature + PRIOR * np.eye(3), gradient)
        while loss(weights + step) > loss(weights) and np.abs(step).max() > TINY:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() <= TINY:
            break
    return weights


class NoveltyProcessor(LogitsProcessor):
    """Gives new events of a table the odds that held-out patients have."""

    def __init__(self, weights: Weights, grammar: Grammar) -> None:
        """Keep the weights of each table beside its tokens."""
        runs = runs_of(grammar)
        self.tables = [(runs[name], *w) for name, w in weights.items() if name in runs]
        self.vocab_size = grammar.vocab_size

    def __call__(self, histories: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) of those who wrote histories (B, T), padded."""
        is_new = torch.ones_like(scores, dtype=torch.bool)
        is_new.scatter_(1, histories, False)
        scores = scores.clone()
        for run, start, of_odds, of_count in self.tables:
            new = is_new[:, run]
            odds, count = odds_of(scores[:, run], new)
            wanted = start + of_odds * odds + of_count * count
            # new and old together keep their chance
            sign = torch.where(new, 1.0, -1.0)
            change = torch.nn.functional.logsigmoid(sign * wanted[:, None])
            change = change - torch.nn.functional.logsigmoid(sign * odds[:, None])
            scores[:, run] += change.where(odds.isfinite()[:, None], 0)
        return scores
