"""Numbers of the runs that mark defect pixels, gathered as those of classifiers are; pictures to show."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from defaug_utils.core.manifest import raise_problems
from defaug_utils.core.runs import MixingError, parse_run_name
from defaug_utils.evaluation.detector import METRICS_FILE
from defaug_utils.report.results import sort_results

PIXEL_NUMBERS = {"pixel AUROC": "pixel_auroc", "PRO": "pro", "AP": "pixel_ap", "IAP": "iap", "IAP90": "iap90"}


def read_pixel_runs(folder: Path | str, leaks: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Numbers of finished runs, for `summarise_results` and `paired_differences`.

    Args:
        folder: holds a folder for each run, called by `run_name`, with its `pixel_metrics.json`.
        leaks: name of a run → what it leaks (`find_leaks`): no other run is read, and the table has the
            column leak.

    Returns:
        The columns scenario, arm, n_aug and seed, and the numbers of `measure_pixels`; in the book's order.

    Raises:
        ValueError: there is no run, or lists every folder whose name or numbers can't be read.
    """
    rows, problems = [], []
    for path in sorted(Path(folder).glob(f"*/{METRICS_FILE}")):
        name = path.parent.name
        if leaks is not None and name not in leaks:
            continue
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))
            leak = {} if leaks is None else {"leak": leaks[name]}
            rows.append({**parse_run_name(name)._asdict(), **numbers, **leak})
        except (MixingError, json.JSONDecodeError) as error:
            problems.append(f"{path}: {error}")
    raise_problems(f"pixel-level runs in {folder}", problems, ValueError)
    if not rows:
        raise ValueError(f"{folder} holds no run with {METRICS_FILE}: train detectors and measure them first")
    return sort_results(pd.DataFrame(rows))


def choose_shown(test: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Test images to look at: positives by chance, every defect type in turn, and one negative.

    Args:
        test: rows of a manifest or of masked samples.
        count: how many positives; all when there are fewer.
        seed: decides the draw.

    Returns:
        The rows, with the index that they had.
    """
    shuffled = test[test["label"] == "positive"].sample(frac=1, random_state=seed)
    turns = shuffled.groupby("defect_type").cumcount().sort_values(kind="stable")
    negative = test[test["label"] == "negative"].sample(1, random_state=seed)
    return pd.concat([shuffled.loc[turns.index[:count]], negative])
