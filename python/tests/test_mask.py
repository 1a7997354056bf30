"""The mask: whatever is drawn from it, the history is whole, dated and common."""

from __future__ import annotations

import csv
import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import EVENTS, FACTS, SEEDS, make_grammar
from omop_gpt.grammar import Grammar, day_of
from omop_gpt.mask import FAR, LARGEST_STEP, Mask, completions, distances, more_days
from omop_gpt.step import InputError

EVERYONE: dict[str, int] = {}  # no token is rare
NOTHING = np.empty(0, np.int64)  # no history yet


def walk(
    mask: Mask, seed: int, *, by_kind: bool = False, longest: int = 1000
) -> list[np.ndarray]:
    """Draw from the mask until all rows end, uniformly over tokens, or over kinds.

    Over kinds, gaps and the end are rarer, so that there is more of all the others.
    """
    grammar = mask.grammar
    generator = torch.Generator().manual_seed(seed)
    rows = len(mask.state)
    kinds = torch.from_numpy(grammar.kind.astype(np.int64)).expand(rows, -1)
    for row in range(rows):
        mask.begin(row, NOTHING)
    rarer = torch.from_numpy(np.isin(grammar.roles, ("gap", "death")))
    rarer[grammar.eos_id] = True
    histories: list[list[int]] = [[] for _ in range(rows)]
    live = torch.ones(rows, dtype=torch.bool)
    while live.any():
        allowed, before, _ = mask.allowed()
        known = before["rare"]
        assert allowed.any(dim=1)[live].all(), "nothing may follow"
        assert not (allowed & ~known)[live].any()
        weight = allowed.float()
        if by_kind:
            of_kind = torch.zeros(rows, len(grammar.kinds)).scatter_add(
                1, kinds, weight
            )
            weight = weight / of_kind.gather(1, kinds).clamp(min=1)
            weight[:, rarer] *= 0.1
        weight[~live, 0] = 1
        upto = weight.double().cumsum(1)
        target = torch.rand(rows, 1, generator=generator) * upto[:, -1:]
        token_ids = torch.searchsorted(upto, target, right=True)[:, 0]
        assert weight.gather(1, token_ids[:, None]).all()
        mask.advance(token_ids, live)
        for row in live.nonzero()[:, 0].tolist():
            histories[row].append(int(token_ids[row]))
            assert len(histories[row]) < longest
        live &= mask.state != mask.finish
    assert mask.count.tolist() == [len(history) for history in histories]
    return [np.array(history) for history in histories]


def read_pairs(grammar: Grammar, min_persons: int) -> set[tuple[int, int]]:
    """Token ids of each event and each value that enough persons have after it."""
    rows = pq.read_table(grammar.folder / "event_values.parquet").to_pylist()
    return {
        (row["event_token_id"], row["value_token_id"])
        for row in rows
        if row["train_persons"] >= min_persons
    }


def check(
    grammar: Grammar, history: np.ndarray, min_persons: int, pairs: set[tuple[int, int]]
) -> None:
    """Prove one history: whole, inside the dates, without what must not be written."""
    assert grammar.is_history(history)
    names = [grammar.kinds[kind] for kind in grammar.kind[history]]
    states = grammar.walk(history)
    assert grammar.is_sampled[states[:-1], grammar.kind[history]].all()
    assert not {
        "cont", "in", "year_unknown", "age_unknown", "number_unknown",
        "quantity_unknown",
    } & {*names}  # fmt: skip
    first, last, last_end = (
        day_of(grammar.facts[name])
        for name in ("first_date", "last_date", "last_end_date")
    )
    cursor = end = event = gap = year = 0
    born = first
    dated = False
    for token_id, name, state in zip(history, names, states[1:], strict=True):
        role = grammar.kind_rows[grammar.kind[token_id]]["role"]
        days, is_complete = int(grammar.days[token_id]), grammar.places[state] != "days"
        if role == "gap":
            gap += days
        elif name == "death":
            assert gap >= 0
        else:
            gap = 0
        if name == "year":
            year = grammar.number[token_id]
            cursor = day_of(f"{year}-01-01")
        elif name == "age":
            born = day_of(f"{year - grammar.number[token_id]}-01-01")
            assert born <= max(last, cursor)  # not after all dates
            born = max(first, min(born, last - LARGEST_STEP))
        elif role in ("gap", "move"):
            cursor += days
            dated = is_complete
        elif name == "event":
            event, end = token_id, cursor
        elif role == "end":
            end += days
            assert not is_complete or first <= end <= last_end
        elif role == "value":
            assert (event, token_id) in pairs
            if name == "days_supply":
                assert cursor + max(grammar.number[token_id] - 1, 0) <= last_end
        if role in ("event", "value"):
            assert grammar.train_persons[token_id] >= min_persons
        assert not dated or born <= cursor <= last


CASES = {
    "all of it": {},
    "by the week": {"scheme": "week"},
    "by the month": {"scheme": "month"},
    "one day": {"first_date": "2005-07-04", "last_date": "2005-07-04"},
    "one day, supplies end there too": {
        "first_date": "2005-07-04", "last_date": "2005-07-04",
        "last_end_date": "2005-07-04",
    },
    "the last days of a year": {
        "first_date": "2007-12-30", "last_date": "2007-12-31",
        "last_end_date": "2008-01-01",
    },
    "a few months": {"first_date": "2003-11-20", "last_date": "2004-02-10"},
    "no date of a year that has a token": {
        "first_date": "1970-01-01", "last_date": "1970-01-01",
        "last_end_date": "1970-01-01",
    },
    "no visits": {"without": ("visit", "discharge")},
    "no events": {"without": ("event",)},
    "no loose days": {"persons": {"[NO_VISIT]": 0}},
    "no deaths": {"persons": {"[DEATH]": 0}},
    "neither visits nor events": {"without": ("visit", "event")},
    "loose days only": {"without": ("visit",), "persons": {"[DEATH]": 0}},
    "visits only": {"without": ("event",), "persons": {"[DEATH]": 0}},
    "no hours, no values": {
        "without": (
            "hour", "number", "number_unknown", "operator", "value_concept",
            "quantity", "quantity_unknown", "days_supply", "discharge",
        ),
    },
    "no ends": {"without": tuple(
        f"end_{name}" for name in
        ("years", "months", "days", "zero", "back_years", "back_months", "back_days")
    )},
    "nobody": {"without": ("visit", "event"), "persons": {"[DEATH]": 0}},
}  # fmt: skip


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """Return a function that makes the language of a case, once."""
    folder = tmp_path_factory.mktemp("languages")
    made: dict[str, Grammar] = {}

    def language(case: str) -> Grammar:
        if case not in made:
            settings = {"persons": EVERYONE} | CASES[case]
            made[case] = make_grammar(folder / str(len(made)), **settings)
        return made[case]

    return language


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by_kind", [False, True])
def test_every_walk_is_a_history(languages, case, by_kind):
    grammar = languages(case)
    longest = int(FACTS["longest_history"])
    mask = Mask(grammar, rows=60, max_tokens=longest)
    histories = walk(mask, seed=len(case), by_kind=by_kind)
    pairs = read_pairs(grammar, 5)
    for history in histories:
        check(grammar, history, 5, pairs)
        assert len(history) <= longest
    if case == "all of it" and by_kind:
        written = np.unique(grammar.kind[np.concatenate(histories)])
        never = {grammar.kinds[k] for k in {*range(len(grammar.kinds))} - {*written}}
        assert never == {
            "pad", "cont", "in", "year_unknown", "age_unknown", "number_unknown",
                "quantity_unknown",
        }  # fmt: skip
    if case == "nobody":
        assert {len(history) for history in histories} == {7}
    for kind in ("no_visit", "death"):
        if grammar.train_persons[grammar.only(kind)] == 0:
            assert not (np.concatenate(histories) == grammar.only(kind)).any()


@pytest.mark.parametrize("max_tokens", [1, 6, 7, 8, 9, 12, 15, 16, 17, 20, 33])
@pytest.mark.parametrize("case", ["all of it", "one day", "loose days only"])
def test_no_history_is_longer_than_the_limit(languages, max_tokens, case):
    grammar = languages(case)
    mask = Mask(grammar, rows=100, max_tokens=max_tokens)
    for by_kind in (False, True):
        histories = walk(mask, seed=max_tokens, by_kind=by_kind)
        lengths = [len(history) for history in histories]
        assert max(lengths) <= max(max_tokens, 7)
        assert all(grammar.is_history(history) for history in histories)


def test_ending_is_told(languages):
    mask = Mask(languages("all of it"), rows=3, max_tokens=30)
    mask.count[:] = torch.tensor([0, 30 - mask.furthest - 1, 30 - mask.furthest])
    assert mask.allowed()[2].tolist() == [False, False, True]


@pytest.mark.parametrize("min_persons", [0, 2, 5, 10])
def test_rare_tokens_are_not_written(grammar, min_persons):
    mask = Mask(grammar, rows=60, min_persons=min_persons)
    histories = walk(mask, seed=min_persons, by_kind=True)
    found = {grammar.tokens[t] for t in np.unique(np.concatenate(histories))}
    events = found & set(EVENTS)
    pairs = read_pairs(grammar, min(min_persons, 9))
    for history in histories:
        check(grammar, history, min(min_persons, 9), pairs)
    if min_persons == 10:  # more than anything has: the commonest event stays
        assert len(events) == 1
        assert not any(token.startswith("value:") for token in found)
    else:
        assert ("condition:201826" in events) == (min_persons < 5)
        assert ("value:4" in found) == (min_persons < 2)


def test_what_is_masked_as_rare(grammar):
    """Known is what training has at all: values of other events do not count."""
    mask = Mask(grammar, rows=1, min_persons=5)
    text = "[BOS] year:2004 age:30 gender:8507 race:0 ethnicity:0 D1 visit:9201"
    for token in [*text.split(), "measurement:3004249@8876"]:
        token_id = torch.tensor([grammar.tokens.index(token)])
        mask.advance(token_id, torch.ones(1, dtype=torch.bool))
    allowed, before, _ = mask.allowed()
    known = before["rare"]
    rare = {grammar.tokens[n] for n in (known & ~allowed)[0].nonzero()[:, 0].tolist()}
    assert rare == {"condition:201826", "value:2"}


def test_rows_do_not_touch_each_other(languages):
    grammar = languages("all of it")
    history = walk(Mask(grammar, rows=1), seed=3)[0]
    others = ["year:2004", "measurement:3025315@9529", "e-D1"]
    others = [grammar.tokens.index(token) for token in others]
    mask = Mask(grammar, rows=4)
    alone = Mask(grammar, rows=1)
    row = torch.tensor([True, False, False, False])
    for token_id in history.tolist():
        mask.advance(torch.tensor([token_id, *others]), row)
        alone.advance(torch.tensor([token_id]), torch.tensor([True]))
        assert torch.equal(mask.allowed()[0][0], alone.allowed()[0][0])
    assert mask.count.tolist() == [len(history), 0, 0, 0]
    assert mask.state.tolist() == [mask.finish, mask.start, mask.start, mask.start]
    for counter in (mask.cursor, mask.end_cursor, mask.event_row):
        assert not counter[1:].any()
    mask.begin(0, NOTHING)
    assert torch.equal(mask.allowed()[0][0], mask.allowed()[0][1])


def broken(tmp_path, change, **facts: str) -> Grammar:
    """Make a language whose grammar files were changed by `change(name, rows)`."""
    seeds = tmp_path / "seeds"
    shutil.copytree(SEEDS, seeds)
    for path in seeds.glob("*.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows = change(path.stem, rows)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return make_grammar(tmp_path / "vocabulary", persons=EVERYONE, seeds=seeds, **facts)


def test_a_grammar_with_a_dead_end_is_refused(tmp_path):
    def change(name, rows):
        closing = [("visit_hour", "event"), ("closed", "eos")]
        return [r for r in rows if (r.get("state"), r.get("kind")) not in closing]

    with pytest.raises(InputError, match="no way from state"):
        Mask(broken(tmp_path, change), rows=1)


@pytest.mark.parametrize(
    ("state", "kind", "facts"),
    [
        # months and no days: still there in a later chunk, so the kind has two ranges
        ("gap_months", "gap_zero", {}),
        # 30 days back cannot be said, and that may be the only day there is
        ("move_back_months", "move_zero", CASES["one day"]),
    ],
)
def test_a_grammar_that_could_miss_a_date_is_refused(tmp_path, state, kind, facts):
    def change(name, rows):
        return [r for r in rows if (r.get("state"), r.get("kind")) != (state, kind)]

    with pytest.raises(InputError, match="can miss every date of training"):
        Mask(broken(tmp_path, change, **facts), rows=1)


@pytest.mark.parametrize(
    ("scheme", "years", "months"),
    [("day", 359, 29), ("week", 357, 0), ("month", 330, 0)],
)
def test_days_that_a_number_can_still_add(tmp_path, scheme, years, months):
    """Of every kind, forward and back: the mask lets begin what can end in time."""
    grammar = make_grammar(tmp_path / "vocabulary", scheme=scheme)
    found = dict(zip(grammar.kinds, more_days(grammar).tolist(), strict=True))
    for role in ("gap", "move", "end"):
        assert found[f"{role}_years"] == [0, years]
        assert found[f"{role}_back_years"] == [-years, 0]
        if scheme == "day":
            assert found[f"{role}_months"] == [0, months]
            assert found[f"{role}_back_months"] == [-months, 0]
        for name in ("days", "zero", "back_days"):
            assert found[f"{role}_{name}"] == [0, 0]
    assert found["event"] == found["hour"] == [0, 0]


def test_a_window_that_is_shorter_than_a_week_is_refused(tmp_path):
    """Where dates go by the week, none may lie in it."""
    facts = {"first_date": "2005-07-04", "last_date": "2005-07-09"}
    grammar = make_grammar(tmp_path / "vocabulary", scheme="week", **facts)
    with pytest.raises(InputError, match="can miss every date of training"):
        Mask(grammar, rows=1)


def test_data_without_demographics_is_refused(tmp_path):
    grammar = make_grammar(tmp_path / "vocabulary", without=("gender",))
    with pytest.raises(InputError, match="demographics"):
        Mask(grammar, rows=1)


def test_days_that_can_still_be_added(grammar):
    for state, role, low, high in [
        ("gap_years", "gap", 0, 359),
        ("gap_back_months", "gap", -29, 0),
        ("visit_end_back_years", "end", -359, 0),
        ("gap_done", "gap", 0, 0),
    ]:
        found = completions(grammar, grammar.states.index(state), role)
        assert found.tolist() == list(range(low, high + 1))


def test_distances(grammar):
    distance = distances(grammar, grammar.is_sampled)
    assert distance[grammar.states.index("start")] == 7
    assert distance[grammar.states.index("gap_years")] == 3
    assert distance[grammar.states.index("end")] == 0
    assert distance[grammar.states.index("unknown_age")] == FAR


def test_directions_and_sizes_that_training_lacks_are_not_written(grammar):
    unseen = (grammar.roles == "gap") & (grammar.days < 0)
    unseen |= (grammar.roles == "move") & (grammar.days < 0)
    unseen |= (grammar.roles == "move") & (grammar.days >= 30)
    quiet = dataclasses.replace(
        grammar, train_count=np.where(unseen, 0, grammar.train_count)
    )
    for seed, subject in enumerate((quiet, grammar)):
        histories = walk(Mask(subject, rows=64, min_persons=0), seed, by_kind=True)
        written = np.concatenate(histories)
        assert all(subject.is_history(history) for history in histories)
        assert unseen[written].any() == (subject is grammar)
