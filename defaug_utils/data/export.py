"""Training sets as MVTec AD / anomalib folders, COCO or YOLO, for trainers that exist already.

- "mvtec": `mvtec_ad/<category>/` has `train/good`, `test/good`, `test/<defect type>`,
  `ground_truth/<defect type>/<name>_mask.png` and `validation/good`: what anomalib's `MVTecAD` reads.
  MVTec AD has no place for positives to train with, and anomalib refuses any further folder in there, so
  they are in `positives/<category>/train/images/<defect type>`, masks of the same names in
  `positives/<category>/train/masks/<defect type>`, those of validation in `validation` beside `train`.
  anomalib's `Folder` reads them as `normal_dir="mvtec_ad/<category>/train/good"`,
  `abnormal_dir="positives/<category>/train/images"`, `mask_dir="positives/<category>/train/masks"`.
- "coco": `images/<split>/` and `annotations/instances_<split>.json`.
- "yolo": `images/<split>/`, `labels/<split>/` and `data.yaml`, holes joined to the outline by a seam.

Each has `manifest.csv`, the rows with their new paths and the former ones in `exported_from`, and
`export.json`, what was written. Files are called `<row>_<origin>_<former name>`: unique, and in the same
order with and without `_mask`, by which anomalib pairs them.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image
from skimage.measure import label

from defaug_utils.core.files import write_atomically, write_json, write_png
from defaug_utils.core.images import read_mask
from defaug_utils.core.manifest import raise_problems, validate_manifest, write_manifest
from defaug_utils.data.annotations import write_coco, write_yolo

FORMATS = ("mvtec", "coco", "yolo")
ONE_CLASS = "defect"
MARK = "export.json"


class ExportError(ValueError):
    """A training set can't be exported as asked."""


class Export(NamedTuple):
    """What an export wrote.

    Attributes:
        folder: where it is.
        images: number of images.
        positives: how many of them are positive.
        instances: connected parts of all masks, each of them one object in COCO and YOLO.
        left_out: positives that were left out because they have no mask.
    """

    folder: Path
    images: int
    positives: int
    instances: int
    left_out: int


def export_training_set(
    training_set: pd.DataFrame,
    folder: Path | str,
    target: Path | str,
    export_format: str,
    skip_unmasked: bool = False,
    by_defect_type: bool = False,
    coco_masks: str = "rle",
    overwrite: bool = False,
) -> Export:
    """Copy a training set into the format that another tool reads, whole or not at all.

    In COCO and YOLO every connected part of a mask is one object, and a negative is an image without any.

    Args:
        training_set: manifest with paths relative to `folder`.
        folder: where its images are.
        target: folder to make; it may exist when it is empty.
        export_format: word of `FORMATS`.
        skip_unmasked: leave positives without a mask out, and count them, instead of refusing them.
        by_defect_type: a class for every defect type in COCO and YOLO, instead of one class "defect";
            positives of unknown type, as generated ones are, stay in the class "defect".
        coco_masks: "rle" keeps every pixel; "polygon" is for tools that read nothing else: most of them
            draw an outline half a pixel too small all around, so that a crack of 1 pixel vanishes
            and one of 3 pixels keeps two thirds of its area (measured with pycocotools).
        overwrite: replace an earlier export in the same format.

    Raises:
        ExportError: positives without mask, masks without a defect or of another size, a target that
            holds something else, or an unknown word.
        ManifestError: the training set names files that don't exist.
    """
    folder, target = Path(folder), Path(target)
    _check_words(export_format, coco_masks)
    _check_target(target, export_format, overwrite)
    validate_manifest(training_set, folder / "training set", check_files=True)
    rows = _select_masked(training_set, skip_unmasked)
    placed = _place_rows(rows, export_format, by_defect_type)
    positives, instances = int((rows["label"] == "positive").sum()), _count_instances(rows, folder)
    done = Export(target, len(rows), positives, instances, len(training_set) - len(rows))
    with _staged(target) as staging:
        _copy_files(rows, placed, folder, staging)
        annotated = placed.assign(mask=rows["mask"])
        if export_format == "coco":
            write_coco(annotated, folder, staging, coco_masks)
        elif export_format == "yolo":
            write_yolo(annotated, folder, staging)
        write_manifest(placed.drop(columns="object_class"), staging / "manifest.csv")
        counts = {name: count for name, count in done._asdict().items() if name != "folder"}
        write_json(staging / MARK, {"format": export_format, **counts})
    return done


def _check_words(export_format: str, coco_masks: str) -> None:
    known_words = (("export_format", export_format, FORMATS), ("coco_masks", coco_masks, ("rle", "polygon")))
    for what, word, known in known_words:
        if word not in known:
            raise ExportError(f"{what} {word!r} is none of {', '.join(known)}")


def _check_target(target: Path, export_format: str, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    mark = target / MARK
    found = json.loads(mark.read_text(encoding="utf-8")).get("format") if mark.is_file() else None
    if found == export_format and overwrite:
        return
    held = f"holds an export in the format {found}" if found else "is not empty and no export of ours"
    advice = "overwrite=True replaces it" if found == export_format else "choose another folder or empty it"
    raise ExportError(f"{target} {held}: {advice}")


def _select_masked(training_set: pd.DataFrame, skip_unmasked: bool) -> pd.DataFrame:
    """Negatives, and the positives that have a mask."""
    is_unmasked = (training_set["label"] == "positive") & (training_set["mask"] == "")
    if is_unmasked.any() and not skip_unmasked:
        shown = ", ".join(training_set["image"][is_unmasked].head(3))
        raise ExportError(
            f"{is_unmasked.sum()} positives have no mask (such as {shown}), and every format needs one: "
            "skip_unmasked=True leaves them out"
        )
    if is_unmasked.all():
        raise ExportError("no image is left to export")
    return training_set[~is_unmasked].reset_index(drop=True)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, which takes its place when the block ends well."""
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    former = staging.with_suffix(".old")
    try:
        staging.mkdir(parents=True)
        yield staging
        if target.exists():
            target.rename(former)
        staging.rename(target)
    except BaseException:
        if former.exists():
            former.rename(target)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def _safe_name(word: str) -> str:
    """A word as part of a file's name: letters, digits, `_` and `-` of ASCII stay."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", word).strip("_") or "unnamed"


def _place_rows(rows: pd.DataFrame, export_format: str, by_defect_type: bool) -> pd.DataFrame:
    """The rows with the paths that they get in the export, their former image and their class."""
    digits = len(str(len(rows)))
    images = zip(rows["origin"], rows["image"], strict=True)
    names = [
        f"{row:0{digits}d}_{origin}_{_safe_name(Path(path).stem)}"
        for row, (origin, path) in enumerate(images)
    ]
    suffixes = [Path(path).suffix.lower() for path in rows["image"]]
    types = [_safe_name(word) if word not in ("", "good") else ONE_CLASS for word in rows["defect_type"]]
    placed = rows.assign(exported_from=rows["image"], mask="")
    placed["object_class"] = types if by_defect_type else ONE_CLASS
    if export_format == "mvtec":
        places = zip(_categories(rows), rows["split"], rows["label"], types, names, suffixes, strict=True)
        placed[["image", "mask"]] = [_place_in_mvtec(*place) for place in places]
    else:
        paths = zip(rows["split"], names, suffixes, strict=True)
        placed["image"] = [f"images/{split}/{name}{suffix}" for split, name, suffix in paths]
    return placed


def _categories(rows: pd.DataFrame) -> list[str]:
    """Category of every row; where it is empty, the only one there is, else "product"."""
    known = sorted(set(rows["category"]) - {""})
    default = known[0] if len(known) == 1 else "product"
    return [_safe_name(category or default) for category in rows["category"]]


def _place_in_mvtec(
    category: str, split: str, label: str, defect_type: str, name: str, suffix: str
) -> tuple[str, str]:
    """Image and mask path in the format "mvtec"."""
    split = "validation" if split == "val" else split
    root, positives = f"mvtec_ad/{category}", f"positives/{category}/{split}"
    if label == "negative":
        return f"{root}/{split}/good/{name}{suffix}", ""
    if split == "test":
        return (
            f"{root}/test/{defect_type}/{name}{suffix}",
            f"{root}/ground_truth/{defect_type}/{name}_mask.png",
        )
    return f"{positives}/images/{defect_type}/{name}{suffix}", f"{positives}/masks/{defect_type}/{name}.png"


def _count_instances(rows: pd.DataFrame, folder: Path) -> int:
    """Connected parts of all masks; masks that are empty or don't fit their image are refused together."""
    problems, instances = [], 0
    for image, path in rows.loc[rows["label"] == "positive", ["image", "mask"]].itertuples(index=False):
        mask = read_mask(folder / path)
        with Image.open(folder / image) as opened:
            size = opened.size
        if size != mask.shape[::-1]:
            problems.append(
                f"{path}: {mask.shape[1]} × {mask.shape[0]} pixels, its image {size[0]} × {size[1]}"
            )
        elif not mask.any():
            problems.append(f"{path}: no pixel is marked, but {image} is positive")
        instances += label(mask, connectivity=2).max()
    raise_problems("masks", problems, ExportError)
    return int(instances)


def _copy_files(rows: pd.DataFrame, placed: pd.DataFrame, folder: Path, staging: Path) -> None:
    for old, new in zip(rows["image"], placed["image"], strict=True):
        with write_atomically(staging / new) as temporary:
            shutil.copyfile(folder / old, temporary)
    for old, new in zip(rows["mask"], placed["mask"], strict=True):
        if new:
            write_png(staging / new, read_mask(folder / old))


def list_tree(folder: Path | str) -> pd.DataFrame:
    """One row a folder of an export that holds files: its path, their number, and the first one's name."""
    files = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    table = pd.DataFrame(
        {"folder": [path.parent.as_posix() for path in files], "file": [f.name for f in files]}
    )
    counted = table.groupby("folder")["file"].agg(files="count", first="first")
    return counted.reset_index()
