"""Tables of pixel-level results: one row a run, and mean ± standard deviation over seeds."""

import json
from pathlib import Path

import pandas as pd

from defaug_utils.manifest import raise_problems
from defaug_utils.runs import MixingError, parse_run_name
from defaug_utils.segmentation import METRICS_FILE

PIXEL_NUMBERS = ("pixel_auroc", "pro", "pixel_ap", "iap", "iap90")
RUN_COLUMNS = ["scenario", "arm", "n_aug", "seed"]


def read_pixel_runs(folder: Path | str) -> pd.DataFrame:
    """Numbers of every finished run.

    Args:
        folder: holds a folder for each run, called by `run_name`, with its `pixel_metrics.json`.

    Returns:
        The columns scenario, arm, n_aug and seed, and the numbers of `measure_pixels`; sorted.

    Raises:
        ValueError: there is no run, or lists every folder whose name or numbers can't be read.
    """
    rows, problems = [], []
    for path in sorted(Path(folder).glob(f"*/{METRICS_FILE}")):
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))
            rows.append({**parse_run_name(path.parent.name)._asdict(), **numbers})
        except (MixingError, json.JSONDecodeError) as error:
            problems.append(f"{path}: {error}")
    raise_problems(f"pixel-level runs in {folder}", problems, ValueError)
    if not rows:
        raise ValueError(f"{folder} holds no run with {METRICS_FILE}: train detectors and measure them first")
    return pd.DataFrame(rows).sort_values(RUN_COLUMNS, ignore_index=True)


def summarise_pixel_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, one row a scenario, arm and number of generated images.

    Args:
        runs: of `read_pixel_runs`.

    Returns:
        scenario, arm, n_aug, seeds (their number), and for every number of `PIXEL_NUMBERS` the columns
        `<number>_mean` and `<number>_std` (n - 1; missing for one seed).
    """
    groups = runs.groupby(RUN_COLUMNS[:3])
    columns = {"seeds": ("seed", "size")}
    for number in PIXEL_NUMBERS:
        columns |= {f"{number}_mean": (number, "mean"), f"{number}_std": (number, "std")}
    return groups.agg(**columns).reset_index()


def format_pixel_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary for reading: percent, `mean ± std`; a single seed has no ±."""
    table = summary[[*RUN_COLUMNS[:3], "seeds"]].copy()
    for number in PIXEL_NUMBERS:
        pairs = zip(summary[f"{number}_mean"], summary[f"{number}_std"], strict=True)
        table[number] = [
            f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if pd.notna(spread) else "")
            for mean, spread in pairs
        ]
    return table
