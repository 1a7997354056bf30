"""Bands of real persons, against the errors that theory gives."""

import dataclasses

import duckdb
import numpy as np
import pytest
from omop_gpt.evaluation.bands import Bands, quantiles, shares, shares_below
from omop_gpt.evaluation.results import PROFILES

SIZES = {"holdout": 900, "ideal": 400}
TABLE = "evaluation_private.population_persons"


@pytest.fixture(scope="module")
def con():
    """Persons of three kinds, in shares of 0.5, 0.3 and 0.2, and of a normal size."""
    rng = np.random.default_rng(0)
    made = duckdb.connect()
    made.execute("create schema evaluation_private")
    made.execute(
        f"create table {TABLE} (cohort varchar, person_id int, kind int, size double)"
    )
    for cohort, count in {**SIZES, "few": 50}.items():
        kinds = rng.permutation(np.arange(count) * 10 // count)
        kinds = np.searchsorted([5, 8], kinds, side="right")
        made.executemany(
            f"insert into {TABLE} values (?, ?, ?, ?)",
            [
                (cohort, n, int(kind), round(float(size), 2))
                for n, (kind, size) in enumerate(zip(kinds, rng.normal(size=count)))
            ],
        )
    return made


@pytest.fixture(scope="module")
def bands(con):
    profile = dataclasses.replace(PROFILES["smoke"], bootstraps=200)
    return Bands(con, profile)


def reach(share):
    """Half the width of the band of a share, of persons all of one kind."""
    error = share * (1 - share) * sum(1 / n for n in SIZES.values())
    return 1.96 * np.sqrt(error)


def test_a_band_of_shares_is_as_wide_as_two_samples_differ(bands):
    band = bands.of(TABLE, "kind", shares)["all"]
    assert band.across.tolist() == [0, 1, 2]
    for low, high, share in zip(band.low, band.high, (0.5, 0.3, 0.2)):
        assert low < share < high
        assert (high - low) / 2 == pytest.approx(reach(share), rel=0.2)
    below = bands.of(TABLE, "kind", shares_below)["all"]
    assert (below.low[2], below.high[2]) == pytest.approx((1, 1))
    assert below.high[1] - below.low[1] == pytest.approx(2 * reach(0.8), rel=0.2)


def test_rows_of_one_person_are_not_independent(bands):
    """Nine rows a person say no more than one does: the band is as wide."""
    rows = f"(select *, unnest(range(9)) as row from {TABLE})"
    many, one = (bands.of(table, "kind", shares)["all"] for table in (rows, TABLE))
    for end in ("low", "high"):
        assert getattr(many, end) == pytest.approx(getattr(one, end))


def test_strata_have_their_own_bands(bands):
    found = bands.of(TABLE, "kind", shares, within="kind")
    assert sorted(found) == ["0", "1", "2"]
    for stratum, band in found.items():
        assert band.across.tolist() == [int(stratum)]
        assert (band.low[0], band.high[0]) == (1, 1)


def test_a_band_of_quantiles_is_as_wide_as_medians_differ(bands, con):
    asked = np.array([0.25, 0.5, 0.75])
    band = bands.of(TABLE, "size", quantiles(asked))["all"]
    real = con.execute(
        f"select quantile_disc(size, [0.25, 0.5, 0.75]) from {TABLE} "
        "where cohort = 'holdout'"
    ).fetchone()[0]
    assert np.all((band.low <= real) & (real <= band.high))
    # the variance of a median of normal values is pi / 2n
    error = np.sqrt(np.pi / 2 * sum(1 / n for n in SIZES.values()))
    assert band.high[1] - band.low[1] == pytest.approx(2 * 1.96 * error, rel=0.25)


def test_of_too_few_persons_there_is_no_band(con, monkeypatch):
    monkeypatch.setattr("omop_gpt.evaluation.bands.IDEAL", "few")
    few = Bands(con, PROFILES["smoke"])
    assert few.of(TABLE, "kind", shares) == {}
    monkeypatch.setattr("omop_gpt.evaluation.bands.IDEAL", "nobody")
    assert Bands(con, PROFILES["smoke"]).of(TABLE, "kind", shares) == {}
