"""The model, and transformers' Trainer on batches of whole patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
)
from transformers.trainer_utils import EvalLoopOutput

from omop_gpt.grammar import Grammar
from omop_gpt.packing import Chunks, Packs, packed_attention
from omop_gpt.progress import Progress
from omop_gpt.settings import TrainConfig
from omop_gpt.step import InputError

ATTENTION = "omop_gpt_packed"
FINGERPRINT = "omop_gpt_fingerprint"
AttentionInterface.register(ATTENTION, packed_attention)


def build_model(
    config: TrainConfig, grammar: Grammar, pretrained: Path | None = None
) -> PreTrainedModel:
    """Return a new model for this vocabulary, or the one in `pretrained`.

    Its attention keeps to each patient of a packed batch. Raises InputError if
    `pretrained` was trained with another vocabulary.
    """
    if pretrained:
        check_vocabulary(pretrained, grammar)
        return AutoModelForCausalLM.from_pretrained(
            pretrained,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            local_files_only=True,
        )
    if config.model_type == "gpt2":
        places = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        family = dict.fromkeys(places, config.dropout)
    else:
        family = {
            # Three matrices of 8/3 cost what GPT-2's two of 4 do; 32 keeps them even.
            "intermediate_size": 32 * -(-config.hidden_size * 8 // (3 * 32)),
            "num_key_value_heads": config.num_attention_heads,
            "head_dim": config.hidden_size // config.num_attention_heads,
            "attention_dropout": config.dropout,
        }
    model_config = AutoConfig.for_model(
        config.model_type,
        vocab_size=grammar.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        pad_token_id=grammar.pad_id,
        bos_token_id=grammar.bos_id,
        eos_token_id=grammar.eos_id,
        **family,
    )
    setattr(model_config, FINGERPRINT, grammar.fingerprint)
    return AutoModelForCausalLM.from_config(
        model_config, attn_implementation=ATTENTION, dtype=torch.float32
    )


def check_vocabulary(model_folder: Path, grammar: Grammar) -> None:
    """Raise InputError if the model's vocabulary is not this one."""
    written = json.loads((model_folder / "config.json").read_text()).get(FINGERPRINT)
    if written != grammar.fingerprint:
        raise InputError(
            f"{model_folder} was trained with another vocabulary than "
            f"{grammar.folder}: give its own data, or name another --output_dir."
        )


class PatientTrainer(Trainer):
    """transformers' Trainer on batches of whole patients."""

    def __init__(
        self,
        *,
        train_batches: Packs,
        eval_batches: Packs | None,
        progress: Progress,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            train_dataset=train_batches.chunks,
            eval_dataset=eval_batches and eval_batches.chunks,
            callbacks=[progress, *kwargs.pop("callbacks", [])],
            **kwargs,
        )
        self.remove_callback(PrinterCallback)
        self.train_batches = train_batches
        self.eval_batches = eval_batches
        self.progress = progress

    def get_train_dataloader(self) -> DataLoader:
        """Return the packed batches of the training split."""
        return self._loader(self.train_batches)

    def get_eval_dataloader(self, *_: Any) -> DataLoader:
        """Return the packed batches of the validation split."""
        return self._loader(self.eval_batches)

    def _loader(self, batches: Packs) -> DataLoader:
        loader = DataLoader(
            batches.chunks,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            pin_memory=self.args.dataloader_pin_memory,
            # Its own, so that starting a loader does not shift the model's dropout.
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Count the batch's tokens on the host, then train on it."""
        self.progress.tokens += inputs.pop("token_count") * self.args.world_size
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the rate to what transformers logs."""
        if "loss" in logs:
            logs["tokens_per_second"] = round(self.progress.tokens_per_second(), 1)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        *_: Any,
        metric_key_prefix: str = "eval",
        **__: Any,
    ) -> EvalLoopOutput:
        """Sum nats over the split: transformers averages batches, however full."""
        self.model_wrapped.eval()
        nats = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            del inputs["token_count"]
            loss = self.model_wrapped(**inputs, num_items_in_batch=1).loss
            nats += loss.double()
        total = float(self.accelerator.reduce(nats, "sum"))
        chunks: Chunks = dataloader.dataset
        metrics = {
            f"{metric_key_prefix}_loss": total / chunks.predicted,
            f"{metric_key_prefix}_nats_per_patient": total / chunks.patients,
        }
        return EvalLoopOutput(None, None, metrics, chunks.patients)
