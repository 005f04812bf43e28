"""Figures for the decision whether to generate: gains of all arms, and AP over the share of an origin."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defaug_utils.core.origins import EQUAL, MIXING, ORIGINS, SCENARIOS, parse_mixture
from defaug_utils.core.texts import escape_mathtext
from defaug_utils.report.decision import FEW, measure_gains
from defaug_utils.report.papers import LEAST_SEEDS
from defaug_utils.report.pictures import NotebookFigure
from defaug_utils.report.results import label_arm

MARKERS = "osD^vP"  # of N_aug


def plot_gains(runs: pd.DataFrame) -> Figure:
    """The gain in AP over equally long training: one panel per scenario, few-shot first, one row per arm.

    Dots are means over seeds, bars two standard errors (none for one seed); colour and marker show N_aug.
    Arms are ordered by their mean gain in the first panel. Raises a ValueError if nothing can be compared.
    """
    gains = measure_gains(runs, EQUAL)
    if gains.empty:
        raise ValueError(f"no run can be compared with the arm {EQUAL} at the same seed and N_aug")
    scenarios = sorted(gains["scenario"].unique(), key=lambda name: (name != FEW, SCENARIOS.index(name)))
    means = gains.pivot_table(index="scenario", columns="arm", values="gain").reindex(scenarios)
    arms = list(means.bfill().iloc[0].sort_values().index)
    size = (3.2 + 2.7 * len(scenarios), 1.4 + 0.36 * len(arms))
    figure = NotebookFigure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(scenarios), squeeze=False, sharey=True, sharex=True)[0]
    numbers = sorted(gains["n_aug"].unique())
    colours = sns.color_palette("colorblind", len(numbers))
    for axes, scenario in zip(grid, scenarios, strict=True):
        for place, number in enumerate(numbers):
            chosen = gains[(gains["scenario"] == scenario) & (gains["n_aug"] == number)]
            shift = 0.22 * (place - (len(numbers) - 1) / 2)
            style = {"fmt": MARKERS[place % len(MARKERS)], "color": colours[place], "capsize": 3}
            rows = np.array([arms.index(arm) for arm in chosen["arm"]]) - shift
            axes.errorbar(
                chosen["gain"], rows, xerr=chosen["margin"], label=rf"$N_{{aug}}$ = {number}", **style
            )
        axes.axvline(0, color="#555555", linestyle="--", linewidth=1)
        seeds = gains.loc[gains["scenario"] == scenario, "n"]
        several = "" if seeds.min() == seeds.max() else f"{seeds.min()} to "
        few = ", too few to decide" if seeds.max() < LEAST_SEEDS else ""
        axes.set_title(f"{escape_mathtext(scenario)} (n = {several}{seeds.max()}{few})", fontsize="medium")
        axes.grid(axis="y", alpha=0.3)
    grid[0].set_yticks(range(len(arms)), [escape_mathtext(label_arm(arm)) for arm in arms])
    figure.supxlabel(f"AP minus that of {escape_mathtext(label_arm(EQUAL))}", fontsize="medium")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False)
    return figure


def tabulate_shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of mixtures of two origins, and of these alone in the same scenarios, by the share of the first.

    Returns:
        One row per run and pair of origins: first, other (origins, in the registry's order), share (of the
        first, in [0, 1]), scenario, n_aug, seed and ap. Empty without mixtures of two.
    """
    shares = {arm: parse_mixture(arm) for arm in runs["arm"].unique() if MIXING in arm}
    pairs = {tuple(sorted(parts, key=list(ORIGINS).index)) for parts in shares.values() if len(parts) == 2}
    tables = []
    for first, other in sorted(pairs):
        share_of = {first: 1.0, other: 0.0}
        share_of |= {arm: parts[first] for arm, parts in shares.items() if set(parts) == {first, other}}
        where = set(runs.loc[runs["arm"].isin(set(share_of) - {first, other}), "scenario"])
        chosen = runs[runs["arm"].isin(share_of) & runs["scenario"].isin(where)]
        tables.append(chosen.assign(first=first, other=other, share=chosen["arm"].map(share_of)))
    columns = ["first", "other", "share", "scenario", "n_aug", "seed", "ap"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def plot_shares(shares: pd.DataFrame) -> Figure:
    """AP over the share of one of two origins, from `tabulate_shares`: a row per pair, a column per scenario.

    Small dots are runs, large markers their mean, bars one standard deviation; colour and marker show N_aug.
    Raises a ValueError for an empty table.
    """
    if shares.empty:
        raise ValueError("no run mixes two origins: name such an arm in the profile, for example diag+memseg")
    pairs = list(dict.fromkeys(zip(shares["first"], shares["other"], strict=True)))
    scenarios = [name for name in SCENARIOS if name in set(shares["scenario"])]
    size = (1 + 2.6 * max(2, len(scenarios)), 0.8 + 2.4 * len(pairs))
    figure = NotebookFigure(figsize=size, layout="constrained")
    grid = figure.subplots(len(pairs), len(scenarios), squeeze=False, sharey=True)
    numbers = sorted(shares["n_aug"].unique())
    for row, (first, other) in enumerate(pairs):
        for column, scenario in enumerate(scenarios):
            axes = grid[row, column]
            is_shown = (
                (shares["first"] == first) & (shares["other"] == other) & (shares["scenario"] == scenario)
            )
            _draw_shares(axes, shares[is_shown], numbers)
            axes.set_xlabel(escape_mathtext(f"share of {label_arm(first)},\nthe rest {label_arm(other)}"))
            axes.set_ylabel("AP" if column == 0 else "")
            axes.set_title(escape_mathtext(scenario) if row == 0 else "")
    drawn = [axes.get_legend_handles_labels() for axes in grid.flat]
    handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, frameon=False)
    return figure


def _draw_shares(axes: Axes, shares: pd.DataFrame, numbers: list[int]) -> None:
    colours = sns.color_palette("colorblind", len(numbers))
    for place, number in enumerate(numbers):
        chosen = shares[shares["n_aug"] == number]
        axes.scatter(chosen["share"], chosen["ap"], s=15, color=colours[place], alpha=0.5, linewidths=0)
        groups = chosen.groupby("share")["ap"]
        style = {"fmt": f"-{MARKERS[place % len(MARKERS)]}", "color": colours[place], "capsize": 4}
        if len(chosen):
            values = groups.mean()
            axes.errorbar(values.index, values, groups.std(), label=rf"$N_{{aug}}$ = {number}", **style)
    axes.set_xlim(-0.06, 1.06)
