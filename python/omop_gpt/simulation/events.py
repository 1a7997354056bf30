"""Say what happens at the visits of a block of patients, and write it as CDM columns.

Columns that begin with an underscore are not written: they tell rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from omop_gpt.simulation.draws import Draws
from omop_gpt.simulation.knowledge import (
    MISSING,
    NEVER,
    Care,
    Condition,
    Knowledge,
    Measurement,
)
from omop_gpt.simulation.mechanisms import creatinine
from omop_gpt.simulation.patients import People, make_people
from omop_gpt.simulation.visits import (
    EMERGENCY,
    INPATIENT,
    LONGEST_STAY,
    MINUTES,
    OUTPATIENT,
    Schedule,
    Visits,
)

Table = dict[str, np.ndarray]

DAYS = LONGEST_STAY + 2  # more than any day of a visit: sorts by visit and day
LATER_DAYS = 270  # after which treatment shows in measurements
RECOVERY = 0.8  # of an acute shift that is left after a day in hospital
FEMALE, MALE = 8532, 8507
VISIT_CONCEPTS = np.array([9202, 9203, 9201])
HOME, NURSING_FACILITY, SKILLED_NURSING, DIED = 8536, 8676, 8863, 4216643
LESS_THAN = 4171756
RECORD, PRESCRIPTION, EHR, ALGORITHM = 32827, 32838, 32817, 32882  # type concepts

# domain of a concept: its table, the prefix of its concept columns, of its dates
EVENT_TABLES = {
    "Condition": ("condition_occurrence", "condition", "condition_start"),
    "Drug": ("drug_exposure", "drug", "drug_exposure_start"),
    "Procedure": ("procedure_occurrence", "procedure", "procedure"),
    "Device": ("device_exposure", "device", "device_exposure_start"),
    "Measurement": ("measurement", "measurement", "measurement"),
    "Observation": ("observation", "observation", "observation"),
}


@dataclass(kw_only=True)
class Events:
    """One row per event, by visit and time."""

    visit: np.ndarray
    person: np.ndarray
    day: np.ndarray
    offset: np.ndarray  # days since the visit's start
    minute: np.ndarray  # of the day; 0 at outpatient visits
    care: np.ndarray  # number of the care
    concept: np.ndarray
    key: np.ndarray  # uint64

    def where(self, keep: np.ndarray) -> Events:
        """Keep some rows."""
        return Events(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


class Clinic:
    """Turns people into CDM tables."""

    def __init__(self, knowledge: Knowledge, seed: int) -> None:
        self.knowledge = knowledge
        self.draws = Draws(seed)
        self.schedule = Schedule(knowledge, self.draws)
        self.concepts = np.array([care.concept_id for care in knowledge.care])
        self.trends = {trend.condition: trend for trend in knowledge.trends}
        self.visits_before = 0  # so that ids run on from block to block

    def block(self, index: np.ndarray) -> dict[str, Table]:
        """Simulate the persons with these positions: their rows of every table."""
        people = make_people(index, self.knowledge, self.draws)
        visits = self.schedule.visits(people)
        events = self._events(people, visits)
        tables = {
            "person": _person(people),
            "observation_period": _observation_period(people),
            "visit_occurrence": self._visit_occurrence(people, visits),
            "death": _death(people),
        }
        for domain, (name, _, _) in EVENT_TABLES.items():
            tables[name] = self._event_table(domain, people, visits, events)
        self.visits_before += visits.person.size
        for table in tables.values():
            table["person_id"] = index[table["_person"]] + 1
            table["_person"] = index[table["_person"]]
        return tables

    def _events(self, people: People, visits: Visits) -> Events:
        """Let every care happen at the visits that bring it."""
        stay = np.where(visits.setting == INPATIENT, visits.end - visits.start, 0)
        parts = []
        for condition in self.knowledge.conditions:
            at = visits.care_for[condition.index]
            since = np.zeros(at.size, np.int64)
            if condition.course == "chronic":
                onset = people.onset[visits.person[at], condition.index]
                since = visits.start[at] - onset
            line = self.line(people, condition, visits.person[at], since)
            level = np.zeros(at.size)
            if condition.index in self.trends:
                trend = self.trends[condition.index]
                level = trend.value(
                    people, self.draws, visits.person[at], visits.start[at]
                )
            for care in condition.care:
                fits = _within(line, care.lines) & _within(level, care.levels)
                given = at[fits], since[fits]
                visit, day = self._due(people, visits, care, *given, stay)
                parts.append((visit, day, np.full(visit.size, care.number)))
        visit, offset, care = map(np.concatenate, zip(*parts, strict=True))
        # Two conditions may ask for the same thing: it is done once a day.
        concepts, concept = np.unique(self.concepts, return_inverse=True)
        code = (visit * DAYS + offset) * concepts.size + concept[care]
        _, first = np.unique(code, return_index=True)
        visit, offset, care = visit[first], offset[first], care[first]
        offset, minute = self._times(visits, visit, offset, care)
        concept = self.concepts[care]
        events = Events(
            visit=visit,
            person=visits.person[visit],
            day=visits.start[visit] + offset,
            offset=offset,
            minute=minute,
            care=care,
            concept=concept,
            key=self.draws.key("event", visits.key[visit], offset, concept),
        )
        time = (visit * DAYS + offset) * MINUTES + minute
        return events.where(np.argsort(time, kind="stable"))

    def line(
        self,
        people: People,
        condition: Condition,
        person: np.ndarray,
        since: np.ndarray,
    ) -> np.ndarray:
        """Return the line of treatment, from 1, that persons are on at visits."""
        line = np.ones(person.size, np.int64)
        begins = np.zeros(people.index.size)  # days after the onset
        for number, waiting in enumerate(self.knowledge.lines[condition.index], 2):
            name = f"{condition.name}, line {number}"
            begins = begins + waiting.days(self.draws(name, people.index))
            line[since >= begins[person]] = number
        return line

    def _due(
        self,
        people: People,
        visits: Visits,
        care: Care,
        visit: np.ndarray,
        since: np.ndarray,
        stay: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose visits where a care happens; returns them and days into the visit."""
        person, start = visits.person[visit], visits.start[visit]
        due = np.ones(visit.size, bool)
        if care.setting >= 0:
            due &= visits.setting[visit] == care.setting
        if care.unless is not None:
            due &= ~visits.reasons[visit, care.unless]
        if care.is_female is not None:
            due &= people.is_female[person] == care.is_female
        if care.months != (1, 12):
            month = start.astype("datetime64[D]").astype("datetime64[M]").astype(int)
            due &= (month % 12 + 1 >= care.months[0]) & (month % 12 < care.months[1])
        age = people.age(person, start)
        due &= (age >= care.ages[0]) & (age < care.ages[1])
        due &= (since >= care.days[0]) & (since < care.days[1])
        visit, since = visit[due], since[due]
        if care.persons != (0, 1):
            part = self.draws(care.line, people.index[visits.person[visit]])
            due = (part >= care.persons[0]) & (part < care.persons[1])
            visit, since = visit[due], since[due]
        name = f"care {care.number}"
        if care.timing == "daily":
            days = stay[visit] + 1
            visit = np.repeat(visit, days)
            offset = np.arange(visit.size) - np.repeat(np.cumsum(days) - days, days)
            due = self.draws(name, visits.key[visit], offset) < care.share
            return visit[due], offset[due]
        due = self.draws(name, visits.key[visit]) < care.share
        if care.is_record:
            due |= since == 0  # what is new is always written down
        visit = visit[due]
        if care.timing == "last":
            return visit, stay[visit]
        if care.timing == "any":
            part = self.draws(f"{name} day", visits.key[visit])
            return visit, (part * (stay[visit] + 1)).astype(np.int64)
        return visit, np.zeros(visit.size, np.int64)

    def _times(
        self, visits: Visits, visit: np.ndarray, offset: np.ndarray, care: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the minutes of events within their visits; returns days and minutes."""
        part = self.draws("minute", visits.key[visit], offset, care)
        setting = visits.setting[visit]
        start, end = visits.start_minute[visit], visits.end_minute[visit]
        days = visits.end[visit] - visits.start[visit]
        # In hospital: soon after admission, by day, and before discharge.
        soon = np.minimum(start + 240, MINUTES - 1)
        low = np.where(offset == 0, start, 360)
        high = np.where(offset == days, end, np.where(offset == 0, soon, 1319))
        # In the emergency room: between arrival and leaving, over midnight or not.
        is_emergency = setting == EMERGENCY
        low = np.where(is_emergency, start, low)
        high = np.where(is_emergency, end + days * MINUTES, np.maximum(low, high))
        minute = low + (part * (high - low + 1)).astype(np.int64)
        later, minute = np.divmod(np.where(setting == OUTPATIENT, 0, minute), MINUTES)
        return offset + later, minute

    def _event_table(
        self, domain: str, people: People, visits: Visits, events: Events
    ) -> Table:
        """Write the events of one domain as the columns of its table."""
        _, prefix, start = EVENT_TABLES[domain]
        is_here = np.array([care.domain == domain for care in self.knowledge.care])
        events = events.where(is_here[events.care])
        table = {
            "_person": events.person,
            "_key": events.key,
            "_visit": visits.key[events.visit],
            f"{prefix}_concept_id": events.concept,
            f"{start}_date": events.day,
            f"{start}_datetime": events.day * MINUTES + events.minute,
            f"{prefix}_type_concept_id": np.full(events.day.size, RECORD),
            "visit_occurrence_id": self.visits_before + 1 + events.visit,
        }
        if domain == "Condition":
            table["condition_end_date"] = self._condition_end(people, visits, events)
        elif domain == "Drug":
            days_supply = np.array([c.days_supply for c in self.knowledge.care])
            quantity = np.array([c.quantity for c in self.knowledge.care])
            table["days_supply"] = days_supply[events.care]
            table["quantity"] = quantity[events.care]
            end = events.day + np.maximum(table["days_supply"], 1) - 1
            end = np.minimum(end, people.end[events.person])
            table["drug_exposure_end_date"] = end
            table["drug_type_concept_id"] = np.full(end.size, PRESCRIPTION)
        elif domain == "Device":
            table["quantity"] = np.ones(events.day.size, np.int64)
        elif domain in ("Measurement", "Observation"):
            table |= self._values(people, visits, events)
        return table

    def _condition_end(
        self, people: People, visits: Visits, events: Events
    ) -> np.ndarray:
        """End acute illness with the stay, or one to three weeks later; no other."""
        acute = [c.care[0].number for c in self.knowledge.acute if c.care[0].is_record]
        later = 7 + (14 * self.draws("recovers", events.key)).astype(np.int64)
        is_stay = visits.setting[events.visit] == INPATIENT
        end = np.where(is_stay, visits.end[events.visit], events.day + later)
        end = np.minimum(end, people.end[events.person])
        return np.where(np.isin(events.care, acute), end, MISSING)

    def _values(self, people: People, visits: Visits, events: Events) -> Table:
        """Draw the values, units, operators and answers of measurements."""
        value = np.full(events.day.size, np.nan)
        unit, operator, answer = np.full((3, events.day.size), MISSING)
        for care in self.knowledge.care:
            if care.answers:
                rows = np.flatnonzero(events.care == care.number)
                key = events.key[rows]
                answer[rows] = self.draws.choice(care.answers, "answer", key)
        for measurement in self.knowledge.measurements:
            rows = np.flatnonzero(events.concept == measurement.concept_id)
            value[rows], unit[rows], operator[rows] = self._measure(
                measurement, people, visits, events.where(rows)
            )
        return {
            "value_as_number": value,
            "value_as_concept_id": answer,
            "unit_concept_id": unit,
            "operator_concept_id": operator,
        }

    def _measure(
        self, measurement: Measurement, people: People, visits: Visits, events: Events
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw numbers, units and operators of one measurement."""
        index = people.index[events.person]
        age = people.age(events.person, events.day)
        is_female = people.is_female[events.person]
        trait = self.draws.normal(measurement.trait, index)
        own = measurement.female * is_female + measurement.between_persons * trait
        typical = np.interp(age, *measurement.by_age)
        for trend in self.trends.values():
            is_made = (measurement.law, trend.measurement.law) == ("MDRD", "filtration")
            if trend.measurement is not measurement and not is_made:
                continue
            begun = events.day >= trend.begins(people, events.person)
            level = trend.value(people, self.draws, events.person, events.day)
            level = creatinine(level, age, is_female) if is_made else level
            typical, own = np.where(begun, level, typical), np.where(begun, 0, own)
        shift = own + measurement.within_person * self.draws.normal("noise", events.key)
        for condition, early, late in measurement.shifts:
            there = visits.reasons[events.visit, condition]
            if condition < people.onset.shape[1]:
                since = events.day - people.onset[events.person, condition]
                shift += there * np.where(since < LATER_DAYS, early, late)
            else:
                shift += there * early * RECOVERY**events.offset
        value = typical * np.exp(shift) if measurement.is_log else typical + shift
        value = np.clip(value, measurement.low, measurement.high)
        is_below = value < measurement.detection_limit
        value = np.maximum(value, measurement.detection_limit)
        value = np.round(value, measurement.decimals)
        # Each person is measured in the unit of one laboratory.
        laboratory = self.draws(f"laboratory {measurement.concept_id}", index)
        is_other = laboratory < measurement.other_share
        other = np.round(value * measurement.other_factor, measurement.other_decimals)
        units = measurement.other_unit_concept_id, measurement.unit_concept_id
        return (
            np.where(is_other, other, value),
            np.where(is_other, *units),
            np.where(is_below, LESS_THAN, MISSING),
        )

    def _visit_occurrence(self, people: People, visits: Visits) -> Table:
        """Write the visits; the old and frail often go on to nursing care."""
        age = people.age(visits.person, visits.start)
        index = self.knowledge.index
        frail = [
            index[name] for name in ("hip fracture", "ischemic stroke", "dementia")
        ]
        is_frail = visits.reasons[:, frail].any(axis=1) & (age > 60)
        chance = np.clip((age - 65) / 80, 0, 0.3) + 0.3 * is_frail
        part = self.draws("discharged", visits.key)
        discharged = np.select(
            [
                visits.setting != INPATIENT,
                visits.is_last,
                part < 0.7 * chance,
                part < chance,
            ],
            [MISSING, DIED, SKILLED_NURSING, NURSING_FACILITY],
            HOME,
        )
        return {
            "_person": visits.person,
            "_key": visits.key,
            "visit_occurrence_id": self.visits_before + 1 + np.arange(age.size),
            "visit_concept_id": VISIT_CONCEPTS[visits.setting],
            "visit_start_date": visits.start,
            "visit_start_datetime": visits.start * MINUTES + visits.start_minute,
            "visit_end_date": visits.end,
            "visit_end_datetime": visits.end * MINUTES + visits.end_minute,
            "visit_type_concept_id": np.full(age.size, RECORD),
            "discharged_to_concept_id": discharged,
        }


def _within(values: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """Tell which values lie from the first bound on and below the second, if any."""
    if bounds is None:
        return np.ones(values.size, bool)
    return (values >= bounds[0]) & (values < bounds[1])


def _rows(people: People, rows: np.ndarray) -> Table:
    """Begin a table of persons."""
    return {"_person": rows, "_key": people.index[rows].astype(np.uint64)}


def _person(people: People) -> Table:
    birth = people.birth.astype("datetime64[D]")
    month = birth.astype("datetime64[M]")
    return _rows(people, np.arange(people.index.size)) | {
        "gender_concept_id": np.where(people.is_female, FEMALE, MALE),
        "year_of_birth": birth.astype("datetime64[Y]").astype(np.int64) + 1970,
        "month_of_birth": month.astype(np.int64) % 12 + 1,
        "day_of_birth": (birth - month).astype(np.int64) + 1,
        "birth_datetime": people.birth * MINUTES,
        "race_concept_id": people.race,
        "ethnicity_concept_id": people.ethnicity,
    }


def _observation_period(people: People) -> Table:
    return _rows(people, np.arange(people.index.size)) | {
        "observation_period_start_date": people.start,
        "observation_period_end_date": people.end,
        "period_type_concept_id": np.full(people.index.size, ALGORITHM),
    }


def _death(people: People) -> Table:
    dead = np.flatnonzero(people.death < NEVER)
    return _rows(people, dead) | {
        "death_date": people.death[dead],
        "death_datetime": people.death[dead] * MINUTES,
        "death_type_concept_id": np.full(dead.size, EHR),
    }
