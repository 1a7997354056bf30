"""Attacks on a release: what it gives away of the persons whom the model has seen.

Every attack asks the same of persons of the training (members) and of the holdout
(others), whom no model saw: what it finds of members beyond others is leaked. The
targets are a sample; the release is searched whole, for in a sample of it a copy of
every patient would hardly be met. Intervals are of 95 %, over the targets: a bound on
a leak is held against their upper end.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from omop_gpt.evaluation.auroc import interval, person_weights
from omop_gpt.evaluation.cohorts import CALIBRATION, HOLDOUT, REAL, TRAIN
from omop_gpt.evaluation.copies import (
    combined,
    measure_exact_copies,
    measure_runs,
    rate_of,
)
from omop_gpt.evaluation.neighbours import (
    ORDER,
    UNKNOWN,
    People,
    Space,
    facts_of,
    nearest,
)

if TYPE_CHECKING:
    import duckdb

    from omop_gpt.evaluation.results import Profile, Results

MEMBERS, OTHERS = TRAIN, HOLDOUT
KNOWN_CONDITIONS = 8  # that an attacker knows of a target
RARE = 0.01  # share of real persons below which a condition is rare
TELLING = 0.1  # share below which sharing a concept tells something
LEARNT = 2  # concepts that tell something, which make a match meaningful
LEAST_TARGETS = 50  # of each side, below which nothing is said
ADVERSARY_PERSONS = 5_000  # of each set, for adversarial accuracy in equal numbers
ATTACKS = 2_000  # of each kind of which the residual risk is told
FALSE_ALARMS = {"1": 0.01, "01": 0.001}
CURVE = np.concatenate([[0], np.geomspace(1e-4, 1, 81)])
# that a match is right, where nobody can verify it: (1 + 0.23) / 2, after El Emam
RIGHT_MATCH = 0.615
OF_TARGETS = (
    "membership_auc", "membership_tpr_1", "membership_tpr_01", "nnaa_loss",
    "attribute_f1_excess", "rare_attribute_f1_excess", "singling_out_risk",
    "linkability_risk", "inference_risk", "identity_disclosure",
    "identity_disclosure_excess", "worst_subgroup_membership_auc",
)  # fmt: skip


class Attacker:
    """What an attacker holds: the targets, and real persons to compare them with."""

    def __init__(self, con: duckdb.DuckDBPyConnection, profile: Profile) -> None:
        self.con, self.profile = con, profile
        self.space = Space(con)
        self.train = self.space.people(MEMBERS)
        self.holdout = self.space.people(OTHERS)
        # targets are the first of the training, which are there by chance
        self.members = self.train.first(profile.targets)
        self.others = self.holdout.first(profile.targets)
        self.sides = (self.members, self.others)

    def nearest(
        self, targets: People, among: People, leave_out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return squared distances of targets to the nearest of all those persons."""
        return nearest(targets.rows, among.rows, self.space.scale, leave_out)[0]

    @cached_property
    def difficulty(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of members and others to real persons of neither side."""
        calibration = self.space.people(CALIBRATION)
        if not len(calibration):
            return np.zeros(len(self.members)), np.zeros(len(self.others))
        return tuple(self.nearest(side, calibration) for side in self.sides)

    @cached_property
    def to_training(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of members, to others than themselves, and others to training."""
        own = np.arange(len(self.members))
        return (
            self.nearest(self.members, self.train, leave_out=own),
            self.nearest(self.others, self.train),
        )

    @cached_property
    def rarest(self) -> tuple[np.ndarray, np.ndarray]:
        """Real persons who have the rarest concept of each member and other.

        Themselves, too: counted in the training alone, a member would never be the only
        one, and an other often.
        """
        return tuple(
            rarest_of(self.con, cohort, len(side))
            for cohort, side in zip((MEMBERS, OTHERS), self.sides)
        )

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Which targets, members first, are in which subgroup: (M,) bool by name."""

        def fact(name: str) -> np.ndarray:
            return np.concatenate([side.facts[name] for side in self.sides])

        length, rarest = fact("event_count"), np.concatenate(self.rarest)
        tenth = np.searchsorted(
            np.quantile(length, np.arange(1, 10) / 10), length, side="right"
        )
        race = self.train.facts["race_concept_id"]
        common = np.unique(race, return_counts=True)
        common = common[0][common[1].argmax()] if len(race) else UNKNOWN
        is_known = (fact("last_year") >= 0) & (fact("year_of_birth") >= 0)
        return {f"length, tenth {n + 1}": tenth == n for n in range(10)} | {
            "rarest concepts": rarest <= np.quantile(rarest, 0.1),
            "aged 85 and over": is_known
            & (fact("last_year") - fact("year_of_birth") >= 85),
            "race in the minority": fact("race_concept_id") != common,
        }

    @cached_property
    def known(self) -> np.ndarray:
        """Places of a vector that an attacker knows: demographics, some conditions."""
        conditions = self.space.conditions[:KNOWN_CONDITIONS]
        return np.append(np.arange(self.space.head), conditions)

    def rarer_than(self, share: float) -> np.ndarray:
        """Places of a vector whose concept fewer real persons have."""
        return self.space.head + np.flatnonzero(self.space.shares < share)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each member and other is in each bootstrap sample: (B, M) each."""
        return tuple(self.weights_of(len(side), n) for n, side in enumerate(self.sides))

    def weights_of(self, persons: int, number: int) -> np.ndarray:
        """Draw bootstrap samples of so many persons; `number` tells sets apart."""
        profile = self.profile
        return person_weights(persons, profile.bootstraps, profile.seed + number)


@functools.lru_cache(maxsize=1)
def attacker_of(con: duckdb.DuckDBPyConnection, profile: Profile) -> Attacker:
    """Return the attacker on this connection, made once: the targets are the same."""
    return Attacker(con, profile)


def rarest_of(con: duckdb.DuckDBPyConnection, cohort: str, most: int) -> np.ndarray:
    """Count real persons with the rarest concept of each of so many persons: (M,)."""
    found = con.execute(
        f"""
        with
        counts as (
            select source_table, concept_id, count(distinct person_id) as persons
            from evaluation_private.events
            where list_contains($3, cohort)
            group by 1, 2
        ),
        targets as (
            select
                person_id,
                row_number() over (order by {ORDER}) as target
            from evaluation_private.persons
            where cohort = $1
        )
        select target, coalesce(min(persons), 1000000000) as persons
        from targets
        left join (
            from evaluation_private.events where cohort = $1
        ) as events using (person_id)
        left join counts using (source_table, concept_id)
        where target <= $2
        group by 1
        order by 1
        """,
        [cohort, most, list(REAL)],
    ).fetchnumpy()
    return np.asarray(found["persons"]).astype(np.int64)


def measure(
    con: duckdb.DuckDBPyConnection, candidate: str, profile: Profile, results: Results
) -> None:
    """Attack cohort `candidate`; `con` has the cohorts and the marts.

    Adds exact_copy_*, ngram_*, longest_run_p99, membership_*, subgroup_membership_auc,
    nnaa_*, attribute_*, *_risk, identity_disclosure and dcr_share; and the curves
    membership_roc, nearest_distances, ngram_copies and identity_generalisations.
    """
    attacker = attacker_of(con, profile)
    measure_exact_copies(con, candidate, results)
    measure_runs(con, candidate, results)
    release = attacker.space.people(candidate)
    least = min(len(side) for side in attacker.sides)
    if least < LEAST_TARGETS or not len(release):
        for name in OF_TARGETS:
            results.add(name, candidate, np.nan, n=least)
        return
    distances = tuple(attacker.nearest(side, release) for side in attacker.sides)
    measure_membership(attacker, candidate, distances, results)
    measure_adversary(attacker, candidate, distances, results)
    measure_equal_adversary(attacker, candidate, release, results)
    guesses = [
        nearest(
            side.rows[:, attacker.known],
            release.rows[:, attacker.known],
            attacker.space.scale[attacker.known],
        )[1]
        for side in attacker.sides
    ]
    measure_attributes(attacker, candidate, release, guesses, results)
    measure_singling_out(attacker, candidate, release, results)
    measure_linkability(attacker, candidate, release, results)
    measure_inference(attacker, candidate, release, guesses, results)
    measure_identity(attacker, candidate, release, results)
    draw_distances(attacker, candidate, release, results)


def measure_membership(
    attacker: Attacker,
    candidate: str,
    distances: tuple[np.ndarray, np.ndarray],
    results: Results,
) -> None:
    """Tell members by how near the release comes to them.

    The score of a target is its distance to real persons of neither side, less that to
    the release, so that persons who are near to everybody do not count as found
    (calibrated by difficulty, as Watson et al., 2022). The same in subgroups, of which
    the worst is a metric of its own.
    """
    scores = tuple(
        np.round(before - after, 4)
        for before, after in zip(attacker.difficulty, distances)
    )
    add_attack("membership", candidate, scores, attacker.weights, results)
    worst = Attack.nothing()
    for name, chosen in attacker.groups.items():
        sides = np.split(chosen, [len(attacker.members)])
        if min(side.sum() for side in sides) < LEAST_TARGETS:
            continue
        attack = Attack.of(
            tuple(score[side] for score, side in zip(scores, sides)),
            tuple(weight[:, side] for weight, side in zip(attacker.weights, sides)),
        )
        low, high = interval(attack.samples["auc"])
        results.add(
            "subgroup_membership_auc", candidate, attack.values["auc"], stratum=name,
            ci_low=low, ci_high=high, n=attack.n,
        )  # fmt: skip
        if not attack.values["auc"] <= worst.values["auc"]:
            worst = attack
    low, high = interval(worst.samples["auc"])
    results.add(
        "worst_subgroup_membership_auc", candidate, worst.values["auc"], ci_low=low,
        ci_high=high, n=worst.n,
    )  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """How well a score tells members from others; `auc`, `tpr_1`, `tpr_01`."""

    values: dict[str, float]
    samples: dict[str, np.ndarray]  # the same of each bootstrap sample
    roc: tuple[np.ndarray, np.ndarray]  # shares of others and of members found
    n: int

    @classmethod
    def nothing(cls) -> Attack:
        """Return an attack on nobody."""
        return cls({"auc": np.nan}, {"auc": np.empty(0)}, (np.empty(0),) * 2, 0)

    @classmethod
    def of(
        cls,
        scores: tuple[np.ndarray, np.ndarray],
        weights: tuple[np.ndarray, np.ndarray],
    ) -> Attack:
        """Judge scores of members and others; weights: (B, members), (B, others)."""
        fpr, tpr = roc_of(scores, tuple(np.ones((1, len(s))) for s in scores))
        samples: dict[str, list[float]] = {}
        for start in range(0, len(weights[0]), 50):  # what memory holds
            for name, found in rates_of(
                *roc_of(scores, tuple(w[start : start + 50] for w in weights))
            ).items():
                samples.setdefault(name, []).extend(found)
        return cls(
            {name: float(found[0]) for name, found in rates_of(fpr, tpr).items()},
            {name: np.array(found) for name, found in samples.items()},
            (fpr[0], tpr[0]),
            sum(len(score) for score in scores),
        )


def roc_of(
    scores: tuple[np.ndarray, np.ndarray], weights: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of others and of members at each threshold: (B, thresholds + 1) each.

    Equal scores share one threshold; between two thresholds the curve is straight.
    """
    members, others = scores
    both = np.concatenate([others, members])
    order = np.argsort(-both, kind="stable")
    first = np.flatnonzero(np.diff(both[order], prepend=np.nan) != 0)
    counts = np.concatenate([weights[1], weights[0]], axis=1)[:, order].astype(float)
    rates = []
    for is_of_side in (order < len(others), order >= len(others)):
        found = np.cumsum(np.add.reduceat(counts * is_of_side, first, axis=1), axis=1)
        start = np.zeros((len(found), 1))
        rates.append(np.concatenate([start, found], axis=1) / found[:, -1:])
    return rates[0], rates[1]


def rates_of(fpr: np.ndarray, tpr: np.ndarray) -> dict[str, np.ndarray]:
    """Area under each of B curves, and members found at few false alarms: (B,)."""
    return {"auc": np.trapezoid(tpr, fpr, axis=1)} | {
        f"tpr_{name}": np.array([np.interp(rate, f, t) for f, t in zip(fpr, tpr)])
        for name, rate in FALSE_ALARMS.items()
    }


def add_attack(
    name: str,
    candidate: str,
    scores: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    results: Results,
) -> None:
    """Add AUC, members found at 1 % and 0.1 % false alarms, and curve <name>_roc."""
    attack = Attack.of(scores, weights)
    for rate, value in attack.values.items():
        low, high = interval(attack.samples[rate])
        results.add(
            f"{name}_{rate}", candidate, value, ci_low=low, ci_high=high, n=attack.n
        )
    results.draw(
        f"{name}_roc",
        [
            {
                "cohort": candidate,
                "false_positive_rate": float(rate),
                "true_positive_rate": float(np.interp(rate, *attack.roc)),
            }
            for rate in CURVE
        ],
    )


def nearer(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Tell who is nearer to one than to the other: 1, 0, or, where equal, a half."""
    return (one < other) + 0.5 * (one == other)


def measure_adversary(
    attacker: Attacker,
    candidate: str,
    distances: tuple[np.ndarray, np.ndarray],
    results: Results,
) -> None:
    """Ask whether targets lie nearer to the release than to the training: nnaa_loss.

    Nearest-neighbour adversarial accuracy (Yale et al., 2020) from the targets' side,
    with both searched whole, which have the same size. A person of the holdout is as
    often nearer to one as to the other, and so is one of the training, left out there,
    unless the release knows it. The loss is the difference: 0 for unseen persons, 0.5
    for a copy.
    """
    found = tuple(nearer(*pair) for pair in zip(distances, attacker.to_training))
    add_difference("nnaa_loss", candidate, found, attacker.weights, results)


def add_difference(
    name: str,
    candidate: str,
    sides: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    results: Results,
) -> None:
    """Add by how much the mean of members is above that of others.

    `weights`: of the bootstrap samples, (B, members) and (B, others).
    """
    samples = [w @ side / len(side) for w, side in zip(weights, sides)]
    low, high = interval(samples[0] - samples[1])
    results.add(
        name, candidate, sides[0].mean() - sides[1].mean(), ci_low=low, ci_high=high,
        n=sum(len(side) for side in sides),
    )  # fmt: skip


def measure_equal_adversary(
    attacker: Attacker, candidate: str, release: People, results: Results
) -> None:
    """Add adversarial accuracy as published, of equal numbers of all three sets.

    AA(A, S) is the mean of how often a person of A is nearer to A than to S, and one of
    S nearer to S than to A, each left out of its own; ½ where the two are alike. Sets
    are samples of n persons here, in which a copy's original is met but rarely: to be
    compared with published values, never for a bound (that is nnaa_loss).
    """
    n = min(ADVERSARY_PERSONS, len(release), *(len(s) for s in attacker.sides))
    if n < LEAST_TARGETS:
        return
    own, ours = np.arange(n), release.first(n)
    inside = attacker.nearest(ours, ours, leave_out=own)
    towards, from_them = [], []
    for side in attacker.sides:
        side = side.first(n)
        within = attacker.nearest(side, side, leave_out=own)
        towards.append(nearer(within, attacker.nearest(side, ours)))
        from_them.append(nearer(inside, attacker.nearest(ours, side)))
    weights = [attacker.weights_of(n, 2 + number) for number in range(3)]
    samples = [
        (w @ a + weights[2] @ s) / (2 * n)
        for w, a, s in zip(weights, towards, from_them)
    ]
    values = [(a.mean() + s.mean()) / 2 for a, s in zip(towards, from_them)]
    for stratum, value, sample in zip((MEMBERS, OTHERS), values, samples):
        low, high = interval(sample)
        results.add(
            "nnaa_accuracy", candidate, value, stratum=stratum, ci_low=low,
            ci_high=high, n=n,
        )  # fmt: skip
    low, high = interval(samples[1] - samples[0])
    results.add(
        "nnaa_loss_equal", candidate, values[1] - values[0], ci_low=low, ci_high=high,
        n=n,
    )  # fmt: skip


def measure_attributes(
    attacker: Attacker,
    candidate: str,
    release: People,
    guesses: list[np.ndarray],
    results: Results,
) -> None:
    """Infer the unknown concepts of targets from the nearest person of the release.

    Known are demographics and the commonest conditions; `guesses` are the nearest by
    those. Micro-F1 over all else, of members less that of others; once more of the
    targets who have a rare condition.
    """
    unknown = np.setdiff1d(np.arange(release.rows.shape[1]), attacker.known)
    rare = np.intersect1d(attacker.rarer_than(RARE), attacker.space.conditions)
    hits, chosen = [], []
    for side, guess in zip(attacker.sides, guesses):
        truth, guessed = side.rows[:, unknown], release.rows[guess][:, unknown]
        right = (truth & guessed).sum(axis=1, dtype=float)
        named = truth.sum(axis=1, dtype=float) + guessed.sum(axis=1, dtype=float)
        hits.append(np.column_stack([right, named]))
        chosen.append(side.rows[:, rare].any(axis=1))
    everybody = [np.ones(len(found), dtype=bool) for found in hits]
    for name, who in (("attribute_f1", everybody), ("rare_attribute_f1", chosen)):
        counts = [int(side.sum()) for side in who]
        f1, samples = [np.nan, np.nan], [np.empty(0), np.empty(0)]
        if min(counts) >= LEAST_TARGETS:
            f1 = [micro_f1(found[w].sum(axis=0)) for found, w in zip(hits, who)]
            samples = [
                micro_f1(weights[:, w] @ found[w])
                for weights, found, w in zip(attacker.weights, hits, who)
            ]
        for stratum, value, count in zip(("members", "others"), f1, counts):
            results.add(name, candidate, value, stratum=stratum, n=count)
        low, high = interval(samples[0] - samples[1])
        results.add(
            f"{name}_excess", candidate, f1[0] - f1[1], ci_low=low, ci_high=high,
            n=sum(counts),
        )  # fmt: skip


def micro_f1(sums: np.ndarray) -> np.ndarray:
    """F1 of (…, 2) sums: right guesses, and things true plus things guessed."""
    right, named = sums[..., 0], sums[..., 1]
    return np.where(named > 0, 2 * right / np.maximum(named, 1), np.nan)


def add_risk(
    name: str,
    candidate: str,
    hits: tuple[float, float],
    trials: tuple[int, int],
    results: Results,
    scale: float = 1.0,
) -> None:
    """Add a residual risk: success with members beyond that with others.

    (r_members - r_others) / (1 - r_others): of what others leave to be won, the part
    that is won of members (Giomi et al., 2023). Rates have the intervals of Wilson.
    `scale`: that on others is multiplied by it.
    """
    value, low, high = combined(
        lambda ours, other: (ours - scale * other) / max(1 - scale * other, 1e-9),
        rate_of(hits[0], trials[0]),
        rate_of(hits[1], trials[1]),
    )
    results.add(name, candidate, value, ci_low=low, ci_high=high, n=sum(trials))


def measure_singling_out(
    attacker: Attacker, candidate: str, release: People, results: Results
) -> None:
    """Guess predicates that isolate a real person: singling_out_risk.

    A predicate is three to five facts of a person of the release (its rarest concept,
    and of sex, race, age at the first visit and concepts) that nobody else there has.
    It hits where exactly one real person has them, a member, whom none before it hit;
    one of the holdout is chance, and counts for as many as there are members to each of
    the holdout.
    """
    rng = np.random.default_rng(attacker.profile.seed)
    space, groups = attacker.space, (release, attacker.train, attacker.holdout)
    bits = [np.packbits(group.rows > 0, axis=0).T.copy() for group in groups]
    ages = [group.rows[:, space.age_place] for group in groups]

    def matches(group: int, places: np.ndarray, age: int) -> np.ndarray:
        has = [bits[group][place] for place in places if place != space.age_place]
        if space.age_place in places:
            has.append(np.packbits(ages[group] == age))
        return np.bitwise_and.reduce(has)

    def count(found: np.ndarray) -> int:
        return int(np.bitwise_count(found).sum())

    hits: tuple[set[bytes], set[bytes]] = (set(), set())
    trials = 0
    for person in rng.permutation(len(release))[: 10 * ATTACKS]:
        # its sex and race, its age, and the concepts that it has, the commonest first
        facts = np.flatnonzero(release.rows[person])
        size = int(rng.integers(3, 6))
        if len(facts) < size:
            continue
        places = np.append(rng.choice(facts[:-1], size - 1, replace=False), facts[-1])
        age = int(ages[0][person])
        if count(matches(0, places, age)) != 1:
            continue
        trials += 1
        found = [matches(group, places, age) for group in (1, 2)]
        counts = [count(group) for group in found]
        if sum(counts) == 1:
            side = counts.index(1)
            hits[side].add(found[side].tobytes())
        if trials == ATTACKS:
            break
    add_risk(
        "singling_out_risk",
        candidate,
        (len(hits[0]), len(hits[1])),
        (trials, trials),
        results,
        scale=len(attacker.train) / max(len(attacker.holdout), 1),
    )


def measure_linkability(
    attacker: Attacker, candidate: str, release: People, results: Results
) -> None:
    """Link two halves of a target's record through the release: linkability_risk.

    One half is sex, age and every other concept, the other race and the rest. They are
    linked where the nearest by either is the same person of the release.
    """
    space = attacker.space
    sexes = sum(column == "gender_concept_id" for column, _ in space.categories)
    concepts = np.arange(space.head, len(space.scale))
    halves = (
        np.concatenate([np.arange(sexes), [space.age_place], concepts[::2]]),
        np.concatenate([np.arange(sexes, space.age_place), concepts[1::2]]),
    )
    hits, trials = [], []
    for side in attacker.sides:
        targets = side.rows[:ATTACKS]
        found = [
            nearest(targets[:, half], release.rows[:, half], space.scale[half])[1]
            for half in halves
        ]
        hits.append(int((found[0] == found[1]).sum()))
        trials.append(len(targets))
    add_risk("linkability_risk", candidate, tuple(hits), tuple(trials), results)


def measure_inference(
    attacker: Attacker,
    candidate: str,
    release: People,
    guesses: list[np.ndarray],
    results: Results,
) -> None:
    """Guess one secret of each target, the rarest that its neighbour has.

    `guesses`: the nearest persons of the release, by what is known of targets. Adds
    inference_risk.
    """
    unknown = np.setdiff1d(
        np.arange(attacker.space.head, release.rows.shape[1]), attacker.known
    )
    # concepts stand from the commonest on, so the last that one has is its rarest
    unknown = unknown[::-1]
    hits, trials = [], []
    for side, guess in zip(attacker.sides, guesses):
        has = release.rows[guess[:ATTACKS]][:, unknown]
        asked = np.flatnonzero(has.any(axis=1)) if len(unknown) else np.empty(0, int)
        secret = unknown[has[asked].argmax(axis=1)] if len(asked) else asked
        hits.append(int(side.rows[asked, secret].sum()))
        trials.append(len(asked))
    add_risk("inference_risk", candidate, tuple(hits), tuple(trials), results)


def measure_identity(
    attacker: Attacker, candidate: str, release: People, results: Results
) -> None:
    """Match members to the release by what many know of them: identity_disclosure.

    Meaningful identity disclosure (El Emam et al., 2020): a match tells something where
    the person of the release, one of those who match, shares two concepts with the
    member that few have. It is weighed by the persons who look the same, in the
    training (the attack starts from a person of the population) or among all real
    persons (it starts from the release). The larger of the two, by the worst of 127
    sets of facts: year, five years or decade of birth, sex, race, ethnicity, age group,
    decade of the first visit. Adds identity_disclosure_excess, too: the second of the
    two beyond that of the holdout; and curve identity_generalisations, of all sets.
    """
    everybody = {MEMBERS: attacker.train.facts, OTHERS: attacker.holdout.facts}
    everybody["release"] = release.facts
    for name in REAL:
        if name not in everybody:
            everybody[name] = facts_of(attacker.con, name)[1]
    ends = np.cumsum([len(facts["year_of_birth"]) for facts in everybody.values()])
    of = {
        name: slice(end - len(facts["year_of_birth"]), end)
        for (name, facts), end in zip(everybody.items(), ends)
    }
    facts = identifying(
        {
            name: np.concatenate([group[name] for group in everybody.values()])
            for name in release.facts
        }
    )
    is_real = np.ones(ends[-1], dtype=bool)
    is_real[of["release"]] = False
    telling = attacker.rarer_than(TELLING)
    theirs = release.rows[:, telling]
    rng = np.random.default_rng(attacker.profile.seed)
    draws = [rng.random(len(side)) for side in attacker.sides]
    share = len(attacker.train) / is_real.sum()
    births = ("", "birth year", "birth in 5 years", "birth decade")
    more = ("sex", "race", "ethnicity", "age group", "first decade")
    found, rows = [], []
    for birth, number in itertools.product(births, range(len(more) + 1)):
        for names in itertools.combinations(more, number):
            names = (birth, *names) if birth else names
            if not names:
                continue
            cell, count = np.zeros(len(is_real), dtype=np.int64), 1
            for name in names:
                kinds = int(facts[name].max()) + 1
                cell, count = cell * kinds + facts[name], count * kinds
            in_train = np.bincount(cell[of[MEMBERS]], minlength=count)
            in_all = np.bincount(cell[is_real], minlength=count)
            in_release = np.bincount(cell[of["release"]], minlength=count)
            order = np.argsort(cell[of["release"]], kind="stable")
            first = np.cumsum(in_release) - in_release
            terms = []
            for name, side, draw in zip((MEMBERS, OTHERS), attacker.sides, draws):
                own = cell[of[name]][: len(side)]
                place = first[own] + (draw * in_release[own]).astype(int)
                match = order[np.minimum(place, len(order) - 1)]
                shared = (side.rows[:, telling] & theirs[match]).sum(axis=1)
                is_learnt = (shared >= LEARNT) & (in_release[own] > 0)
                terms.append(RIGHT_MATCH * is_learnt / in_all[own])
                if name == MEMBERS:
                    in_sample = RIGHT_MATCH * share * is_learnt / in_train[own]
            worse = max(in_sample, terms[0], key=np.mean)
            found.append((worse, *terms))
            rows.append(
                {
                    "cohort": candidate,
                    "facts": ", ".join(names),
                    "risk": float(worse.mean()),
                }
            )
    worse, ours, others = max(found, key=lambda terms: terms[0].mean())
    ours, others, worse = (
        (side.mean(), weights @ side / len(side))
        for side, weights in zip(
            (ours, others, worse), (*attacker.weights, attacker.weights[0])
        )
    )
    for name, value, samples in (
        ("identity_disclosure", *worse),
        ("identity_disclosure_excess", ours[0] - others[0], ours[1] - others[1]),
    ):
        low, high = interval(samples)
        results.add(
            name, candidate, value, ci_low=low, ci_high=high, n=len(draws[0]),
        )  # fmt: skip
    results.draw("identity_generalisations", rows)


def identifying(facts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Generalise facts of persons that many know of them: (N,) codes by name."""
    birth, first = facts["year_of_birth"], facts["first_year"]
    age = np.where((birth >= 0) & (first >= 0), first - birth, UNKNOWN)
    generalised = {
        "birth year": birth,
        "birth in 5 years": birth // 5,
        "birth decade": birth // 10,
        "sex": facts["gender_concept_id"],
        "race": facts["race_concept_id"],
        "ethnicity": facts["ethnicity_concept_id"],
        "age group": np.searchsorted([0, 18, 40, 65, 85], age, side="right"),
        "first decade": first // 10,
    }
    return {
        name: np.unique(fact, return_inverse=True)[1]
        for name, fact in generalised.items()
    }


def draw_distances(
    attacker: Attacker, candidate: str, release: People, results: Results
) -> None:
    """Draw how far persons of the release are from members and from others.

    For the eye, not for a gate: sets that pass such a test leak all the same (Ganev and
    De Cristofaro, 2025). Both sides have the same size. Adds dcr_share, the share that
    is nearer to members, and curve nearest_distances.
    """
    some = release.first(attacker.profile.targets)
    size = min(len(side) for side in attacker.sides)
    to = [attacker.nearest(some, side.first(size)) for side in attacker.sides]
    results.add("dcr_share", candidate, nearer(*to).mean(), n=len(some))
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
