"""Going on from an earlier encode: what is the same is taken over, and says so."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from omop_gpt import encode as encode_module
from omop_gpt.encode import EncodeConfig, encode
from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.step import InputError

TABLES = (
    "person", "visit_occurrence", "condition_occurrence", "drug_exposure",
    "procedure_occurrence", "measurement", "observation", "device_exposure", "death",
)  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a source, and the same later: persons came, went, and got other rows."""
    root = tmp_path_factory.mktemp("sources")
    simulate(SimulateConfig(output_folder=str(root / "later"), num_of_patients=120))
    con = duckdb.connect()
    # ids end at 120: ten come later, ten are gone by then, ten get more measurements
    early = "person_id <= 110"
    fewer = "not (person_id between 20 and 29 and measurement_id % 2 = 0)"
    before = {"measurement": f"{early} and {fewer}"}
    for table in TABLES:
        later = root / "later" / table
        (root / "before" / table).mkdir(parents=True)
        rows = f"from read_parquet('{later}/*.parquet')"
        con.execute(
            f"copy (select * {rows} where {before.get(table, early)}) "
            f"to '{root}/before/{table}/part-0.parquet' (format parquet)"
        )
        con.execute(
            f"copy (select * {rows} where person_id not between 40 and 49) "
            f"to '{root}/rest.parquet' (format parquet)"
        )
        for file in later.iterdir():
            file.unlink()
        (root / "rest.parquet").rename(later / "part-0.parquet")
    return root / "before", root / "later"


def run(source: Path, output: Path, **options: object) -> Path:
    """Encode with one core, unless told otherwise."""
    return encode(
        EncodeConfig(
            input_folder=str(source),
            output_folder=str(output),
            **{"cores": 1, **options},
        )
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Timeline, sequences and vocabulary, as bytes."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for part in ("timeline", "patient_sequence")
        for file in (folder / part).rglob("*.parquet")
    }


def run_with(source: Path, output: Path, variables: dict, **options: object) -> Path:
    """Encode with variables of dbt that have no flag."""
    variables_of = encode_module.variables_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            encode_module, "variables_of", lambda given: variables_of(given) | variables
        )
        return run(source, output, **options)


@pytest.fixture(scope="module")
def encodes(sources, tmp_path_factory):
    """Encode the first source; go on from it, once by persons and once with all."""
    root = tmp_path_factory.mktemp("it's run=1")
    before, later = sources
    run(before, root / "first")
    for name in ("gone_on", "all_again"):
        shutil.copytree(root / "first", root / name)
    run(later, root / "gone_on")
    run_with(later, root / "all_again", {"encode_all": True})
    run(later, root / "anew")
    return root


def manifest(folder: Path) -> dict:
    """Return what the run counted."""
    return json.loads((folder / "patient_sequence" / "manifest.json").read_text())[
        "result"
    ]


def test_only_changed_persons_are_encoded_and_the_bytes_are_those_of_all(encodes):
    assert contents(encodes / "gone_on") == contents(encodes / "all_again")
    kept = manifest(encodes / "gone_on")["kept_persons"]
    assert 80 <= kept <= 90  # of 100 of before; the ten may have no even measurement
    assert manifest(encodes / "all_again")["kept_persons"] == 0
    assert manifest(encodes / "gone_on")["rows"] == manifest(encodes / "anew")["rows"]


def test_tokens_keep_their_ids_and_new_ones_come_after(encodes):
    tables = [
        pq.read_table(folder / "patient_sequence/vocabulary/vocabulary.parquet")
        for folder in (encodes / "first", encodes / "gone_on")
    ]
    first, later = (table["token"].to_pylist() for table in tables)
    assert later[: len(first)] == first
    assert len(later) > len(first)
    bins = [
        pq.read_table(folder / "timeline/value_bins/part-00.parquet")
        .drop_columns(["train_persons", "shared_shape"])
        .to_pylist()
        for folder in (encodes / "first", encodes / "gone_on")
    ]
    assert bins[0] == bins[1]


def test_a_vocabulary_that_grew_still_makes_a_mask(encodes):
    grammar = Grammar.load(encodes / "gone_on/patient_sequence/vocabulary")
    mask = Mask(grammar, rows=1, min_persons=1)
    values = grammar.roles == "value"
    chosen = mask.values
    ids = range(chosen.start, chosen.stop) if isinstance(chosen, slice) else chosen
    assert list(ids) == list(values.nonzero()[0])


def test_the_run_says_who_stays_and_how_far_bins_have_drifted(
    encodes, sources, tmp_path, caplog
):
    shutil.copytree(encodes / "first", tmp_path / "out")
    with caplog.at_level(logging.INFO):
        run(sources[1], tmp_path / "out")
    assert "of 110 persons are as before" in caplog.text
    assert "off their bins" in caplog.text
    con = duckdb.connect(str(tmp_path / "out/warehouse.duckdb"), read_only=True)
    drift = con.execute(
        "select max(drift), min(drift) from ledger.bin_drift"
    ).fetchone()
    assert 0 <= drift[1] <= drift[0] <= 1
    assert drift[0] > 0
    anew = duckdb.connect(str(encodes / "anew/warehouse.duckdb"), read_only=True)
    assert anew.execute("select max(drift) from ledger.bin_drift").fetchone() == (0.0,)


def test_a_refit_is_an_encode_of_its_own_whatever_the_cores(encodes, sources, tmp_path):
    shutil.copytree(encodes / "first", tmp_path / "out")
    # two parts at once, and whichever ends first
    run(sources[1], tmp_path / "out", refit=True, cores=2)
    assert contents(tmp_path / "out") == contents(encodes / "anew")


def test_a_missing_warehouse_is_said(encodes, sources, tmp_path):
    shutil.copytree(encodes / "first", tmp_path / "out")
    (tmp_path / "out/warehouse.duckdb").unlink()
    with pytest.raises(InputError, match=r"warehouse\.duckdb is missing.*--refit"):
        run(sources[1], tmp_path / "out")


def test_a_warehouse_of_an_older_version_is_said(encodes, sources, tmp_path):
    shutil.copytree(encodes / "first", tmp_path / "out")
    with duckdb.connect(str(tmp_path / "out/warehouse.duckdb")) as con:
        con.execute("drop table encode_steps.int_persons_hashed")
    with pytest.raises(InputError, match=r"older version.*--refit"):
        run(sources[1], tmp_path / "out")


def test_a_timeline_that_was_moved_is_read_where_it_lies_now(
    encodes, sources, tmp_path
):
    moved = tmp_path / "it's here"
    shutil.copytree(encodes / "first", moved)
    run(sources[0], moved)
    shutil.rmtree(moved / "timeline/visits")
    with duckdb.connect(str(moved / "warehouse.duckdb"), read_only=True) as con:
        assert con.execute("select count(*) from timeline.events").fetchone() > (0,)
        assert "it's run" not in con.sql("from timeline.events").columns
        with pytest.raises(duckdb.IOException, match="it's here"):
            con.execute("from timeline.visits")


def test_other_options_are_refused(encodes, sources, tmp_path):
    shutil.copytree(encodes / "first", tmp_path / "out")
    config = EncodeConfig(
        input_folder=str(sources[1]), output_folder=str(tmp_path / "out"), cores=1
    )
    with pytest.raises(InputError, match="--att_type day, not week"):
        encode(dataclasses.replace(config, att_type="week"))
