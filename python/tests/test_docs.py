"""The documentation of the dbt half: nothing is left undescribed."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def described() -> dict[str, dict]:
    """What the YAML files say of each model and seed, by its name."""
    found = {}
    for file in [*ROOT.glob("models/**/*.yml"), *ROOT.glob("seeds/**/*.yml")]:
        content = yaml.safe_load(file.read_text())
        for node in content.get("models", []) + content.get("seeds", []):
            found[node["name"]] = node
    return found


def test_every_model_and_seed_is_described():
    files = [*ROOT.glob("models/**/*.sql"), *ROOT.glob("seeds/**/*.csv")]
    nodes = described()
    assert len(files) > 80
    missing = [f.stem for f in files if not nodes.get(f.stem, {}).get("description")]
    assert missing == []


def test_every_column_is_described():
    missing = [
        f"{name}.{column['name']}"
        for name, node in described().items()
        for column in node.get("columns", [])
        if not column.get("description")
    ]
    assert missing == []
