"""Is it worth generating? Gains over what needs no generator, what they cost, and what a run decides."""

from typing import NamedTuple

import pandas as pd

from defaug_utils.core.origins import (
    EQUAL,
    MIXING,
    arm_shares,
    generates_images,
    list_arms,
    pool_scenarios,
    uses_diffusion,
)
from defaug_utils.protocol.mixing import is_marked
from defaug_utils.report.papers import (
    FAILS,
    HOLDS,
    LEAST_SEEDS,
    STANDARD_ERRORS,
    judge_differences,
    subtract_arms,
)
from defaug_utils.report.results import GROUP, label_arm, sort_results, summarise_results
from defaug_utils.report.tables import NOTHING, format_difference, format_spread

CUT_PASTE = "cut_paste"
FEW = "few-shot"  # the scenario of the question: a handful of real defects is known
COST_IMAGES = 40  # images that a pool's minutes are given for
YES, NO, NOT_SHOWN = "yes", "no", "not shown"
UNDECIDED, MISSING = "undecided", "missing"
SHORT_SECONDS = 3  # shorter times are shown as less than 0.1 minutes


def repeat_over_n_aug(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs without a leak; those of arms without N_aug are repeated for every N_aug of their scenario."""
    counted = runs[~runs["leak"].map(is_marked)] if "leak" in runs else runs
    numbers = counted.loc[counted["n_aug"] > 0, ["scenario", "n_aug"]].drop_duplicates()
    plain = counted[counted["n_aug"] == 0].drop(columns="n_aug").merge(numbers, on="scenario")
    return sort_results(pd.concat([plain, counted[counted["n_aug"] > 0]]))


def find_margin(deviation: pd.Series | float, n: pd.Series | int) -> pd.Series | float:
    """Two standard errors of a mean over n seeds, from their standard deviation."""
    return STANDARD_ERRORS * deviation / n**0.5


def measure_gains(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The gain in AP of every arm over a baseline arm within a seed, at the same N_aug.

    Returns:
        One row per scenario, arm and N_aug: n (seeds of both arms), gain (the mean over them) and margin (two
        standard errors, NaN for one seed). Empty without runs of the baseline.
    """
    keys = ["scenario", "n_aug", "seed"]
    values = repeat_over_n_aug(runs).pivot_table(index=keys, columns="arm", values="ap")
    if baseline not in values:
        return pd.DataFrame(columns=[*GROUP, "n", "gain", "margin"])
    gains = (
        values.drop(columns=baseline).sub(values[baseline], axis=0).melt(ignore_index=False, var_name="arm")
    )
    groups = gains.dropna().reset_index().groupby(GROUP)["value"]
    table = pd.DataFrame({"n": groups.size(), "gain": groups.mean()})
    return sort_results(table.assign(margin=find_margin(groups.std(), table["n"])).reset_index())


class Decision(NamedTuple):
    """What a run says about diffusion models in one scenario."""

    diffusion: str  #: arm with the highest mean AP of those that use a diffusion model; "" without any
    alternative: str  #: arm with the highest mean AP of all others; "" without any
    comparisons: pd.DataFrame  #: arm − other: other, n, difference, difference_std and verdict, see `decide`
    verdict: str  #: YES, NO (worse than one), NOT_SHOWN (not better than all), UNDECIDED or MISSING


def decide(runs: pd.DataFrame, scenario: str = FEW) -> Decision:
    """Whether the best arm with a diffusion model beats cut and paste, equal training, and no generator.

    It is compared with the arms cut_paste and none_equal, and with the best one of the others that generate
    nothing, apart from "none". The mean AP of an arm is taken over all its N_aug, and differences are judged
    by `sentences.RULE`. An arm without a run is "" or, in a comparison, MISSING. A profile's own arms are not
    counted, because their origins are not known here.
    """
    rows = repeat_over_n_aug(runs)
    rows = rows[
        (rows["scenario"] == scenario) & rows["arm"].map(lambda arm: MIXING in arm or arm in list_arms())
    ]
    means = rows.groupby(["arm", "n_aug"])["ap"].mean().groupby("arm").mean()
    arms = {flag: [arm for arm in means.index if uses_diffusion(arm) == flag] for flag in (True, False)}
    diffusion, alternative = (means[arms[flag]].idxmax() if arms[flag] else "" for flag in (True, False))
    without = [arm for arm in means.index if not generates_images(arm) and arm not in ("none", EQUAL)]
    others = [CUT_PASTE, EQUAL, means[without].idxmax() if without else ""]
    compared = [_compare(rows, diffusion, other) for other in others]
    table = pd.DataFrame(compared)
    return Decision(diffusion, alternative, table, _join(table))


def _compare(rows: pd.DataFrame, arm: str, other: str) -> dict:
    differences = subtract_arms(rows, arm, other, ["seed", "n_aug"], "ap")
    judged = judge_differences(differences) | ({} if len(differences) else {"verdict": MISSING})
    return {"other": other} | judged


def _join(comparisons: pd.DataFrame) -> str:
    """One verdict of several comparisons: the diffusion arm must be better in all of them."""
    verdicts, n = comparisons["verdict"], comparisons["n"]
    is_missing = verdicts == MISSING
    is_open = ~verdicts.isin([HOLDS, FAILS, MISSING])
    if (verdicts == FAILS).any():
        return NO
    if (is_open & (n >= LEAST_SEEDS)).any():
        return NOT_SHOWN
    return UNDECIDED if is_open.any() else MISSING if is_missing.any() else YES


def measure_costs(runs: pd.DataFrame, times: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """Minutes by arm: training its generator, making 40 images, and training one classifier.

    Args:
        runs: with the column seconds, of one training and its evaluation; NaN without.
        times: pools of the same run, from `book.pool_times.measure_pool_times`; empty if unknown.

    Returns:
        Index arm; columns generator, images and classifier, means over pools or seeds. 0 where nothing is
        generated, NaN where times are not known. Origins of a mixture count by their shares.
    """
    runs = runs[runs["scenario"] == scenario]
    seconds = runs.groupby("arm")["seconds"].mean() if "seconds" in runs else pd.Series(dtype=float)
    serving = times[[scenario in pool_scenarios(name) for name in times["pool"]]] if len(times) else times
    costs = {}
    for arm in runs["arm"].unique():
        shares = arm_shares(arm) if MIXING in arm or arm in list_arms() else {"": 1.0}
        parts = [(share, _measure_origin(serving, origin)) for origin, share in shares.items()]
        costs[arm] = {
            "generator": sum(training for _, (training, _) in parts) / 60,
            "images": sum(share * making for share, (_, making) in parts) * COST_IMAGES / 60,
            "classifier": seconds.get(arm, float("nan")) / 60,
        }
    return pd.DataFrame.from_dict(costs, orient="index").rename_axis("arm")


def _measure_origin(times: pd.DataFrame, origin: str) -> tuple[float, float]:
    """Seconds of fine-tuning, and per image, averaged over the pools of an origin; NaN without any."""
    pools = times[times["origin"] == origin] if len(times) else times
    if pools.empty:
        return float("nan"), float("nan")
    return pools["training_seconds"].mean(), (pools["pool_seconds"] / pools["images"]).mean()


def layout_decision(runs: pd.DataFrame, times: pd.DataFrame, scenario: str, n_aug: int) -> pd.DataFrame:
    """AP, gains over three baselines (mean ± two standard errors) and minutes of every arm at one N_aug.

    The minutes are those of `measure_costs`: generator + 40 images + classifier.
    """
    rows = repeat_over_n_aug(runs)
    rows = rows[(rows["scenario"] == scenario) & (rows["n_aug"] == n_aug)]
    summary = summarise_results(rows, ["ap"]).set_index("arm")
    columns = {
        "AP": [format_spread(mean, spread) for mean, spread in summary[["ap", "ap_std"]].to_numpy()],
        "n": summary["n"],
    }
    heads = {
        "none": "gain, papers' training",
        EQUAL: "gain, equal training",
        CUT_PASTE: "gain over cut and paste",
    }
    for baseline, head in heads.items():
        gains = measure_gains(rows, baseline).set_index("arm").reindex(summary.index)
        columns[head] = [
            format_difference(gain, margin) for gain, margin in gains[["gain", "margin"]].to_numpy()
        ]
    costs = measure_costs(runs, times, scenario).reindex(summary.index)
    columns["minutes"] = [" + ".join(map(format_minutes, row)) for row in costs.to_numpy()]
    names = pd.Index([label_arm(arm) for arm in summary.index], name="method")
    return pd.DataFrame({head: list(values) for head, values in columns.items()}, index=names)


def format_minutes(minutes: float) -> str:
    """Write "2.3", "< 0.1", "0" for nothing, or a dash for NaN."""
    if pd.isna(minutes) or minutes == 0:
        return NOTHING if pd.isna(minutes) else "0"
    return f"{minutes:.1f}" if minutes * 60 >= SHORT_SECONDS else "< 0.1"
