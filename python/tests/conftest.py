"""What tests share: a small language that uses the whole grammar, and tiny models;
a finished run of the whole loop."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from omop_gpt.calibration import Calibration
from omop_gpt.evaluation import intervals
from omop_gpt.evaluation.results import Results
from omop_gpt.grammar import Grammar, read_csv, save_language
from omop_gpt.run import RunConfig, run
from omop_gpt.sampler import SampleConfig, Sampler
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.slots import ATTENTION
from omop_gpt.warehouse import project_folder
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SEEDS = Path(__file__).parents[2] / "seeds" / "grammar"
FACTS = {
    "first_date": "2000-03-15",
    "last_date": "2010-09-30",
    "last_end_date": "2010-12-31",
    "longest_history": 150,
    "synthetic_person_ids": 10**9,
}
NUMBERS = {
    "year": range(1998, 2013),
    "age": range(-2, 100),
    "hour": (0, 8, 13, 23),
    "number": range(5),
    "quantity": range(3),
    "days_supply": (-5, 0, 1, 30, 90),
}
CONCEPTS = {
    "gender": (8507, 8532),
    "race": (0, 8527),
    "ethnicity": (0,),
    "visit": (9201, 9202),
    "discharge": (0, 8536),
    "operator": (4171754, 4172703),
    "value_concept": (45877994, 45884084),
}
EVENTS = {
    "condition:320128": (),
    "condition:201826": (),
    "procedure:4230911": (),
    "observation:4275495": ("value_concept:45877994", "value_concept:45884084"),
    "measurement:3004249@8876": ("value:0", "value:1", "value:2", "operator:4172703"),
    "measurement:3025315@9529": ("value:2", "value:3", "value:4", "operator:4171754"),
    "drug:1125315": (
        *(f"quantity:{n}" for n in NUMBERS["quantity"]),
        *(f"days_supply:{n}" for n in NUMBERS["days_supply"]),
    ),
}
BIN_SCHEMA = pa.schema(
    {
        "event_token": pa.string(),
        "field": pa.string(),
        "bin": pa.int32(),
        "low": pa.float64(),
        "high": pa.float64(),
        "train_count": pa.int64(),
        "train_persons": pa.int64(),
        "decimals": pa.int32(),
        "shape": pa.list_(pa.float64()),
        "shared_shape": pa.list_(pa.float64()),
    }
)
# tokens and pairs that fewer than five training persons have
RARE = {
    "condition:201826": 4,
    "value:4": 1,
    "measurement:3004249@8876 value:2": 2,
    "drug:1125315 quantity:1": 4,
}


def read_seed(name: str) -> list[dict[str, str]]:
    with (SEEDS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bins_of(pairs: list[tuple[str, str]], persons: dict[str, int]) -> pa.Table:
    """Make a bin, one wide, of every pair of an event and a number or quantity.

    As dbt has them: a bin that few persons have has no shape that may be shared.
    """
    rows = []
    for event, value in pairs:
        field, bin_ = value.replace("value:", "number:").split(":")
        if field not in ("number", "quantity"):
            continue
        low, count = float(bin_), persons.get(f"{event} {value}", 9)
        shape = [low + step / 16 for step in range(9)]
        shared = shape if count >= 5 else None
        rows.append(
            (event, field, int(bin_), low, low + 1, 20, count, 4, shape, shared)
        )
    return pa.Table.from_pylist(
        [dict(zip(BIN_SCHEMA.names, row, strict=True)) for row in rows],
        schema=BIN_SCHEMA,
    )


def concept_of(kind: str, token: str) -> int | None:
    """Concept of a token that has one, as the vocabulary's meaning column."""
    if kind == "event" or kind in CONCEPTS:
        return int(token.split(":")[1].split("@")[0])
    return None


def make_grammar(
    folder: Path,
    *,
    scheme: str = "day",
    without: tuple[str, ...] = (),
    persons: dict[str, int] | None = None,
    seeds: Path = SEEDS,
    **facts: str | int,
) -> Grammar:
    """Write a vocabulary folder as encode does, and load it.

    `scheme`: what dates are written to, day, week or month; `without`: kinds that the
    data does not have; `persons`: training persons of a
    token, or of an event and a value ("event value"), where they are not 9.
    """
    persons = RARE if persons is None else persons
    prefix = {row["kind"]: row["prefix"] for row in read_seed("token_families")}
    order = {row["kind"]: int(row["kind_order"]) for row in read_seed("kinds")}
    rows = [
        (row["kind"], int(row["days"]), None, row["token"])
        for row in read_seed("fixed_tokens")
        if row["scheme"] in ("all", scheme)
    ]
    for kind, numbers in NUMBERS.items():
        rows += [(kind, 0, number, f"{prefix[kind]}{number}") for number in numbers]
    for kind, concepts in CONCEPTS.items():
        rows += [(kind, 0, None, f"{prefix[kind]}{concept}") for concept in concepts]
    rows += [("event", 0, None, event) for event in EVENTS]
    rows = [row for row in rows if row[0] not in without]
    rows.sort(key=lambda r: (order[r[0]], abs(r[1]), r[2] or 0, r[3]))
    kinds, days, numbers, tokens = zip(*rows, strict=True)
    token_id = {token: n for n, token in enumerate(tokens)}
    pairs = [
        (event, value)
        for event, values in EVENTS.items()
        for value in values
        if event in token_id and value in token_id
    ]
    tables_of = {
        row["prefix"]: row["source_table"] for row in read_seed("event_tables")
    }
    tables = {
        "vocabulary": {
            "token_id": pa.array(range(len(rows)), pa.int32()),
            "token": pa.array(tokens),
            "kind": pa.array(kinds),
            "concept_id": pa.array(
                [concept_of(k, t) for k, t in zip(kinds, tokens)], pa.int64()
            ),
            "source_table": pa.array(
                [tables_of.get(t.split(":")[0] + ":") for t in tokens], pa.string()
            ),
            "days": pa.array(days, pa.int32()),
            "number": pa.array(numbers, pa.int64()),
            "train_count": pa.array([20] * len(rows), pa.int64()),
            "train_persons": pa.array([persons.get(t, 9) for t in tokens], pa.int64()),
        },
        "event_values": {
            "event_token_id": pa.array([token_id[e] for e, _ in pairs], pa.int32()),
            "value_token_id": pa.array([token_id[v] for _, v in pairs], pa.int32()),
            "train_count": pa.array([20] * len(pairs), pa.int64()),
            "train_persons": pa.array(
                [persons.get(f"{e} {v}", 9) for e, v in pairs], pa.int64()
            ),
        },
        "value_bins": bins_of(pairs, persons),
    }
    timeline = folder.with_name(f".{folder.name}.timeline")
    for name, columns in tables.items():
        (timeline / name).mkdir(parents=True)
        pq.write_table(pa.table(columns), timeline / name / "part-0.parquet")
    save_language(folder, grammar=seeds, timeline=timeline, facts=FACTS | facts)
    return Grammar.load(folder)


def make_model(
    grammar: Grammar, model_type: str = "llama", *, context: int = 160, **settings: int
) -> PreTrainedModel:
    """Make a tiny untrained model: two layers of 32, logits spread over a few nats."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if model_type != "gpt2":
        sizes |= {"num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 64}
    config = AutoConfig.for_model(
        model_type,
        vocab_size=grammar.vocab_size,
        max_position_embeddings=context,
        initializer_range=0.3,
        pad_token_id=grammar.pad_id,
        bos_token_id=grammar.bos_id,
        eos_token_id=grammar.eos_id,
        omop_gpt_fingerprint=grammar.fingerprint,
        **(sizes | settings),
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def random_history(
    grammar: Grammar, rng: np.random.Generator, length: int
) -> np.ndarray:
    """Walk at random through the transitions, for `length` tokens or a few more.

    Anything that real records can be, with dates in the years that have a token.
    """
    years = np.sort(grammar.number[grammar.has_kind("year")])
    first, last = np.array([f"{years[0]}-01-01", f"{years[-1]}-12-31"], "datetime64[D]")
    low, high = int(first.astype(int)), int(last.astype(int))
    roles = np.array([row["role"] for row in grammar.kind_rows])
    present = np.bincount(grammar.kind, minlength=len(grammar.kinds)) > 0
    present[[grammar.kinds.index("cont"), grammar.kinds.index("year_unknown")]] = False
    token_ids: list[int] = []
    state, cursor = grammar.states.index("start"), 0
    while grammar.states[state] != "end":
        kinds = np.flatnonzero((grammar.next_state[state] >= 0) & present)
        names = [grammar.kinds[kind] for kind in kinds]
        closing = [name in ("eos", "death") for name in names]
        if any(closing) and not all(closing):
            kinds = kinds[np.equal(closing, len(token_ids) >= length)]
        role = rng.choice(np.unique(roles[kinds]))
        if role in ("gap", "move"):
            near = int(rng.choice([0, 1, -1, 29, -30, 45, -400, 3000]))
            days = min(max(cursor + near, low), high) - cursor
            if role == "move" and days == 0:
                continue
            found = grammar.spell(str(role), days)
            cursor += days
        else:
            kind = rng.choice(kinds[roles[kinds] == role])
            found = [int(rng.choice(np.flatnonzero(grammar.kind == kind)))]
            if grammar.kinds[kind] == "year":
                year = grammar.number[found[0]]
                cursor = int(np.datetime64(f"{year}-01-01", "D").astype(int))
        for token_id in found:
            state = grammar.next_state[state, grammar.kind[token_id]]
        token_ids += found
    return np.array(token_ids, np.int32)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices this small are done before a second thread wakes up.

    The commands that tests start follow: other threads sum in another order.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Grammar:
    return make_grammar(tmp_path_factory.mktemp("language") / "vocabulary")


LOOP_MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "max_tokens_per_batch": 2048,
    "num_train_epochs": 1,
    "evaluation_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 5,
}


def sample_few(model, grammar, patients, flags, **scaled) -> dict[int, list[int]]:
    """Sample some of nine patients, four at once; `scaled`: parts of a Calibration."""
    config = SampleConfig(
        model_folder="", output_folder="", num_of_patients=9, event_min_p=0.0,
        max_tokens_per_patient=300, batch_size=4, **flags,
    )  # fmt: skip
    sampler = Sampler(model, grammar, config, calibration=Calibration(**scaled))
    with torch.inference_mode():
        return {s.patient: s.token_ids.tolist() for s in sampler.run(patients)}


def sample_scaled_and_plain(model, grammar, name, value):
    """Sample nine patients with a part of a Calibration, and without it.

    Each must be the same beside others as alone, and the flag must turn the part off.
    """
    model.set_attn_implementation(ATTENTION)

    def sampled(patients, value=value, **flags):
        return sample_few(model, grammar, patients, flags, **{name: value})

    first = sampled([*range(9)])
    assert sampled([8, 3, 0]) == {patient: first[patient] for patient in (8, 3, 0)}
    plain = sampled([*range(9)], value={})
    assert plain != first
    assert sampled([*range(9)], **{f"scale_{name}": False}) == plain
    return first, plain


@pytest.fixture(scope="session")
def many_events(tmp_path_factory):
    """A language with some more events than EVENTS has."""
    events = {f"condition:{4_000 + n}": [] for n in range(30)}
    events |= {f"drug:{5_000 + n}": [] for n in range(20)}
    folder = tmp_path_factory.mktemp("many_events") / "vocabulary"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "EVENTS", {**EVENTS, **events})
        return make_grammar(folder)


@pytest.fixture(scope="session")
def loop(tmp_path_factory):
    """Folder of a finished run; `source/` beside it is its input."""
    root = tmp_path_factory.mktemp("loop")
    simulate(
        SimulateConfig(
            output_folder=str(root / "source"), num_of_patients=400, dirty=True
        )
    )
    (root / "tiny.yaml").write_text(yaml.safe_dump(LOOP_MODEL))
    return run(
        RunConfig(
            input_folder=str(root / "source"),
            output_folder=str(root / "result"),
            num_of_patients=100,
            num_of_sets=2,
            train_settings=str(root / "tiny.yaml"),
        )
    )


@pytest.fixture(scope="session")
def warehouse(loop):
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        yield con


@pytest.fixture
def redrawn_in_vain(monkeypatch):
    """What checks the intervals of fidelity's gates where each draw is all persons.

    Each statistic that is drawn anew is then the value itself. Returns how many.
    """

    def check(measure: Callable[[], Results]) -> int:
        monkeypatch.setattr(intervals, "interval_of", lambda value, *_: (value, value))
        names = {
            row["metric"]
            for row in read_csv(project_folder() / "seeds/evaluation/gates.csv")
            if row["family"] == "fidelity"
        }
        metrics = measure().metrics
        found = [m for m in metrics if m.name in names and m.stratum == "all"]
        for metric in found:
            assert np.isfinite(metric.value), metric
            assert metric.ci_low == pytest.approx(metric.value, rel=1e-6), metric
        return len(found)

    return check


def unit_test_rows(table: dict) -> list[dict]:
    """Return the rows that a unit test of dbt gives or expects."""
    if table.get("format") == "csv":
        return list(csv.DictReader(StringIO(table["rows"])))
    return table["rows"]


def warehouse_of(
    given: list[dict], tables: dict[str, str]
) -> duckdb.DuckDBPyConnection:
    """Make tables by their columns' types, with the rows that a unit test gives."""
    con = duckdb.connect()
    for name, columns in tables.items():
        con.execute(f"create table {name} ({columns})")
    for table in given:
        name = table["input"].split("'")[1]
        for row in unit_test_rows(table):
            there = {
                key: value for key, value in row.items() if value not in ("", None)
            }
            con.execute(
                f"insert into {name} ({', '.join(there)}) "
                f"values ({', '.join('?' * len(there))})",
                list(there.values()),
            )
    return con
