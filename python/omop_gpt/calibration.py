"""What a model's guesses are put right by while it samples.

Training fits it on the validation split when it ends, and keeps it in files of the
model's folder; the weights stay those that were learnt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import LogitsProcessor, PreTrainedModel

from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.novelty import NoveltyProcessor, Weights, fit_novelty
from omop_gpt.seasons import SeasonProcessor, Seasons, fit_seasons
from omop_gpt.stays import StayProcessor, Stays, fit_stays
from omop_gpt.step import write_json

if TYPE_CHECKING:
    from omop_gpt.sampler import SampleConfig


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How odds are scaled; what is empty leaves the model's as they are.

    `novelty`: those of events that are new to a patient. `seasons`: what each month
    adds to those of events. `stays`: what is added to those that a visit ends.
    """

    novelty: Weights = field(default_factory=dict)
    seasons: Seasons = field(default_factory=dict)
    stays: Stays = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        grammar: Grammar,
        training: Iterable[np.ndarray],
        held_out: Sequence[np.ndarray],
    ) -> Calibration:
        """Fit it to histories that the model did not see; (T,) ids each."""
        return cls(
            novelty=fit_novelty(model, grammar, held_out),
            seasons=fit_seasons(model, grammar, training, held_out),
            stays=fit_stays(model, grammar, held_out),
        )

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """Return what a model's folder has of it."""
        files = {f.name: folder / f"{f.name}.json" for f in fields(cls)}
        return cls(
            **{
                name: json.loads(file.read_text())
                for name, file in files.items()
                if file.is_file()
            }
        )

    def write(self, folder: Path) -> None:
        """Keep it in a model's folder."""
        for name, value in asdict(self).items():
            write_json(folder / f"{name}.json", value)

    def processors(
        self, config: SampleConfig, grammar: Grammar, mask: Mask
    ) -> list[LogitsProcessor]:
        """Return what scales the scores of the rows of a mask, as far as is asked."""
        made: list[LogitsProcessor] = []
        if self.seasons and config.scale_seasons:
            made.append(SeasonProcessor(self.seasons, grammar, mask))
        if self.novelty and config.scale_novelty:
            made.append(NoveltyProcessor(self.novelty, grammar))
        if self.stays and config.scale_stays:
            made.append(StayProcessor(self.stays, grammar, mask))
        return made
