"""Say when the persons of a block are seen, where, why and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np

from omop_gpt.simulation.draws import Draws
from omop_gpt.simulation.knowledge import NEVER, SETTINGS, Knowledge
from omop_gpt.simulation.mechanisms import YEAR
from omop_gpt.simulation.patients import LONGEST, People

YEARS = np.arange(2005, 2024)
YEAR_STARTS = (YEARS - 1970).astype("datetime64[Y]").astype("datetime64[D]").astype(int)
MINUTES = 1440  # in a day
ADULT_AGE = 16  # years
APPOINTMENT_DAYS = 91  # appointments are offered every quarter
LONGEST_STAY = 45  # days
SPAN = 1 << 16  # more than any day: persons times SPAN plus day sorts by both
OUTPATIENT, EMERGENCY, INPATIENT = (SETTINGS[s] for s in list(SETTINGS)[1:])
ARRIVALS = ((0, 0.15, 0.6, 0.92, 1), (0, 480, 960, 1320, MINUTES - 1))  # share, minute
LAST_STAYS = {"sepsis": 0.4, "pneumonia": 0.35, "ischemic stroke": 0.25}


@dataclass(kw_only=True)
class Encounters:
    """One row per reason to be seen; several may fall into one visit."""

    person: np.ndarray
    day: np.ndarray
    setting: np.ndarray
    condition: np.ndarray
    stay: np.ndarray  # days
    brings_more: np.ndarray  # follow-ups and readmissions

    @classmethod
    def of(cls, person: np.ndarray, **columns: np.ndarray | int | bool) -> Encounters:
        """Fill columns with one value where one is given."""
        columns = {"stay": 0, "brings_more": False} | columns
        wide = {n: np.broadcast_to(v, person.shape) for n, v in columns.items()}
        return cls(person=person, **wide)

    @classmethod
    def concat(cls, parts: list[Encounters]) -> Encounters:
        """Put rows below one another."""
        names = [field.name for field in fields(cls)]
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    def where(self, keep: np.ndarray) -> Encounters:
        """Keep some rows."""
        return Encounters(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


@dataclass(kw_only=True)
class Visits:
    """One row per visit, by person, day and setting; minutes are those of the day."""

    person: np.ndarray
    start: np.ndarray
    end: np.ndarray
    setting: np.ndarray
    is_last: np.ndarray  # the person died in it
    key: np.ndarray  # uint64
    reasons: np.ndarray  # (visits, conditions): there, or the reason of the visit
    care_for: list[np.ndarray] = field(default_factory=list)  # visits per condition
    start_minute: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    end_minute: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class Schedule:
    """Brings people to visits."""

    def __init__(self, knowledge: Knowledge, draws: Draws) -> None:
        self.knowledge = knowledge
        self.draws = draws

    def visits(self, people: People) -> Visits:
        """Bring together all reasons to be seen, and say when visits begin and end."""
        found = [self._appointments(people), *self._diagnoses(people)]
        illness = Encounters.concat(list(self._episodes(people)))
        illness = Encounters.concat([illness, *self._follow_ups(people, illness)])
        illness = Encounters.concat([illness, *self.readmissions(people, illness)])
        found += [illness, self._arrivals(people, illness)]
        found += self._last_stays(people)
        return self._merge(people, Encounters.concat(found))

    def _appointments(self, people: People) -> Encounters:
        """Offer check-ups: the more conditions, the more often; to infants as well."""
        index = people.index[:, None]
        number = np.arange(LONGEST // APPOINTMENT_DAYS)
        first = people.start + self.draws("first", people.index) * APPOINTMENT_DAYS
        late = self.draws("late", index, number) * 21
        day = first[:, None] + APPOINTMENT_DAYS * number + late
        day = _workday(day.astype(np.int64))
        person, number = np.nonzero(day <= people.end[:, None])
        day = day[person, number]
        age = people.age(person, day)
        burden = (people.onset[person] <= day[:, None]).sum(axis=1)
        is_child = age < ADULT_AGE
        quarters = np.select(
            [age < 1.5, age < 3, is_child, burden > 4, burden > 0], [1, 2, 4, 1, 2], 4
        )
        comes = np.select([is_child, burden > 0, age < 40], [0.8, 0.75, 0.45], 0.65)
        taken = self.draws("comes", people.index[person], number) < comes
        keep = taken & (number % quarters == 0)
        check_up = np.where(
            is_child,
            self.knowledge.index["child check-up"],
            self.knowledge.index["adult check-up"],
        )
        return Encounters.of(
            person[keep], day=day[keep], setting=OUTPATIENT, condition=check_up[keep]
        )

    def _diagnoses(self, people: People) -> Iterator[Encounters]:
        """Bring a person in on the day a chronic condition begins."""
        for condition in self.knowledge.chronic:
            day = people.onset[:, condition.index]
            person = np.flatnonzero((day >= people.start) & (day <= people.end))
            yield Encounters.of(
                person, day=day[person], setting=OUTPATIENT, condition=condition.index
            )

    def _episodes(self, people: People) -> Iterator[Encounters]:
        """Draw acute illness: at most one of each kind a year."""
        middle = YEAR_STARTS + 182
        observed = (people.start[:, None] <= YEAR_STARTS + 365) & (
            people.end[:, None] >= YEAR_STARTS
        )
        person, year = np.nonzero(observed)
        age = np.maximum(people.age(person, middle[year]), 0)
        index = people.index[person]
        sex = people.is_female[person].astype(int)
        active = people.onset[person] <= middle[year][:, None]
        # Older adults are admitted sooner than younger ones with the same illness.
        admitted = np.where(age < ADULT_AGE, 1.2, 60 / np.clip(age, 20, 100))
        for condition in self.knowledge.acute:
            rate = condition.hazard[age.astype(int)] * people.frailty[person]
            rate *= condition.factors[sex]
            for other, factor in condition.boosts.items():
                rate[active[:, other]] *= factor
            if condition.needs is not None:
                rate *= active[:, condition.needs]
            happens = self.draws(f"{condition.name} happens", index, year)
            ill = np.flatnonzero(happens < -np.expm1(-rate))
            part = self.draws(f"{condition.name} day", index[ill], year[ill])
            month = np.interp(part, condition.season, np.arange(13))
            day = YEAR_STARTS[year[ill]] + (month / 12 * 365).astype(np.int64)
            where = self.draws(f"{condition.name} setting", index[ill], day)
            inpatient = condition.inpatient_share ** admitted[ill]
            setting = np.select(
                [where < inpatient, where < inpatient + condition.emergency_share],
                [INPATIENT, EMERGENCY],
                OUTPATIENT,
            )
            found = Encounters.of(
                person[ill],
                day=np.where(setting == OUTPATIENT, _workday(day), day),
                setting=setting,
                condition=condition.index,
                stay=self._stays(condition.stay_days, index[ill], day, setting),
                brings_more=True,
            )
            yield found.where(day >= (condition.first_year - 1970) * YEAR)

    def _stays(
        self,
        median: np.ndarray | float,
        index: np.ndarray,
        day: np.ndarray,
        setting: np.ndarray,
    ) -> np.ndarray:
        """Draw the days of inpatient stays, at least one; 0 for other settings."""
        spread = np.exp(0.55 * self.draws.normal("stay", index, day))
        days = np.clip(np.round(median * spread), 1, LONGEST_STAY)
        return np.where(setting == INPATIENT, days, 0).astype(np.int64)

    def _follow_ups(self, people: People, illness: Encounters) -> Iterator[Encounters]:
        """Add the visits that an episode brings."""
        conditions = self.knowledge.conditions
        sources = {
            one.index: [illness.where(illness.condition == one.index)]
            for one in self.knowledge.acute
        }
        for rule in self.knowledge.follow_ups:
            source = Encounters.concat(sources[rule.condition])
            index = people.index[source.person]
            chance = self.draws("follow-up", index, source.day, rule.number)
            happens = (chance < rule.share) & source.brings_more
            if rule.from_setting >= 0:
                happens &= source.setting == rule.from_setting
            source, index = source.where(happens), index[happens]
            spread = self.draws("follow-up day", index, source.day, rule.number) * 2 - 1
            day = source.day + source.stay + rule.days_after
            day = day + (spread * rule.spread_days).astype(np.int64)
            if rule.to_setting == OUTPATIENT:
                day = _workday(day)
            stay_days = conditions[rule.filed_under].stay_days
            found = Encounters.of(
                source.person,
                day=day,
                setting=rule.to_setting,
                condition=rule.filed_under,
                stay=self._stays(stay_days, index, day, np.array(rule.to_setting)),
                brings_more=rule.filed_under != rule.condition,
            )
            sources[rule.filed_under].append(found)
            yield found

    def readmissions(self, people: People, illness: Encounters) -> Iterator[Encounters]:
        """Let stays bring stays, which bring stays in turn."""
        law = self.knowledge.readmission
        stay_days = np.array([one.stay_days for one in self.knowledge.conditions])
        stays = _apart(illness.where(illness.setting == INPATIENT))
        while stays.person.size:
            index, end = people.index[stays.person], stays.day + stays.stay
            factor = law.factors(stays.condition, people.age(stays.person, end))
            wait = law.waiting.days(self.draws("readmitted", index, end), factor)
            again = wait <= law.DAYS
            before, index = stays.where(again), index[again]
            # on the day after at the earliest, else it would be one stay
            day = end[again] + np.maximum(np.ceil(wait[again]), 1).astype(np.int64)
            other = self.draws.choice(law.others, "readmitted for", index, day)
            is_same = self.draws("same reason", index, day) < law.same[before.condition]
            condition = np.where(is_same, before.condition, other)
            stays = Encounters.of(
                before.person,
                day=day,
                setting=INPATIENT,
                condition=condition,
                stay=self._stays(stay_days[condition], index, day, np.array(INPATIENT)),
            ).where(day <= people.end[before.person])
            yield stays

    def _arrivals(self, people: People, illness: Encounters) -> Encounters:
        """Put the emergency room before most beds."""
        conditions = self.knowledge.conditions
        urgent = np.array([c.emergency_share > 0 for c in conditions])
        arrives = self.draws("arrives", people.index[illness.person], illness.day)
        is_urgent = (illness.setting == INPATIENT) & urgent[illness.condition]
        part = illness.where((arrives < 0.75) & is_urgent)
        return Encounters.of(
            part.person, day=part.day, setting=EMERGENCY, condition=part.condition
        )

    def _last_stays(self, people: People) -> Iterator[Encounters]:
        """Let some die in hospital."""
        shares = {self.knowledge.index[name]: p for name, p in LAST_STAYS.items()}
        dies_there = self.draws("dies in hospital", people.index) < 0.45
        person = np.flatnonzero((people.death < NEVER) & dies_there)
        day = people.death[person]
        index = people.index[person]
        stay = self._stays(5, index, day, np.array(INPATIENT))
        yield Encounters.of(
            person,
            day=np.maximum(day - stay, people.start[person]),
            setting=INPATIENT,
            condition=self.draws.choice(shares, "last stay", index),
            stay=stay,
        )

    def _merge(self, people: People, found: Encounters) -> Visits:
        """Make one visit of a person, day and setting; nothing else during a stay."""
        found = found.where(
            (found.day >= people.start[found.person])
            & (found.day <= people.end[found.person])
        )
        code = (found.person * SPAN + found.day) * 3 + found.setting
        code, visit = np.unique(code, return_inverse=True)
        place, setting = np.divmod(code, 3)
        stay = np.zeros(code.size, np.int64)
        np.maximum.at(stay, visit, found.stay)
        reach = np.where(setting == INPATIENT, place + stay, 0)
        reach = np.concatenate([[0], np.maximum.accumulate(reach)[:-1]])
        keep = place >= reach
        position, kept = np.cumsum(keep) - 1, keep[visit]
        visit, condition = position[visit[kept]], found.condition[kept]
        person, start = np.divmod(place[keep], SPAN)
        setting = setting[keep]
        end = np.minimum(start + stay[keep], people.end[person])
        reasons = np.zeros((person.size, len(self.knowledge.conditions)), bool)
        active = people.onset[person] <= start[:, None]
        reasons[:, : active.shape[1]] = active
        reasons[visit, condition] = True
        visits = Visits(
            person=person,
            start=start,
            end=end,
            setting=setting,
            is_last=(end == people.death[person]) & (setting == INPATIENT),
            key=self.draws.key("visit", people.index[person], start, setting),
            reasons=reasons,
        )
        visits.care_for = self._care_for(visits, visit, condition)
        self._clock(people, visits)
        return visits

    def _care_for(
        self, visits: Visits, visit: np.ndarray, condition: np.ndarray
    ) -> list[np.ndarray]:
        """List per condition the visits that bring its care, in order."""
        index = self.knowledge.index
        check_ups = [index["adult check-up"], index["child check-up"]]
        # Check-ups and stays look after everything that is there.
        is_stay = visits.setting == INPATIENT
        looks = visits.reasons[:, check_ups].any(axis=1) | is_stay
        care_for = []
        for one in self.knowledge.conditions:
            seen = np.zeros(visits.setting.size, bool)
            seen[visit[condition == one.index]] = True
            if one.course == "chronic":
                seen |= looks & visits.reasons[:, one.index]
            care_for.append(np.flatnonzero(seen))
        care_for[index["emergency visit"]] = np.flatnonzero(visits.setting == EMERGENCY)
        care_for[index["hospital stay"]] = np.flatnonzero(is_stay)
        return care_for

    def _clock(self, people: People, visits: Visits) -> None:
        """Draw when people come and go; outpatients do so at midnight, for unknown."""
        person, start, end = visits.person, visits.start, visits.end
        is_emergency = visits.setting == EMERGENCY
        hours = self.draws("arrival", visits.key)
        arrives = np.interp(hours, *ARRIVALS).astype(np.int64)
        part = self.draws("duration", visits.key)
        leaves = arrives + (120 + 360 * part).astype(np.int64)
        # Into a bed on the same day: the stay begins as the emergency visit ends.
        into_bed = np.zeros(person.size, bool)
        into_bed[:-1] = (person[1:] == person[:-1]) & (start[1:] == start[:-1])
        into_bed &= is_emergency
        today = arrives + (part * (MINUTES - arrives)).astype(np.int64)
        leaves = np.where(into_bed, np.minimum(leaves, today), leaves)
        overnight = (leaves >= MINUTES) & (start < people.end[person])
        leaves = np.where(overnight, leaves - MINUTES, np.minimum(leaves, MINUTES - 1))
        from_room = np.concatenate([[False], into_bed[:-1]])
        before = np.concatenate([[0], leaves[:-1]])
        admitted = np.where(from_room, before, 420 + arrives % 240)
        discharged = 600 + (420 * self.draws("discharge", visits.key)).astype(np.int64)
        same_day = np.maximum(admitted, discharged)
        discharged = np.where(end == start, same_day, discharged)
        settings = [is_emergency, visits.setting == INPATIENT]
        visits.start_minute = np.select(settings, [arrives, admitted], 0)
        visits.end_minute = np.select(settings, [leaves, discharged], 0)
        visits.end = np.where(is_emergency & overnight, end + 1, end)


def _apart(stays: Encounters) -> Encounters:
    """Leave out stays that begin within another of the same person."""
    order = np.lexsort((stays.day, stays.person))
    stays = stays.where(order)
    place = stays.person * SPAN + stays.day
    reach = np.maximum.accumulate(place + stays.stay)
    return stays.where(np.concatenate([[True], place[1:] > reach[:-1]])[: place.size])


def _workday(day: np.ndarray) -> np.ndarray:
    """Move Saturdays and Sundays to the Monday after."""
    weekday = (day + 3) % 7  # 1970-01-01 was a Thursday
    return np.where(weekday > 4, day + 7 - weekday, day)
