"""Copies of real images over merge weight and epochs of a fine-tuning."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defaug_utils.report.plots import NotebookFigure
from defaug_utils.report.result_plots import ARM_COLOURS, ARM_MARKERS


def plot_memorisation(copies: pd.DataFrame) -> Figure:
    """Distance to the nearest real image, and share of copies, over epochs; one colour a merge weight.

    Args:
        copies: tables of `memorisation.find_copies` put together, with the columns share (merge weight α) and
            epoch.

    Returns:
        The figure. Left: small dots are images, large markers their median; on and below the dashed line of
        the threshold images are copies. Right: share of copies among the images of a setting.

    Raises:
        ValueError: no images, more merge weights than colours, or a column is missing.
    """
    wanted = ("share", "epoch", "distance", "threshold", "is_copy")
    missing = [name for name in wanted if name not in copies.columns]
    if missing or copies.empty:
        raise ValueError(f"{len(copies)} images, columns missing: {', '.join(missing) or 'none'}")
    shares = sorted(copies["share"].unique())
    if len(shares) > len(ARM_COLOURS):
        raise ValueError(f"{len(shares)} merge weights, at most {len(ARM_COLOURS)} are told apart by colour")
    figure = NotebookFigure(figsize=(9, 3.6), layout="constrained")
    distances, counts = figure.subplots(1, 2, sharex=True)
    for place, share in enumerate(shares):
        _draw_share(distances, counts, copies, share, place - (len(shares) - 1) / 2, ARM_COLOURS[place])
    for threshold in copies["threshold"].unique():
        distances.axhline(threshold, color="#555555", linestyle="--", linewidth=1)
    _finish(distances, counts, sorted(copies["epoch"].unique()))
    figure.legend(
        *counts.get_legend_handles_labels(), loc="outside upper left", ncols=len(shares), frameon=False
    )
    return figure


def _draw_share(
    distances: Axes, counts: Axes, copies: pd.DataFrame, share: float, shift: float, colour: str
) -> None:
    """One merge weight; beside the others at each epoch, so that no dots hide others."""
    epochs = sorted(copies["epoch"].unique())
    chosen = copies[copies["share"] == share]
    marker = ARM_MARKERS[ARM_COLOURS.index(colour)]
    offset = shift * 0.7 / len(ARM_COLOURS)
    dots = np.array([epochs.index(epoch) for epoch in chosen["epoch"]]) + offset
    distances.scatter(dots, chosen["distance"], s=12, color=colour, alpha=0.5, linewidths=0)
    groups = chosen.groupby("epoch")
    line = {"color": colour, "marker": marker, "label": rf"$\alpha$ = {share:g}"}
    medians, copied = groups["distance"].median(), groups["is_copy"].mean()
    places = [epochs.index(epoch) + offset for epoch in medians.index]
    distances.plot(places, medians, **line)
    counts.plot(places, copied, **line)


def _finish(distances: Axes, counts: Axes, epochs: list) -> None:
    distances.set_ylim(bottom=0)
    distances.set_ylabel("distance to the nearest real image")
    counts.set_ylim(-0.02, 1.02)
    counts.set_ylabel("share of copies")
    for axes in (distances, counts):
        axes.set_xticks(range(len(epochs)), [f"{epoch:g}" for epoch in epochs])
        axes.set_xlim(-0.6, len(epochs) - 0.4)
        axes.set_xlabel("epochs of fine-tuning")
