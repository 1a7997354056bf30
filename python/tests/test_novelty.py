"""New events get the odds that held-out patients have, and nothing else changes."""

import numpy as np
import pytest
import torch
from conftest import make_model, random_history, sample_scaled_and_plain
from omop_gpt.grammar import Grammar, overlap_of
from omop_gpt.novelty import (
    AS_IS,
    PRIOR,
    NoveltyProcessor,
    fit_novelty,
    regression,
    runs_of,
)
from scipy import optimize

CONTEXT = 160
WEIGHTS = {
    "condition_occurrence": [0.6, 1.1, -0.4],
    "drug_exposure": [0.4, 1.2, -0.4],
    "measurement": [-0.5, 1, 0],
}


@pytest.fixture(scope="module")
def grammar(many_events):
    return many_events


@pytest.fixture(scope="module")
def histories(grammar):
    """Persons who have the first event of a table again and again."""
    rng = np.random.default_rng(11)
    found = []
    for _ in range(60):
        history = random_history(grammar, rng, int(rng.integers(20, 500)))
        for run in runs_of(grammar).values():
            places = np.flatnonzero((history >= run.start) & (history < run.stop))
            again = places[rng.random(len(places)) < 0.6]
            history[again] = history[places[0]] if len(places) else 0
        found.append(history)
    return found


@pytest.fixture
def model(grammar):
    return make_model(grammar, context=CONTEXT)


def test_the_tokens_of_a_table_adjoin(grammar):
    runs = runs_of(grammar)
    assert "condition_occurrence" in runs
    for table, run in runs.items():
        assert (grammar.source_table[run] == table).all()
        assert (grammar.source_table == table).sum() == run.stop - run.start


def test_odds_change_and_nothing_else(grammar):
    rng = np.random.default_rng(5)
    size, written = grammar.vocab_size, 40
    scores = torch.tensor(rng.normal(0, 3, (8, size)), dtype=torch.float32)
    scores[4:, rng.choice(size, size // 3)] = -torch.inf  # the mask's
    runs = runs_of(grammar)
    events = np.flatnonzero(grammar.has_kind("event"))
    histories = torch.tensor(rng.choice([*events, grammar.pad_id], (8, written)))
    histories[0] = grammar.pad_id  # nothing is old
    histories[1, 3:] = histories[2, 3:] = grammar.pad_id
    before = scores.double().exp().numpy()
    found = NoveltyProcessor(WEIGHTS, grammar)(histories, scores).double().exp().numpy()
    touched = 0
    for row in range(8):
        old = np.isin(np.arange(size), histories[row].numpy())
        for table, run in runs.items():
            ours, theirs = found[row, run], before[row, run]
            assert ours.sum() == pytest.approx(theirs.sum(), rel=1e-4)
            is_new = ~old[run]
            new, known = theirs[is_new].sum(), theirs[~is_new].sum()
            if table not in WEIGHTS or not new or not known:
                assert ours == pytest.approx(theirs, rel=1e-5)
                continue
            touched += 1
            start, of_odds, of_count = WEIGHTS[table]
            odds = start + of_odds * np.log(new / known)
            odds += of_count * np.log(1 + (~is_new).sum())
            share = 1 / (1 + np.exp(-odds))
            assert ours[is_new].sum() / ours.sum() == pytest.approx(share, rel=1e-3)
            for side in (is_new, ~is_new):  # which of them is the model's
                ratio = ours[side & (theirs > 0)] / theirs[side & (theirs > 0)]
                assert ratio == pytest.approx(ratio[0], rel=1e-4)
    assert touched > 8
    others = ~grammar.has_kind("event")
    assert np.array_equal(found[:, others], before[:, others])


def test_what_is_fitted_is_what_is_foretold(grammar, model, histories):
    """With the weights as many new events are foretold as there are, table by table."""
    with torch.inference_mode():
        weights = fit_novelty(model, grammar, histories)
    assert len(weights) > 1
    processor = NoveltyProcessor(weights, grammar)
    runs = runs_of(grammar)
    foretold, as_is, came = (dict.fromkeys(weights, 0.0) for _ in range(3))
    for history in histories:
        done = 0
        for ids, known in grammar.chunks(history, CONTEXT, overlap=overlap_of(CONTEXT)):
            with torch.inference_mode():
                logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0]
            for place in range(max(known, 1), len(ids)):
                so_far = history[: done + place - known]
                token = int(ids[place])
                assert token == history[len(so_far)]
                table = grammar.source_table[token]
                if table not in weights:
                    continue
                row = logits[place - 1 : place]
                after = processor(torch.tensor(so_far[None].astype(np.int64)), row)
                new = ~np.isin(np.arange(grammar.vocab_size), so_far)[runs[table]]
                if new.all() or not new.any():
                    continue
                for total, scores in ((foretold, after), (as_is, row)):
                    chances = scores[0, runs[table]].double().softmax(-1).numpy()
                    total[table] += chances[new].sum()
                came[table] += token not in so_far
            done += len(ids) - known
    for table, (start, _, _) in weights.items():
        # what is left is the pull of the prior
        assert came[table] - foretold[table] == pytest.approx(PRIOR * start, abs=0.5)
    off, left = (
        sum(abs(total[table] - came[table]) for table in came)
        for total in (as_is, foretold)
    )
    assert off > 3 * left


def test_regression_is_that_of_a_minimiser():
    rng = np.random.default_rng(2)
    odds, count = rng.normal(0, 2, 3_000), rng.uniform(0, 4, 3_000)
    true = 1 / (1 + np.exp(-(0.7 + 1.2 * odds - 0.5 * count)))
    is_new = (rng.random(3_000) < true).astype(float)
    design = np.column_stack([np.ones(3_000), odds, count])

    def loss(weights):
        score = design @ weights
        data = np.logaddexp(0, score) - is_new * score
        return data.sum() + PRIOR / 2 * ((weights - AS_IS) ** 2).sum()

    best = optimize.minimize(loss, AS_IS, method="BFGS").x
    assert regression(odds, count, is_new) == pytest.approx(best, abs=1e-3)
    assert regression(odds[:0], count[:0], is_new[:0]) == pytest.approx(AS_IS)


def test_a_patient_is_the_same_beside_others(grammar: Grammar, model):
    sample_scaled_and_plain(model, grammar, "novelty", WEIGHTS)
