"""The settings of training: our own, transformers', and the tutorial's names for them.

Knows flags and their defaults; nothing of data or models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from omop_gpt.canaries import MULTIPLICITIES, TOKENS
from omop_gpt.flags import flag, unknown_flag
from omop_gpt.step import InputError

MODEL_TYPES = ("gpt2", "llama", "qwen3")

# Where a model from scratch wants another value than transformers' fine-tuning one.
DEFAULTS: dict[str, Any] = {
    "do_train": True,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.1,
    "adam_beta2": 0.98,
    "num_train_epochs": 10.0,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_steps": 25,
    "log_level": "error",
    "disable_tqdm": True,
    "greater_is_better": False,  # every metric here is a loss
    "restore_callback_states_from_checkpoint": True,
    "ddp_find_unused_parameters": False,
    "bf16": None,  # decided by the machine
}
REFUSED = {
    "do_train": "`train` does nothing else",
    "report_to": "nothing is sent anywhere; read training/metrics.jsonl",
    "push_to_hub": "nothing is sent anywhere",
    "auto_find_batch_size": "lower --max_tokens_per_batch instead",
    "train_sampling_strategy": "patients are shuffled",
    "dataloader_drop_last": "no patient is dropped",
}
# What may differ when a training that was cut off goes on.
FREE_SETTINGS = (
    "data_folder",
    "dataset_prepared_path",
    "tokenizer_name_or_path",
    "model_name_or_path",
    "keep_checkpoints",
    "output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "run_name",
    "disable_tqdm",
    "debug",
    "local_rank",
    "project",
)
FREE_PREFIXES = ("dataloader_", "log_", "logging_", "hub_", "trackio_", "ddp_")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `train` needs beside transformers' TrainingArguments."""

    data_folder: str = flag("The patient_sequence folder, or its train folder.")
    model_name_or_path: str | None = flag(
        "A model folder to train further; without a config.json in it a new model is "
        "made, or its unfinished training goes on.",
        None,
    )
    tokenizer_name_or_path: str | None = flag(
        "Where vocabulary/ lies, if not beside the data.", None
    )
    dataset_prepared_path: str | None = flag(
        "A folder that keeps the sequences as they were cut, for the next time.", None
    )
    model_type: str = flag("Family of a new model: gpt2, llama or qwen3.", "llama")
    hidden_size: int = flag("Width of the model.", 256)
    num_hidden_layers: int = flag("Number of layers.", 4)
    num_attention_heads: int = flag("Attention heads; they share hidden_size.", 4)
    max_position_embeddings: int = flag(
        "Context in tokens; longer histories are cut into chunks.", 1024
    )
    dropout: float = flag("Dropout, wherever the family has one.", 0.0)
    tie_word_embeddings: bool = flag(
        "Read and write tokens with the same weights.", True
    )
    sample_packing: bool = flag(
        "Pack patients into batches without padding; otherwise "
        "per_device_train_batch_size of them are padded.",
        True,
    )
    max_tokens_per_batch: int | None = flag(
        "Most tokens in a packed batch; by default as many as make some 2,000 steps of "
        "the training, between 1,024 (or one context) and 16,384.",
        None,
    )
    use_early_stopping: bool = flag(
        "Stop when the validation loss no longer falls.", False
    )
    early_stopping_threshold: float = flag("Nats per token that count as a fall.", 0.0)
    early_stopping_patience: int = flag("Evaluations without a fall that stop it.", 1)
    keep_checkpoints: bool = flag("Leave checkpoint-* folders at the end.", False)
    canaries: int = flag(
        "Made-up patients to train on as well, a fifth each once, 2, 4, 8 and 16 "
        "times: evaluate tells what was learnt by heart. Not for a release.",
        0,
    )

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        if self.model_type not in MODEL_TYPES:
            raise InputError(
                f"--model_type {self.model_type}: name {', '.join(MODEL_TYPES)}."
            )
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "max_tokens_per_batch",
            "early_stopping_patience",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise InputError(
                f"--hidden_size {self.hidden_size} must be a multiple of twice "
                f"--num_attention_heads {self.num_attention_heads}."
            )
        most, context = self.max_tokens_per_batch, self.max_position_embeddings
        if self.sample_packing and most is not None and most < context:
            raise InputError(
                f"--max_tokens_per_batch {most} cannot hold one context of "
                f"--max_position_embeddings {context}."
            )
        if self.canaries < 0 or self.canaries % len(MULTIPLICITIES):
            raise InputError(
                f"--canaries {self.canaries}: 0, or a multiple of "
                f"{len(MULTIPLICITIES)}."
            )
        if self.canaries and context < TOKENS:
            raise InputError(
                f"--canaries have up to {TOKENS} tokens: raise "
                f"--max_position_embeddings {context}."
            )
        if not 0 <= self.dropout < 1:
            raise InputError("--dropout must be at least 0 and below 1.")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message} (--help lists the flags)")


def parse(argv: Sequence[str]) -> tuple[TrainConfig, TrainingArguments]:
    """Read the command line: `[settings.yaml] --flag value ...`, flags override.

    Raises InputError for an unknown flag, a wrong value or an unreadable file.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = _yaml_flags(argv[0]) + argv[1:]
    parser = _Parser(
        [TrainConfig, TrainingArguments],
        prog="omop-gpt train",
        usage="%(prog)s [settings.yaml] --data_folder DIR --output_dir DIR ...",
        allow_abbrev=False,
    )
    # The tutorial's names, which transformers 5 has renamed.
    parser.add_argument(
        "--evaluation_strategy",
        "--evaluation-strategy",
        dest="eval_strategy",
        default=argparse.SUPPRESS,
        help="The same as eval_strategy.",
    )
    parser.add_argument(
        "--warmup_ratio",
        "--warmup-ratio",
        dest="warmup_steps",
        type=_ratio,
        default=argparse.SUPPRESS,
        help="Share of the steps that warm up.",
    )
    parser.set_defaults(**DEFAULTS)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unknown_flag("train", unknown[0], vars(namespace)))
    values = vars(namespace)
    if not values["output_dir"]:
        raise InputError("train needs --output_dir: the folder for the model.")
    ours = {f.name: values.pop(f.name) for f in dataclasses.fields(TrainConfig)}
    return TrainConfig(**ours), training_arguments(**values)


def _ratio(text: str) -> float:
    ratio = float(text)
    if not 0 <= ratio < 1:
        raise argparse.ArgumentTypeError("it must be at least 0 and below 1")
    return ratio


def _yaml_flags(path: str) -> list[str]:
    """Return the settings of a YAML file as command-line words."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: train reads it as YAML.") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError):
        raise InputError(f"{path} is not a YAML file of flags and values.") from None
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} must hold lines such as `learning_rate: 0.001`.")
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        else:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return words


def training_arguments(**settings: Any) -> TrainingArguments:
    """Return transformers' TrainingArguments with this project's defaults.

    Raises InputError where transformers refuses the values, or the project does.
    """
    settings = DEFAULTS | settings
    on_cuda = torch.cuda.is_available() and not settings.get("use_cpu")
    if settings["bf16"] is None:
        supported = torch.cuda.is_bf16_supported() if on_cuda else _cpu_has_bf16()
        settings["bf16"] = supported and not settings.get("fp16")
    if settings["bf16"] and not on_cuda:
        settings["use_cpu"] = True  # transformers wants it said
    if not on_cuda:
        settings["dataloader_pin_memory"] = False
    if not settings.get("dataloader_num_workers"):
        # It would be an error, yet the tutorial's users turn workers off first.
        settings["dataloader_prefetch_factor"] = None
    try:
        arguments = TrainingArguments(**settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"train: {' '.join(str(error).split())}") from None
    usual = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    usual |= {"do_train": True, "report_to": []}
    for name, reason in REFUSED.items():
        if getattr(arguments, name) != usual[name]:
            raise InputError(f"train takes no other --{name}: {reason}.")
    return arguments


def _cpu_has_bf16() -> bool:
    """Say whether the processor multiplies matrices faster in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def deciding_settings(
    config: TrainConfig, arguments: TrainingArguments
) -> dict[str, Any]:
    """Return the settings that decide what is learnt, as JSON values."""
    every = dataclasses.asdict(config) | arguments.to_dict()
    every = json.loads(json.dumps(every, default=str))
    return {
        name: value
        for name, value in sorted(every.items())
        if name not in FREE_SETTINGS and not name.startswith(FREE_PREFIXES)
    }
