"""The token language of one data set: its tokens, and what may follow what.

Everything is read from a vocabulary folder (vocabulary.parquet, value_bins.parquet,
event_values.parquet, manifest.json and grammar/*.csv): no token is known by its
spelling. Knows nothing of models; the mask of the sampler is built in `mask.py`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omop_gpt.pack import filled, numbers
from omop_gpt.step import InputError, write_json

GRAMMAR_FILES = ("kinds.csv", "states.csv", "transitions.csv", "fields.csv")
TABLES = ("vocabulary", "event_values", "value_bins")
EPOCH = np.datetime64("1970-01-01", "D")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_parquet(path: Path) -> pa.Table:
    """Rows of a file, without pq.read_table(), which imports pandas."""
    with pq.ParquetFile(path) as file:
        return file.read()


def fingerprint(folder: Path) -> str:
    """Hash what gives token ids their meaning: grammar, vocabulary and bins."""
    digest = hashlib.sha256()
    for name in GRAMMAR_FILES:
        digest.update((folder / "grammar" / name).read_bytes())
    for name in TABLES:
        table = read_parquet(folder / f"{name}.parquet")
        for column in sorted(table.column_names):
            digest.update(f"\0{column}\0".encode())
            digest.update(json.dumps(table[column].to_pylist()).encode())
    return digest.hexdigest()


def save_language(
    folder: Path, *, grammar: Path, timeline: Path, facts: Mapping[str, Any]
) -> str:
    """Put a data set's language into `folder` (new) and return its fingerprint.

    `grammar` holds the seeds, `timeline` the tables; `facts` are what sampling must
    know: first_date, last_date, last_end_date, longest_history, synthetic_person_ids.
    """
    (folder / "grammar").mkdir(parents=True)
    for name in GRAMMAR_FILES:
        shutil.copy(grammar / name, folder / "grammar" / name)
    for name in TABLES:
        table = pq.read_table(timeline / name)
        if name == "value_bins":
            table = shared_bins(table)
        pq.write_table(table, folder / f"{name}.parquet")
    made = fingerprint(folder)
    write_json(folder / "manifest.json", {"fingerprint": made, **facts})
    return made


def shared_bins(bins: pa.Table) -> pa.Table:
    """Return value bins as they may leave the warehouse: few persons' numbers do not.

    Their range is that of the shape which decode draws from, not of all of training.
    """
    bins = bins.filter(pc.is_valid(bins["shared_shape"]))
    shapes = bins["shared_shape"]
    for name, point in (("low", 0), ("high", -1)):
        ends = pa.array([shape[point] for shape in shapes.to_pylist()], pa.float64())
        bins = bins.set_column(bins.schema.get_field_index(name), name, ends)
    return bins.drop_columns(["shape"]).rename_columns({"shared_shape": "shape"})


@dataclass(frozen=True, eq=False)
class Grammar:
    """The language: arrays over token ids (V), kinds (K) and states (S)."""

    folder: Path
    fingerprint: str
    facts: dict[str, Any]
    tokens: list[str]  # (V,)
    kinds: list[str]  # (K,)
    kind_rows: list[dict[str, str]]  # (K,)
    states: list[str]  # (S,)
    state_rows: list[dict[str, str]]  # (S,)
    kind: np.ndarray  # (V,) int16, index into kinds
    days: np.ndarray  # (V,) int64
    number: np.ndarray  # (V,) int64, 0 where the token has none
    train_persons: np.ndarray  # (V,) int64
    train_count: np.ndarray  # (V,) int64
    next_state: np.ndarray  # (S, K) int16, -1: not in the language
    is_sampled: np.ndarray  # (S, K) bool

    @classmethod
    def load(cls, folder: str | Path) -> Grammar:
        """Read a vocabulary folder.

        Raises InputError if it is missing, or is not what its fingerprint says.
        """
        folder = Path(folder)
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise InputError(
                f"{folder} holds no vocabulary: name a vocabulary folder that "
                "`omop-gpt encode` made, or a model folder."
            )
        try:
            facts = json.loads(manifest.read_text())
            is_whole = fingerprint(folder) == facts["fingerprint"]
        except (OSError, ValueError, KeyError):  # a file is missing, cut short or other
            is_whole = False
        if not is_whole:
            raise InputError(
                f"{folder} was changed since it was made (its fingerprint differs): "
                "take it from the encode output or the model again."
            )
        kind_rows = read_csv(folder / "grammar" / "kinds.csv")
        state_rows = read_csv(folder / "grammar" / "states.csv")
        kinds = [row["kind"] for row in kind_rows]
        states = [row["state"] for row in state_rows]
        next_state = np.full((len(states), len(kinds)), -1, dtype=np.int16)
        is_sampled = np.zeros((len(states), len(kinds)), dtype=bool)
        for row in read_csv(folder / "grammar" / "transitions.csv"):
            cell = states.index(row["state"]), kinds.index(row["kind"])
            next_state[cell] = states.index(row["next_state"])
            is_sampled[cell] = row["is_sampled"] == "1"
        table = read_parquet(folder / "vocabulary.parquet").sort_by("token_id")
        number = numbers(filled(table["number"], 0))
        kind_index = {name: index for index, name in enumerate(kinds)}
        return cls(
            folder=folder,
            fingerprint=facts["fingerprint"],
            facts=facts,
            tokens=table["token"].to_pylist(),
            kinds=kinds,
            kind_rows=kind_rows,
            states=states,
            state_rows=state_rows,
            kind=np.array(
                [kind_index[name] for name in table["kind"].to_pylist()], np.int16
            ),
            days=numbers(table["days"]).astype(np.int64),
            number=number.astype(np.int64),
            train_persons=numbers(table["train_persons"]).astype(np.int64),
            train_count=numbers(table["train_count"]).astype(np.int64),
            next_state=next_state,
            is_sampled=is_sampled,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, V."""
        return len(self.tokens)

    def only(self, kind: str) -> int:
        """Token id of a kind that has one token."""
        return int(np.flatnonzero(self.kind == self.kinds.index(kind))[0])

    @cached_property
    def pad_id(self) -> int:
        """Token id that fills a batch."""
        return self.only("pad")

    @cached_property
    def bos_id(self) -> int:
        """Token id that opens a history."""
        return self.only("bos")

    @cached_property
    def eos_id(self) -> int:
        """Token id that closes a history."""
        return self.only("eos")

    @cached_property
    def first_day(self) -> int:
        """First date of the training split, in days since 1970-01-01."""
        return day_of(self.facts["first_date"])

    @cached_property
    def last_day(self) -> int:
        """Last date of the training split, in days since 1970-01-01."""
        return day_of(self.facts["last_date"])

    @cached_property
    def last_end_day(self) -> int:
        """Last day that training has, ends of events included."""
        return day_of(self.facts["last_end_date"])

    @cached_property
    def synthetic_person_ids(self) -> int:
        """Where the ids of synthetic persons begin: no real person has one near it."""
        return self.facts["synthetic_person_ids"]

    @cached_property
    def places(self) -> np.ndarray:
        """Place of each state: (S,) str."""
        return np.array([row["place"] for row in self.state_rows])

    @cached_property
    def roles(self) -> np.ndarray:
        """Role of each token's kind: (V,) str."""
        return np.array([row["role"] for row in self.kind_rows])[self.kind]

    def has_kind(self, *kinds: str) -> np.ndarray:
        """Tell which tokens are of one of these kinds: (V,) bool."""
        return np.isin(self.kind, [self.kinds.index(kind) for kind in kinds])

    @cached_property
    def concept(self) -> np.ndarray:
        """Concept of each token, 0 where it has none: (V,) int64."""
        table = read_parquet(self.folder / "vocabulary.parquet").sort_by("token_id")
        return numbers(filled(table["concept_id"], 0))

    @cached_property
    def source_table(self) -> np.ndarray:
        """Table that each token makes a row of, empty where it has none: (V,) str."""
        table = pq.read_table(
            self.folder / "vocabulary.parquet", columns=["token_id", "source_table"]
        )
        return table.sort_by("token_id")["source_table"].fill_null("").to_numpy()

    @cached_property
    def moves_cursor(self) -> np.ndarray:
        """Tell which tokens move the cursor by their days: (V,) bool."""
        return np.isin(self.roles, ("gap", "move"))

    def cursor(self, token_ids: np.ndarray) -> np.ndarray:
        """Where each token leaves the cursor, in days since 1970-01-01: (T,) int64.

        Of a history from [BOS] on, so far as it is written; it has a year.
        """
        year = token_ids[self.has_kind("year")[token_ids]][0]
        january = day_of(f"{int(self.number[year]):04d}-01-01")
        moves = np.where(self.moves_cursor[token_ids], self.days[token_ids], 0)
        return january + np.cumsum(moves)

    def walk(self, token_ids: np.ndarray) -> np.ndarray:
        """States before each token and after the last: (T,) ids -> (T + 1,) int.

        -1 from the first token on that the language does not have there.
        """
        states = np.full(len(token_ids) + 1, -1, dtype=np.int64)
        states[0] = state = self.states.index("start")
        kinds = self.kind[token_ids]
        for position, kind in enumerate(kinds):
            state = self.next_state[state, kind]
            if state < 0:
                break
            states[position + 1] = state
        return states

    def is_history(self, token_ids: np.ndarray) -> bool:
        """Tell whether the tokens are one whole history, [BOS] to [EOS]."""
        token_ids = np.asarray(token_ids)
        if not len(token_ids) or token_ids[0] != self.bos_id:
            return False
        if token_ids.min() < 0 or token_ids.max() >= self.vocab_size:
            return False
        return bool(self.walk(token_ids)[-1] == self.states.index("end"))

    # --- histories that are longer than the context ------------------------------

    def spell(self, role: str, days: int) -> list[int]:
        """Token ids that say a number of days as a `gap` or a `move`.

        From where such a number may start, the largest legal part that does not
        overshoot, until the grammar has the number complete. The same walk is the
        dbt model int_days_spelled. More days than that come out as the most there are.
        """
        state = self.states.index({"gap": "between", "move": "visit"}[role])
        token_ids: list[int] = []
        while not token_ids or self.places[state] == "days":
            legal = (self.next_state[state, self.kind] >= 0) & (self.roles == role)
            fits = legal & (self.days * days >= 0) & (abs(self.days) <= abs(days))
            candidates = np.flatnonzero(fits)
            token_id = int(candidates[np.argmax(abs(self.days[candidates]))])
            token_ids.append(token_id)
            days -= int(self.days[token_id])
            state = self.next_state[state, self.kind[token_id]]
        return token_ids

    @cached_property
    def _numbers(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Numbers and token ids of the kinds `year` and `age`, in order."""
        found = {}
        for kind in ("year", "age"):
            token_ids = np.flatnonzero(self.has_kind(kind))
            order = np.argsort(self.number[token_ids], kind="stable")
            found[kind] = self.number[token_ids][order], token_ids[order]
        return found

    def nearest(self, kind: str, number: int) -> tuple[int, int] | None:
        """Return number and token id of the largest `year` or `age` not above."""
        numbers, token_ids = self._numbers[kind]
        index = int(np.searchsorted(numbers, number, side="right")) - 1
        if not len(numbers):
            return None
        index = max(index, 0)
        return int(numbers[index]), int(token_ids[index])

    def is_cut(self, state: int, token_id: int) -> bool:
        """Tell whether a history may be cut before this token in this state."""
        role = self.kind_rows[self.kind[token_id]]["role"]
        kind = self.kinds[self.kind[token_id]]
        return self.places[state] in ("between", "visit", "loose") and (
            role == "gap" or kind in ("hour", "event")
        )

    def continuation(self, cut: Cut, token_id: int) -> list[int]:
        """Write the prompt of the chunk that goes on with `token_id`.

        [CONT], the demographics of then, the place; `cut` is where the history stands
        before `token_id`.
        """
        date = EPOCH + np.timedelta64(cut.cursor, "D")
        wanted = int(date.astype("datetime64[Y]").astype(int)) + 1970
        year, year_id = self.nearest("year", wanted)
        born = None if cut.age is None else cut.year - cut.age
        age = None if born is None else self.nearest("age", year - born)
        prompt = [self.only("cont"), year_id]
        prompt.append(self.only("age_unknown") if age is None else age[1])
        prompt.extend(cut.demographics)
        january = day_of(f"{year:04d}-01-01")
        next_row = self.kind_rows[self.kind[token_id]]
        if next_row["role"] == "gap":
            prompt.extend(self.spell("gap", cut.cursor - january))
            return prompt
        prompt.append(self.only("in"))
        prompt.extend(self.spell("gap", cut.visit_start - january))
        prompt.append(cut.visit_id)
        if cut.cursor != cut.visit_start:
            prompt.extend(self.spell("move", cut.cursor - cut.visit_start))
        if cut.hour_id is not None and next_row["kind"] != "hour":
            prompt.append(cut.hour_id)
        return prompt

    def cuts(self, token_ids: np.ndarray) -> dict[int, Cut]:
        """Positions that a history may be cut before, with where it stands there."""
        states = self.walk(token_ids)
        found: dict[int, Cut] = {}
        cut = Cut()
        for position, token_id in enumerate(token_ids.tolist()):
            if position and self.is_cut(states[position], token_id):
                found[position] = cut
            cut = self.step(cut, token_id)
        return found

    def step(self, cut: Cut, token_id: int) -> Cut:
        """Where a history stands after one more token."""
        kind = self.kinds[self.kind[token_id]]
        number = int(self.number[token_id])
        if self.moves_cursor[token_id]:
            return cut.moved(int(self.days[token_id]))
        if kind == "year":
            return Cut(year=number, cursor=day_of(f"{number:04d}-01-01"))
        if kind == "age":
            return cut.with_(age=number)
        if kind in ("gender", "race", "ethnicity"):
            return cut.with_(demographics=(*cut.demographics, token_id))
        if kind in ("visit", "no_visit"):
            return cut.with_(visit_id=token_id, visit_start=cut.cursor, hour_id=None)
        if kind == "hour":
            return cut.with_(hour_id=token_id)
        return cut

    def chunk_to(
        self, token_ids: np.ndarray, cuts: Mapping[int, Cut], last: int, most: int
    ) -> tuple[int, np.ndarray]:
        """Begin the chunk that repeats a history up to a position, and goes on.

        At the first of its `cuts` from which prompt and tokens are at most `most`; if
        there is none, at the last. Returns where, and the [CONT] prompt.
        """
        begins = [p for p in cuts if last - most < p <= last]
        begins = begins or [max(p for p in cuts if p <= last)]
        for begin in begins:
            prompt = self.continuation(cuts[begin], int(token_ids[begin]))
            if len(prompt) + last + 1 - begin <= most:
                break
        return begin, np.array(prompt, token_ids.dtype)

    def tail(self, token_ids: np.ndarray, most: int) -> np.ndarray:
        """Return a history so far, or a chunk of its last tokens, to go on with."""
        if len(token_ids) <= most:
            return token_ids
        begin, prompt = self.chunk_to(
            token_ids, self.cuts(token_ids), len(token_ids) - 1, most
        )
        return np.concatenate([prompt, token_ids[begin:]])

    def chunks(
        self, token_ids: np.ndarray, max_tokens: int, *, overlap: int = 0
    ) -> list[tuple[np.ndarray, int]]:
        """Cut a history into chunks of at most `max_tokens` tokens.

        Each is (token ids, number of leading tokens that are context only): of a chunk
        after the first its [CONT] prompt and, with an `overlap` of so many tokens in
        all, the last tokens of the chunk before. Every token of the history is in
        exactly one chunk, outside its context.

        Raises InputError if `max_tokens` is too small to hold a prompt and an event.
        """
        token_ids = np.asarray(token_ids)
        if len(token_ids) <= max_tokens:
            return [(token_ids, 0)]
        cuts = self.cuts(token_ids)
        places = np.array(list(cuts), dtype=np.int64)
        chunks = []
        # a chunk is its prompt and what follows `begin`; new is what follows `start`
        begin, start, prompt = 0, 0, np.empty(0, dtype=token_ids.dtype)
        while True:
            known = len(prompt) + start - begin
            room = begin + max_tokens - len(prompt)
            if len(token_ids) <= room:
                chunks.append((np.concatenate([prompt, token_ids[begin:]]), known))
                return chunks
            end = places[(places > start) & (places <= room)]
            if not len(end):
                raise InputError(
                    f"a context of {max_tokens} tokens cannot hold this language: "
                    "raise --max_position_embeddings to 64 or more."
                )
            start = int(end[-1])
            chunks.append((np.concatenate([prompt, token_ids[begin:start]]), known))
            begin, prompt = self.chunk_to(token_ids, cuts, start, overlap)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a history stands: what a later chunk must be told."""

    year: int = 0
    age: int | None = None
    demographics: tuple[int, ...] = ()
    cursor: int = 0  # days since 1970-01-01
    visit_id: int = -1
    visit_start: int = 0
    hour_id: int | None = None

    def with_(self, **changes: Any) -> Cut:
        """Return a copy with some fields changed."""
        return Cut(**{**self.__dict__, **changes})

    def moved(self, days: int) -> Cut:
        """Return a copy on another day, its hour unknown."""
        return self.with_(cursor=self.cursor + days, hour_id=None)


def overlap_of(context: int) -> int:
    """Tokens of what came before, at most, that a later chunk is read with."""
    return context // 2


def day_of(date: str) -> int:
    """Days from 1970-01-01 to an ISO date."""
    return int((np.datetime64(date, "D") - EPOCH).astype(int))


def save_tokenizer(grammar: Grammar, folder: str | Path) -> None:
    """Write tokenizer.json and its config, so that AutoTokenizer loads the folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        WordLevel(
            {token: token_id for token_id, token in enumerate(grammar.tokens)},
            unk_token=grammar.tokens[grammar.pad_id],
        )
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=grammar.tokens[grammar.pad_id],
        bos_token=grammar.tokens[grammar.bos_id],
        eos_token=grammar.tokens[grammar.eos_id],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
