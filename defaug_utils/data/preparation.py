"""Preparing a data set: images and masks of one size, in a folder with a manifest."""

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

from defaug_utils.core.files import append_line, lock_file, read_journal, write_csv, write_png
from defaug_utils.core.guards import claim_folder, raise_problems
from defaug_utils.core.images import FITS, crop_box, fit_image, fit_mask, read_image, read_mask, window_boxes
from defaug_utils.core.licences import check_licence, write_licence
from defaug_utils.core.manifest import COLUMNS, SPLITS, make_manifest, write_manifest
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.flaws import CHANGE_COLUMNS, CHANGES, CHANGES_FILE
from defaug_utils.data.layouts import DatasetError
from defaug_utils.data.public_sets import LICENCE

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
    licence: str = "",
) -> pd.DataFrame:
    """Bring every image and mask to one size: `folder/images`, `folder/masks`, `folder/manifest.csv`.

    No crop looks at a mask, and all images of one size are cut in the same way. A crop that followed the
    defect would reveal by its position whether an image is positive, and would use the masks of the test set.

    Shrinking loses no defect. An interrupted call can be resumed, even after a full disk, and files that have
    changed in the data set are prepared again. What was left out or read differently is listed in
    `folder/changes.csv`, and the licence is in `folder/licence.txt`. The manifest is written last, when
    everything else is complete.

    Args:
        dataset: from `load_dataset`, with or without a validation part; its paths are relative to `root`.
        size: (width, height) in pixels.
        fit: "resize" stretches the whole image; "centre_crop" cuts its centre out at the right aspect;
            "windows" cuts it into the fewest images of the right aspect that together cover it, as large as
            possible, so that no defect pixel is lost; "three_crops" cuts three squares of the full width out
            of an upright image. A defect may then appear in several of them or be cut by the border of each,
            and a crop without a defect is a negative.
        on_image: called with 1 for every finished image (such as `tqdm.update`).
        licence: of the images, a name or a short sentence that pools and exports repeat; if empty, that of a
            public data set that `load_dataset` recognised, or else "not stated".

    Returns:
        The manifest, paths relative to `folder`, with the columns `original_image`, `defect_pixels` (at the
        new size), `crop` (its number, if an image was cut into several) and, unless `fit` is "resize", `box`
        ("left top right bottom" of the kept part, in pixels of the original) and `cut_pixels` (defect pixels
        of the original outside that box). Negatives have no mask.

    Raises:
        DatasetError: lists the images whose whole defect a crop removes, or that can't be cut into three
            squares; the folder contains images of another size or fit; files changed since loading; or the
            licence is not one line of text.
        TimeoutError: another process is preparing images in the folder.
        ValueError: unknown fit, or invalid size.
    """
    root, folder = Path(root), Path(folder)
    licence = check_licence(licence, DatasetError) or dataset.attrs.get(LICENCE, "")
    if fit not in WAYS:
        raise ValueError(f"fit {fit!r} is not one of {', '.join(WAYS)}")
    crop_box((1, 1), size, "resize")
    if fit == THREE_CROPS:
        _refuse_uncuttable(dataset, size)
    if fit == "centre_crop":
        _refuse_lost_defects(dataset, root, size)
    with lock_file(folder / JOURNAL, 0):
        return _prepare_all(dataset, root, folder, size, fit, on_image, licence)


def _prepare_all(
    dataset: pd.DataFrame,
    root: Path,
    folder: Path,
    size: tuple[int, int],
    fit: str,
    on_image: Callable[[int], None] | None,
    licence: str,
) -> pd.DataFrame:
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
    write_licence(folder, licence)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _list_jobs(
    dataset: pd.DataFrame, size: tuple[int, int], fit: str, finished: dict[tuple[str, str], dict]
) -> Iterator[dict]:
    """A row for each image to make: its files' `name`, its `box`, and what is already `done`."""
    for values in dataset.itertuples(index=False, name=None):
        row = dict(zip(dataset.columns, values, strict=True))
        name, content = row["name"], row["image_checksum"] + row["mask_checksum"]
        for crop, box in enumerate(list_boxes(row["width"], row["height"], size, fit)):
            own = {"name": name, "box": box, "kept": {}}  # what the manifest records about the crop
            if fit != "resize":
                own["kept"] = {"box": " ".join(map(str, box))}
            if fit in (THREE_CROPS, WINDOWS):
                own |= {"name": f"{name}-{crop}", "kept": {"crop": crop, **own["kept"]}}
            done = finished.get((own["name"], content))
            done = done if done and own["kept"].items() <= done.items() else None
            yield {**row, **own, "content": content, "done": done}


def list_boxes(width: int, height: int, size: tuple[int, int], fit: str) -> list[Box]:
    """The parts of an image of `width` × `height` pixels that a fit keeps; depends on its size only."""
    if fit == THREE_CROPS:
        return [(0, top, width, top + width) for top in (0, width, height - width)]
    if fit == WINDOWS:
        return window_boxes((height, width), size)
    return [crop_box((height, width), size, fit)]


def name_files(images: Iterable[str]) -> list[str]:
    """A file name for every path, ASCII and unique ignoring case: `test/bent/000.png` → `test-bent-000`."""
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
    """Write an image and, if it is positive, its mask; return the columns that change."""
    if job["done"]:
        return job["done"]
    row = {"image": f"images/{job['name']}.png", "mask": "", "original_image": job["image"]}
    row |= {"defect_pixels": 0, **job["kept"]} | ({"cut_pixels": 0} if job["kept"] else {})
    image_u8 = read_image(root / job["image"])
    if image_u8.shape[:2] != (job["height"], job["width"]):
        raise DatasetError(f"{job['image']}: its size has changed: load the data set again")
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
    """What a fit did to each split, and how many defects it cut.

    Args:
        prepared, dataset: the manifests that `prepare_dataset` returned and received.

    Returns:
        One row per split: originals and the images made from them, the same for positives, the number of
        defects that are `whole` in some image and of those that are `cut` in every image (if there are
        several parts, the largest counts), and the largest share, in percent, that a cut defect loses.
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
    """Refuse images too low for a second square, or so high that no square would show some rows."""
    if size[0] != size[1]:
        raise ValueError(f"size {size} must be square for {THREE_CROPS}")
    problems = [
        f"{row.image}: an image of {row.width} × {row.height} pixels can't be cut into {CROPS} squares: "
        f"expected a height of {2 * row.width} … {3 * row.width}"
        for row in dataset.itertuples()
        if not 2 * row.width <= row.height <= 3 * row.width
    ]
    advice = "use fit 'windows', or name these images in leave_out"
    raise_problems(f"{THREE_CROPS} ({advice})", problems, DatasetError)


def _refuse_lost_defects(dataset: pd.DataFrame, root: Path, size: tuple[int, int]) -> None:
    """Refuse crops that remove the whole defect: the image would have a wrong label."""
    positives = dataset[dataset["label"] == "positive"]
    keeps = map_in_threads(
        lambda mask: fit_mask(read_mask(root / mask), size, "centre_crop").any(), list(positives["mask"])
    )
    lost = [image for image, kept in zip(positives["image"], keeps, strict=True) if not kept]
    what = (
        f"centre_crop to {size[0]} × {size[1]} removes the whole defect, so that the label would be wrong: "
        "use fit 'windows' or 'resize', a size with another aspect, or name these images in leave_out"
    )
    raise_problems(what, lost, DatasetError)


def _check_labels(dataset: pd.DataFrame, rows: list[dict]) -> None:
    """Check that every split still has the same numbers of positives and negatives."""
    pixels = Counter()
    for row in rows:
        pixels[row["original_image"]] += row["defect_pixels"]
    problems = [
        f"{image}: was {label} when loaded, but now has {pixels[image]} defect pixels: "
        "load the data set again"
        for image, label in zip(dataset["image"], dataset["label"], strict=True)
        if (label == "positive") != (pixels[image] > 0)
    ]
    raise_problems("prepared images", problems, DatasetError)


def _read_journal(folder: Path) -> dict[tuple[str, str], dict]:
    """What earlier runs finished, by name and checksum; torn or damaged lines are skipped."""
    finished = {}
    for line in read_journal(folder / JOURNAL):
        with suppress(ValueError, TypeError, LookupError):
            name, content, row = line
            if all((folder / row[column]).is_file() for column in ("image", "mask") if row[column]):
                finished[name, content] = row
    return finished
