"""Judge synthetic patients by fidelity, utility and privacy, beside real ones.

Knows the order of the work. Real patients, synthetic ones and anchors become cohorts of
one form; dbt computes the marts of all; each family measures every cohort that poses as
synthetic; gates judge. Rows of patients stay in schema evaluation_private.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omop_gpt import warehouse
from omop_gpt.encode import megabytes_of
from omop_gpt.evaluation import (
    discriminator,
    likelihood,
    population,
    privacy,
    temporal,
    utility,
)
from omop_gpt.evaluation.anchors import make_anchors
from omop_gpt.evaluation.canaries import measure_canaries
from omop_gpt.evaluation.cohorts import (
    CALIBRATION,
    HOLDOUT,
    IDEAL,
    SCHEMA,
    SYNTHETIC,
    TRAIN,
    files_of,
    make_cohorts,
    names_of,
    parquet,
)
from omop_gpt.evaluation.datacard import write_data_card
from omop_gpt.evaluation.release import measure_quality, measure_sequences, origin_of
from omop_gpt.evaluation.report import write_report
from omop_gpt.evaluation.results import PROFILES, Profile, Results, profile_of
from omop_gpt.evaluation.rollouts import measure_rollouts
from omop_gpt.evaluation.scorecard import (
    LEAKS,
    add_to_scorecard,
    check_anchors,
    doubts,
    gate_rows,
    leaks,
    read_expected,
    read_gates,
    score_rows,
    verdict,
)
from omop_gpt.evaluation.small_cells import leave_out_small_cells
from omop_gpt.evaluation.truth import measure_truth
from omop_gpt.flags import flag
from omop_gpt.simulation import SOURCE_NAME
from omop_gpt.step import (
    InputError,
    folder_fingerprint,
    is_done,
    read_manifest,
    versions,
    whole_folder,
    write_json,
    write_manifest,
)

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)
FAMILIES = {
    "fidelity": (population, temporal, discriminator),
    "utility": (utility,),
    "privacy": (privacy,),
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge synthetic patients by fidelity, utility and privacy."""

    real_folder: str = flag("What encode wrote: its persons carry the split.")
    synthetic_folder: str = flag("OMOP tables of the synthetic patients, as Parquet.")
    output_folder: str = flag("Where the report is written.")
    other_synthetic_folders: tuple[str, ...] = flag(
        "Further sets of the same model, sampled with other seeds: the worst is judged "
        "for fidelity and utility.",
        (),
    )
    source_omop_folder: str = flag(
        "OMOP tables that were encoded: names of concepts for the report.", ""
    )
    model_folder: str = flag(
        "The model that wrote them: attacks that need it run, too.", ""
    )
    profile: str = flag(
        f"How much work: {', '.join(PROFILES)}; only full runs all anchors.", "standard"
    )
    rollouts: int = flag(
        "Times that the model goes on with each person that it is asked to foretell; "
        "0: not asked; -1: as the profile says.",
        -1,
    )
    warehouse: str = flag(
        "DuckDB file of the marts; without it, <synthetic_folder>/../warehouse.duckdb.",
        "",
    )
    seed: int = flag("Seed of anchors, targets and classifiers.", 42)
    cores: int = flag("Processor cores.", os.cpu_count() or 1)
    memory: str = flag("Memory for DuckDB.", "4GB")


def evaluate(config: EvaluateConfig) -> Path:
    """Write the report to `output_folder`; returns the folder."""
    started = time.time()
    profile = profile_of(config.profile)
    if config.rollouts < -1:
        raise InputError(f"--rollouts {config.rollouts}: at least 0, or -1.")
    profile = profile.changed(config.seed, config.rollouts)
    output = Path(config.output_folder)
    real, synthetic = Path(config.real_folder), Path(config.synthetic_folder)
    sets = [synthetic, *map(Path, config.other_synthetic_folders)]
    model = Path(config.model_folder) if config.model_folder else None
    if model and not (model / "config.json").is_file():
        raise InputError(f"--model_folder {model} holds no model (no config.json).")
    settings = {
        "profile": profile.name, "seed": profile.seed, "model": bool(model),
        "rollouts": profile.rollouts if model else 0,
    }  # fmt: skip
    inputs = folder_fingerprint(real / "timeline")
    inputs += "".join(map(folder_fingerprint, sets))
    if model:
        inputs += folder_fingerprint(model, "*.safetensors")
    if is_done(output, step="evaluate", settings=settings, inputs=inputs):
        log.info("evaluate: done before, in %s", output)
        return output
    megabytes_of(config.memory)
    database = Path(config.warehouse or synthetic.parent / "warehouse.duckdb")
    if database.stem in ("evaluation", SCHEMA):
        raise InputError(
            f"--warehouse {database} is named as one of its schemas, which DuckDB "
            "cannot tell apart: name it otherwise."
        )
    work_folder = output.with_name(f".{output.name}.dbt")
    with whole_folder(output) as partial:
        with connect(database, config) as con:
            make_cohorts(con, real, sets)
            say(started, "real and synthetic patients are read")
            make_anchors(con, profile.anchors, profile.seed)
            say(started, f"anchors: {', '.join(profile.anchors)}")
        warehouse.build(
            "evaluate",
            variables={},
            warehouse=database,
            work_folder=work_folder,
            cores=config.cores,
            memory=config.memory,
        )
        say(started, "marts are computed")
        with connect(database, config) as con:
            con.execute("create schema if not exists evaluation")
            results, families = measure(con, profile, len(sets), started)
            if model:
                names, readings = likelihood.read(con, model, real, profile)
                with of_family("privacy", results, families):
                    likelihood.measure_attack(readings, profile, results)
                    measure_canaries(model, synthetic, results)
                say(started, "attacks with the model itself")
                with of_family("utility", results, families):
                    likelihood.measure_fit(names, readings, results)
                    measure_rollouts(con, model, real, synthetic, profile, results)
                say(started, "what the model foretells")
            measure_quality(con, synthetic, results)
            origin = origin_of(con, config.source_omop_folder)
            with of_family("fidelity", results, families):
                measure_sequences(con, real, synthetic, results)
                if origin == SOURCE_NAME:
                    known = (TRAIN, HOLDOUT, *names_of(len(sets)), *profile.anchors)
                    measure_truth(con, known, results)
            run = run_of(synthetic, profile)
            report = judge(con, results, families, profile, run, len(sets))
            report["origin"] = origin
            report["folders"] = {
                "real": str(real), "synthetic": ", ".join(map(str, sets)),
                "model": str(model or ""),
            }  # fmt: skip
            write_json(partial / "metrics.json", without_nan(report))
            names = concept_names(config)
            write_report(con, report, results.curves, names, profile, partial)
            write_data_card(con, report, real, synthetic, partial)
            results.keep_curves(con)
            leave_out_small_cells(con)
        write_manifest(
            partial,
            step="evaluate",
            settings=settings,
            inputs=inputs,
            started=started,
            result={"verdict": report["verdict"], "run_id": report["run"]["run_id"]},
        )
    shutil.rmtree(work_folder, ignore_errors=True)
    log.info(
        "evaluate: %s: %s; %s must gates passed, %s failed, %s cannot be judged",
        report["verdict"]["outcome"],
        output / "index.html",
        report["verdict"]["must"]["passed"],
        report["verdict"]["must"]["failed"],
        sum(
            report["verdict"]["must"][status]
            for status in ("underpowered", "undefined", "not_run")
        ),
    )
    for doubt in doubts(report["anchors"]):
        log.info("evaluate: the evaluation itself is in doubt: %s", doubt)
    return output


def connect(database: Path, config: EvaluateConfig) -> duckdb.DuckDBPyConnection:
    """Open the warehouse."""
    import duckdb

    database.parent.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(str(database))
    con.execute(f"set threads = {config.cores}")
    con.execute(f"set memory_limit = '{config.memory}'")
    return con


@contextmanager
def of_family(
    family: str, results: Results, families: dict[str, str]
) -> Iterator[None]:
    """Note the family of the metrics that are added within."""
    before = len(results.metrics)
    yield
    families |= {m.name: family for m in results.metrics[before:]}


def measure(
    con: duckdb.DuckDBPyConnection, profile: Profile, sets: int, started: float
) -> tuple[Results, dict[str, str]]:
    """Measure every candidate; returns results, and the family of each metric.

    Of several sets of synthetic patients the first is the one that may leave: privacy
    is measured of it alone.
    """
    results, families = Results(), {}
    present = {
        name
        for (name,) in con.execute(
            f"select distinct cohort from {SCHEMA}.persons"
        ).fetchall()
    }
    for family, modules in FAMILIES.items():
        for module in modules:
            ours = names_of(1 if family == "privacy" else sets)
            for candidate in (*ours, *profile.anchors):
                if candidate not in present:
                    continue
                with of_family(family, results, families):
                    module.measure(con, candidate, profile, results)
                name = module.__name__.rsplit(".", 1)[1]
                say(started, f"{name} of {candidate}")
    return results, families


def judge(
    con: duckdb.DuckDBPyConnection,
    results: Results,
    families: Mapping[str, str],
    profile: Profile,
    run: Mapping[str, Any],
    sets: int,
) -> dict[str, Any]:
    """Hold the metrics against the gates, and add them to the scorecard."""
    gates = read_gates(con)
    results.metrics.extend(leaks(results.metrics))
    families = {**families, **dict.fromkeys(LEAKS.values(), "privacy")}
    sizes = dict(
        con.execute(
            f"select cohort, count(*) from {SCHEMA}.persons group by 1 order by 1"
        ).fetchall()
    )
    rows = score_rows(results.metrics, families, gates)
    add_to_scorecard(con, run, rows)
    cohorts = [name for name in (SYNTHETIC, *profile.anchors) if name in sizes]
    judged = gate_rows(results.metrics, gates, cohorts, names_of(sets))
    least = min(sizes.get(name, 0) for name in (HOLDOUT, IDEAL, CALIBRATION))
    return {
        "run": dict(run),
        "versions": versions(),
        "persons": sizes,
        "verdict": verdict(judged, least),
        "anchors": check_anchors(judged, read_expected(con)),
        "gates": judged,
        "metrics": rows,
    }


def run_of(synthetic: Path, profile: Profile) -> dict[str, Any]:
    """Say which run this is, and which model wrote the patients."""
    manifest = read_manifest(synthetic) or {}
    sampled = read_manifest(synthetic.parent / "generated_sequences") or {}
    return {
        "run_id": uuid.uuid4().hex[:12],
        "run_at": datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "seconds"),
        "version": versions().get("omop-gpt", ""),
        "revision": warehouse.revision(),
        "model": (sampled.get("result") or {}).get("model", ""),
        "profile": profile.name,
        "seed": profile.seed,
        "vocabulary": (manifest.get("result") or {}).get("vocabulary", ""),
        "sampling": sampled.get("settings") or {},
    }


def concept_names(config: EvaluateConfig) -> str:
    """Query of concept ids and names: of the source, else of the synthetic tables."""
    for folder in (config.source_omop_folder, config.synthetic_folder):
        files = files_of(Path(folder), "concept") if folder else []
        if files:
            return (
                "select cast(concept_id as bigint) as concept_id, concept_name "
                f"from {parquet(files)}"
            )
    return (
        "select null::bigint as concept_id, null::varchar as concept_name where false"
    )


def say(started: float, what: str) -> None:
    """Tell what is done, and when."""
    log.info("evaluate: %5.0f s  %s", time.time() - started, what)


def without_nan(content: Any) -> Any:
    """Replace NaN by None, which JSON has, all the way down."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
