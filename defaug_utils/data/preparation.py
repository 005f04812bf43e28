"""Images and masks of a data set brought to one size, in a folder with a manifest."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from defaug_utils.core.files import append_line, read_journal, write_csv, write_png
from defaug_utils.core.guards import claim_folder, raise_problems
from defaug_utils.core.images import FITS, crop_box, fit_image, fit_mask, read_image, read_mask, window_boxes
from defaug_utils.core.manifest import COLUMNS, SPLITS, make_manifest, write_manifest
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.flaws import CHANGE_COLUMNS, CHANGES, CHANGES_FILE
from defaug_utils.data.layouts import DatasetError

JOURNAL = "finished.jsonl"
MAX_NAME = 100  # letters
THREE_CROPS = "three_crops"  # how AdaBLDM's code prepares KSDD2, at 224 × 224 pixels
CROPS = 3
WINDOWS = "windows"
WAYS = (*FITS, THREE_CROPS, WINDOWS)

Box = tuple[int, int, int, int]  # left, top, right and bottom in pixels of the original


def prepare_dataset(
    dataset: pd.DataFrame,
    root: Path | str,
    folder: Path | str,
    size: tuple[int, int],
    fit: str = "resize",
    on_image: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Bring every image and mask to one size: `folder/images`, `folder/masks`, `folder/manifest.csv`.

    No crop looks at a mask, and all images of one size are cut alike: a crop that followed the defect would
    tell by the way an image is cut whether it is positive, and would look at the masks of the test part.

    Shrinking loses no defect. An interrupted call goes on where it stopped, also after a full disk, and what
    changed in the data set since is made again. What was left out of the data set or read otherwise goes to
    `folder/changes.csv`. The manifest is written last: then everything is there.

    Args:
        dataset: of `load_dataset`, with or without a validation part; its paths are relative to `root`.
        size: (width, height) in pixels.
        fit: "resize" stretches the whole image; "centre_crop" cuts its centre out at the right aspect;
            "windows" makes as many images of the right aspect of it as cover it from end to end, each as
            large as it allows, so that no defect pixel is lost; "three_crops" makes three images of an
            upright one, squares of its full width. A defect may then be seen in several of them, or be cut by
            the border of each, and a crop without defect is a negative.
        on_image: called with 1 for every image that is ready (such as `tqdm.update`).

    Returns:
        The manifest, paths relative to `folder`, with the further columns `original_image`, `defect_pixels`
        (at the new size), where crops are made of an image `crop` (its number), and with any fit but "resize"
        `box` ("left top right bottom" of what was kept, in pixels of the original) and `cut_pixels` (of the
        original's defect, outside of that box). Negatives have no mask.

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
    named, finished = dataset.assign(name=name_files(dataset["image"])), _read_journal(folder)
    if not all(job["done"] for job in _list_jobs(named, size, fit, finished)):
        (folder / "manifest.csv").unlink(missing_ok=True)
    rows, jobs = [], _list_jobs(named, size, fit, finished)
    made = map_in_threads(lambda job: (job, _prepare_image(job, root, folder, size)), jobs, on_image)
    with closing(made):
        for job, row in made:
            if not job["done"]:
                append_line(folder / JOURNAL, json.dumps([job["name"], job["content"], row]).encode())
            rows.append({column: job[column] for column in COLUMNS} | row)
    _check_labels(dataset, rows)
    manifest = make_manifest(rows)
    changes = pd.DataFrame(dataset.attrs.get(CHANGES, []), columns=list(CHANGE_COLUMNS))
    write_csv(changes, folder / CHANGES_FILE)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _list_jobs(
    dataset: pd.DataFrame, size: tuple[int, int], fit: str, finished: dict[tuple[str, str], dict]
) -> Iterator[dict]:
    """A row of the data set for each image to make: its files' `name`, its `box`, what is `done` already."""
    for values in dataset.itertuples(index=False, name=None):
        row = dict(zip(dataset.columns, values, strict=True))
        name, content = row["name"], row["image_checksum"] + row["mask_checksum"]
        for crop, box in enumerate(list_boxes(row["width"], row["height"], size, fit)):
            own = {"name": name, "box": box, "kept": {}}  # what the manifest tells of the crop
            if fit != "resize":
                own["kept"] = {"box": " ".join(map(str, box))}
            if fit in (THREE_CROPS, WINDOWS):
                own |= {"name": f"{name}-{crop}", "kept": {"crop": crop, **own["kept"]}}
            done = finished.get((own["name"], content))
            done = done if done and own["kept"].items() <= done.items() else None
            yield {**row, **own, "content": content, "done": done}


def list_boxes(width: int, height: int, size: tuple[int, int], fit: str) -> list[Box]:
    """The parts of an image of `width` × `height` pixels that a fit keeps, from the image's size alone."""
    if fit == THREE_CROPS:
        return [(0, top, width, top + width) for top in (0, width, height - width)]
    if fit == WINDOWS:
        return window_boxes((height, width), size)
    return [crop_box((height, width), size, fit)]


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


def _prepare_image(job: dict, root: Path, folder: Path, size: tuple[int, int]) -> dict:
    """Write an image and, where it is positive, its mask; the columns that this changes."""
    if job["done"]:
        return job["done"]
    row = {"image": f"images/{job['name']}.png", "mask": "", "original_image": job["image"]}
    row |= {"defect_pixels": 0, **job["kept"]} | ({"cut_pixels": 0} if job["kept"] else {})
    image_u8 = read_image(root / job["image"])
    if image_u8.shape[:2] != (job["height"], job["width"]):
        raise DatasetError(f"{job['image']}: has another size now: load the data set again")
    mask = read_mask(root / job["mask"]) if job["label"] == "positive" else None
    left_mask = mask if mask is None else cut_box(mask, job["box"])
    if mask is not None and job["kept"]:
        row["cut_pixels"] = int(mask.sum() - left_mask.sum())
    if left_mask is not None and left_mask.any():
        fitted = fit_mask(left_mask, size)
        row |= {"mask": f"masks/{job['name']}.png", "defect_pixels": int(fitted.sum())}
        write_png(folder / row["mask"], fitted)
    elif "crop" in job["kept"]:
        row |= {"label": "negative", "defect_type": ""}
    write_png(folder / row["image"], fit_image(cut_box(image_u8, job["box"]), size))
    return row


def cut_box(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image or a mask, shape (height, width, …), inside a box."""
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def summarise_crops(prepared: pd.DataFrame, dataset: pd.DataFrame) -> pd.DataFrame:
    """What a fit made of each split, and how many defects it cut.

    Args:
        prepared, dataset: manifests that `prepare_dataset` returned and was given.

    Returns:
        One row a split: originals and the images made of them, the same of the positives, and of the
        defects in them how many stand `whole` in some image, how many are `cut` in each (of several parts,
        the largest counts), and the largest share in percent of a defect that no single image shows.
    """
    sizes = dataset.set_index("image")["defect_pixels"]
    table = prepared.assign(cut=prepared.get("cut_pixels", 0), is_positive=prepared["label"] == "positive")
    rows = {}
    for split in [split for split in SPLITS if split in set(table["split"])]:
        chosen = table[table["split"] == split]
        positives = chosen[chosen["is_positive"]]
        cut = positives.groupby("original_image")["cut"].min()
        rows[split] = {
            "originals": chosen["original_image"].nunique(),
            "images": len(chosen),
            "positive originals": len(cut),
            "positive images": len(positives),
            "defects whole": int((cut == 0).sum()),
            "defects cut": int((cut > 0).sum()),
            "largest cut, %": round(100 * float((cut / sizes[cut.index]).max()), 1) if len(cut) else 0.0,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("split")


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
    advice = "use fit 'windows', or name these images in leave_out"
    raise_problems(f"{THREE_CROPS} ({advice})", problems, DatasetError)


def _refuse_lost_defects(dataset: pd.DataFrame, root: Path, size: tuple[int, int]) -> None:
    """A crop that leaves no defect pixel would leave an image with a false label."""
    positives = dataset[dataset["label"] == "positive"]
    keeps = map_in_threads(
        lambda mask: fit_mask(read_mask(root / mask), size, "centre_crop").any(), list(positives["mask"])
    )
    lost = [image for image, kept in zip(positives["image"], keeps, strict=True) if not kept]
    what = (
        f"centre_crop to {size[0]} × {size[1]} cuts the whole defect away, so that the label would be false: "
        "use fit 'windows' or 'resize', a size with another aspect, or name these images in leave_out"
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
    """What earlier runs finished, by name and checksum; a line torn by a kill, or damaged, is passed over."""
    finished = {}
    for line in read_journal(folder / JOURNAL):
        with suppress(ValueError, TypeError, LookupError):
            name, content, row = line
            if all((folder / row[column]).is_file() for column in ("image", "mask") if row[column]):
                finished[name, content] = row
    return finished
