"""The workshop data set: drawn surfaces of ground metal parts, with defects from obvious to hard to see.

Everything harmless comes from one random stream and the defect from another, so that a part has the same
distractors with and without a defect.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from defaug_utils.core.files import write_csv, write_png
from defaug_utils.core.guards import check_demands, claim_folder
from defaug_utils.core.manifest import image_seed
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.public_sets import SURFACES_NOTE
from defaug_utils.data.surface_layers import HARMLESS_LAYERS, LOOKS, Canvas, DefectLook

DEFECT_TYPES = tuple(LOOKS)
POSITIVE_SHARE = 0.1  # of the images, as in KSDD2
DEFAULT_SIZE = (128, 384)  # width and height in pixels, the design size of the layers
SMALLEST_SIDE = 16  # pixels
MASK_LEVEL = 0.25  # a defect is cut off below this share of its full strength
FIRST_NUMBER = {"train": 10000, "test": 20000}  # KSDD2's numbering
DRAWING_VERSION = 1  # incremented whenever a seed gives a different image
CLEAN, DEFECT, SEVERITY = range(3)  # random streams of a surface


class Surface(NamedTuple):
    """One drawn part; type and severity are None without a defect."""

    image_u8: np.ndarray  #: shape (height, width, 3), uint8
    mask: np.ndarray  #: shape (height, width), bool: exactly the pixels that the defect changed
    defect_type: str | None
    severity: float | None


def draw_surface(
    seed: int,
    defect_type: str | None = None,
    size: tuple[int, int] = DEFAULT_SIZE,
    severity: float | None = None,
) -> Surface:
    """Draw one part; outside the mask it equals the part without a defect from the same seed, bit for bit.

    Raises a ValueError for an unknown defect type, a severity out of range or a side below 16 pixels.

    Args:
        seed: decides everything that is not given; not negative.
        defect_type: one of `DEFECT_TYPES`, or None for a part without defect.
        size: (width, height) in pixels.
        severity: 0 (hard to see) … 1 (obvious); None draws it uniformly by seed.
    """
    _check_request(defect_type, size, severity)
    clean = _draw_clean(_make_canvas(seed, CLEAN, size))
    if defect_type is None:
        return Surface(clean.astype(np.uint8), np.zeros(clean.shape[:2], bool), None, None)
    severity = _draw_severity(seed) if severity is None else severity
    change = _draw_change(_make_canvas(seed, DEFECT, size), LOOKS[defect_type], severity, clean)
    image_u8 = np.clip(clean + change, 0, 255).astype(np.uint8)
    return Surface(image_u8, change.any(axis=2), defect_type, severity)


def _check_request(defect_type: str | None, size: tuple[int, int], severity: float | None) -> None:
    sides = f"size {size} must be (width, height) of at least {SMALLEST_SIDE} pixels each"
    demands = {
        f"defect_type {defect_type!r} is not one of {', '.join(LOOKS)}": defect_type in (None, *LOOKS),
        sides: min(size) >= SMALLEST_SIDE,
        f"severity {severity} must be in 0 … 1": severity is None or 0 <= severity <= 1,
    }
    check_demands("surface", demands)


def _make_canvas(seed: int, stream: int, size: tuple[int, int]) -> Canvas:
    scale = (size[0] * size[1] / (DEFAULT_SIZE[0] * DEFAULT_SIZE[1])) ** 0.5
    return Canvas(np.random.default_rng([seed, stream]), (size[1], size[0]), scale)


def _draw_severity(seed: int) -> float:
    return float(np.random.default_rng([seed, SEVERITY]).random())


def _draw_clean(canvas: Canvas) -> np.ndarray:
    """A part without defect, in whole grey levels 1 … 254, so that a change of one level always shows."""
    grey = sum(layer(canvas) for layer in HARMLESS_LAYERS)
    tint = 1 + canvas.rng.normal(0, 0.006, 3).astype(np.float32)
    sensor_noise = canvas.rng.standard_normal((*canvas.shape, 3), np.float32) * np.float32(1.5)
    return np.clip(np.round(grey[..., None] * tint + sensor_noise), 1, 254)


def _draw_change(canvas: Canvas, look: DefectLook, severity: float, clean: np.ndarray) -> np.ndarray:
    """The change by a defect, shape (height, width, 3): none outside its mask, at least one level inside."""
    strength = look.draw(canvas, (0.8 + 0.5 * severity) * canvas.rng.uniform(0.75, 1.4))
    strength = strength / strength.max()
    strength[strength < MASK_LEVEL] = 0
    grey = clean.mean(axis=2)
    around = cv2.dilate((strength > 0).astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    low, high = np.percentile((grey - cv2.GaussianBlur(grey, (0, 0), 6))[around], [16, 84])
    texture_spread = float(high - low) / 2  # to which chips and pores contribute little
    faint, strong = look.contrast
    contrast = faint * (strong / faint) ** severity * texture_spread
    contrast = max(contrast, 1.5 / MASK_LEVEL) * (1 if look.is_bright else -1)
    return np.round(strength[..., None] * np.float32(contrast) * np.array(look.colour, np.float32))


def write_surfaces(
    folder: Path | str,
    train_count: int,
    test_count: int,
    seed: int,
    positive_share: float = POSITIVE_SHARE,
    size: tuple[int, int] = DEFAULT_SIZE,
    on_image: Callable[[int], None] | None = None,
) -> None:
    """Write a data set in KSDD2's layout: `train/10000.png` with `train/10000_GT.png`, `test/20000.png` …

    Positives are placed randomly, with equal numbers of each defect type. An interrupted call can be resumed:
    `surfaces.csv` (defect type and severity by image) and then `surfaces.json` (the settings) are written
    last. Raises a ValueError if the folder contains other surfaces or images, or for invalid numbers.

    Args:
        folder: for the data set.
        train_count, test_count: images in `train` and in `test`, at most 10,000 each.
        seed: decides all images; not negative. Image 10000 is the same part for any count.
        positive_share: share of the images with a defect, in [0, 1].
        size: (width, height) in pixels.
        on_image: called with 1 for every finished image (such as `tqdm.update`).
    """
    folder, counts = Path(folder), {"train": train_count, "test": test_count}
    demands = {
        f"{split}_count {count} must be in 0 … 10000, the numbers of KSDD2's layout": 0 <= count <= 10000
        for split, count in counts.items()
    }
    demands[f"positive_share {positive_share} must be in 0 … 1"] = 0 <= positive_share <= 1
    check_demands("surfaces", demands)
    _check_request(None, size, None)
    settings = {"train_count": train_count, "test_count": test_count, "seed": seed}
    settings |= {"positive_share": positive_share, "size": [int(side) for side in size]}
    finished, begun = folder / SURFACES_NOTE, folder / "surfaces.part.json"
    foreign = [path for split in FIRST_NUMBER for path in (folder / split).glob("*")]
    if foreign and not finished.is_file() and not begun.is_file():
        raise ValueError(f"{folder} contains other files, such as {foreign[0]}: choose an empty folder")
    note = finished if finished.is_file() else begun
    claim_folder(folder, settings | {"drawing_version": DRAWING_VERSION}, "surfaces", note.name)
    rows = [row for split in counts for row in plan_surfaces(split, counts[split], positive_share, seed)]
    list(map_in_threads(lambda row: _write_surface(folder, row, size), rows, on_image))
    write_csv(pd.DataFrame(rows).drop(columns="seed"), folder / "surfaces.csv")
    os.replace(note, finished)


def plan_surfaces(split: str, count: int, positive_share: float, seed: int) -> list[dict]:
    """Number, seed, defect type and severity of every image of a split."""
    first, positives = FIRST_NUMBER[split], round(count * positive_share)
    kinds = [DEFECT_TYPES[k % len(DEFECT_TYPES)] if k < positives else "" for k in range(count)]
    order = np.random.default_rng([seed, first]).permutation(count)
    rows = []
    for number, kind in enumerate([kinds[k] for k in order], start=first):
        own_seed = image_seed(seed, number)
        row = {"image": f"{split}/{number}.png", "defect_type": kind, "seed": own_seed}
        rows.append(row | {"severity": round(_draw_severity(own_seed), 4) if kind else None})
    return rows


def _write_surface(folder: Path, row: dict, size: tuple[int, int]) -> None:
    """Write a mask and then its image, unless they already exist."""
    image = folder / row["image"]
    mask = image.with_name(f"{image.stem}_GT.png")
    if image.is_file() and mask.is_file():
        return
    surface = draw_surface(row["seed"], row["defect_type"] or None, size)
    write_png(mask, surface.mask)
    write_png(image, surface.image_u8)
