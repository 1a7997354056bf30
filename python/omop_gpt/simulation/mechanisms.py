"""Five laws of illness, whose truth is known: what is measured can be held against it.

Chronic courses and trends of laboratory values (`Trend`), lines of treatment and
readmission (`Waiting`), survival (`Survival`). Their parameters and where these were
published lie in `trends.csv`, `treatment_lines.csv`, `readmissions.csv` and
`survival.csv`; docs/simulator.md says what they are for. Days are counted from
1970-01-01, years are of 365.25 days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from omop_gpt.simulation.draws import Draws
    from omop_gpt.simulation.knowledge import Measurement
    from omop_gpt.simulation.patients import People

YEAR = 365.25  # days
LONGEST_LIFE = 111 * YEAR


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A measurement that moves along a line of each person's own.

    From an age on, or as the course of a condition from its onset on. A trend that
    drives a condition brings it on the day on which it passes the threshold.
    """

    measurement: Measurement
    condition: int  # which it drives, or whose course it is
    drives: bool
    threshold: float  # value on the day of the onset
    from_age: float  # years; NaN for a course
    slope: float  # mean change a year
    spread: float  # standard deviation of the slope's logarithm
    faster: dict[int, float]  # condition: share of the slope that it adds
    treated: float  # share of the slope that is left once the threshold is passed

    def start(self, people: People, draws: Draws) -> np.ndarray:
        """Return each person's value before the trend begins; (persons,)."""
        measurement = self.measurement
        trait = draws.normal(measurement.trait, people.index)
        own = measurement.female * people.is_female
        own = own + measurement.between_persons * trait
        if not self.drives:
            return self.threshold + own
        return np.interp(self.from_age, *measurement.by_age) + own

    def slopes(self, people: People, draws: Draws) -> np.ndarray:
        """Return each person's change a year: log-normally spread; (persons,)."""
        name = f"slope {self.measurement.concept_id}"
        noise = self.spread * draws.normal(name, people.index)
        return self.slope * np.exp(noise - self.spread**2 / 2)

    def begins(self, people: People, person: np.ndarray) -> np.ndarray:
        """Return the days on which the trend begins."""
        if self.drives:
            return people.birth[person] + self.from_age * YEAR
        return people.onset[person, self.condition]

    def years(self, people: People, person: np.ndarray, day: np.ndarray) -> np.ndarray:
        """Return how many years the trend has gone on; other illness adds to them."""
        years = np.maximum(day - self.begins(people, person), 0) / YEAR
        for other, more in self.faster.items():
            since = np.maximum(day - people.onset[person, other], 0)
            years = years + more * since / YEAR
        return years

    def change(
        self, people: People, draws: Draws, person: np.ndarray, day: np.ndarray
    ) -> np.ndarray:
        """Return by how much values have moved on a day."""
        years = self.years(people, person, day)
        if self.drives:
            onset = people.onset[person, self.condition]
            before = self.years(people, person, np.minimum(day, onset))
            years = before + self.treated * (years - before)
        return self.slopes(people, draws)[person] * years

    def value(
        self, people: People, draws: Draws, person: np.ndarray, day: np.ndarray
    ) -> np.ndarray:
        """Return values on a day, without the noise of measuring them."""
        start = self.start(people, draws)[person]
        return start + self.change(people, draws, person, day)

    def passed(self, people: People, draws: Draws) -> np.ndarray:
        """Return the day of passing the threshold, inf for never; (persons,)."""
        way = self.threshold - self.start(people, draws)
        needed = np.maximum(way / self.slopes(people, draws), 1e-9)  # years
        everyone = np.arange(people.index.size)
        before, after = people.birth - 1, people.birth + int(LONGEST_LIFE)
        never = self.years(people, everyone, after) < needed
        while (after - before > 1).any():
            middle = (before + after) // 2
            is_past = self.years(people, everyone, middle) >= needed
            before = np.where(is_past, before, middle)
            after = np.where(is_past, middle, after)
        return np.where(never, np.inf, after)


def creatinine(egfr: np.ndarray, age: np.ndarray, is_female: np.ndarray) -> np.ndarray:
    """Return the serum creatinine, in mg/dl, from which MDRD makes a filtration rate.

    175 x creatinine^-1.154 x age^-0.203 x 0.742 for women (Levey 2006, Ann Intern Med
    145:247), solved for creatinine; `egfr` in ml/min/1.73 m², `age` in years.
    """
    sex = np.where(is_female, 0.742, 1)
    return (175 * age**-0.203 * sex / np.maximum(egfr, 5)) ** (1 / 1.154)


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long something takes: a Weibull distribution, for a share of the cases."""

    scale: float  # days
    shape: float = 1.0  # inf: after exactly `scale` days
    share: float = 1.0

    @classmethod
    def through(cls, day: float, share: float, later: float, more: float) -> Waiting:
        """Return the Weibull distribution that has two shares by two days."""
        one, two = -np.log1p(-share), -np.log1p(-more)
        shape = np.log(two / one) / np.log(later / day)
        return cls(scale=day / one ** (1 / shape), shape=shape)

    def days(self, part: np.ndarray, factor: np.ndarray | float = 1.0) -> np.ndarray:
        """Turn draws from [0, 1) into days, inf for never; `factor`: on the hazard."""
        happens = part < self.share
        hazard = -np.log1p(-np.where(happens, part / self.share, 0))
        days = self.scale * (hazard / factor) ** (1 / self.shape)
        return np.where(happens, days, np.inf)

    def by(self, days: np.ndarray, factor: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the share of cases in which it has happened by then: the truth."""
        with np.errstate(over="ignore"):
            hazard = factor * (np.asarray(days) / self.scale) ** self.shape
        return self.share * -np.expm1(-hazard)


@dataclass(frozen=True, kw_only=True)
class Readmission:
    """A stay brings another within `DAYS`, by a hazard that falls from day to day."""

    DAYS = 90
    OLD = 65  # years, from which on the published rates hold

    waiting: Waiting  # after any stay of the old
    factor: np.ndarray  # (conditions,) on the hazard, by the reason of the stay
    younger: float  # factor below OLD
    same: np.ndarray  # (conditions,) share that comes for the same reason
    others: dict[int, float]  # reason: share of all others

    def factors(self, condition: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return the factors on the hazard of some stays."""
        return self.factor[condition] * np.where(age < self.OLD, self.younger, 1)


@dataclass(frozen=True, kw_only=True)
class Survival:
    """Gompertz's law, times hazard ratios: deaths per year at an age."""

    name = "death"

    rate_60: float  # deaths per year of a healthy person of 60
    growth: float  # of the logarithm, a year
    infant: float  # besides, in the first year
    factors: np.ndarray  # (2,) male, female
    boosts: dict[int, float]  # condition: hazard ratio

    @property
    def hazard(self) -> np.ndarray:
        """Return deaths per year in the years of age 0 to 110; (111,)."""
        ages = np.arange(LONGEST_LIFE // YEAR)
        hazard = self.rate_60 * np.exp(self.growth * (ages + 0.5 - 60))
        return hazard + self.infant * (ages == 0)

    def alive(self, age: float, later: float, factor: float = 1.0) -> float:
        """Return the share of those alive at an age who are so later: the truth."""
        start, end = (np.exp(self.growth * (a - 60)) for a in (age, later))
        return float(np.exp(-factor * self.rate_60 / self.growth * (end - start)))
