"""Show how training goes: a line a log, metrics.jsonl, and the losses as a picture."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers import TrainerCallback, TrainerState

log = logging.getLogger(__name__)


class Progress(TrainerCallback):
    """Say how training goes, one line a log, and keep it in metrics.jsonl."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tokens = 0
        self.seconds = self.total_seconds = 0.0
        self.steps = 0
        self.since = time.perf_counter()

    def tokens_per_second(self) -> float:
        """Return the rate since the last call, without evaluation and saving."""
        self._tick()
        rate = self.tokens / max(self.seconds, 1e-9)
        self.tokens, self.seconds = 0, 0.0
        return rate

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.total_seconds += now - self.since
        self.since = now

    def on_train_begin(
        self, _args: Any, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        """Keep of metrics.jsonl what the checkpoint knows."""
        self.since = time.perf_counter()
        if state.is_world_process_zero:
            write_metrics(state.log_history, self.file)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count the step and its time."""
        self.steps += 1
        self._tick()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Leave the time of an evaluation out of the rate."""
        self.since = time.perf_counter()

    on_save = on_evaluate

    def on_log(
        self,
        _args: Any,
        state: TrainerState,
        _control: Any,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write the record to metrics.jsonl and a line for people."""
        if not state.is_world_process_zero or not logs or not _is_metric(logs):
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(_line(state.log_history[-1]))
        line = f"step {state.global_step:,}/{state.max_steps:,}"
        line += f", epoch {state.epoch or 0:.2f}: "
        if "eval_loss" in logs:
            line += (
                f"validation loss {logs['eval_loss']:.4f} nats per token, "
                f"{logs['eval_nats_per_patient']:.2f} nats per patient"
            )
        else:
            left = state.max_steps - state.global_step
            seconds = left * self.total_seconds / max(self.steps, 1)
            line += (
                f"loss {logs['loss']:.4f}, lr {logs['learning_rate']:.2e}, "
                f"{logs['tokens_per_second']:,.0f} tokens/s, "
                f"{_duration(seconds)} left"
            )
        log.info(line)


def _is_metric(record: Mapping[str, Any]) -> bool:
    return "loss" in record or "eval_loss" in record


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def write_metrics(log_history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the losses that were logged, one JSON object a line."""
    lines = "".join(_line(record) for record in log_history if _is_metric(record))
    file.write_text(lines, encoding="utf-8")


def draw_losses(log_history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw training and validation loss over the steps, as a PNG picture."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (
        ("loss", "training", "-"),
        ("eval_loss", "validation", "o-"),
    ):
        points = [(r["step"], r[name]) for r in log_history if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(file)
