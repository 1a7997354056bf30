"""Patient sequences for training: cut to the context, packed into batches.

Knows token ids and lengths, and asks the grammar where a long history may be cut.
Does not know what a token means, nor models, losses or optimisers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.data import Dataset, Sampler

from omop_gpt.grammar import Grammar
from omop_gpt.step import InputError, whole_folder

logger = logging.getLogger(__name__)

COLUMNS = ("person_id", "token_ids", "token_count")
IGNORED = -100  # the label that torch's cross entropy leaves out
CACHE_FORMAT = "omop-gpt chunks 1"
Item = tuple[np.ndarray, int]
Person = tuple[int, np.ndarray]


@dataclass(kw_only=True)
class Chunks(Dataset[Item]):
    """The patients of one split, each in one chunk or, if too long, in several.

    `tokens` (all tokens, flat) int32; `starts` (N,) int64, `lengths` (N,) int32 and
    `contexts` (N,) int32 describe the N chunks, ordered by person. The first
    `contexts[i]` tokens of a chunk repeat what came before: read, never predicted.
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    contexts: np.ndarray
    patients: int
    fingerprint: str
    epoch: int = 0

    def __len__(self) -> int:
        """Count the chunks."""
        return len(self.starts)

    def __getitem__(self, index: int) -> Item:
        """Return one chunk's token ids, (T,) int32, and its context length."""
        start = self.starts[index]
        ids = self.tokens[start : start + self.lengths[index]]
        return ids, int(self.contexts[index])

    @property
    def predicted(self) -> int:
        """Count the tokens that are predicted: all but each patient's first."""
        return int(self.lengths.sum() - np.maximum(self.contexts, 1).sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order `Packs` gives; accelerate calls this."""
        self.epoch = epoch


def read_chunks(
    folder: str | Path,
    grammar: Grammar,
    *,
    max_tokens: int,
    cache: str | Path | None = None,
) -> Chunks:
    """Read the patient sequences of one split, cut to at most `max_tokens` tokens.

    With `cache`, the result is kept there under a hash of all it was made from and
    mapped into memory when it is asked for again. An empty or absent folder gives no
    chunks. Raises InputError if a file is not what `omop-gpt encode` writes, or was
    made with another vocabulary.
    """
    files = sorted(Path(folder).glob("*.parquet"))
    parts = [CACHE_FORMAT, grammar.fingerprint, str(max_tokens)]
    parts += sorted(_digest(file) for file in files)
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if cache is None:
        return _cut(files, grammar, max_tokens, fingerprint)
    kept = Path(cache) / fingerprint[:16]
    if not kept.is_dir():
        _save(_cut(files, grammar, max_tokens, fingerprint), kept)
    return _load(kept, fingerprint)


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _cut(
    files: Sequence[Path], grammar: Grammar, max_tokens: int, fingerprint: str
) -> Chunks:
    tokens: list[np.ndarray] = [np.empty(0, np.int32)]
    persons: list[np.ndarray] = [np.empty(0, np.int64)]
    lengths: list[np.ndarray] = [np.empty(0, np.int32)]
    contexts: list[np.ndarray] = [np.empty(0, np.int32)]
    patients = source_tokens = 0
    for file in files:
        for person_id, values, counts in read_sequences(file, grammar):
            patients += len(counts)
            source_tokens += len(values)
            ends = np.cumsum(counts)
            fits = counts <= max_tokens
            tokens.append(values[np.repeat(fits, counts)])
            persons.append(person_id[fits])
            lengths.append(counts[fits])
            contexts.append(np.zeros(int(fits.sum()), np.int32))
            for row in np.flatnonzero(~fits):
                history = values[ends[row] - counts[row] : ends[row]]
                for ids, context in grammar.chunks(history, max_tokens):
                    tokens.append(np.asarray(ids, np.int32))
                    persons.append(person_id[row : row + 1])
                    lengths.append(np.array([len(ids)], np.int32))
                    contexts.append(np.array([context], np.int32))
    person = np.concatenate(persons)
    length = np.concatenate(lengths)
    # By person, so that neither file names nor row order decide what is learnt.
    order = np.argsort(person, kind="stable")
    if len(np.unique(person)) != patients:
        raise InputError(
            f"{files[0].parent} holds a person_id twice: one row per patient is "
            "needed; make it again with `omop-gpt encode`."
        )
    chunks = Chunks(
        tokens=np.concatenate(tokens),
        starts=(np.cumsum(length, dtype=np.int64) - length)[order],
        lengths=length[order],
        contexts=np.concatenate(contexts)[order],
        patients=patients,
        fingerprint=fingerprint,
    )
    if chunks.predicted != source_tokens - patients:
        raise RuntimeError(
            f"{chunks.predicted} tokens to predict out of {source_tokens} tokens of "
            f"{patients} patients: chunks lose or repeat tokens."
        )
    return chunks


def read_sequences(
    file: Path, grammar: Grammar
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield person ids (N,) int64, their tokens, flat int32, and counts (N,) int32."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid:
        raise InputError(f"{file} is not a Parquet file.") from None
    missing = [name for name in COLUMNS if name not in parquet.schema_arrow.names]
    if missing:
        raise InputError(
            f"{file} has no column {missing[0]}: give the patient_sequence folder "
            "that `omop-gpt encode` writes."
        )
    for batch in parquet.iter_batches(batch_size=16_384, columns=list(COLUMNS)):
        nulls = sum(column.null_count for column in batch.columns)
        token_ids = batch.column("token_ids")
        values = token_ids.flatten().to_numpy(zero_copy_only=False)
        counts = pc.list_value_length(token_ids).to_numpy(zero_copy_only=False)
        if nulls or not np.array_equal(counts, batch.column("token_count")):
            raise InputError(
                f"{file}: token_count does not match token_ids; "
                "make it again with `omop-gpt encode`."
            )
        ends = np.cumsum(counts)
        if len(values) and not 0 <= values.min() <= values.max() < grammar.vocab_size:
            raise InputError(
                f"{file}: token_ids has {values.max()}, the vocabulary "
                f"{grammar.folder} {grammar.vocab_size} tokens: they do not belong "
                "together; make both again with `omop-gpt encode`."
            )
        if (
            (counts < 2).any()
            or (values[ends - counts] != grammar.bos_id).any()
            or (values[ends - 1] != grammar.eos_id).any()
        ):
            raise InputError(
                f"{file}: a row of token_ids does not run from [BOS] to [EOS]; "
                "make it again with `omop-gpt encode`."
            )
        yield (
            batch.column("person_id").to_numpy(zero_copy_only=False).astype(np.int64),
            values.astype(np.int32, copy=False),
            counts.astype(np.int32, copy=False),
        )


def read_histories(files: Iterable[Path], grammar: Grammar) -> Iterator[Person]:
    """Yield each person's id and token ids, (T,) int32, of files of sequences."""
    for file in files:
        for persons, values, counts in read_sequences(file, grammar):
            histories = np.split(values, np.cumsum(counts)[:-1])
            yield from zip(persons.tolist(), histories, strict=True)


ARRAYS = ("tokens", "starts", "lengths", "contexts")


def _save(chunks: Chunks, folder: Path) -> None:
    with whole_folder(folder) as partial:
        for name in ARRAYS:
            np.save(partial / f"{name}.npy", getattr(chunks, name))
        (partial / "patients.json").write_text(json.dumps(chunks.patients))


def _load(folder: Path, fingerprint: str) -> Chunks:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    patients = json.loads((folder / "patients.json").read_text())
    return Chunks(**arrays, patients=patients, fingerprint=fingerprint)


class Packs(Sampler[list[int]]):
    """Deal the chunks out into batches, equally many in every epoch.

    A batch holds chunks of at most `max_tokens` tokens together or, where
    `batch_size` is given instead, that many chunks. `seed` and the chunks' epoch
    decide the order; without a seed it goes by length. The trainer counts its steps
    before it starts, so the epoch that needs most batches sets the number (rounded
    up to `multiple_of`, the processes that share them) and others halve some.
    """

    def __init__(
        self,
        chunks: Chunks,
        *,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        epochs: int = 1,
        multiple_of: int = 1,
    ) -> None:
        if (max_tokens is None) == (batch_size is None):
            raise ValueError("Give max_tokens or batch_size.")
        self.chunks = chunks
        self.max_tokens = max_tokens
        self.per_batch = batch_size
        self.seed = seed
        if seed is None:
            epochs = 1
        most = max(len(self._cuts(self._order(e))) for e in range(epochs)) - 1
        self.count = -(-most // multiple_of) * multiple_of
        if self.count > len(chunks):
            raise InputError(
                f"{len(chunks)} chunks cannot be shared by {multiple_of} processes: "
                "start fewer."
            )

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the chunks' indices, batch by batch."""
        order = self._order(self.chunks.epoch)
        cuts = self._cuts(order)
        while len(cuts) <= self.count:
            widest = int(np.argmax(np.diff(cuts)))
            cuts.insert(widest + 1, (cuts[widest] + cuts[widest + 1] + 1) // 2)
        for start, end in pairwise(cuts):
            yield order[start:end].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.argsort(self.chunks.lengths, kind="stable")
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.chunks))

    def _cuts(self, order: np.ndarray) -> list[int]:
        """Return the borders of the batches in `order`, from 0 to its length."""
        if self.max_tokens is None:
            return [*range(0, len(order), self.per_batch), len(order)]
        ends = np.cumsum(self.chunks.lengths[order], dtype=np.int64)
        cuts = [0]
        while cuts[-1] < len(order):
            filled = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
            full = np.searchsorted(ends, filled + self.max_tokens, side="right")
            cuts.append(int(full))
        return cuts


def pack(items: Sequence[Item]) -> dict[str, Any]:
    """Lay chunks end to end in one row, without padding.

    Returns `input_ids`, `labels` and `position_ids` (1, T) int64, the chunks' borders
    `cu_seq_lens_q` (N + 1,) int32 and the longest chunk under the names that
    transformers gives them, and `token_count`.

    >>> batch = pack([(np.array([1, 5, 2]), 0), (np.array([1, 2]), 0)])
    >>> batch["position_ids"].tolist(), batch["cu_seq_lens_q"].tolist()
    ([[0, 1, 2, 0, 1]], [0, 3, 5])
    """
    lengths = np.array([len(ids) for ids, _ in items])
    borders = np.concatenate([[0], np.cumsum(lengths)])
    input_ids = np.concatenate([ids for ids, _ in items]).astype(np.int64)
    labels = input_ids.copy()
    for start, (_, context) in zip(borders[:-1], items, strict=True):
        labels[start : start + max(context, 1)] = IGNORED
    position_ids = np.arange(len(input_ids)) - np.repeat(borders[:-1], lengths)
    cu_seq_lens = torch.from_numpy(borders.astype(np.int32))
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(position_ids)[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
        "token_count": len(input_ids),
    }


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Lay chunks under one another, padded on the right with `pad_id`.

    Causal attention never looks right and padding has no label, so no mask is needed.
    """

    pad_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return `input_ids` and `labels`, (B, T) int64, and `token_count`."""
        shape = (len(items), max(len(ids) for ids, _ in items))
        input_ids = np.full(shape, self.pad_id, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        for row, (ids, context) in enumerate(items):
            input_ids[row, : len(ids)] = ids
            labels[row, max(context, 1) : len(ids)] = ids[max(context, 1) :]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "token_count": sum(len(ids) for ids, _ in items),
        }


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to earlier tokens of the same chunk only.

    The signature is that of transformers' AttentionInterface: `query`, `key` and
    `value` are (B, H, T, D) and the result is (B, T, H, D). Without borders every row
    is one chunk. The mask is not looked at: borders say all that it would.
    """
    grouped = query.shape[1] != key.shape[1]
    kernel_dtype = _varlen_dtype(query)
    if cu_seq_lens_q is None:
        lengths = [query.shape[2]]
    elif kernel_dtype is not None and not dropout:
        # The kernel knows no dropout; autocast does not reach it, hence the casts.
        attended = varlen_attn(
            *(x[0].transpose(0, 1).to(kernel_dtype) for x in (query, key, value)),
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q,
            max_length_q,
            scale=scaling,
            window_size=(-1, 0),
            **({"enable_gqa": True} if grouped else {}),  # unknown to torch 2.11
        )
        return attended[None], None
    else:
        lengths = cu_seq_lens_q.diff().tolist()
    if not query.is_cuda:
        # a processor's kernel is slower in bfloat16, to which autocast would cast
        exact = torch.promote_types(query.dtype, torch.float32)
        query, key, value = query.to(exact), key.to(exact), value.to(exact)
    with torch.autocast("cpu", enabled=False):
        attended = [
            scaled_dot_product_attention(
                q,
                k,
                v,
                dropout_p=dropout,
                is_causal=True,
                scale=scaling,
                enable_gqa=grouped,
            )
            for q, k, v in zip(
                *(x.split(lengths, dim=2) for x in (query, key, value)), strict=True
            )
        ]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _varlen_dtype(query: torch.Tensor) -> torch.dtype | None:
    """Return the type in which CUDA's variable-length kernel can run, else None."""
    if not query.is_cuda:
        return None
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None
