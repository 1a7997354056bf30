"""Train a GPT on patient sequences: one of transformers' models, by its Trainer.

Finds the data, goes on where a training was cut off, writes the model's folder. What
token ids mean is the grammar's business and is copied beside the weights.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoConfig,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging as transformers_logging

from omop_gpt.calibration import Calibration
from omop_gpt.canaries import (
    draw_canaries,
    insert_canaries,
    read_canaries,
    write_canaries,
)
from omop_gpt.grammar import Grammar, save_tokenizer
from omop_gpt.nats import baselines
from omop_gpt.packing import Chunks, Packs, Pad, pack, read_chunks, read_histories
from omop_gpt.progress import Progress, draw_losses, write_metrics
from omop_gpt.settings import TrainConfig, deciding_settings, parse, training_arguments
from omop_gpt.step import (
    InputError,
    files_fingerprint,
    is_done,
    read_manifest,
    write_manifest,
)
from omop_gpt.trainer import PatientTrainer, build_model, check_vocabulary

__all__ = ["TrainConfig", "parse", "train", "train_step", "training_arguments"]

log = logging.getLogger(__name__)

STEPS = 2000
CALIBRATING = 2000  # patients of validation that what the model expects is fitted to
COUNTED = 100_000  # of training, whose months are: half a minute
SMALLEST_PACK, LARGEST_PACK = 1024, 16_384  # tokens


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be trained on, and all that decides the result."""

    grammar: Grammar
    train_folder: Path
    validation_folder: Path
    start_model: Path | None
    job: dict[str, Any]  # step, settings and inputs, as a manifest says them


def train_step(config: TrainConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """Train, unless it was done; say in manifest.json what was done.

    Returns the counts and losses of `train`. Raises InputError as `train` does, and
    if the folder holds a model made with other settings or data.
    """
    started = time.time()
    out = Path(arguments.output_dir)
    work = _work(config, arguments)
    if is_done(out, **work.job):
        log.info("train: done before, in %s", out)
        result = read_manifest(out)["result"]
    else:
        result = train(config, arguments)
        if arguments.process_index == 0:
            write_manifest(out, **work.job, started=started, result=result)
    if arguments.process_index == 0 and not config.keep_checkpoints:
        for checkpoint in _checkpoints(out):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return result


def train(config: TrainConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """Train a model and write it to `arguments.output_dir`; return counts and losses.

    The folder then is a plain Hugging Face one, with `vocabulary/` and `training/`
    (metrics.jsonl, loss.png) inside. A training that was cut off goes on from its
    last checkpoint and ends with the same weights; its checkpoints stay. Raises
    InputError for missing or unfit data, another vocabulary, or a folder that holds
    a training with other settings.
    """
    started = time.time()
    arguments = copy.copy(arguments)
    transformers_logging.set_verbosity(arguments.get_process_log_level())
    transformers_logging.disable_progress_bar()
    if arguments.process_index:
        log.setLevel(logging.WARNING)  # one process speaks for all
    out = Path(arguments.output_dir)
    work = _work(config, arguments)
    with arguments.main_process_first(desc="data"):
        checkpoint = _checkpoint(config, arguments)
        if checkpoint:
            check_vocabulary(checkpoint, work.grammar)
        _check_folder(out, checkpoint, work.job)
        canaries = _canaries(config, work, arguments.seed)
        train_chunks, eval_chunks = (
            read_chunks(
                folder,
                work.grammar,
                max_tokens=_context(config, work.start_model),
                cache=config.dataset_prepared_path,
            )
            for folder in (work.train_folder, work.validation_folder)
        )
        if not len(train_chunks):
            raise InputError(
                f"{work.train_folder} holds no patients: `omop-gpt encode` writes them."
            )
        if arguments.process_index == 0:
            (out / "training").mkdir(parents=True, exist_ok=True)
            # What was begun, so that only the same goes on here.
            write_manifest(out / "training", **work.job, started=started, result={})

    callbacks = _callbacks(config, arguments, has_validation=len(eval_chunks) > 0)
    if arguments.n_gpu > 1:
        log.info("one GPU of %d is used: torchrun uses them all", arguments.n_gpu)
        arguments._n_gpu = 1
    set_seed(arguments.seed)
    model = build_model(config, work.grammar, work.start_model)
    learnt = (
        insert_canaries(train_chunks, canaries) if config.canaries else train_chunks
    )
    train_batches, eval_batches = _batches(config, arguments, learnt, eval_chunks)
    _announce(model, arguments, train_chunks, eval_chunks)
    if config.canaries:
        log.info(
            f"canaries: {config.canaries:,} made-up patients, seen "
            f"{len(learnt) - len(train_chunks):,} times an epoch; not for a release"
        )
    counted = {}
    if eval_batches and arguments.process_index == 0:
        counted = baselines(train_chunks, eval_chunks, work.grammar.vocab_size)
    pad = Pad(pad_id=work.grammar.pad_id)
    trainer = PatientTrainer(
        model=model,
        args=arguments,
        train_batches=train_batches,
        eval_batches=eval_batches,
        progress=Progress(out / "training" / "metrics.jsonl"),
        data_collator=pack if config.sample_packing else pad,
        callbacks=callbacks,
    )
    if checkpoint:
        log.info("goes on from %s", checkpoint)
    if checkpoint and _had_stopped(checkpoint):
        _load_stopped(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    validation = _validation(trainer) if eval_batches else {}
    if arguments.process_index == 0:
        calibration = _calibrated(trainer, work)
        _write_model(trainer, work.grammar, canaries, calibration, out)
    trainer.accelerator.wait_for_everyone()
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    nats = {"model": validation.get("eval_nats_per_patient"), **counted}
    if eval_batches:
        told = ", ".join(f"{name} {value:.1f}" for name, value in nats.items() if value)
        log.info("nats per validation patient: %s", told)
    return {
        "patients": train_chunks.patients,
        "canary_copies": len(learnt) - len(train_chunks),
        "chunks": len(train_chunks),
        "tokens_predicted": train_chunks.predicted,
        "validation_patients": eval_chunks.patients,
        "validation_tokens_predicted": eval_chunks.predicted,
        "parameters": model.num_parameters(),
        "vocabulary_size": work.grammar.vocab_size,
        "fingerprint": work.grammar.fingerprint,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": losses[-1] if losses else None,
        "eval_loss": validation.get("eval_loss"),
        "eval_nats_per_patient": nats["model"],
        **{f"{name}_nats_per_patient": value for name, value in counted.items()},
    }


def _work(config: TrainConfig, arguments: TrainingArguments) -> _Work:
    """Find data, vocabulary and start model. Raises InputError where one is unfit."""
    out = Path(arguments.output_dir).resolve()
    for name in ("model_name_or_path", "tokenizer_name_or_path"):
        path = getattr(config, name)
        # The output folder may be named before it is there: the tutorial does.
        if path and not Path(path).is_dir() and Path(path).resolve() != out:
            raise InputError(f"--{name} {path} is no folder: check the path.")
    data = Path(config.data_folder)
    if not data.is_dir():
        raise InputError(
            f"--data_folder {data} does not exist: `omop-gpt encode` makes it."
        )
    train_folder = data / "train" if (data / "train").is_dir() else data
    sequences = train_folder.parent
    vocabularies = _vocabularies(sequences)
    if config.tokenizer_name_or_path:
        vocabularies = _vocabularies(config.tokenizer_name_or_path) + vocabularies
    if not vocabularies:
        raise InputError(
            f"{sequences} holds no vocabulary: give the patient_sequence folder that "
            "`omop-gpt encode` makes, with vocabulary/ beside its splits."
        )
    grammars = [Grammar.load(folder) for folder in vocabularies]
    if len({grammar.fingerprint for grammar in grammars}) > 1:
        raise InputError(
            f"{grammars[0].folder} is another vocabulary than {grammars[1].folder}: "
            "leave out --tokenizer_name_or_path, or give the data it belongs to."
        )
    validation_folder = sequences / "validation"
    files = [*train_folder.glob("*.parquet"), *validation_folder.glob("*.parquet")]
    inputs = [grammars[0].fingerprint, files_fingerprint(files, sequences)]
    start_model = None
    named = config.model_name_or_path and Path(config.model_name_or_path)
    if named and named.resolve() != out and _is_model(named):
        log.info("trains %s further, in its own shape", named)
        start_model = named
        check_vocabulary(start_model, grammars[0])
        inputs.append(files_fingerprint(named.glob("*.safetensors"), named))
    return _Work(
        grammar=grammars[0],
        train_folder=train_folder,
        validation_folder=validation_folder,
        start_model=start_model,
        job={
            "step": "train",
            "settings": deciding_settings(config, arguments),
            "inputs": " ".join(inputs),
        },
    )


def _canaries(config: TrainConfig, work: _Work, seed: int) -> pa.Table | None:
    """Return what the model's folder must tell of canaries.

    Those that are asked for, or those that the start model has seen. Raises InputError
    where both would be.
    """
    seen = work.start_model and read_canaries(work.start_model)
    if not config.canaries:
        return seen
    if seen is not None:
        raise InputError(
            f"{work.start_model} was trained on canaries already: leave out --canaries."
        )
    return draw_canaries(work.grammar, config.canaries, seed)


def _vocabularies(folder: str | Path) -> list[Path]:
    """Return the vocabulary folder that `folder` has or is, if there is one."""
    places = (Path(folder) / "vocabulary", Path(folder))
    return [p for p in places if (p / "vocabulary.parquet").is_file()][:1]


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _context(config: TrainConfig, start_model: Path | None) -> int:
    """Return the number of tokens that the model sees at once."""
    if start_model is None:
        return config.max_position_embeddings
    kept = AutoConfig.from_pretrained(start_model, local_files_only=True)
    context = kept.max_position_embeddings
    most = config.max_tokens_per_batch
    if config.sample_packing and most is not None and most < context:
        raise InputError(
            f"--max_tokens_per_batch {most} cannot hold one context of {start_model}: "
            f"{context} tokens."
        )
    return context


def _checkpoint(config: TrainConfig, arguments: TrainingArguments) -> Path | None:
    """Return the checkpoint to go on from, if there is one."""
    if arguments.resume_from_checkpoint:
        named = Path(arguments.resume_from_checkpoint)
        if not _is_whole(named):
            raise InputError(f"--resume_from_checkpoint {named} is no checkpoint.")
        return named
    folders = [Path(arguments.output_dir)]
    named = config.model_name_or_path and Path(config.model_name_or_path)
    if named and not _is_model(named):
        folders.append(named)
    whole = [c for folder in folders for c in _checkpoints(folder) if _is_whole(c)]
    return whole[0] if whole else None


def _checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, newest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    """Say whether training can go on from here; the state is written last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return (checkpoint / "scheduler.pt").is_file()  # not with --save_only_model


def _check_folder(out: Path, checkpoint: Path | None, job: dict[str, Any]) -> None:
    """Raise InputError if going on here would mix two trainings."""
    folder = checkpoint.parent if checkpoint else out
    if read_manifest(folder / "training"):
        if checkpoint or _is_model(out):
            is_done(folder / "training", **job)
    elif _is_model(out):
        raise InputError(f"{out} holds a model: name another --output_dir.")


def _callbacks(
    config: TrainConfig, arguments: TrainingArguments, *, has_validation: bool
) -> list[TrainerCallback]:
    """Return early stopping where it is asked for; without validation undo it all."""
    if not has_validation:
        log.info(
            "no validation patients: trains without evaluation, early stopping and "
            "choice of the best model"
        )
        arguments.eval_strategy = IntervalStrategy.NO
        arguments.load_best_model_at_end = arguments.eval_on_start = False
        arguments.metric_for_best_model = None
        if arguments.save_strategy == SaveStrategy.BEST:
            arguments.save_strategy = SaveStrategy.EPOCH
        return []
    if not config.use_early_stopping:
        return []
    if arguments.eval_strategy == IntervalStrategy.NO:
        raise InputError("--use_early_stopping needs --evaluation_strategy epoch.")
    if arguments.metric_for_best_model is None:
        arguments.metric_for_best_model = "loss"
    return [
        EarlyStoppingCallback(
            config.early_stopping_patience, config.early_stopping_threshold
        )
    ]


def _batches(
    config: TrainConfig,
    arguments: TrainingArguments,
    train_chunks: Chunks,
    eval_chunks: Chunks,
) -> tuple[Packs, Packs | None]:
    """Deal both splits out into batches, as many as the processes can share evenly."""
    most = config.max_tokens_per_batch
    if most is None:
        most = pack_size(train_chunks, eval_chunks, arguments.num_train_epochs)

    def packs(chunks: Chunks, batch_size: int, **order: int) -> Packs:
        size = (
            {"max_tokens": most}
            if config.sample_packing
            else {"batch_size": batch_size}
        )
        return Packs(chunks, multiple_of=arguments.world_size, **size, **order)

    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    size = arguments.per_device_train_batch_size
    epochs = max(1, -int(-arguments.num_train_epochs // 1))
    if arguments.max_steps > 0:
        batches = arguments.max_steps * arguments.gradient_accumulation_steps
        batches *= arguments.world_size
        epochs = -(-batches // len(packs(train_chunks, size, seed=seed)))
    train_batches = packs(train_chunks, size, seed=seed, epochs=epochs)
    if not len(eval_chunks):
        return train_batches, None
    return train_batches, packs(eval_chunks, arguments.per_device_eval_batch_size)


def pack_size(train_chunks: Chunks, eval_chunks: Chunks, epochs: float) -> int:
    """Return the tokens of a pack with which training takes some STEPS steps.

    Few patients in large packs make few steps, and a model that learns little.
    """
    tokens = train_chunks.lengths.sum() * epochs / STEPS
    longest = max(
        chunks.lengths.max(initial=0) for chunks in (train_chunks, eval_chunks)
    )
    return max(int(longest), min(max(int(tokens), SMALLEST_PACK), LARGEST_PACK))


def _announce(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    train_chunks: Chunks,
    eval_chunks: Chunks,
) -> None:
    for split, chunks in (("train", train_chunks), ("validation", eval_chunks)):
        log.info(
            f"{split}: {chunks.patients:,} patients in {len(chunks):,} chunks, "
            f"{chunks.predicted:,} tokens to predict"
        )
    shape = model.config
    log.info(
        f"model: {shape.model_type}, {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, {model.num_parameters():,} parameters, vocabulary of "
        f"{shape.vocab_size:,}, context of {shape.max_position_embeddings:,}; "
        f"on {arguments.device.type} in {'bfloat16' if arguments.bf16 else 'float32'}"
    )


def _had_stopped(checkpoint: Path) -> bool:
    """Say whether early stopping had ended the training that was cut off later.

    transformers forgets that it had, and would train on.
    """
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    control = state.stateful_callbacks.get(TrainerControl.__name__, {})
    return bool(control.get("args", {}).get("should_training_stop"))


def _load_stopped(trainer: PatientTrainer, checkpoint: Path) -> None:
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and best and Path(best).is_dir():
        checkpoint = Path(best)
    trainer._load_from_checkpoint(str(checkpoint))


def _validation(trainer: PatientTrainer) -> dict[str, float]:
    """Return the validation losses of the weights that are kept."""
    state = trainer.state
    kept = state.global_step
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        kept = state.best_global_step
    for record in reversed(state.log_history):
        if "eval_loss" in record and record["step"] == kept:
            return record
    return trainer.evaluate()


@torch.inference_mode()
def _calibrated(trainer: PatientTrainer, work: _Work) -> Calibration:
    """Return how the model's odds are to be scaled."""

    def histories(folder: Path) -> Iterator[np.ndarray]:
        files = sorted(folder.glob("*.parquet"))
        return (history for _, history in read_histories(files, work.grammar))

    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    log.info("fits the odds of new events, months and stays to validation patients")
    held_out = list(islice(histories(work.validation_folder), CALIBRATING))
    training = islice(histories(work.train_folder), COUNTED)
    return Calibration.fit(model, work.grammar, training, held_out)


def _write_model(
    trainer: PatientTrainer,
    grammar: Grammar,
    canaries: pa.Table | None,
    calibration: Calibration,
    out: Path,
) -> None:
    """Write the model's folder; config.json comes last and says that it is whole."""
    write_metrics(trainer.state.log_history, out / "training" / "metrics.jsonl")
    draw_losses(trainer.state.log_history, out / "training" / "loss.png")
    partial = out / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True  # the Trainer turns it off, a sampler wants it
    model.save_pretrained(partial)
    save_tokenizer(grammar, partial)
    calibration.write(partial)
    shutil.copytree(grammar.folder, partial / "vocabulary")
    if canaries is not None:
        write_canaries(canaries, partial)
    for path in sorted(partial.iterdir(), key=lambda p: p.name == "config.json"):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    partial.rmdir()
    log.info("wrote the model to %s", out)
