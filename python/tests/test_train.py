"""Training: the right loss, the same weights again, and a plain model folder."""

from __future__ import annotations

import json
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omop_gpt import train as training
from omop_gpt.grammar import Grammar
from omop_gpt.packing import Chunks, Packs, Pad, pack, read_chunks
from omop_gpt.settings import MODEL_TYPES
from omop_gpt.step import InputError
from omop_gpt.train import TrainConfig, parse, train_step
from omop_gpt.trainer import PatientTrainer, build_model
from safetensors.torch import load_file
from test_packing import make_language, make_split
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "max_tokens_per_batch": 1024,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small are done before a second thread wakes up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a patient_sequence folder: 80 patients, 20 to validate on."""
    folder = tmp_path_factory.mktemp("data") / "patient_sequence"
    grammar = make_language(folder / "vocabulary")
    make_split(folder / "train", grammar, people=80, seed=1, longest=20)
    make_split(folder / "validation", grammar, people=20, seed=2, longest=20)
    return folder


def run(data: Path, out: Path, **flags: object) -> dict:
    """Train a tiny model with the command line's flags."""
    flags = {"num_train_epochs": 3, "logging_steps": 1} | TINY | flags
    argv = ["--data_folder", str(data), "--output_dir", str(out)]
    for name, value in flags.items():
        argv += [f"--{name}", str(value)]
    return train_step(*parse(argv))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    """Say whether two model folders hold the same bits."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def losses(folder: Path) -> list[tuple]:
    lines = (folder / "training" / "metrics.jsonl").read_text().splitlines()
    return [
        (r["step"], r.get("loss"), r.get("eval_loss")) for r in map(json.loads, lines)
    ]


def validation_nats(data: Path, folder: Path) -> float:
    """Score the validation patients with the written model, chunk by chunk."""
    grammar = Grammar.load(folder / "vocabulary")
    model = AutoModelForCausalLM.from_pretrained(folder)
    nats = 0.0
    for ids, context in read_chunks(data / "validation", grammar, max_tokens=96):
        input_ids = torch.from_numpy(ids.astype(np.int64))
        start = max(context, 1)
        with torch.no_grad():
            logits = model(input_ids[None]).logits[0, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(
            logits, input_ids[start:], reduction="sum"
        )
        nats += loss.item()
    return nats


class CutOffError(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the next training die before a step."""

    def after(steps: int) -> None:
        real = PatientTrainer.training_step

        def step(self, *args, **kwargs):
            if self.state.global_step == steps:
                monkeypatch.setattr(PatientTrainer, "training_step", real)
                raise CutOffError
            return real(self, *args, **kwargs)

        monkeypatch.setattr(PatientTrainer, "training_step", step)

    return after


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("packing", [True, False])
def test_packed_loss_is_the_loss_one_by_one(data, model_type, packing):
    grammar = Grammar.load(data / "vocabulary")
    config = TrainConfig(data_folder=str(data), model_type=model_type, **TINY)
    torch.manual_seed(0)
    model = build_model(config, grammar).double()
    chunks = read_chunks(data / "train", grammar, max_tokens=96)
    items = [chunks[i] for i in range(30)]
    assert any(context for _, context in items)
    batch = (pack if packing else Pad(pad_id=grammar.pad_id))(items)
    batch.pop("token_count")
    together = model(**batch, num_items_in_batch=1).loss
    together.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    alone = 0.0
    plain = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    plain = plain.double()
    plain.load_state_dict(model.state_dict())
    for ids, context in items:
        input_ids = torch.from_numpy(ids.astype(np.int64))[None]
        labels = input_ids.clone()
        labels[:, : max(context, 1)] = -100
        loss = plain(input_ids=input_ids, labels=labels, num_items_in_batch=1).loss
        loss.backward()
        alone += loss.item()
    assert together.item() == pytest.approx(alone, rel=1e-5)
    expected = plain.get_input_embeddings().weight.grad
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_float32_packed_loss_per_token(data):
    grammar = Grammar.load(data / "vocabulary")
    config = TrainConfig(data_folder=str(data), **TINY)
    model = build_model(config, grammar)
    chunks = read_chunks(data / "train", grammar, max_tokens=96)
    items = [chunks[i] for i in range(30)]
    one_by_one = nats = 0
    with torch.no_grad():
        for group in (items, *([item] for item in items)):
            batch = pack(group)
            batch.pop("token_count")
            nats = model(**batch, num_items_in_batch=1).loss.item()
            if len(group) == 1:
                one_by_one += nats
            else:
                together = nats
    tokens = sum(len(ids) - max(context, 1) for ids, context in items)
    assert together / tokens == pytest.approx(one_by_one / tokens, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "dies_before"),
    [
        ({"save_strategy": "steps", "save_steps": 4}, 6),
        ({"save_strategy": "epoch", "gradient_accumulation_steps": 2}, 4),
        ({"save_strategy": "steps", "save_steps": 3, "sample_packing": False}, 14),
    ],
)
def test_a_training_cut_off_ends_the_same(data, tmp_path, cut_off, flags, dies_before):
    flags |= {"model_type": "gpt2", "dropout": 0.1}
    whole = run(data, tmp_path / "whole", **flags)
    cut_off(dies_before)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut", **flags)
    assert any(tmp_path.glob("cut/checkpoint-*"))
    assert not (tmp_path / "cut" / "config.json").exists()
    assert run(data, tmp_path / "cut", **flags) == whole
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert not any(tmp_path.glob("*/checkpoint-*"))


def test_a_half_written_checkpoint_is_passed_over(data, tmp_path, cut_off):
    flags = {"save_strategy": "steps", "save_steps": 2}
    run(data, tmp_path / "whole", **flags)
    cut_off(5)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut", **flags)
    half = tmp_path / "cut" / "checkpoint-6"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_step":')
    run(data, tmp_path / "cut", **flags)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_weights_alone_are_no_place_to_go_on_from(data, tmp_path, cut_off):
    flags = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    run(data, tmp_path / "whole", **flags)
    cut_off(5)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut", **flags)
    run(data, tmp_path / "cut", **flags)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_training_cut_off_while_its_model_is_written(data, tmp_path, monkeypatch):
    run(data, tmp_path / "whole")
    real = training.save_tokenizer

    def die(*_: object) -> None:
        raise CutOffError

    monkeypatch.setattr(training, "save_tokenizer", die)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut")
    assert not (tmp_path / "cut" / "config.json").exists()
    monkeypatch.setattr(training, "save_tokenizer", real)
    move = Path.replace

    def die_at_config(self: Path, target: Path) -> None:
        if self.name == "config.json":
            raise CutOffError
        move(self, target)

    monkeypatch.setattr(Path, "replace", die_at_config)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut")
    assert (tmp_path / "cut" / "model.safetensors").exists()
    assert (tmp_path / "cut" / "vocabulary").exists()
    monkeypatch.setattr(Path, "replace", move)
    run(data, tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_seed_decides_the_weights(data, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        run(data, tmp_path / name, seed=seed, num_train_epochs=1)
    assert same(tmp_path / "one", tmp_path / "again")
    assert not same(tmp_path / "one", tmp_path / "two")


def test_evaluation_does_not_change_what_is_learnt(data, tmp_path):
    flags = {"model_type": "gpt2", "dropout": 0.1, "save_strategy": "no"}
    run(data, tmp_path / "watched", **flags, eval_strategy="steps", eval_steps=2)
    run(data, tmp_path / "alone", **flags, eval_strategy="no")
    assert same(tmp_path / "watched", tmp_path / "alone")


def test_every_epoch_has_its_own_order(data, tmp_path, monkeypatch, cut_off):
    epochs = []
    real = Packs.__iter__

    def record(self):
        epochs.append((self.seed, self.chunks.epoch))
        return real(self)

    monkeypatch.setattr(Packs, "__iter__", record)
    cut_off(11)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "model", save_strategy="steps", save_steps=2)
    run(data, tmp_path / "model", save_strategy="steps", save_steps=2)
    assert [epoch for seed, epoch in epochs if seed is not None] == [0, 1, 1, 2]


def test_workers_and_cache_change_nothing(data, tmp_path):
    run(data, tmp_path / "plain", num_train_epochs=1)
    for name in ("first", "second"):
        run(
            data / "train",
            tmp_path / name,
            num_train_epochs=1,
            dataset_prepared_path=tmp_path / "prepared",
            dataloader_num_workers=2,
            dataloader_prefetch_factor=2,
        )
        assert same(tmp_path / "plain", tmp_path / name)
    assert len(list((tmp_path / "prepared").iterdir())) == 2


def test_the_model_folder_is_a_plain_one(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "model"
    result = run(data, out)
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "novelty.json",
        "seasons.json",
        "stays.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training",
        "vocabulary",
    }
    grammar = Grammar.load(data / "vocabulary")
    assert Grammar.load(out / "vocabulary").fingerprint == grammar.fingerprint
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.omop_gpt_fingerprint == grammar.fingerprint
    assert model.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids("[EOS]") == grammar.eos_id
    nats = validation_nats(data, out)
    assert result["eval_nats_per_patient"] == pytest.approx(nats / 20, rel=1e-5)
    tokens = result["validation_tokens_predicted"]
    assert result["eval_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert (out / "training" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert losses(out)[-1] == (result["steps"], None, result["eval_loss"])
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert len(lines) == len(losses(out))
    assert "tokens/s" in lines[0]
    assert "nats per patient" in lines[-1]


def test_it_learns_more_than_frequencies(data, tmp_path):
    grammar = Grammar.load(data / "vocabulary")
    chunks = read_chunks(data / "train", grammar, max_tokens=10_000)
    counts = np.bincount(chunks.tokens, minlength=grammar.vocab_size)
    counts[grammar.bos_id] = 0
    shares = counts[counts > 0] / counts.sum()
    unigram = -(shares * np.log(shares)).sum()
    result = run(
        data,
        tmp_path / "model",
        num_train_epochs=20,
        hidden_size=64,
        learning_rate=3e-3,
        eval_strategy="no",
        save_strategy="no",
    )
    assert result["eval_loss"] < 0.8 * unigram


def test_checkpointing_layers_changes_nothing(data, tmp_path):
    run(data, tmp_path / "plain", num_train_epochs=1)
    run(data, tmp_path / "again", num_train_epochs=1, gradient_checkpointing=True)
    for name, found in weights(tmp_path / "again").items():
        expected = weights(tmp_path / "plain")[name]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_share_the_batches(data, tmp_path):
    """As torchrun starts them: half the steps, one model, the losses of all."""
    flags = {"num_train_epochs": 2, "logging_steps": 1, "use_cpu": True} | TINY
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node", "2", "-m", "omop_gpt", "train",
            "--data_folder", str(data), "--output_dir", str(tmp_path / "two"),
            *map(str, words),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )  # fmt: skip
    two = json.loads((tmp_path / "two" / "manifest.json").read_text())["result"]
    one = run(data, tmp_path / "one", **flags)
    assert one["steps"] // 2 <= two["steps"] <= one["steps"] // 2 + 1
    assert two["tokens_predicted"] == one["tokens_predicted"]
    nats = validation_nats(data, tmp_path / "two") / 20
    assert two["eval_nats_per_patient"] == pytest.approx(nats, rel=0.01)
    assert two["bigram_nats_per_patient"] == one["bigram_nats_per_patient"]


def test_without_validation_it_trains_and_says_so(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    sequences = tmp_path / "patient_sequence"
    grammar = make_language(sequences / "vocabulary")
    make_split(sequences / "train", grammar, people=10)
    result = run(
        sequences,
        tmp_path / "model",
        use_early_stopping=True,
        load_best_model_at_end=True,
        num_train_epochs=2,
    )
    assert result["eval_nats_per_patient"] is None
    assert sum("no validation patients" in line for line in caplog.messages) == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


EARLY = {
    "use_early_stopping": True,
    "early_stopping_threshold": 0.5,
    "early_stopping_patience": 2,
    "load_best_model_at_end": True,
    "num_train_epochs": 30,
    "learning_rate": 1e-5,
}


def test_early_stopping_keeps_the_best_model(data, tmp_path, monkeypatch):
    result = run(data, tmp_path / "whole", **EARLY)
    # The first evaluation sets the mark, two more do not fall by half a nat.
    assert result["epochs"] == 3
    evaluated = [record for record in losses(tmp_path / "whole") if record[2]]
    assert result["eval_loss"] == min(loss for _, _, loss in evaluated)

    # Cut off after it had stopped: it must not train on.
    def die(*_: object) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(training, "_write_model", die)
        with pytest.raises(CutOffError):
            run(data, tmp_path / "cut", **EARLY)
    assert run(data, tmp_path / "cut", **EARLY) == result
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_best_model_is_kept(data, tmp_path):
    # Upside down, so that the best is not the last.
    flags = {"load_best_model_at_end": True, "greater_is_better": True}
    result = run(data, tmp_path / "model", **flags)
    evaluated = [loss for _, _, loss in losses(tmp_path / "model") if loss]
    assert result["eval_loss"] == evaluated[0] == max(evaluated)
    nats = validation_nats(data, tmp_path / "model")
    assert result["eval_nats_per_patient"] == pytest.approx(nats / 20, rel=1e-5)


def test_early_stopping_counts_on_after_a_cut(data, tmp_path, cut_off):
    steps = run(data, tmp_path / "whole", **EARLY)["steps"]
    cut_off(steps - 1)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut", **EARLY)
    assert run(data, tmp_path / "cut", **EARLY)["steps"] == steps
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_the_tutorials_empty_output_folder_means_a_new_model(data, tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    run(
        data,
        out,
        model_name_or_path=out,
        tokenizer_name_or_path=out,
        dataset_prepared_path=out / "dataset_prepared",
        do_train=True,
        num_train_epochs=1,
    )
    before = (out / "model.safetensors").stat().st_mtime_ns
    run(data, out, model_name_or_path=out, num_train_epochs=1)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="--seed 42, not 7"):
        run(data, out, num_train_epochs=1, seed=7)


def test_a_model_is_trained_further(data, tmp_path):
    first = run(data, tmp_path / "first")
    second = run(
        data,
        tmp_path / "second",
        model_name_or_path=tmp_path / "first",
        hidden_size=64,
        max_position_embeddings=512,
    )
    assert second["parameters"] == first["parameters"]
    assert second["chunks"] == first["chunks"]
    assert second["eval_loss"] < first["eval_loss"]


def test_other_settings_or_data_are_not_mixed(data, tmp_path, cut_off):
    out = tmp_path / "model"
    cut_off(8)
    with pytest.raises(CutOffError):
        run(data, out)
    with pytest.raises(InputError, match=r"--learning_rate 0\.001, not 0\.1"):
        run(data, out, learning_rate=0.1)
    other = tmp_path / "patient_sequence"
    grammar = make_language(other / "vocabulary")
    make_split(other / "train", grammar, people=10)
    with pytest.raises(InputError, match="another input"):
        run(other, out)


def test_another_vocabulary_is_refused(data, tmp_path, cut_off):
    run(data, tmp_path / "model", num_train_epochs=1)
    other = tmp_path / "patient_sequence"
    grammar = make_language(other / "vocabulary", conditions=13)
    make_split(other / "train", grammar, people=10)
    with pytest.raises(InputError, match="another vocabulary"):
        run(other, tmp_path / "new", model_name_or_path=tmp_path / "model")
    with pytest.raises(InputError, match="another vocabulary"):
        run(other, tmp_path / "new", tokenizer_name_or_path=tmp_path / "model")
    cut_off(8)
    with pytest.raises(CutOffError):
        run(data, tmp_path / "cut")
    with pytest.raises(InputError, match="another vocabulary"):
        run(other, tmp_path / "cut")
    assert not (tmp_path / "new").exists()


def test_missing_data_is_one_line(data, tmp_path):
    with pytest.raises(InputError, match="does not exist: `omop-gpt encode`"):
        run(tmp_path / "nowhere", tmp_path / "model")
    for name in ("model_name_or_path", "tokenizer_name_or_path"):
        with pytest.raises(InputError, match=f"--{name} gpt2 is no folder"):
            run(data, tmp_path / "model", **{name: "gpt2"})
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="holds no vocabulary"):
        run(tmp_path, tmp_path / "model")
    make_language(tmp_path / "vocabulary")
    with pytest.raises(InputError, match="holds no patients"):
        run(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a model"):
        run(data, tmp_path / "model")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_is_parsed(path):
    rest = ["--data_folder", "a", "--output_dir", "b", "--seed", "7"]
    config, arguments = parse([str(path), *rest, "--hidden-size", "1536"])
    assert (config.hidden_size, arguments.seed) == (1536, 7)


def test_the_python_example_runs(data, tmp_path, monkeypatch, capsys):
    argv = ["example", str(data), str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(EXAMPLES / "train_from_python.py"), run_name="__main__")
    assert "nats per validation patient" in capsys.readouterr().out
    config, arguments = parse(
        [str(EXAMPLES / "tiny.yaml"), "--data_folder", argv[1], "--output_dir", argv[2]]
    )
    written = json.loads((tmp_path / "model" / "manifest.json").read_text())
    expected = training.deciding_settings(config, arguments)
    assert written["settings"] == expected


BASE = ["--data_folder", "data", "--output_dir", "model"]


def test_the_tutorials_flags_have_their_meaning():
    config, arguments = parse(
        [
            *BASE,
            "--evaluation-strategy=epoch",
            "--save_strategy",
            "epoch",
            "--warmup_ratio",
            "0.01",
            "--weight-decay",
            "0.01",
            "--use_early_stopping",
            "--early-stopping-threshold",
            "0.001",
            "--sample_packing",
            "--load_best_model_at_end",
            "true",
            "--dataloader_num_workers",
            "4",
            "--dataloader_prefetch_factor",
            "8",
            "--report_to",
            "none",
        ]
    )
    assert arguments.eval_strategy == "epoch"
    assert arguments.get_warmup_steps(1000) == 10
    assert arguments.weight_decay == 0.01
    assert arguments.dataloader_prefetch_factor == 8
    assert arguments.load_best_model_at_end
    assert config.use_early_stopping
    assert config.early_stopping_threshold == 0.001
    assert config.sample_packing
    _, without_workers = parse([*BASE, "--dataloader_prefetch_factor", "8"])
    assert without_workers.dataloader_prefetch_factor is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*BASE, "--learning_rat", "1"], "did you mean --learning_rate"),
        ([*BASE, "--learning_rate", "fast"], "invalid float value: 'fast'"),
        ([*BASE, "--warmup_ratio", "3"], "at least 0 and below 1"),
        ([*BASE, "--evaluation_strategy", "never"], "never is not a valid"),
        ([*BASE, "--load_best_model_at_end", "--save_strategy", "steps"], "[Ss]ave"),
        ([*BASE, "--push_to_hub"], "--push_to_hub: nothing is sent"),
        ([*BASE, "--do_train", "false"], "--do_train"),
        ([*BASE, "--model_type", "bert"], "gpt2, llama, qwen3"),
        ([*BASE, "--hidden_size", "100"], "multiple of twice"),
        ([*BASE, "--max_tokens_per_batch", "512"], "cannot hold one context"),
        ([*BASE, "--num_hidden_layers", "0"], "at least 1"),
        (["--output_dir", "model"], "data_folder"),
        (["--data_folder", "data"], "--output_dir"),
        (["nowhere.yaml", *BASE], "nowhere.yaml does not exist"),
    ],
)
def test_wrong_flags_are_one_line(argv, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(argv)
    assert "\n" not in str(caught.value)


def test_a_wrong_yaml_file_is_one_line(tmp_path):
    for content, message in (
        ("learning_rat: 1", "did you mean --learning_rate"),
        ("- 1", "must hold lines"),
        ("a: [", "not a YAML file"),
    ):
        (tmp_path / "settings.yaml").write_text(content)
        with pytest.raises(InputError, match=message):
            parse([str(tmp_path / "settings.yaml"), *BASE])


def test_training_needs_no_warehouse():
    """A GPU machine may have neither dbt nor Spark."""
    code = (
        "import sys, omop_gpt.train;"
        "sys.exit(any(m in sys.modules for m in ('dbt', 'duckdb', 'pyspark')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def chunks_of(*lengths: int) -> Chunks:
    ids = np.zeros(sum(lengths), np.int32)
    sizes = np.array(lengths, np.int32)
    return Chunks(
        tokens=ids, starts=np.cumsum(sizes) - sizes, lengths=sizes,
        contexts=np.zeros_like(sizes), patients=len(sizes), fingerprint="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("patients", "epochs", "longest", "size"),
    [
        (1_000, 10, 100, 1_024),  # few: small packs
        (20_000, 10, 100, 10_000),  # 2 million tokens, ten times
        (1_000_000, 10, 100, 16_384),
        (1_000, 10, 3_000, 3_000),  # one validation patient fits nevertheless
    ],
)
def test_packs_are_as_large_as_leave_enough_steps(patients, epochs, longest, size):
    trained = chunks_of(*[100] * patients)
    found = training.pack_size(trained, chunks_of(longest), epochs)
    assert found == size
