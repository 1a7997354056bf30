"""Attacks on a release: what it gives away of the persons whom the model has seen.

Every attack asks the same of persons of the training (members) and of the holdout
(others), whom no model saw: what it finds of members beyond others is leaked. The
targets are a sample; the release is searched whole, for in a sample of it a copy of
every patient would hardly be met. Interval ends are of bootstraps over the targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.auroc import auroc, interval, person_weights

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results

MEMBERS, OTHERS, CALIBRATION = "train", "holdout", "calibration"
CONCEPTS = 500  # of the training, the commonest: one place each in a person's vector
KNOWN_CONDITIONS = 8  # that an attacker knows of a target
RARE = 0.01  # share of persons below which a condition is rare
LEAST_TARGETS = 50  # of each side, below which nothing is said
BLOCK = 4_000  # rows of a distance matrix
NGRAMS = (4, 8, 12, 16, 24)
NGRAM = 12
NGRAM_PERSONS = 100_000  # of the release
FALSE_ALARMS = (0.01, 0.001)
CURVE = np.concatenate([[0], np.geomspace(1e-4, 1, 81)])


@dataclass
class Vectors:
    """Persons as vectors, (N, D) float32: demographics first, then concepts, 0 or 1."""

    rows: np.ndarray
    age: np.ndarray  # at first visit; NaN where unknown
    is_minority: np.ndarray  # of another race than most of the training
    length: np.ndarray  # events

    def first(self, most: int) -> Vectors:
        """Return so many of the persons, or all."""
        return Vectors(
            self.rows[:most],
            self.age[:most],
            self.is_minority[:most],
            self.length[:most],
        )


class Attacker:
    """What an attacker holds: vectors of cohorts, and the targets of a profile."""

    def __init__(self, con: duckdb.DuckDBPyConnection, profile: Profile) -> None:
        self.con, self.profile = con, profile
        self.concepts = con.execute(
            """
            select source_table, concept_id, count(distinct person_id) as persons
            from evaluation_private.events
            where cohort = ? and concept_id <> 0
            group by 1, 2
            order by persons desc, source_table, concept_id
            limit ?
            """,
            [MEMBERS, CONCEPTS],
        ).fetchall()
        self.categories = [
            (column, value)
            for column in ("gender_concept_id", "race_concept_id")
            for (value,) in con.execute(
                f"select {column} from evaluation_private.persons where cohort = ? "
                "group by 1 order by count(*) desc, 1",
                [MEMBERS],
            ).fetchall()
        ]
        self.train = self.vectors(MEMBERS)
        # their order is one of chance
        self.members = self.train.first(profile.targets)
        self.others = self.vectors(OTHERS).first(profile.targets)

    def vectors(self, cohort: str) -> Vectors:
        """Read a cohort; persons in the order of a hash: any first n are a sample.

        Ages are divided by 100, and years of birth, counted from 2000: both have the
        same scale in every cohort.
        """
        found = self.con.execute(
            """
            select
                persons.person_id,
                persons.gender_concept_id,
                persons.race_concept_id,
                persons.year_of_birth,
                year(visits.first_date) - persons.year_of_birth as age,
                coalesce(events.event_count, 0) as event_count
            from evaluation_private.persons as persons
            left join (
                select person_id, min(visit_start_date) as first_date
                from evaluation_private.visits
                where cohort = $1
                group by 1
            ) as visits on persons.person_id = visits.person_id
            left join (
                select person_id, count(*) as event_count
                from evaluation_private.events
                where cohort = $1
                group by 1
            ) as events on persons.person_id = events.person_id
            where persons.cohort = $1
            order by md5('target:' || persons.person_id), persons.person_id
            """,
            [cohort],
        ).fetchnumpy()
        size = len(found["person_id"])
        head = len(self.categories)
        rows = np.zeros((size, head + 2 + len(self.concepts)), dtype=np.float32)
        for place, (column, value) in enumerate(self.categories):
            rows[:, place] = np.ma.filled(found[column], 0) == (value or 0)
        age = np.ma.filled(found["age"].astype(float), np.nan)
        year = np.ma.filled(found["year_of_birth"].astype(float), np.nan)
        rows[:, head] = np.nan_to_num(age) / 100
        rows[:, head + 1] = (np.nan_to_num(year, nan=2000.0) - 2000) / 100
        row_of = {person: row for row, person in enumerate(found["person_id"].tolist())}
        self.con.execute(
            "create or replace temp table vector_concepts "
            "(source_table varchar, concept_id bigint, place integer)"
        )
        self.con.executemany(
            "insert into vector_concepts values (?, ?, ?)",
            [(t, c, place) for place, (t, c, _) in enumerate(self.concepts)]
            or [("", 0, 0)],
        )
        pairs = self.con.execute(
            "select distinct person_id, place from evaluation_private.events "
            "inner join vector_concepts using (source_table, concept_id) "
            "where cohort = ?",
            [cohort],
        ).fetchnumpy()
        places = [row_of[person] for person in pairs["person_id"].tolist()]
        rows[places, head + 2 + pairs["place"]] = 1
        races = [v for c, v in self.categories if c == "race_concept_id"]
        race = np.ma.filled(found["race_concept_id"], 0)
        return Vectors(
            rows=rows,
            age=age,
            is_minority=race != ((races[0] if races else 0) or 0),
            length=np.ma.filled(found["event_count"], 0).astype(float),
        )

    @cached_property
    def conditions(self) -> np.ndarray:
        """Places of conditions in a vector, the commonest first (C,)."""
        return np.array(
            [
                len(self.categories) + 2 + place
                for place, (table, _, _) in enumerate(self.concepts)
                if table == "condition_occurrence"
            ],
            dtype=int,
        )

    @cached_property
    def difficulty(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of members and others to the calibration cohort."""
        calibration = self.vectors(CALIBRATION).rows
        if not len(calibration):
            return np.zeros(len(self.members.rows)), np.zeros(len(self.others.rows))
        return tuple(
            nearest(side.rows, calibration)[0] for side in (self.members, self.others)
        )

    @cached_property
    def to_training(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of members (to others than themselves) and others to training."""
        size = len(self.members.rows)
        # targets are the first rows of the training
        own = np.arange(size)
        return (
            nearest(self.members.rows, self.train.rows, leave_out=own)[0],
            nearest(self.others.rows, self.train.rows)[0],
        )


_attackers: dict[int, Attacker] = {}


def attacker_of(con: duckdb.DuckDBPyConnection, profile: Profile) -> Attacker:
    """Return the attacker on this connection, made once: the targets are the same."""
    held = _attackers.get(id(con))
    if held is None or held.con is not con or held.profile != profile:
        _attackers.clear()
        _attackers[id(con)] = held = Attacker(con, profile)
    return held


def measure(
    con: duckdb.DuckDBPyConnection, candidate: str, profile: Profile, results: Results
) -> None:
    """Attack cohort `candidate`; `con` has the cohorts and the marts.

    Adds membership_*, nnaa_loss, attribute_*, exact_copy_*, ngram_copy_*, dcr_share,
    and the curves membership_roc, nearest_distances and ngram_copies.
    """
    attacker = attacker_of(con, profile)
    measure_copies(con, candidate, results)
    measure_ngrams(con, candidate, results)
    members, others = attacker.members, attacker.others
    release = attacker.vectors(candidate)
    least = min(len(members.rows), len(others.rows))
    if least < LEAST_TARGETS or not len(release.rows):
        for name in (
            "membership_auc", "membership_tpr_1", "membership_tpr_01", "nnaa_loss",
            "attribute_f1_excess", "worst_subgroup_membership_auc",
        ):  # fmt: skip
            results.add(name, candidate, np.nan, n=least)
        return
    distances = [nearest(side.rows, release.rows)[0] for side in (members, others)]
    measure_membership(attacker, candidate, distances, results)
    measure_adversary(attacker, candidate, distances, results)
    measure_attributes(attacker, candidate, release, results)
    draw_distances(attacker, candidate, release, results)


def measure_membership(
    attacker: Attacker,
    candidate: str,
    distances: list[np.ndarray],
    results: Results,
) -> None:
    """Tell members by how near the release comes to them.

    The score of a target is its distance to real persons of neither side, less that to
    the release, so that persons who are near to everybody do not count as found
    (calibrated by difficulty, as Watson et al., 2022).
    """
    score = np.concatenate(
        [before - after for before, after in zip(attacker.difficulty, distances)]
    )
    sizes = [len(side) for side in distances]
    is_member = np.repeat([1, 0], sizes)
    add_attack(attacker.profile, candidate, "membership", is_member, score, results)

    both = [attacker.members, attacker.others]
    length = np.concatenate([side.length for side in both])
    age = np.concatenate([side.age for side in both])
    minority = np.concatenate([side.is_minority for side in both])
    common = [c for _, _, c in attacker.concepts]
    rare_from = (
        len(attacker.categories)
        + 2
        + sum(c >= RARE * len(attacker.train.rows) for c in common)
    )
    has_rare = np.concatenate([side.rows[:, rare_from:].any(axis=1) for side in both])
    tenth = np.quantile(length, np.linspace(0, 1, 11))
    groups = {
        f"length tenth {number + 1}": (length >= tenth[number])
        & ((length < tenth[number + 1]) | (number == 9))
        for number in range(10)
    } | {"rare concept": has_rare, "age 85 and over": age >= 85, "minority": minority}
    areas = {}
    for name, chosen in groups.items():
        sides = [int((chosen & (is_member == side)).sum()) for side in (0, 1)]
        if min(sides) >= LEAST_TARGETS:
            areas[name] = float(auroc(is_member[chosen], score[chosen])[0])
            results.add(
                "subgroup_membership_auc", candidate, areas[name], stratum=name,
                n=sum(sides),
            )  # fmt: skip
    results.add(
        "worst_subgroup_membership_auc",
        candidate,
        max(areas.values(), default=np.nan),
        n=sum(sizes),
    )


def add_attack(
    profile: Profile,
    candidate: str,
    name: str,
    is_member: np.ndarray,
    score: np.ndarray,
    results: Results,
) -> None:
    """Add AUC and true positives at few false alarms of a score of membership."""
    members, others = score[is_member == 1], score[is_member == 0]
    weights = [
        person_weights(len(side), profile.bootstraps, profile.seed + number)
        for number, side in enumerate((members, others))
    ]
    both = np.concatenate(weights, axis=1)
    outcomes = np.repeat([1, 0], [len(members), len(others)])
    scores = np.concatenate([members, others])
    low, high = interval(auroc(outcomes, scores, both))
    results.add(
        f"{name}_auc", candidate, auroc(outcomes, scores)[0], ci_low=low, ci_high=high,
        n=len(scores),
    )  # fmt: skip
    for rate, suffix in zip(FALSE_ALARMS, ("1", "01")):
        samples = [
            found_at(
                np.repeat(members, w.astype(int)),
                np.repeat(others, v.astype(int)),
                rate,
            )
            for w, v in zip(*weights)
        ]  # fmt: skip
        low, high = interval(np.array(samples))
        results.add(
            f"{name}_tpr_{suffix}", candidate, found_at(members, others, rate),
            ci_low=low, ci_high=high, n=len(scores),
        )  # fmt: skip
    results.draw(
        f"{name}_roc",
        [
            {
                "cohort": candidate,
                "false_positive_rate": float(rate),
                "true_positive_rate": found_at(members, others, rate),
            }
            for rate in CURVE
        ],
    )


def found_at(members: np.ndarray, others: np.ndarray, rate: float) -> float:
    """Share of members above the threshold that a share `rate` of others is above.

    Members at the threshold itself count by the part of the others there that the rate
    allows.
    """
    ordered = np.sort(others)[::-1]
    place = rate * len(ordered)
    if place >= len(ordered):
        return 1.0
    threshold = ordered[int(place)]
    above = float(np.mean(others > threshold))
    at = float(np.mean(others == threshold))
    part = (rate - above) / at if at else 0.0
    return float(np.mean(members > threshold) + part * np.mean(members == threshold))


def measure_adversary(
    attacker: Attacker,
    candidate: str,
    distances: list[np.ndarray],
    results: Results,
) -> None:
    """Ask whether targets lie nearer to the release than to the training.

    Nearest-neighbour adversarial accuracy (Yale et al., 2020) from the targets' side: a
    person of the holdout is as often nearer to one as to the other, and so is one of
    the training, left out there, unless the release knows it. The loss is the
    difference of the two; 0 for a perfect release, 0.5 for a copy. All is searched.
    """
    nearer = [
        (release < training) + 0.5 * (release == training)
        for release, training in zip(distances, attacker.to_training)
    ]
    samples = [
        weights @ side / len(side)
        for number, side in enumerate(nearer)
        for weights in [
            person_weights(
                len(side), attacker.profile.bootstraps, attacker.profile.seed + number
            )
        ]
    ]
    low, high = interval(samples[0] - samples[1])
    results.add(
        "nnaa_loss", candidate, nearer[0].mean() - nearer[1].mean(), ci_low=low,
        ci_high=high, n=len(nearer[0]) + len(nearer[1]),
    )  # fmt: skip
    results.add(
        "nearer_to_release", candidate, nearer[1].mean(), stratum="holdout",
        n=len(nearer[1]),
    )  # fmt: skip


def measure_attributes(
    attacker: Attacker, candidate: str, release: Vectors, results: Results
) -> None:
    """Infer the unknown concepts of targets from the nearest person of the release.

    Known are demographics and the commonest conditions. Micro-F1 over all else, of
    members less that of others; once more over rare conditions alone.
    """
    head = len(attacker.categories) + 2
    known = np.append(np.arange(head), attacker.conditions[:KNOWN_CONDITIONS])
    unknown = np.setdiff1d(np.arange(release.rows.shape[1]), known)
    counts = np.array([c for _, _, c in attacker.concepts])
    rare = attacker.conditions[KNOWN_CONDITIONS:]
    rare = rare[counts[rare - head] < RARE * len(attacker.train.rows)]
    for name, asked in (("attribute_f1", unknown), ("rare_attribute_f1", rare)):
        hits = []
        for side in (attacker.members, attacker.others):
            _, place = nearest(side.rows[:, known], release.rows[:, known])
            truth, guess = side.rows[:, asked] > 0, release.rows[place][:, asked] > 0
            hits.append(
                np.column_stack(
                    [
                        (truth & guess).sum(axis=1),
                        truth.sum(axis=1) + guess.sum(axis=1),
                    ]
                )
            )
        f1, samples = [], []
        for number, found in enumerate(hits):
            weights = person_weights(
                len(found), attacker.profile.bootstraps, attacker.profile.seed + number
            )
            f1.append(micro_f1(found.sum(axis=0)))
            samples.append(micro_f1((weights @ found).T))
        low, high = interval(samples[0] - samples[1])
        size = sum(len(found) for found in hits)
        for stratum, value in zip(("members", "others"), f1):
            results.add(name, candidate, value, stratum=stratum, n=size)
        results.add(
            f"{name}_excess", candidate, f1[0] - f1[1], ci_low=low, ci_high=high, n=size
        )


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 of (2, …) sums: right guesses, and things true plus things guessed."""
    right, all_of_them = np.asarray(sums, dtype=float)
    return np.divide(
        2 * right, all_of_them, out=np.full_like(right, np.nan), where=all_of_them > 0
    )


def measure_copies(
    con: duckdb.DuckDBPyConnection, candidate: str, results: Results
) -> None:
    """Count histories that equal a real one, to the day and the concept.

    Of persons with ten events or more. What is equal to the holdout, brought to the
    size of the training, is chance.
    """
    persons, of_train, of_holdout = con.execute(
        """
        select
            (
                select count(*) from evaluation_private.history_keys
                where cohort = $1 and event_count >= 10
            ),
            count(distinct person_id) filter (original_cohort = $2),
            count(distinct person_id) filter (original_cohort = $3)
        from evaluation_private.exact_copies
        where cohort = $1
        """,
        [candidate, MEMBERS, OTHERS],
    ).fetchone()
    sizes = dict(
        con.execute(
            "select cohort, count(*) from evaluation_private.persons group by 1"
        ).fetchall()
    )
    scale = sizes.get(MEMBERS, 0) / max(sizes.get(OTHERS, 0), 1)
    share = of_train / persons if persons else np.nan
    chance = min(of_holdout * scale / persons, 1.0) if persons else np.nan
    results.add("exact_copy_share", candidate, share, n=persons)
    results.add("exact_copy_excess", candidate, max(share - chance, 0.0), n=persons)


def measure_ngrams(
    con: duckdb.DuckDBPyConnection, candidate: str, results: Results
) -> None:
    """Count runs of words that stand in the training, beyond those in the holdout.

    A history's words are, of each visit, the weeks since the one before, its type, and
    its concepts in order. The training is brought to the size of the holdout.
    """
    (others,) = con.execute(
        "select count(*) from evaluation_private.persons where cohort = ?", [OTHERS]
    ).fetchone()
    streams = {
        MEMBERS: words_of(con, MEMBERS, others),
        OTHERS: words_of(con, OTHERS, others),
        candidate: words_of(con, candidate, NGRAM_PERSONS),
    }
    rows = []
    for length in NGRAMS:
        grams = {name: ngrams(*stream, length) for name, stream in streams.items()}
        known = [np.unique(grams[name]) for name in (MEMBERS, OTHERS)]
        shares = [
            float(np.isin(grams[candidate], real).mean())
            if len(grams[candidate])
            else np.nan
            for real in known
        ]
        rows.append(
            {
                "cohort": candidate, "length": length,
                "share_train": shares[0], "share_holdout": shares[1],
            }
        )  # fmt: skip
        if length == NGRAM:
            count = len(grams[candidate])
            results.add("ngram_copy_share", candidate, shares[0], n=count)
            results.add("ngram_copy_excess", candidate, shares[0] - shares[1], n=count)
    results.draw("ngram_copies", rows)


def words_of(
    con: duckdb.DuckDBPyConnection, cohort: str, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Words of a cohort's persons, at most so many: persons (W,) and hashes (W,)."""
    found = con.execute(
        """
        with
        persons as (
            select person_id
            from evaluation_private.persons
            where cohort = $1
            order by md5('target:' || person_id), person_id
            limit $2
        ),
        visits as (
            select
                person_id,
                visit_order,
                visit_concept_id,
                (
                    visit_start_date - lag(visit_start_date) over (
                        partition by person_id order by visit_order
                    )
                ) // 7 as weeks
            from evaluation_private.visits
            inner join persons using (person_id)
            where cohort = $1
        ),
        words as (
            select person_id, visit_order, 0 as kind, '' as name, weeks as word
            from visits
            union all
            select person_id, visit_order, 1, '', visit_concept_id from visits
            union all
            select person_id, coalesce(visit_order, 0), 2, source_table, concept_id
            from evaluation_private.events
            inner join persons using (person_id)
            where cohort = $1
        )
        select person_id, hash(kind, name, word) as word
        from words
        order by person_id, visit_order, kind, name, words.word
        """,
        [cohort, most],
    ).fetchnumpy()
    return found["person_id"], found["word"].astype(np.uint64)


def ngrams(persons: np.ndarray, words: np.ndarray, length: int) -> np.ndarray:
    """Hash every run of `length` words within a person: (runs,) uint64.

    A rolling polynomial modulo 2^64 of hashed words (Karp and Rabin, 1987).
    """
    size = len(words) - length + 1
    if size <= 0:
        return np.empty(0, dtype=np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)
    total = np.zeros(size, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(length):
            total = total * factor + words[place : place + size]
    return total[persons[:size] == persons[length - 1 :]]


def draw_distances(
    attacker: Attacker, candidate: str, release: Vectors, results: Results
) -> None:
    """Draw how far persons of the release are from members and from others.

    For the eye, not for a gate: sets that pass such a test leak all the same (Ganev and
    De Cristofaro, 2025). Both sides have the same size.
    """
    some = release.rows[: attacker.profile.targets]
    size = min(len(attacker.members.rows), len(attacker.others.rows))
    to = [
        nearest(some, side.rows[:size])[0]
        for side in (attacker.members, attacker.others)
    ]
    share = np.mean(to[0] < to[1]) + 0.5 * np.mean(to[0] == to[1])
    results.add("dcr_share", candidate, share, n=len(some))
    quantiles = np.linspace(0, 1, 51)
    results.draw(
        "nearest_distances",
        [
            {
                "cohort": candidate,
                "share": float(q),
                "train": float(t),
                "holdout": float(h),
            }
            for q, t, h in zip(quantiles, *(np.quantile(d, quantiles) for d in to))
        ],
    )


def measure_model(
    con: duckdb.DuckDBPyConnection,
    model_folder: Path,
    real_folder: Path,
    profile: Profile,
    results: Results,
) -> None:
    """Attack with the released model itself: members are those it finds likely.

    Nats per token under the checkpoint, of persons whose history fits its context.
    """
    from omop_gpt.nats import nats_of_persons

    del con
    sides = {
        split: nats_of_persons(
            model_folder,
            Path(real_folder) / "patient_sequence" / split,
            most=profile.targets,
            per_token=True,
        )
        for split in (MEMBERS, OTHERS)
    }
    members, others = (np.array(list(side.values())) for side in sides.values())
    if min(len(members), len(others)) < LEAST_TARGETS:
        results.add("model_membership_auc", "synthetic", np.nan, n=len(others))
        return
    add_attack(
        profile,
        "synthetic",
        "model_membership",
        np.repeat([1, 0], [len(members), len(others)]),
        -np.concatenate([members, others]),
        results,
    )
    results.add(
        "model_loss_gap", "synthetic", others.mean() - members.mean(), n=len(others)
    )


def nearest(
    targets: np.ndarray, rows: np.ndarray, leave_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance to the nearest of `rows`, and which: 2 × (targets,).

    `leave_out`: a row for each target that is not it.
    """
    squares = np.einsum("ij,ij->i", rows, rows)
    best = np.empty(len(targets), dtype=np.float32)
    place = np.zeros(len(targets), dtype=int)
    for start in range(0, len(targets), BLOCK):
        part = targets[start : start + BLOCK]
        least = np.full(len(part), np.inf, dtype=np.float32)
        where = np.zeros(len(part), dtype=int)
        for first in range(0, len(rows), 4 * BLOCK):
            block = slice(first, first + 4 * BLOCK)
            distance = squares[block] - 2 * (part @ rows[block].T)
            if leave_out is not None:
                own = leave_out[start : start + BLOCK] - first
                here = np.flatnonzero((own >= 0) & (own < distance.shape[1]))
                distance[here, own[here]] = np.inf
            column = distance.argmin(axis=1)
            found = distance[np.arange(len(part)), column]
            better = found < least
            least[better], where[better] = found[better], column[better] + first
        best[start : start + BLOCK] = least + np.einsum("ij,ij->i", part, part)
        place[start : start + BLOCK] = where
    # what cancels to less than 0 is 0
    return np.maximum(np.round(best, 4), 0), place
