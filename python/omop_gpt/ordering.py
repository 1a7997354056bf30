"""Order the visits and events of persons, as their histories have them.

What int_visits_ordered and int_events_ordered say in SQL, and a test holds equal to
them, in a third of the time: DuckDB would join, sort and look back at rows of thirty
columns, where here a number of 64 bits or two stand for each. Imports neither dbt nor
Spark.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from omop_gpt.columns import Columns, new_year, table_of
from omop_gpt.pack import arrow

VISITS = pa.schema(
    {
        "person_id": pa.int64(),
        "visit_order": pa.int32(),
        "is_loose": pa.bool_(),
        "visit_occurrence_id": pa.int64(),
        "visit_concept_id": pa.int64(),
        "visit_start_date": pa.date32(),
        "visit_end_date": pa.date32(),
        "discharged_to_concept_id": pa.int64(),
        "gap_days": pa.int32(),
        "event_count": pa.int32(),
    }
)
EVENTS = pa.schema(
    {
        "person_id": pa.int64(),
        "visit_order": pa.int32(),
        "event_order": pa.int32(),
        "token_order": pa.int32(),
        "source_id": pa.int64(),
        "row_count": pa.int32(),
        "event_date": pa.date32(),
        "day_offset": pa.int32(),
        "hour": pa.int32(),
        "value_as_number": pa.float64(),
        "value_bin": pa.int32(),
        "operator_concept_id": pa.int64(),
        "value_as_concept_id": pa.int64(),
        "quantity": pa.float64(),
        "quantity_bin": pa.int32(),
        "days_supply": pa.int32(),
        "end_date": pa.date32(),
    }
)
# visits of a person come by these: macro order_of_steps()
ORDER = (
    "visit_start_date",
    "visit_end_date",
    "visit_concept_id",
    "visit_occurrence_id",
    "repetition",
)
DENSE = 8  # times as many numbers as ids: then a table of all finds them
# rows alike in these and their visit are one event: macro written_of_event()
WRITTEN = (
    "event_date",
    "hour",
    "token_order",
    "value_as_number",
    "operator_concept_id",
    "value_as_concept_id",
    "quantity",
    "days_supply",
    "end_date",
)


def ordered(
    persons: pa.Table, visits: pa.Table, events: pa.Table
) -> tuple[pa.Table, pa.Table]:
    """Order visits with loose days (VISITS), and events (EVENTS).

    `persons`: person_id, which ascends. `visits` and `events`: theirs, in any order, as
    visits_to_order() and events_to_order() ask for them.
    """
    spans = Spans(Columns(persons), Columns(visits), Columns(events))
    return spans.table(), spans.events_table()


class Spans:
    """Visits and loose days in order (S,), and the span of each event (E,).

    A loose day has the events of one date that belong to no visit. It comes after the
    visits that start on its date.
    """

    def __init__(self, persons: Columns, visits: Columns, events: Columns) -> None:
        """Order visits, and put days between them."""
        self.person_id = persons.values("person_id")
        self.visits, self.events = visits, events
        person = places_of(self.person_id, visits.values("person_id"))
        visit = in_order(
            [person, *(key for name in ORDER for key in keys(visits, name))]
        )
        person, start = person[visit], visits.values("visit_start_date", visit)
        person_of_event = places_of(self.person_id, events.values("person_id"))
        is_loose = events.nulls("visit_occurrence_id")
        loose = np.flatnonzero(is_loose)
        day, day_of_event = np.unique(
            dated(person_of_event[loose], events.values("event_date", loose)),
            return_inverse=True,
        )
        starts = dated(person, start)
        of_visit = np.arange(len(visit)) + np.searchsorted(day, starts)
        of_day = np.arange(len(day)) + np.searchsorted(starts, day, side="right")
        count = len(visit) + len(day)
        self.visit = np.full(count, -1)
        self.visit[of_visit] = visit
        self.person = np.empty(count, dtype=np.int64)
        self.start = np.empty(count, dtype=np.int32)
        self.person[of_visit], self.start[of_visit] = person, start
        self.person[of_day], self.start[of_day] = undated(day)
        self.end = self.start.copy()
        self.end[of_visit] = visits.values("visit_end_date", visit)

        self.of_event = np.empty(events.size, dtype=np.int64)
        self.of_event[loose] = of_day[day_of_event]
        # of the visits of an id the first has its events
        inside = np.flatnonzero(~is_loose)
        has_events = visits.values("repetition", visit) == 1
        has_events &= ~visits.nulls("visit_occurrence_id")[visit]
        self.of_event[inside] = of_visit[has_events][
            rows_of(
                person[has_events],
                visits.values("visit_occurrence_id", visit[has_events]),
                person_of_event[inside],
                events.values("visit_occurrence_id", inside),
            )
        ]
        self.order_events()

    def order_events(self) -> None:
        """Order the events; rows that are alike are one, known by the smallest id."""
        events, span = self.events, self.of_event
        written = [name for name in WRITTEN if events.has(name)]
        order = in_order(
            [
                span,
                *(
                    key
                    for name in (*written, "source_id")
                    for key in keys(events, name, nulls_first=True)
                ),
            ]
        )
        differs = np.ones(len(order), dtype=bool)
        differs[1:] = np.diff(span[order]) != 0
        for name in written:
            for values in events.parts(name):
                of_row = values[order]
                differs[1:] |= of_row[1:] != of_row[:-1]
        first = np.flatnonzero(differs)
        self.event = order[first]
        self.row_count = np.diff(np.append(first, len(order)))
        self.span = span[self.event]
        self.event_count = np.bincount(self.span, minlength=len(self.person))
        first_visit = np.searchsorted(self.person, np.arange(len(self.person_id)))
        self.visit_order = np.arange(len(self.person)) - first_visit[self.person] + 1

    def table(self) -> pa.Table:
        """Return the visits and loose days, with the days since the one before."""
        before = new_year(self.start)
        is_next = np.flatnonzero(self.visit_order > 1)
        before[is_next] = self.end[is_next - 1]
        is_loose = self.visit < 0
        of_visit = {
            name: self.visits.take(name, np.maximum(self.visit, 0), is_loose)
            for name in (
                "visit_occurrence_id",
                "visit_concept_id",
                "discharged_to_concept_id",
            )
        }
        return table_of(
            VISITS,
            person_id=arrow(self.person_id[self.person]),
            visit_order=arrow(self.visit_order),
            is_loose=arrow(is_loose),
            visit_start_date=arrow(self.start),
            visit_end_date=arrow(self.end),
            gap_days=arrow(self.start - before),
            event_count=arrow(self.event_count),
            **of_visit,
        )

    def events_table(self) -> pa.Table:
        """Return the events."""
        first = np.cumsum(self.event_count) - self.event_count
        date = self.events.values("event_date", self.event)
        told = {
            "person_id": arrow(self.person_id[self.person[self.span]]),
            "visit_order": arrow(self.visit_order[self.span]),
            "event_order": arrow(np.arange(len(self.span)) - first[self.span] + 1),
            "row_count": arrow(self.row_count),
            "day_offset": arrow(date - self.start[self.span]),
        }
        for name in EVENTS.names:
            if name not in told:
                told[name] = self.events.take(name, self.event)
        return table_of(EVENTS, **told)


def in_order(keys: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows (N,) in the order of whole numbers (N,), the first key first.

    Rows that are alike in all keys come in any order.
    """
    words, free = [np.zeros(len(keys[0]), dtype=np.uint64)], 64
    for key in keys:
        low = int(key.min(initial=0))
        width = (int(key.max(initial=0)) - low).bit_length()
        if width > free:
            words.append(np.zeros(len(key), dtype=np.uint64))
            free = 64
        if width:
            words[-1] <<= np.uint64(width % 64)
            words[-1] |= key.astype(np.uint64) - np.uint64(low % 2**64)
            free -= width
    order = np.argsort(words[0])
    if len(words) > 1:
        first = words[0][order]
        is_tied = np.append(first[1:] == first[:-1], False)
        is_tied[1:] |= is_tied[:-1]
        places = np.flatnonzero(is_tied)
        rows = order[places]
        order[places] = rows[np.lexsort([word[rows] for word in words[::-1]])]
    return order


def keys(table: Columns, name: str, *, nulls_first: bool = False) -> list[np.ndarray]:
    """Return whole numbers (N,) that have the order of a column; none if it is NULL."""
    if not table.has(name):
        return []
    *is_null, values = table.parts(name)
    if values.dtype == np.float64:
        # the bits of numbers above 0 have their order, those below the opposite one
        bits = (values + 0.0).view(np.int64)  # -0.0 becomes 0.0
        values = np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)
    return [*(flags != nulls_first for flags in is_null), values]


def rows_of(
    person: np.ndarray, ids: np.ndarray, persons: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Return the row (M,) of each id that is asked of a person (M,).

    `person` and `ids` (N,): no two rows are alike in both, and what is asked is there.
    """
    if len(ids) == 0:
        return np.zeros(0, dtype=np.int64)
    low, high = int(ids.min()), int(ids.max())
    if high - low < DENSE * len(ids):
        rows = np.arange(len(ids))
        row_of_id = np.empty(high - low + 1, dtype=np.int64)
        row_of_id[ids - low] = rows
        if np.array_equal(row_of_id[ids - low], rows):  # no two persons have the same
            return row_of_id[asked - low]
    elif high - low >= 2**40:
        known, ids = np.unique(ids, return_inverse=True)
        asked, low, high = np.searchsorted(known, asked), 0, len(known)
    width = (high - low).bit_length()
    key = (person << width) | (ids - low)
    order = np.argsort(key)
    return order[np.searchsorted(key[order], (persons << width) | (asked - low))]


def places_of(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the place (M,) of numbers (M,) among known ones (N,), which ascend."""
    if len(known) == 0:
        return np.zeros(0, dtype=np.int64)
    low, high = int(known[0]), int(known[-1])
    if high - low >= DENSE * len(known):
        return np.searchsorted(known, asked)
    places = np.empty(high - low + 1, dtype=np.int64)
    places[known - low] = np.arange(len(known))
    return places[asked - low]


def dated(person: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Make one number (N,) of a person and a date, in the order of both."""
    return (person << 32) + days


def undated(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the persons and the dates (N,) of dated() ones."""
    person = (number + 2**31) >> 32
    return person, number - (person << 32)
