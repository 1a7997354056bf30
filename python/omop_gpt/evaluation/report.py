"""The report: one HTML file that needs no network, the verdict on top."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omop_gpt.evaluation.cohorts import HOLDOUT, IDEAL, SYNTHETIC, TRAIN
from omop_gpt.evaluation.pictures import PICTURES, Source
from omop_gpt.evaluation.scorecard import (
    FIDELITY_WORST,
    LEAST_PERSONS,
    WORST,
    doubts,
)

if TYPE_CHECKING:
    import duckdb
    from matplotlib.figure import Figure

    from omop_gpt.evaluation.results import Profile

SIGNS = {
    "passed": "✔ passed",
    "failed": "✘ failed",
    "underpowered": "– too few patients to say",
    "undefined": "– no value",
    "not_run": "– not run",
}
OUTCOMES = {
    "passed": "Passed: every gate that must hold does.",
    "failed": "Failed: at least one gate that must hold does not.",
    "undecided": "Undecided: nothing fails, but not every gate could be judged.",
}
WORST_SUBGROUPS = 6  # of each metric that are shown
STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto;
  padding: 0 1em; color: #222; background: #fff}
h1 {font-size: 1.6em; margin-bottom: 0} h2 {margin-top: 2em; font-size: 1.25em}
table {border-collapse: collapse; width: 100%; font-size: 13px}
th, td {text-align: left; padding: 3px 8px; border-bottom: 1px solid #ddd}
td.number, th.number {text-align: right; font-variant-numeric: tabular-nums}
.verdict {padding: .8em 1em; border-left: 6px solid #888; background: #f4f4f4}
.verdict.passed {border-color: #2e7d32} .verdict.failed {border-color: #c62828}
.verdict.undecided {border-color: #ef6c00}
.passed {color: #1b5e20} .failed {color: #b71c1c; font-weight: 600}
.underpowered, .undefined, .not_run {color: #8a5a00}
.verdict {color: #222; font-weight: 400}
figure {margin: 1.2em 0} figcaption {font-size: 13px; color: #444}
img {max-width: 100%} nav a {margin-right: 1em}
.wide {overflow-x: auto} .wide td, .wide th {padding: 3px 5px}
details {margin: .6em 0} code {font-size: 12px}
"""


def write_report(
    con: duckdb.DuckDBPyConnection,
    report: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    names_query: str,
    profile: Profile,
    folder: Path,
) -> None:
    """Write index.html to a folder."""
    import matplotlib as mpl

    cohorts = list(dict.fromkeys(row["cohort"] for row in report["gates"]))
    source = Source(con, curves, names_query, cohorts, profile)
    mpl.rcParams["svg.hashsalt"] = "omop-gpt"
    sections: dict[str, list[str]] = {}
    for section, title, draw, caption in PICTURES:
        figure = draw(source)
        if figure is not None:
            sections.setdefault(section, []).append(picture(figure, title, caption))
    subgroups = subgroups_table(report)
    truth = truth_table(curves.get("truth", ()), cohorts)
    parts = [
        header(report),
        "<h2 id=gates>Gates</h2>",
        gates_table(report, cohorts),
        *(
            f"<h2 id='{slug(section)}'>{escape(section)}</h2>{''.join(figures)}"
            for section, figures in sections.items()
        ),
        truth,
        subgroups,
        "<h2 id=metrics>All metrics</h2>",
        metrics_tables(report, cohorts),
        "<h2 id=protocol>Protocol</h2>",
        protocol(report),
    ]
    links = [("gates", "Gates"), *((slug(name), name) for name in sections)]
    links += [("truth", "Known truth")] if truth else []
    links += [("subgroups", "Subgroups")] if subgroups else []
    links += [("metrics", "All metrics"), ("protocol", "Protocol")]
    menu = "".join(f"<a href='#{to}'>{escape(text)}</a>" for to, text in links)
    (folder / "index.html").write_text(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>Synthetic patients, judged</title><style>{STYLE}</style>"
        f"<body>{parts[0]}<nav>{menu}</nav>{''.join(parts[1:])}</body></html>\n"
    )


def slug(text: str) -> str:
    """Return a name for a link."""
    return text.lower().replace(" ", "-")


def picture(figure: Figure, title: str, caption: str) -> str:
    """Return a figure as an element that holds its picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><strong>{escape(title)}</strong><br>"
        f"<img alt='{escape(title)}' src='data:image/svg+xml;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def header(report: Mapping[str, Any]) -> str:
    """Return the verdict, and what may be said of it."""
    verdict, run, persons = report["verdict"], report["run"], report["persons"]
    must = verdict["must"]
    lines = [
        f"<strong>{OUTCOMES[verdict['outcome']]}</strong>",
        f"Of {sum(must.values())} gates that must hold, {must['passed']} pass, "
        f"{must['failed']} fail, {must['underpowered']} ask for more patients, "
        f"{must['undefined'] + must['not_run']} were not run or have no value.",
    ]
    ideal = [
        row["status"]
        for row in report["gates"]
        if row["cohort"] == IDEAL and row["status"] not in ("not_run", "undefined")
    ]
    lines.append(
        "Real persons whom no model saw, in their place (the ideal), pass "
        f"{ideal.count('passed')} of {len(ideal)} gates; for the others there are too "
        "few of them."
    )
    if verdict["least_persons"] < LEAST_PERSONS:
        lines.append(
            f"The smallest real cohort has {verdict['least_persons']:,} persons; below "
            f"{LEAST_PERSONS:,} this report informs and does not certify."
        )
    wrong = doubts(report["anchors"])
    if wrong:
        lines.append(f"The evaluation itself is in doubt: {'; '.join(wrong)}.")
    lines.append(
        "Privacy gates say that the attacks listed here did no better on persons of "
        "the training than on persons whom no model saw. They do not say that the "
        "data is anonymous, and they say nothing of attacks that were not tried."
    )
    lines.append(
        f"The source, {escape(report['origin'])}, is itself made up: what is said of "
        "privacy here tests the tool, and is nobody's privacy."
        if report["origin"]
        else "Where the source is itself synthetic, privacy here tests the tool, and "
        "is nobody's privacy."
    )
    body = "</p><p>".join(lines)
    return (
        "<h1>Synthetic patients, judged</h1>"
        f"<p>{persons.get(SYNTHETIC, 0):,} synthetic persons beside "
        f"{persons.get(HOLDOUT, 0):,} real ones whom the model never saw; trained on "
        f"{persons.get('train', 0):,}. Model "
        f"{escape(run['model'][:16] or 'not named')}, profile {run['profile']}, "
        f"run {run['run_id']}.</p>"
        f"<div class='verdict {verdict['outcome']}'><p>{body}</p></div>"
    )


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def interval(row: Mapping[str, Any]) -> str:
    """Return a value, with its interval where it has one."""
    text = number(row["value"])
    if not math.isnan(row["ci_low"]) or not math.isnan(row["ci_high"]):
        text += f" ({number(row['ci_low'])} to {number(row['ci_high'])})"
    return text


def truth_table(rows: Sequence[Mapping[str, Any]], cohorts: Sequence[str]) -> str:
    """Return what each cohort comes to where the source's laws are known."""
    if not rows:
        return ""
    shown = [TRAIN, HOLDOUT, *cohorts]
    by_key = {(row["name"], row["cohort"]): row for row in rows}
    head = "".join(f"<th class=number>{escape(cohort)}</th>" for cohort in shown)
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = "".join(
            f"<td class=number>{number(row['value'], 3) if row else ''}"
            + (
                f"<br><small>{number(row['low'], 3)} to {number(row['high'], 3)}"
                "</small>"
                if row and cohort in (TRAIN, SYNTHETIC)
                else ""
            )
            + "</td>"
            for cohort, row in (
                (cohort, by_key.get((name, cohort))) for cohort in shown
            )
        )
        law = by_key[name, TRAIN]
        lines.append(
            f"<tr><td>{escape(name)}<br><small>{escape(law['mechanism'])}</small></td>"
            f"<td class=number>{number(law['truth'], 3)}</td>{cells}</tr>"
        )
    return (
        "<h2 id=truth>Known truth</h2><p>The source is simulated by laws with known "
        "parameters. Records know less than the laws, so the training does not come "
        "to them quite; synthetic patients should come to what the training does."
        "</p><div class=wide><table><tr><th></th><th class=number>the law</th>"
        f"{head}</tr>{''.join(lines)}</table></div>"
    )


SUBGROUPS = {
    "subgroup_prevalence_r2": ("prevalence, R²", "at_least"),
    "subgroup_apd": ("prevalence, mean difference", "at_most"),
    "subgroup_cooccurrence_kl": ("pairs, divergence", "at_most"),
    "subgroup_membership_auc": ("attack: who was in the training, AUC", "at_most"),
}


def subgroups_table(report: Mapping[str, Any]) -> str:
    """Return subgroups, the worst of each metric first, beside the ideal."""
    lines = []
    for metric, (title, direction) in SUBGROUPS.items():
        rows = [
            row
            for row in report["metrics"]
            if (row["name"], row["cohort"]) == (metric, SYNTHETIC)
            and row["stratum"] != "all"
            and not math.isnan(row["value"])
        ]
        rows.sort(key=lambda row: row["value"], reverse=direction == "at_most")
        lines += [
            f"<tr><td>{escape(title) if place == 0 else ''}</td>"
            f"<td>{escape(row['stratum'])}</td><td class=number>{interval(row)}</td>"
            f"<td class=number>{number(row['ideal'])}</td></tr>"
            for place, row in enumerate(rows[:WORST_SUBGROUPS])
        ]
    if not lines:
        return ""
    return (
        "<h2 id=subgroups>Subgroups</h2><p>The worst of each kind first: what holds "
        "for all may fail for a few. Small groups differ by chance: read each beside "
        "the ideal.</p><table><tr><th></th><th>subgroup</th><th class=number>synthetic"
        f"</th><th class=number>ideal</th></tr>{''.join(lines)}</table>"
    )


def gates_table(report: Mapping[str, Any], cohorts: Sequence[str]) -> str:
    """Return one row per gate: the bound, the synthetic patients, and each anchor."""
    anchors = [name for name in cohorts if name != SYNTHETIC]
    by_key = {(row["gate_order"], row["cohort"]): row for row in report["gates"]}
    places = {
        (row["name"], row["stratum"]): row
        for row in report["metrics"]
        if row["cohort"] == SYNTHETIC
    }
    columns = ("z", "score", *anchors)
    head = "".join(f"<th class=number>{escape(name)}</th>" for name in columns)
    lines = [
        "<div class=wide><table><tr><th>gate</th><th></th><th class=number>bound</th>"
        f"<th class=number>synthetic</th><th>status</th>{head}</tr>"
    ]
    for order in sorted({row["gate_order"] for row in report["gates"]}):
        ours = by_key[order, SYNTHETIC]
        sign = "≤" if ours["direction"] == "at_most" else "≥"
        place = places.get((ours["metric"], ours["stratum"]), {})
        error = number(place.get("ideal_sd"), 2)
        spread = {IDEAL: f"&nbsp;±&nbsp;{error}" if error != "–" else ""}
        cells = "".join(
            f"<td class='number {row['status']}'>{number(row['value'], 3)}"
            f"{spread.get(row['cohort'], '')}</td>"
            for row in (by_key[order, name] for name in anchors)
        )
        for name in ("score", "z"):
            cells = f"<td class=number>{number(place.get(name), 2)}</td>{cells}"
        of_upper = " (upper end)" if ours["bound"] == "ci_high" else ""
        lines.append(
            f"<tr><td>{escape(ours['title'])}<br><small>{ours['metric']}"
            f"{'' if ours['stratum'] == 'all' else ', ' + ours['stratum']}</small></td>"
            f"<td>{ours['level']}</td>"
            f"<td class=number>{sign} {number(ours['limit'])}{of_upper}</td>"
            f"<td class=number>{interval(ours)}</td>"
            f"<td class={ours['status']}>{SIGNS[ours['status']]}</td>{cells}</tr>"
        )
    lines.append(
        "</table></div><p>z: standard errors of the ideal that the value is away from "
        "the ideal's. Score: fidelity and utility are 1 at the ideal and 0 at the "
        "unigram; privacy is 0 at the ideal and 1 at the copy.</p>"
    )
    lines.append("<p>Anchors are red where they fail the gate: a copy of the ")
    lines.append(
        "training has to fail privacy, broken histories have to fail fidelity. Of "
        "several sets of synthetic patients the worst is shown for fidelity and "
        "utility, the first for privacy.</p>"
    )
    return "".join(lines)


def metrics_tables(report: Mapping[str, Any], cohorts: Sequence[str]) -> str:
    """Return every metric of every cohort, folded, by family."""
    parts = []
    for family in dict.fromkeys(row["family"] for row in report["metrics"]):
        rows = [row for row in report["metrics"] if row["family"] == family]
        names = list(dict.fromkeys((row["name"], row["stratum"]) for row in rows))
        values = {(row["name"], row["stratum"], row["cohort"]): row for row in rows}
        shown = [*cohorts, *sorted({row["cohort"] for row in rows} - set(cohorts))]
        head = "".join(f"<th class=number>{escape(cohort)}</th>" for cohort in shown)
        lines = [f"<table><tr><th>metric</th><th>stratum</th>{head}<th>score</th></tr>"]
        for name, stratum in names:
            cells = "".join(
                f"<td class=number>{interval(row) if row else ''}</td>"
                for row in (values.get((name, stratum, cohort)) for cohort in shown)
            )
            ours = values.get((name, stratum, SYNTHETIC))
            lines.append(
                f"<tr><td>{name}</td><td>{escape(stratum)}</td>{cells}"
                f"<td class=number>{number(ours['score']) if ours else ''}</td></tr>"
            )
        worst = WORST.get(family, FIDELITY_WORST)
        meaning = (
            f"0 is the ideal anchor, 1 is {worst}"
            if family in WORST
            else f"1 is the ideal anchor, 0 is {worst}"
        )
        parts.append(
            f"<details><summary>{family}: {len(names)} metrics (score: {meaning})"
            f"</summary><div class=wide>{''.join(lines)}</table></div></details>"
        )
    return "".join(parts)


def protocol(report: Mapping[str, Any]) -> str:
    """Return how it was done, and what was not tried."""
    run, has_several = report["run"], f"{SYNTHETIC}_2" in report["persons"]
    not_run = [
        row["metric"]
        for row in report["gates"]
        if row["cohort"] == SYNTHETIC and row["status"] == "not_run"
    ]
    facts = {
        "persons": ", ".join(f"{k} {v:,}" for k, v in report["persons"].items()),
        "profile, seed": f"{run['profile']}, {run['seed']}",
        "sampling": ", ".join(f"{k} {v}" for k, v in run["sampling"].items())
        or "unknown",
        "versions": ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
        "folders": ", ".join(f"{k} {v}" for k, v in report["folders"].items() if v),
        "not run": ", ".join(not_run) or "nothing of the gates",
        "not tried": "attacks with outside knowledge, a formal bound"
        + ("" if has_several else "; several sets of synthetic patients"),
    }
    rows = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    return f"<table>{rows}</table>"
