"""Walk the grammar over many sequences at once, and read their rows.

What int_sequences_walked, int_persons_told, int_visits_decoded and int_events_decoded
say in SQL, and the tests hold equal to them, some ten times as fast: DuckDB has no
running sum that starts anew without a sort. A batch of N sequences is `offsets`
(N + 1,) into `token_ids` (T,); an id that is not below the V of the vocabulary, or is
below 0, is unknown. Imports neither dbt nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omop_gpt.columns import table_of
from omop_gpt.grammar import Grammar
from omop_gpt.pack import arrow, filled, numbers

START_STATE = 1
REFUSED = 0
UNKNOWN_HOUR = -1
TOKENS_PER_PIECE = 250_000  # what is looked up of them stays in a processor's cache
WALKED = pa.schema(
    {
        "person_id": pa.int64(),
        "token_ids": pa.list_(pa.int32()),
        "token_count": pa.int32(),
        "is_known": pa.bool_(),
        "is_whole": pa.bool_(),
        "has_age": pa.bool_(),
    }
)
PERSONS = pa.schema(
    {
        "person_id": pa.int64(),
        "position": pa.int32(),
        "year_of_birth": pa.int32(),
        "gender_concept_id": pa.int64(),
        "race_concept_id": pa.int64(),
        "ethnicity_concept_id": pa.int64(),
        "visit_count": pa.int32(),
        "event_count": pa.int32(),
        "death_position": pa.int32(),
        "death_date": pa.date32(),
    }
)
VISITS = pa.schema(
    {
        "person_id": pa.int64(),
        "visit_order": pa.int32(),
        "position": pa.int32(),
        "events_before": pa.int32(),
        "is_loose": pa.bool_(),
        "visit_concept_id": pa.int64(),
        "visit_start_date": pa.date32(),
        "visit_end_date": pa.date32(),
        "discharged_to_concept_id": pa.int64(),
        "visit_occurrence_id": pa.int64(),
        "preceding_visit_occurrence_id": pa.int64(),
    }
)
# what the token_id means, and what number its bins stand for, is looked up later
EVENTS = pa.schema(
    {
        "event_id": pa.int64(),
        "person_id": pa.int64(),
        "visit_order": pa.int32(),
        "event_order": pa.int32(),
        "position": pa.int32(),
        "token_id": pa.int32(),
        "event_date": pa.date32(),
        "hour": pa.int32(),
        "operator_concept_id": pa.int64(),
        "value_as_concept_id": pa.int64(),
        "value_bin": pa.int32(),
        "quantity_bin": pa.int32(),
        "days_supply": pa.int32(),
        "has_number": pa.bool_(),
        "has_quantity": pa.bool_(),
        "end_date": pa.date32(),
        "is_outside_its_visit": pa.bool_(),
        "visit_occurrence_id": pa.int64(),
    }
)


@dataclass(frozen=True, kw_only=True)
class States:
    """What may follow what.

    `kinds` (V,): kind_order of each token, 0 where the grammar has none; `orders`: that
    of each kind by its name. `next_states` (S + 1, K + 1): state_order after a state
    and a kind, 0 where it may not follow. `is_end` (S + 1,), `opens` (K + 1,): whether
    a history ends there, and begins so.
    """

    orders: Mapping[str, int]
    next_states: np.ndarray
    is_end: np.ndarray
    opens: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of_grammar(cls, grammar: Grammar) -> States:
        """Make it of a grammar, as if its tables were the seeds."""
        size = np.array(grammar.next_state.shape) + 1
        next_states = np.full(size, REFUSED)
        next_states[1:, 1:] = grammar.next_state + 1
        makes = [row["makes"] for row in grammar.kind_rows]
        return cls(
            orders={kind: order for order, kind in enumerate(grammar.kinds, 1)},
            next_states=next_states,
            is_end=np.append(False, grammar.places == "end"),
            opens=np.append(False, np.array(makes) == "person"),
            kinds=narrow(grammar.kind.astype(int) + 1),
        )


@dataclass(frozen=True, kw_only=True)
class Language(States):
    """What is looked up of a token or a state.

    `visits`, `events` (V,): 1 where a token opens one. `days`, `stays`, `ends` (V,):
    how far it moves the cursor, the end of its visit and that of its event;
    `is_end_of_event` (V,): 1 where it tells the latter. `hours` (V,): the hour it says,
    UNKNOWN_HOUR where it ends the last one, -2 where it leaves it. `years` (V,): the
    year it says, 0 for none. `numbers`, `concepts` (V,): what it says, 0 for none.
    """

    visits: np.ndarray
    events: np.ndarray
    days: np.ndarray
    stays: np.ndarray
    ends: np.ndarray
    is_end_of_event: np.ndarray
    hours: np.ndarray
    years: np.ndarray
    numbers: np.ndarray
    concepts: np.ndarray

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table]) -> Language:
        """Make it of the tables that dbt's language_queries() names."""
        tokens, transitions = tables["tokens"], tables["transitions"]
        columns = {name: narrow(numbers(tokens[name])) for name in tokens.column_names}
        places = [
            numbers(transitions[name]) for name in ("state", "kind", "next_state")
        ]
        ends = numbers(tables["ends"]["state"])
        openers = numbers(tables["openers"]["kind"])
        states = 1 + max(places[0].max(), places[2].max(), ends.max())
        kinds = 1 + max(places[1].max(), columns["kinds"].max(), openers.max())
        next_states = np.full((states, kinds), REFUSED)
        next_states[places[0], places[1]] = places[2]
        return cls(
            orders=dict(zip(*tables["kinds"].to_pydict().values(), strict=True)),
            next_states=next_states,
            is_end=np.isin(np.arange(states), ends),
            opens=np.isin(np.arange(kinds), openers),
            **columns,
        )


def narrow(values: np.ndarray) -> np.ndarray:
    """Return whole numbers (N,) in the smallest type that holds them."""
    bounds = (values.min(initial=0), values.max(initial=0))
    return values.astype(np.result_type(*map(np.min_scalar_type, bounds)))


def walked_batch(states: States, batch: pa.RecordBatch) -> pa.Table:
    """Tell what sequences are (WALKED), of person_id and token_ids."""
    offsets, token_ids = sequences_of(batch)
    is_known, is_whole, has_age = walked(states, offsets, token_ids)
    return table_of(
        WALKED,
        person_id=batch["person_id"],
        token_ids=batch["token_ids"],
        token_count=pc.list_value_length(batch["token_ids"]),
        is_known=arrow(is_known),
        is_whole=arrow(is_whole),
        has_age=arrow(has_age),
    )


def sequences_of(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return `offsets` and `token_ids` of a batch; -1 for an id that is NULL."""
    lengths = filled(pc.list_value_length(batch["token_ids"]), 0)
    offsets = np.append(0, np.cumsum(numbers(lengths), dtype=np.int64))
    return offsets, numbers(filled(pc.list_flatten(batch["token_ids"]), -1))


def walked(
    grammar: States, offsets: np.ndarray, token_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell which sequences have known tokens alone, which are whole, which have an age.

    3 × (N,) bool. All sequences go on by a token at a time, the longest last.
    """
    size = len(grammar.kinds)
    is_known = (token_ids >= 0) & (token_ids < size)
    kinds = grammar.kinds[np.where(is_known, token_ids, 0)].astype(np.int16)
    kinds[~is_known] = 0
    kinds_count = grammar.next_states.shape[1]
    next_states = np.ascontiguousarray(grammar.next_states, dtype=np.int16).ravel()
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = offsets[:-1][order], lengths[order]
    state = np.full(len(order), START_STATE, dtype=np.int16)
    going = len(order)
    for position in range(lengths[0] if len(lengths) else 0):
        while lengths[going - 1] <= position:
            going -= 1
        places = (
            state[:going] * np.int32(kinds_count) + kinds[starts[:going] + position]
        )
        state[:going] = next_states[places]
    unknown = np.zeros(len(token_ids) + 1, dtype=np.int64)
    np.cumsum(kinds == 0, out=unknown[1:])
    all_known = unknown[offsets[1:]] == unknown[offsets[:-1]]
    is_whole = np.zeros(len(order), dtype=bool)
    is_whole[order] = grammar.is_end[state]
    has_any = np.diff(offsets) > 0
    firsts = kinds[offsets[:-1][has_any]]
    is_whole[has_any] &= grammar.opens[firsts]
    has_age = np.ones(len(order), dtype=bool)
    has_third = np.diff(offsets) > 2
    thirds = kinds[offsets[:-1][has_third] + 2]
    has_age[has_third] = thirds != grammar.orders["age_unknown"]
    return all_known, is_whole & has_any & all_known, has_age


class Histories:
    """The persons, visits and events of whole sequences.

    Sums (T + 1,) run over the whole batch: a sequence's own is a difference of two,
    which is right even where the sums are too large for their type.
    """

    def __init__(self, language: Language, batch: pa.RecordBatch) -> None:
        """Look up the kinds, of person_id and token_ids."""
        self.language = language
        self.person_id = numbers(batch["person_id"])
        self.offsets, token_ids = sequences_of(batch)
        self.token_ids = token_ids.astype(np.intp)
        self.starts = self.offsets[:-1]
        self.kinds = language.kinds[self.token_ids]

    @cached_property
    def opened(self) -> np.ndarray:
        """How many visits and loose days open before each token (T + 1,)."""
        return self.summed(self.language.visits)

    @cached_property
    def told(self) -> np.ndarray:
        """How many events there are before each token (T + 1,)."""
        return self.summed(self.language.events)

    @cached_property
    def moved(self) -> np.ndarray:
        """How many days the cursor moves before each token (T + 1,)."""
        return self.summed(self.language.days)

    @cached_property
    def spans(self) -> Spans:
        """The visits and loose days."""
        return Spans(self)

    def summed(self, steps: np.ndarray) -> np.ndarray:
        """Add up what each token adds (V,): (T + 1,)."""
        total = np.zeros(len(self.token_ids) + 1, dtype=np.int32)
        np.cumsum(steps[self.token_ids], out=total[1:])
        return total

    def of(self, places: np.ndarray) -> np.ndarray:
        """Return the sequences of ascending places (R,)."""
        counts = np.diff(np.searchsorted(places, self.offsets))
        return np.repeat(np.arange(len(counts)), counts)

    def where(self, flags: np.ndarray) -> np.ndarray:
        """Return the places of tokens with a flag (V,), ascending: (R,)."""
        return np.flatnonzero(flags.astype(bool)[self.token_ids])

    def places(self, kind: str) -> np.ndarray:
        """Return where tokens of a kind are (R,)."""
        return np.flatnonzero(self.kinds == self.language.orders[kind])

    def hours(self, places: np.ndarray) -> pa.Array:
        """Return the hour that holds at places (R,)."""
        said = self.language.hours[self.token_ids]
        if said.max(initial=UNKNOWN_HOUR) == UNKNOWN_HOUR:
            return pa.nulls(len(places), pa.int32())
        last = np.where(said >= UNKNOWN_HOUR, np.arange(len(said)), 0)
        hour = said[np.maximum.accumulate(last)[places]]
        return arrow(hour.astype(np.int32), hour == UNKNOWN_HOUR)

    def dates(
        self, places: np.ndarray, of: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the days of the cursor at places (R,), and which have none (R,)."""
        # the year is a history's second word; its first day and all moves are the date
        years = self.language.years[self.token_ids[self.starts + 1]].astype(np.int64)
        firsts = (years - 1970).astype("datetime64[Y]").astype("datetime64[D]")
        days = firsts.astype(np.int32) - self.moved[self.starts]
        return days[of] + self.moved[places + 1], years[of] <= 0

    def said(
        self, values: np.ndarray, places: np.ndarray, rows: np.ndarray, size: int
    ) -> pa.Array:
        """Return what the tokens at places (R,) say of rows (R,), of so many: (size,).

        NULL where there is none.
        """
        if len(places) == 0:
            return pa.nulls(size, pa.int64())
        said, is_null = np.zeros(size, dtype=np.int64), np.ones(size, dtype=bool)
        said[rows], is_null[rows] = values[self.token_ids[places]], False
        return arrow(said, is_null)

    def has(self, *kinds: str) -> pa.Array:
        """Tell which events have a token of one of some kinds (E,)."""
        found = np.zeros(self.told[-1], dtype=bool)
        for kind in kinds:
            found[self.told[self.places(kind)] - 1] = True
        return arrow(found)

    def persons(self) -> pa.Table:
        """Tell the persons (PERSONS), as int_persons_told has them."""
        size, language = len(self.starts), self.language
        year, age, gender, race, ethnicity = (
            self.token_ids[self.starts + place] for place in range(1, 6)
        )

        def said(kind: str, values: np.ndarray, token_ids: np.ndarray) -> pa.Array:
            is_other = language.kinds[token_ids] != language.orders[kind]
            return arrow(values[token_ids].astype(np.int64), is_other)

        deaths = self.places("death")
        of = self.of(deaths)
        day, position = np.zeros((2, size), dtype=np.int32)
        has_no_day, lives = np.ones((2, size), dtype=bool)
        day[of], has_no_day[of] = self.dates(deaths, of)
        position[of], lives[of] = deaths - self.starts[of] + 1, False
        return table_of(
            PERSONS,
            person_id=arrow(self.person_id),
            position=arrow(np.ones(size, dtype=np.int32)),
            year_of_birth=pc.subtract(
                said("year", language.numbers, year),
                said("age", language.numbers, age),
            ),
            gender_concept_id=said("gender", language.concepts, gender),
            race_concept_id=said("race", language.concepts, race),
            ethnicity_concept_id=said("ethnicity", language.concepts, ethnicity),
            visit_count=arrow(np.diff(self.opened[self.offsets])),
            event_count=arrow(np.diff(self.told[self.offsets])),
            death_position=arrow(position, lives),
            death_date=arrow(day, has_no_day),
        )

    def visits(self, before: int) -> pa.Table:
        """Tell visits and loose days (VISITS), as int_visits_decoded has them.

        `before`: those of the persons before.
        """
        spans = self.spans
        size, starts = len(spans.rows), self.starts[spans.of]
        visit_id = spans.ids(before)
        # the last visit so far, and whether it is of the same person
        last = np.maximum.accumulate(np.where(spans.is_loose, -1, np.arange(size)))
        previous = np.append(-1, last)[:-1]
        is_first = (previous < 0) | (spans.of[previous] != spans.of)
        discharges = self.places("discharge")
        return table_of(
            VISITS,
            person_id=arrow(self.person_id[spans.of]),
            visit_order=arrow(spans.order),
            position=arrow(spans.rows - starts + 1),
            events_before=arrow(self.told[spans.rows] - self.told[starts]),
            is_loose=arrow(spans.is_loose),
            visit_concept_id=arrow(
                self.language.concepts[self.token_ids[spans.rows]], spans.is_loose
            ),
            visit_start_date=arrow(spans.start_days, spans.has_no_date),
            visit_end_date=arrow(spans.end_days, spans.has_no_date),
            discharged_to_concept_id=self.said(
                self.language.concepts, discharges, self.opened[discharges] - 1, size
            ),
            visit_occurrence_id=arrow(visit_id, spans.is_loose),
            preceding_visit_occurrence_id=arrow(
                visit_id[previous], is_first | spans.is_loose
            ),
        )

    def events(self, before: int, visits_before: int) -> pa.Table:
        """Tell events (EVENTS), as int_events_decoded has them.

        `before` and `visits_before`: the events and visits of the persons before.
        """
        language, spans = self.language, self.spans
        rows = self.where(language.events)
        size, of = len(rows), self.of(rows)
        visit = self.opened[rows] - 1
        days, has_no_date = self.dates(rows, of)
        is_outside = (days < spans.start_days[visit]) | (days > spans.end_days[visit])
        ends = self.where(language.is_end_of_event)
        end_date = pa.nulls(size, pa.date32())
        if len(ends):
            of_end = self.told[ends] - 1
            moved = np.bincount(of_end, language.ends[self.token_ids[ends]], size)
            has_no_end = np.bincount(of_end, minlength=size) == 0
            end_days = (days + moved).astype(np.int32)
            end_date = arrow(end_days, has_no_date | has_no_end)

        def said(kind: str, values: np.ndarray) -> pa.Array:
            places = self.places(kind)
            return self.said(values, places, self.told[places] - 1, size)

        return table_of(
            EVENTS,
            event_id=arrow(before + 1 + np.arange(size)),
            person_id=arrow(self.person_id[of]),
            visit_order=arrow(spans.order[visit]),
            event_order=arrow(self.told[rows] - self.told[spans.rows[visit]] + 1),
            position=arrow(rows - self.starts[of] + 1),
            token_id=arrow(self.token_ids[rows]),
            event_date=arrow(days, has_no_date),
            hour=self.hours(rows),
            operator_concept_id=said("operator", language.concepts),
            value_as_concept_id=said("value_concept", language.concepts),
            value_bin=said("number", language.numbers),
            quantity_bin=said("quantity", language.numbers),
            days_supply=said("days_supply", language.numbers),
            has_number=self.has("number", "number_unknown"),
            has_quantity=self.has("quantity", "quantity_unknown"),
            end_date=end_date,
            is_outside_its_visit=arrow(is_outside & ~has_no_date),
            visit_occurrence_id=arrow(
                spans.ids(visits_before)[visit], spans.is_loose[visit]
            ),
        )


class Spans:
    """The visits and loose days of histories (R,): where each opens, and its days."""

    def __init__(self, read: Histories) -> None:
        """Find them, the day that each starts, and where its last move leaves it."""
        self.rows = read.where(read.language.visits)
        self.of = read.of(self.rows)
        self.order = read.opened[self.rows] - read.opened[read.starts[self.of]] + 1
        self.start_days, self.has_no_date = read.dates(self.rows, self.of)
        stays = read.summed(read.language.stays)
        # the words that open the next history move nothing
        ends = np.append(self.rows, len(read.token_ids))[1:]
        self.end_days = self.start_days + stays[ends] - stays[self.rows]
        self.is_loose = read.kinds[self.rows] == read.language.orders["no_visit"]

    def ids(self, before: int) -> np.ndarray:
        """Return their ids (R,), where there are so many before."""
        return before + 1 + np.arange(len(self.rows))


def rows_of(
    language: Language, batch: pa.RecordBatch, visits_before: int, events_before: int
) -> dict[str, pa.Table]:
    """Read `persons`, `visits` and `events` of whole sequences, which ascend by person.

    A few sequences at a time. `visits_before`, `events_before`: of the persons before.
    """
    pieces = len(batch["token_ids"].flatten()) // TOKENS_PER_PIECE + 1
    size = len(batch) // pieces + 1
    made = []
    for start in range(0, max(len(batch), 1), size):
        read = Histories(language, batch.slice(start, size))
        made.append(
            {
                "persons": read.persons(),
                "visits": read.visits(visits_before),
                "events": read.events(events_before, visits_before),
            }
        )
        visits_before += int(read.opened[-1])
        events_before += int(read.told[-1])
    return {name: pa.concat_tables(rows[name] for rows in made) for name in made[0]}


def counts_of(language: Language, batch: pa.RecordBatch) -> np.ndarray:
    """Count each token of whole sequences (V,)."""
    return np.bincount(sequences_of(batch)[1], minlength=len(language.kinds))
