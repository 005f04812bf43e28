"""Stored results as Markdown: tables and sentences of a page that is made when the book is built."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from defaug_utils.book.stored_results import PIXELS, QUALITY, RUNS, hours_between, read_stored
from defaug_utils.protocol.mixing import LEAK_MARK, LEAK_NOTE
from defaug_utils.report import paper_tables, reports
from defaug_utils.report.claims import describe_claims, judge_claims
from defaug_utils.report.pixel_results import PIXEL_NUMBERS
from defaug_utils.report.quality_reports import describe_quality, layout_quality
from defaug_utils.report.results import list_missing_arms, published_results, summarise_results
from defaug_utils.report.sentences import describe_runs, describe_scenarios, describe_unfinished

Tables = dict[str, pd.DataFrame]


def write_part(folder: Path | str, part: str) -> str:
    """One part of the page of stored results, as Markdown.

    Args:
        folder: as `stored_results.store_results` wrote it.
        part: a name in `PARTS`.

    Raises:
        ValueError: there is no such part.
        FileNotFoundError: nothing is stored there.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is none of {', '.join(PARTS)}")
    return PARTS[part](*read_stored(folder))


def to_markdown(table: pd.DataFrame, caption: str) -> str:
    """A table of text cells in Markdown, under its caption; the index becomes its first columns."""
    shown = table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    heads = [
        " · ".join(filter(None, map(str, name if isinstance(name, tuple) else (name,)))) for name in shown
    ]
    rows = [heads, ["---"] * len(heads), *shown.astype(str).to_numpy().tolist()]
    cells = [[cell.replace("|", "\\|").replace(" ± ", "\u00a0±\u00a0") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    note = f" {LEAK_NOTE}" if any(LEAK_MARK in line for line in lines) else ""
    return f"**{caption}**{note}\n\n" + "\n".join(lines)


def _write_overview(tables: Tables, provenance: dict) -> str:
    runs = tables[RUNS]
    return describe_runs(runs) + "\n\n" + describe_unfinished([], list_missing_arms(runs))


def _write_scenarios(tables: Tables, provenance: dict) -> str:
    """Mean ± std over seeds, a table a scenario, and which arm is highest and lowest."""
    summary = summarise_results(tables[RUNS])
    columns = reports.PAPER_PROTOCOL | {
        "precision (validation)": "validation_precision",
        "recall (validation)": "validation_recall",
    }
    parts = [
        to_markdown(reports.layout_results(rows, columns), f"{scenario}: mean ± std over n seeds.")
        for scenario, rows in summary.groupby("scenario", sort=False)
    ]
    return "\n\n".join([*parts, describe_scenarios(summary)])


def _write_claims(tables: Tables, provenance: dict) -> str:
    return describe_claims(judge_claims(tables[RUNS]))


def _write_papers(tables: Tables, provenance: dict) -> str:
    summary, published = summarise_results(tables[RUNS]), published_results()
    parts = []
    for source, number, scenario in paper_tables.list_tables(published):
        table = paper_tables.rebuild_table(summary, published, source, number, "this run")
        parts.append(
            to_markdown(table, f"{source}, table {number}, {scenario}: compare shapes, not numbers.")
        )
    return "\n\n".join(parts)


def _write_pixels(tables: Tables, provenance: dict) -> str:
    if PIXELS not in tables:
        return "This run trained no pixel-level detector."
    summary = summarise_results(tables[PIXELS], list(PIXEL_NUMBERS.values()))
    return "\n\n".join(
        to_markdown(reports.layout_results(rows, PIXEL_NUMBERS), f"{scenario}: mean ± std over n seeds.")
        for scenario, rows in summary.groupby("scenario", sort=False)
    )


def _write_quality(tables: Tables, provenance: dict) -> str:
    if QUALITY not in tables:
        return "This run measured no pool."
    quality = tables[QUALITY]
    caption = "Pools against the real training positives (chapter 8 explains the columns)."
    return to_markdown(layout_quality(quality), caption) + "\n\n" + describe_quality(quality)


def _write_provenance(tables: Tables, provenance: dict) -> str:
    """Command, dates, versions and all parameters."""
    versions = ", ".join(f"{what} {value}" for what, value in provenance["versions"].items())
    hours = provenance["notebook_seconds"] / 3600
    return (
        f"- **Command**: `{provenance['command']}`\n"
        f"- **When**: {provenance['started']} to {provenance['finished']} (UTC), "
        f"{hours_between(provenance):.1f} hours\n"
        f"- **How much**: {provenance['notebooks']} notebooks, {hours:.1f} hours if one ran after the other; "
        "of one that went on where an earlier execution had stopped, the last execution alone counts\n"
        f"- **On and with**: {versions}\n"
        f"- **Commits**: {', '.join(provenance['commits'])}\n\n"
        "````{dropdown} All parameters, by notebook\n"
        f"```json\n{json.dumps(provenance['parameters'], indent=1, ensure_ascii=False)}\n```\n````"
    )


PARTS: dict[str, Callable[[Tables, dict], str]] = {
    "overview": _write_overview,
    "scenarios": _write_scenarios,
    "claims": _write_claims,
    "papers": _write_papers,
    "pixels": _write_pixels,
    "quality": _write_quality,
    "provenance": _write_provenance,
}
