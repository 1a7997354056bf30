"""The mask: which tokens may come next, so that every sample is a whole history.

Three facts decide: the grammar's transitions, the values that training has after an
event, and the cursor, a day per row that stays inside the dates of training. Knows
nothing of the model; all state is in tensors of one row per slot.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import torch

from omop_gpt.grammar import Grammar
from omop_gpt.step import InputError

FAR = 1 << 20  # a distance to [EOS] that no state has


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
    ) -> None:
        """Compile the tables of a grammar for `rows` rows.

        Raises InputError if a history could get stuck before [EOS].
        """
        self.grammar = grammar
        self.max_tokens = max_tokens or int(grammar.facts["longest_history"])
        self.is_known = known_tokens(grammar)
        self.is_common = common_tokens(grammar, min_persons)
        # before min_persons and after it: the difference is what it takes away
        known, common = (
            legal_tokens(grammar, tokens) for tokens in (self.is_known, self.is_common)
        )
        distance = distances(grammar, common)
        check_reachable(grammar, common, distance)
        following = grammar.next_state[:, grammar.kind]  # (S, V)
        after = np.where(common, distance[following], FAR)
        pairs, row_of_event, self.values = value_pairs(grammar, min_persons)

        def tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype).to(device)

        self.known = tensor(known, torch.bool)  # (S, V)
        self.legal = tensor(common, torch.bool)  # (S, V)
        self.after = tensor(after, torch.int32)  # (S, V) tokens to [EOS] after it
        self.furthest = int(distance[distance < FAR].max()) + 1
        self.next_state = tensor(np.maximum(following, 0), torch.long)
        self.pairs = tensor(pairs, torch.bool)  # (E + 1, values)
        self.row_of_event = tensor(row_of_event, torch.long)  # (V,)
        self.days = tensor(grammar.days, torch.long)
        more = np.array(
            [
                (int(row["more_days_from"]), int(row["more_days_to"]))
                for row in grammar.kind_rows
            ]
        )[grammar.kind]
        moves, ends = grammar.moves_cursor, grammar.roles == "end"
        supply = grammar.has_kind("days_supply")
        # a supply of n days runs out n - 1 days after it starts
        span = np.where(supply, np.maximum(grammar.number - 1, 0), grammar.days)
        self.dated = [
            (
                run,
                tensor(span[run] + more[run, 0], torch.long),
                tensor(span[run] + more[run, 1], torch.long),
                grammar.last_day if group is moves else grammar.last_end_day,
                group is ends,
            )
            for group in (moves, ends, supply)
            for run in [one_run(group)]
        ]
        self.first_day = grammar.first_day
        years = grammar.has_kind("year")
        first_year, last_year = (
            int(grammar.facts[name][:4]) for name in ("first_date", "last_date")
        )
        outside = years & (
            (grammar.number < first_year) | (grammar.number > last_year)
        )
        self.legal[:, tensor(np.flatnonzero(outside), torch.long)] = False
        january = np.zeros(grammar.vocab_size, np.int64)
        january[years] = (
            np.array([f"{n:04d}-01-01" for n in grammar.number[years]], "datetime64[D]")
            .astype(np.int64)
        )
        self.january = tensor(january, torch.long)
        self.is_year = tensor(years, torch.bool)
        self.is_move = tensor(moves, torch.bool)
        self.is_end = tensor(ends, torch.bool)
        self.is_event = tensor(grammar.has_kind("event"), torch.bool)
        self.start = grammar.states.index("start")
        self.finish = grammar.states.index("end")
        self.state = torch.full((rows,), self.start, dtype=torch.long, device=device)
        self.cursor = torch.zeros(rows, dtype=torch.long, device=device)
        self.end_cursor = torch.zeros(rows, dtype=torch.long, device=device)
        self.event_row = torch.zeros(rows, dtype=torch.long, device=device)
        self.count = torch.zeros(rows, dtype=torch.long, device=device)

    def reset(self, rows: torch.Tensor) -> None:
        """Start new histories in some rows: (N,) int64."""
        self.state[rows] = self.start
        for counter in (self.cursor, self.end_cursor, self.event_row, self.count):
            counter[rows] = 0

    def allowed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tell what may come next.

        Returns (B, V) bool: allowed; the same before rare tokens are taken away; and
        (B,) bool: whether the row is past its limit, so that only the shortest way to
        [EOS] is left.
        """
        allowed = self.legal[self.state]
        known = self.known[self.state]
        for run, nearest, furthest, last_day, from_end in self.dated:
            day = (self.end_cursor if from_end else self.cursor)[:, None]
            within = (day + furthest >= self.first_day) & (day + nearest <= last_day)
            allowed[:, run] &= within
            known[:, run] &= within
        allowed[:, self.values] &= self.pairs[self.event_row]
        ending = self.count >= self.max_tokens - self.furthest
        if bool(ending.any()):
            after = torch.where(allowed, self.after[self.state], FAR)
            shortest = after == after.min(dim=-1, keepdim=True).values
            allowed &= shortest | ~ending[:, None]
        return allowed, known, ending

    def advance(self, token_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Write a token in some rows: token_ids (B,) int64, rows (B,) bool."""
        days = self.days[token_ids]
        event = self.is_event[token_ids]
        cursor = self.cursor + days * self.is_move[token_ids]
        cursor = torch.where(self.is_year[token_ids], self.january[token_ids], cursor)
        end_cursor = torch.where(
            event, cursor, self.end_cursor + days * self.is_end[token_ids]
        )
        event_row = torch.where(event, self.row_of_event[token_ids], self.event_row)
        state = self.next_state[self.state, token_ids]
        self.state = torch.where(rows, state, self.state)
        self.cursor = torch.where(rows, cursor, self.cursor)
        self.end_cursor = torch.where(rows, end_cursor, self.end_cursor)
        self.event_row = torch.where(rows, event_row, self.event_row)
        self.count = self.count + rows.long()


def known_tokens(grammar: Grammar) -> np.ndarray:
    """Tell which tokens may be sampled at all: fixed ones, and what training has."""
    fixed = np.isin(grammar.roles, ("structure", "death", "gap", "move", "end"))
    fixed |= grammar.has_kind("no_visit", "year_unknown", "age_unknown")
    return fixed | (grammar.train_persons > 0)


def common_tokens(grammar: Grammar, min_persons: int) -> np.ndarray:
    """Take event and value tokens away that fewer training persons have.

    An event family that would be left empty keeps its commonest token.
    """
    guarded = np.isin(grammar.roles, ("event", "value"))
    common = known_tokens(grammar) & (
        ~guarded | (grammar.train_persons >= min_persons)
    )
    events = grammar.has_kind("event")
    if events.any() and not (common & events).any():
        persons = np.where(events, grammar.train_persons, -1)
        if persons.max() > 0:
            common[persons.argmax()] = True
    return common


def legal_tokens(grammar: Grammar, tokens: np.ndarray) -> np.ndarray:
    """Tell which tokens may be sampled in which state: (S, V) bool."""
    return grammar.is_sampled[:, grammar.kind] & tokens


def distances(grammar: Grammar, legal: np.ndarray) -> np.ndarray:
    """Fewest tokens from each state to the end of a history: (S,) int, FAR if none."""
    distance = np.full(len(grammar.states), FAR, np.int64)
    distance[grammar.states.index("end")] = 0
    # kinds that still have a token, in each state
    kinds = np.zeros(grammar.next_state.shape, dtype=bool)
    for kind in range(kinds.shape[1]):
        kinds[:, kind] = legal[:, grammar.kind == kind].any(axis=1)
    for _ in grammar.states:
        through = np.where(kinds, distance[grammar.next_state] + 1, FAR)
        distance = np.minimum(distance, through.min(axis=1))
    return distance


def check_reachable(grammar: Grammar, legal: np.ndarray, distance: np.ndarray) -> None:
    """Prove that [EOS] stays reachable from whatever can be sampled.

    Every state that sampling reaches has a way to the end; and the days of a gap, a
    move or an end are complete, so that some part always keeps the cursor inside the
    dates. Raises InputError otherwise.
    """
    reached = {grammar.states.index("start")}
    frontier = list(reached)
    while frontier:
        state = frontier.pop()
        for kind in np.unique(grammar.kind[legal[state]]):
            following = int(grammar.next_state[state, kind])
            if following not in reached:
                reached.add(following)
                frontier.append(following)
    stuck = [grammar.states[state] for state in sorted(reached) if distance[state] >= FAR]
    if stuck:
        raise InputError(
            f"{grammar.folder}: a history could not end from state {stuck[0]}: "
            "training has too few tokens there; train on more persons."
        )
    for kind, row in zip(grammar.kinds, grammar.kind_rows, strict=True):
        days = np.unique(grammar.days[grammar.kind == grammar.kinds.index(kind)])
        is_part = row["role"] in ("gap", "move", "end") and len(days) > 1
        if is_part and len(np.unique(np.diff(days))) != 1:
            raise InputError(
                f"{grammar.folder}: tokens of kind {kind} have gaps in their days: "
                "take the vocabulary from the encode output again."
            )


def one_run(tokens: np.ndarray) -> slice:
    """Token ids of a group as a slice: ids are given kind by kind, so they adjoin."""
    token_ids = np.flatnonzero(tokens)
    if not len(token_ids):
        return slice(0, 0)
    run = slice(int(token_ids[0]), int(token_ids[-1]) + 1)
    if run.stop - run.start != len(token_ids):
        raise RuntimeError("the vocabulary does not number tokens kind by kind")
    return run


def value_pairs(
    grammar: Grammar, min_persons: int
) -> tuple[np.ndarray, np.ndarray, slice]:
    """Read which value tokens may follow which event.

    Returns pairs (E + 1, values) bool, whose first row, for events without values, is
    empty; the row of each token (V,); and the value token ids.
    """
    table = pq.read_table(grammar.folder / "event_values.parquet")
    events = table["event_token_id"].to_numpy()
    values = table["value_token_id"].to_numpy()
    enough = table["train_persons"].to_numpy() >= min_persons
    event_ids = np.unique(events)
    value_ids = one_run(grammar.roles == "value")
    row_of_event = np.zeros(grammar.vocab_size, np.int64)
    row_of_event[event_ids] = np.arange(1, len(event_ids) + 1)
    pairs = np.zeros((len(event_ids) + 1, value_ids.stop - value_ids.start), dtype=bool)
    pairs[row_of_event[events[enough]], values[enough] - value_ids.start] = True
    return pairs, row_of_event, value_ids
