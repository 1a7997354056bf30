"""Roll-outs: what the model itself foretells of real persons, without being taught to.

Each held-out person of a prediction task is gone on with some times from the day that
the task looks ahead from; the risk is the share of roll-outs in which the outcome comes
up by the horizon (zero-shot prediction; Renc et al., 2024, "ETHOS"). A roll-out is
judged as model task_labels judges a person: dead, or followed to the horizon, else it
does not count. Beside it stands what logistic regression learns from the training of
the same persons' features, and from age, sex and race alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from omop_gpt.evaluation.auroc import auroc
from omop_gpt.evaluation.cohorts import HOLDOUT, SYNTHETIC
from omop_gpt.evaluation.incidence import (
    DEATH,
    LEFT_OUT,
    NOTHING,
    OUTCOME,
    aalen_johansen,
    concordance,
)
from omop_gpt.evaluation.results import Profile, Results
from omop_gpt.evaluation.utility import (
    MODELS,
    Reference,
    add,
    calibration,
    make_reference,
)
from omop_gpt.grammar import EPOCH, Grammar, overlap_of
from omop_gpt.step import read_manifest

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.sampler import Sampled

SIZES = (10, 20, 50)  # roll-outs of a person, as many as there are
LEAST = 10  # persons with the outcome, and without, to ask for a task
BUDGET = 1_024  # tokens of a roll-out, beyond what is known
# how a release was drawn, and its roll-outs are
DRAWN = (
    "sampling_strategy", "top_p", "top_k", "temperature", "repetition_penalty",
    "epsilon_cutoff", "min_p", "event_min_p", "typical_p", "min_persons",
    "context_window", "scale_novelty", "scale_seasons", "scale_stays",
)  # fmt: skip
# what comes of a roll-out
FALSE, TRUE, ENDED, STOPPED = 0, 1, 2, 3
POINTS = 30  # days that curves of incidence are drawn at


@dataclass(frozen=True)
class Outcome:
    """What a task asks for. `tokens`: (V,) bool, those that make it true."""

    horizon: int  # days
    survives: bool  # asked of those alone who live to the horizon
    tokens: np.ndarray


@dataclass(frozen=True)
class Case:
    """A person of a task: what is known up to the day that it looks ahead from."""

    person_id: int
    known: np.ndarray  # (T,) token ids
    index_day: int  # days since 1970-01-01
    place: int  # among the task's rows of the holdout
    came: tuple[int, int]  # what first_come() says, of the rest of the history


@dataclass(frozen=True)
class Rolled:
    """What came of the roll-outs of some cases, k of each.

    `fates` (P, k): whether each is TRUE or FALSE, or does not count. `days`, `came`
    (P, k): what first_come() says.
    """

    fates: np.ndarray
    days: np.ndarray
    came: np.ndarray

    def split(self, sizes: Sequence[int]) -> list[Rolled]:
        """Take the cases apart, so many each time."""
        ends = np.cumsum(sizes)[:-1]
        parts = (np.split(x, ends) for x in (self.fates, self.days, self.came))
        return [Rolled(*some) for some in zip(*parts, strict=True)]


def measure_rollouts(
    con: duckdb.DuckDBPyConnection,
    model_folder: Path,
    real_folder: Path,
    synthetic_folder: Path,
    profile: Profile,
    results: Results,
) -> None:
    """Add what the model foretells of the holdout, if the profile asks for it.

    Strata are tasks, or all of them. Adds zero_shot_auroc, zero_shot_gap (less that of
    logistic regression), zero_shot_oe (cases observed over expected; 1 is right) and
    zero_shot_oe_error (absolute logarithm of it); zero_shot_incidence_gap (largest
    distance between the shares that have the outcome by a day) and
    zero_shot_concordance (whether it comes first to whom it was foretold first);
    zero_shot_stopped and zero_shot_ended, shares of roll-outs that do not count, for
    want of tokens and as their record ends before the horizon; and curves
    zero_shot_auroc, zero_shot_calibration, zero_shot_incidence.
    """
    if not profile.rollouts:
        return
    grammar = Grammar.load(model_folder / "vocabulary")
    reference = make_reference(con, profile)
    outcomes = read_outcomes(con, grammar)
    cases = read_cases(con, real_folder, grammar, reference, outcomes, profile)
    if not cases:
        results.add("zero_shot_gap", SYNTHETIC, np.nan)
        results.add("zero_shot_oe_error", SYNTHETIC, np.nan)
        return
    asked = [(task, case) for task, some in cases.items() for case in some]
    size = len(asked), profile.rollouts
    found = Rolled(*(np.full(size, nothing) for nothing in (STOPPED, 0, NOTHING)))
    settings = release_settings(synthetic_folder)
    spans = [
        (case.index_day + 1, case.index_day + outcomes[task].horizon)
        for task, case in asked
    ]
    rollouts = roll_out(
        model_folder, grammar, [case for _, case in asked], spans, settings, profile
    )
    for sampled in tqdm(
        rollouts, total=found.fates.size, unit=" roll-outs", mininterval=2
    ):
        number, rollout = divmod(sampled.patient, profile.rollouts)
        task, case = asked[number]
        asked_for = grammar, outcomes[task], case.index_day, sampled.token_ids
        found.fates[number, rollout] = judged(
            *asked_for, is_stopped=sampled.ended_by_limit
        )
        found.days[number, rollout], found.came[number, rollout] = first_come(
            *asked_for
        )
    parts = found.split([len(some) for some in cases.values()])
    horizons = {task: outcomes[task].horizon for task in cases}
    add_forecasts(reference, cases, dict(zip(cases, parts)), horizons, results)


def read_outcomes(
    con: duckdb.DuckDBPyConnection, grammar: Grammar
) -> dict[str, Outcome]:
    """Read the tasks that have a horizon, with the tokens that make them true."""
    rows = con.execute(
        "select task, horizon, survives, source_table, concept_id "
        "from evaluation.task_outcomes order by all"
    ).fetchall()
    outcomes: dict[str, Outcome] = {}
    for task, horizon, survives, table, concept in rows:
        if table == "death":
            tokens = grammar.has_kind("death")
        elif table == "visit_occurrence":
            tokens = grammar.has_kind("visit") & (grammar.concept == concept)
        else:
            tokens = grammar.has_kind("event") & (grammar.source_table == table)
            tokens &= grammar.concept == concept
        before = outcomes.get(task)
        tokens = tokens | before.tokens if before else tokens
        outcomes[task] = Outcome(horizon, survives, tokens)
    return outcomes


def read_cases(
    con: duckdb.DuckDBPyConnection,
    real_folder: Path,
    grammar: Grammar,
    reference: Reference,
    outcomes: Mapping[str, Outcome],
    profile: Profile,
) -> dict[str, list[Case]]:
    """Return the persons of each task that are gone on with, the first by chance.

    Tasks of too few cases are left out, and persons whom a sample cannot go on with.
    """
    from omop_gpt.packing import read_histories
    from omop_gpt.prompts import PROMPT_TOKENS, known_until

    days = {
        (task, person_id): int((np.datetime64(day, "D") - EPOCH).astype(int))
        for task, person_id, day in con.execute(
            "select task, person_id, index_date from evaluation_private.task_labels "
            "where cohort = ?",
            [HOLDOUT],
        ).fetchall()
    }
    wanted: dict[int, list[tuple[str, int]]] = {}
    for task in sorted(outcomes.keys() & reference.learners.keys()):
        rows = reference.test[task].first(profile.rollout_persons)
        if min(rows.labels.sum(), (1 - rows.labels).sum()) < LEAST:
            continue
        for place, person_id in enumerate(rows.person_ids.tolist()):
            wanted.setdefault(person_id, []).append((task, place))
    cases: dict[str, list[Case]] = {}
    folder = real_folder / "patient_sequence" / HOLDOUT
    for person_id, history in read_histories(sorted(folder.glob("*.parquet")), grammar):
        for task, place in wanted.get(person_id, ()):
            day = days[task, person_id]
            stop = known_until(history, grammar, day)
            if stop > PROMPT_TOKENS and day < grammar.last_day:
                came = first_come(grammar, outcomes[task], day, history)
                known = history[:stop].astype(np.int64)
                case = Case(person_id, known, day, place, came)
                cases.setdefault(task, []).append(case)
    return {
        task: sorted(cases[task], key=lambda case: case.place) for task in sorted(cases)
    }


def release_settings(synthetic_folder: Path) -> dict[str, Any]:
    """Return how the release was drawn, as its sequences say; else the defaults."""
    manifest = read_manifest(synthetic_folder.parent / "generated_sequences") or {}
    settings = manifest.get("settings") or {}
    return {name: settings[name] for name in DRAWN if name in settings}


def roll_out(
    model_folder: Path,
    grammar: Grammar,
    cases: Sequence[Case],
    spans: Sequence[tuple[int, int]],
    settings: Mapping[str, Any],
    profile: Profile,
) -> Iterable[Sampled]:
    """Go on with each case so many times, from the first to the last day of its span.

    Patient n is roll-out n % rollouts of case n // rollouts.
    """
    import torch

    from omop_gpt.calibration import Calibration
    from omop_gpt.prompts import Forecasts
    from omop_gpt.sample import load_model
    from omop_gpt.sampler import SampleConfig, Sampler, context_of

    count = len(cases) * profile.rollouts
    config = SampleConfig(
        model_folder=str(model_folder), output_folder="", num_of_patients=count,
        max_tokens_per_patient=BUDGET, seed=profile.seed, **settings,
    )  # fmt: skip
    model = load_model(model_folder, grammar)
    prompts = Forecasts(
        [(case.person_id, case.known) for case in cases],
        grammar,
        rollouts=profile.rollouts,
        known=overlap_of(context_of(model, config)),
        spans=spans,
    )
    rules = {"first_day": max(first for first, _ in spans)}
    with torch.inference_mode():
        sampler = Sampler(
            model, grammar, config, prompts, rules=rules,
            calibration=Calibration.read(model_folder),
        )  # fmt: skip
        yield from sampler.run(list(range(count)))


def judged(
    grammar: Grammar,
    outcome: Outcome,
    index_day: int,
    token_ids: np.ndarray,
    *,
    is_stopped: bool,
) -> int:
    """Tell what comes of a roll-out: TRUE or FALSE, or why it does not count.

    It counts who is dead, or followed to the horizon; of a task for survivors, who does
    not die before. Death competes: who dies first does not have the outcome. STOPPED:
    it was to end for want of tokens, and what it would have written nobody knows.
    """
    if is_stopped:
        return STOPPED
    days = grammar.cursor(token_ids)
    until = index_day + outcome.horizon
    deaths = days[grammar.has_kind("death")[token_ids]]
    if len(deaths):
        counts = not outcome.survives or deaths[0] > until
    else:
        # a gap leads to what follows it, so the cursor tells how far the record goes
        counts = days.max() >= until
    if not counts:
        return ENDED
    return int(first_come(grammar, outcome, index_day, token_ids)[1] == OUTCOME)


def first_come(
    grammar: Grammar, outcome: Outcome, index_day: int, token_ids: np.ndarray
) -> tuple[int, int]:
    """Return what came first after the index day, as (days, came).

    `came`: OUTCOME, or DEATH, or NOTHING by the horizon, or by the last day of the
    record, where that is earlier.
    """
    days = grammar.cursor(token_ids) - index_day
    is_ahead = (days > 0) & (days <= outcome.horizon)
    for came, tokens in ((OUTCOME, outcome.tokens), (DEATH, grammar.has_kind("death"))):
        at = days[tokens[token_ids] & is_ahead]
        if len(at):
            return int(at[0]), came
    return int(np.clip(days.max(), 0, outcome.horizon)), NOTHING


def risks_of(found: np.ndarray) -> np.ndarray:
    """Share of roll-outs that come true, of those that count: (P, k) -> (P,).

    NaN where none counts.
    """
    true = (found == TRUE).sum(axis=1)
    counted = true + (found == FALSE).sum(axis=1)
    return np.divide(true, counted, out=np.full(len(found), np.nan), where=counted > 0)


def add_forecasts(
    reference: Reference,
    cases: Mapping[str, Sequence[Case]],
    found: Mapping[str, Rolled],
    horizons: Mapping[str, int],
    results: Results,
) -> None:
    """Add how good the risks are, beside what is learnt from the training.

    `found`: what came of the roll-outs of each task's cases. Persons of whom none of
    the first roll-outs counts are left out of all comparisons.
    """
    gaps, errors, distances = [], [], []
    for task, some in cases.items():
        fates = found[task].fates
        rollouts = fates.shape[1]
        sizes = [size for size in SIZES if size < rollouts] + [rollouts]
        risks = {size: risks_of(fates[:, :size]) for size in sizes}
        kept = np.isfinite(risks[sizes[0]])
        places = np.array([case.place for case in some])[kept]
        test = reference.test[task]
        truth = test.labels[places]
        weights = reference.weights_of(test)[:, places]
        # all rows once, then each bootstrap sample
        weights = np.concatenate([np.ones((1, len(places))), weights])
        size = len(reference.train[task].labels)
        rivals = {name: reference.trained_on(task, name, size) for name in MODELS} | {
            "floor": reference.trained_on(task, "logistic", size, floor=True)
        }
        areas = {
            name: auroc(truth, rival.chance[places, 0], weights)
            for name, rival in rivals.items()
        }
        for size in sizes:
            areas[size] = auroc(truth, risks[size][kept], weights)
            results.draw(
                "zero_shot_auroc",
                [
                    {
                        "cohort": SYNTHETIC,
                        "task": task,
                        "rollouts": size,
                        "zero_shot": float(areas[size][0]),
                        **{name: float(areas[name][0]) for name in rivals},
                        "persons": len(truth),
                    }
                ],
            )
        risk = risks[rollouts][kept]
        gaps.append(areas[rollouts] - areas["logistic"])
        add(results, "zero_shot_auroc", SYNTHETIC, areas[rollouts], task, len(truth))
        add(results, "zero_shot_gap", SYNTHETIC, gaps[-1], task, len(truth))
        boosted = areas[rollouts] - areas["boosting"]
        add(results, "zero_shot_gap_to_boosting", SYNTHETIC, boosted, task, len(truth))
        balance = ratio(weights @ truth, weights @ risk)
        errors.append(np.abs(np.log(balance)))
        add(results, "zero_shot_oe", SYNTHETIC, balance, task, len(truth))
        add(results, "zero_shot_oe_error", SYNTHETIC, errors[-1], task, len(truth))
        for name, fate in (("stopped", STOPPED), ("ended", ENDED)):
            results.add(
                f"zero_shot_{name}", SYNTHETIC, (fates == fate).mean(),
                stratum=task, n=len(some),
            )  # fmt: skip
        results.draw(
            "zero_shot_calibration",
            [
                {"cohort": SYNTHETIC, "task": task, **row}
                for row in calibration(truth[:, None], risk[:, None])
            ],
        )
        came = np.array([case.came for case in some])[kept].T
        distances.append(
            add_times(task, came, found[task], kept, horizons[task], weights, results)
        )
    persons = len({case.person_id for some in cases.values() for case in some})
    distance = np.mean(distances, axis=0)
    add(results, "zero_shot_incidence_gap", SYNTHETIC, distance, "all", persons)
    add(results, "zero_shot_gap", SYNTHETIC, np.mean(gaps, axis=0), "all", persons)
    # not of all tasks together: too many of one would make up for too few of another
    known = [error for error in errors if np.isfinite(error[0])]
    mean = np.mean(known, axis=0) if known else np.full(1, np.nan)
    add(results, "zero_shot_oe_error", SYNTHETIC, mean, "all", persons)
    every = np.concatenate([rolled.fates.ravel() for rolled in found.values()])
    for name, fate in (("stopped", STOPPED), ("ended", ENDED)):
        results.add(f"zero_shot_{name}", SYNTHETIC, (every == fate).mean(), n=persons)


def add_times(
    task: str,
    came: np.ndarray,
    rolled: Rolled,
    kept: np.ndarray,
    horizon: int,
    weights: np.ndarray,
    results: Results,
) -> np.ndarray:
    """Add how well the days of a task's outcome are foretold.

    `came`: (2, P), of the persons that are `kept`. Returns the largest distance between
    the shares that have the outcome, of each bootstrap sample (B,). A roll-out that was
    stopped is followed up to there; one that ended does not count.
    """
    fates = rolled.fates[kept]
    of_rollouts = np.where(fates == ENDED, LEFT_OUT, rolled.came[kept])
    foretold = aalen_johansen(rolled.days[kept], of_rollouts, horizon, weights)
    days, what = came
    observed = aalen_johansen(days[:, None], what[:, None], horizon, weights)
    distance = np.nanmax(np.abs(foretold - observed), axis=1)
    add(results, "zero_shot_incidence_gap", SYNTHETIC, distance, task, len(days))
    # days without the outcome, up to the horizon: who dies does not have it
    counted = fates < ENDED
    waits = np.where(fates == TRUE, rolled.days[kept], horizon)
    wait = (waits * counted).sum(axis=1) / counted.sum(axis=1)
    order = concordance(days, what, wait, weights)
    add(results, "zero_shot_concordance", SYNTHETIC, order, task, len(days))
    results.draw(
        "zero_shot_incidence",
        [
            {
                "cohort": SYNTHETIC,
                "task": task,
                "day": day,
                "observed": float(observed[0, day]),
                "foretold": float(foretold[0, day]),
                "persons": len(days),
            }
            for day in np.unique(np.linspace(0, horizon, POINTS).astype(int)).tolist()
        ],
    )
    return distance


def ratio(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return cases observed over expected; NaN where one of them is none."""
    is_known = (observed > 0) & (expected > 0)
    nothing = np.full(len(observed), np.nan)
    return np.divide(observed, expected, out=nothing, where=is_known)
