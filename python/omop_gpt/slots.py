"""A key-value cache of slots: each row stands at a position of its own.

A row that is finished starts over at position 0 while the others go on, so a batch
never waits for its longest member. Used with transformers' own models through
AttentionInterface; nothing here depends on the model family.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.cache_utils import Cache

ATTENTION = "omop_gpt_slots"
PAGE = 64  # tokens whose keys lie together, on a processor


class Slots(Cache):
    """Keys and values of B rows and W positions, in every layer: for a GPU.

    Shapes never change; rows attend to all positions under a mask.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        rows: int,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Allocate (layers, B, key-value heads, W, head size) twice."""
        self.layers = []  # transformers asks; the tensors are ours
        shape = shape_of(config, rows, width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.page, self.top = torch.arange(rows, device=device), rows
        self.columns = torch.arange(width, device=device)
        self.place(torch.zeros(rows, dtype=torch.long, device=device))

    def place(self, position: torch.Tensor) -> None:
        """Say where the next token of each row goes: (B,) int64, below W.

        A row's positions go up by one, start over at 0, or follow what was put.
        """
        self.offset = position
        self.mask = (self.columns <= position[:, None])[:, None, None, :]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token's keys and values (B, heads, 1, size) into their places.

        Returns all that `attend` reads.
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        where = self.page, slice(None), self.offset
        keys[where] = key_states[:, :, 0].to(keys.dtype)
        values[where] = value_states[:, :, 0].to(values.dtype)
        return keys[: self.top], values[: self.top]

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend from new tokens, one per row: query and result (B, heads, 1, size)."""
        return scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=self.mask,
            is_causal=self.mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[1],
        )

    def put(self, r: int, chunk: Chunk) -> None:
        """Give a row the first tokens that were read at once."""
        for layer, (keys, values) in enumerate(chunk.read):
            self.keys[layer, r, :, : keys.shape[1]] = keys
            self.values[layer, r, :, : keys.shape[1]] = values

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return 0: positions are given, row by row."""
        return 0


class Chunk(Slots):
    """Keys and values of the first tokens of one row, which a model reads at once.

    `read`: of each layer, 2 × (key-value heads, L, head size).
    """

    mask = None  # each token attends to those up to it

    def __init__(self) -> None:
        """Start empty."""
        self.layers = []
        self.read: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what a layer says of the tokens: (1, heads, L, size) twice."""
        self.read.append((key_states[0], value_states[0]))
        return key_states, value_states


class Pages(Slots):
    """The same for a processor: memory is read where there are tokens, and no more.

    Rows hold pages of PAGE tokens, which lie densely: the products of all rows are one
    batch, without a copy, a mask over unused positions, or a call per row (a thousand
    calls a step cost more than their work). What a row computes does not depend on
    how long its neighbours are: its pages are added up in its own order.
    """

    def __init__(
        self, config: PretrainedConfig, rows: int, width: int, dtype: torch.dtype
    ) -> None:
        """Allocate (layers, pages, key-value heads, PAGE, head size) twice."""
        self.layers = []
        self.blocks = -(-width // PAGE)
        shape = shape_of(config, rows * self.blocks, PAGE)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.free = list(range(rows * self.blocks))  # a heap: the lowest goes first
        self.pages: list[list[int]] = [[] for _ in range(rows)]
        self.row_of = np.zeros(rows * self.blocks, np.int64)
        self.block_of = np.full(rows * self.blocks, -1, np.int64)  # -1: free
        self.columns = torch.arange(self.blocks * PAGE)
        self.place(torch.zeros(rows, dtype=torch.long))

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the rows, in this order."""
        for r in range(len(self.pages)):
            if r not in rows:
                self.give_back(r)
        self.pages = [self.pages[r] for r in rows]
        for r, pages in enumerate(self.pages):
            self.row_of[pages] = r

    def give_back(self, r: int) -> None:
        """Free the pages of a row."""
        pages, self.pages[r] = self.pages[r], []
        self.block_of[pages], self.row_of[pages] = -1, 0
        for page in pages:
            heapq.heappush(self.free, page)

    def take(self, r: int) -> int:
        """Give a row its next page."""
        page = heapq.heappop(self.free)
        self.row_of[page], self.block_of[page] = r, len(self.pages[r])
        self.pages[r].append(page)
        return page

    def put(self, r: int, chunk: Chunk) -> None:
        """Give a row the first tokens that were read at once."""
        self.give_back(r)
        for start in range(0, chunk.read[0][0].shape[1], PAGE):
            page = self.take(r)
            for layer, (keys, values) in enumerate(chunk.read):
                some = keys[:, start : start + PAGE]
                self.keys[layer, page, :, : some.shape[1]] = some
                some = values[:, start : start + PAGE]
                self.values[layer, page, :, : some.shape[1]] = some

    def place(self, position: torch.Tensor) -> None:
        """Say where the next token of each row goes: (B,) int64, below W."""
        self.offset = position % PAGE
        for r in (self.offset == 0).nonzero()[:, 0].tolist():
            if position[r] == 0:
                self.give_back(r)
            self.take(r)
        used = np.flatnonzero(self.block_of >= 0)
        self.top = int(used[-1]) + 1
        self.used = torch.from_numpy(used)
        self.rows = torch.from_numpy(self.row_of[: self.top].copy())
        self.where = self.rows[self.used], torch.from_numpy(self.block_of[used])
        self.width = int(self.block_of[used].max()) + 1
        self.page = torch.tensor([pages[-1] for pages in self.pages])
        ahead = self.columns[: self.width * PAGE] > position[:, None]
        self.ahead = ahead.view(-1, self.width, 1, 1, PAGE)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Attend from a new token per row: query and result (B, heads, 1, size)."""
        rows, heads, _, size = query.shape
        groups = keys.shape[1]
        query = (query * scaling).view(rows, groups, heads // groups, size)
        of_pages = query[self.rows] @ keys.transpose(-1, -2)
        scores = of_pages.new_full(
            (rows, self.width, groups, heads // groups, PAGE), -torch.inf
        )
        scores[self.where] = of_pages[self.used]
        scores.masked_fill_(self.ahead, -torch.inf)
        scores = scores.permute(0, 2, 3, 1, 4)
        shape = scores.shape
        weights = scores.reshape(*shape[:3], -1).softmax(-1).view(shape)
        weights = weights.permute(0, 3, 1, 2, 4)
        of_pages = torch.zeros_like(of_pages)
        of_pages[self.used] = weights[self.where]
        parts = (of_pages @ values)[self.used]
        attended = parts.new_zeros(rows, self.width, groups, heads // groups, size)
        attended[self.where] = parts
        return attended.sum(1).view(rows, heads, 1, size)


def shape_of(config: PretrainedConfig, rows: int, width: int) -> tuple[int, ...]:
    """Shape of a cache of so many rows of so many tokens, heads as the model has."""
    heads = getattr(config, "num_key_value_heads", None)
    heads = heads or config.num_attention_heads
    size = getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, rows, heads, width, size


def slot_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    slots: Slots,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one new token per row to what its row has so far.

    query (B, heads, 1, size), of a Chunk (1, heads, L, size); key, value as
    `slots.update` gives them; returns (B, 1, heads, size), (1, L, heads, size).
    """
    return slots.attend(query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)
