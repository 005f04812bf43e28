"""Small data sets in the real folder layouts, for tests of whatever reads them."""

from pathlib import Path

import numpy as np
from PIL import Image

from defaug_utils.data.datasets import draw_few_shot, load_dataset
from defaug_utils.data.preparation import prepare_dataset

SIZE = (23, 63)  # width and height in pixels: KSDD2's aspect


def draw_part(
    seed: int, size: tuple[int, int] = SIZE, is_positive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A noisy grey part and its mask; a positive has a bright block of 3 × 4 pixels near its centre."""
    rng = np.random.default_rng(seed)
    width, height = size
    image_u8 = rng.integers(90, 120, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), bool)
    if is_positive:
        top, left = height // 2 - 2, width // 2 - 1
        mask[top : top + 4, left : left + 3] = True
        image_u8[mask] = 220
    return image_u8, mask


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an image, or a bool mask as 0 / 255, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(path)


def write_ksdd2(
    root: Path, train: tuple[int, int] = (6, 2), test: tuple[int, int] = (3, 1), size: tuple[int, int] = SIZE
) -> None:
    """KSDD2: (negatives, positives) of each split, numbered from 10000 and 20000, positives last."""
    for split, first, (negatives, positives) in (("train", 10000, train), ("test", 20000, test)):
        for index in range(negatives + positives):
            image_u8, mask = draw_part(first + index, size, is_positive=index >= negatives)
            save(root / split / f"{first + index}.png", image_u8)
            save(root / split / f"{first + index}_GT.png", mask)


def write_mvtec(
    root: Path,
    types: tuple[str, ...] = ("bent", "glue"),
    train: int = 5,
    per_type: int = 2,
    size: tuple[int, int] = SIZE,
) -> None:
    """One category of MVTec AD: `root` is the category's folder; two good test images."""
    for index in range(train):
        save(root / "train/good" / f"{index:03d}.png", draw_part(index, size)[0])
    for index in range(2):
        save(root / "test/good" / f"{index:03d}.png", draw_part(100 + index, size)[0])
    for number, defect_type in enumerate(types):
        for index in range(per_type):
            image_u8, mask = draw_part(200 + 10 * number + index, size, is_positive=True)
            save(root / "test" / defect_type / f"{index:03d}.png", image_u8)
            save(root / "ground_truth" / defect_type / f"{index:03d}_mask.png", mask)


def prepare_grid(folder: Path, size: tuple[int, int]) -> Path:
    """A category of MVTec AD, two of each type for training, prepared in `folder/data` at (width, height)."""
    write_mvtec(folder / "grid", per_type=4)
    few = draw_few_shot(load_dataset(folder / "grid"), 2)
    prepare_dataset(few, folder / "grid", folder / "data", size)
    return folder / "data"


def write_btad(root: Path) -> None:
    """BTAD with its three products and their mixed suffixes: per product 3 train/ok, 1 test/ok, 2 test/ko."""
    for product, image_suffix, mask_suffix in (
        ("01", "bmp", "png"),
        ("02", "png", "png"),
        ("03", "bmp", "bmp"),
    ):
        folder, seed = root / product, 1000 * int(product)
        for index in range(3):
            save(folder / "train/ok" / f"{index:04d}.{image_suffix}", draw_part(seed + index)[0])
        save(folder / "test/ok" / f"0000.{image_suffix}", draw_part(seed + 10)[0])
        for index in range(2):
            image_u8, mask = draw_part(seed + 20 + index, is_positive=True)
            save(folder / "test/ko" / f"{index:04d}.{image_suffix}", image_u8)
            save(folder / "ground_truth/ko" / f"{index:04d}.{mask_suffix}", mask)


def write_folder(
    root: Path, splits: tuple[str, ...] = ("train", "test"), negatives: int = 4, positives: int = 2
) -> None:
    """An engineer's own parts: names with spaces and umlauts, a defect type as subfolder, several formats.

    Args:
        root: the data set's folder.
        splits: its subfolders; ("",) puts everything directly into `root`.
        negatives: parts without defect in each split.
        positives: parts with a `Riß` in each split.
    """
    for number, split in enumerate(splits):
        base = root / split
        for index in range(negatives):
            save(base / "negative" / f"Prüfteil {index}.bmp", draw_part(100 * number + index)[0])
        for index in range(positives):
            image_u8, mask = draw_part(100 * number + 50 + index, is_positive=True)
            save(base / "positive/Riß" / f"Prüfteil {index}.png", image_u8)
            save(base / "masks/Riß" / f"Prüfteil {index}.png", mask)
