"""Roll-outs: what counts as foretold, against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
from conftest import make_model, random_history
from omop_gpt.evaluation import rollouts, utility
from omop_gpt.evaluation.auroc import person_weights
from omop_gpt.evaluation.incidence import (
    DEATH,
    LEFT_OUT,
    NOTHING,
    OUTCOME,
    aalen_johansen,
    concordance,
)
from omop_gpt.evaluation.results import PROFILES, Results
from omop_gpt.evaluation.rollouts import (
    ENDED,
    FALSE,
    STOPPED,
    TRUE,
    Case,
    Outcome,
    Rolled,
    first_come,
    judged,
    risks_of,
)
from omop_gpt.grammar import Grammar, day_of
from omop_gpt.prompts import PROMPT_TOKENS, known_until
from omop_gpt.step import write_manifest
from scipy import sparse
from sklearn.metrics import roc_auc_score
from test_packing import write_split
from test_sample import save_model

PROFILE = replace(PROFILES["full"], rollouts=12, rollout_persons=30, bootstraps=20)
INDEX = day_of("2005-03-02")  # 60 days into the year
CASES = [
    # what follows: days and tokens; what comes of it in 30 days; what first, and when
    ("30 visit:9201", "TRUE", (30, OUTCOME)),  # on the last day
    ("31 visit:9201", "FALSE", (30, NOTHING)),  # a day later: followed, and not seen
    # the record is too short to say
    ("5 visit:9202 condition:320128", "ENDED", (5, NOTHING)),
    (
        "5 visit:9201",
        "ENDED",
        (5, OUTCOME),
    ),  # and would not be asked of, like a real one
    ("5 visit:9202 30 visit:9201", "FALSE", (30, NOTHING)),
    ("5 visit:9202 25 visit:9201", "TRUE", (30, OUTCOME)),
    ("5 visit:9201 7 visit:9201 90 visit:9202", "TRUE", (5, OUTCOME)),
    ("5 visit:9202 30", "FALSE", (30, NOTHING)),  # cut off beyond the horizon
    ("10 [DEATH]", "FALSE", (10, DEATH)),  # death came first
    ("5 visit:9201 9 [DEATH]", "TRUE", (5, OUTCOME)),
    ("400 [DEATH]", "FALSE", (30, NOTHING)),
    ("", "ENDED", (0, NOTHING)),
]


def write_history(grammar: Grammar, text: str) -> np.ndarray:
    """A history up to INDEX, with an admission on it, and what follows."""
    token_id = {token: n for n, token in enumerate(grammar.tokens)}
    history = [
        grammar.bos_id, token_id["year:2005"], token_id["age:40"],
        token_id["gender:8507"], token_id["race:0"], token_id["ethnicity:0"],
        *grammar.spell("gap", 60), token_id["visit:9201"],
    ]  # fmt: skip
    for word in text.split():
        days = word.isdigit()
        history += grammar.spell("gap", int(word)) if days else [token_id[word]]
    ends = not text or not text.split()[-1].isdigit()
    return np.array([*history, grammar.eos_id] if ends else history)


def outcome(grammar: Grammar, *tokens: str, horizon: int = 30, survives: bool = False):
    return Outcome(horizon, survives, np.isin(grammar.tokens, tokens))


def judge(grammar: Grammar, asked: Outcome, text: str, *, is_stopped: bool = False):
    history = write_history(grammar, text)
    return judged(grammar, asked, INDEX, history, is_stopped=is_stopped)


@pytest.mark.parametrize(("text", "expected", "came"), CASES)
def test_an_admission_by_the_horizon(grammar, text, expected, came):
    asked = outcome(grammar, "visit:9201")
    assert first_come(grammar, asked, INDEX, write_history(grammar, text)) == came
    assert judge(grammar, asked, text) == getattr(rollouts, expected)
    # what had to end for want of tokens says nothing, whatever it has
    assert judge(grammar, asked, text, is_stopped=True) == STOPPED


def test_death_is_foretold_as_another_outcome(grammar):
    asked = outcome(grammar, "[DEATH]")
    for text, expected in (
        ("10 [DEATH]", TRUE),
        ("30 [DEATH]", TRUE),
        ("31 [DEATH]", FALSE),
        ("5 visit:9202 40 visit:9202", FALSE),
        ("5 visit:9202", ENDED),
    ):
        assert judge(grammar, asked, text) == expected, text
    assert first_come(grammar, asked, INDEX, write_history(grammar, "10 [DEATH]")) == (
        10,
        OUTCOME,
    )


def test_of_survivors_those_who_die_before_are_not_asked(grammar):
    asked = outcome(grammar, "visit:9201", survives=True)
    for text, expected in (
        ("5 visit:9201 9 [DEATH]", ENDED),
        ("5 visit:9201 25 [DEATH]", ENDED),  # on the last day
        ("5 visit:9201 26 [DEATH]", TRUE),
        ("40 [DEATH]", FALSE),
    ):
        assert judge(grammar, asked, text) == expected, text


def test_what_is_on_the_index_day_is_no_outcome(grammar):
    """Neither what is known nor, if it were written, what is new."""
    asked = outcome(grammar, "visit:9201", "condition:320128")
    assert judge(grammar, asked, "40 visit:9202") == FALSE
    assert judge(grammar, asked, "condition:320128 40 visit:9202") == FALSE
    assert judge(grammar, asked, "1 visit:9202 condition:320128 40 visit:9202") == TRUE


def test_risks_are_shares_of_what_counts():
    found = np.array(
        [
            [TRUE, FALSE, FALSE, TRUE],
            [TRUE, ENDED, STOPPED, FALSE],
            [ENDED, ENDED, STOPPED, STOPPED],
            [FALSE, FALSE, STOPPED, FALSE],
        ]
    )
    assert risks_of(found)[[0, 1, 3]].tolist() == [0.5, 0.5, 0]
    assert np.isnan(risks_of(found)[2])


# ---------- real histories that are gone on with


@pytest.fixture(scope="module")
def model(grammar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts") / "model"
    return save_model(folder, make_model(grammar), grammar)


@pytest.fixture(scope="module")
def world(grammar, tmp_path_factory):
    """Persons of the holdout with an index day each, as the marts have them."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(8)
    histories, days = {}, {}
    while len(histories) < 60:
        history = random_history(grammar, rng, 60)
        visits = grammar.has_kind("visit")[history]
        if not visits.any():
            continue
        day = int(rng.choice(grammar.cursor(history)[visits]))
        if known_until(history, grammar, day) <= PROMPT_TOKENS and len(histories) % 4:
            continue
        person = 1_000 - 7 * len(histories)
        histories[person], days[person] = history.tolist(), day
    write_split(root / "patient_sequence" / "holdout", histories)
    con = duckdb.connect()
    con.execute("create schema evaluation")
    con.execute("create schema evaluation_private")
    con.execute(
        "create table evaluation.task_outcomes as from (values "
        "('admit', 400, false, 'visit_occurrence', 9201), "
        "('admit', 400, false, 'visit_occurrence', 262), "
        "('sick', 400, false, 'condition_occurrence', 320128), "
        "('sick', 400, false, 'condition_occurrence', 201826), "
        "('die', 90, true, 'death', 0)"
        ") as rows (task, horizon, survives, source_table, concept_id)"
    )
    con.execute(
        "create table evaluation_private.task_labels "
        "(task text, cohort text, person_id bigint, index_date date)"
    )
    for task in ("admit", "sick"):
        con.executemany(
            "insert into evaluation_private.task_labels values (?, ?, ?, "
            "date '1970-01-01' + cast(? as int))",
            [[task, "holdout", person, day] for person, day in days.items()],
        )
    return SimpleNamespace(root=root, con=con, histories=histories, days=days)


def reference_of(world, seed: int = 0) -> utility.Reference:
    """Rows of the persons in random order, and models of others like them."""
    rng = np.random.default_rng(seed)
    ids = np.array(sorted(world.histories))

    def rows(people: np.ndarray) -> utility.Rows:
        size = len(people)
        labels = rng.integers(2, size=size)
        told = rng.normal(size=(size, 2)) + labels[:, None]
        nothing = sparse.csr_array((size, 0))
        return utility.Rows(people, labels, told, told[:, :1], nothing, size)

    tasks = ("admit", "sick")
    train = {task: rows(np.arange(300)) for task in tasks}
    return utility.Reference(
        persons=300, races=np.array([]), tasks=tasks, train=train,
        test={task: rows(rng.permutation(ids)) for task in tasks},
        learners={task: utility.Learner(np.array([1]), 1) for task in tasks},
        person_ids=ids, weights=person_weights(len(ids), 20, 1),
    )  # fmt: skip


def test_outcomes_are_the_tokens_of_their_rows(world, grammar):
    found = rollouts.read_outcomes(world.con, grammar)
    assert {
        task: {grammar.tokens[n] for n in np.flatnonzero(one.tokens)}
        for task, one in found.items()
    } == {
        "admit": {"visit:9201"}, "sick": {"condition:320128", "condition:201826"},
        "die": {"[DEATH]"},
    }  # fmt: skip
    assert [(found[t].horizon, found[t].survives) for t in ("admit", "die")] == [
        (400, False), (90, True),
    ]  # fmt: skip


def test_cases_are_the_first_persons_up_to_their_day(world, grammar):
    reference = reference_of(world)
    outcomes = rollouts.read_outcomes(world.con, grammar)
    cases = rollouts.read_cases(
        world.con, world.root, grammar, reference, outcomes, PROFILE
    )
    assert list(cases) == ["admit", "sick"]
    for task, some in cases.items():
        first = reference.test[task].person_ids[:30].tolist()
        expected = []
        for place, person in enumerate(first):
            history, day = np.array(world.histories[person]), world.days[person]
            stop = known_until(history, grammar, day)
            if stop > PROMPT_TOKENS and day < grammar.last_day:
                came = first_come(grammar, outcomes[task], day, history)
                expected.append((person, place, history[:stop].tolist(), day, came))
        assert expected == [
            (one.person_id, one.place, one.known.tolist(), one.index_day, one.came)
            for one in some
        ]
        assert len(some) > 5
    # too few of one outcome
    one_sided = reference.test["sick"].labels
    one_sided[:30] = 0
    cases = rollouts.read_cases(
        world.con, world.root, grammar, reference, outcomes, PROFILE
    )
    assert list(cases) == ["admit"]


def rolled(model, grammar, cases, horizon, profile=PROFILE):
    spans = [(case.index_day + 1, case.index_day + horizon) for case in cases]
    found = rollouts.roll_out(model, grammar, cases, spans, {}, profile)
    return sorted(found, key=lambda sampled: sampled.patient)


def test_each_is_gone_on_with_from_its_own_day(world, model, grammar):
    cases = rollouts.read_cases(
        world.con, world.root, grammar, reference_of(world),
        rollouts.read_outcomes(world.con, grammar), PROFILE,
    )["admit"]  # fmt: skip
    found = rolled(model, grammar, cases, 400)
    assert len(found) == 12 * len(cases)
    happens = grammar.has_kind("event", "visit", "no_visit", "death")
    latest = max(case.index_day for case in cases)
    whole = beyond = early = 0
    for sampled in found:
        case = cases[sampled.patient // 12]
        known, ids = len(case.known), sampled.token_ids
        assert (ids[:known] == case.known).all()
        days = grammar.cursor(ids)
        what = happens[ids]
        what[:known] = False
        assert (days[what] > case.index_day).all()
        early += (days[what] <= latest).any()  # before others begin
        over = days > case.index_day + 400
        if over.any():  # it ends with the first token that leads beyond
            assert np.flatnonzero(over).tolist() == [len(ids) - 1]
            beyond += 1
        else:
            assert grammar.is_history(ids)
            whole += 1
    assert min(whole, beyond, early) > 10
    # the same again, alone, and in another order
    again = rolled(model, grammar, cases, 400)
    assert all((a.token_ids == b.token_ids).all() for a, b in zip(found, again))
    other = rolled(model, grammar, cases, 400, replace(PROFILE, seed=1))
    assert any(
        a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(found, other)
    )


def test_what_is_not_done_in_time_is_stopped(world, model, grammar, monkeypatch):
    monkeypatch.setattr(rollouts, "BUDGET", 30)
    cases = rollouts.read_cases(
        world.con, world.root, grammar, reference_of(world),
        rollouts.read_outcomes(world.con, grammar), PROFILE,
    )["admit"]  # fmt: skip
    found = rolled(model, grammar, cases, 4_000)
    assert any(sampled.ended_by_limit for sampled in found)
    for sampled in found:
        known = len(cases[sampled.patient // 12].known)
        assert len(sampled.token_ids) <= known + 30


def test_risks_are_held_against_what_is_learnt(world):
    reference = reference_of(world)
    rng = np.random.default_rng(2)
    cases, found = {}, {}
    for task in ("admit", "sick"):
        labels = reference.test[task].labels
        cases[task] = [
            Case(
                n, np.empty(0), 0, place,
                (int(rng.integers(1, 50)), int(rng.choice([OUTCOME, DEATH])))
                if labels[place] else (50, NOTHING),
            )
            for n, place in enumerate(rng.permutation(60)[:40].tolist())
        ]  # fmt: skip
        chance = np.array([0.4 + 0.1 * labels[case.place] for case in cases[task]])
        fates = (rng.random((40, 20)) < chance[:, None]).astype(int)
        fates[rng.random((40, 20)) < 0.1] = ENDED
        fates[rng.random((40, 20)) < 0.05] = STOPPED
        days = rng.integers(1, 50, (40, 20))
        # some of those without the outcome die, and others are followed to the end
        came = np.where(fates == TRUE, OUTCOME, rng.choice([NOTHING, DEATH], (40, 20)))
        came[fates == STOPPED] = NOTHING
        days[(fates == FALSE) & (came == NOTHING)] = 50
        found[task] = Rolled(fates, days, came)
    found["sick"].fates[3] = ENDED  # of whom nothing can be said
    results = Results()
    horizons = dict.fromkeys(cases, 50)
    rollouts.add_forecasts(reference, cases, found, horizons, results)
    value = {(m.name, m.stratum): m for m in results.metrics}
    gaps, errors, distances = [], [], []
    for task in cases:
        fates = found[task].fates
        kept = [n for n in range(40) if (task, n) != ("sick", 3)]
        places = [cases[task][n].place for n in kept]
        truth = reference.test[task].labels[places]
        risk = np.array(
            [
                sum(fate == TRUE for fate in row) / sum(fate < ENDED for fate in row)
                for row in fates[kept]
            ]
        )
        area = value["zero_shot_auroc", task]
        assert area.value == pytest.approx(roc_auc_score(truth, risk))
        assert area.ci_low < area.value < area.ci_high
        assert area.n == len(kept)
        learnt = reference.learners[task].learn("logistic", reference.train[task])
        rival = roc_auc_score(truth, learnt(reference.test[task])[places, 0])
        gaps.append(area.value - rival)
        assert value["zero_shot_gap", task].value == pytest.approx(gaps[-1])
        balance = truth.sum() / risk.sum()
        assert value["zero_shot_oe", task].value == pytest.approx(balance)
        errors.append(abs(np.log(balance)))
        points = [r for r in results.curves["zero_shot_auroc"] if r["task"] == task]
        assert [row["rollouts"] for row in points] == [10, 20]
        assert points[-1]["zero_shot"] == area.value
        first = [
            sum(fate == TRUE for fate in row) / sum(fate < ENDED for fate in row)
            for row in fates[kept, :10]
        ]
        assert points[0]["zero_shot"] == pytest.approx(roc_auc_score(truth, first))
        assert points[0]["logistic"] == pytest.approx(rival)
        learnt = reference.learners[task].learn("boosting", reference.train[task])
        rival = roc_auc_score(truth, learnt(reference.test[task])[places, 0])
        assert points[0]["boosting"] == pytest.approx(rival)
        gap = value["zero_shot_gap_to_boosting", task].value
        assert gap == pytest.approx(area.value - rival)
        assert value["zero_shot_ended", task].value == (fates == ENDED).mean()
        # days: those who ended do not count, those who were stopped up to there
        days, came = np.array([cases[task][n].came for n in kept]).T
        observed = [((came == OUTCOME) & (days <= day)).mean() for day in range(51)]
        foretold = aalen_johansen(
            found[task].days[kept],
            np.where(fates[kept] == ENDED, LEFT_OUT, found[task].came[kept]),
            50,
        )[0]
        distances.append(np.abs(foretold - observed).max())
        distance = value["zero_shot_incidence_gap", task]
        assert distance.value == pytest.approx(distances[-1])
        assert distance.ci_low < distance.value < distance.ci_high
        points = [r for r in results.curves["zero_shot_incidence"] if r["task"] == task]
        assert [row["day"] for row in points][:: len(points) - 1] == [0, 50]
        assert [row["observed"] for row in points] == pytest.approx(
            [observed[row["day"]] for row in points]
        )
        assert points[-1]["foretold"] == pytest.approx(foretold[50])
        waits = [
            np.mean([d if f == TRUE else 50 for d, f in zip(*row) if f < ENDED])
            for row in zip(found[task].days[kept], fates[kept])
        ]
        order = concordance(days, came, np.array(waits))[0]
        assert value["zero_shot_concordance", task].value == pytest.approx(order)
    assert value["zero_shot_gap", "all"].value == pytest.approx(np.mean(gaps))
    distance = value["zero_shot_incidence_gap", "all"].value
    assert distance == pytest.approx(np.mean(distances))
    # too many of one task do not make up for too few of another
    error = value["zero_shot_oe_error", "all"]
    assert error.value == pytest.approx(np.mean(errors))
    assert error.ci_low < error.value < error.ci_high
    every = np.concatenate([found[task].fates.ravel() for task in found])
    assert value["zero_shot_stopped", "all"].value == (every == STOPPED).mean()


def test_the_whole_of_it(world, model, monkeypatch, tmp_path):
    monkeypatch.setattr(rollouts, "make_reference", lambda *_: reference_of(world))
    # drawn as the release was: all of the likeliest token
    (tmp_path / "generated_sequences").mkdir()
    write_manifest(
        tmp_path / "generated_sequences", step="sample", inputs="", started=0,
        settings={"top_p": 0.001, "seed": 9, "must_have": ["x"]}, result={},
    )  # fmt: skip
    seen = []
    real = rollouts.judged
    monkeypatch.setattr(
        rollouts, "judged",
        lambda *args, **more: seen.append(args[3].tolist()) or real(*args, **more),
    )  # fmt: skip
    results = Results()
    rollouts.measure_rollouts(
        world.con, model, world.root, tmp_path / "omop", PROFILE, results
    )
    names = {(m.name, m.stratum) for m in results.metrics}
    assert {("zero_shot_gap", "all"), ("zero_shot_oe_error", "all")} <= names
    assert len({tuple(ids) for ids in seen}) <= len(seen) // 12
    # a profile that does not ask for it
    results = Results()
    rollouts.measure_rollouts(
        world.con, model, world.root, tmp_path, PROFILES["smoke"], results
    )
    assert not results.metrics


def test_nobody_to_foretell_is_no_number(world, model, monkeypatch):
    nobody = replace(reference_of(world), learners={})
    monkeypatch.setattr(rollouts, "make_reference", lambda *_: nobody)
    results = Results()
    rollouts.measure_rollouts(
        world.con, model, world.root, world.root, PROFILE, results
    )
    assert all(np.isnan(m.value) for m in results.metrics)
    assert {m.name for m in results.metrics} == {"zero_shot_gap", "zero_shot_oe_error"}
