"""The mask: which tokens may come next, so that every sample is a whole history.

Three facts decide: the grammar's transitions, the values that training has after an
event, and the cursor, a day per row that stays inside the dates of training and does
not go back beyond the year of birth. Then come rules that can be switched on, each of
which is counted. Knows nothing of the model; all state is in tensors of one row per
slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch

from omop_gpt.grammar import Grammar, day_of
from omop_gpt.step import InputError

FAR = 1 << 20  # a distance to [EOS] that no state has, and a day long ago
LARGEST_STEP = 31  # days; a window of dates must not be narrower than a step
# what is known of each row: (B,) int64
COUNTERS = (
    "state", "year", "born", "cursor", "end_cursor", "event_row", "gender_row", "count",
    "limit", "first", "visit", "visit_start",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Dated:
    """Tokens that lead to a date, and the dates that it must be among."""

    run: slice | np.ndarray  # token ids
    nearest: torch.Tensor  # days to the nearest date that the token can still lead to
    furthest: torch.Tensor
    training: tuple[int, int]
    asked: tuple[int | None, int] | None  # no first day: that of the row
    from_end: bool  # counted from the end of the event, not from the cursor


class Mask:
    """What each of B rows may write next; rows start over with `reset`."""

    def __init__(
        self,
        grammar: Grammar,
        *,
        rows: int,
        device: torch.device | str = "cpu",
        min_persons: int = 5,
        max_tokens: int | None = None,
        wanted: np.ndarray | None = None,
        impossible: np.ndarray | None = None,
        first_day: int | None = None,
        last_day: int | None = None,
    ) -> None:
        """Compile the tables of a grammar for `rows` rows.

        `wanted` (V,) bool: demographics to keep to. `impossible` (G + 1, V) bool:
        events that the first, second ... gender token rules out. `first_day`,
        `last_day`: days that visits, events and deaths must keep to; a row may start
        on an earlier first day.

        Raises InputError if a history could get stuck before [EOS].
        """
        self.grammar = grammar
        self.max_tokens = max_tokens or int(grammar.facts["longest_history"])
        wanted = np.ones(grammar.vocab_size, dtype=bool) if wanted is None else wanted
        self.is_known = known_tokens(grammar) & wanted
        self.is_common = common_tokens(grammar, min_persons) & wanted
        self.first_day = grammar.first_day if first_day is None else first_day
        self.last_day = grammar.last_day if last_day is None else last_day
        years = grammar.has_kind("year")
        january = np.zeros(grammar.vocab_size, np.int64)
        january[years] = [day_of(f"{n:04d}-01-01") for n in grammar.number[years]]
        if last_day is not None:  # training itself may have later years
            self.is_known &= january <= last_day
            self.is_common &= january <= last_day
        # before min_persons and after it: the difference is what it takes away
        known, _ = legal_tokens(grammar, self.is_known)
        common, distance = legal_tokens(grammar, self.is_common)
        check_reachable(grammar, distance, self.last_day - self.first_day)
        following = grammar.next_state[:, grammar.kind]  # (S, V)
        after = np.where(common, distance[following], FAR)
        known_pairs, pairs, row_of_event, self.values = value_pairs(
            grammar, min_persons
        )

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype).to(device)

        self.known = tensor(known, torch.bool)  # (S, V)
        self.legal = tensor(common, torch.bool)  # (S, V)
        self.after = tensor(after, torch.int32)  # (S, V) tokens to [EOS] after it
        self.furthest = int(distance[distance < FAR].max()) + 1
        self.next_state = tensor(np.maximum(following, 0), torch.long)
        self.known_pairs = tensor(known_pairs, torch.bool)  # (E + 1, values)
        self.pairs = tensor(pairs, torch.bool)
        self.row_of_event = tensor(row_of_event, torch.long)  # (V,)
        self.days = tensor(grammar.days, torch.long)
        more = more_days(grammar)[grammar.kind]
        moves, ends = grammar.moves_cursor, grammar.roles == "end"
        supply = grammar.has_kind("days_supply")
        # a supply of n days runs out n - 1 days after it starts
        span = np.where(supply, np.maximum(grammar.number - 1, 0), grammar.days)
        training = (grammar.first_day, grammar.last_day)
        end_of_training = (grammar.first_day, grammar.last_end_day)
        asked = (None, self.last_day)  # the first day is the row's
        end_asked = end_of_training
        if last_day is not None:
            end_asked = (grammar.first_day, last_day)
        self.has_dates = (self.first_day, self.last_day) != training
        self.dated = [
            _Dated(
                run=run,
                nearest=tensor(span[run] + more[run, 0], torch.long),
                furthest=tensor(span[run] + more[run, 1], torch.long),
                training=window,
                asked=window_asked,
                from_end=from_end,
            )
            for group, window, window_asked, from_end in (
                (moves, training, asked, False),
                (ends, end_of_training, end_asked, True),
                # what is asked of a supply is that it starts in time
                (supply, end_of_training, None, False),
            )
            for run in [one_run(group)]
        ]
        self.january = tensor(january, torch.long)
        self.is_year = tensor(years, torch.bool)
        ages = grammar.has_kind("age")
        self.is_age = tensor(ages, torch.bool)
        self.ages = one_run(ages)
        self.number = tensor(np.where(years | ages, grammar.number, 0), torch.long)
        # January 1 of every year in which somebody can be born, from the first on
        year, age = grammar.number[years], grammar.number[ages]
        self.first_year = int(min(year, default=0) - max(age, default=0))
        last_year = int(max(year, default=0) - min(age, default=0))
        births = range(self.first_year, max(last_year, self.first_year) + 1)
        births = [day_of(f"{n:04d}-01-01") for n in births]
        self.births = tensor(np.array(births), torch.long)
        self.is_move = tensor(moves, torch.bool)
        self.is_end = tensor(ends, torch.bool)
        self.is_event = tensor(grammar.has_kind("event"), torch.bool)
        self.is_visit = tensor(grammar.has_kind("visit"), torch.bool)
        self.happens = one_run(grammar.has_kind("hour", "event"))
        genders = np.zeros(grammar.vocab_size, np.int64)
        genders[grammar.has_kind("gender")] = 1
        genders = np.cumsum(genders) * genders  # 1 for the first gender token, 2, ...
        self.gender_row_of = tensor(genders, torch.long)
        self.possible = None
        if impossible is not None:
            check_possible(grammar, self.is_common, impossible)
            self.possible = tensor(~impossible, torch.bool)  # (G + 1, V)
        self.start = grammar.states.index("start")
        self.finish = grammar.states.index("end")

        self.device = device
        self.open(rows)

    def open(self, rows: int) -> None:
        """Start so many rows, each with nothing written."""
        starts = {
            "state": self.start, "limit": self.max_tokens, "first": self.first_day,
            "born": -FAR,
        }  # fmt: skip
        for name in COUNTERS:
            value = starts.get(name, 0)
            row = torch.full((rows,), value, dtype=torch.long, device=self.device)
            setattr(self, name, row)

    def begin(
        self,
        row: int,
        history: np.ndarray,
        *,
        limit: int | None = None,
        first_day: int | None = None,
    ) -> None:
        """Start a row over with a history that is written so far: (T,) ids.

        `limit`, `first_day`: tokens after which it must end, and the day on which
        something can happen, if not those of all.
        """
        written = torch.as_tensor(history, device=self.state.device)
        moves = self.days[written] * self.is_move[written]
        start = self.january[written].sum()  # of the one year that it has
        self.state[row] = int(self.grammar.walk(history)[-1])
        self.cursor[row] = start + moves.sum()
        self.year[row] = (self.number[written] * self.is_year[written]).sum()
        self.born[row] = -FAR
        if bool(self.is_age[written].any()):
            age = (self.number[written] * self.is_age[written]).sum()
            self.born[row] = self.births[self.year[row] - age - self.first_year]
        self.gender_row[row] = self.gender_row_of[written].sum()  # of one gender
        self.end_cursor[row] = self.event_row[row] = 0
        self.visit[row] = self.visit_start[row] = 0
        visits = self.is_visit[written].nonzero()[:, 0]
        if len(visits):
            self.visit[row] = written[visits[-1]]
            self.visit_start[row] = start + moves[: visits[-1]].sum()
        events = self.is_event[written].nonzero()[:, 0]
        if len(events):
            since = written[events[-1] :]
            ends = self.days[since] * self.is_end[since]
            self.end_cursor[row] = start + moves[: events[-1]].sum() + ends.sum()
            self.event_row[row] = self.row_of_event[since[0]]
        self.count[row] = len(history)
        self.limit[row] = self.max_tokens if limit is None else limit
        self.first[row] = self.first_day if first_day is None else first_day

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the rows, in this order."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name)[rows])

    def allowed(self) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Tell what may come next.

        Returns (B, V) bool: allowed; for each rule, the same before it was applied; and
        (B,) bool: whether the row is past its limit, so that only the shortest way to
        [EOS] is left.
        """
        known = self.known[self.state]
        self._keep_births(known)
        self._keep_dates(known, asked=False)
        known[:, self.values] &= self.known_pairs[self.event_row]
        before = {"rare": known}
        allowed = known & self.legal[self.state]
        allowed[:, self.values] &= self.pairs[self.event_row]
        if self.possible is not None:
            before["impossible"] = allowed
            allowed = allowed & self.possible[self.gender_row]
        if self.has_dates:
            before["dates"] = allowed
            allowed = allowed.clone()
            self._keep_dates(allowed, asked=True)
            # of a history that goes on: its last known day is over
            allowed[:, self.happens] &= (self.cursor >= self.first)[:, None]
        ending = self.count >= self.limit - self.furthest
        if bool(ending.any()):
            after = torch.where(allowed, self.after[self.state], FAR)
            shortest = after == after.min(dim=-1, keepdim=True).values
            allowed = allowed & (shortest | ~ending[:, None])
        return allowed, before, ending

    def _keep_births(self, tokens: torch.Tensor) -> None:
        """Take ages away by which a person is born after the dates of training.

        Where training has no other, they stay.
        """
        births = self.births[
            (self.year[:, None] - self.number[self.ages] - self.first_year).clamp(
                0, len(self.births) - 1
            )
        ]
        last = torch.clamp(self.cursor, min=self.grammar.last_day)
        kept = tokens[:, self.ages] & (births <= last[:, None])
        has_one = kept.any(dim=1, keepdim=True)
        tokens[:, self.ages] = torch.where(has_one, kept, tokens[:, self.ages])

    def _keep_dates(self, tokens: torch.Tensor, *, asked: bool) -> None:
        """Take away what must lead out of the dates of training, or those asked for."""
        for group in self.dated:
            window = group.asked if asked else group.training
            if window is None:
                continue
            first, last = window
            first = self.first if first is None else first
            born = self.born.clamp(max=last - LARGEST_STEP)
            first = born.clamp(min=first)[:, None]
            day = (self.end_cursor if group.from_end else self.cursor)[:, None]
            tokens[:, group.run] &= (day + group.furthest >= first) & (
                day + group.nearest <= last
            )

    def advance(self, token_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Write a token in some rows: token_ids (B,) int64, rows (B,) bool."""
        days = self.days[token_ids]
        event = self.is_event[token_ids]
        cursor = self.cursor + days * self.is_move[token_ids]
        is_year, number = self.is_year[token_ids], self.number[token_ids]
        cursor = torch.where(is_year, self.january[token_ids], cursor)
        year = torch.where(is_year, number, self.year)
        birth = (year - number - self.first_year).clamp(0, len(self.births) - 1)
        born = torch.where(self.is_age[token_ids], self.births[birth], self.born)
        end_cursor = torch.where(
            event, cursor, self.end_cursor + days * self.is_end[token_ids]
        )
        event_row = torch.where(event, self.row_of_event[token_ids], self.event_row)
        state = self.next_state[self.state, token_ids]
        self.state = torch.where(rows, state, self.state)
        self.year = torch.where(rows, year, self.year)
        self.born = torch.where(rows, born, self.born)
        self.cursor = torch.where(rows, cursor, self.cursor)
        self.end_cursor = torch.where(rows, end_cursor, self.end_cursor)
        self.event_row = torch.where(rows, event_row, self.event_row)
        opens = rows & self.is_visit[token_ids]
        self.visit = torch.where(opens, token_ids, self.visit)
        self.visit_start = torch.where(opens, cursor, self.visit_start)
        gender_row = torch.maximum(self.gender_row, self.gender_row_of[token_ids])
        self.gender_row = torch.where(rows, gender_row, self.gender_row)
        self.count = self.count + rows.long()


def known_tokens(grammar: Grammar) -> np.ndarray:
    """Tell which tokens may be sampled at all: (V,) bool.

    Structure, what training has, and the days that spell its numbers. Any forward gap
    can be needed; but where training never goes back, or never moves by years, neither
    does a sample: the largest parts that it lacks are left out.
    """
    known = grammar.train_persons > 0
    known |= np.isin(grammar.roles, ("structure", "gap", "move", "end"))
    for role, sign in (("gap", -1), ("move", 1), ("move", -1), ("end", 1), ("end", -1)):
        tokens = (grammar.roles == role) & (np.sign(grammar.days) == sign)
        kinds = np.unique(grammar.kind[tokens])
        sizes = [
            abs(grammar.days[tokens & (grammar.kind == kind)]).min() for kind in kinds
        ]
        for kind in kinds[np.argsort(sizes)[::-1]]:
            part = tokens & (grammar.kind == kind)
            if grammar.train_count[part].any():
                break  # smaller parts complete it, seen or not
            known[part] = False
    return known


def common_tokens(grammar: Grammar, min_persons: int) -> np.ndarray:
    """Take event and value tokens away that fewer training persons have.

    An event family that would be left empty keeps its commonest token.
    """
    guarded = np.isin(grammar.roles, ("event", "value"))
    common = known_tokens(grammar) & (~guarded | (grammar.train_persons >= min_persons))
    events = grammar.has_kind("event")
    if events.any() and not (common & events).any():
        persons = np.where(events, grammar.train_persons, -1)
        if persons.max() > 0:
            common[persons.argmax()] = True
    return common


def legal_tokens(grammar: Grammar, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell which of these tokens may be sampled in which state, and how far that is.

    Returns (S, V) bool, without what leads to where nothing follows ([NO_VISIT] in data
    without events), and the fewest tokens from each state to the end: (S,) int.
    """
    present = np.bincount(grammar.kind[tokens], minlength=len(grammar.kinds)) > 0
    kinds = grammar.is_sampled & present
    distance = distances(grammar, kinds)
    kinds &= distance[grammar.next_state] < FAR
    return kinds[:, grammar.kind] & tokens, distance


def distances(grammar: Grammar, kinds: np.ndarray) -> np.ndarray:
    """Fewest tokens from each state to the end of a history: (S,) int, FAR if none.

    `kinds` (S, K) bool: what may be written in each state.
    """
    distance = np.full(len(grammar.states), FAR, np.int64)
    distance[grammar.states.index("end")] = 0
    for _ in grammar.states:
        through = np.where(kinds, distance[grammar.next_state] + 1, FAR)
        distance = np.minimum(distance, through.min(axis=1))
    return distance


def check_possible(
    grammar: Grammar, common: np.ndarray, impossible: np.ndarray
) -> None:
    """Raise InputError if a gender has no event left that it could have."""
    events = common & grammar.has_kind("event")
    left = (events & ~impossible).any(axis=1)
    if events.any() and not left.all():
        token = np.flatnonzero(grammar.has_kind("gender"))[np.flatnonzero(~left)[0] - 1]
        raise InputError(
            f"{grammar.folder}: --clinical_rules leaves {grammar.tokens[token]} no "
            "event: switch it off (false)."
        )


def check_reachable(grammar: Grammar, distance: np.ndarray, window: int) -> None:
    """Prove that [EOS] stays reachable from whatever can be sampled.

    `distance` (S,) is what the data leaves of the way from each state; `window`: days
    from the first to the last that may be written. Raises
    InputError if a state of the grammar has no way to the end, if the data has nothing
    for a state that every history goes through, or if the days of a gap, a move or an
    end could miss the dates that they were begun for.
    """
    ways = distances(grammar, grammar.is_sampled)
    reached = np.unique(grammar.next_state[grammar.is_sampled])
    stuck = [grammar.states[state] for state in reached if ways[state] >= FAR]
    if stuck:
        raise InputError(
            f"{grammar.folder}: transitions.csv has no way from state {stuck[0]} to "
            "the end: take the vocabulary from the encode output again."
        )
    if distance[grammar.states.index("start")] >= FAR:
        raise InputError(
            f"{grammar.folder}: training has no whole set of demographics (year, age, "
            "gender, race, ethnicity) to sample: train on more persons."
        )
    more = more_days(grammar)
    for kind in number_kinds(grammar):
        role = grammar.kind_rows[kind]["role"]
        for state in np.unique(grammar.next_state[grammar.is_sampled[:, kind], kind]):
            days = completions(grammar, int(state), role)
            steps = np.diff(days).max(initial=1)
            # the mask knows one range per kind: it must be that of every state
            is_range = (days[0], days[-1]) == tuple(more[kind])
            if not is_range or days[-1] >= FAR or steps > window + 1:
                raise InputError(
                    f"{grammar.folder}: what follows a token of kind "
                    f"{grammar.kinds[kind]} can miss every date of training: take the "
                    "vocabulary from the encode output again."
                )


def number_kinds(grammar: Grammar) -> list[int]:
    """Kinds that are part of a number of days: indices into `grammar.kinds`."""
    return [
        int(kind)
        for kind in np.unique(grammar.kind)
        if grammar.kind_rows[kind]["role"] in ("gap", "move", "end")
    ]


def more_days(grammar: Grammar) -> np.ndarray:
    """Fewest and most days that a number can still add after each kind: (K, 2) int."""
    more = np.zeros((len(grammar.kinds), 2), np.int64)
    for kind in number_kinds(grammar):
        role = grammar.kind_rows[kind]["role"]
        following = np.unique(grammar.next_state[grammar.is_sampled[:, kind], kind])
        days = [completions(grammar, int(state), role) for state in following]
        if days:
            more[kind] = min(d[0] for d in days), max(d[-1] for d in days)
    return more


def completions(grammar: Grammar, state: int, role: str) -> np.ndarray:
    """Numbers of days that a number under way can still add: (N,) int, in order."""
    if grammar.places[state] != "days":
        return np.zeros(1, np.int64)
    legal = grammar.is_sampled[state, grammar.kind] & (grammar.roles == role)
    sums = [
        grammar.days[legal & (grammar.kind == kind)][:, None]
        + completions(grammar, int(grammar.next_state[state, kind]), role)
        for kind in np.unique(grammar.kind[legal])
    ]
    return np.unique(np.concatenate([found.ravel() for found in sums] or [[FAR]]))


def one_run(tokens: np.ndarray) -> slice | np.ndarray:
    """Token ids of a group: a slice where they adjoin, else an array.

    Ids are given kind by kind, so they adjoin; tokens that a later encode met for the
    first time come after all others.
    """
    token_ids = np.flatnonzero(tokens)
    if not len(token_ids):
        return slice(0, 0)
    run = slice(int(token_ids[0]), int(token_ids[-1]) + 1)
    return run if run.stop - run.start == len(token_ids) else token_ids


def value_pairs(
    grammar: Grammar, min_persons: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, slice | np.ndarray]:
    """Read which value tokens may follow which event.

    Returns what training has and what enough persons have, each (E + 1, values) bool
    with an empty first row, for events without values; the row of each token (V,); and
    the value token ids.
    """
    table = pq.read_table(grammar.folder / "event_values.parquet")
    events = table["event_token_id"].to_numpy()
    values = table["value_token_id"].to_numpy()
    enough = table["train_persons"].to_numpy() >= min_persons
    event_ids = np.unique(events)
    value_ids = np.flatnonzero(grammar.roles == "value")
    row_of_event = np.zeros(grammar.vocab_size, np.int64)
    row_of_event[event_ids] = np.arange(1, len(event_ids) + 1)
    known = np.zeros((len(event_ids) + 1, len(value_ids)), dtype=bool)
    columns = np.searchsorted(value_ids, values)
    known[row_of_event[events], columns] = True
    common = np.zeros_like(known)
    common[row_of_event[events[enough]], columns[enough]] = True
    return known, common, row_of_event, one_run(grammar.roles == "value")
