"""Curves: results over N_aug with all runs visible, precision over recall, losses, errors and copies."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import average_precision_score, precision_recall_curve

from defaug_utils.core.origins import list_arms, takes_images
from defaug_utils.core.texts import escape_mathtext
from defaug_utils.evaluation.metrics import NO_VALIDATION
from defaug_utils.protocol.mixing import is_marked, mark_label
from defaug_utils.report.pictures import NotebookFigure
from defaug_utils.report.results import PIXEL_NUMBERS, VALIDATION_METRICS, label_arm

FURTHER_STYLES = (("#AA8800", "P"), ("#5B3A00", "*"), ("#777777", "D"), ("#44AA99", ">"))  # of further arms
METRIC_LABELS = {number: title for title, number in PIXEL_NUMBERS.items()} | {
    "pixel_ap": "pixel AP",
    "ap": "AP",
    "ap_trapezoid": "AP (trapezoid)",
    "auroc": "AUROC",
    "paper_precision": "precision\n(papers)",
    "paper_recall": "recall\n(papers)",
    "validation_precision": "precision\n(validation)",
    "validation_recall": "recall\n(validation)",
}


def style_arms(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every arm, in drawing order; built-in arms always have the same."""
    styles = {word: (arm.colour, arm.marker) for word, arm in list_arms().items()}
    further = sorted(set(arms) - set(styles))
    styles |= dict(zip(further, cycle(FURTHER_STYLES), strict=False))
    return {arm: style for arm, style in styles.items() if arm in set(arms)}


def _check_columns(table: pd.DataFrame, wanted: Iterable[str], what: str) -> None:
    missing = [name for name in wanted if name not in table.columns]
    if missing or table.empty:
        raise ValueError(f"{len(table)} {what}, columns missing: {', '.join(missing) or 'none'}")


def plot_augmentation_curves(
    runs: pd.DataFrame, metrics: Sequence[str] = ("ap", "paper_precision", "paper_recall")
) -> Figure:
    """Metrics over N_aug: one row of panels per metric, one column per scenario, one colour per arm.

    Small dots are runs (from `gather_results` or `read_pixel_runs`), large markers their mean, bars one
    standard deviation (none for a single run); a dashed line shows the mean without augmentation. An arm with
    a leak in any scenario is marked; a panel without values at a validation threshold says that there is no
    validation part. Raises a ValueError for missing runs or columns.
    """
    _check_columns(runs, ("scenario", "arm", "n_aug", *metrics), "runs")
    scenarios = list(dict.fromkeys(runs["scenario"]))
    labels = _label_arms(runs)
    size = (1 + 2.3 * max(2, len(scenarios)), 1 + 2.1 * len(metrics))
    figure = NotebookFigure(figsize=size, layout="constrained")
    grid = figure.subplots(len(metrics), len(scenarios), squeeze=False, sharey="row", sharex="col")
    for column, scenario in enumerate(scenarios):
        chosen = runs[runs["scenario"] == scenario]
        for row, metric in enumerate(metrics):
            _draw_arms(grid[row, column], chosen, metric, labels)
            if metric in VALIDATION_METRICS and chosen[metric].isna().all():
                axes = grid[row, column]
                axes.text(0.5, 0.5, NO_VALIDATION, ha="center", va="center", transform=axes.transAxes)
            grid[row, column].set_ylabel(METRIC_LABELS.get(metric, metric) if column == 0 else "")
        grid[0, column].set_title(escape_mathtext(scenario))
    for first_of_row in grid[:, 0]:
        _widen_limits(first_of_row)
    figure.supxlabel("generated positives $N_{aug}$", fontsize="medium")
    drawn = [axes.get_legend_handles_labels() for axes in grid.flat]
    handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    names = list(labels.values())
    figure.legend([handles[name] for name in names], names, loc="outside upper left", ncols=3, frameon=False)
    return figure


def _label_arms(runs: pd.DataFrame) -> dict[str, str]:
    """The label of every arm, marked if one of its runs has a leak."""
    pairs = zip(runs["arm"], runs.get("leak", [""] * len(runs)), strict=True)
    leaks = {arm: leak for arm, leak in pairs if is_marked(leak)}
    return {
        arm: mark_label(escape_mathtext(label_arm(arm)), leaks.get(arm)) for arm in style_arms(runs["arm"])
    }


def _draw_arms(axes: Axes, runs: pd.DataFrame, metric: str, labels: dict[str, str]) -> None:
    """One panel, with arms side by side at each N_aug, so that no bar hides another."""
    ticks, styles = sorted(runs["n_aug"].unique()), style_arms(labels)
    arms = [arm for arm in labels if arm in set(runs["arm"])]
    generating = [arm for arm in arms if arm != "none"]
    step = min(0.16, 0.7 / max(1, len(generating)))
    shift = {arm: step * (place - (len(generating) - 1) / 2) for place, arm in enumerate(generating)}
    for arm in arms:
        chosen = runs[runs["arm"] == arm]
        (colour, marker), offset = styles[arm], shift.get(arm, 0.0)
        places = np.array([ticks.index(count) for count in chosen["n_aug"]]) + offset
        axes.scatter(places + step / 3, chosen[metric], s=20, color=colour, alpha=0.6, linewidths=0)
        groups = chosen.groupby("n_aug")[metric]
        mean, spread = groups.mean(), groups.std()
        if not takes_images(arm):
            axes.axhline(mean.iloc[0], color=colour, linestyle="--", linewidth=1)
        line = {"fmt": f"-{marker}", "color": colour, "capsize": 4, "label": labels[arm]}
        axes.errorbar([ticks.index(count) + offset for count in mean.index], mean, spread, **line)
    axes.set_xticks(range(len(ticks)), [str(count) for count in ticks])
    axes.set_xlim(-0.6, len(ticks) - 0.4)


def _widen_limits(axes: Axes) -> None:
    """Limit the axis to [0, 1], with a range of at least 0.3, so that no small difference looks large."""
    low, high = np.clip(axes.get_ylim(), -0.02, 1.02)
    half = max(0.15, (high - low) / 2)
    low = np.clip((low + high) / 2 - half, -0.02, 1.02 - 2 * half)
    axes.set_ylim(low, low + 2 * half)


def plot_finetuning(history: pd.DataFrame) -> Figure:
    """Losses of `train_dreambooth` over steps, with running means over a tenth of them; learning rate."""
    figure = NotebookFigure(figsize=(9, 3.2), layout="constrained")
    losses, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    for place, name in enumerate(("instance", "class")):
        values = history.set_index("step")[f"loss_{name}"].astype(float).dropna()
        if len(values):
            smooth = values.rolling(max(1, len(history) // 10), min_periods=1).mean()
            losses.plot(values, color=f"C{place}", alpha=0.25)
            losses.plot(smooth, color=f"C{place}", label=name)
    losses.set(xlabel="step", ylabel="loss", ylim=(0, None))
    losses.legend()
    rates.plot(history.set_index("step")["learning_rate"])
    rates.set(xlabel="step", ylabel="learning rate")
    return figure


def plot_loss(history: pd.DataFrame) -> Figure:
    """The loss at the steps of a training's history; a ValueError for no steps or missing columns."""
    _check_columns(history, ("step", "loss"), "steps")
    figure = NotebookFigure(figsize=(7, 3), layout="constrained")
    axes = sns.lineplot(history, x="step", y="loss", marker="o", ax=figure.subplots())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step", ylabel="mean squared error")
    return figure


def plot_adaptation(losses: Sequence[Sequence[float]], errors: pd.DataFrame) -> Figure:
    """Losses of adapted decoders over steps, one line per image; each image's errors before and after.

    Raises a ValueError for no images or missing columns.

    Args:
        losses: of each image's adaptation, before its first step and after each.
        errors: from `tabulate_errors`, grey levels.
    """
    _check_columns(errors, ("image", "place", "before", "after"), "errors")
    figure = NotebookFigure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = pd.DataFrame({number: pd.Series(values) for number, values in enumerate(losses)})
    sns.lineplot(curves, ax=left, legend=False, dashes=False)
    left.set(xlabel="step", ylabel="loss")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    long = errors.melt(["image", "place"], ["before", "after"], var_name="when", value_name="error")
    each = {"units": "image", "estimator": None, "style": "place", "markers": True}
    sns.lineplot(long, x="when", y="error", hue="place", ax=right, **each)
    right.set(xlabel="", ylabel="mean error, grey levels", xlim=(-0.3, 1.3))
    sns.move_legend(right, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title="", frameon=False)
    return figure


def plot_memorisation(copies: pd.DataFrame) -> Figure:
    """Distance to the nearest real image, and share of copies, over epochs; one colour per merge weight.

    Small dots are images, large markers their median; images on or below the dashed threshold are copies.
    Raises a ValueError for missing images or columns, or more merge weights than colours.

    Args:
        copies: concatenated tables of `find_copies`, with the columns share (merge weight α) and epoch.
    """
    _check_columns(copies, ("share", "epoch", "distance", "threshold", "is_copy"), "images")
    shares, epochs = sorted(copies["share"].unique()), sorted(copies["epoch"].unique())
    styles = list(style_arms(list_arms()).values())
    if len(shares) > len(styles):
        raise ValueError(f"{len(shares)} merge weights, but there are only {len(styles)} colours")
    figure = NotebookFigure(figsize=(9, 3.6), layout="constrained")
    distances, counts = figure.subplots(1, 2, sharex=True)
    for place, (share, (colour, marker)) in enumerate(zip(shares, styles, strict=False)):
        chosen = copies[copies["share"] == share]
        offset = (place - (len(shares) - 1) / 2) * 0.7 / len(styles)  # so that dots don't hide others
        dots = np.array([epochs.index(epoch) for epoch in chosen["epoch"]]) + offset
        distances.scatter(dots, chosen["distance"], s=12, color=colour, alpha=0.5, linewidths=0)
        groups = chosen.groupby("epoch")
        line = {"color": colour, "marker": marker, "label": rf"$\alpha$ = {share:g}"}
        for axes, values in ((distances, groups["distance"].median()), (counts, groups["is_copy"].mean())):
            axes.plot([epochs.index(epoch) + offset for epoch in values.index], values, **line)
    for threshold in copies["threshold"].unique():
        distances.axhline(threshold, color="#555555", linestyle="--", linewidth=1)
    distances.set(ylim=(0, None), ylabel="distance to the nearest real image")
    counts.set(ylim=(-0.02, 1.02), ylabel="share of copies")
    for axes in (distances, counts):
        axes.set_xticks(range(len(epochs)), [f"{epoch:g}" for epoch in epochs])
        axes.set(xlim=(-0.6, len(epochs) - 0.4), xlabel="epochs of fine-tuning")
    handles = counts.get_lines()
    figure.legend(handles=handles, loc="outside upper left", ncols=len(shares), frameon=False)
    return figure


def plot_precision_recall(
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]], thresholds: Mapping[str, float] | None = None
) -> Figure:
    """Precision over recall, as steps (AP is the area under them), one curve per run.

    A dotted line shows the precision of guessing, the share of positives. Raises a ValueError for missing
    curves, or labels without positives.

    Args:
        scores: curve's name → labels (true for positive) and scores, of the same length.
        thresholds: curve's name → threshold to mark on it (score ≥ threshold); optional.
    """
    if not scores:
        raise ValueError("there are no scores to draw: give at least one run")
    figure = NotebookFigure(figsize=(7, 5.2 + 0.25 * len(scores)), layout="constrained")
    axes = figure.subplots()
    colours = sns.color_palette("colorblind", len(scores))
    for number, (name, (labels, values)) in enumerate(scores.items()):
        labels, values = np.asarray(labels).astype(bool), np.asarray(values, dtype=float)
        if not labels.any():
            raise ValueError(f"{name}: none of {len(labels)} labels is positive, so recall is undefined")
        precision, recall, _ = precision_recall_curve(labels, values)
        title = f"{escape_mathtext(name)} (AP {average_precision_score(labels, values):.3f})"
        style = {"color": colours[number], "linestyle": ("-", "--", "-.")[number % 3]}
        axes.plot(recall, precision, drawstyle="steps-post", linewidth=2, label=title, **style)
        axes.axhline(labels.mean(), color="grey", linestyle=":", linewidth=1)
        if thresholds and name in thresholds:
            called = values >= thresholds[name]
            point = (called[labels].mean(), labels[called].mean() if called.any() else 1.0)
            axes.plot(*point, "o", color=colours[number], markeredgecolor="black", markersize=9)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
    figure.legend(loc="outside lower left", frameon=False)
    return figure
