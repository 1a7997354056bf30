"""Slots that sample new histories: the batch stays full, the grammar holds.

Each patient has a random stream of its own, counted by its tokens: the same patients
come out whatever shard, refill order or interruption. Knows nothing of files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import (
    EpsilonLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from omop_gpt.calibration import Calibration
from omop_gpt.flags import flag
from omop_gpt.grammar import Grammar, overlap_of
from omop_gpt.mask import Mask
from omop_gpt.prompts import Forecasts, Prompt, Prompts
from omop_gpt.rules import Copies
from omop_gpt.slots import Chunk, Pages, Slots, shape_of
from omop_gpt.step import InputError

STRATEGIES = ("TopPStrategy", "TopKStrategy", "TopMixStrategy")
# Longest run of tokens without a place to cut: an event with its fields, a move, ...
LONGEST_UNCUT = 24
NEVER = 1 << 40  # a day that no history reaches
SHORTEST_CONTEXT = 64  # holds a later chunk's prompt, such a run, and some more


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sample new sequences from a trained model."""

    model_folder: str = flag("Folder of a trained model.")
    output_folder: str = flag("Where generated_sequences/ and vocabulary/ are written.")
    num_of_patients: int = flag("Patients to sample: exactly so many come out.")
    tokenizer_folder: str = flag("Folder of the vocabulary; the model's if empty.", "")
    batch_size: int = flag(
        "Patients that are sampled at once; 0: as many as pay, and memory holds.", 0
    )
    buffer_size: int = flag("Patients in one Parquet file.", 1280)
    context_window: int = flag("Tokens that the model sees; 0: all it can.", 0)
    sampling_strategy: str = flag(f"One of {', '.join(STRATEGIES)}.", "TopPStrategy")
    top_p: float = flag("Keep the likeliest tokens that reach this probability.", 1.0)
    top_k: int = flag("Keep so many of the likeliest tokens.", 100)
    temperature: float = flag("Below 1 sharper, above 1 flatter.", 1.0)
    repetition_penalty: float = flag("Above 1: repeat less.", 1.0)
    epsilon_cutoff: float = flag("Drop tokens less likely than this.", 0.0)
    min_p: float = flag(
        "Drop tokens less likely than this share of the likeliest.", 0.0
    )
    event_min_p: float = flag(
        "Drop events less likely than this share of the likeliest event; dates and "
        "visits keep all of theirs.",
        0.003,
    )
    scale_novelty: bool = flag(
        "Give events that are new to a patient the odds that held-out patients have.",
        True,
    )
    scale_seasons: bool = flag(
        "Give events the months that those of the training have.", True
    )
    scale_stays: bool = flag(
        "Let visits end after as many days as those of held-out patients do.", True
    )
    typical_p: float = flag("Keep the most typical tokens that reach this.", 1.0)
    demographic_data_path: str = flag(
        "Sequences whose demographics are drawn as prompts; empty: the model's own.", ""
    )
    min_age: int = flag("Lowest age at the start of a history; -1000: any.", -1000)
    max_age: int = flag("Highest age at the start of a history.", 1000)
    min_year: int = flag("First year that a history may start in.", 0)
    max_year: int = flag("Last year that a history may start in.", 9999)
    gender_concept_ids: tuple[int, ...] = flag("Genders to keep to; none: all.", ())
    race_concept_ids: tuple[int, ...] = flag("Races to keep to; none: all.", ())
    must_have: tuple[str, ...] = flag(
        "Events of which a history must have one, as condition:201826; sampled again "
        "until it has.",
        (),
    )
    history_data_path: str = flag(
        "Sequences that are gone on with after --index_date; empty: none.", ""
    )
    index_date: str = flag("The last day that is known of a history: YYYY-MM-DD.", "")
    rollouts: int = flag("Times that each history is gone on with.", 1)
    last_date: str = flag("Nothing happens after this day; empty: of training.", "")
    clinical_rules: bool = flag(
        "No event that is impossible for the patient's gender.", True
    )
    max_copied_tokens: int = flag(
        "Sample again what has a run of more tokens of a patient in --train_data_path; "
        "0: do not look.",
        0,
    )
    train_data_path: str = flag("The training sequences, for the two rules above.", "")
    max_attempts: int = flag("Give up on a patient after so many in vain.", 1000)
    shard: int = flag("Which of --num_of_shards this is: 1, 2, ...", 1)
    num_of_shards: int = flag("Sample in so many processes, one shard each.", 1)
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
        of_histories = bool(self.history_data_path)
        for name, low in (
            ("num_of_patients", 0 if of_histories else 1), ("batch_size", 0),
            ("buffer_size", 1), ("context_window", 0), ("max_tokens_per_patient", 0),
            ("top_k", 1), ("min_persons", 0), ("rollouts", 1), ("max_copied_tokens", 0),
            ("max_attempts", 1), ("num_of_shards", 1), ("shard", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise InputError(f"--{name} {getattr(self, name)}: at least {low}.")
        if self.shard > self.num_of_shards:
            raise InputError(
                f"--shard {self.shard}: there are --num_of_shards {self.num_of_shards}."
            )
        if of_histories != bool(self.index_date):
            raise InputError("--history_data_path and --index_date go together.")
        if of_histories and self.demographic_data_path:
            raise InputError(
                "--demographic_data_path and --history_data_path: give one of them."
            )
        if self.max_copied_tokens and not self.train_data_path:
            raise InputError("--max_copied_tokens needs --train_data_path.")
        for name in ("index_date", "last_date"):
            try:
                date.fromisoformat(getattr(self, name) or "2000-01-01")
            except ValueError:
                raise InputError(
                    f"--{name} {getattr(self, name)}: write it as 2019-12-31."
                ) from None
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top_p {self.top_p}: above 0, at most 1.")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name} {getattr(self, name)}: above 0.")
        for name in ("min_p", "event_min_p"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: 0 to below 1.")
        if not 0 < self.typical_p <= 1:
            raise InputError(f"--typical_p {self.typical_p}: above 0, at most 1.")
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
    # probability that each rule took away, summed over the tokens
    masked: dict[str, float]
    rejected: dict[str, int]  # histories that were sampled again before, by reason
    prompt: Prompt


@dataclass
class Row:
    """What Python must know of a slot."""

    patient: int = -1  # -1: idle
    prompt: Prompt | None = None
    contexts: int = 1
    # what the model is still to be shown: written already, so nothing is drawn
    shown: list[int] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)


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


class EventMinPLogitsWarper(LogitsProcessor):
    """Drops events (V,) whose chance is below a share of the likeliest event's.

    Min-p (https://arxiv.org/abs/2407.01082) among events alone: what is drawn of a long
    tail again and again is more than training had, and dates have no such tail.
    """

    def __init__(self, min_p: float, is_event: torch.Tensor) -> None:
        """Keep the share and the tokens."""
        self.log_share, self.is_event = math.log(min_p), is_event

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) with -inf for what is dropped."""
        events = scores.masked_fill(~self.is_event, -torch.inf)
        least = events.max(dim=-1, keepdim=True).values + self.log_share
        return scores.masked_fill(self.is_event & (scores < least), -torch.inf)


def warpers(config: SampleConfig, is_event: torch.Tensor) -> LogitsProcessorList:
    """Choose processors, transformers' own but one, for the flags that are set.

    `is_event` (V,): the tokens that open an event.
    """
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
    if config.min_p > 0:
        chosen.append(MinPLogitsWarper(config.min_p))
    if config.event_min_p > 0:
        chosen.append(EventMinPLogitsWarper(config.event_min_p, is_event))
    if config.typical_p < 1:
        chosen.append(TypicalLogitsWarper(config.typical_p))
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
        prompts: Prompts | Forecasts | None = None,
        *,
        rules: Mapping[str, Any] | None = None,
        must_have: np.ndarray | None = None,
        copies: Copies | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """Allocate the slots.

        `prompts`: what histories start with, else [BOS]. `rules`: what `Mask` takes
        beside the grammar. `must_have`: token ids of which a history must have one.
        `copies`: runs of training that it must not have. `calibration`: how the odds
        of the model are scaled.

        Raises InputError for a model that sees too little to go on with a history.
        """
        self.model, self.grammar, self.config = model, grammar, config
        self.prompts = prompts or Prompts(grammar)
        self.must_have, self.copies = must_have, copies
        self.device = model.device
        self.width = context_of(model, config)
        self.batch_size = config.batch_size or self.rows_that_pay()
        self.mask = Mask(
            grammar,
            rows=self.batch_size,
            device=self.device,
            min_persons=config.min_persons,
            max_tokens=config.max_tokens_per_patient or None,
            **(rules or {}),
        )
        is_event = torch.as_tensor(grammar.has_kind("event"), device=self.device)
        scaled = (calibration or Calibration()).processors(config, grammar, self.mask)
        self.warpers = LogitsProcessorList([*scaled, *warpers(config, is_event)])
        may_cut = np.isin(grammar.places, ("between", "visit", "loose"))
        self.may_cut = torch.as_tensor(may_cut, device=self.device)
        cuts = (grammar.roles == "gap") | grammar.has_kind("hour", "event")
        self.cuts = torch.as_tensor(cuts, device=self.device)

    def rows_that_pay(self) -> int:
        """Choose the rows of a batch: a power of two, decided by machine and flags."""
        shape = shape_of(self.model.config, 1, self.width)
        cache = 2 * math.prod(shape) * self.model.dtype.itemsize
        row = cache + 64 * self.grammar.vocab_size  # logits, some times over
        if self.device.type == "cuda":
            most, memory = 1024, torch.cuda.mem_get_info(self.device)[1] * 6 // 10
        else:
            pages = os.sysconf("SC_PHYS_PAGES")
            most, memory = 256, pages * os.sysconf("SC_PAGE_SIZE") // 4
        config = self.config
        asked = -(-config.num_of_patients // config.num_of_shards) or most
        rows = max(min(most, memory // row), 8)
        return min(1 << rows.bit_length() - 1, 1 << max(asked - 1, 7).bit_length())

    def run(self, patients: list[int]) -> Iterator[Sampled]:
        """Sample these patients; yields each as it is done.

        Raises InputError if what is asked of histories is too rare to be met.
        """
        waiting = iter(patients)
        left = len(patients)
        rows = self.batch_size
        self.open(rows)
        tokens = torch.full((rows,), self.grammar.bos_id, device=self.device)
        position = torch.zeros(rows, dtype=torch.long, device=self.device)
        for r in range(rows):
            self.begin(r, Row(patient=next(waiting, -1)), tokens, position)
        showing = {r for r in range(rows) if self.rows[r].shown}
        drawn = torch.tensor([not row.shown for row in self.rows], device=self.device)
        while left:
            logits = self.forward(tokens, position)
            position += 1
            place = self.mask.state
            sampled, ending = self.draw(logits, drawn)
            if showing:
                rest = sorted(showing)
                sampled[rest] = torch.tensor(
                    [self.rows[r].shown.pop(0) for r in rest], device=self.device
                )
            self.write(sampled, drawn)
            finished = self.mask.state == self.mask.finish
            finished |= drawn & (self.mask.cursor > self.last_day)
            full = position >= self.width - LONGEST_UNCUT
            if self.config.use_mask:
                cut = full & drawn & self.may_cut[place] & self.cuts[sampled]
                cut &= ~finished
            else:
                cut = torch.zeros_like(full)
                ending = position >= self.width
                finished = drawn & (ending | (sampled == self.grammar.eos_id))
            tokens = sampled
            changed = {r for r in showing if not self.rows[r].shown}
            for r in finished.nonzero()[:, 0].tolist():
                row = self.rows[r]
                reason = self.fault(r) if row.patient >= 0 else None
                if reason:
                    row.rejected[reason] = row.rejected.get(reason, 0) + 1
                    self.check_rejected(row)
                    row = Row(patient=row.patient, rejected=row.rejected)
                else:
                    if row.patient >= 0:
                        left -= 1
                        yield self.finish(r, ended_by_limit=bool(ending[r]))
                    row = Row(patient=next(waiting, -1))
                self.begin(r, row, tokens, position)
                changed.add(r)
            for r in cut.nonzero()[:, 0].tolist():
                self.refill(r, tokens, position)
                changed.add(r)
            for r in changed:
                is_shown = bool(self.rows[r].shown)
                drawn[r] = not is_shown
                (showing.add if is_shown else showing.discard)(r)
            size = self.narrowest(left)
            if size < len(self.rows):
                kept = self.narrow(size)
                tokens, position, drawn = tokens[kept], position[kept], drawn[kept]
                showing = {r for r, row in enumerate(self.rows) if row.shown}

    def open(self, rows: int) -> None:
        """Allocate so many rows, all of them idle."""
        self.slots = self.make_slots(rows)
        self.last_read: tuple[list[int], Chunk] = [], Chunk()
        self.mask.open(rows)
        self.rows = [Row() for _ in range(rows)]
        self.masked: dict[str, torch.Tensor] = {}
        self.stream = torch.full((rows,), -1, dtype=torch.long, device=self.device)
        self.last_day = torch.full_like(self.stream, NEVER)
        self.history = torch.full(
            (rows, self.width),
            self.grammar.pad_id,
            dtype=torch.long,
            device=self.device,
        )

    def narrowest(self, left: int) -> int:
        """Fewest rows that hold the patients left and change no logit of theirs."""
        rows = len(self.rows)
        if left >= rows:  # the usual case, before anything is tried out
            return rows
        return min((n for n in self.sizes if left <= n), default=rows)

    def narrow(self, size: int) -> list[int]:
        """Go on with so many rows, idle ones first to go; return the rows kept."""
        kept = sorted(range(len(self.rows)), key=lambda r: self.rows[r].patient < 0)
        kept = sorted(kept[:size])
        self.rows = [self.rows[r] for r in kept]
        self.stream, self.history = self.stream[kept], self.history[kept]
        self.last_day = self.last_day[kept]
        self.masked = {name: value[kept] for name, value in self.masked.items()}
        self.mask.keep(kept)
        self.slots.keep(kept)
        return kept

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of rows that give each the very logits of a full batch.

        Tried out: a matrix product may be summed in another order where it is smaller.
        """
        if not isinstance(self.slots, Pages):
            return []
        rows = self.batch_size
        tokens = torch.arange(rows) % self.grammar.vocab_size
        start = torch.zeros_like(tokens)
        full = self.logits(self.make_slots(rows), tokens, start)
        sizes = []
        while rows >= 8:
            rows //= 2
            slots = self.make_slots(rows)
            found = self.logits(slots, tokens[:rows], start[:rows])
            if torch.equal(found, full[:rows]):
                sizes.append(rows)
        return sizes

    def make_slots(self, rows: int) -> Slots:
        """Allocate a cache for so many rows."""
        shape = self.model.config, rows, self.width
        if self.device.type == "cuda":
            return Slots(*shape, self.device, self.model.dtype)
        return Pages(*shape, self.model.dtype)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Feed one token per row (B,) at its position (B,); returns logits (B, V)."""
        return self.logits(self.slots, tokens, position)

    def logits(
        self, slots: Slots, tokens: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Return what `forward` does, from a cache of its own."""
        slots.place(position)
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=position[:, None],
            past_key_values=slots,
            use_cache=True,
            slots=slots,
        )
        return output.logits[:, -1].float()

    def draw(
        self, logits: torch.Tensor, drawn: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample the next token of each row: (B,) int64.

        Returns also whether the row must end (B,) bool. What the rules take away is
        added up for the rows that are `drawn`.
        """
        ending = torch.zeros_like(drawn)
        if self.config.use_mask:
            allowed, before, ending = self.mask.allowed()
            levels = [logits.masked_fill(~b, -torch.inf) for b in before.values()]
            logits = logits.masked_fill(~allowed, -torch.inf)
            sums = torch.stack([x.logsumexp(-1) for x in (*levels, logits)])
            # of what the grammar and training leave, the share of each rule
            shares = (sums - sums[0]).clamp(max=0).exp()
            taken = (shares[:-1] - shares[1:]) * (drawn & ~ending)
            for name, share in zip(before, taken, strict=True):
                self.masked[name] = self.masked.get(name, 0) + share
        logits = self.warpers(self.history, logits)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        uniform = stream(self.config.seed, self.stream, self.mask.count)
        # just below the sum: rounding must never pick a token of probability 0
        target = uniform * cumulative[:, -1] * (1 - 2.0**-50)
        sampled = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        return sampled, ending

    def write(self, token_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Append a token to the histories of some rows: (B,) ids, (B,) bool."""
        where = self.mask.count.clone()
        self.mask.advance(token_ids, rows)
        self.make_room(int(where.max()))
        index = torch.arange(len(rows), device=self.device)
        kept = self.history[index, where]
        self.history[index, where] = torch.where(rows, token_ids, kept)

    def make_room(self, place: int) -> None:
        """Widen the histories until they have a place."""
        while place >= self.history.shape[1]:
            self.history = torch.nn.functional.pad(
                self.history, (0, self.history.shape[1]), value=self.grammar.pad_id
            )

    def begin(
        self, r: int, row: Row, tokens: torch.Tensor, position: torch.Tensor
    ) -> None:
        """Start a row over with its patient's prompt; an idle one with [BOS]."""
        # another attempt is another stream
        key = row.patient + (sum(row.rejected.values()) << 40)
        self.rows[r], self.stream[r] = row, key
        if row.patient >= 0:
            row.prompt = self.prompts(row.patient, lambda: self.uniform(key))
        else:
            bos = self.grammar.bos_id
            row.prompt = Prompt(np.array([bos]), [bos])
        row.contexts = row.prompt.contexts
        history = row.prompt.history
        is_forecast = row.prompt.person_id is not None
        limit = self.mask.max_tokens + (len(history) if is_forecast else 0)
        self.mask.begin(r, history, limit=limit, first_day=row.prompt.first_day)
        last_day = row.prompt.last_day
        self.last_day[r] = NEVER if last_day is None else last_day
        self.make_room(len(history))
        self.history[r] = self.grammar.pad_id  # repetition_penalty reads it
        self.history[r, : len(history)] = torch.as_tensor(history, device=self.device)
        for masked in self.masked.values():
            masked[r] = 0
        if is_forecast:
            self.go_on(r, row.prompt.shown, tokens, position)
        else:
            self.show(r, row.prompt.shown, tokens, position)

    def read(self, chunk: list[int]) -> Chunk:
        """Have the model read a chunk at once; what it read last, it need not again.

        The roll-outs of a person follow one another, and share it.
        """
        if chunk != self.last_read[0]:
            read = Chunk()
            token_ids = torch.tensor([chunk], device=self.device)
            self.model.base_model(
                input_ids=token_ids,
                position_ids=torch.arange(len(chunk), device=self.device)[None],
                past_key_values=read,
                use_cache=True,
                slots=read,
            )
            self.last_read = chunk, read
        return self.last_read[1]

    def show(
        self, r: int, chunk: Sequence[int], tokens: torch.Tensor, position: torch.Tensor
    ) -> None:
        """Have the model read a chunk from position 0 on, before it draws again."""
        tokens[r], position[r] = chunk[0], 0
        self.rows[r].shown = [int(token_id) for token_id in chunk[1:]]

    def uniform(self, key: int) -> float:
        """Draw the number that chooses a prompt, from 0 to 1."""
        return float(stream(self.config.seed, torch.tensor([key]), torch.tensor([-1])))

    def fault(self, r: int) -> str | None:
        """Say why a history must be sampled again, if it must."""
        history = self.history[r, : int(self.mask.count[r])].cpu().numpy()
        if self.must_have is not None and not np.isin(history, self.must_have).any():
            return "without_event"
        if self.copies is not None:
            made = history[len(self.rows[r].prompt.history) :]
            return "copied" if self.copies.are_in(made) else None
        return None

    def check_rejected(self, row: Row) -> None:
        """Raise InputError if a patient was sampled too often in vain."""
        if sum(row.rejected.values()) >= self.config.max_attempts:
            told = ", ".join(f"{n} {reason}" for reason, n in row.rejected.items())
            raise InputError(
                f"patient {row.patient + 1} was sampled {self.config.max_attempts} "
                f"times in vain ({told}): ask for a commoner --must_have, a longer "
                "--max_copied_tokens, or raise --max_attempts; what is done is kept."
            )

    def finish(self, r: int, *, ended_by_limit: bool) -> Sampled:
        """Take the history of a row."""
        length = int(self.mask.count[r])
        row = self.rows[r]
        return Sampled(
            patient=row.patient,
            token_ids=self.history[r, :length].cpu().numpy().astype(np.int32),
            contexts=row.contexts,
            ended_by_limit=ended_by_limit,
            masked={name: float(masked[r]) for name, masked in self.masked.items()},
            rejected=row.rejected,
            prompt=row.prompt,
        )

    def refill(self, r: int, tokens: torch.Tensor, position: torch.Tensor) -> None:
        """Start a new context that has the last tokens of the one before."""
        if self.rows[r].patient < 0:  # nobody waits for it
            self.begin(r, Row(), tokens, position)
            return
        history = self.history[r, : int(self.mask.count[r])].cpu().numpy()
        self.rows[r].contexts += 1
        chunk = self.grammar.tail(history, overlap_of(self.width))
        self.go_on(r, chunk.tolist(), tokens, position)

    def go_on(
        self,
        r: int,
        chunk: Sequence[int],
        tokens: torch.Tensor,
        position: torch.Tensor,
    ) -> None:
        """Have the model read a chunk, all but its last token, which is fed next."""
        *known, last = chunk
        self.slots.put(r, self.read(known))
        tokens[r], position[r] = last, len(known)


def context_of(model: PreTrainedModel, config: SampleConfig) -> int:
    """Return the tokens that a model is shown. Raises InputError for too few."""
    limit = int(model.config.max_position_embeddings)
    if limit < SHORTEST_CONTEXT:
        raise InputError(
            f"the model sees only {limit} tokens: "
            f"train with --max_position_embeddings {SHORTEST_CONTEXT} or more."
        )
    return min(config.context_window or limit, limit)
