"""The whole of evaluate: the report of a run, and the evaluator itself under test."""

import dataclasses
import json
import re
from html import escape

import duckdb
import pytest
from omop_gpt.encode import EncodeConfig, encode
from omop_gpt.evaluation import evaluate as step
from omop_gpt.evaluation.pictures import PICTURES, calibration_figure
from omop_gpt.evaluation.report import SUBGROUPS
from omop_gpt.evaluation.results import PROFILES
from omop_gpt.evaluation.small_cells import SMALL_CELL
from omop_gpt.simulate import SimulateConfig, simulate
from omop_gpt.step import InputError

# what is drawn only of a model, or of tables that decode wrote
ASKED_OF_MODELS = (
    "Canaries", "Foretold by the model itself", "Calibration of the model itself",
    "When it comes", "OHDSI's checks that differ from the source",
)  # fmt: skip


def test_a_run_ends_with_a_report(loop):
    page = (loop / "report" / "index.html").read_text()
    assert "Synthetic patients, judged" in page
    assert page.count("<img ") >= 10
    # nothing is fetched when it is opened
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)", page)
    report = json.loads((loop / "report" / "metrics.json").read_text())
    gates = [row for row in report["gates"] if row["cohort"] == "synthetic"]
    # everything was run but what needs more of the release than there is, or is asked
    not_run = {row["metric"] for row in gates if row["status"] == "not_run"}
    asked = {row["metric"] for row in gates if row["is_optional"]}
    assert not_run <= asked | {"identity_disclosure"}
    (fatal,) = [row for row in gates if row["metric"] == "fatal_failures"]
    assert (fatal["status"], fatal["value"]) == ("passed", 0)
    assert fatal["n"] > 300
    kinds = {row["metric"] for row in gates if row["family"] == "quality"}
    assert kinds == {"fatal_failures", "convention_failures", "plausibility_failures"}
    assert not kinds & not_run
    assert "OHDSI&#x27;s checks that differ from the source" in page
    (agreement,) = [r for r in report["metrics"] if r["name"] == "quality_agreement"]
    assert 0.5 < agreement["value"] <= 1
    # some forty real persons certify nothing
    assert report["verdict"]["outcome"] != "passed"
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        rows = con.execute(
            "select count(*), count(distinct run_id) from evaluation.eval_scorecard"
        ).fetchone()
    assert rows == (len(report["metrics"]), 1)


def test_the_data_card_names_every_table(loop):
    card = (loop / "report" / "data_card.md").read_text()
    with duckdb.connect() as con:
        for folder in (loop / "omop").iterdir():
            if folder.is_dir():
                (rows,) = con.execute(
                    f"select count(*) from '{folder}/*.parquet'"
                ).fetchone()
                assert f"| {folder.name} | {rows:,} |" in card


def test_no_person_is_in_what_leaves(loop):
    """Marts that leave hold no person_id: those that do are in the private schema."""
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        columns = con.execute(
            "select table_name, column_name from information_schema.columns "
            "where table_schema = 'evaluation'"
        ).fetchall()
    assert len({table for table, _ in columns}) > 10
    assert not [pair for pair in columns if pair[1] in ("person_id", "visit_order")]


def test_no_small_cell_is_left_in_the_marts(loop):
    """What counts in schema evaluation counts none, or eleven real ones and more."""
    numbers = {
        "bin", "table_rank", "concept_number", "season_rank", "age_from",
        "visit_lag", "least_age", "horizon", "condition_order", "label", "n", "seed",
        "gate_order", "is_optional",
    }  # fmt: skip
    skipped = {"eval_scorecard", "gates", "anchors", "prediction_tasks"}
    with duckdb.connect(str(loop / "warehouse.duckdb"), read_only=True) as con:
        columns = con.execute(
            "select table_name, column_name from information_schema.columns "
            "where table_schema = 'evaluation' and data_type = 'BIGINT'"
        ).fetchall()
        checked = set()
        for table, column in columns:
            if table in skipped or column in numbers or column.endswith("_id"):
                continue
            if table.startswith("measured_") and not column.startswith("persons"):
                continue
            has_cohort = con.execute(
                "select count(*) from information_schema.columns "
                "where table_schema = 'evaluation' and table_name = ? "
                "and column_name = 'cohort'",
                [table],
            ).fetchone()[0]
            real = "cohort not like 'synthetic%'" if has_cohort else "true"
            (least,) = con.execute(
                f"select min({column}) from evaluation.{table} "
                f"where {real} and {column} > 0"
            ).fetchone()
            assert least is None or least >= SMALL_CELL, (table, column)
            checked.add(table)
        kept = con.execute("select count(*) from evaluation.prevalence").fetchone()
    assert kept[0] > 20
    assert len(checked) > 25


def judge(root, patients: int, others: int, anchors: tuple[str, ...], more=()) -> dict:
    """Judge simulated patients beside others of the same process.

    `more`: how many there are in further sets of other seeds.
    """
    counts = {"source": patients, "other": others}
    counts |= {f"other_{number}": count for number, count in enumerate(more, 2)}
    for seed, (name, count) in enumerate(counts.items(), 1):
        simulate(
            SimulateConfig(
                output_folder=str(root / name), num_of_patients=count, seed=seed
            )
        )
    encode(
        EncodeConfig(input_folder=str(root / "source"), output_folder=str(root / "W"))
    )
    profile = dataclasses.replace(PROFILES["smoke"], anchors=anchors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(step.PROFILES, "smoke", profile)
        step.evaluate(
            step.EvaluateConfig(
                real_folder=str(root / "W"),
                synthetic_folder=str(root / "other"),
                other_synthetic_folders=tuple(str(root / name) for name in counts)[2:],
                output_folder=str(root / "report"),
                profile="smoke",
            )
        )
    page = (root / "report" / "index.html").read_text()
    return json.loads((root / "report" / "metrics.json").read_text()) | {"page": page}


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict:
    """What all anchors come to, on 4,000 patients and two sets of the same process."""
    root = tmp_path_factory.mktemp("anchors")
    return judge(root, 4_000, 2_800, PROFILES["full"].anchors, more=(500,))


def test_of_a_handful_of_patients_nothing_is_certified(tmp_path):
    report = judge(tmp_path, 12, 12, PROFILES["smoke"].anchors, more=(11, 10))
    assert report["verdict"]["outcome"] != "passed"
    sets = {"synthetic": 12, "synthetic_2": 11, "synthetic_3": 10}
    assert sets.items() <= report["persons"].items()


def test_the_worst_of_the_sets_is_judged_and_the_first_attacked(judged):
    sets = ("synthetic", "synthetic_2")
    assert "several sets of synthetic patients</td>" not in judged["page"]
    found = {}
    for row in judged["metrics"]:
        of_metric = found.setdefault((row["name"], row["stratum"]), {})
        of_metric[row["cohort"]] = row["value"]
    compared = 0
    for row in judged["gates"]:
        values = found.get((row["metric"], row["stratum"]), {})
        if row["family"] == "privacy":
            assert sets[1] not in values
        ours = {values[name] for name in sets if values.get(name) is not None}
        if row["cohort"] == "synthetic" and row["family"] != "privacy" and ours:
            worst = max if row["direction"] == "at_most" else min
            assert row["value"] == worst(ours)
            compared += len(ours) > 1
    assert compared > 10


def test_every_picture_is_drawn(judged):
    for _, title, _, _ in PICTURES:
        is_drawn = title not in ASKED_OF_MODELS
        assert (f"<img alt='{escape(title)}'" in judged["page"]) == is_drawn


def test_the_worst_subgroups_stand_first(judged):
    part = judged["page"].split("<h2 id=subgroups>")[1].split("</table>")[0]
    for metric, (_, direction) in SUBGROUPS.items():
        rows = [
            row
            for row in judged["metrics"]
            if (row["name"], row["cohort"]) == (metric, "synthetic")
            and row["stratum"] != "all" and row["value"] is not None
        ]  # fmt: skip
        pick = max if direction == "at_most" else min
        worst = pick(rows, key=lambda row: row["value"])
        assert f"<td>{escape(worst['stratum'])}</td>" in part


def test_risks_of_few_persons_are_not_drawn():
    row = {"task": "admit180", "persons": SMALL_CELL, "chance": 0.1, "observed": 0.2}
    assert calibration_figure([row], {}) is not None
    assert calibration_figure([row | {"persons": SMALL_CELL - 1}], {}) is None


def test_real_persons_whom_no_model_saw_pass_where_there_are_enough(judged):
    statuses = {
        (row["metric"], row["stratum"]): row["status"]
        for row in judged["gates"]
        if row["cohort"] == "ideal"
    }
    passed = [gate for gate, status in statuses.items() if status == "passed"]
    for gate in ("next_visit_pair_r2", "lag_5_relative_error", "exact_copy_excess"):
        assert (gate, "all") in passed
    assert f"pass {len(passed)} of" in judged["page"]


@pytest.mark.parametrize("anchor", PROFILES["full"].anchors[1:])
def test_each_anchor_comes_out_as_it_must(judged, anchor):
    check = judged["anchors"][anchor]
    told = [
        (row["metric"], row["status"], row["value"], row["ci_low"], row["limit"])
        for row in judged["gates"]
        if row["cohort"] == anchor
        and (row["status"] == "failed" or row["metric"] in " ".join(check["wrong"]))
    ]
    assert check["is_right"], (check["wrong"], told)


def test_patients_of_the_same_process_fail_nothing(judged):
    failed = [
        (row["metric"], row["value"], row["limit"])
        for row in judged["gates"]
        if (row["cohort"], row["status"]) == ("synthetic", "failed")
    ]
    assert failed == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "quick"}, "--profile quick: it is one of"),
        ({"rollouts": -2}, "--rollouts -2: at least 0, or -1"),
        ({"real_folder": "nowhere"}, "has no timeline/persons"),
        ({"synthetic_folder": "nowhere"}, "has no person"),
        ({"model_folder": "nowhere"}, "holds no model"),
        ({"warehouse": "evaluation.duckdb"}, "is named as one of its schemas"),
    ],
)
def test_a_wrong_folder_is_one_line(loop, tmp_path, changes, message):
    plain = {
        "real_folder": str(loop),
        "synthetic_folder": str(loop / "omop"),
        "output_folder": str(tmp_path / "report"),
        "warehouse": str(tmp_path / "warehouse.duckdb"),
    }
    with pytest.raises(InputError, match=message) as error:
        step.evaluate(step.EvaluateConfig(**(plain | changes)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()
