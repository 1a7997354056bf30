"""Days of outcomes: beside scipy, loops over persons, and a case worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from omop_gpt.evaluation.incidence import (
    DEATH,
    LEFT_OUT,
    NOTHING,
    OUTCOME,
    aalen_johansen,
    concordance,
)
from scipy import stats

HORIZON = 60


def persons(seed: int, *kinds: int, size: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    came = rng.choice(kinds, size)
    days = rng.integers(1, HORIZON, size)
    return np.where((came == NOTHING) & (days > 30), HORIZON, days), came


def test_a_case_by_hand():
    # of 5: an outcome on day 2, one lost on day 3, a death on day 5, an outcome on day
    # 7, and one followed to the end
    days = np.array([[2], [3], [5], [7], [10]])
    came = np.array([[OUTCOME], [NOTHING], [DEATH], [OUTCOME], [NOTHING]])
    found = aalen_johansen(days, came, 10)[0]
    # 4/5 are free after day 2; of 3 one dies: 8/15; of 2 one has it: 4/15
    assert found[[0, 1]].tolist() == [0, 0]
    assert found[[2, 6]] == pytest.approx([1 / 5, 1 / 5])
    assert found[[7, 10]] == pytest.approx([1 / 5 + 4 / 15] * 2)


def test_without_deaths_it_is_what_scipy_finds():
    days, came = persons(1, NOTHING, OUTCOME)
    found = aalen_johansen(days[:, None], came[:, None], HORIZON)[0]
    data = stats.CensoredData(days[came == OUTCOME], right=days[came == NOTHING])
    expected = stats.ecdf(data).cdf.evaluate(np.arange(HORIZON + 1))
    assert found == pytest.approx(expected)


def test_where_all_are_followed_it_is_the_share():
    days, came = persons(2, OUTCOME, DEATH)
    found = aalen_johansen(days[:, None], came[:, None], HORIZON)[0]
    expected = [((came == OUTCOME) & (days <= day)).mean() for day in range(61)]
    assert found == pytest.approx(expected)


def test_persons_who_all_left_leave_it_unknown():
    days, came = np.array([[4], [9]]), np.array([[OUTCOME], [NOTHING]])
    found = aalen_johansen(days, came, 12)[0]
    assert found[9] == 0.5
    assert np.isnan(found[10:]).all()


def test_the_roll_outs_of_each_count_for_one_and_some_for_nothing():
    days, came = persons(3, NOTHING, OUTCOME, DEATH)
    alone = aalen_johansen(days[:, None], came[:, None], HORIZON)
    many = np.repeat(days[:, None], 3, axis=1), np.repeat(came[:, None], 3, axis=1)
    many[1][::2, 1:] = LEFT_OUT
    assert aalen_johansen(*many, HORIZON) == pytest.approx(alone)
    many[1][5] = LEFT_OUT
    rest = np.delete(days, 5)[:, None], np.delete(came, 5)[:, None]
    assert aalen_johansen(*many, HORIZON) == pytest.approx(
        aalen_johansen(*rest, HORIZON)
    )


def test_weights_are_repetitions():
    days, came = persons(4, NOTHING, OUTCOME, DEATH)
    waits = np.random.default_rng(4).integers(0, 9, 80)
    weights = np.random.default_rng(5).integers(0, 3, (4, 80))
    found = aalen_johansen(days[:, None], came[:, None], HORIZON, weights)
    orders = concordance(days, came, waits, weights)
    for row, counts in enumerate(weights):
        drawn = np.repeat(np.arange(80), counts)
        again = aalen_johansen(days[drawn, None], came[drawn, None], HORIZON)
        assert found[row] == pytest.approx(again[0], nan_ok=True)
        order = concordance(days[drawn], came[drawn], waits[drawn])
        assert orders[row] == pytest.approx(order[0])


def test_concordance_of_all_outcomes_is_that_of_somers():
    rng = np.random.default_rng(6)
    days, waits = rng.integers(1, 40, 70), rng.integers(0, 20, 70)
    found = concordance(days, np.full(70, OUTCOME), waits)[0]
    assert found == pytest.approx((stats.somersd(days, waits).statistic + 1) / 2)


def test_concordance_of_what_came_is_that_of_a_loop():
    days, came = persons(7, NOTHING, OUTCOME, DEATH)
    waits = np.random.default_rng(7).integers(0, 20, 80)
    wins = pairs = 0
    for one in np.flatnonzero(came == OUTCOME):
        for other in range(80):
            if came[other] == OUTCOME:
                is_later = days[other] > days[one]
            elif came[other] == DEATH:
                is_later = True
            else:
                is_later = days[other] >= days[one]
            pairs += is_later
            wins += is_later * np.heaviside(waits[other] - waits[one], 0.5)
    assert 0 < wins < pairs
    assert concordance(days, came, waits)[0] == pytest.approx(wins / pairs)
    assert np.isnan(concordance(days, np.full(80, NOTHING), waits)[0])
