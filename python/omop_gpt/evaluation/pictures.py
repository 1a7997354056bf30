"""The pictures of the report, from the marts and from the curves of the families.

Synthetic patients are blue, the holdout is dark. What is green is real, too: the band
where other real persons lie (bands.py), or the ideal anchor itself. A picture whose
data is not there is left out. Of real patients no count is drawn that fewer than
SMALL_CELL of them make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from omop_gpt.evaluation.bands import Band, Bands, quantiles, shares, shares_below
from omop_gpt.evaluation.cohorts import HOLDOUT, IDEAL, SYNTHETIC
from omop_gpt.evaluation.small_cells import SMALL_CELL

if TYPE_CHECKING:
    import duckdb
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from omop_gpt.evaluation.results import Profile

COLORS = {
    HOLDOUT: "#333333",
    SYNTHETIC: "#1769aa",
    IDEAL: "#2e7d32",
    "copy": "#c62828",
    "near_copy": "#e57373",
    "leak_10": "#ad1457",
    "unigram": "#ef6c00",
    "independent": "#f9a825",
    "chain": "#6a1b9a",
    "visit_shuffle": "#00838f",
}

Draw = Callable[["Source"], "Figure | None"]


class Source:
    """What pictures are drawn from: marts, curves, and names of concepts."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        curves: Mapping[str, Sequence[Mapping[str, Any]]],
        names_query: str,
        cohorts: Sequence[str],
        profile: Profile,
    ) -> None:
        self.con, self.curves, self.cohorts = con, curves, cohorts
        self.bands = Bands(con, profile)
        con.execute(f"create or replace temp view concept_names as {names_query}")
        self.tables = {
            name
            for (name,) in con.execute(
                "select table_name from information_schema.tables "
                "where table_schema = 'evaluation'"
            ).fetchall()
        }

    @cached_property
    def names(self) -> dict[int, str]:
        """Names of concepts by their ids."""
        return dict(self.rows("from concept_names"))

    def rows(self, query: str, *values: Any) -> list[tuple]:
        """Rows of a query over the marts."""
        return self.con.execute(query, list(values)).fetchall()

    def curve(self, name: str, cohort: str, **wanted: Any) -> list[Mapping[str, Any]]:
        """Rows of a curve of one cohort."""
        return [
            row
            for row in self.curves.get(name, ())
            if row["cohort"] == cohort
            and all(row.get(key) == value for key, value in wanted.items())
        ]

    def anchors(self) -> list[str]:
        """Return the anchors that were run."""
        return [name for name in self.cohorts if name != SYNTHETIC]


def new_figure(columns: int = 1, rows: int = 1, height: float = 3.2) -> tuple:
    """Start a figure of the report's width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def small_multiples(count: int, height: float) -> tuple[Figure, list]:
    """Start a figure of so many small pictures, four in a row."""
    figure, axes = new_figure(4, -(-count // 4), height=height)
    for axis in axes.flat[:count]:
        axis.tick_params(labelsize=7)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def shade(axis: Axes, band: Band | None, step: str | None = None) -> None:
    """Shade where other real persons lie, if that is known."""
    if band is not None:
        axis.fill_between(
            band.across, band.low, band.high, step=step, color=COLORS[IDEAL],
            alpha=0.25, linewidth=0, label="other real persons, 95 %",
        )  # fmt: skip


def draw_pyramid(source: Source) -> Figure | None:
    """Age at first visit by sex: bars real, lines synthetic."""
    (persons,) = source.rows(
        "select count(*) from evaluation_private.persons where cohort = ?", HOLDOUT
    )[0]
    # bands that hold enough real persons to be drawn
    years = 5 if persons >= 2_000 else 10 if persons >= 500 else 20
    rows = source.rows(
        f"""
        select
            cohort, gender_concept_id, age_from // {years} * {years} as band,
            sum(persons) as persons, sum(share)
        from evaluation.age_sex_pyramid
        where cohort in (?, ?) and age_from is not null
        group by 1, 2, 3
        order by 3
        """,
        HOLDOUT, SYNTHETIC,
    )  # fmt: skip
    genders = sorted(
        {row[1] for row in rows if row[0] == HOLDOUT and row[3] >= SMALL_CELL}
    )
    if not genders:
        return None
    names = {8507: "men", 8532: "women"}
    figure, axes = new_figure(len(genders))
    # of all persons, those of no visit, too
    found = source.bands.of(
        "evaluation_private.population_persons",
        f"1000 * gender_concept_id + coalesce(age_from // {years} * {years}, 999)",
        shares,
    ).get("all")
    for axis, gender in zip(axes[0], genders):
        real = [r for r in rows if r[:2] == (HOLDOUT, gender) and r[3] >= SMALL_CELL]
        ours = [r for r in rows if r[:2] == (SYNTHETIC, gender)]
        axis.bar(
            [r[2] + years / 2 for r in real], [r[4] for r in real], 0.9 * years,
            color="#bbbbbb", label="real (holdout)",
        )  # fmt: skip
        axis.plot(
            [r[2] + years / 2 for r in ours], [r[4] for r in ours], "o-", markersize=3,
            color=COLORS[SYNTHETIC], label="synthetic",
        )  # fmt: skip
        if found:
            drawn = [1000 * gender + r[2] for r in real]
            ends = (np.interp(drawn, found.across, end) for end in found[1:])
            shade(axis, Band(np.array([r[2] + years / 2 for r in real]), *ends))
        axis.set(
            title=names.get(gender, f"gender {gender}"), xlabel="age at first visit",
            ylabel="share of all",
        )  # fmt: skip
    axes[0][0].legend()
    return figure


def draw_prevalence(source: Source) -> Figure | None:
    """Share of persons with each concept, logarithmic, with the band of chance."""
    found = source.rows(
        """
        select
            r.source_table, r.share, coalesce(s.share, 0) as ours, r.cohort_persons,
            r.concept_id, coalesce(max(concept_name), any_value(r.concept_id)::varchar)
        from evaluation.prevalence as r
        left join evaluation.prevalence as s
            on s.cohort = ? and r.source_table = s.source_table
            and r.concept_id = s.concept_id
        left join concept_names on r.concept_id = concept_names.concept_id
        where r.cohort = ? and r.persons >= ?
        group by 1, 2, 3, 4, 5
        order by r.source_table, r.concept_id
        """,
        SYNTHETIC, HOLDOUT, SMALL_CELL,
    )  # fmt: skip
    if not found:
        return None
    (persons,) = source.rows(
        "select count(*) from evaluation_private.persons where cohort = ?", SYNTHETIC
    )[0]
    figure, axes = new_figure(height=5.5)
    axis = axes[0][0]
    least = 0.5 / max(persons, 1)
    line = np.geomspace(min(r[1] for r in found), 1, 50)
    band = 1.96 * np.sqrt(line * (1 - line) * (1 / found[0][3] + 1 / max(persons, 1)))
    axis.fill_between(
        line, np.maximum(line - band, least), line + band, color="#cccccc", alpha=0.6,
        label="95 % of chance", linewidth=0,
    )  # fmt: skip
    for table in dict.fromkeys(row[0] for row in found):
        points = [row for row in found if row[0] == table]
        axis.scatter(
            [r[1] for r in points], [max(r[2], least) for r in points],
            s=9, label=table, alpha=0.7,
        )  # fmt: skip
    far = sorted(
        found,
        key=lambda r: -abs(r[1] - r[2]) / math.sqrt(max(r[1] * (1 - r[1]), 1e-9)),
    )
    for row in far[:15]:
        axis.annotate(
            row[5][:28], (row[1], max(row[2], least)), fontsize=6, xytext=(3, 3),
            textcoords="offset points",
        )  # fmt: skip
    axis.set(
        xscale="log", yscale="log", xlabel="share of real persons (holdout)",
        ylabel="share of synthetic persons",
    )  # fmt: skip
    axis.legend(fontsize=8)
    return figure


def draw_pairs(source: Source) -> Figure | None:
    """Concepts that occur together: scatter, and where the difference lies."""
    rows = source.curve("cooccurrence", SYNTHETIC)
    if not rows:
        return None
    figure, axes = new_figure(2, height=4.2)
    left, right = axes[0]
    for cohort, label in ((IDEAL, "other real persons"), (SYNTHETIC, "synthetic")):
        points = source.curve("cooccurrence", cohort)
        left.scatter(
            [r["share_holdout"] for r in points], [r["share"] for r in points], s=6,
            color=COLORS[cohort], alpha=0.5, label=label,
        )  # fmt: skip
    left.legend(fontsize=8)
    top = max(max(r["share_holdout"], r["share"]) for r in rows) or 1
    left.plot([0, top], [0, top], color="#888888", linewidth=1)
    left.set(
        xlabel="share of real persons (holdout) with both",
        ylabel="share of those shown", title="pairs of the commonest concepts",
    )  # fmt: skip
    concepts = list(dict.fromkeys([r["concept_a"] for r in rows]))
    concepts += [rows[-1]["concept_b"]]
    place = {concept: index for index, concept in enumerate(concepts)}
    grid = np.full((len(concepts), len(concepts)), np.nan)
    for row in rows:
        if row["concept_a"] in place and row["concept_b"] in place:
            difference = row["share"] - row["share_holdout"]
            grid[place[row["concept_b"]], place[row["concept_a"]]] = difference
    bound = np.nanmax(np.abs(grid)) or 1
    image = right.imshow(grid, cmap="RdBu_r", vmin=-bound, vmax=bound)
    right.grid(False)
    right.set(title="synthetic less real, by rank of the concepts")
    figure.colorbar(image, ax=right, shrink=0.8)
    return figure


def draw_histograms(source: Source) -> Figure | None:
    """Visits per person, concepts per person, events per visit, days of stay."""
    persons = "evaluation_private.population_persons"
    visits = "evaluation_private.population_visits"
    measures = {
        "visits_per_person": ("visits per person", persons, "visit_count"),
        "concepts_per_person": ("concepts per person", persons, "concept_count"),
        "events_per_visit": ("events per visit", visits, "event_count"),
        "length_of_stay": (
            "days of a stay, where over 0", f"(from {visits} where days > 0)", "days"
        ),
    }  # fmt: skip
    figure, axes = new_figure(len(measures))
    for axis, (measure, (title, table, key)) in zip(axes[0], measures.items()):
        band = source.bands.of(table, key, shares_below).get("all")
        if band:
            band = band._replace(across=np.maximum(band.across, 0.5))
            shade(axis, band, step="post")
        for cohort in (HOLDOUT, SYNTHETIC):
            rows = source.rows(
                "select bin, sum(frequency) from evaluation.histograms where "
                "cohort = ? and measure = ? "
                "and (measure <> 'length_of_stay' or bin > 0) group by 1 order by 1",
                cohort, measure,
            )  # fmt: skip
            if rows:
                counts = np.cumsum([float(row[1]) for row in rows])
                axis.step(
                    [max(row[0], 0.5) for row in rows], counts / counts[-1],
                    where="post", color=COLORS[cohort], label=cohort,
                )  # fmt: skip
        axis.set(xscale="log", ylim=(0, 1.02))
        axis.set_title(title, fontsize=9)
    axes[0][0].set_ylabel("share at or below")
    axes[0][0].legend(fontsize=7)
    return figure


def draw_values(source: Source) -> Figure | None:
    """Quantiles of the commonest measurements, real against synthetic."""
    concepts = source.rows(
        """
        select
            q.source_table, q.concept_id, q.unit_concept_id,
            coalesce(max(concept_name), any_value(q.concept_id)::varchar)
        from evaluation.value_quantiles as q
        left join concept_names on q.concept_id = concept_names.concept_id
        where cohort = ? and value_count >= 200
        group by 1, 2, 3
        order by max(value_count) desc, 1, 2, 3
        limit 12
        """,
        HOLDOUT,
    )
    if not concepts:
        return None
    figure, axes = small_multiples(len(concepts), 2.2)
    asked = np.arange(4, 197) / 200  # from 0.02 to 0.98
    of_unit = "coalesce(cast(unit_concept_id as varchar), 'None')"
    number = f"concat_ws(' ', source_table, concept_id, {of_unit})"
    chosen = ", ".join(f"'{t} {c} {u}'" for t, c, u, _ in concepts)
    bands = source.bands.of(
        f"""(
            from evaluation_private.events
            where value_as_number is not null and {number} in ({chosen})
        )""",
        "value_as_number",
        quantiles(asked),
        within=number,
    )
    for axis, (table, concept, unit, name) in zip(axes, concepts):
        values = {
            cohort: dict(
                source.rows(
                    "select round(quantile, 4), value_as_number "
                    "from evaluation.value_quantiles where cohort = ? and "
                    "source_table = ? and concept_id = ? "
                    "and unit_concept_id is not distinct from ? "
                    "and quantile between 0.02 and 0.98",
                    cohort, table, concept, unit,
                )
            )
            for cohort in (HOLDOUT, SYNTHETIC)
        }  # fmt: skip
        shared = sorted(values[HOLDOUT].keys() & values[SYNTHETIC].keys())
        band = bands.get(f"{table} {concept} {unit}")
        if band:
            real = [values[HOLDOUT][round(q, 4)] for q in asked]
            shade(axis, band._replace(across=real))
        axis.plot(
            [values[HOLDOUT][q] for q in shared],
            [values[SYNTHETIC][q] for q in shared],
            ".", markersize=3, color=COLORS[SYNTHETIC],
        )  # fmt: skip
        ends = [values[HOLDOUT][q] for q in (shared[:1] + shared[-1:])]
        axis.plot(ends, ends, color="#888888", linewidth=1)
        axis.set_title(name[:34], fontsize=8)
    return figure


def draw_discriminator(source: Source) -> Figure | None:
    """ROC of the classifiers, and what tells synthetic patients from real ones."""
    features = source.curve("discriminator_features", SYNTHETIC)
    if not features:
        return None
    figure, axes = new_figure(2, height=3.8)
    left, right = axes[0]
    for cohort in (SYNTHETIC, *source.anchors()):
        rows = source.curve("discriminator_roc", cohort, model="boosting")
        left.plot(
            [r["false_positive_rate"] for r in rows],
            [r["true_positive_rate"] for r in rows],
            color=COLORS.get(cohort), label=cohort,
            linewidth=2 if cohort == SYNTHETIC else 1,
        )  # fmt: skip
    left.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=":")
    left.set(
        title="boosted trees: synthetic or real?", xlabel="false alarms", ylabel="found"
    )
    left.legend(fontsize=8)
    names = [
        f"{named(r['feature'], source.names)}  "
        f"({r['real_mean']:.3g} real, {r['candidate_mean']:.3g})"
        for r in features
    ]
    right.barh(
        range(len(features)), [r["importance"] for r in features],
        color=COLORS[SYNTHETIC],
    )  # fmt: skip
    right.set_yticks(range(len(features)), names, fontsize=7)
    right.invert_yaxis()
    right.set(title="what it looks at", xlabel="loss of AUC without it")
    return figure


def named(feature: str, names: Mapping[int, str]) -> str:
    """Return a feature with the name of its concept in place of the id."""
    column, _, concept = feature.rpartition("concept_id ")
    if not concept.lstrip("-").isdigit():
        return feature
    return (column + (names.get(int(concept)) or concept))[:40]


def task_name(task: str, names: Mapping[int, str]) -> str:
    """Return a task with the name of the condition that it asks for."""
    concept = task.removeprefix("incident_")
    if concept == task or int(concept) not in names:
        return task
    return f"incident {names[int(concept)]}"[:40]


def draw_utility(source: Source) -> Figure | None:
    """Prediction tasks: learnt from real and from synthetic patients."""
    rows = source.curve("utility_auroc", SYNTHETIC, model="logistic")
    if not rows:
        return None
    figure, axes = new_figure(height=0.8 + 0.32 * len(rows))
    axis = axes[0][0]
    for place, row in enumerate(rows):
        axis.plot([row["floor"], row["trtr"]], [place, place], color="#cccccc", lw=6)
        for ideal in source.curve(
            "utility_auroc", IDEAL, model="logistic", task=row["task"]
        ):
            axis.plot(ideal["tstr"], place, "|", markersize=14, color=COLORS[IDEAL])
        axis.errorbar(
            row["tstr"], place,
            xerr=[
                [max(row["tstr"] - row["ci_low"], 0)],
                [max(row["ci_high"] - row["tstr"], 0)],
            ],
            fmt="o", color=COLORS[SYNTHETIC],
        )  # fmt: skip
    tasks = [task_name(row["task"], source.names) for row in rows]
    axis.set_yticks(range(len(rows)), tasks, fontsize=8)
    axis.invert_yaxis()
    axis.set(
        xlabel="AUROC on real persons (bar: from age and sex alone to real training)"
    )
    return figure


def draw_calibration(source: Source) -> Figure | None:
    """Risk foretold by models of synthetic patients, against what came."""
    rows = source.curve("utility_calibration", SYNTHETIC, model="logistic")
    return calibration_figure(rows, source.names)


def draw_zero_shot_calibration(source: Source) -> Figure | None:
    """Risk foretold by the model's own roll-outs, against what came."""
    rows = source.curve("zero_shot_calibration", SYNTHETIC)
    return calibration_figure(rows, source.names)


def calibration_figure(
    rows: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> Figure | None:
    """Draw foretold risk against what came, a picture for each task."""

    def draw(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
        points = [(row["chance"], row["observed"]) for row in rows]
        axis.plot(*zip(*points), "o-", markersize=3, color=COLORS[SYNTHETIC])
        top = max(0.01, *map(max, points))
        axis.plot([0, top], [0, top], color="#888888", linewidth=1)

    return task_figure(rows, draw, names, "risk foretold", "share that came")


def draw_zero_shot(source: Source) -> Figure | None:
    """AUROC of the model's own roll-outs by their number, beside what is learnt."""

    def draw(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
        axis.plot(
            [row["rollouts"] for row in rows], [row["zero_shot"] for row in rows], "o-",
            markersize=3, color=COLORS[SYNTHETIC], label="roll-outs",
        )  # fmt: skip
        for name, label, color in (
            ("logistic", "logistic regression", COLORS[HOLDOUT]),
            ("boosting", "boosted trees", "#8a5a00"),
            ("floor", "age, sex and race", "#bbbbbb"),
        ):
            axis.axhline(rows[0][name], color=color, linewidth=1, label=label)
        title = f"{axis.get_title()}, {rows[0]['persons']} persons"
        axis.set_title(title, fontsize=8)

    rows = source.curve("zero_shot_auroc", SYNTHETIC)
    return task_figure(rows, draw, source.names, "roll-outs of a person", "AUROC")


def draw_zero_shot_incidence(source: Source) -> Figure | None:
    """Who has an outcome by a day: real persons, and as the model foretold of them."""

    def draw(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
        days = [row["day"] for row in rows]
        for name, label, color in (
            ("observed", "real persons", COLORS[HOLDOUT]),
            ("foretold", "foretold of them", COLORS[SYNTHETIC]),
        ):
            shares = [row[name] for row in rows]
            axis.step(days, shares, where="post", color=color, label=label)

    return task_figure(
        source.curve("zero_shot_incidence", SYNTHETIC),
        draw,
        source.names,
        "days from the day that is looked ahead from",
        "share with the outcome",
    )


def task_figure(
    rows: Sequence[Mapping[str, Any]],
    draw: Callable[[Axes, Sequence[Mapping[str, Any]]], None],
    names: Mapping[int, str],
    across: str,
    up: str,
) -> Figure | None:
    """Draw a small picture for each task, of rows that are no small cells."""
    rows = [row for row in rows if row["persons"] >= SMALL_CELL]
    tasks = list(dict.fromkeys(row["task"] for row in rows))[:8]
    if not tasks:
        return None
    figure, axes = small_multiples(len(tasks), 2.3)
    for axis, task in zip(axes, tasks):
        axis.set_title(task_name(task, names), fontsize=8)
        draw(axis, [row for row in rows if row["task"] == task])
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=6)
    figure.supxlabel(across, fontsize=8)
    figure.supylabel(up, fontsize=8)
    return figure


def draw_gaps(source: Source) -> Figure | None:
    """Days between visits, with the days that people agree on."""
    if "gaps" not in source.tables:
        return None
    figure, axes = new_figure(2)
    left, right = axes[0]
    for cohort in (HOLDOUT, SYNTHETIC):
        rows = source.rows(
            "select days, sum(gaps) from evaluation.gaps where cohort = ? "
            "and days >= 0 group by 1 order by 1",
            cohort,
        )  # fmt: skip
        if not rows:
            return None
        days = np.array([row[0] for row in rows])
        share = np.array([float(row[1]) for row in rows])
        share /= share.sum()
        left.step(
            days + 1, np.cumsum(share), where="post", color=COLORS[cohort], label=cohort
        )
        near = days <= 400
        right.plot(days[near] + 1, share[near], color=COLORS[cohort], linewidth=1)
    rows = """(
        select cohort, person_id, days
        from evaluation_private.temporal_visits
        inner join evaluation_private.temporal_persons using (cohort, person_number)
        where days >= 0
    )"""
    for axis, curve in ((left, shares_below), (right, shares)):
        band = source.bands.of(rows, "days", curve).get("all")
        if band:
            seen = slice(None) if axis is left else band.across <= 400
            band = Band(*(points[seen] for points in band))
            shade(axis, band._replace(across=band.across + 1))
    left.set(xscale="log", xlabel="1 + days", ylabel="share at or below")
    left.legend(fontsize=8)
    for day in (7, 14, 30, 90, 365):
        for axis in (left, right):
            axis.axvline(day + 1, color="#999999", linewidth=0.6, linestyle=":")
    least = min(line.get_ydata().min() for line in right.lines[:2])
    right.set(
        xscale="log", yscale="log", ylim=(least / 2, None), ylabel="share",
        xlabel="1 + days (dotted: 7, 14, 30, 90, 365 days)",
    )  # fmt: skip
    return figure


def draw_transitions(source: Source) -> Figure | None:
    """From one type of visit to the next: real, synthetic, difference."""
    if "visit_transitions" not in source.tables:
        return None
    rows = source.rows(
        "select cohort, from_state, to_state, share, transitions "
        "from evaluation.visit_transitions where cohort in (?, ?, ?)",
        HOLDOUT, SYNTHETIC, IDEAL,
    )  # fmt: skip
    states = sorted({row[1] for row in rows} | {row[2] for row in rows})
    if not states:
        return None
    place = {state: number for number, state in enumerate(states)}
    grids = {cohort: np.zeros((len(states), len(states))) for cohort in COLORS}
    for cohort, before, after, part, count in rows:
        if cohort == SYNTHETIC or count >= SMALL_CELL:
            grids[cohort][place[before], place[after]] = part
    shown = [
        ("real", grids[HOLDOUT], "viridis", 0, 1),
        ("synthetic", grids[SYNTHETIC], "viridis", 0, 1),
        ("synthetic less real", grids[SYNTHETIC] - grids[HOLDOUT], "RdBu_r", -0.1, 0.1),
    ]
    if grids[IDEAL].any():
        difference = grids[IDEAL] - grids[HOLDOUT]
        shown.append(("other real less real", difference, "RdBu_r", -0.1, 0.1))
    figure, axes = new_figure(len(shown), height=2.8)
    for axis, (title, grid, colors, low, high) in zip(axes[0], shown):
        image = axis.imshow(grid, cmap=colors, vmin=low, vmax=high)
        axis.set_xticks(range(len(states)), states, rotation=90, fontsize=7)
        axis.set_yticks(range(len(states)), states, fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.grid(False)
        figure.colorbar(image, ax=axis, shrink=0.6)
    return figure


def draw_repeats(source: Source) -> Figure | None:
    """How much of a visit comes back some visits later, with the anchors."""
    if "lag_repeats" not in source.tables:
        return None
    figure, axes = new_figure()
    axis = axes[0][0]
    for cohort in (HOLDOUT, SYNTHETIC, *source.anchors()):
        rows = source.rows(
            "select visit_lag, jaccard from evaluation.lag_repeats "
            "where cohort = ? order by 1",
            cohort,
        )
        axis.plot(
            [row[0] for row in rows], [row[1] for row in rows], "o-", markersize=4,
            color=COLORS.get(cohort), label=cohort,
            linewidth=2 if cohort in (HOLDOUT, SYNTHETIC) else 1,
        )  # fmt: skip
    axis.set(
        xlabel="visits later", ylabel="overlap of concepts (Jaccard)", xscale="log"
    )
    axis.legend(fontsize=8)
    return figure


def draw_incidence(source: Source) -> Figure | None:
    """First diagnoses by age, of the commonest conditions."""
    if "onset_incidence" not in source.tables:
        return None
    concepts = source.rows(
        """
        select
            o.concept_id,
            coalesce(max(concept_name), any_value(o.concept_id)::varchar)
        from evaluation.onset_incidence as o
        left join concept_names on o.concept_id = concept_names.concept_id
        where cohort = ?
        group by 1
        order by sum(onsets) desc, 1
        limit 12
        """,
        HOLDOUT,
    )
    if not concepts:
        return None
    figure, axes = small_multiples(len(concepts), 2.1)
    for axis, (concept, name) in zip(axes, concepts):
        for cohort in (HOLDOUT, SYNTHETIC):
            rows = source.rows(
                """
                select
                    age_from, ours.rate, ours.onsets, ours.person_years,
                    other.person_years
                from evaluation.onset_incidence as ours
                left join (
                    from evaluation.onset_incidence where cohort = ?
                ) as other using (concept_id, age_from)
                where
                    ours.cohort = ? and concept_id = ? and ours.person_years >= 50
                order by 1
                """,
                IDEAL, cohort, concept,
            )  # fmt: skip
            rows = [r for r in rows if cohort != HOLDOUT or not 0 < r[2] < SMALL_CELL]
            if cohort == HOLDOUT:
                shade(axis, poisson_band(rows))
            axis.plot(
                [row[0] for row in rows], [row[1] for row in rows],
                color=COLORS[cohort],
            )  # fmt: skip
        axis.set_title(name[:34], fontsize=8)
    return figure


def poisson_band(rows: Sequence[tuple]) -> Band | None:
    """Where other real persons' rates lie: of two counts of first events, 95 %.

    `rows`: age, rate per 1,000 person-years, count, person-years of the holdout, and of
    the ideal. A person has one first event, so counts are of Poisson.
    """
    rows = [row for row in rows if row[4]]
    if not rows:
        return None
    age, rate, _, ours, others = np.array(rows, float).T
    reach = 1.96 * np.sqrt(1000 * rate * (1 / ours + 1 / others))
    return Band(age, np.maximum(rate - reach, 0), rate + reach)


def draw_survival(source: Source) -> Figure | None:
    """Survival by age, those who enter later counted from then on."""
    if "survival" not in source.tables:
        return None
    figure, axes = new_figure()
    axis = axes[0][0]
    for cohort in (HOLDOUT, SYNTHETIC, IDEAL):
        rows = source.rows(
            "select years, survival, standard_error from evaluation.survival "
            "where cohort = ? and axis = 'age' and at_risk >= ? order by 1",
            cohort, SMALL_CELL,
        )  # fmt: skip
        if not rows and cohort == IDEAL:  # it was not run
            continue
        if not rows:
            return None
        years, survival, error = (
            np.array([float(v or 0) for v in c]) for c in zip(*rows)
        )
        axis.step(years, survival, where="post", color=COLORS[cohort], label=cohort)
        axis.fill_between(
            years, survival - 1.96 * error, np.minimum(survival + 1.96 * error, 1),
            step="post", color=COLORS[cohort], alpha=0.15, linewidth=0,
        )  # fmt: skip
    axis.set(xlabel="age", ylabel="alive")
    axis.legend()
    return figure


def draw_seasons(source: Source) -> Figure | None:
    """Months of acute conditions."""
    if "seasonality" not in source.tables:
        return None
    figure, axes = new_figure()
    axis = axes[0][0]
    for cohort in (HOLDOUT, SYNTHETIC):
        rows = source.rows(
            "select event_month, sum(occurrences) from evaluation.seasonality "
            "where cohort = ? group by 1 order by 1",
            cohort,
        )
        total = float(sum(row[1] for row in rows))
        if not total:
            return None
        axis.plot(
            [row[0] for row in rows], [float(row[1]) / total for row in rows], "o-",
            color=COLORS[cohort], label=cohort,
        )  # fmt: skip
    rows = """(
        select *
        from evaluation_private.temporal_acute_days
        inner join evaluation_private.temporal_persons using (cohort, person_number)
    )"""
    shade(axis, source.bands.of(rows, "event_month", shares).get("all"))
    axis.set(xlabel="month", ylabel="share of acute conditions", ylim=(0, None))
    axis.legend()
    return figure


def draw_membership(source: Source) -> Figure | None:
    """Attack on membership: found against false alarms, both logarithmic."""
    if not source.curve("membership_roc", SYNTHETIC):
        return None
    figure, axes = new_figure(2, height=3.8)
    left, right = axes[0]
    for cohort in (SYNTHETIC, *source.anchors()):
        rows = source.curve("membership_roc", cohort)
        left.plot(
            [max(row["false_positive_rate"], 1e-4) for row in rows],
            [max(row["true_positive_rate"], 1e-4) for row in rows],
            color=COLORS.get(cohort), label=cohort,
            linewidth=2 if cohort == SYNTHETIC else 1,
        )  # fmt: skip
    left.plot([1e-4, 1], [1e-4, 1], color="#888888", linewidth=1, linestyle=":")
    left.set(
        xscale="log", yscale="log", xlabel="false alarms", ylabel="members found",
        title="who was in the training?",
    )  # fmt: skip
    left.legend(fontsize=8)
    rows = source.curve("nearest_distances", SYNTHETIC)
    for side, color in (("train", COLORS["copy"]), ("holdout", COLORS[HOLDOUT])):
        right.plot(
            [row[side] for row in rows], [row["share"] for row in rows], color=color,
            label=f"to {side}",
        )  # fmt: skip
    right.set(
        title="distance to the nearest real person", xlabel="squared distance",
        ylabel="share of synthetic persons",
    )  # fmt: skip
    right.legend(fontsize=8)
    return figure


def draw_copies(source: Source) -> Figure | None:
    """Draw runs of words that stand in real histories, by their length."""
    rows = source.curve("ngram_copies", SYNTHETIC)
    if not rows:
        return None
    figure, axes = new_figure()
    axis = axes[0][0]
    for side, color in (("train", COLORS["copy"]), ("holdout", COLORS[HOLDOUT])):
        axis.plot(
            [row["length"] for row in rows], [row[f"share_{side}"] for row in rows],
            "o-", color=color, label=f"in the {side}",
        )  # fmt: skip
    others = source.curve("ngram_copies", IDEAL)
    axis.plot(
        [row["length"] for row in others], [row["share_train"] for row in others],
        "o--", color=COLORS[IDEAL], markersize=3,
        label="of other real persons, in the training",
    )  # fmt: skip
    axis.set(
        xlabel="words in a row", ylabel="share of synthetic runs", yscale="symlog",
        xticks=[row["length"] for row in rows],
    )  # fmt: skip
    axis.set_yscale("symlog", linthresh=1e-4)
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def draw_canaries(source: Source) -> Figure | None:
    """Draw how far canaries stand out among decoys, by how often they were seen."""
    rows = source.curve("canary_exposures", SYNTHETIC)
    if not rows:
        return None
    figure, axes = new_figure()
    axis = axes[0][0]
    times = sorted({row["multiplicity"] for row in rows})
    found = [[r["exposure"] for r in rows if r["multiplicity"] == n] for n in times]
    for place, values in enumerate(found):
        axis.plot(
            [place] * len(values), values, "o", color=COLORS[SYNTHETIC], alpha=0.4
        )
    axis.plot(
        range(len(times)), [np.mean(values) for values in found],
        color=COLORS[SYNTHETIC], label="mean",
    )  # fmt: skip
    # the mean of log2 of one over a uniform share
    axis.axhline(np.log2(np.e), color="#888888", linestyle=":", label="mean by chance")
    axis.axhline(rows[0]["most"], color=COLORS["copy"], label="likelier than any decoy")
    axis.set_xticks(range(len(times)), times)
    axis.set(
        xlabel="times that an epoch showed them",
        ylabel="exposure, bits",
        ylim=(0, None),
    )
    axis.legend(fontsize=8)
    return figure


def draw_relations(source: Source) -> Figure | None:
    """Draw effects of exposures, orders, and what visits tell of later ones."""
    if not any(
        source.curve(name, SYNTHETIC)
        for name in ("effects", "pair_order", "lagged_information")
    ):
        return None
    figure, axes = new_figure(3, height=3.4)
    shown = (
        ("effects", "log_odds_ratio", "log odds ratios, adjusted for age and sex"),
        ("pair_order", "share", "persons who have the first one first"),
    )
    for axis, (curve, key, title) in zip(axes[0], shown):
        for cohort, label in ((IDEAL, "other real persons"), (SYNTHETIC, "synthetic")):
            points = [
                (row[f"{key}_holdout"], row[key])
                for row in source.curve(curve, cohort)
                if math.isfinite(row[key]) and math.isfinite(row[f"{key}_holdout"])
            ]
            if points:
                across, up = zip(*points)
                axis.scatter(
                    across, up, s=10, alpha=0.7, color=COLORS[cohort], label=label
                )
                ends = min(across), max(across)
                axis.plot(ends, ends, color="#888888", linewidth=1)
        axis.set_xlabel("real persons (holdout)")
        axis.set_title(title, fontsize=9)
    lags = axes[0][2]
    for cohort in (SYNTHETIC, *source.anchors()):
        rows = source.curve("lagged_information", cohort)
        if cohort == SYNTHETIC:
            lags.plot(
                [row["lag"] for row in rows],
                [row["information_holdout"] for row in rows], "o-", markersize=4,
                color=COLORS[HOLDOUT], label=HOLDOUT, linewidth=2,
            )  # fmt: skip
        lags.plot(
            [row["lag"] for row in rows], [row["information"] for row in rows], "o-",
            markersize=3, color=COLORS.get(cohort), label=cohort, linewidth=1,
        )  # fmt: skip
    lags.set(xscale="log", xlabel="visits later")
    lags.set_title("conditions tell drugs and procedures, nats", fontsize=9)
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    return figure


def draw_quality(source: Source) -> Figure | None:
    """Draw checks of OHDSI whose rate of violations is not the source's."""
    rows = source.curve("quality_differences", SYNTHETIC)[:20]
    if not rows:
        return None
    figure, axes = new_figure(height=0.8 + 0.24 * len(rows))
    axis = axes[0][0]
    places = np.arange(len(rows))
    for shift, key, label, color in (
        (-0.2, "source_rate", "source", HOLDOUT), (0.2, "rate", "synthetic", SYNTHETIC),
    ):  # fmt: skip
        rates = [100 * row[key] for row in rows]
        axis.barh(places + shift, rates, 0.4, label=label, color=COLORS[color])
    axis.set_yticks(places, [row["check"][:70] for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="rows that violate the check, %")
    axis.legend(fontsize=8)
    return figure


# what is drawn, in which section, and how to read it
PICTURES: tuple[tuple[str, str, Draw, str], ...] = (
    (
        "Who they are",
        "Age at first visit",
        draw_pyramid,
        "Grey bars are real persons of the holdout, the line is synthetic. Green, here "
        "and below: where other real persons lie, by chance alone.",
    ),
    (
        "Who they are",
        "Prevalence",
        draw_prevalence,
        "One point per concept. In the grey band a difference is what chance makes; "
        "the fifteen farthest are named.",
    ),
    (
        "Who they are",
        "Pairs",
        draw_pairs,
        "Concepts that the same person has at some time. Green points are as far from "
        "the line as chance puts real persons.",
    ),
    (
        "Visits and values",
        "How much",
        draw_histograms,
        "The two lines should lie on each other, or the blue one in the green band.",
    ),
    (
        "Visits and values",
        "Measured values",
        draw_values,
        "Quantiles of real (across) against synthetic values (up) of the commonest "
        "measurements; points should lie in the band.",
    ),
    (
        "Time",
        "Days between visits",
        draw_gaps,
        "Both peak where people agree on a week, a fortnight, a month, a quarter or a "
        "year.",
    ),
    (
        "Time",
        "What comes next",
        draw_transitions,
        "Each row is a type of visit, each column the next one, the end or death.",
    ),
    (
        "Time",
        "What comes back",
        draw_repeats,
        "Chronic disease shows in concepts that return; broken histories forget them.",
    ),
    (
        "Time",
        "First diagnoses by age",
        draw_incidence,
        "Per 1,000 person-years, dark real, blue synthetic.",
    ),
    (
        "Time",
        "What goes with what, and before it",
        draw_relations,
        "Exposures and later outcomes, pairs of concepts with a strong order, and how "
        "much conditions say of what is done some visits later.",
    ),
    ("Time", "Survival", draw_survival, "Kaplan and Meier, with 95 % bands."),
    (
        "Time",
        "Season",
        draw_seasons,
        "The acute conditions of the training that keep to a season most.",
    ),
    (
        "Quality",
        "OHDSI's checks that differ from the source",
        draw_quality,
        "Those furthest apart, both ways: fewer violations than in the source are not "
        "true to it, either. Which fields are filled is left out.",
    ),
    (
        "Told apart",
        "Discriminator",
        draw_discriminator,
        "A classifier that cannot tell synthetic from real persons runs along the "
        "diagonal. On the right, what gives the synthetic ones away.",
    ),
    (
        "Use",
        "Learnt from synthetic, tested on real persons",
        draw_utility,
        "Each point should lie at the right end of its bar; the green mark is what "
        "other real persons teach.",
    ),
    (
        "Use",
        "Calibration",
        draw_calibration,
        "Foretold risk across, what came up, in tenths; the line is right.",
    ),
    (
        "Use",
        "Foretold by the model itself",
        draw_zero_shot,
        "AUROC on real persons, by the number of times that the model went on with "
        "each; the lines are what is learnt from the real training.",
    ),
    (
        "Use",
        "Calibration of the model itself",
        draw_zero_shot_calibration,
        "Share of roll-outs in which it came across, what came up; the line is right.",
    ),
    (
        "Use",
        "When it comes",
        draw_zero_shot_incidence,
        "Real persons of a task with the outcome by each day, and as many as the model "
        "foretold of them: both lines should be one.",
    ),
    (
        "Privacy",
        "Membership and distances",
        draw_membership,
        "Left: an attack no better than chance follows the dotted line; the copy shows "
        "what a leak looks like. Right, for the eye alone: both lines should be one.",
    ),
    (
        "Privacy",
        "Copied runs",
        draw_copies,
        "What the training has more often than the holdout was learnt by heart.",
    ),
    (
        "Privacy",
        "Canaries",
        draw_canaries,
        "Made-up patients that were put into the training, one point each: how much "
        "likelier the model finds them than others like them.",
    ),
)
