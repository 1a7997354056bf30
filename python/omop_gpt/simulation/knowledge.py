"""Read the tables of medical knowledge that lie beside this module, and resolve names.

A concept is named by its OMOP name everywhere but in `concepts.csv`, which alone holds
ids. Rates are new cases per 1,000 person-years at an age; days and ages are as named.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from omop_gpt.simulation.mechanisms import Readmission, Survival, Trend, Waiting

AGES = np.arange(111)  # years of age for which hazards are known
SETTINGS = {"any": -1, "outpatient": 0, "emergency": 1, "inpatient": 2}
MISSING = np.iinfo(np.int64).min  # an integer that is NULL, as NaN is in floats
NEVER = 1 << 40  # a day beyond all days


@dataclass(frozen=True, kw_only=True)
class Care:
    """One thing that may happen at a visit for a condition."""

    number: int
    is_record: bool  # the condition itself, or the measurement that found it
    concept_id: int
    domain: str
    setting: int
    share: float  # of visits
    line: str  # alternatives of one line fall to different persons
    persons: tuple[float, float]  # the part of the line's persons, from and below
    days: tuple[float, float]  # since the condition began, from and below
    lines: tuple[int, int] | None  # of treatment, from and before
    levels: tuple[float, float] | None  # of the condition's trend, from and below
    ages: tuple[float, float]  # years, from and below
    is_female: bool | None
    months: tuple[int, int]  # first and last
    timing: str  # first, any, last or daily, within a stay
    days_supply: int
    quantity: float
    answers: dict[int, float]  # value concept: its share
    unless: int | None  # index of a condition that rules it out


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A reason for visits: a condition, or a kind of visit with care of its own."""

    index: int
    name: str
    course: str  # chronic, acute or care
    hazard: np.ndarray  # (AGES,) events per year
    factors: np.ndarray  # (2,) male, female
    boosts: dict[int, float]  # index of a condition: factor while it is there
    needs: int | None  # index of a condition without which it cannot begin
    season: np.ndarray  # (13,) share of the year's cases before each month's end
    first_year: float
    emergency_share: float
    inpatient_share: float
    stay_days: float  # median
    care: list[Care] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How values of a concept are spread over and within persons."""

    concept_id: int
    unit_concept_id: int
    law: str  # filtration, or MDRD: made from it; else empty
    is_log: bool  # shifts and spreads are of the logarithm
    trait: str  # measurements of one trait are high in the same persons
    by_age: tuple[np.ndarray, np.ndarray]  # ages in years, typical values
    female: float
    between_persons: float
    within_person: float
    decimals: int
    low: float
    high: float
    detection_limit: float
    other_unit_concept_id: int
    other_factor: float
    other_share: float
    other_decimals: int
    shifts: list[tuple[int, float, float]]  # condition, shift, shift once treated


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """A visit that a condition brings after the end of its first one."""

    number: int
    condition: int
    from_setting: int
    to_setting: int
    filed_under: int
    days_after: int
    spread_days: int
    share: float


class Knowledge:
    """All tables, with names resolved."""

    def __init__(self) -> None:
        self.concepts = read("concepts")
        self._concepts = {row["concept_name"]: row for row in self.concepts}
        rows = read("conditions")
        self.index = {row["condition"]: index for index, row in enumerate(rows)}
        self.conditions = [self._condition(row) for row in rows]
        self.chronic = [c for c in self.conditions if c.course == "chronic"]
        self.acute = [c for c in self.conditions if c.course == "acute"]
        self.care: list[Care] = []
        for row in rows:
            if row["concept"]:
                self._add_care(row | {"share": row["recorded"]}, is_record=True)
        measurements = read("measurements")
        trends = {row["condition"]: row for row in read("trends")}
        taken: dict[str, float] = defaultdict(float)
        for row in read("care"):
            line = f"{row['condition']}, {row['line'] or len(self.care)}"
            low = taken[line]
            taken[line] += _number(row["person_share"], 1)
            trend = trends.get(row["condition"], {"drives": ""})
            finds = trend["drives"] and trend["measurement"] == row["concept"]
            persons = (low, taken[line])
            self._add_care(row, is_record=bool(finds), line=line, persons=persons)
        shifts = defaultdict(list)
        for row in read("shifts"):
            shift = float(row["shift"])
            later = _number(row["later_shift"], shift)
            shifts[row["measurement"]].append(
                (self.index[row["condition"]], shift, later)
            )
        self.measurements = [
            self._measurement(row, shifts[row["concept"]]) for row in measurements
        ]
        self.trends = [
            self._trend(
                row,
                self.measurements[
                    [one["concept"] for one in measurements].index(row["measurement"])
                ],
            )
            for row in trends.values()
        ]
        self.lines: dict[int, list[Waiting]] = defaultdict(list)
        for row in read("treatment_lines"):
            self.lines[self.index[row["condition"]]].append(
                Waiting(
                    scale=float(row["scale_days"]),
                    shape=float(row["shape"]),
                    share=float(row["share"]),
                )
            )
        self.readmission = self._readmission()
        self.survival = self._survival()
        self.follow_ups = [
            FollowUp(
                number=number,
                condition=self.index[row["condition"]],
                from_setting=SETTINGS[row["from_setting"]],
                to_setting=SETTINGS[row["to_setting"]],
                filed_under=self.index[row["filed_under"]],
                days_after=int(row["days_after"]),
                spread_days=int(row["spread_days"]),
                share=float(row["share"]),
            )
            for number, row in enumerate(read("follow_ups"))
        ]

    def concept_id(self, name: str) -> int:
        """Return the id of a concept's name; NULL for no name."""
        return int(self._concepts[name]["concept_id"]) if name else MISSING

    def _pairs(self, text: str) -> dict[str, float]:
        """Read `name:number; name:number`."""
        pairs = (pair.rsplit(":", 1) for pair in text.split("; ") if pair)
        return {name: float(number) for name, number in pairs}

    def _condition(self, row: dict[str, str]) -> Condition:
        ages, rates = _curve(row, "rate_")
        # Straight lines between the logarithms; a rate of 0 stays 0 at its own age.
        logs = np.log(np.maximum(rates, 1e-3) / 1000)
        hazard = np.exp(np.interp(AGES + 0.5, ages, logs)) * (rates.max() > 0)
        months = (np.arange(12) + 1 - _number(row["peak_month"], 1)) * np.pi / 6
        weight = 1 + _number(row["swing"], 0) * np.cos(months)
        return Condition(
            index=self.index[row["condition"]],
            name=row["condition"],
            course=row["course"],
            hazard=hazard,
            factors=np.array([float(row["male"]), float(row["female"])]),
            boosts={
                self.index[name]: factor
                for name, factor in self._pairs(row["boosts"]).items()
            },
            needs=self.index.get(row["needs"]),
            season=np.concatenate([[0], np.cumsum(weight) / weight.sum()]),
            first_year=_number(row["first_year"], 0),
            emergency_share=_number(row["emergency_share"], 0),
            inpatient_share=_number(row["inpatient_share"], 0),
            stay_days=_number(row["stay_days"], 0),
        )

    def _add_care(
        self,
        row: dict[str, str],
        *,
        is_record: bool = False,
        line: str = "",
        persons: tuple[float, float] = (0, 1),
    ) -> None:
        """Give a row its number, and file it under its condition."""
        row = defaultdict(str, row)
        months = [int(month) for month in (row["months"] or "1-12").split("-")]
        care = Care(
            number=len(self.care),
            is_record=is_record,
            concept_id=self.concept_id(row["concept"]),
            domain=self._concepts[row["concept"]]["domain_id"],
            setting=SETTINGS[row["setting"] or "any"],
            share=float(row["share"]),
            line=line,
            persons=persons,
            days=(_number(row["from_days"], 0), _number(row["to_days"], NEVER)),
            ages=(_number(row["from_age"], 0), _number(row["to_age"], AGES[-1] + 1)),
            is_female={"F": True, "M": False}.get(row["sex"]),
            months=(months[0], months[1]),
            lines=_range(row, "line", int, np.iinfo(int).max),
            levels=_range(row, "level", float, np.inf),
            timing=row["timing"] or "first",
            days_supply=int(_number(row["days_supply"], MISSING)),
            quantity=_number(row["quantity"], np.nan),
            answers={
                self.concept_id(name): share
                for name, share in self._pairs(row["answers"]).items()
            },
            unless=self.index.get(row["unless"]),
        )
        self.care.append(care)
        self.conditions[self.index[row["condition"]]].care.append(care)

    def _measurement(
        self, row: dict[str, str], shifts: list[tuple[int, float, float]]
    ) -> Measurement:
        return Measurement(
            concept_id=self.concept_id(row["concept"]),
            unit_concept_id=self.concept_id(row["unit"]),
            law=row["law"],
            is_log=row["shape"] == "log",
            trait=row["trait"] or row["concept"],
            by_age=_curve(row, "at_"),
            female=float(row["female"]),
            between_persons=float(row["between_persons"]),
            within_person=float(row["within_person"]),
            decimals=int(row["decimals"]),
            low=float(row["low"]),
            high=float(row["high"]),
            detection_limit=_number(row["detection_limit"], -np.inf),
            other_unit_concept_id=self.concept_id(row["other_unit"]),
            other_factor=_number(row["other_factor"], 1),
            other_share=_number(row["other_share"], 0),
            other_decimals=int(_number(row["other_decimals"], 0)),
            shifts=shifts,
        )

    def _trend(self, row: dict[str, str], measurement: Measurement) -> Trend:
        return Trend(
            measurement=measurement,
            condition=self.index[row["condition"]],
            drives=bool(row["drives"]),
            threshold=_number(row["threshold"], np.nan),
            from_age=_number(row["from_age"], np.nan),
            slope=float(row["slope"]),
            spread=float(row["spread"]),
            faster={
                self.index[name]: more
                for name, more in self._pairs(row["faster"]).items()
            },
            treated=float(row["treated"]),
        )

    def _readmission(self) -> Readmission:
        rows = {row["name"]: row for row in read("readmissions")}
        every = rows.pop("any")
        within = float(every["within_30_days"])

        def factor(share: str) -> float:
            return float(np.log1p(-_number(share, within)) / np.log1p(-within))

        younger = factor(rows.pop("younger than 65")["within_30_days"])
        factors = np.ones(len(self.conditions))
        same = np.full(len(self.conditions), float(every["same_reason"]))
        for name, row in rows.items():
            factors[self.index[name]] = factor(row["within_30_days"])
            if row["same_reason"]:
                same[self.index[name]] = float(row["same_reason"])
        return Readmission(
            waiting=Waiting.through(30, within, 90, float(every["within_90_days"])),
            factor=factors,
            younger=younger,
            same=same,
            others={
                self.index[name]: float(row["share_of_others"])
                for name, row in rows.items()
                if row["share_of_others"]
            },
        )

    def _survival(self) -> Survival:
        values = {row["name"]: float(row["value"]) for row in read("survival")}
        return Survival(
            rate_60=values.pop("rate at 60"),
            growth=values.pop("growth"),
            infant=values.pop("first year"),
            factors=np.array([values.pop("male"), values.pop("female")]),
            boosts={self.index[name]: ratio for name, ratio in values.items()},
        )


def read(name: str) -> list[dict[str, str]]:
    """Read one of the tables, as text."""
    path = resources.files("omop_gpt") / "simulation" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str, default: float) -> float:
    return float(text) if text else default


def _range(
    row: dict[str, str], name: str, kind: type, default: float
) -> tuple[Any, Any] | None:
    """Read the columns `from_<name>` and `to_<name>`, if there is either."""
    low, high = row[f"from_{name}"], row[f"to_{name}"]
    if not low and not high:
        return None
    return kind(low or 0), kind(high) if high else default


def _curve(row: dict[str, str], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Collect the columns `<prefix><age>` into ages and values."""
    names = [name for name in row if name.startswith(prefix)]
    ages = [int(name.removeprefix(prefix)) for name in names]
    return np.array(ages), np.array([float(row[name]) for name in names])
