"""Training sets as MVTec AD / anomalib folders, COCO or YOLO, for trainers that exist already.

- "mvtec": `mvtec_ad/<category>/` is what anomalib's `MVTecAD` reads, with `validation/good` beside the rest.
  It has no place for positives to train with, so they and their masks are in `images/<defect type>` and
  `masks/<defect type>` of `positives/<category>/train` (and `validation`): `abnormal_dir` and `mask_dir` of
  anomalib's `Folder`, whose `normal_dir` is `mvtec_ad/<category>/train/good`.
- "coco": `images/<split>/` and `annotations/instances_<split>.json`.
- "yolo": `images/<split>/`, `labels/<split>/` and `data.yaml`, holes joined to the outline by a seam.

Each has `manifest.csv`, with the former paths in `exported_from`, and `export.json`, what was written. Files
are called `<row>_<origin>_<former name>`, in one order with and without `_mask`, as anomalib pairs them.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import supervision as sv
import yaml
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes
from skimage.measure import label
from supervision.config import COCO_RAW_SEGMENTATION
from supervision.dataset.utils import approximate_mask_with_polygons
from supervision.detection.utils.converters import mask_to_rle

from defaug_utils.core.files import write_atomically, write_json, write_png
from defaug_utils.core.guards import check_demands, collect_problems, raise_problems
from defaug_utils.core.images import read_mask
from defaug_utils.core.manifest import SPLITS, validate_manifest, write_manifest

FORMATS = ("mvtec", "coco", "yolo")
COCO_MASKS = ("rle", "polygon")
ONE_CLASS = "defect"
MARK = "export.json"
YOLO_BATCH = 16  # images whose masks are in memory at a time
COCO_BATCH = 256  # images whose objects are


class ExportError(ValueError):
    """A training set can't be exported as asked."""


class Export(NamedTuple):
    """What an export wrote: its folder, and numbers."""

    folder: Path
    images: int
    positives: int
    instances: int  #: connected parts of all masks, each of them one object in COCO and YOLO
    left_out: int  #: positives without a mask


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

    Args:
        training_set: manifest with paths relative to `folder`.
        target: folder to make, or an empty one.
        skip_unmasked: leave positives without a mask out, and count them, instead of refusing them.
        by_defect_type: a class for every defect type in COCO and YOLO, instead of one class "defect", in
            which positives of unknown type, as generated ones are, stay.
        coco_masks: "rle" keeps every pixel; "polygon" is for tools that read nothing else: most of them draw
            an outline half a pixel too small all around, so that a crack of 1 pixel vanishes.
        overwrite: replace an earlier export in the same format.

    Raises:
        ExportError: positives without mask, masks without a defect or of another size, a target that holds
            something else, or an unknown word.
        ManifestError: the training set names files that don't exist.
    """
    folder, target = Path(folder), Path(target)
    demands = {
        f"export_format {export_format!r} is none of {', '.join(FORMATS)}": export_format in FORMATS,
        f"coco_masks {coco_masks!r} is none of {', '.join(COCO_MASKS)}": coco_masks in COCO_MASKS,
    }
    check_demands("export", demands, ExportError)
    _check_target(target, export_format, overwrite)
    validate_manifest(training_set, folder / "training set", check_files=True)
    rows = _select_masked(training_set, skip_unmasked)
    placed = _place_rows(rows, export_format, by_defect_type)
    positives, instances = int((rows["label"] == "positive").sum()), _count_instances(rows, folder)
    done = Export(target, len(rows), positives, instances, len(training_set) - len(rows))
    with _staged(target) as staging:
        for old, new in zip(rows.itertuples(), placed.itertuples(), strict=True):
            with write_atomically(staging / new.image) as temporary:
                shutil.copyfile(folder / old.image, temporary)
            if new.mask:
                write_png(staging / new.mask, read_mask(folder / old.mask))
        classes = sorted(set(placed["object_class"][placed["label"] == "positive"]))
        annotated = placed.assign(mask_file=[folder / mask for mask in rows["mask"]])
        if export_format == "coco":
            _write_coco(annotated, staging, classes, coco_masks)
        elif export_format == "yolo":
            _write_yolo(annotated, staging, classes)
        write_manifest(placed.drop(columns="object_class"), staging / "manifest.csv")
        counts = {name: count for name, count in done._asdict().items() if name != "folder"}
        write_json(staging / MARK, {"format": export_format, **counts})
    return done


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
    categories = sorted(set(rows["category"]) - {""})
    category, digits = categories[0] if len(categories) == 1 else "product", len(str(len(rows)))
    types = [_safe_name(word) if word not in ("", "good") else ONE_CLASS for word in rows["defect_type"]]
    places = []
    for number, (row, defect_type) in enumerate(zip(rows.itertuples(), types, strict=True)):
        image = Path(row.image)
        suffix = re.sub(r"[^.a-z0-9]", "", image.suffix.lower())
        name = f"{number:0{digits}d}_{row.origin}_{_safe_name(image.stem)}{suffix}"
        if export_format == "mvtec":
            places.append(_place_in_mvtec(row, _safe_name(row.category or category), defect_type, Path(name)))
        else:
            places.append((f"images/{row.split}/{name}", ""))
    placed = rows.assign(exported_from=rows["image"])
    placed["object_class"] = types if by_defect_type else ONE_CLASS
    placed[["image", "mask"]] = places
    return placed


def _place_in_mvtec(row: NamedTuple, category: str, defect_type: str, name: Path) -> tuple[str, str]:
    """Image and mask path in the format "mvtec"."""
    split = "validation" if row.split == "val" else row.split
    root, positives = f"mvtec_ad/{category}", f"positives/{category}/{split}"
    if row.label == "negative":
        return f"{root}/{split}/good/{name}", ""
    if split == "test":
        return f"{root}/test/{defect_type}/{name}", f"{root}/ground_truth/{defect_type}/{name.stem}_mask.png"
    return f"{positives}/images/{defect_type}/{name}", f"{positives}/masks/{defect_type}/{name.stem}.png"


def _count_instances(rows: pd.DataFrame, folder: Path) -> int:
    """Connected parts of all masks; masks that are empty or don't fit their image are refused together."""
    problems, instances = [], 0
    for image, path in rows.loc[rows["label"] == "positive", ["image", "mask"]].itertuples(index=False):
        with collect_problems(problems), Image.open(folder / image) as opened:
            mask, (width, height) = read_mask(folder / path), opened.size
            if mask.shape != (height, width):
                found = f"{mask.shape[1]} × {mask.shape[0]}"
                problems.append(f"{path}: {found} pixels, its image {width} × {height}")
            elif not mask.any():
                problems.append(f"{path}: no pixel is marked, but {image} is positive")
            instances += label(mask, connectivity=2).max()
    raise_problems("masks", problems, ExportError)
    return int(instances)


def find_parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts, shape (parts, height, width), bool, and their boxes (left, top, right, bottom)."""
    labels = label(mask, connectivity=2)
    parts = labels == np.arange(1, labels.max() + 1)[:, None, None]
    return parts, np.add(sv.mask_to_xyxy(parts), (0, 0, 1, 1)).astype(np.float32)


def _make_traceable(part: np.ndarray) -> np.ndarray:
    """The part; with its hole filled where no seam reaches that; widened where it is a line or a speck."""
    if _trace(part):
        return part
    if _trace(filled := binary_fill_holes(part)):
        return filled
    wider = binary_dilation(part, np.ones((2, 2)))
    return wider if _trace(wider) else binary_dilation(part, np.ones((3, 3)))


def _trace(part: np.ndarray) -> list[np.ndarray]:
    """Outline of a part, holes joined to it; empty when there is none."""
    with suppress(ValueError):
        return approximate_mask_with_polygons(part, bridge_holes=True)
    return []


def _detect(mask: np.ndarray, class_id: int, form: str) -> sv.Detections:
    """The parts of a mask as objects, with traceable masks ("yolo") or COCO's content ("rle", "polygon")."""
    parts, boxes = find_parts(mask)
    detections = sv.Detections(xyxy=boxes, class_id=np.full(len(parts), class_id))
    if form == "yolo":
        detections.mask = np.array([_make_traceable(part) for part in parts])
        return detections
    segmentations = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        if form == "rle":
            segmentations[index] = {"counts": mask_to_rle(part), "size": list(part.shape)}
        else:
            segmentations[index] = [outline.ravel().tolist() for outline in _trace(_make_traceable(part))]
    # Supervision would call a part with a hole a crowd, which trainers pass over.
    detections.data = {"iscrowd": np.zeros(len(parts), dtype=int), COCO_RAW_SEGMENTATION: segmentations}
    detections.data["area"] = parts.sum(axis=(1, 2)).astype(float)
    return detections


def _make_dataset(rows: pd.DataFrame, staging: Path, classes: list[str], form: str) -> sv.DetectionDataset:
    """The rows as supervision's data set: images stay on the disk, negatives have no object."""
    annotations = {str(staging / image): sv.Detections.empty() for image in rows["image"]}
    for row in rows[rows["label"] == "positive"].itertuples():
        detections = _detect(read_mask(row.mask_file), classes.index(row.object_class), form)
        annotations[str(staging / row.image)] = detections
    return sv.DetectionDataset(classes, list(annotations), annotations)


def _write_coco(rows: pd.DataFrame, staging: Path, classes: list[str], coco_masks: str) -> None:
    """Write `annotations/instances_<split>.json`; ids go on from split to split."""
    image_id, object_id = 1, 1
    for split, part in rows.groupby("split"):
        path = staging / "annotations" / f"instances_{split}.json"
        lists: dict[str, list[str]] = {"images": [], "annotations": []}  # as text, a fraction of the objects
        for batch in _cut(part, COCO_BATCH):
            dataset = _make_dataset(batch, staging, classes, coco_masks)
            starts = {"starting_image_id": image_id, "starting_annotation_id": object_id}
            image_id, object_id = dataset.as_coco(annotations_path=str(path), **starts)
            # Without what supervision adds: a CC BY licence that isn't ours to give, and the time.
            content = json.loads(path.read_text(encoding="utf-8")) | {"licenses": []}
            for image in content["images"]:
                del image["license"], image["date_captured"]
            for name, texts in lists.items():
                texts += map(json.dumps, content[name])
        told = {name: json.dumps(value) for name, value in content.items()}
        told |= {name: f"[{', '.join(texts)}]" for name, texts in lists.items()}
        parts = ", ".join(f'"{name}": {text}' for name, text in told.items())
        path.write_text(f"{{{parts}}}", encoding="utf-8")


def _cut(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    """The rows, some at a time."""
    return (rows.iloc[start : start + size] for start in range(0, len(rows), size))


def _write_yolo(rows: pd.DataFrame, staging: Path, classes: list[str]) -> None:
    """Write `labels/<split>/<name>.txt` and `data.yaml`."""
    for split, part in rows.groupby("split"):
        for batch in _cut(part, YOLO_BATCH):
            dataset = _make_dataset(batch, staging, classes, "yolo")
            dataset.as_yolo(annotations_directory_path=str(staging / "labels" / split))
    folders = {split: f"images/{split}" for split in SPLITS if split in set(rows["split"])}
    content = yaml.safe_dump({**folders, "nc": len(classes), "names": classes}, sort_keys=False)
    (staging / "data.yaml").write_text(content, encoding="utf-8")


def list_tree(folder: Path | str) -> pd.DataFrame:
    """One row a folder of an export that holds files: its path, their number, and the first one's name."""
    files = sorted(path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    table = pd.DataFrame([(path.parent.as_posix(), path.name) for path in files], columns=["folder", "file"])
    return table.groupby("folder")["file"].agg(files="count", first="first").reset_index()
