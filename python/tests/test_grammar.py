"""The language: days are spelled one way, long histories are cut without loss."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_grammar, random_history
from omop_gpt.grammar import Grammar, save_tokenizer
from omop_gpt.step import InputError
from transformers import AutoTokenizer


def walks(grammar: Grammar, role: str, first_state: str) -> dict[int, list[list[int]]]:
    """Spell every number of days in every way that the transitions have."""
    found: dict[int, list[list[int]]] = {}
    open_walks = [(grammar.states.index(first_state), [], 0)]
    while open_walks:
        state, token_ids, days = open_walks.pop()
        for token_id in np.flatnonzero(grammar.roles == role):
            following = grammar.next_state[state, grammar.kind[token_id]]
            if following < 0:
                continue
            walk = [*token_ids, int(token_id)]
            total = days + int(grammar.days[token_id])
            if grammar.places[following] == "days":
                open_walks.append((following, walk, total))
            else:
                found.setdefault(total, []).append(walk)
    return found


@pytest.fixture(scope="module")
def schemes(tmp_path_factory):
    """Languages that write dates to the day, the week and the month."""
    folder = tmp_path_factory.mktemp("schemes")
    return {
        name: make_grammar(folder / name, scheme=name)
        for name in ("day", "week", "month")
    }


@pytest.mark.parametrize(("role", "state"), [("gap", "between"), ("move", "visit")])
@pytest.mark.parametrize(("scheme", "unit"), [("day", 1), ("week", 7), ("month", 30)])
def test_every_number_of_days_is_spelled_in_one_way(schemes, scheme, unit, role, state):
    grammar = schemes[scheme]
    found = walks(grammar, role, state)
    missing = {0} if role == "move" else set()  # a move of no days is left out
    most = 40_000 // unit * unit
    assert set(range(-most, most + 1, unit)) - found.keys() == missing
    assert all(days % unit == 0 for days in found)
    assert all(len(ways) == 1 for ways in found.values())
    rng = np.random.default_rng(0)
    edges = [*range(-400, 401), -40_000, -39_999, 39_999, 40_000]
    for days in {*edges, *rng.integers(-40_000, 40_000, 1500).tolist()}:
        if abs(days) < unit and role == "move":
            continue
        spelled = grammar.spell(role, days)
        # where days are coarser, as far as it goes without overshooting
        near = int(days / unit) * unit
        assert [spelled] == found[near]
        assert grammar.days[spelled].sum() == near


def test_more_days_than_there_are_words_for(grammar):
    """A later chunk's prompt is context only: as far as it goes is far enough."""
    most = max(walks(grammar, "gap", "between"))
    for sign in (1, -1):
        assert grammar.days[grammar.spell("gap", sign * 60_000)].sum() == sign * most


def test_random_histories_are_histories(grammar):
    rng = np.random.default_rng(1)
    states, kinds = set(), set()
    for _ in range(200):
        history = random_history(grammar, rng, int(rng.integers(6, 200)))
        assert grammar.is_history(history)
        states |= {grammar.states[state] for state in grammar.walk(history)}
        kinds |= {grammar.kinds[kind] for kind in grammar.kind[history]}
        assert not grammar.is_history(history[:-1])
        assert not grammar.is_history(history[1:])
        assert not grammar.is_history([*history, grammar.eos_id])
    # so the tests below see them all
    assert set(grammar.kinds) - kinds == {"pad", "cont", "in", "year_unknown"}
    never = {state for state in grammar.states if state.startswith(("cont", "unknown"))}
    assert set(grammar.states) - states == never


def test_what_is_no_history(grammar):
    token_id = {token: n for n, token in enumerate(grammar.tokens)}
    demographics = "year:2001 age:3 gender:8507 race:0 ethnicity:0"
    for text, expected in [
        (f"[BOS] {demographics} [EOS]", True),
        ("[BOS] year:unknown age:unknown gender:8507 race:0 ethnicity:0 [EOS]", True),
        (f"[BOS] {demographics} D-3 [DEATH] [EOS]", True),
        (f"[BOS] {demographics} D3 D3 visit:9201 [EOS]", False),
        (f"[BOS] {demographics} D3 [EOS]", False),
        (f"[BOS] {demographics} D3 [NO_VISIT] [EOS]", False),
        (f"[BOS] {demographics} D3 [DEATH] D3 visit:9201 [EOS]", False),
        (f"[BOS] {demographics} D3 visit:9201 hour:8 [EOS]", False),
        (f"[BOS] {demographics} D3 visit:9201 i-D1 i-D1 [EOS]", False),
        (f"[BOS] {demographics} D3 visit:9201 value:0 [EOS]", False),
        (f"[CONT] {demographics} D3 D3 visit:9201 [EOS]", False),
        ("[BOS] [EOS]", False),
        ("", False),
    ]:
        found = grammar.is_history([token_id[token] for token in text.split()])
        assert found == expected, text
    text = f"[BOS] {demographics} D3 [NO_VISIT] drug:1125315 quantity:unknown [EOS]"
    whole = [token_id[token] for token in text.split()]
    last = whole.index(grammar.vocab_size - 1)  # -1 must not be read from the end
    assert grammar.is_history(whole)
    for strange in (-1, grammar.vocab_size):
        assert not grammar.is_history([*whole[:last], strange, *whole[last + 1 :]])


def follow(grammar: Grammar, token_ids: np.ndarray) -> list[tuple]:
    """Tell of each token where it stands: date, hour, visit and its start.

    Written again here, so that a slip in the grammar is not repeated.
    """
    cursor = np.datetime64("1970-01-01")
    hour = visit = start = None
    places = []
    for token_id in token_ids.tolist():
        kind = grammar.kinds[grammar.kind[token_id]]
        if kind == "year":
            cursor = np.datetime64(f"{grammar.number[token_id]}-01-01")
        elif kind.startswith(("gap_", "move_")):
            cursor = cursor + grammar.days[token_id]
            hour = None
            if kind.startswith("gap_"):
                visit = start = None
        elif kind in ("visit", "no_visit"):
            visit, start = token_id, cursor
        elif kind == "hour":
            hour = grammar.number[token_id]
        places.append((cursor, hour, visit, start))
    return places


def begins_of(grammar, history, cuts, chunk, end):
    """Cuts from which a prompt and the history up to `end` are this chunk."""
    return [
        place
        for place, cut in cuts.items()
        if place < end
        and grammar.continuation(cut, int(history[place])) + history[place:end].tolist()
        == chunk.tolist()
    ]


@pytest.mark.parametrize(
    ("max_tokens", "overlap"),
    [(40, 0), (64, 0), (101, 0), (400, 0), (64, 32), (101, 50), (400, 200)],
)
def test_chunks_lose_nothing(grammar, max_tokens, overlap):
    rng = np.random.default_rng(max_tokens)
    ages = grammar.number[grammar.has_kind("age")]
    later = inside = repeated = 0
    for _ in range(40):
        history = random_history(grammar, rng, int(rng.integers(6, 900)))
        chunks = grammar.chunks(history, max_tokens, overlap=overlap)
        cuts = grammar.cuts(history)
        assert np.array_equal(np.concatenate([c[n:] for c, n in chunks]), history)
        assert all(len(chunk) <= max_tokens for chunk, _ in chunks)
        assert [context > 0 for _, context in chunks] == [
            n > 0 for n in range(len(chunks))
        ]
        assert (len(chunks) > 1) == (len(history) > max_tokens)
        whole = follow(grammar, history)
        done = 0
        for chunk, context in chunks:
            assert (grammar.walk(chunk) >= 0).all()
            places = follow(grammar, chunk)[context:]
            assert places
            assert places == whole[done : done + len(places)]
            begins = begins_of(grammar, history, cuts, chunk, done + len(places))
            done += len(places)
            if not context:
                assert begins == []
                continue
            (begin,) = begins
            start_of_new = done - len(places)
            assert begin <= start_of_new
            if begin < start_of_new:
                repeated += 1
                assert context + 1 <= overlap
            tail = grammar.tail(history[: start_of_new + 1], overlap)
            assert np.array_equal(tail, chunk[: context + 1])
            later += 1
            inside += grammar.only("in") in chunk
            # the demographics are those of the day of the cut
            prompt, start = chunk[:6], history[:6]
            assert np.array_equal(prompt[3:], start[3:])
            date = whole[begin - 1][0]
            year = int(str(date)[:4])
            assert grammar.number[prompt[1]] == year
            if start[2] == grammar.only("age_unknown"):
                assert prompt[2] == start[2]
            else:
                age = year - grammar.number[start[1]] + grammar.number[start[2]]
                assert grammar.number[prompt[2]] == np.clip(age, ages.min(), ages.max())
    assert later > 20
    assert 0 < inside < later
    assert (repeated > later / 2) == (overlap > 0)


def test_a_context_too_small_for_the_language(grammar):
    history = random_history(grammar, np.random.default_rng(0), 200)
    with pytest.raises(InputError, match="raise --max_position_embeddings"):
        grammar.chunks(history, 12)


@pytest.mark.parametrize(
    "change",
    ["transitions.csv", "kinds.csv", "vocabulary", "event_values", "value_bins"],
)
def test_a_changed_folder_is_refused(grammar, tmp_path, change):
    folder = tmp_path / "vocabulary"
    shutil.copytree(grammar.folder, folder)
    assert Grammar.load(folder).fingerprint == grammar.fingerprint
    if change.endswith(".csv"):
        path = folder / "grammar" / change
        path.write_text(path.read_text().replace(",1\n", ",0\n", 1) + "\n")
    else:
        path = folder / f"{change}.parquet"
        table = pq.read_table(path)
        column = table.column_names.index("train_count")
        other = pa.array([*table["train_count"].to_pylist()[:-1], 21], pa.int64())
        pq.write_table(table.set_column(column, "train_count", other), path)
    with pytest.raises(InputError, match="was changed"):
        Grammar.load(folder)


@pytest.mark.parametrize(
    "path", ["vocabulary.parquet", "grammar/states.csv", "manifest.json"]
)
@pytest.mark.parametrize("left", [None, b"", b"half"])
def test_a_broken_folder_is_refused(grammar, tmp_path, path, left):
    folder = tmp_path / "vocabulary"
    shutil.copytree(grammar.folder, folder)
    if left is None:
        (folder / path).unlink()
    else:
        (folder / path).write_bytes(left)
    with pytest.raises(InputError):
        Grammar.load(folder)
    (folder / "manifest.json").write_text(json.dumps({"step": "another"}))
    with pytest.raises(InputError):
        Grammar.load(folder)


def test_the_same_data_has_the_same_fingerprint(grammar, tmp_path):
    again = make_grammar(tmp_path / "again")
    assert again.fingerprint == grammar.fingerprint
    other = make_grammar(tmp_path / "other", persons={})
    assert other.fingerprint != grammar.fingerprint


def test_the_tokenizer_says_the_same_ids(grammar, tmp_path):
    save_tokenizer(grammar, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    history = random_history(grammar, np.random.default_rng(5), 100)
    text = " ".join(grammar.tokens[token_id] for token_id in history)
    assert tokenizer(text)["input_ids"] == history.tolist()
    assert tokenizer.pad_token_id == grammar.pad_id
    assert tokenizer.bos_token_id == grammar.bos_id
    assert tokenizer.eos_token_id == grammar.eos_id
