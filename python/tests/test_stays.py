"""Visits end after as many days as held-out patients' do, whatever a model says."""

import numpy as np
import pytest
import torch
from conftest import make_model, random_history, sample_few, sample_scaled_and_plain
from omop_gpt.grammar import Cut, Grammar
from omop_gpt.mask import Mask
from omop_gpt.novelty import foretold
from omop_gpt.stays import (
    DAYS,
    StayProcessor,
    closing,
    fit_stays,
    shift,
    spans_of,
)
from scipy.optimize import minimize_scalar

CONTEXT = 160


@pytest.fixture(scope="module")
def grammar(many_events):
    return many_events


@pytest.fixture(scope="module")
def nights(grammar):
    """Histories whose visits of one type last a night at least."""
    rng = np.random.default_rng(5)
    night = grammar.tokens.index("i-D1")
    moves = grammar.roles == "move"
    back = moves & (grammar.days < 0)
    found = []
    for _ in range(40):
        written, is_left_out = [], False
        for token in random_history(grammar, rng, int(rng.integers(50, 400))):
            is_second = written[-2:] == [overnight(grammar), night]
            is_left_out = moves[token] and (is_second or is_left_out or back[token])
            if not is_left_out:
                written.append(token)
            if token == overnight(grammar):
                written.append(night)
        found.append(np.array(written))
    return found


@pytest.fixture(scope="module")
def model(grammar):
    return make_model(grammar, context=CONTEXT)


@pytest.fixture(scope="module")
def stays(grammar, model, nights):
    with torch.inference_mode():
        return fit_stays(model, grammar, nights)


def overnight(grammar):
    return int(np.flatnonzero(grammar.has_kind("visit"))[0])


def lengths(grammar, histories):
    """Days from start to end of the visits of one type."""
    found = []
    for history in histories:
        cut, is_open = Cut(), False
        for token in history:
            if is_open and closing(grammar)[token]:
                found.append(cut.cursor - cut.visit_start)
                is_open = False
            cut = grammar.step(cut, int(token))
            is_open |= token == overnight(grammar)
    return np.array(found)


def test_the_visit_and_its_days_are_those_of_a_walk(grammar, nights):
    assert all(grammar.is_history(history) for history in nights)
    seen = set()
    for history in nights[:20]:
        visits, spans = spans_of(grammar, history)
        mask = Mask(grammar, rows=2)
        cut, visit = Cut(), 0
        for place, token in enumerate(history):
            if visit:
                days = cut.cursor - cut.visit_start
                wanted = sum(days >= day for day in DAYS)
                assert (visits[place], spans[place]) == (visit, wanted)
                mask.begin(1, history[:place])
                for row in (0, 1):  # written token by token, and at once
                    assert mask.visit[row] == visit
                    assert mask.cursor[row] - mask.visit_start[row] == days
                seen.add(wanted)
            cut = grammar.step(cut, int(token))
            if grammar.has_kind("visit")[token]:
                visit = token
            if grammar.has_kind("no_visit")[token]:
                visit = 0  # nothing of it is asked until the next visit
            idle = int(mask.visit[1]), int(mask.visit_start[1])
            mask.advance(torch.tensor([token, token]), torch.tensor([True, False]))
            assert (mask.visit[1], mask.visit_start[1]) == idle
    assert len(seen) > 4


def test_what_ends_a_visit_is_what_the_grammar_leads_out_by(grammar):
    inside = grammar.next_state[grammar.places == "visit"][:, grammar.kind]
    places = np.where(inside < 0, "visit", grammar.places[inside])
    leads_out = np.isin(places, ("between", "closed", "end", "open"))
    leads_out |= (places == "days") & (grammar.roles == "gap")
    assert np.array_equal(leads_out.any(axis=0), closing(grammar))


def test_outside_of_a_visit_scores_stay(grammar):
    mask = Mask(grammar, rows=1)
    name = grammar.tokens[overnight(grammar)]
    processor = StayProcessor({name: [-5.0] * (len(DAYS) + 1)}, grammar, mask)
    scores = torch.zeros(1, grammar.vocab_size)
    moved = set()
    history = random_history(grammar, np.random.default_rng(1), 300)
    for place, state in enumerate(grammar.walk(history)[:-1]):
        mask.begin(0, history[:place])
        is_moved = not torch.equal(processor(None, scores), scores)
        assert not is_moved or grammar.places[state] == "visit"
        moved.add((str(grammar.places[state]), is_moved))
    assert {("visit", True), ("visit", False), ("loose", False)} < moved


def test_a_shift_is_the_likeliest_drawn_to_none():
    rng = np.random.default_rng(6)
    odds = rng.normal(-3, 2, 400)
    for more in (-1.0, 0.0, 2.0):
        ends = rng.random(400) < 1 / (1 + np.exp(-odds - more))

        def loss(added, ends=ends):
            scores = odds + added
            return np.logaddexp(0, scores).sum() - ends @ scores + 0.05 * added**2

        found = shift(odds, ends)
        assert found == pytest.approx(minimize_scalar(loss).x, abs=1e-3)
        assert found == pytest.approx(more, abs=0.5)
    assert shift(odds[:0], ends[:0]) == pytest.approx(0, abs=1e-9)
    assert shift(np.full(9, -np.inf), np.zeros(9)) == pytest.approx(0, abs=1e-9)
    assert -12 < shift(odds, np.zeros(400)) < -3


def test_as_many_visits_end_as_did(grammar, model, nights, stays):
    """By type and days, of what the fit was made of: all but what PRIOR keeps."""
    came, expected, scaled = np.zeros((3, grammar.vocab_size, len(DAYS) + 1))
    closes = torch.as_tensor(closing(grammar))
    mask = Mask(grammar, rows=1)
    processor = StayProcessor(stays, grammar, mask)
    for history in nights:
        with torch.inference_mode():
            told = list(foretold(model, grammar, history))
        states = grammar.walk(history)
        visits, spans = spans_of(grammar, history)
        for places, labels, logits in told:
            for place, label, row in zip(places, labels, logits, strict=True):
                if grammar.places[states[place]] != "visit":
                    continue
                mask.begin(0, history[:place])
                cell = visits[place], spans[place]
                came[cell] += closes[label]
                expected[cell] += row.softmax(-1)[closes].sum()
                now = processor(None, row[None])[0]
                scaled[cell] += now.softmax(-1)[closes].sum()
                rest = now.masked_fill(closes, -torch.inf).softmax(-1)
                was = row.masked_fill(closes, -torch.inf).softmax(-1)
                assert torch.allclose(rest, was, atol=1e-6)
    night = overnight(grammar)
    assert came[night, 0] == 0
    assert expected[night, 0] > 1
    assert scaled[night, 0] < 0.2 * expected[night, 0]
    many = came > 30
    assert many.sum() >= 2
    assert np.abs(expected[many] / came[many] - 1).mean() > 0.3
    assert scaled[many] == pytest.approx(came[many], rel=0.25)


def test_samples_last_as_long_and_are_the_same_beside_others(
    grammar: Grammar, model, stays
):
    sample_scaled_and_plain(model, grammar, "stays", stays)

    name = grammar.tokens[overnight(grammar)]

    def without_night(added):
        stays = {name: [added] + [0.0] * len(DAYS)}
        histories = sample_few(model, grammar, [*range(9)], {}, stays=stays)
        found = lengths(grammar, map(np.array, histories.values()))
        assert len(found) > 10
        return (found < 1).mean()

    assert without_night(0.0) > 0.6
    assert without_night(-12.0) < 0.1  # at its limit a history ends as it can
