"""All steps in one command, each skipped where it is done.

Knows the layout of an output folder; each step is its own module.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from omop_gpt.encode import EncodeOptions
from omop_gpt.evaluation.results import profile_of
from omop_gpt.flags import flag
from omop_gpt.step import InputError, read_manifest

log = logging.getLogger(__name__)

QUERIES = """
-- who they are
select gender_concept_id, count(*) as persons, avg(year_of_birth) as mean_birth_year
from synthetic.person group by 1 order by 2 desc;

-- the commonest diagnoses
select coalesce(concept.concept_name, '?') as diagnosis, count(*) as times
from synthetic.condition_occurrence
left join staging.stg_omop__concept as concept
    on condition_occurrence.condition_concept_id = concept.concept_id
group by 1 order by 2 desc limit 10;

-- days in hospital, by kind of visit
select visit_concept_id, count(*) as visits,
    avg(visit_end_date - visit_start_date) as mean_days
from synthetic.visit_occurrence group by 1 order by 2 desc;

-- where every token went
from synthetic_ledger.decode_ledger;
"""


@dataclass(frozen=True, kw_only=True)
class RunConfig(EncodeOptions):
    """Run all steps: encode, round trip, train, sample, decode, evaluate."""

    input_folder: str = flag("OMOP tables, as for encode.")
    output_folder: str = flag("Where everything is written.")
    num_of_patients: int = flag("Patients to sample; 0: as many as training has.", 0)
    train_settings: str = flag("A YAML file with the settings of train.", "")
    batch_size: int = flag("Patients that are sampled at once; 0: see sample.", 0)
    min_persons: int = flag(
        "Event and value tokens that fewer training persons have are not written.", 5
    )
    profile: str = flag("How much work evaluate does: see there.", "smoke")
    num_of_sets: int = flag(
        "Sets of patients to sample, each with a seed of its own: evaluate judges the "
        "worst. 0: as the profile says, 3 in full, else 1.",
        0,
    )
    seed: int = flag("Seed of training, sampling and evaluation.", 42)
    cores: int = flag("Processor cores.", os.cpu_count() or 1)
    memory: str = flag("Memory for DuckDB and for Spark.", "4GB")


def run(config: RunConfig) -> Path:
    """Run what is not done yet; returns the output folder."""
    from omop_gpt.decode import ROUND_TRIP, DecodeConfig, decode
    from omop_gpt.encode import EncodeConfig, encode

    profile = profile_of(config.profile)
    if config.num_of_sets < 0:
        raise InputError(f"--num_of_sets {config.num_of_sets}: at least 0.")
    output = Path(config.output_folder)
    say("1 of 6: encode")
    sequences = encode(
        EncodeConfig(
            input_folder=config.input_folder,
            output_folder=str(output),
            cores=config.cores,
            memory=config.memory,
            **{
                field.name: getattr(config, field.name)
                for field in dataclasses.fields(EncodeOptions)
            },
        )
    )
    say("2 of 6: decode the encoded patients again, and compare with the source")
    decode(
        DecodeConfig(
            patient_sequence_folder=str(sequences),
            omop_folder=str(output / ROUND_TRIP),
            source_omop_folder=config.input_folder,
            schema=ROUND_TRIP,
            cpu_cores=config.cores,
            memory=config.memory,
        )
    )
    # torch is loaded only now: dbt and Spark had the memory until here
    from omop_gpt.evaluation.evaluate import EvaluateConfig, evaluate
    from omop_gpt.sample import SampleConfig, sample
    from omop_gpt.train import parse, train_step

    say("3 of 6: train")
    flags = [config.train_settings] if config.train_settings else []
    flags += ["--data_folder", str(sequences), "--output_dir", str(output / "model")]
    train_step(*parse([*flags, "--seed", str(config.seed)]))

    persons = (read_manifest(sequences) or {})["result"]["persons"]
    # the set that may leave, and those that are only judged beside it
    count = config.num_of_sets or profile.sets
    folders = [output, *(output / "sets" / str(n + 1) for n in range(1, count))]
    say(f"4 of 6: sample{f' {count} sets' if count > 1 else ''}")
    generated = [
        sample(
            SampleConfig(
                model_folder=str(output / "model"),
                output_folder=str(folder),
                num_of_patients=config.num_of_patients or persons["train"],
                batch_size=config.batch_size,
                min_persons=config.min_persons,
                train_data_path=str(sequences / "train"),
                seed=config.seed + number,
            )
        )
        for number, folder in enumerate(folders)
    ]
    say("5 of 6: decode the sampled patients")
    omop, *others = [
        decode(
            DecodeConfig(
                patient_sequence_folder=str(made),
                omop_folder=str(folder / "omop"),
                source_omop_folder=config.input_folder,
                cpu_cores=config.cores,
                memory=config.memory,
            )
        )
        for made, folder in zip(generated, folders, strict=True)
    ]
    say("6 of 6: judge them")
    report = evaluate(
        EvaluateConfig(
            real_folder=str(output),
            synthetic_folder=str(omop),
            other_synthetic_folders=tuple(map(str, others)),
            output_folder=str(output / "report"),
            source_omop_folder=config.input_folder,
            model_folder=str(output / "model"),
            profile=config.profile,
            seed=config.seed,
            cores=config.cores,
            memory=config.memory,
        )
    )
    print(summary(output, omop, report))
    return output


def say(what: str) -> None:
    """Head a step."""
    log.info("\n=== %s  %s", time.strftime("%H:%M:%S"), what)


def summary(output: Path, omop: Path, report: Path) -> str:
    """Rows per table, real (as encoded) against synthetic, and where to look."""
    import duckdb

    database = output / "warehouse.duckdb"
    with duckdb.connect(str(database), read_only=True) as con:
        rows = con.execute(
            """
            select source_table, any_value(real_rows), coalesce(sum(row_count), 0)
            from (
                select source_table, sum(row_count) as real_rows
                from ledger.encode_ledger
                where outcome = 'encoded'
                group by 1
            )
            left join synthetic_ledger.decode_ledger
                on source_table = target and outcome = 'row'
            group by 1
            order by source_table <> 'person', source_table
            """
        ).fetchall()
    counts = {name: (real, synthetic) for name, real, synthetic in rows}
    real_persons, synthetic_persons = counts["person"]
    lines = [
        "",
        f"{'table':22}{'real':>12}{'synthetic':>12}   rows per person",
        *(
            f"{name:22}{real:>12,}{synthetic:>12,}"
            f"{real / real_persons:>9.2f}{synthetic / synthetic_persons:>9.2f}"
            for name, (real, synthetic) in counts.items()
        ),
        "",
        f"How they were judged: {report}/index.html",
        f"The synthetic CDM: {omop}/<table>/*.parquet",
        f"               and schema `synthetic` of {database}",
        "Ask it, for example:",
        QUERIES.rstrip(),
        "",
        "with any DuckDB client, or:",
        f"  python -c \"import duckdb; print(duckdb.connect('{database}')"
        ".sql('from synthetic.person limit 5'))\"",
    ]
    return "\n".join(lines)
