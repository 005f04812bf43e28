"""Draw the training log of the embedded model for the book, from the files of the training runs.

    python scripts/embedded/draw_log.py --root runs/embedded --folder book/embedded_model

Reads every part's history.csv and sample images; writes losses.png, samples.jpg, reconstructions.jpg
and log.csv, and copies measure.py's measurements.json.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from defaug_utils.core.files import write_atomically, write_csv, write_json

ORDER = ("autoencoder", "text", "inpainting", "text2image", "decoder", "backbone", "segmenter")
SMOOTHED = 15  # rows of the history for the running mean
SHOWN = 4  # grids of samples
SHARE = 0.05  # of a history, at each end, for the mean losses in the table


def read_histories(root: Path) -> dict[str, pd.DataFrame]:
    """The history of every part, in the order of training; repeated steps count once.

    Args:
        root: folder of the training runs.

    Returns:
        Part → one row every few steps, with `step`, `minutes` since the part's first step, and losses.
    """
    found = {path.parent.name: path for path in root.glob("*/history.csv")}
    if not found:
        raise FileNotFoundError(f"no history.csv below {root}: train first, see make_model.py")
    names = [name for name in ORDER if name in found] + sorted(found.keys() - set(ORDER))
    return {name: read_history(found[name]) for name in names}


def read_history(path: Path) -> pd.DataFrame:
    """One part's history; its clock restarts whenever the run was resumed."""
    history = pd.read_csv(path)
    passed = history["seconds"].diff()
    history["minutes"] = passed.where(passed >= 0, history["seconds"]).cumsum() / 60
    return history.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def summarize(histories: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per part: steps, minutes, and the mean loss of the first and the last steps."""
    rows = []
    for name, history in histories.items():
        count = max(1, int(SHARE * len(history)))
        first, last = (part["loss"].mean() for part in (history.head(count), history.tail(count)))
        rows.append((name, history["step"].iloc[-1], round(history["minutes"].iloc[-1]), first, last))
    table = pd.DataFrame(rows, columns=["part", "steps", "minutes", "loss at first", "loss at last"])
    return table.round(4)


def draw_losses(histories: dict[str, pd.DataFrame]) -> Figure:
    """A panel for each part, over a logarithmic axis of steps."""
    rows = -(-len(histories) // 3)
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes, (name, history) in zip(panels, histories.items(), strict=False):
        axes.plot(history["step"], history["loss"], color="0.75", linewidth=0.8)
        smooth = history["loss"].rolling(SMOOTHED, center=True, min_periods=1).mean()
        axes.plot(history["step"], smooth, color="#0072b2")
        axes.set(title=name, xscale="log", xlabel="step", ylabel="loss")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in panels[len(histories) :]:
        axes.set_axis_off()
    return figure


def choose_samples(folder: Path, count: int = SHOWN) -> list[Path]:
    """Some of a part's grids, evenly spaced, including the first and the last."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no sample images in {folder}")
    return [paths[i] for i in sorted(set(np.linspace(0, len(paths) - 1, count).round().astype(int)))]


def draw_samples(paths: list[Path]) -> Figure:
    """Sample grids below each other, each with its step."""
    grids = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    heights = [10 * grid.shape[0] / grid.shape[1] + 0.3 for grid in grids]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    for axes, path, grid in zip(figure.subplots(len(grids), squeeze=False)[:, 0], paths, grids, strict=True):
        axes.imshow(grid)
        axes.set_axis_off()
        axes.set_title(f"step {int(path.stem)}", fontsize=9, loc="left")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix; the same log gives the same file."""
    options = {"metadata": {"Software": None}} if path.suffix == ".png" else {"pil_kwargs": {"quality": 88}}
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--folder", type=Path, default=Path("book/embedded_model"))
    arguments = parser.parse_args()
    matplotlib.use("agg")
    histories = read_histories(arguments.root)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_figure(draw_losses(histories), arguments.folder / "losses.png")
    save_figure(
        draw_samples(choose_samples(arguments.root / "inpainting" / "samples")),
        arguments.folder / "samples.jpg",
    )
    part = "decoder" if (arguments.root / "decoder" / "samples").is_dir() else "autoencoder"
    save_figure(
        draw_samples(choose_samples(arguments.root / part / "samples")[-1:]),
        arguments.folder / "reconstructions.jpg",
    )
    write_csv(summarize(histories), arguments.folder / "log.csv")
    measurements = arguments.root / "measured" / "measurements.json"
    if measurements.is_file():
        write_json(arguments.folder / measurements.name, json.loads(measurements.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
