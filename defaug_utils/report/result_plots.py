"""Results over N_aug in the papers' form, with every run visible; colours and names of the arms."""

from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defaug_utils.core.origins import list_arms
from defaug_utils.protocol.mixing import is_marked, mark_label
from defaug_utils.report.plots import NotebookFigure

ARM_COLOURS = tuple(arm.colour for arm in list_arms().values())
ARM_MARKERS = tuple(arm.marker for arm in list_arms().values())
FURTHER_COLOURS = ("#AA8800", "#5B3A00", "#777777", "#44AA99")  # for a profile's own arms
FURTHER_MARKERS = "P*D>"
METRIC_LABELS = {
    "ap": "AP",
    "ap_trapezoid": "AP (trapezoid)",
    "auroc": "AUROC",
    "paper_precision": "precision\n(paper protocol)",
    "paper_recall": "recall\n(paper protocol)",
    "validation_precision": "precision\n(validation threshold)",
    "validation_recall": "recall\n(validation threshold)",
    "pixel_auroc": "pixel AUROC",
    "pro": "PRO",
    "pixel_ap": "pixel AP",
    "iap": "IAP",
    "iap90": "IAP90",
}


def plot_augmentation_curves(
    runs: pd.DataFrame, metrics: Sequence[str] = ("ap", "paper_precision", "paper_recall")
) -> Figure:
    """Metrics over N_aug: one row of panels a metric, one column a scenario, one colour an arm.

    Args:
        runs: one row a finished run, with the columns scenario, arm, n_aug, seed and the metrics; an arm
            for which the column leak, if there is one, tells of a leak in any scenario is marked.
        metrics: columns to draw.

    Returns:
        The figure: small dots are runs, large markers their mean, bars one standard deviation
        (none for a single run); a dashed line carries the mean without augmentation across.

    Raises:
        ValueError: no runs, or a column is missing.
    """
    missing = [name for name in ("scenario", "arm", "n_aug", *metrics) if name not in runs.columns]
    if missing or runs.empty:
        raise ValueError(f"{len(runs)} runs, columns missing: {', '.join(missing) or 'none'}")
    scenarios, styles = list(dict.fromkeys(runs["scenario"])), style_arms(runs["arm"])
    labels = _label_arms(runs, styles)
    size = (1 + 2.3 * max(2, len(scenarios)), 1 + 2.1 * len(metrics))
    figure = NotebookFigure(figsize=size, layout="constrained")
    grid = figure.subplots(len(metrics), len(scenarios), squeeze=False, sharey="row", sharex="col")
    for column, scenario in enumerate(scenarios):
        chosen = runs[runs["scenario"] == scenario]
        for row, metric in enumerate(metrics):
            _draw_arms(grid[row, column], chosen, metric, styles, labels)
            grid[row, column].set_ylabel(METRIC_LABELS.get(metric, metric) if column == 0 else "")
        grid[0, column].set_title(scenario)
    for first_of_row in grid[:, 0]:
        _widen_limits(first_of_row)
    figure.supxlabel("generated positives $N_{aug}$", fontsize="medium")
    drawn = [axes.get_legend_handles_labels() for axes in grid.flat]
    handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    names = list(labels.values())
    figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=3, frameon=False)
    return figure


def _label_arms(runs: pd.DataFrame, arms: Iterable[str]) -> dict[str, str]:
    """Every arm's name in words, with the mark of a leak where one of its runs has one."""
    marked = runs[runs["leak"].map(is_marked)] if "leak" in runs else runs[:0]
    leaks = {row.arm: row.leak for row in marked.itertuples()}
    return {arm: mark_label(label_arm(arm), leaks.get(arm)) for arm in arms}


def _widen_limits(axes: Axes) -> None:
    """Keep to [0, 1], and at least 0.3 apart so that no small difference looks large."""
    low, high = np.clip(axes.get_ylim(), -0.02, 1.02)
    half = max(0.15, (high - low) / 2)
    low = np.clip((low + high) / 2 - half, -0.02, 1.02 - 2 * half)
    axes.set_ylim(low, low + 2 * half)


def label_arm(arm: str) -> str:
    """An arm's name in words; an arm of a profile's own keeps its word."""
    built_in = list_arms().get(arm)
    return built_in.label if built_in else arm.replace("_", " ").strip()


def style_arms(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every arm, in the order of drawing; the papers' arms always have the same."""
    styles = {word: (built_in.colour, built_in.marker) for word, built_in in list_arms().items()}
    further = sorted(set(arms) - set(styles))
    styles |= dict(zip(further, cycle(zip(FURTHER_COLOURS, FURTHER_MARKERS, strict=True)), strict=False))
    return {arm: style for arm, style in styles.items() if arm in set(arms)}


def _draw_arms(
    axes: Axes, runs: pd.DataFrame, metric: str, styles: dict[str, tuple[str, str]], labels: dict[str, str]
) -> None:
    """One panel: the arms stand beside one another at each N_aug, so that no bar hides another."""
    ticks = sorted(runs["n_aug"].unique())
    arms = [arm for arm in styles if arm in set(runs["arm"])]
    generating = [arm for arm in arms if arm != "none"]
    step = min(0.16, 0.7 / max(1, len(generating)))
    shift = {arm: step * (place - (len(generating) - 1) / 2) for place, arm in enumerate(generating)}
    for arm in arms:
        chosen = runs[runs["arm"] == arm]
        (colour, marker), offset = styles[arm], shift.get(arm, 0.0)
        places = np.array([ticks.index(count) for count in chosen["n_aug"]]) + offset
        axes.scatter(places + step / 3, chosen[metric], s=20, color=colour, alpha=0.6, linewidths=0)
        groups = chosen.groupby("n_aug")[metric]
        mean, spread = groups.mean(), groups.std(ddof=1)
        if arm == "none":
            axes.axhline(mean.iloc[0], color=colour, linestyle="--", linewidth=1)
        line = {"fmt": f"-{marker}", "color": colour, "capsize": 4, "label": labels[arm]}
        axes.errorbar([ticks.index(count) + offset for count in mean.index], mean, spread, **line)
    axes.set_xticks(range(len(ticks)), [str(count) for count in ticks])
    axes.set_xlim(-0.6, len(ticks) - 0.4)
