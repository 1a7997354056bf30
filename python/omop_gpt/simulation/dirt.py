"""Add to simulated tables what real ones hold: faults, gaps and oddities.

Each falls on about a percent of the rows, the gravest on less.
"""

from __future__ import annotations

import numpy as np

from omop_gpt.simulation.draws import Draws
from omop_gpt.simulation.events import EVENT_TABLES, Table
from omop_gpt.simulation.knowledge import MISSING
from omop_gpt.simulation.visits import MINUTES

NO_TIME = int(np.datetime64("1900-01-01").astype(np.int64)) * MINUTES
LARGE_ID = 2**53  # beyond it, a float loses digits
VERY_LONG = 19_723  # days: 54 years


class Dirt:
    """Soils the tables of one block, in place."""

    def __init__(self, tables: dict[str, Table], draws: Draws) -> None:
        self.tables = tables
        self.draws = draws

    def add(self) -> None:
        """Add every oddity."""
        self._persons()
        self._visits()
        for name, prefix, start in EVENT_TABLES.values():
            self._events(name, prefix, start)
        self._drugs()
        self._set("measurement", "value_as_number", "sentinel", 0.006, -1.0)
        self._deaths()

    def _persons(self) -> None:
        """Odd ids, ages and births; empty, unknown and repeated persons."""
        self._set("person", "month_of_birth", "no month", 0.02, MISSING)
        self._set("person", "day_of_birth", "no day", 0.03, MISSING)
        self._set("person", "year_of_birth", "very old", 0.006, 1880)
        self._set("person", "year_of_birth", "no year", 0.006, MISSING)
        for name, table in self.tables.items():
            person = table["_person"]
            chance = self.draws("id", person)
            ids = np.where(chance < 0.01, -table["person_id"], table["person_id"])
            table["person_id"] = np.where(chance > 0.99, LARGE_ID + 2 * person + 1, ids)
            is_empty = self.draws("empty", person) < 0.006
            is_unknown = self.draws("unknown", person) < 0.006
            self._keep(name, ~(is_unknown if name == "person" else is_empty))
        self._repeat("person", 0.006)

    def _visits(self) -> None:
        """Odd dates and concepts; visits that are gone while events point to them."""
        name = "visit_occurrence"
        visits = self.tables[name]
        start, end = visits["visit_start_date"], visits["visit_end_date"]
        is_outpatient = visits["visit_concept_id"] == 9202
        long = np.where(is_outpatient, start + VERY_LONG, end)
        self._set(name, "visit_end_date", "overlap", 0.006, end + 30)
        self._set(name, "visit_end_date", "backward", 0.006, start - 3)
        self._set(name, "visit_end_date", "very long", 0.002, long)
        self._set(name, "visit_end_date", "no end", 0.006, MISSING)
        self._set(name, "visit_start_date", "no start", 0.003, MISSING)
        self._set(name, "visit_start_datetime", "no time", 0.02, NO_TIME)
        self._set(name, "visit_concept_id", "zero", 0.01, 0)
        self._set(name, "visit_concept_id", "null", 0.003, MISSING)
        self._keep(name, ~self._hit(name, "orphan", 0.006))

    def _events(self, name: str, prefix: str, start: str) -> None:
        """Odd dates, concepts and visits; visits without events; repeated rows."""
        bare = self.draws("visit without events", self.tables[name]["_visit"]) < 0.01
        self._keep(name, ~bare)
        day = self.tables[name][f"{start}_date"]
        self._set(name, f"{start}_date", "day before", 0.03, day - 1)
        self._set(name, f"{start}_date", "after the end", 0.006, day + 60)
        self._set(name, f"{start}_date", "no date", 0.003, MISSING)
        self._set(name, f"{start}_datetime", "no time", 0.02, NO_TIME)
        self._set(name, f"{prefix}_concept_id", "zero", 0.03, 0)
        self._set(name, f"{prefix}_concept_id", "null", 0.006, MISSING)
        self._set(name, "visit_occurrence_id", "no visit", 0.03, MISSING)
        self._repeat(name, 0.015)

    def _drugs(self) -> None:
        """Odd days of supply, and ends before starts."""
        name = "drug_exposure"
        day = self.tables[name]["drug_exposure_start_date"]
        for days_supply, share in ((0, 0.006), (-5, 0.003), (18_615, 0.003)):
            self._set(name, "days_supply", f"{days_supply}", share, days_supply)
        before = np.where(day == MISSING, MISSING, day - 2)
        self._set(name, "drug_exposure_end_date", "backward", 0.006, before)

    def _deaths(self) -> None:
        """Deaths before the last visit, long after it, and twice."""
        day = self.tables["death"]["death_date"]
        self._set("death", "death_date", "early", 0.08, day - 40)
        self._set("death", "death_date", "late", 0.08, day + 400)
        self._repeat("death", 0.05)

    def _hit(self, name: str, oddity: str, share: float) -> np.ndarray:
        """Choose a share of a table's rows."""
        return self.draws(f"{name} {oddity}", self.tables[name]["_key"]) < share

    def _set(
        self,
        name: str,
        column: str,
        oddity: str,
        share: float,
        value: np.ndarray | float,
    ) -> None:
        """Replace a column's values in a share of a table's rows."""
        table = self.tables[name]
        hit = self._hit(name, oddity, share)
        table[column] = np.where(hit, value, table[column])

    def _keep(self, name: str, rows: np.ndarray) -> None:
        table = self.tables[name]
        self.tables[name] = {column: values[rows] for column, values in table.items()}

    def _repeat(self, name: str, share: float) -> None:
        """Write some rows twice; where a table has ids, each row gets its own."""
        times = 1 + self._hit(name, "twice", share)
        table = self.tables[name]
        self.tables[name] = {c: np.repeat(values, times) for c, values in table.items()}
