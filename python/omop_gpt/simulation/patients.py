"""Make the persons of a block: births, chronic conditions, deaths, observation.

Persons are rows of arrays; days are counted from 1970-01-01.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omop_gpt.simulation.draws import Draws
from omop_gpt.simulation.knowledge import AGES, NEVER, Condition, Knowledge
from omop_gpt.simulation.mechanisms import YEAR, Survival

FIRST_DAY, LAST_DAY = (
    int(np.datetime64(day).astype(np.int64)) for day in ("2005-01-01", "2023-12-31")
)
SHORTEST, LONGEST = 730, 5478  # days of observation
BIRTH_SHARES = (0, 0.13, 0.36, 0.56, 0.74, 0.88, 1)  # born before the years below
BIRTH_YEARS = (1925, 1940, 1955, 1970, 1985, 2000, 2021)
RACES = {8527: 0.62, 8516: 0.15, 8515: 0.07, 8657: 0.02, 0: 0.14}
ETHNICITIES = {38003564: 0.76, 38003563: 0.15, 0: 0.09}


@dataclass(kw_only=True)
class People:
    """One row per person."""

    index: np.ndarray  # in the whole population, from 0
    birth: np.ndarray
    is_female: np.ndarray
    race: np.ndarray
    ethnicity: np.ndarray
    frailty: np.ndarray  # factor on acute illness
    start: np.ndarray  # first observed day
    end: np.ndarray  # last observed day, that of the death at the latest
    death: np.ndarray  # NEVER for those alive at the end
    onset: np.ndarray  # (persons, chronic conditions); NEVER for none

    def age(self, person: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return ages in years at days."""
        return (day - self.birth[person]) / YEAR


def make_people(index: np.ndarray, knowledge: Knowledge, draws: Draws) -> People:
    """Make the persons with these positions in the population."""
    year = np.interp(draws("birth", index), BIRTH_SHARES, BIRTH_YEARS)
    birth = np.floor((year - 1970) * YEAR).astype(np.int64)
    first = np.maximum(birth, FIRST_DAY)
    late = draws("start", index) ** 1.6
    start = first + (late * (LAST_DAY - SHORTEST - first)).astype(np.int64)
    longest = np.minimum(LAST_DAY - start, LONGEST)
    length = SHORTEST + draws("length", index) ** 1.2 * (longest - SHORTEST)
    people = People(
        index=index,
        birth=birth,
        is_female=draws("sex", index) < 0.52,
        race=draws.choice(RACES, "race", index),
        ethnicity=draws.choice(ETHNICITIES, "ethnicity", index),
        frailty=np.exp(0.5 * draws.normal("frailty", index)),
        start=start,
        end=start + length.astype(np.int64),
        death=np.full(index.shape, NEVER),
        onset=np.full((index.size, len(knowledge.chronic)), NEVER),
    )
    drivers = {trend.condition: trend for trend in knowledge.trends if trend.drives}
    for condition in knowledge.chronic:
        if condition.index in drivers:
            day = drivers[condition.index].passed(people, draws)
            day = np.minimum(day, NEVER).astype(np.int64)
        else:
            day = _first_day(people, condition, draws)
        people.onset[:, condition.index] = day
    died = _first_day(people, knowledge.survival, draws, after=people.start)
    people.death = np.where(died <= people.end, died, NEVER)
    people.end = np.minimum(people.end, died)
    return people


def _first_day(
    people: People,
    law: Condition | Survival,
    draws: Draws,
    *,
    after: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the day of a first event; those before `after` did not happen."""
    hazard = np.tile(law.hazard, (people.index.size, 1))
    hazard *= law.factors[people.is_female.astype(int), None]
    for other, factor in law.boosts.items():
        onset = (people.onset[:, other] - people.birth) / YEAR
        hazard[onset[:, None] <= AGES] *= factor
    total = np.cumsum(hazard, axis=1)
    limit = -np.log1p(-draws(f"{law.name} begins", people.index))
    rows = np.arange(people.index.size)
    if after is not None:
        age = (after - people.birth) / YEAR
        whole = age.astype(int)
        limit += total[rows, whole] - (whole + 1 - age) * hazard[rows, whole]
    year = (total < limit[:, None]).sum(axis=1)
    happens = year < AGES.size
    year = np.minimum(year, AGES[-1])
    rest = (total[rows, year] - limit) / np.maximum(hazard[rows, year], 1e-12)
    day = people.birth + np.ceil((year + 1 - rest) * YEAR)
    return np.where(happens, day, NEVER).astype(np.int64)
