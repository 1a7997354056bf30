"""What models trained on synthetic patients predict of real ones.

Train on synthetic, test on real (TSTR; Esteban et al., 2017): each prediction task of
model task_labels is learnt from the candidate and tested on the holdout, beside the
same model learnt from real training patients (TRTR), and from their age, sex and race
alone (the floor). A row is a person, so that bootstrap samples are of persons.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from omop_gpt.evaluation.auroc import auroc, interval, person_weights
from omop_gpt.evaluation.cohorts import HOLDOUT, TRAIN

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results

MODELS = ("logistic", "boosting")
CONCEPTS = 500  # the most frequent of the training patients
SELECTED = 100  # columns that boosting reads: by the F statistic in its training rows
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
    """How one task is learnt. `classes`: those asked for; of 0 and 1, that is 1."""

    classes: np.ndarray
    seed: int

    def truth(self, rows: Rows) -> np.ndarray:
        """Return the labels, 0 or 1, of each class: (rows, classes)."""
        return (rows.labels[:, None] == self.classes).astype(int)

    def learn(self, model: str, rows: Rows, *, floor: bool = False) -> Predictor:
        """Train a model, on demographics alone for the floor.

        Their settings were chosen on the validation split of simulated patients.
        """
        if len(np.unique(rows.labels)) < 2:
            return Predictor(self, None, rows.labels[:1], floor)
        read = inputs(rows, floor)
        estimator = LogisticRegression(C=0.03, max_iter=500)
        if model == "boosting":
            # what says nothing alone costs most of the time
            estimator = make_pipeline(
                SelectKBest(k=min(SELECTED, read.shape[1])),
                FunctionTransformer(sparse.csr_array.toarray, accept_sparse=True),
                HistGradientBoostingClassifier(
                    learning_rate=0.15,
                    max_iter=40,
                    max_leaf_nodes=8,
                    min_samples_leaf=40,
                    max_features=0.3,
                    early_stopping=False,
                    random_state=self.seed,
                ),
            )
        with warnings.catch_warnings():
            # concepts that no training patient of the task has
            warnings.filterwarnings("ignore", "Features")
            warnings.filterwarnings("ignore", "invalid value encountered in divide")
            estimator.fit(read, rows.labels)
        return Predictor(self, estimator, estimator.classes_, floor)


@dataclass(frozen=True)
class Predictor:
    """A trained model; without an estimator, it only knows one class, or none."""

    learner: Learner
    estimator: LogisticRegression | Pipeline | None
    known: np.ndarray
    floor: bool

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return the chance of each class that is asked for: (rows, classes)."""
        if not len(rows.labels):
            return np.empty((0, len(self.learner.classes)))
        of_known = (
            np.ones((len(rows.labels), len(self.known)))
            if self.estimator is None
            else self.estimator.predict_proba(inputs(rows, self.floor))
        )
        chance = np.zeros((len(rows.labels), len(self.learner.classes)))
        for column, wanted in enumerate(self.learner.classes):
            chance[:, column] = of_known[:, self.known == wanted].sum(axis=1)
        return chance


def inputs(rows: Rows, floor: bool = False) -> sparse.csr_array:
    """Return what a model reads: (rows, columns)."""
    if floor:
        return sparse.csr_array(rows.demographics)
    return sparse.hstack([rows.demographics, rows.history, rows.counts], format="csr")


@dataclass(frozen=True)
class Trained:
    """A model and its test: `truth` and `chance` are (rows, classes) of the holdout.

    `areas`: its AUROC there, then that in each bootstrap sample.
    """

    predictor: Predictor
    truth: np.ndarray
    chance: np.ndarray
    areas: np.ndarray


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
    trained: dict[tuple[str, str, int, bool], Trained] = field(default_factory=dict)

    def trained_on(
        self, task: str, model: str, rows: int, *, floor: bool = False
    ) -> Trained:
        """Return a model of the first rows of the real training patients, tested."""
        key = task, model, rows, floor
        if key not in self.trained:
            some = self.train[task].first(rows)
            learner = self.learners[task]
            self.trained[key] = self.tested(
                task, learner.learn(model, some, floor=floor)
            )
        return self.trained[key]

    def tested(self, task: str, predictor: Predictor) -> Trained:
        """Return a model with what it predicts of the holdout."""
        test = self.test[task]
        chance, truth = predictor(test), predictor.learner.truth(test)
        areas = macro_auroc(truth, chance, self.weights_of(test))
        return Trained(predictor, truth, chance, areas)

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

    Strata are task/model, or over the tasks: of a model, or `all`. What is of the real
    training patients (trtr_…, floor_auroc) is added once, as cohort train.

    The relative utility is (TSTR - floor) / (TRTR - floor), the mean of tasks weighted
    by that margin, as otherwise the tasks with the least to learn would weigh most.
    """
    reference = make_reference(con, profile)
    if not any(metric.name == "trtr_auroc" for metric in results.metrics):
        measure_real(reference, results)
    limit = TRAINING_ROWS.get(profile.name, TRAINING_ROWS["standard"])
    persons, rows_of = load(con, candidate, limit, reference.races)
    share = persons / max(reference.persons, 1)
    gaps: dict[str, np.ndarray] = {}
    margins: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    agreements = []
    for task in reference.tasks:
        if task not in reference.learners or not rows_of:
            for model in MODELS:
                results.add("tstr_auroc", candidate, np.nan, stratum=f"{task}/{model}")
            continue
        rows = rows_of.get(task, reference.test[task].first(0))
        real = reference.train[task]
        size = len(real.labels)
        if share < FULL_SHARE:
            size = min(size, round(real.total * share))
        for model in MODELS:
            names = {"cohort": candidate, "task": task, "model": model}
            stratum = f"{task}/{model}"
            learnt = reference.tested(task, reference.learners[task].learn(model, rows))
            of_real = reference.trained_on(task, model, size)
            floor = reference.trained_on(task, model, len(real.labels), floor=True)
            add_scores(results, "tstr", learnt, names)
            gaps[stratum] = of_real.areas - learnt.areas
            count = len(learnt.truth)
            add(
                results, "tstr_auroc_difference", candidate, -gaps[stratum], stratum,
                count,
            )  # fmt: skip
            margin = of_real.areas - floor.areas
            utility = np.full(1, np.nan)
            if margin[0] >= LEAST_MARGIN:
                margins[stratum] = learnt.areas - floor.areas, margin
                utility = ratio(*margins[stratum])
            add(results, "relative_utility", candidate, utility, stratum, count)
            backwards = macro_auroc(
                reference.learners[task].truth(rows), of_real.predictor(rows)
            )
            add(results, "trts_auroc", candidate, backwards, stratum, len(rows.labels))
            low, high = interval(learnt.areas[1:])
            results.draw(
                "utility_auroc",
                [
                    names
                    | {
                        "tstr": float(learnt.areas[0]),
                        "ci_low": low,
                        "ci_high": high,
                        "trtr": float(of_real.areas[0]),
                        "floor": float(floor.areas[0]),
                        "persons": count,
                    }
                ],
            )
            is_linear = model == "logistic"
            if is_linear and profile.name == "full":
                augment(reference, task, rows, candidate, results)
            if is_linear and profile.name != "smoke" and learnt.truth.shape[1] == 1:
                alike = agreement(of_real.predictor, learnt.predictor, reference, task)
                agreements.append(alike)
                results.add(
                    "importance_agreement", candidate, alike, stratum=task, n=count
                )
    for model in ("all", *MODELS):
        chosen = np.array([gaps[key] for key in gaps if is_of(model, key)])
        if not len(chosen):
            chosen = np.full((1, 1), np.nan)
        add(results, "tstr_gap_mean", candidate, chosen.mean(axis=0), model)
        add(results, "tstr_gap_worst", candidate, chosen.max(axis=0), model)
        pairs = [margins[key] for key in margins if is_of(model, key)]
        utility = ratio(*np.sum(pairs, axis=0)) if pairs else np.full(1, np.nan)
        add(results, "relative_utility", candidate, utility, model)
    if profile.name != "smoke":
        value = np.mean(agreements) if agreements else np.nan
        results.add("importance_agreement", candidate, value)


def is_of(model: str, stratum: str) -> bool:
    """Whether a stratum task/model is of the model, or of any."""
    return model in ("all", stratum.split("/")[1])


def ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Divide, where the whole is more than a trace; NaN elsewhere."""
    nothing = np.full(len(parts), np.nan)
    return np.divide(parts, wholes, out=nothing, where=wholes > LEAST_MARGIN / 3)


def add_scores(
    results: Results, prefix: str, trained: Trained, names: dict[str, str]
) -> None:
    """Add how good a model is, and its calibration curve."""
    stratum, count = f"{names['task']}/{names['model']}", len(trained.truth)
    found = scores(trained.truth, trained.chance)
    for name, value in found.items():
        results.add(
            f"{prefix}_{name}", names["cohort"], value, stratum=stratum, n=count
        )
    add(results, f"{prefix}_auroc", names["cohort"], trained.areas, stratum, count)
    results.draw(
        "utility_calibration",
        [names | row for row in calibration(trained.truth, trained.chance)],
    )


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


def measure_real(reference: Reference, results: Results) -> None:
    """Add what models of the real training patients are worth, and the floor."""
    for task in reference.learners:
        size, count = (
            len(part[task].labels) for part in (reference.train, reference.test)
        )
        for model in MODELS:
            names = {"cohort": TRAIN, "task": task, "model": model}
            trained = reference.trained_on(task, model, size)
            floor = reference.trained_on(task, model, size, floor=True)
            add_scores(results, "trtr", trained, names)
            add(results, "floor_auroc", TRAIN, floor.areas, f"{task}/{model}", count)


def augment(
    reference: Reference, task: str, rows: Rows, candidate: str, results: Results
) -> None:
    """Add what a candidate adds to a few real patients: AUROC with it less without."""
    learner, test = reference.learners[task], reference.test[task]
    for size in SMALL_SIZES:
        both = reference.train[task].first(size).joined(rows)
        gain = (
            reference.tested(task, learner.learn("logistic", both)).areas
            - reference.trained_on(task, "logistic", size).areas
        )
        add(
            results, "augmentation_gain", candidate, gain, f"{task}/{size}",
            len(test.labels),
        )  # fmt: skip


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

    auprc (average precision), brier, observed_expected (cases over the sum of
    chances) and calibration_slope (1: neither over- nor underfitted).
    """
    pairs = list(zip(truth.T, chance.T))
    by_name = {
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


def calibration(truth: np.ndarray, chance: np.ndarray) -> Iterator[dict[str, object]]:
    """Mean chance and share of cases in tenths of the predictions, classes together."""
    order = np.argsort(chance, axis=None, kind="stable")
    for number, part in enumerate(np.array_split(order, BINS), 1):
        if len(part):
            yield {
                "bin": number,
                "chance": float(chance.flat[part].mean()),
                "observed": float(truth.flat[part].mean()),
                "persons": len(part),
            }


def agreement(
    of_real: Predictor, of_candidate: Predictor, reference: Reference, task: str
) -> float:
    """Spearman's correlation of the importance of features, real and candidate.

    Importance: loss of AUROC where the feature is shuffled, in logistic regressions; of
    the fifty features that are the most important to the real one.
    """
    if of_real.estimator is None or of_candidate.estimator is None:
        return np.nan
    learner, test = of_real.learner, reference.test[task]
    read = inputs(test).tocsc()
    # twice as many by the size of their effect, then the rest by what is measured
    spread = np.sqrt(
        np.maximum(read.power(2).mean(axis=0) - np.square(read.mean(axis=0)), 0)
    )
    effect = np.abs(of_real.estimator.coef_[0]) * spread
    columns = np.argsort(-effect, kind="stable")[: 2 * IMPORTANT]
    features = read[:, columns].toarray()
    cases = learner.truth(test)[:, 0]
    rng = np.random.default_rng(learner.seed)
    shuffled = features[rng.permutation(len(features))]
    losses = []
    for predictor in (of_real, of_candidate):
        log_odds = predictor.estimator.decision_function(read)
        coefficients = predictor.estimator.coef_[0, columns]
        whole = auroc(cases, log_odds)[0]
        changes = (shuffled - features) * coefficients
        losses.append(
            [whole - auroc(cases, log_odds + change)[0] for change in changes.T]
        )
    real, other = np.array(losses)
    chosen = np.argsort(-real, kind="stable")[:IMPORTANT]
    chosen = chosen[real[chosen] != 0]
    if len(chosen) < 3 or np.ptp(real[chosen]) == 0 or np.ptp(other[chosen]) == 0:
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
    _, test = load(con, HOLDOUT, limit, races)
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
