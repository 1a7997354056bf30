"""When an outcome comes: how many have it by each day, and who has it first.

Persons are followed from a day on for `horizon` days. What came to each, first, is
OUTCOME or DEATH, which keeps the outcome from coming, or NOTHING: not until then is
known. Functions take many bootstrap samples at once, as weights (B, P) of persons.
"""

from __future__ import annotations

import numpy as np

LEFT_OUT, NOTHING, OUTCOME, DEATH = -1, 0, 1, 2
TINY = 1e-9  # what is left of a sum of shares is no person


def aalen_johansen(
    days: np.ndarray,
    came: np.ndarray,
    horizon: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Share that has had the outcome by each day: (B, horizon + 1).

    `days` and `came`: (P, k), what came to each of k persons like P, and when; LEFT_OUT
    counts for nothing, and the others of each P for one together. Of those who leave
    by NOTHING before the horizon what would have come is taken to be as of the others
    (Aalen and Johansen, 1978). NaN from when all have left, some by NOTHING.
    """
    persons, size = days.shape
    if weights is None:
        weights = np.ones((1, persons))
    counts = (came != LEFT_OUT).sum(axis=1)
    share = np.divide(1, counts, out=np.zeros(persons), where=counts > 0)
    left = np.zeros((3, persons, horizon + 1))
    rows = np.repeat(np.arange(persons), size)
    is_in = (came != LEFT_OUT).ravel()
    places = came.ravel()[is_in], rows[is_in], days.ravel()[is_in]
    np.add.at(left, places, share[rows[is_in]])
    nothing, outcome, death = weights @ left
    gone = np.cumsum(nothing + outcome + death, axis=1)
    followed = gone[:, -1:] - gone + nothing + outcome + death
    is_followed = followed > TINY
    hazard, of_outcome = (
        np.divide(some, followed, out=np.zeros_like(some), where=is_followed)
        for some in (outcome + death, outcome)
    )
    free = np.cumprod(1 - hazard, axis=1)
    before = np.concatenate([np.ones((len(free), 1)), free[:, :-1]], axis=1)
    is_unknown = ~is_followed & (before > TINY)
    return np.where(is_unknown, np.nan, np.cumsum(before * of_outcome, axis=1))


def concordance(
    days: np.ndarray,
    came: np.ndarray,
    waits: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Chance that who has the outcome sooner was foretold to wait less: (B,).

    `days`, `came`: (P,); `waits`: (P,), as foretold; ties are half. Of two persons the
    one who has the outcome is compared with who has it later, or has not had it by
    then (Harrell et al., 1982). Who died first never has it (Wolbers et al., 2009). NaN
    where no two can be compared.
    """
    if weights is None:
        weights = np.ones((1, len(days)))
    has = came == OUTCOME
    until = np.where(came == DEATH, np.inf, days)
    # rows: who has it; columns: with whom they are compared
    later = (until[None, :] > until[has, None]) | (
        ~has[None, :] & (until[None, :] == until[has, None])
    )
    right = (waits[has, None] < waits[None, :]) + (waits[has, None] == waits[None]) / 2
    pairs, wins = (
        ((weights[:, has] @ some) * weights).sum(axis=1)
        for some in (later.astype(float), later * right)
    )
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
