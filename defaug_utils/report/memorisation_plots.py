"""A fine-tuning in pictures: its losses, and copies of real images over merge weight and epochs."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defaug_utils.core.images import read_image
from defaug_utils.report.plots import NotebookFigure, show_images
from defaug_utils.report.result_plots import ARM_COLOURS, ARM_MARKERS


def plot_finetuning(history: pd.DataFrame) -> Figure:
    """Losses of instances and regularisation images over steps, with their running means; the learning rate.

    Args:
        history: of `train_dreambooth`; a mean is over a tenth of its rows.
    """
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


def show_copies(copies: pd.DataFrame, folder: Path | str, data_folder: Path | str, count: int = 6) -> Figure:
    """The generated images nearest to a real one, each before it, and whether it counts as a copy.

    Args:
        copies: of `find_copies`.
        folder: of the generated images.
        data_folder: of the real ones.
        count: of pairs.
    """
    images, titles = [], []
    for row in copies.nsmallest(count, "distance").itertuples():
        images += [read_image(Path(folder) / row.image), read_image(Path(data_folder) / row.nearest_real)]
        titles += ["copy" if row.is_copy else "new", "real"]
    return show_images(images, titles, columns=2 * count)


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
