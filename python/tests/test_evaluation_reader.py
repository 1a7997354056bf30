"""The network that reads histories in order: what it is shown, and what it finds."""

from __future__ import annotations

from datetime import date, timedelta

import duckdb
import numpy as np
import pytest
import torch
from omop_gpt.evaluation.reader import (
    ITEMS,
    LONGEST,
    OTHER,
    PADDING,
    START,
    WORDS,
    Reader,
    histories,
)
from sklearn.metrics import roc_auc_score


@pytest.fixture
def con():
    """Two persons: one with visits and a loose event between them, one with nothing."""
    with duckdb.connect() as con:
        con.execute(
            """
            create schema evaluation_private;
            create table evaluation_private.visits (
                cohort text, person_id bigint, visit_order int,
                visit_concept_id bigint, visit_start_date date
            );
            create table evaluation_private.events (
                cohort text, person_id bigint, visit_order int, concept_id bigint,
                event_date date
            );
            create temp table compared_persons (
                row int, cohort text, person_id bigint
            );
            insert into compared_persons values
                (0, 'holdout', 1), (1, 'synthetic', 1), (2, 'holdout', 2);
            insert into evaluation_private.visits values
                ('holdout', 1, 1, 9202, '2020-01-01'),
                ('holdout', 1, 2, 9202, '2020-01-31'),
                ('synthetic', 1, 1, 9202, '2020-01-01');
            -- an event of a visit stands with it, whenever it was
            insert into evaluation_private.events values
                ('holdout', 1, 2, 7, '2019-12-31'),
                ('holdout', 1, 1, 7, '2020-02-01'),
                ('holdout', 1, null, 8, '2020-01-08'),
                ('synthetic', 1, 1, 9202, '2020-01-01');
            """
        )
        yield con


def test_items_lie_in_the_order_of_their_visits_with_the_gap_before_each(con):
    words, gaps = histories(con)
    visit, seven, eight, event_9202 = words[0, 1], words[0, 2], words[0, 3], words[1, 2]
    assert len({PADDING, START, OTHER, visit, seven, eight, event_9202}) == 7
    expected = [START, visit, seven, eight, visit, seven]
    assert words[0, : len(expected) + 1].tolist() == [*expected, PADDING]
    month, week = LONGEST.index(30), LONGEST.index(7)
    assert gaps[0, : len(expected)].tolist() == [0, 0, 0, week, month, 0]
    assert words[1, :4].tolist() == [START, visit, event_9202, PADDING]
    assert words[2].tolist() == [START] + [PADDING] * ITEMS


def test_what_is_rare_or_beyond_the_first_items_is_not_told_apart(con):
    day = date(2020, 1, 1)
    con.execute("delete from evaluation_private.events")
    con.execute("delete from evaluation_private.visits")
    con.executemany(
        "insert into evaluation_private.events values ('holdout', 2, null, ?, ?)",
        [(1_000 + n, day + timedelta(n)) for n in range(ITEMS + 5)]
        + [(5_000 + n, day + timedelta(4_000)) for n in range(2 * WORDS)],
    )
    words, _ = histories(con)
    assert (words[2] != PADDING).sum() == ITEMS + 1
    assert words.max() <= OTHER + WORDS
    con.execute("update compared_persons set row = 2 - row")
    con.execute(
        "insert into evaluation_private.events "
        "select 'synthetic', 1, null, 1_000_000, date '2020-01-01' + range::int "
        "from range(3)"
    )
    words, _ = histories(con)
    assert OTHER not in words[1]  # the most frequent word
    assert OTHER + 1 in words[1]


def made(rng: np.random.Generator, persons: int) -> tuple[np.ndarray, np.ndarray]:
    """Histories of up to 30 items and whether 5 comes before 6 in them, once each."""
    words = np.full((persons, ITEMS + 1), PADDING, dtype=np.int16)
    words[:, 0] = START
    is_first = rng.random(persons) < 0.5
    for row, first in zip(words, is_first, strict=True):
        length = rng.integers(6, 30)
        row[1 : length + 1] = rng.integers(7, 12, length)
        places = 1 + np.sort(rng.choice(length, 2, replace=False))
        row[places] = (5, 6) if first else (6, 5)
    return words, is_first.astype(int)


def test_it_learns_what_lies_in_the_order_alone():
    words, labels = made(np.random.default_rng(1), 2_400)
    reader = Reader(words, np.zeros_like(words), seed=1)
    train, test = np.arange(1_600), np.arange(1_600, 2_400)
    reader.fit(train, labels[train])
    chances = reader.predict_proba(test)
    assert np.allclose(chances.sum(axis=1), 1)
    assert roc_auc_score(labels[test], chances[:, 1]) > 0.9
    # of labels that say nothing it learns nothing
    blind = Reader(words, np.zeros_like(words), seed=1)
    blind.fit(train, np.random.default_rng(2).integers(0, 2, len(train)))
    assert abs(roc_auc_score(labels[test], blind.predict_proba(test)[:, 1]) - 0.5) < 0.1


def test_a_seed_makes_the_same_network_and_touches_no_other_chance():
    words, labels = made(np.random.default_rng(3), 120)
    rows = np.arange(120)
    found = []
    for seed in (1, 1, 2):
        reader = Reader(words, np.zeros_like(words), seed)
        torch.manual_seed(7)
        reader.fit(rows, labels)
        found.append((reader.predict_proba(rows).tobytes(), torch.rand(1).item()))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] == found[2][1]


def test_the_order_of_rows_asked_for_does_not_matter():
    words, labels = made(np.random.default_rng(4), 120)
    reader = Reader(words, np.zeros_like(words), 1)
    reader.fit(np.arange(120), labels)
    order = np.random.default_rng(5).permutation(120)
    asked = reader.predict_proba(order)
    assert np.allclose(asked, reader.predict_proba(np.arange(120))[order], atol=1e-5)
