"""The wheel: what is installed works outside the checkout, dbt project and all."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.spark, pytest.mark.slow]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [
            sys.executable, "-m", "build", "--wheel", "--no-isolation",
            "--outdir", str(folder), str(Path(__file__).parents[2]),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_the_dbt_project_and_no_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "dbt_project.yml", "profiles.yml", "selectors.yml",
        "models/marts/omop/person.sql", "macros/write_parquet.sql",
        "seeds/grammar/transitions.csv", "tests/assert_encode_ledger_adds_up.sql",
    ):  # fmt: skip
        assert f"omop_gpt/dbt_project/{name}" in names
    assert not [name for name in names if name.endswith((".parquet", ".duckdb"))]


def test_the_wheel_encodes_and_decodes_in_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
            "--no-index", "--target", str(site), str(wheel),
        ],
        check=True,
    )  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()

    def step(*argv: str) -> None:
        # -P and a path of its own: the checkout must not be what answers
        done = subprocess.run(
            [
                sys.executable, "-P", "-c",
                f"import sys; sys.path.insert(0, {str(site)!r});"
                "import omop_gpt; assert omop_gpt.__file__.startswith(sys.path[0]);"
                "from omop_gpt.__main__ import main; sys.exit(main(sys.argv[1:]))",
                *argv,
            ],
            cwd=empty,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    step("simulate", "--output_folder", "source", "--num_of_patients", "60")
    step("encode", "--input_folder", "source", "--output_folder", "result")
    step(
        "decode", "--patient_sequence_folder", "result/patient_sequence",
        "--omop_folder", "result/round_trip", "--source_omop_folder", "source",
        "--schema", "round_trip",
    )  # fmt: skip
    assert (empty / "result" / "round_trip" / "manifest.json").is_file()
    left = {entry.name for entry in empty.iterdir()}
    assert left == {"source", "result"}, left
