"""Do models trained on synthetic patients predict what happens to real ones?

Train on synthetic, test on real (TSTR; Esteban et al., 2017): each prediction task of
model task_labels is learnt from the candidate and tested on the holdout, beside the same
model learnt from real training patients (TRTR), and from their age, sex and race alone
(the floor). A row is a person, so that bootstrap samples are of persons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from omop_gpt.evaluation.auroc import auroc, interval, person_weights

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results

TRAIN, TEST = "train", "holdout"
MODELS = ("logistic", "boosting")
CONCEPTS = 500  # the most frequent of the training patients
VISITS = ("inpatient_visits", "emergency_visits", "outpatient_visits", "other_visits")
# at most so many training rows of a task, the same of every cohort
TRAINING_ROWS = {"smoke": 20_000, "standard": 20_000, "full": 50_000}
LEAST_CASES = 20  # of a class, in the training and in the holdout, to ask for it
LEAST_MARGIN = 0.03  # of TRTR over the floor, for a relative utility
# A cohort with fewer persons than this share of the training is held against a model of
# as many real ones: else its size would pass for a lack of quality.
FULL_SHARE = 0.8
IMPORTANT = 50  # features whose importance is compared
SMALL_SIZES = (500, 2_000)  # real patients that the candidate's are added to
BINS = 10  # of a calibration curve


@dataclass(frozen=True)
class Rows:
    """Rows of one task in one cohort, in random order.

    `person_ids`, `labels`: (rows,); `demographics`: (rows, d); `history`: (rows, 5) of
    visits by type and mean gap; `counts`: (rows, 3 × concepts) log(1 + events) of
    each concept 0 to 90, 91 to 365 and more days before the index; `total`: rows there
    would be without a limit.
    """

    person_ids: np.ndarray
    labels: np.ndarray
    demographics: np.ndarray
    history: np.ndarray
    counts: sparse.csr_array
    total: int

    def first(self, rows: int) -> Rows:
        """Return the first rows alone."""
        return Rows(
            self.person_ids[:rows],
            self.labels[:rows],
            self.demographics[:rows],
            self.history[:rows],
            self.counts[:rows],
            self.total,
        )

    def joined(self, other: Rows) -> Rows:
        """Return these rows and those of another cohort."""
        return Rows(
            np.concatenate([self.person_ids, other.person_ids]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.demographics, other.demographics]),
            np.concatenate([self.history, other.history]),
            sparse.vstack([self.counts, other.counts], format="csr"),
            self.total + other.total,
        )


@dataclass(frozen=True)
class Learner:
    """How one task is learnt.

    `classes`: those asked for: of two, the one that is 1. `common`: the columns of
    counts that boosting reads, which one in a hundred training patients has.
    """

    classes: np.ndarray
    common: np.ndarray
    seed: int

    def truth(self, rows: Rows) -> np.ndarray:
        """Return the labels, 0 or 1, of each class: (rows, classes)."""
        return (rows.labels[:, None] == self.classes).astype(int)

    def inputs(self, rows: Rows, model: str) -> np.ndarray | sparse.csr_array:
        """Return what a model reads: (rows, columns)."""
        if model == "floor":
            return rows.demographics
        known = np.hstack([rows.demographics, rows.history])
        if model == "logistic":
            return sparse.hstack([known, rows.counts], format="csr")
        return np.hstack([known, rows.counts[:, self.common].toarray()])

    def learn(self, model: str, rows: Rows, *, floor: bool = False) -> Predictor:
        """Train a model, on demographics alone for the floor."""
        reads = "floor" if floor else model
        if len(np.unique(rows.labels)) < 2:
            return Predictor(self, reads, None, rows.labels[:1])
        estimator = (
            LogisticRegression(C=0.03, max_iter=500)
            if model == "logistic"
            else HistGradientBoostingClassifier(
                learning_rate=0.15,
                max_iter=40,
                max_leaf_nodes=8,
                min_samples_leaf=40,
                max_features=0.3,
                early_stopping=False,
                random_state=self.seed,
            )
        )
        estimator.fit(self.inputs(rows, reads), rows.labels)
        return Predictor(self, reads, estimator, estimator.classes_)


@dataclass(frozen=True)
class Predictor:
    """A trained model; without an estimator, it only knows one class, or none."""

    learner: Learner
    reads: str
    estimator: LogisticRegression | HistGradientBoostingClassifier | None
    known: np.ndarray

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return the chance of each class that is asked for: (rows, classes)."""
        of_known = (
            np.ones((len(rows.labels), len(self.known)))
            if self.estimator is None
            else self.estimator.predict_proba(self.learner.inputs(rows, self.reads))
        )
        chance = np.zeros((len(rows.labels), len(self.learner.classes)))
        for column, wanted in enumerate(self.learner.classes):
            chance[:, column] = of_known[:, self.known == wanted].sum(axis=1)
        return chance


@dataclass(frozen=True)
class Reference:
    """What is the same for every candidate; models of real patients are made once.

    `learners`: by task, of those that can be used; `weights`: (samples, persons) of the
    bootstrap, by the place of a person among the sorted ids `person_ids`.
    """

    persons: int
    races: np.ndarray
    tasks: tuple[str, ...]
    train: dict[str, Rows]
    test: dict[str, Rows]
    learners: dict[str, Learner]
    person_ids: np.ndarray
    weights: np.ndarray
    trained: dict[tuple[str, str, int, bool], Predictor] = field(default_factory=dict)

    def predictor(
        self, task: str, model: str, rows: int, *, floor: bool = False
    ) -> Predictor:
        """Return the model trained on the first rows of the real training patients."""
        key = task, model, rows, floor
        if key not in self.trained:
            some = self.train[task].first(rows)
            self.trained[key] = self.learners[task].learn(model, some, floor=floor)
        return self.trained[key]

    def weights_of(self, rows: Rows) -> np.ndarray:
        """Return how often each row is in each bootstrap sample: (samples, rows)."""
        return self.weights[:, np.searchsorted(self.person_ids, rows.person_ids)]


def measure(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    profile: Profile,
    results: Results,
) -> None:
    """Add what models trained on a candidate are worth on real patients.

    Strata are task/model, or a mean over tasks: of a model, or `all`. What is
    of the real training patients (trtr_…, floor_auroc) is added once, as cohort train.
    """
    reference = make_reference(con, profile)
    if not any(metric.name == "trtr_auroc" for metric in results.metrics):
        measure_real(reference, results)
    limit = TRAINING_ROWS.get(profile.name, TRAINING_ROWS["standard"])
    persons, candidate_rows = load(con, candidate, limit, reference.races)
    share = persons / max(reference.persons, 1)
    share = 1.0 if share >= FULL_SHARE else share
    gaps: dict[str, np.ndarray] = {}  # the estimate first, then the bootstrap samples
    utilities: dict[str, np.ndarray] = {}
    agreements: dict[str, float] = {}
    for task in reference.tasks:
        if task not in reference.learners or task not in candidate_rows:
            for model in MODELS:
                for metric in ("tstr_auroc", "tstr_auroc_difference"):
                    results.add(metric, candidate, np.nan, stratum=f"{task}/{model}")
            if task not in reference.learners or not candidate_rows:
                continue
        learner, test = reference.learners[task], reference.test[task]
        rows = candidate_rows.get(task, test.first(0))
        real = reference.train[task]
        real_rows = min(len(real.labels), round(real.total * share))
        truth, weights = learner.truth(test), reference.weights_of(test)
        for model in MODELS:
            stratum = f"{task}/{model}"
            predictor = learner.learn(model, rows)
            of_real = reference.predictor(task, model, real_rows)
            floor = reference.predictor(task, model, len(real.labels), floor=True)
            chance = predictor(test)
            area, real_area, floor_area = (
                macro_auroc(truth, some(test), weights)
                for some in (predictor, of_real, floor)
            )
            for name, value in scores(truth, chance).items():
                low, high = interval(area[1:]) if name == "auroc" else (np.nan, np.nan)
                results.add(
                    f"tstr_{name}",
                    candidate,
                    value,
                    stratum=stratum,
                    ci_low=low,
                    ci_high=high,
                    n=len(truth),
                )
            add(
                results, "tstr_auroc_difference", candidate, area - real_area, stratum,
                len(truth),
            )  # fmt: skip
            gaps[stratum] = real_area - area
            if real_area[0] - floor_area[0] >= LEAST_MARGIN:
                margin = real_area - floor_area
                # samples in which reality has no margin say nothing
                margin[margin < LEAST_MARGIN / 3] = np.nan
                utilities[stratum] = (area - floor_area) / margin
                add(
                    results, "relative_utility", candidate, utilities[stratum],
                    stratum, len(truth),
                )  # fmt: skip
            else:
                results.add("relative_utility", candidate, np.nan, stratum=stratum)
            results.add(
                "trts_auroc",
                candidate,
                macro_auroc(learner.truth(rows), of_real(rows))[0],
                stratum=stratum,
                n=len(rows.labels),
            )
            low, high = interval(area[1:])
            results.draw(
                "utility_auroc",
                [
                    {
                        "cohort": candidate,
                        "task": task,
                        "model": model,
                        "tstr": float(area[0]),
                        "ci_low": low,
                        "ci_high": high,
                        "trtr": float(real_area[0]),
                        "floor": float(floor_area[0]),
                        "persons": len(truth),
                    }
                ],
            )
            results.draw(
                "utility_calibration",
                calibration(truth, chance, cohort=candidate, task=task, model=model),
            )
            if model == "logistic" and profile.name == "full":
                augment(reference, task, rows, candidate, results)
            if model == "logistic" and profile.name != "smoke" and len(truth[0]) == 1:
                agreements[task] = agreement(of_real, predictor, test)
                results.add(
                    "importance_agreement", candidate, agreements[task], stratum=task,
                    n=len(truth),
                )  # fmt: skip
    for stratum in ("all", *MODELS):
        chosen = stack(gaps, stratum)
        add(results, "tstr_gap_mean", candidate, chosen.mean(axis=0), stratum)
        add(results, "tstr_gap_worst", candidate, chosen.max(axis=0), stratum)
        chosen = stack(utilities, stratum).mean(axis=0)
        add(results, "relative_utility", candidate, chosen, stratum)
    if profile.name != "smoke":
        value = np.mean(list(agreements.values())) if agreements else np.nan
        results.add("importance_agreement", candidate, value)


def add(
    results: Results,
    name: str,
    cohort: str,
    samples: np.ndarray,
    stratum: str,
    persons: int = 0,
) -> None:
    """Add a metric of an estimate and its bootstrap samples."""
    low, high = interval(samples[1:])
    results.add(
        name, cohort, samples[0], stratum=stratum, ci_low=low, ci_high=high, n=persons
    )


def stack(by_stratum: dict[str, np.ndarray], model: str) -> np.ndarray:
    """Samples of all tasks, of one model or all: (tasks, samples); NaN if none is."""
    chosen = [
        samples
        for stratum, samples in by_stratum.items()
        if model in ("all", stratum.split("/")[1])
    ]
    return np.array(chosen) if chosen else np.full((1, 2), np.nan)


def measure_real(reference: Reference, results: Results) -> None:
    """Add what models of the real training patients are worth, and the floor."""
    for task, learner in reference.learners.items():
        test, rows = reference.test[task], len(reference.train[task].labels)
        truth, weights = learner.truth(test), reference.weights_of(test)
        for model in MODELS:
            stratum = f"{task}/{model}"
            chance = reference.predictor(task, model, rows)(test)
            floor = reference.predictor(task, model, rows, floor=True)(test)
            found = scores(truth, chance)
            del found["auroc"]
            for name, value in found.items():
                results.add(
                    f"trtr_{name}", TRAIN, value, stratum=stratum, n=len(truth)
                )
            for name, some in (("trtr_auroc", chance), ("floor_auroc", floor)):
                samples = macro_auroc(truth, some, weights)
                add(results, name, TRAIN, samples, stratum, len(truth))
            results.draw(
                "utility_calibration",
                calibration(truth, chance, cohort=TRAIN, task=task, model=model),
            )


def augment(
    reference: Reference, task: str, rows: Rows, candidate: str, results: Results
) -> None:
    """Add what the candidate adds to a few real patients: AUROC with it, less without."""
    learner, test = reference.learners[task], reference.test[task]
    truth, weights = learner.truth(test), reference.weights_of(test)
    for size in SMALL_SIZES:
        alone = reference.predictor(task, "logistic", size)
        both = learner.learn(
            "logistic", reference.train[task].first(size).joined(rows)
        )
        gain = macro_auroc(truth, both(test), weights) - macro_auroc(
            truth, alone(test), weights
        )
        stratum = f"{task}/{size}"
        add(results, "augmentation_gain", candidate, gain, stratum, len(truth))


def macro_auroc(
    truth: np.ndarray, chance: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean area under the ROC curve of one class against the rest, over the classes.

    The estimate first, then one for each row of weights.
    """
    columns = [
        np.concatenate(
            [auroc(*pair)]
            + ([] if weights is None else [auroc(*pair, weights=weights)])
        )
        for pair in zip(truth.T, chance.T)
    ]
    return np.mean(columns, axis=0)


def scores(truth: np.ndarray, chance: np.ndarray) -> dict[str, float]:
    """How good predictions are, each score the mean over the classes.

    auroc, auprc (average precision), brier, observed_expected (cases over the sum of
    chances) and calibration_slope (1: neither over- nor underfitted).
    """
    pairs = list(zip(truth.T, chance.T))
    by_name = {
        "auroc": [auroc(*pair)[0] for pair in pairs],
        "auprc": [average_precision_score(*pair) for pair in pairs],
        "brier": [np.mean((some - cases) ** 2) for cases, some in pairs],
        "observed_expected": [
            cases.sum() / some.sum() if some.sum() else np.nan for cases, some in pairs
        ],
        "calibration_slope": [calibration_slope(*pair) for pair in pairs],
    }
    return {name: float(np.mean(values)) for name, values in by_name.items()}


def calibration_slope(cases: np.ndarray, chance: np.ndarray) -> float:
    """Slope of the cases on the predicted log odds, by logistic regression (Cox)."""
    log_odds = logit(np.clip(chance, 1e-6, 1 - 1e-6))
    if np.ptp(log_odds) == 0 or np.ptp(cases) == 0:
        return np.nan
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(log_odds[:, None], cases)
    return float(fitted.coef_[0, 0])


def calibration(
    truth: np.ndarray, chance: np.ndarray, **names: str
) -> Iterator[dict[str, object]]:
    """Mean chance and share of cases in tenths of the predictions, classes together."""
    order = np.argsort(chance, axis=None, kind="stable")
    for number, part in enumerate(np.array_split(order, BINS), 1):
        if len(part):
            yield names | {
                "bin": number,
                "chance": float(chance.flat[part].mean()),
                "observed": float(truth.flat[part].mean()),
                "persons": len(part),
            }


def agreement(of_real: Predictor, of_candidate: Predictor, test: Rows) -> float:
    """Spearman's correlation of the importance of features, real and candidate.

    Importance: loss of AUROC where the feature is shuffled, in logistic regressions; of
    the fifty features that are the most important to the real one.
    """
    if of_real.estimator is None or of_candidate.estimator is None:
        return np.nan
    learner = of_real.learner
    inputs = learner.inputs(test, "logistic").tocsc()
    # twice as many by the size of their effect, then the rest by what is measured
    spread = np.sqrt(
        np.maximum(
            inputs.power(2).mean(axis=0) - np.square(inputs.mean(axis=0)), 0
        )
    )
    effect = np.abs(of_real.estimator.coef_[0]) * spread
    columns = np.argsort(-effect, kind="stable")[: 2 * IMPORTANT]
    features = inputs[:, columns].toarray()
    cases = learner.truth(test)[:, 0]
    rng = np.random.default_rng(learner.seed)
    shuffled = features[rng.permutation(len(features))]
    losses = []
    for predictor in (of_real, of_candidate):
        log_odds = predictor.estimator.decision_function(inputs)
        coefficients = predictor.estimator.coef_[0, columns]
        whole = auroc(cases, log_odds)[0]
        changes = (shuffled - features) * coefficients
        losses.append(
            [whole - auroc(cases, log_odds + change)[0] for change in changes.T]
        )
    real, other = np.array(losses)
    chosen = np.argsort(-real, kind="stable")[:IMPORTANT]
    if np.ptp(real[chosen]) == 0 or np.ptp(other[chosen]) == 0:
        return np.nan
    return float(spearmanr(real[chosen], other[chosen]).statistic)


@lru_cache(maxsize=1)
def make_reference(con: duckdb.DuckDBPyConnection, profile: Profile) -> Reference:
    """Load the real patients, and say which tasks they can answer."""
    con.execute(
        """
        create or replace temp table frequent_concepts as
        select
            concept_id,
            cast(row_number() over (
                order by count(distinct person_id) desc, concept_id
            ) - 1 as int) as number
        from evaluation_private.events
        where cohort = ? and concept_id <> 0
        group by 1
        qualify number < ?
        """,
        [TRAIN, CONCEPTS],
    )
    races = con.execute(
        "select race_concept_id from evaluation_private.persons where cohort = ? "
        "group by 1 order by count(*) desc, 1 limit 5",
        [TRAIN],
    ).fetchnumpy()["race_concept_id"]
    races = np.ma.filled(races, 0)
    limit = TRAINING_ROWS.get(profile.name, TRAINING_ROWS["standard"])
    persons, train = load(con, TRAIN, limit, races)
    _, test = load(con, TEST, limit, races)
    learners = {}
    for task in sorted(train.keys() & test.keys()):
        enough = [
            label
            for label in np.unique(train[task].labels)
            if min(
                (train[task].labels == label).sum(), (test[task].labels == label).sum()
            )
            >= LEAST_CASES
        ]
        if len(enough) > 1:
            is_binary = set(np.unique(train[task].labels)) == {0, 1}
            learners[task] = Learner(
                np.array([1] if is_binary else enough),
                common_columns(train[task].counts),
                profile.seed,
            )
    ids = [rows.person_ids for rows in test.values()]
    person_ids = np.unique(np.concatenate(ids)) if ids else np.array([], int)
    return Reference(
        persons=persons,
        races=races,
        tasks=tuple(sorted(train.keys() | test.keys())),
        train=train,
        test=test,
        learners=learners,
        person_ids=person_ids,
        weights=person_weights(len(person_ids), profile.bootstraps, profile.seed),
    )


def common_columns(counts: sparse.csr_array) -> np.ndarray:
    """Columns that are not 0 in at least one row in a hundred."""
    rows_with = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.flatnonzero(rows_with >= max(counts.shape[0] / 100, 1))


def load(
    con: duckdb.DuckDBPyConnection, cohort: str, limit: int, races: np.ndarray
) -> tuple[int, dict[str, Rows]]:
    """Persons of a cohort, and at most `limit` of its rows of each task, by chance.

    Features are of the day of the index or before it. An age that is not known is 50.
    """
    (persons,) = con.execute(
        "select count(*) from evaluation_private.persons where cohort = ?", [cohort]
    ).fetchone()
    con.execute(
        """
        create or replace temp table chosen_rows as
        with ordered as (
            select
                *,
                row_number() over (
                    partition by task
                    order by md5('row:' || person_id), person_id
                ) as task_row,
                count(*) over (partition by task) as total
            from evaluation_private.task_labels
            where cohort = ?
        )
        select
            *,
            cast(row_number() over (order by task, task_row) - 1 as int) as row
        from ordered
        where task_row <= ?
        """,
        [cohort, limit],
    )
    table = con.execute("from chosen_rows order by row").fetchnumpy()
    counted = con.execute(
        """
        select
            row,
            number * 3 + case
                when index_date - event_date <= 90 then 0
                when index_date - event_date <= 365 then 1
                else 2
            end as number,
            ln(1 + count(*)) as log_count
        from chosen_rows
        inner join evaluation_private.events using (cohort, person_id)
        inner join frequent_concepts using (concept_id)
        where event_date <= index_date
        group by 1, 2
        order by 1, 2
        """
    ).fetchnumpy()
    rows = len(table["row"])
    counts = sparse.csr_array(
        (counted["log_count"], (counted["row"], counted["number"])),
        shape=(rows, 3 * CONCEPTS),
    )
    age = np.ma.filled(table["age"].astype(float), 50) / 50
    sex, race = (
        np.ma.filled(table[name], 0)[:, None]
        for name in ("gender_concept_id", "race_concept_id")
    )
    # the square: a risk need not rise evenly with age
    demographics = np.column_stack([age, age**2, sex == [8507, 8532], race == races])
    history = np.log1p(
        np.column_stack([table[name] for name in (*VISITS, "mean_gap")]).clip(0)
    )
    by_task = {}
    for task in np.unique(table["task"]) if rows else ():
        chosen = np.flatnonzero(table["task"] == task)
        by_task[str(task)] = Rows(
            table["person_id"][chosen],
            table["label"][chosen],
            demographics[chosen],
            history[chosen],
            counts[chosen],
            int(table["total"][chosen[0]]),
        )
    return persons, by_task
