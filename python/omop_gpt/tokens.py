"""Place, number and name the timeline's tokens, and write them as Parquet files.

What int_tokens_placed and tokens say in SQL, and a test holds equal to them, some four
times as fast: most joins find one of a handful of words. In come the steps of whole
histories; out go TOKENS in the order of persons and positions. Names repeat a
vocabulary of some thousand words, so they are written as the dictionaries that they
are: DuckDB would look up and compress each name anew. Imports neither dbt nor Spark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omop_gpt.pack import arrow, filled, numbers, positions

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
STEPS_PER_PIECE = 100_000  # what is looked up of them stays in a processor's cache
OPENS, EVENT, CLOSES = range(3)  # steps of a history
MISSING = -1  # what the language cannot say
NO_WORD = -2
NOT_SPELLED = 0, np.array([[MISSING, NO_WORD, NO_WORD]])

# (rows, ids): a token of each of some rows, which ascend
Placed = Iterator[tuple[np.ndarray, np.ndarray]]


class Columns:
    """Columns of a table as numbers, NULL or not."""

    def __init__(self, table: pa.Table) -> None:
        """Keep them, each in one piece."""
        self.columns = {
            name: table[name].combine_chunks() for name in table.column_names
        }
        self.size = table.num_rows

    def rows(self, name: str) -> np.ndarray:
        """Return the rows where a column is not NULL (R,)."""
        column = self.columns[name]
        if column.null_count == 0:
            return np.arange(self.size)
        if column.null_count == self.size:
            return np.arange(0)
        return np.flatnonzero(numbers(column.is_valid().cast(pa.uint8())))

    def values(
        self, name: str, rows: np.ndarray | None = None, null: int = 0
    ) -> np.ndarray:
        """Return the values of a column (N,), or those of rows (R,)."""
        column = self.columns[name]
        values = numbers(filled(column, null) if column.null_count else column)
        return values if rows is None else values[rows]

    def groups(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        """Tell each word of a column, and its rows (R,)."""
        words = self.columns[name].dictionary_encode()
        codes = numbers(words.indices)
        for code, word in enumerate(words.dictionary.to_pylist()):
            yield word, np.flatnonzero(codes == code)


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


def placed(words: Words, steps: Columns, persons: Columns) -> Placed:
    """Tell the tokens of steps, place by place, as int_tokens_placed has them.

    `persons`: those whose histories open, in the order of these steps.
    """
    step = steps.values("step")
    opening = np.flatnonzero(step == OPENS)
    opens_visit = steps.values("opens_visit").astype(bool)
    dies = (step == CLOSES) & steps.values("has_date").astype(bool)

    def spell(role: str, name: str, is_there: np.ndarray) -> Placed:
        rows = np.flatnonzero(is_there)
        return words.spell(role, rows, steps.values(name, rows))

    def say(kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = steps.rows(name)
        return rows, words.of_kind(kind, steps.values(name, rows))

    def single(kind: str, is_there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(is_there)
        return rows, np.full(len(rows), words.singles[kind])

    def say_number(kind: str, name: str) -> Placed:
        # where training has no bin, the number is unknown
        is_unbinned = steps.values(f"is_unbinned_{kind}").astype(bool)
        if is_unbinned.any():
            yield single(f"{kind}_unknown", is_unbinned)
        yield say(kind, name)

    # what closes the visit before, and leads here
    yield from spell("move", "closing_days", steps.values("closing_days") != 0)
    yield say("discharge", "closing_discharged_to_concept_id")
    yield from spell("gap", "gap_days", opens_visit | dies)
    # what opens a history, and its demographics
    yield opening, np.full(len(opening), words.singles["bos"])
    for kind, name in (("year", "start_year"), ("age", "age_years")):
        told = persons.rows(name)
        ids = np.full(len(opening), words.singles.get(f"{kind}_unknown", MISSING))
        ids[told] = words.of_kind(kind, persons.values(name, told))
        yield opening, ids
    for kind in ("gender", "race", "ethnicity"):
        yield opening, words.of_kind(kind, persons.values(f"{kind}_concept_id"))
    # a visit, or the end
    if dies.any():
        yield single("death", dies)
    is_loose = steps.values("is_loose").astype(bool)
    if is_loose.any():
        yield single("no_visit", opens_visit & is_loose)
    rows = np.flatnonzero(opens_visit & ~is_loose)
    concepts = steps.values("visit_concept_id", rows)
    yield rows, words.of_kind("visit", concepts)
    yield single("eos", step == CLOSES)
    # an event with its values
    yield from spell("move", "move_days", steps.values("move_days") != 0)
    yield say("hour", "new_hour")
    rows = steps.rows("token_order")
    yield rows, words.of_events(steps.values("token_order", rows))
    yield from say_number("number", "value_bin")
    yield say("operator", "operator_concept_id")
    yield say("value_concept", "value_as_concept_id")
    yield from say_number("quantity", "quantity_bin")
    yield say("days_supply", "days_supply")
    rows = steps.rows("end_days")
    yield from words.spell("end", rows, steps.values("end_days", rows))


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
    words: Words, steps: pa.Table, persons: pa.Table
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each person has (P,), and all of them (T,).

    A few persons at a time. Raises RuntimeError if the steps are not theirs.
    """
    opening = np.flatnonzero(numbers(steps["step"]) == OPENS)
    if not np.array_equal(
        numbers(steps["person_id"])[opening], numbers(persons["person_id"])
    ):
        raise RuntimeError("the histories of the timeline are not those of its persons")
    starts = np.append(opening, steps.num_rows)
    firsts = np.searchsorted(opening, np.arange(0, steps.num_rows, STEPS_PER_PIECE))
    lengths, token_ids = [], []
    for first, last in pairwise(np.unique(np.append(firsts, len(opening))).tolist()):
        size = int(starts[last] - starts[first])
        counts, of_piece = in_rows(
            placed(
                words,
                Columns(steps.slice(int(starts[first]), size)),
                Columns(persons.slice(first, last - first)),
            ),
            size,
        )
        ends = np.append(0, np.cumsum(counts))
        lengths.append(np.diff(ends[starts[first : last + 1] - starts[first]]))
        token_ids.append(of_piece)
    nobody = np.zeros(0, dtype=np.int32)
    return np.concatenate([nobody, *lengths]), np.concatenate([nobody, *token_ids])


def write_tokens(
    words: Words,
    steps: pa.Table,
    persons: pa.Table,
    earlier: pa.Table | None,
    names: Mapping[str, pa.Array],
    path: Path,
) -> np.ndarray:
    """Write the tokens of whole persons to a file (TOKENS).

    Returns what is counted() of training. `steps` and `persons` are what dbt's
    steps_of_part() and persons_of_part() ask for; `earlier`: person_id, split_order and
    token_id of other persons, each in order, that are taken over. `names`: of `split`
    by split_order, of `token` and `kind` by token_id.
    """
    order = order_of(numbers(steps["person_id"]), numbers(steps["step_order"]))
    if order is not None:
        steps = steps.take(arrow(order))
    lengths, token_id = tokens_of(words, steps, persons)
    person_id, split_order = (
        np.repeat(numbers(persons[name]), lengths)
        for name in ("person_id", "split_order")
    )
    if earlier is not None:
        person_id, split_order, token_id = (
            np.append(column, numbers(earlier[name]))
            for name, column in (
                ("person_id", person_id),
                ("split_order", split_order),
                ("token_id", token_id),
            )
        )
        order = np.argsort(person_id, kind="stable")
        person_id, split_order, token_id = (
            column[order] for column in (person_id, split_order, token_id)
        )
    # what the language cannot say is -1, and has no name
    is_unknown = token_id == MISSING
    known = np.maximum(token_id, 0)
    kinds = names["kind"].dictionary_encode()
    kind_of = numbers(kinds.indices)
    columns = [
        arrow(person_id),
        named(split_order.astype(np.int32), names["split"]),
        arrow(positions(person_id)[1].astype(np.int32)),
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
    is_counted = (split_order == TRAIN) & ~is_unknown
    return counted(person_id[is_counted], token_id[is_counted], len(names["token"]))


def counted(person_id: np.ndarray, token_id: np.ndarray, size: int) -> np.ndarray:
    """Count how often each token is there, and in how many persons: (2, size).

    `person_id`, which ascends, and `token_id` (T,), of each position of histories.
    """
    counts = np.zeros((2, size), dtype=np.int64)
    starts = np.append(positions(person_id)[0], len(person_id))
    cuts = np.searchsorted(starts, np.arange(0, len(person_id), STEPS_PER_PIECE))
    for first, last in pairwise(np.unique(np.append(starts[cuts], len(person_id)))):
        of_piece, persons = token_id[first:last], person_id[first:last]
        person = np.cumsum(np.diff(persons, prepend=persons[0]) != 0)
        pairs = np.sort(person * size + of_piece)
        of_pairs = pairs[np.diff(pairs, prepend=-1) > 0] % size
        counts += [np.bincount(ids, minlength=size) for ids in (of_piece, of_pairs)]
    return counts


def order_of(person_id: np.ndarray, place: np.ndarray) -> np.ndarray | None:
    """Return the rows (N,) in the order of persons and places; None: as they lie."""
    is_behind = (person_id[1:] < person_id[:-1]) | (
        (person_id[1:] == person_id[:-1]) & (place[1:] < place[:-1])
    )
    return np.lexsort((place, person_id)) if is_behind.any() else None


def named(
    indices: np.ndarray, names: pa.Array, is_unknown: np.ndarray | None = None
) -> pa.DictionaryArray:
    """Make names of indices (N,), without copying a name."""
    indices = arrow(indices)
    if is_unknown is not None and is_unknown.any():
        is_known = arrow((~is_unknown).view(np.int8)).cast(pa.bool_())
        indices = pc.if_else(is_known, indices, pa.nulls(len(indices), pa.int32()))
    return pa.DictionaryArray.from_arrays(indices, names)
