"""Images and masks of a data set brought to one size, in a folder with a manifest."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath

import pandas as pd

from defaug_utils.core.files import explain_full_disk, write_json, write_png
from defaug_utils.core.images import crop_box, fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.manifest import COLUMNS, make_manifest, raise_problems, write_manifest
from defaug_utils.data.datasets import map_in_threads
from defaug_utils.data.layouts import DatasetError

JOURNAL = "finished.jsonl"
MAX_NAME = 100  # letters


def prepare_dataset(
    dataset: pd.DataFrame,
    root: Path | str,
    folder: Path | str,
    size: tuple[int, int],
    fit: str = "resize",
    on_image: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Bring every image and mask to one size: `folder/images`, `folder/masks`, `folder/manifest.csv`.

    A mask pixel is positive when any source pixel that it covers is, so that no defect is lost by
    shrinking. Goes on where an earlier run of the same size and fit stopped; what changed in the data
    set since is made again. The manifest is written last: when it is there, everything is.

    Args:
        dataset: of `load_dataset`, with or without a validation part.
        root: the folder that the data set's paths are relative to.
        folder: where the results go.
        size: (width, height) in pixels.
        fit: "resize" stretches the whole image; "centre_crop" cuts its centre out at the right aspect.
        on_image: called with 1 for every image that is ready (such as `tqdm.update`).

    Returns:
        The manifest, paths relative to `folder`, with the further columns `original_image` and
        `defect_pixels` (at the new size). Negatives have no mask.

    Raises:
        DatasetError: the crop cuts the whole defect of an image away (all such images are listed), the
            folder holds images of another size or fit, or files changed since they were loaded.
        OSError: the disk is full; what is finished is kept.
        ValueError: unknown fit, or the size makes no sense.
    """
    root, folder = Path(root), Path(folder)
    crop_box((1, 1), size, fit)
    if fit == "centre_crop":
        _refuse_lost_defects(dataset, root, size)
    claim_folder(folder, {"size": [int(side) for side in size], "fit": fit})
    finished = _read_journal(folder)
    jobs = _list_jobs(dataset, finished)
    if not all(job["done"] for job in jobs):
        (folder / "manifest.csv").unlink(missing_ok=True)
    rows = []
    with closing(map_in_threads(lambda job: _prepare_image(job, root, folder, size, fit), jobs)) as results:
        for job, row in zip(jobs, results, strict=True):
            if not job["done"]:
                _append_journal(folder, job, row)
            rows.append({column: job[column] for column in COLUMNS} | row)
            if on_image:
                on_image(1)
    _check_labels(rows)
    manifest = make_manifest(rows)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _list_jobs(dataset: pd.DataFrame, finished: dict[tuple[str, str], dict]) -> list[dict]:
    """The data set's rows with the `name` of their files, and with what is `done` already."""
    jobs = []
    for row, name in zip(dataset.to_dict("records"), name_files(dataset["image"]), strict=True):
        content = row["image_checksum"] + row["mask_checksum"]
        jobs.append({**row, "name": name, "content": content, "done": finished.get((name, content))})
    return jobs


def name_files(images: Iterable[str]) -> list[str]:
    """A file name (without suffix) for every path: plain ASCII, and unique where case is ignored, too.

    Args:
        images: relative paths, such as `test/bent/000.png` (which becomes `test-bent-000`).
    """
    images = list(images)
    names = []
    for image in images:
        ascii_path = unicodedata.normalize("NFKD", str(PurePosixPath(image).with_suffix("")))
        name = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_path.encode("ascii", "ignore").decode()).strip("-")
        names.append(name[-MAX_NAME:] or "image")
    uses = Counter(name.lower() for name in names)
    digests = (hashlib.blake2b(image.encode(), digest_size=4).hexdigest() for image in images)
    return [
        name if uses[name.lower()] == 1 else f"{name}-{digest}"
        for name, digest in zip(names, digests, strict=True)
    ]


def _prepare_image(job: dict, root: Path, folder: Path, size: tuple[int, int], fit: str) -> dict:
    """Write an image and, where it is positive, its mask; the columns that this changes."""
    if job["done"]:
        return job["done"]
    row = {
        "image": f"images/{job['name']}.png",
        "mask": "",
        "original_image": job["image"],
        "defect_pixels": 0,
    }
    image_u8 = fit_image(read_image(root / job["image"]), size, fit)
    if job["label"] == "positive":
        mask = fit_mask(read_mask(root / job["mask"]), size, fit)
        row |= {"mask": f"masks/{job['name']}.png", "defect_pixels": int(mask.sum())}
        write_png(folder / row["mask"], mask)
    write_png(folder / row["image"], image_u8)
    return row


def _refuse_lost_defects(dataset: pd.DataFrame, root: Path, size: tuple[int, int]) -> None:
    """A crop that leaves no defect pixel would leave an image with a false label."""
    positives = dataset[dataset["label"] == "positive"]
    keeps = map_in_threads(
        lambda mask: fit_mask(read_mask(root / mask), size, "centre_crop").any(), list(positives["mask"])
    )
    lost = [image for image, kept in zip(positives["image"], keeps, strict=True) if not kept]
    raise_problems(
        f"centre_crop to {size[0]} × {size[1]} cuts the whole defect away, so that the label would be false: "
        "use fit 'resize', a size with another aspect, or leave these images out of the data set",
        lost,
        DatasetError,
    )


def _check_labels(rows: list[dict]) -> None:
    """The numbers of positives and negatives of every split are what they were."""
    problems = [
        f"{row['original_image']}: was {row['label']} when it was loaded, now has {row['defect_pixels']} "
        "defect pixels: load the data set again"
        for row in rows
        if (row["label"] == "positive") != (row["defect_pixels"] > 0)
    ]
    raise_problems("prepared images", problems, DatasetError)


def claim_folder(folder: Path, settings: dict) -> None:
    """Note how a folder's images are prepared, or refuse one that holds images prepared in another way."""
    stored = folder / "settings.json"
    if not stored.is_file():
        write_json(stored, settings)
        return
    found = json.loads(stored.read_text(encoding="utf-8"))
    if found != settings:
        raise DatasetError(
            f"{folder} holds images prepared with {found}, not with {settings}: delete the folder (and "
            "the pools made from it) to prepare them again, or choose another run folder"
        )


def _read_journal(folder: Path) -> dict[tuple[str, str], dict]:
    """What earlier runs finished, by name and checksum; a line torn by a kill is passed over."""
    finished, journal = {}, folder / JOURNAL
    for line in journal.read_bytes().splitlines() if journal.is_file() else []:
        with suppress(ValueError):
            name, content, row = json.loads(line)
            if all((folder / row[column]).is_file() for column in ("image", "mask") if row[column]):
                finished[name, content] = row
    return finished


def _append_journal(folder: Path, job: dict, row: dict) -> None:
    """Each line begins with its line break, so that it can't grow onto a torn one."""
    with explain_full_disk(folder / JOURNAL), (folder / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write("\n" + json.dumps([job["name"], job["content"], row]))
