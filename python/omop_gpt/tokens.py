"""Place, number and name the timeline's tokens, and write them as Parquet files.

What int_tokens_placed and tokens say in SQL, and a test holds equal to them, some four
times as fast: most joins find one of a handful of words. In come persons, with their
visits and events in order; out go TOKENS in the order of persons and positions. Names
repeat a vocabulary of some thousand words, so they are written as the dictionaries that
they are: DuckDB would look up and compress each name anew. Imports neither dbt nor
Spark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omop_gpt.columns import Columns, new_year
from omop_gpt.pack import arrow, numbers, positions, positions_of

NAME = pa.dictionary(pa.int32(), pa.string())
TOKENS = pa.schema(
    {
        "person_id": pa.int64(),
        "split": NAME,
        "position": pa.int32(),
        "token_id": pa.int32(),
        "token": NAME,
        "kind": NAME,
    }
)
ROWS_PER_GROUP = 1_000_000
TRAIN = 0  # of the splits
ROWS_PER_PIECE = 100_000  # what is looked up of them stays in a processor's cache
ROLES = ("gap", "move", "end")  # of days that are spelled
MISSING = -1  # what the language cannot say
NO_WORD = -2
NOT_SPELLED = 0, np.array([[MISSING, NO_WORD, NO_WORD]])

# (kind or role, rows, values): what some rows, which ascend, say by a word or more
Said = tuple[str, np.ndarray, np.ndarray | None]
# (rows, ids): a token of each of some rows
Placed = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Words:
    """The tokens of a language by what they say.

    `kinds`: of each kind the numbers or concepts that it says, ascending (K,), and
    their tokens (K,). `singles`: the token of each kind that says nothing more.
    `spelled`: of each role (gap, move, end) the least number of days and the tokens
    that spell each from there on (D, 3), filled up with NO_WORD; MISSING where there
    is no spelling. `events` (E,): the token of each token_order, counted from 1.
    """

    kinds: Mapping[str, tuple[np.ndarray, np.ndarray]]
    singles: Mapping[str, int]
    spelled: Mapping[str, tuple[int, np.ndarray]]
    events: np.ndarray

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table]) -> Words:
        """Make it of the tables that dbt's word_queries() names."""
        words, spelled = Columns(tables["words"]), Columns(tables["spelled"])
        kinds, singles, roles = {}, {}, {}
        has_said = np.zeros(words.size, dtype=bool)
        has_said[words.rows("said")] = True
        for kind, rows in words.groups("kind"):
            said = words.values("said", rows)
            token_ids = words.values("token_id", rows)
            if has_said[rows].all():
                order = np.argsort(said)
                kinds[kind] = said[order], token_ids[order]
            else:
                singles[kind] = int(token_ids.max())
        for role, rows in spelled.groups("role"):
            days = spelled.values("days", rows)
            least = int(days.min())
            ids = np.full((int(days.max()) - least + 1, 3), NO_WORD, dtype=np.int32)
            ids[:, 0] = MISSING
            for place in range(3):
                said = spelled.values(f"token_id_{place + 1}", rows, NO_WORD)
                ids[days - least, place] = said
            roles[role] = least, ids
        events = tables["events"]
        orders = numbers(events["token_order"])
        of_order = np.full(orders.max(initial=0), MISSING, dtype=np.int32)
        of_order[orders - 1] = numbers(events["token_id"])
        return cls(kinds=kinds, singles=singles, spelled=roles, events=of_order)

    def of_kind(self, kind: str, said: np.ndarray) -> np.ndarray:
        """Return the tokens of a kind that say numbers or concepts (R,); MISSING."""
        if kind not in self.kinds:
            return np.full(len(said), MISSING, dtype=np.int32)
        known, token_ids = self.kinds[kind]
        places = np.minimum(np.searchsorted(known, said), len(known) - 1)
        return np.where(known[places] == said, token_ids[places], MISSING)

    def of_events(self, orders: np.ndarray) -> np.ndarray:
        """Return the tokens of events (R,)."""
        return np.append(self.events, MISSING)[np.minimum(orders - 1, len(self.events))]

    def spell(self, role: str, rows: np.ndarray, days: np.ndarray) -> Placed:
        """Spell days (R,) at rows (R,)."""
        least, ids = self.spelled.get(role, NOT_SPELLED)
        is_spelled = (days >= least) & (days < least + len(ids))
        first = np.where(is_spelled, days - least, 0)
        yield rows, np.where(is_spelled, ids[first, 0], MISSING)
        for place in (1, 2):
            words = ids[first, place]
            goes_on = is_spelled & (words != NO_WORD)
            yield rows[goes_on], words[goes_on]


class Records:
    """What the records of persons say, and in which row of theirs.

    A row opens the history, is a visit or a loose day, an event, or closes the history.
    Of Columns of persons, whose ids ascend, and of all their visits and events, in
    order: VISITS and EVENTS of omop_gpt.ordering.
    """

    def __init__(self, persons: Columns, visits: Columns, events: Columns) -> None:
        """Give each its row."""
        self.persons, self.visits, self.events = persons, visits, events
        ids = persons.values("person_id")
        self.person = np.searchsorted(ids, visits.values("person_id"))
        self.counts = visits.values("event_count").astype(np.int64)
        self.visit = np.repeat(np.arange(visits.size), self.counts)
        self.first = np.cumsum(self.counts) - self.counts
        rows = 2 + np.bincount(self.person, 1 + self.counts, minlength=persons.size)
        self.starts = np.append(0, np.cumsum(rows)).astype(np.int64)
        self.opening, self.closing = self.starts[:-1], self.starts[1:] - 1
        self.visit_rows = np.arange(visits.size) + self.first + 2 * self.person + 1
        number = np.arange(events.size) - self.first[self.visit]
        self.event_rows = self.visit_rows[self.visit] + number + 1
        self.is_first = number == 0

    def said(self) -> Iterator[Said]:
        """Tell words, place by place: kind or role, rows (R,), what they say (R,).

        What int_histories_ordered says of its steps, and in which order.
        """
        yield from self.said_of_visits()
        yield "eos", self.closing, None
        yield from self.said_of_events()

    def said_of_visits(self) -> Iterator[Said]:
        """Tell what opens histories and visits, and what leads to them."""
        visits, persons = self.visits, self.persons
        end = visits.values("visit_end_date")
        # what closes a visit, before the next row: from its last event to its end
        last = visits.values("visit_start_date").copy()
        has_events = np.flatnonzero(self.counts)
        last_events = (self.first + self.counts - 1)[has_events]
        last[has_events] = self.events.values("event_date", last_events)
        after, days = self.visit_rows + self.counts + 1, end - last
        moves = np.flatnonzero(days)
        yield "move", after[moves], days[moves]
        rows = visits.rows("discharged_to_concept_id")
        yield "discharge", after[rows], visits.values("discharged_to_concept_id", rows)
        yield "gap", self.visit_rows, visits.values("gap_days")
        # a death is so many days after the last visit, or 1 January
        dead = persons.rows("death_date")
        death_date = persons.values("death_date", dead)
        before = new_year(death_date)
        visits_so_far = np.searchsorted(self.person, dead, side="right")
        last_visit = np.maximum(visits_so_far - 1, 0)
        if visits.size:
            has_visit = (visits_so_far > 0) & (self.person[last_visit] == dead)
            before[has_visit] = end[last_visit[has_visit]]
        yield "gap", self.closing[dead], death_date - before

        yield "bos", self.opening, None
        for kind, name in (("year", "start_year"), ("age", "age_years")):
            is_unknown = persons.nulls(name)
            yield f"{kind}_unknown", self.opening[is_unknown], None
            yield kind, self.opening[~is_unknown], persons.values(name)[~is_unknown]
        for kind in ("gender", "race", "ethnicity"):
            yield kind, self.opening, persons.values(f"{kind}_concept_id")

        yield "death", self.closing[dead], None
        is_loose = visits.values("is_loose").astype(bool)
        yield "no_visit", self.visit_rows[is_loose], None
        concepts = visits.values("visit_concept_id")[~is_loose]
        yield "visit", self.visit_rows[~is_loose], concepts

    def said_of_events(self) -> Iterator[Said]:
        """Tell events with their values."""
        events, is_first = self.events, self.is_first
        date = events.values("event_date")
        before = np.roll(date, 1)
        before[is_first] = self.visits.values("visit_start_date")[self.visit[is_first]]
        days = date - before
        moves = np.flatnonzero(days)
        yield "move", self.event_rows[moves], days[moves]
        if events.has("hour"):
            # a change of day or visit resets the hour to unknown
            hour = events.values("hour", null=-1)
            is_new = is_first | (days != 0) | (np.diff(hour, prepend=-1) != 0)
            rows = np.flatnonzero(is_new & (hour >= 0))
            yield "hour", self.event_rows[rows], hour[rows]
        yield "event", self.event_rows, events.values("token_order")
        yield from self.said_number("number", "value_as_number", "value_bin")
        yield self.said_of("operator", "operator_concept_id")
        yield self.said_of("value_concept", "value_as_concept_id")
        yield from self.said_number("quantity", "quantity", "quantity_bin")
        yield self.said_of("days_supply", "days_supply")
        rows = events.rows("end_date")
        yield "end", self.event_rows[rows], events.values("end_date", rows) - date[rows]

    def said_of(self, kind: str, name: str) -> Said:
        """Tell a column of events."""
        rows = self.events.rows(name)
        return kind, self.event_rows[rows], self.events.values(name, rows)

    def said_number(self, kind: str, number: str, bins: str) -> Iterator[Said]:
        """Tell numbers by their bins; where training has no bin, one is unknown."""
        is_unknown = self.events.nulls(bins) & ~self.events.nulls(number)
        yield f"{kind}_unknown", self.event_rows[is_unknown], None
        yield self.said_of(kind, bins)


def placed(words: Words, said: Iterable[Said]) -> Placed:
    """Tell the tokens of what is said, place by place."""
    for kind, rows, values in said:
        if not len(rows):
            continue
        if values is None:
            yield rows, np.full(len(rows), words.singles.get(kind, MISSING))
        elif kind == "event":
            yield rows, words.of_events(values)
        elif kind in ROLES:
            yield from words.spell(kind, rows, values)
        else:
            yield rows, words.of_kind(kind, values)


def in_rows(placed: Placed, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Put the tokens of rows side by side: return their counts (N,) and them (T,)."""
    places = [(rows, token_ids) for rows, token_ids in placed if len(rows)]
    counts = np.zeros(size, dtype=np.int32)
    for rows, _ in places:
        counts[rows] += 1
    free = np.cumsum(counts) - counts
    token_id = np.empty(counts.sum(), dtype=np.int32)
    for rows, token_ids in places:
        token_id[free[rows]] = token_ids
        free[rows] += 1
    return counts, token_id


def tokens_of(
    words: Words, persons: pa.Table, visits: pa.Table, events: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each person has (P,), and all of them (T,).

    A few persons at a time. Raises RuntimeError if the visits or events are not theirs.
    """
    person_id = numbers(persons["person_id"])
    person = numbers(visits["person_id"])
    of_event = np.repeat(person, numbers(visits["event_count"]))
    if (
        not np.isin(person[positions(person)[0][: len(person)]], person_id).all()
        or (person[1:] < person[:-1]).any()
        or not np.array_equal(of_event, numbers(events["person_id"]))
    ):
        raise RuntimeError("the histories of the timeline are not those of its persons")
    first_visits = np.append(np.searchsorted(person, person_id), len(person))
    first_events = np.append(np.searchsorted(of_event, person_id), len(of_event))
    rows = first_visits + first_events + 2 * np.arange(len(first_visits))
    lengths, token_ids = [], []
    for first, last in pieces(rows):
        records = Records(
            *(
                Columns(table.slice(starts[first], starts[last] - starts[first]))
                for table, starts in (
                    (persons, np.arange(len(person_id) + 1)),
                    (visits, first_visits),
                    (events, first_events),
                )
            )
        )
        size = int(records.starts[-1])
        counts, of_piece = in_rows(placed(words, records.said()), size)
        ends = np.append(0, np.cumsum(counts))
        lengths.append(np.diff(ends[records.starts]))
        token_ids.append(of_piece)
    nobody = np.zeros(0, dtype=np.int32)
    return np.concatenate([nobody, *lengths]), np.concatenate([nobody, *token_ids])


def write_tokens(
    words: Words,
    persons: pa.Table,
    visits: pa.Table,
    events: pa.Table,
    earlier: pa.Table | None,
    names: Mapping[str, pa.Array],
    path: Path,
) -> np.ndarray:
    """Write the tokens of whole persons to a file (TOKENS).

    Returns what is counted() of training. `persons`: what dbt's persons_of_part() asks
    for; `visits` and `events`: all of theirs, ordered(). `earlier`: person_id,
    split_order and token_id of other persons, each in order, that are taken over.
    `names`: of `split` by split_order, of `token` and `kind` by token_id.
    """
    lengths, token_id = tokens_of(words, persons, visits, events)
    ids, split_order = (numbers(persons[name]) for name in ("person_id", "split_order"))
    if earlier is not None:
        first, _ = positions(numbers(earlier["person_id"]))
        first = first[: earlier.num_rows]  # nobody has no first row
        ids, split_order = (
            np.append(column, numbers(earlier[name])[first])
            for name, column in (("person_id", ids), ("split_order", split_order))
        )
        lengths = np.append(lengths, np.diff(np.append(first, earlier.num_rows)))
        order = np.argsort(ids)
        starts = (np.cumsum(lengths) - lengths)[order]
        ids, split_order, lengths = ids[order], split_order[order], lengths[order]
        token_id = np.append(token_id, numbers(earlier["token_id"]))[
            np.repeat(starts, lengths) + positions_of(lengths) - 1
        ]
    # what the language cannot say is -1, and has no name
    is_unknown = token_id == MISSING
    known = np.maximum(token_id, 0)
    kinds = names["kind"].dictionary_encode()
    kind_of = numbers(kinds.indices)
    columns = [
        arrow(np.repeat(ids, lengths)),
        named(np.repeat(split_order.astype(np.int32), lengths), names["split"]),
        arrow(positions_of(lengths)),
        arrow(token_id),
        named(known, names["token"], is_unknown),
        named(kind_of[known], kinds.dictionary, is_unknown),
    ]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=TOKENS),
        path,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=["split", "token", "kind"],
        write_statistics=["person_id", "token_id"],
        # they go up by steps that repeat
        column_encoding={
            "person_id": "DELTA_BINARY_PACKED",
            "position": "DELTA_BINARY_PACKED",
        },
    )
    is_train = split_order == TRAIN
    of_train = token_id[np.repeat(is_train, lengths)]
    return counted(lengths[is_train], of_train, len(names["token"]))


def pieces(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Tell the first person of some at a time, and the first after them.

    `starts` (P + 1,): the first row of each person, and the end of all rows.
    """
    cuts = np.searchsorted(starts, np.arange(0, starts[-1], ROWS_PER_PIECE))
    yield from pairwise(np.unique(np.append(cuts, len(starts) - 1)).tolist())


def counted(lengths: np.ndarray, token_id: np.ndarray, size: int) -> np.ndarray:
    """Count how often each token is there, and in how many persons: (2, size).

    `token_id` (T,): of persons who have so many each (P,); MISSING is not counted.
    """
    counts = np.zeros((2, size), dtype=np.int64)
    starts = np.append(0, np.cumsum(lengths))
    for first, last in pieces(starts):
        of_piece = token_id[starts[first] : starts[last]]
        pairs = np.repeat(np.arange(last - first) * size, lengths[first:last])
        pairs += of_piece
        if (is_missing := of_piece == MISSING).any():
            of_piece, pairs = of_piece[~is_missing], pairs[~is_missing]
        pairs.sort()
        of_pairs = pairs[np.diff(pairs, prepend=-1) > 0] % size
        counts += [np.bincount(ids, minlength=size) for ids in (of_piece, of_pairs)]
    return counts


def named(
    indices: np.ndarray, names: pa.Array, is_unknown: np.ndarray | None = None
) -> pa.DictionaryArray:
    """Make names of indices (N,), without copying a name."""
    indices = arrow(indices)
    if is_unknown is not None and is_unknown.any():
        is_known = arrow((~is_unknown).view(np.int8)).cast(pa.bool_())
        indices = pc.if_else(is_known, indices, pa.nulls(len(indices), pa.int32()))
    return pa.DictionaryArray.from_arrays(indices, names)
