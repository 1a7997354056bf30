"""Turn a frozen dataclass into command-line flags: one per field, help in its metadata.

Hyphens and underscores both work, as in transformers' HfArgumentParser.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from omop_gpt.step import InputError

Config = TypeVar("Config")


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage."""
        raise InputError(f"{self.prog}: {message} (--help lists the flags)")


def flag(help: str, default: Any = dataclasses.MISSING) -> Any:
    """Make a dataclass field that is a flag; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"help": help})


def yes_or_no(text: str) -> bool:
    """Read a truth value; raises ValueError for anything else."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")


def parse(config: type[Config], step: str, argv: Sequence[str]) -> Config:
    """Read flags into `config`. Raises InputError in one line."""
    parser = OneLineParser(
        prog=f"omop-gpt {step}",
        description=(config.__doc__ or "").strip().splitlines()[0],
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        names = [f"--{field.name}"]
        if "_" in field.name:
            names.append("--" + field.name.replace("_", "-"))
        required = field.default is dataclasses.MISSING
        text = field.metadata["help"].replace("%", "%%")
        options: dict[str, Any] = {"dest": field.name, "required": required}
        if typing.get_origin(kind) is tuple:
            options |= {"type": typing.get_args(kind)[0], "nargs": "+"}
        elif kind is bool:
            options |= {"type": yes_or_no, "nargs": "?", "const": True}
        else:
            options |= {"type": kind}
        if not required:
            options["default"] = field.default
            text += f" (default: {field.default})"
        parser.add_argument(*names, help=text, **options)
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise InputError(unknown_flag(step, unknown[0], vars(known)))
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(known).items()
    }
    return config(**values)


def unknown_flag(step: str, found: str, names: typing.Iterable[str]) -> str:
    """Say that a flag is unknown, and which one may have been meant."""
    name = found.split("=")[0].lstrip("-").replace("-", "_")
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean --{near[0]}?" if near else "--help lists the flags."
    return f"omop-gpt {step}: unknown flag {found}: {hint}"
