"""Sample patients into a folder: the model, the prompts, shards that are whole.

A sampling that was cut off keeps its finished shards and goes on. Knows nothing of
OMOP tables.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel

from omop_gpt.grammar import Grammar
from omop_gpt.sampler import PROMPT_TOKENS, SampleConfig, Sampled, Sampler
from omop_gpt.slots import ATTENTION
from omop_gpt.step import (
    InputError,
    folder_fingerprint,
    is_done,
    whole_folder,
    write_json,
    write_manifest,
)

__all__ = ["SampleConfig", "sample"]

log = logging.getLogger(__name__)


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


def read_prompts(path: str, grammar: Grammar) -> np.ndarray | None:
    """Demographics of the sequences in a folder: (N, 6) token ids; empty path: None.

    Without those that are unknown, which sampling does not write. Raises InputError if
    there are none, or they are in another vocabulary.
    """
    if not path:
        return None
    files = sorted(Path(path).glob("**/*.parquet"))
    files = [file for file in files if file.parent.name != "vocabulary"]
    heads = [np.empty((0, PROMPT_TOKENS), np.int64)]
    for file in files:
        if "token_ids" not in pq.read_schema(file).names:
            raise InputError(
                f"--demographic_data_path: {file} has no column token_ids: name "
                "patient_sequence/train."
            )
        lists = pq.read_table(file, columns=["token_ids"])["token_ids"]
        is_long = pc.greater_equal(pc.list_value_length(lists), PROMPT_TOKENS)
        lists = lists.filter(is_long)
        flat = pc.list_flatten(pc.list_slice(lists, 0, PROMPT_TOKENS))
        heads.append(flat.to_numpy().reshape(-1, PROMPT_TOKENS))
    prompts = np.concatenate(heads)
    legal = (prompts < grammar.vocab_size).all(axis=1)
    state = np.full(len(prompts), grammar.states.index("start"))
    is_sampled = legal.copy()
    for token_ids in np.where(legal[:, None], prompts, 0).T:
        kind = grammar.kind[token_ids]
        is_sampled &= grammar.is_sampled[state, kind]
        state = grammar.next_state[state, kind]
        legal &= state >= 0
    if not legal.all():
        raise InputError(
            f"--demographic_data_path {path} was written with another vocabulary than "
            f"{grammar.folder}: name the data that the model was trained on."
        )
    if not is_sampled.any():
        raise InputError(
            f"--demographic_data_path {path} holds no demographics: name "
            "patient_sequence/train, or leave the flag out."
        )
    return prompts[is_sampled]


def write_shard(path: Path, rows: list[Sampled], grammar: Grammar) -> None:
    """Write a shard's patients, in order, and their counts, whole or not at all."""
    visits = grammar.has_kind("visit", "no_visit")
    lists = [row.token_ids for row in rows]
    table = pa.table(
        {
            "person_id": pa.array([row.patient + 1 for row in rows], pa.int64()),
            "token_ids": pa.array(lists, pa.list_(pa.int32())),
            "token_count": pa.array([len(ids) for ids in lists], pa.int32()),
            "visit_count": pa.array(
                [int(visits[ids].sum()) for ids in lists], pa.int32()
            ),
        }
    )
    counts = {
        "patients": len(rows),
        "tokens": sum(len(ids) for ids in lists),
        "not_histories": sum(not grammar.is_history(ids) for ids in lists),
        "ended_by_limit": sum(row.ended_by_limit for row in rows),
        "longer_than_context": sum(row.contexts > 1 for row in rows),
        "rare_probability": round(sum(row.rare_probability for row in rows), 6),
    }
    write_json(path.with_suffix(".json"), counts)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.rename(path)


def sample(config: SampleConfig) -> Path:
    """Sample patients into <output_folder>/generated_sequences; returns the folder."""
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
    settings = dataclasses.asdict(config)
    inputs = folder_fingerprint(folder, "*.safetensors") + grammar.fingerprint
    if config.demographic_data_path:
        inputs += folder_fingerprint(config.demographic_data_path)
    # told by what they hold, wherever they lie
    for name in ("model_folder", "tokenizer_folder", "demographic_data_path"):
        del settings[name]
    del settings["output_folder"]
    if is_done(target, step="sample", settings=settings, inputs=inputs):
        log.info("sample: done before, in %s", target)
        return target
    check_output(output, target, grammar)
    model = load_model(folder, grammar)
    prompts = read_prompts(config.demographic_data_path, grammar)

    partial = output / ".generated_sequences.partial"
    wanted = {"settings": settings, "inputs": inputs}
    begun = partial / "begun.json"
    if not begun.is_file() or json.loads(begun.read_text()) != wanted:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(begun, wanted)
    shards = [
        list(range(first, min(first + config.buffer_size, config.num_of_patients)))
        for first in range(0, config.num_of_patients, config.buffer_size)
    ]
    paths = [partial / f"part-{number:05d}.parquet" for number in range(len(shards))]
    missing = [
        (path, shard)
        for path, shard in zip(paths, shards, strict=True)
        if not path.is_file()
    ]
    sampler = Sampler(model, grammar, config, prompts)
    found: dict[int, Sampled] = {}
    waiting = [patient for _, shard in missing for patient in shard]
    with (
        torch.inference_mode(),
        tqdm(total=config.num_of_patients, unit=" patients", mininterval=2) as progress,
    ):
        progress.update(config.num_of_patients - len(waiting))
        for sampled in sampler.run(waiting):
            found[sampled.patient] = sampled
            progress.update()
            while missing and all(p in found for p in missing[0][1]):
                path, shard = missing.pop(0)
                write_shard(path, [found.pop(p) for p in shard], grammar)
    result = total_counts(partial, grammar.fingerprint)
    begun.unlink()
    for count in partial.glob("part-*.json"):
        count.unlink()
    write_manifest(
        partial,
        step="sample",
        settings=settings,
        inputs=inputs,
        started=started,
        result=result,
    )
    if not (output / "vocabulary").exists():
        with whole_folder(output / "vocabulary") as copied:
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


def total_counts(folder: Path, fingerprint: str) -> dict[str, float | int | str]:
    """Add up the counts that were written with each shard."""
    shards = [
        json.loads(path.read_text()) for path in sorted(folder.glob("part-*.json"))
    ]
    total: dict[str, float | int | str] = {
        name: sum(shard[name] for shard in shards) for name in shards[0]
    }
    # share of all probability that rare tokens would have had
    total["rare_probability"] = round(
        float(total["rare_probability"]) / max(int(total["tokens"]), 1), 6
    )
    total["vocabulary"] = fingerprint
    return total
