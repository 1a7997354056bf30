"""How well a classifier tells synthetic patients from real ones, and by what.

It learns from histories in a few numbers (model person_summaries) and counts of the
most frequent concepts; a third one reads them in order (reader.py), where the profile
asks for it. An area under its ROC curve of 0.5 says that it cannot; the
features that it needs where it can are where the generator errs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from omop_gpt.evaluation.auroc import auroc, interval, person_weights
from omop_gpt.evaluation.cohorts import HOLDOUT

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results

CONCEPTS = 200
FOLDS = 3
LEAST_PERSONS = 30  # of each side, below which nothing is said
SHUFFLED_ROWS = 2_000  # of one fold, for the importance of features
GRID = np.linspace(0, 1, 101)  # false positive rates of the ROC curve


def models(seed: int) -> dict[str, object]:
    """Return untrained classifiers, by the name of their stratum."""
    return {
        "boosting": HistGradientBoostingClassifier(
            max_iter=100, max_leaf_nodes=15, max_features=0.5, random_state=seed
        ),
        "logistic": make_pipeline(
            SimpleImputer(strategy="median", keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=0.01, max_iter=300),
        ),
    }


def measure(
    con: duckdb.DuckDBPyConnection,
    candidate: str,
    profile: Profile,
    results: Results,
) -> None:
    """Add AUC and pMSE of the discriminators, and the curves that explain them.

    Out-of-fold predictions of three folds, as many real persons (of the holdout) as of
    the candidate. pMSE is the mean squared distance of the predicted chance from 1/2:
    0 where nothing tells them apart, 1/4 where everything does (Snoke et al., 2018).
    """
    persons = persons_per_side(con, candidate, profile.discriminator_persons)
    kinds = [*models(profile.seed), *(["sequence"] if profile.reads_histories else [])]
    if persons < LEAST_PERSONS:
        for name in kinds:
            for metric in ("discriminator_auc", "discriminator_pmse"):
                results.add(metric, candidate, np.nan, stratum=name, n=2 * persons)
        return
    features, names, is_synthetic = load(con, candidate, persons)
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=profile.seed)
    folds = list(splitter.split(features, is_synthetic))
    learners = {name: (model, features) for name, model in models(profile.seed).items()}
    if profile.reads_histories:
        from omop_gpt.evaluation.reader import Reader, histories

        reader = Reader(*histories(con), profile.seed)
        learners["sequence"] = reader, np.arange(len(features))
    for name, (model, read) in learners.items():
        chance = np.empty(len(is_synthetic))
        true_positive_rates = np.empty((FOLDS, len(GRID)))
        samples = np.empty((FOLDS, profile.bootstraps))
        areas = np.empty(FOLDS)
        for number, (train, test) in enumerate(folds):
            model.fit(read[train], is_synthetic[train])
            chance[test] = model.predict_proba(read[test])[:, 1]
            areas[number] = auroc(is_synthetic[test], chance[test])[0]
            samples[number] = auroc(
                is_synthetic[test],
                chance[test],
                person_weights(len(test), profile.bootstraps, profile.seed + number),
            )
            fpr, tpr, _ = roc_curve(is_synthetic[test], chance[test])
            true_positive_rates[number] = np.interp(GRID, fpr, tpr)
        low, high = interval(samples.mean(axis=0))
        # scores of different folds are not comparable: the mean of the folds
        results.add(
            "discriminator_auc",
            candidate,
            areas.mean(),
            stratum=name,
            ci_low=low,
            ci_high=high,
            n=2 * persons,
        )
        results.add(
            "discriminator_pmse",
            candidate,
            np.mean((chance - 0.5) ** 2),
            stratum=name,
            n=2 * persons,
        )
        results.draw(
            "discriminator_roc",
            [
                {
                    "cohort": candidate,
                    "model": name,
                    "false_positive_rate": float(rate),
                    "true_positive_rate": float(height),
                }
                for rate, height in zip(GRID, true_positive_rates.mean(axis=0))
            ],
        )
        if name == "boosting":  # as the last fold left it
            test = folds[-1][1][:SHUFFLED_ROWS]
            importance = permutation_importance(
                model, features[test], is_synthetic[test], profile.seed
            )
            results.draw(
                "discriminator_features",
                [
                    {
                        "cohort": candidate,
                        "rank": rank,
                        "feature": names[column],
                        "importance": float(importance[column]),
                        "real_mean": mean_of(features[is_synthetic == 0, column]),
                        "candidate_mean": mean_of(features[is_synthetic == 1, column]),
                    }
                    for rank, column in enumerate(np.argsort(-importance)[:10], 1)
                ],
            )


def persons_per_side(con: duckdb.DuckDBPyConnection, candidate: str, most: int) -> int:
    """Persons of each side: as many as the smaller one has, and at most `most`."""
    counts = con.execute(
        "select count(*) filter (cohort = ?), count(*) filter (cohort = ?) "
        "from evaluation_private.person_summaries",
        [HOLDOUT, candidate],
    ).fetchone()
    return min(*counts, most)


def load(
    con: duckdb.DuckDBPyConnection, candidate: str, persons: int
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Features (2 × persons, features), their names, and whether a row is synthetic.

    NaN where a person has none (no gap of a single visit). Concepts are those that most
    persons of both sides together have, so that one that only the candidate has shows.
    """
    con.execute(
        """
        create or replace temp table compared_persons as
        select
            cast(row_number() over (order by cohort = ?, person_order) - 1 as int)
                as row,
            *
        from evaluation_private.person_summaries
        where cohort in (?, ?) and person_order <= ?
        """,
        [candidate, HOLDOUT, candidate, persons],
    )
    table = con.execute("from compared_persons order by row").fetchnumpy()
    numbers = [
        name
        for name in table
        if name not in ("row", "cohort", "person_id", "person_order")
        and not name.endswith("_concept_id")
    ]
    columns = [np.ma.filled(table[name].astype(float), np.nan) for name in numbers]
    names = numbers
    for name in ("gender_concept_id", "race_concept_id"):
        concepts = np.ma.filled(table[name], 0)
        for concept in np.unique(concepts):
            columns.append((concepts == concept).astype(float))
            names.append(f"{name} {concept}")
    counted = con.execute(
        """
        with counted as (
            select row, concept_id, count(*) as events
            from compared_persons
            inner join evaluation_private.events using (cohort, person_id)
            where concept_id <> 0
            group by 1, 2
        ),
        ranked as (
            select
                concept_id,
                row_number() over (order by count(*) desc, concept_id) - 1 as number
            from counted
            group by 1
        )
        select row, number, concept_id, ln(1 + events) as log_count
        from counted inner join ranked using (concept_id)
        where number < ?
        """,
        [CONCEPTS],
    ).fetchnumpy()
    concepts = np.zeros((2 * persons, CONCEPTS))
    concepts[counted["row"], counted["number"]] = counted["log_count"]
    found = dict(zip(counted["number"].tolist(), counted["concept_id"].tolist()))
    features = np.column_stack([*columns, concepts[:, : len(found)]])
    names += [f"concept_id {found[number]}" for number in range(len(found))]
    return features, names, (np.arange(2 * persons) >= persons).astype(int)


def permutation_importance(
    model: HistGradientBoostingClassifier,
    features: np.ndarray,
    outcomes: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Loss of AUC where one column is shuffled, for each column (Breiman, 2001)."""
    rng = np.random.default_rng(seed)
    whole = auroc(outcomes, model.predict_proba(features)[:, 1])[0]
    losses = np.empty(features.shape[1])
    for column in range(features.shape[1]):
        shuffled = features.copy()
        rng.shuffle(shuffled[:, column])
        losses[column] = whole - auroc(outcomes, model.predict_proba(shuffled)[:, 1])[0]
    return losses


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are there; NaN if none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")
