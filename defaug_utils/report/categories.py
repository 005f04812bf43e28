"""One table of several categories or products, with an average row and AdaBLDM's printed gains."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from defaug_utils.core.files import read_csv
from defaug_utils.core.guards import raise_problems
from defaug_utils.protocol.mixing import join_leaks
from defaug_utils.report.results import GROUP, ResultsError, paired_differences, summarise_results
from defaug_utils.report.tables import NOTHING, format_difference, label_arm, layout_results

NUMBERS = {"image AP": "image_ap", "AP": "pixel_ap", "IAP": "iap", "IAP90": "iap90"}
PIXEL_RUNS = "pixel_runs.csv"  # that notebook 09 writes
AVERAGE = "average"
GAIN = "average's gain over no augmentation"
PRINTED = "gain printed in AdaBLDM's paper"
# Over the best earlier augmentation, on MVTec AD (Li et al. 2024, abstract): not over no augmentation.
PRINTED_GAINS = {"AP": 0.015, "IAP": 0.019, "IAP90": 0.031}


def read_category_runs(folder: Path | str, names: Sequence[str]) -> pd.DataFrame:
    """The detectors' numbers of all categories, one row per run, from what notebook 09 wrote.

    Args:
        folder: of the whole run, with a subfolder for each category.
        names: of the categories.

    Raises:
        ResultsError: lists every category without results or with others than those of the table, and every
            one whose runs differ from the others'.
    """
    tables, problems = {}, []
    for name in names:
        path = Path(folder) / name / PIXEL_RUNS
        table = read_csv(path, keep_default_na=False) if path.is_file() else pd.DataFrame()
        missing = [column for column in (*GROUP, "seed", *NUMBERS.values()) if column not in table]
        if missing:
            problems.append(f"{path}: {'lacks ' + ', '.join(missing) if len(table) else 'does not exist'}")
        else:
            tables[name] = table
    if not problems:
        asked = {name: set(table[[*GROUP, "seed"]].itertuples(index=False)) for name, table in tables.items()}
        every = set().union(*asked.values())
        problems = [
            f"{name}: lacks {len(every - own)} of {len(every)} runs"
            for name, own in asked.items()
            if every - own
        ]
    raise_problems(
        f"results of {len(names)} categories (delete a category's folder to make them again)",
        problems,
        ResultsError,
    )
    return pd.concat([table.assign(category=name) for name, table in tables.items()], ignore_index=True)


def average_categories(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over all categories, one row for each scenario, arm, N_aug and seed."""
    keys = [*GROUP, "seed"]
    how = dict.fromkeys(NUMBERS.values(), "mean") | ({"leak": join_leaks} if "leak" in runs else {})
    return runs.groupby(keys, sort=False).agg(how).reset_index()


def summarise_categories(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds: of each category, then of the average of all.

    Rows are those of `summarise_results`, with the column `category` in front.
    """
    parts = dict(list(runs.groupby("category", sort=False)))
    parts[AVERAGE] = average_categories(runs)
    summaries = []
    for name, rows in parts.items():
        summary = summarise_results(rows, list(NUMBERS.values()))
        summary.insert(0, "category", name)
        summaries.append(summary)
    return pd.concat(summaries, ignore_index=True)


def layout_categories(summary: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Categories and methods in rows, then the average, its gains within seeds, and the printed gains."""
    has_several = len(summary["scenario"].unique()) > 1
    parts = {
        f"{category}, {scenario}" if has_several else category: layout_results(rows, NUMBERS)
        for (category, scenario), rows in summary.groupby(["category", "scenario"], sort=False)
    }
    table = pd.concat(parts, names=["category"]).astype(object)
    averaged, rows = average_categories(runs), {}
    for head, number in NUMBERS.items():
        for one in paired_differences(averaged, "none", number).itertuples():
            label = f"{GAIN}, {one.scenario}" if has_several else GAIN
            cells = rows.setdefault((label, label_arm(one.arm), one.n_aug), {"n": one.n})
            cells[head] = format_difference(one.difference, one.difference_std)
    rows[PRINTED, label_arm("adabldm"), NOTHING] = {
        head: f"{100 * gain:+.1f} points" for head, gain in PRINTED_GAINS.items()
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=table.index.names)
    gains = pd.DataFrame(list(rows.values()), index, dtype=object)  # n stays a whole number
    return pd.concat([table, gains])[list(table)].fillna(NOTHING)


def describe_categories(runs: pd.DataFrame, untested: Mapping[str, Sequence[str]], setup: str) -> str:
    """The caption of such a table.

    Args:
        untested: category → defect types without a test image, see `list_untested`.
        setup: the detector and its weights, and what else the table should say of how it was made.
    """
    named = [f"{name} ({', '.join(types)})" for name, types in untested.items() if types]
    left = "; ".join(named)
    text = (
        f"{runs['category'].nunique()} categories, mean ± std over n seeds, {setup}. The average is taken "
        "over categories within each seed. The last row is what AdaBLDM's paper prints: the gain over the "
        "best earlier augmentation, on all of MVTec AD, with its own detector."
    )
    if named:
        text += f" Types without a test image, which no number here counts: {left}."
    return text
