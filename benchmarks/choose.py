"""Compare families of models and layouts of histories, each trained on as much.

    python benchmarks/choose.py --source W/patient_sequence --output_folder C \
        [--only NAME …] [any flag of `omop-gpt train`]

Every variant sees the same patients in the same order. A history says the same in all
of them, so nats per validation patient compare (but `shuffled`, which has to guess an
order that means nothing). One line per variant goes to C/results.jsonl; what stands
there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from omop_gpt.grammar import Grammar
from omop_gpt.nats import baselines
from omop_gpt.packing import Chunks, Packs, pack, read_chunks, read_histories
from omop_gpt.progress import Progress
from omop_gpt.settings import parse
from omop_gpt.trainer import PatientTrainer, build_model
from transformers import set_seed

SPLITS = ("train", "validation")


class TimedEmbedding(torch.nn.Module):
    """Token embeddings, with embeddings of the age, the year or the month of then."""

    def __init__(
        self, tokens: torch.nn.Embedding, grammar: Grammar, told: Sequence[str]
    ) -> None:
        super().__init__()
        self.tokens = tokens
        width = tokens.weight.shape[1]
        self.told = torch.nn.ModuleDict(
            {name: torch.nn.Embedding(130, width) for name in told}
        )
        for table in self.told.values():
            torch.nn.init.zeros_(table.weight)
        days = np.where(grammar.moves_cursor, grammar.days, 0)
        starts = grammar.has_kind("bos", "cont")
        for name, values in {
            "days": days,
            "starts": starts,
            "numbers": grammar.number,
        }.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The table that a tied model writes with."""
        return self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed (1, T) ids; year and age are the second and third of each chunk."""
        row = ids[0]
        positions = torch.arange(len(row))
        start = torch.where(self.starts[row], positions, 0).cummax(0).values
        total = self.days[row].cumsum(0)
        past = total - total[start]
        last = len(row) - 1
        year = self.numbers[row[(start + 1).clamp(max=last)]]
        age = self.numbers[row[(start + 2).clamp(max=last)]]
        known = (positions - start >= 2).long()  # what comes before is not given away
        numbers = {
            "age": age + past // 365,
            "year": year - 1910 + past // 365,
            "month": (past % 365.2425 / 365.2425 * 12).long(),
        }
        embedded = self.tokens(ids)
        for name, table in self.told.items():
            embedded = embedded + table((numbers[name].clamp(0, 128) + 1) * known)[None]
        return embedded


def by_count(grammar: Grammar, sign: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a key that puts the commonest events first (-1) or last (1)."""
    return lambda events: sign * grammar.train_count[events]


def reorder(
    source: Path, target: Path, key: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Write histories whose events of one day and hour are ordered by a key."""
    grammar = Grammar.load(source / "vocabulary")
    is_event = grammar.has_kind("event")
    is_detail = np.isin(grammar.roles, ("value", "end"))
    (target / "vocabulary").parent.mkdir(parents=True, exist_ok=True)
    (target / "vocabulary").symlink_to((source / "vocabulary").resolve())
    for split in SPLITS:
        rows: dict[str, list] = {"person_id": [], "token_ids": [], "token_count": []}
        for person, ids in read_histories(
            sorted((source / split).glob("*.parquet")), grammar
        ):
            # an event and its details move together, and stay within their run
            heads = np.flatnonzero(~is_detail[ids])
            groups = np.split(ids, heads[1:])
            event = is_event[ids[heads]]
            run = np.where(event, 0, 1).cumsum() * 2 + event
            order = np.lexsort((np.where(event, key(ids[heads]), 0), run))
            rows["person_id"].append(person)
            rows["token_ids"].append(np.concatenate([groups[i] for i in order]))
            rows["token_count"].append(len(ids))
        (target / split).mkdir()
        pq.write_table(pa.table(rows), target / split / "part-0.parquet")


def one_token_per_gap(
    grammar: Grammar, splits: dict[str, Chunks]
) -> tuple[int, dict[str, Chunks]]:
    """Write each gap as one token: return the vocabulary's size and the chunks."""
    is_gap = grammar.roles == "gap"
    gaps: dict[int, int] = {}
    result = {}
    for name, chunks in splits.items():
        lists, contexts = [], []
        for ids, context in (chunks[index] for index in range(len(chunks))):
            part = is_gap[ids]
            opens = part & ~np.r_[False, part[:-1]]
            total = np.r_[0, np.where(part, grammar.days[ids], 0).cumsum()]
            ends = part & ~np.r_[part[1:], False]
            days = total[1:][ends] - total[:-1][opens]
            out = ids.copy()
            out[opens] = [
                gaps.setdefault(int(day), grammar.vocab_size + len(gaps))
                for day in days
            ]
            keep = ~part | opens
            lists.append(out[keep])
            contexts.append(int(keep[:context].sum()))
        lengths = np.array([len(ids) for ids in lists], np.int32)
        result[name] = replace(
            chunks,
            tokens=np.concatenate(lists).astype(np.int32),
            starts=np.cumsum(lengths, dtype=np.int64) - lengths,
            lengths=lengths,
            contexts=np.array(contexts, np.int32),
        )
    return grammar.vocab_size + len(gaps), result


FAMILIES = {
    "llama": ["--model_type", "llama"],
    "gpt2": ["--model_type", "gpt2"],
    "qwen3": ["--model_type", "qwen3"],
    "llama, untied": ["--tie_word_embeddings", "false"],
    "llama, seed 2": ["--seed", "2"],
    "llama, age and year embedded": [],
    "llama, month embedded": [],
    "llama, one token per gap": [],
    "llama, rarest event first": [],
    "llama, commonest event first": [],
    "llama, shuffled events": [],
    "gpt2, half the learning rate": ["--model_type", "gpt2"],
    "qwen3, seed 2": ["--model_type", "qwen3", "--seed", "2"],
}


def train(name: str, source: Path, out: Path, flags: list[str]) -> dict:
    """Train one variant; return what was measured."""
    grammar = Grammar.load(source / "vocabulary")
    orders = {
        "rarest": by_count(grammar, 1),
        "commonest": by_count(grammar, -1),
        "shuffled": lambda events: np.random.default_rng(events).random(len(events)),
    }
    for word, key in orders.items():
        if word in name:
            if not (out / word).exists():
                reorder(source, out / word, key)
            source = out / word
    config, arguments = parse(
        [*flags, *FAMILIES[name], "--data_folder", str(source), "--output_dir",
         str(out / "work"), "--save_strategy", "no", "--evaluation_strategy", "steps",
         "--eval_steps", "0.334"]
    )  # fmt: skip
    if "half" in name:
        arguments.learning_rate /= 2
    size = grammar.vocab_size
    splits = {
        split: read_chunks(
            source / split, grammar, max_tokens=config.max_position_embeddings
        )
        for split in SPLITS
    }
    if "one token per gap" in name:
        size, splits = one_token_per_gap(grammar, splits)
    set_seed(arguments.seed)
    language = SimpleNamespace(
        vocab_size=size, pad_id=grammar.pad_id, bos_id=grammar.bos_id,
        eos_id=grammar.eos_id, fingerprint=grammar.fingerprint,
    )  # fmt: skip
    model = build_model(config, language)
    if "embedded" in name:
        told = [word for word in ("age", "year", "month") if word in name]
        model.set_input_embeddings(
            TimedEmbedding(model.get_input_embeddings(), grammar, told)
        )
    most = config.max_tokens_per_batch
    (out / "work").mkdir(exist_ok=True)
    trainer = PatientTrainer(
        model=model,
        args=arguments,
        train_batches=Packs(
            splits["train"], max_tokens=most, seed=arguments.seed,
            epochs=int(np.ceil(arguments.num_train_epochs)),
        ),
        eval_batches=Packs(splits["validation"], max_tokens=most),
        progress=Progress(out / "work" / "metrics.jsonl"),
        data_collator=pack,
    )  # fmt: skip
    started, cpu = time.time(), time.process_time()
    trainer.train()
    curve = [
        (record["epoch"], round(record["eval_nats_per_patient"], 2))
        for record in trainer.state.log_history
        if "eval_nats_per_patient" in record
    ]
    counted = baselines(splits["train"], splits["validation"], size)
    return {
        "name": name,
        "parameters": model.num_parameters(),
        "vocabulary": size,
        "patients": splits["train"].patients,
        "tokens": splits["train"].predicted,
        "nats": curve[-1][1],
        "curve": curve,
        "bigram": round(counted["bigram"], 2),
        "unigram": round(counted["unigram"], 2),
        "seconds": round(time.time() - started),
        "cpu_seconds": round(time.process_time() - cpu),
    }


def draw(results: list[dict], file: Path) -> None:
    """Draw the learning curves of the families, with the bigram."""
    plt.rcParams["svg.hashsalt"] = "omop-gpt"
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        epochs, nats = zip(*result["curve"], strict=True)
        axis.plot(epochs, nats, "o-", markersize=3, label=result["name"])
    axis.axhline(results[0]["bigram"], color="grey", linestyle=":", label="bigram")
    axis.set(xlabel="epochs", ylabel="nats per validation patient", yscale="log")
    axis.legend()
    axis.grid(alpha=0.3, which="both")
    figure.savefig(file)


def main() -> None:
    """Train what has no line yet, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output_folder", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    arguments, flags = parser.parse_known_args()
    out = arguments.output_folder
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {result["name"]: result for result in map(json.loads, lines)}
    for name in arguments.only:
        if name not in done:
            done[name] = train(name, arguments.source, out, flags)
            with file.open("a") as handle:
                handle.write(json.dumps(done[name]) + "\n")
    print("| variant | parameters | tokens a patient | nats per validation patient |")
    print("|---|---|---|---|")
    for result in done.values():
        tokens = result["tokens"] / result["patients"]
        print(
            f"| {result['name']} | {result['parameters']:,} | {tokens:.0f} "
            f"| {result['nats']:.1f} |"
        )
    curves = [done[name] for name in ("gpt2", "llama", "qwen3") if name in done]
    if curves:
        draw(curves, out / "learning_curves.svg")


if __name__ == "__main__":
    sys.exit(main())
