"""Finished runs collected in one tidy table, and summarised over seeds."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.origins import (
    MIXING,
    SCENARIOS,
    find_judge,
    generates_images,
    list_arms,
    parse_mixture,
    parse_run_name,
)
from defaug_utils.evaluation.detector import METRICS_FILE
from defaug_utils.protocol.mixing import find_run_leaks, join_leaks

METRICS = (
    *("ap", "ap_trapezoid", "auroc"),
    *("paper_precision", "paper_recall", "paper_f1"),
    *("validation_precision", "validation_recall", "validation_f1"),
)
PIXEL_NUMBERS = {"pixel AUROC": "pixel_auroc", "PRO": "pro", "AP": "pixel_ap", "IAP": "iap", "IAP90": "iap90"}
VALIDATION_METRICS = tuple(name for name in METRICS if name.startswith("validation_"))
BOUNDS = ("ap_low", "ap_high")
COUNTS = ("n_test", "n_test_positive")
GROUP = ["scenario", "arm", "n_aug"]
SETUP = (  # must be equal for all compared runs, if their metrics contain it
    *("backbone", "weights", "recipe", "epochs", "input_width", "input_height"),
    *("max_false_positive_rate", *COUNTS),
)
OTHER_DETECTORS = {  # with published numbers; sorted after all arms
    "mixsegdec_weak": "MixSegDec, weakly supervised",
    "dsr_unsupervised": "DSR, unsupervised",
    "supersimplenet_with_masks": "SuperSimpleNet, with masks",
}


class ResultsError(ValueError):
    """Metrics of finished runs are broken or can't be compared."""


def label_arm(arm: str) -> str:
    """The label of an arm or another detector; a profile's own arm is shown by its key.

    A mixture is shown by its parts: "cut and paste + MemSeg", or "75 % cut and paste + 25 % DIAG".
    """
    if MIXING in arm:
        shares = parse_mixture(arm)
        is_even = len(set(shares.values())) == 1
        parts = [
            ("" if is_even else f"{100 * part:.3g} % ") + label_arm(name) for name, part in shares.items()
        ]
        return " + ".join(parts)
    labels = {word: row.label for word, row in list_arms().items()} | OTHER_DETECTORS
    return labels.get(arm) or arm.replace("_", " ").strip()


def gather_results(run_folder: Path | str) -> pd.DataFrame:
    """Read the metrics of every finished classifier run (`classifier/<run name>/metrics.json`).

    Returns:
        One row per run, in the order of `sort_results`, with every number, text or truth value of its
        metrics. Metrics at a validation threshold are NaN if the run had no validation part. `leak` is
        computed from the training set if the metrics lack it.

    Raises:
        FileNotFoundError: no run has finished.
        ResultsError: lists every broken file, or every setting in which the runs differ.
    """
    folder = Path(run_folder) / "classifier"
    advice = "delete a broken file and run notebook 07_classifier again"
    rows = _read_all(folder.glob("*/metrics.json"), _read_run, f"metrics of finished runs ({advice})")
    if not rows:
        raise FileNotFoundError(f"no finished run in {folder}: run notebook 07_classifier first")
    table = sort_results(pd.DataFrame(rows))
    advice = "use a separate run_dir for each set-up"
    raise_problems(f"runs in {folder} can't be compared ({advice})", _list_mixed(table), ResultsError)
    return table


def read_pixel_runs(folder: Path | str, leaks: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read the numbers of finished detectors of defect pixels, one row per run.

    Args:
        folder: contains a folder for each run, named by `run_name`.
        leaks: name of a run → its leak; if given, only these runs are read, and the table has the column
            leak.

    Raises:
        FileNotFoundError: there are no runs.
        ResultsError: lists every folder whose name or numbers can't be read.
    """

    def read(path: Path) -> dict:
        leak = {"leak": leaks[path.parent.name]} if leaks else {}
        return parse_run_name(path.parent.name)._asdict() | _read_object(path) | leak

    found = Path(folder).glob(f"*/{METRICS_FILE}")
    paths = [path for path in found if not leaks or path.parent.name in leaks]
    rows = _read_all(paths, read, f"pixel-level runs in {folder}")
    if not rows:
        raise FileNotFoundError(f"{folder} contains no run with {METRICS_FILE}: train and measure one first")
    return sort_results(pd.DataFrame(rows))


def _read_all(paths: Iterable[Path], read: Callable[[Path], dict], what: str) -> list[dict]:
    """One row per file, or one error that lists all unreadable files."""
    rows, problems = [], []
    for path in sorted(paths):
        try:
            rows.append(read(path))
        except (ValueError, OSError) as error:
            problems.append(f"{path}: {error}")
    raise_problems(what, problems, ResultsError)
    return rows


def _read_object(path: Path) -> dict:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object of named values, found {type(content).__name__}")
    return content


def _read_run(path: Path) -> dict:
    """One classifier's row, or a ValueError that describes the problem."""
    run = parse_run_name(path.parent.name)
    if run.scenario not in SCENARIOS:
        raise ValueError(f"scenario {run.scenario!r} is not one of {', '.join(SCENARIOS)}")
    content = _read_object(path)
    if content.get("n_val") == 0:
        content |= {name: math.nan for name in VALIDATION_METRICS if content.get(name) is None}
    for name in (*METRICS, *BOUNDS, *COUNTS):
        if name not in content:
            raise ValueError(f"{name} is missing")
        if content.get("n_val") != 0 or name not in VALIDATION_METRICS:
            _check_value(name, content[name])
    plain = {name: value for name, value in content.items() if isinstance(value, bool | int | float | str)}
    if "leak" not in plain:
        training_set = path.parents[2] / f"train-{path.parent.name}.csv"
        plain["leak"] = find_run_leaks(training_set, run.scenario)
    return plain | run._asdict()


def _check_value(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (name not in COUNTS and value > 1):
        expected = "a number of images" if name in COUNTS else "a number from 0 to 1"
        raise ValueError(f"{name} is {value!r}, expected {expected}")


def _list_mixed(table: pd.DataFrame) -> list[str]:
    """Settings in which the runs differ, with their values."""
    problems, table = [], table[table["arm"].map(find_judge) == "network"]
    table = table[table["arm"].map(generates_images) | (table["n_aug"] == 0)]  # others train for longer
    for name in table.columns.intersection(SETUP):
        counts = table[name].value_counts(dropna=False)
        if len(counts) > 1:
            found = ", ".join(f"{value!r} ({count} runs)" for value, count in counts.items())
            problems.append(f"{name} differs: {found}")
    return problems


def list_unfinished(run_folder: Path | str) -> list[str]:
    """Names of runs with a training set or a folder, but no metrics yet."""
    run_folder = Path(run_folder)
    planned = {path.stem.removeprefix("train-") for path in run_folder.glob("train-*.csv")}
    started = {path.name for path in (run_folder / "classifier").glob("*") if path.is_dir()}
    finished = {path.parent.name for path in run_folder.glob("classifier/*/metrics.json")}
    return sorted((planned | started) - finished)


def sort_results(table: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by scenario, arm (a profile's own arms last), N_aug and seed, the first columns."""
    arms = list_arms()
    known = [*arms, *sorted(set(table["arm"]) - {*arms, *OTHER_DETECTORS}), *OTHER_DETECTORS]
    order = {"scenario": SCENARIOS.index, "arm": known.index}
    first = [name for name in (*GROUP, "seed") if name in table.columns]
    ordered = table.sort_values(first, key=lambda c: c.map(order[c.name]) if c.name in order else c)
    further = [name for name in table.columns if name not in first]
    return ordered[[*first, *further]].reset_index(drop=True)


def summarise_results(runs: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Mean and standard deviation (n − 1 in the denominator) of some metrics over seeds.

    Returns:
        One row for each scenario, arm and N_aug: n (number of runs), each metric's mean under its own name
        and `<metric>_std` (NaN for a single run), and `leak` if the runs have it.
    """
    groups = runs.groupby(GROUP, sort=False)
    columns = {"n": groups.size()}
    for name in metrics:
        columns |= {name: groups[name].mean(), f"{name}_std": groups[name].std()}
    return _finish(pd.DataFrame(columns), runs)


def _finish(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Sort a table by scenario, arm and N_aug, and add the leaks of its runs, if known."""
    table = table.reset_index()
    if "leak" in runs:
        leaks = runs.groupby(GROUP, sort=False)["leak"].agg(join_leaks).reset_index()
        table = table.merge(leaks, on=GROUP, how="left")
    return sort_results(table)


def paired_differences(runs: pd.DataFrame, baseline: str, metric: str = "ap") -> pd.DataFrame:
    """The gain of every arm over a baseline arm, for runs with the same seed.

    Args:
        runs: from `gather_results` or `read_pixel_runs`.
        baseline: "none" (compared with every N_aug) or another arm (compared at the same N_aug).
        metric: column to compare.

    Returns:
        One row for each scenario, arm and N_aug with seeds in common with the baseline: n (pairs), difference
        (mean of arm − baseline), difference_std (NaN for one pair), n_higher and n_lower (pairs in which the
        arm is above or below), leak if the runs have it, and baseline.
    """
    keys = ["scenario", "seed"] if baseline == "none" else ["scenario", "seed", "n_aug"]
    reference = runs.loc[runs["arm"] == baseline, [*keys, metric]].rename(columns={metric: "reference"})
    pairs = runs[~runs["arm"].isin([baseline, "none"])].merge(reference, on=keys)
    difference = pairs[metric] - pairs["reference"]
    pairs = pairs.assign(difference=difference, n_higher=difference > 0, n_lower=difference < 0)
    groups = pairs.dropna(subset="difference").groupby(GROUP, sort=False)
    table = groups["difference"].agg(n="size", difference="mean", difference_std="std")
    table = table.join(groups[["n_higher", "n_lower"]].sum())
    return _finish(table, runs).assign(baseline=baseline)


def compare_spreads(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare the spread of AP over seeds (ap_std) with the bootstrap's uncertainty from the test images.

    The latter is half_width, averaged over the runs' intervals. Rows are as in `summarise_results`.
    """
    groups = runs.assign(half_width=(runs["ap_high"] - runs["ap_low"]) / 2).groupby(GROUP, sort=False)
    table = groups.agg(n=("ap", "size"), ap_std=("ap", "std"), half_width=("half_width", "mean"))
    return _finish(table, runs)


def measure_optimism(runs: pd.DataFrame) -> pd.Series:
    """Gain of F1 if its threshold is chosen on the test set, for runs with a validation part."""
    return (runs["paper_f1"] - runs["validation_f1"]).dropna()
