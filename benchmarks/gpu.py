"""Measure training and sampling on one GPU: shares of the rate of its matrix products.

    python benchmarks/gpu.py examples/base.yaml --data_folder W/patient_sequence

Prints JSON lines: the bfloat16 rate of a large matrix product; tokens a second of
training steps (forward, backward, optimiser) in packs of whole patients, and the share
of that rate; tokens a second of sampling with the same weights. Needs the sequences of
`omop-gpt encode`, neither dbt nor Spark. Runs on a processor too, to try it out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import torch
from omop_gpt.grammar import Grammar
from omop_gpt.packing import Packs, pack, read_chunks
from omop_gpt.sampler import SampleConfig, Sampler
from omop_gpt.settings import parse
from omop_gpt.slots import ATTENTION
from omop_gpt.trainer import build_model
from transformers import PreTrainedModel

WARM_UP = 5
STEPS = 20


def finish(device: torch.device) -> None:
    """Wait until the device has done what was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second of a square product in bfloat16."""
    size = 8192 if device.type == "cuda" else 1024
    one, other = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    for number in range(WARM_UP + STEPS):
        if number == WARM_UP:
            finish(device)
            started = time.time()
        one @ other
    finish(device)
    return 2 * size**3 * STEPS / (time.time() - started)


def train_rate(
    model: PreTrainedModel, packs: Packs, device: torch.device, rate: float
) -> dict[str, float]:
    """Train for some steps; tokens a second, and the share of the matrix rate."""
    chunks = packs.chunks
    batches = cycle([pack([chunks[i] for i in batch]) for batch in packs])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = pairs = 0.0
    started = 0.0
    for number in range(WARM_UP + STEPS):
        if number == WARM_UP:
            finish(device)
            tokens, pairs, started = 0, 0, time.time()
        batch = dict(next(batches))
        count = batch.pop("token_count")
        lengths = batch["cu_seq_lens_q"].diff().double()
        tokens += count
        pairs += float((lengths * (lengths + 1) / 2).sum())
        for name, value in batch.items():
            if torch.is_tensor(value):
                batch[name] = value.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model(**batch, use_cache=False, num_items_in_batch=count).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    finish(device)
    took = time.time() - started
    shape = model.config
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    if not shape.tie_word_embeddings:
        matrices -= shape.vocab_size * shape.hidden_size  # a table is looked up
    # forward once, backward twice; a product and its sum are two operations
    operations = 6 * matrices * tokens
    operations += 12 * shape.num_hidden_layers * shape.hidden_size * pairs
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_batch": round(tokens / STEPS),
        "train_tokens_per_second": round(tokens / took),
        "share_of_matrix_rate": round(operations / took / rate, 3),
    }


def sample_rate(
    model: PreTrainedModel, grammar: Grammar, device: torch.device
) -> dict[str, float]:
    """Sample for some steps with all rows busy; tokens a second."""
    config = SampleConfig(model_folder="", output_folder="", num_of_patients=1 << 20)
    sampler = Sampler(model, grammar, config)
    steps = 200 if device.type == "cuda" else STEPS
    forward, times = sampler.forward, []

    def timed(*inputs: torch.Tensor) -> torch.Tensor:
        finish(device)
        times.append(time.time())
        if len(times) > WARM_UP + steps:
            raise KeyboardInterrupt
        return forward(*inputs)

    sampler.forward = timed
    with torch.inference_mode(), suppress(KeyboardInterrupt):
        for _ in sampler.run([*range(1 << 20)]):
            pass
    rows = sampler.batch_size
    rate = rows * steps / (times[-1] - times[WARM_UP])
    return {"rows": rows, "sample_tokens_per_second": round(rate)}


def main() -> None:
    """Measure the three rates."""
    config, arguments = parse([*sys.argv[1:], "--output_dir", tempfile.mkdtemp()])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    rate = matrix_rate(device)
    print(json.dumps({"device": name, "matrix_teraflops": round(rate / 1e12, 1)}))
    data = Path(config.data_folder)
    grammar = Grammar.load(data / "vocabulary")
    context = config.max_position_embeddings
    chunks = read_chunks(data / "train", grammar, max_tokens=context)
    packs = Packs(chunks, max_tokens=config.max_tokens_per_batch, seed=1)
    model = build_model(config, grammar).to(device)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trained = torch.compile(model) if arguments.torch_compile else model
    print(json.dumps(train_rate(trained, packs, device, rate)), flush=True)
    model.set_attn_implementation(ATTENTION)
    if device.type == "cuda":
        model = model.to(torch.bfloat16)
    print(json.dumps(sample_rate(model.eval(), grammar, device)))


if __name__ == "__main__":
    main()
