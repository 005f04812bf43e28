"""AdaBLDM's preparation of KSDD2: three square crops of a tall image, and the way back into place."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from defaug_utils.core.files import write_png
from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import make_manifest, raise_problems, write_manifest
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.layouts import DatasetError
from defaug_utils.data.preparation import claim_folder, name_files

CROPS = 3  # a tall image (AdaBLDM's code)
CROP_SIDE = 224  # pixels after resizing (AdaBLDM's code)


def find_crop_tops(size: tuple[int, int]) -> tuple[int, int, int]:
    """First rows of the three crops of side = width: at the top, the next below, at the bottom.

    Args:
        size: (width, height) of the image.

    Raises:
        DatasetError: the image is not between two and three times as high as wide, so that the second crop
            would leave it, or rows between the second and third crop would be in none.
    """
    width, height = size
    if not 2 * width <= height <= 3 * width:
        raise DatasetError(
            f"an image of {width} × {height} pixels can't be cut into {CROPS} squares: expected a height of "
            f"{2 * width} … {3 * width}"
        )
    return 0, width, height - width


def cut_crops(image: np.ndarray) -> list[np.ndarray]:
    """The three squares of an image or mask, shape (height, width, …), from the top."""
    height, width = image.shape[:2]
    return [image[top : top + width] for top in find_crop_tops((width, height))]


def join_crops(crops: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Put the crops' pixels, or score maps, back into place; where crops overlap, their mean counts.

    Args:
        crops: three in the order of `cut_crops`, each of shape (side, side) or (side, side, channels), of
            any side: they are resized to the image's width (bilinear).
        size: (width, height) of the image.

    Returns:
        Shape (height, width) or (height, width, channels), float32.

    Raises:
        DatasetError: see `find_crop_tops`.
        ValueError: there are not three crops, or they differ in shape.
    """
    if len(crops) != CROPS or len({crop.shape for crop in crops}) != 1:
        raise ValueError(f"crops of shapes {[crop.shape for crop in crops]}: expected {CROPS} of one shape")
    width, height = size
    joined = np.zeros((height, width, *crops[0].shape[2:]), np.float32)
    weights = np.zeros(height, np.float32)
    for top, crop in zip(find_crop_tops(size), crops, strict=True):
        resized = cv2.resize(crop.astype(np.float32), (width, width), interpolation=cv2.INTER_LINEAR)
        joined[top : top + width] += resized.reshape(width, width, *crop.shape[2:])
        weights[top : top + width] += 1
    return joined / weights.reshape(-1, *[1] * (joined.ndim - 1))


def prepare_crops(
    dataset: pd.DataFrame,
    root: Path | str,
    folder: Path | str,
    side: int = CROP_SIDE,
    on_image: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Cut every image into three squares of one size: `folder/images`, `folder/masks`, `folder/manifest.csv`.

    A mask pixel is positive when any source pixel that it covers is, so a defect may be seen in two crops
    but is lost in none. A crop without defect is a negative, also one of a defective image.

    Args:
        dataset: of `load_dataset`.
        root: the folder that the data set's paths are relative to.
        folder: where the results go.
        side: width and height of a prepared crop, in pixels.
        on_image: called with 1 for every image whose crops are ready.

    Returns:
        The manifest, three rows an image, with the further columns `original_image`, `crop` (0, 1 or 2
        from the top), `original_width`, `original_height` and `defect_pixels` (at the new size).

    Raises:
        DatasetError: lists every image that can't be cut, see `find_crop_tops`; or the folder holds
            images prepared in another way.
        OSError: the disk is full; nothing claims to be finished.
        ValueError: the side is below 1, or a file can't be read any more.
    """
    if side < 1:
        raise ValueError(f"side {side} must be at least 1 pixel")
    _refuse_uncuttable(dataset)
    root, folder = Path(root), Path(folder)
    claim_folder(folder, {"crops": CROPS, "side": side})
    (folder / "manifest.csv").unlink(missing_ok=True)
    jobs = list(zip(dataset.to_dict("records"), name_files(dataset["image"]), strict=True))
    rows = []
    with closing(map_in_threads(lambda job: _prepare(*job, root, folder, side), jobs)) as results:
        for crop_rows in results:
            rows += crop_rows
            if on_image:
                on_image(1)
    manifest = make_manifest(rows)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _refuse_uncuttable(dataset: pd.DataFrame) -> None:
    problems = []
    for row in dataset.itertuples():
        try:
            find_crop_tops((row.width, row.height))
        except DatasetError as error:
            problems.append(f"{row.image}: {error}")
    raise_problems("three crops", problems, DatasetError)


def _prepare(row: dict, name: str, root: Path, folder: Path, side: int) -> list[dict]:
    """Write one image's crops with their masks; their rows."""
    image_u8 = read_image(root / row["image"])
    mask = read_mask(root / row["mask"]) if row["mask"] else np.zeros(image_u8.shape[:2], bool)
    rows = []
    for number, (crop_u8, crop_mask) in enumerate(zip(cut_crops(image_u8), cut_crops(mask), strict=True)):
        fitted = fit_mask(crop_mask, (side, side))
        is_positive = bool(fitted.any())
        described = {
            "image": f"images/{name}-{number}.png",
            "mask": f"masks/{name}-{number}.png" if is_positive else "",
            "label": "positive" if is_positive else "negative",
            "defect_type": row["defect_type"] if is_positive else "",
            "original_image": row["image"],
            "crop": number,
            "original_width": image_u8.shape[1],
            "original_height": image_u8.shape[0],
            "defect_pixels": int(fitted.sum()),
        }
        if is_positive:
            write_png(folder / described["mask"], fitted)
        write_png(folder / described["image"], fit_image(crop_u8, (side, side)))
        rows.append({key: row[key] for key in ("split", "origin", "category")} | described)
    return rows


def join_score_maps(manifest: pd.DataFrame, score_maps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Score maps of whole images from those of their crops.

    Args:
        manifest: rows of `prepare_crops`, all three of every image, in any order.
        score_maps: one a row, shape (side, side).

    Returns:
        `original_image` → scores, shape (original height, original width), float32.

    Raises:
        ValueError: lists every image of which a crop is missing or twice there.
    """
    place = manifest.reset_index(drop=True)
    if len(place) != len(score_maps):
        raise ValueError(f"{len(score_maps)} score maps for {len(place)} crops")
    groups = {
        image: group.sort_values("crop") for image, group in place.groupby("original_image", sort=False)
    }
    problems = [
        f"{image}: has the crops {group['crop'].tolist()}, expected 0, 1, 2"
        for image, group in groups.items()
        if group["crop"].tolist() != list(range(CROPS))
    ]
    raise_problems("crops can't be joined", problems, ValueError)
    return {
        image: join_crops(
            [score_maps[index] for index in group.index],
            (int(group["original_width"].iloc[0]), int(group["original_height"].iloc[0])),
        )
        for image, group in groups.items()
    }
