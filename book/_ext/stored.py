"""Directives that insert tables, sentences and figures of stored results when a page is built."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.directives.patches import Figure
from sphinx.util.docutils import SphinxDirective

from defaug_utils.book.stored_results import PIXELS, PROVENANCE, QUALITY, RUNS, TIMES, read_stored
from defaug_utils.core.origins import SCENARIOS
from defaug_utils.core.texts import escape_markdown
from defaug_utils.protocol.mixing import LEAK_MARK, LEAK_NOTE
from defaug_utils.report import decision, papers, results, sentences, verdicts
from defaug_utils.report.tables import PAPER_PROTOCOL, layout_quality, layout_results, name_layer

Tables = dict[str, pd.DataFrame]


def write_part(folder: Path | str, part: str) -> str:
    """One part (of `PARTS`) of the page of results that `store_results` wrote, as Markdown.

    Raises:
        ValueError: there is no such part.
        FileNotFoundError: there are no stored results.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is not one of {', '.join(PARTS)}")
    return PARTS[part](*read_stored(folder))


def to_markdown(table: pd.DataFrame, caption: str) -> str:
    """A table in Markdown, under its Markdown caption; cells and headers are text, the index comes first."""
    shown = table if isinstance(table.index, pd.RangeIndex) else table.reset_index()
    heads = [" · ".join(filter(None, name if isinstance(name, tuple) else (name,))) for name in shown]
    shown = shown.map(escape_markdown).set_axis(map(escape_markdown, heads), axis=1)
    shown = shown.replace(" ± ", " ±\u00a0", regex=True)  # a narrow cell is broken before the sign
    text = shown.to_markdown(index=False, disable_numparse=True)
    return f"**{caption}**{f' {LEAK_NOTE}' if LEAK_MARK in text else ''}\n\n{text}"


def _write_overview(tables: Tables, provenance: dict) -> str:
    runs = tables[RUNS]
    unfinished = sentences.describe_unfinished([], papers.list_missing_arms(runs))
    chance = sentences.describe_chance(runs) if "at_chance" in runs else ""
    return f"{sentences.describe_runs(runs)} {chance}\n\n{unfinished}"


def _write_findings(tables: Tables, provenance: dict) -> str:
    return sentences.describe_findings(tables[RUNS], tables.get(PIXELS))


def _write_means(summary: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """One table per scenario."""
    return "\n\n".join(
        to_markdown(layout_results(rows, columns), f"{escape_markdown(scenario)}: mean ± std over n seeds.")
        for scenario, rows in summary.groupby("scenario", sort=False)
    )


def _write_scenarios(tables: Tables, provenance: dict) -> str:
    columns = PAPER_PROTOCOL | {
        "precision (validation)": "validation_precision",
        "recall (validation)": "validation_recall",
    }
    return _write_means(results.summarise_results(tables[RUNS]), columns)


def _write_claims(tables: Tables, provenance: dict) -> str:
    return sentences.describe_claims(papers.judge_claims(tables[RUNS]))


def _write_papers(tables: Tables, provenance: dict) -> str:
    summary, published = results.summarise_results(tables[RUNS]), papers.published_results()
    return "\n\n".join(
        to_markdown(
            papers.rebuild_table(summary, published, source, number, "this run"),
            f"{source}, table {number}, {scenario}: compare shapes, not numbers.",
        )
        for source, number, scenario in papers.list_tables(published)
    )


def _write_pixels(tables: Tables, provenance: dict) -> str:
    if PIXELS not in tables:
        return "This run has no pixel-level detectors."
    numbers = results.PIXEL_NUMBERS
    return _write_means(results.summarise_results(tables[PIXELS], list(numbers.values())), numbers)


def _write_quality(tables: Tables, provenance: dict) -> str:
    if QUALITY not in tables:
        return "This run has no measured pools."
    quality = tables[QUALITY]
    caption = "Pools against the real training positives (chapter 8 explains the columns)"
    parts = [
        to_markdown(layout_quality(rows), f"{caption}: {name_layer(rows)}.")
        for _, rows in quality.groupby("layer", sort=False)
    ]
    return "\n\n".join([*parts, sentences.describe_quality(quality)])


def _quote_code(text: str) -> str:
    """Text as inline code in Markdown, with quotes longer than any in it."""
    quotes = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{quotes} {' '.join(text.split())} {quotes}"


def _write_provenance(tables: Tables, provenance: dict) -> str:
    versions = escape_markdown(", ".join(f"{what} {value}" for what, value in provenance["versions"].items()))
    started, finished = (datetime.fromisoformat(provenance[name]) for name in ("started", "finished"))
    hours = (finished - started).total_seconds() / 3600
    return (
        f"- **Command**: {_quote_code(provenance['command'])}\n"
        f"- **When**: {provenance['started']} to {provenance['finished']} (UTC), "
        f"{hours:.1f} hours\n"
        f"- **How much**: {provenance['notebooks']} notebooks, "
        f"{provenance['notebook_seconds'] / 3600:.1f} hours in total; "
        "for a notebook that resumed an interrupted execution, only the last execution counts\n"
        f"- **Machine and versions**: {versions}\n"
        f"- **Commits**: {escape_markdown(', '.join(provenance['commits']))}\n\n"
        "````{dropdown} All parameters, by notebook\n"
        f"```json\n{json.dumps(provenance['parameters'], indent=1, ensure_ascii=False)}\n```\n````"
    )


def _write_decision(tables: Tables, provenance: dict) -> str:
    told = (verdicts.describe_best(tables[RUNS]), verdicts.describe_decision(tables[RUNS]))
    return "\n".join(f"- {sentence}" for sentence in told)


def _write_verdict(tables: Tables, provenance: dict) -> str:
    return verdicts.describe_decision(tables[RUNS])


def _write_gains(tables: Tables, provenance: dict) -> str:
    """The machine, trainings that learned nothing, and a table per scenario and N_aug, few-shot first."""
    runs, times = tables[RUNS], tables.get(TIMES, pd.DataFrame())
    machine = [provenance["versions"].get(name) for name in ("device", "processor", "memory")]
    told = f"Minutes were measured on: {escape_markdown(', '.join(filter(None, machine)))}."
    told += " The times of this run's generators and pools were not stored." if times.empty else ""
    told += f" {sentences.describe_chance(runs)}" if "at_chance" in runs else ""
    groups = runs.loc[runs["n_aug"] > 0, ["scenario", "n_aug"]].drop_duplicates().itertuples(index=False)
    ordered = sorted(groups, key=lambda row: (row[0] != decision.FEW, SCENARIOS.index(row[0]), row[1]))
    few, others = [], []
    for scenario, n_aug in ordered:
        caption = (
            f"{escape_markdown(scenario)}, N_aug {n_aug}: AP as mean ± std, gains ± two standard errors."
        )
        table = to_markdown(decision.layout_decision(runs, times, scenario, n_aug), caption)
        (few if scenario == decision.FEW else others).append(table)
    folded = ["````{dropdown} The other scenarios\n" + "\n\n".join(others) + "\n````"] if others else []
    return "\n\n".join([told, *few, *folded])


def _write_limits(tables: Tables, provenance: dict) -> str:
    return verdicts.describe_limits(tables[RUNS], tables.get(TIMES, pd.DataFrame()))


PARTS: dict[str, Callable[[Tables, dict], str]] = {
    "overview": _write_overview,
    "findings": _write_findings,
    "scenarios": _write_scenarios,
    "claims": _write_claims,
    "papers": _write_papers,
    "pixels": _write_pixels,
    "quality": _write_quality,
    "provenance": _write_provenance,
    "decision": _write_decision,
    "verdict": _write_verdict,
    "gains": _write_gains,
    "limits": _write_limits,
}


class Stored(SphinxDirective):
    """Folder of stored results (relative to the page) and the part of them to show."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Write the part and parse it."""
        folder, part = self.arguments
        _, path = self.env.relfn2path(f"{folder}/{PROVENANCE}")
        self.env.note_dependency(path)
        try:
            text = write_part(path.removesuffix(PROVENANCE), part)
        except (ValueError, OSError) as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(text)


class StoredFigure(Figure, SphinxDirective):
    """A figure of stored results; nothing where a run has none, because it lacks the arms for it."""

    def run(self) -> list[nodes.Node]:
        """Show the figure if the file exists."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        return super().run() if Path(path).is_file() else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("stored", Stored)
    app.add_directive("stored-figure", StoredFigure)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
