"""Sample patients into a folder: the model, the prompts, the rules, whole files.

A sampling that was cut off keeps its finished files and goes on; shards share them out.
Knows nothing of OMOP tables.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from omop_gpt.calibration import Calibration
from omop_gpt.grammar import Grammar, day_of, overlap_of
from omop_gpt.prompts import (
    Forecasts,
    Prompts,
    read_demographics,
    read_known,
    sequence_files,
)
from omop_gpt.rules import Copies, impossible_events
from omop_gpt.sampler import SampleConfig, Sampled, Sampler, context_of
from omop_gpt.slots import ATTENTION
from omop_gpt.step import (
    InputError,
    alone_in,
    folder_fingerprint,
    is_done,
    whole_folder,
    write_json,
    write_manifest,
)

__all__ = ["SampleConfig", "sample"]

log = logging.getLogger(__name__)
FOLDERS = ("demographic_data_path", "history_data_path", "train_data_path")


def load_model(folder: Path, grammar: Grammar) -> PreTrainedModel:
    """Load a trained model for sampling, on CUDA in bf16 where there is one.

    Raises InputError for a model of another vocabulary.
    """
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=ATTENTION,
        dtype=torch.bfloat16 if cuda else torch.float32,
        local_files_only=True,
    )
    trained_with = getattr(model.config, "omop_gpt_fingerprint", None)
    if trained_with != grammar.fingerprint:
        raise InputError(
            f"the model of {folder} was trained with vocabulary "
            f"{str(trained_with)[:12]}, but {grammar.folder} is "
            f"{grammar.fingerprint[:12]}: give the model's own."
        )
    return model.to("cuda" if cuda else "cpu").eval()


def wanted_demographics(config: SampleConfig, grammar: Grammar) -> np.ndarray:
    """Tell which tokens a cohort leaves: (V,) bool, all that are no demographics.

    Raises InputError where a filter leaves none.
    """
    wanted = np.ones(grammar.vocab_size, dtype=bool)
    number = grammar.number
    fits = {
        "age": (number >= config.min_age) & (number <= config.max_age),
        "year": (number >= config.min_year) & (number <= config.max_year),
    }
    for kind in ("gender", "race"):
        asked = getattr(config, f"{kind}_concept_ids")
        fits[kind] = np.isin(grammar.concept, asked) | (not asked)
    for kind, fit in fits.items():
        of_kind = grammar.has_kind(kind)
        wanted &= ~of_kind | fit
        if not (of_kind & fit & (grammar.train_persons > 0)).any():
            raise InputError(f"training has no {kind} of those that are asked for.")
    return wanted


def wanted_events(config: SampleConfig, grammar: Grammar) -> np.ndarray | None:
    """Token ids of --must_have, those with a unit of theirs too; None: not asked for.

    Raises InputError for an event that training does not have, or too few persons.
    """
    if not config.must_have:
        return None
    events = np.flatnonzero(grammar.has_kind("event"))
    found: list[int] = []
    for name in config.must_have:
        ids = [i for i in events if f"{grammar.tokens[i]}@".startswith(f"{name}@")]
        enough = [i for i in ids if grammar.train_persons[i] >= config.min_persons]
        if not enough:
            few = f", or fewer than --min_persons {config.min_persons}" if ids else ""
            raise InputError(
                f"--must_have {name}: nobody in training has this{few}; name events as "
                "the vocabulary does: condition:201826."
            )
        found += enough
    return np.array(found)


def make_sampler(
    model: PreTrainedModel, grammar: Grammar, config: SampleConfig
) -> Sampler:
    """Put a model, prompts and rules together. Raises InputError where one is unfit."""
    wanted = wanted_demographics(config, grammar)
    training = []
    if config.train_data_path:
        training = sequence_files(config.train_data_path, "train_data_path")
    first = last = None
    if config.last_date:
        last = min(day_of(config.last_date), grammar.last_day)
        if last < grammar.first_day:
            raise InputError(f"--last_date {config.last_date}: training starts later.")
    if config.history_data_path:
        histories = read_known(config.history_data_path, grammar, config.index_date)
        prompts: Prompts | Forecasts = Forecasts(
            histories,
            grammar,
            rollouts=config.rollouts,
            known=overlap_of(context_of(model, config)),
        )
        first = day_of(config.index_date) + 1
        if first > (grammar.last_day if last is None else last):
            raise InputError(
                f"--index_date {config.index_date}: nothing can follow, as training "
                "ends there; give an earlier one."
            )
    else:
        heads = read_demographics(config.demographic_data_path, grammar)
        if heads is not None:
            heads = heads[wanted[heads].all(axis=1)]
            if not len(heads):
                raise InputError(
                    f"--demographic_data_path {config.demographic_data_path} has "
                    "nobody of the age, year, gender and race that are asked for."
                )
        prompts = Prompts(grammar, heads)
    copies = None
    if config.max_copied_tokens:
        copies = Copies(training, grammar, config.max_copied_tokens + 1)
    return Sampler(
        model,
        grammar,
        config,
        prompts,
        rules={
            "wanted": wanted,
            "impossible": impossible_events(grammar, training)
            if config.clinical_rules
            else None,
            "first_day": first,
            "last_day": last,
        },
        must_have=wanted_events(config, grammar),
        copies=copies,
        calibration=Calibration.read(Path(config.model_folder)),
    )


def write_part(path: Path, rows: list[Sampled], grammar: Grammar) -> None:
    """Write a file of patients, in order, and their counts, whole or not at all."""
    visits = grammar.has_kind("visit", "no_visit")
    lists = [row.token_ids for row in rows]
    columns = {
        "person_id": pa.array(
            [grammar.synthetic_person_ids + row.patient + 1 for row in rows], pa.int64()
        ),
        "token_ids": pa.array(lists, pa.list_(pa.int32())),
        "token_count": pa.array([len(ids) for ids in lists], pa.int32()),
        "visit_count": pa.array([int(visits[ids].sum()) for ids in lists], pa.int32()),
    }
    if rows[0].prompt.person_id is not None:
        known = [len(row.prompt.history) for row in rows]
        columns["source_person_id"] = pa.array(
            [row.prompt.person_id for row in rows], pa.int64()
        )
        columns["known_token_count"] = pa.array(known, pa.int32())
    counts = {
        "patients": len(rows),
        "tokens": sum(len(ids) for ids in lists),
        "not_histories": sum(not grammar.is_history(ids) for ids in lists),
        "ended_by_limit": sum(row.ended_by_limit for row in rows),
        "longer_than_context": sum(row.contexts > 1 for row in rows),
        "sampled_again": added(row.rejected for row in rows),
        "probability": added(row.masked for row in rows),
    }
    write_json(path.with_suffix(".json"), counts)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.rename(path)


def added(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add counts up by name."""
    total: dict[str, float] = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def sample(config: SampleConfig) -> Path:
    """Sample patients into <output_folder>/generated_sequences; returns the folder.

    With several shards, the one that ends last puts the folder together.
    """
    started = time.time()
    folder = Path(config.model_folder)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"--model_folder {folder} holds no model: `omop-gpt train` makes one."
        )
    named = Path(config.tokenizer_folder or folder)
    is_vocabulary = (named / "vocabulary.parquet").is_file()
    grammar = Grammar.load(named if is_vocabulary else named / "vocabulary")
    output = Path(config.output_folder)
    target = output / "generated_sequences"
    job = job_of(config, grammar)
    if is_done(target, step="sample", **job):
        log.info("sample: done before, in %s", target)
        return target
    check_output(output, target, grammar)
    model = load_model(folder, grammar)
    sampler = make_sampler(model, grammar, config)
    count = config.num_of_patients
    if isinstance(sampler.prompts, Forecasts):
        count = count or len(sampler.prompts)
        if count > len(sampler.prompts):
            raise InputError(
                f"--num_of_patients {count}: the histories times --rollouts are only "
                f"{len(sampler.prompts)}; 0 takes all of them."
            )
    partial = output / ".generated_sequences.partial"
    begin(partial, job, alone=config.num_of_shards == 1)
    parts = [
        (partial / f"part-{number:05d}.parquet", range(first, min(first + size, count)))
        for size in [config.buffer_size]
        for number, first in enumerate(range(0, count, size))
    ]
    mine = parts[config.shard - 1 :: config.num_of_shards]
    missing = [(path, part) for path, part in mine if not path.is_file()]
    found: dict[int, Sampled] = {}
    waiting = [patient for _, part in missing for patient in part]
    total = sum(len(part) for _, part in mine)
    with (
        torch.inference_mode(),
        tqdm(total=total, unit=" patients", mininterval=2) as progress,
    ):
        progress.update(total - len(waiting))
        for sampled in sampler.run(waiting):
            found[sampled.patient] = sampled
            progress.update()
            while missing and all(p in found for p in missing[0][1]):
                path, part = missing.pop(0)
                write_part(path, [found.pop(p) for p in part], grammar)
    left = sum(not path.is_file() for path, _ in parts)
    if left:
        log.info(
            "sample: shard %d of %d is done; files that others still write: %d",
            config.shard, config.num_of_shards, left,
        )  # fmt: skip
        return partial
    with ExitStack() as held:
        if config.num_of_shards > 1:
            try:
                held.enter_context(alone_in(partial))
            except (InputError, FileNotFoundError):
                return target  # another shard ended at the same moment, and does it
        if not partial.exists():  # or has done it
            return target
        return finish(partial, target, grammar, job, started)


def job_of(config: SampleConfig, grammar: Grammar) -> dict[str, Any]:
    """Return settings and inputs that decide what is sampled, as a manifest says them.

    Folders are told by what they hold, wherever they lie; shards change nothing.
    """
    settings = dataclasses.asdict(config)
    inputs = folder_fingerprint(config.model_folder, "*.safetensors")
    inputs += grammar.fingerprint
    for name in FOLDERS:
        if settings.pop(name):
            inputs += folder_fingerprint(getattr(config, name))
    for name in (
        "model_folder", "tokenizer_folder", "output_folder", "shard", "num_of_shards"
    ):  # fmt: skip
        del settings[name]
    return {"settings": settings, "inputs": inputs}


def begin(partial: Path, job: Mapping[str, Any], *, alone: bool) -> None:
    """Make the folder of unfinished work, or go on in it.

    What was begun with other settings is taken away, unless shards may be at it: then
    it raises InputError.
    """
    begun = partial / "begun.json"
    job = json.loads(json.dumps(job))
    if begun.is_file() and json.loads(begun.read_text()) != job:
        if not alone:
            raise InputError(
                f"{partial} holds shards of another sampling: remove it first, or name "
                "a new output folder."
            )
        shutil.rmtree(partial)
    elif alone and not begun.is_file():
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    if not begun.is_file():
        write_json(begun, job)


def finish(
    partial: Path,
    target: Path,
    grammar: Grammar,
    job: Mapping[str, Any],
    started: float,
) -> Path:
    """Put the parts together: counts, manifest, vocabulary, and the folder's name."""
    result = total_counts(partial, grammar.fingerprint)
    result["model"] = job["inputs"][:64]  # what its weights hash to
    (partial / "begun.json").unlink()
    for counts in partial.glob("part-*.json"):
        counts.unlink()
    write_manifest(partial, step="sample", **job, started=started, result=result)
    vocabulary = target.with_name("vocabulary")
    if not vocabulary.exists():
        with whole_folder(vocabulary) as copied:
            shutil.copytree(grammar.folder, copied, dirs_exist_ok=True)
    partial.rename(target)
    log.info("sample: %s", json.dumps(result))
    return target


def check_output(output: Path, target: Path, grammar: Grammar) -> None:
    """Raise InputError if other sequences, or another vocabulary, lie there."""
    if target.exists() and any(target.iterdir()):
        raise InputError(
            f"{target} is there already: name a new output folder, or remove it."
        )
    beside = output / "vocabulary"
    if beside.exists() and Grammar.load(beside).fingerprint != grammar.fingerprint:
        raise InputError(
            f"{beside} is not the vocabulary of the model: "
            "name a new output folder, or remove it."
        )


def total_counts(folder: Path, fingerprint: str) -> dict[str, Any]:
    """Add up the counts that were written with each file.

    `<rule>_probability` is the share of all probability that a rule took away.
    """
    parts = [
        json.loads(path.read_text()) for path in sorted(folder.glob("part-*.json"))
    ]
    names = [name for name, value in parts[0].items() if not isinstance(value, dict)]
    total: dict[str, Any] = {name: sum(part[name] for part in parts) for name in names}
    total["sampled_again"] = added(part["sampled_again"] for part in parts)
    probability = added(part["probability"] for part in parts)
    for rule in probability:
        share = probability[rule] / max(total["tokens"], 1)
        total[f"{rule}_probability"] = round(share, 6)
    total["vocabulary"] = fingerprint
    return total
