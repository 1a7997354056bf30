"""Numbers: what bins and decoding keep of them, on one source of many strange columns.

Each case is a concept with a number for every person and day. All are encoded at once,
and decoded with the exact bins (the round trip) and with those that are shared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_gpt.decode import DecodeConfig, decode
from omop_gpt.encode import EncodeConfig, encode

pytestmark = pytest.mark.spark

PERSONS, DAYS = 200, 20
SHAPE = (PERSONS, DAYS)
FIRST_DATE, FAR_END = np.array(["2020-01-01", "9999-12-31"], "datetime64[D]")
LARGEST = float(np.finfo(np.float64).max)
BINS = 10
MIN_PERSONS = 5


def split_of(person_id: int) -> str:
    """Tell the split of a person, written again from the design."""
    digits = hashlib.md5(f"omop-gpt:{person_id}".encode()).hexdigest()[:8]
    limits = {"train": "b3333333", "validation": "cccccccc", "holdout": "e6666666"}
    return next((name for name, limit in limits.items() if digits < limit), "reserve")


SPLIT = np.array([split_of(person_id) for person_id in range(PERSONS)])
TRAIN = np.flatnonzero(SPLIT == "train")


def make_cases() -> dict[str, np.ndarray]:
    """Make the numbers of each case: (PERSONS, DAYS), NaN where there is no row."""
    rng = np.random.default_rng(0)

    def mixed(share: float, number: float, others: np.ndarray) -> np.ndarray:
        return np.where(rng.random(SHAPE) < share, number, others)

    def only(persons: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return np.where(np.isin(np.arange(PERSONS), persons)[:, None], numbers, np.nan)

    integers = np.rint(rng.normal(120, 15, SHAPE))
    percent = rng.integers(0, 201, SHAPE).astype(float)
    long_tail = rng.lognormal(0, 2, SHAPE)
    outlier = np.rint(rng.gamma(2, 20, SHAPE))
    outlier[TRAIN[0], 0] = 585573
    return {
        "integers": integers,
        "scores": rng.choice(4, SHAPE, p=[0.5, 0.3, 0.15, 0.05]).astype(float),
        "zeros": mixed(0.4, 0, np.round(rng.lognormal(1, 1, SHAPE), 2) + 0.5),
        "one_decimal": np.round(rng.normal(37, 0.6, SHAPE), 1),
        "long_tail": long_tail,
        "negative": -np.round(rng.gamma(2, 3, SHAPE), 1),
        "both_signs": np.round(rng.normal(0, 5, SHAPE), 3),
        "sentinel": mixed(0.03, -1, percent),
        "common_sentinel": mixed(0.3, -1, percent),
        "outlier": outlier,
        "constant": np.full(SHAPE, 98.6),
        "few_values": rng.choice([0.1, 0.2, 0.1 + 0.2, 7, 8.5, 1e6], SHAPE),
        "ten_values": rng.integers(0, 10, SHAPE).astype(float),
        "eleven_values": rng.integers(0, 11, SHAPE).astype(float),
        "mostly_one": mixed(0.9, 5, long_tail),
        "neighbours": 1 + rng.integers(0, 40, SHAPE) * np.finfo(np.float64).eps,
        "largest": mixed(0.02, LARGEST, mixed(0.02, -LARGEST, integers)),
        "grams": np.round(rng.normal(5, 1, SHAPE), 1),
        "milligrams": np.rint(rng.normal(5000, 1000, SHAPE)),
        "few_persons": only(TRAIN[: MIN_PERSONS - 1], long_tail),
        "holdout_only": only(np.flatnonzero(SPLIT == "holdout"), integers),
    }


CASES = make_cases()
BINNED = [name for name in CASES if name != "holdout_only"]
LARGE = [name for name in BINNED if name != "few_persons"]
CONCEPT = {name: 2_000_000_001 + n for n, name in enumerate([*CASES, "empty"])}
CONCEPT["milligrams"] = CONCEPT["grams"]
UNIT = {"grams": 8504, "milligrams": 8576}
TOKEN = {
    name: f"measurement:{CONCEPT[name]}" + (f"@{UNIT[name]}" if name in UNIT else "")
    for name in CASES
}
# case `empty`: rows without a number that is finite, one of each per person
EMPTY = (None, float("nan"), float("inf"), -float("inf"))
DRUG, PROCEDURE = 2_100_000_001, 2_200_000_001
QUANTITY = {
    "drug": [0, 0.5, 1, 30, 30, 60, 90, -1, 2.25, 1000, np.nan],
    "procedure": [1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 500],
}


def dates(places: np.ndarray) -> np.ndarray:
    """Dates of places in a case: each day of a person is another."""
    return FIRST_DATE + places % DAYS


def write_table(folder: Path, name: str, **columns: pa.Array | np.ndarray) -> None:
    (folder / name).mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / name / "part-0.parquet")


def write_source(folder: Path) -> None:
    """Write the cases as OMOP tables."""
    years = np.full(PERSONS, 1950)
    write_table(folder, "person", person_id=np.arange(PERSONS), year_of_birth=years)
    cases = [
        (name, place, CASES[name].flat[place])
        for name in CASES
        for place in np.flatnonzero(~np.isnan(CASES[name]))
    ]
    cases += [
        ("empty", DAYS * person + n, number)
        for n, number in enumerate(EMPTY)
        for person in range(PERSONS)
    ]
    order = {name: n for n, name in enumerate([*CASES, "empty"])}
    places = np.array([place for _, place, _ in cases])
    write_table(
        folder,
        "measurement",
        measurement_id=places + [order[name] * 10**6 for name, _, _ in cases],
        person_id=places // DAYS,
        measurement_concept_id=np.array([CONCEPT[name] for name, _, _ in cases]),
        measurement_date=dates(places),
        unit_concept_id=pa.array([UNIT.get(name) for name, _, _ in cases], pa.int64()),
        value_as_number=pa.array([number for _, _, number in cases], pa.float64()),
    )
    rng = np.random.default_rng(1)
    places = np.arange(PERSONS * DAYS)
    quantities = {
        name: rng.choice(numbers, len(places)) for name, numbers in QUANTITY.items()
    }
    ends = dates(places) + rng.choice([-3, 0, 0, 1, 29, 45, 800], len(places))
    ends[rng.random(len(places)) < 0.1] = FAR_END
    ends[rng.random(len(places)) < 0.2] = np.datetime64("NaT")
    write_table(
        folder,
        "drug_exposure",
        drug_exposure_id=places,
        person_id=places // DAYS,
        drug_concept_id=np.full(len(places), DRUG),
        drug_exposure_start_date=dates(places),
        drug_exposure_end_date=ends,
        quantity=pa.array(quantities["drug"], from_pandas=True),
    )
    write_table(
        folder,
        "procedure_occurrence",
        procedure_occurrence_id=places,
        person_id=places // DAYS,
        procedure_concept_id=np.full(len(places), PROCEDURE),
        procedure_date=dates(places),
        procedure_end_date=ends,
        quantity=quantities["procedure"],
    )


@dataclass(frozen=True)
class Decoded:
    """What one source became."""

    con: duckdb.DuckDBPyConnection  # to the warehouse, with schema round_trip
    sequences: Path
    twice: tuple[pa.Table, pa.Table]  # measurements decoded with the shared bins

    def rows(self, name: str) -> dict[str, np.ndarray]:
        """Return a row per number of a case: source, decoded, bin, unit, share, train.

        The share is where in its bin a number must lie: the hash, written again.
        """
        found = self.con.execute(
            """
            select
                events.source_id % 1000000 as place,
                back.value_as_number as decoded,
                back.value_bin as bin,
                coalesce(measurement.unit_concept_id, 0) as unit,
                cast('0x' || md5(
                    'omop-gpt:' || back.person_id || ':' || back.position || ':number'
                )[:8] as bigint) / 4294967296 as share
            from timeline.events
            inner join round_trip_steps.int_events_decoded as back
                using (person_id, visit_order, event_order)
            inner join round_trip.measurement on measurement_id = event_id
            where
                events.source_table = 'measurement'
                and events.source_id // 1000000 = ?
            """,
            [list(CASES).index(name)],
        ).fetchnumpy()
        found["source"] = CASES[name].flat[found["place"]]
        found["train"] = np.isin(found["place"] // DAYS, TRAIN)
        return {
            column: np.ma.filled(values, np.nan) if values.dtype.kind == "f" else values
            for column, values in found.items()
        }

    def bins(self, name: str) -> list[dict]:
        """Return the exact bins of a case, in order."""
        found = self.con.execute(
            f"from timeline.value_bins where event_token = '{TOKEN[name]}' order by bin"
        )
        columns = [column for column, *_ in found.description]
        return [dict(zip(columns, row, strict=True)) for row in found.fetchall()]

    def shared_bins(self, name: str) -> list[dict]:
        """Return the bins of a case as they leave the warehouse, in order."""
        bins = pq.read_table(self.sequences / "vocabulary" / "value_bins.parquet")
        return [row for row in bins.to_pylist() if row["event_token"] == TOKEN[name]]


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    write_source(folder / "source")
    sequences = encode(
        EncodeConfig(
            input_folder=str(folder / "source"),
            output_folder=str(folder),
            include_quantity=True,
            include_end_date=True,
            cores=1,
        )
    )
    decode(
        DecodeConfig(
            patient_sequence_folder=str(sequences),
            omop_folder=str(folder / "round_trip"),
            source_omop_folder=str(folder / "source"),
            schema="round_trip",
            cpu_cores=1,
        )
    )
    twice = []
    for cores in (1, 2):
        omop = folder / str(cores) / "omop"
        decode(
            DecodeConfig(
                patient_sequence_folder=str(sequences),
                omop_folder=str(omop),
                cpu_cores=cores,
            )
        )
        twice.append(pq.read_table(omop / "measurement"))
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as con:
        yield Decoded(con, sequences, tuple(twice))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of two empirical distributions (Kolmogorov and Smirnov)."""
    everything = np.concatenate([ours, theirs])
    shares = [
        np.searchsorted(np.sort(numbers), everything, side="right") / len(numbers)
        for numbers in (ours, theirs)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def digits(number: float) -> int:
    """Count the digits after the point that say a number."""
    return next((n for n in range(7) if round(number, n) == number), 15)


@pytest.mark.parametrize("name", CASES)
def test_every_number_comes_back_from_its_row(decoded, name):
    rows = decoded.rows(name)
    assert len(rows["source"]) == np.isfinite(CASES[name]).sum()
    assert len(np.unique(rows["place"])) == len(rows["place"])
    has_number = ~np.isnan(rows["decoded"])
    assert has_number.all() == (name != "holdout_only")
    assert (rows["unit"] == UNIT.get(name, 0)).all()


@pytest.mark.parametrize("name", BINNED)
def test_bins_hold_every_number(decoded, name):
    rows, bins = decoded.rows(name), decoded.bins(name)
    assert [row["bin"] for row in bins] == list(range(len(bins)))
    assert len(bins) <= BINS
    assert bins[0]["low"] is bins[-1]["high"] is None
    edges = [row["low"] for row in bins[1:]]
    assert edges == [row["high"] for row in bins[:-1]]
    assert (np.diff(edges) > 0).all()
    # so equal numbers share one, and larger numbers are in none below
    assert np.array_equal(
        rows["bin"], np.searchsorted(edges, rows["source"], side="right")
    )
    assert np.array_equal(
        rows["bin"], np.searchsorted(edges, rows["decoded"], side="right")
    )
    seen = rows["source"][rows["train"]]
    if len(np.unique(seen)) <= BINS:
        assert len(bins) == len(np.unique(seen))
    counts = np.bincount(rows["bin"][rows["train"]], minlength=len(bins))
    assert [row["train_count"] for row in bins] == counts.tolist()
    for row in bins:
        inside = np.sort(seen[rows["bin"][rows["train"]] == row["bin"]])
        ranks = np.floor(np.arange(9) * (len(inside) - 1) / 8).astype(int)
        assert row["shape"] == inside[ranks].tolist()
        assert row["decimals"] == max(map(digits, inside.tolist()))


@pytest.mark.parametrize("name", BINNED)
def test_bins_are_of_about_equal_count(decoded, name):
    """No bin is more than two tenths of training, unless one number is."""
    rows = decoded.rows(name)
    seen, bins = rows["source"][rows["train"]], rows["bin"][rows["train"]]
    if len(np.unique(seen)) <= BINS:
        return
    for bin_ in np.unique(bins):
        _, counts = np.unique(seen[bins == bin_], return_counts=True)
        if len(counts) > 1:
            assert counts.sum() < 0.2 * len(seen)


@pytest.mark.parametrize("name", LARGE)
def test_the_distribution_comes_back(decoded, name):
    """Within 1 / 80, as a bin's shape has eight steps; exactly, where there are few."""
    rows = decoded.rows(name)
    if len(np.unique(rows["source"][rows["train"]])) <= BINS:
        assert np.array_equal(rows["decoded"], rows["source"])
    # a tenth in a bin, drawn at random in it: 1.6 / sqrt(400) of it, above 99 %
    assert distance(rows["decoded"], rows["source"]) < 1 / 80 + 0.1 * 1.6 / 20


@pytest.mark.parametrize("name", BINNED)
def test_what_kind_of_numbers_they_are_comes_back(decoded, name):
    rows = decoded.rows(name)
    for bin_ in np.unique(rows["bin"]):
        here = rows["bin"] == bin_
        seen = rows["source"][here & rows["train"]]
        back = rows["decoded"][here]
        assert seen.min() <= back.min()
        assert back.max() <= seen.max()
        # integers are integers, and so on; zeros are zeros
        assert max(map(digits, back.tolist())) <= max(map(digits, seen.tolist()))
        if len(np.unique(seen)) == 1:
            assert (back == seen[0]).all()


def test_zeros_are_as_many(decoded):
    rows = decoded.rows("zeros")
    assert np.array_equal(rows["source"] == 0, rows["decoded"] == 0)
    assert 0.35 < (rows["decoded"] == 0).mean() < 0.45


@pytest.mark.parametrize("name", ["sentinel", "common_sentinel"])
def test_a_sentinel_is_as_common(decoded, name):
    rows = decoded.rows(name)
    shares = [(rows[side] == -1).mean() for side in ("source", "decoded")]
    assert abs(shares[0] - shares[1]) < 1 / 80 + 0.1 * 1.6 / 20


@pytest.mark.parametrize("name", BINNED)
def test_a_larger_share_is_no_smaller_number(decoded, name):
    rows = decoded.rows(name)
    for bin_ in np.unique(rows["bin"]):
        here = rows["bin"] == bin_
        back = rows["decoded"][here][np.argsort(rows["share"][here])]
        assert (np.diff(back) >= 0).all()


def test_the_same_sequences_give_the_same_numbers(decoded):
    assert decoded.twice[0].equals(decoded.twice[1])


def train_persons(name: str, low: float, high: float) -> int:
    """Count the persons of training that have a number of a case from low to high."""
    numbers = CASES[name][TRAIN]
    return int(((numbers >= low) & (numbers <= high)).any(axis=1).sum())


@pytest.mark.parametrize("name", CASES)
def test_shared_bins_show_no_few_persons_numbers(decoded, name):
    """No number that fewer than five persons reach, and no bin that fewer have."""
    shared = decoded.shared_bins(name)
    for row in shared:
        assert set(row) == {
            "event_token", "field", "bin", "low", "high", "train_count",
            "train_persons", "decimals", "shape",
        }  # fmt: skip
        for number in (row["low"], row["high"], *row["shape"]):
            assert train_persons(name, -np.inf, number) >= MIN_PERSONS
            assert train_persons(name, number, np.inf) >= MIN_PERSONS
        assert [row["low"], row["high"]] == [row["shape"][0], row["shape"][-1]]
        assert row["shape"] == sorted(row["shape"])
    # what is not shared is what few have; what many have is as it is
    kept = {row["bin"]: row for row in shared}
    for row in [] if name == "holdout_only" else decoded.bins(name):
        rows = decoded.rows(name)
        here = (rows["bin"] == row["bin"]) & rows["train"]
        persons = len(np.unique(rows["place"][here] // DAYS))
        assert row["train_persons"] == persons
        assert (row["bin"] in kept) == (persons >= MIN_PERSONS)
        if row["bin"] in kept:
            found = kept[row["bin"]]
            assert found["train_count"] == row["train_count"]
            for ours, exact in zip(found["shape"], row["shape"], strict=True):
                if (
                    train_persons(name, -np.inf, exact) >= MIN_PERSONS
                    and train_persons(name, exact, np.inf) >= MIN_PERSONS
                ):
                    assert ours == exact


def test_an_outlier_of_one_person_does_not_leave(decoded):
    largest = max(row["high"] for row in decoded.shared_bins("outlier"))
    assert largest < 1000
    assert not decoded.shared_bins("few_persons")
    assert decoded.bins("few_persons")
    rows = decoded.rows("outlier")
    assert rows["decoded"].max() > largest  # the round trip keeps the tail


@pytest.mark.parametrize("name", LARGE)
def test_decoding_with_shared_bins(decoded, name):
    """What a sample becomes: as the source, but for the tails that few persons have."""
    rows = decoded.twice[0].select(
        ["measurement_concept_id", "unit_concept_id", "value_as_number"]
    )
    ours = np.array(
        [
            number
            for concept, unit, number in zip(*rows.to_pydict().values(), strict=True)
            if concept == CONCEPT[name]
            and unit == UNIT.get(name)
            and number is not None
        ]
    )
    bins = decoded.shared_bins(name)
    assert ours.min() >= bins[0]["low"]
    assert ours.max() <= bins[-1]["high"]
    tails = 2 * MIN_PERSONS * DAYS / CASES[name].size
    assert distance(ours, CASES[name].ravel()) < 1 / 80 + 0.1 * 1.6 / 20 + tails


def ledger(decoded: Decoded, step: str, table: str, note: str) -> int:
    """Return what a ledger notes: of encode by source table, of decode at all."""
    name, where = (
        ("ledger.encode_ledger", f"reason = '{note}' and source_table = '{table}'")
        if step == "encode"
        else ("round_trip_ledger.decode_ledger", f"target = '{note}'")
    )
    return decoded.con.execute(
        f"select sum(row_count) from {name} where outcome = 'note' and {where}"
    ).fetchone()[0]


def test_what_is_no_number_is_counted(decoded):
    """NaN and infinity are noted, and write no token; NULL is just nothing."""
    noted = ledger(decoded, "encode", "measurement", "number_not_finite")
    assert noted == 3 * PERSONS
    found = decoded.con.execute(
        """
        select count(*), count(value_as_number) from round_trip.measurement
        where measurement_concept_id = ?
        """,
        [CONCEPT["empty"]],
    ).fetchone()
    assert found == (len(EMPTY) * PERSONS, 0)
    tokens = decoded.con.execute(
        """
        select count(*) filter (next like 'value:%'), count(*)
        from (
            select token, lead(token) over (
                partition by person_id order by position
            ) as next
            from timeline.tokens
        )
        where token = ?
        """,
        [f"measurement:{CONCEPT['empty']}"],
    ).fetchone()
    assert tokens == (0, len(EMPTY) * PERSONS)


def test_a_number_that_training_has_none_of_is_unknown_and_counted(decoded):
    rows = decoded.rows("holdout_only")
    assert np.isnan(rows["decoded"]).all()
    count = len(rows["source"])
    assert count == (SPLIT == "holdout").sum() * DAYS > 0
    for step, note in (
        ("encode", "number_unknown_in_training"),
        ("decode", "number_unknown"),
    ):
        assert ledger(decoded, step, "measurement", note) == count
    (tokens,) = decoded.con.execute(
        "select count(*) from timeline.tokens where token = 'value:unknown'"
    ).fetchone()
    assert tokens == count


@pytest.mark.parametrize(
    ("table", "end", "no_end"),
    [
        # a drug without an end, or with one beyond the language, ends as it starts
        ("drug_exposure", "drug_exposure_end_date", "back.drug_exposure_start_date"),
        ("procedure_occurrence", "procedure_end_date", "null"),
    ],
)
def test_quantities_and_ends_come_back_where_they_are_on(decoded, table, end, no_end):
    rows = decoded.con.execute(
        f"""
        select
            source.quantity as source,
            back.quantity as decoded,
            events.quantity_bin as bin,
            source.{end} is not distinct from '{FAR_END}' as is_far,
            back.{end} is not distinct from
            coalesce(nullif(source.{end}, '{FAR_END}'), {no_end}) as is_right_end
        from timeline.events as timeline
        inner join round_trip_steps.int_events_decoded as events
            using (person_id, visit_order, event_order)
        inner join '{decoded.sequences.parent}/source/{table}/*.parquet' as source
            on timeline.source_table = '{table}' and source_id = source.{table}_id
        inner join round_trip.{table} as back on back.{table}_id = event_id
        """
    ).fetchnumpy()
    assert rows["is_right_end"].all()
    assert ledger(decoded, "encode", table, "end_outside_language") == (
        rows["is_far"].sum()
    )
    assert len(rows["source"]) == PERSONS * DAYS
    has_none = np.ma.getmaskarray(rows["source"])
    assert np.array_equal(has_none, np.ma.getmaskarray(rows["decoded"]))
    assert has_none.any() == (table == "drug_exposure")
    source, back, bins = (
        np.asarray(rows[column][~has_none]) for column in ("source", "decoded", "bin")
    )
    if table == "drug_exposure":  # ten numbers: a bin of its own for each
        assert np.array_equal(source, back)
    assert len(np.unique(bins)) <= BINS
    for bin_ in np.unique(bins):
        seen, here = source[bins == bin_], back[bins == bin_]
        assert seen.min() <= here.min()
        assert here.max() <= seen.max()
    assert distance(back, source) < 1 / 80 + 0.1 * 1.6 / 20
