"""Slots that sample new histories: the batch stays full, the grammar holds.

Each patient has a random stream of its own, counted by its tokens: the same patients
come out whatever shard, refill order or interruption. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import (
    EpsilonLogitsWarper,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from omop_gpt.flags import flag
from omop_gpt.grammar import Grammar
from omop_gpt.mask import Mask
from omop_gpt.slots import Slots
from omop_gpt.step import InputError

STRATEGIES = ("TopPStrategy", "TopKStrategy", "TopMixStrategy")
PROMPT_TOKENS = 6  # [BOS] year age gender race ethnicity
# Longest run of tokens without a place to cut: an event with its fields, a move, ...
LONGEST_UNCUT = 24
SHORTEST_CONTEXT = 64  # holds a later chunk's prompt, such a run, and some more


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sample new sequences from a trained model."""

    model_folder: str = flag("Folder of a trained model.")
    output_folder: str = flag("Where generated_sequences/ and vocabulary/ are written.")
    num_of_patients: int = flag("Patients to sample: exactly so many come out.")
    tokenizer_folder: str = flag("Folder of the vocabulary; the model's if empty.", "")
    batch_size: int = flag("Patients that are sampled at once.", 64)
    buffer_size: int = flag("Patients in one Parquet file.", 1280)
    context_window: int = flag("Tokens that the model sees; 0: all it can.", 0)
    sampling_strategy: str = flag(f"One of {', '.join(STRATEGIES)}.", "TopPStrategy")
    top_p: float = flag("Keep the likeliest tokens that reach this probability.", 1.0)
    top_k: int = flag("Keep so many of the likeliest tokens.", 100)
    temperature: float = flag("Below 1 sharper, above 1 flatter.", 1.0)
    repetition_penalty: float = flag("Above 1: repeat less.", 1.0)
    epsilon_cutoff: float = flag("Drop tokens less likely than this.", 0.0)
    demographic_data_path: str = flag(
        "Sequences whose demographics are drawn as prompts; empty: the model's own.", ""
    )
    max_tokens_per_patient: int = flag(
        "Tokens after which a history must end; 0: the longest of training.", 0
    )
    min_persons: int = flag(
        "Event and value tokens that fewer training persons have are not written.", 5
    )
    use_mask: bool = flag("Hold the grammar; false shows what it prevents.", True)
    seed: int = flag("Seed: the same one gives the same patients.", 42)

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.sampling_strategy not in STRATEGIES:
            raise InputError(
                f"--sampling_strategy {self.sampling_strategy}: "
                f"one of {', '.join(STRATEGIES)}."
            )
        for name, low in (
            ("num_of_patients", 1), ("batch_size", 1), ("buffer_size", 1),
            ("context_window", 0), ("max_tokens_per_patient", 0), ("top_k", 1),
            ("min_persons", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise InputError(f"--{name} {getattr(self, name)}: at least {low}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top_p {self.top_p}: above 0, at most 1.")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} {getattr(self, name)}: above 0.")
        if not 0 <= self.epsilon_cutoff < 1:
            raise InputError(f"--epsilon_cutoff {self.epsilon_cutoff}: 0 to below 1.")
        if 0 < self.context_window < SHORTEST_CONTEXT:
            raise InputError(
                f"--context_window {self.context_window}: at least {SHORTEST_CONTEXT}."
            )


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One history, and what happened on the way."""

    patient: int
    token_ids: np.ndarray  # (T,) int32
    contexts: int  # chunks that the model saw it in
    ended_by_limit: bool
    rare_probability: float  # taken from rare tokens, summed over the tokens


@dataclass
class Row:
    """What Python must know of a slot."""

    patient: int = -1  # -1: idle
    contexts: int = 1
    forced: list[int] = field(default_factory=list)


def stream(seed: int, patient: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Draw one uniform number per row from (seed, patient, token count): (B,) float64.

    A counter-based generator (two rounds of SplitMix64's finaliser): no state to keep,
    none to restore.
    """
    mixed = patient * -7046029254386353131 + count * -4417276706812531889
    # Python's integers do not wrap as a tensor's do
    mixed = mixed + (seed * 9782798678568883157 + 2**63) % 2**64 - 2**63
    for _ in range(2):
        mixed = (mixed ^ ((mixed >> 30) & ((1 << 34) - 1))) * -4658895280553007687
        mixed = (mixed ^ ((mixed >> 27) & ((1 << 37) - 1))) * -7723592293110705685
        mixed = mixed ^ ((mixed >> 31) & ((1 << 33) - 1))
    return ((mixed >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def warpers(config: SampleConfig) -> LogitsProcessorList:
    """Choose transformers' own processors for the flags that are set."""
    chosen = LogitsProcessorList()
    strategy = config.sampling_strategy
    if config.repetition_penalty != 1:
        chosen.append(
            RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty))
        )
    if config.temperature != 1:
        chosen.append(TemperatureLogitsWarper(float(config.temperature)))
    if strategy in ("TopKStrategy", "TopMixStrategy"):
        chosen.append(TopKLogitsWarper(config.top_k))
    if strategy in ("TopPStrategy", "TopMixStrategy") and config.top_p < 1:
        chosen.append(TopPLogitsWarper(config.top_p))
    if config.epsilon_cutoff > 0:
        chosen.append(EpsilonLogitsWarper(config.epsilon_cutoff))
    return chosen


class Sampler:
    """B slots that sample patients until all are done."""

    def __init__(
        self,
        model: PreTrainedModel,
        grammar: Grammar,
        config: SampleConfig,
        prompts: np.ndarray | None = None,
    ) -> None:
        """Allocate the slots. `prompts`: (N, 6) demographics to draw from, or None.

        Raises InputError for a model that sees too little to go on with a history.
        """
        self.model, self.grammar, self.config = model, grammar, config
        self.prompts = prompts
        self.device = model.device
        rows = config.batch_size
        limit = int(model.config.max_position_embeddings)
        self.width = min(config.context_window or limit, limit)
        if self.width < SHORTEST_CONTEXT:
            raise InputError(
                f"the model sees only {limit} tokens: "
                f"train with --max_position_embeddings {SHORTEST_CONTEXT} or more."
            )
        self.mask = Mask(
            grammar,
            rows=rows,
            device=self.device,
            min_persons=config.min_persons,
            max_tokens=config.max_tokens_per_patient or None,
        )
        self.slots = Slots(model.config, rows, self.width, self.device, model.dtype)
        self.warpers = warpers(config)
        self.rare = torch.zeros(rows, device=self.device)
        self.rows = [Row() for _ in range(rows)]
        self.patient = torch.full((rows,), -1, dtype=torch.long, device=self.device)
        self.history = torch.full(
            (rows, self.width), grammar.pad_id, dtype=torch.long, device=self.device
        )
        may_cut = np.isin(grammar.places, ("between", "visit", "loose"))
        self.may_cut = torch.as_tensor(may_cut, device=self.device)
        cuts = (grammar.roles == "gap") | grammar.has_kind("hour", "event")
        self.cuts = torch.as_tensor(cuts, device=self.device)

    def run(self, patients: list[int]) -> Iterator[Sampled]:
        """Sample these patients; yields each as it is done."""
        waiting = iter(patients)
        left = len(patients)
        rows = len(self.rows)
        tokens = torch.full((rows,), self.grammar.bos_id, device=self.device)
        position = torch.zeros(rows, dtype=torch.long, device=self.device)
        forced = torch.zeros(rows, dtype=torch.bool, device=self.device)
        everyone = torch.arange(rows, device=self.device)
        self.begin(everyone, waiting, tokens, position)
        forced_rows = {r for r in range(rows) if self.rows[r].forced}
        while left:
            logits = self.forward(tokens, position)
            position += 1
            place = self.mask.state
            sampled, ending, rare = self.draw(logits)
            forced.zero_()
            for r in list(forced_rows):
                sampled[r] = self.rows[r].forced.pop(0)
                rare[r] = 0  # nothing was drawn
                # a prompt of demographics is part of the history, a later chunk's not
                forced[r] = self.rows[r].contexts > 1
                if not self.rows[r].forced:
                    forced_rows.discard(r)
            self.rare += rare
            written = ~forced
            self.write(sampled, written)
            finished = self.mask.state == self.mask.finish
            full = position >= self.width - LONGEST_UNCUT
            if self.config.use_mask:
                cut = full & written & self.may_cut[place] & self.cuts[sampled]
                cut &= ~finished
            else:
                cut = torch.zeros_like(full)
                ending = position >= self.width
                finished = ending | (sampled == self.grammar.eos_id)
            tokens = sampled
            done = finished.nonzero()[:, 0]
            if len(done):
                for r in done.tolist():
                    if self.rows[r].patient >= 0:
                        left -= 1
                        yield self.finish(r, ended_by_limit=bool(ending[r]))
                self.begin(done, waiting, tokens, position)
                forced_rows |= {r for r in done.tolist() if self.rows[r].forced}
            for r in cut.nonzero()[:, 0].tolist():
                self.refill(r, tokens, position)
                forced_rows.add(r)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Feed one token per row (B,) at its position (B,); returns logits (B, V)."""
        self.slots.place(position)
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=position[:, None],
            past_key_values=self.slots,
            use_cache=True,
            slots=self.slots,
        )
        return output.logits[:, -1].float()

    def draw(
        self, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sample the next token of each row: (B,) int64.

        Returns also whether the row must end (B,) bool, and the probability that its
        rare tokens would have had (B,).
        """
        rare = torch.zeros_like(self.rare)
        ending = torch.zeros_like(self.patient, dtype=torch.bool)
        if self.config.use_mask:
            allowed, known, ending = self.mask.allowed()
            before = logits.masked_fill(~known, -torch.inf).logsumexp(-1)
            logits = logits.masked_fill(~allowed, -torch.inf)
            share = 1 - (logits.logsumexp(-1) - before).clamp(max=0).exp()
            rare = torch.where(ending, rare, share)
        logits = self.warpers(self.history, logits)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        uniform = stream(self.config.seed, self.patient, self.mask.count)
        # just below the sum: rounding must never pick a token of probability 0
        target = uniform * cumulative[:, -1] * (1 - 2.0**-50)
        sampled = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        return sampled, ending, rare

    def write(self, token_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Append a token to the histories of some rows: (B,) ids, (B,) bool."""
        where = self.mask.count.clone()
        self.mask.advance(token_ids, rows)
        if int(where.max()) >= self.history.shape[1]:
            self.history = torch.nn.functional.pad(
                self.history, (0, self.history.shape[1]), value=self.grammar.pad_id
            )
        index = torch.arange(len(rows), device=self.device)
        kept = self.history[index, where]
        self.history[index, where] = torch.where(rows, token_ids, kept)

    def begin(
        self,
        rows: torch.Tensor,
        waiting: Iterator[int],
        tokens: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        """Start the next patients in some rows, or leave them idle."""
        self.mask.reset(rows)
        self.rare[rows] = 0
        self.history[rows] = self.grammar.pad_id  # repetition_penalty reads it
        tokens[rows] = self.grammar.bos_id
        position[rows] = 0
        chosen = torch.zeros(len(self.rows), dtype=torch.bool, device=self.device)
        chosen[rows] = True
        for r in rows.tolist():
            patient = next(waiting, -1)
            self.rows[r] = Row(patient=patient, forced=self.prompt(patient))
            self.patient[r] = patient
        self.write(torch.full_like(tokens, self.grammar.bos_id), chosen)

    def prompt(self, patient: int) -> list[int]:
        """Demographics that a patient starts with, after [BOS]; none: the model's."""
        if self.prompts is None or patient < 0:
            return []
        numbers = torch.tensor([patient]), torch.tensor([-1])
        uniform = float(stream(self.config.seed, *numbers))
        return self.prompts[int(uniform * len(self.prompts))][1:].tolist()

    def finish(self, r: int, *, ended_by_limit: bool) -> Sampled:
        """Take the history of a row."""
        length = int(self.mask.count[r])
        return Sampled(
            patient=self.rows[r].patient,
            token_ids=self.history[r, :length].cpu().numpy().astype(np.int32),
            contexts=self.rows[r].contexts,
            ended_by_limit=ended_by_limit,
            rare_probability=float(self.rare[r]),
        )

    def refill(self, r: int, tokens: torch.Tensor, position: torch.Tensor) -> None:
        """Start a new context with a [CONT] prompt and the token just sampled."""
        length = int(self.mask.count[r])
        history = self.history[r, :length].cpu().numpy()
        cut = self.grammar.cut_before(history, length - 1)
        prompt = self.grammar.continuation(cut, int(history[-1]))
        tokens[r] = prompt[0]
        position[r] = 0
        self.rows[r].contexts += 1
        self.rows[r].forced = [*prompt[1:], int(history[-1])]
