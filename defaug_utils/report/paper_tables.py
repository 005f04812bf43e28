"""The papers' own tables, rebuilt from the runs: their rows and columns, ours beside theirs."""

import pandas as pd

from defaug_utils.report.reports import compare_with_papers

FURTHER_ARMS = ("diag", "adabldm")  # stand beside In&Out in the tables that are its own


def list_tables(published: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Source, number and scenario of every table of In&Out and DIAG, in the papers' order.

    Args:
        published: as `results.published_results` returns it.
    """
    tables = published[published["source"].isin(["In&Out", "DIAG"])].sort_values(["source", "table"])
    ordered = tables.sort_values("source", key=lambda names: names != "In&Out", kind="stable")
    unique = ordered[["source", "table", "scenario"]].drop_duplicates()
    return [(row.source, int(row.table), row.scenario) for row in unique.itertuples()]


def rebuild_table(
    summary: pd.DataFrame, published: pd.DataFrame, source: str, table: int, ours: str
) -> pd.DataFrame:
    """One table of a paper with ours beside it: the same rows and columns, each under its own heading.

    The tables in which In&Out prints its own arm carry the arms of `FURTHER_ARMS` too. Where our N_aug is
    another than the paper's, the rows stand apart, and the missing side is a dash.

    Args:
        summary: as `results.summarise_results` returns it.
        published: as `results.published_results` returns it.
        source: "In&Out" or "DIAG".
        table: its number in the paper.
        ours: what ours was measured on and with, such as "procedural surfaces, resnet50".

    Returns:
        As `reports.compare_with_papers`.

    Raises:
        ValueError: the paper has no such table among its stored numbers.
    """
    printed = published[(published["source"] == source) & (published["table"] == table)]
    if printed.empty:
        raise ValueError(f"no numbers of {source}, table {table}: known are {list_tables(published)}")
    arms = set(printed["arm"]) | (set(FURTHER_ARMS) if "in_and_out" in set(printed["arm"]) else set())
    return compare_with_papers(summary[summary["arm"].isin(arms)], printed, printed["scenario"].iloc[0], ours)
