"""Train and sample beside CEHR-GPT, on the same patients, layers, width and machine.

    python benchmarks/model.py beside --source OMOP --output_folder B --peer_python P
    python benchmarks/model.py compare --source W --output_folder S

The first encodes OMOP, exports it once more for CEHR-GPT, trains both for so many
epochs, samples from both, and asks both for the nats of held-out patients. P is the
Python of an environment with cehrgpt (docs/cehr-gpt.md tells how). The second
prints a table of what was sampled into S beside the held-out patients of W. Quote
ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).parent
OURS = [sys.executable, "-m", "omop_gpt"]
SHAPE = {"hidden_size": 192, "num_hidden_layers": 4, "max_position_embeddings": 512}
# its early stopping cannot be switched off, and wants the rest
EVALUATION = {
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": "true",
}
# its generate(), with a stop-watch: what it starts with is not counted
SAMPLE_PEER = """
import runpy, sys, time
from cehrgpt.models.hf_cehrgpt import CEHRGPT2LMHeadModel as Model
inner = Model.generate
def generate(self, *args, **named):
    started = time.time()
    result = inner(self, *args, **named)
    print("#seconds", time.time() - started, flush=True)
    return result
Model.generate = generate
name = "cehrgpt.generation.generate_batch_hf_gpt_sequence"
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def run(command: list[str], log: Path, **environment: str) -> str:
    """Run a command, what it prints in `log`; return that."""
    with log.open("w") as output:
        subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
            env=os.environ | environment,
        )
    return log.read_text()


def flags(settings: dict[str, object]) -> list[str]:
    """Spell settings as flags; True is a flag without a value."""
    words = []
    for name, value in settings.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def seconds_in(text: str) -> float:
    """Add up what a stop-watch printed."""
    return sum(float(found) for found in re.findall(r"#seconds ([\d.]+)", text))


def prepare(source: Path, root: Path) -> None:
    """Encode, and write the timeline once more as CEHR-GPT reads it."""
    run(
        [*OURS, "encode", "--input_folder", str(source), "--output_folder", str(root)],
        root / "encode.log",
    )
    peer = root / "cehrgpt"
    if not peer.exists():
        peer.mkdir()
        variables = {"input_folder": str(source), "cehrgpt_folder": str(peer)}
        run(
            [
                sys.executable, "-m", "dbt.cli.main", "run", "--selector", "cehrgpt",
                "--vars", json.dumps(variables), "--project-dir", str(HERE.parent),
                "--profiles-dir", str(HERE.parent),
                "--target-path", str(root / "target"), "--log-path", str(root / "logs"),
            ],
            root / "export.log",
            OMOP_GPT_WAREHOUSE=str(root / "warehouse.duckdb"),
        )  # fmt: skip


def train_ours(
    root: Path, epochs: float, extra: list[str], name: str = "model"
) -> dict[str, float]:
    """Train ours; reading the data and writing the model are counted in."""
    out = root / name
    shutil.rmtree(out, ignore_errors=True)
    settings = SHAPE | {
        "num_attention_heads": 4,
        "num_train_epochs": epochs,
        "data_folder": root / "patient_sequence",
        "output_dir": out,
        **EVALUATION,
    }
    run([*OURS, "train", *flags(settings), *extra], root / "train.log")
    manifest = json.loads((out / "manifest.json").read_text())
    result, seconds = manifest["result"], manifest["seconds"]
    return {
        "seconds": seconds,
        "patients_per_second": round(result["patients"] * epochs / seconds, 2),
        "tokens_per_second": round(result["tokens_predicted"] * epochs / seconds),
        "parameters": result["parameters"],
    }


def train_peer(root: Path, python: str, epochs: float) -> dict[str, float]:
    """Train CEHR-GPT with the settings that were the fastest for it."""
    peer = root / "cehrgpt"
    model = peer / "model"
    if not (model / "config.json").exists():
        for folder in (model, peer / "prepared"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        settings = SHAPE | {
            "model_name_or_path": model, "tokenizer_name_or_path": model,
            "output_dir": model, "dataset_prepared_path": peer / "prepared",
            "data_folder": peer / "patient_sequence",
            "patient_splits_path": root / "timeline" / "persons",
            "do_train": "true", "seed": 42, "n_head": 4,
            "sample_packing": True, "max_tokens_per_batch": 1024,
            **EVALUATION, "num_train_epochs": epochs, "learning_rate": 0.0005,
            "warmup_ratio": 0.01, "weight_decay": 0.01, "logging_steps": 10,
            "dataloader_num_workers": 1, "dataloader_prefetch_factor": 4,
            "preprocessing_num_workers": 2, "report_to": "none", "use_cpu": "true",
        }  # fmt: skip
        run(
            [
                python, "-m", "cehrgpt.runners.hf_cehrgpt_pretrain_runner",
                *flags(settings),
            ],
            root / "peer_train.log",
            HF_HUB_OFFLINE="1",
            CUDA_VISIBLE_DEVICES="",
        )  # fmt: skip
    log = (root / "peer_train.log").read_text()
    seconds = float(re.findall(r"'train_runtime': ([\d.]+)", log)[-1])
    epochs = float(re.findall(r"'epoch': ([\d.]+)", log)[-1])  # it may stop early
    table = pq.read_table(peer / "patient_sequence", columns=["split", "concept_ids"])
    table = table.filter(pc.equal(table["split"], "train"))
    tokens = pc.sum(pc.list_value_length(table["concept_ids"])).as_py()
    return {
        "seconds": seconds,
        "epochs": epochs,
        "patients_per_second": round(len(table) * epochs / seconds, 2),
        "tokens_per_second": round(tokens * epochs / seconds),
    }


def sample_ours(root: Path, patients: int, batch: int) -> dict[str, float]:
    """Sample from ours, the model's loading and the writing of files included."""
    shutil.rmtree(root / "sampled", ignore_errors=True)
    settings = {
        "model_folder": root / "model",
        "output_folder": root / "sampled",
        "num_of_patients": patients,
        "batch_size": batch,
        "demographic_data_path": root / "patient_sequence" / "train",
    }
    run([*OURS, "sample", *flags(settings)], root / "sample.log")
    sampled = root / "sampled" / "generated_sequences"
    manifest = json.loads((sampled / "_manifest.json").read_text())
    counts, seconds = manifest["result"], manifest["seconds"]
    valid = counts["patients"] - counts["not_histories"]
    return {
        "seconds": seconds,
        "patients": counts["patients"],
        "valid": valid,
        "valid_per_second": round(valid / seconds, 2),
        "tokens_per_second": round(counts["tokens"] / seconds),
    }


def sample_peer(
    root: Path, source: Path, python: str, patients: int
) -> dict[str, float]:
    """Sample from CEHR-GPT, and count what its own converter takes."""
    peer = root / "cehrgpt"
    shutil.rmtree(peer / "synthetic", ignore_errors=True)
    shutil.rmtree(peer / "omop", ignore_errors=True)
    settings = {
        "model_folder": peer / "model", "tokenizer_folder": peer / "model",
        "output_folder": peer / "synthetic", "num_of_patients": patients,
        "batch_size": 16, "buffer_size": 128, "context_window": 512,
        "sampling_strategy": "TopPStrategy", "top_p": 1.0, "temperature": 1.0,
        "repetition_penalty": 1.0, "epsilon_cutoff": 0.0,
        "demographic_data_path": peer / "patient_sequence",
    }  # fmt: skip
    (peer / "synthetic").mkdir()
    seconds = seconds_in(
        run([python, "-c", SAMPLE_PEER, *flags(settings)], root / "peer_sample.log")
    )
    (sequences,) = (peer / "synthetic").glob("*/generated_sequences")
    # made beforehand: its processes race to make them
    for name in (
        "person", "visit_occurrence", "condition_occurrence", "procedure_occurrence",
        "drug_exposure", "death", "measurement",
    ):  # fmt: skip
        (peer / "omop" / name).mkdir(parents=True)
    settings = {
        "patient_sequence_path": sequences, "output_folder": peer / "omop",
        "concept_path": source / "concept", "buffer_size": 1280, "cpu_cores": 2,
    }  # fmt: skip
    run(
        [python, "-m", "cehrgpt.generation.omop_converter_batch", *flags(settings)],
        root / "peer_convert.log",
    )
    lists = pq.read_table(sequences, columns=["concept_ids"])["concept_ids"]
    files = list((peer / "omop" / "person").glob("*.parquet"))
    valid = sum(pq.read_metadata(file).num_rows for file in files)
    return {
        "seconds": round(seconds, 1),
        "patients": len(lists),
        "valid": valid,
        "valid_per_second": round(valid / seconds, 2),
        "tokens_per_second": round(
            pc.sum(pc.list_value_length(lists)).as_py() / seconds
        ),
    }


def nats(root: Path, folder: Path, python: str) -> dict[str, float]:
    """Nats per held-out patient after the demographics, of the patients of both.

    Of those whose history fits the context in both layouts; ours says more (hours,
    ends, supplies, gaps beyond three years), and is charged for it.
    """
    from omop_gpt.grammar import Grammar
    from omop_gpt.nats import files_of, nats_of_persons
    from omop_gpt.packing import read_histories

    model = root / "cehrgpt" / "model"
    sequences = root / "cehrgpt" / "patient_sequence"
    found = subprocess.run(
        [python, str(HERE / "peer_nats.py"), str(model), str(sequences), "holdout",
         str(SHAPE["max_position_embeddings"])],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    theirs = {int(k): v for k, v in json.loads(found.stdout.splitlines()[-1]).items()}
    holdout = root / "patient_sequence" / "holdout"
    ours = nats_of_persons(folder, holdout, given=6)
    grammar = Grammar.load(folder / "vocabulary")
    fits = {
        person
        for person, history in read_histories(files_of(holdout), grammar)
        if len(history) <= SHAPE["max_position_embeddings"]
    }
    both = sorted(theirs.keys() & fits)
    return {
        "patients": len(both),
        "ours": round(sum(ours[p] for p in both) / len(both), 1),
        "peer": round(sum(theirs[p] for p in both) / len(both), 1),
    }


def compare(arguments: argparse.Namespace, _extra: list[str]) -> None:
    """Print how long and how old sampled patients are beside those held out."""
    import numpy as np
    from omop_gpt.grammar import Grammar

    root = Path(arguments.source)
    model = root / "model"
    grammar = Grammar.load(model / "vocabulary")
    shape = json.loads((model / "config.json").read_text())
    visits = grammar.has_kind("visit", "no_visit")
    events = grammar.has_kind("event")
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, folder in (
        ("held out", root / "patient_sequence" / "holdout"),
        ("sampled", Path(arguments.output_folder) / "generated_sequences"),
    ):
        lists = pq.read_table(folder, columns=["token_ids"])["token_ids"].to_pylist()
        lists = [np.array(ids) for ids in lists]
        valid = sum(grammar.is_history(ids) for ids in lists)
        found[name] = {
            "tokens": np.array([len(ids) for ids in lists]),
            "visits": np.array([visits[ids].sum() for ids in lists]),
            "events": np.array([events[ids].sum() for ids in lists]),
            "age at start": np.array([grammar.number[ids[2]] for ids in lists]),
        }
        long = np.mean(found[name]["tokens"] > shape["max_position_embeddings"])
        print(f"{name}: {len(lists):,} patients, {valid:,} valid, {long:.2%} longer")
    print("| | | mean | 5 % | 25 % | 50 % | 75 % | 95 % | largest distance |")
    print("|---|---|---|---|---|---|---|---|---|")
    for measure in found["held out"]:
        one, other = (found[name][measure] for name in found)
        grid = np.unique(np.concatenate([one, other]))
        gap = abs(
            np.searchsorted(np.sort(one), grid, side="right") / len(one)
            - np.searchsorted(np.sort(other), grid, side="right") / len(other)
        ).max()
        for name in found:
            values = found[name][measure]
            points = np.percentile(values, [5, 25, 50, 75, 95])
            cells = " | ".join(f"{point:.0f}" for point in points)
            told = f"{gap:.3f}" if name == "sampled" else ""
            print(f"| {measure} | {name} | {values.mean():.1f} | {cells} | {told} |")
    noise = 1.36 * (1 / len(one) + 1 / len(other)) ** 0.5
    print(f"by chance alone the distance is below {noise:.3f} in 95 % of comparisons")


def beside(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Train and sample with both, in turn."""
    root, source = Path(arguments.output_folder), Path(arguments.source)
    root.mkdir(parents=True, exist_ok=True)
    prepare(source, root)
    python = arguments.peer_python

    def told(what: str, rate: str, rows: list[dict[str, float]]) -> None:
        for who, row in zip(("ours", "peer"), rows, strict=True):
            print(what, who, json.dumps(row), flush=True)
        print(f"{what}: ratio {rows[0][rate] / rows[1][rate]:.1f}", flush=True)

    ours = train_ours(root, arguments.epochs, extra)
    theirs = train_peer(root, python, arguments.epochs)
    told("train", "patients_per_second", [ours, theirs])
    sampled = [
        sample_ours(root, arguments.patients, arguments.batch_size),
        sample_peer(root, source, python, arguments.peer_patients),
    ]
    told("sample", "valid_per_second", sampled)
    print("nats", json.dumps(nats(root, root / "model", python)), flush=True)
    epochs = round(arguments.epochs * theirs["seconds"] / ours["seconds"])
    longer = train_ours(root, epochs, extra, "model_of_equal_time")
    found = nats(root, root / "model_of_equal_time", python)
    print("nats at equal time", json.dumps(found | {"seconds": longer["seconds"]}))


def main() -> None:
    """Read the flags; those that are not known go to `omop-gpt train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(required=True)
    for name, function in (
        ("beside", beside),
        ("compare", compare),
    ):
        one = parsers.add_parser(name, help=function.__doc__)
        one.set_defaults(function=function)
        one.add_argument("--source", required=True)
        one.add_argument("--output_folder", required=True)
        if name == "beside":
            one.add_argument("--peer_python", required=True)
            one.add_argument("--epochs", type=float, default=6)
            one.add_argument("--peer_patients", type=int, default=128)
            one.add_argument("--patients", type=int, default=2000)
            one.add_argument("--batch_size", type=int, default=256)
    arguments, extra = parser.parse_known_args()
    arguments.function(arguments, extra)


if __name__ == "__main__":
    main()
