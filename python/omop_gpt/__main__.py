"""The command `omop-gpt <step>`; each step is also `python -m omop_gpt <step>`."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from omop_gpt.step import InputError, MachineError, told_plainly


def doctor(argv: Sequence[str]) -> int:
    """Say what is missing on this machine, and the command that mends it."""
    from omop_gpt.doctor import DoctorConfig, doctor
    from omop_gpt.flags import parse

    return doctor(parse(DoctorConfig, "doctor", argv))


def simulate(argv: Sequence[str]) -> int:
    """Write an OMOP CDM of simulated patients."""
    from omop_gpt.flags import parse
    from omop_gpt.simulate import SimulateConfig, simulate

    simulate(parse(SimulateConfig, "simulate", argv))
    return 0


def encode(argv: Sequence[str]) -> int:
    """Encode OMOP tables into token sequences."""
    from omop_gpt.encode import EncodeConfig, encode
    from omop_gpt.flags import parse

    encode(parse(EncodeConfig, "encode", argv))
    return 0


def train(argv: Sequence[str]) -> int:
    """Train a GPT on token sequences."""
    from omop_gpt.train import parse, train_step

    train_step(*parse(list(argv)))
    return 0


def sample(argv: Sequence[str]) -> int:
    """Sample new sequences from a trained model."""
    from omop_gpt.flags import parse
    from omop_gpt.sample import SampleConfig, sample

    sample(parse(SampleConfig, "sample", argv))
    return 0


def decode(argv: Sequence[str]) -> int:
    """Decode sequences into OMOP tables."""
    from omop_gpt.decode import DecodeConfig, decode
    from omop_gpt.flags import parse

    decode(parse(DecodeConfig, "decode", argv))
    return 0


def export(argv: Sequence[str]) -> int:
    """Write the decoded tables as one DuckDB file, or into PostgreSQL."""
    from omop_gpt.export import ExportConfig, export
    from omop_gpt.flags import parse

    export(parse(ExportConfig, "export", argv))
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Judge synthetic patients by fidelity, utility and privacy."""
    from omop_gpt.evaluation.evaluate import EvaluateConfig, evaluate
    from omop_gpt.flags import parse

    evaluate(parse(EvaluateConfig, "evaluate", argv))
    return 0


def run(argv: Sequence[str]) -> int:
    """Run all steps, each skipped where it is done."""
    from omop_gpt.flags import parse
    from omop_gpt.run import RunConfig, run

    run(parse(RunConfig, "run", argv))
    return 0


STEPS: dict[str, Callable[[Sequence[str]], int]] = {
    step.__name__: step
    for step in (doctor, simulate, encode, train, sample, decode, evaluate, export, run)
}


def usage() -> str:
    """List the steps."""
    lines = [
        "usage: omop-gpt <step> [flags]; omop-gpt <step> --help lists its flags",
        "",
    ]
    lines += [f"  {name:9} {step.__doc__}" for name, step in STEPS.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; returns the exit code.

    2 where the input is at fault, 1 where the machine is, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # threads that wait must not burn the core that another process needs for long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # of each shape of a packed batch it keeps kernels: gigabytes, and no faster
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # it tells of each call that a killed Spark did not answer; one line of ours will do
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    try:
        if argv[0] not in STEPS:
            raise InputError(f"omop-gpt: no step {argv[0]}: one of {', '.join(STEPS)}.")
        return STEPS[argv[0]](argv[1:])
    except Exception as error:
        known = isinstance(error, (InputError, MachineError))
        told = error if known else told_plainly(error, argv[0])
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2 if isinstance(told, InputError) else 1
    except KeyboardInterrupt:
        print(f"error: {argv[0]} was stopped: run it again.", file=sys.stderr)
        return 130


def command() -> NoReturn:
    """Run as a command: when all is done and told, leave at once.

    dbt leaves half a million objects. Python would take a second to clear them away.
    """
    code = main()
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads it
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    command()
