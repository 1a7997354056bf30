"""Events have the months of the training, where a model does not know them itself."""

import numpy as np
import pytest
import torch
from conftest import make_model, random_history, sample_scaled_and_plain
from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.novelty import foretold, runs_of
from omop_gpt.seasons import (
    LEAST,
    SeasonProcessor,
    count_months,
    fit_seasons,
    lacking,
    log_indices,
)

CONTEXT = 160
MONTHS = np.arange(12)


@pytest.fixture(scope="module")
def grammar(many_events):
    return many_events


@pytest.fixture(scope="module")
def seasonal(grammar):
    """Histories in which the first half of the conditions come in the first half year.

    Others are put in their place from July on; drugs have no season.
    """
    rng = np.random.default_rng(3)
    run = runs_of(grammar)["condition_occurrence"]
    half = run.start + (run.stop - run.start) // 2
    found = []
    for _ in range(400):
        history = random_history(grammar, rng, int(rng.integers(50, 400)))
        places = np.flatnonzero((history >= run.start) & (history < run.stop))
        months = grammar.cursor(history)[places].astype("datetime64[D]")
        months = months.astype("datetime64[M]").astype(int) % 12
        early = rng.integers(run.start, half, len(places))
        late = rng.integers(half, run.stop, len(places))
        history[places] = np.where(months < 6, early, late)
        found.append(history)
    return found


@pytest.fixture(scope="module")
def model(grammar):
    return make_model(grammar, context=CONTEXT)


@pytest.fixture(scope="module")
def seasons(grammar, model, seasonal):
    with torch.inference_mode():
        return fit_seasons(model, grammar, seasonal[:350], seasonal[350:])


def test_months_are_counted_once_a_person_and_month(grammar, seasonal):
    found = count_months(grammar, seasonal[:20])
    seen = set()
    for person, history in enumerate(seasonal[:20]):
        for token, day in zip(history, grammar.cursor(history), strict=True):
            if grammar.has_kind("event")[token]:
                seen.add((person, token, np.datetime64(int(day), "D").astype("M8[M]")))
    wanted = np.zeros_like(found)
    for _, token, month in seen:
        wanted[token, month.astype(int) % 12] += 1
    assert np.array_equal(found, wanted)
    assert found.sum() > 100


def test_chance_is_no_season_and_much_of_it_is():
    rng = np.random.default_rng(7)
    steady = rng.multinomial(3_000, np.full(12, 1 / 12), size=200)
    shares = np.exp(np.cos(2 * np.pi * MONTHS / 12))
    winter = rng.multinomial(30_000, shares / shares.sum(), size=1)
    few = (winter * (LEAST - 1)) // 30_000
    by_chance = log_indices(steady)
    assert np.abs(by_chance).mean() < 0.01
    assert (by_chance == 0).all(axis=1).mean() > 0.4
    index = log_indices(np.concatenate([steady, winter, few]))
    assert index[200] == pytest.approx(np.log(12 * shares / shares.sum()), abs=0.2)
    assert not index[201].any()
    assert not log_indices(np.zeros((3, 12), dtype=int)).any()


@pytest.mark.parametrize("known", [0, 0.5, 1])
def test_what_a_model_knows_is_not_added_again(known):
    rng = np.random.default_rng(8)
    index = 0.8 * np.cos(2 * np.pi * (MONTHS - rng.integers(0, 12, (40, 1))) / 12)
    true, expected = np.exp(index), np.exp(known * index)
    came = rng.poisson(60 * true / true.mean(axis=1, keepdims=True))
    found = lacking(index, came, 900 * expected)
    assert found.mean() == pytest.approx(1 - known, abs=0.06)
    nothing = np.zeros_like(came)
    assert lacking(index, nothing, expected) == pytest.approx(0)


def test_events_come_in_the_months_of_the_training(grammar, model, seasonal, seasons):
    runs = runs_of(grammar)
    run = runs["condition_occurrence"]
    half = (run.start + run.stop) // 2
    assert len(seasons) > 20
    added = {"condition": [], "other": []}
    for token, values in seasons.items():
        table = token.split(":")[0]
        added[table if table in added else "other"].append(np.abs(values).mean())
    assert np.mean(added["condition"]) > 1
    assert np.mean(added["other"]) < 0.2
    mask = Mask(grammar, rows=1)
    processor = SeasonProcessor(seasons, grammar, mask)
    early = {True: [], False: []}  # what is foretold, in the first half year or not
    for history in seasonal[350:]:
        days = grammar.cursor(history)
        with torch.inference_mode():
            told = list(foretold(model, grammar, history))
        for places, labels, logits in told:
            for place, label, row in zip(places, labels, logits, strict=True):
                if not run.start <= label < run.stop:
                    continue
                mask.cursor = torch.tensor([int(days[place])])
                chances = processor(None, row[None])[0, run].softmax(-1)
                month = np.datetime64(int(days[place]), "D").astype("M8[M]")
                is_first = month.astype(int) % 12 < 6
                early[bool(is_first)].append(float(chances[: half - run.start].sum()))
    assert np.mean(early[True]) > 0.9
    assert np.mean(early[False]) < 0.1


def test_a_table_keeps_its_chance_and_others_their_scores(grammar, seasons):
    rng = np.random.default_rng(5)
    scores = torch.tensor(rng.normal(0, 3, (12, grammar.vocab_size)))
    scores[6:, rng.choice(grammar.vocab_size, 100)] = -torch.inf  # the mask's
    run = runs_of(grammar)["condition_occurrence"]
    scores[11, run] = -torch.inf
    mask = Mask(grammar, rows=12)
    mask.cursor = torch.tensor([30 * month + 10 for month in range(12)])
    found = SeasonProcessor(seasons, grammar, mask)(None, scores)
    for month in range(12):
        for table in runs_of(grammar).values():
            before, after = scores[month, table], found[month, table]
            total = float(before.exp().sum())
            assert float(after.exp().sum()) == pytest.approx(total, rel=1e-5)
            ratio = (after - before)[before.isfinite()]
            added = torch.tensor(
                [
                    seasons.get(token, [0.0] * 12)[month]
                    for token in np.array(grammar.tokens)[table]
                ]
            )[before.isfinite()]
            if len(added):
                wanted = (added - added[0]).numpy()
                assert (ratio - ratio[0]).numpy() == pytest.approx(wanted, abs=1e-4)
    others = ~grammar.has_kind("event")
    assert torch.equal(found[:, others], scores[:, others])


def test_samples_have_the_months_and_are_the_same_beside_others(
    grammar: Grammar, model, seasons
):
    first, plain = sample_scaled_and_plain(model, grammar, "seasons", seasons)

    run = runs_of(grammar)["condition_occurrence"]
    half = (run.start + run.stop) // 2

    def in_their_half(histories):
        found = []
        for history in map(np.array, histories.values()):
            places = np.flatnonzero((history >= run.start) & (history < run.stop))
            months = grammar.cursor(history)[places].astype("M8[D]").astype("M8[M]")
            found += [*((months.astype(int) % 12 < 6) == (history[places] < half))]
        return np.mean(found)

    assert in_their_half(first) > 0.85
    assert in_their_half(plain) < 0.65
