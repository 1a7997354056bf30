"""The project as dbt parsed it, in the user's cache."""

import os
from pathlib import Path

import pytest
from omop_gpt import warehouse

GIVEN = {"input_folder": "/one", "att_type": "day"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "omop-gpt"


def parsed(variables: dict, file: str = "/a/warehouse.duckdb") -> Path:
    return warehouse.parsed_project(GIVEN | variables, Path(file))


def test_what_is_parsed_does_not_depend_on_where_folders_are(cache):
    assert parsed({}).parent == cache
    assert parsed({}) == parsed({"input_folder": "/other"}, "/b/warehouse.duckdb")


@pytest.mark.parametrize("other", [{"input_folder": ""}, {"att_type": "week"}], ids=str)
def test_options_are_parsed_anew(other):
    assert parsed({}) != parsed(other)


def test_another_name_of_the_database_is_parsed_anew():
    assert parsed({}) != parsed({}, "/a/other.duckdb")


@pytest.mark.parametrize("name", ["dbt-core", "dbt-adapters", "dbt-duckdb"])
def test_another_version_is_parsed_anew(name, monkeypatch):
    before = parsed({})
    versions = warehouse.versions()
    monkeypatch.setattr(warehouse, "versions", lambda: versions | {name: "0"})
    assert name in versions
    assert parsed({}) != before


@pytest.mark.parametrize("name", ["profiles.yml", "macros/a.sql", "models/b/c.yml"])
def test_a_changed_file_is_parsed_anew(name, tmp_path, monkeypatch):
    file = tmp_path / "project" / name
    file.parent.mkdir(parents=True)
    file.write_text("one")
    monkeypatch.setattr(warehouse, "project_folder", lambda: tmp_path / "project")
    before = parsed({})
    file.write_text("two")
    assert parsed({}) != before


def test_the_cache_keeps_the_last_few(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(warehouse, "CACHED", 2)
    (tmp_path / "made").write_text("parsed")
    for age, name in enumerate("abc"):
        warehouse.keep_parsed(tmp_path / "made", cache / f"{name}.msgpack")
        if name != "c":
            os.utime(cache / f"{name}.msgpack", (age, age))
    assert len(list(cache.iterdir())) == 2
    assert (cache / "c.msgpack").read_text() == "parsed"
