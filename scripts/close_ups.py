"""Draw close-ups of real and generated defects, a column for each method.

python scripts/close_ups.py runs/long

The pools are those of few-shot, seed 0, and of DIAG. Nothing is selected: a column shows the first images of
its pool that passed their checks; the first column shows the first real training images with a defect.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.origins import ORIGINS
from defaug_utils.core.pools import find_failed
from defaug_utils.report.pictures import show_images

ROOT = Path(__file__).parents[1]
POOLS = {  # folder in the run, by origin
    "real": "data",
    "cut_paste": "cut_paste/few-shot-seed0",
    "paste_refined": "paste_refined/few-shot-seed0",
    "diag_tuned": "diag_tuned/few-shot-seed0",
    "adabldm": "adabldm/few-shot-seed0",
    "diag": "diag",
}
COUNT, SIDE, MARGIN = 5, 80, 10  # images a column; smallest close-up and the space around a defect, pixels


def cut_close_up(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The square around a defect, as far as the image has it."""
    spans = [(found.min() - MARGIN, found.max() + 1 + MARGIN) for found in np.nonzero(mask)]
    side = min(max(SIDE, *(end - start for start, end in spans)), *mask.shape)
    firsts = [
        int(np.clip((start + end - side) // 2, 0, length - side))
        for (start, end), length in zip(spans, mask.shape, strict=True)
    ]
    return image_u8[tuple(slice(first, first + side) for first in firsts)]


def read_close_ups(folder: Path) -> list[np.ndarray]:
    """Close-ups of the first images with a mask that passed their checks."""
    rows = read_manifest(folder / "manifest.csv")
    rows = rows[(rows["mask"] != "") & ~find_failed(rows) & (rows["split"] == "train")].iloc[:COUNT]
    return [
        cut_close_up(read_image(folder / row.image), read_mask(folder / row.mask))
        for row in rows.itertuples()
    ]


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run on drawn surfaces with the pools of all these methods")
    parser.add_argument("--target", type=Path, default=ROOT / "book" / "_static" / "close_ups.png")
    given = parser.parse_args()
    columns = [read_close_ups(given.run / folder) for folder in POOLS.values()]
    images = [image for row in zip(*columns, strict=True) for image in row]
    heads = [ORIGINS[origin].label if origin in ORIGINS else origin for origin in POOLS]
    titles = heads + [""] * (len(images) - len(heads))
    figure = show_images(images, titles, columns=len(heads), width=7.5)
    figure.savefig(given.target, dpi=90, bbox_inches="tight")
    Image.open(given.target).convert("RGB").quantize(256).save(given.target, optimize=True)


if __name__ == "__main__":
    main()
