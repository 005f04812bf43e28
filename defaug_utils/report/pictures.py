"""Figures of images: montages with outlined masks, pools, score maps side by side.

The figures are not registered with pyplot: each is shown once, as a cell's last expression, and none stays
open.
"""

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.special import expit

from defaug_utils.core.images import read_image, read_mask

OUTLINE_COLOUR = "#FF8C00"  # visible on grey for colour-blind readers, too
GAP = 0.06  # between the images of a montage, inches
LINE_HEIGHT = 1.3  # of a title, in font sizes
TITLE_PAD = 5  # between a title and its image, points
FULL_WIDTH, LARGEST_TILE = 11.0, 2.2  # of a montage, and of an image next to its score maps, inches


class NotebookFigure(Figure):
    """A matplotlib Figure that notebooks display directly, cropped to its content."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def show_images(
    images: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    columns: int = 8,
    width: float = FULL_WIDTH,
) -> Figure:
    """Arrange images in a grid, each with its title and the exact outline of its mask.

    Raises a ValueError if there are no images, lists differ in length, or a mask doesn't have its image's
    size.

    Args:
        images: each (height, width, 3) uint8 or float in [0, 1], or (height, width): bool and uint8 with
            their full range, floats from minimum to maximum; sizes may differ.
        titles: one per image, shown literally (a $ starts no formula); long ones are broken into lines.
        masks: one per image, shape (height, width), bool, or None for no outline.
        columns: images per row; fewer images keep their size and give a narrower figure.
        width: of a full row, inches.
    """
    if len(images) == 0 or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns: at least one of each is needed")
    titles = [""] * len(images) if titles is None else titles
    masks = [None] * len(images) if masks is None else masks
    for name, values in (("titles", titles), ("masks", masks)):
        if len(values) != len(images):
            raise ValueError(f"{len(values)} {name} for {len(images)} images: give one per image")
    cell, used = width / columns, min(columns, len(images))
    font = max(10.0, 1.2 * used * cell)
    letters = max(4, int(cell * 72 / (0.62 * font)))  # that fit: a letter is about 0.62 font sizes wide
    texts = ["\n".join(_wrap(line, letters) for line in str(title).splitlines()) for title in titles]
    rows = [slice(start, start + used) for start in range(0, len(images), used)]
    ratios = [image.shape[0] / image.shape[1] for image in images]
    heights = [max(ratios[row]) * (cell - GAP) for row in rows]
    lines = [max((text.count("\n") + 1 for text in texts[row] if text), default=0) for row in rows]
    spaces = [(count * LINE_HEIGHT * font + TITLE_PAD + 1) / 72 if count else GAP for count in lines]
    size = np.array([used * cell, sum(heights) + sum(spaces)])
    figure = NotebookFigure(figsize=size)
    top = size[1]
    for row, height, space in zip(rows, heights, spaces, strict=True):
        top -= space + height
        for column, index in enumerate(range(len(images))[row]):
            inches = np.array([column * cell + GAP / 2, top, cell - GAP, height])
            axes = figure.add_axes(tuple(inches / np.tile(size, 2)), anchor="N")
            draw_image(axes, images[index], masks[index])
            style = {"fontsize": font, "pad": TITLE_PAD, "linespacing": 1.1}
            axes.set_title(texts[index], parse_math=False, **style)
    return figure


def show_pool(
    folder: Path | str, rows: pd.DataFrame, titles: str | Sequence[str] | None = None, outlined: bool = True
) -> Figure:
    """Show rows of the manifest in a folder, each image with the outline of its mask, if it has one.

    `titles` is a column of the rows, or one text per image.
    """
    texts = list(rows[titles]) if isinstance(titles, str) else titles
    masks = [read_mask(Path(folder) / mask) if outlined and mask else None for mask in rows["mask"]]
    images = [read_image(Path(folder) / image) for image in rows["image"]]
    return show_images(images, texts, masks)


def show_copies(copies: pd.DataFrame, folder: Path | str, data_folder: Path | str, count: int = 6) -> Figure:
    """Pairs of a generated image (in `folder`) and its nearest real one (in `data_folder`).

    Shows the `count` nearest pairs of the table from `find_copies`; titles say which are copies.
    """
    images, titles = [], []
    for row in copies.nsmallest(count, "distance").itertuples():
        images += [read_image(Path(folder) / row.image), read_image(Path(data_folder) / row.nearest_real)]
        titles += ["copy" if row.is_copy else "new", "real"]
    return show_images(images, titles, columns=2 * count)


def _wrap(line: str, letters: int) -> str:
    """Break a line after spaces, hyphens, underscores and slashes; inside a word only if necessary."""
    lines = [""]
    for word in re.split(r"(?<=\s)|(?<=\w[-_/])", line):
        for part in (word[start : start + letters] for start in range(0, len(word), letters)):
            if lines[-1] and len(lines[-1] + part.rstrip()) > letters:
                lines.append("")
            lines[-1] += part
    return "\n".join(text.strip() for text in lines)


def draw_image(axes: Axes, image: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Draw an image without ticks, and its mask's outline along pixel edges."""
    if mask is not None and mask.shape != image.shape[:2]:
        raise ValueError(f"mask of shape {mask.shape} on an image of shape {image.shape[:2]}")
    limits = {}
    if image.ndim == 2 and image.dtype.kind in "bu":
        limits = {"vmin": 0, "vmax": 1 if image.dtype == bool else np.iinfo(image.dtype).max}
    axes.imshow(image, cmap="gray", **limits)
    axes.set_axis_off()
    if mask is not None and mask.any():
        pixel = 72 * axes.get_position().width * axes.figure.get_figwidth() / mask.shape[1]
        lines = LineCollection(outline_mask(mask), colors=OUTLINE_COLOUR, capstyle="projecting")
        lines.set_linewidth(np.clip(0.6 * pixel, 0.7, 1.5))  # thin, so that a crack shows between its edges
        axes.add_collection(lines, autolim=False)


def outline_mask(mask: np.ndarray) -> np.ndarray:
    """Edges between a mask's pixels and its surroundings: start and end (x, y), shape (edges, 2, 2)."""
    padded = np.pad(mask.astype(bool), 1)
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = [[columns, rows], [columns, rows + 1]]
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = [[columns, rows], [columns + 1, rows]]
    return np.concatenate([np.moveaxis(np.array(ends), -1, 0) for ends in (upright, level)]) - 0.5


def choose_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square around a mask (not empty), as wide as the image's shorter side."""
    side, window = min(mask.shape), []
    for axis, length in enumerate(mask.shape):
        middle = np.flatnonzero(mask.any(axis=1 - axis))[[0, -1]].mean()
        start = int(np.clip(np.floor(middle - (side - 1) / 2), 0, length - side))
        window.append(slice(start, start + side))
    return tuple(window)


def show_score_maps(
    images_u8: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    score_maps: Mapping[str, Sequence[np.ndarray]],
) -> Figure:
    """One row per image, cropped to a square around its mask: the image, then the detectors' probabilities.

    Raises a ValueError if a list doesn't have one entry per image, or a map doesn't have its image's size.

    Args:
        images_u8: each of shape (height, width, 3), uint8.
        masks: one per image, shape (height, width), bool; all false without defect.
        score_maps: detector's name → one map of logits per image, shape (height, width). Black is probability
            0, white 1.
    """
    lists = {"masks": masks, **score_maps}
    if wrong := [f"{len(part)} of {name}" for name, part in lists.items() if len(part) != len(images_u8)]:
        raise ValueError(f"{len(images_u8)} images, but {', '.join(wrong)}")
    tiles, outlines = [], []
    for index, (image_u8, mask) in enumerate(zip(images_u8, masks, strict=True)):
        logits = [maps[index].astype(np.float64) for maps in score_maps.values()]
        if any(one.shape != mask.shape for one in (image_u8[..., 0], *logits)):
            raise ValueError(f"image {index}: image, mask {mask.shape} and score maps differ in size")
        window = choose_window(mask if mask.any() else ~mask)
        tiles += [image_u8[window], *(np.rint(255 * expit(one[window])).astype(np.uint8) for one in logits)]
        outlines += [mask[window]] * (1 + len(logits))
    columns = 1 + len(score_maps)
    titles = ["picture", *score_maps] + [""] * (len(tiles) - columns)
    return show_images(tiles, titles, outlines, columns, min(FULL_WIDTH, LARGEST_TILE * columns))


def choose_shown(test: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Test images to show: `count` random positives, with defect types in turn, and one negative."""
    shuffled = test[test["label"] == "positive"].sample(frac=1, random_state=seed)
    turns = shuffled.groupby("defect_type").cumcount().sort_values(kind="stable")
    negative = test[test["label"] == "negative"].sample(1, random_state=seed)
    return pd.concat([shuffled.loc[turns.index[:count]], negative])
