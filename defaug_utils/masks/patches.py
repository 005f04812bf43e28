"""Real defects cut out by their masks, rotated, scaled, and placed inside an object."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from defaug_utils.core.guards import collect_problems, raise_problems
from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import ManifestError

MARGIN = 2  # pixels kept around a defect, so that rotation blends its edge with its surroundings
COVERED_FROM = 0.25  # share from which a rotated pixel is defect: a one-pixel crack stays connected
ROUNDING = 1e-6  # pixels; a rotation by 90° must not add one


class Defect(NamedTuple):
    """A defect cut out of the image `name`: pixels (height, width, 3), uint8; mask (height, width), bool."""

    image_u8: np.ndarray
    mask: np.ndarray
    category: str
    defect_type: str
    name: str


def read_defects(dataset: pd.DataFrame, data_folder: Path | str, size: tuple[int, int]) -> list[Defect]:
    """Cut out the defects of all real training positives, one per image, sorted by image name.

    Images and masks are first resized to `size` (width, height). Raises a ManifestError if no positive has a
    mask; it lists files that can't be read, and masks that are empty or don't have their image's size.
    """
    rows = list_masked_positives(dataset, data_folder, "defects can't be cut out without one")
    folder, defects, problems = Path(data_folder), [], []
    for row in rows.itertuples():
        with collect_problems(problems):
            image_u8, mask = read_masked(row, folder)
            pair = fit_image(image_u8, size), fit_mask(mask, size)
            defects.append(cut_defect(*pair, row.category, row.defect_type, row.image))
    raise_problems(f"defects in {data_folder}", problems, ManifestError)
    return defects


def read_masked(row: NamedTuple, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image (height, width, 3), uint8, and mask (height, width), bool, of a manifest's row.

    Raises a ValueError if the mask does not have the image's size.
    """
    image_u8, mask = read_image(folder / row.image), read_mask(folder / row.mask)
    if mask.shape != image_u8.shape[:2]:
        raise ValueError(f"{row.mask}: mask {mask.shape} on an image {image_u8.shape[:2]}")
    return image_u8, mask


def hash_masked(images: Iterable[tuple]) -> str:
    """Hash of images, their masks and everything else in their tuples, for recipes."""
    digest = hashlib.sha256()
    for image_u8, mask, *names in images:
        digest.update(f"{image_u8.shape} {names}\n".encode())
        digest.update(image_u8.tobytes() + np.packbits(mask).tobytes())
    return digest.hexdigest()


def list_masked_positives(dataset: pd.DataFrame, data_folder: Path | str, advice: str) -> pd.DataFrame:
    """The real training positives that have a mask, sorted by name; refused if there are none."""
    is_known = (dataset["split"] == "train") & (dataset["label"] == "positive")
    known = dataset[is_known & (dataset["origin"] == "real")]
    masked = known[known["mask"] != ""]
    if masked.empty:
        raise ManifestError(f"{data_folder}: none of {len(known)} training positives has a mask: {advice}")
    return masked.sort_values("image")


def cut_defect(
    image_u8: np.ndarray, mask: np.ndarray, category: str = "", defect_type: str = "", name: str = ""
) -> Defect:
    """Cut the box of a mask (height, width), with a small margin, out of an image; refuses an empty mask."""
    if not mask.any():
        raise ValueError(f"{name or 'the image'}: the mask is empty: there is no defect to cut out")
    box = find_box(mask, MARGIN)
    return Defect(image_u8[box].copy(), mask[box].copy(), category, defect_type, name)


def find_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around a mask, with a margin inside the image."""
    used = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(0, lines[0] - margin), lines[-1] + 1 + margin) for lines in used)


def turn_defect(defect: Defect, angle: float, scale: float) -> Defect:
    """Rotate a defect counter-clockwise (degrees) and scale it about its centre, without losing pixels."""
    height, width = defect.mask.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    across, along = abs(turn[0, 0]), abs(turn[0, 1])
    new_width = int(np.ceil(across * width + along * height - ROUNDING))
    new_height = int(np.ceil(across * height + along * width - ROUNDING))
    turn[:, 2] += (new_width - width) / 2, (new_height - height) / 2
    size = (new_width, new_height)
    image_u8 = cv2.warpAffine(defect.image_u8, turn, size, borderMode=cv2.BORDER_REFLECT_101)
    covered = cv2.warpAffine(defect.mask.astype(np.float32), turn, size)
    mask = covered > min(COVERED_FROM, covered.max() / 2)
    return cut_defect(image_u8, mask, *defect[2:])


def find_places(foreground: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """All positions (top, left) of a shape (a mask in its box) fully inside an object, shape (places, 2)."""
    if any(inner > outer for inner, outer in zip(shape.shape, foreground.shape, strict=True)):
        return np.empty((0, 2), int)
    outside = (~foreground).astype(np.float32)
    overlap = cv2.matchTemplate(outside, shape.astype(np.float32), cv2.TM_CCORR)
    return np.argwhere(overlap < 0.5)


def draw_place(
    foreground: np.ndarray, shape: np.ndarray, generator: np.random.Generator
) -> tuple[slice, slice] | None:
    """A random box (rows, columns) of `find_places`, or None if there is none."""
    places = find_places(foreground, shape)
    if not len(places):
        return None
    top, left = places[generator.integers(len(places))]
    return slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1])


def draw_turned(
    defect: Defect, foreground: np.ndarray, scale_range: float, generator: np.random.Generator
) -> tuple[Defect, tuple[slice, slice] | None]:
    """Rotate a defect randomly, scale it by 1 ± `scale_range`, and draw a box for it inside an object."""
    scale = 1 + generator.uniform(-scale_range, scale_range)
    turned = turn_defect(defect, generator.uniform(0, 360), scale)
    return turned, draw_place(foreground, turned.mask, generator)


def paste_defect(
    image_u8: np.ndarray, defect: Defect, box: tuple[slice, slice]
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a defect into a box (rows, columns) of an image; return the new image and its mask."""
    pasted = image_u8.copy()
    pasted[box][defect.mask] = defect.image_u8[defect.mask]
    return pasted, place_mask(defect.mask, box, image_u8.shape[:2])


def place_mask(shape: np.ndarray, box: tuple[slice, slice], size: tuple[int, int]) -> np.ndarray:
    """A mask (height, width) with a shape in its box, false elsewhere."""
    mask = np.zeros(size, bool)
    mask[box] = shape
    return mask


def widen_mask(mask: np.ndarray, margin: int) -> np.ndarray:
    """A mask (height, width), dilated by `margin` pixels."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)), iterations=margin) > 0


def move_inside(
    mask: np.ndarray, foreground: np.ndarray, generator: np.random.Generator
) -> np.ndarray | None:
    """The mask if it lies fully inside an object, otherwise moved randomly; None if it fits nowhere."""
    if foreground[mask].all():
        return mask
    shape = mask[find_box(mask)]
    box = draw_place(foreground, shape, generator)
    return None if box is None else place_mask(shape, box, mask.shape)
