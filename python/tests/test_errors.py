"""Bad input: one clear line, exit code 2, nothing half-written."""

import pytest
from omop_gpt.__main__ import main
from omop_gpt.step import InputError, is_done, whole_folder, write_manifest


def refused(capsys, *argv: str) -> str:
    """Run a command that must be refused; returns its one line."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def encode(source, tmp_path) -> list[str]:
    output = str(tmp_path / "output")
    return ["encode", "--input_folder", str(source), "--output_folder", output]


def test_a_missing_folder(capsys, tmp_path):
    line = refused(capsys, *encode(tmp_path / "nowhere", tmp_path))
    assert "nowhere is not a folder" in line
    assert not (tmp_path / "output").exists()


def test_a_missing_person_table(capsys, tmp_path):
    (tmp_path / "source" / "visit_occurrence").mkdir(parents=True)
    line = refused(capsys, *encode(tmp_path / "source", tmp_path))
    assert "no person table" in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing", b"a,b\n1,2\n" * 99])
def test_a_file_that_is_not_parquet(capsys, tmp_path, content):
    folder = tmp_path / "source" / "person"
    folder.mkdir(parents=True)
    (folder / "part-0.parquet").write_bytes(content)
    line = refused(capsys, *encode(tmp_path / "source", tmp_path))
    assert "table person" in line
    assert "not a whole Parquet file" in line
    assert not (tmp_path / "output").exists()


def test_a_wrong_flag_names_the_right_one(capsys, tmp_path):
    line = refused(capsys, *encode(tmp_path, tmp_path), "--start_dat", "2000-01-01")
    assert "did you mean --start_date?" in line


def test_a_wrong_value(capsys, tmp_path):
    line = refused(capsys, *encode(tmp_path, tmp_path), "--start_date", "yesterday")
    assert "yesterday is not a date" in line
    assert "invalid int value" in refused(
        capsys, *encode(tmp_path, tmp_path), "--cores", "two"
    )


def test_a_wrong_step(capsys):
    assert "no step encod" in refused(capsys, "encod")


def test_decode_without_sequences_or_vocabulary(capsys, tmp_path):
    command = ["decode", "--omop_folder", str(tmp_path / "omop")]
    command += ["--patient_sequence_folder"]
    assert "is not a folder" in refused(capsys, *command, str(tmp_path / "no"))
    folder = tmp_path / "a" / "b" / "sequences"
    folder.mkdir(parents=True)
    assert "holds no Parquet files" in refused(capsys, *command, str(folder))
    (folder / "part-0.parquet").write_bytes(b"")
    assert "no vocabulary folder" in refused(capsys, *command, str(folder))


def test_sample_without_a_model(capsys, tmp_path):
    line = refused(
        capsys, "sample", "--model_folder", str(tmp_path), "--num_of_patients", "3",
        "--output_folder", str(tmp_path / "output"),
    )  # fmt: skip
    assert "holds no model" in line
    assert not (tmp_path / "output").exists()


def test_hyphens_and_underscores_both_work(capsys, tmp_path):
    line = refused(
        capsys, "encode", "--input-folder", str(tmp_path / "no"),
        "--output-folder", str(tmp_path / "output"),
    )  # fmt: skip
    assert "is not a folder" in line


def test_help_lists_every_step_and_flag(capsys):
    assert main(["--help"]) == 0
    assert "encode" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["encode", "--help"])
    assert stopped.value.code == 0
    assert "--start_date" in capsys.readouterr().out


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail() -> None:
        with whole_folder(tmp_path / "result") as partial:
            (partial / "half").write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "result") as partial:
        (partial / "whole").write_text("whole")
    assert [file.name for file in (tmp_path / "result").iterdir()] == ["whole"]
    with (
        pytest.raises(InputError, match="is there already"),
        whole_folder(tmp_path / "result"),
    ):
        pass


def test_other_settings_or_inputs_are_not_mixed(tmp_path):
    assert not is_done(tmp_path, step="s", settings={"a": 1}, inputs="x")
    write_manifest(
        tmp_path, step="s", settings={"a": 1}, inputs="x", started=0, result={}
    )
    assert is_done(tmp_path, step="s", settings={"a": 1}, inputs="x")
    with pytest.raises(InputError, match="--a 1, not 2"):
        is_done(tmp_path, step="s", settings={"a": 2}, inputs="x")
    with pytest.raises(InputError, match="another input"):
        is_done(tmp_path, step="s", settings={"a": 1}, inputs="y")
