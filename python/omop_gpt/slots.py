"""A key-value cache of slots: each row stands at a position of its own.

A row that is finished starts over at position 0 while the others go on, so a batch
never waits for its longest member. Used with transformers' own models through
AttentionInterface; nothing here depends on the model family.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.cache_utils import Cache

ATTENTION = "omop_gpt_slots"


class Slots(Cache):
    """Keys and values of B rows and W positions, in every layer."""

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
        heads = getattr(config, "num_key_value_heads", None)
        heads = heads or config.num_attention_heads
        size = getattr(config, "head_dim", None)
        size = size or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, rows, heads, width, size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(rows, device=device)
        self.columns = torch.arange(width, device=device)
        self.position = torch.zeros(rows, dtype=torch.long, device=device)
        self.lengths: list[int] = []  # keys of each row, on a processor
        self.mask: torch.Tensor | None = None  # the same as a mask, on CUDA

    def place(self, position: torch.Tensor) -> None:
        """Say where the next token of each row goes: (B,) int64, below W."""
        self.position = position
        if self.keys.is_cuda:
            self.mask = (self.columns <= position[:, None])[:, None, None, :]
        else:
            self.lengths = (position + 1).tolist()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one token's keys and values (B, heads, 1, size) into their places."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[self.rows, :, self.position] = key_states[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.position] = value_states[:, :, 0].to(values.dtype)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return 0: positions are given, row by row."""
        return 0


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

    query (B, heads, 1, size); key, value (B, key-value heads, W, size); returns
    (B, 1, heads, size).
    """
    attend = partial(
        scaled_dot_product_attention,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if slots.mask is not None:
        out = attend(query, key, value, attn_mask=slots.mask)
    else:
        # row by row: nothing is copied or masked, and what a row computes does not
        # depend on how long its neighbours are
        out = torch.cat(
            [
                attend(query[r : r + 1], key[r : r + 1, :, :n], value[r : r + 1, :, :n])
                for r, n in enumerate(slots.lengths)
            ]
        )
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, slot_attention)
