"""Images and masks of a data set brought to one size, in a folder with a manifest."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from defaug_utils.core.files import append_line, write_png
from defaug_utils.core.guards import claim_folder, raise_problems
from defaug_utils.core.images import FITS, crop_box, fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import COLUMNS, make_manifest, write_manifest
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.layouts import DatasetError

JOURNAL = "finished.jsonl"
MAX_NAME = 100  # letters
THREE_CROPS = "three_crops"  # how AdaBLDM's code prepares KSDD2, at 224 × 224 pixels
CROPS = 3
WAYS = (*FITS, THREE_CROPS)


def prepare_dataset(
    dataset: pd.DataFrame,
    root: Path | str,
    folder: Path | str,
    size: tuple[int, int],
    fit: str = "resize",
    on_image: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Bring every image and mask to one size: `folder/images`, `folder/masks`, `folder/manifest.csv`.

    Shrinking loses no defect. An interrupted call goes on where it stopped, also after a full disk, and what
    changed in the data set since is made again. The manifest is written last: then everything is there.

    Args:
        dataset: of `load_dataset`, with or without a validation part; its paths are relative to `root`.
        size: (width, height) in pixels.
        fit: "resize" stretches the whole image; "centre_crop" cuts its centre out at the right aspect;
            "three_crops" makes three images of an upright one, squares of its full width. A defect may then
            be seen in two of them, and a crop without defect is a negative.
        on_image: called with 1 for every image that is ready (such as `tqdm.update`).

    Returns:
        The manifest, paths relative to `folder`, with the further columns `original_image`, `defect_pixels`
        (at the new size) and, for crops, `crop`. Negatives have no mask.

    Raises:
        DatasetError: lists the images whose whole defect a crop cuts away, or that can't be cut into three
            squares; the folder holds images of another size or fit; or files changed since they were loaded.
        ValueError: unknown fit, or the size makes no sense.
    """
    root, folder = Path(root), Path(folder)
    if fit not in WAYS:
        raise ValueError(f"fit {fit!r} is none of {', '.join(WAYS)}")
    crop_box((1, 1), size, "resize")
    if fit == THREE_CROPS:
        _refuse_uncuttable(dataset, size)
    if fit == "centre_crop":
        _refuse_lost_defects(dataset, root, size)
    claim_folder(folder, {"size": [int(side) for side in size], "fit": fit}, "images", error=DatasetError)
    jobs = _list_jobs(dataset, fit, _read_journal(folder))
    if not all(job["done"] for job in jobs):
        (folder / "manifest.csv").unlink(missing_ok=True)
    rows, made = [], map_in_threads(lambda job: _prepare_image(job, root, folder, size, fit), jobs, on_image)
    with closing(made):
        for job, row in zip(jobs, made, strict=True):
            if not job["done"]:
                append_line(folder / JOURNAL, json.dumps([job["name"], job["content"], row]).encode())
            rows.append({column: job[column] for column in COLUMNS} | row)
    _check_labels(dataset, rows)
    manifest = make_manifest(rows)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _list_jobs(dataset: pd.DataFrame, fit: str, finished: dict[tuple[str, str], dict]) -> list[dict]:
    """A row of the data set for each image to make: the `name` of its files, and what is `done` already."""
    jobs = []
    for row, name in zip(dataset.to_dict("records"), name_files(dataset["image"]), strict=True):
        content = row["image_checksum"] + row["mask_checksum"]
        for crop in range(CROPS) if fit == THREE_CROPS else [None]:
            own_name = name if crop is None else f"{name}-{crop}"
            done = finished.get((own_name, content))
            jobs.append({**row, "name": own_name, "crop": crop, "content": content, "done": done})
    return jobs


def name_files(images: Iterable[str]) -> list[str]:
    """A file name for every path, ASCII and unique in any case: `test/bent/000.png` gives `test-bent-000`."""
    images, names = list(images), []
    for image in images:
        ascii_path = unicodedata.normalize("NFKD", str(PurePosixPath(image).with_suffix("")))
        name = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_path.encode("ascii", "ignore").decode()).strip("-")
        names.append(name[-MAX_NAME:] or "image")
    uses = Counter(name.lower() for name in names)
    for index, image in enumerate(images):
        if uses[names[index].lower()] > 1:
            names[index] += "-" + hashlib.blake2b(image.encode(), digest_size=4).hexdigest()
    return names


def _prepare_image(job: dict, root: Path, folder: Path, size: tuple[int, int], fit: str) -> dict:
    """Write an image and, where it is positive, its mask; the columns that this changes."""
    if job["done"]:
        return job["done"]
    crop, row = job["crop"], {"image": f"images/{job['name']}.png", "mask": ""}
    row |= {"original_image": job["image"], "defect_pixels": 0}
    image_u8 = read_image(root / job["image"])
    mask = read_mask(root / job["mask"]) if job["label"] == "positive" else None
    if crop is not None:
        fit, image_u8 = "resize", cut_crop(image_u8, crop)
        mask = mask if mask is None else cut_crop(mask, crop)
    if mask is not None and mask.any():
        fitted = fit_mask(mask, size, fit)
        row |= {"mask": f"masks/{job['name']}.png", "defect_pixels": int(fitted.sum())}
        write_png(folder / row["mask"], fitted)
    elif crop is not None:
        row |= {"label": "negative", "defect_type": ""}
    write_png(folder / row["image"], fit_image(image_u8, size, fit))
    return row if crop is None else row | {"crop": crop}


def cut_crop(pixels: np.ndarray, crop: int) -> np.ndarray:
    """A square of an upright image or mask: 0 at its top, 1 the next one below, 2 at its bottom."""
    height, width = pixels.shape[:2]
    top = (0, width, height - width)[crop]
    return pixels[top : top + width]


def _refuse_uncuttable(dataset: pd.DataFrame, size: tuple[int, int]) -> None:
    """The second square would leave a lower image, and rows of a higher one would be in none."""
    if size[0] != size[1]:
        raise ValueError(f"size {size} must be that of a square for {THREE_CROPS}")
    problems = [
        f"{row.image}: an image of {row.width} × {row.height} pixels can't be cut into {CROPS} squares: "
        f"expected a height of {2 * row.width} … {3 * row.width}"
        for row in dataset.itertuples()
        if not 2 * row.width <= row.height <= 3 * row.width
    ]
    raise_problems(THREE_CROPS, problems, DatasetError)


def _refuse_lost_defects(dataset: pd.DataFrame, root: Path, size: tuple[int, int]) -> None:
    """A crop that leaves no defect pixel would leave an image with a false label."""
    positives = dataset[dataset["label"] == "positive"]
    keeps = map_in_threads(
        lambda mask: fit_mask(read_mask(root / mask), size, "centre_crop").any(), list(positives["mask"])
    )
    lost = [image for image, kept in zip(positives["image"], keeps, strict=True) if not kept]
    what = (
        f"centre_crop to {size[0]} × {size[1]} cuts the whole defect away, so that the label would be false: "
        "use fit 'resize', a size with another aspect, or leave these images out of the data set"
    )
    raise_problems(what, lost, DatasetError)


def _check_labels(dataset: pd.DataFrame, rows: list[dict]) -> None:
    """The numbers of positives and negatives of every split are what they were."""
    pixels = Counter()
    for row in rows:
        pixels[row["original_image"]] += row["defect_pixels"]
    problems = [
        f"{image}: was {label} when it was loaded, now has {pixels[image]} defect pixels: "
        "load the data set again"
        for image, label in zip(dataset["image"], dataset["label"], strict=True)
        if (label == "positive") != (pixels[image] > 0)
    ]
    raise_problems("prepared images", problems, DatasetError)


def _read_journal(folder: Path) -> dict[tuple[str, str], dict]:
    """What earlier runs finished, by name and checksum; a line torn by a kill is passed over."""
    finished, journal = {}, folder / JOURNAL
    for line in journal.read_bytes().splitlines() if journal.is_file() else []:
        with suppress(ValueError):
            name, content, row = json.loads(line)
            if all((folder / row[column]).is_file() for column in ("image", "mask") if row[column]):
                finished[name, content] = row
    return finished
