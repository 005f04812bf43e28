"""The papers' numbers and claims: their tables rebuilt with ours next to them, and their claims judged."""

import math
from importlib.resources import files
from itertools import product
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.origins import SCENARIOS
from defaug_utils.masks.sources import is_leak
from defaug_utils.protocol.mixing import is_marked
from defaug_utils.report.results import GROUP, OTHER_DETECTORS, label_arm, sort_results
from defaug_utils.report.tables import NOTHING, PAPER_PROTOCOL, PUBLISHED, layout_results

FURTHER_ARMS = ("diag", "adabldm")  # shown next to In&Out in its own tables
RIVALS = ("memseg", "in_and_out")  # in DIAG's tables, with the numbers that In&Out printed
STANDARD_ERRORS = 2  # a mean difference larger than this many standard errors counts as different from 0
LEAST_SEEDS = 3  # two values say little about their spread
HOLDS, FAILS, OPEN = "holds", "does not hold", "is undecided"


def published_results() -> pd.DataFrame:
    """The papers' own numbers, all measured on KSDD2 (`papers.csv`), one row per result.

    Columns: scenario, arm, n_aug, source, table, ap, precision and recall with their `_std` (NaN if not
    printed), leak (according to the paper's code) and detector: "ResNet-50" or another name.
    """
    types = {"table": "Int64", "mask_source": str}
    table = pd.read_csv(files("defaug_utils.report") / "papers.csv", dtype=types)
    pairs = zip(table.pop("mask_source").fillna(""), table["scenario"], strict=True)
    table["leak"] = [source if is_leak(source, scenario) else "" for source, scenario in pairs]
    detector = [OTHER_DETECTORS.get(arm, "ResNet-50") for arm in table["arm"]]
    return sort_results(table.assign(detector=detector))


def list_missing_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of scenario and published arm (with the same kind of detector) without a finished run."""
    published = published_results()
    pairs = published.loc[published["detector"] == "ResNet-50", GROUP[:2]].drop_duplicates()
    found, wanted = (pd.MultiIndex.from_frame(table[GROUP[:2]]) for table in (runs, pairs))
    return pairs[~wanted.isin(found)].reset_index(drop=True)


def list_tables(published: pd.DataFrame) -> list[tuple[str, int, str]]:
    """Source, number and scenario of every table of In&Out and DIAG, in the papers' order."""
    columns = ["source", "table", "scenario"]
    tables = published.loc[published["source"].isin(["In&Out", "DIAG"]), columns].drop_duplicates()
    ordered = tables.sort_values(columns[:2], ascending=[False, True]).astype({"table": int})
    return list(ordered.itertuples(index=False, name=None))


def rebuild_table(
    summary: pd.DataFrame, published: pd.DataFrame, source: str, table: int, ours: str
) -> pd.DataFrame:
    """One table of a paper with our results next to it, in separate columns with their own headings.

    In&Out's tables of its own arm also include `FURTHER_ARMS`. DIAG's include every arm of ours and, as the
    paper does, what In&Out printed of `RIVALS`. If our N_aug differs from the paper's, the rows are separate,
    and the missing side is a dash.

    Args:
        summary: from `summarise_results`.
        published: from `published_results`.
        source, table: as in `list_tables`; a ValueError is raised for others.
        ours: what our results were measured on and with, from `name_setup`.
    """
    printed = published[(published["source"] == source) & (published["table"] == table)]
    if printed.empty:
        raise ValueError(f"there is no table {table} of {source}: known are {list_tables(published)}")
    scenario, arms, whose = (
        printed["scenario"].iloc[0],
        set(printed["arm"]),
        f"{source}, table {table}, KSDD2",
    )
    own, others = (rows[rows["scenario"] == scenario] for rows in (summary, published))
    if source == "DIAG":
        rivals = others[(others["source"] == "In&Out") & others["arm"].isin(RIVALS)]
        printed, whose = pd.concat([printed, rivals]), f"{whose}; rivals as In&Out printed them"
    else:
        own = own[own["arm"].isin(arms | set(FURTHER_ARMS if "in_and_out" in arms else ()))]
    theirs = layout_results(printed, PUBLISHED, mark_cells=True)
    measured = layout_results(own, PAPER_PROTOCOL, mark_cells=True).astype(object)
    parts = {f"ours: {ours}": measured, f"published: {whose}": theirs}
    ordered = sort_results(pd.concat([own, printed])[GROUP]).drop_duplicates()
    rows = [(label_arm(row.arm), row.n_aug) for row in ordered.itertuples()]
    return pd.concat(parts, axis=1).reindex(rows).fillna(NOTHING)


class Claim(NamedTuple):
    """A claim of a paper: an arm is better than others in a metric."""

    text: str
    metric: str  #: column of the runs
    printed: str  #: column of the papers' numbers
    arm: str  #: the one claimed to be higher
    others: tuple[str, ...]  #: the ones it is compared with
    scenarios: tuple[str, ...]  #: where it is claimed


IN_AND_OUT_CLAIMS = (  # Capogrosso et al. 2024, on KSDD2
    Claim("DDPM has the higher recall", "paper_recall", "recall", "ddpm", ("memseg",), SCENARIOS),
    Claim("MemSeg has the higher precision", "paper_precision", "precision", "memseg", ("ddpm",), SCENARIOS),
    Claim("In&Out has the best AP", "ap", "ap", "in_and_out", ("memseg", "ddpm"), SCENARIOS[:1]),
)


def judge_claims(runs: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim of In&Out by the differences within seeds, see `sentences.RULE`.

    Returns:
        One row for each claim, scenario and compared arm (`other`): n (seeds that both arms have), difference
        (mean over seeds), difference_std (NaN below two seeds), n_agree (seeds in which the arm is higher),
        verdict, and printed: the difference of the paper's own means, NaN if it prints none.
    """
    counted = runs[~runs["leak"].map(is_marked)] if "leak" in runs else runs
    published = published_results().query("source == 'In&Out'")
    rows = []
    for claim in IN_AND_OUT_CLAIMS:
        for scenario, other in product(claim.scenarios, claim.others):
            pair = {"arm": claim.arm, "other": other}
            own, printed = (table[table["scenario"] == scenario] for table in (counted, published))
            verdict = judge_differences(
                subtract_arms(own, **pair, keys=["seed", "n_aug"], metric=claim.metric)
            )
            theirs = subtract_arms(printed, **pair, keys=["n_aug"], metric=claim.printed).mean()
            named = {"claim": claim.text, "scenario": scenario} | pair | {"metric": claim.metric}
            rows.append(named | verdict | {"printed": theirs})
    return pd.DataFrame(rows)


def subtract_arms(rows: pd.DataFrame, arm: str, other: str, keys: list[str], metric: str) -> pd.Series:
    """One arm minus the other, for keys that both have, averaged for each value of the first key."""
    values = rows.pivot_table(index=keys, columns="arm", values=metric)
    if not {arm, other} <= set(values):
        return pd.Series(dtype=float)
    return (values[arm] - values[other]).dropna().groupby(keys[0]).mean()


def judge_differences(differences: pd.Series) -> dict:
    """Number, mean, spread and verdict of differences, one per seed, by `sentences.RULE`."""
    n, mean, deviation = len(differences), differences.mean(), differences.std()
    is_told = n >= LEAST_SEEDS and abs(mean) > STANDARD_ERRORS * deviation / math.sqrt(n)
    verdict = (HOLDS if mean > 0 else FAILS) if is_told else OPEN
    numbers = {"n": n, "difference": mean, "difference_std": deviation}
    return numbers | {"n_agree": int((differences > 0).sum()), "verdict": verdict}
