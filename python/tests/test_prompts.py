"""Cohorts, forecasts, shards and rules: what is asked of a sample is in it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_grammar, make_model, random_history
from omop_gpt.grammar import Grammar, day_of
from omop_gpt.prompts import PROMPT_TOKENS, known_until, read_known
from omop_gpt.rules import Copies, impossible_events
from omop_gpt.sample import SampleConfig, load_model, sample
from omop_gpt.sampler import Sampler
from omop_gpt.step import InputError
from test_sample import bytes_of, config, draw, read_table, result, save_model

INDEX = "2005-06-30"


@pytest.fixture(scope="module")
def folder(grammar, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "model"
    return save_model(folder, make_model(grammar), grammar)


def write(path: Path, histories: list[np.ndarray]) -> str:
    """Write sequences as encode does, persons from 100 down."""
    path.mkdir(parents=True)
    lists = [h.tolist() for h in histories]
    table = {
        "person_id": pa.array([100 - n for n in range(len(lists))], pa.int64()),
        "token_ids": pa.array(lists, pa.list_(pa.int32())),
        "token_count": pa.array([len(ids) for ids in lists], pa.int32()),
    }
    pq.write_table(pa.table(table), path / "part-0.parquet")
    return str(path)


@pytest.fixture(scope="module")
def people(grammar) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [
        random_history(grammar, rng, n) for n in (20, 60, 90, 140) for _ in range(8)
    ]


def days_of(grammar: Grammar, history: np.ndarray) -> np.ndarray:
    """Day of the cursor after each token: (T,)."""
    moves = np.where(grammar.moves_cursor[history], grammar.days[history], 0)
    year = int(grammar.number[history[1]])
    return day_of(f"{year:04d}-01-01") + np.cumsum(moves)


def happened(grammar: Grammar, history: np.ndarray) -> np.ndarray:
    """Days of the events, visits, loose days and death of a history."""
    what = grammar.has_kind("event", "visit", "no_visit", "death")[history]
    return days_of(grammar, history)[what]


# --- cohorts ---------------------------------------------------------------------


@pytest.mark.parametrize("with_prompts", [False, True])
def test_a_cohort_has_nobody_else(folder, grammar, people, tmp_path, with_prompts):
    flags = {
        "min_age": 5, "max_age": 95, "min_year": 2000, "max_year": 2008,
        "gender_concept_ids": (8532,), "race_concept_ids": (0, 8527),
    }  # fmt: skip
    if with_prompts:
        everybody = [*people, *people]
        wanted = [
            h for h in people
            if 5 <= grammar.number[h[2]] <= 95 and 2000 <= grammar.number[h[1]] <= 2008
            and grammar.tokens[h[3]] == "gender:8532"
        ]  # fmt: skip
        assert 0 < len(wanted) < len(people)
        flags["demographic_data_path"] = write(tmp_path / "people", everybody)
    found = draw(folder, tmp_path / "out", num_of_patients=60, **flags)
    for ids in found:
        assert grammar.is_history(ids)
        assert 2000 <= grammar.number[ids[1]] <= 2008
        assert 5 <= grammar.number[ids[2]] <= 95
        assert grammar.tokens[ids[3]] == "gender:8532"
    if with_prompts:
        heads = {tuple(h[:PROMPT_TOKENS]) for h in wanted}
        assert {tuple(ids[:PROMPT_TOKENS]) for ids in found} == heads


def test_everybody_has_the_event_that_must_occur(folder, grammar, tmp_path):
    event = grammar.tokens.index("procedure:4230911")
    free = draw(folder, tmp_path / "free", num_of_patients=80)
    share = np.mean([event in ids for ids in free])
    assert 0 < share < 0.9
    found = draw(
        folder, tmp_path / "out", num_of_patients=80, must_have=("procedure:4230911",)
    )
    assert all(event in ids and grammar.is_history(ids) for ids in found)
    again = result(tmp_path / "out")["sampled_again"]["without_event"]
    # as many in vain as its share says, within chance
    tries = 80 + again
    assert abs(80 / tries - share) < 4 * np.sqrt(share * (1 - share) / 80)
    # who has it at the first try is who he was
    same = [a == b for a, b in zip(free, found, strict=True) if event in a]
    assert all(same)


def test_a_unit_may_be_left_out(folder, grammar, tmp_path):
    found = draw(folder, tmp_path / "out", must_have=("measurement:3004249",))
    event = grammar.tokens.index("measurement:3004249@8876")
    assert all(event in ids for ids in found)


# --- forecasts -------------------------------------------------------------------


def test_a_history_is_known_up_to_the_index_date(grammar, people):
    kept = over = 0
    for history, date in product(people, (INDEX, "2012-12-31")):
        last = day_of(date)
        stop = known_until(history, grammar, last)
        days = days_of(grammar, history)
        states = grammar.walk(history)
        number = grammar.places[states[1:]] == "days"
        whole = grammar.moves_cursor[history] & ~number  # a number that is complete
        beyond = np.flatnonzero(whole & (days > last))
        begins = states[:PROMPT_TOKENS], grammar.kind[history[:PROMPT_TOKENS]]
        if not grammar.is_sampled[begins].all():  # the age is unknown
            assert stop == 0
            continue
        if not len(beyond):  # nothing more is known; only the dead have no future
            dead = grammar.tokens.index("[DEATH]") in history
            assert stop == (0 if dead else len(history) - 1)
            over += 1
            continue
        kept += 1
        assert (happened(grammar, history[:stop]) <= last).all()
        assert grammar.places[states[stop]] != "days"
        # the next thing that is whole lies beyond
        following = np.flatnonzero(whole[stop:])[0] + stop
        assert days[following] > last
        assert following == beyond[0]
    assert kept > 3
    assert over > 3


def test_forecasts_go_on_after_the_index_date(folder, grammar, people, tmp_path):
    path = write(tmp_path / "people", people)
    known = dict(read_known(path, grammar, INDEX))
    flags = {"history_data_path": path, "index_date": INDEX, "rollouts": 3}
    found = draw(folder, tmp_path / "out", num_of_patients=0, **flags)
    assert len(found) == 3 * len(known)
    table = read_table(tmp_path / "out").to_pydict()
    assert table["source_person_id"] == [p for p in sorted(known) for _ in range(3)]
    last, new = day_of(INDEX), 0
    for ids, person, count in zip(
        found, table["source_person_id"], table["known_token_count"], strict=True
    ):
        history = np.array(ids)
        assert grammar.is_history(history)
        assert count == len(known[person])
        assert (history[:count] == known[person]).all()
        days = days_of(grammar, history)
        what = grammar.has_kind("event", "visit", "no_visit", "death")[history]
        assert (days[count:][what[count:]] > last).all()
        new += what[count:].sum()
    assert new > len(found)
    assert len({tuple(ids) for ids in found}) > 2 * len(known)  # roll-outs differ


def test_a_long_history_is_shown_by_its_last_chunk(folder, grammar, people, tmp_path):
    """In a small context: the forecast is whole, and told what a chunk is told."""
    path = write(tmp_path / "people", people)
    flags = {"history_data_path": path, "index_date": "2009-12-31"}
    longest = max(len(h) for _, h in read_known(path, grammar, "2009-12-31"))
    assert longest > 64
    found = draw(
        folder, tmp_path / "out", num_of_patients=0, context_window=64, **flags
    )
    assert all(grammar.is_history(ids) for ids in found)
    assert result(tmp_path / "out")["longer_than_context"] > 0


def test_nobody_to_forecast(folder, grammar, people, tmp_path):
    path = write(tmp_path / "people", people)
    for flags, message in (
        ({"index_date": "1990-01-01"}, "has nobody with a history"),
        ({"index_date": "2010-09-30"}, "nothing can follow|has nobody"),
        ({"index_date": INDEX, "num_of_patients": 10_000}, "are only"),
        ({"index_date": ""}, "go together"),
        ({"index_date": "30 June"}, "write it as"),
    ):
        with pytest.raises(InputError, match=message):
            draw(folder, tmp_path / "out", history_data_path=path, **flags)
    assert not (tmp_path / "out" / "generated_sequences").exists()


# --- shards ----------------------------------------------------------------------


def test_shards_make_the_same_folder(folder, tmp_path):
    draw(folder, tmp_path / "whole", num_of_patients=24, buffer_size=4)
    flags = {"num_of_patients": 24, "buffer_size": 4, "max_tokens_per_patient": 40}
    flags |= {"model_folder": str(folder), "output_folder": str(tmp_path / "shards")}
    for shard in (2, 3, 1):
        assert not (tmp_path / "shards" / "generated_sequences").exists()
        sample(SampleConfig(batch_size=8, shard=shard, num_of_shards=3, **flags))
    assert bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "whole")
    assert result(tmp_path / "shards") == result(tmp_path / "whole")


def test_shards_of_other_samplings_are_not_mixed(folder, tmp_path):
    flags = {"num_of_patients": 24, "buffer_size": 4, "batch_size": 8}
    flags |= {"model_folder": str(folder), "output_folder": str(tmp_path / "out")}
    flags |= {"max_tokens_per_patient": 40, "num_of_shards": 2}
    sample(SampleConfig(shard=1, **flags))
    with pytest.raises(InputError, match="shards of another sampling"):
        sample(SampleConfig(shard=2, seed=7, **flags))
    with pytest.raises(InputError, match="there are --num_of_shards 2"):
        SampleConfig(shard=3, **flags)


# --- rules -----------------------------------------------------------------------


def test_nothing_happens_after_the_last_date(folder, grammar, tmp_path):
    last = day_of("2004-02-29")
    free = draw(folder, tmp_path / "free", num_of_patients=60)
    assert max(happened(grammar, np.array(ids)).max(initial=0) for ids in free) > last
    found = draw(folder, tmp_path / "out", num_of_patients=60, last_date="2004-02-29")
    for ids in found:
        assert grammar.is_history(ids)
        assert (happened(grammar, np.array(ids)) <= last).all()
    assert 0 < result(tmp_path / "out")["dates_probability"] < 1
    assert "dates_probability" not in result(tmp_path / "free")


def test_no_event_that_is_impossible_for_the_gender(grammar, tmp_path):
    """Of the seed: 201826 is made one of men by a seed of the test."""
    impossible = np.zeros((3, grammar.vocab_size), dtype=bool)
    genders = [grammar.tokens[t] for t in np.flatnonzero(grammar.has_kind("gender"))]
    assert genders == ["gender:8507", "gender:8532"]
    event = grammar.tokens.index("procedure:4230911")
    impossible[2, event] = True
    folder = save_model(tmp_path / "model", make_model(grammar), grammar)
    flags = config(folder, folder, num_of_patients=80, max_tokens_per_patient=60)
    model = load_model(folder, grammar)
    sampler = Sampler(model, grammar, flags, rules={"impossible": impossible})
    with torch.inference_mode():
        found = list(sampler.run([*range(80)]))
    having = {
        gender: [
            event in s.token_ids
            for s in found
            if grammar.tokens[s.token_ids[3]] == gender
        ]
        for gender in genders
    }
    assert any(having["gender:8507"])
    assert not any(having["gender:8532"])
    taken = [s.masked["impossible"] for s in found]
    women = [grammar.tokens[s.token_ids[3]] == "gender:8532" for s in found]
    assert all((t > 0) <= w for t, w in zip(taken, women, strict=True))
    assert max(taken) > 0


def test_which_events_are_impossible(grammar, tmp_path, monkeypatch):
    """By the list of the OHDSI dashboard, and by training."""
    plausible = [
        {"concept_id": "4230911", "gender_concept_id": "8507"},
        {"concept_id": "1", "gender_concept_id": "8532"},
    ]
    monkeypatch.setattr("omop_gpt.rules.read_csv", lambda _: plausible)
    event = grammar.tokens.index("procedure:4230911")
    found = impossible_events(grammar, [])
    assert found.sum() == 1
    assert found[2, event]  # women, 8532
    rng = np.random.default_rng(1)
    common = grammar.tokens.index("condition:320128")
    man = grammar.tokens.index("gender:8507")
    histories = [random_history(grammar, rng, 60) for _ in range(400)]
    histories = [h for h in histories if common not in h or h[3] == man]
    men = sum(h[3] == man for h in histories)
    have = sum(common in h for h in histories)
    women = have * (1 - men / len(histories))  # so many of them would have it
    monkeypatch.setattr("omop_gpt.rules.EXPECTED", women + 1)
    files = [Path(write(tmp_path / "train", histories)) / "part-0.parquet"]
    assert not impossible_events(grammar, files)[2, common]
    monkeypatch.setattr("omop_gpt.rules.EXPECTED", women - 1)
    found = impossible_events(grammar, files)
    assert found[2, common]
    assert not found[1].any()


def test_the_seed_of_the_dashboard_is_read(tmp_path):
    """Its concepts are men's or women's, and rule nothing out for other genders."""
    from omop_gpt.grammar import read_csv
    from omop_gpt.warehouse import project_folder

    rows = read_csv(project_folder() / "seeds/omop/plausible_genders.csv")
    assert {row["gender_concept_id"] for row in rows} == {"8507", "8532"}
    assert len({row["concept_id"] for row in rows}) == len(rows) == 301


@pytest.mark.parametrize("length", [1, 3, 12])
def test_copies_are_found_and_nothing_else(grammar, people, tmp_path, length):
    files = [Path(write(tmp_path / "train", people)) / "part-0.parquet"]
    copies = Copies(files, grammar, length)
    runs = {
        tuple(h[n : n + length]) for h in people for n in range(len(h) - length + 1)
    }
    assert len(copies.known) == len(runs)
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(200):
        history = random_history(grammar, rng, 30)
        copied = any(
            tuple(history[n : n + length]) in runs
            for n in range(len(history) - length + 1)
        )
        assert copies.are_in(history) == copied
        found += copied
    assert (found > 0) == (length < 12)
    assert copies.are_in(people[3])
    assert not copies.are_in(people[3][: length - 1])


def test_copied_runs_are_sampled_again(folder, grammar, tmp_path):
    """A model asked twice for the same patients repeats them all, unless forbidden."""
    first = draw(folder, tmp_path / "first", num_of_patients=30)
    train = write(tmp_path / "train", [np.array(ids) for ids in first])
    flags = {"num_of_patients": 30, "train_data_path": train}
    found = draw(folder, tmp_path / "out", max_copied_tokens=8, **flags)
    assert result(tmp_path / "out")["sampled_again"]["copied"] >= 20
    files = [Path(train) / "part-0.parquet"]
    copies = Copies(files, grammar, 9)
    assert not any(copies.are_in(np.array(ids)[1:]) for ids in found)
    assert all(grammar.is_history(ids) for ids in found)


def test_what_is_too_rare_is_one_line(folder, grammar, tmp_path):
    train = write(
        tmp_path / "train",
        [random_history(grammar, np.random.default_rng(n), 90) for n in range(200)],
    )
    flags = {"train_data_path": train, "max_copied_tokens": 1, "max_attempts": 5}
    with pytest.raises(InputError, match="sampled 5 times in vain"):
        draw(folder, tmp_path / "out", **flags)
    assert (tmp_path / "out" / ".generated_sequences.partial").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"must_have": ("condition:1",)}, "nobody in training has this"),
        ({"must_have": ("condition:201826",)}, "fewer than --min_persons 5"),
        ({"min_age": 500}, "training has no age"),
        ({"min_year": 1900, "max_year": 1901}, "training has no year"),
        ({"gender_concept_ids": (1,)}, "training has no gender"),
        ({"max_copied_tokens": 5}, "needs --train_data_path"),
        ({"train_data_path": "nowhere", "max_copied_tokens": 5}, "holds no sequences"),
        ({"last_date": "1999-01-01"}, "training starts later"),
        ({"last_date": "soon"}, "write it as"),
        ({"num_of_patients": 0}, "at least 1"),
        ({"min_p": 1.0}, "0 to below 1"),
        ({"typical_p": 0.0}, "above 0"),
    ],
)
def test_bad_flags(folder, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        draw(folder, tmp_path / "out", **flags)


def test_the_counts_are_in_the_manifest(folder, tmp_path):
    draw(folder, tmp_path / "out", last_date="2008-01-01", clinical_rules=True)
    manifest = json.loads(
        (tmp_path / "out" / "generated_sequences" / "_manifest.json").read_text()
    )
    assert {"rare_probability", "impossible_probability", "dates_probability"} <= set(
        manifest["result"]
    )


def test_a_language_of_weeks_is_forecast(tmp_path):
    """Windows are checked against the steps that a scheme can take."""
    grammar = make_grammar(tmp_path / "vocabulary", scheme="week")
    folder = save_model(tmp_path / "model", make_model(grammar), grammar)
    people = draw(folder, tmp_path / "free", max_tokens_per_patient=60)
    path = write(tmp_path / "people", [np.array(ids) for ids in people])
    flags = {"history_data_path": path, "num_of_patients": 0}
    found = draw(folder, tmp_path / "out", index_date=INDEX, **flags)
    assert all(grammar.is_history(ids) for ids in found)
    with pytest.raises(InputError, match="can miss every date"):
        draw(folder, tmp_path / "late", index_date="2010-09-27", **flags)


def test_the_batch_is_sized_by_what_is_asked(folder, grammar):
    model = load_model(folder, grammar)

    def rows(**flags) -> int:
        return Sampler(model, grammar, config(folder, folder, **flags)).batch_size

    assert rows(batch_size=5) == 5
    for asked, found in ((1, 8), (9, 16), (256, 256), (10_000, 256)):
        assert rows(batch_size=0, num_of_patients=asked) == found
    assert rows(batch_size=0, num_of_patients=400, num_of_shards=10) == 64
