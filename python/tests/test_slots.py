"""The cache of slots: what a plain forward computes, whoever the neighbours are."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_model
from omop_gpt.slots import ATTENTION, PAGE, Chunk, Pages, Slots

WIDTH = 150
FAMILIES = {
    "llama": {},
    "llama, grouped": {"num_key_value_heads": 2},
    "gpt2": {},
    "qwen3": {"head_dim": 16},
    "qwen3, grouped": {"num_key_value_heads": 1},
}


@pytest.fixture(scope="module")
def models(grammar):
    """Return a function that gives a family's model, with slots and without."""
    made = {}

    def pair(family: str):
        if family not in made:
            model_type = family.split(",")[0]
            plain = make_model(
                grammar, model_type, context=WIDTH + 10, **FAMILIES[family]
            )
            plain.set_attn_implementation("eager")
            slotted = copy.deepcopy(plain)
            slotted.set_attn_implementation(ATTENTION)
            made[family] = plain, slotted
        return made[family]

    return pair


def make_slots(model, rows: int, kind: type[Slots]) -> Slots:
    if kind is Pages:
        return Pages(model.config, rows, WIDTH, model.dtype)
    return Slots(model.config, rows, WIDTH, model.device, model.dtype)


@torch.inference_mode()
def step(model, slots: Slots, tokens: torch.Tensor, position: torch.Tensor):
    """Feed one token per row; returns logits (B, V)."""
    slots.place(position)
    return model(
        input_ids=tokens[:, None],
        position_ids=position[:, None],
        past_key_values=slots,
        use_cache=True,
        slots=slots,
    ).logits[:, -1]


def random_tokens(model, *shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, shape, generator=generator)


@pytest.mark.parametrize("kind", [Slots, Pages])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_compute_what_a_whole_forward_does(models, family, kind):
    plain, slotted = models(family)
    rows = 5
    slots = make_slots(slotted, rows, kind)
    # row 1 starts over after 40 tokens, row 3 after 7; row 4 runs to the last slot
    restart = torch.tensor([1000, 40, 1000, 7, 1000])
    tokens = random_tokens(plain, rows, WIDTH)
    position = torch.tensor([0, 0, 100, 0, 0])
    # row 2 begins in the middle of a history: fill its slots first
    for p in range(100):
        step(slotted, slots, tokens[:, p], torch.full((rows,), p))
    for _ in range(WIDTH):
        given = tokens.gather(1, position[:, None])[:, 0]
        found = step(slotted, slots, given, position)
        for row in range(rows):
            here = int(position[row])
            if here in (0, 1, 6, 39, 63, 64, 127, 128, WIDTH - 1):
                with torch.inference_mode():
                    whole = plain(tokens[row : row + 1, : here + 1]).logits[0, -1]
                torch.testing.assert_close(found[row], whole, rtol=1e-4, atol=1e-4)
        position = position + 1
        tokens[position == restart] = random_tokens(plain, WIDTH, seed=9)
        position[(position == restart) | (position == WIDTH)] = 0


def neighbours(
    model, slots, row: int, history: torch.Tensor, seed: int
) -> torch.Tensor:
    """Feed a history to one row while the others go their own ways; its logits."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(slots.page)
    ends = torch.randint(2, WIDTH, (rows,), generator=generator)
    position = torch.zeros(rows, dtype=torch.long)
    for p in range(seed * 20):  # they are on their way already
        step(model, slots, random_tokens(model, rows, seed=p), position)
        position = (position + 1) % ends
    found = []
    for p, token in enumerate(history):
        tokens = random_tokens(model, rows, seed=seed * 1000 + p)
        tokens[row], position[row] = token, p
        found.append(step(model, slots, tokens, position)[row])
        position = (position + 1) % ends
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("kind", [Slots, Pages])
def test_a_row_is_the_same_whatever_its_neighbours_are(models, family, rows, kind):
    _, model = models(family)
    slots = make_slots(model, rows, kind)
    history = random_tokens(model, 140, seed=7)
    first = neighbours(model, slots, 1, history, seed=0)
    for seed in (1, 2):
        assert torch.equal(first, neighbours(model, slots, 1, history, seed=seed))
    # in another slot too, which is what a refill in another order does
    other = neighbours(model, slots, rows - 1, history, seed=3)
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Slots, Pages])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_chunk_that_is_read_at_once_is_gone_on_with(models, family, kind):
    """Below a page, a whole one, more; beside rows that step, over one that has run."""
    plain, slotted = models(family)
    lengths = [1, PAGE - 1, PAGE, PAGE + 1, 130]
    rows = len(lengths)
    slots = make_slots(slotted, rows, kind)
    tokens = random_tokens(plain, rows, WIDTH, seed=3)
    for p in range(70):
        step(slotted, slots, tokens[:, p], torch.full((rows,), p))
    with torch.inference_mode():
        for r, length in enumerate(lengths):
            chunk = Chunk()
            slotted.base_model(
                input_ids=tokens[r : r + 1, :length],
                position_ids=torch.arange(length)[None],
                past_key_values=chunk,
                use_cache=True,
                slots=chunk,
            )
            slots.put(r, chunk)
        expected = plain(tokens).logits
    position = torch.tensor(lengths)
    for _ in range(WIDTH - max(lengths)):
        given = tokens.gather(1, position[:, None])[:, 0]
        logits = step(slotted, slots, given, position)
        for r in range(rows):
            torch.testing.assert_close(
                logits[r], expected[r, position[r]], atol=1e-4, rtol=1e-4
            )
        position += 1


def test_slots_hold_the_key_value_heads_only(models):
    _, model = models("qwen3, grouped")
    slots = make_slots(model, 4, Slots)
    assert slots.keys.shape == slots.values.shape == (2, 4, 1, WIDTH, 8)
    pages = make_slots(model, 4, Pages)
    assert pages.keys.shape == pages.values.shape == (2, 4 * 3, 1, 64, 8)
    assert slots.get_seq_length() == pages.get_seq_length() == 0


def test_pages_lie_densely_and_come_back(models):
    """What is read is what rows hold, and a row that starts over gives all back."""
    _, model = models("llama")
    slots = make_slots(model, 4, Pages)
    for p in range(WIDTH):
        slots.place(torch.full((4,), p))
        assert slots.top == len(slots.used) == 4 * (p // 64 + 1)
    slots.place(torch.zeros(4, dtype=torch.long))
    assert slots.top == 4
    assert sorted([*slots.free, *(p for pages in slots.pages for p in pages)]) == [
        *range(12)
    ]
